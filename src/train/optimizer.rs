//! AdamW over a model's parameters.

use std::any::Any;
use std::collections::HashMap;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use super::param_group::{self, ParamGroup, Settings};
use super::rules::Optimizer;
use crate::model::MaskedLm;
use crate::ops::{
    self, AdamWGroup, AdamWOptions, AdamWState, GradNorm, GradScale, MappedFile, Param,
};
use crate::{Error, Result};

/// AdamW (Loshchilov & Hutter 2019) as `torch.optim.AdamW` computes it, for a training loop by hand or a
/// [`Trainer`](super::Trainer).
///
/// Weight decay is decoupled and spares biases and normalization weights, as in the trainer of transformers.
///
/// ```
/// use cloze::model::{Config, Context, MaskedLm, ModelInputs};
/// use cloze::train::{AdamW, Schedule};
///
/// let config = Config::new("roberta")
///     .set("vocab_size", 50)
///     .set("hidden_size", 16)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 32);
/// let model = MaskedLm::from_config(&config, 42)?;
/// let batch = ModelInputs::new(vec![0, 7, 49, 2], (1, 4))?.with_labels(vec![-100, -100, 8, -100])?;
///
/// let steps = 10;
/// let schedule = Schedule::linear(1e-3, 0, steps);
/// let mut optimizer = AdamW::new(&model).weight_decay(0.01);
/// let mut losses = Vec::new();
/// for step in 0..steps {
///     let loss = model.loss(&batch, &Context::train(42, step as u64))?;
///     model.backward(&loss.mean()?)?;
///     optimizer.clip_grad_norm(1.0)?;
///     optimizer.step(schedule.lr(step))?;
///     optimizer.zero_grad();
///     losses.push(loss.value()?);
/// }
/// assert!(losses[9] < losses[0]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct AdamW {
    params: Vec<Param>,
    groups: Vec<Group>,
    options: AdamWOptions,
    /// The factor on gradients in the next step.
    grad_scale: GradScale,
    /// How many times as large as they should be the gradients are.
    loss_scale: f64,
}

#[derive(Clone)]
struct Group {
    settings: Settings,
    params: Vec<Param>,
    /// One per parameter; empty before the first step.
    states: Vec<AdamWState>,
}

impl AdamW {
    /// Returns an optimizer of all parameters of `model`, with PyTorch's defaults (betas 0.9 and 0.999, epsilon 1e-8)
    /// but no weight decay.
    pub fn new(model: &MaskedLm) -> Self {
        Self::from_params(model.params())
    }

    /// Returns an optimizer for `params`, which must be distinct.
    pub fn from_params(params: &[Param]) -> Self {
        // Where there is an optimizer, the same large buffers are about to come and go, step after step.
        ops::tune_allocator();
        Self {
            params: params.to_vec(),
            groups: grouped(params, &[]),
            options: AdamWOptions::default(),
            grad_scale: GradScale::new(1.0),
            loss_scale: 1.0,
        }
    }

    /// Sets the decoupled weight decay of all weights but biases and normalization. Default: 0.
    #[must_use]
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.options.weight_decay = weight_decay;
        self
    }

    /// Sets a separate learning rate and weight decay for some parameters. Existing moments are reset.
    #[must_use]
    pub fn param_groups(mut self, groups: impl AsRef<[ParamGroup]>) -> Self {
        self.groups = grouped(&self.params, groups.as_ref());
        self
    }

    /// Sets the decay rates of the two moments. Default: 0.9 and 0.999.
    #[must_use]
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.options.betas = (beta1, beta2);
        self
    }

    /// Sets the constant added to the root of the second moment. Default: 1e-8.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.options.eps = eps;
        self
    }

    /// Returns the global L2 norm of all gradients; makes the next [`step`](Self::step) scale them down to `max_norm`
    /// if it is larger. With 0 nothing is scaled.
    ///
    /// The gradients themselves are unchanged, which saves a pass over them.
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> Result<f64> {
        self.clip_grad_norm_later(max_norm)?.value()
    }

    /// Like [`clip_grad_norm`](Self::clip_grad_norm), without waiting for a GPU: the norm is formed and used there, and read
    /// when it is asked for. A step whose norm turns out not to be finite changes nothing.
    pub fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm> {
        let norm = ops::grad_norm_later(&self.params)?;
        let factor = 1.0 / self.loss_scale;
        self.grad_scale = GradScale::new(factor).clipped(norm.clone(), max_norm);
        Ok(norm.times(factor))
    }

    /// Like [`clip_grad_norm`](Self::clip_grad_norm), with the norm of all gradients, of which these may be a part.
    pub(super) fn clip_with(&mut self, norm: f64, max_norm: f64) -> GradNorm {
        let norm = GradNorm::known(norm);
        let factor = 1.0 / self.loss_scale;
        self.grad_scale = GradScale::new(factor).clipped(norm.clone(), max_norm);
        norm.times(factor)
    }

    /// Returns the state of each parameter that has one, by the parameter's id.
    pub(super) fn states(&self) -> HashMap<usize, AdamWState> {
        let groups = self.groups.iter();
        let pairs = groups.flat_map(|group| group.params.iter().zip(&group.states));
        pairs
            .map(|(param, state)| (param.id(), state.clone()))
            .collect()
    }

    /// Replaces the states by these, or by none where there are none.
    pub(super) fn set_states(&mut self, mut states: HashMap<usize, AdamWState>) -> Result<()> {
        let none = states.is_empty();
        for group in &mut self.groups {
            group.states.clear();
            if !none {
                let take = |param: &Param| match states.remove(&param.id()) {
                    Some(state) => Ok(state),
                    None => AdamWState::new(param),
                };
                group.states = group.params.iter().map(take).collect::<Result<_>>()?;
            }
        }
        Ok(())
    }

    /// Records that the gradients are `loss_scale` times too large: the next norm and the next step divide by it.
    pub fn unscale(&mut self, loss_scale: f64) {
        self.loss_scale = loss_scale;
        self.grad_scale = GradScale::new(1.0 / loss_scale);
    }

    /// Updates every parameter that has a gradient, with learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let grad_scale = std::mem::replace(&mut self.grad_scale, GradScale::new(1.0));
        self.loss_scale = 1.0;
        let mut groups = Vec::new();
        for group in &mut self.groups {
            let options = AdamWOptions {
                lr: lr * group.settings.lr_scale,
                weight_decay: group.settings.weight_decay(self.options.weight_decay),
                ..self.options
            };
            if group.states.is_empty() {
                group.states = group
                    .params
                    .iter()
                    .map(AdamWState::new)
                    .collect::<Result<_>>()?;
            }
            groups.push(AdamWGroup {
                params: &group.params,
                states: &mut group.states,
                options,
            });
        }
        ops::adamw_step_groups(&mut groups, &grad_scale)
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        self.grad_scale = GradScale::new(1.0);
        self.loss_scale = 1.0;
        self.params.iter().for_each(Param::zero_grad);
    }

    /// Writes the moments and counters to one safetensors file, under PyTorch's names for them
    /// (`PARAMETER.exp_avg`, `PARAMETER.exp_avg_sq`, `PARAMETER.step`).
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for group in &self.groups {
            for (param, state) in group.params.iter().zip(&group.states) {
                let name = param.name();
                let step = Tensor::new(state.step as i64, &Device::Cpu)?;
                tensors.push((format!("{name}.exp_avg"), state.m.clone()));
                tensors.push((format!("{name}.exp_avg_sq"), state.v.clone()));
                tensors.push((format!("{name}.step"), step));
            }
        }
        crate::base::files::replace_atomically(path, |temporary| {
            safetensors::serialize_to_file(
                tensors.iter().map(|(name, tensor)| (name, tensor)),
                None::<HashMap<String, String>>,
                temporary,
            )
            .map_err(|e| match e {
                safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
                other => Error::format(path, other.to_string()),
            })
        })
    }

    /// Reads back what [`save`](Self::save) wrote for the same parameters.
    ///
    /// # Errors
    /// When the file is damaged or belongs to other parameters; nothing is changed then.
    pub fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = MappedFile::open(path)?;
        let damaged = |e: safetensors::SafeTensorError| Error::format(path, e.to_string());
        let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
        if file.is_empty() {
            // Saved before the first step.
            self.groups
                .iter_mut()
                .for_each(|group| group.states.clear());
            return Ok(());
        }
        let read = |param: &Param| -> Result<AdamWState> {
            let get = |part: &str, device: &Device| -> Result<Tensor> {
                let view = file
                    .tensor(&format!("{}.{part}", param.name()))
                    .map_err(damaged)?;
                Ok(view.load(device)?)
            };
            let (m, v) = (
                get("exp_avg", param.device())?,
                get("exp_avg_sq", param.device())?,
            );
            if m.shape() != param.shape() || v.shape() != param.shape() {
                return Err(Error::format(
                    path,
                    format!(
                        "the moments of {} have shape {:?}, the parameter {:?}: another model's optimizer?",
                        param.name(),
                        m.dims(),
                        param.shape().dims()
                    ),
                ));
            }
            let step = get("step", &Device::Cpu)?.to_scalar::<i64>()?;
            Ok(AdamWState {
                m,
                v,
                step: step as u64,
            })
        };
        let states = self.groups.iter().map(|group| {
            let states = group.params.iter().map(read);
            states.collect::<Result<Vec<_>>>()
        });
        let states = states.collect::<Result<Vec<_>>>()?;
        for (group, states) in self.groups.iter_mut().zip(states) {
            group.states = states;
        }
        Ok(())
    }
}

/// Returns the parameters by their settings, without states.
fn grouped(params: &[Param], groups: &[ParamGroup]) -> Vec<Group> {
    let parts = param_group::split(params, groups).into_iter();
    let group = |(settings, params)| Group {
        settings,
        params,
        states: Vec::new(),
    };
    parts.map(group).collect()
}

impl Optimizer for AdamW {
    fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm> {
        AdamW::clip_grad_norm_later(self, max_norm)
    }

    fn unscale(&mut self, loss_scale: f64) {
        AdamW::unscale(self, loss_scale);
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        AdamW::step(self, lr)
    }

    fn zero_grad(&mut self) {
        AdamW::zero_grad(self);
    }

    fn save(&self, path: &Path) -> Result<()> {
        AdamW::save(self, path)
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        AdamW::load(self, path)
    }
}

/// Returns the optimizer as AdamW, if it is that.
pub(super) fn as_adamw(optimizer: &mut dyn Optimizer) -> Option<&mut AdamW> {
    let any: &mut dyn Any = optimizer;
    any.downcast_mut()
}

/// Returns an optimizer whose state is sharded as what it is.
pub(super) fn adamw(optimizer: &mut dyn Optimizer) -> Result<&mut AdamW> {
    as_adamw(optimizer).ok_or_else(|| {
        Error::argument(
            "shard_optimizer",
            "only the state of AdamW can be sharded so far; turn this off, or choose optim adamw_torch",
        )
    })
}

impl std::fmt::Debug for AdamW {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AdamWOptions {
            betas,
            eps,
            weight_decay,
            ..
        } = self.options;
        let decaying = self.groups.iter().filter(|group| group.settings.decays);
        let decaying = decaying.map(|group| group.params.len());
        write!(
            f,
            "AdamW(betas {betas:?}, eps {eps:e}, weight_decay {weight_decay} on {} of {} parameters)",
            decaying.sum::<usize>(),
            self.params.len()
        )
    }
}
