//! Optimizers that are a rule for one parameter: how its gradient moves it.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;

use super::param_group::{self, ParamGroup, Settings};
use crate::ops::{self, GradNorm, GradScale, MappedFile, Param};
use crate::{Error, Result};

/// The optimizers: [`AdamW`](super::AdamW), [`Lion`](super::Lion), [`Adafactor`](super::Adafactor),
/// [`Sgd`](super::Sgd), or [`RuleOptimizer`] with a rule of your own.
///
/// ```
/// use cloze::prelude::*;
/// use cloze::train::Optimizer;
///
/// /// One step of a loop by hand, whatever moves the weights.
/// fn step(model: &MaskedLm, loss: &Tensor, optimizer: &mut dyn Optimizer, lr: f64) -> cloze::Result<()> {
///     model.backward(loss)?;
///     optimizer.clip_grad_norm(1.0)?;
///     optimizer.step(lr)?;
///     optimizer.zero_grad();
///     Ok(())
/// }
/// ```
pub trait Optimizer: Any + Debug + Send {
    /// Forms the global L2 norm of all gradients, and makes the next [`step`](Self::step) scale them down to `max_norm` if it is
    /// larger (0 for any). A step whose norm turns out not to be finite changes nothing.
    fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm>;

    /// Like [`clip_grad_norm_later`](Self::clip_grad_norm_later), and returns the norm at once.
    fn clip_grad_norm(&mut self, max_norm: f64) -> Result<f64> {
        self.clip_grad_norm_later(max_norm)?.value()
    }

    /// Records that the gradients are `loss_scale` times too large.
    fn unscale(&mut self, loss_scale: f64);

    /// Updates every parameter that has a gradient, with learning rate `lr`.
    fn step(&mut self, lr: f64) -> Result<()>;

    /// Forgets all gradients.
    fn zero_grad(&mut self);

    /// Writes what it remembers between steps to one file.
    fn save(&self, path: &Path) -> Result<()>;

    /// Reads back what [`save`](Self::save) wrote for the same parameters.
    fn load(&mut self, path: &Path) -> Result<()>;
}

/// The numbers of one update of one parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Update {
    /// The learning rate, after the schedule and the parameter's own factor.
    pub lr: f64,
    /// The weight decay.
    pub weight_decay: f64,
    /// The number of this update of the parameter, from 1.
    pub step: u64,
}

/// How a gradient moves a parameter: an optimizer of your own, as [`RuleOptimizer::of`] makes it.
///
/// ```
/// use candle_core::Tensor;
/// use cloze::ops::Param;
/// use cloze::train::{RuleOptimizer, Update, UpdateRule};
/// # use cloze::model::{Config, Context, MaskedLm, ModelInputs};
///
/// /// Moves every weight by the learning rate against the sign of its gradient.
/// #[derive(Clone, Debug)]
/// struct SignDescent;
///
/// impl UpdateRule for SignDescent {
///     fn name(&self) -> &'static str {
///         "SignDescent"
///     }
///
///     fn update(&self, param: &Param, grad: &Tensor, _: &mut [Tensor], at: &Update) -> cloze::Result<()> {
///         let moved = (param.var().as_tensor() - (grad.sign()? * at.lr)?)?;
///         param.set(&moved)
///     }
/// }
///
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let optimizer = RuleOptimizer::of(SignDescent, model.params());
/// # let _ = optimizer;
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait UpdateRule: Clone + Debug + Send + Sync + 'static {
    /// Returns the rule's name, which is kept in checkpoints.
    fn name(&self) -> &'static str;

    /// Returns what is remembered of `param` between steps, before the first, each with a name. Default: nothing.
    fn state(&self, param: &Param) -> Result<Vec<(&'static str, Tensor)>> {
        let _ = param;
        Ok(Vec::new())
    }

    /// Moves `param` by its gradient, of the same shape in f32, and changes the state, in the order of [`state`](Self::state).
    ///
    /// The same numbers must always give the same result, whatever the number of threads.
    fn update(&self, param: &Param, grad: &Tensor, state: &mut [Tensor], at: &Update)
    -> Result<()>;
}

/// An optimizer that updates each parameter by a rule.
#[derive(Clone)]
pub struct RuleOptimizer<R> {
    pub(super) rule: R,
    params: Vec<Param>,
    groups: Vec<Group>,
    weight_decay: f64,
    grad_scale: GradScale,
    loss_scale: f64,
}

#[derive(Clone)]
struct Group {
    settings: Settings,
    /// A parameter and what is remembered of it, once it was updated.
    params: Vec<(Param, Option<State>)>,
}

#[derive(Clone)]
struct State {
    tensors: Vec<(&'static str, Tensor)>,
    step: u64,
}

impl<R: UpdateRule> RuleOptimizer<R> {
    /// Returns an optimizer that updates `params`, which must be distinct, by `rule`; without weight decay.
    pub fn of(rule: R, params: &[Param]) -> Self {
        ops::tune_allocator();
        Self {
            rule,
            params: params.to_vec(),
            groups: grouped(params, &[]),
            weight_decay: 0.0,
            grad_scale: GradScale::new(1.0),
            loss_scale: 1.0,
        }
    }

    /// Sets the weight decay of all weights but biases and normalization. Default: 0.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// Sets a separate learning rate and weight decay for some parameters. Existing state is reset.
    #[must_use]
    pub fn param_groups(mut self, groups: impl AsRef<[ParamGroup]>) -> Self {
        self.groups = grouped(&self.params, groups.as_ref());
        self
    }

    /// See [`Optimizer::clip_grad_norm`].
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> Result<f64> {
        Optimizer::clip_grad_norm(self, max_norm)
    }

    /// See [`Optimizer::step`].
    pub fn step(&mut self, lr: f64) -> Result<()> {
        Optimizer::step(self, lr)
    }

    /// See [`Optimizer::zero_grad`].
    pub fn zero_grad(&mut self) {
        Optimizer::zero_grad(self);
    }

    fn read(&self, file: &SafeTensors, path: &Path, param: &Param) -> Result<Option<State>> {
        let damaged = |e: safetensors::SafeTensorError| Error::format(path, e.to_string());
        let get = |part: &str| file.tensor(&format!("{}.{part}", param.name()));
        let Ok(step) = get("step") else {
            return Ok(None);
        };
        let step = step.load(&Device::Cpu)?.to_scalar::<i64>()?;
        let mut tensors = self.rule.state(param)?;
        for (name, tensor) in &mut tensors {
            let read = get(name).map_err(damaged)?.load(param.device())?;
            if read.shape() != tensor.shape() {
                return Err(Error::format(
                    path,
                    format!(
                        "{name} of {} has the shape {:?} instead of {:?}: another model's optimizer?",
                        param.name(),
                        read.dims(),
                        tensor.dims()
                    ),
                ));
            }
            *tensor = read;
        }
        Ok(Some(State {
            tensors,
            step: step as u64,
        }))
    }
}

fn grouped(params: &[Param], groups: &[ParamGroup]) -> Vec<Group> {
    let parts = param_group::split(params, groups).into_iter();
    let group = |(settings, params): (Settings, Vec<Param>)| Group {
        settings,
        params: params.into_iter().map(|param| (param, None)).collect(),
    };
    parts.map(group).collect()
}

/// Updates a parameter that has a gradient.
fn step_one<R: UpdateRule>(
    rule: &R,
    param: &Param,
    state: &mut Option<State>,
    factor: f64,
    at: Update,
) -> Result<()> {
    if !param.is_trainable() {
        return Ok(());
    }
    let grad = param.with_grad(|grad| {
        let grad = grad.to_dtype(DType::F32)?;
        Ok(match factor {
            1.0 => grad.contiguous()?,
            factor => (grad * factor)?,
        })
    })?;
    let Some(grad) = grad else {
        return Ok(());
    };
    let state = match state {
        Some(state) => state,
        None => state.insert(State {
            tensors: rule.state(param)?,
            step: 0,
        }),
    };
    let mut tensors: Vec<Tensor> = state.tensors.iter().map(|(_, t)| t.clone()).collect();
    let step = state.step + 1;
    rule.update(param, &grad, &mut tensors, &Update { step, ..at })?;
    for ((_, kept), tensor) in state.tensors.iter_mut().zip(tensors) {
        *kept = tensor;
    }
    state.step = step;
    Ok(())
}

impl<R: UpdateRule> Optimizer for RuleOptimizer<R> {
    fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm> {
        let norm = ops::grad_norm_later(&self.params)?;
        let factor = 1.0 / self.loss_scale;
        self.grad_scale = GradScale::new(factor).clipped(norm.clone(), max_norm);
        Ok(norm.times(factor))
    }

    fn unscale(&mut self, loss_scale: f64) {
        self.loss_scale = loss_scale;
        self.grad_scale = GradScale::new(1.0 / loss_scale);
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        let scale = std::mem::replace(&mut self.grad_scale, GradScale::new(1.0));
        self.loss_scale = 1.0;
        let Some(factor) = scale.value()? else {
            return Ok(());
        };
        for group in &mut self.groups {
            let at = Update {
                lr: lr * group.settings.lr_scale,
                weight_decay: group.settings.weight_decay(self.weight_decay),
                step: 0,
            };
            for (param, state) in &mut group.params {
                step_one(&self.rule, param, state, factor, at)?;
            }
        }
        Ok(())
    }

    fn zero_grad(&mut self) {
        self.grad_scale = GradScale::new(1.0);
        self.loss_scale = 1.0;
        self.params.iter().for_each(Param::zero_grad);
    }

    fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (param, state) in self.groups.iter().flat_map(|group| &group.params) {
            let Some(state) = state else {
                continue;
            };
            for (name, tensor) in &state.tensors {
                tensors.push((format!("{}.{name}", param.name()), tensor.clone()));
            }
            let step = Tensor::new(state.step as i64, &Device::Cpu)?;
            tensors.push((format!("{}.step", param.name()), step));
        }
        let metadata = HashMap::from([("optimizer".to_owned(), self.rule.name().to_owned())]);
        crate::base::files::replace_atomically(path, |temporary| {
            let tensors = tensors.iter().map(|(name, tensor)| (name, tensor));
            safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(
                |e| match e {
                    safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
                    other => Error::format(path, other.to_string()),
                },
            )
        })
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = MappedFile::open(path)?;
        let damaged = |e: safetensors::SafeTensorError| Error::format(path, e.to_string());
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
        let written = header.metadata().as_ref();
        let written = written
            .and_then(|of| of.get("optimizer"))
            .map_or("AdamW", String::as_str);
        if written != self.rule.name() {
            return Err(Error::format(
                path,
                format!(
                    "it was written by {written}, but the optimizer is now {}; restore the setting, or start again",
                    self.rule.name()
                ),
            ));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        let states = self.groups.iter().flat_map(|group| &group.params);
        let states = states.map(|(param, _)| self.read(&file, path, param));
        let mut states = states.collect::<Result<Vec<_>>>()?.into_iter();
        for (_, state) in self.groups.iter_mut().flat_map(|group| &mut group.params) {
            *state = states.next().flatten();
        }
        Ok(())
    }
}

impl<R: UpdateRule> Debug for RuleOptimizer<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} with weight_decay {} over {} parameters",
            self.rule,
            self.weight_decay,
            self.params.len()
        )
    }
}
