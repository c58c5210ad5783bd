//! Convolutions whose kernels are computed from the text.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::for_overwrite;
use crate::ops::simd::{self, simd_fn};
use crate::{Error, Result};

/// Mixes the neighbours of each position by the position's own kernels: of `v` (b, n, heads · d) and `kernels` (b, n, heads,
/// k), `y[i] = Σ_j kernels[i, head, j] · v[i + j - (k - 1) / 2]`, with zeros beyond the ends (ConvBERT's span-based dynamic
/// convolution).
pub fn dynamic_conv(v: &Tensor, kernels: &Tensor) -> Result<Tensor> {
    let (batch, len, width) = v.dims3()?;
    let (b, n, heads, kernel) = kernels.dims4()?;
    if (b, n) != (batch, len) || heads == 0 || kernel == 0 || width % heads != 0 {
        return Err(Error::argument(
            "kernels",
            format!(
                "shape {:?} does not fit v of shape {:?}",
                kernels.dims(),
                v.dims()
            ),
        ));
    }
    if v.elem_count() == 0 {
        return storage::empty(v, v.shape());
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(v, []) && crate::ops::cuda::takes(kernels, []) {
        return super::cuda::dynamic_conv(v, kernels);
    }
    if !storage::is_cpu_f32(v) || !storage::is_cpu_f32(kernels) {
        return naive::dynamic_conv(v, kernels);
    }
    let sizes = Sizes {
        len,
        width,
        heads,
        kernel,
        pad: (kernel - 1) / 2,
    };
    let (v, kernels) = (v.contiguous()?, kernels.contiguous()?);
    let y = storage::with2(&v, &kernels, |v, kernels| sizes.forward(v, kernels))?;
    let args = [&v, &kernels];
    tape::record("dynamic_conv", &args, y, v.shape(), move |args, _, dy| {
        let (v, kernels) = (args[0], args[1]);
        let dv = match v.track_op() {
            true => Some(storage::with2(kernels, dy, |kernels, dy| {
                sizes.value_gradient(kernels, dy)
            })?),
            false => None,
        };
        let dk = match kernels.track_op() {
            true => Some(storage::with2(v, dy, |v, dy| sizes.kernel_gradient(v, dy))?),
            false => None,
        };
        Ok(vec![
            dv.map(|dv| storage::tensor(dv, v.shape())).transpose()?,
            dk.map(|dk| storage::tensor(dk, kernels.shape()))
                .transpose()?,
        ])
    })
}

#[derive(Clone, Copy)]
struct Sizes {
    len: usize,
    width: usize,
    heads: usize,
    kernel: usize,
    pad: usize,
}

impl Sizes {
    /// For position `i`: the places of its kernel within the sequence.
    fn places(self, i: usize) -> std::ops::Range<usize> {
        self.pad.saturating_sub(i)..self.kernel.min((self.len + self.pad).saturating_sub(i))
    }

    fn forward(self, v: &[f32], kernels: &[f32]) -> Vec<f32> {
        let (width, d) = (self.width, self.width / self.heads);
        let mut y = for_overwrite(v.len());
        y.par_chunks_mut(width)
            .zip(kernels.par_chunks(self.heads * self.kernel))
            .enumerate()
            .for_each(|(row, (y, kernels))| {
                let (begin, i) = (row / self.len * self.len, row % self.len);
                y.fill(0.0);
                for j in self.places(i) {
                    let v = &v[(begin + i + j - self.pad) * width..][..width];
                    let heads = y.chunks_mut(d).zip(v.chunks(d));
                    for ((y, v), kernel) in heads.zip(kernels.chunks(self.kernel)) {
                        add_multiple(y, v, kernel[j]);
                    }
                }
            });
        y
    }

    fn value_gradient(self, kernels: &[f32], dy: &[f32]) -> Vec<f32> {
        let (width, d) = (self.width, self.width / self.heads);
        let mut dv = for_overwrite(dy.len());
        dv.par_chunks_mut(width).enumerate().for_each(|(row, dv)| {
            let (begin, s) = (row / self.len * self.len, row % self.len);
            dv.fill(0.0);
            // v[s] stands at place j of the kernel of position i = s + pad - j.
            let last = (s + self.pad).min(self.kernel - 1);
            for j in (s + self.pad + 1).saturating_sub(self.len)..=last {
                let i = begin + s + self.pad - j;
                let dy = &dy[i * width..][..width];
                let kernels = &kernels[i * self.heads * self.kernel..];
                let heads = dv.chunks_mut(d).zip(dy.chunks(d));
                for ((dv, dy), kernel) in heads.zip(kernels.chunks(self.kernel)) {
                    add_multiple(dv, dy, kernel[j]);
                }
            }
        });
        dv
    }

    fn kernel_gradient(self, v: &[f32], dy: &[f32]) -> Vec<f32> {
        let (width, d) = (self.width, self.width / self.heads);
        let mut dk = vec![0f32; dy.len() / width * self.heads * self.kernel];
        dk.par_chunks_mut(self.heads * self.kernel)
            .zip(dy.par_chunks(width))
            .enumerate()
            .for_each(|(row, (dk, dy))| {
                let (begin, i) = (row / self.len * self.len, row % self.len);
                for j in self.places(i) {
                    let v = &v[(begin + i + j - self.pad) * width..][..width];
                    let heads = dk.chunks_mut(self.kernel).zip(dy.chunks(d));
                    for ((dk, dy), v) in heads.zip(v.chunks(d)) {
                        dk[j] = dot(dy, v);
                    }
                }
            });
        dk
    }
}

simd_fn! {
    fn add_multiple(sum: &mut [f32], x: &[f32], factor: f32) {
        for (sum, x) in sum.iter_mut().zip(x) {
            *sum = x.mul_add(factor, *sum);
        }
    }
}

simd_fn! {
    fn dot(a: &[f32], b: &[f32]) -> f32 {
        simd::dot(a, b)
    }
}
