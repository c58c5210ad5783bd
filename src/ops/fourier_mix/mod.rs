//! Mixing by Fourier transforms in place of attention.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::collections::HashMap;
use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::for_overwrite;
use crate::Result;
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::matmul;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns the real part of the discrete Fourier transform of `x` (b, n, h) over the features and the positions of each
/// sequence (FNet): `Re(F_n x F_h)`.
///
/// Its own gradient, since the transforms are symmetric: nothing is kept. Computed as products with the transforms' matrices,
/// which at the sizes of language models cost a fifth of a feed-forward layer.
pub fn fourier_mix(x: &Tensor) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    if x.elem_count() == 0 {
        return storage::empty(x, x.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::cuda::in_f32(x, cuda::fourier_mix);
    }
    if !storage::is_cpu_f32(x) {
        return naive::fourier_mix(x);
    }
    let x = x.contiguous()?;
    let (positions, features) = (waves(len), waves(width));
    let y = storage::with(&x, |x| mix(x, &positions, &features))?;
    tape::record("fourier_mix", &[&x], y, x.shape(), move |_, _, grad| {
        let dx = storage::with(grad, |grad| mix(grad, &positions, &features))?;
        Ok(vec![Some(storage::tensor(dx, grad.shape())?)])
    })
}

/// The matrices of the transform of one length.
struct Waves {
    len: usize,
    /// (len, len): cos(2π i j / len).
    cos: Vec<f32>,
    /// (len, len): sin(2π i j / len).
    sin: Vec<f32>,
}

/// Returns the cosine (`turn` 0) or sine (`turn` 3/4) of 2π i j / `len` for all i < `len` and j < `columns`.
pub(super) fn wave(len: usize, columns: usize, turn: f64) -> Vec<f32> {
    // Whole turns are left out before the sine sees them.
    let round: Vec<f32> = (0..len)
        .map(|i| ((i as f64 / len as f64 + turn) * TAU).cos() as f32)
        .collect();
    (0..len * columns)
        .map(|at| round[(at / columns) * (at % columns) % len])
        .collect()
}

/// Returns the matrices for that length, made once.
fn waves(len: usize) -> Arc<Waves> {
    static KNOWN: OnceLock<Mutex<HashMap<usize, Arc<Waves>>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    // A batch has one length, a model one width: few are in use at a time.
    if known.len() >= 8 && !known.contains_key(&len) {
        known.clear();
    }
    let made = known.entry(len).or_insert_with(|| {
        Arc::new(Waves {
            len,
            cos: wave(len, len, 0.0),
            sin: wave(len, len, 0.75),
        })
    });
    Arc::clone(made)
}

fn mix(x: &[f32], positions: &Waves, features: &Waves) -> Vec<f32> {
    let (n, h) = (positions.len, features.len);
    let mut y = for_overwrite(x.len());
    let mut cosines = for_overwrite(n * h);
    let mut sines = for_overwrite(n * h);
    // Re (C_n - i S_n) x (C_h - i S_h) = C_n x C_h - S_n x S_h.
    for (y, x) in y.chunks_mut(n * h).zip(x.chunks(n * h)) {
        let over = Accumulate::Overwrite;
        matmul(
            (n, h, h),
            over,
            &mut cosines,
            (x, false),
            (&features.cos, false),
        );
        matmul(
            (n, h, h),
            over,
            &mut sines,
            (x, false),
            (&features.sin, false),
        );
        sines
            .par_iter_mut()
            .with_min_len(1 << 14)
            .for_each(|s| *s = -*s);
        matmul(
            (n, n, h),
            over,
            y,
            (&positions.cos, false),
            (&cosines, false),
        );
        matmul(
            (n, n, h),
            Accumulate::Add,
            y,
            (&positions.sin, false),
            (&sines, false),
        );
    }
    y
}
