//! Attention on a GPU: by kernels that keep neither scores nor probabilities where they take it, elsewhere by products of all
//! queries with all keys around a softmax.

mod call;
mod fused;
mod products;
mod visits;

use std::sync::atomic::{AtomicU8, Ordering};

use candle_core::{DType, Device, Tensor};

use super::AttentionKernel;
use crate::Result;

pub(super) use fused::{Request, attend};
pub(super) use products::attention;

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

/// Returns a (batch, n) mask as the kernels read it: u32, 0 where something is hidden.
fn of_zeros_and_others(mask: &Tensor, device: &Device) -> Result<Tensor> {
    let mask = match mask.dtype() {
        DType::U32 => mask.clone(),
        _ => mask.ne(0.0)?.to_dtype(DType::U32)?,
    };
    Ok(mask.to_device(device)?.contiguous()?)
}
