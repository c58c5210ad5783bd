//! Attention by products of all queries with all keys, by cuBLAS, around a softmax.

use candle_core::{DType, Device, Tensor};

use super::of_zeros_and_others;
use crate::Result;
use crate::ops::attention::{Sizes, reduce_to};
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, pointer, pointer_or_null, prepared, size, suffix,
};
use crate::ops::gemm::cublas::{Heads, Matrix, gemm_heads};
use crate::ops::graph::tape;
use crate::ops::naive::lowest;
use crate::ops::{AttentionMask, Dropout};

/// Like [`crate::ops::attention()`], for arguments whose shapes have been checked.
pub(in crate::ops) fn attention(
    [q, k, v]: [&Tensor; 3],
    sizes: Sizes,
    mask: &AttentionMask,
    scale: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let gpu = Gpu::of(q.device())?;
    let dtype = compute_dtype(q);
    if sizes.is_empty() {
        let shape = (sizes.batch, sizes.queries, sizes.heads * sizes.value);
        return crate::ops::cuda::nothing(shape, dtype, q.device());
    }
    let (q, k, v) = (
        prepared(q, dtype)?,
        prepared(k, dtype)?,
        prepared(v, dtype)?,
    );
    let masks = Masks::of(mask, q.device(), dtype)?;
    let attention = Attention {
        gpu,
        sizes,
        dtype,
        scale: scale as f32,
        dropout,
    };
    let shape = (sizes.batch, sizes.queries, sizes.heads * sizes.value);
    let (out, probs) = attention.forward([&q, &k, &v], &masks)?;
    let mut args = vec![&q, &k, &v];
    if let AttentionMask::Additive(bias) = mask {
        args.push(bias);
    }
    tape::record(
        "attention",
        &args,
        out.storage,
        shape,
        move |args, _, dy| {
            let qkv = [args[0], args[1], args[2]];
            let (grads, scores) = attention.backward(qkv, &probs, dy)?;
            let of_bias = match args.get(3).filter(|bias| bias.track_op()) {
                Some(bias) => {
                    // The sums over what a bias was broadcast along are formed in f32.
                    let scores = scores.into_tensor().to_dtype(DType::F32)?;
                    Some(reduce_to(&scores, bias)?.to_dtype(bias.dtype())?)
                }
                None => None,
            };
            let [dq, dk, dv] = grads.map(Fresh::into_tensor);
            let wanted = |i: usize, grad: Tensor| args[i].track_op().then_some(grad);
            Ok(vec![wanted(0, dq), wanted(1, dk), wanted(2, dv), of_bias])
        },
    )
}

/// Returns `bias` with values that are finite in that dtype: masks hold the lowest number of a wider one.
fn finite(bias: &Tensor, dtype: DType) -> Result<Tensor> {
    if bias.dtype() == dtype || dtype == DType::F32 {
        return Ok(bias.clone());
    }
    let lowest = lowest(dtype);
    Ok(bias.clamp(lowest, -lowest)?)
}

/// The keys that a query may attend to, in the kernels' format.
#[derive(Default)]
struct Masks {
    /// (batch, keys) of u32, 0 where a key is hidden.
    keys: Option<Tensor>,
    /// The term added to the scores.
    bias: Option<Tensor>,
}

impl Masks {
    /// Brings `mask` to `device`, in the form that the kernels read.
    fn of(mask: &AttentionMask, device: &Device, dtype: DType) -> Result<Self> {
        match mask {
            AttentionMask::None => Ok(Self::default()),
            AttentionMask::Keys(keys) => {
                let keys = Some(of_zeros_and_others(keys, device)?);
                Ok(Self { keys, bias: None })
            }
            AttentionMask::Additive(bias) => {
                let finite = finite(&bias.detach(), dtype)?;
                let bias = Some(finite.to_dtype(dtype)?.contiguous()?);
                Ok(Self { keys: None, bias })
            }
            AttentionMask::Packed(_) => Err(crate::ops::attention::masks::not_packed()),
        }
    }

    /// Returns how far apart the bias's elements lie, 0 where it is broadcast.
    fn strides(&self, sizes: &Sizes) -> Result<[u64; 4]> {
        let mut strides = [0; 4];
        if let Some(bias) = &self.bias {
            let full = bias.broadcast_as((sizes.batch, sizes.heads, sizes.queries, sizes.keys))?;
            for (stride, &of) in strides.iter_mut().zip(full.stride()) {
                *stride = of as u64;
            }
        }
        Ok(strides)
    }
}

struct Attention {
    gpu: Gpu,
    sizes: Sizes,
    dtype: DType,
    scale: f32,
    dropout: Dropout,
}

impl Attention {
    /// Returns the heads of a (batch, seq, heads · width) tensor.
    fn heads(&self, ptr: u64, seq: usize, width: usize) -> Heads {
        let row = self.sizes.heads * width;
        Heads {
            matrix: Matrix::new(ptr, self.dtype, row),
            per_sequence: seq * row,
            per_head: width,
        }
    }

    /// Returns the heads of (batch, heads, queries, keys) scores.
    fn scores(&self, ptr: u64) -> Heads {
        let s = self.sizes;
        Heads {
            matrix: Matrix::new(ptr, self.dtype, s.keys),
            per_sequence: s.heads * s.queries * s.keys,
            per_head: s.queries * s.keys,
        }
    }

    fn forward(&self, [q, k, v]: [&Tensor; 3], masks: &Masks) -> Result<(Fresh, Fresh)> {
        let s = self.sizes;
        let gpu = &self.gpu;
        let count = (s.batch, s.heads);
        let shape = (s.batch, s.heads, s.queries, s.keys);
        let probs = gpu.for_overwrite(shape, self.dtype)?;
        let (of_q, of_k, of_v) = (
            self.heads(pointer(q)?, s.queries, s.key),
            self.heads(pointer(k)?, s.keys, s.key),
            self.heads(pointer(v)?, s.keys, s.value),
        );
        let scores = self.scores(probs.ptr());
        // SAFETY: the tensors have the sizes that say so, and `probs` room for all scores.
        unsafe {
            gemm_heads(
                gpu,
                count,
                (s.queries, s.key, s.keys),
                (1.0, 0.0),
                scores,
                of_q,
                of_k.t(),
            )?;
        }
        let dropped = self.dropped()?;
        let [b, h, query, key] = masks.strides(&s)?;
        let arguments = args![
            probs.ptr(),
            dropped.as_ref().map_or(0, Fresh::ptr),
            probs.ptr(),
            pointer_or_null(masks.keys.as_ref())?,
            pointer_or_null(masks.bias.as_ref())?,
            size(s.batch)?,
            size(s.heads)?,
            size(s.queries)?,
            size(s.keys)?,
            b,
            h,
            query,
            key,
            self.scale,
            self.dropout.p,
            self.dropout.key,
        ];
        let kernel = format!("softmax_forward_{}", suffix(self.dtype));
        let rows = size(s.batch * s.heads * s.queries)?;
        let grid = Grid::rows(rows, size(s.keys)?, 8, 4);
        // SAFETY: scores, probabilities and dropped ones are all of that shape; the mask is (batch, keys), and the bias's
        // strides are those with which it broadcasts to that shape.
        unsafe { gpu.launch("softmax", &kernel, grid, arguments)? };
        let out = gpu.for_overwrite((s.batch, s.queries, s.heads * s.value), self.dtype)?;
        let target = self.heads(out.ptr(), s.queries, s.value);
        let used = self.scores(dropped.as_ref().unwrap_or(&probs).ptr());
        // SAFETY: as above.
        unsafe {
            gemm_heads(
                gpu,
                count,
                (s.queries, s.keys, s.value),
                (1.0, 0.0),
                target,
                used,
                of_v,
            )?
        };
        Ok((out, probs))
    }

    /// Room for the probabilities after dropout, where there is dropout.
    fn dropped(&self) -> Result<Option<Fresh>> {
        let s = self.sizes;
        let shape = (s.batch, s.heads, s.queries, s.keys);
        match self.dropout.is_active() {
            true => Ok(Some(self.gpu.for_overwrite(shape, self.dtype)?)),
            false => Ok(None),
        }
    }

    /// Returns the gradients of q, k and v, and that of the scores after scaling.
    fn backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        probs: &Fresh,
        dy: &Tensor,
    ) -> Result<([Fresh; 3], Fresh)> {
        let s = self.sizes;
        let gpu = &self.gpu;
        let count = (s.batch, s.heads);
        let shape = (s.batch, s.heads, s.queries, s.keys);
        let grads = gpu.for_overwrite(shape, self.dtype)?;
        let (of_q, of_k, of_v) = (
            self.heads(pointer(q)?, s.queries, s.key),
            self.heads(pointer(k)?, s.keys, s.key),
            self.heads(pointer(v)?, s.keys, s.value),
        );
        let of_dy = self.heads(pointer(dy)?, s.queries, s.value);
        let of_scores = self.scores(grads.ptr());
        // SAFETY: the tensors have the sizes that say so, and `grads` room for all scores.
        unsafe {
            gemm_heads(
                gpu,
                count,
                (s.queries, s.value, s.keys),
                (1.0, 0.0),
                of_scores,
                of_dy,
                of_v.t(),
            )?;
        }
        let dropped = self.dropped()?;
        let arguments = args![
            grads.ptr(),
            dropped.as_ref().map_or(0, Fresh::ptr),
            grads.ptr(),
            probs.ptr(),
            (s.batch * s.heads * s.queries) as u64,
            size(s.keys)?,
            self.dropout.p,
            self.dropout.key,
        ];
        let kernel = format!("softmax_backward_{}", suffix(self.dtype));
        let rows = size(s.batch * s.heads * s.queries)?;
        let grid = Grid::rows(rows, size(s.keys)?, 4, 8);
        // SAFETY: all of them are (batch, heads, queries, keys) of that dtype.
        unsafe { gpu.launch("softmax", &kernel, grid, arguments)? };

        let dq = gpu.for_overwrite(q.shape(), self.dtype)?;
        let dk = gpu.for_overwrite(k.shape(), self.dtype)?;
        let dv = gpu.for_overwrite(v.shape(), self.dtype)?;
        let to_q = self.heads(dq.ptr(), s.queries, s.key);
        let to_k = self.heads(dk.ptr(), s.keys, s.key);
        let to_v = self.heads(dv.ptr(), s.keys, s.value);
        let used = self.scores(dropped.as_ref().unwrap_or(probs).ptr());
        let scaled = (self.scale, 0.0);
        // SAFETY: as above; each gradient has the size of what it is of.
        unsafe {
            gemm_heads(
                gpu,
                count,
                (s.queries, s.keys, s.key),
                scaled,
                to_q,
                of_scores,
                of_k,
            )?;
            gemm_heads(
                gpu,
                count,
                (s.keys, s.queries, s.key),
                scaled,
                to_k,
                of_scores.t(),
                of_q,
            )?;
            gemm_heads(
                gpu,
                count,
                (s.keys, s.queries, s.value),
                (1.0, 0.0),
                to_v,
                used.t(),
                of_dy,
            )?;
        }
        Ok(([dq, dk, dv], grads))
    }
}
