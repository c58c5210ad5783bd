//! Gated feed-forward layers (GLU): one half of a projection opens and closes the other.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::{D, Tensor};
use rayon::prelude::*;

use super::parallel::{for_overwrite, rows_per_task};
use super::simd::simd_fn;
use super::{Activation, activation, naive};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Which half of a fused projection goes through the activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// activation(first) · second: ModernBERT's `Wi`.
    First,
    /// first · activation(second): NomicBERT's `fc11` and `fc12`, concatenated.
    Second,
}

/// Returns the product of the halves of `x` (..., 2m), one of them after the activation: (..., m). SwiGLU with
/// [`Activation::Silu`], GeGLU with [`Activation::Gelu`].
///
/// Only `x` is kept: the backward pass forms the activation again.
pub fn gated(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    if width % 2 != 0 {
        return Err(Error::argument(
            "x",
            format!("shape {:?} can't be cut into two halves", x.dims()),
        ));
    }
    let half = width / 2;
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = half;
    if x.elem_count() == 0 {
        return storage::empty(x, shape);
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return cuda::gated(x, activation, gate);
    }
    if !storage::is_cpu_f32(x) {
        return naive::gated(x, activation, gate);
    }
    let x = x.contiguous()?;
    let rows = rows_per_task(width);
    let y = storage::with(&x, |x| {
        let mut y = for_overwrite(x.len() / 2);
        y.par_chunks_mut(rows * half)
            .zip(x.par_chunks(rows * width))
            .for_each(|(y, x)| {
                for (y, x) in y.chunks_mut(half).zip(x.chunks(width)) {
                    let (gate, other) = gate.halves(x);
                    activation::values(activation, gate, y);
                    multiply(y, other);
                }
            });
        y
    })?;
    tape::record("gated", &[&x], y, shape, move |args, _, grad| {
        let dx = storage::with2(args[0], grad, |x, grad| {
            let mut dx = for_overwrite(x.len());
            dx.par_chunks_mut(rows * width)
                .zip(x.par_chunks(rows * width))
                .zip(grad.par_chunks(rows * half))
                .for_each(|((dx, x), grad)| {
                    let mut passed = vec![0f32; half];
                    let rows = dx.chunks_mut(width).zip(x.chunks(width));
                    for ((dx, x), grad) in rows.zip(grad.chunks(half)) {
                        let (opened, other) = gate.halves(x);
                        let (d_gate, d_other) = gate.halves_mut(dx);
                        // Of the plain half: grad · activation(gate). Of the gate: grad · other · activation'(gate).
                        activation::values(activation, opened, d_other);
                        multiply(d_other, grad);
                        passed.copy_from_slice(other);
                        multiply(&mut passed, grad);
                        d_gate.copy_from_slice(opened);
                        activation::gradients(activation, d_gate, &passed);
                    }
                });
            dx
        })?;
        Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
    })
}

impl Gate {
    /// Returns the half that the activation is applied to, and the other.
    fn halves(self, row: &[f32]) -> (&[f32], &[f32]) {
        let (first, second) = row.split_at(row.len() / 2);
        match self {
            Self::First => (first, second),
            Self::Second => (second, first),
        }
    }

    fn halves_mut(self, row: &mut [f32]) -> (&mut [f32], &mut [f32]) {
        let (first, second) = row.split_at_mut(row.len() / 2);
        match self {
            Self::First => (first, second),
            Self::Second => (second, first),
        }
    }
}

simd_fn! {
    fn multiply(x: &mut [f32], by: &[f32]) {
        for (x, by) in x.iter_mut().zip(by) {
            *x *= by;
        }
    }
}
