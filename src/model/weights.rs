//! Loads a model's parameters from named arrays and reports missing, unexpected and mismatched ones.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use candle_core::{DType, Device, Shape, Tensor, Var};

use super::checkpoint::Checkpoint;
use super::context::mix;
use super::draws::{name_hash, normal, uniform};
use super::measured::Measured;
use super::vocabulary::Resize;
use crate::ops::Param;
use crate::{Error, Result};

/// How a parameter starts when no checkpoint provides it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// As `Normal`, but row `padding_idx` is zero.
    NormalExceptRow(f64, u32),
    /// Evenly spread from the first number to the second.
    Uniform(f64, f64),
    /// Normal with this standard deviation, around 1 and -1 in turn along the second dimension.
    Alternating(f64),
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// Normal with mean 0 and the first number as standard deviation, drawn again beyond the second number times that.
    TruncatedNormal(f64, f64),
    /// The sine and cosine table of Vaswani et al. 2017, (positions, width).
    Sinusoidal,
    /// The same numbers with all sines before all cosines, as rotary embeddings are stored.
    SinusoidHalves,
}

/// The result of loading a checkpoint, in the words of transformers.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Parameters that the checkpoint lacks; they were freshly initialised.
    pub missing: Vec<String>,
    /// Names in the checkpoint that the model has no use for.
    pub unexpected: Vec<String>,
    /// Two names of what the config calls one matrix, under which the checkpoint holds different ones: the model then has
    /// both.
    pub untied: Option<(String, String)>,
    /// Further notes on the checkpoint, as sentences.
    pub notes: Vec<String>,
}

/// Hands out a model's parameters by name, from a checkpoint or freshly initialised.
///
/// Clones share one registry; [`WeightBuilder::pp`] goes one level down in the names.
#[derive(Clone)]
pub struct WeightBuilder {
    prefix: String,
    shared: Rc<RefCell<Registry>>,
}

struct Registry {
    source: Option<Source>,
    params: BTreeMap<String, Param>,
    /// Tensors that are saved besides the parameters: buffers, and unused tensors of the checkpoint.
    constants: BTreeMap<String, Tensor>,
    /// What passes measure, and is saved.
    measured: BTreeMap<String, Measured>,
    /// What is saved and follows from the rest.
    derived: BTreeMap<String, Derived>,
    /// Further names under which parameters are saved.
    aliases: BTreeMap<String, Param>,
    /// Names under which parameters that are tied to others are known to other libraries; they are not saved.
    tied: BTreeMap<String, Param>,
    /// The shapes of parameters that have another on disk.
    stored_shapes: BTreeMap<String, Vec<usize>>,
    report: LoadReport,
    /// Pairs of names, and whether the checkpoint holds different arrays under them.
    compared: BTreeMap<(String, String), bool>,
    seed: u64,
    device: Device,
    dtype: DType,
    /// The elements that were drawn, because no checkpoint has them.
    drawn: u64,
    /// The most that may be drawn, and why.
    most: (u64, Limit),
}

#[derive(Clone, Copy)]
enum Limit {
    /// Tensors in this machine's memory.
    Memory,
    /// A few times what the checkpoint holds.
    Checkpoint,
}

struct Source {
    checkpoint: Checkpoint,
    /// Canonical name → name in the file.
    names: BTreeMap<String, String>,
    used: BTreeSet<String>,
    ignored: &'static [&'static str],
    carried: &'static [&'static str],
    /// How tables change whose length is that of the vocabulary.
    resize: Option<Resize>,
}

/// Computes a saved tensor from a model's parameters and measured ranges.
pub(crate) type Derived = Box<dyn Fn() -> Result<Tensor> + Send + Sync>;

/// Everything that a model takes from its [`WeightBuilder`].
pub(crate) struct Weights {
    /// All parameters, in the order of their names, tied ones once.
    pub params: Vec<Param>,
    /// Tensors that are saved besides them, by name.
    pub constants: BTreeMap<String, Tensor>,
    /// What passes measure, and is saved, in the order of the names.
    pub measured: Vec<Measured>,
    /// What is saved and follows from the rest, by name.
    pub derived: BTreeMap<String, Derived>,
    /// Further names of parameters.
    pub aliases: BTreeMap<String, Param>,
    /// Names of tied parameters that are not saved.
    pub tied: BTreeMap<String, Param>,
    /// The shapes of parameters that have another on disk.
    pub stored_shapes: BTreeMap<String, Vec<usize>>,
    pub report: LoadReport,
}

impl WeightBuilder {
    /// Returns a builder that initialises every parameter from `seed`.
    pub fn random(seed: u64, device: &Device) -> Self {
        // Where the system does not say, as many as any machine may have.
        let memory = physical_memory().unwrap_or(1 << 42);
        Self::with_source(None, seed, device, (memory / 4, Limit::Memory))
    }

    /// Returns a builder that takes parameters from `checkpoint` and initialises what it lacks from `seed`; `rules` say how
    /// names in checkpoints differ.
    pub(crate) fn from_checkpoint(
        checkpoint: Checkpoint,
        rules: &NameRules,
        seed: u64,
        device: &Device,
    ) -> Self {
        // A head that is missing is about as large as what is there; what is far larger is no missing head.
        let most = checkpoint.bytes().saturating_mul(2) + (1 << 20);
        let source = Source {
            names: canonical_names(checkpoint.names(), rules),
            checkpoint,
            used: BTreeSet::new(),
            ignored: rules.ignored,
            carried: rules.carried,
            resize: None,
        };
        Self::with_source(Some(source), seed, device, (most, Limit::Checkpoint))
    }

    /// Resizes the tables of the vocabulary as `resize` specifies.
    pub(super) fn resizing(self, resize: Resize) -> Self {
        if let Some(source) = &mut self.shared.borrow_mut().source {
            source.resize = Some(resize);
        }
        self
    }

    fn with_source(source: Option<Source>, seed: u64, device: &Device, most: (u64, Limit)) -> Self {
        Self {
            prefix: String::new(),
            shared: Rc::new(RefCell::new(Registry {
                source,
                params: BTreeMap::new(),
                constants: BTreeMap::new(),
                measured: BTreeMap::new(),
                derived: BTreeMap::new(),
                aliases: BTreeMap::new(),
                tied: BTreeMap::new(),
                stored_shapes: BTreeMap::new(),
                report: LoadReport::default(),
                compared: BTreeMap::new(),
                seed,
                device: device.clone(),
                dtype: DType::F32,
                drawn: 0,
                most,
            })),
        }
    }

    /// Returns the builder for the names below `name`.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: format!("{}{name}.", self.prefix),
            shared: Rc::clone(&self.shared),
        }
    }

    /// Returns the whole name of `name` below this builder's prefix.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Returns the parameter `name` below this builder's prefix, of the given shape.
    ///
    /// Asked twice for the same name, it hands out the same (shared) parameter.
    ///
    /// # Errors
    /// When the checkpoint holds it in another shape, or it is too large to be drawn.
    pub fn param(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        self.param_or_alias(name, &[], shape, init)
    }

    /// Like [`WeightBuilder::param`]; where the checkpoint lacks `name`, the first of `aliases` (full names) that it has
    /// serves instead. Aliases are never reported as unexpected.
    pub fn param_or_alias(
        &self,
        name: &str,
        aliases: &[&str],
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        let full = self.full(name);
        let shape = shape.into();
        let registry = &mut *self.shared.borrow_mut();
        if let Some(param) = registry.params.get(&full) {
            return Ok(param.clone());
        }
        let value = match registry.take(&full, aliases, shape.dims(), &shape)? {
            Some(value) => value,
            None => registry.draw(&full, &shape, init)?,
        };
        // Nobody else holds what has just been read or drawn.
        let param = Param::owned(full.clone(), &value)?;
        registry.params.insert(full, param.clone());
        Ok(param)
    }

    /// Like [`WeightBuilder::param`], of a parameter that is saved in the shape `stored`, of as many elements.
    pub fn param_stored_as(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        stored: &[usize],
        init: Init,
    ) -> Result<Param> {
        let full = self.full(name);
        let shape = shape.into();
        let registry = &mut *self.shared.borrow_mut();
        if let Some(param) = registry.params.get(&full) {
            return Ok(param.clone());
        }
        let value = match registry.take(&full, &[], stored, &shape)? {
            Some(value) => value,
            None => registry.draw(&full, &shape, init)?,
        };
        let param = Param::owned(full.clone(), &value)?;
        registry.stored_shapes.insert(full.clone(), stored.to_vec());
        registry.params.insert(full, param.clone());
        Ok(param)
    }

    /// Returns the constant `name`: part of the checkpoint, but never trained. One that the checkpoint lacks is
    /// computed, and not reported.
    ///
    /// # Errors
    /// Like [`WeightBuilder::param`].
    pub fn buffer(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Tensor> {
        let full = self.full(name);
        let shape = shape.into();
        let registry = &mut *self.shared.borrow_mut();
        if let Some(value) = registry.constants.get(&full) {
            return Ok(value.clone());
        }
        let value = match registry.take(&full, &[], shape.dims(), &shape)? {
            Some(value) => value,
            None => registry.fresh(&full, &shape, init)?,
        };
        registry.constants.insert(full, value.clone());
        Ok(value)
    }

    /// Returns the value `name`, which passes measure and which is saved: what the checkpoint holds, or else `start`.
    ///
    /// # Errors
    /// When the checkpoint holds it with another number of elements than `shape` has.
    pub(crate) fn measured(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        start: Option<Tensor>,
    ) -> Result<Measured> {
        let full = self.full(name);
        let shape = shape.into();
        let registry = &mut *self.shared.borrow_mut();
        if let Some(known) = registry.measured.get(&full) {
            return Ok(known.clone());
        }
        let value = registry.take_measured(&full, &shape)?;
        let measured = Measured::new(full.clone(), value, start);
        registry.measured.insert(full, measured.clone());
        Ok(measured)
    }

    /// Saves under `name` what `work` works out when the model is saved; what a checkpoint holds under it is passed over.
    pub(crate) fn derived(
        &self,
        name: &str,
        work: impl Fn() -> Result<Tensor> + Send + Sync + 'static,
    ) {
        let full = self.full(name);
        self.ignore(&[&full]);
        let derived = &mut self.shared.borrow_mut().derived;
        derived.insert(full, Box::new(work));
    }

    /// Keeps a map from `inner` to `outer` features that the model has no use for, but that transformers expects in a file:
    /// saved as it was read, or drawn as it would be there.
    pub(crate) fn carry_linear(
        &self,
        name: &str,
        inner: usize,
        outer: usize,
        std: f64,
    ) -> Result<()> {
        let at = self.pp(name);
        at.carry_drawn("weight", (outer, inner), Init::Normal(std))?;
        at.carry_drawn("bias", outer, Init::Zeros)
    }

    /// Like [`WeightBuilder::carry`], of a value that is drawn.
    pub(crate) fn carry_drawn(
        &self,
        name: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<()> {
        let full = self.full(name);
        let shape = shape.into();
        self.carry(name, |registry| registry.fresh(&full, &shape, init))
    }

    /// Like [`WeightBuilder::carry`], of a value that is known.
    pub(crate) fn carry_value(&self, name: &str, value: Tensor) -> Result<()> {
        self.carry(name, |_| Ok(value))
    }

    /// Keeps what the model has no use for, but transformers expects in a file: what the checkpoint holds, which
    /// [`Family::carried`] names, or else a value that is made here.
    fn carry(&self, name: &str, make: impl FnOnce(&mut Registry) -> Result<Tensor>) -> Result<()> {
        let full = self.full(name);
        if !self.holds(&full) {
            let registry = &mut *self.shared.borrow_mut();
            let value = make(registry)?;
            registry.constants.insert(full, value);
        }
        Ok(())
    }

    /// Saves `param` under the full name `name` too, for versions of transformers that do not know that the two are one.
    pub(crate) fn save_also_as(&self, name: &str, param: &Param) {
        let aliases = &mut self.shared.borrow_mut().aliases;
        aliases.insert(name.to_owned(), param.clone());
    }

    /// Returns the table of words `weight` below this builder's prefix, which a checkpoint may hold under the full name
    /// `decoder` of the product with the vocabulary instead where the two are `tied`.
    ///
    /// # Errors
    /// Like [`WeightBuilder::param`].
    pub(crate) fn word_table(
        &self,
        tied: bool,
        decoder: &str,
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        // A checkpoint that holds two different matrices is not tied, whatever its config says.
        let shared = tied && !self.differ(&self.full("weight"), decoder)?;
        let aliases: &[&str] = if shared { &[decoder] } else { &[] };
        self.param_or_alias("weight", aliases, shape, init)
    }

    /// Returns the matrix and the bias of the product with the vocabulary, whose matrix is called `name`.weight.
    ///
    /// Where weights are tied, `word` is the matrix, and the bias has the name `bias`; a checkpoint that holds other values
    /// under the matrix's own name is not tied, whatever its config says (as in transformers 5). Untied, the bias is
    /// `name`.bias, which is saved under both names.
    pub(crate) fn decoder(
        &self,
        name: &str,
        bias: Option<&str>,
        word: Option<&Param>,
        (vocab, width): (usize, usize),
        std: f64,
    ) -> Result<(Param, Option<Param>)> {
        let (matrix, own_bias) = (format!("{name}.weight"), format!("{name}.bias"));
        let mut tied = word.filter(|word| word.shape().dims() == [vocab, width]);
        if let Some(word) = tied
            && self.differ(word.name(), &matrix)?
        {
            let names = (word.name().to_owned(), matrix.clone());
            self.shared.borrow_mut().report.untied = Some(names);
            tied = None;
        }
        let decoder = match tied {
            Some(word) => {
                self.ignore(&[&matrix]);
                let tied = &mut self.shared.borrow_mut().tied;
                tied.insert(matrix, word.clone());
                word.clone()
            }
            None => self.param(&matrix, (vocab, width), Init::Normal(std))?,
        };
        let Some(bias) = bias else {
            return Ok((decoder, None));
        };
        let param = if tied.is_some() {
            let param = self.param_or_alias(bias, &[&own_bias], vocab, Init::Zeros)?;
            let tied = &mut self.shared.borrow_mut().tied;
            tied.insert(own_bias, param.clone());
            param
        } else {
            let param = self.param_or_alias(&own_bias, &[bias], vocab, Init::Zeros)?;
            if bias != own_bias {
                self.save_also_as(bias, &param);
            }
            param
        };
        Ok((decoder, Some(param)))
    }

    /// Returns whether the checkpoint holds both names (full ones) and they are not the same array. Two names are compared
    /// once.
    pub(crate) fn differ(&self, a: &str, b: &str) -> Result<bool> {
        let registry = &mut *self.shared.borrow_mut();
        let pair = (a.to_owned(), b.to_owned());
        if let Some(&known) = registry.compared.get(&pair) {
            return Ok(known);
        }
        let differ = registry.differ(a, b)?;
        registry.compared.insert(pair, differ);
        Ok(differ)
    }

    /// Declares full names that a checkpoint may carry without being reported: aliases of tied weights, old buffers.
    pub fn ignore(&self, names: &[&str]) {
        if let Some(source) = &mut self.shared.borrow_mut().source {
            for name in names {
                if let Some(stored) = source.names.get(*name) {
                    source.used.insert(stored.clone());
                }
            }
        }
    }

    /// Returns whether the checkpoint holds the full name `name`; no without a checkpoint.
    pub fn holds(&self, name: &str) -> bool {
        let registry = &*self.shared.borrow();
        let source = registry.source.as_ref();
        source.is_some_and(|source| source.names.contains_key(name))
    }

    /// Returns the device that the parameters are on.
    pub(crate) fn device(&self) -> Device {
        self.shared.borrow().device.clone()
    }

    /// Adds a remark to the load report; models without a checkpoint have none.
    pub(crate) fn note(&self, note: impl Into<String>) {
        let registry = &mut *self.shared.borrow_mut();
        if registry.source.is_some() {
            registry.report.notes.push(note.into());
        }
    }

    /// Returns all parameters that were handed out, and the report on loading.
    pub(crate) fn finish(self) -> Result<Weights> {
        let registry = &mut *self.shared.borrow_mut();
        let params: Vec<Param> = registry.params.values().cloned().collect();
        let mut report = std::mem::take(&mut registry.report);
        let mut constants = std::mem::take(&mut registry.constants);
        if let Some(source) = &registry.source {
            for (canonical, stored) in &source.names {
                if source.used.contains(stored) {
                    continue;
                }
                let among = |parts: &[&str]| parts.iter().any(|part| canonical.contains(part));
                if among(source.carried) {
                    let value = source.checkpoint.tensor(stored, &Device::Cpu)?;
                    constants.insert(canonical.clone(), value);
                } else if !among(source.ignored) {
                    report.unexpected.push(stored.clone());
                }
            }
            if !params.is_empty() && report.missing.len() == params.len() {
                return Err(Error::Weights(format!(
                    "none of the {} names in {} belongs to this model (the first is {:?}; expected for instance {:?}): \
                     is config.json from another model?",
                    source.names.len(),
                    source.checkpoint.path().display(),
                    source.names.values().next().map_or("", String::as_str),
                    params[0].name()
                )));
            }
        }
        Ok(Weights {
            params,
            constants,
            measured: std::mem::take(&mut registry.measured)
                .into_values()
                .collect(),
            derived: std::mem::take(&mut registry.derived),
            aliases: std::mem::take(&mut registry.aliases),
            tied: std::mem::take(&mut registry.tied),
            stored_shapes: std::mem::take(&mut registry.stored_shapes),
            report,
        })
    }
}

impl Registry {
    fn differ(&self, a: &str, b: &str) -> Result<bool> {
        let Some(source) = &self.source else {
            return Ok(false);
        };
        let (Some(a), Some(b)) = (source.names.get(a), source.names.get(b)) else {
            return Ok(false);
        };
        let read = |name: &str| source.checkpoint.tensor(name, &Device::Cpu);
        let (a, b) = (read(a)?, read(b)?);
        if a.shape() != b.shape() {
            return Ok(true);
        }
        let unequal = a.to_dtype(DType::F32)?.ne(&b.to_dtype(DType::F32)?)?;
        Ok(unequal.flatten_all()?.max(0)?.to_scalar::<u8>()? != 0)
    }

    /// Takes the value of `full`, or else of the first of `aliases`, from the checkpoint, where it has the shape `stored`;
    /// `None` if the checkpoint has neither.
    fn take(
        &mut self,
        full: &str,
        aliases: &[&str],
        stored: &[usize],
        shape: &Shape,
    ) -> Result<Option<Tensor>> {
        let Some(source) = &mut self.source else {
            return Ok(None);
        };
        let mut value = None;
        for candidate in std::iter::once(full).chain(aliases.iter().copied()) {
            let Some(name) = source.names.get(candidate).cloned() else {
                continue;
            };
            source.used.insert(name.clone());
            if value.is_some() {
                continue;
            }
            let mut tensor = source.checkpoint.tensor(&name, &self.device)?;
            if let Some(resize) = &source.resize {
                tensor = resize.fit(full, tensor, stored)?;
            }
            if tensor.dims() != stored {
                return Err(Error::Weights(format!(
                    "{full} has shape {:?} in {} but {stored:?} by config.json: they do not belong together",
                    tensor.dims(),
                    source.checkpoint.path().display()
                )));
            }
            let tensor = if tensor.shape() == shape {
                tensor
            } else {
                tensor.reshape(shape)?
            };
            value = Some(tensor.to_dtype(self.dtype)?);
        }
        Ok(value)
    }

    /// Takes a value that passes measure from the checkpoint, on the CPU, where they read it.
    fn take_measured(&mut self, full: &str, shape: &Shape) -> Result<Option<Tensor>> {
        let Some(source) = &mut self.source else {
            return Ok(None);
        };
        let Some(name) = source.names.get(full).cloned() else {
            return Ok(None);
        };
        source.used.insert(name.clone());
        let value = source.checkpoint.tensor(&name, &Device::Cpu)?;
        if value.elem_count() != shape.elem_count() {
            return Err(Error::Weights(format!(
                "{full} has shape {:?} in {} but {:?} in the model",
                value.dims(),
                source.checkpoint.path().display(),
                shape.dims()
            )));
        }
        Ok(Some(value.to_dtype(self.dtype)?.reshape(shape)?))
    }

    /// Draws the value of a parameter that the checkpoint lacks, and notes that.
    fn draw(&mut self, full: &str, shape: &Shape, init: Init) -> Result<Tensor> {
        if self.source.is_some() {
            self.report.missing.push(full.to_owned());
        }
        self.fresh(full, shape, init)
    }

    fn fresh(&mut self, full: &str, shape: &Shape, init: Init) -> Result<Tensor> {
        let elements = (shape.dims().iter()).try_fold(1u64, |n, &dim| n.checked_mul(dim as u64));
        self.drawn = elements.map_or(u64::MAX, |elements| self.drawn.saturating_add(elements));
        let (most, limit) = self.most;
        if self.drawn > most {
            let why = match limit {
                Limit::Checkpoint => {
                    "it is missing from the checkpoint, as are more weights than the checkpoint has: is config.json from another model?"
                }
                Limit::Memory => "that is more than this machine's memory",
            };
            return Err(Error::Config(format!(
                "{full} would have the shape {:?}: {why}",
                shape.dims()
            )));
        }
        let seed = mix(self.seed ^ name_hash(full));
        Ok(initial(init, shape, seed, &self.device)?.to_dtype(self.dtype)?)
    }
}

/// Returns this machine's memory in bytes, if the system reports it.
fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// How the names in a family's checkpoints differ from the model's; see the fields of [`Family`](super::Family).
pub(crate) struct NameRules {
    pub(crate) base: &'static str,
    pub(crate) body: &'static [&'static str],
    pub(crate) renames: &'static [(&'static str, &'static str)],
    pub(crate) ignored: &'static [&'static str],
    pub(crate) carried: &'static [&'static str],
}

/// Maps today's names to the names in the file: old LayerNorm names, names that the family has changed, weights saved
/// without the base model's prefix, weights saved under a further prefix.
fn canonical_names<'a>(
    stored: impl Iterator<Item = &'a str>,
    rules: &NameRules,
) -> BTreeMap<String, String> {
    let stored: Vec<&str> = stored.collect();
    let base_dot = format!("{}.", rules.base);
    let has_base = stored.iter().any(|name| name.starts_with(&base_dot));
    // "module.roberta.embeddings..." carries "module." in front of everything.
    let wrapper = (!has_base)
        .then(|| {
            stored.iter().find_map(|name| {
                let at = name.find(&format!(".{base_dot}"))?;
                Some(name[..=at].to_owned())
            })
        })
        .flatten();
    let bare = !has_base && wrapper.is_none();
    let mut names = BTreeMap::new();
    for &name in &stored {
        let mut canonical = name.to_owned();
        if let Some(wrapper) = &wrapper
            && let Some(rest) = name.strip_prefix(wrapper.as_str())
        {
            canonical = rest.to_owned();
        }
        if let Some(stem) = canonical.strip_suffix(".gamma") {
            canonical = format!("{stem}.weight");
        } else if let Some(stem) = canonical.strip_suffix(".beta") {
            canonical = format!("{stem}.bias");
        }
        for (old, new) in rules.renames {
            canonical = canonical.replace(old, new);
        }
        if bare && rules.body.iter().any(|part| canonical.starts_with(part)) {
            canonical = format!("{base_dot}{canonical}");
        }
        names.insert(canonical, name.to_owned());
    }
    names
}

fn initial(init: Init, shape: &Shape, seed: u64, device: &Device) -> Result<Tensor> {
    Ok(match init {
        Init::Zeros => Tensor::zeros(shape, DType::F32, device)?,
        Init::Ones => Tensor::ones(shape, DType::F32, device)?,
        Init::Normal(std) => {
            // A variable becomes a parameter without being copied.
            Var::from_vec(normal(shape.elem_count(), std, seed), shape, device)?.into_inner()
        }
        Init::TruncatedNormal(std, cutoff) => {
            let mut values = normal(shape.elem_count(), std, seed);
            for again in 1.. {
                let outside = |value: &f32| f64::from(value.abs()) > cutoff * std;
                let places: Vec<usize> =
                    (0..values.len()).filter(|&i| outside(&values[i])).collect();
                // What two draws in three hit is soon hit; a cutoff of nothing never is.
                if places.is_empty() || again > 100 {
                    break;
                }
                let draws = normal(places.len(), std, mix(seed ^ again));
                places
                    .iter()
                    .zip(draws)
                    .for_each(|(&i, draw)| values[i] = draw);
            }
            let most = (cutoff * std) as f32;
            values
                .iter_mut()
                .for_each(|value| *value = value.clamp(-most, most));
            Var::from_vec(values, shape, device)?.into_inner()
        }
        Init::SinusoidHalves => {
            let (positions, width) = shape.dims2()?;
            let half = width.div_ceil(2);
            let mut values = vec![0.0f32; positions * width];
            for (position, row) in values.chunks_mut(width.max(1)).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    let pair = if j < half { j } else { j - half };
                    let angle = position as f64 / 10_000f64.powf(2.0 * pair as f64 / width as f64);
                    *value = if j < half { angle.sin() } else { angle.cos() } as f32;
                }
            }
            Tensor::from_vec(values, shape, device)?
        }
        Init::Uniform(low, high) => {
            let values = uniform(shape.elem_count(), low, high, seed);
            Var::from_vec(values, shape, device)?.into_inner()
        }
        Init::Alternating(std) => {
            let mut values = normal(shape.elem_count(), std, seed);
            let columns = shape.dims().get(1).copied().unwrap_or(1).max(1);
            let inner: usize = shape.dims().iter().skip(2).product();
            for (i, value) in values.iter_mut().enumerate() {
                let odd = (i / inner.max(1) % columns) % 2 == 1;
                *value += if odd { -1.0 } else { 1.0 };
            }
            Var::from_vec(values, shape, device)?.into_inner()
        }
        Init::NormalExceptRow(std, row) => {
            let (rows, width) = shape.dims2()?;
            let mut values = normal(shape.elem_count(), std, seed);
            if (row as usize) < rows {
                values[row as usize * width..(row as usize + 1) * width].fill(0.0);
            }
            Var::from_vec(values, shape, device)?.into_inner()
        }
        Init::Sinusoidal => {
            let (positions, width) = shape.dims2()?;
            let mut values = vec![0.0f32; positions * width];
            for (position, row) in values.chunks_mut(width.max(1)).enumerate() {
                for (j, value) in row.iter_mut().enumerate() {
                    // DistilBERT's table: sines in the even columns, cosines in the odd ones.
                    let angle =
                        position as f64 / 10_000f64.powf(2.0 * (j / 2) as f64 / width as f64);
                    *value = if j % 2 == 0 { angle.sin() } else { angle.cos() } as f32;
                }
            }
            Tensor::from_vec(values, shape, device)?
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_prefixed_names_are_converted() {
        let map = |names: &[&'static str]| {
            canonical_names(
                names.iter().copied(),
                &crate::model::Family::of("bert").name_rules(),
            )
        };
        let old = map(&["bert.embeddings.LayerNorm.gamma", "cls.predictions.bias"]);
        assert_eq!(
            old["bert.embeddings.LayerNorm.weight"],
            "bert.embeddings.LayerNorm.gamma"
        );
        let bare = map(&[
            "embeddings.LayerNorm.beta",
            "encoder.layer.0.output.dense.bias",
        ]);
        assert_eq!(
            bare["bert.embeddings.LayerNorm.bias"],
            "embeddings.LayerNorm.beta"
        );
        assert!(bare.contains_key("bert.encoder.layer.0.output.dense.bias"));
        let wrapped = map(&[
            "module.bert.pooler.dense.bias",
            "module.cls.predictions.bias",
        ]);
        assert!(wrapped.contains_key("bert.pooler.dense.bias"));
        assert!(wrapped.contains_key("cls.predictions.bias"));
    }
}
