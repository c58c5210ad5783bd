//! The keys of configs that are sizes, of which none is 0.

use serde_json::{Map, Value};

/// Numbers of features, rows, heads and groups that every model with the key needs. Numbers of layers, of segments and of
/// what some models do without may be 0.
const SIZES: &[&str] = &[
    "adapter_reduction_factor",
    "attention_head_size",
    "block_per_row",
    "conv_groups",
    "d_head",
    "d_inner",
    "d_latents",
    "d_model",
    "decoder_attention_heads",
    "decoder_ffn_dim",
    "dim",
    "ema_projection_size",
    "emb_dim",
    "embedding_size",
    "encoder_attention_heads",
    "encoder_ffn_dim",
    "entity_emb_size",
    "entity_vocab_size",
    "feed_forward_size",
    "head_dim",
    "head_ratio",
    "hidden_dim",
    "hidden_size",
    "inner_group_num",
    "input_embedding_size",
    "intermediate_groups",
    "intermediate_size",
    "k_groups",
    "local_attn_chunk_length",
    "lsh_attn_chunk_length",
    "max_2d_position_embeddings",
    "max_position_embeddings",
    "max_positions",
    "n_head",
    "n_heads",
    "nffn_hidden_size",
    "num_attention_heads",
    "num_conv_pos_embedding_groups",
    "num_conv_pos_embeddings",
    "num_cross_attention_heads",
    "num_groups",
    "num_hashes",
    "num_hidden_groups",
    "num_key_value_heads",
    "num_landmarks",
    "num_latents",
    "num_self_attention_heads",
    "output_embedding_size",
    "output_groups",
    "post_attention_groups",
    "q_groups",
    "qk_channels",
    "relative_attention_num_buckets",
    "cross_attention_widening_factor",
    "segment_means_seq_len",
    "self_attention_widening_factor",
    "shared_representation_size",
    "v_channels",
    "v_groups",
    "vocab_size",
];

/// Returns the first of `names` that is a size and has the value 0.
pub(super) fn zero(values: &Map<String, Value>, names: &[&'static str]) -> Option<&'static str> {
    let is_zero = |name: &str| values.get(name).and_then(Value::as_f64) == Some(0.0);
    let mut sizes = names.iter().filter(|name| SIZES.contains(name));
    sizes.find(|name| is_zero(name)).copied()
}

#[cfg(test)]
mod tests {
    use crate::model::families::FAMILIES;
    use crate::model::{Config, MaskedLm};

    #[test]
    fn a_size_of_0_is_refused_by_its_name_in_every_family() {
        let mut refused = 0;
        for family in FAMILIES {
            let config = Config::small(family.model_type);
            let model = MaskedLm::from_config(&config, 1).unwrap();
            // The names in a file, too.
            let aliases = family.aliases.iter().map(|(alias, _)| *alias);
            for key in super::SIZES.iter().copied().chain(aliases) {
                let meant = family.aliases.iter().find(|(alias, _)| *alias == key);
                let meant = meant.map_or(key, |(_, key)| key);
                if !super::SIZES.contains(&meant) || !model.config().was_asked_for(meant) {
                    continue;
                }
                let zero = config.clone().without(meant).set(key, 0);
                let error = MaskedLm::from_config(&zero, 1).unwrap_err().to_string();
                let told = format!("model config: {key} is 0, but must be positive");
                assert_eq!(error, told, "{}", family.model_type);
                refused += 1;
            }
        }
        assert!(refused > 300, "{refused}");
    }
}
