//! LUKE (Yamada et al. 2020, arXiv:2010.01057) over words alone: RoBERTa, whose checkpoints carry the parts for entities
//! along.

use super::roberta;
use crate::Result;
use crate::model::nn::Spec;
use crate::model::{Architecture, Config, Family, WeightBuilder};

/// `LukeForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "luke",
    class: "LukeForMaskedLM",
    synonyms: &["LukeModel"],
    base: "luke",
    body: &["embeddings.", "entity_embeddings.", "encoder.", "pooler."],
    carried: &[
        "luke.entity_embeddings.",
        "entity_predictions.",
        ".w2e_query.",
        ".e2w_query.",
        ".e2e_query.",
        "luke.pooler.",
    ],
    defaults: r#"{"vocab_size": 50267, "pad_token_id": 1}"#,
    build,
    ..roberta::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let spec = Spec {
        base: "luke",
        ..roberta::spec(config)?
    };
    Ok(Box::new(spec.build(weights)?))
}
