//! RoCBert (Su et al. 2022, doi:10.18653/v1/2022.acl-long.65): a Chinese BERT that also reads how a character looks and
//! sounds, so that look-alikes and sound-alikes do not mislead it.
//!
//! The inputs `input_shape_ids` and `input_pronunciation_ids` have one number for each token; its tokenizer gives them.
//! Masking hides them with the token: they would give it away.

use candle_core::{Device, Tensor};
use serde::Deserialize;

use super::bert;
use crate::Result;
use crate::model::nn::{Embed, Embeddings, Linear, Spec, Transformer};
use crate::model::{
    Architecture, Config, Context, Family, Init, Input, Masked, ModelInputs, WeightBuilder,
};
use crate::ops::{self, Param};

/// `RoCBertForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "roc_bert",
    class: "RoCBertForMaskedLM",
    synonyms: &["RoCBertForPreTraining", "RoCBertModel"],
    base: "roc_bert",
    carried: &[
        "roc_bert.embeddings.shape_embed.",
        "roc_bert.embeddings.pronunciation_embed.",
    ],
    inputs: &[
        Input {
            masked: Masked::Hidden,
            ..Input::per_token("input_shape_ids")
        },
        Input {
            masked: Masked::Hidden,
            ..Input::per_token("input_pronunciation_ids")
        },
    ],
    build,
    ..bert::FAMILY
};

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct Senses {
    enable_pronunciation: bool,
    enable_shape: bool,
    pronunciation_embed_dim: usize,
    pronunciation_vocab_size: usize,
    shape_embed_dim: usize,
    shape_vocab_size: usize,
    concat_input: bool,
}

impl Default for Senses {
    fn default() -> Self {
        Self {
            enable_pronunciation: true,
            enable_shape: true,
            pronunciation_embed_dim: 768,
            pronunciation_vocab_size: 910,
            shape_embed_dim: 512,
            shape_vocab_size: 24858,
            concat_input: true,
        }
    }
}

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let senses: Senses = config.parse()?;
    let spec = Spec {
        base: "roc_bert",
        ..bert::spec(config)?
    };
    let model = spec.build(weights)?;
    let table =
        |name: &'static str, input: &'static str, rows: usize, width: usize| -> Result<Sense> {
            let init = match spec.pad {
                Some(row) => Init::NormalExceptRow(spec.std, row),
                None => Init::Normal(spec.std),
            };
            let weights = weights.pp(spec.base).pp("embeddings").pp(name);
            Ok(Sense {
                input,
                table: weights.param("weight", (rows, width), init)?,
                padding: spec.pad,
            })
        };
    let senses_of = [
        (
            senses.enable_shape,
            ("shape_embed", "input_shape_ids"),
            (senses.shape_vocab_size, senses.shape_embed_dim),
        ),
        (
            senses.enable_pronunciation,
            ("pronunciation_embed", "input_pronunciation_ids"),
            (
                senses.pronunciation_vocab_size,
                senses.pronunciation_embed_dim,
            ),
        ),
    ];
    let mut tables = Vec::new();
    for (enabled, (name, input), (rows, width)) in senses_of {
        if !enabled {
            // transformers makes the tables of both senses, whether they count or not.
            let idle = weights.pp(spec.base).pp("embeddings").pp(name);
            idle.carry_drawn("weight", (rows, width), Init::Normal(spec.std))?;
            continue;
        }
        let width = match senses.concat_input {
            true => width,
            false => spec.sizes.hidden,
        };
        tables.push(table(name, input, rows, width)?);
    }
    let words = spec.embeddings(weights)?;
    let joined = match senses.concat_input {
        true => {
            let widths = tables
                .iter()
                .map(|sense: &Sense| sense.table.shape().dims()[1]);
            let input = spec.sizes.hidden + widths.sum::<usize>();
            let weights = weights.pp(spec.base).pp("embeddings.map_inputs_layer");
            let (words, others) = words.split_first();
            Some(Joined {
                map: Linear::new(&weights, input, spec.sizes.hidden, spec.std)?,
                words,
                others,
            })
        }
        false => None,
    };
    Ok(Box::new(Transformer {
        embeddings: Box::new(SensedEmbeddings {
            words,
            senses: tables,
            joined,
        }),
        ..model
    }))
}

/// One kind of feature of a character: its shape or its pronunciation.
#[derive(Debug)]
struct Sense {
    /// The input that provides it.
    input: &'static str,
    table: Param,
    padding: Option<u32>,
}

impl Sense {
    /// Returns the vectors of all tokens; `None` where the batch does not say it.
    fn look_up(&self, inputs: &ModelInputs) -> Result<Option<Tensor>> {
        let (batch, seq) = inputs.shape();
        let rows = self.table.shape().dims()[0];
        let Some(ids) = inputs.indices_of(self.input, &[batch, seq], rows)? else {
            return Ok(None);
        };
        let ids = inputs.tensor_of(&ids, &Device::Cpu)?;
        ops::embedding(&ids, &self.table, self.padding).map(Some)
    }
}

/// Words, positions and segments, with what the characters look and sound like.
#[derive(Debug)]
struct SensedEmbeddings {
    words: Embeddings,
    senses: Vec<Sense>,
    /// How all of it is mapped side by side; without that, the mean is taken.
    joined: Option<Joined>,
}

/// The map from words and senses side by side.
#[derive(Debug)]
struct Joined {
    map: Linear,
    /// Words alone, and what is added after the map.
    words: Embeddings,
    others: Embeddings,
}

impl Embed for SensedEmbeddings {
    fn forward(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let Some(Joined { map, words, others }) = &self.joined else {
            let mut sum = self.words.forward(inputs, context)?;
            let mut count = 1.0;
            for sense in &self.senses {
                if let Some(vectors) = sense.look_up(inputs)? {
                    sum = ops::add(&sum, &vectors)?;
                    count += 1.0;
                }
            }
            return ops::scale(&sum, 1.0 / count);
        };
        let mut parts = vec![words.sum(inputs)?];
        for sense in &self.senses {
            parts.push(match sense.look_up(inputs)? {
                Some(vectors) => vectors,
                // Where a batch does not say it, every token has number 0.
                None => {
                    let zeros = inputs.tensor_of(&vec![0; inputs.input_ids.len()], &Device::Cpu)?;
                    ops::embedding(&zeros, &sense.table, sense.padding)?
                }
            });
        }
        let all = ops::concat(&parts.iter().collect::<Vec<_>>(), 2)?;
        let sum = ops::add(&map.forward(&all)?, &others.sum(inputs)?)?;
        self.words.finish(&sum, context)
    }
}
