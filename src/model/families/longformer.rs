//! Longformer (Beltagy et al. 2020, arXiv:2004.05150): RoBERTa for long texts, in which a token sees a window around itself,
//! and a few tokens see and are seen by all.
//!
//! The input `global_attention_mask` has a 1 for each token that sees and is seen by all, and 0 elsewhere; without it there
//! is none. Those tokens have queries, keys and values of their own. Time and memory grow with the length times the window.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert::BertConfig;
use super::roberta;
use crate::model::nn::{Block, Mixing, MixingBlock, Pass, Positions, Projections, Spec};
use crate::model::{Architecture, Config, Family, Input, ModelFlops, ModelInputs, WeightBuilder};
use crate::ops::{self, AttentionOptions, Band, Param, SparsePlan};
use crate::{Error, Result};

/// `LongformerForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "longformer",
    class: "LongformerForMaskedLM",
    synonyms: &["LongformerModel"],
    base: "longformer",
    defaults: r#"{"vocab_size": 30522, "pad_token_id": 1}"#,
    inputs: &[Input::per_token("global_attention_mask")],
    build,
    ..roberta::FAMILY
};

/// The width of the window in every layer, or of each.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Windows {
    Same(usize),
    Each(Vec<usize>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct LongformerConfig {
    attention_window: Windows,
}

impl Default for LongformerConfig {
    fn default() -> Self {
        Self {
            attention_window: Windows::Same(512),
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let LongformerConfig { attention_window } = config.parse()?;
    let rows = config.parse::<BertConfig>()?.max_position_embeddings;
    let spec = Spec {
        base: "longformer",
        positions: Positions::AfterPadding { rows },
        ..roberta::spec(config)?
    };
    spec.check()?;
    let layers = spec.places.len();
    let windows = match attention_window {
        Windows::Same(window) => vec![window; layers],
        Windows::Each(windows) => windows,
    };
    if windows.len() != layers {
        return Err(Error::Config(format!(
            "attention_window has {} widths, but there are {layers} layers",
            windows.len()
        )));
    }
    if let Some(window) = windows.iter().find(|&&w| w == 0 || w % 2 != 0) {
        return Err(Error::Config(format!(
            "attention_window {window} must be even and positive: half of it is before a token, half after it"
        )));
    }
    let block = |(place, window): (&String, usize)| -> Result<Arc<dyn Block>> {
        let mixing = WindowAttention {
            local: Projections::new(&spec, weights, place, "", true)?,
            global: Projections::new(&spec, weights, place, "_global", true)?,
            reach: window / 2,
            dropout: spec.dropout.attention,
        };
        let block = MixingBlock::new(&spec, weights, place, Box::new(mixing))?;
        Ok(Arc::new(block))
    };
    let blocks = spec.places.iter().zip(windows).map(block);
    let mut model = spec.build_with(weights, blocks.collect::<Result<_>>()?)?;
    model.prepare = Some(prepare);
    Ok(Box::new(model))
}

/// (batch, seq): 1 for tokens whose own window counts, 0 for padding and global tokens.
const LOCAL: &str = "local";
/// (batch, seq): 1 for global tokens.
const GLOBAL: &str = "global";
/// (batch, most): the global tokens of each text as rows of the batch, filled up with others.
const ASKING: &str = "asking";
/// Which of those, counted through, are global tokens.
const ASKED: &str = "asked";
/// The rows of the batch where they stand.
const PLACES: &str = "places";

fn prepare(inputs: &ModelInputs, _: &Device) -> Result<BTreeMap<&'static str, Tensor>> {
    let (batch, seq) = inputs.shape();
    let marked = inputs.indices_of("global_attention_mask", &[batch, seq], 2)?;
    let marked = marked.unwrap_or_else(|| vec![0; batch * seq]);
    let text = &inputs.attention_mask;
    let global: Vec<u32> = (marked.iter().zip(text))
        .map(|(&global, &text)| u32::from(global != 0 && text != 0))
        .collect();
    let mut made = BTreeMap::new();
    // Where they are read.
    let host = |values: Vec<u32>, shape: &[usize]| Tensor::from_vec(values, shape, &Device::Cpu);
    let places: Vec<u32> = (0..)
        .zip(&global)
        .filter_map(|(row, &global)| (global != 0).then_some(row))
        .collect();
    if places.is_empty() {
        if inputs.has_padding() {
            let text = text.iter().map(|&text| u32::from(text != 0)).collect();
            made.insert(LOCAL, host(text, &[batch, seq])?);
        }
        return Ok(made);
    }
    let mut of_texts = vec![Vec::new(); batch];
    for &place in &places {
        of_texts[place as usize / seq].push(place);
    }
    let most = of_texts.iter().map(Vec::len).max().unwrap_or(0);
    let (mut asking, mut asked) = (Vec::new(), Vec::new());
    for (text, mut rows) in of_texts.into_iter().enumerate() {
        asked.extend((text * most..).take(rows.len()).map(|row| row as u32));
        rows.resize(most, (text * seq) as u32);
        asking.extend(rows);
    }
    let local = global.iter().zip(text);
    let local = local.map(|(&global, &text)| u32::from(global == 0 && text != 0));
    let count = places.len();
    made.insert(LOCAL, host(local.collect(), &[batch, seq])?);
    made.insert(GLOBAL, host(global, &[batch, seq])?);
    made.insert(ASKING, host(asking, &[batch, most])?);
    made.insert(ASKED, host(asked, &[count])?);
    made.insert(PLACES, host(places, &[count])?);
    Ok(made)
}

/// Attention to a window and to global tokens.
#[derive(Debug)]
struct WindowAttention {
    local: Projections,
    /// Of global tokens, which see everything.
    global: Projections,
    /// How far the window goes to either side.
    reach: usize,
    dropout: f64,
}

impl Mixing for WindowAttention {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        let (batch, seq, hidden) = x.dims3()?;
        let [q, k, v] = self.local.forward(x)?;
        let plan = SparsePlan::band(seq, Band::both(self.reach));
        let plan = match pass.inputs.get(GLOBAL) {
            Some(global) => plan.with_globals(global),
            None => plan,
        };
        let options = AttentionOptions {
            dropout: pass.context.dropout(self.dropout),
            mask: pass.mask.clone(),
            query_mask: pass.inputs.get(LOCAL).cloned(),
            ..AttentionOptions::new(self.local.heads, self.local.head_size)
        };
        let seen = ops::sparse_attention(&q, &k, &v, &plan, &options)?;
        let (Some(asking), Some(asked), Some(places)) = (
            pass.inputs.get(ASKING),
            pass.inputs.get(ASKED),
            pass.inputs.get(PLACES),
        ) else {
            return Ok(seen);
        };
        let rows = ops::select_rows(x, &asking.flatten_all()?)?;
        let rows = ops::reshape(&rows, (batch, asking.dim(1)?, hidden))?;
        let dropout = pass.context.dropout(self.dropout);
        let answers = ops::attention(
            &self.global.query.forward(&rows)?,
            &self.global.key.forward(x)?,
            &self.global.value.forward(x)?,
            self.global.heads,
            &pass.mask,
            options.scale,
            dropout,
        )?;
        let answers = ops::select_rows(&answers, asked)?;
        let answers = ops::scatter_rows(&answers, places, batch * seq)?;
        ops::add(&seen, &ops::reshape(&answers, (batch, seq, hidden))?)
    }

    fn params(&self) -> Vec<Param> {
        [self.local.params(), self.global.params()].concat()
    }

    /// Of texts longer than the window and without global tokens.
    fn flops(&self) -> ModelFlops {
        let width = self.local.heads * self.local.head_size;
        let window = 2 * self.reach + 1;
        ModelFlops {
            per_token: (2 * self.local.weights() + 4 * width * window) as u64,
            ..ModelFlops::default()
        }
    }
}
