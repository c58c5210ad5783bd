//! XLM (Lample and Conneau 2019, arXiv:1901.07291) and FlauBERT (Le et al. 2019, arXiv:1912.05372), its French relative.
//!
//! `token_type_ids` are looked up in the word table, as `transformers` has it up to version 4: where the tokenizer gives
//! them, all zeros, the vector of token 0 is added everywhere, and models were trained like that. XLM's input `langs` has the
//! language's number for each token.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert;
use crate::model::nn::{
    Block, Dropouts, HeadNames, Ids, LayerNames, Order, Pass, Positions, Sizes, Spec, Stream,
    Transformer, TransformerBlock, numbered,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, Input, ModelFlops, ModelInputs, WeightBuilder, nn,
};
use crate::ops::{self, Activation, Param};
use crate::{Error, Result};

/// `XLMWithLMHeadModel`.
pub(super) const FAMILY: Family = Family {
    model_type: "xlm",
    class: "XLMWithLMHeadModel",
    synonyms: &["XLMModel"],
    base: "transformer",
    body: &[
        "embeddings.",
        "position_embeddings.",
        "lang_embeddings.",
        "layer_norm_emb.",
        "attentions.",
        "layer_norm1.",
        "layer_norm2.",
        "ffns.",
    ],
    aliases: &[
        ("n_words", "vocab_size"),
        ("hidden_size", "emb_dim"),
        ("num_attention_heads", "n_heads"),
        ("num_hidden_layers", "n_layers"),
        ("pad_token_id", "pad_index"),
    ],
    defaults: "{}",
    inputs: &[Input::per_token("langs")],
    build,
    ..bert::FAMILY
};

/// `FlaubertWithLMHeadModel`.
pub(super) const FLAUBERT: Family = Family {
    model_type: "flaubert",
    class: "FlaubertWithLMHeadModel",
    synonyms: &["FlaubertModel"],
    ..FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct XlmConfig {
    vocab_size: usize,
    emb_dim: usize,
    n_layers: usize,
    n_heads: usize,
    dropout: f64,
    attention_dropout: f64,
    gelu_activation: bool,
    sinusoidal_embeddings: bool,
    causal: bool,
    asm: bool,
    is_encoder: bool,
    n_langs: usize,
    use_lang_emb: bool,
    max_position_embeddings: usize,
    embed_init_std: f64,
    init_std: f64,
    layer_norm_eps: f64,
    pad_index: u32,
    pre_norm: bool,
    layerdrop: f64,
}

impl Default for XlmConfig {
    fn default() -> Self {
        Self {
            vocab_size: 30145,
            emb_dim: 2048,
            n_layers: 12,
            n_heads: 16,
            dropout: 0.1,
            attention_dropout: 0.1,
            gelu_activation: true,
            sinusoidal_embeddings: false,
            causal: false,
            asm: false,
            is_encoder: true,
            n_langs: 1,
            use_lang_emb: true,
            max_position_embeddings: 512,
            embed_init_std: 2048f64.powf(-0.5),
            init_std: 0.02,
            layer_norm_eps: 1e-12,
            pad_index: 2,
            pre_norm: false,
            layerdrop: 0.0,
        }
    }
}

const LAYERS: LayerNames = LayerNames {
    query: "attentions.{}.q_lin",
    key: "attentions.{}.k_lin",
    value: "attentions.{}.v_lin",
    distances: "attentions.{}",
    attention_output: "attentions.{}.out_lin",
    attention_norm: "layer_norm1.{}",
    intermediate: "ffns.{}.lin1",
    output: "ffns.{}.lin2",
    output_norm: "layer_norm2.{}",
};

const HEAD: HeadNames = HeadNames {
    transform: None,
    decoder: "pred_layer.proj",
    bias: Some("pred_layer.proj.bias"),
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: XlmConfig = config.parse()?;
    let refusals = [
        (
            values.asm,
            "asm is set: an adaptive softmax is not supported",
        ),
        (
            values.causal || !values.is_encoder,
            "the model reads from left to right, which can't fill masks",
        ),
    ];
    if let Some((_, why)) = refusals.iter().find(|(refused, _)| *refused) {
        return Err(Error::Config((*why).to_owned()));
    }
    let spec = spec(&values, config)?;
    if values.sinusoidal_embeddings {
        let shape = (values.max_position_embeddings, values.emb_dim);
        let name = "transformer.position_embeddings.weight";
        weights
            .param(name, shape, Init::Sinusoidal)?
            .set_trainable(false);
    }
    let blocks = (spec.places.iter())
        .map(|place| {
            Ok(Arc::new(MaskedBlock {
                block: spec.block(weights, place)?,
                layerdrop: values.layerdrop,
            }) as Arc<dyn Block>)
        })
        .collect::<Result<_>>()?;
    Ok(Box::new(Xlm {
        transformer: spec.build_with(weights, blocks)?,
    }))
}

fn spec(values: &XlmConfig, config: &Config) -> Result<Spec> {
    let mut streams = Vec::new();
    if values.n_langs > 1 && values.use_lang_emb {
        let rows = values.n_langs;
        streams.push(Stream {
            name: "lang_embeddings".to_owned(),
            rows,
            ids: Ids::Of(Arc::new(move |inputs| {
                inputs.indices_of("langs", &[inputs.batch, inputs.seq], rows)
            })),
            padding: None,
        });
    }
    let vocab = values.vocab_size;
    streams.push(Stream {
        name: "embeddings".to_owned(),
        rows: vocab,
        ids: Ids::Of(Arc::new(|inputs| Ok(inputs.token_type_ids.clone()))),
        padding: Some(values.pad_index),
    });
    let activation = match values.gelu_activation {
        true => Activation::Gelu,
        false => Activation::Relu,
    };
    Ok(Spec {
        base: "transformer",
        sizes: Sizes {
            vocab,
            hidden: values.emb_dim,
            embedding: values.emb_dim,
            output: values.emb_dim,
            heads: values.n_heads,
            intermediate: values.emb_dim.saturating_mul(4),
        },
        activation,
        eps: values.layer_norm_eps,
        std: values.init_std,
        table_std: values.embed_init_std,
        words: "embeddings",
        pad: Some(values.pad_index),
        dropout: Dropouts {
            embeddings: values.dropout,
            attention: values.attention_dropout,
            attended: values.dropout,
            activation: 0.0,
            output: values.dropout,
        },
        positions: Positions::Table {
            rows: values.max_position_embeddings,
            offset: 0,
        },
        position_table: "position_embeddings",
        streams,
        embedding_norm: Some("layer_norm_emb"),
        projection: None,
        layers: LAYERS,
        places: numbered("n_layers", values.n_layers)?,
        order: match values.pre_norm {
            true => Order::PreNorm,
            false => Order::PostNorm,
        },
        final_norm: None,
        head: HEAD,
        head_activation: activation,
        tied: config.tie_word_embeddings(),
    })
}

/// The name under which a pass hands 1 for tokens and 0 for padding to the blocks.
const TOKENS: &str = "tokens";

/// A transformer that sets its padding to zero after the embeddings and after each layer.
#[derive(Debug)]
struct Xlm {
    transformer: Transformer,
}

impl Architecture for Xlm {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let mut embedded = self.transformer.embeddings.forward(inputs, context)?;
        let device = embedded.device().clone();
        let mask = nn::padding_mask(inputs, &device)?;
        let mut pass = Pass::new(mask, context);
        if inputs.has_padding() {
            let tokens = tokens(inputs, &device)?;
            embedded = ops::mul_rows(&embedded, &tokens)?;
            pass.inputs = BTreeMap::from([(TOKENS, tokens)]);
        }
        self.transformer.encoder.forward(embedded, &pass)
    }

    fn head(&self) -> &dyn nn::Head {
        self.transformer.head()
    }

    fn max_positions(&self) -> Option<usize> {
        self.transformer.max_positions()
    }

    fn flops(&self) -> Option<ModelFlops> {
        self.transformer.flops()
    }
}

/// Returns 1 for tokens and 0 for padding, (batch, seq), as f32.
pub(super) fn tokens(inputs: &ModelInputs, device: &Device) -> Result<Tensor> {
    let mask = inputs.attention_mask.iter().map(|&mask| mask as f32);
    Ok(Tensor::from_vec(mask.collect(), inputs.shape(), device)?)
}

/// A block whose output is zero at padding, and which training skips randomly (Fan et al. 2019).
#[derive(Debug)]
struct MaskedBlock {
    block: TransformerBlock,
    layerdrop: f64,
}

impl Block for MaskedBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        if pass.context.drops_layer(self.layerdrop) {
            return Ok(x.clone());
        }
        let y = self.block.forward(x, pass)?;
        match pass.inputs.get(TOKENS) {
            Some(tokens) => ops::mul_rows(&y, tokens),
            None => Ok(y),
        }
    }

    fn params(&self) -> Vec<Param> {
        self.block.params()
    }

    fn flops(&self) -> ModelFlops {
        self.block.flops()
    }
}
