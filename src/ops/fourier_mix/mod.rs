//! Mixing by Fourier transforms in place of attention.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::Tensor;
use rayon::prelude::*;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

use super::naive;
use super::parallel::for_overwrite;
use crate::Result;
use crate::ops::graph::storage;
use crate::ops::graph::tape;

/// Returns the real part of the discrete Fourier transform of `x` (b, n, h) over the features and the positions of each
/// sequence (FNet): `Re(F_n x F_h)`.
///
/// Its own gradient, since the transforms are symmetric: nothing is kept. Computed by fast transforms, which take an eighth of
/// the time of products with the transforms' matrices at the sizes of language models; on a GPU by those products.
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
    let (positions, features) = (plan(len), plan(width));
    let y = storage::with(&x, |x| mix(x, &*positions, &*features))?;
    tape::record("fourier_mix", &[&x], y, x.shape(), move |_, _, grad| {
        let dx = storage::with(grad, |grad| mix(grad, &*positions, &*features))?;
        Ok(vec![Some(storage::tensor(dx, grad.shape())?)])
    })
}

type Plan = dyn Fft<f32>;

/// Returns the plan of transforms of that length, made once.
fn plan(len: usize) -> Arc<Plan> {
    static KNOWN: OnceLock<Mutex<HashMap<usize, Arc<Plan>>>> = OnceLock::new();
    let known = KNOWN.get_or_init(Mutex::default);
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    // A batch has one length, a model one width: few are in use at a time.
    if known.len() >= 8 && !known.contains_key(&len) {
        known.clear();
    }
    let made = known
        .entry(len)
        .or_insert_with(|| FftPlanner::new().plan_fft_forward(len));
    Arc::clone(made)
}

/// How many columns or rows a thread takes at once.
const BLOCK: usize = 8;

fn mix(x: &[f32], positions: &Plan, features: &Plan) -> Vec<f32> {
    let size = positions.len() * features.len();
    let mut y = for_overwrite(x.len());
    let texts = y.par_chunks_mut(size).zip(x.par_chunks(size));
    texts.for_each(|(y, x)| {
        let rows = over_features(x, positions.len(), features);
        let columns = over_positions(&rows, positions);
        write_real(y, &columns, positions.len(), features.len());
    });
    y
}

/// Returns room for a transform to work in.
fn scratch(plan: &Plan) -> Vec<Complex<f32>> {
    vec![Complex::default(); plan.get_inplace_scratch_len()]
}

/// Returns the first half of each row's transform, (n, h / 2 + 1): as the rows are real, the rest is its mirror image.
fn over_features(x: &[f32], n: usize, plan: &Plan) -> Vec<Complex<f32>> {
    let h = plan.len();
    let half = h / 2 + 1;
    let mut out = vec![Complex::default(); n * half];
    // Two real rows are transformed as one complex row.
    let pairs = out.par_chunks_mut(2 * half).zip(x.par_chunks(2 * h));
    pairs.for_each_init(
        || (vec![Complex::default(); h], scratch(plan)),
        |(both, scratch), (out, x)| {
            let (first, second) = x.split_at(h);
            for (i, both) in both.iter_mut().enumerate() {
                *both = Complex::new(first[i], second.get(i).copied().unwrap_or(0.0));
            }
            plan.process_with_scratch(both, scratch);
            let (first, second) = out.split_at_mut(half);
            for (j, first) in first.iter_mut().enumerate() {
                let (z, mirrored) = (both[j], both[(h - j) % h].conj());
                *first = (z + mirrored) * 0.5;
                if let Some(second) = second.get_mut(j) {
                    *second = (z - mirrored) * Complex::new(0.0, -0.5);
                }
            }
        },
    );
    out
}

/// Returns the transforms of the columns of `rows` (n, half), laid out as (half, n).
fn over_positions(rows: &[Complex<f32>], plan: &Plan) -> Vec<Complex<f32>> {
    let n = plan.len();
    let half = rows.len() / n;
    let mut out = vec![Complex::default(); rows.len()];
    let blocks = out.par_chunks_mut(BLOCK * n).enumerate();
    blocks.for_each_init(
        || scratch(plan),
        |scratch, (block, out)| {
            for (i, row) in rows.chunks(half).enumerate() {
                let row = &row[block * BLOCK..];
                for (column, &x) in out.chunks_mut(n).zip(row) {
                    column[i] = x;
                }
            }
            plan.process_with_scratch(out, scratch);
        },
    );
    out
}

/// Writes the real parts of a text's transform into `y` (n, h), given the first half of its columns.
fn write_real(y: &mut [f32], columns: &[Complex<f32>], n: usize, h: usize) {
    let blocks = y.par_chunks_mut(BLOCK * h).enumerate();
    blocks.for_each(|(block, y)| {
        for (j, column) in columns.chunks(n).enumerate() {
            for (row, y) in y.chunks_mut(h).enumerate() {
                let i = block * BLOCK + row;
                y[j] = column[i].re;
                if j > 0 {
                    y[h - j] = column[(n - i) % n].re;
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use std::f64::consts::TAU;

    use candle_core::Device;

    use super::*;

    #[test]
    fn every_length_gives_the_sums_of_the_definition() {
        for (n, h) in [
            (1, 1),
            (1, 8),
            (2, 3),
            (13, 7),
            (127, 10),
            (512, 6),
            (4096, 5),
        ] {
            let value = |i: usize| ((i * 37 + 11) % 101) as f32 / 50.0 - 1.0;
            let x: Vec<f32> = (0..2 * n * h).map(value).collect();
            let given = Tensor::from_vec(x.clone(), (2, n, h), &Device::Cpu).unwrap();
            let y = fourier_mix(&given).unwrap().to_vec3::<f32>().unwrap();
            let size = ((n * h) as f64).sqrt();
            for (text, x) in x.chunks(n * h).enumerate() {
                for (k, m) in [
                    (0, 0),
                    (0, h - 1),
                    (n / 2, h / 2),
                    (n - 1, 0),
                    (n / 3, h - 1),
                ] {
                    let terms = x.iter().enumerate().map(|(at, &x)| {
                        let (i, j) = (at / h, at % h);
                        let turns = (i * k % n) as f64 / n as f64 + (j * m % h) as f64 / h as f64;
                        f64::from(x) * (turns * TAU).cos()
                    });
                    let expected: f64 = terms.sum();
                    let off = (f64::from(y[text][k][m]) - expected).abs();
                    assert!(off <= 4e-6 * size, "{n} x {h}, {k} {m}: {off}");
                }
            }
        }
    }
}
