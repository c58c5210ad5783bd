//! The model type that notebooks and the trainer use, for every family.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::checkpoint::Checkpoint;
use super::measured::Measured;
use super::vocabulary::Resize;
use super::weights::Weights;
use super::{
    Architecture, Config, Context, Family, LoadReport, MlmLoss, ModelFlops, ModelInputs,
    WeightBuilder,
};
use crate::ops::{self, Param};
use crate::{Error, Result};

/// A masked language model of any supported family.
///
/// Clones are cheap and share the weights: training one trains all.
///
/// ```
/// use cloze::model::{Config, MaskedLm, ModelInputs};
///
/// let config = Config::new("roberta")
///     .set("vocab_size", 100)
///     .set("hidden_size", 16)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 32);
/// let model = MaskedLm::from_config(&config, 42)?;
/// let logits = model.forward(&ModelInputs::new(vec![0, 7, 8, 2], (1, 4))?)?;
/// assert_eq!(logits.dims(), &[1, 4, 100]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct MaskedLm {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    architecture: Box<dyn Architecture>,
    family: Family,
    weights: Weights,
    config: Config,
    device: Device,
}

impl MaskedLm {
    /// Opens the model `name`: `bundled:NAME`, a folder, or a Hub name, by the `model_type` in its config.
    ///
    /// Weights that the folder lacks are freshly initialised and weights that the model has no use for are left out; both
    /// are said on stderr and in [`MaskedLm::load_report`].
    ///
    /// # Errors
    /// When the folder or its weights are missing or damaged, the family is not supported, or shapes contradict the config.
    pub fn from_pretrained(name: impl AsRef<str>) -> Result<Self> {
        Self::from_pretrained_on(name, &Device::Cpu)
    }

    /// Like [`MaskedLm::from_pretrained`], with the weights on `device`.
    pub fn from_pretrained_on(name: impl AsRef<str>, device: &Device) -> Result<Self> {
        let (name, folder, config) = open(name.as_ref())?;
        let family = Family::find(&config)?;
        Self::from_folder(name, &folder, config, family, device)
    }

    /// Like [`MaskedLm::from_pretrained_on`], as a model of `family`, whatever the config's `model_type` is: for your
    /// own architectures.
    pub fn from_pretrained_with(
        name: impl AsRef<str>,
        family: &Family,
        device: &Device,
    ) -> Result<Self> {
        let (name, folder, config) = open(name.as_ref())?;
        Self::from_folder(name, &folder, config, family, device)
    }

    fn from_folder(
        name: String,
        folder: &Path,
        config: Config,
        family: &Family,
        device: &Device,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(folder)?;
        let weights = WeightBuilder::from_checkpoint(checkpoint, &family.name_rules(), 0, device);
        let model = Self::assemble(name, config, family, weights, device)?;
        model.print_report();
        Ok(model)
    }

    /// Makes a model with random weights, as transformers initialises them: a function of `config` and `seed`.
    pub fn from_config(config: &Config, seed: u64) -> Result<Self> {
        Self::from_config_on(config, seed, &Device::Cpu)
    }

    /// Like [`MaskedLm::from_config`], with the weights on `device`.
    pub fn from_config_on(config: &Config, seed: u64, device: &Device) -> Result<Self> {
        let family = Family::find(config)?;
        Self::random(config, seed, family, device)
    }

    /// Like [`MaskedLm::from_config`], as a model of `family`, whatever the config's `model_type` is: for your own
    /// architectures.
    pub fn from_config_with(config: &Config, seed: u64, family: &Family) -> Result<Self> {
        Self::random(config, seed, family, &Device::Cpu)
    }

    fn random(config: &Config, seed: u64, family: &Family, device: &Device) -> Result<Self> {
        let name = config.model_type().to_owned();
        let weights = WeightBuilder::random(seed, device);
        Self::assemble(name, config.clone(), family, weights, device)
    }

    fn assemble(
        name: String,
        mut config: Config,
        family: &Family,
        weights: WeightBuilder,
        device: &Device,
    ) -> Result<Self> {
        let completed = family.complete(&config)?;
        completed.check_values()?;
        family.check_direction(&completed)?;
        let built = (family.build)(&completed, &weights)
            .and_then(|architecture| Ok((architecture, weights.finish()?)));
        // Before an error that may come of it.
        for (key, meant) in completed.misspelled(family.aliases) {
            eprintln!(
                "warning: {name}: the config's key {key:?} is not known and has no effect; did you mean {meant:?}?"
            );
        }
        let (architecture, weights) = built?;
        if weights.report.untied.is_some() {
            // What is saved from here must hold both matrices too.
            config = config.set("tie_word_embeddings", false);
        }
        Ok(Self {
            inner: Arc::new(Inner {
                name,
                architecture,
                family: *family,
                weights,
                config,
                device: device.clone(),
            }),
        })
    }

    /// Rebuilds the model on its own weights, with another vocabulary size.
    pub(super) fn rebuild(&mut self, resize: Resize) -> Result<()> {
        let inner = &*self.inner;
        let new = resize.new;
        let mut config = inner.config.clone().set("vocab_size", new);
        for &(alias, key) in inner.family.aliases {
            let other = match (alias, key) {
                ("vocab_size", other) | (other, "vocab_size") => other,
                _ => continue,
            };
            if other == key || config.get(other).is_some() {
                config = config.set(other, new);
            }
        }
        let rebuilt = self.rebuilt(config, Some(resize))?;
        if rebuilt.vocab_size() != new || !rebuilt.load_report().missing.is_empty() {
            return Err(Error::argument(
                "new_num_tokens",
                format!("the vocabulary of {} can't be resized", self.class()),
            ));
        }
        *self = rebuilt;
        Ok(())
    }

    /// Returns the model rebuilt on copies of its weights with `config`; frozen parameters stay frozen.
    pub(super) fn rebuilt(&self, config: Config, resize: Option<Resize>) -> Result<Self> {
        let inner = &*self.inner;
        let checkpoint = Checkpoint::of_tensors(&inner.name, self.named_tensors()?);
        let rules = inner.family.name_rules();
        let weights = WeightBuilder::from_checkpoint(checkpoint, &rules, 0, &inner.device);
        let weights = match resize {
            Some(resize) => weights.resizing(resize),
            None => weights,
        };
        let name = inner.name.clone();
        let rebuilt = Self::assemble(name, config, &inner.family, weights, &inner.device)?;
        for param in rebuilt.params() {
            let trainable = self.param(param.name()).is_none_or(Param::is_trainable);
            param.set_trainable(trainable);
        }
        Ok(rebuilt)
    }

    /// Returns all that is saved, by its name and in the shape that it has on disk.
    fn named_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let weights = &self.inner.weights;
        let named = weights.params.iter().map(|param| (param.name(), param));
        let aliases = weights.aliases.iter();
        let aliases = aliases.map(|(name, param)| (name.as_str(), param));
        let mut tensors = BTreeMap::new();
        for (name, param) in named.chain(aliases) {
            let mut value = param.value();
            if let Some(shape) = weights.stored_shapes.get(param.name()) {
                value = value.reshape(shape.as_slice())?;
            }
            tensors.insert(name.to_owned(), value);
        }
        let constants = weights.constants.iter();
        tensors.extend(constants.map(|(name, value)| (name.clone(), value.clone())));
        for measured in &weights.measured {
            tensors.extend(
                measured
                    .get()
                    .map(|value| (measured.name().to_owned(), value)),
            );
        }
        for (name, derived) in &weights.derived {
            tensors.insert(name.clone(), derived()?);
        }
        Ok(tensors)
    }

    /// Returns all parameters as candle variables, by their names in the Hub's layout and by the additional names that
    /// PyTorch has for tied ones. They are the model's own: changing one changes the model.
    ///
    /// ```
    /// use cloze::model::{Config, MaskedLm};
    /// let config = Config::new("bert").set("num_hidden_layers", 1).set("vocab_size", 100);
    /// let model = MaskedLm::from_config(&config, 42)?;
    /// let variables = model.var_map();
    /// assert!(variables.data().lock().unwrap().contains_key("cls.predictions.decoder.weight"));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn var_map(&self) -> candle_nn::VarMap {
        let map = candle_nn::VarMap::new();
        if let Ok(mut variables) = map.data().lock() {
            for (name, param) in self.names() {
                variables.insert(name.to_owned(), param.var().clone());
            }
        }
        map
    }

    /// Returns a builder that gives candle-nn's layers and candle-transformers' models this model's weights, under the
    /// names of [`var_map`](Self::var_map). A weight that the model lacks is an error instead of being initialized.
    pub fn var_builder(&self) -> candle_nn::VarBuilder<'static> {
        let tensor =
            |(name, param): (&str, &Param)| (name.to_owned(), param.var().as_tensor().clone());
        let tensors: HashMap<String, Tensor> = self.names().map(tensor).collect();
        candle_nn::VarBuilder::from_tensors(tensors, DType::F32, self.device())
    }

    /// Returns all names of all parameters.
    fn names(&self) -> impl Iterator<Item = (&str, &Param)> {
        let weights = &self.inner.weights;
        let further = weights.aliases.iter().chain(&weights.tied);
        let further = further.map(|(name, param)| (name.as_str(), param));
        let own = weights.params.iter().map(|param| (param.name(), param));
        own.chain(further)
    }

    fn print_report(&self) {
        let name = &self.inner.name;
        let LoadReport {
            missing,
            unexpected,
            untied,
            notes,
        } = self.load_report();
        for note in notes {
            eprintln!("note: {name}: {note}");
        }
        if let Some((word, decoder)) = untied {
            eprintln!(
                "warning: {name}: the config ties {word} and {decoder}, but the checkpoint contains two different matrices: both are kept, and the model is not tied"
            );
        }
        if !unexpected.is_empty() {
            eprintln!(
                "note: {name}: these weights are not used by {}: {}",
                self.class(),
                unexpected.join(", ")
            );
        }
        if !missing.is_empty() {
            eprintln!(
                "warning: {name}: these weights of {} were not in the checkpoint and are newly initialised, so train the model before using it: {}",
                self.class(),
                missing.join(", ")
            );
        }
    }

    /// Returns the logits of every position, (batch, seq, vocab), without dropout and without a graph.
    pub fn forward(&self, inputs: impl Into<ModelInputs>) -> Result<Tensor> {
        let inputs = inputs.into();
        ops::no_grad(|| self.logits(&inputs, &Context::eval()))
    }

    /// Returns the logits of every position, (batch, seq, vocab), differentiable.
    pub fn logits(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        self.check(inputs)?;
        self.inner.architecture.logits(inputs, context)
    }

    /// Returns the logits of the positions `rows` (flat indices into the batch) alone, (rows, vocab), without a graph.
    pub fn logits_at(&self, inputs: &ModelInputs, rows: Vec<u32>) -> Result<Tensor> {
        self.check(inputs)?;
        let architecture = &self.inner.architecture;
        ops::no_grad(|| {
            let head = architecture.head();
            let hidden = architecture.hidden_rows(inputs, rows, &Context::eval())?;
            head.logits(&head.transform(&hidden)?)
        })
    }

    /// Returns the logits of every entity in the column `entity_ids`, (batch, entities, entity vocab), without dropout and
    /// without a graph: what LUKE takes the entities for.
    ///
    /// # Errors
    /// If the family predicts no entities, or the inputs have none.
    pub fn entity_logits(&self, inputs: impl Into<ModelInputs>) -> Result<Tensor> {
        let inputs = inputs.into();
        self.check(&inputs)?;
        let architecture = &self.inner.architecture;
        let logits = ops::no_grad(|| architecture.entity_logits(&inputs, &Context::eval()))?;
        logits.ok_or_else(|| {
            Error::argument(
                "model",
                format!("{} predicts no entities; LUKE does", self.class()),
            )
        })
    }

    /// Returns the last hidden states, (batch, seq, hidden), without dropout and without a graph: what the head reads.
    pub fn hidden_states(&self, inputs: impl Into<ModelInputs>) -> Result<Tensor> {
        let inputs = inputs.into();
        self.check(&inputs)?;
        ops::no_grad(|| {
            let architecture = &self.inner.architecture;
            architecture.hidden_states(&inputs, &Context::eval())
        })
    }

    /// Returns one vector for each text, (batch, hidden): the mean of the hidden states of its tokens, padding left out.
    pub fn embeddings(&self, inputs: impl Into<ModelInputs>) -> Result<Tensor> {
        let inputs = inputs.into();
        let hidden = self.hidden_states(&inputs)?.to_dtype(DType::F32)?;
        if hidden.dim(1)? != inputs.seq {
            return Err(Error::argument(
                "inputs",
                format!(
                    "{} gives {} vectors for {} places, so the attention mask does not tell which count: take the mean of hidden_states",
                    self.class(),
                    hidden.dim(1)?,
                    inputs.seq
                ),
            ));
        }
        let mask = inputs.tensor_of(&inputs.attention_mask, hidden.device())?;
        let mask = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let sums = hidden.broadcast_mul(&mask)?.sum(1)?;
        // A text without a token has the vector 0.
        Ok(sums.broadcast_div(&mask.sum(1)?.clamp(1f32, f32::MAX)?)?)
    }

    /// Returns the loss of `inputs`, which must carry labels, differentiable.
    pub fn loss(&self, inputs: impl Into<ModelInputs>, context: &Context) -> Result<MlmLoss> {
        let inputs = &inputs.into();
        self.check(inputs)?;
        // LUKE may be asked for entities alone.
        if inputs.label_values().is_empty() && !inputs.columns.contains_key("entity_labels") {
            return Err(Error::argument(
                "labels",
                "the loss needs labels; a MaskingCollator makes them",
            ));
        }
        self.inner.architecture.loss(inputs, context)
    }

    /// Returns how many positions of `inputs` each term of the loss counts.
    pub fn counts(&self, inputs: &ModelInputs) -> Vec<usize> {
        self.inner.architecture.counts(inputs)
    }

    /// Returns what the model measures.
    pub(super) fn measured(&self) -> &[Measured] {
        &self.inner.weights.measured
    }

    /// Returns what `checkpoint` holds of all that the model measures.
    fn measured_in(&self, checkpoint: &Checkpoint) -> Result<Vec<Option<Tensor>>> {
        let read = |measured: &Measured| {
            let held = checkpoint.names().any(|name| name == measured.name());
            let read = || checkpoint.tensor(measured.name(), &Device::Cpu);
            held.then(read).transpose()
        };
        self.measured().iter().map(read).collect()
    }

    /// Returns the last hidden states in a pass of that kind.
    pub(super) fn pass(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        self.check(inputs)?;
        self.inner.architecture.hidden_states(inputs, context)
    }

    /// Runs the backward pass from `loss`, leaving (adding) gradients in [`MaskedLm::params`].
    pub fn backward(&self, loss: &Tensor) -> Result<()> {
        ops::backward(loss, self.params())
    }

    fn check(&self, inputs: &ModelInputs) -> Result<()> {
        let (batch, seq) = inputs.shape();
        if batch == 0 || seq == 0 {
            return Err(Error::argument(
                "input_ids",
                format!("an empty batch ({batch} rows of {seq} tokens)"),
            ));
        }
        inputs.check_lengths()?;
        let read = self.inner.architecture.main_input();
        let given = match read {
            "input_ids" => !inputs.input_ids.is_empty(),
            column => inputs.columns.contains_key(column),
        };
        if !given {
            return Err(Error::argument(
                read,
                format!("{} reads {read}, but the batch has none", self.class()),
            ));
        }
        if read == "input_ids" {
            self.check_ids(inputs)?;
        }
        match self.max_positions() {
            Some(most) if seq > most => Err(Error::argument(
                "input_ids",
                format!(
                    "{seq} tokens are more than the {most} positions of this model: truncate, or use shorter blocks"
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Checks that every token is one of the model's: another tokenizer's may have higher numbers.
    fn check_ids(&self, inputs: &ModelInputs) -> Result<()> {
        let config = self.inner.config.get("vocab_size").and_then(Value::as_u64);
        let tokens = self.vocab_size().max(config.unwrap_or_default() as usize);
        let strange = |&id: &u32| id as usize >= tokens;
        let Some(at) = inputs.input_ids.iter().position(strange) else {
            return Ok(());
        };
        Err(Error::argument(
            "input_ids",
            format!(
                "token {} at position {} of row {} is not one of the {tokens} tokens of this model, which are numbered from 0. \
                 Encode with the model's own tokenizer (Tokenizer::from_pretrained with the name of the model), or, if tokens were \
                 added to it, call model.resize_token_embeddings(tokenizer.len())",
                inputs.input_ids[at],
                at % inputs.seq,
                at / inputs.seq,
            ),
        ))
    }

    /// Returns all parameters, in the order of their names, tied ones once.
    pub fn params(&self) -> &[Param] {
        &self.inner.weights.params
    }

    /// Returns the parameter called `name`, or saved under that name too.
    pub fn param(&self, name: &str) -> Option<&Param> {
        let named = self.params().iter().find(|param| param.name() == name);
        named.or_else(|| self.inner.weights.aliases.get(name))
    }

    /// Returns the number of weights, tied ones counted once.
    pub fn num_parameters(&self) -> usize {
        self.params().iter().map(Param::elem_count).sum()
    }

    /// Keeps the parameters whose names begin with `prefix` as they are: no gradient is computed for them, and no optimizer
    /// changes them. Returns how many there are.
    ///
    /// ```
    /// use cloze::model::{Config, MaskedLm};
    /// let config = Config::new("bert").set("num_hidden_layers", 1).set("vocab_size", 100);
    /// let model = MaskedLm::from_config(&config, 42)?;
    /// assert_eq!(model.freeze("bert.embeddings."), 5);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn freeze(&self, prefix: &str) -> usize {
        let params = self.params().iter();
        let named: Vec<&Param> = params.filter(|p| p.name().starts_with(prefix)).collect();
        named.iter().for_each(|param| param.set_trainable(false));
        named.len()
    }

    /// Freezes the convolutions of a speech model, as is usual in fine-tuning: [`freeze`](Self::freeze) for everything
    /// before its transformer. Returns the number of parameters.
    ///
    /// # Errors
    /// When this is no speech model.
    pub fn freeze_feature_encoder(&self) -> Result<usize> {
        match self.freeze(&format!("{}.feature_extractor.", self.inner.family.base)) {
            0 => Err(Error::Config(format!(
                "{} has no feature encoder to freeze; freeze takes a prefix of parameter names",
                self.class()
            ))),
            frozen => Ok(frozen),
        }
    }

    /// Forgets all gradients.
    pub fn zero_grad(&self) {
        self.params().iter().for_each(Param::zero_grad);
    }

    /// Returns the name that the model was opened by, or its type if it was made from a config.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns `transformers`' class, "RobertaForMaskedLM" for instance.
    pub fn class(&self) -> &'static str {
        self.inner.family.class
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// Returns the device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.inner.device
    }

    /// Returns what loading the checkpoint found; empty for a model made from a config.
    pub fn load_report(&self) -> &LoadReport {
        &self.inner.weights.report
    }

    /// Returns the number of tokens in the output vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.inner.architecture.head().vocab_size()
    }

    /// Returns the name of the model's main input: `input_ids`, or `input_values` for a speech model.
    pub fn main_input(&self) -> &'static str {
        self.inner.architecture.main_input()
    }

    pub(super) fn architecture(&self) -> &dyn Architecture {
        &*self.inner.architecture
    }

    /// Returns the longest sequence the model can take, in tokens.
    pub fn max_positions(&self) -> Option<usize> {
        self.inner.architecture.max_positions()
    }

    /// Returns the floating-point operations of a pass; `None` where the family does not count them.
    pub fn flops(&self) -> Option<ModelFlops> {
        self.inner.architecture.flops()
    }

    /// Writes `config.json` and `model.safetensors` into `folder` (made if needed), in transformers' layout.
    ///
    /// The two change together: a crash or a full disk leaves what was there.
    pub fn save_pretrained(&self, folder: impl AsRef<Path>) -> Result<()> {
        self.save_pretrained_as(folder, DType::F32)
    }

    /// Like [`MaskedLm::save_pretrained`], with the weights rounded to `dtype` (f16 and bf16 halve the file).
    pub fn save_pretrained_as(&self, folder: impl AsRef<Path>, dtype: DType) -> Result<()> {
        let name = match dtype {
            DType::F32 => "float32",
            DType::F16 => "float16",
            DType::BF16 => "bfloat16",
            other => {
                return Err(Error::argument(
                    "dtype",
                    format!("weights are saved as F32, F16 or BF16, not {other:?}"),
                ));
            }
        };
        let config = self
            .config()
            .clone()
            .set("architectures", vec![self.class()])
            .set("torch_dtype", name)
            .to_json()?;
        crate::base::files::replace_files(folder.as_ref(), |folder| {
            self.write_weights(&folder.join("model.safetensors"), dtype)?;
            crate::base::files::write_atomically(&folder.join("config.json"), config.as_bytes())
        })
    }

    /// Writes all weights to one safetensors file, atomically.
    pub fn save_weights(&self, path: &Path) -> Result<()> {
        self.write_weights(path, DType::F32)
    }

    fn write_weights(&self, path: &Path, dtype: DType) -> Result<()> {
        let mut tensors = self.named_tensors()?;
        for value in tensors.values_mut() {
            if value.dtype().is_float() {
                *value = value.to_dtype(dtype)?;
            }
        }
        // `transformers` refuses files that do not say which framework's layout they follow.
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        crate::base::files::replace_atomically(path, |temporary| {
            safetensors::serialize_to_file(
                tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)),
                Some(metadata),
                temporary,
            )
            .map_err(|e| match e {
                safetensors::SafeTensorError::IoError(e) => Error::io("write", path, e),
                other => Error::Weights(other.to_string()),
            })
        })
    }

    /// Reads all weights back from a file that [`MaskedLm::save_weights`] wrote for the same configuration.
    ///
    /// # Errors
    /// When a weight is missing or has another shape; nothing is changed then.
    pub fn load_weights(&self, path: &Path) -> Result<()> {
        let checkpoint = Checkpoint::open_file(path)?;
        let mut values = Vec::with_capacity(self.params().len());
        for param in self.params() {
            let value = checkpoint.tensor(param.name(), self.device())?;
            let fits = value.elem_count() == param.elem_count();
            let value = match self.inner.weights.stored_shapes.get(param.name()) {
                Some(shape) if fits && value.dims() == shape => value.reshape(param.shape())?,
                _ => value,
            };
            if value.shape() != param.shape() {
                return Err(Error::Weights(format!(
                    "{} has shape {:?} in {} but {:?} in the model",
                    param.name(),
                    value.dims(),
                    path.display(),
                    param.shape().dims()
                )));
            }
            values.push(value.to_dtype(param.dtype())?);
        }
        let measured = self.measured_in(&checkpoint)?;
        for (param, value) in self.params().iter().zip(&values) {
            param.set(value)?;
        }
        for (of, value) in self.measured().iter().zip(measured) {
            of.set(value);
        }
        Ok(())
    }
}

impl From<&MaskedLm> for MaskedLm {
    /// Shares the weights.
    fn from(model: &MaskedLm) -> Self {
        model.clone()
    }
}

/// Returns the name, the folder and the config of the model called `name`.
fn open(name: &str) -> Result<(String, PathBuf, Config)> {
    let folder = crate::hub::resolve("model", name)?;
    let config = Config::from_folder(&folder)?;
    Ok((name.to_owned(), folder, config))
}

impl std::fmt::Debug for MaskedLm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}({:?}, {:.1}M parameters, vocab {}, {:?})",
            self.class(),
            self.name(),
            self.num_parameters() as f64 / 1e6,
            self.vocab_size(),
            self.device().location()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, SUPPORTED_MODEL_TYPES};
    use crate::ops::tape;

    /// Two short examples with padding and labels.
    fn small(model_type: &str) -> ModelInputs {
        if model_type == "wav2vec2" {
            let sound = (0..400).map(|i| (i as f32 * 0.37).sin()).collect();
            let mask = (0..400).map(|i| u32::from(i < 350)).collect();
            let labels = Column::ids(vec![7, 3, 3, 7, -100, -100], [2, 3]).unwrap();
            let inputs = ModelInputs::from_waveforms(sound, (2, 200)).unwrap();
            let inputs = inputs.with_attention_mask(mask).unwrap();
            return inputs.with_column("labels", labels);
        }
        let ids = (0..12).map(|i| 5 + i % 40).collect();
        let inputs = ModelInputs::new(ids, (2, 6)).unwrap();
        inputs
            .with_attention_mask([[1; 6], [1, 1, 1, 1, 0, 0]].concat())
            .unwrap()
            .with_labels((0..12).map(|i| if i % 3 == 0 { 7 } else { -100 }).collect())
            .unwrap()
    }

    #[test]
    fn a_token_outside_the_vocabulary_is_reported_with_a_fix() {
        let config = Config::new("roberta")
            .set("vocab_size", 100)
            .set("hidden_size", 16)
            .set("num_hidden_layers", 1)
            .set("num_attention_heads", 2)
            .set("intermediate_size", 32);
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let inputs = |id| ModelInputs::new(vec![0, 7, 2, 0, id, 2], (2, 3)).unwrap();
        assert!(model.forward(inputs(99)).is_ok());
        let labelled = inputs(100).with_labels(vec![-100, 7, -100, -100, 8, -100]);
        for error in [
            model.forward(inputs(100)).err(),
            model.loss(labelled.unwrap(), &Context::eval()).err(),
        ] {
            let text = error.unwrap().to_string();
            for part in [
                "token 100 at position 1 of row 1",
                "100 tokens of this model",
                "Tokenizer::from_pretrained",
                "resize_token_embeddings(tokenizer.len())",
            ] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }

    /// One of candle's own operations anywhere in the graph would send the whole backward pass through candle's walk, with
    /// its copies.
    #[test]
    fn every_familys_graph_uses_only_our_operations() {
        for model_type in SUPPORTED_MODEL_TYPES {
            let model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
            let loss = model
                .loss(small(model_type), &Context::train(1, 0))
                .unwrap();
            assert!(
                tape::backward(&loss.mean().unwrap(), crate::ops::add)
                    .unwrap()
                    .is_some(),
                "{model_type}"
            );
        }
    }
}
