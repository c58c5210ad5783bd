//! ESM (Rives et al. 2019, doi:10.1101/622803; Lin et al. 2022, doi:10.1126/science.ade2574): masked language models of
//! proteins, whose tokens are amino acids.
//!
//! With `token_dropout`, on in the published models, the vectors of mask tokens are zero, and the others are scaled by how
//! many are masked, in training and inference alike.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::{bert, roberta, xlm};
use crate::model::nn::{
    Angles, Block, Dropouts, Embed, Ids, LayerNames, Lookup, Norm, Order, Positions, SelfAttention,
    Spec, Transformer, TransformerBlock,
};
use crate::model::onnx::{Graph, Value};
use crate::model::{Architecture, Config, Context, Family, Init, ModelInputs, WeightBuilder};
use crate::ops::{self, Activation, Param, RotaryPairs};
use crate::{Error, Result};

/// `EsmForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "esm",
    class: "EsmForMaskedLM",
    synonyms: &["EsmModel"],
    base: "esm",
    carried: &[
        "esm.contact_head.",
        "rotary_embeddings.inv_freq",
        // With rotary positions the table is there, unused.
        "esm.embeddings.position_embeddings.",
    ],
    defaults: r#"{"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "max_position_embeddings": 1026,
        "type_vocab_size": 0}"#,
    build,
    ..roberta::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct EsmConfig {
    mask_token_id: u32,
    token_dropout: bool,
    emb_layer_norm_before: bool,
    is_folding_model: bool,
    position_embedding_type: String,
}

/// The base of the rotary angles.
const THETA: f64 = 10_000.0;

impl Default for EsmConfig {
    fn default() -> Self {
        Self {
            mask_token_id: 32,
            token_dropout: false,
            emb_layer_norm_before: false,
            is_folding_model: false,
            position_embedding_type: "absolute".to_owned(),
        }
    }
}

const LAYERS: LayerNames = LayerNames {
    attention_norm: "encoder.layer.{}.attention.LayerNorm",
    output_norm: "encoder.layer.{}.LayerNorm",
    ..bert::LAYERS
};

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: EsmConfig = config.parse()?;
    if values.is_folding_model {
        return Err(Error::Config(
            "is_folding_model is set: ESMFold predicts structures and fills no masks".to_owned(),
        ));
    }
    let rotary = values.position_embedding_type == "rotary";
    let absolute = config.clone().set("position_embedding_type", "absolute");
    let spec = roberta::spec(if rotary { &absolute } else { config })?;
    let Positions::AfterPadding { rows } = spec.positions else {
        return Err(Error::Config(format!(
            "position_embedding_type {} is not supported for ESM: absolute and rotary are",
            values.position_embedding_type
        )));
    };
    let spec = Spec {
        base: "esm",
        // Whatever hidden_act says.
        activation: Activation::Gelu,
        dropout: Dropouts {
            embeddings: 0.0,
            ..spec.dropout
        },
        streams: Vec::new(),
        positions: match rotary {
            true => Positions::InAttention { most: None },
            false => Positions::AfterPadding { rows },
        },
        layers: LAYERS,
        order: Order::PreNorm,
        final_norm: Some("encoder.emb_layer_norm_after"),
        ..spec
    };
    let pad = spec.pad.unwrap_or(0);
    let body = weights.pp(spec.base).pp("embeddings");
    let norm = values.emb_layer_norm_before;
    let norm = norm.then(|| Norm::layer(&body.pp("layer_norm"), spec.sizes.hidden, spec.eps));
    let init = Init::NormalExceptRow(spec.std, pad);
    let positions = body.pp("position_embeddings");
    let embeddings = ProteinEmbeddings {
        words: spec.word_table(weights)?,
        positions: match rotary {
            true => None,
            false => Some(positions.param("weight", (rows, spec.sizes.hidden), init)?),
        },
        norm: norm.transpose()?,
        pad,
        mask: values.token_dropout.then_some(values.mask_token_id),
    };
    spec.check()?;
    let size = spec.sizes.hidden / spec.sizes.heads;
    carry_idle(&spec, &weights.pp(spec.base), rotary.then_some(rows), size)?;
    let angles = rotary.then(|| Arc::new(Angles::new(THETA, size, RotaryPairs::Half)));
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let block = spec.block(weights, place)?;
        Ok(Arc::new(TransformerBlock {
            attention: SelfAttention {
                angles: angles.clone(),
                ..block.attention
            },
            ..block
        }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let head = spec.head(weights, &embeddings.words)?;
    Ok(Box::new(Transformer {
        embeddings: Box::new(embeddings),
        encoder: spec.encoder(weights, blocks)?,
        head: Box::new(head),
        prepare: None,
        max_positions: spec.max_positions(),
    }))
}

/// Keeps tensors that transformers expects in a file but masked language modelling does not use: the head that predicts
/// contacts and, with rotary positions, a table of this many positions and each layer's frequencies.
fn carry_idle(
    spec: &Spec,
    weights: &WeightBuilder,
    rows: Option<usize>,
    head_size: usize,
) -> Result<()> {
    let layers = spec.places.len();
    let maps = layers.saturating_mul(spec.sizes.heads);
    weights.carry_linear("contact_head.regression", maps, 1, spec.std)?;
    let Some(rows) = rows else {
        return Ok(());
    };
    let init = Init::NormalExceptRow(spec.std, spec.pad.unwrap_or(0));
    let table = weights.pp("embeddings.position_embeddings");
    table.carry_drawn("weight", (rows, spec.sizes.hidden), init)?;
    let frequency = |pair: usize| 1.0 / THETA.powf(2.0 * pair as f64 / head_size as f64) as f32;
    let frequencies: Vec<f32> = (0..head_size / 2).map(frequency).collect();
    for layer in 0..layers {
        let attention = weights.pp(format!("encoder.layer.{layer}.attention.self"));
        let values = Tensor::new(frequencies.as_slice(), &Device::Cpu)?;
        attention.carry_value("rotary_embeddings.inv_freq", values)?;
    }
    Ok(())
}

/// Residues and their positions.
#[derive(Debug)]
struct ProteinEmbeddings {
    words: Param,
    positions: Option<Param>,
    norm: Option<Norm>,
    pad: u32,
    /// The mask token, where its vector is zero.
    mask: Option<u32>,
}

/// The part of the tokens that were masked when the published models were trained.
const MASKED_IN_TRAINING: f32 = 0.15 * 0.8;

impl ProteinEmbeddings {
    /// Returns what each token's vector is multiplied by: nothing for mask tokens, and for the others what makes up for
    /// those that are masked.
    fn factors(&self, inputs: &ModelInputs, mask: u32) -> Vec<f32> {
        let seq = inputs.seq.max(1);
        let rows = inputs
            .input_ids
            .chunks(seq)
            .zip(inputs.attention_mask.chunks(seq));
        let of_row = |(ids, attention): (&[u32], &[u32])| {
            let masked = ids.iter().filter(|&&id| id == mask).count() as f32;
            let length = attention.iter().sum::<u32>() as f32;
            let scale = (1.0 - MASKED_IN_TRAINING) / (1.0 - masked / length);
            let factor = |&id: &u32| if id == mask { 0.0 } else { scale };
            ids.iter().map(factor).collect::<Vec<_>>()
        };
        rows.flat_map(of_row).collect()
    }
}

impl Embed for ProteinEmbeddings {
    fn forward(&self, inputs: &ModelInputs, _: &Context) -> Result<Tensor> {
        let device = &self.words.device().clone();
        let ids = inputs.input_ids_tensor(&Device::Cpu)?;
        let mut x = ops::embedding(&ids, &self.words, Some(self.pad))?;
        if let Some(mask) = self.mask {
            let factors = Tensor::from_vec(self.factors(inputs, mask), inputs.shape(), device)?;
            x = ops::mul_rows(&x, &factors)?;
        }
        if let Some(positions) = &self.positions {
            let ids = inputs.positions_after_padding(self.pad);
            let ids = inputs.tensor_of(&ids, &Device::Cpu)?;
            x = ops::add(&x, &ops::embedding(&ids, positions, Some(self.pad))?)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        if inputs.has_padding() {
            x = ops::mul_rows(&x, &xlm::tokens(inputs, device)?)?;
        }
        Ok(x)
    }

    fn export(&self, graph: &mut Graph) -> Result<Value> {
        let lookup = |table: &Param, ids: Ids| Lookup {
            table: table.clone(),
            ids,
            padding: Some(self.pad),
        };
        let text = graph.input("attention_mask");
        let text = graph.to_float(&text);
        let mut x = lookup(&self.words, Ids::Tokens).export(graph)?;
        if let Some(mask) = self.mask {
            // As `factors` has it.
            let (ids, mask) = (graph.input("input_ids"), graph.int(i64::from(mask)));
            let masks = graph.node("Equal", &[&ids, &mask], &[]);
            let masks = graph.to_float(&masks);
            let (one, row) = (graph.float(1.0), graph.ints(&[1]));
            let masked = graph.node("ReduceSum", &[&masks, &row], &[]);
            let length = graph.node("ReduceSum", &[&text, &row], &[]);
            let part = graph.node("Div", &[&masked, &length], &[]);
            let left = graph.sub(&one, &part);
            let kept = graph.float(f64::from(1.0 - MASKED_IN_TRAINING));
            let scale = graph.node("Div", &[&kept, &left], &[]);
            let others = graph.sub(&one, &masks);
            let factors = graph.mul(&others, &scale);
            let factors = graph.unsqueeze(&factors, &[2]);
            x = graph.mul(&x, &factors);
        }
        if let Some(positions) = &self.positions {
            let ids = Ids::PositionsAfterPadding(self.pad);
            let positions = lookup(positions, ids).export(graph)?;
            x = graph.add(&x, &positions);
        }
        if let Some(norm) = &self.norm {
            x = norm.export(&x, graph)?;
        }
        let text = graph.unsqueeze(&text, &[2]);
        Ok(graph.mul(&x, &text))
    }
}
