//! From a config's `model_type` to the family that implements it.

use super::bert::Bert;
use super::distilbert::DistilBert;
use super::roberta::Roberta;
use super::{Architecture, Config, WeightBuilder};
use crate::{Error, Result};

/// The `model_type`s that [`MaskedLm`](super::MaskedLm) can open.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &[
    "bert",
    "camembert",
    "data2vec-text",
    "distilbert",
    "roberta",
    "xlm-roberta",
];

/// What every family is called by the reference, and the name of its body in a checkpoint.
pub(super) struct Family {
    /// The reference's class, as it stands in `architectures`.
    pub class: &'static str,
    /// The first part of the body's parameter names.
    pub base: &'static str,
}

pub(super) fn family(model_type: &str) -> Result<Family> {
    let (class, base) = match model_type {
        "bert" => ("BertForMaskedLM", "bert"),
        "camembert" => ("CamembertForMaskedLM", "roberta"),
        "data2vec-text" => ("Data2VecTextForMaskedLM", "data2vec_text"),
        "distilbert" => ("DistilBertForMaskedLM", "distilbert"),
        "roberta" => ("RobertaForMaskedLM", "roberta"),
        "xlm-roberta" => ("XLMRobertaForMaskedLM", "roberta"),
        other => {
            return Err(Error::Config(format!(
                "model_type {other:?} is not supported; supported are {}",
                SUPPORTED_MODEL_TYPES.join(", ")
            )));
        }
    };
    Ok(Family { class, base })
}

pub(super) fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let base = family(config.model_type())?.base;
    Ok(match config.model_type() {
        "bert" => Box::new(Bert::new(config, weights)?),
        "distilbert" => Box::new(DistilBert::new(config, weights)?),
        _ => Box::new(Roberta::new(config, base, weights)?),
    })
}
