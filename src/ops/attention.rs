//! Scaled dot-product attention over all heads.

use candle_core::{D, DType, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

use super::matmul::{Accumulate, Strides, matmul_raw};
use super::parallel::for_overwrite;
use super::simd::{self, simd_fn};
use super::{Dropout, reference, storage, tape};
use crate::{Error, Result};

/// What a query may look at.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum AttentionMask {
    /// Everything.
    #[default]
    None,
    /// Keys whose entry in this (batch, key) u32 or u8 tensor is not zero: the tokenizer's `attention_mask`.
    Keys(Tensor),
    /// A tensor added to the scores before the softmax; broadcasts to (batch, heads, query, key) and is
    /// differentiable (relative position biases).
    Additive(Tensor),
}

/// How attention is computed on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttentionKernel {
    /// As is fastest: by one kernel where it takes the heads, else by products.
    #[default]
    Auto,
    /// By one kernel that keeps neither scores nor probabilities; for bf16 and f16, heads of 32, 64, 96 or 128 features and no
    /// additive mask. By products where these do not hold.
    Fused,
    /// By products of all queries with all keys, with a softmax between them.
    Products,
}

/// Chooses how attention is computed on GPUs, for comparisons. At first it is what the environment variable
/// `CLOZE_CUDA_ATTENTION` says ("fused", "products"), or else [`AttentionKernel::Auto`]. Without effect on the CPU.
pub fn set_attention_kernel(kernel: AttentionKernel) {
    #[cfg(feature = "cuda")]
    super::cuda::set_attention_kernel(kernel);
    #[cfg(not(feature = "cuda"))]
    let _ = kernel;
}

/// `softmax(scale · q kᵀ + mask) · v` for every head, with dropout on the probabilities.
///
/// `q` is (batch, query, heads · d), `k` (batch, key, heads · d), `v` (batch, key, heads · e), as the projections leave
/// them; the result is (batch, query, heads · e). A query all of whose keys are masked attends to all keys equally, as
/// in the reference.
///
/// Neither scores nor probabilities are kept: the backward pass forms them again, a block of queries at a time.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let sizes = Sizes::new(q, k, v, heads)?;
    check_mask(mask, &sizes)?;
    #[cfg(feature = "cuda")]
    if [q, k, v].iter().all(|x| super::cuda::takes(x, [])) {
        return super::cuda::attention([q, k, v], sizes, mask, scale, dropout);
    }
    let floats = [q, k, v].iter().all(|x| storage::is_cpu_f32(x));
    let bias_fits = match mask {
        AttentionMask::Additive(bias) => storage::is_cpu_f32(bias),
        _ => true,
    };
    if sizes.is_empty() {
        let shape = (sizes.batch, sizes.queries, heads * sizes.value);
        return Ok(Tensor::zeros(shape, q.dtype(), q.device())?);
    }
    if !floats || !bias_fits {
        return reference::attention(q, k, v, heads, mask, scale, dropout);
    }
    let (q, k, v) = (q.contiguous()?, k.contiguous()?, v.contiguous()?);
    let bias = match mask {
        AttentionMask::Additive(bias) => Some(bias),
        _ => None,
    };
    let detached = match bias {
        Some(bias) => Some(bias.contiguous()?.detach()),
        None => None,
    };
    let attention = Attention {
        sizes,
        keys: match mask {
            AttentionMask::Keys(keys) => Some(KeyMask::new(keys)?),
            _ => None,
        },
        bias: match &detached {
            Some(bias) => Some(Bias::new(bias, &sizes)?),
            None => None,
        },
        scale: scale as f32,
        dropout,
    };
    let (out, rows) = attention.forward(&q, &k, &v)?;
    let shape = (sizes.batch, sizes.queries, heads * sizes.value);
    let mut args = vec![&q, &k, &v];
    args.extend(bias);
    tape::record("attention", &args, out, shape, move |args, out, grad| {
        let bias = args.get(3).filter(|bias| bias.track_op());
        let qkv = [args[0], args[1], args[2]];
        let grads = attention.backward(qkv, out, grad, &rows, bias.is_some())?;
        let of_bias = match (grads.scores, bias) {
            (Some(scores), Some(bias)) => Some(reduce_to(&scores, bias)?),
            _ => None,
        };
        // Each is formed along the way to the others: those that nobody asked for are dropped.
        let wanted = |i: usize, grad: Tensor| args[i].track_op().then_some(grad);
        Ok(vec![
            wanted(0, grads.q),
            wanted(1, grads.k),
            wanted(2, grads.v),
            of_bias,
        ])
    })
}

/// Sums `grad` (batch, heads, query, key) over the dimensions that `bias` was broadcast along.
pub(super) fn reduce_to(grad: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let mut grad = grad.clone();
    let missing = grad.rank() - bias.rank();
    for dim in 0..grad.rank() {
        let broadcast = dim < missing || bias.dim(dim - missing)? != grad.dim(dim)?;
        if broadcast {
            grad = grad.sum_keepdim(dim)?;
        }
    }
    Ok(grad.reshape(bias.shape())?)
}

#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    /// Of a head of q and k.
    pub key: usize,
    /// Of a head of v.
    pub value: usize,
}

impl Sizes {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Self> {
        let ((batch, queries, width), (_, keys, _)) = (q.dims3()?, k.dims3()?);
        let value_width = v.dim(D::Minus1)?;
        let fits = heads > 0 && width % heads == 0 && value_width % heads == 0;
        if !fits || k.dims() != [batch, keys, width] || v.dims() != [batch, keys, value_width] {
            return Err(Error::argument(
                "q, k, v",
                format!(
                    "shapes {:?}, {:?}, {:?} do not fit together in {heads} heads",
                    q.dims(),
                    k.dims(),
                    v.dims()
                ),
            ));
        }
        Ok(Self {
            batch,
            heads,
            queries,
            keys,
            key: width / heads,
            value: value_width / heads,
        })
    }

    pub(super) fn is_empty(&self) -> bool {
        [self.batch, self.queries, self.keys, self.key, self.value].contains(&0)
    }

    /// Queries that are worked on at once: as many as keep their scores in the second-level cache.
    fn block(&self) -> usize {
        (1usize << 16)
            .div_ceil(self.keys)
            .next_multiple_of(16)
            .min(self.queries)
    }
}

fn check_mask(mask: &AttentionMask, sizes: &Sizes) -> Result<()> {
    let Sizes {
        batch,
        heads,
        queries,
        keys,
        ..
    } = *sizes;
    match mask {
        AttentionMask::Keys(mask) if mask.dims() != [batch, keys] => Err(Error::argument(
            "attention_mask",
            format!(
                "shape {:?}, but there are {batch} sequences of {keys} keys",
                mask.dims()
            ),
        )),
        AttentionMask::Additive(bias)
            if bias.broadcast_as((batch, heads, queries, keys)).is_err() =>
        {
            Err(Error::argument(
                "attention_mask",
                format!(
                    "shape {:?} does not broadcast to (batch, heads, query, key) = ({batch}, {heads}, {queries}, {keys})",
                    bias.dims()
                ),
            ))
        }
        _ => Ok(()),
    }
}

/// Which keys each sequence has.
struct KeyMask {
    sequences: Vec<KeysOfSequence>,
}

struct KeysOfSequence {
    /// One past the last key that may be seen: padding at the end is not even computed. 0: none may be seen.
    end: usize,
    /// 0 or -∞ for each key; `None` if all before `end` may be seen.
    bias: Option<Vec<f32>>,
}

impl KeyMask {
    fn new(mask: &Tensor) -> Result<Self> {
        let rows = match mask.dtype() {
            DType::U32 => mask.to_vec2::<u32>()?,
            _ => mask.ne(0.0)?.to_dtype(DType::U32)?.to_vec2::<u32>()?,
        };
        let sequence = |row: &Vec<u32>| {
            let end = row.iter().rposition(|&m| m != 0).map_or(0, |last| last + 1);
            let bias = row[..end].contains(&0).then(|| {
                let bias = |&m: &u32| if m == 0 { f32::NEG_INFINITY } else { 0.0 };
                row[..end].iter().map(bias).collect()
            });
            KeysOfSequence { end, bias }
        };
        Ok(Self {
            sequences: rows.iter().map(sequence).collect(),
        })
    }
}

/// An additive mask and how far apart its elements lie, 0 where it is broadcast.
struct Bias {
    values: Tensor,
    strides: [usize; 4],
}

impl Bias {
    fn new(bias: &Tensor, sizes: &Sizes) -> Result<Self> {
        let Sizes {
            batch,
            heads,
            queries,
            keys,
            ..
        } = *sizes;
        let full = bias.broadcast_as((batch, heads, queries, keys))?;
        let mut strides = [0; 4];
        strides.copy_from_slice(full.stride());
        Ok(Self {
            values: bias.clone(),
            strides,
        })
    }
}

/// What the softmax of one query came to: its largest score, and the reciprocal of the sum of exponentials.
type Row = [f32; 2];

struct Attention {
    sizes: Sizes,
    keys: Option<KeyMask>,
    bias: Option<Bias>,
    scale: f32,
    dropout: Dropout,
}

struct AttentionGrads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scores: Option<Tensor>,
}

/// One head of one sequence, with its place in the tensors.
#[derive(Clone, Copy)]
struct Head {
    batch: usize,
    head: usize,
    /// Keys that are looked at.
    keys: usize,
    /// The scale of the scores: 0 where all keys are masked, which makes them all equal.
    scale: f32,
}

/// A pointer that tasks share, each writing elsewhere.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: whoever dereferences it says why no two tasks touch the same element.
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    /// The element `offset` after the first.
    ///
    /// # Safety
    /// It must lie inside the allocation.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

impl Attention {
    fn head(&self, index: usize) -> Head {
        let (batch, head) = (index / self.sizes.heads, index % self.sizes.heads);
        let end = self
            .keys
            .as_ref()
            .map_or(self.sizes.keys, |keys| keys.sequences[batch].end);
        Head {
            batch,
            head,
            keys: if end == 0 { self.sizes.keys } else { end },
            scale: if end == 0 { 0.0 } else { self.scale },
        }
    }

    /// Where a head's part of a (batch, seq, heads · width) tensor begins.
    fn offset(&self, head: Head, seq: usize, width: usize) -> usize {
        (head.batch * seq * self.sizes.heads + head.head) * width
    }

    /// Adds the masks to the scores of the queries from `first` on.
    fn add_masks(&self, bias: &[f32], head: Head, first: usize, scores: &mut [f32]) {
        let rows = scores.chunks_mut(head.keys);
        if let Some(keys) = &self.keys {
            if let Some(bias) = &keys.sequences[head.batch].bias {
                rows.for_each(|row| add(row, bias));
            }
        } else if let Some(Bias {
            strides: [b, h, q, k],
            ..
        }) = self.bias
        {
            for (i, row) in rows.enumerate() {
                let bias = &bias[head.batch * b + head.head * h + (first + i) * q..];
                match k {
                    1 => add(row, &bias[..head.keys]),
                    _ => row
                        .iter_mut()
                        .enumerate()
                        .for_each(|(j, s)| *s += bias[j * k]),
                }
            }
        }
    }

    /// The index that dropout knows a query's first probability by.
    fn dropout_index(&self, head: Head, query: usize) -> u64 {
        let rows = (head.batch * self.sizes.heads + head.head) * self.sizes.queries + query;
        rows as u64 * self.sizes.keys as u64
    }

    /// The bias's elements, or none.
    fn with_bias<T>(&self, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
        match &self.bias {
            Some(bias) => storage::with(&bias.values, f),
            None => Ok(f(&[])),
        }
    }

    fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<(Vec<f32>, Vec<Row>)> {
        let s = self.sizes;
        let mut out = for_overwrite(s.batch * s.queries * s.heads * s.value);
        let mut rows = vec![[0f32; 2]; s.batch * s.heads * s.queries];
        let (key_width, value_width) = (s.heads * s.key, s.heads * s.value);
        let target = Shared(out.as_mut_ptr());
        let mut run = |q: &[f32], k: &[f32], v: &[f32], bias: &[f32]| {
            rows.par_chunks_mut(s.queries).enumerate().for_each_init(
                Vec::new,
                |scores, (index, rows)| {
                    let head = self.head(index);
                    let q = &q[self.offset(head, s.queries, s.key)..];
                    let k = &k[self.offset(head, s.keys, s.key)..];
                    let v = &v[self.offset(head, s.keys, s.value)..];
                    let out = self.offset(head, s.queries, s.value);
                    for (block, rows) in rows.chunks_mut(s.block()).enumerate() {
                        let first = block * s.block();
                        let n = rows.len();
                        scores.resize(s.block() * s.keys, 0.0);
                        let scores = &mut scores[..n * head.keys];
                        // SAFETY: every stride and size is that of the tensors, whose shapes were checked; the rows of `out`
                        // written here belong to this head alone.
                        unsafe {
                            matmul_raw(
                                (n, s.key, head.keys),
                                Accumulate::Overwrite,
                                head.scale,
                                (scores.as_mut_ptr(), Strides::rows(head.keys)),
                                (q[first * key_width..].as_ptr(), Strides::rows(key_width)),
                                (k.as_ptr(), Strides::rows(key_width).t()),
                                Parallelism::None,
                            );
                        }
                        self.add_masks(bias, head, first, scores);
                        for (i, (scores, row)) in scores.chunks_mut(head.keys).zip(rows).enumerate()
                        {
                            *row = softmax(scores);
                            if self.dropout.is_active() {
                                let index = self.dropout_index(head, first + i);
                                self.dropout
                                    .pieces(index, head.keys, |stream, offset, at, n| {
                                        super::dropout::multiply_in_place(
                                            &stream,
                                            offset,
                                            &mut scores[at..at + n],
                                        );
                                    });
                            }
                        }
                        // SAFETY: as above.
                        unsafe {
                            matmul_raw(
                                (n, head.keys, s.value),
                                Accumulate::Overwrite,
                                1.0,
                                (
                                    target.at(out + first * value_width),
                                    Strides::rows(value_width),
                                ),
                                (scores.as_ptr(), Strides::rows(head.keys)),
                                (v.as_ptr(), Strides::rows(value_width)),
                                Parallelism::None,
                            );
                        }
                    }
                },
            );
        };
        storage::with2(q, k, |q, k| {
            storage::with(v, |v| self.with_bias(|bias| run(q, k, v, bias)))
        })???;
        Ok((out, rows))
    }

    /// The gradients; with `full` also that of the scores, (batch, heads, query, key).
    fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        out: &Tensor,
        grad: &Tensor,
        rows: &[Row],
        full: bool,
    ) -> Result<AttentionGrads> {
        let s = self.sizes;
        let (key_width, value_width) = (s.heads * s.key, s.heads * s.value);
        let mut dq = for_overwrite(q.elem_count());
        let mut dk = for_overwrite(k.elem_count());
        let mut dv = for_overwrite(v.elem_count());
        let mut ds = vec![0f32; if full { rows.len() * s.keys } else { 0 }];
        let [to_q, to_k, to_v, to_s] =
            [&mut dq, &mut dk, &mut dv, &mut ds].map(|x| Shared(x.as_mut_ptr()));
        let run = |q: &[f32], k: &[f32], v: &[f32], out: &[f32], grad: &[f32], bias: &[f32]| {
            let heads = rows.par_chunks(s.queries).enumerate();
            heads.for_each_init(
                || (Vec::new(), Vec::new()),
                |(probs, grads), (index, rows)| {
                    let head = self.head(index);
                    let at_q = self.offset(head, s.queries, s.key);
                    let at_k = self.offset(head, s.keys, s.key);
                    let at_v = self.offset(head, s.keys, s.value);
                    let at_out = self.offset(head, s.queries, s.value);
                    let keys = head.keys;
                    for (block, rows) in rows.chunks(s.block()).enumerate() {
                        let first = block * s.block();
                        let n = rows.len();
                        probs.resize(s.block() * s.keys, 0f32);
                        grads.resize(s.block() * s.keys, 0f32);
                        let (probs, grads) = (&mut probs[..n * keys], &mut grads[..n * keys]);
                        let q = q[at_q + first * key_width..].as_ptr();
                        let grad_block = &grad[at_out + first * value_width..];
                        // SAFETY: every stride and size is that of the tensors, whose shapes were checked.
                        unsafe {
                            matmul_raw(
                                (n, s.key, keys),
                                Accumulate::Overwrite,
                                head.scale,
                                (probs.as_mut_ptr(), Strides::rows(keys)),
                                (q, Strides::rows(key_width)),
                                (k[at_k..].as_ptr(), Strides::rows(key_width).t()),
                                Parallelism::None,
                            );
                            matmul_raw(
                                (n, s.value, keys),
                                Accumulate::Overwrite,
                                1.0,
                                (grads.as_mut_ptr(), Strides::rows(keys)),
                                (grad_block.as_ptr(), Strides::rows(value_width)),
                                (v[at_v..].as_ptr(), Strides::rows(value_width).t()),
                                Parallelism::None,
                            );
                        }
                        self.add_masks(bias, head, first, probs);
                        let lines = probs.chunks_mut(keys).zip(grads.chunks_mut(keys)).zip(rows);
                        for (i, ((probs, grads), &row)) in lines.enumerate() {
                            let at = at_out + (first + i) * value_width;
                            let inner = dot(&out[at..at + s.value], &grad[at..at + s.value]);
                            if self.dropout.is_active() {
                                let index = self.dropout_index(head, first + i);
                                self.dropout.pieces(index, keys, |stream, offset, at, n| {
                                    let (probs, grads) =
                                        (&mut probs[at..at + n], &mut grads[at..at + n]);
                                    softmax_backward_dropped(
                                        &stream, offset, probs, grads, row, inner,
                                    );
                                });
                            } else {
                                softmax_backward(probs, grads, row, inner);
                            }
                            if full {
                                let at =
                                    ((head.batch * s.heads + head.head) * s.queries + first + i)
                                        * s.keys;
                                // SAFETY: this row of the scores belongs to this query of this head alone.
                                unsafe {
                                    std::ptr::copy_nonoverlapping(
                                        grads.as_ptr(),
                                        to_s.at(at),
                                        keys,
                                    );
                                }
                            }
                        }
                        let into = Accumulate::fresh(first == 0);
                        // SAFETY: as above; the columns of dq, dk and dv written here belong to this head alone.
                        unsafe {
                            matmul_raw(
                                (keys, n, s.value),
                                into,
                                1.0,
                                (to_v.at(at_v), Strides::rows(value_width)),
                                (probs.as_ptr(), Strides::rows(keys).t()),
                                (grad_block.as_ptr(), Strides::rows(value_width)),
                                Parallelism::None,
                            );
                            matmul_raw(
                                (n, keys, s.key),
                                Accumulate::Overwrite,
                                self.scale,
                                (to_q.at(at_q + first * key_width), Strides::rows(key_width)),
                                (grads.as_ptr(), Strides::rows(keys)),
                                (k[at_k..].as_ptr(), Strides::rows(key_width)),
                                Parallelism::None,
                            );
                            matmul_raw(
                                (keys, n, s.key),
                                into,
                                self.scale,
                                (to_k.at(at_k), Strides::rows(key_width)),
                                (grads.as_ptr(), Strides::rows(keys).t()),
                                (q, Strides::rows(key_width)),
                                Parallelism::None,
                            );
                        }
                    }
                    // Keys that nobody looked at.
                    for key in keys..s.keys {
                        // SAFETY: as above.
                        unsafe {
                            to_k.at(at_k + key * key_width).write_bytes(0, s.key);
                            to_v.at(at_v + key * value_width).write_bytes(0, s.value);
                        }
                    }
                },
            );
        };
        storage::with2(q, k, |q, k| {
            storage::with(v, |v| {
                storage::with2(out, grad, |out, grad| {
                    self.with_bias(|bias| run(q, k, v, out, grad, bias))
                })
            })
        })????;
        Ok(AttentionGrads {
            q: storage::tensor(dq, q.shape())?,
            k: storage::tensor(dk, k.shape())?,
            v: storage::tensor(dv, v.shape())?,
            scores: match full {
                true => Some(storage::tensor(
                    ds,
                    &(s.batch, s.heads, s.queries, s.keys).into(),
                )?),
                false => None,
            },
        })
    }
}

simd_fn! {
    fn add(row: &mut [f32], bias: &[f32]) {
        for (x, bias) in row.iter_mut().zip(bias) {
            *x += bias;
        }
    }
}

simd_fn! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }
}

simd_fn! {
    /// Replaces a row of scores by its softmax.
    fn softmax(row: &mut [f32]) -> Row {
        let top = simd::max(row);
        for x in row.iter_mut() {
            *x = simd::exp(*x - top);
        }
        let scale = 1.0 / simd::sum(row, |x| x);
        for x in row.iter_mut() {
            *x *= scale;
        }
        [top, scale]
    }
}

simd_fn! {
    /// Turns scores into probabilities, and the gradient of those into that of the scores.
    fn softmax_backward(scores: &mut [f32], grads: &mut [f32], row: Row, inner: f32) {
        let [top, scale] = row;
        for (score, grad) in scores.iter_mut().zip(grads) {
            let prob = simd::exp(*score - top) * scale;
            *score = prob;
            *grad = prob * (*grad - inner);
        }
    }
}

simd_fn! {
    /// As [`softmax_backward`], with dropout between the probabilities and their use.
    fn softmax_backward_dropped(
        stream: &super::dropout::Stream,
        start: u32,
        scores: &mut [f32],
        grads: &mut [f32],
        row: Row,
        inner: f32,
    ) {
        let [top, scale] = row;
        for (i, (score, grad)) in scores.iter_mut().zip(grads).enumerate() {
            let factor = stream.factor(start.wrapping_add(i as u32));
            let prob = simd::exp(*score - top) * scale;
            *score = prob * factor;
            *grad = prob * grad.mul_add(factor, -inner);
        }
    }
}
