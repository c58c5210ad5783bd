//! Sparse attention by way of all pairs, each of which counts as often as the plan says.

use candle_core::{D, Tensor};

use super::lowest;
use crate::Result;
use crate::ops::attention::masks;
use crate::ops::{AttentionMask, AttentionOptions, SparsePlan};

/// Like [`sparse_attention`](super::super::sparse_attention), or with `sums` as
/// [`sparse_attention_sums`](super::super::sparse_attention_sums), without their checks.
pub(in crate::ops) fn sparse(
    [q, k, v]: [&Tensor; 3],
    plan: &SparsePlan,
    options: &AttentionOptions,
    sums: bool,
) -> Result<Tensor> {
    let heads = options.heads;
    let ((batch, queries, _), keys) = (q.dims3()?, k.dim(1)?);
    let value = v.dim(2)? / heads;
    let split = |x: &Tensor| -> Result<Tensor> {
        let (batch, n, width) = x.dims3()?;
        let x = x.reshape((batch, n, heads, width / heads))?;
        Ok(x.transpose(1, 2)?.contiguous()?)
    };
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let (device, dtype) = (q.device(), q.dtype());
    let shape = (batch, heads, queries, keys);
    let place = |x: Tensor| -> Result<Tensor> { Ok(x.to_device(device)?.to_dtype(dtype)?) };
    let counts = counts(plan, options, batch)?;
    let alive = counts
        .chunks_exact(keys)
        .map(|row| f32::from(u8::from(row.iter().any(|&c| c > 0.0))));
    let alive = Tensor::from_vec(
        alive.collect::<Vec<_>>(),
        (batch, heads, queries, 1),
        device,
    )?;
    let alive = place(alive)?;
    let bias: Vec<f32> = counts.iter().map(|c| c.max(1.0).ln()).collect();
    let seen: Vec<u8> = counts.iter().map(|&c| u8::from(c > 0.0)).collect();
    let (bias, seen) = (
        place(Tensor::from_vec(bias, shape, device)?)?,
        Tensor::from_vec(seen, shape, device)?,
    );
    let everywhere = |x: f64| -> Result<Tensor> { place(Tensor::full(x, shape, device)?) };
    let mut scores = (q.matmul(&k.t()?)? * options.scale)?;
    if let Some((numbers, score)) = &plan.own {
        let numbers = numbers.to_device(device)?;
        let own = numbers
            .reshape((batch, 1, queries, 1))?
            .broadcast_eq(&numbers.reshape((batch, 1, 1, keys))?)?;
        let own = own.broadcast_as(shape)?.contiguous()?;
        scores = own.where_cond(&everywhere(f64::from(*score))?, &scores)?;
    }
    let scores = seen.where_cond(&(scores + bias)?, &everywhere(lowest(dtype))?)?;
    let top = scores.max_keepdim(D::Minus1)?.detach();
    let exp = scores.broadcast_sub(&top)?.exp()?;
    let sum = exp.sum_keepdim(D::Minus1)?;
    let probs = super::dropout(&exp.broadcast_div(&sum)?, options.dropout)?;
    let mut context = probs.matmul(&v)?.broadcast_mul(&alive)?;
    if sums {
        let sum = (sum.log()? + top)?;
        context = Tensor::cat(&[&context, &sum], 3)?;
    }
    let width = heads * context.dim(3)?;
    debug_assert!(width >= heads * value);
    Ok(context.transpose(1, 2)?.reshape((batch, queries, width))?)
}

/// Returns how often each pair counts, (batch, heads, query, key).
pub(in crate::ops) fn counts(
    plan: &SparsePlan,
    options: &AttentionOptions,
    batch: usize,
) -> Result<Vec<f32>> {
    let (queries, keys) = (plan.queries, plan.keys);
    let rows = |mask: Option<&Tensor>| mask.map(masks::rows).transpose();
    let mask = match &options.mask {
        AttentionMask::Keys(mask) => Some(mask),
        _ => None,
    };
    let (mask, counted) = (rows(mask)?, rows(options.query_mask.as_ref())?);
    let globals = rows(plan.globals.as_ref())?;
    let mut counts = Vec::with_capacity(batch * options.heads * queries * keys);
    for b in 0..batch {
        let is = |mask: &Option<Vec<Vec<bool>>>, at: usize, otherwise: bool| {
            mask.as_ref().map_or(otherwise, |mask| mask[b][at])
        };
        for head in 0..options.heads {
            for query in 0..queries {
                let ranges = plan.ranges(head, query / plan.block);
                for key in 0..keys {
                    let in_band = plan.band.is_some_and(|band| {
                        key <= query.saturating_add(band.right)
                            && query <= key.saturating_add(band.left)
                    });
                    let global = is(&globals, key, false);
                    let listed = ranges.iter().filter(|range| range.contains(&key)).count();
                    let count = listed + usize::from(global || in_band);
                    let open = is(&mask, key, true) && is(&counted, query, true);
                    counts.push(if open { count as f32 } else { 0.0 });
                }
            }
        }
    }
    Ok(counts)
}
