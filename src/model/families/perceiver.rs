//! Perceiver (Jaegle et al. 2021, arXiv:2107.14795) over bytes: a few learned latents attend to the text, are processed
//! by their own layers, and answer one learned query for each position.
//!
//! transformers always answers the queries of all `max_position_embeddings` positions. Here those of the input's positions
//! are answered, and in training and when blanks are filled those of the counted positions alone; they depend on nothing
//! but the latents.

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::model::nn::{
    Block, Encoder, Head, Linear, Norm, Pass, PredictionHead, check_layers, numbered, padding_mask,
    repeated,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, ModelFlops, ModelInputs, Sharing, WeightBuilder,
};
use crate::ops::{self, Activation, AttentionMask, AttentionOptions, Param};
use crate::{Error, Result};

/// `PerceiverForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "perceiver",
    class: "PerceiverForMaskedLM",
    synonyms: &["PerceiverModel"],
    base: "perceiver",
    body: &["input_preprocessor.", "embeddings.", "encoder.", "decoder."],
    renames: &[],
    ignored: &[],
    carried: &[],
    aliases: &[],
    defaults: "{}",
    inputs: &[],
    sharing: Sharing::AnyLength,
    build,
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct PerceiverConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    d_model: usize,
    num_latents: usize,
    d_latents: usize,
    num_blocks: usize,
    num_self_attends_per_block: usize,
    num_self_attention_heads: usize,
    num_cross_attention_heads: usize,
    qk_channels: Option<usize>,
    v_channels: Option<usize>,
    cross_attention_shape_for_attention: String,
    self_attention_widening_factor: usize,
    cross_attention_widening_factor: usize,
    hidden_act: String,
    attention_probs_dropout_prob: f64,
    initializer_range: f64,
    use_query_residual: bool,
}

impl Default for PerceiverConfig {
    fn default() -> Self {
        Self {
            vocab_size: 262,
            max_position_embeddings: 2048,
            d_model: 768,
            num_latents: 256,
            d_latents: 1280,
            num_blocks: 1,
            num_self_attends_per_block: 26,
            num_self_attention_heads: 8,
            num_cross_attention_heads: 8,
            qk_channels: None,
            v_channels: None,
            cross_attention_shape_for_attention: "kv".to_owned(),
            self_attention_widening_factor: 1,
            cross_attention_widening_factor: 1,
            hidden_act: "gelu".to_owned(),
            attention_probs_dropout_prob: 0.1,
            initializer_range: 0.02,
            use_query_residual: true,
        }
    }
}

/// The epsilon of normalizations, whatever the config's `layer_norm_eps` is.
const EPS: f64 = 1e-5;

/// The decoder's heads and the width of its queries, which no key of the config sets.
const DECODER_HEADS: usize = 8;
const DECODER_QUERIES: usize = 8 * 32;

/// Returns the sizes of the layer that reads the input into the latents, and of those in which the latents see each other.
fn sizes(values: &PerceiverConfig) -> Result<(Sizes, Sizes)> {
    let (width, inner) = (values.d_model, values.d_latents);
    let shape = match values.cross_attention_shape_for_attention.as_str() {
        "q" => inner,
        "kv" => width,
        other => {
            return Err(Error::Config(format!(
                "unknown cross_attention_shape_for_attention {other:?}; known are kv, q"
            )));
        }
    };
    let cross = Sizes {
        queries: inner,
        source: Some(width),
        qk: values.qk_channels.unwrap_or(shape),
        values: values.v_channels,
        heads: values.num_cross_attention_heads,
        widening: values.cross_attention_widening_factor,
        residual: values.use_query_residual,
    };
    let own = Sizes {
        source: None,
        qk: values.qk_channels.unwrap_or(inner),
        heads: values.num_self_attention_heads,
        widening: values.self_attention_widening_factor,
        residual: true,
        ..cross
    };
    if own.values.unwrap_or(own.qk) != inner {
        return Err(Error::Config(format!(
            "v_channels {} (or qk_channels, where it is absent) must be d_latents {inner}: what the latents see is added to them",
            own.values.unwrap_or(own.qk)
        )));
    }
    Ok((cross, own))
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: PerceiverConfig = config.parse()?;
    let PerceiverConfig {
        vocab_size: vocab,
        d_model: width,
        d_latents: inner,
        max_position_embeddings: positions,
        ..
    } = values;
    if [vocab, width, inner, positions, values.num_latents].contains(&0) {
        return Err(Error::Config(
            "vocab_size, d_model, d_latents, num_latents and max_position_embeddings must be positive"
                .to_owned(),
        ));
    }
    check_layers(
        "num_blocks times num_self_attends_per_block",
        values
            .num_blocks
            .saturating_mul(values.num_self_attends_per_block.max(1)),
    )?;
    let key = "num_self_attends_per_block";
    let places = numbered(key, values.num_self_attends_per_block)?;
    let base = weights.pp("perceiver");
    let table = |weights: &WeightBuilder, name: &str, rows: usize, width: usize| {
        weights.param(name, (rows, width), Init::Normal(values.initializer_range))
    };
    let input = base.pp("input_preprocessor");
    let words = table(&input.pp("embeddings"), "weight", vocab, width)?;
    let position_table = input.pp("position_embeddings");
    let position_table = table(&position_table, "weight", positions, width)?;
    let latents = table(&base.pp("embeddings"), "latents", values.num_latents, inner)?;

    let encoder = base.pp("encoder");
    let (cross, own) = sizes(&values)?;
    let reading = Layer::new(&values, cross, &encoder.pp("cross_attention"))?;
    let attends = encoder.pp("self_attends");
    let layers = places
        .iter()
        .map(|place| Ok(Arc::new(Layer::new(&values, own, &attends.pp(place))?) as Arc<dyn Block>))
        .collect::<Result<Vec<_>>>()?;
    let repeated = std::iter::repeat_n(layers, values.num_blocks);

    let decoder = base.pp("decoder");
    let queries = decoder.pp("output_position_encodings");
    let queries = table(&queries, "position_embeddings", positions, width)?;
    let answering = Sizes {
        queries: width,
        source: Some(inner),
        qk: DECODER_QUERIES,
        values: Some(width),
        heads: DECODER_HEADS,
        widening: 1,
        residual: false,
    };
    let bias = weights.pp("embedding_decoder");
    Ok(Box::new(Perceiver {
        words: words.clone(),
        positions: position_table,
        latents,
        reading,
        thinking: Encoder {
            blocks: repeated.flatten().collect(),
            norm: None,
        },
        answering: Layer::new(&values, answering, &decoder.pp("decoding_cross_attention"))?,
        queries,
        max_positions: positions,
        head: PredictionHead {
            transform: None,
            decoder: words,
            bias: Some(bias.param("bias", vocab, Init::Zeros)?),
        },
    }))
}

#[derive(Debug)]
struct Perceiver {
    words: Param,
    positions: Param,
    latents: Param,
    /// How the latents see the text.
    reading: Layer,
    /// How they see one another.
    thinking: Encoder,
    /// How the queries see them.
    answering: Layer,
    /// The queries of all positions.
    queries: Param,
    max_positions: usize,
    head: PredictionHead,
}

impl Perceiver {
    /// Returns what the latents have become, normalized for the decoder, (batch, latents, width of the latents).
    fn read(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (batch, seq) = inputs.shape();
        // Lookups read ids on the CPU, and take them to their tables.
        let ids = inputs.input_ids_tensor(&Device::Cpu)?;
        let places = Tensor::from_vec((0..seq as u32).collect(), (1, seq), &Device::Cpu)?;
        let text = [(&ids, &self.words, None), (&places, &self.positions, None)];
        let text = self.reading.source(&ops::embedding_sum(&text)?)?;
        let mask = padding_mask(inputs, text.device())?;
        let latents = ops::param_rows(&self.latents)?;
        // Before they have read, the latents of all examples are the same.
        let queries = repeated(&self.reading.queries(&latents)?, batch)?;
        let seen = self.reading.attend(&queries, &text, &mask, context)?;
        let latents = repeated(&latents, batch)?;
        let latents = self.reading.finish(&seen, Some(&latents))?;
        let pass = Pass::new(AttentionMask::None, context);
        let latents = self.thinking.forward(latents, &pass)?;
        self.answering.source(&latents)
    }

    /// Returns the queries of some positions, (positions, width of the queries).
    fn queries_of(&self, positions: Vec<u32>) -> Result<Tensor> {
        let count = positions.len();
        let positions = Tensor::from_vec(positions, count, &Device::Cpu)?;
        let rows = ops::embedding(&positions, &self.queries, None)?;
        self.answering.queries(&rows)
    }
}

impl Architecture for Perceiver {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (batch, seq) = inputs.shape();
        let latents = self.read(inputs, context)?;
        let queries = repeated(&self.queries_of((0..seq as u32).collect())?, batch)?;
        let none = AttentionMask::None;
        let answers = self.answering.attend(&queries, &latents, &none, context)?;
        self.answering.finish(&answers, None)
    }

    fn hidden_rows(
        &self,
        inputs: &ModelInputs,
        rows: Vec<u32>,
        context: &Context,
    ) -> Result<Tensor> {
        let (batch, seq) = inputs.shape();
        let count = rows.len();
        // Each example's queries side by side, as many for all as the one with most has.
        let mut examples: Vec<Vec<u32>> = vec![Vec::new(); batch];
        let mut found = Vec::with_capacity(count);
        for row in rows {
            let (example, position) = (row as usize / seq, row % seq as u32);
            let positions = examples
                .get_mut(example)
                .ok_or_else(|| Error::argument("rows", format!("row {row} of {}", batch * seq)))?;
            found.push((example, positions.len()));
            positions.push(position);
        }
        let most = examples.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut asked: BTreeSet<u32> = examples.iter().flatten().copied().collect();
        asked.insert(0);
        let asked: Vec<u32> = asked.into_iter().collect();
        let mut places = Vec::with_capacity(batch * most);
        for positions in &examples {
            let place = |position: &u32| asked.binary_search(position).unwrap_or(0) as u32;
            places.extend(positions.iter().map(place));
            places.extend(std::iter::repeat_n(0, most - positions.len()));
        }
        let latents = self.read(inputs, context)?;
        let queries = self.queries_of(asked)?;
        let places = Tensor::from_vec(places, batch * most, &Device::Cpu)?;
        let queries = ops::select_rows(&queries, &places)?;
        let queries = ops::reshape(&queries, (batch, most, ()))?;
        let none = AttentionMask::None;
        let answers = self.answering.attend(&queries, &latents, &none, context)?;
        let found = found.iter().map(|(example, i)| (example * most + i) as u32);
        let found = Tensor::from_vec(found.collect(), count, &Device::Cpu)?;
        self.answering
            .finish(&ops::select_rows(&answers, &found)?, None)
    }

    fn head(&self) -> &dyn Head {
        &self.head
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.max_positions)
    }
}

/// The sizes of a layer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// The width of what asks.
    queries: usize,
    /// The width of what is seen, where that is something else.
    source: Option<usize>,
    /// The features of all heads' queries and keys.
    qk: usize,
    /// Those of the values, if they are others.
    values: Option<usize>,
    heads: usize,
    /// How many times as wide the feed-forward maps are inside.
    widening: usize,
    /// Whether what is seen is added to what asks.
    residual: bool,
}

/// Attention to something else or to itself, and two feed-forward maps, normalized before.
#[derive(Debug)]
struct Layer {
    query_norm: Norm,
    source_norm: Option<Norm>,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: usize,
    head_size: usize,
    dropout: f64,
    residual: bool,
    norm: Norm,
    intermediate: Linear,
    activation: Activation,
    outer: Linear,
}

impl Layer {
    fn new(values: &PerceiverConfig, sizes: Sizes, weights: &WeightBuilder) -> Result<Self> {
        let Sizes { qk, heads, .. } = sizes;
        let of_values = sizes.values.unwrap_or(qk);
        if heads == 0 || qk == 0 || !qk.is_multiple_of(heads) || !of_values.is_multiple_of(heads) {
            return Err(Error::Config(format!(
                "{qk} features of queries and {of_values} of values are not a multiple of {heads} heads: see qk_channels, v_channels, d_latents, d_model"
            )));
        }
        let std = values.initializer_range;
        let asking = sizes.queries;
        let seen = sizes.source.unwrap_or(asking);
        let wide = asking.saturating_mul(sizes.widening);
        let maps = weights.pp("attention").pp("self");
        let linear =
            |weights: WeightBuilder, input, output| Linear::new(&weights, input, output, std);
        let output = weights.pp("attention").pp("output");
        let (norm, mlp) = (weights.pp("layernorm"), weights.pp("mlp"));
        Ok(Self {
            query_norm: Norm::layer(&maps.pp("layernorm1"), asking, EPS)?,
            source_norm: match sizes.source {
                Some(width) => Some(Norm::layer(&maps.pp("layernorm2"), width, EPS)?),
                None => None,
            },
            query: linear(maps.pp("query"), asking, qk)?,
            key: linear(maps.pp("key"), seen, qk)?,
            value: linear(maps.pp("value"), seen, of_values)?,
            output: linear(output.pp("dense"), of_values, asking)?,
            heads,
            head_size: qk / heads,
            dropout: values.attention_probs_dropout_prob,
            residual: sizes.residual,
            norm: Norm::layer(&norm, asking, EPS)?,
            intermediate: linear(mlp.pp("dense1"), asking, wide)?,
            activation: Activation::from_name(&values.hidden_act)?,
            outer: linear(mlp.pp("dense2"), wide, asking)?,
        })
    }

    /// Returns the queries of `x`.
    fn queries(&self, x: &Tensor) -> Result<Tensor> {
        self.query.forward(&self.query_norm.forward(x)?)
    }

    /// Returns `source` as this layer sees it.
    fn source(&self, source: &Tensor) -> Result<Tensor> {
        match &self.source_norm {
            Some(norm) => norm.forward(source),
            None => Ok(source.clone()),
        }
    }

    /// Returns what the queries see in `source`.
    fn attend(
        &self,
        queries: &Tensor,
        source: &Tensor,
        mask: &AttentionMask,
        context: &Context,
    ) -> Result<Tensor> {
        let (key, value) = (self.key.forward(source)?, self.value.forward(source)?);
        let options = AttentionOptions {
            dropout: context.dropout(self.dropout),
            mask: mask.clone(),
            ..AttentionOptions::new(self.heads, self.head_size)
        };
        ops::attention_with(queries, &key, &value, &options)
    }

    /// Makes the layer's output of what was seen, and of `x` that asked.
    fn finish(&self, seen: &Tensor, x: Option<&Tensor>) -> Result<Tensor> {
        let seen = self.output.forward(seen)?;
        let y = match x.filter(|_| self.residual) {
            Some(x) => ops::add(&seen, x)?,
            None => seen,
        };
        let inner = self.norm.forward(&y)?;
        let inner = self.intermediate.forward_act(&inner, self.activation)?;
        ops::add(&self.outer.forward(&inner)?, &y)
    }
}

impl Block for Layer {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let normed = self.query_norm.forward(x)?;
        let queries = self.query.forward(&normed)?;
        let seen = self.attend(&queries, &normed, &pass.mask, &pass.context)?;
        self.finish(&seen, Some(x))
    }

    fn params(&self) -> Vec<Param> {
        let maps = [&self.query, &self.key, &self.value, &self.output];
        let fed = [&self.intermediate, &self.outer];
        let norms = [&self.query_norm, &self.norm].into_iter();
        let maps = maps.into_iter().chain(fed).flat_map(Linear::params);
        let norms = norms.chain(&self.source_norm).flat_map(Norm::params);
        maps.chain(norms).collect()
    }

    fn flops(&self) -> ModelFlops {
        // Latents are no tokens: their number does not grow with the text.
        ModelFlops::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MaskedLm;

    #[test]
    fn selected_rows_equal_those_of_all_positions() {
        let model = MaskedLm::from_config(&Config::small("perceiver"), 1).unwrap();
        let ids = (0..21).map(|i| 5 + i * 7 % 90).collect();
        let inputs = ModelInputs::new(ids, (3, 7)).unwrap();
        let all = model.forward(&inputs).unwrap();
        let all = all.reshape((21, 100)).unwrap();
        // None of the second example, one twice, in no order.
        let rows = vec![20u32, 3, 0, 14, 3];
        let few = model.logits_at(&inputs, rows.clone()).unwrap();
        let rows = Tensor::new(rows, &Device::Cpu).unwrap();
        let difference = (few - all.index_select(&rows, 0).unwrap()).unwrap();
        let difference = difference.abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f32>().unwrap() < 1e-6);
        assert!(model.logits_at(&inputs, vec![21]).is_err());
    }

    #[test]
    fn mismatched_sizes_are_reported() {
        for (key, value) in [("v_channels", 16), ("qk_channels", 18), ("d_model", 12)] {
            let config = Config::small("perceiver").set(key, value);
            let error = MaskedLm::from_config(&config, 1).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
