//! The families, one file each; a file says how its family differs from its parent.

mod albert;
mod bert;
mod distilbert;
mod electra;
mod ernie;
mod ibert;
mod layoutlm;
mod luke;
mod megatron_bert;
mod qdqbert;
mod rembert;
mod roberta;
mod roberta_prelayernorm;
mod tapas;
mod xlm_roberta_xl;

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
    &ibert::FAMILY,
    &layoutlm::FAMILY,
    &luke::FAMILY,
    &megatron_bert::FAMILY,
    &qdqbert::FAMILY,
    &rembert::FAMILY,
    &roberta::FAMILY,
    &roberta_prelayernorm::FAMILY,
    &tapas::FAMILY,
    &roberta::XLM_ROBERTA,
    &xlm_roberta_xl::FAMILY,
];
