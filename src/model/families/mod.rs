//! The families, one file each; a file says how its family differs from its parent.

mod albert;
mod bert;
mod distilbert;
mod electra;
mod ernie;
mod esm;
mod ibert;
mod layoutlm;
mod luke;
mod megatron_bert;
mod mobilebert;
mod qdqbert;
mod rembert;
mod roberta;
mod roberta_prelayernorm;
mod roc_bert;
mod tapas;
mod xlm;
mod xlm_roberta_xl;
mod xmod;

use super::Family;

/// All families that the library knows. Whoever needs a list of them reads this one.
pub(super) const FAMILIES: &[&Family] = &[
    &albert::FAMILY,
    &bert::FAMILY,
    &roberta::CAMEMBERT,
    &roberta::DATA2VEC_TEXT,
    &distilbert::FAMILY,
    &electra::FAMILY,
    &ernie::FAMILY,
    &esm::FAMILY,
    &xlm::FLAUBERT,
    &ibert::FAMILY,
    &layoutlm::FAMILY,
    &luke::FAMILY,
    &megatron_bert::FAMILY,
    &mobilebert::FAMILY,
    &qdqbert::FAMILY,
    &rembert::FAMILY,
    &roberta::FAMILY,
    &roberta_prelayernorm::FAMILY,
    &roc_bert::FAMILY,
    &tapas::FAMILY,
    &xlm::FAMILY,
    &roberta::XLM_ROBERTA,
    &xlm_roberta_xl::FAMILY,
    &xmod::FAMILY,
];
