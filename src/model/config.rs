//! A model's `config.json`: kept as a whole, and parsed by each family into its own type.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as Stopped};
use serde_json::{Map, Value};

use super::{config_keys, config_sizes};
use crate::base::misspelling::meant;
use crate::{Error, Result};

/// A model configuration in the Hub's format.
///
/// Every key is kept, known or not, so that saving a model loses nothing. Missing keys take the defaults of
/// transformers for the model type.
///
/// ```
/// use cloze::model::Config;
/// let config = Config::new("roberta").set("num_hidden_layers", 6).set("vocab_size", 4000);
/// assert_eq!(config.model_type(), "roberta");
/// assert_eq!(config.get("num_hidden_layers"), Some(&6.into()));
/// ```
#[derive(Clone)]
pub struct Config {
    values: Map<String, Value>,
    asked: Asked,
    /// The keys that got the values of aliases, and these aliases.
    renamed: BTreeMap<&'static str, &'static str>,
}

/// The keys that a family has asked for, in all clones of a config.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<BTreeSet<String>>>);

impl Asked {
    fn note(&self, key: &str) {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.contains(key) {
            keys.insert(key.to_owned());
        }
    }
}

impl PartialEq for Config {
    fn eq(&self, other: &Self) -> bool {
        self.values == other.values
    }
}

impl Config {
    /// Returns the default configuration of `model_type` ("roberta", "bert", "distilbert", ...).
    pub fn new(model_type: &str) -> Self {
        let mut values = Map::new();
        values.insert("model_type".to_owned(), model_type.into());
        Self::from(values)
    }

    /// Reads `config.json` from `folder`.
    ///
    /// # Errors
    /// When the file is missing, is not a JSON object, or names no `model_type`.
    pub fn from_folder(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let text = crate::base::files::read(&path)?;
        let value: Value = crate::base::json::from_slice(&text)
            .map_err(|e| Error::format(&path, format!("not valid JSON: {e}")))?;
        let Value::Object(values) = value else {
            return Err(Error::format(&path, "a model config must be a JSON object"));
        };
        if !values.get("model_type").is_some_and(Value::is_string) {
            return Err(Error::format(
                &path,
                "the config has no \"model_type\"; is this the folder of a model?",
            ));
        }
        Ok(Self::from(values))
    }

    /// Sets one key, replacing its value.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.values.insert(key.to_owned(), value.into());
        self
    }

    /// Sets `key` to the value of its other name `alias`, by which errors then call it.
    pub(super) fn set_from(mut self, alias: &'static str, key: &'static str) -> Self {
        if let Some(value) = self.get(alias).cloned() {
            self.values.insert(key.to_owned(), value);
            self.renamed.insert(key, alias);
        }
        self
    }

    /// Returns the value of `key` if the config has it.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.asked.note(key);
        self.values.get(key)
    }

    /// Returns all keys and their values, in the file's order.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the architecture family's name.
    pub fn model_type(&self) -> &str {
        self.values
            .get("model_type")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// Reads the config into a family's own type, whose fields carry the family's defaults.
    ///
    /// # Errors
    /// When a value has another type than its field, or a size is 0.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T> {
        let names = Cell::new(&[] as &[&str]);
        // It only tells its fields.
        let _ = T::deserialize(FieldNames(&names));
        let names = names.get();
        names.iter().for_each(|name| self.asked.note(name));
        if let Some(key) = config_sizes::zero(&self.values, names) {
            return Err(Error::Config(format!(
                "{} is 0, but must be positive",
                self.name_in_file(key)
            )));
        }
        // An explicit null means "the default" in these files.
        let known = self.values.iter().filter(|(_, v)| !v.is_null());
        let known: Map<String, Value> = known.map(|(k, v)| (k.clone(), v.clone())).collect();
        serde_json::from_value(Value::Object(known)).map_err(|e| {
            Error::Config(match self.unreadable::<T>(names) {
                Some(key) => format!("{}: {e}", self.name_in_file(key)),
                None => e.to_string(),
            })
        })
    }

    /// Returns the first of `names` whose value does not fit the field of that name.
    fn unreadable<T: DeserializeOwned>(&self, names: &[&'static str]) -> Option<&'static str> {
        let reads =
            |values: Map<String, Value>| serde_json::from_value::<T>(Value::Object(values)).is_ok();
        // With defaults for all fields, one field can be tried alone.
        if !reads(Map::new()) {
            return None;
        }
        let does_not_fit = |name: &&&str| {
            let value = self.values.get(**name).filter(|value| !value.is_null());
            value
                .is_some_and(|value| !reads(Map::from_iter([((**name).to_owned(), value.clone())])))
        };
        names.iter().find(does_not_fit).copied()
    }

    /// Returns the name that `key` has in the file.
    fn name_in_file<'a>(&self, key: &'a str) -> &'a str {
        self.renamed.get(key).copied().unwrap_or(key)
    }

    /// Checks that probabilities of dropout are some, that what is added to variances is above 0, and that switches are on or
    /// off.
    pub(super) fn check_values(&self) -> Result<()> {
        for key in ["quant_mode", "tie_word_embeddings"] {
            if let Some(other) = self.get(key)
                && !matches!(other, Value::Null | Value::Bool(_))
            {
                return Err(Error::Config(format!(
                    "{key} is {other}, but it must be true or false"
                )));
            }
        }
        for (key, value) in self.entries() {
            let Some(number) = value.as_f64() else {
                continue;
            };
            let is_probability = key.contains("dropout") || key.contains("layerdrop");
            if is_probability && !(0.0..=1.0).contains(&number) {
                return Err(Error::Config(format!(
                    "{key} is {number}, but a probability must be between 0 and 1"
                )));
            }
            let is_epsilon = key.ends_with("_eps") || key.ends_with("_epsilon");
            if is_epsilon && number <= 0.0 {
                return Err(Error::Config(format!(
                    "{key} is {number}, but it must be positive to avoid a division by zero"
                )));
            }
        }
        Ok(())
    }

    /// Returns whether the output projection shares the embedding matrix (default: yes).
    pub fn tie_word_embeddings(&self) -> bool {
        self.get("tie_word_embeddings")
            .and_then(Value::as_bool)
            .unwrap_or(true)
    }

    /// Returns the keys that look like a misspelling of one that a family asked for when it was built, each with the one meant.
    ///
    /// A key counts as misspelled when nothing reads it, transformers knows none of that name, and the one meant is absent.
    pub(super) fn misspelled(&self, aliases: &[(&str, &str)]) -> Vec<(String, String)> {
        let asked = self.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_known = |key: &str| {
            asked.contains(key)
                || aliases.iter().any(|(alias, _)| *alias == key)
                || config_keys::is_known(self.model_type(), key)
        };
        let mut candidates: Vec<&str> = asked.iter().map(String::as_str).collect();
        candidates.extend(aliases.iter().map(|(alias, _)| *alias));
        for key in config_keys::of(self.model_type()) {
            candidates.push(key);
        }
        candidates.retain(|key| !self.values.contains_key(*key));
        let unknown = self.values.keys().filter(|key| !is_known(key));
        unknown
            .filter_map(|key| {
                Some((
                    key.clone(),
                    meant(key, candidates.iter().copied())?.to_owned(),
                ))
            })
            .collect()
    }

    /// Returns the config as pretty JSON, as it is written to `config.json`.
    pub fn to_json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(&self.values)?;
        text.push('\n');
        Ok(text)
    }
}

impl From<Map<String, Value>> for Config {
    fn from(values: Map<String, Value>) -> Self {
        Self {
            values,
            asked: Asked::default(),
            renamed: BTreeMap::new(),
        }
    }
}

/// Keeps the names of the fields that a type wants to be read from, and reads nothing.
struct FieldNames<'a>(&'a Cell<&'static [&'static str]>);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = Stopped;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Stopped> {
        Err(serde::de::Error::custom("there is nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Stopped> {
        self.0.set(fields);
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = serde_json::to_string_pretty(&self.values).map_err(|_| std::fmt::Error)?;
        write!(f, "Config {text}")
    }
}

#[cfg(test)]
impl Config {
    /// Returns the config without `key`.
    pub(super) fn without(mut self, key: &str) -> Self {
        self.values.shift_remove(key);
        self
    }

    /// Returns whether a family that was built from the config wanted `key`.
    pub(super) fn was_asked_for(&self, key: &str) -> bool {
        let asked = self.asked.0.lock().unwrap_or_else(PoisonError::into_inner);
        asked.contains(key)
    }

    /// Returns a small model of the family whose sizes all differ, so that mixing two of them up fails.
    pub(crate) fn small(model_type: &str) -> Config {
        let names: [&str; 4] = match model_type {
            "distilbert" => ["dim", "n_layers", "n_heads", "hidden_dim"],
            "bart" | "mbart" | "mvp" => [
                "d_model",
                "encoder_layers",
                "encoder_attention_heads",
                "encoder_ffn_dim",
            ],
            _ => [
                "hidden_size",
                "num_hidden_layers",
                "num_attention_heads",
                "intermediate_size",
            ],
        };
        let sizes = [24, 3, 4, 56];
        let config = Config::new(model_type)
            .set("vocab_size", 100)
            .set("d_model", 16)
            // Of those that write.
            .set("decoder_layers", 2)
            .set("decoder_attention_heads", 3)
            .set("decoder_ffn_dim", 40)
            // MVP's.
            .set("use_prompt", true)
            .set("prompt_length", 5)
            .set("prompt_mid_dim", 10)
            // Perceiver's.
            .set("d_latents", 24)
            .set("num_latents", 5)
            .set("num_blocks", 2)
            .set("num_self_attends_per_block", 2)
            .set("num_cross_attention_heads", 2)
            .set("num_self_attention_heads", 4)
            // LUKE's.
            .set("entity_vocab_size", 30)
            .set("entity_emb_size", 12)
            // Wav2Vec2's.
            .set("conv_dim", vec![8, 10])
            .set("conv_kernel", vec![10, 3])
            .set("conv_stride", vec![5, 2])
            .set("num_conv_pos_embeddings", 6)
            .set("num_conv_pos_embedding_groups", 4)
            .set("mask_feature_prob", 0.1)
            // X-MOD's.
            .set("default_language", "en_XX")
            .set(
                "embedding_size",
                if model_type == "squeezebert" { 24 } else { 16 },
            );
        let config = match model_type {
            "deberta" | "deberta-v2" => config
                .set("relative_attention", true)
                .set("pos_att_type", "c2p|p2c")
                .set("position_buckets", 8)
                .set("norm_rel_ebd", "layer_norm")
                .set("conv_kernel_size", 3),
            "funnel" => config
                .set("block_sizes", vec![2, 1, 1])
                .set("d_head", 6)
                .set("d_inner", 40)
                .set("num_decoder_layers", 1),
            "reformer" => config
                .set("axial_pos_embds_dim", vec![8, 16])
                .set("axial_pos_shape", vec![4, 8])
                .set("local_attn_chunk_length", 2)
                .set("lsh_attn_chunk_length", 4),
            // Short enough that the tests' texts go beyond what is attended to in full.
            "big_bird" => config.set("block_size", 2).set("num_random_blocks", 1),
            "longformer" => config.set("attention_window", 4),
            "nystromformer" => config.set("num_landmarks", 16),
            _ => config,
        };
        (names.into_iter().zip(sizes)).fold(config, |config, (name, size)| config.set(name, size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, WeightBuilder};

    /// Returns the configs of the small models in the tests, after building them, which records the keys they read.
    fn built() -> Vec<(Config, &'static Family)> {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        let mut configs = Vec::new();
        for folder in std::fs::read_dir(models).unwrap() {
            let config = Config::from_folder(folder.unwrap().path()).unwrap();
            let family = Family::find(&config).unwrap();
            let completed = family.complete(&config).unwrap().into_owned();
            let weights = WeightBuilder::random(1, &candle_core::Device::Cpu);
            (family.build)(&completed, &weights).unwrap();
            configs.push((completed, family));
        }
        assert!(configs.len() > 50);
        configs
    }

    #[test]
    fn no_number_of_heads_makes_a_family_panic() {
        use crate::model::{MaskedLm, SUPPORTED_MODEL_TYPES};
        for model_type in SUPPORTED_MODEL_TYPES {
            for heads in [0, 7] {
                let config = Config::small(model_type).set("num_attention_heads", heads);
                let built = MaskedLm::from_config(&config, 1);
                if matches!(*model_type, "bert" | "nystromformer" | "yoso" | "mra") {
                    let error = built.unwrap_err().to_string();
                    assert!(error.contains("num_attention_heads"), "{error}");
                }
            }
        }
    }

    #[test]
    fn misspelled_keys_are_reported_in_every_family_and_no_others() {
        let mut renamed = 0;
        for (config, family) in built() {
            let name = config.model_type();
            assert_eq!(config.misspelled(family.aliases), [], "{name}");
            let asked = config.asked.0.lock().unwrap().clone();
            for key in asked.iter().filter(|key| key.len() > 7) {
                let Some(value) = config.values.get(key) else {
                    continue;
                };
                let (start, end) = key.split_at(key.len() / 2);
                for wrong in [
                    format!("{start}{}", &end[1..]),
                    format!("{start}x{end}"),
                    key.replacen('_', "-", 1).to_uppercase(),
                ] {
                    // Some families have keys that differ by a letter.
                    if config_keys::is_known(name, &wrong) || asked.contains(&wrong) {
                        continue;
                    }
                    let other = config.clone().without(key).set(&wrong, value.clone());
                    let told = other.misspelled(family.aliases);
                    assert_eq!(told, [(wrong, key.clone())], "{name}");
                    renamed += 1;
                }
            }
        }
        assert!(renamed > 1000, "{renamed}");
    }

    #[test]
    fn impossible_numbers_are_refused() {
        for (key, value) in [
            ("hidden_dropout_prob", 2.5),
            ("attention_dropout", -0.1),
            ("layer_norm_eps", -1.0),
            ("norm_eps", 0.0),
        ] {
            let error = Config::new("bert")
                .set(key, value)
                .check_values()
                .unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
        for key in ["quant_mode", "tie_word_embeddings"] {
            let config = Config::new("bert").set(key, "no");
            let error = config.check_values().unwrap_err().to_string();
            let told = format!("{key} is \"no\", but it must be true or false");
            assert!(error.contains(&told), "{error}");
        }
        for (config, _) in built() {
            config.check_values().unwrap();
        }
    }

    #[test]
    fn a_key_is_not_reported_if_the_similar_one_is_present() {
        let family = Family::find(&Config::new("bert")).unwrap();
        let config = Config::small("bert").set("hidden_sizes", 3);
        assert_eq!(config.misspelled(family.aliases), []);
        let config = Config::new("bert").set("hidden_sizes", 3).set("my_note", 1);
        let told = ("hidden_sizes".to_owned(), "hidden_size".to_owned());
        assert_eq!(config.misspelled(family.aliases), [told]);
    }
}
