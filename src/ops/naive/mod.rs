//! The operations of [`crate::ops`] composed from candle's own: slower and hungrier, but on every device, in every
//! dtype, and differentiated by candle. The fused versions fall back to them and are checked against them.

mod attention;
mod sparse;

use candle_core::{D, DType, Tensor};

use super::{
    Activation, AttentionMask, AttentionOptions, Conv1d, CtcTargets, Dropout, EmaParams, Gate,
    Param, RowLength, Standardized,
};
use crate::Result;

#[cfg(any(test, feature = "cuda"))]
pub(super) use self::attention::{alive, key_counts, visible};
pub(super) use self::attention::{attend, split};
pub use self::attention::{attention_with, pointwise_attention, relative_attention};
#[cfg(any(test, feature = "cuda"))]
pub(super) use self::sparse::counts;
pub(super) use self::sparse::sparse;

/// Like [`super::linear`].
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

/// Like [`super::linear_act`].
pub fn linear_act(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    activation: Activation,
) -> Result<Tensor> {
    activate(&linear(x, weight, bias)?, activation)
}

/// Like [`Activation::apply`].
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

/// Like [`super::permute`].
pub fn permute(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    Ok(x.permute(dims)?.contiguous()?)
}

/// Like [`super::narrow()`].
pub fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    Ok(x.narrow(dim, start, len)?.contiguous()?)
}

/// Like [`super::concat()`].
pub fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    Ok(Tensor::cat(parts, dim)?)
}

/// Like [`super::mul`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    Ok((a * b)?)
}

/// Like [`super::mul_rows`].
pub fn mul_rows(x: &Tensor, factors: &Tensor) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = 1;
    }
    let factors = factors.to_device(x.device())?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&factors.reshape(shape)?.detach())?)
}

/// Like [`super::affine()`].
pub fn affine(x: &Tensor, weight: &Param, bias: Option<&Param>) -> Result<Tensor> {
    let scaled = x.broadcast_mul(&weight.tensor())?;
    Ok(match bias {
        Some(bias) => scaled.broadcast_add(&bias.tensor())?,
        None => scaled,
    })
}

/// Like [`super::add_broadcast()`].
pub fn add_broadcast(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    Ok(x.broadcast_add(y)?)
}

/// Like [`super::matmul`].
pub fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    let stored = |x: &Tensor, transposed: bool| match transposed {
        true => x.t()?.contiguous(),
        false => x.contiguous(),
    };
    Ok(stored(a, transpose_a)?.matmul(&stored(b, transpose_b)?)?)
}

/// Like [`super::softmax()`].
pub fn softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    let exp = shifted.exp()?;
    Ok(exp.broadcast_div(&exp.sum_keepdim(D::Minus1)?)?)
}

/// Like [`super::scatter_rows()`], without its check of the rows.
pub fn scatter_rows(x: &Tensor, rows: &Tensor, into_len: usize) -> Result<Tensor> {
    let rows = rows.flatten_all()?.to_device(x.device())?;
    let none = Tensor::zeros((into_len, x.dim(1)?), x.dtype(), x.device())?;
    Ok(none.index_add(&rows, x, 0)?)
}

/// Like [`super::mean_segments()`].
pub fn mean_segments(x: &Tensor, count: usize) -> Result<Tensor> {
    let mut shape = x.dims().to_vec();
    shape.splice(1..2, [count, x.dim(1)? / count]);
    Ok(x.reshape(shape)?.mean(2)?)
}

/// Like [`super::layer_norm`].
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

/// Like [`super::add_layer_norm`].
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

/// Like [`super::dropout`].
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !dropout.is_active() {
        return Ok(x.clone());
    }
    let mut factors = vec![0.0; x.elem_count()];
    dropout.factors(0, &mut factors);
    let factors = Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?;
    Ok((x * factors)?)
}

/// Like [`super::attention`].
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

/// Returns the most negative finite number of a dtype: what masked scores are lowered by.
pub(crate) fn lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => f64::from(half::f16::MIN),
        DType::BF16 => f64::from(half::bf16::MIN),
        DType::F64 => f64::MIN,
        _ => f64::from(f32::MIN),
    }
}

/// Like [`super::embedding`], without its check of the ids.
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

/// Like [`super::select_rows`], without its check of the rows.
pub fn select_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    Ok(x.index_select(&rows.to_device(x.device())?, 0)?)
}

/// Like [`super::masked_cross_entropy`], without its check of the labels.
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

/// Like [`super::sum_all()`].
pub fn sum_all(x: &Tensor) -> Result<Tensor> {
    Ok(x.sum_all()?)
}

/// Like [`super::gated()`].
pub fn gated(x: &Tensor, activation: Activation, gate: Gate) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let part = |start| x.narrow(D::Minus1, start, half);
    let (first, second) = (part(0)?, part(half)?);
    Ok(match gate {
        Gate::First => (activate(&first, activation)? * second)?,
        Gate::Second => (first * activate(&second, activation)?)?,
    })
}

/// Like [`super::rms_norm()`].
pub fn rms_norm(x: &Tensor, weight: &Param, eps: f64) -> Result<Tensor> {
    let square = x.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = x.broadcast_div(&(square + eps)?.sqrt()?)?;
    Ok(normed.broadcast_mul(&weight.tensor())?)
}

/// Like [`super::normalize_rows()`].
pub fn normalize_rows(x: &Tensor, length: RowLength) -> Result<Tensor> {
    let square = x.sqr()?;
    Ok(match length {
        RowLength::RootMeanSquare { eps } => {
            let length = (square.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
            x.broadcast_div(&length)?
        }
        RowLength::Euclidean { least } => {
            // Rows that are shorter must not send the derivative of the root through.
            let square = square.sum_keepdim(D::Minus1)?;
            let length = square.maximum(least * least)?.sqrt()?;
            x.broadcast_div(&length)?
        }
    })
}

/// Like [`super::standardize()`].
pub fn standardize(x: &Tensor, eps: f64) -> Result<Standardized> {
    let width = x.dim(D::Minus1)?;
    let rows = x.reshape(((), width))?;
    let mean = rows.mean(0)?;
    let centred = rows.broadcast_sub(&mean)?;
    let variance = centred.sqr()?.mean(0)?;
    let values = centred.broadcast_div(&(&variance + eps)?.sqrt()?)?;
    Ok(Standardized {
        values: values.reshape(x.shape())?,
        mean: mean.detach(),
        variance: variance.detach(),
    })
}

/// Like [`super::scale_by()`].
pub fn scale_by(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let factor = factor.flatten_all()?.to_dtype(x.dtype())?;
    Ok(x.broadcast_mul(&factor)?)
}

/// Like [`super::linear_grouped()`].
pub fn linear_grouped(
    x: &Tensor,
    weight: &Param,
    bias: Option<&Param>,
    groups: usize,
) -> Result<Tensor> {
    let (out, width) = (weight.shape().dims()[0], weight.shape().dims()[1]);
    let weight = weight.tensor().reshape((out, width))?;
    let flat = x.reshape(((), width * groups))?;
    let each = out / groups;
    let parts = (0..groups)
        .map(|group| {
            let x = flat.narrow(1, group * width, width)?.contiguous()?;
            x.matmul(&weight.narrow(0, group * each, each)?.t()?)
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    let flat = Tensor::cat(&parts, 1)?;
    let flat = match bias {
        Some(bias) => flat.broadcast_add(&bias.tensor())?,
        None => flat,
    };
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = out;
    }
    Ok(flat.reshape(shape)?)
}

/// Like [`super::depthwise_conv()`].
pub fn depthwise_conv(x: &Tensor, w: &Tensor, pad: usize) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    let channels = w.dim(0)?;
    let kernel = w.elem_count() / channels;
    // (width, kernel): each channel's kernel for all of its features.
    let w = w
        .reshape((channels, 1, kernel))?
        .broadcast_as((channels, width / channels, kernel))?
        .reshape((width, kernel))?;
    let x = x.pad_with_zeros(1, pad, pad)?;
    let mut sum: Option<Tensor> = None;
    for j in 0..kernel {
        let shifted = x.narrow(1, j, len + 2 * pad + 1 - kernel)?;
        let term = shifted.broadcast_mul(&w.narrow(1, j, 1)?.reshape(width)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| crate::Error::argument("w", "empty"))
}

/// Like [`super::dynamic_conv()`].
pub fn dynamic_conv(v: &Tensor, kernels: &Tensor) -> Result<Tensor> {
    let (batch, len, width) = v.dims3()?;
    let (_, _, heads, kernel) = kernels.dims4()?;
    let pad = (kernel - 1) / 2;
    let padded = v.pad_with_zeros(1, pad, kernel - 1 - pad)?;
    let neighbours = (0..kernel)
        .map(|j| {
            let shifted = padded.narrow(1, j, len)?;
            shifted.reshape((batch, len, heads, 1, width / heads))
        })
        .collect::<candle_core::Result<Vec<_>>>()?;
    let neighbours = Tensor::cat(&neighbours, 3)?;
    let mixed = kernels.unsqueeze(4)?.broadcast_mul(&neighbours)?.sum(3)?;
    Ok(mixed.reshape((batch, len, width))?)
}

/// Like [`super::conv1d()`].
pub fn conv1d(x: &Tensor, w: &Tensor, conv: Conv1d) -> Result<Tensor> {
    let (batch, len, _) = x.dims3()?;
    let (out, inner, kernel) = w.dims3()?;
    let each = out / conv.groups;
    let places = (len + 2 * conv.pad - kernel) / conv.stride + 1;
    let x = x.pad_with_zeros(1, conv.pad, conv.pad)?;
    let at = |j: usize| -> Vec<u32> { (0..places).map(|t| (t * conv.stride + j) as u32).collect() };
    let mut parts = Vec::new();
    for group in 0..conv.groups {
        let x = x.narrow(2, group * inner, inner)?.contiguous()?;
        let mut sum: Option<Tensor> = None;
        for j in 0..kernel {
            let rows = x.index_select(&Tensor::new(at(j), x.device())?, 1)?;
            let w = w
                .narrow(0, group * each, each)?
                .narrow(2, j, 1)?
                .squeeze(2)?;
            let rows = rows.reshape((batch * places, inner))?;
            let term = rows.matmul(&w.t()?.contiguous()?)?;
            sum = Some(match sum {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        parts.extend(sum);
    }
    Ok(Tensor::cat(&parts, 1)?.reshape((batch, places, out))?)
}

/// Like [`super::fourier_mix()`].
pub fn fourier_mix(x: &Tensor) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    let waves = |n: usize, f: fn(f64) -> f64| -> Result<Tensor> {
        let wave = (0..n * n).map(|at| {
            let turns = (at / n * (at % n) % n) as f64 / n as f64;
            f(turns * std::f64::consts::TAU)
        });
        let wave = Tensor::from_vec(wave.collect::<Vec<f64>>(), (n, n), x.device())?;
        Ok(wave.to_dtype(x.dtype())?)
    };
    let transformed = |f: fn(f64) -> f64| -> Result<Tensor> {
        let over_features = x.broadcast_matmul(&waves(width, f)?)?;
        Ok(waves(len, f)?.broadcast_matmul(&over_features)?)
    };
    Ok((transformed(f64::cos)? - transformed(f64::sin)?)?)
}

/// Steps of the iteration for the pseudo-inverse.
pub(super) const NEWTON_STEPS: usize = 6;

/// Like [`super::newton_pinv()`].
pub fn newton_pinv(a: &Tensor) -> Result<Tensor> {
    let largest = a.sum_keepdim(D::Minus2)?.flatten_all()?.max(0)?;
    let a = a.contiguous()?;
    let mut z = a.t()?.contiguous()?.broadcast_div(&largest)?;
    let unit = Tensor::eye(a.dim(D::Minus1)?, a.dtype(), a.device())?;
    let minus = |factor: f64, x: Tensor| (&unit * factor)?.broadcast_sub(&x);
    for _ in 0..NEWTON_STEPS {
        let az = a.matmul(&z)?;
        let inner = minus(7.0, az.clone())?;
        let inner = minus(15.0, az.matmul(&inner)?)?;
        let inner = minus(13.0, az.matmul(&inner)?)?;
        z = (z.matmul(&inner)? * 0.25)?;
    }
    Ok(z)
}

/// Like [`super::damped_ema()`].
pub fn damped_ema(x: &Tensor, params: EmaParams, truncation: Option<usize>) -> Result<Tensor> {
    let (_, len, width) = x.dims3()?;
    let reach = truncation.unwrap_or(len).clamp(1, len.max(1));
    let [damping, decay, expansion, projection] = [
        params.damping.tensor(),
        params.decay.tensor(),
        params.expansion.tensor(),
        params.projection.tensor(),
    ];
    let kernels = ema_kernels([&damping, &decay, &expansion, &projection], width, reach)?;
    depthwise_conv(x, &kernels, reach - 1)
}

/// Returns the directions of [`super::damped_ema()`], both or the first, as one kernel (width, 2 reach - 1).
pub(super) fn ema_kernels(params: [&Tensor; 4], width: usize, reach: usize) -> Result<Tensor> {
    let count = params[0].dim(0)?;
    let rows = |param: &Tensor| param.reshape((count, ()));
    let [damping, decay, expansion, projection] = params.map(rows);
    let (p, a) = (sigmoid(&damping?)?, sigmoid(&decay?)?);
    let states = p.dim(1)?;
    let coefficients = (((&p * expansion?)? * projection?)? / (states as f64).sqrt())?;
    // The ratio to the power l is exp(l ln(ratio)).
    let logarithm = (1.0 - (p * a)?)?.log()?.reshape((count, states, 1))?;
    let ahead: Vec<f64> = (0..reach).map(|l| l as f64).collect();
    let ahead = Tensor::from_vec(ahead, (1, 1, reach), logarithm.device())?;
    let powers = logarithm
        .broadcast_mul(&ahead.to_dtype(logarithm.dtype())?)?
        .exp()?;
    let kernels = powers
        .broadcast_mul(&coefficients.reshape((count, states, 1))?)?
        .sum(1)?;
    let back = kernels.narrow(0, 0, width)?;
    let reversed: Vec<u32> = (0..reach as u32).rev().collect();
    let back = back
        .contiguous()?
        .index_select(&Tensor::new(reversed, kernels.device())?, 1)?;
    let back = back.pad_with_zeros(1, 0, reach - 1)?;
    if count == width {
        return Ok(back);
    }
    let ahead = kernels.narrow(0, width, width)?;
    Ok((back + ahead.pad_with_zeros(1, reach - 1, 0)?)?)
}

/// Like [`super::ctc_loss()`], without its check of the targets, and with a very large number for infinity.
pub fn ctc_loss(logits: &Tensor, targets: CtcTargets) -> Result<Tensor> {
    const NEVER: f64 = -1e30;
    let log_sum = |x: &Tensor, dim: usize| -> candle_core::Result<Tensor> {
        let top = x.max_keepdim(dim)?.detach();
        x.broadcast_sub(&top)?.exp()?.sum_keepdim(dim)?.log()? + top
    };
    let mut losses = Vec::new();
    for (i, (&frames, labels)) in targets.frames.iter().zip(targets.labels).enumerate() {
        let logits = logits.get(i)?.narrow(0, 0, frames)?;
        let scores = logits.broadcast_sub(&log_sum(&logits, 1)?)?;
        let mut places = vec![targets.blank];
        places.extend(labels.iter().flat_map(|&label| [label, targets.blank]));
        let count = places.len();
        let skips: Vec<f64> = (0..count)
            .map(
                |s| match s >= 2 && s % 2 == 1 && places[s] != places[s - 2] {
                    true => 0.0,
                    false => NEVER,
                },
            )
            .collect();
        let constant = |values: Vec<f64>| -> Result<Tensor> {
            let n = values.len();
            let values = Tensor::from_vec(values, (1, n), &candle_core::Device::Cpu)?;
            Ok(values
                .to_dtype(scores.dtype())?
                .to_device(scores.device())?)
        };
        let skips = constant(skips)?;
        let scores = scores.index_select(&Tensor::new(places, scores.device())?, 1)?;
        let start = (0..count).map(|s| if s < 2 { 0.0 } else { NEVER });
        let mut ways = (constant(start.collect())? + scores.narrow(0, 0, 1)?)?;
        let never = |n: usize| constant(vec![NEVER; n]);
        for t in 1..frames {
            let one = Tensor::cat(&[&never(1)?, &ways], 1)?.narrow(1, 0, count)?;
            let two = Tensor::cat(&[&never(2)?, &ways], 1)?.narrow(1, 0, count)?;
            let all = Tensor::cat(&[&ways, &one, &(two + &skips)?], 0)?;
            ways = (log_sum(&all, 0)? + scores.narrow(0, t, 1)?)?;
        }
        let last = count.saturating_sub(2);
        let total = log_sum(&ways.narrow(1, last, count - last)?, 1)?;
        losses.push(total.neg()?.reshape(1)?);
    }
    Ok(Tensor::cat(&losses, 0)?)
}
