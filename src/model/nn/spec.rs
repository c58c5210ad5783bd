//! The specification of a family: its parts, their sizes, and their names.

use std::sync::Arc;

use super::{
    Block, Embeddings, Encoder, FeedForward, Ids, Linear, Lookup, Norm, Order, PositionScores,
    PredictionHead, SelfAttention, Transformer, TransformerBlock,
};
use crate::model::{Init, WeightBuilder};
use crate::ops::{Activation, Param};
use crate::{Error, Result};

/// Everything that tells one BERT-like family from another. [`Spec::build`] makes the model of it; a family that needs more
/// takes the parts that it shares from the other methods.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The first part of the body's names.
    pub base: &'static str,
    pub sizes: Sizes,
    pub activation: Activation,
    /// The number that normalizations add to the variance.
    pub eps: f64,
    /// The standard deviation of fresh weights.
    pub std: f64,
    /// That of the tables.
    pub table_std: f64,
    /// The word table's name under the base, without `.weight`.
    pub words: &'static str,
    /// The padding token; its row of the word table gets no gradient from lookups.
    pub pad: Option<u32>,
    pub dropout: Dropouts,
    pub positions: Positions,
    /// The name under the base of the table of positions, without `.weight`.
    pub position_table: &'static str,
    /// Further tables whose rows are added to the words'.
    pub streams: Vec<Stream>,
    /// The normalization of the embeddings, by its name under the base.
    pub embedding_norm: Option<&'static str>,
    /// The map from the embeddings' width to the encoder's, by its name under the base.
    pub projection: Option<&'static str>,
    pub layers: LayerNames,
    /// What `{}` in the layers' names becomes for each block: its number in most families. Blocks of one place share their
    /// weights.
    pub places: Vec<String>,
    pub order: Order,
    /// The normalization after the last block, by its name under the base.
    pub final_norm: Option<&'static str>,
    pub head: HeadNames,
    /// The head's activation.
    pub head_activation: Activation,
    /// Whether the vocabulary product shares the word table.
    pub tied: bool,
}

/// Sizes, in features, rows or layers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub vocab: usize,
    pub hidden: usize,
    /// The width of the embeddings.
    pub embedding: usize,
    /// The width of what meets the vocabulary.
    pub output: usize,
    pub heads: usize,
    pub intermediate: usize,
}

/// The dropout probabilities, by position.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dropouts {
    /// After the embeddings.
    pub embeddings: f64,
    /// Of the attention probabilities.
    pub attention: f64,
    /// After the attention's output projection.
    pub attended: f64,
    /// After the feed-forward activation.
    pub activation: f64,
    /// After the feed-forward output.
    pub output: f64,
}

/// How a model knows the order of its tokens.
#[derive(Clone, Debug)]
pub(crate) enum Positions {
    /// By a table with this many rows, from the row with that number on.
    Table { rows: usize, offset: u32 },
    /// By a table with this many rows, counted as in RoBERTa: after the padding's id.
    AfterPadding { rows: usize },
    /// By what attention does; `most` is the longest sequence, if there is one.
    InAttention { most: Option<usize> },
    /// By a table with this many rows, as the family counts; `most` is the longest sequence, if there is one.
    Other {
        rows: usize,
        ids: Ids,
        most: Option<usize>,
    },
    /// By distances, as BERT's `position_embedding_type` says ("relative_key", "relative_key_query"). The table of
    /// positions is there nevertheless, unused.
    Relative {
        rows: usize,
        kind: String,
        /// Whether the scores by distance are scaled like the others.
        scaled: bool,
        after_padding: bool,
    },
}

/// A table in addition to words and positions.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// Its name under the base, without `.weight`.
    pub name: String,
    pub rows: usize,
    pub ids: Ids,
    pub padding: Option<u32>,
}

impl Stream {
    /// Segment 0 or 1, in a table of `rows` rows.
    pub(crate) fn segments(rows: usize) -> Self {
        Self {
            name: "embeddings.token_type_embeddings".to_owned(),
            rows,
            ids: Ids::Segments,
            padding: None,
        }
    }
}

/// The most layers of a model; those of some families count twice. The graph of a step is walked and dropped recursively, in about 2 kB of the stack for each
/// layer; a thread has 2 MB.
pub(crate) const MOST_LAYERS: usize = 256;

/// Checks that `layers`, the value of `key`, are no more than [`MOST_LAYERS`].
pub(crate) fn check_layers(key: &str, layers: usize) -> Result<()> {
    check_layers_up_to(key, layers, MOST_LAYERS)
}

/// Checks that `layers`, the value of `key`, are no more than `most`, for layers that take more of the stack than others.
pub(crate) fn check_layers_up_to(key: &str, layers: usize, most: usize) -> Result<()> {
    match layers <= most {
        true => Ok(()),
        false => Err(Error::Config(format!(
            "{key} {layers} makes more layers than any model has; at most {most} can be built"
        ))),
    }
}

/// Returns the places of `layers` blocks that are numbered from 0, by the value of `key`.
///
/// # Errors
/// When there are more than [`MOST_LAYERS`].
pub(crate) fn numbered(key: &str, layers: usize) -> Result<Vec<String>> {
    check_layers(key, layers)?;
    Ok((0..layers).map(|layer| layer.to_string()).collect())
}

/// The names of a block's parts; `{}` is replaced by the block's number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerNames {
    pub query: &'static str,
    pub key: &'static str,
    pub value: &'static str,
    /// Where the table of distances is, if positions are relative.
    pub distances: &'static str,
    pub attention_output: &'static str,
    pub attention_norm: &'static str,
    pub intermediate: &'static str,
    pub output: &'static str,
    pub output_norm: &'static str,
}

/// The full names of a head's parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadNames {
    /// The dense layer and its normalization; `None` if there is only the product.
    pub transform: Option<(&'static str, &'static str)>,
    /// The vocabulary product, which shares the word table where weights are tied.
    pub decoder: &'static str,
    /// The output bias.
    pub bias: Option<&'static str>,
}

impl Spec {
    /// Takes all weights and puts the model together.
    pub(crate) fn build(&self, weights: &WeightBuilder) -> Result<Transformer> {
        self.build_with(weights, self.blocks(weights)?)
    }

    /// Returns all blocks, first to last.
    pub(crate) fn blocks(&self, weights: &WeightBuilder) -> Result<Vec<Arc<dyn Block>>> {
        let block = |place: &String| Ok(Arc::new(self.block(weights, place)?) as Arc<dyn Block>);
        self.places.iter().map(block).collect()
    }

    /// Like [`Spec::build`], with blocks that the family has made.
    pub(crate) fn build_with(
        &self,
        weights: &WeightBuilder,
        blocks: Vec<Arc<dyn Block>>,
    ) -> Result<Transformer> {
        self.check()?;
        let embeddings = self.embeddings(weights)?;
        let head = self.head(weights, &embeddings.lookups[0].table)?;
        Ok(Transformer {
            encoder: self.encoder(weights, blocks)?,
            embeddings: Box::new(embeddings),
            head: Box::new(head),
            prepare: None,
            max_positions: self.max_positions(),
        })
    }

    /// Checks that the sizes make sense.
    pub(crate) fn check(&self) -> Result<()> {
        let Sizes {
            vocab,
            hidden,
            embedding,
            output,
            heads,
            ..
        } = self.sizes;
        if heads == 0 || !hidden.is_multiple_of(heads) {
            return Err(Error::Config(format!(
                "hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
            )));
        }
        if vocab == 0 || hidden == 0 || embedding == 0 || output == 0 {
            return Err(Error::Config(
                "vocab_size, hidden_size and the embeddings' size must be positive".to_owned(),
            ));
        }
        if let Some(pad) = self.pad.filter(|&pad| pad as usize >= vocab) {
            return Err(Error::Config(format!(
                "pad_token_id {pad} is outside the vocabulary of {vocab}"
            )));
        }
        match self.max_positions() {
            Some(0) => Err(Error::Config(
                "max_position_embeddings leaves no position for a token".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Returns the longest sequence that has a position for each token.
    pub(crate) fn max_positions(&self) -> Option<usize> {
        // A table as RoBERTa counts has rows that no token uses: those up to the padding's.
        let behind_padding = |rows: usize| rows.saturating_sub(self.pad.unwrap_or(0) as usize + 1);
        Some(match &self.positions {
            Positions::Table { rows, offset } => rows.saturating_sub(*offset as usize),
            Positions::AfterPadding { rows } => behind_padding(*rows),
            Positions::Other { most, .. } | Positions::InAttention { most } => return *most,
            Positions::Relative {
                rows,
                after_padding: true,
                ..
            } => behind_padding(*rows),
            Positions::Relative { rows, .. } => *rows,
        })
    }

    /// Returns the embeddings: words, positions, the further streams.
    pub(crate) fn embeddings(&self, weights: &WeightBuilder) -> Result<Embeddings> {
        self.check()?;
        // First, since only here its other name is known; another stream may share it.
        let words = Lookup {
            table: self.word_table(weights)?,
            ids: Ids::Tokens,
            padding: self.pad,
        };
        let mut embeddings = self.embeddings_without_words(weights)?;
        embeddings.lookups.insert(0, words);
        Ok(embeddings)
    }

    /// Returns the embeddings of positions and the further streams alone, for families whose words take another way.
    pub(crate) fn embeddings_without_words(&self, weights: &WeightBuilder) -> Result<Embeddings> {
        let (width, base) = (self.sizes.embedding, weights.pp(self.base));
        let table = |name: &str, rows: usize, padding: Option<u32>| {
            let init = match padding {
                Some(row) => Init::NormalExceptRow(self.table_std, row),
                None => Init::Normal(self.table_std),
            };
            base.pp(name).param("weight", (rows, width), init)
        };
        let mut lookups = Vec::new();
        match &self.positions {
            Positions::Table { rows, offset } => lookups.push(Lookup {
                table: table(self.position_table, *rows, None)?,
                ids: Ids::Positions(*offset),
                padding: None,
            }),
            Positions::AfterPadding { rows } => {
                let pad = self.pad.unwrap_or(0);
                lookups.push(Lookup {
                    table: table(self.position_table, *rows, self.pad)?,
                    ids: Ids::PositionsAfterPadding(pad),
                    padding: self.pad,
                });
            }
            Positions::InAttention { .. } => {}
            Positions::Other { rows, ids, .. } => lookups.push(Lookup {
                table: table(self.position_table, *rows, None)?,
                ids: ids.clone(),
                padding: None,
            }),
            Positions::Relative { rows, .. } => {
                table(self.position_table, *rows, None)?;
            }
        }
        for stream in &self.streams {
            lookups.push(Lookup {
                table: table(&stream.name, stream.rows, stream.padding)?,
                ids: stream.ids.clone(),
                padding: stream.padding,
            });
        }
        let norm = self.embedding_norm;
        let norm = norm.map(|name| Norm::layer(&base.pp(name), width, self.eps));
        let projection = self.projection;
        let projection =
            projection.map(|name| Linear::new(&base.pp(name), width, self.sizes.hidden, self.std));
        Ok(Embeddings {
            lookups,
            norm: norm.transpose()?,
            dropout: self.dropout.embeddings,
            projection: projection.transpose()?,
        })
    }

    /// Returns the word table, which a checkpoint may hold under the decoder's name instead.
    pub(crate) fn word_table(&self, weights: &WeightBuilder) -> Result<Param> {
        let weights = weights.pp(self.base).pp(self.words);
        let shape = (self.sizes.vocab, self.sizes.embedding);
        let init = match self.pad {
            Some(row) => Init::NormalExceptRow(self.table_std, row),
            None => Init::Normal(self.table_std),
        };
        let decoder = format!("{}.weight", self.head.decoder);
        let fits = self.sizes.embedding == self.sizes.output;
        weights.word_table(self.tied && fits, &decoder, shape, init)
    }

    /// Returns the block at `place`.
    pub(crate) fn block(&self, weights: &WeightBuilder, place: &str) -> Result<TransformerBlock> {
        self.check()?;
        let names = &self.layers;
        let base = weights.pp(self.base);
        let at = |name: &str| base.pp(name.replace("{}", place));
        let Sizes {
            hidden,
            heads,
            intermediate,
            ..
        } = self.sizes;
        let square = |name: &str| Linear::new(&at(name), hidden, hidden, self.std);
        let norm = |name: &str| Norm::layer(&at(name), hidden, self.eps);
        let position_scores = match &self.positions {
            Positions::Relative {
                rows, kind, scaled, ..
            } => {
                let (at, width) = (at(names.distances), hidden / heads);
                PositionScores::new(&at, kind, *rows, width, self.std, *scaled)?
            }
            _ => None,
        };
        Ok(TransformerBlock {
            attention: SelfAttention {
                query: square(names.query)?,
                key: square(names.key)?,
                value: square(names.value)?,
                heads,
                head_size: hidden / heads,
                dropout: self.dropout.attention,
                position_scores,
                angles: None,
            },
            attention_output: square(names.attention_output)?,
            attention_dropout: self.dropout.attended,
            attention_norm: norm(names.attention_norm)?,
            feed_forward: FeedForward {
                intermediate: Linear::new(&at(names.intermediate), hidden, intermediate, self.std)?,
                activation: self.activation,
                activation_dropout: self.dropout.activation,
                output: Linear::new(&at(names.output), intermediate, hidden, self.std)?,
                dropout: self.dropout.output,
            },
            output_norm: norm(names.output_norm)?,
            order: self.order,
        })
    }

    /// Returns the stack of `blocks` followed by the normalization.
    pub(crate) fn encoder(
        &self,
        weights: &WeightBuilder,
        blocks: Vec<Arc<dyn Block>>,
    ) -> Result<Encoder> {
        let base = weights.pp(self.base);
        let norm = self.final_norm;
        let norm = norm.map(|name| Norm::layer(&base.pp(name), self.sizes.hidden, self.eps));
        Ok(Encoder {
            blocks,
            norm: norm.transpose()?,
        })
    }

    /// Returns the head, whose product with the vocabulary shares `word` where weights are tied.
    pub(crate) fn head(&self, weights: &WeightBuilder, word: &Param) -> Result<PredictionHead> {
        let Sizes { vocab, output, .. } = self.sizes;
        let transform = self.head_transform(weights)?;
        let (decoder, bias) = weights.decoder(
            self.head.decoder,
            self.head.bias,
            self.tied.then_some(word),
            (vocab, output),
            self.std,
        )?;
        Ok(PredictionHead {
            transform,
            decoder,
            bias,
        })
    }

    /// Returns the layers before the product with the vocabulary.
    pub(crate) fn head_transform(
        &self,
        weights: &WeightBuilder,
    ) -> Result<Option<(Linear, Activation, Norm)>> {
        let Some((dense, norm)) = self.head.transform else {
            return Ok(None);
        };
        let Sizes { hidden, output, .. } = self.sizes;
        Ok(Some((
            Linear::new(&weights.pp(dense), hidden, output, self.std)?,
            self.head_activation,
            Norm::layer(&weights.pp(norm), output, self.eps)?,
        )))
    }
}
