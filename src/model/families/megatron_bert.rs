//! Megatron-BERT (Shoeybi et al. 2019, arXiv:1909.08053): BERT that normalizes before its layers instead of after them.

use super::bert;
use crate::Result;
use crate::model::{Architecture, Config, Family, WeightBuilder};

/// `MegatronBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "megatron-bert",
    class: "MegatronBertForMaskedLM",
    synonyms: &["MegatronBertForPreTraining", "MegatronBertModel"],
    base: "bert",
    defaults: r#"{"vocab_size": 29056, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096}"#,
    build,
    ..bert::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let norms = [
        "encoder.layer.{}.attention.ln",
        "encoder.layer.{}.ln",
        "encoder.ln",
    ];
    let spec = bert::normalized_first(bert::spec(config)?, norms);
    Ok(Box::new(spec.build(weights)?))
}
