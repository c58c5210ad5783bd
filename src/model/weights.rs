//! From named arrays to a model's parameters, saying what was missing, unexpected or of the wrong shape.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use candle_core::{DType, Device, Shape, Tensor, Var};

use super::checkpoint::Checkpoint;
use super::context::mix;
use crate::ops::{self, Param};
use crate::{Error, Result};

/// How a parameter starts when no checkpoint provides it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// As `Normal`, but row `padding_idx` is zero.
    NormalExceptRow(f64, u32),
    /// All zeros.
    Zeros,
    /// All ones.
    Ones,
    /// The sine and cosine table of Vaswani et al. 2017, (positions, width).
    Sinusoidal,
}

/// What loading a checkpoint found, in the words of the reference library.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Parameters that the checkpoint lacks; they were freshly initialised.
    pub missing: Vec<String>,
    /// Names in the checkpoint that the model has no use for.
    pub unexpected: Vec<String>,
    /// Parameters whose shape differs: name, the checkpoint's shape, the model's shape.
    pub mismatched: Vec<(String, Vec<usize>, Vec<usize>)>,
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
    missing: Vec<String>,
    mismatched: Vec<(String, Vec<usize>, Vec<usize>)>,
    seed: u64,
    device: Device,
    dtype: DType,
}

struct Source {
    checkpoint: Checkpoint,
    /// Canonical name → name in the file.
    names: BTreeMap<String, String>,
    used: BTreeSet<String>,
}

impl WeightBuilder {
    /// A builder that initialises every parameter from `seed`.
    pub fn random(seed: u64, device: &Device) -> Self {
        Self::with_source(None, seed, device)
    }

    /// A builder that takes parameters from `checkpoint` and initialises what it lacks from `seed`.
    ///
    /// `base` is the family's name for the model without its head ("roberta"): checkpoints of the bare model lack that
    /// prefix, others carry a further one in front of it.
    pub(crate) fn from_checkpoint(
        checkpoint: Checkpoint,
        base: &str,
        seed: u64,
        device: &Device,
    ) -> Self {
        let names = canonical_names(checkpoint.names(), base);
        let source = Source {
            checkpoint,
            names,
            used: BTreeSet::new(),
        };
        Self::with_source(Some(source), seed, device)
    }

    fn with_source(source: Option<Source>, seed: u64, device: &Device) -> Self {
        Self {
            prefix: String::new(),
            shared: Rc::new(RefCell::new(Registry {
                source,
                params: BTreeMap::new(),
                missing: Vec::new(),
                mismatched: Vec::new(),
                seed,
                device: device.clone(),
                dtype: DType::F32,
            })),
        }
    }

    /// The builder for the names below `name`.
    #[must_use]
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self {
            prefix: format!("{}{name}.", self.prefix),
            shared: Rc::clone(&self.shared),
        }
    }

    /// The parameter `name` below this builder's prefix, of the given shape.
    ///
    /// Asked twice for the same name, it hands out the same (shared) parameter.
    pub fn param(&self, name: &str, shape: impl Into<Shape>, init: Init) -> Result<Param> {
        self.param_or_alias(name, &[], shape, init)
    }

    /// As [`WeightBuilder::param`]; where the checkpoint lacks `name`, the first of `aliases` (full names) that it has
    /// serves instead. Aliases are never reported as unexpected.
    pub fn param_or_alias(
        &self,
        name: &str,
        aliases: &[&str],
        shape: impl Into<Shape>,
        init: Init,
    ) -> Result<Param> {
        let full = format!("{}{name}", self.prefix);
        let shape = shape.into();
        let registry = &mut *self.shared.borrow_mut();
        if let Some(param) = registry.params.get(&full) {
            return Ok(param.clone());
        }
        let mut value = None;
        if let Some(source) = &mut registry.source {
            let candidates = std::iter::once(full.as_str()).chain(aliases.iter().copied());
            for candidate in candidates {
                let Some(stored) = source.names.get(candidate).cloned() else {
                    continue;
                };
                source.used.insert(stored.clone());
                if value.is_some() {
                    continue;
                }
                let tensor = source.checkpoint.tensor(&stored, &registry.device)?;
                if tensor.shape() == &shape {
                    value = Some(tensor.to_dtype(registry.dtype)?);
                } else {
                    let found = tensor.dims().to_vec();
                    registry
                        .mismatched
                        .push((full.clone(), found, shape.dims().to_vec()));
                }
            }
        }
        let value = match value {
            Some(value) => value,
            None => {
                if registry.source.is_some()
                    && !registry.mismatched.iter().any(|(name, ..)| *name == full)
                {
                    registry.missing.push(full.clone());
                }
                let seed = mix(registry.seed ^ name_hash(&full));
                initial(init, &shape, seed, &registry.device)?.to_dtype(registry.dtype)?
            }
        };
        // Nobody else holds what has just been read or drawn.
        let param = Param::owned(full.clone(), &value)?;
        registry.params.insert(full, param.clone());
        Ok(param)
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

    /// All parameters handed out, in the order of their names, and what loading found.
    pub(crate) fn finish(self) -> Result<(Vec<Param>, LoadReport)> {
        let registry = &mut *self.shared.borrow_mut();
        let params: Vec<Param> = registry.params.values().cloned().collect();
        let mut report = LoadReport {
            missing: std::mem::take(&mut registry.missing),
            unexpected: Vec::new(),
            mismatched: std::mem::take(&mut registry.mismatched),
        };
        if let Some(source) = &registry.source {
            report.unexpected = source
                .names
                .iter()
                .filter(|(canonical, stored)| {
                    !source.used.contains(*stored) && !canonical.ends_with("position_ids")
                })
                .map(|(_, stored)| stored.clone())
                .collect();
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
        if let Some((name, found, expected)) = report.mismatched.first() {
            return Err(Error::Weights(format!(
                "{name} has shape {found:?} in the checkpoint but {expected:?} by config.json ({} such weights): \
                 the two do not belong together",
                report.mismatched.len()
            )));
        }
        Ok((params, report))
    }
}

/// Maps today's names to the names in the file: old LayerNorm names, weights saved without the base model's prefix,
/// weights saved under a further prefix.
fn canonical_names<'a>(
    stored: impl Iterator<Item = &'a str>,
    base: &str,
) -> BTreeMap<String, String> {
    let stored: Vec<&str> = stored.collect();
    let base_dot = format!("{base}.");
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
        const BODY: [&str; 4] = ["embeddings.", "encoder.", "transformer.", "pooler."];
        if bare && BODY.iter().any(|part| canonical.starts_with(part)) {
            canonical = format!("{base_dot}{canonical}");
        }
        names.insert(canonical, name.to_owned());
    }
    names
}

fn name_hash(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

fn initial(init: Init, shape: &Shape, seed: u64, device: &Device) -> Result<Tensor> {
    Ok(match init {
        Init::Zeros => Tensor::zeros(shape, DType::F32, device)?,
        Init::Ones => Tensor::ones(shape, DType::F32, device)?,
        Init::Normal(std) => {
            // A variable becomes a parameter without being copied.
            Var::from_vec(normal(shape.elem_count(), std, seed), shape, device)?.into_inner()
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

/// `count` draws from N(0, std²), a function of `seed` and the index alone.
fn normal(count: usize, std: f64, seed: u64) -> Vec<f32> {
    use rayon::prelude::*;
    let mut values = ops::zeros(count);
    values.par_chunks_mut(2).enumerate().for_each(|(i, pair)| {
        // Box and Muller 1958: two uniform draws make two normal ones.
        let bits = |k: u64| (mix(seed ^ mix(2 * i as u64 + k)) >> 11) as f64 / (1u64 << 53) as f64;
        let radius = (-2.0 * (1.0 - bits(0)).ln()).sqrt() * std;
        let (sin, cos) = (std::f64::consts::TAU * bits(1)).sin_cos();
        pair[0] = (radius * cos) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (radius * sin) as f32;
        }
    });
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_draws_have_the_asked_moments() {
        let values = normal(1_000_001, 0.02, 5);
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = values
            .iter()
            .map(|&v| (f64::from(v) - mean).powi(2))
            .sum::<f64>()
            / n;
        // Four standard errors of a sample of a million.
        assert!(mean.abs() < 4.0 * 0.02 / n.sqrt(), "mean {mean}");
        assert!(
            (var.sqrt() / 0.02 - 1.0).abs() < 4.0 / (2.0 * n).sqrt(),
            "std {}",
            var.sqrt()
        );
    }

    #[test]
    fn old_and_prefixed_names_become_todays() {
        let map = |names: &[&'static str]| canonical_names(names.iter().copied(), "bert");
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
