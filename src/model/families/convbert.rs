//! ConvBERT (Jiang et al. 2020, arXiv:2008.02496): half of the heads attend, the other half slide kernels over their
//! neighbours that are computed from the text.
//!
//! The convolutions see padding, so that only texts of one length share a batch.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::{bert, electra};
use crate::model::nn::{Block, FeedForward, Linear, Norm, Pass, Sizes, Spec};
use crate::model::{
    Architecture, Config, Context, Family, Init, ModelFlops, Sharing, WeightBuilder,
};
use crate::ops::{self, Activation, AttentionMask, Dropout, Param};
use crate::{Error, Result};

/// `ConvBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "convbert",
    class: "ConvBertForMaskedLM",
    synonyms: &["ConvBertModel"],
    base: "convbert",
    // Checkpoints mean 0, but a config that leaves it out says 1.
    defaults: r#"{"embedding_size": 768, "pad_token_id": 1}"#,
    sharing: Sharing::OneLength,
    build,
    ..electra::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct ConvBertConfig {
    embedding_size: usize,
    head_ratio: usize,
    conv_kernel_size: usize,
    num_groups: usize,
}

impl Default for ConvBertConfig {
    fn default() -> Self {
        Self {
            embedding_size: 768,
            head_ratio: 2,
            conv_kernel_size: 9,
            num_groups: 1,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: ConvBertConfig = config.parse()?;
    let parent = bert::spec(config)?;
    let embedding = values.embedding_size;
    let heads = parent.sizes.heads.checked_div(values.head_ratio);
    let heads = heads.map_or(0, |heads| heads.max(1));
    let spec = Spec {
        base: "convbert",
        sizes: Sizes {
            embedding,
            output: embedding,
            heads,
            ..parent.sizes
        },
        projection: (embedding != parent.sizes.hidden).then_some("embeddings_project"),
        head: electra::HEAD,
        // Whatever hidden_act says.
        head_activation: Activation::Gelu,
        ..parent
    };
    check(&spec.sizes, &values)?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let weights = weights.pp(spec.base).pp(format!("encoder.layer.{place}"));
        Ok(Arc::new(ConvBertBlock::new(&spec, &values, &weights)?))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

fn check(sizes: &Sizes, values: &ConvBertConfig) -> Result<()> {
    let Sizes { hidden, heads, .. } = *sizes;
    if heads == 0 || hidden % (2 * heads) != 0 {
        return Err(Error::Config(format!(
            "hidden_size {hidden} can't be shared out among {heads} attending and as many sliding heads \
             (num_attention_heads / head_ratio)"
        )));
    }
    let kernel = values.conv_kernel_size;
    if kernel.is_multiple_of(2) {
        return Err(Error::Config(format!(
            "conv_kernel_size {kernel} must be odd, so that a kernel has a middle"
        )));
    }
    let groups = values.num_groups;
    if groups == 0 || !hidden.is_multiple_of(groups) || !sizes.intermediate.is_multiple_of(groups) {
        return Err(Error::Config(format!(
            "hidden_size {hidden} and intermediate_size {} can't be cut into num_groups {groups}",
            sizes.intermediate
        )));
    }
    Ok(())
}

/// Attention in half of the features, convolutions in the other half.
#[derive(Debug)]
struct MixedAttention {
    query: Linear,
    key: Linear,
    value: Linear,
    /// Slides over the input, feature by feature: (hidden, 1, kernel).
    depthwise: Param,
    /// Brings what that gives to the width of the queries.
    pointwise: (Param, Param),
    /// From queries times those keys to a kernel for each head and position.
    kernels: Linear,
    /// The values that the kernels are applied to.
    slid: Linear,
    heads: usize,
    head_size: usize,
    kernel: usize,
    dropout: f64,
}

impl MixedAttention {
    fn new(spec: &Spec, kernel: usize, weights: &WeightBuilder) -> Result<Self> {
        let (hidden, heads, std) = (spec.sizes.hidden, spec.sizes.heads, spec.std);
        let width = hidden / 2;
        let map = |name: &str| Linear::new(&weights.pp(name), hidden, width, std);
        let keys = weights.pp("key_conv_attn_layer");
        let pointwise = keys.pp("pointwise");
        let (normal, stored) = (Init::Normal(std), [width, hidden, 1]);
        Ok(Self {
            query: map("query")?,
            key: map("key")?,
            value: map("value")?,
            depthwise: keys
                .pp("depthwise")
                .param("weight", (hidden, 1, kernel), normal)?,
            pointwise: (
                pointwise.param_stored_as("weight", (width, hidden), &stored, normal)?,
                keys.param_stored_as("bias", width, &[width, 1], Init::Zeros)?,
            ),
            kernels: Linear::new(&weights.pp("conv_kernel_layer"), width, heads * kernel, std)?,
            slid: map("conv_out_layer")?,
            heads,
            head_size: width / heads,
            kernel,
            dropout: spec.dropout.attention,
        })
    }

    fn forward(&self, x: &Tensor, mask: &AttentionMask, dropout: Dropout) -> Result<Tensor> {
        let (batch, seq, _) = x.dims3()?;
        let query = self.query.forward(x)?;
        let (key, value) = (self.key.forward(x)?, self.value.forward(x)?);
        let scale = 1.0 / (self.head_size as f64).sqrt();
        let attended = ops::attention(&query, &key, &value, self.heads, mask, scale, dropout)?;

        let depthwise = ops::param_rows(&self.depthwise)?;
        let keys = ops::depthwise_conv(x, &depthwise, self.kernel / 2)?;
        let keys = ops::linear(&keys, &self.pointwise.0, Some(&self.pointwise.1))?;
        let kernels = self.kernels.forward(&ops::mul(&keys, &query)?)?;
        let kernels = ops::reshape(&kernels, (batch, seq, self.heads, self.kernel))?;
        let slid = ops::dynamic_conv(&self.slid.forward(x)?, &ops::softmax(&kernels)?)?;
        ops::concat(&[&attended, &slid], 2)
    }

    fn maps(&self) -> [&Linear; 5] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.kernels,
            &self.slid,
        ]
    }

    fn params(&self) -> Vec<Param> {
        let (weight, bias) = &self.pointwise;
        let own = [self.depthwise.clone(), weight.clone(), bias.clone()];
        let maps = self.maps().into_iter().flat_map(Linear::params);
        maps.chain(own).collect()
    }

    fn flops(&self) -> ModelFlops {
        let maps: usize = self.maps().into_iter().map(Linear::weights).sum();
        ModelFlops {
            per_token: 2 * (maps + self.pointwise.0.elem_count()) as u64,
            per_pair: 4 * (self.heads * self.head_size) as u64,
            ..ModelFlops::default()
        }
    }
}

/// The two maps of a block, whole or in groups.
#[derive(Debug)]
enum Maps {
    Whole(FeedForward),
    Grouped {
        intermediate: GroupedLinear,
        activation: Activation,
        output: GroupedLinear,
    },
}

impl Maps {
    fn forward(&self, x: &Tensor, context: &Context) -> Result<Tensor> {
        match self {
            Self::Whole(maps) => maps.forward(x, context),
            Self::Grouped {
                intermediate,
                activation,
                output,
            } => output.forward(&activation.apply(&intermediate.forward(x)?)?),
        }
    }

    fn params(&self) -> Vec<Param> {
        match self {
            Self::Whole(maps) => maps.params(),
            Self::Grouped {
                intermediate: one,
                output: other,
                ..
            } => [&one.weight, &one.bias, &other.weight, &other.bias]
                .map(Param::clone)
                .to_vec(),
        }
    }

    fn weights(&self) -> usize {
        match self {
            Self::Whole(maps) => maps.weights(),
            Self::Grouped {
                intermediate,
                output,
                ..
            } => intermediate.weight.elem_count() + output.weight.elem_count(),
        }
    }
}

/// Maps of groups of features, each to its own: the weight is (groups, in / groups, out / groups).
#[derive(Debug)]
struct GroupedLinear {
    weight: Param,
    bias: Param,
}

impl GroupedLinear {
    fn new(
        weights: &WeightBuilder,
        (input, output): (usize, usize),
        groups: usize,
        std: f64,
    ) -> Result<Self> {
        let shape = (groups, input / groups, output / groups);
        Ok(Self {
            weight: weights.param("weight", shape, Init::Normal(std))?,
            bias: weights.param("bias", output, Init::Zeros)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, seq, width) = x.dims3()?;
        let groups = self.weight.shape().dims()[0];
        let x = ops::reshape(x, (batch * seq, groups, width / groups))?;
        let x = ops::permute(&x, &[1, 0, 2])?;
        let y = ops::matmul(&x, &ops::param_rows(&self.weight)?, false, false)?;
        let y = ops::permute(&y, &[1, 0, 2])?;
        let y = ops::reshape(&y, (batch, seq, self.bias.elem_count()))?;
        ops::add_broadcast(&y, &ops::param_rows(&self.bias)?)
    }
}

#[derive(Debug)]
struct ConvBertBlock {
    attention: MixedAttention,
    attention_output: Linear,
    attention_dropout: f64,
    attention_norm: Norm,
    maps: Maps,
    dropout: f64,
    output_norm: Norm,
}

impl ConvBertBlock {
    fn new(spec: &Spec, values: &ConvBertConfig, weights: &WeightBuilder) -> Result<Self> {
        let Sizes {
            hidden,
            intermediate,
            ..
        } = spec.sizes;
        let (std, eps, groups) = (spec.std, spec.eps, values.num_groups);
        let attention = weights.pp("attention");
        let inner = weights.pp("intermediate.dense");
        let outer = weights.pp("output.dense");
        Ok(Self {
            attention: MixedAttention::new(spec, values.conv_kernel_size, &attention.pp("self"))?,
            attention_output: Linear::new(&attention.pp("output.dense"), hidden, hidden, std)?,
            attention_dropout: spec.dropout.attended,
            attention_norm: Norm::layer(&attention.pp("output.LayerNorm"), hidden, eps)?,
            maps: match groups {
                1 => Maps::Whole(FeedForward {
                    intermediate: Linear::new(&inner, hidden, intermediate, std)?,
                    activation: spec.activation,
                    activation_dropout: 0.0,
                    output: Linear::new(&outer, intermediate, hidden, std)?,
                    dropout: spec.dropout.output,
                }),
                _ => Maps::Grouped {
                    intermediate: GroupedLinear::new(&inner, (hidden, intermediate), groups, std)?,
                    activation: spec.activation,
                    output: GroupedLinear::new(&outer, (intermediate, hidden), groups, std)?,
                },
            },
            dropout: spec.dropout.output,
            output_norm: Norm::layer(&weights.pp("output.LayerNorm"), hidden, eps)?,
        })
    }
}

impl Block for ConvBertBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let dropout = context.dropout(self.attention.dropout);
        let attended = self.attention.forward(x, &pass.mask, dropout)?;
        let attended = self.attention_output.forward(&attended)?;
        let dropout = context.dropout(self.attention_dropout);
        let x = self
            .attention_norm
            .forward_residual(&attended, x, dropout)?;
        let fed = self.maps.forward(&x, context)?;
        let dropout = context.dropout(self.dropout);
        self.output_norm.forward_residual(&fed, &x, dropout)
    }

    fn params(&self) -> Vec<Param> {
        [
            self.attention.params(),
            self.attention_output.params(),
            self.attention_norm.params(),
            self.maps.params(),
            self.output_norm.params(),
        ]
        .concat()
    }

    fn flops(&self) -> ModelFlops {
        let attention = self.attention.flops();
        let maps = self.attention_output.weights() + self.maps.weights();
        ModelFlops {
            per_token: attention.per_token + 2 * maps as u64,
            ..attention
        }
    }
}
