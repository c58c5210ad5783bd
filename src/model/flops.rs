//! The number of floating-point operations in a pass of a model.

/// The floating-point operations of a model, by what they grow with; a multiplication and an addition are two.
///
/// Only products of matrices count, and each once: what a run computes again to save memory is not work done for the model.
/// That is the numerator of model FLOPs utilisation (Chowdhery et al. 2022, PaLM, appendix B), with one difference: only the
/// masked tokens meet the head, as they do here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ModelFlops {
    /// Forward, for each token: two for each weight of the encoder's maps.
    pub per_token: u64,
    /// Forward, for each pair of a token and one that it looks at: four for each feature of each block (scores, and the
    /// weighted sum of the values).
    pub per_pair: u64,
    /// Forward, for each token that the head sees: two for each of its weights, the vocabulary's among them.
    pub per_counted: u64,
}

impl ModelFlops {
    /// Returns the operations of forward and backward passes over `tokens` tokens in rows of `seq`, of which `counted` are masked: three times the forward
    /// pass, since every product has two in the backward pass.
    pub fn of_training(self, tokens: usize, seq: usize, counted: usize) -> f64 {
        let pairs = tokens as f64 * seq as f64;
        let forward = tokens as f64 * self.per_token as f64
            + pairs * self.per_pair as f64
            + counted as f64 * self.per_counted as f64;
        3.0 * forward
    }
}

#[cfg(test)]
mod tests {
    use crate::model::{Config, MaskedLm};

    #[test]
    fn every_family_counts_linear_maps_attention_and_head() {
        for model_type in ["bert", "roberta", "distilbert"] {
            let model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
            let flops = model.flops().unwrap();
            assert_eq!(flops.per_token, 2 * 3 * (4 * 24 * 24 + 2 * 24 * 56));
            assert_eq!(flops.per_pair, 4 * 3 * 24);
            assert_eq!(flops.per_counted, 2 * (24 * 24 + 100 * 24));
            let all = flops.of_training(10, 5, 2);
            let forward = 10 * flops.per_token + 50 * flops.per_pair + 2 * flops.per_counted;
            assert_eq!(all, 3.0 * forward as f64, "{model_type}");
        }
    }

    #[test]
    fn a_token_of_distilroberta_costs_as_many_flops_as_its_weights_imply() {
        let config = Config::new("roberta")
            .set("vocab_size", 50265)
            .set("num_hidden_layers", 6)
            .set("hidden_size", 768);
        // 6 operations for each of the 42.5M weights of the maps, 12 for each feature, position and block, and 15% of the
        // head's 39.2M weights.
        let by_hand = 6.0 * 42.467e6 + 12.0 * 6.0 * 128.0 * 768.0 + 0.15 * 6.0 * 39.194e6;
        let model = MaskedLm::from_config(&config, 1).unwrap();
        let tokens = 1_000_000;
        let flops = model.flops().unwrap();
        let per_token = flops.of_training(tokens, 128, 150_000) / tokens as f64;
        assert!(
            (per_token / by_hand - 1.0).abs() < 1e-4,
            "{per_token:e} {by_hand:e}"
        );
    }
}
