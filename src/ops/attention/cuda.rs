//! Attention: one fused kernel that keeps neither scores nor probabilities, where it takes the heads; elsewhere products by
//! cuBLAS around a softmax.

use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::{DType, Device, Tensor};

use crate::Result;
use crate::ops::attention::{AttentionKernel, Sizes, reduce_to};
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, compute_dtype, pointer, pointer_or_null, prepared, size, suffix,
};
use crate::ops::gemm::cublas::{Heads, Matrix, gemm_heads};
use crate::ops::graph::tape;
use crate::ops::naive::lowest;
use crate::ops::{AttentionMask, Dropout};

/// 0 is "not asked yet"; the others are [`AttentionKernel`]s.
static KERNEL: AtomicU8 = AtomicU8::new(0);

/// Like [`crate::ops::set_attention_kernel`].
pub(in crate::ops) fn set_kernel(kernel: AttentionKernel) {
    let code = match kernel {
        AttentionKernel::Auto => 1,
        AttentionKernel::Fused => 2,
        AttentionKernel::Products => 3,
    };
    KERNEL.store(code, Ordering::Relaxed);
}

fn kernel() -> AttentionKernel {
    match KERNEL.load(Ordering::Relaxed) {
        0 => {
            let asked = std::env::var("CLOZE_CUDA_ATTENTION").unwrap_or_default();
            set_kernel(match asked.as_str() {
                "fused" => AttentionKernel::Fused,
                "products" => AttentionKernel::Products,
                _ => AttentionKernel::Auto,
            });
            kernel()
        }
        2 => AttentionKernel::Fused,
        3 => AttentionKernel::Products,
        _ => AttentionKernel::Auto,
    }
}

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
    if attention.is_fused(&masks) {
        let ends = match &masks.keys {
            Some(keys) => Some(attention.ends(keys)?),
            None => None,
        };
        let masks = Masks { ends, ..masks };
        let (out, log_sums) = attention.fused_forward([&q, &k, &v], &masks)?;
        return tape::record(
            "attention",
            &[&q, &k, &v],
            out.storage,
            shape,
            move |args, out, dy| {
                let grads = attention.fused_backward(
                    [args[0], args[1], args[2]],
                    &masks,
                    out,
                    &log_sums,
                    dy,
                )?;
                // Each is formed along the way to the others: those that nobody asked for are dropped.
                let [dq, dk, dv] = grads.map(Fresh::into_tensor);
                let wanted = |i: usize, grad: Tensor| args[i].track_op().then_some(grad);
                Ok(vec![wanted(0, dq), wanted(1, dk), wanted(2, dv)])
            },
        );
    }
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

/// Returns a bias that stays finite in that dtype: masks close with the lowest number of a wider one.
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
    /// (batch): one past the last key that is not hidden.
    ends: Option<Fresh>,
    /// The term added to the scores.
    bias: Option<Tensor>,
}

impl Masks {
    /// Brings `mask` to `device`, in the form that the kernels read.
    fn of(mask: &AttentionMask, device: &Device, dtype: DType) -> Result<Self> {
        match mask {
            AttentionMask::None => Ok(Self::default()),
            AttentionMask::Keys(keys) => {
                let keys = match keys.dtype() {
                    DType::U32 => keys.clone(),
                    _ => keys.ne(0.0)?.to_dtype(DType::U32)?,
                };
                Ok(Self {
                    keys: Some(keys.to_device(device)?.contiguous()?),
                    ..Self::default()
                })
            }
            AttentionMask::Additive(bias) => {
                let finite = finite(&bias.detach(), dtype)?;
                Ok(Self {
                    bias: Some(finite.to_dtype(dtype)?.contiguous()?),
                    ..Self::default()
                })
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
    fn is_fused(&self, masks: &Masks) -> bool {
        let fits = self.dtype != DType::F32
            && self.sizes.key == self.sizes.value
            && [32, 64, 96, 128].contains(&self.sizes.key)
            && masks.bias.is_none()
            // The kernel counts a head's pairs with 32 bits.
            && u32::try_from(self.sizes.queries * self.sizes.keys).is_ok();
        fits && kernel() != AttentionKernel::Products
    }

    fn fused_name(&self, kernel: &str) -> String {
        format!(
            "attention_{kernel}_{}_d{}",
            suffix(self.dtype),
            self.sizes.key
        )
    }

    /// Returns one past the last key that counts, for each sequence.
    fn ends(&self, mask: &Tensor) -> Result<Fresh> {
        let ends = self.gpu.for_overwrite(self.sizes.batch, DType::U32)?;
        let (batch, keys) = (size(self.sizes.batch)?, size(self.sizes.keys)?);
        let grid = Grid::new((batch, 1, 1), (128, 1, 1));
        let arguments = args![ends.ptr(), pointer(mask)?, batch, keys];
        // SAFETY: the mask is (batch, keys) of u32, and there is an end per sequence.
        unsafe {
            self.gpu
                .launch("attention", "attention_key_ends", grid, arguments)?
        };
        Ok(ends)
    }

    /// Returns a block for every 64 of `rows`, for each head of each sequence.
    fn tiles(&self, rows: usize, shared: usize) -> Result<Grid> {
        let blocks = (
            size(rows.div_ceil(64))?,
            size(self.sizes.heads)?,
            size(self.sizes.batch)?,
        );
        Ok(Grid::new(blocks, (128, 1, 1)).shared(size(shared)?))
    }

    /// Returns the result, and for each query the logarithm of its scores' sum of exponentials.
    fn fused_forward(&self, [q, k, v]: [&Tensor; 3], masks: &Masks) -> Result<(Fresh, Fresh)> {
        let s = self.sizes;
        let out = self
            .gpu
            .for_overwrite((s.batch, s.queries, s.heads * s.value), self.dtype)?;
        let log_sums = self
            .gpu
            .for_overwrite((s.batch, s.heads, s.queries), DType::F32)?;
        let stride = size(s.heads * s.key)?;
        let arguments = args![
            out.ptr(),
            log_sums.ptr(),
            pointer(q)?,
            pointer(k)?,
            pointer(v)?,
            pointer_or_null(masks.keys.as_ref())?,
            masks.ends.as_ref().map_or(0, Fresh::ptr),
            size(s.batch)?,
            size(s.heads)?,
            size(s.queries)?,
            size(s.keys)?,
            stride,
            stride,
            stride,
            self.scale,
            self.dropout.p,
            self.dropout.key,
        ];
        let grid = self.tiles(s.queries, (64 + 4 * 64) * (s.key + 8) * 2)?;
        // SAFETY: q and out are (batch, queries, heads · d), k and v (batch, keys, heads · d), all of that dtype; the mask is
        // (batch, keys), ends (batch), the log sums (batch, heads, queries).
        unsafe {
            self.gpu
                .launch("attention", &self.fused_name("forward"), grid, arguments)?
        };
        Ok((out, log_sums))
    }

    fn fused_backward(
        &self,
        [q, k, v]: [&Tensor; 3],
        masks: &Masks,
        out: &Tensor,
        log_sums: &Fresh,
        dy: &Tensor,
    ) -> Result<[Fresh; 3]> {
        let s = self.sizes;
        let (batch, heads) = (size(s.batch)?, size(s.heads)?);
        let (queries, keys) = (size(s.queries)?, size(s.keys)?);
        let gpu = &self.gpu;
        let delta = gpu.for_overwrite((s.batch, s.heads, s.queries), DType::F32)?;
        let rows = size(s.batch * s.heads * s.queries)?;
        let arguments = args![
            delta.ptr(),
            pointer(dy)?,
            pointer(out)?,
            batch,
            heads,
            queries
        ];
        let grid = Grid::new((rows.div_ceil(4), 1, 1), (128, 1, 1));
        // SAFETY: both tensors are (batch, queries, heads · d) of that dtype, delta (batch, heads, queries).
        unsafe { gpu.launch("attention", &self.fused_name("delta"), grid, arguments)? };

        let dq = gpu.for_overwrite(q.shape(), self.dtype)?;
        let dk = gpu.for_overwrite(k.shape(), self.dtype)?;
        let dv = gpu.for_overwrite(v.shape(), self.dtype)?;
        let stride = size(s.heads * s.key)?;
        let shared_by_both: [crate::ops::cuda::Arg; 14] = *args![
            pointer(dy)?,
            pointer(q)?,
            pointer(k)?,
            pointer(v)?,
            log_sums.ptr(),
            delta.ptr(),
            pointer_or_null(masks.keys.as_ref())?,
            masks.ends.as_ref().map_or(0, Fresh::ptr),
            batch,
            heads,
            queries,
            keys,
            stride,
            stride,
        ];
        let rest: &[crate::ops::cuda::Arg] = args![self.scale, self.dropout.p, self.dropout.key];
        let kv = [
            args![dk.ptr(), dv.ptr()],
            &shared_by_both[..],
            args![stride, stride, stride],
            rest,
        ]
        .concat();
        let grid = self.tiles(s.keys, backward_shared(s.key))?;
        // SAFETY: as forward; each gradient has the size of what it is of.
        unsafe { gpu.launch("attention", &self.fused_name("backward_kv"), grid, &kv)? };
        let of_q = [
            args![dq.ptr()],
            &shared_by_both[..],
            args![stride, stride],
            rest,
        ]
        .concat();
        let grid = self.tiles(s.queries, backward_shared(s.key))?;
        // SAFETY: as above.
        unsafe { gpu.launch("attention", &self.fused_name("backward_q"), grid, &of_q)? };
        Ok([dq, dk, dv])
    }

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

/// Bytes of shared memory that the kernels for the gradients use: two tiles that stay, and two of halves that come and go.
fn backward_shared(d: usize) -> usize {
    (2 * 64 + 4 * 32) * (d + 8) * 2
}
