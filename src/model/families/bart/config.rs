use serde::Deserialize;

use crate::model::nn::Dropouts;
use crate::{Error, Result};

/// The settings in a `config.json` of this type. Each family's `defaults` define missing keys.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(in super::super) struct BartConfig {
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    pub d_model: usize,
    pub encoder_layers: usize,
    pub encoder_ffn_dim: usize,
    pub encoder_attention_heads: usize,
    pub encoder_layerdrop: f64,
    pub decoder_layers: usize,
    pub decoder_ffn_dim: usize,
    pub decoder_attention_heads: usize,
    pub decoder_layerdrop: f64,
    pub activation_function: String,
    pub dropout: f64,
    pub attention_dropout: f64,
    pub activation_dropout: f64,
    pub init_std: f64,
    pub scale_embedding: bool,
    pub pad_token_id: u32,
    pub decoder_start_token_id: u32,
}

impl Default for BartConfig {
    fn default() -> Self {
        Self {
            vocab_size: 50265,
            max_position_embeddings: 1024,
            d_model: 1024,
            encoder_layers: 12,
            encoder_ffn_dim: 4096,
            encoder_attention_heads: 16,
            encoder_layerdrop: 0.0,
            decoder_layers: 12,
            decoder_ffn_dim: 4096,
            decoder_attention_heads: 16,
            decoder_layerdrop: 0.0,
            activation_function: "gelu".to_owned(),
            dropout: 0.1,
            attention_dropout: 0.0,
            activation_dropout: 0.0,
            init_std: 0.02,
            scale_embedding: false,
            pad_token_id: 1,
            decoder_start_token_id: 2,
        }
    }
}

/// The sizes of one side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side {
    /// Its name under the base.
    pub name: &'static str,
    pub layers: usize,
    pub heads: usize,
    pub intermediate: usize,
    pub layerdrop: f64,
    /// Whether it writes: it sees what comes before only, and the other side.
    pub writes: bool,
}

impl BartConfig {
    pub(super) fn encoder(&self) -> Side {
        Side {
            name: "encoder",
            layers: self.encoder_layers,
            heads: self.encoder_attention_heads,
            intermediate: self.encoder_ffn_dim,
            layerdrop: self.encoder_layerdrop,
            writes: false,
        }
    }

    pub(super) fn decoder(&self) -> Side {
        Side {
            name: "decoder",
            layers: self.decoder_layers,
            heads: self.decoder_attention_heads,
            intermediate: self.decoder_ffn_dim,
            layerdrop: self.decoder_layerdrop,
            writes: true,
        }
    }

    pub(super) fn dropouts(&self) -> Dropouts {
        Dropouts {
            embeddings: self.dropout,
            attention: self.attention_dropout,
            attended: self.dropout,
            activation: self.activation_dropout,
            output: self.dropout,
        }
    }

    /// Checks that the sizes make sense.
    pub(super) fn check(&self) -> Result<()> {
        let width = self.d_model;
        if self.vocab_size == 0 || width == 0 || self.max_position_embeddings == 0 {
            return Err(Error::Config(
                "vocab_size, d_model and max_position_embeddings must be positive".to_owned(),
            ));
        }
        for Side { name, heads, .. } in [self.encoder(), self.decoder()] {
            if heads == 0 || !width.is_multiple_of(heads) {
                return Err(Error::Config(format!(
                    "d_model {width} is not a multiple of {name}_attention_heads {heads}"
                )));
            }
        }
        let ids = [
            ("pad_token_id", self.pad_token_id),
            ("decoder_start_token_id", self.decoder_start_token_id),
        ];
        match ids.iter().find(|(_, id)| *id as usize >= self.vocab_size) {
            Some((name, id)) => Err(Error::Config(format!(
                "{name} {id} is outside the vocabulary of {}",
                self.vocab_size
            ))),
            None => Ok(()),
        }
    }
}
