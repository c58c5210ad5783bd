//! DistilBERT (Sanh et al. 2019, arXiv:1910.01108): BERT without segments, under its own names.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::layers::{
    Encoder, LayerNorm, Linear, PostNormLayer, PredictionHead, SelfAttention, padding_mask,
};
use super::{Architecture, Config, Context, Decoder, Init, ModelFlops, ModelInputs, WeightBuilder};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct DistilBertConfig {
    vocab_size: usize,
    max_position_embeddings: usize,
    sinusoidal_pos_embds: bool,
    n_layers: usize,
    n_heads: usize,
    dim: usize,
    hidden_dim: usize,
    dropout: f64,
    attention_dropout: f64,
    activation: String,
    initializer_range: f64,
    pad_token_id: u32,
}

impl Default for DistilBertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            max_position_embeddings: 512,
            sinusoidal_pos_embds: false,
            n_layers: 6,
            n_heads: 12,
            dim: 768,
            hidden_dim: 3072,
            dropout: 0.1,
            attention_dropout: 0.1,
            activation: "gelu".to_owned(),
            initializer_range: 0.02,
            pad_token_id: 0,
        }
    }
}

/// The reference hard-codes it.
const LAYER_NORM_EPS: f64 = 1e-12;

/// `DistilBertForMaskedLM`.
#[derive(Debug)]
pub(super) struct DistilBert {
    word: Param,
    position: Param,
    norm: LayerNorm,
    encoder: Encoder,
    head: PredictionHead,
    config: DistilBertConfig,
}

impl DistilBert {
    pub(super) fn new(config: &Config, weights: &WeightBuilder) -> Result<Self> {
        let tied = config.tie_word_embeddings();
        let config: DistilBertConfig = config.parse()?;
        if config.n_heads == 0 || !config.dim.is_multiple_of(config.n_heads) {
            return Err(Error::Config(format!(
                "dim {} is not a multiple of n_heads {}",
                config.dim, config.n_heads
            )));
        }
        let (dim, std) = (config.dim, config.initializer_range);
        let activation = Activation::from_name(&config.activation)?;
        let base = weights.pp("distilbert");
        let embeddings = base.pp("embeddings");

        let word_init = Init::NormalExceptRow(std, config.pad_token_id);
        let word = embeddings.param(
            "word_embeddings.weight",
            (config.vocab_size, dim),
            word_init,
        )?;
        let position_init = if config.sinusoidal_pos_embds {
            Init::Sinusoidal
        } else {
            Init::Normal(std)
        };
        let position = embeddings.param(
            "position_embeddings.weight",
            (config.max_position_embeddings, dim),
            position_init,
        )?;
        position.set_trainable(!config.sinusoidal_pos_embds);
        let norm = LayerNorm::new(&embeddings.pp("LayerNorm"), dim, LAYER_NORM_EPS)?;

        let layer = |index: usize| -> Result<PostNormLayer> {
            let weights = base.pp(format!("transformer.layer.{index}"));
            let attention = weights.pp("attention");
            let square = |name: &str| Linear::new(&attention.pp(name), dim, dim, std);
            Ok(PostNormLayer {
                attention: SelfAttention {
                    query: square("q_lin")?,
                    key: square("k_lin")?,
                    value: square("v_lin")?,
                    heads: config.n_heads,
                    head_size: dim / config.n_heads,
                    dropout: config.attention_dropout,
                    position_scores: None,
                },
                attention_output: square("out_lin")?,
                attention_dropout: 0.0,
                attention_norm: LayerNorm::new(&weights.pp("sa_layer_norm"), dim, LAYER_NORM_EPS)?,
                intermediate: Linear::new(&weights.pp("ffn.lin1"), dim, config.hidden_dim, std)?,
                activation,
                output: Linear::new(&weights.pp("ffn.lin2"), config.hidden_dim, dim, std)?,
                output_dropout: config.dropout,
                output_norm: LayerNorm::new(&weights.pp("output_layer_norm"), dim, LAYER_NORM_EPS)?,
            })
        };
        let layers = (0..config.n_layers).map(layer).collect::<Result<_>>()?;

        let projector = weights.pp("vocab_projector");
        let decoder = if tied {
            weights.ignore(&["vocab_projector.weight"]);
            word.clone()
        } else {
            projector.param("weight", (config.vocab_size, dim), Init::Normal(std))?
        };
        let head = PredictionHead {
            dense: Linear::new(&weights.pp("vocab_transform"), dim, dim, std)?,
            activation,
            norm: LayerNorm::new(&weights.pp("vocab_layer_norm"), dim, LAYER_NORM_EPS)?,
            decoder,
            bias: projector.param("bias", config.vocab_size, Init::Zeros)?,
        };
        Ok(Self {
            word,
            position,
            norm,
            encoder: Encoder { layers },
            head,
            config,
        })
    }
}

impl Architecture for DistilBert {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        // Lookups read ids on the CPU, and take them to their tables.
        let device = &Device::Cpu;
        let (batch, seq) = inputs.shape();
        let ids = inputs.input_ids_tensor(device)?;
        let positions: Vec<u32> = (0..batch).flat_map(|_| 0..seq as u32).collect();
        let positions = inputs.tensor_of(&positions, device)?;
        let sum = ops::embedding_sum(&[
            (&ids, &self.word, Some(self.config.pad_token_id)),
            (&positions, &self.position, None),
        ])?;
        let normed = self.norm.forward(&sum)?;
        let embedded = ops::dropout(&normed, context.dropout(self.config.dropout))?;
        let mask = padding_mask(inputs, self.word.device())?;
        self.encoder.forward(embedded, &mask, context)
    }

    fn transform(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.transform(hidden)
    }

    fn decoder(&self) -> Decoder {
        self.head.decoder()
    }

    fn flops(&self) -> Option<ModelFlops> {
        Some(self.head.flops(&self.encoder))
    }

    fn max_positions(&self) -> Option<usize> {
        Some(self.config.max_position_embeddings)
    }
}
