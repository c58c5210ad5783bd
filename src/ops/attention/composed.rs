//! Attention composed of recorded operations round plain attention: for what the kernels of a GPU do not take.
//!
//! Terms of the distance are formed for all distances at once and brought into place by reading their rows with one element
//! more or less from row to row, which is a matter of shapes alone.

use candle_core::{DType, Tensor};

use super::{
    AttentionMask, AttentionOptions, FusedLayout, RelativeTerms, Rotary, RotaryPairs, SparsePlan,
};
use crate::Result;
use crate::ops::naive::lowest;
use crate::ops::naive::{alive, counts, key_counts, visible};
use crate::ops::{
    Activation, add, concat, dropout, matmul, mul, mul_rows, narrow, permute, reshape, scale,
    select_rows, softmax, sub,
};

/// Attention for arguments that have been checked, with weights of each pair's own or the softmax; `plain` is called for
/// what remains to be done by a kernel.
pub(super) fn attend(
    [q, k, v]: [&Tensor; 3],
    options: &AttentionOptions,
    terms: Option<&RelativeTerms>,
    weights: Option<Activation>,
    plain: impl Fn([&Tensor; 3], &AttentionMask) -> Result<Tensor>,
) -> Result<Tensor> {
    let (heads, kv_heads) = (options.heads, options.kv_heads());
    let ((batch, queries, _), keys) = (q.dims3()?, k.dim(1)?);
    let sizes = (batch, queries, keys);
    let (mut q, mut k, mut v) = (q.clone(), k.clone(), v.clone());
    if let Some(rotary) = &options.rotary {
        q = turned(&q, heads, rotary, keys.saturating_sub(queries))?;
        k = turned(&k, kv_heads, rotary, 0)?;
        if rotary.turns_values() {
            v = turned(&v, kv_heads, rotary, 0)?;
        }
    }
    if kv_heads != heads {
        k = repeated(&k, kv_heads, heads / kv_heads)?;
        v = repeated(&v, kv_heads, heads / kv_heads)?;
    }
    let visible = visible(options, sizes)?;
    let mut mask = match &visible {
        None => options.mask.clone(),
        Some(visible) => {
            let closed = closed(visible, sizes, &q)?;
            AttentionMask::Additive(match &options.mask {
                AttentionMask::Additive(bias) => full(&closed, bias, heads)?,
                _ => closed,
            })
        }
    };
    if let Some(terms) = terms
        && let Some(scores) = score_terms(terms, [&q, &k], options)?
    {
        mask = joined(&mask, scores, sizes)?;
    }
    let table = terms.and_then(|terms| Some((terms, terms.value_table.as_ref()?)));
    let out = match (table, weights) {
        (None, None) => plain([&q, &k, &v], &mask)?,
        _ => {
            if weights.is_some() {
                let counts = key_counts(options, batch, keys)?;
                let factors = counts
                    .into_iter()
                    .flat_map(|n| std::iter::repeat_n(1.0 / n, queries));
                let factors = Tensor::from_vec(factors.collect(), (batch, queries), q.device())?;
                q = mul_rows(&q, &factors)?;
            }
            by_pairs([&q, &k, &v], &mask, options, table, weights)?
        }
    };
    match alive(options, visible.as_deref(), sizes)? {
        Some(alive) => mul_rows(&out, &alive.to_dtype(DType::F32)?),
        None => Ok(out),
    }
}

/// Queries, keys and values that lie side by side.
pub(super) fn split(
    qkv: &Tensor,
    layout: FusedLayout,
    options: &AttentionOptions,
) -> Result<[Tensor; 3]> {
    let (batch, n, width) = qkv.dims3()?;
    let (heads, kv_heads) = (options.heads, options.kv_heads());
    let d = width / (heads + 2 * kv_heads);
    Ok(match layout {
        FusedLayout::Blocks => [
            narrow(qkv, 2, 0, heads * d)?,
            narrow(qkv, 2, heads * d, kv_heads * d)?,
            narrow(qkv, 2, (heads + kv_heads) * d, kv_heads * d)?,
        ],
        FusedLayout::PerHead => {
            let per_head = reshape(qkv, (batch, n, heads, 3 * d))?;
            let part = |i: usize| reshape(&narrow(&per_head, 3, i * d, d)?, (batch, n, heads * d));
            [part(0)?, part(1)?, part(2)?]
        }
    })
}

/// Sparse attention by way of all pairs, without scores of your own; `plain` as for [`attend`].
pub(super) fn sparse(
    qkv: [&Tensor; 3],
    plan: &SparsePlan,
    options: &AttentionOptions,
    plain: impl Fn([&Tensor; 3], &AttentionMask) -> Result<Tensor>,
) -> Result<Tensor> {
    let [q, k, _] = qkv;
    let ((batch, queries, _), keys, heads) = (q.dims3()?, k.dim(1)?, options.heads);
    let counts = counts(plan, options, batch)?;
    // A pair that counts twice has its exponential twice.
    let closed = lowest(DType::F32) as f32;
    let bias = |&count: &f32| if count > 0.0 { count.ln() } else { closed };
    let bias: Vec<f32> = counts.iter().map(bias).collect();
    let bias = Tensor::from_vec(bias, (batch, heads, queries, keys), q.device())?;
    let out = plain(qkv, &AttentionMask::Additive(bias))?;
    let seeing = counts.chunks_exact(keys);
    let seeing = seeing.map(|row| f32::from(row.iter().any(|&count| count > 0.0)));
    let seeing = Tensor::from_vec(
        seeing.collect::<Vec<_>>(),
        (batch, heads, queries),
        q.device(),
    )?;
    let seeing = seeing.transpose(1, 2)?.contiguous()?;
    let all = out.dim(2)?;
    let per_head = reshape(&out, (batch, queries, heads, all / heads))?;
    reshape(&mul_rows(&per_head, &seeing)?, (batch, queries, all))
}

/// 0 for pairs that see each other, and for others a number so far below any score that their weight is 0, and that stays a
/// number in every dtype, several of them and the scores added up: (batch, 1, query, key), a constant.
fn closed(
    visible: &[u8],
    (batch, queries, keys): (usize, usize, usize),
    like: &Tensor,
) -> Result<Tensor> {
    let hidden = (lowest(DType::F16) / 4.0) as f32;
    let closed = |&seen: &u8| if seen == 0 { hidden } else { 0.0 };
    let closed: Vec<f32> = visible.iter().map(closed).collect();
    let closed = Tensor::from_vec(closed, (batch, 1, queries, keys), like.device())?;
    Ok(closed.to_dtype(like.dtype())?)
}

/// Returns a constant mask (batch, 1, query, key) and a bias that is broadcast, with all heads: their sum.
fn full(constant: &Tensor, bias: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, _, queries, keys) = constant.dims4()?;
    let shape = (batch, heads, queries, keys);
    let constant = constant.broadcast_as(shape)?.contiguous()?;
    add(&spread(bias, shape)?, &constant)
}

/// Returns `x` repeated along the dimensions that it is broadcast along.
fn spread(x: &Tensor, shape: (usize, usize, usize, usize)) -> Result<Tensor> {
    if !x.track_op() {
        return Ok(x.broadcast_as(shape)?.contiguous()?);
    }
    let dims = [shape.0, shape.1, shape.2, shape.3];
    let mut own = vec![1; 4 - x.rank()];
    own.extend_from_slice(x.dims());
    let mut x = reshape(x, own.clone())?;
    for (dim, (&of, &wanted)) in own.iter().zip(&dims).enumerate() {
        if of != wanted {
            x = concat(&vec![&x; wanted], dim)?;
        }
    }
    Ok(x)
}

/// Returns a mask with scores of all pairs (batch, heads, query, key) added to it.
fn joined(
    mask: &AttentionMask,
    scores: Tensor,
    (batch, queries, keys): (usize, usize, usize),
) -> Result<AttentionMask> {
    let shape = scores.dims4()?;
    let sum = match mask {
        AttentionMask::None => scores,
        AttentionMask::Additive(bias) => add(&scores, &spread(bias, shape)?)?,
        AttentionMask::Keys(mask) => {
            let rows = crate::ops::attention::masks::rows(mask)?;
            let visible = rows.iter().flat_map(|row| {
                std::iter::repeat_n(row, queries).flat_map(|row| row.iter().map(|&m| u8::from(m)))
            });
            let visible: Vec<u8> = visible.collect();
            let closed = closed(&visible, (batch, queries, keys), &scores)?;
            add(&scores, &closed.broadcast_as(shape)?.contiguous()?)?
        }
        AttentionMask::Packed(_) => return Err(crate::ops::attention::masks::not_packed()),
    };
    Ok(AttentionMask::Additive(sum))
}

/// Returns the features of every head of `x` (batch, n, heads · d), rotated from position `first` on.
fn turned(x: &Tensor, heads: usize, rotary: &Rotary, first: usize) -> Result<Tensor> {
    let (batch, n, all) = x.dims3()?;
    let (d, width) = (all / heads, rotary.width());
    let half = width / 2;
    let per_head = reshape(x, (batch, n, heads, d))?;
    let part = match width == d {
        true => per_head.clone(),
        false => narrow(&per_head, 3, 0, width)?,
    };
    let [a, b] = match rotary.pairs() {
        RotaryPairs::Half => [narrow(&part, 3, 0, half)?, narrow(&part, 3, half, half)?],
        RotaryPairs::Interleaved => {
            let pairs = reshape(&part, (batch, n, heads, half, 2))?;
            let side = |i: usize| reshape(&narrow(&pairs, 4, i, 1)?, (batch, n, heads, half));
            [side(0)?, side(1)?]
        }
    };
    let place = |table: Tensor| -> Result<Tensor> {
        let table = table.to_device(x.device())?.to_dtype(x.dtype())?;
        let table = table.reshape((1, n, 1, half))?;
        Ok(table.broadcast_as((batch, n, heads, half))?.contiguous()?)
    };
    let [cos, sin] = rotary.tables(first, n)?;
    let (cos, sin) = (place(cos)?, place(sin)?);
    let y = sub(&mul(&a, &cos)?, &mul(&b, &sin)?)?;
    let z = add(&mul(&b, &cos)?, &mul(&a, &sin)?)?;
    let part = match rotary.pairs() {
        RotaryPairs::Half => concat(&[&y, &z], 3)?,
        RotaryPairs::Interleaved => {
            let side = |x: &Tensor| reshape(x, (batch, n, heads, half, 1));
            reshape(
                &concat(&[&side(&y)?, &side(&z)?], 4)?,
                (batch, n, heads, width),
            )?
        }
    };
    let whole = match width == d {
        true => part,
        false => concat(&[&part, &narrow(&per_head, 3, width, d - width)?], 3)?,
    };
    reshape(&whole, (batch, n, all))
}

/// Returns every head of `x` (batch, n, heads · d) `times` times, one after the other.
fn repeated(x: &Tensor, heads: usize, times: usize) -> Result<Tensor> {
    let (batch, n, all) = x.dims3()?;
    let x = reshape(x, (batch, n, heads, 1, all / heads))?;
    reshape(&concat(&vec![&x; times], 3)?, (batch, n, all * times))
}

/// (heads, batch · n, d) of `x` (batch, n, heads · d); (1, heads · batch · n, d) for a table that all heads share.
fn by_head(x: &Tensor, heads: usize, shared: bool) -> Result<Tensor> {
    let (batch, n, all) = x.dims3()?;
    let d = all / heads;
    let x = permute(&reshape(x, (batch, n, heads, d))?, &[2, 0, 1, 3])?;
    match shared {
        true => reshape(&x, (1, heads * batch * n, d)),
        false => reshape(&x, (heads, batch * n, d)),
    }
}

/// Returns the products of every head's rows of `x` (batch, n, heads · d) with all rows of a table, times `factor`: (heads, batch,
/// n, rows).
#[cfg(feature = "cuda")]
pub(super) fn products(x: &Tensor, table: &Tensor, heads: usize, factor: f64) -> Result<Tensor> {
    let ((batch, n, all), (rows, columns)) = (x.dims3()?, table.dims2()?);
    let (d, copies) = (all / heads, columns * heads / all);
    let table = permute(&reshape(table, (rows, copies, d))?, &[1, 0, 2])?;
    let x = by_head(&scale(x, factor)?, heads, copies == 1)?;
    reshape(&matmul(&x, &table, false, true)?, (heads, batch, n, rows))
}

/// Returns a table's rows in this order, (copies, rows, width).
fn selected(table: &Tensor, rows: Vec<u32>, width: usize) -> Result<Tensor> {
    let count = rows.len();
    let rows = Tensor::from_vec(rows, count, &candle_core::Device::Cpu)?;
    let rows = select_rows(table, &rows)?;
    let copies = table.dim(1)? / width;
    permute(&reshape(&rows, (count, copies, width))?, &[1, 0, 2])
}

/// Of every row i of `x` (a, b, rows, all) the `count` elements from `step · (rows - 1 - i)` on.
fn skewed(x: &Tensor, step: usize, count: usize) -> Result<Tensor> {
    let (a, b, rows, all) = x.dims4()?;
    if rows == 1 {
        return narrow(x, 3, 0, count);
    }
    let flat = reshape(x, (a, b, rows * all))?;
    let flat = narrow(&flat, 2, step * (rows - 1), rows * (all - step))?;
    narrow(&reshape(&flat, (a, b, rows, all - step))?, 3, 0, count)
}

/// Returns the transpose of [`skewed`]: rows of `all` elements with those of `x` in their places and zeros elsewhere.
fn unskewed(x: &Tensor, step: usize, all: usize) -> Result<Tensor> {
    let (a, b, rows, count) = x.dims4()?;
    if rows == 1 {
        return Ok(x.clone());
    }
    let zeros = |shape: &[usize]| Tensor::zeros(shape, x.dtype(), x.device());
    let wide = match all - step - count {
        0 => x.clone(),
        more => concat(&[x, &zeros(&[a, b, rows, more])?], 3)?,
    };
    let flat = reshape(&wide, (a, b, rows * (all - step)))?;
    let (before, after) = (zeros(&[a, b, step * (rows - 1)])?, zeros(&[a, b, step])?);
    reshape(&concat(&[&before, &flat, &after], 2)?, (a, b, rows, all))
}

/// Returns the terms of the tables in the scores, (batch, heads, query, key).
fn score_terms(
    terms: &RelativeTerms,
    [q, k]: [&Tensor; 2],
    options: &AttentionOptions,
) -> Result<Option<Tensor>> {
    let heads = options.heads;
    let ((batch, queries, all), keys) = (q.dims3()?, k.dim(1)?);
    let width = all / heads;
    let factor = terms.scale.unwrap_or(options.scale);
    let grid = terms.index.grid;
    let rows = terms.index.rows.to_vec();
    let mut added = Vec::new();
    if let Some(table) = &terms.query_table {
        let table = selected(table, rows.clone(), width)?;
        let q = by_head(&scale(q, factor)?, heads, table.dim(0)? == 1)?;
        let products = matmul(&q, &table, false, true)?;
        let products = reshape(&products, (heads, batch, queries, grid.distances()))?;
        added.push(skewed(&products, grid.ratio, keys)?);
    }
    if let Some(table) = &terms.key_table {
        let rows = rows.iter().rev().copied().collect();
        let table = selected(table, rows, width)?;
        let k = by_head(&scale(k, factor)?, heads, table.dim(0)? == 1)?;
        let products = matmul(&k, &table, false, true)?;
        let products = reshape(&products, (heads, batch, keys, grid.distances()))?;
        added.push(permute(&skewed(&products, 1, queries)?, &[0, 1, 3, 2])?);
    }
    if let Some(table) = &terms.bias_table {
        let pairs = (0..queries).flat_map(|i| (0..keys).map(move |j| (i, j)));
        let pairs = pairs.map(|(i, j)| terms.index.get(i, j)).collect();
        let bias = selected(table, pairs, 1)?;
        let bias = reshape(&bias, (bias.dim(0)?, 1, queries, keys))?;
        added.push(spread(&bias, (heads, batch, queries, keys))?);
    }
    let mut added = added.into_iter();
    let Some(mut sum) = added.next() else {
        return Ok(None);
    };
    for term in added {
        sum = add(&sum, &term)?;
    }
    if terms.skip_first {
        let kept = (0..queries).flat_map(|i| (0..keys).map(move |j| f32::from(i > 0 && j > 0)));
        let kept = Tensor::from_vec(kept.collect::<Vec<_>>(), (queries, keys), sum.device())?;
        let kept = kept.to_dtype(sum.dtype())?.broadcast_as(sum.shape())?;
        sum = mul(&sum, &kept.contiguous()?)?;
    }
    Ok(Some(permute(&sum, &[1, 0, 2, 3])?))
}

/// Attention with weights that are all formed: those that meet a table of values too, and those that are no softmax.
fn by_pairs(
    [q, k, v]: [&Tensor; 3],
    mask: &AttentionMask,
    options: &AttentionOptions,
    table: Option<(&RelativeTerms, &Tensor)>,
    weights: Option<Activation>,
) -> Result<Tensor> {
    let heads = options.heads;
    let ((batch, queries, _), keys) = (q.dims3()?, k.dim(1)?);
    let split = |x: &Tensor| -> Result<Tensor> {
        let (batch, n, all) = x.dims3()?;
        permute(&reshape(x, (batch, n, heads, all / heads))?, &[0, 2, 1, 3])
    };
    let (q, k, v) = (split(q)?, split(k)?, split(v)?);
    let width = v.dim(3)?;
    let scores = scale(&matmul(&q, &k, false, true)?, options.scale)?;
    let scores = match joined(mask, scores, (batch, queries, keys))? {
        AttentionMask::Additive(scores) => scores,
        _ => unreachable!("joined gives scores"),
    };
    let probs = match weights {
        None => softmax(&scores)?,
        Some(weights) => weights.apply(&scores)?,
    };
    let probs = dropout(&probs, options.dropout)?;
    let mut out = matmul(&probs, &v, false, false)?;
    if let Some((terms, table)) = table {
        out = add(&out, &values_by_distance(&probs, terms, table, width)?)?;
    }
    reshape(
        &permute(&out, &[0, 2, 1, 3])?,
        (batch, queries, heads * width),
    )
}

/// Returns what probabilities (batch, heads, query, key) get from a table of values, (batch, heads, query, width).
fn values_by_distance(
    probs: &Tensor,
    terms: &RelativeTerms,
    table: &Tensor,
    width: usize,
) -> Result<Tensor> {
    let (batch, heads, queries, _) = probs.dims4()?;
    let grid = terms.index.grid;
    let table = selected(table, terms.index.rows.to_vec(), width)?;
    let by_distance = unskewed(probs, grid.ratio, grid.distances())?;
    let by_distance = permute(&by_distance, &[1, 0, 2, 3])?;
    let copies = table.dim(0)?;
    let rows = heads / copies * batch * queries;
    let by_distance = reshape(&by_distance, (copies, rows, grid.distances()))?;
    let added = matmul(&by_distance, &table, false, false)?;
    permute(
        &reshape(&added, (heads, batch, queries, width))?,
        &[1, 0, 2, 3],
    )
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::{Band, PairWeights, RelativeIndex, attend as fused};
    use super::*;
    use crate::ops::{Dropout, attention, tape};

    fn noise(shape: &[usize], seed: u32) -> Tensor {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        let values = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        Var::from_tensor(&values).unwrap().into_inner()
    }

    /// Returns the result and the gradients of `leaves`, by our own walk alone.
    fn run(leaves: &[Tensor], op: impl Fn() -> Tensor) -> Vec<Vec<f32>> {
        let out = op();
        let weights = noise(out.dims(), 99).detach();
        let loss = reshape(&mul(&out, &weights).unwrap(), (1, ())).unwrap();
        let ones = loss.ones_like().unwrap();
        let loss = matmul(&loss, &ones, false, true).unwrap();
        let grads = tape::backward(&loss, add)
            .unwrap()
            .expect("all are our operations");
        let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let grads = leaves.iter().map(|leaf| flat(&grads[&leaf.id()]));
        std::iter::once(flat(&out)).chain(grads).collect()
    }

    fn agree(
        options: &AttentionOptions,
        terms: Option<&RelativeTerms>,
        (queries, keys): (usize, usize),
    ) {
        let kv = options.kv_heads();
        let qkv = [
            noise(&[3, queries, options.heads * 4], 1),
            noise(&[3, keys, kv * 4], 2),
            noise(&[3, keys, kv * 4], 3),
        ];
        let mut leaves = qkv.to_vec();
        if let Some(terms) = terms {
            leaves.extend(terms.tables().into_iter().flatten().cloned());
        }
        if let AttentionMask::Additive(bias) = &options.mask {
            leaves.push(bias.clone());
        }
        let plain = |[q, k, v]: [&Tensor; 3], mask: &AttentionMask| {
            attention(q, k, v, options.heads, mask, options.scale, options.dropout)
        };
        let composed = run(&leaves, || {
            attend(qkv.each_ref(), options, terms, None, plain).unwrap()
        });
        let fused = run(&leaves, || fused(qkv.each_ref(), options, terms).unwrap());
        for (i, (composed, fused)) in composed.iter().zip(&fused).enumerate() {
            for (a, b) in composed.iter().zip(fused) {
                assert!((a - b).abs() < 1e-5, "{options:?} {terms:?}, {i}: {a} {b}");
            }
        }
    }

    fn options() -> AttentionOptions {
        AttentionOptions {
            dropout: Dropout { p: 0.2, key: 3 },
            ..AttentionOptions::new(2, 4)
        }
    }

    fn mask(n: usize) -> AttentionMask {
        let mask: Vec<u32> = (0..3 * n as u32).map(|i| u32::from(i % 5 != 3)).collect();
        AttentionMask::Keys(Tensor::from_vec(mask, (3, n), &Device::Cpu).unwrap())
    }

    #[test]
    fn every_option_agrees_with_the_cpus_loops() {
        let n = 7;
        let rotary = |width, pairs| Rotary::with_theta(9, width, 10.0, pairs).unwrap();
        let cases = [
            AttentionOptions {
                kv_heads: Some(1),
                ..options()
            },
            AttentionOptions {
                causal: true,
                mask: mask(n),
                ..options()
            },
            AttentionOptions {
                band: Some(Band { left: 1, right: 2 }),
                mask: AttentionMask::Additive(noise(&[2, 1, 7], 8)),
                ..options()
            },
            AttentionOptions {
                band: Some(Band::both(0)),
                mask: mask(n),
                query_mask: Some(
                    Tensor::from_vec([1u32, 0, 1].repeat(7), (3, 7), &Device::Cpu).unwrap(),
                ),
                ..options()
            },
            AttentionOptions {
                rotary: Some(rotary(2, RotaryPairs::Half)),
                ..options()
            },
            AttentionOptions {
                kv_heads: Some(1),
                rotary: Some(rotary(4, RotaryPairs::Interleaved).with_values(true)),
                ..options()
            },
        ];
        for options in &cases {
            agree(options, None, (n, n));
        }
        agree(&cases[4], None, (5, 7));
    }

    #[test]
    fn every_term_agrees_with_the_cpus_loops() {
        for (queries, keys) in [(5, 7), (7, 5), (1, 4), (4, 1)] {
            for bits in 0..16 {
                for copies in [1, 2] {
                    let table = |bit: usize, width: usize| {
                        (bits & bit != 0).then(|| noise(&[6, copies * width], bit as u32))
                    };
                    let terms = RelativeTerms {
                        query_table: table(1, 4),
                        key_table: table(2, 4),
                        bias_table: table(4, 1),
                        value_table: table(8, 4),
                        skip_first: bits % 3 == 1,
                        ..RelativeTerms::new(RelativeIndex::clipped(queries, keys, -3, 2))
                    };
                    let options = AttentionOptions {
                        mask: if bits % 2 == 0 {
                            mask(keys)
                        } else {
                            AttentionMask::None
                        },
                        ..options()
                    };
                    agree(&options, Some(&terms), (queries, keys));
                }
            }
        }
        let steps = RelativeIndex::linear((4, 7), 1, 2, 1, |d| (d + 7).clamp(0, 9) as u32);
        let terms = RelativeTerms {
            query_table: Some(noise(&[10, 8], 4)),
            value_table: Some(noise(&[10, 4], 5)),
            ..RelativeTerms::new(steps.unwrap())
        };
        agree(&options(), Some(&terms), (4, 7));
    }

    #[test]
    fn pointwise_weights_agree_with_the_cpus_loops() {
        let terms = RelativeTerms {
            bias_table: Some(noise(&[13, 1], 4)),
            ..RelativeTerms::new(RelativeIndex::clipped(7, 7, -6, 6))
        };
        for weights in [PairWeights::Laplace, PairWeights::ReluSquared] {
            for causal in [false, true] {
                let options = AttentionOptions {
                    scale: 3.0,
                    mask: mask(7),
                    causal,
                    ..options()
                };
                let qkv = [1, 2, 3].map(|seed| noise(&[3, 7, 8], seed));
                let [q, k, v] = qkv.each_ref();
                let mut leaves = qkv.to_vec();
                leaves.extend(terms.bias_table.clone());
                let composed = run(&leaves, || {
                    let plain = |_: [&Tensor; 3], _: &AttentionMask| unreachable!();
                    let activation = weights.activation();
                    attend([q, k, v], &options, Some(&terms), activation, plain).unwrap()
                });
                let fused = run(&leaves, || {
                    let terms = Some(&terms);
                    super::super::pointwise_attention(q, k, v, weights, terms, &options).unwrap()
                });
                for (composed, fused) in composed.iter().zip(&fused) {
                    for (a, b) in composed.iter().zip(fused) {
                        assert!((a - b).abs() < 1e-5, "{weights:?}: {a} {b}");
                    }
                }
            }
        }
    }

    #[test]
    fn sparse_plans_agree_with_the_cpus_loops() {
        let globals: Vec<u32> = (0..21).map(|i| u32::from(i % 4 == 0)).collect();
        let globals = Tensor::from_vec(globals, (3, 7), &Device::Cpu).unwrap();
        let window = SparsePlan::band(7, Band { left: 1, right: 0 });
        let lists = vec![vec![0..2, 4..7, 1..2], vec![], vec![0..7]];
        for plan in [
            window.clone(),
            window.with_globals(&globals),
            SparsePlan::new(7, 7, 3, lists).unwrap(),
        ] {
            let options = AttentionOptions {
                mask: mask(7),
                ..options()
            };
            let leaves = [1, 2, 3].map(|seed| noise(&[3, 7, 8], seed));
            let plain = |[q, k, v]: [&Tensor; 3], mask: &AttentionMask| {
                attention(q, k, v, 2, mask, options.scale, options.dropout)
            };
            let composed = run(&leaves, || {
                sparse(leaves.each_ref(), &plan, &options, plain).unwrap()
            });
            let fused = run(&leaves, || {
                let [q, k, v] = leaves.each_ref();
                super::super::sparse_attention(q, k, v, &plan, &options).unwrap()
            });
            for (composed, fused) in composed.iter().zip(&fused) {
                for (a, b) in composed.iter().zip(fused) {
                    assert!((a - b).abs() < 1e-5, "{plan:?}: {a} {b}");
                }
            }
        }
    }

    #[test]
    fn fused_projections_are_split_as_they_are_read() {
        for layout in [FusedLayout::Blocks, FusedLayout::PerHead] {
            let qkv = noise(&[2, 5, 24], 1);
            let parts = split(&qkv, layout, &options()).unwrap();
            let whole = super::super::attention_fused(&qkv, layout, &options()).unwrap();
            let parts = fused(parts.each_ref(), &options(), None).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&whole), flat(&parts));
        }
    }
}
