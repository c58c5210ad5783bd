//! The description of a family: names, defaults, inputs.

use std::borrow::Cow;

use serde_json::Value;

use super::families::FAMILIES;
use super::weights::NameRules;
use super::{Architecture, Config, Input, WeightBuilder};
use crate::{Error, Result};

/// Which texts may share a batch without a change in their results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Texts of any length: padding leaves the logits of a text's own positions as they are.
    AnyLength,
    /// Texts of one length: the model sees padding.
    OneLength,
    /// None: the texts of a batch influence one another.
    Alone,
}

/// A family of masked language models: how its checkpoints are named, and how its models are built.
///
/// [`FAMILIES`] lists the families that the library supports. To add your own, define a constant of this type and pass
/// it to [`MaskedLm::from_config_with`](super::MaskedLm::from_config_with) or
/// [`MaskedLm::from_pretrained_with`](super::MaskedLm::from_pretrained_with):
///
/// ```
/// use cloze::model::{Config, Family, MaskedLm};
///
/// // BERT's architecture under a name of its own.
/// const BIRD: Family = Family {
///     model_type: "bird",
///     class: "BirdForMaskedLM",
///     base: "bert",
///     ..Family::of("bert")
/// };
/// let config = Config::new("bird")
///     .set("vocab_size", 100)
///     .set("hidden_size", 16)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 32);
/// let model = MaskedLm::from_config_with(&config, 42, &BIRD)?;
/// assert_eq!(model.class(), "BirdForMaskedLM");
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class in `transformers`, as in the config's `architectures`.
    pub class: &'static str,
    /// Other classes whose checkpoints hold the same model: old names, and heads that share the body.
    pub synonyms: &'static [&'static str],
    /// The first part of the body's parameter names.
    pub base: &'static str,
    /// The beginnings of the body's names in checkpoints that leave out `base`.
    pub body: &'static [&'static str],
    /// Parts of names in older checkpoints, and what they are called today.
    pub renames: &'static [(&'static str, &'static str)],
    /// Parts of names that checkpoints carry and the model has no use for: heads of other tasks, old buffers. They are not
    /// reported as unexpected.
    pub ignored: &'static [&'static str],
    /// Parts of names that the model does not use either, but that `transformers` expects in a file: they are kept and
    /// saved again as they were.
    pub carried: &'static [&'static str],
    /// Other names of keys in `config.json`, and the names that the family reads.
    pub aliases: &'static [(&'static str, &'static str)],
    /// A JSON object of the values that a `config.json` without these keys means.
    pub defaults: &'static str,
    /// The inputs other than `input_ids`, `attention_mask`, `token_type_ids` and `labels`.
    pub inputs: &'static [Input],
    /// Which texts may share a batch.
    pub sharing: Sharing,
    /// Reads the config and takes the weights.
    pub build: fn(&Config, &WeightBuilder) -> Result<Box<dyn Architecture>>,
}

impl Family {
    /// Returns what opening a checkpoint needs to know of the family.
    pub(crate) fn name_rules(&self) -> NameRules {
        NameRules {
            base: self.base,
            body: self.body,
            renames: self.renames,
            ignored: self.ignored,
            carried: self.carried,
        }
    }

    /// Returns the known family of that `model_type`, as a starting point for another.
    ///
    /// # Panics
    /// When there is none. In a constant, as it is meant to be used, that is an error when compiling.
    pub const fn of(model_type: &str) -> Self {
        let mut i = 0;
        while i < FAMILIES.len() {
            if same(FAMILIES[i].model_type.as_bytes(), model_type.as_bytes()) {
                return *FAMILIES[i];
            }
            i += 1;
        }
        panic!("there is no family with this model_type")
    }

    /// Returns the family that `config` names.
    pub(super) fn find(config: &Config) -> Result<&'static Self> {
        let model_type = config.model_type();
        let found = FAMILIES
            .iter()
            .find(|family| family.model_type == model_type);
        found.copied().ok_or_else(|| {
            Error::Config(format!(
                "model_type {model_type:?} is not supported; supported are {}",
                SUPPORTED_MODEL_TYPES.join(", ")
            ))
        })
    }

    /// Checks that `config` is not the one of a model that was trained to continue texts from left to right.
    pub(super) fn check_direction(&self, config: &Config) -> Result<()> {
        match config.get("is_decoder") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                return Err(Error::Config(
                    "is_decoder is set: a left-to-right model can't fill masks; to train its weights as a masked language \
                     model, set is_decoder to false"
                        .to_owned(),
                ));
            }
            Some(other) => {
                return Err(Error::Config(format!(
                    "is_decoder is {other}, but it must be true or false"
                )));
            }
        }
        let classes = config.get("architectures").and_then(Value::as_array);
        let classes: Vec<&str> = (classes.into_iter().flatten())
            .filter_map(Value::as_str)
            .collect();
        let continues = |class: &&str| {
            let own = *class == self.class || self.synonyms.contains(class);
            let endings = ["ForCausalLM", "LMHeadModel", "ModelWithLMHead"];
            !own && endings.iter().any(|ending| class.ends_with(ending))
        };
        match classes.first() {
            Some(class) if classes.iter().all(continues) => Err(Error::Config(format!(
                "architectures names {class}: a left-to-right model can't fill masks; to train its weights as a masked \
                 language model, put {} there",
                self.class
            ))),
            _ => Ok(()),
        }
    }

    /// Returns `config` with the family's defaults in the places of keys that are absent or null.
    pub(super) fn complete<'a>(&self, config: &'a Config) -> Result<Cow<'a, Config>> {
        let defaults: Value = serde_json::from_str(self.defaults)?;
        let mut completed = Cow::Borrowed(config);
        for (alias, key) in self.aliases {
            if config.get(alias).is_some() && config.get(key).is_none() {
                completed = Cow::Owned(completed.into_owned().set_from(alias, key));
            }
        }
        for (key, value) in defaults.as_object().into_iter().flatten() {
            if completed.get(key).is_none_or(Value::is_null) {
                completed = Cow::Owned(completed.into_owned().set(key, value.clone()));
            }
        }
        Ok(completed)
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// The `model_type`s that [`MaskedLm`](super::MaskedLm) can open.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &{
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].model_type;
        i += 1;
    }
    names
};

/// Returns which texts may share a batch of a model of this `model_type`.
pub(crate) fn sharing(model_type: &str) -> Sharing {
    let mut families = FAMILIES.iter();
    let family = families.find(|family| family.model_type == model_type);
    family.map_or(Sharing::AnyLength, |family| family.sharing)
}

/// Returns the family of that `model_type`.
#[cfg(test)]
pub(crate) fn family_of(model_type: &str) -> Option<&'static Family> {
    let mut families = FAMILIES.iter().copied();
    families.find(|family| family.model_type == model_type)
}

/// Returns what the families say about the input `name`; `None` where none of them knows it.
pub(crate) fn known_input(name: &str) -> Option<&'static Input> {
    let mut inputs = FAMILIES.iter().flat_map(|family| family.inputs);
    inputs.find(|input| input.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_listed_once_and_its_defaults_are_json() {
        let mut names = SUPPORTED_MODEL_TYPES.to_vec();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FAMILIES.len());
        for family in FAMILIES {
            let config = Config::new(family.model_type);
            let completed = family.complete(&config).unwrap();
            assert_eq!(completed.model_type(), family.model_type);
            assert_eq!(Family::find(&config).unwrap().class, family.class);
        }
    }

    #[test]
    fn families_agree_on_inputs_of_the_same_name() {
        for input in FAMILIES.iter().flat_map(|family| family.inputs) {
            assert_eq!(known_input(input.name), Some(input), "{}", input.name);
        }
    }

    #[test]
    fn configs_of_left_to_right_models_are_refused_in_every_family() {
        let reason = |config: &Config| {
            let model = crate::model::MaskedLm::from_config(config, 1);
            let error = model.err().map(|error| error.to_string());
            error.unwrap_or_default()
        };
        for family in FAMILIES {
            let config = Config::small(family.model_type);
            let named = |classes: &[&str]| config.clone().set("architectures", classes.to_vec());
            let decoder = reason(&config.clone().set("is_decoder", true));
            assert!(decoder.contains("left-to-right"), "{decoder}");
            let odd = reason(&config.clone().set("is_decoder", "yes"));
            assert!(odd.contains("true or false"), "{odd}");
            let stem = family.class.split("For").next().unwrap_or_default();
            let causal = format!("{stem}ForCausalLM");
            let refused = reason(&named(&[&causal]));
            assert!(refused.contains(&causal) && refused.contains(family.class));
            // What also is a masked language model, or has another head, opens.
            for classes in [vec![], vec![&*causal, family.class], vec!["ForQuestions"]] {
                assert_eq!(reason(&named(&classes).set("is_decoder", false)), "");
            }
            for class in family.synonyms {
                assert_eq!(reason(&named(&[class])), "", "{class}");
            }
        }
        for (model_type, class) in [
            ("reformer", "ReformerModelWithLMHead"),
            ("bert", "BertLMHeadModel"),
        ] {
            let config = Config::small(model_type).set("architectures", vec![class]);
            assert!(reason(&config).contains(class));
        }
    }

    #[test]
    fn the_page_on_families_mentions_every_family() {
        let page = include_str!("../../docs/families.md");
        let missing = |name: &&&str| !page.contains(&format!("`{name}`"));
        let missing: Vec<_> = SUPPORTED_MODEL_TYPES.iter().filter(missing).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
