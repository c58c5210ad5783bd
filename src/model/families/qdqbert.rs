//! QDQBERT (Wu et al. 2020, arXiv:2004.09602) with its quantizers off: BERT under its own class, so that any BERT
//! checkpoint opens as one.

use super::bert;
use crate::model::Family;

/// `QDQBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "qdqbert",
    class: "QDQBertForMaskedLM",
    synonyms: &["QDQBertModel"],
    // The config's class takes 1 for granted, though the vocabulary is BERT's.
    defaults: r#"{"pad_token_id": 1}"#,
    ..bert::FAMILY
};
