//! XLM-RoBERTa-XL (Goyal et al. 2021, arXiv:2105.00572): a large pre-norm XLM-RoBERTa without a normalization after its
//! embeddings.

use super::{bert, roberta};
use crate::Result;
use crate::model::{Architecture, Config, Family, WeightBuilder};

/// `XLMRobertaXLForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "xlm-roberta-xl",
    class: "XLMRobertaXLForMaskedLM",
    synonyms: &["XLMRobertaXLModel"],
    defaults: r#"{"vocab_size": 250880, "pad_token_id": 1, "hidden_size": 2560, "num_hidden_layers": 36,
        "num_attention_heads": 32, "intermediate_size": 10240, "max_position_embeddings": 514, "type_vocab_size": 1,
        "layer_norm_eps": 1e-5}"#,
    build,
    ..roberta::FAMILY
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let norms = [
        "encoder.layer.{}.attention.self_attn_layer_norm",
        "encoder.layer.{}.LayerNorm",
        "encoder.LayerNorm",
    ];
    let spec = bert::normalized_first(roberta::spec(config)?, norms);
    Ok(Box::new(spec.build(weights)?))
}
