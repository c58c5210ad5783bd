//! The families, one file each; a file defines how its family differs from its parent.

mod albert;
mod bart;
mod bert;
mod big_bird;
mod convbert;
mod deberta;
mod deberta_v2;
mod distilbert;
mod electra;
mod ernie;
mod esm;
mod eurobert;
mod fnet;
mod funnel;
mod ibert;
mod layoutlm;
mod longformer;
mod luke;
mod mbart;
mod mega;
mod megatron_bert;
mod mobilebert;
mod modernbert;
mod mpnet;
mod mra;
mod mvp;
mod nezha;
mod nomic_bert;
mod nystromformer;
mod padded;
mod perceiver;
mod qdqbert;
mod reformer;
mod rembert;
mod roberta;
mod roberta_prelayernorm;
mod roc_bert;
mod roformer;
mod squeezebert;
mod tapas;
mod wav2vec2;
mod xlm;
mod xlm_roberta_xl;
mod xmod;
mod yoso;

use super::Family;
use crate::{Error, Result};

/// All families that the library supports, by `model_type`. Every other list of families is derived from this one.
pub(super) const FAMILIES: &[&Family] = &[
    &albert::FAMILY,
    &bart::FAMILY,
    &bert::FAMILY,
    &big_bird::FAMILY,
    &roberta::CAMEMBERT,
    &convbert::FAMILY,
    &roberta::DATA2VEC_TEXT,
    &deberta::FAMILY,
    &deberta_v2::FAMILY,
    &distilbert::FAMILY,
    &electra::FAMILY,
    &ernie::FAMILY,
    &esm::FAMILY,
    &eurobert::FAMILY,
    &xlm::FLAUBERT,
    &fnet::FAMILY,
    &funnel::FAMILY,
    &ibert::FAMILY,
    &layoutlm::FAMILY,
    &longformer::FAMILY,
    &luke::FAMILY,
    &mbart::FAMILY,
    &mega::FAMILY,
    &megatron_bert::FAMILY,
    &mobilebert::FAMILY,
    &modernbert::FAMILY,
    &mpnet::FAMILY,
    &mra::FAMILY,
    &mvp::FAMILY,
    &nezha::FAMILY,
    &nomic_bert::FAMILY,
    &nystromformer::FAMILY,
    &perceiver::FAMILY,
    &qdqbert::FAMILY,
    &reformer::FAMILY,
    &rembert::FAMILY,
    &roberta::FAMILY,
    &roberta_prelayernorm::FAMILY,
    &roc_bert::FAMILY,
    &roformer::FAMILY,
    &squeezebert::FAMILY,
    &tapas::FAMILY,
    &wav2vec2::FAMILY,
    &xlm::FAMILY,
    &roberta::XLM_ROBERTA,
    &xlm_roberta_xl::FAMILY,
    &xmod::FAMILY,
    &yoso::FAMILY,
];

/// Checks the sizes that every config has.
fn check_sizes(vocab: usize, hidden: usize, heads: usize) -> Result<()> {
    if heads == 0 || hidden == 0 || !hidden.is_multiple_of(heads) {
        return Err(Error::Config(format!(
            "hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )));
    }
    if vocab == 0 {
        return Err(Error::Config("vocab_size must be positive".to_owned()));
    }
    Ok(())
}
