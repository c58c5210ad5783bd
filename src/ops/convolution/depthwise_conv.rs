//! Convolutions over time, separate for each feature.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::for_overwrite;
use crate::ops::simd::simd_fn;
use crate::{Error, Result};

/// Slides kernels over the positions of `x` (b, n, h), with `pad` zeros at either end: `y[t] = Σ_j w[j] · x[t + j - pad]`
/// feature by feature, (b, n + 2 pad - k + 1, h).
///
/// `w` is (c, k), with 1s before and behind k where a checkpoint has them; kernel i serves the i-th stretch of h / c
/// features: all of a head, say. It is a tensor of the graph: give a parameter by [`param_rows`](crate::ops::param_rows).
pub fn depthwise_conv(x: &Tensor, w: &Tensor, pad: usize) -> Result<Tensor> {
    let sizes = Sizes::new(x, w, pad)?;
    if x.elem_count() == 0 {
        return storage::empty(x, (sizes.batch, sizes.out, sizes.width));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) && crate::ops::cuda::takes(w, []) {
        return super::cuda::depthwise_conv(x, w, sizes);
    }
    if !storage::is_cpu_f32(x) || !storage::is_cpu_f32(w) {
        return naive::depthwise_conv(x, w, pad);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let y = storage::with2(&x, &w, |x, w| sizes.forward(x, &sizes.spread(w)))?;
    let shape = (sizes.batch, sizes.out, sizes.width);
    tape::record("depthwise_conv", &[&x, &w], y, shape, move |args, _, dy| {
        let (x, w) = (args[0], args[1]);
        let dx = match x.track_op() {
            true => Some(storage::with2(w, dy, |w, dy| {
                sizes.input_gradient(&sizes.spread(w), dy)
            })?),
            false => None,
        };
        let dw = match w.track_op() {
            true => Some(storage::with2(x, dy, |x, dy| sizes.kernel_gradient(x, dy))?),
            false => None,
        };
        Ok(vec![
            dx.map(|dx| storage::tensor(dx, x.shape())).transpose()?,
            dw.map(|dw| storage::tensor(dw, w.shape())).transpose()?,
        ])
    })
}

#[derive(Clone, Copy)]
pub(in crate::ops) struct Sizes {
    pub batch: usize,
    /// Positions of x and of the result.
    pub len: usize,
    pub out: usize,
    pub width: usize,
    pub channels: usize,
    pub kernel: usize,
    pub pad: usize,
}

impl Sizes {
    pub(in crate::ops) fn new(x: &Tensor, w: &Tensor, pad: usize) -> Result<Self> {
        let (batch, len, width) = x.dims3()?;
        let channels = w.dims().first().copied().unwrap_or(0);
        let kernel = w.elem_count() / channels.max(1);
        let fits = w.dims().iter().skip(1).filter(|&&n| n != 1).count() <= 1
            && channels > 0
            && kernel > 0
            && width % channels == 0
            && len + 2 * pad >= kernel;
        if !fits {
            return Err(Error::argument(
                "w",
                format!(
                    "shape {:?} has no kernels for x of shape {:?} with {pad} zeros at either end",
                    w.dims(),
                    x.dims()
                ),
            ));
        }
        Ok(Self {
            batch,
            len,
            out: len + 2 * pad + 1 - kernel,
            width,
            channels,
            kernel,
            pad,
        })
    }

    /// Returns the kernels as (kernel, width): the factors of one distance are adjacent.
    fn spread(self, w: &[f32]) -> Vec<f32> {
        let each = self.width / self.channels;
        let mut spread = for_overwrite(self.kernel * self.width);
        for (j, row) in spread.chunks_mut(self.width).enumerate() {
            for (features, w) in row.chunks_mut(each).zip(w.chunks(self.kernel)) {
                features.fill(w[j]);
            }
        }
        spread
    }

    /// Returns the places j of the kernel that fall into x for position `t` of the result.
    fn places(self, t: usize) -> std::ops::Range<usize> {
        self.pad.saturating_sub(t)..self.kernel.min((self.len + self.pad).saturating_sub(t))
    }

    fn forward(self, x: &[f32], spread: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut y = for_overwrite(self.batch * self.out * width);
        y.par_chunks_mut(width).enumerate().for_each(|(row, y)| {
            let (sequence, t) = (row / self.out, row % self.out);
            let x = &x[sequence * self.len * width..][..self.len * width];
            y.fill(0.0);
            for j in self.places(t) {
                let from = (t + j - self.pad) * width;
                multiply_add(y, &spread[j * width..][..width], &x[from..][..width]);
            }
        });
        y
    }

    fn input_gradient(self, spread: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut dx = for_overwrite(self.batch * self.len * width);
        dx.par_chunks_mut(width).enumerate().for_each(|(row, dx)| {
            let (sequence, s) = (row / self.len, row % self.len);
            let dy = &dy[sequence * self.out * width..][..self.out * width];
            dx.fill(0.0);
            // x[s] stands at place j of the position t = s + pad - j.
            let last = (s + self.pad).min(self.kernel - 1);
            for j in (s + self.pad + 1).saturating_sub(self.out)..=last {
                let from = (s + self.pad - j) * width;
                multiply_add(dx, &spread[j * width..][..width], &dy[from..][..width]);
            }
        });
        dx
    }

    fn kernel_gradient(self, x: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = self.width;
        let each = width / self.channels;
        let mut places = for_overwrite(self.kernel * width);
        places
            .par_chunks_mut(width)
            .enumerate()
            .for_each(|(j, sums)| {
                sums.fill(0.0);
                let first = self.pad.saturating_sub(j);
                let end = self.out.min((self.len + self.pad).saturating_sub(j));
                for sequence in 0..self.batch {
                    for t in first..end {
                        let x = &x[(sequence * self.len + t + j - self.pad) * width..][..width];
                        let dy = &dy[(sequence * self.out + t) * width..][..width];
                        multiply_add(sums, x, dy);
                    }
                }
            });
        let mut dw = for_overwrite(self.channels * self.kernel);
        for (channel, dw) in dw.chunks_mut(self.kernel).enumerate() {
            for (dw, place) in dw.iter_mut().zip(places.chunks(width)) {
                *dw = place[channel * each..][..each].iter().sum();
            }
        }
        dw
    }
}

simd_fn! {
    pub(in crate::ops) fn multiply_add(sum: &mut [f32], a: &[f32], b: &[f32]) {
        for ((sum, a), b) in sum.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
}
