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
/// Its own gradient, since the transforms are symmetric: nothing is kept. Computed as products with the halves of the
/// transforms' matrices that the other halves mirror, which at the sizes of language models cost an eighth of a feed-forward
/// layer.
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

/// The matrices of the transform of one length: their first columns, of which the others are mirror images.
struct Waves {
    len: usize,
    /// How many columns there are.
    half: usize,
    /// (len, half): cos(2π i j / len).
    cos: Vec<f32>,
    /// (len, half): sin(2π i j / len).
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
        let half = len / 2 + 1;
        Arc::new(Waves {
            len,
            half,
            cos: wave(len, half, 0.0),
            sin: wave(len, half, 0.75),
        })
    });
    Arc::clone(made)
}

fn mix(x: &[f32], positions: &Waves, features: &Waves) -> Vec<f32> {
    let (n, h) = (positions.len, features.len);
    let (rows, columns) = (positions.half, features.half);
    let mut y = for_overwrite(x.len());
    let mut inner = for_overwrite(n * columns);
    let [mut even, mut odd] = [(); 2].map(|()| for_overwrite(rows * columns));
    // Re (C_n - i S_n) x (C_h - i S_h) = C_n x C_h - S_n x S_h, the first of which is even and the second odd in both places.
    for (y, x) in y.chunks_mut(n * h).zip(x.chunks(n * h)) {
        let parts = [
            (&mut even, &positions.cos, &features.cos),
            (&mut odd, &positions.sin, &features.sin),
        ];
        for (part, over_positions, over_features) in parts {
            let over = Accumulate::Overwrite;
            let size = (n, h, columns);
            matmul(size, over, &mut inner, (x, false), (over_features, false));
            let size = (rows, n, columns);
            matmul(size, over, part, (over_positions, true), (&inner, false));
        }
        y.par_chunks_mut(h).enumerate().for_each(|(i, y)| {
            let (row, mirrored) = if i < rows { (i, false) } else { (n - i, true) };
            let even = &even[row * columns..][..columns];
            let odd = &odd[row * columns..][..columns];
            for (j, (even, odd)) in even.iter().zip(odd).enumerate() {
                let odd = if mirrored { -odd } else { *odd };
                // The middle one is its own image, and odd there is 0.
                if j > 0 {
                    y[h - j] = even + odd;
                }
                y[j] = even - odd;
            }
        });
    }
    y
}
