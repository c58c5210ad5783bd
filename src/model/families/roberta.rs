//! RoBERTa (Liu et al. 2019, arXiv:1907.11692) and those that only rename it: CamemBERT, XLM-RoBERTa, Data2VecText.

use super::bert;
use crate::Result;
use crate::model::nn::{HeadNames, Positions, Spec};
use crate::model::{Architecture, Config, Family, WeightBuilder};
use crate::ops::Activation;

/// `RobertaForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "roberta",
    class: "RobertaForMaskedLM",
    synonyms: &["RobertaModel"],
    base: "roberta",
    defaults: r#"{"vocab_size": 50265, "pad_token_id": 1}"#,
    build,
    ..bert::FAMILY
};

/// `CamembertForMaskedLM` (Martin et al. 2019, arXiv:1911.03894).
pub(super) const CAMEMBERT: Family = Family {
    model_type: "camembert",
    class: "CamembertForMaskedLM",
    defaults: r#"{"pad_token_id": 1}"#,
    ..FAMILY
};

/// `XLMRobertaForMaskedLM` (Conneau et al. 2019, arXiv:1911.02116).
pub(super) const XLM_ROBERTA: Family = Family {
    model_type: "xlm-roberta",
    class: "XLMRobertaForMaskedLM",
    defaults: r#"{"pad_token_id": 1}"#,
    ..FAMILY
};

/// `Data2VecTextForMaskedLM` (Baevski et al. 2022, arXiv:2202.03555).
pub(super) const DATA2VEC_TEXT: Family = Family {
    model_type: "data2vec-text",
    class: "Data2VecTextForMaskedLM",
    base: "data2vec_text",
    defaults: r#"{"pad_token_id": 1}"#,
    build: |config, weights| {
        let spec = Spec {
            base: "data2vec_text",
            ..spec(config)?
        };
        Ok(Box::new(spec.build(weights)?))
    },
    ..FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    Ok(Box::new(spec(config)?.build(weights)?))
}

/// The parts of RoBERTa's head.
pub(super) const HEAD: HeadNames = HeadNames {
    transform: Some(("lm_head.dense", "lm_head.layer_norm")),
    decoder: "lm_head.decoder",
    bias: Some("lm_head.bias"),
};

/// BERT with positions that are counted after the padding id, and another head.
pub(super) fn spec(config: &Config) -> Result<Spec> {
    let spec = bert::spec(config)?;
    Ok(Spec {
        base: "roberta",
        positions: match spec.positions {
            Positions::Table { rows, .. } => Positions::AfterPadding { rows },
            Positions::Relative {
                rows, kind, scaled, ..
            } => Positions::Relative {
                rows,
                kind,
                scaled,
                after_padding: true,
            },
            other => other,
        },
        head: HEAD,
        // Whatever hidden_act says: the head in transformers always uses the exact GELU.
        head_activation: Activation::Gelu,
        ..spec
    })
}
