//! Affine maps of groups of features, each to its own.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{PARALLEL, Strides, matmul_raw};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::parallel::{column_sums, for_overwrite};
use crate::ops::{Param, naive};
use crate::{Error, Result};

/// Returns `x · Wᵀ + bias` for each of `groups` groups of features: the first of them makes the first `out / groups`
/// features of the result, and so on. `weight` is (out, in / groups), or that with a 1 behind, as a convolution over
/// single positions has it.
pub fn linear_grouped(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    groups: usize,
) -> Result<Tensor> {
    let sizes = Sizes::new(x, weight, bias, groups)?;
    if groups == 1 && weight.shape().rank() == 2 {
        return crate::ops::linear(x, weight, bias);
    }
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = sizes.out * groups;
    if x.elem_count() == 0 {
        return storage::empty(x, shape);
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, [weight].into_iter().chain(bias)) {
        let numbers = (sizes.rows, groups, sizes.width, sizes.out);
        return crate::ops::gemm::cuda::linear_grouped(x, weight, bias, numbers, shape);
    }
    let fits = storage::is_cpu_f32(x)
        && weight.is_cpu_f32()
        && bias.is_none_or(|bias| bias.dtype() == DType::F32);
    if !fits {
        return naive::linear_grouped(x, weight, bias, groups);
    }
    let x = x.contiguous()?;
    let anchor = tape::anchor(weight, bias);
    let mut y = for_overwrite(sizes.rows * sizes.out * groups);
    if let Some(bias) = bias {
        storage::with(bias.own_var(), |bias| {
            y.par_chunks_mut(bias.len())
                .with_min_len(64)
                .for_each(|y| y.copy_from_slice(bias));
        })?;
    }
    let into = Accumulate::fresh(bias.is_none());
    storage::with2(&x, weight.own_var(), |x, w| {
        sizes.forward(into, &mut y, x, w)
    })?;
    let (weight, bias) = (weight.clone(), bias.cloned());
    let wants_weight = weight.tensor().track_op();
    let wants_bias = bias.as_ref().is_some_and(|b| b.tensor().track_op());
    let args = [&x, &anchor];
    tape::record("linear_grouped", &args, y, shape, move |args, _, dy| {
        let x = args[0];
        if let Some(bias) = bias.as_ref().filter(|_| wants_bias) {
            storage::with(dy, |dy| {
                bias.update_grad(|db, fresh| column_sums(dy, sizes.out * groups, db, fresh))
            })??;
        }
        if wants_weight {
            storage::with2(x, dy, |x, dy| {
                weight.update_grad(|dw, fresh| {
                    sizes.weight_gradient(Accumulate::fresh(fresh), dw, dy, x);
                })
            })??;
        }
        if !x.track_op() {
            return Ok(vec![]);
        }
        let mut dx = for_overwrite(x.elem_count());
        storage::with2(dy, weight.own_var(), |dy, w| {
            sizes.input_gradient(&mut dx, dy, w);
        })?;
        Ok(vec![Some(storage::tensor(dx, x.shape())?)])
    })
}

#[derive(Clone, Copy)]
struct Sizes {
    rows: usize,
    groups: usize,
    /// Features of a group.
    width: usize,
    out: usize,
}

impl Sizes {
    fn new(x: &Tensor, weight: &Param, bias: Option<&Param>, groups: usize) -> Result<Self> {
        let (out, width) = match *weight.shape().dims() {
            [out, width] | [out, width, 1] => (out, width),
            _ => (0, 0),
        };
        let fits = groups > 0 && out > 0 && out % groups == 0;
        if !fits || x.dims().last() != Some(&(width * groups)) {
            return Err(Error::argument(
                "x",
                format!(
                    "shape {:?} does not fit {} of shape {:?} in {groups} groups",
                    x.dims(),
                    weight.name(),
                    weight.shape()
                ),
            ));
        }
        super::check_bias(weight, bias, out)?;
        Ok(Self {
            rows: x.elem_count() / (width * groups).max(1),
            groups,
            width,
            out: out / groups,
        })
    }

    fn forward(self, into: Accumulate, y: &mut [f32], x: &[f32], w: &[f32]) {
        let Self {
            rows, width, out, ..
        } = self;
        let (of_x, of_y) = self.strides();
        for group in 0..self.groups {
            // SAFETY: a group is a block of columns of x and y, and a block of rows of w.
            unsafe {
                let y = (y[group * out..].as_mut_ptr(), of_y);
                let x = (x[group * width..].as_ptr(), of_x);
                let w = (w[group * out * width..].as_ptr(), Strides::rows(width).t());
                matmul_raw((rows, width, out), into, 1.0, y, x, w, PARALLEL);
            }
        }
    }

    fn weight_gradient(self, into: Accumulate, dw: &mut [f32], dy: &[f32], x: &[f32]) {
        let Self {
            rows, width, out, ..
        } = self;
        let (of_x, of_y) = self.strides();
        for group in 0..self.groups {
            // SAFETY: as above.
            unsafe {
                let dw = (dw[group * out * width..].as_mut_ptr(), Strides::rows(width));
                let dy = (dy[group * out..].as_ptr(), of_y.t());
                let x = (x[group * width..].as_ptr(), of_x);
                matmul_raw((out, rows, width), into, 1.0, dw, dy, x, PARALLEL);
            }
        }
    }

    fn input_gradient(self, dx: &mut [f32], dy: &[f32], w: &[f32]) {
        let Self {
            rows, width, out, ..
        } = self;
        let (of_x, of_y) = self.strides();
        let into = Accumulate::Overwrite;
        for group in 0..self.groups {
            // SAFETY: as above.
            unsafe {
                let dx = (dx[group * width..].as_mut_ptr(), of_x);
                let dy = (dy[group * out..].as_ptr(), of_y);
                let w = (w[group * out * width..].as_ptr(), Strides::rows(width));
                matmul_raw((rows, out, width), into, 1.0, dx, dy, w, PARALLEL);
            }
        }
    }

    /// Of a group's columns in x and in y.
    fn strides(self) -> (Strides, Strides) {
        (
            Strides::rows(self.width * self.groups),
            Strides::rows(self.out * self.groups),
        )
    }
}
