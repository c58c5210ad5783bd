//! Attention with everything that it offers, composed from candle's operations: pairs of queries and keys are all formed,
//! and for a relative table a row for each of them.

use candle_core::{DType, Device, Tensor};

use super::lowest;
use crate::Result;
use crate::ops::attention::masks;
use crate::ops::{
    Activation, AttentionMask, AttentionOptions, FusedLayout, PairWeights, RelativeTerms, Rotary,
    RotaryPairs,
};

/// Like [`attention_with`](super::super::attention_with), without its checks.
pub fn attention_with(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], options, None, None)
}

/// Like [`relative_attention`](super::super::relative_attention), without its checks.
pub fn relative_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    terms: &RelativeTerms,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], options, Some(terms), None)
}

/// Like [`pointwise_attention`](super::super::pointwise_attention), without its checks.
pub fn pointwise_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    weights: PairWeights,
    terms: Option<&RelativeTerms>,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], options, terms, Some(weights))
}

/// Queries, keys and values that lie side by side.
pub(in crate::ops) fn split(
    qkv: &Tensor,
    layout: FusedLayout,
    options: &AttentionOptions,
) -> Result<[Tensor; 3]> {
    let (batch, n, width) = qkv.dims3()?;
    let (heads, kv_heads) = (options.heads, options.kv_heads());
    let d = width / (heads + 2 * kv_heads);
    Ok(match layout {
        FusedLayout::Blocks => [
            qkv.narrow(2, 0, heads * d)?,
            qkv.narrow(2, heads * d, kv_heads * d)?,
            qkv.narrow(2, (heads + kv_heads) * d, kv_heads * d)?,
        ],
        FusedLayout::PerHead => {
            let per_head = qkv.reshape((batch, n, heads, 3 * d))?;
            let part = |i: usize| -> Result<Tensor> {
                let part = per_head.narrow(3, i * d, d)?.contiguous()?;
                Ok(part.reshape((batch, n, heads * d))?)
            };
            [part(0)?, part(1)?, part(2)?]
        }
    })
}

/// Attention with these options and terms.
pub(in crate::ops) fn attend(
    [q, k, v]: [&Tensor; 3],
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
    weights: Option<PairWeights>,
) -> Result<Tensor> {
    let (heads, kv_heads) = (options.heads, options.kv_heads());
    let ((batch, queries, _), keys) = (q.dims3()?, k.dim(1)?);
    let value = v.dim(2)? / kv_heads;
    let split = |x: &Tensor, of: usize| -> Result<Tensor> {
        let (batch, n, width) = x.dims3()?;
        let d = width / of;
        let x = x.reshape((batch, n, of, d))?.transpose(1, 2)?;
        let x = x.reshape((batch, of, 1, n, d))?;
        let x = x.broadcast_as((batch, of, heads / of, n, d))?;
        Ok(x.reshape((batch, heads, n, d))?.contiguous()?)
    };
    let (mut q, mut k, mut v) = (split(q, heads)?, split(k, kv_heads)?, split(v, kv_heads)?);
    if let Some(rotary) = &options.rotary {
        q = turned(&q, rotary, keys.saturating_sub(queries))?;
        k = turned(&k, rotary, 0)?;
        if rotary.turns_values() {
            v = turned(&v, rotary, 0)?;
        }
    }
    let mut scores = (q.matmul(&k.t()?)? * options.scale)?;
    if weights.is_some_and(PairWeights::are_means) {
        let counts = key_counts(options, batch, keys)?;
        let counts = Tensor::from_vec(counts, (batch, 1, 1, 1), scores.device())?;
        scores = scores.broadcast_div(&counts.to_dtype(scores.dtype())?)?;
    }
    if let Some(terms) = terms
        && let Some(added) = score_terms(terms, [&q, &k], options.scale)?
    {
        scores = scores.broadcast_add(&added)?;
    }
    if let AttentionMask::Additive(bias) = &options.mask {
        scores = scores.broadcast_add(bias)?;
    }
    let sizes = (batch, queries, keys);
    let visible = visible(options, sizes)?;
    if let Some(visible) = &visible {
        let shape = (batch, 1, queries, keys);
        let visible = Tensor::from_slice(visible, shape, scores.device())?;
        let visible = visible.broadcast_as(scores.shape())?.contiguous()?;
        let lowest = Tensor::full(lowest(scores.dtype()), scores.shape(), scores.device())?;
        scores = visible.where_cond(&scores, &lowest.to_dtype(scores.dtype())?)?;
    } else if let AttentionMask::Keys(mask) = &options.mask {
        let mask = mask.to_device(scores.device())?.to_dtype(scores.dtype())?;
        let bias = ((1.0 - mask)? * lowest(scores.dtype()))?;
        scores = scores.broadcast_add(&bias.reshape((batch, 1, 1, keys))?)?;
    }
    let probs = match weights {
        None => super::softmax(&scores)?,
        Some(weights) => weighed(&scores, weights)?,
    };
    let probs = super::dropout(&probs, options.dropout)?;
    let mut context = probs.matmul(&v)?;
    if let Some(terms) = terms
        && let Some(table) = &terms.value_table
    {
        let rows = pairs(table, terms, value)?;
        let added = probs.unsqueeze(4)?.broadcast_mul(&rows)?.sum(3)?;
        context = (context + added)?;
    }
    if let Some(alive) = alive(options, visible.as_deref(), sizes)? {
        let alive = alive.to_device(context.device())?;
        context = context.broadcast_mul(&alive.to_dtype(context.dtype())?)?;
    }
    Ok(context
        .transpose(1, 2)?
        .reshape((batch, queries, heads * value))?)
}

/// Returns how many keys of each sequence are not masked, at least 1.
pub(in crate::ops) fn key_counts(
    options: &AttentionOptions,
    batch: usize,
    keys: usize,
) -> Result<Vec<f32>> {
    Ok(match &options.mask {
        AttentionMask::Keys(mask) => {
            let count = |row: Vec<bool>| row.into_iter().filter(|&m| m).count().max(1) as f32;
            masks::rows(mask)?.into_iter().map(count).collect()
        }
        _ => vec![keys as f32; batch],
    })
}

/// Returns the weights of scores, none of masked ones.
fn weighed(scores: &Tensor, weights: PairWeights) -> Result<Tensor> {
    // Far below any score; finite, so that what is multiplied by it stays a number.
    let scores = scores.maximum(-1e4)?;
    Ok(match weights {
        PairWeights::Laplace => super::activate(&scores, Activation::Laplace)?,
        PairWeights::ReluSquared => super::activate(&scores, Activation::ReluSquared)?,
        PairWeights::AnglePower(power) => {
            let values = scores
                .to_dtype(DType::F64)?
                .flatten_all()?
                .to_vec1::<f64>()?;
            let weight = |x: f64| 1.0 - x.clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
            let weight = |x: f64| weight(x).powi(power as i32);
            let kept: Vec<f64> = values.into_iter().map(weight).collect();
            let kept = Tensor::from_vec(kept, scores.shape(), scores.device())?;
            let kept = kept.to_dtype(scores.dtype())?;
            // Adds nothing but a gradient.
            let change = (&scores - scores.detach())?;
            (&kept + ((&kept * change)? * (f64::from(power) / 2.0))?)?
        }
    })
}

/// Returns the features of every head, rotated from position `first` on.
fn turned(x: &Tensor, rotary: &Rotary, first: usize) -> Result<Tensor> {
    let (batch, heads, n, d) = x.dims4()?;
    let (width, half) = (rotary.width(), rotary.width() / 2);
    let [cos, sin] = rotary.tables(first, n)?;
    let place = |table: Tensor| table.to_device(x.device())?.to_dtype(x.dtype());
    let (cos, sin) = (place(cos)?, place(sin)?);
    let part = x.narrow(3, 0, width)?.contiguous()?;
    let [a, b] = match rotary.pairs() {
        RotaryPairs::Half => [part.narrow(3, 0, half)?, part.narrow(3, half, half)?],
        RotaryPairs::Interleaved => {
            let part = part.reshape((batch, heads, n, half, 2))?;
            let side = |i: usize| part.narrow(4, i, 1)?.contiguous()?.squeeze(4);
            [side(0)?, side(1)?]
        }
    };
    let y = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let z = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    let part = match rotary.pairs() {
        RotaryPairs::Half => Tensor::cat(&[&y, &z], 3)?,
        RotaryPairs::Interleaved => {
            Tensor::stack(&[&y, &z], 4)?.reshape((batch, heads, n, width))?
        }
    };
    Ok(match width == d {
        true => part,
        false => Tensor::cat(&[&part, &x.narrow(3, width, d - width)?], 3)?,
    })
}

/// Returns whether each query may see each key, (batch, query, key), under a band or the causal rule; `None` without
/// them.
pub(in crate::ops) fn visible(
    options: &AttentionOptions,
    (batch, queries, keys): (usize, usize, usize),
) -> Result<Option<Vec<u8>>> {
    if options.band.is_none() && !options.causal {
        return Ok(None);
    }
    let mask = match &options.mask {
        AttentionMask::Keys(mask) => Some(masks::rows(mask)?),
        _ => None,
    };
    let offset = keys - queries;
    let sees = |query: usize, key: usize| {
        let position = query + offset;
        let in_band = options.band.is_none_or(|band| {
            key <= position.saturating_add(band.right) && position <= key.saturating_add(band.left)
        });
        in_band && (!options.causal || key <= position)
    };
    let mut visible = Vec::with_capacity(batch * queries * keys);
    for b in 0..batch {
        let shown = |key: usize| mask.as_ref().is_none_or(|mask| mask[b][key]);
        for query in 0..queries {
            visible.extend((0..keys).map(|key| u8::from(sees(query, key) && shown(key))));
        }
    }
    Ok(Some(visible))
}

/// 0 for queries that see nothing or do not count, (batch, 1, query, 1); `None` if there are none.
pub(in crate::ops) fn alive(
    options: &AttentionOptions,
    visible: Option<&[u8]>,
    (batch, queries, keys): (usize, usize, usize),
) -> Result<Option<Tensor>> {
    if visible.is_none() && options.query_mask.is_none() {
        return Ok(None);
    }
    let mut alive = vec![1u8; batch * queries];
    if let Some(visible) = visible {
        for (alive, row) in alive.iter_mut().zip(visible.chunks_exact(keys)) {
            *alive = u8::from(row.contains(&1));
        }
    }
    if let Some(mask) = &options.query_mask {
        let counts = masks::rows(mask)?.into_iter().flatten();
        for (alive, counts) in alive.iter_mut().zip(counts) {
            *alive *= u8::from(counts);
        }
    }
    let shape = (batch, 1, queries, 1);
    Ok(Some(Tensor::from_vec(alive, shape, &Device::Cpu)?))
}

/// Returns a table's rows for every pair, (copies, query, key, width).
fn pairs(table: &Tensor, terms: &RelativeTerms, width: usize) -> Result<Tensor> {
    let (queries, keys) = (terms.index.queries(), terms.index.keys());
    let rows: Vec<u32> = (0..queries)
        .flat_map(|i| (0..keys).map(move |j| (i, j)))
        .map(|(i, j)| terms.index.get(i, j))
        .collect();
    let rows = Tensor::from_vec(rows, queries * keys, &Device::Cpu)?;
    let rows = table.index_select(&rows.to_device(table.device())?, 0)?;
    let copies = table.dim(1)? / width;
    let rows = rows.reshape((queries, keys, copies, width))?;
    Ok(rows.permute((2, 0, 1, 3))?.contiguous()?)
}

/// Returns the terms of the tables in the scores, (batch or 1, heads or 1, query, key).
fn score_terms(terms: &RelativeTerms, [q, k]: [&Tensor; 2], scale: f64) -> Result<Option<Tensor>> {
    let scale = terms.scale.unwrap_or(scale);
    let mut added = Vec::new();
    let width = q.dim(3)?;
    if let Some(table) = &terms.query_table {
        let rows = pairs(table, terms, width)?;
        let products = q.unsqueeze(3)?.broadcast_mul(&rows)?.sum(4)?;
        added.push((products * scale)?);
    }
    if let Some(table) = &terms.key_table {
        let rows = pairs(table, terms, width)?;
        let products = k.unsqueeze(2)?.broadcast_mul(&rows)?.sum(4)?;
        added.push((products * scale)?);
    }
    if let Some(table) = &terms.bias_table {
        added.push(pairs(table, terms, 1)?.squeeze(3)?.unsqueeze(0)?);
    }
    let mut added = added.into_iter();
    let Some(mut sum) = added.next() else {
        return Ok(None);
    };
    for term in added {
        sum = sum.broadcast_add(&term)?;
    }
    if !terms.skip_first {
        return Ok(Some(sum));
    }
    let (queries, keys) = (terms.index.queries(), terms.index.keys());
    let kept: Vec<u8> = (0..queries)
        .flat_map(|i| (0..keys).map(move |j| u8::from(i > 0 && j > 0)))
        .collect();
    let kept = Tensor::from_vec(kept, (queries, keys), sum.device())?.to_dtype(sum.dtype())?;
    Ok(Some(sum.broadcast_mul(&kept)?))
}
