//! AdamW over a model's parameters, with transformers' rule of what decays.

use std::collections::HashMap;
use std::path::Path;

use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;

use crate::model::MaskedLm;
use crate::ops::{
    self, AdamWGroup, AdamWOptions, AdamWState, GradNorm, GradScale, MappedFile, Param,
};
use crate::{Error, Result};

/// AdamW (Loshchilov & Hutter 2019) as `torch.optim.AdamW` computes it, for a training loop by hand or a
/// [`Trainer`](super::Trainer).
///
/// Weight decay is decoupled and spares biases and normalization weights, as in transformers' trainer.
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
    decaying: Group,
    others: Group,
    options: AdamWOptions,
    /// What the next step multiplies gradients by.
    grad_scale: GradScale,
    /// How many times as large as they should be the gradients are.
    loss_scale: f64,
}

#[derive(Clone)]
struct Group {
    params: Vec<Param>,
    /// One per parameter; empty before the first step.
    states: Vec<AdamWState>,
}

impl AdamW {
    /// An optimizer of all parameters of `model`, with PyTorch's defaults (betas 0.9 and 0.999, epsilon 1e-8) but no
    /// weight decay.
    pub fn new(model: &MaskedLm) -> Self {
        Self::from_params(model.params())
    }

    /// An optimizer of `params`, each of which must be there once.
    pub fn from_params(params: &[Param]) -> Self {
        // Where there is an optimizer, the same large buffers are about to come and go, step after step.
        ops::tune_allocator();
        let (decaying, others) = params.iter().cloned().partition(|p| decays(p.name()));
        let group = |params| Group {
            params,
            states: Vec::new(),
        };
        Self {
            decaying: group(decaying),
            others: group(others),
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

    /// Sets the decay rates of the two moments. Default: 0.9 and 0.999.
    #[must_use]
    pub fn betas(mut self, beta1: f64, beta2: f64) -> Self {
        self.options.betas = (beta1, beta2);
        self
    }

    /// Sets what is added to the root of the second moment. Default: 1e-8.
    #[must_use]
    pub fn eps(mut self, eps: f64) -> Self {
        self.options.eps = eps;
        self
    }

    /// The global L2 norm of all gradients; makes the next [`step`](Self::step) scale them down to `max_norm` if it is
    /// larger. With 0 nothing is scaled.
    ///
    /// The gradients themselves stay as they are, which spares a pass over them.
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> Result<f64> {
        self.clip_grad_norm_later(max_norm)?.value()
    }

    /// As [`clip_grad_norm`](Self::clip_grad_norm), without waiting for a GPU: the norm is formed and used there, and read
    /// when it is asked for. A step whose norm turns out not to be finite changes nothing.
    pub fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm> {
        let params: Vec<Param> = self.params().cloned().collect();
        let norm = ops::grad_norm_later(&params)?;
        let factor = 1.0 / self.loss_scale;
        self.grad_scale = GradScale::new(factor).clipped(norm.clone(), max_norm);
        Ok(norm.times(factor))
    }

    /// As [`clip_grad_norm`](Self::clip_grad_norm), with the norm of the gradients as they are, of which these may be a part.
    pub(super) fn clip_with(&mut self, norm: f64, max_norm: f64) -> GradNorm {
        let norm = GradNorm::known(norm);
        let factor = 1.0 / self.loss_scale;
        self.grad_scale = GradScale::new(factor).clipped(norm.clone(), max_norm);
        norm.times(factor)
    }

    /// Returns the state of each parameter that has one, by the parameter's id.
    pub(super) fn states(&self) -> HashMap<usize, AdamWState> {
        let groups = [&self.decaying, &self.others].into_iter();
        let pairs = groups.flat_map(|group| group.params.iter().zip(&group.states));
        pairs
            .map(|(param, state)| (param.id(), state.clone()))
            .collect()
    }

    /// Replaces the states by these, or by none where there are none.
    pub(super) fn set_states(&mut self, mut states: HashMap<usize, AdamWState>) -> Result<()> {
        let none = states.is_empty();
        for group in [&mut self.decaying, &mut self.others] {
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

    /// Says that the gradients are `loss_scale` times what they should be: the next norm and the next step divide by it.
    pub fn unscale(&mut self, loss_scale: f64) {
        self.loss_scale = loss_scale;
        self.grad_scale = GradScale::new(1.0 / loss_scale);
    }

    fn params(&self) -> impl Iterator<Item = &Param> {
        let groups = [&self.decaying, &self.others];
        groups.into_iter().flat_map(|group| &group.params)
    }

    /// Updates every parameter that has a gradient, with learning rate `lr`.
    pub fn step(&mut self, lr: f64) -> Result<()> {
        let grad_scale = std::mem::replace(&mut self.grad_scale, GradScale::new(1.0));
        self.loss_scale = 1.0;
        let decaying = AdamWOptions { lr, ..self.options };
        let others = AdamWOptions {
            weight_decay: 0.0,
            ..decaying
        };
        let mut groups = Vec::new();
        for (group, options) in [(&mut self.decaying, decaying), (&mut self.others, others)] {
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
        self.params().for_each(Param::zero_grad);
    }

    /// Writes the moments and counters to one safetensors file, under PyTorch's names for them
    /// (`PARAMETER.exp_avg`, `PARAMETER.exp_avg_sq`, `PARAMETER.step`).
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for group in [&self.decaying, &self.others] {
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
            self.decaying.states.clear();
            self.others.states.clear();
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
        let read_all = |params: &[Param]| params.iter().map(read).collect::<Result<Vec<_>>>();
        let (decaying, others) = (
            read_all(&self.decaying.params)?,
            read_all(&self.others.params)?,
        );
        self.decaying.states = decaying;
        self.others.states = others;
        Ok(())
    }
}

impl std::fmt::Debug for AdamW {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AdamWOptions {
            betas,
            eps,
            weight_decay,
            ..
        } = self.options;
        write!(
            f,
            "AdamW(betas {betas:?}, eps {eps:e}, weight_decay {weight_decay} on {} of {} parameters)",
            self.decaying.params.len(),
            self.decaying.params.len() + self.others.params.len()
        )
    }
}

/// Whether the parameter of that name takes part in weight decay.
///
/// `transformers` spares whatever has "bias" in its name, and normalization layers, which it knows by their class. Names
/// tell the same: a part that contains "norm", or "ln" as a word of its own.
fn decays(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let is_norm = |part: &str| part.contains("norm") || part.split('_').any(|word| word == "ln");
    !name.contains("bias") && !name.split('.').any(is_norm)
}

#[cfg(test)]
mod tests {
    use super::decays;

    #[test]
    fn biases_and_normalization_of_all_families_are_spared() {
        for name in [
            "roberta.embeddings.LayerNorm.weight",
            "roberta.encoder.layer.0.attention.self.query.bias",
            "distilbert.transformer.layer.0.sa_layer_norm.weight",
            "vocab_layer_norm.weight",
            "bert.encoder.layer.0.attention.ln.weight",
            "layer_norm1.0.weight",
            "transformer.layer_norm_emb.weight",
            "model.layers.0.input_layernorm.weight",
            "encoder.emb_layer_norm_after.weight",
            "model.layers.0.attn_norm.weight",
            "emb_ln.weight",
            "norm1.weight",
            "mpnet.encoder.relative_attention_bias.weight",
            "lm_head.bias",
        ] {
            assert!(!decays(name), "{name}");
        }
        for name in [
            "roberta.embeddings.word_embeddings.weight",
            "roberta.encoder.layer.0.attention.self.query.weight",
            "lm_head.dense.weight",
            "cls.predictions.decoder.weight",
            "distilbert.transformer.layer.0.ffn.lin1.weight",
            "transformer.attentions.0.q_lin.weight",
        ] {
            assert!(decays(name), "{name}");
        }
    }
}
