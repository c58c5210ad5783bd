//! I-BERT (Kim et al. 2021, arXiv:2101.01321) in its float mode: RoBERTa, whose checkpoints carry the ranges and the
//! rounded weights of the integer arithmetic along.

use super::roberta;
use crate::model::nn::Spec;
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::{Error, Result};

/// `IBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "ibert",
    class: "IBertForMaskedLM",
    synonyms: &["IBertModel"],
    base: "ibert",
    carried: &[
        "_integer",
        "_scaling_factor",
        ".x_min",
        ".x_max",
        "LayerNorm.shift",
    ],
    defaults: r#"{"pad_token_id": 1}"#,
    build,
    ..roberta::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    if config.get("quant_mode") == Some(&true.into()) {
        return Err(Error::Config(
            "quant_mode is set: integer arithmetic is not supported; set it to false to train and to fill masks in f32"
                .to_owned(),
        ));
    }
    let spec = Spec {
        base: "ibert",
        ..roberta::spec(config)?
    };
    Ok(Box::new(spec.build(weights)?))
}
