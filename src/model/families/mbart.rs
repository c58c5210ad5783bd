//! mBART (Liu et al. 2020, arXiv:2001.08210): BART that normalizes before attention and feed-forward, for texts of many
//! languages. The token that names the language ends the text for the encoder, and begins it for the decoder.

use super::bart::{self, Kind, Shift};
use crate::model::Family;
use crate::model::nn::Order;

/// `MBartForConditionalGeneration`.
pub(super) const FAMILY: Family = Family {
    model_type: "mbart",
    class: "MBartForConditionalGeneration",
    synonyms: &["MBartModel"],
    build: |config, weights| {
        let kind = Kind {
            order: Order::PreNorm,
            shift: Shift::LastToFront,
            prompts: None,
        };
        bart::build(config, weights, &kind)
    },
    ..bart::FAMILY
};
