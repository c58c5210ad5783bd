//! SqueezeBERT (Iandola et al. 2020, arXiv:2006.11316): BERT whose maps work on groups of features, which phones do fast.

use std::sync::Arc;

use candle_core::Tensor;
use serde::Deserialize;

use super::bert;
use crate::model::nn::{Block, Norm, Pass, Spec};
use crate::model::{Architecture, Config, Family, Init, ModelFlops, WeightBuilder};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

/// `SqueezeBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "squeezebert",
    class: "SqueezeBertForMaskedLM",
    synonyms: &["SqueezeBertModel"],
    base: "transformer",
    carried: &["transformer.pooler."],
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Groups {
    embedding_size: usize,
    hidden_size: usize,
    q_groups: usize,
    k_groups: usize,
    v_groups: usize,
    post_attention_groups: usize,
    intermediate_groups: usize,
    output_groups: usize,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            embedding_size: 768,
            hidden_size: 768,
            q_groups: 4,
            k_groups: 4,
            v_groups: 4,
            post_attention_groups: 1,
            intermediate_groups: 4,
            output_groups: 4,
        }
    }
}

/// What transformers hard-codes in the layers.
const EPS: f64 = 1e-12;

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let groups: Groups = config.parse()?;
    if groups.embedding_size != groups.hidden_size {
        return Err(Error::Config(format!(
            "embedding_size {} must be hidden_size {} in SqueezeBERT",
            groups.embedding_size, groups.hidden_size
        )));
    }
    let spec = Spec {
        base: "transformer",
        ..bert::spec(config)?
    };
    spec.check()?;
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let weights = weights.pp(spec.base).pp(format!("encoder.layers.{place}"));
        let (hidden, inner) = (spec.sizes.hidden, spec.sizes.intermediate);
        let map = |name: &str, shape: (usize, usize), groups: usize| {
            GroupedLinear::new(&weights.pp(name), shape, groups, spec.std)
        };
        let square = (hidden, hidden);
        Ok(Arc::new(SqueezeBlock {
            query: map("attention.query", square, groups.q_groups)?,
            key: map("attention.key", square, groups.k_groups)?,
            value: map("attention.value", square, groups.v_groups)?,
            attended: map(
                "post_attention.conv1d",
                square,
                groups.post_attention_groups,
            )?,
            attention_norm: Norm::layer(&weights.pp("post_attention.layernorm"), hidden, EPS)?,
            intermediate: map(
                "intermediate.conv1d",
                (hidden, inner),
                groups.intermediate_groups,
            )?,
            output: map("output.conv1d", (inner, hidden), groups.output_groups)?,
            output_norm: Norm::layer(&weights.pp("output.layernorm"), hidden, EPS)?,
            heads: spec.sizes.heads,
            activation: spec.activation,
            attention_dropout: spec.dropout.attention,
            dropout: spec.dropout.output,
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let hidden = spec.sizes.hidden;
    let pooler = weights.pp(spec.base);
    pooler.carry_linear("pooler.dense", hidden, hidden, spec.std)?;
    Ok(Box::new(spec.build_with(weights, blocks)?))
}

/// A map of groups of features, each to its own: a convolution over single positions.
#[derive(Debug)]
struct GroupedLinear {
    /// (out, in / groups, 1).
    weight: Param,
    bias: Param,
    groups: usize,
}

impl GroupedLinear {
    fn new(
        weights: &WeightBuilder,
        (input, output): (usize, usize),
        groups: usize,
        std: f64,
    ) -> Result<Self> {
        if groups == 0 || !input.is_multiple_of(groups) || !output.is_multiple_of(groups) {
            return Err(Error::Config(format!(
                "{groups} groups do not divide the {input} and {output} features of {}",
                weights.full("weight")
            )));
        }
        let shape = (output, input / groups, 1);
        Ok(Self {
            weight: weights.param("weight", shape, Init::Normal(std))?,
            bias: weights.param("bias", output, Init::Zeros)?,
            groups,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear_grouped(x, &self.weight, Some(&self.bias), self.groups)
    }

    fn params(&self) -> [Param; 2] {
        [self.weight.clone(), self.bias.clone()]
    }
}

/// BERT's block over grouped maps.
#[derive(Debug)]
struct SqueezeBlock {
    query: GroupedLinear,
    key: GroupedLinear,
    value: GroupedLinear,
    attended: GroupedLinear,
    attention_norm: Norm,
    intermediate: GroupedLinear,
    output: GroupedLinear,
    output_norm: Norm,
    heads: usize,
    activation: Activation,
    attention_dropout: f64,
    dropout: f64,
}

impl SqueezeBlock {
    fn maps(&self) -> [&GroupedLinear; 6] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.attended,
            &self.intermediate,
            &self.output,
        ]
    }

    fn width(&self) -> usize {
        self.query.bias.elem_count()
    }
}

impl Block for SqueezeBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let attended = ops::attention(
            &self.query.forward(x)?,
            &self.key.forward(x)?,
            &self.value.forward(x)?,
            self.heads,
            &pass.mask,
            1.0 / ((self.width() / self.heads) as f64).sqrt(),
            context.dropout(self.attention_dropout),
        )?;
        let attended = self.attended.forward(&attended)?;
        let dropout = context.dropout(self.dropout);
        let x = self
            .attention_norm
            .forward_residual(&attended, x, dropout)?;
        let inner = ops::activate(&self.intermediate.forward(&x)?, self.activation)?;
        let fed = self.output.forward(&inner)?;
        let dropout = context.dropout(self.dropout);
        self.output_norm.forward_residual(&fed, &x, dropout)
    }

    fn params(&self) -> Vec<Param> {
        let maps = self.maps().into_iter().flat_map(GroupedLinear::params);
        let norms = [&self.attention_norm, &self.output_norm];
        maps.chain(norms.into_iter().flat_map(Norm::params))
            .collect()
    }

    fn flops(&self) -> ModelFlops {
        let weights = self.maps().into_iter().map(|map| map.weight.elem_count());
        ModelFlops {
            per_token: 2 * weights.sum::<usize>() as u64,
            per_pair: 4 * self.width() as u64,
            per_counted: 0,
        }
    }
}
