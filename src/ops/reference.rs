//! The operations of [`crate::ops`] composed from candle's own: slower and hungrier, but on every device, in every
//! dtype, and differentiated by candle. What the fused versions fall back to and are checked against.

mod attention;

use candle_core::{D, DType, Tensor};

use super::{Activation, AttentionMask, AttentionOptions, Dropout, Param};
use crate::Result;

pub(super) use self::attention::{attend, split};
pub use self::attention::{attention_with, relative_attention};

/// As [`super::linear`].
pub fn linear(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    let (out, width) = weight.shape().dims2()?;
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = out;
    }
    let flat = x.reshape(((), width))?.matmul(&weight.tensor().t()?)?;
    let flat = match bias {
        Some(bias) => flat.broadcast_add(&bias.tensor())?,
        None => flat,
    };
    Ok(flat.reshape(dims)?)
}

/// As [`super::linear_act`].
pub fn linear_act(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
) -> Result<Tensor> {
    activate(&linear(x, weight, bias)?, activation)
}

/// As [`Activation::apply`].
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    Ok(match activation {
        // Candle's `gelu` and `gelu_erf` are differentiated with constants of six digits: these are exact.
        Activation::Gelu => {
            let cdf = (((x / std::f64::consts::SQRT_2)?.erf()? + 1.0)? * 0.5)?;
            (x * cdf)?
        }
        Activation::GeluTanh => {
            let inner = ((x + (x.sqr()? * x)?.affine(0.044715, 0.0)?)?
                * std::f64::consts::FRAC_2_PI.sqrt())?;
            (x * ((inner.tanh()? + 1.0)? * 0.5)?)?
        }
        Activation::Relu => x.relu()?,
        Activation::Silu => x.silu()?,
        Activation::Tanh => x.tanh()?,
        Activation::Sigmoid => sigmoid(x)?,
        Activation::ReluSquared => x.relu()?.sqr()?,
        Activation::QuickGelu => (x * sigmoid(&(x * 1.702)?)?)?,
        Activation::Laplace => {
            let [mean, deviation] = Activation::LAPLACE;
            let z = ((x - mean)? / (deviation * std::f64::consts::SQRT_2))?;
            ((z.erf()? + 1.0)? * 0.5)?
        }
        Activation::Linear => x.clone(),
    })
}

/// 1 / (1 + e⁻ˣ), which does not overflow.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((((x * 0.5)?.tanh()? + 1.0)? * 0.5)?)
}

/// As [`super::permute`].
pub fn permute(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    Ok(x.permute(dims)?.contiguous()?)
}

/// As [`super::narrow()`].
pub fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    Ok(x.narrow(dim, start, len)?.contiguous()?)
}

/// As [`super::concat()`].
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    Ok(Tensor::cat(parts, dim)?)
}

/// As [`super::mul`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a * b)?)
}

/// As [`super::mul_rows`].
pub fn mul_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    let factors = factors.to_device(x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&factors.reshape(shape)?.detach())?)
}

/// As [`super::affine()`].
pub fn affine(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    let scaled = x.broadcast_mul(&weight.tensor())?;
    Ok(match bias {
        Some(bias) => scaled.broadcast_add(&bias.tensor())?,
        None => scaled,
    })
}

/// As [`super::add_broadcast()`].
pub fn add_broadcast(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(y)?)
}

/// As [`super::matmul`].
pub fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    let stored = |x: &Tensor, transposed: bool| match transposed {
        true => x.t()?.contiguous(),
        false => x.contiguous(),
    };
    Ok(stored(a, transpose_a)?.matmul(&stored(b, transpose_b)?)?)
}

/// As [`super::softmax()`].
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// As [`super::scatter_rows()`], without its check of the rows.
pub fn scatter_rows(x: &Tensor, rows: &Tensor, into_len: usize) -> Result<Tensor> {
    let rows = rows.flatten_all()?.to_device(x.device())?;
    let none = Tensor::zeros((into_len, x.dim(1)?), x.dtype(), x.device())?;
    Ok(none.index_add(&rows, x, 0)?)
}

/// As [`super::mean_segments()`].
pub fn mean_segments(x: &Tensor, count: usize) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape.splice(1..2, [count, x.dim(1)? / count]);
    Ok(x.reshape(shape)?.mean(2)?)
}

/// As [`super::layer_norm`].
pub fn layer_norm(x: &Tensor, weight: &Param, bias: Option<&Param>, eps: f64) -> Result<Tensor> {
    let mean = x.mean_keepdim(D::Minus1)?;
    let centred = x.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + eps)?.sqrt()?)?;
    let scaled = normed.broadcast_mul(&weight.tensor())?;
    Ok(match bias {
        Some(bias) => scaled.broadcast_add(&bias.tensor())?,
        None => scaled,
    })
}

/// As [`super::add_layer_norm`].
pub fn add_layer_norm(
    x: &Tensor,
    residual: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    eps: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let sum = (self::dropout(x, dropout)? + residual)?;
    layer_norm(&sum, weight, bias, eps)
}

/// As [`super::dropout`].
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !dropout.is_active() {
        return Ok(x.clone());
    }
    let mut factors = vec![0.0; x.elem_count()];
    dropout.factors(0, &mut factors);
    let factors = Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?;
    Ok((x * factors)?)
}

/// As [`super::attention`].
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: usize,
    mask: &AttentionMask,
    scale: f64,
    dropout: Dropout,
) -> Result<Tensor> {
    let options = AttentionOptions {
        scale,
        dropout,
        mask: mask.clone(),
        ..AttentionOptions::new(heads, 1)
    };
    attention_with(q, k, v, &options)
}

/// The most negative finite number of a dtype: what masked scores are lowered by.
pub(crate) fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        DType::F64 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

/// As [`super::embedding`], without its check of the ids.
pub fn embedding(ids: &Tensor, table: &Param, padding_idx: Option<u32>) -> Result<Tensor> {
    let (_, width) = table.shape().dims2()?;
    let flat = ids.flatten_all()?.to_device(table.device())?;
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    let gathered = table.tensor().index_select(&flat, 0)?;
    let gathered = match padding_idx {
        None => gathered,
        Some(pad) => {
            let keep = flat
                .ne(pad)?
                .to_dtype(gathered.dtype())?
                .reshape(((), 1))?
                .broadcast_as(gathered.shape())?;
            let passing = (&gathered * &keep)?;
            ((&gathered - &passing)?.detach() + passing)?
        }
    };
    Ok(gathered.reshape(dims)?)
}

/// As [`super::select_rows`], without its check of the rows.
pub fn select_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    Ok(x.index_select(&rows.to_device(x.device())?, 0)?)
}

/// As [`super::masked_cross_entropy`], without its check of the labels.
pub fn masked_cross_entropy(
    hidden: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    labels: &Tensor,
) -> Result<Tensor> {
    let logits = linear(hidden, weight, bias)?;
    let logits = match logits.dtype() {
        DType::F64 => logits,
        _ => logits.to_dtype(DType::F32)?,
    };
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let labels = labels.to_device(shifted.device())?;
    let picked = shifted.gather(&labels.unsqueeze(1)?, 1)?;
    Ok((log_sum - picked)?.sum_all()?)
}
