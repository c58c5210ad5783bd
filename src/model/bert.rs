//! BERT (Devlin et al. 2018, arXiv:1810.04805), and the encoder that RoBERTa and many others share with it.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::layers::{
    Encoder, LayerNorm, Linear, PositionScores, PostNormLayer, PredictionHead, SelfAttention,
    padding_mask,
};
use super::{Architecture, Config, Context, Decoder, Init, ModelFlops, ModelInputs, WeightBuilder};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

/// What a BERT-like `config.json` says, with BERT's defaults.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub(super) struct BertConfig {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub hidden_act: String,
    pub hidden_dropout_prob: f64,
    pub attention_probs_dropout_prob: f64,
    pub max_position_embeddings: usize,
    pub type_vocab_size: usize,
    pub initializer_range: f64,
    pub layer_norm_eps: f64,
    pub pad_token_id: u32,
    pub position_embedding_type: String,
    pub is_decoder: bool,
}

impl Default for BertConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30522,
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            intermediate_size: 3072,
            hidden_act: "gelu".to_owned(),
            hidden_dropout_prob: 0.1,
            attention_probs_dropout_prob: 0.1,
            max_position_embeddings: 512,
            type_vocab_size: 2,
            initializer_range: 0.02,
            layer_norm_eps: 1e-12,
            pad_token_id: 0,
            position_embedding_type: "absolute".to_owned(),
            is_decoder: false,
        }
    }
}

impl BertConfig {
    pub(super) fn check(&self) -> Result<()> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(Error::Config(format!(
                "hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            )));
        }
        if self.vocab_size == 0 || hidden == 0 || self.max_position_embeddings == 0 {
            return Err(Error::Config(
                "vocab_size, hidden_size and max_position_embeddings must be positive".to_owned(),
            ));
        }
        if self.pad_token_id as usize >= self.vocab_size {
            return Err(Error::Config(format!(
                "pad_token_id {} is outside the vocabulary of {}",
                self.pad_token_id, self.vocab_size
            )));
        }
        if self.is_decoder {
            return Err(Error::Config(
                "is_decoder is set: a left-to-right model can't fill masks".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Token, position and segment embeddings, summed, normalized and dropped out.
#[derive(Debug)]
pub(super) struct BertEmbeddings {
    pub word: Param,
    position: Option<Param>,
    token_type: Param,
    norm: LayerNorm,
    dropout: f64,
    pad_token_id: u32,
    /// RoBERTa's way: positions start behind the padding id, and padding tokens share that id's row.
    positions_after_padding: bool,
}

impl BertEmbeddings {
    pub(super) fn new(
        config: &BertConfig,
        weights: &WeightBuilder,
        positions_after_padding: bool,
    ) -> Result<Self> {
        let width = config.hidden_size;
        let std = config.initializer_range;
        let table = |name: &str, rows: usize, padding: Option<u32>| {
            let init = padding.map_or(Init::Normal(std), |row| Init::NormalExceptRow(std, row));
            weights.pp(name).param("weight", (rows, width), init)
        };
        let pad = config.pad_token_id;
        let position_pad = positions_after_padding.then_some(pad);
        // Relative positions still carry this table; the reference adds it only when positions are absolute.
        let positions = table(
            "position_embeddings",
            config.max_position_embeddings,
            position_pad,
        )?;
        Ok(Self {
            word: table("word_embeddings", config.vocab_size, Some(pad))?,
            position: (config.position_embedding_type == "absolute").then_some(positions),
            token_type: table("token_type_embeddings", config.type_vocab_size, None)?,
            norm: LayerNorm::new(&weights.pp("LayerNorm"), width, config.layer_norm_eps)?,
            dropout: config.hidden_dropout_prob,
            pad_token_id: pad,
            positions_after_padding,
        })
    }

    pub(super) fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        // Lookups read ids on the CPU, and take them to their tables.
        let device = &Device::Cpu;
        let (batch, seq) = inputs.shape();
        let pad = self.pad_token_id;
        let ids = inputs.input_ids_tensor(device)?;
        let types = match inputs.token_type_ids() {
            Some(ids) => inputs.tensor_of(ids, device)?,
            None => inputs.tensor_of(&vec![0; batch * seq], device)?,
        };
        let mut lookups = vec![
            (&ids, &self.word, Some(pad)),
            (&types, &self.token_type, None),
        ];
        let position_ids;
        if let Some(position) = &self.position {
            let (ids, padding) = if self.positions_after_padding {
                (inputs.positions_after_padding(pad), Some(pad))
            } else {
                ((0..batch).flat_map(|_| 0..seq as u32).collect(), None)
            };
            position_ids = inputs.tensor_of(&ids, device)?;
            lookups.push((&position_ids, position, padding));
        }
        let sum = ops::embedding_sum(&lookups)?;
        let normed = self.norm.forward(&sum)?;
        ops::dropout(&normed, context.dropout(self.dropout))
    }
}

/// The stack of blocks under `encoder.layer.N`.
pub(super) fn bert_encoder(config: &BertConfig, weights: &WeightBuilder) -> Result<Encoder> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (std, eps) = (config.initializer_range, config.layer_norm_eps);
    let heads = config.num_attention_heads;
    let activation = Activation::from_name(&config.hidden_act)?;
    let layer = |index: usize| -> Result<PostNormLayer> {
        let weights = weights.pp(format!("encoder.layer.{index}"));
        let attention = weights.pp("attention");
        let own = attention.pp("self");
        Ok(PostNormLayer {
            attention: SelfAttention {
                query: Linear::new(&own.pp("query"), hidden, hidden, std)?,
                key: Linear::new(&own.pp("key"), hidden, hidden, std)?,
                value: Linear::new(&own.pp("value"), hidden, hidden, std)?,
                heads,
                head_size: hidden / heads,
                dropout: config.attention_probs_dropout_prob,
                position_scores: PositionScores::new(
                    &own,
                    &config.position_embedding_type,
                    config.max_position_embeddings,
                    hidden / heads,
                    std,
                )?,
            },
            attention_output: Linear::new(&attention.pp("output.dense"), hidden, hidden, std)?,
            attention_dropout: config.hidden_dropout_prob,
            attention_norm: LayerNorm::new(&attention.pp("output.LayerNorm"), hidden, eps)?,
            intermediate: Linear::new(&weights.pp("intermediate.dense"), hidden, inner, std)?,
            activation,
            output: Linear::new(&weights.pp("output.dense"), inner, hidden, std)?,
            output_dropout: config.hidden_dropout_prob,
            output_norm: LayerNorm::new(&weights.pp("output.LayerNorm"), hidden, eps)?,
        })
    };
    let layers = (0..config.num_hidden_layers).map(layer);
    Ok(Encoder {
        layers: layers.collect::<Result<_>>()?,
    })
}

/// `BertForMaskedLM`.
#[derive(Debug)]
pub(super) struct Bert {
    embeddings: BertEmbeddings,
    encoder: Encoder,
    head: PredictionHead,
    max_positions: usize,
}

impl Bert {
    pub(super) fn new(config: &Config, weights: &WeightBuilder) -> Result<Self> {
        let tied = config.tie_word_embeddings();
        let config: BertConfig = config.parse()?;
        config.check()?;
        let base = weights.pp("bert");
        let embeddings = BertEmbeddings::new(&config, &base.pp("embeddings"), false)?;
        let encoder = bert_encoder(&config, &base)?;

        let (hidden, std) = (config.hidden_size, config.initializer_range);
        let head = weights.pp("cls.predictions");
        let transform = head.pp("transform");
        let decoder = if tied {
            weights.ignore(&["cls.predictions.decoder.weight"]);
            embeddings.word.clone()
        } else {
            let shape = (config.vocab_size, hidden);
            head.param("decoder.weight", shape, Init::Normal(std))?
        };
        let aliases = ["cls.predictions.decoder.bias"];
        let head = PredictionHead {
            dense: Linear::new(&transform.pp("dense"), hidden, hidden, std)?,
            activation: Activation::from_name(&config.hidden_act)?,
            norm: LayerNorm::new(&transform.pp("LayerNorm"), hidden, config.layer_norm_eps)?,
            decoder,
            bias: head.param_or_alias("bias", &aliases, config.vocab_size, Init::Zeros)?,
        };
        Ok(Self {
            embeddings,
            encoder,
            head,
            max_positions: config.max_position_embeddings,
        })
    }
}

impl Architecture for Bert {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let embedded = self.embeddings.forward(inputs, context)?;
        let mask = padding_mask(inputs, embedded.device())?;
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
        Some(self.max_positions)
    }
}
