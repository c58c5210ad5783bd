//! MobileBERT (Sun et al. 2020, arXiv:2004.02984): a deep and narrow BERT whose layers work inside a bottleneck.
//!
//! Its trigram input looks one token to the right, so that padding shows in the last token of a text: only texts of one
//! length share a batch.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert;
use crate::model::nn::{
    Block, Embed, Embeddings, FeedForward, Head, Linear, Norm, Pass, PredictionHead, SelfAttention,
    Sizes, Spec, Transformer, check_layers,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, ModelFlops, ModelInputs, Sharing, WeightBuilder,
};
use crate::ops::{self, Param};
use crate::{Error, Result};

/// `MobileBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "mobilebert",
    class: "MobileBertForMaskedLM",
    synonyms: &["MobileBertForPreTraining", "MobileBertModel"],
    base: "mobilebert",
    defaults: r#"{"hidden_size": 512, "num_hidden_layers": 24, "num_attention_heads": 4, "intermediate_size": 512,
        "hidden_act": "relu", "hidden_dropout_prob": 0.0}"#,
    sharing: Sharing::OneLength,
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Bottlenecks {
    embedding_size: usize,
    trigram_input: bool,
    use_bottleneck: bool,
    intra_bottleneck_size: usize,
    use_bottleneck_attention: bool,
    key_query_shared_bottleneck: bool,
    num_feedforward_networks: usize,
    normalization_type: String,
    hidden_dropout_prob: f64,
    attention_probs_dropout_prob: f64,
}

impl Default for Bottlenecks {
    fn default() -> Self {
        Self {
            embedding_size: 128,
            trigram_input: true,
            use_bottleneck: true,
            intra_bottleneck_size: 128,
            use_bottleneck_attention: false,
            key_query_shared_bottleneck: true,
            num_feedforward_networks: 4,
            normalization_type: "no_norm".to_owned(),
            hidden_dropout_prob: 0.0,
            attention_probs_dropout_prob: 0.1,
        }
    }
}

/// PyTorch's default epsilon, where transformers does not pass on the config's.
const EPS: f64 = 1e-5;

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: Bottlenecks = config.parse()?;
    let spec = Spec {
        base: "mobilebert",
        ..bert::spec(config)?
    };
    spec.check()?;
    check_layers(
        "num_hidden_layers times num_feedforward_networks",
        spec.places
            .len()
            .saturating_mul(values.num_feedforward_networks),
    )?;
    if values.use_bottleneck
        && !values.key_query_shared_bottleneck
        && !values.use_bottleneck_attention
    {
        return Err(Error::Config(
            "use_bottleneck needs key_query_shared_bottleneck or use_bottleneck_attention"
                .to_owned(),
        ));
    }
    let layers = match values.normalization_type.as_str() {
        "no_norm" => false,
        "layer_norm" => true,
        other => {
            return Err(Error::Config(format!(
                "unknown normalization_type {other:?}; known are no_norm and layer_norm"
            )));
        }
    };
    let parts = Parts {
        spec: &spec,
        values: &values,
        layers,
    };
    let embeddings = parts.embeddings(weights)?;
    let blocks = (spec.places.iter())
        .map(|place| {
            let weights = weights.pp(spec.base).pp(format!("encoder.layer.{place}"));
            Ok(Arc::new(parts.block(&weights)?) as Arc<dyn Block>)
        })
        .collect::<Result<_>>()?;
    let head = parts.head(weights, &embeddings.words)?;
    Ok(Box::new(Transformer {
        encoder: spec.encoder(weights, blocks)?,
        embeddings: Box::new(embeddings),
        head: Box::new(head),
        prepare: None,
        max_positions: spec.max_positions(),
    }))
}

/// Makes the parts of a model of these sizes.
struct Parts<'a> {
    spec: &'a Spec,
    values: &'a Bottlenecks,
    /// Whether normalizations normalize.
    layers: bool,
}

impl Parts<'_> {
    /// Returns the width of the layers.
    fn width(&self) -> usize {
        match self.values.use_bottleneck {
            true => self.values.intra_bottleneck_size,
            false => self.spec.sizes.hidden,
        }
    }

    fn norm(&self, weights: &WeightBuilder, width: usize, eps: f64) -> Result<Norm> {
        match self.layers {
            true => Norm::layer(weights, width, eps),
            false => Norm::affine(weights, width),
        }
    }

    fn embeddings(&self, weights: &WeightBuilder) -> Result<TrigramEmbeddings> {
        let (spec, values) = (self.spec, self.values);
        let (hidden, width) = (spec.sizes.hidden, values.embedding_size);
        let base = weights.pp(spec.base).pp("embeddings");
        let words = Spec {
            sizes: Sizes {
                embedding: width,
                output: width,
                ..spec.sizes
            },
            ..spec.clone()
        };
        let mut others = Spec {
            embedding_norm: None,
            ..spec.clone()
        }
        .embeddings_without_words(weights)?;
        others.norm = Some(self.norm(&base.pp("LayerNorm"), hidden, EPS)?);
        let input = if values.trigram_input {
            3 * width
        } else {
            width
        };
        let map = base.pp("embedding_transformation");
        Ok(TrigramEmbeddings {
            words: words.word_table(weights)?,
            pad: spec.pad,
            trigram: values.trigram_input,
            // transformers makes it, but leaves it out where it would change nothing.
            map: Linear::new(&map, input, hidden, spec.std)?,
            mapped: values.trigram_input || width != hidden,
            others,
        })
    }

    fn bottleneck(&self, weights: &WeightBuilder) -> Result<(Linear, Norm)> {
        let (hidden, width) = (self.spec.sizes.hidden, self.width());
        Ok((
            Linear::new(&weights.pp("dense"), hidden, width, self.spec.std)?,
            self.norm(&weights.pp("LayerNorm"), width, self.spec.eps)?,
        ))
    }

    fn feed_forward(&self, weights: &WeightBuilder, eps: f64) -> Result<(FeedForward, Norm)> {
        let (spec, width) = (self.spec, self.width());
        let (inner, std) = (spec.sizes.intermediate, spec.std);
        let maps = FeedForward {
            intermediate: Linear::new(&weights.pp("intermediate.dense"), width, inner, std)?,
            activation: spec.activation,
            activation_dropout: 0.0,
            output: Linear::new(&weights.pp("output.dense"), inner, width, std)?,
            dropout: 0.0,
        };
        Ok((
            maps,
            self.norm(&weights.pp("output.LayerNorm"), width, eps)?,
        ))
    }

    fn block(&self, weights: &WeightBuilder) -> Result<MobileBlock> {
        let (spec, values, width) = (self.spec, self.values, self.width());
        let (hidden, heads, std) = (spec.sizes.hidden, spec.sizes.heads, spec.std);
        if !width.is_multiple_of(heads) {
            return Err(Error::Config(format!(
                "intra_bottleneck_size {width} is not a multiple of num_attention_heads {heads}"
            )));
        }
        let own = weights.pp("attention.self");
        let value = match values.use_bottleneck && !values.use_bottleneck_attention {
            true => hidden,
            false => width,
        };
        let attention = SelfAttention {
            query: Linear::new(&own.pp("query"), width, width, std)?,
            key: Linear::new(&own.pp("key"), width, width, std)?,
            value: Linear::new(&own.pp("value"), value, width, std)?,
            heads,
            head_size: width / heads,
            dropout: values.attention_probs_dropout_prob,
            position_scores: None,
            angles: None,
        };
        let attended = weights.pp("attention.output");
        let bottleneck = weights.pp("bottleneck");
        let shared = values.key_query_shared_bottleneck;
        let narrowed = values
            .use_bottleneck
            .then(|| self.bottleneck(&bottleneck.pp("input")));
        let narrowed_query =
            (values.use_bottleneck && shared).then(|| self.bottleneck(&bottleneck.pp("attention")));
        let widen = weights.pp("output.bottleneck");
        let widened = values.use_bottleneck.then(|| -> Result<_> {
            Ok((
                Linear::new(&widen.pp("dense"), width, hidden, std)?,
                self.norm(&widen.pp("LayerNorm"), hidden, spec.eps)?,
            ))
        });
        let inner = (1..values.num_feedforward_networks)
            .map(|index| self.feed_forward(&weights.pp(format!("ffn.{}", index - 1)), spec.eps));
        Ok(MobileBlock {
            attention,
            attention_output: Linear::new(&attended.pp("dense"), width, width, std)?,
            attention_norm: self.norm(&attended.pp("LayerNorm"), width, spec.eps)?,
            inner: inner.collect::<Result<_>>()?,
            last: self.feed_forward(weights, EPS)?,
            narrowed: narrowed.transpose()?,
            narrowed_query: narrowed_query.transpose()?,
            all_narrowed: values.use_bottleneck_attention,
            widened: widened.transpose()?,
            dropout: values.hidden_dropout_prob,
        })
    }

    fn head(&self, weights: &WeightBuilder, words: &Param) -> Result<JoinedHead> {
        let (spec, width) = (self.spec, self.values.embedding_size);
        let (vocab, hidden) = (spec.sizes.vocab, spec.sizes.hidden);
        let rest = hidden.checked_sub(width).ok_or_else(|| {
            Error::Config(format!(
                "embedding_size {width} is larger than hidden_size {hidden}"
            ))
        })?;
        let transform = spec.head_transform(weights)?;
        let name = "cls.predictions.decoder";
        let bias = Some("cls.predictions.bias");
        let words = spec.tied.then_some(words);
        let (decoder, bias) = weights.decoder(name, bias, words, (vocab, width), spec.std)?;
        let joined = weights.pp("cls.predictions.dense");
        Ok(JoinedHead {
            own: PredictionHead {
                transform,
                decoder,
                bias,
            },
            rest: match rest {
                0 => None,
                rest => Some(joined.param("weight", (rest, vocab), Init::Normal(spec.std))?),
            },
        })
    }
}

/// Each token with its neighbours, projected to the encoder's width, plus positions and segments.
#[derive(Debug)]
struct TrigramEmbeddings {
    words: Param,
    pad: Option<u32>,
    trigram: bool,
    map: Linear,
    mapped: bool,
    /// Positions and segments, and the normalization of the sum.
    others: Embeddings,
}

impl Embed for TrigramEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let ids = inputs.input_ids_tensor(&Device::Cpu)?;
        let mut x = ops::embedding(&ids, &self.words, self.pad)?;
        if self.trigram {
            let (batch, seq, width) = x.dims3()?;
            let nothing = Tensor::zeros((batch, 1, width), x.dtype(), x.device())?;
            let next = ops::concat(&[&ops::narrow(&x, 1, 1, seq - 1)?, &nothing], 1)?;
            let previous = ops::concat(&[&nothing, &ops::narrow(&x, 1, 0, seq - 1)?], 1)?;
            x = ops::concat(&[&next, &x, &previous], 2)?;
        }
        if self.mapped {
            x = self.map.forward(&x)?;
        }
        let sum = ops::add(&x, &self.others.sum(inputs)?)?;
        self.others.finish(&sum, context)
    }
}

/// A block that narrows its input, attends, feeds forward several times, and widens the result again.
#[derive(Debug)]
struct MobileBlock {
    attention: SelfAttention,
    attention_output: Linear,
    attention_norm: Norm,
    /// The feed-forward maps but for the last.
    inner: Vec<(FeedForward, Norm)>,
    last: (FeedForward, Norm),
    /// The way into the block, where there is a bottleneck.
    narrowed: Option<(Linear, Norm)>,
    /// The way of queries and keys, where it is another.
    narrowed_query: Option<(Linear, Norm)>,
    /// Whether queries, keys and values all go through `narrowed`.
    all_narrowed: bool,
    /// The way out of the block.
    widened: Option<(Linear, Norm)>,
    /// The dropout probability at the output and, without a bottleneck, after attention and feed-forward.
    dropout: f64,
}

impl Block for MobileBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let context = &pass.context;
        let through = |(map, norm): &(Linear, Norm)| norm.forward(&map.forward(x)?);
        let weights = context.dropout(self.attention.dropout);
        // Where there is no bottleneck, dropout stands behind attention and feed-forward instead.
        let inside = if self.widened.is_none() {
            self.dropout
        } else {
            0.0
        };
        let narrowed = match &self.narrowed {
            Some(narrowed) => through(narrowed)?,
            None => x.clone(),
        };
        let query = match &self.narrowed_query {
            Some(query) if !self.all_narrowed => through(query)?,
            _ => narrowed.clone(),
        };
        let value = if self.all_narrowed { &narrowed } else { x };
        let attended = self
            .attention
            .forward_of(&query, value, &pass.mask, weights)?;
        let attended = self.attention_output.forward(&attended)?;
        let dropout = context.dropout(inside);
        let mut y = self
            .attention_norm
            .forward_residual(&attended, &narrowed, dropout)?;
        for (maps, norm) in &self.inner {
            let fed = maps.forward(&y, context)?;
            y = norm.forward_residual(&fed, &y, ops::Dropout::NONE)?;
        }
        let (maps, norm) = &self.last;
        let fed = maps.forward(&y, context)?;
        let y = norm.forward_residual(&fed, &y, context.dropout(inside))?;
        match &self.widened {
            Some((map, norm)) => {
                norm.forward_residual(&map.forward(&y)?, x, context.dropout(self.dropout))
            }
            None => Ok(y),
        }
    }

    fn params(&self) -> Vec<Param> {
        let mut params = self.attention.params();
        params.extend(self.attention_output.params());
        params.extend(self.attention_norm.params());
        for (maps, norm) in self.inner.iter().chain([&self.last]) {
            params.extend(maps.params());
            params.extend(norm.params());
        }
        let ways = [&self.narrowed, &self.narrowed_query, &self.widened];
        for (map, norm) in ways.into_iter().flatten() {
            params.extend(map.params());
            params.extend(norm.params());
        }
        params
    }

    fn flops(&self) -> ModelFlops {
        let ways = [&self.narrowed, &self.narrowed_query, &self.widened];
        let ways = ways.into_iter().flatten().map(|(map, _)| map.weights());
        let maps = self.inner.iter().chain([&self.last]);
        let weights = self.attention.weights()
            + self.attention_output.weights()
            + ways.sum::<usize>()
            + maps.map(|(maps, _)| maps.weights()).sum::<usize>();
        ModelFlops {
            per_token: 2 * weights as u64,
            per_pair: self.attention.flops_per_pair(),
            per_counted: 0,
        }
    }
}

/// A head whose matrix is the word table extended by further features.
#[derive(Debug)]
struct JoinedHead {
    /// Features that are multiplied with the word embeddings.
    own: PredictionHead,
    /// The matrix of the features that the word table does not have, (features, vocab).
    rest: Option<Param>,
}

impl Head for JoinedHead {
    fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        self.own.transform(hidden)
    }

    fn logits(&self, transformed: &Tensor) -> Result<Tensor> {
        let Some(rest) = &self.rest else {
            return self.own.logits(transformed);
        };
        let width = self.own.decoder.shape().dims()[1];
        let last = transformed.rank() - 1;
        let features = transformed.dims()[last] - width;
        let shared = self
            .own
            .logits(&ops::narrow(transformed, last, 0, width)?)?;
        let others = ops::narrow(transformed, last, width, features)?;
        let rows = others.elem_count() / features;
        let others = ops::reshape(&others, (rows, features))?;
        let others = ops::matmul(&others, &ops::param_rows(rest)?, false, false)?;
        ops::add(&shared, &ops::reshape(&others, shared.shape())?)
    }

    fn loss(&self, transformed: &Tensor, targets: &Tensor) -> Result<Tensor> {
        match &self.rest {
            Some(_) => ops::cross_entropy(&self.logits(transformed)?, targets),
            None => self.own.loss(transformed, targets),
        }
    }

    fn vocab_size(&self) -> usize {
        self.own.vocab_size()
    }

    fn weights(&self) -> usize {
        self.own.weights() + self.rest.as_ref().map_or(0, Param::elem_count)
    }
}
