//! The element-wise functions between a model's linear layers, by the names that `config.json` uses.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::Tensor;
use rayon::prelude::*;

use super::naive;
use super::parallel::{CHUNK, for_overwrite};
use super::simd::{exp, normal, sigmoid, simd_fn, tanh};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// An activation function (`hidden_act` in a model's config).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·Φ(x) with the exact error function: `"gelu"`.
    Gelu,
    /// The tanh approximation of GELU: `"gelu_new"`, `"gelu_pytorch_tanh"`, `"gelu_fast"`.
    GeluTanh,
    /// max(x, 0): `"relu"`.
    Relu,
    /// x·sigmoid(x): `"silu"`, `"swish"`.
    Silu,
    /// tanh(x): `"tanh"`.
    Tanh,
    /// sigmoid(x): `"sigmoid"`.
    Sigmoid,
    /// max(x, 0)²: `"relu2"`.
    ReluSquared,
    /// x·sigmoid(1.702 x): `"quick_gelu"`.
    QuickGelu,
    /// The distribution of the normal with mean √½ and standard deviation 1/√(4π), to six digits: `"laplace"`.
    Laplace,
    /// x itself: `"linear"`.
    Linear,
}

impl Activation {
    /// Mean and standard deviation of [`Activation::Laplace`], as transformers writes them.
    #[allow(clippy::approx_constant)] // transformers rounds it so.
    pub(crate) const LAPLACE: [f64; 2] = [0.707_107, 0.282_095];

    /// Returns the activation that a config calls `name`.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "relu2" => Self::ReluSquared,
            "quick_gelu" => Self::QuickGelu,
            "laplace" => Self::Laplace,
            "linear" => Self::Linear,
            other => {
                return Err(Error::Config(format!(
                    "unknown activation {other:?}; known are gelu, gelu_python, gelu_new, gelu_pytorch_tanh, gelu_fast, gelu_accurate, relu, relu2, silu, swish, tanh, sigmoid, quick_gelu, laplace, linear"
                )));
            }
        })
    }

    /// Applies the function to every element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        if self == Self::Linear {
            return Ok(x.clone());
        }
        #[cfg(feature = "cuda")]
        if crate::ops::cuda::takes(x, []) {
            return cuda::activation(x, self);
        }
        if !storage::is_cpu_f32(x) {
            return naive::activate(x, self);
        }
        let x = x.contiguous()?;
        let out = storage::with(&x, |x| {
            let mut out = for_overwrite(x.len());
            out.par_chunks_mut(CHUNK)
                .zip(x.par_chunks(CHUNK))
                .for_each(|(out, x)| values(self, x, out));
            out
        })?;
        tape::record("activation", &[&x], out, x.shape(), move |args, _, grad| {
            let dx = storage::with2(args[0], grad, |x, grad| {
                let mut dx = for_overwrite(x.len());
                dx.par_chunks_mut(CHUNK)
                    .zip(x.par_chunks(CHUNK))
                    .zip(grad.par_chunks(CHUNK))
                    .for_each(|((dx, x), grad)| {
                        dx.copy_from_slice(x);
                        gradients(self, dx, grad);
                    });
                dx
            })?;
            Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
        })
    }
}

/// Applies `activation` to every element of `x`.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    activation.apply(x)
}

const GELU_INNER: f32 = 0.797_884_6; // sqrt(2 / pi)
const GELU_CUBIC: f32 = 0.044_715;
const QUICK: f32 = 1.702;

/// x in standard deviations from the mean of [`Activation::Laplace`], and the reciprocal of one.
#[inline(always)]
fn laplace_parts(x: f32) -> (f32, f32) {
    let [mean, deviation] = Activation::LAPLACE;
    let scale = (1.0 / deviation) as f32;
    ((x - mean as f32) * scale, scale)
}

/// Returns the tanh approximation's gate (1 + tanh u) / 2 = sigmoid(2u) and the derivative of u.
#[inline(always)]
fn gelu_tanh_parts(x: f32) -> (f32, f32) {
    let square = x * x;
    let u = GELU_INNER * x * GELU_CUBIC.mul_add(square, 1.0);
    let du = GELU_INNER * (3.0 * GELU_CUBIC).mul_add(square, 1.0);
    (sigmoid(2.0 * u), du)
}

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
}

#[inline(always)]
fn chain(x: &mut [f32], grad: &[f32], derivative: impl Fn(f32) -> f32) {
    for (x, grad) in x.iter_mut().zip(grad) {
        *x = grad * derivative(*x);
    }
}

simd_fn! {
    /// `out = activation(x)`.
    pub(crate) fn values(activation: Activation, x: &[f32], out: &mut [f32]) {
        match activation {
            Activation::Gelu => map(x, out, |x| x * normal(x).0),
            Activation::GeluTanh => map(x, out, |x| x * gelu_tanh_parts(x).0),
            // Not `max`, which would turn NaN into 0.
            Activation::Relu => map(x, out, |x| if x < 0.0 { 0.0 } else { x }),
            Activation::Silu => map(x, out, |x| x * sigmoid(x)),
            Activation::Tanh => map(x, out, tanh),
            Activation::Sigmoid => map(x, out, sigmoid),
            Activation::ReluSquared => map(x, out, |x| if x < 0.0 { 0.0 } else { x * x }),
            Activation::QuickGelu => map(x, out, |x| x * sigmoid(QUICK * x)),
            Activation::Laplace => map(x, out, |x| normal(laplace_parts(x).0).0),
            Activation::Linear => out.copy_from_slice(x),
        }
    }
}

simd_fn! {
    /// `x = grad · activation'(x)`, in the place of `x`.
    pub(crate) fn gradients(activation: Activation, x: &mut [f32], grad: &[f32]) {
        match activation {
            Activation::Gelu => chain(x, grad, |x| {
                let (cdf, density) = normal(x);
                x.mul_add(density, cdf)
            }),
            Activation::GeluTanh => chain(x, grad, |x| {
                let (gate, du) = gelu_tanh_parts(x);
                (2.0 * x * du).mul_add(gate * (1.0 - gate), gate)
            }),
            Activation::Relu => chain(x, grad, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Silu => chain(x, grad, |x| {
                let gate = 1.0 / (1.0 + exp(-x));
                gate * x.mul_add(1.0 - gate, 1.0)
            }),
            Activation::Tanh => chain(x, grad, |x| {
                let y = tanh(x);
                y.mul_add(-y, 1.0)
            }),
            Activation::Sigmoid => chain(x, grad, |x| {
                let y = sigmoid(x);
                y * (1.0 - y)
            }),
            Activation::ReluSquared => chain(x, grad, |x| if x > 0.0 { 2.0 * x } else { 0.0 }),
            Activation::QuickGelu => chain(x, grad, |x| {
                let gate = sigmoid(QUICK * x);
                gate * (QUICK * x).mul_add(1.0 - gate, 1.0)
            }),
            Activation::Laplace => chain(x, grad, |x| {
                let (z, scale) = laplace_parts(x);
                normal(z).1 * scale
            }),
            Activation::Linear => x.copy_from_slice(grad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Vec<f32> {
        (-120_000..=120_000).map(|i| i as f32 * 1e-4).collect()
    }

    fn check(activation: Activation, tolerance: f64, f: impl Fn(f64) -> f64) {
        let x = grid();
        let mut y = vec![0.0; x.len()];
        values(activation, &x, &mut y);
        let mut dx = x.clone();
        gradients(activation, &mut dx, &vec![1.0; x.len()]);
        for ((&x, &y), &dx) in x.iter().zip(&y).zip(&dx) {
            let wide = f64::from(x);
            let want = f(wide);
            let error = (f64::from(y) - want).abs();
            assert!(
                error <= tolerance * want.abs() + 1e-37,
                "{activation:?}({x}) = {y}, not {want}"
            );
            if matches!(activation, Activation::Relu | Activation::ReluSquared) && x == 0.0 {
                assert_eq!(dx, 0.0, "at the kink, as in PyTorch");
                continue;
            }
            let h = 1e-5;
            let slope = (f(wide + h) - f(wide - h)) / (2.0 * h);
            assert!(
                (f64::from(dx) - slope).abs() < 2e-6,
                "{activation:?}'({x}) = {dx}, not {slope}"
            );
        }
    }

    /// erfc by its continued fraction far out and the series of erf near zero.
    fn erfc(x: f64) -> f64 {
        if x < 0.0 {
            return 2.0 - erfc(-x);
        }
        if x < 2.0 {
            let (mut term, mut sum, mut n) = (x, x, 0.0);
            while term.abs() > 1e-18 {
                n += 1.0;
                term *= -x * x / n;
                sum += term / (2.0 * n + 1.0);
            }
            return 1.0 - sum * 2.0 / std::f64::consts::PI.sqrt();
        }
        let mut fraction = 0.0;
        for k in (1..200).rev() {
            fraction = f64::from(k) / 2.0 / (x + fraction);
        }
        (-x * x).exp() / (x + fraction) / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn functions_and_derivatives_agree_with_f64_over_the_whole_range() {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        check(Activation::Gelu, 6e-7, |x| 0.5 * x * erfc(-x / 2f64.sqrt()));
        check(Activation::Relu, 0.0, |x| x.max(0.0));
        check(Activation::Silu, 4e-7, |x| x * sigmoid(x));
        check(Activation::Tanh, 4e-7, f64::tanh);
        check(Activation::Sigmoid, 4e-7, sigmoid);
        check(Activation::ReluSquared, 1e-7, |x| x.max(0.0).powi(2));
        check(Activation::QuickGelu, 4e-6, |x| x * sigmoid(1.702 * x));
        // In the tail the distribution feels the rounding of its argument.
        check(Activation::Laplace, 4e-5, |x| {
            let [mean, deviation] = Activation::LAPLACE;
            0.5 * erfc((mean - x) / (deviation * 2f64.sqrt()))
        });
        // The tails of the approximation feel the rounding of its cubic argument (up to 80 here).
        check(Activation::GeluTanh, 2e-5, |x| {
            x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3)))
        });
    }

    #[test]
    fn extreme_values_neither_overflow_nor_hide_nan() {
        let x = [f32::MIN, -1e4, 1e4, f32::MAX, f32::NAN];
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Relu,
        ] {
            let mut y = [0.0; 5];
            values(activation, &x, &mut y);
            assert!(y[1].abs() < 1e-30 && y[2] == 1e4, "{activation:?}: {y:?}");
            assert!(y[4].is_nan(), "{activation:?}: {y:?}");
        }
        let mut y = [0.0; 5];
        values(Activation::Gelu, &x, &mut y);
        assert_eq!(y[..4], [0.0, 0.0, 1e4, f32::MAX]);
        values(Activation::Tanh, &x, &mut y);
        assert_eq!(y[..4], [-1.0, -1.0, 1.0, 1.0]);
    }
}
