//! LUKE (Yamada et al. 2020, arXiv:2010.01057): RoBERTa that reads the entities of a text in addition to its words, and
//! predicts both. Without entities it is RoBERTa.
//!
//! Each of an example's m entities has an id (`entity_ids`), the positions of the tokens that mention it
//! (`entity_position_ids`, -1 for none), and optionally a segment (`entity_token_type_ids`), a 0 in `entity_attention_mask`
//! where it is padding, and a label (`entity_labels`, -100 where the model is not asked). The loss is the sum of two means:
//! of the words that count, and of the entities that count.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::Deserialize;

use super::roberta;
use crate::model::batch::counted;
use crate::model::nn::{
    Block, Head, Linear, Norm, Pass, PredictionHead, Spec, Transformer, TransformerBlock,
    padding_mask,
};
use crate::model::{
    Architecture, Config, Context, Family, Init, Input, LossTerm, Masked, MlmLoss, ModelFlops,
    ModelInputs, Per, WeightBuilder,
};
use crate::ops::{self, AttentionMask, AttentionOptions, Dropout, IGNORE_INDEX, Param};
use crate::{Error, Result};

/// `LukeForMaskedLM`.
pub(super) const FAMILY: Family = Family {
    model_type: "luke",
    class: "LukeForMaskedLM",
    synonyms: &["LukeModel"],
    base: "luke",
    body: &["embeddings.", "entity_embeddings.", "encoder.", "pooler."],
    carried: &["luke.pooler."],
    defaults: r#"{"vocab_size": 50267, "pad_token_id": 1}"#,
    inputs: &[
        of_entities("entity_ids", 0),
        of_entities("entity_attention_mask", 0),
        of_entities("entity_token_type_ids", 0),
        Input {
            // As many as transformers' tokenizer writes.
            trailing: &[30],
            ..of_entities("entity_position_ids", -1)
        },
        of_entities("entity_labels", IGNORE_INDEX),
    ],
    build,
    ..roberta::FAMILY
};

const fn of_entities(name: &'static str, padding: i64) -> Input {
    Input {
        name,
        per: Per::Place,
        trailing: &[],
        padding,
        masked: Masked::Kept,
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
struct LukeConfig {
    entity_vocab_size: usize,
    entity_emb_size: usize,
    use_entity_aware_attention: bool,
}

impl Default for LukeConfig {
    fn default() -> Self {
        Self {
            entity_vocab_size: 500_000,
            entity_emb_size: 256,
            use_entity_aware_attention: true,
        }
    }
}

/// The id of the entity that is none.
const NO_ENTITY: u32 = 0;

fn build(config: &Config, weights: &WeightBuilder) -> Result<Box<dyn Architecture>> {
    let values: LukeConfig = config.parse()?;
    let spec = Spec {
        base: "luke",
        ..roberta::spec(config)?
    };
    spec.check()?;
    if values.entity_vocab_size == 0 || values.entity_emb_size == 0 {
        return Err(Error::Config(
            "entity_vocab_size and entity_emb_size must be positive".to_owned(),
        ));
    }
    let block = |place: &String| -> Result<Arc<dyn Block>> {
        let maps = weights
            .pp(spec.base)
            .pp(spec.layers.distances.replace("{}", place));
        let hidden = spec.sizes.hidden;
        let map = |name: &str| Linear::new(&maps.pp(name), hidden, hidden, spec.std);
        let block = spec.block(weights, place)?;
        let queries = match values.use_entity_aware_attention {
            true => Some(Queries {
                words_of_entities: map("w2e_query")?,
                entities_of_words: map("e2w_query")?,
                entities_of_entities: map("e2e_query")?,
            }),
            false => None,
        };
        Ok(Arc::new(LukeBlock { block, queries }))
    };
    let blocks = spec.places.iter().map(block).collect::<Result<_>>()?;
    let transformer = spec.build_with(weights, blocks)?;
    let hidden = spec.sizes.hidden;
    let pooler = weights.pp(spec.base);
    pooler.carry_linear("pooler.dense", hidden, hidden, spec.std)?;
    let (words, decoder) = (spec.word_table(weights)?, "lm_head.decoder.weight");
    if spec.tied && !weights.differ(words.name(), decoder)? {
        // transformers 5 has forgotten that LUKE's are tied.
        weights.save_also_as(decoder, &words);
    }
    let entities = EntityEmbeddings::new(&values, config, &spec, weights)?;
    let std = spec.std;
    let head = weights.pp("entity_predictions");
    // Tied whatever the config says, unless a checkpoint has both.
    let is_tied = spec.tied || !weights.holds(ENTITY_DECODER);
    let (decoder, _) = weights.decoder(
        "entity_predictions.decoder",
        None,
        is_tied.then_some(&entities.table),
        (values.entity_vocab_size, values.entity_emb_size),
        std,
    )?;
    let (width, transform) = (values.entity_emb_size, head.pp("transform"));
    let dense = Linear::new(&transform.pp("dense"), spec.sizes.hidden, width, std)?;
    let norm = Norm::layer(&transform.pp("LayerNorm"), width, spec.eps)?;
    Ok(Box::new(Luke {
        transformer,
        entities,
        entity_head: PredictionHead {
            transform: Some((dense, spec.activation, norm)),
            decoder,
            bias: Some(head.param("bias", values.entity_vocab_size, Init::Zeros)?),
        },
    }))
}

/// The full name of the product with the entities.
const ENTITY_DECODER: &str = "entity_predictions.decoder.weight";

/// From entities, and where the text mentions them, to vectors.
#[derive(Debug)]
struct EntityEmbeddings {
    table: Param,
    /// To the encoder's width, where the table has another.
    dense: Option<Linear>,
    positions: Param,
    segments: Param,
    norm: Norm,
    dropout: f64,
}

impl EntityEmbeddings {
    fn new(
        values: &LukeConfig,
        config: &Config,
        spec: &Spec,
        weights: &WeightBuilder,
    ) -> Result<Self> {
        /// The sizes that a spec keeps to its own embeddings.
        #[derive(Deserialize)]
        struct Tables {
            #[serde(default = "positions")]
            max_position_embeddings: usize,
            #[serde(default = "segments")]
            type_vocab_size: usize,
        }
        fn positions() -> usize {
            512
        }
        fn segments() -> usize {
            2
        }
        let tables: Tables = config.parse()?;
        let (hidden, std) = (spec.sizes.hidden, spec.table_std);
        let weights = weights.pp(spec.base).pp("entity_embeddings");
        let width = values.entity_emb_size;
        let table = |name: &str, rows: usize| {
            let weights = weights.pp(name);
            weights.param("weight", (rows, hidden), Init::Normal(std))
        };
        let entities = weights.pp("entity_embeddings").param_or_alias(
            "weight",
            &[ENTITY_DECODER],
            (values.entity_vocab_size, width),
            Init::NormalExceptRow(std, NO_ENTITY),
        )?;
        let dense = weights.pp("entity_embedding_dense");
        Ok(Self {
            table: entities,
            dense: match width == hidden {
                true => None,
                false => Some(Linear::without_bias(&dense, width, hidden, spec.std)?),
            },
            positions: table("position_embeddings", tables.max_position_embeddings)?,
            segments: table("token_type_embeddings", tables.type_vocab_size)?,
            norm: Norm::layer(&weights.pp("LayerNorm"), hidden, spec.eps)?,
            dropout: spec.dropout.embeddings,
        })
    }

    /// Returns the vectors of the entities `ids`, (batch, m, hidden).
    fn forward(
        &self,
        inputs: &ModelInputs,
        ids: Vec<u32>,
        count: usize,
        context: &Context,
    ) -> Result<Tensor> {
        let batch = inputs.batch;
        let shape = [batch, count];
        let ids = Tensor::from_vec(ids, (batch, count), &Device::Cpu)?;
        let mut vectors = ops::embedding(&ids, &self.table, Some(NO_ENTITY))?;
        if let Some(dense) = &self.dense {
            vectors = dense.forward(&vectors)?;
        }
        let rows = self.segments.shape().dims2()?.0;
        let segments = inputs.indices_of("entity_token_type_ids", &shape, rows)?;
        let segments = segments.unwrap_or_else(|| vec![0; batch * count]);
        let segments = Tensor::from_vec(segments, (batch, count), &Device::Cpu)?;
        let segments = ops::embedding(&segments, &self.segments, None)?;
        let sum = ops::add(&vectors, &self.places(inputs, count)?)?;
        let normed = self.norm.forward(&ops::add(&sum, &segments)?)?;
        ops::dropout(&normed, context.dropout(self.dropout))
    }

    /// Returns the mean of the position vectors where each entity is mentioned, (batch, m, hidden).
    fn places(&self, inputs: &ModelInputs, count: usize) -> Result<Tensor> {
        const NAME: &str = "entity_position_ids";
        let batch = inputs.batch;
        let most = match inputs.columns.get(NAME) {
            Some(column) => column.shape.get(2).copied().unwrap_or(0),
            None => {
                return Err(Error::argument(
                    NAME,
                    "entity_ids are given without the positions where the text mentions them",
                ));
            }
        };
        let mentions = inputs.ids_of(NAME, &[batch, count, most])?.unwrap_or(&[]);
        let (rows, hidden) = self.positions.shape().dims2()?;
        if most == 0 {
            return Ok(Tensor::zeros(
                (batch, count, hidden),
                DType::F32,
                self.positions.device(),
            )?);
        }
        let mut ids = Vec::with_capacity(mentions.len());
        let mut shares = Vec::with_capacity(mentions.len());
        for mention in mentions.chunks(most) {
            let places = mention.iter().filter(|&&id| id != -1).count();
            for &id in mention {
                match u32::try_from(id) {
                    Ok(place) if (place as usize) < rows => ids.push(place),
                    _ if id == -1 => ids.push(0),
                    _ => {
                        return Err(Error::Dataset(format!(
                            "{NAME} holds {id}, but must be -1 or from 0 to {}",
                            rows.saturating_sub(1)
                        )));
                    }
                }
                shares.push(if id == -1 { 0.0 } else { 1.0 / places as f32 });
            }
        }
        let ids = Tensor::from_vec(ids, (batch * count, most), &Device::Cpu)?;
        let vectors = ops::embedding(&ids, &self.positions, None)?;
        let shares = Tensor::from_vec(shares, (batch * count, 1, most), vectors.device())?;
        let shares = shares.to_dtype(vectors.dtype())?;
        let mean = ops::matmul(&shares, &vectors, false, false)?;
        ops::reshape(&mean, (batch, count, hidden))
    }
}

#[derive(Debug)]
struct Luke {
    transformer: Transformer,
    entities: EntityEmbeddings,
    entity_head: PredictionHead,
}

/// The name under which a pass tells the blocks how many of its places are words; without it all are.
const WORDS: &str = "words";

impl Luke {
    /// Returns the last hidden states of words followed by entities, (batch, seq + m, hidden), and m.
    fn encode(&self, inputs: &ModelInputs, context: &Context) -> Result<(Tensor, usize)> {
        let (batch, seq) = inputs.shape();
        let Transformer {
            embeddings,
            encoder,
            ..
        } = &self.transformer;
        let words = embeddings.forward(inputs, context)?;
        let count = entity_count(inputs);
        let rows = self.entity_head.vocab_size();
        let ids = inputs.indices_of("entity_ids", &[batch, count], rows)?;
        let Some(ids) = ids.filter(|ids| !ids.is_empty()) else {
            let pass = Pass::new(padding_mask(inputs, words.device())?, context);
            return Ok((encoder.forward(words, &pass)?, 0));
        };
        let entities = self.entities.forward(inputs, ids, count, context)?;
        let x = ops::concat(&[&words, &entities], 1)?;
        let mask = entity_mask(inputs, count)?;
        let mask = match mask.contains(&0) {
            true => AttentionMask::Keys(ops::upload(&mask, (batch, seq + count), x.device())?),
            false => AttentionMask::None,
        };
        let pass = Pass {
            inputs: BTreeMap::from([(WORDS, Tensor::new(seq as u32, &Device::Cpu)?)]),
            ..Pass::new(mask, context)
        };
        Ok((encoder.forward(x, &pass)?, count))
    }
}

/// Returns how many entities each example of the batch has.
fn entity_count(inputs: &ModelInputs) -> usize {
    let column = inputs.columns.get("entity_ids");
    column
        .and_then(|column| column.shape.get(1).copied())
        .unwrap_or(0)
}

/// Returns 1 for the words and entities of each example, and 0 for padding.
fn entity_mask(inputs: &ModelInputs, count: usize) -> Result<Vec<u32>> {
    let (batch, seq) = inputs.shape();
    let given = inputs.ids_of("entity_attention_mask", &[batch, count])?;
    let mut mask = Vec::with_capacity(batch * (seq + count));
    for row in 0..batch {
        mask.extend_from_slice(&inputs.attention_mask[row * seq..][..seq]);
        match given {
            Some(given) => {
                let row = &given[row * count..][..count];
                mask.extend(row.iter().map(|&seen| u32::from(seen != 0)));
            }
            None => mask.extend(std::iter::repeat_n(1, count)),
        }
    }
    Ok(mask)
}

/// Returns the labels of the entities, if there are any.
fn entity_labels(inputs: &ModelInputs) -> Result<&[i64]> {
    let shape = [inputs.batch, entity_count(inputs)];
    Ok(inputs.ids_of("entity_labels", &shape)?.unwrap_or(&[]))
}

/// Returns the loss term of the positions `rows` of `states`, where each example has `len` positions, which begin after
/// `start`.
fn term(
    head: &dyn Head,
    states: &Tensor,
    (rows, targets): (Vec<u32>, Vec<u32>),
    (per_example, start): (usize, usize),
) -> Result<LossTerm> {
    let count = rows.len();
    let sum = if count == 0 {
        Tensor::zeros((), DType::F32, &Device::Cpu)?
    } else {
        let len = states.dim(1)? as u32;
        let (per_example, start) = (per_example as u32, start as u32);
        let place = |row: u32| row / per_example * len + start + row % per_example;
        let rows = rows.into_iter().map(place).collect();
        let rows = ops::select_rows(states, &Tensor::from_vec(rows, count, &Device::Cpu)?)?;
        let targets = Tensor::from_vec(targets, count, &Device::Cpu)?;
        head.loss(&head.transform(&rows)?, &targets)?
    };
    Ok(LossTerm {
        sum,
        count,
        weight: 1.0,
    })
}

impl Architecture for Luke {
    fn hidden_states(&self, inputs: &ModelInputs, context: &Context) -> Result<Tensor> {
        let (states, entities) = self.encode(inputs, context)?;
        match entities {
            0 => Ok(states),
            _ => ops::narrow(&states, 1, 0, inputs.seq),
        }
    }

    fn entity_logits(&self, inputs: &ModelInputs, context: &Context) -> Result<Option<Tensor>> {
        let (states, count) = self.encode(inputs, context)?;
        if count == 0 {
            return Err(Error::argument(
                "entity_ids",
                "the inputs have no entities; Tokenizer::encode_entities adds them",
            ));
        }
        let states = ops::narrow(&states, 1, inputs.seq, count)?;
        let transformed = self.entity_head.transform(&states)?;
        self.entity_head.logits(&transformed).map(Some)
    }

    fn counts(&self, inputs: &ModelInputs) -> Vec<usize> {
        let labels = entity_labels(inputs).unwrap_or(&[]);
        let entities = labels.iter().filter(|&&label| label != IGNORE_INDEX);
        vec![inputs.counted_tokens(), entities.count()]
    }

    fn loss(&self, inputs: &ModelInputs, context: &Context) -> Result<MlmLoss> {
        let words = inputs.counted(self.transformer.head().vocab_size())?;
        let of_entities = entity_labels(inputs)?;
        let entities = counted(of_entities, self.entity_head.vocab_size())?;
        let (states, count) = self.encode(inputs, context)?;
        let (seq, head) = (inputs.seq, self.transformer.head());
        Ok(MlmLoss {
            terms: vec![
                term(head, &states, words, (seq, 0))?,
                term(&self.entity_head, &states, entities, (count, seq))?,
            ],
        })
    }

    fn head(&self) -> &dyn Head {
        self.transformer.head()
    }

    fn max_positions(&self) -> Option<usize> {
        self.transformer.max_positions()
    }

    fn flops(&self) -> Option<ModelFlops> {
        self.transformer.flops()
    }
}

/// The queries other than those of words for words.
#[derive(Debug)]
struct Queries {
    words_of_entities: Linear,
    entities_of_words: Linear,
    entities_of_entities: Linear,
}

/// A block in which words and entities ask words in other ways than entities.
#[derive(Debug)]
struct LukeBlock {
    block: TransformerBlock,
    queries: Option<Queries>,
}

impl LukeBlock {
    /// Returns what `x`, whose first `words` places are words, sees.
    fn attend(
        &self,
        queries: &Queries,
        x: &Tensor,
        words: usize,
        mask: &AttentionMask,
        dropout: Dropout,
    ) -> Result<Tensor> {
        let attention = &self.block.attention;
        let (heads, size) = (attention.heads, attention.head_size);
        let (batch, len, _) = x.dims3()?;
        let entities = len - words;
        let of_heads = |x: &Tensor| ops::reshape(x, (batch, (), heads, size));
        let split = |x: &Tensor| -> Result<[Tensor; 2]> {
            Ok([
                ops::narrow(x, 1, 0, words)?,
                ops::narrow(x, 1, words, entities)?,
            ])
        };
        // Each query is one for words and one for entities, side by side; each key is beside zeros where the other's is.
        let beside = |a: &Tensor, b: &Tensor| ops::concat(&[a, b], 3);
        let [of_words, of_entities] = split(x)?;
        let query = |map: &Linear, x: &Tensor| of_heads(&map.forward(x)?);
        let by_words = beside(
            &query(&attention.query, &of_words)?,
            &query(&queries.words_of_entities, &of_words)?,
        )?;
        let by_entities = beside(
            &query(&queries.entities_of_words, &of_entities)?,
            &query(&queries.entities_of_entities, &of_entities)?,
        )?;
        let query = ops::concat(&[&by_words, &by_entities], 1)?;
        let [of_words, of_entities] = split(&of_heads(&attention.key.forward(x)?)?)?;
        let key = ops::concat(
            &[
                &beside(&of_words, &of_words.zeros_like()?.detach())?,
                &beside(&of_entities.zeros_like()?.detach(), &of_entities)?,
            ],
            1,
        )?;
        let joined = |x: &Tensor| ops::reshape(x, (batch, len, 2 * heads * size));
        let options = AttentionOptions {
            dropout,
            mask: mask.clone(),
            ..AttentionOptions::new(heads, size)
        };
        let value = attention.value.forward(x)?;
        ops::attention_with(&joined(&query)?, &joined(&key)?, &value, &options)
    }
}

impl Block for LukeBlock {
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match (&self.queries, pass.inputs.get(WORDS)) {
            (Some(queries), Some(words)) => {
                let words = words.to_scalar::<u32>()? as usize;
                self.block.forward_with(x, &pass.context, |x, dropout| {
                    self.attend(queries, x, words, &pass.mask, dropout)
                })
            }
            _ => self.block.forward(x, pass),
        }
    }

    fn params(&self) -> Vec<Param> {
        let mut params = self.block.params();
        if let Some(queries) = &self.queries {
            params.extend(queries.words_of_entities.params());
            params.extend(queries.entities_of_words.params());
            params.extend(queries.entities_of_entities.params());
        }
        params
    }

    fn flops(&self) -> ModelFlops {
        self.block.flops()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Column, MaskedLm};

    #[test]
    fn entities_are_optional_and_padded_ones_change_nothing() {
        let model = MaskedLm::from_config(&Config::small("luke"), 1).unwrap();
        let text = || ModelInputs::new(vec![0, 7, 8, 9, 5, 2], (1, 6)).unwrap();
        let words = model.forward(text()).unwrap();
        let with = |ids: &[i64], places: &[i64], mask: Option<&[i64]>| {
            let count = ids.len();
            let mut inputs = text()
                .with_column("entity_ids", Column::ids(ids.to_vec(), [1, count]).unwrap())
                .with_column(
                    "entity_position_ids",
                    Column::ids(places.to_vec(), [1, count, 2]).unwrap(),
                );
            if let Some(mask) = mask {
                let mask = Column::ids(mask.to_vec(), [1, count]).unwrap();
                inputs = inputs.with_column("entity_attention_mask", mask);
            }
            model.forward(inputs).unwrap()
        };
        let difference = |a: &Tensor, b: &Tensor| {
            let difference = (a - b).unwrap().abs().unwrap().max_all().unwrap();
            difference.to_scalar::<f32>().unwrap()
        };
        let one = with(&[4], &[1, 2], None);
        assert!(difference(&one, &words) > 1e-4);
        let padded = with(&[4, 0], &[1, 2, -1, -1], Some(&[1, 0]));
        assert!(difference(&padded, &one) < 1e-6);
        assert!(difference(&with(&[4, 9], &[1, 2, 4, -1], None), &one) > 1e-4);
        assert_eq!(difference(&with(&[], &[], None), &words), 0.0);
    }

    #[test]
    fn each_loss_is_the_mean_of_its_own_labels() {
        let model = MaskedLm::from_config(&Config::small("luke"), 1).unwrap();
        let column = |values: Vec<i64>, shape: &[usize]| Column::ids(values, shape).unwrap();
        let words = ModelInputs::new(vec![0, 7, 8, 9, 5, 2], (2, 3)).unwrap();
        let words = words.with_labels(vec![-100, 4, -100, 6, 7, -100]).unwrap();
        let inputs = words
            .clone()
            .with_column("entity_ids", column(vec![4, 6, 2, 0], &[2, 2]))
            .with_column("entity_position_ids", column(vec![1; 4], &[2, 2, 1]))
            .with_column("entity_labels", column(vec![-100, 8, 3, -100], &[2, 2]));
        assert_eq!(model.counts(&inputs), [3, 2]);
        assert_eq!(model.counts(&words), [3, 0]);
        let loss = model.loss(&inputs, &Context::eval()).unwrap();
        let counts: Vec<usize> = loss.terms.iter().map(|term| term.count).collect();
        assert_eq!(counts, [3, 2]);
        let sums: Vec<f32> = (loss.terms.iter())
            .map(|term| term.sum.to_scalar().unwrap())
            .collect();
        let mean = loss.value().unwrap();
        assert!((mean - sums[0] / 3.0 - sums[1] / 2.0).abs() < 1e-5);
        assert!(
            model
                .loss(&words, &Context::eval())
                .unwrap()
                .value()
                .unwrap()
                > 0.0
        );
        assert_eq!(model.entity_logits(&inputs).unwrap().dims()[..2], [2, 2]);
        let error = model.entity_logits(&words).unwrap_err().to_string();
        assert!(error.contains("no entities"), "{error}");
        let lost = words.with_column("entity_ids", column(vec![4, 6], &[2, 1]));
        let error = model.forward(lost).unwrap_err().to_string();
        assert!(error.contains("entity_position_ids"), "{error}");
    }
}
