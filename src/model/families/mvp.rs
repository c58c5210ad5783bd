//! MVP (Tang et al. 2022, arXiv:2206.12131): BART trained on many tasks, with learned keys and values before those of the
//! text in every layer, where `use_prompt` is set. No mask hides these prompts.

use serde::Deserialize;

use super::bart::{self, BartConfig, Kind, PromptSizes, Shift};
use crate::model::Family;
use crate::model::nn::Order;

/// `MvpForConditionalGeneration`.
pub(super) const FAMILY: Family = Family {
    model_type: "mvp",
    class: "MvpForConditionalGeneration",
    synonyms: &["MvpModel"],
    defaults: r#"{"vocab_size": 50267}"#,
    build: |config, weights| {
        let (bart, mvp): (BartConfig, MvpConfig) = (config.parse()?, config.parse()?);
        let sizes = PromptSizes {
            length: mvp.prompt_length,
            inner: mvp.prompt_mid_dim,
        };
        let kind = Kind {
            order: Order::PostNorm,
            shift: Shift::StartWith(bart.decoder_start_token_id),
            prompts: mvp.use_prompt.then_some(sizes),
        };
        bart::build(config, weights, &kind)
    },
    ..bart::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct MvpConfig {
    use_prompt: bool,
    prompt_length: usize,
    prompt_mid_dim: usize,
}

impl Default for MvpConfig {
    fn default() -> Self {
        Self {
            use_prompt: false,
            prompt_length: 100,
            prompt_mid_dim: 800,
        }
    }
}
