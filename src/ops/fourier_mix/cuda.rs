//! Fourier transforms as products with their matrices.

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::{Mutex, OnceLock};

use candle_core::cuda_backend::DeviceId;
use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cuda::{Fresh, Gpu, lock, pointer};
use crate::ops::gemm::cublas::{Heads, Matrix, gemm, gemm_heads};
use crate::ops::graph::tape;

/// Like [`crate::ops::fourier_mix()`], of an `x` in f32.
pub(in crate::ops) fn fourier_mix(x: &Tensor) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    let gpu = Gpu::of(x.device())?;
    let positions = waves(&gpu, len, x)?;
    let features = waves(&gpu, width, x)?;
    let mix = move |x: &Tensor| -> Result<Fresh> { mix(&gpu, x, &positions, &features) };
    let x = x.contiguous()?;
    let y = mix(&x)?;
    tape::record(
        "fourier_mix",
        &[&x],
        y.storage,
        x.shape(),
        move |_, _, grad| Ok(vec![Some(mix(grad)?.into_tensor())]),
    )
}

/// Returns the cosines and sines for that length on the device of `x`, made once.
fn waves(gpu: &Gpu, len: usize, x: &Tensor) -> Result<[Tensor; 2]> {
    static KNOWN: OnceLock<Mutex<HashMap<(DeviceId, usize), [Tensor; 2]>>> = OnceLock::new();
    let mut known = lock(KNOWN.get_or_init(Mutex::default));
    let place = (gpu.device.id(), len);
    if let Some(waves) = known.get(&place) {
        return Ok(waves.clone());
    }
    // A batch has one length, a model one width: few are in use at a time.
    if known.len() >= 8 {
        known.clear();
    }
    let matrix = |turn: f64| Tensor::from_vec(wave(len, turn), (len, len), x.device());
    let waves = [matrix(0.0)?, matrix(0.75)?];
    known.insert(place, waves.clone());
    Ok(waves)
}

/// Returns the cosine (`turn` 0) or sine (`turn` 3/4) of 2π i j / `len` for all i and j below `len`.
fn wave(len: usize, turn: f64) -> Vec<f32> {
    // Whole turns are left out before the sine sees them.
    let round: Vec<f32> = (0..len)
        .map(|i| ((i as f64 / len as f64 + turn) * TAU).cos() as f32)
        .collect();
    (0..len * len)
        .map(|at| round[(at / len) * (at % len) % len])
        .collect()
}

/// Returns `C_n x C_h - S_n x S_h`.
fn mix(gpu: &Gpu, x: &Tensor, positions: &[Tensor; 2], features: &[Tensor; 2]) -> Result<Fresh> {
    let (batch, n, h) = x.dims3()?;
    let y = gpu.for_overwrite(x.shape(), DType::F32)?;
    let f32s = |ptr: u64, stride: usize| Matrix::new(ptr, DType::F32, stride);
    let each = |ptr: u64| Heads {
        matrix: f32s(ptr, h),
        per_sequence: n * h,
        per_head: n * h,
    };
    let terms = positions
        .iter()
        .zip(features)
        .zip([(1.0, 0.0), (-1.0, 1.0)]);
    for ((position, feature), factors) in terms {
        let over_features = gpu.for_overwrite(x.shape(), DType::F32)?;
        let same = Heads {
            matrix: f32s(pointer(position)?, n),
            per_sequence: 0,
            per_head: 0,
        };
        let (to, from, by) = (
            f32s(over_features.ptr(), h),
            f32s(pointer(x)?, h),
            f32s(pointer(feature)?, h),
        );
        // SAFETY: x, y and what lies between are (batch, n, h) floats, the transforms' matrices (n, n) and (h, h).
        unsafe {
            gemm(gpu, (batch * n, h, h), (1.0, 0.0), to, from, by)?;
            let (target, source) = (each(y.ptr()), each(over_features.ptr()));
            gemm_heads(gpu, (batch, 1), (n, n, h), factors, target, same, source)?;
        }
    }
    Ok(y)
}
