use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::Kind;
use super::config::{BartConfig, Side};
use super::layer::{EPS, Layer, Masks};
use super::prompts::Prompts;
use crate::Result;
use crate::model::nn::{Norm, Order, numbered, run_part};
use crate::model::{Context, Init, ModelFlops, WeightBuilder};
use crate::ops::{self, AttentionMask, Param};

/// Ids of a batch.
pub(super) struct Row<'a> {
    pub ids: &'a [u32],
    /// 1 for those that may be seen; all where it is absent.
    pub seen: Option<&'a [u32]>,
    /// (batch, length).
    pub shape: (usize, usize),
}

/// The encoder's output, for cross attention.
pub(super) struct Memory<'a> {
    /// (batch, seq, width).
    pub states: &'a Tensor,
    /// 1 for what may be seen.
    pub seen: &'a [u32],
    /// (batch, seq).
    pub shape: (usize, usize),
}

/// One side: from ids to vectors through its layers.
#[derive(Debug)]
pub(super) struct Stack {
    words: Param,
    pad: u32,
    /// The factor of the word embeddings.
    scale: Option<f64>,
    positions: Param,
    embedding_norm: Norm,
    dropout: f64,
    own_prompts: Option<Prompts>,
    memory_prompts: Option<Prompts>,
    layers: Vec<Arc<Layer>>,
    final_norm: Option<Norm>,
}

/// The rows of the table of positions before the first position's.
const OFFSET: usize = 2;

impl Stack {
    pub(super) fn new(
        values: &BartConfig,
        side: &Side,
        kind: &Kind,
        model: &WeightBuilder,
        words: &Param,
    ) -> Result<Self> {
        let (width, std) = (values.d_model, values.init_std);
        let weights = model.pp(side.name);
        let places = numbered(&format!("{}_layers", side.name), side.layers)?;
        let rows = values.max_position_embeddings.saturating_add(OFFSET);
        let positions = weights.pp("embed_positions");
        let positions = positions.param("weight", (rows, width), Init::Normal(std))?;
        let layers = weights.pp("layers");
        let layer = |place: &String| {
            let layer = Layer::new(values, side, kind, &layers.pp(place))?;
            Ok(Arc::new(layer))
        };
        let prompts = |name: &str, wanted: bool| {
            let sizes = kind.prompts.filter(|_| wanted);
            let prompts = |sizes| Prompts::new(values, sizes, places.len(), &weights.pp(name));
            sizes.map(prompts).transpose()
        };
        let norm = |name: &str| Norm::layer(&weights.pp(name), width, EPS);
        Ok(Self {
            words: words.clone(),
            pad: values.pad_token_id,
            scale: values.scale_embedding.then(|| (width as f64).sqrt()),
            positions,
            own_prompts: prompts("self_attn_prompt", true)?,
            memory_prompts: prompts("cross_attn_prompt", side.writes)?,
            layers: places.iter().map(layer).collect::<Result<_>>()?,
            embedding_norm: norm("layernorm_embedding")?,
            dropout: values.dropout,
            final_norm: match kind.order {
                Order::PreNorm => Some(norm("layer_norm")?),
                Order::PostNorm => None,
            },
        })
    }

    /// Returns the last hidden states of `row`, (batch, length, width).
    pub(super) fn forward(
        &self,
        row: &Row<'_>,
        memory: Option<&Memory<'_>>,
        context: &Context,
    ) -> Result<Tensor> {
        let mut x = self.embed(row, context)?;
        let (own, far) = (&self.own_prompts, &self.memory_prompts);
        let device = x.device();
        let masks = Masks {
            own: mask(row.seen, row.shape, own.as_ref(), device)?,
            memory: match memory {
                Some(memory) => mask(Some(memory.seen), memory.shape, far.as_ref(), device)?,
                None => AttentionMask::None,
            },
        };
        let mut prompts = Vec::new();
        for prompt in own.iter().chain(far) {
            prompts.push((prompt, prompt.all(context)?));
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let mut xs = vec![x];
            xs.extend(memory.map(|memory| memory.states.clone()));
            for (prompt, all) in &prompts {
                xs.push(prompt.of(all, i)?);
            }
            let (layer, masks, params) = (Arc::clone(layer), masks.clone(), layer.params());
            let xs: Vec<&Tensor> = xs.iter().collect();
            x = run_part(&xs, params, context, move |xs, context| {
                layer.forward(xs, &masks, context)
            })?;
        }
        match &self.final_norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    fn embed(&self, row: &Row<'_>, context: &Context) -> Result<Tensor> {
        let (batch, length) = row.shape;
        // Lookups read ids on the CPU, and take them to their tables.
        let ids = ops::upload(row.ids, (batch, length), &Device::Cpu)?;
        let places: Vec<u32> = (OFFSET as u32..).take(length).collect();
        let places = Tensor::from_vec(places, (1, length), &Device::Cpu)?;
        let words = (&ids, &self.words, Some(self.pad));
        let sum = match self.scale {
            None => ops::embedding_sum(&[words, (&places, &self.positions, None)])?,
            Some(scale) => {
                let words = ops::scale(&ops::embedding_sum(&[words])?, scale)?;
                let places = ops::embedding(&places.squeeze(0)?, &self.positions, None)?;
                ops::add_broadcast(&words, &places)?
            }
        };
        let normed = self.embedding_norm.forward(&sum)?;
        ops::dropout(&normed, context.dropout(self.dropout))
    }

    pub(super) fn flops(&self) -> ModelFlops {
        let layers = self.layers.iter().map(|layer| layer.flops());
        layers.fold(ModelFlops::default(), |sum, layer| ModelFlops {
            per_token: sum.per_token + layer.per_token,
            per_pair: sum.per_pair + layer.per_pair,
            ..sum
        })
    }
}

/// Returns a mask of keys that begin with a prompt, which is never masked.
fn mask(
    seen: Option<&[u32]>,
    (batch, length): (usize, usize),
    prompts: Option<&Prompts>,
    device: &Device,
) -> Result<AttentionMask> {
    let Some(seen) = seen.filter(|seen| seen.contains(&0)) else {
        return Ok(AttentionMask::None);
    };
    let before = prompts.map_or(0, Prompts::length);
    let mut keys = Vec::with_capacity(batch * (before + length));
    for row in seen.chunks(length.max(1)) {
        keys.extend(std::iter::repeat_n(1, before));
        keys.extend_from_slice(row);
    }
    let keys = ops::upload(&keys, (batch, before + length), device)?;
    Ok(AttentionMask::Keys(keys))
}
