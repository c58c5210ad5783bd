//! Low-rank adapters (Hu et al. 2021): trains small matrices next to large ones that are frozen.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::rules::Optimizer;
use super::{AdamW, TrainingArguments};
use crate::model::MaskedLm;
use crate::ops::{GradNorm, Param};
use crate::{Error, Result};

/// Which matrices get adapters, and of what size: LoRA (Hu et al. 2021).
///
/// A target W of the model becomes W + alpha/r · B A, where A (r, in) and B (out, r) are trained and everything else stays. A
/// [`Trainer`](super::Trainer) takes it with [`Trainer::lora`](super::Trainer::lora); a loop by hand attaches it:
///
/// ```
/// use cloze::prelude::*;
/// use cloze::train::Lora;
/// # let config = Config::new("roberta").set("vocab_size", 50).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 2).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// # let batch = ModelInputs::new(vec![0, 7, 49, 2], (1, 4))?.with_labels(vec![-100, -100, 8, -100])?;
/// let adapters = Lora::new(8).targets(["query", "value"]).attach(&model)?;
/// assert_eq!(adapters.num_parameters(), 2 * 2 * 8 * (16 + 16));
/// let mut optimizer = adapters.optimizer(AdamW::from_params(&adapters.params()));
/// let loss = model.loss(&batch, &Context::train(42, 0))?.mean()?;
/// model.backward(&loss)?;
/// optimizer.step(1e-3)?;
/// optimizer.zero_grad();
/// # Ok::<(), cloze::Error>(())
/// ```
///
/// The model itself always contains W + alpha/r · B A, so it runs as fast as before, and [`MaskedLm::save_pretrained`]
/// saves it merged. [`Adapters::save_pretrained`] saves only A and B, in PEFT's layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Lora {
    r: usize,
    alpha: f64,
    targets: Vec<String>,
    seed: u64,
}

impl Lora {
    /// Adapters of rank `r`, with alpha 8 as in PEFT, on the matrices called "query" and "value".
    pub fn new(r: usize) -> Self {
        Self {
            r,
            alpha: 8.0,
            targets: vec!["query".to_owned(), "value".to_owned()],
            seed: 0,
        }
    }

    /// Sets what B A is multiplied by, times `r` (`lora_alpha` of PEFT; default: 8).
    #[must_use]
    pub fn alpha(mut self, alpha: f64) -> Self {
        self.alpha = alpha;
        self
    }

    /// Sets which linear layers get adapters, by the end of their names ("query", "attention.output.dense"): PEFT's
    /// `target_modules`.
    #[must_use]
    pub fn targets<S: Into<String>>(mut self, targets: impl IntoIterator<Item = S>) -> Self {
        self.targets = targets.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the seed that A is drawn by (default: 0).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Attaches adapters to `model`. Its logits are unchanged at first, because B is 0. All parameters except the
    /// targets are frozen.
    ///
    /// # Errors
    /// When `r` is 0, or a target's name fits no matrix.
    pub fn attach(&self, model: &MaskedLm) -> Result<Adapters> {
        if self.r == 0 {
            let message = "adapters of rank 0 learn nothing; give 8, or any number above 0";
            return Err(Error::argument("r", message));
        }
        if self.targets.is_empty() || !self.alpha.is_finite() {
            let name = ["targets", "alpha"][usize::from(!self.targets.is_empty())];
            let message = "adapters need targets (\"query\", for instance) and a finite alpha";
            return Err(Error::argument(name, message));
        }
        let fits = |param: &&Param, target: &str| {
            let module = param.name().strip_suffix(".weight");
            param.shape().rank() == 2
                && module.is_some_and(|module| {
                    let ends = module.strip_suffix(target);
                    !module.contains("embeddings.")
                        && ends.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                })
        };
        for target in &self.targets {
            if !model.params().iter().any(|param| fits(&param, target)) {
                let params = model.params().iter();
                let matrices = params.filter(|param| param.shape().rank() == 2);
                let names = matrices.filter_map(|param| {
                    let module = param.name().strip_suffix(".weight")?;
                    module.rsplit('.').next()
                });
                let mut names: Vec<&str> = names.collect();
                names.sort_unstable();
                names.dedup();
                return Err(Error::argument(
                    "targets",
                    format!(
                        "no linear layer's name ends with {target:?}; the last parts of their names are {}",
                        names.join(", ")
                    ),
                ));
            }
        }
        let chosen = |param: &&Param| self.targets.iter().any(|target| fits(param, target));
        let parts = model.params().iter().filter(chosen);
        let parts = parts
            .map(|param| Adapter::new(param, self))
            .collect::<Result<_>>()?;
        for param in model.params() {
            param.set_trainable(chosen(&param));
        }
        Ok(Adapters {
            lora: self.clone(),
            base: model.name().to_owned(),
            parts,
        })
    }
}

/// The adapters of a model.
///
/// ```
/// use cloze::prelude::*;
///
/// # fn f(model: MaskedLm) -> cloze::Result<()> {
/// let adapters = Lora::new(8).targets(["query", "value"]).attach(&model)?;
/// println!("{} of {} parameters", adapters.num_parameters(), model.num_parameters());
/// // Takes the adapters off again; without that the model keeps what they add.
/// adapters.detach(&model)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Adapters {
    lora: Lora,
    /// The model's name.
    base: String,
    parts: Vec<Adapter>,
}

/// One matrix and its adapter.
#[derive(Clone, Debug)]
struct Adapter {
    /// The matrix that the model multiplies by: base + scale · b a.
    target: Param,
    base: Tensor,
    a: Param,
    b: Param,
    scale: f64,
}

impl Adapter {
    fn new(target: &Param, lora: &Lora) -> Result<Self> {
        let (output, input) = target.shape().dims2()?;
        let module = target.name().trim_end_matches(".weight");
        let device = target.device();
        // As PEFT draws it: evenly between plus and minus the root of 1 / in.
        let bound = 1.0 / (input as f64).sqrt();
        let seed = lora.seed ^ hash(target.name());
        let a = crate::model::uniform(lora.r * input, -bound, bound, seed);
        let a = Tensor::from_vec(a, (lora.r, input), &Device::Cpu)?.to_device(device)?;
        let b = Tensor::zeros((output, lora.r), DType::F32, device)?;
        Ok(Self {
            target: target.clone(),
            base: target.value().copy()?,
            a: Param::new(format!("base_model.model.{module}.lora_A.weight"), &a)?,
            b: Param::new(format!("base_model.model.{module}.lora_B.weight"), &b)?,
            scale: lora.alpha / lora.r as f64,
        })
    }

    /// Sets the model's matrix to the sum of base and adapter.
    fn merge(&self) -> Result<()> {
        let product = self.b.value().matmul(&self.a.value())?;
        let sum = (&self.base + (product * self.scale)?.to_dtype(self.base.dtype())?)?;
        self.target.set(&sum)
    }

    /// Derives the gradients of the factors from that of the sum: d(base + s b a) = s (db a + b da).
    fn pull_gradient(&self) -> Result<()> {
        let Some(grad) = self.target.grad() else {
            return Ok(());
        };
        let grad = (grad.to_dtype(DType::F32)? * self.scale)?;
        let (a, b) = (self.a.value(), self.b.value());
        self.a.add_grad(&b.t()?.contiguous()?.matmul(&grad)?)?;
        self.b.add_grad(&grad.matmul(&a.t()?.contiguous()?)?)?;
        drop(grad);
        self.target.zero_grad();
        Ok(())
    }
}

fn hash(text: &str) -> u64 {
    let hash = blake3::hash(text.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

impl Adapters {
    /// Returns the factors A and B of all targets, the parameters for an optimizer.
    pub fn params(&self) -> Vec<Param> {
        let factors = self.parts.iter().flat_map(|part| [&part.a, &part.b]);
        factors.cloned().collect()
    }

    /// Returns the number of numbers that are trained.
    pub fn num_parameters(&self) -> usize {
        self.params().iter().map(Param::elem_count).sum()
    }

    /// Returns an optimizer that moves A and B by `inner`, which must be one of [`params`](Self::params), and the model along.
    pub fn optimizer<O: Optimizer>(&self, inner: O) -> LoraOptimizer<O> {
        LoraOptimizer {
            adapters: self.clone(),
            inner,
            pulled: false,
        }
    }

    /// Removes the adapters from the model, and makes all its parameters trainable again.
    pub fn detach(self, model: &MaskedLm) -> Result<()> {
        for part in &self.parts {
            part.target.set(&part.base)?;
        }
        model
            .params()
            .iter()
            .for_each(|param| param.set_trainable(true));
        Ok(())
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` into `folder`, as PEFT does: its
    /// `PeftModel.from_pretrained` opens them over the same base model.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        let config = json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": self.base,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": self.lora.alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.lora.r,
            "rank_pattern": {},
            "revision": null,
            "target_modules": self.lora.targets,
            "task_type": null,
            "use_dora": false,
            "use_rslora": false,
        });
        let config = serde_json::to_vec_pretty(&config)?;
        crate::base::files::replace_files(folder.as_ref(), |folder| {
            self.write(&folder.join("adapter_model.safetensors"))?;
            crate::base::files::write_atomically(&folder.join("adapter_config.json"), &config)
        })
    }

    fn write(&self, path: &Path) -> Result<()> {
        let params = self.params();
        let tensors: Vec<(&str, Tensor)> = params
            .iter()
            .map(|param| (param.name(), param.value()))
            .collect();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        crate::base::files::replace_atomically(path, |temporary| {
            let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
            safetensors::serialize_to_file(tensors, Some(metadata), temporary).map_err(
                |e| match e {
                    safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
                    other => Error::Weights(other.to_string()),
                },
            )
        })
    }

    /// Reads A and B from a folder that [`save_pretrained`](Self::save_pretrained) or PEFT wrote for the same targets.
    ///
    /// # Errors
    /// When a matrix is missing or has another shape; nothing is changed then.
    pub fn load_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.read(&folder.as_ref().join("adapter_model.safetensors"))
    }

    fn read(&self, path: &Path) -> Result<()> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu);
        let tensors = tensors.map_err(|e| Error::format(path, e.to_string()))?;
        let params = self.params();
        let mut values = BTreeMap::new();
        for param in &params {
            let value = tensors.get(param.name());
            let value = value.filter(|value| value.shape() == param.shape());
            let value = value.ok_or_else(|| {
                Error::format(
                    path,
                    format!(
                        "it contains no {} of the shape {:?}: are these adapters of other targets, or of another rank?",
                        param.name(),
                        param.shape().dims()
                    ),
                )
            })?;
            values.insert(
                param.name(),
                value.to_dtype(DType::F32)?.to_device(param.device())?,
            );
        }
        for param in &params {
            param.set(&values[param.name()])?;
        }
        self.parts.iter().try_for_each(Adapter::merge)
    }

    /// Returns a short description of the base matrices.
    fn fingerprint(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        for part in &self.parts {
            hasher.update(part.target.name().as_bytes());
            let values = part.base.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            for value in values.flatten_all()?.to_vec1::<f32>()? {
                hasher.update(&value.to_le_bytes());
            }
        }
        Ok(hasher.finalize().to_hex()[..32].to_owned())
    }
}

/// Moves adapters by another optimizer; made by [`Adapters::optimizer`].
#[derive(Clone, Debug)]
pub struct LoraOptimizer<O> {
    adapters: Adapters,
    inner: O,
    /// Whether the factors have their gradients of this step.
    pulled: bool,
}

impl LoraOptimizer<AdamW> {
    /// Returns the adapters of the model, moved by AdamW as the arguments set it.
    pub(super) fn of(adapters: &Adapters, args: &TrainingArguments) -> Self {
        let adamw = AdamW::from_params(&adapters.params());
        let adamw = adamw.betas(args.adam_beta1, args.adam_beta2);
        adapters.optimizer(adamw.eps(args.adam_epsilon).weight_decay(args.weight_decay))
    }
}

impl<O: Optimizer> LoraOptimizer<O> {
    fn pull(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.pulled, true) {
            let mut parts = self.adapters.parts.iter();
            parts.try_for_each(Adapter::pull_gradient)?;
        }
        Ok(())
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
}

impl<O: Optimizer> Optimizer for LoraOptimizer<O> {
    fn clip_grad_norm_later(&mut self, max_norm: f64) -> Result<GradNorm> {
        self.pull()?;
        self.inner.clip_grad_norm_later(max_norm)
    }

    fn unscale(&mut self, loss_scale: f64) {
        self.inner.unscale(loss_scale);
    }

    fn step(&mut self, lr: f64) -> Result<()> {
        self.pull()?;
        self.inner.step(lr)?;
        self.adapters.parts.iter().try_for_each(Adapter::merge)
    }

    fn zero_grad(&mut self) {
        self.pulled = false;
        self.inner.zero_grad();
        let targets = self.adapters.parts.iter().map(|part| &part.target);
        targets.for_each(Param::zero_grad);
    }

    fn save(&self, path: &Path) -> Result<()> {
        self.inner.save(path)?;
        self.adapters.write(&path.with_file_name(FACTORS))?;
        let base = self.adapters.fingerprint()?;
        crate::base::files::write_atomically(&path.with_file_name(BASE), base.as_bytes())
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let base = std::fs::read_to_string(path.with_file_name(BASE)).unwrap_or_default();
        if base != self.adapters.fingerprint()? {
            return Err(Error::format(
                path,
                "it was written with adapters on other weights: open the model that the run began with",
            ));
        }
        self.inner.load(path)?;
        self.adapters.read(&path.with_file_name(FACTORS))
    }
}

/// The names of A and B in a checkpoint.
const FACTORS: &str = "adapter_model.safetensors";
/// The name of the weight that they belong to.
const BASE: &str = "adapter_base.txt";
