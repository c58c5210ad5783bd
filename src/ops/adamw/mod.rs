//! The AdamW update (Loshchilov & Hutter 2019) and the global gradient norm, over all parameters in place.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use std::collections::HashSet;

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::Param;
use super::simd::simd_fn;
use crate::ops::graph::storage;
use crate::{Error, Result};

/// Elements that one task works on: small enough to share out evenly, large enough to outweigh the handing over.
const CHUNK: usize = 1 << 15;

/// AdamW's state of one parameter between steps.
#[derive(Clone, Debug)]
pub struct AdamWState {
    /// The running mean of the gradient (f32, the parameter's shape); PyTorch's `exp_avg`.
    pub m: Tensor,
    /// The running mean of its square (f32, the parameter's shape); PyTorch's `exp_avg_sq`.
    pub v: Tensor,
    /// How many updates this parameter has received.
    pub step: u64,
}

impl AdamWState {
    /// Returns the state before the first step.
    pub fn new(param: &Param) -> Result<Self> {
        let zeros = || {
            if param.device().is_cpu() {
                storage::zeros_huge(param.shape())
            } else {
                Ok(Tensor::zeros(param.shape(), DType::F32, param.device())?)
            }
        };
        Ok(Self {
            m: zeros()?,
            v: zeros()?,
            step: 0,
        })
    }
}

/// The settings of a group of parameters, named as in PyTorch's `AdamW`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// The learning rate of this step (after the schedule).
    pub lr: f64,
    /// The decay rates of the running means. Default: (0.9, 0.999).
    pub betas: (f64, f64),
    /// Added to the root of the second moment. Default: 1e-8.
    pub eps: f64,
    /// The decoupled weight decay. Default: 0.
    pub weight_decay: f64,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            betas: (0.9, 0.999),
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Takes one AdamW step over `params` (one group, each parameter once) with their `states`, in place.
///
/// Every gradient is multiplied by `grad_scale` (the clipping factor, or 1 / accumulation steps; 1 for none). Frozen
/// parameters and those that no backward pass reached are skipped, including their state, as in PyTorch. The gradients
/// are unchanged: call [`Param::zero_grad`] afterwards.
pub fn adamw_step(
    params: &[Param],
    states: &mut [AdamWState],
    options: &AdamWOptions,
    grad_scale: f64,
) -> Result<()> {
    let group = AdamWGroup {
        params,
        states,
        options: *options,
    };
    adamw_step_groups(&mut [group], &GradScale::new(grad_scale))
}

/// Parameters that are updated with the same settings.
#[derive(Debug)]
pub struct AdamWGroup<'a> {
    /// The parameters, each once in all groups.
    pub params: &'a [Param],
    /// A state for each.
    pub states: &'a mut [AdamWState],
    /// The settings.
    pub options: AdamWOptions,
}

/// The factor on every gradient before an update.
#[derive(Clone, Debug)]
pub struct GradScale {
    factor: f64,
    clip: Option<(GradNorm, f64)>,
}

impl GradScale {
    /// Multiplies gradients by `factor`.
    pub fn new(factor: f64) -> Self {
        Self { factor, clip: None }
    }

    /// Scales gradients down further if their norm after the multiplication exceeds `max_norm` (0 for no limit); `norm`
    /// is that of the unscaled gradients. A step whose norm is not finite then changes nothing.
    #[must_use]
    pub fn clipped(mut self, norm: GradNorm, max_norm: f64) -> Self {
        self.clip = Some((norm, max_norm));
        self
    }

    /// Returns the product of all factors, for which a GPU is waited for; `None` for no step at all.
    pub(crate) fn value(&self) -> Result<Option<f64>> {
        let Some((norm, most)) = &self.clip else {
            return Ok(Some(self.factor));
        };
        let norm = norm.unscaled()? * self.factor;
        Ok(norm
            .is_finite()
            .then(|| self.factor * clip_factor(norm, *most)))
    }
}

/// Returns the factor that clips a gradient of that norm to `max_norm`, if that is not 0.
fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm <= 0.0 {
        return 1.0;
    }
    // The small constant is PyTorch's.
    (max_norm / (norm + 1e-6)).min(1.0)
}

/// Like [`adamw_step`], for several groups at once: on a GPU in three launches for all of them.
pub fn adamw_step_groups(groups: &mut [AdamWGroup<'_>], scale: &GradScale) -> Result<()> {
    groups.iter().try_for_each(AdamWGroup::check)?;
    #[cfg(feature = "cuda")]
    if step_on_gpu(groups, scale)? {
        return Ok(());
    }
    let Some(factor) = scale.value()? else {
        return Ok(());
    };
    (groups.iter_mut()).try_for_each(|group| group.step(factor))
}

/// Takes the step if everything is on one GPU.
#[cfg(feature = "cuda")]
fn step_on_gpu(groups: &mut [AdamWGroup<'_>], scale: &GradScale) -> Result<bool> {
    let options: Vec<AdamWOptions> = groups.iter().map(|group| group.options).collect();
    let mut all = Vec::new();
    for (i, group) in groups.iter_mut().enumerate() {
        let pairs = group.params.iter().zip(group.states.iter_mut());
        all.extend(pairs.map(|(param, state)| (param, state, i)));
    }
    all.retain(|(param, ..)| param.is_trainable());
    let fits = |(param, state, _): &(&Param, &mut AdamWState, usize)| {
        let moments = [&state.m, &state.v];
        let plain = |t: &&Tensor| t.dtype() == DType::F32 && t.is_contiguous();
        crate::ops::cuda::takes(&state.m, [*param])
            && param.device().same_device(all[0].0.device())
            && moments.iter().all(plain)
    };
    if all.is_empty() || !all.iter().all(fits) {
        return Ok(false);
    }
    let clip = match &scale.clip {
        Some((
            GradNorm {
                source: Source::Gpu(norm),
                ..
            },
            most,
        )) => Some((norm, *most)),
        Some(_) => {
            // The norm is known already.
            if let Some(factor) = scale.value()? {
                cuda::step(&mut all, &options, factor, None)?;
            }
            return Ok(true);
        }
        None => None,
    };
    cuda::step(&mut all, &options, scale.factor, clip)?;
    Ok(true)
}

impl AdamWGroup<'_> {
    fn check(&self) -> Result<()> {
        let (params, states) = (self.params, &self.states);
        if params.len() != states.len() {
            return Err(Error::argument(
                "states",
                format!("{} for {} parameters", states.len(), params.len()),
            ));
        }
        for (param, state) in params.iter().zip(states.iter()) {
            if !param.is_trainable() {
                continue;
            }
            for (moment, name) in [(&state.m, "m"), (&state.v, "v")] {
                if moment.shape() != param.shape() {
                    return Err(Error::argument(
                        "states",
                        format!(
                            "{name} of {} has shape {:?}, the parameter {:?}",
                            param.name(),
                            moment.shape(),
                            param.shape()
                        ),
                    ));
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, grad_scale: f64) -> Result<()> {
        step_each(self.params, self.states, &self.options, grad_scale)
    }
}

/// The step, one parameter after the other.
fn step_each(
    params: &[Param],
    states: &mut [AdamWState],
    options: &AdamWOptions,
    grad_scale: f64,
) -> Result<()> {
    for (param, state) in params.iter().zip(states) {
        if !param.is_trainable() {
            continue;
        }
        let stepped = param.with_grad(|grad| {
            let factors = Factors::new(options, state.step + 1, grad_scale);
            let fused = param.is_cpu_f32()
                && [grad, &state.m, &state.v]
                    .iter()
                    .all(|t| t.dtype() == DType::F32 && t.is_contiguous());
            if fused {
                step_fused(param, grad, state, &factors)
            } else {
                step_plain(param, grad, state, &factors)
            }
        })?;
        if stepped.is_some() {
            state.step += 1;
        }
    }
    Ok(())
}

/// The numbers that all elements of one update share.
#[derive(Clone, Copy)]
struct Factors {
    grad_scale: f32,
    decay: f32,
    rise1: f32,
    beta2: f32,
    rise2: f32,
    root_correction2: f32,
    eps: f32,
    step_size: f32,
}

impl Factors {
    fn new(options: &AdamWOptions, step: u64, grad_scale: f64) -> Self {
        let (beta1, beta2) = options.betas;
        let step = step as f64;
        Self {
            grad_scale: grad_scale as f32,
            decay: (1.0 - options.lr * options.weight_decay) as f32,
            rise1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            rise2: (1.0 - beta2) as f32,
            root_correction2: (1.0 - beta2.powf(step)).sqrt() as f32,
            eps: options.eps as f32,
            step_size: (options.lr / (1.0 - beta1.powf(step))) as f32,
        }
    }
}

fn step_fused(param: &Param, grad: &Tensor, state: &AdamWState, factors: &Factors) -> Result<()> {
    let run = |p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32]| {
        if p.len() <= CHUNK {
            return update(p, m, v, g, factors);
        }
        p.par_chunks_mut(CHUNK)
            .zip_eq(m.par_chunks_mut(CHUNK))
            .zip_eq(v.par_chunks_mut(CHUNK))
            .zip_eq(g.par_chunks(CHUNK))
            .for_each(|(((p, m), v), g)| update(p, m, v, g, factors));
    };
    storage::with(grad, |g| {
        storage::with_mut(param.own_var(), |p| {
            storage::with_mut(&state.m, |m| {
                storage::with_mut(&state.v, |v| run(p, m, v, g))
            })
        })
    })????;
    param.value_changed(false);
    Ok(())
}

simd_fn! {
    fn update(p: &mut [f32], m: &mut [f32], v: &mut [f32], g: &[f32], f: &Factors) {
        let f = *f;
        // Equal lengths, known here, spare the bounds checks in the loop.
        let n = p.len();
        let (m, v, g) = (&mut m[..n], &mut v[..n], &g[..n]);
        for i in 0..n {
            let grad = g[i] * f.grad_scale;
            let m_new = (grad - m[i]).mul_add(f.rise1, m[i]);
            let v_new = (grad * f.rise2).mul_add(grad, v[i] * f.beta2);
            let root = v_new.sqrt() / f.root_correction2 + f.eps;
            p[i] = (m_new / root).mul_add(-f.step_size, p[i] * f.decay);
            m[i] = m_new;
            v[i] = v_new;
        }
    }
}

/// The same update in candle's own operations, for other dtypes and devices.
fn step_plain(param: &Param, grad: &Tensor, state: &mut AdamWState, f: &Factors) -> Result<()> {
    let grad = (grad.to_dtype(DType::F32)? * f64::from(f.grad_scale))?;
    let m = (&state.m + ((&grad - &state.m)? * f64::from(f.rise1))?)?;
    let v = ((&state.v * f64::from(f.beta2))? + (grad.sqr()? * f64::from(f.rise2))?)?;
    let root = ((v.sqrt()? / f64::from(f.root_correction2))? + f64::from(f.eps))?;
    let value = param.value().to_dtype(DType::F32)?;
    let value = ((value * f64::from(f.decay))? - ((&m / root)? * f64::from(f.step_size))?)?;
    param.set(&value.to_dtype(param.dtype())?)?;
    (state.m, state.v) = (m, v);
    Ok(())
}

/// Returns the L2 norm over all gradients of the trainable `params` taken as one vector (PyTorch's `clip_grad_norm_`
/// without the clipping). Summed in f64 in an order that does not depend on the number of threads; NaN and infinity
/// show.
pub fn grad_norm(params: &[Param]) -> Result<f64> {
    grad_norm_later(params)?.value()
}

/// Like [`grad_norm`], without waiting for a GPU: the norm is formed where the gradients are, and read when it is asked for.
pub fn grad_norm_later(params: &[Param]) -> Result<GradNorm> {
    let mut seen = HashSet::new();
    let params: Vec<&Param> = (params.iter())
        .filter(|param| param.is_trainable() && seen.insert(param.id()))
        .collect();
    #[cfg(feature = "cuda")]
    if let Some(first) = params.first()
        && (params.iter()).all(|param| crate::ops::cuda::takes(&first.value(), [*param]))
    {
        return Ok(GradNorm::new(match cuda::Norm::of(&params)? {
            Some(norm) => Source::Gpu(norm),
            None => Source::Known(0.0),
        }));
    }
    Ok(GradNorm::new(Source::Known(norm_of_each(&params)?)))
}

/// A gradient norm that may still be on its way.
#[derive(Clone)]
pub struct GradNorm {
    source: Source,
    factor: f64,
}

#[derive(Clone)]
enum Source {
    Known(f64),
    #[cfg(feature = "cuda")]
    Gpu(cuda::Norm),
}

impl GradNorm {
    fn new(source: Source) -> Self {
        Self {
            source,
            factor: 1.0,
        }
    }

    /// Returns a norm that is known already.
    pub(crate) fn known(norm: f64) -> Self {
        Self::new(Source::Known(norm))
    }

    /// Returns the norm of the gradients times `factor`: what [`GradNorm::value`] gives from now on.
    #[must_use]
    pub fn times(mut self, factor: f64) -> Self {
        self.factor *= factor;
        self
    }

    /// Returns the norm, for which a GPU is waited for.
    pub fn value(&self) -> Result<f64> {
        Ok(self.unscaled()? * self.factor)
    }

    /// Returns the norm of the unscaled gradients.
    fn unscaled(&self) -> Result<f64> {
        match &self.source {
            Source::Known(norm) => Ok(*norm),
            #[cfg(feature = "cuda")]
            Source::Gpu(norm) => norm.value(),
        }
    }
}

impl std::fmt::Debug for GradNorm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.source {
            Source::Known(norm) => write!(f, "GradNorm({})", norm * self.factor),
            #[cfg(feature = "cuda")]
            Source::Gpu(_) => write!(f, "GradNorm(on the GPU)"),
        }
    }
}

fn norm_of_each(params: &[&Param]) -> Result<f64> {
    let mut total = 0.0;
    for param in params {
        let squares = param.with_grad(|grad| {
            if grad.device().is_cpu() && grad.dtype() == DType::F32 && grad.is_contiguous() {
                storage::with(grad, sum_of_squares)
            } else {
                let grad = grad.to_dtype(DType::F32)?;
                Ok(grad
                    .to_dtype(DType::F64)?
                    .sqr()?
                    .sum_all()?
                    .to_scalar::<f64>()?)
            }
        })?;
        total += squares.unwrap_or(0.0);
    }
    Ok(total.sqrt())
}

fn sum_of_squares(values: &[f32]) -> f64 {
    if values.len() <= CHUNK {
        return chunk_squares(values);
    }
    let parts: Vec<f64> = values.par_chunks(CHUNK).map(chunk_squares).collect();
    parts.iter().sum()
}

simd_fn! {
    fn chunk_squares(values: &[f32]) -> f64 {
        // Independent sums in f64: exact products, and no chain of dependent additions.
        let mut sums = [0f64; 32];
        let mut chunks = values.chunks_exact(32);
        for chunk in &mut chunks {
            for (sum, &x) in sums.iter_mut().zip(chunk) {
                let x = f64::from(x);
                *sum = x.mul_add(x, *sum);
            }
        }
        for (sum, &x) in sums.iter_mut().zip(chunks.remainder()) {
            let x = f64::from(x);
            *sum = x.mul_add(x, *sum);
        }
        sums.iter().sum()
    }
}
