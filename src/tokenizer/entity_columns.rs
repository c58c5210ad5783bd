//! LUKE's inputs from a dataset's columns.

use super::{EncodeOptions, Encoding, Mentions, Tokenizer};
use crate::dataset::{Batch, BatchFunction};
use crate::{Error, Result};

/// The places of a mention that LUKE's input has room for, whatever the tokenizer's own limit.
const WIDTH: usize = 30;

impl Tokenizer {
    /// Returns the function for [`Dataset::map`](crate::dataset::Dataset::map) that makes LUKE's inputs of the columns `text`
    /// (`string`) and `spans` (`list<list<int64>>`: start and end of each mention, in characters): `input_ids`,
    /// `attention_mask`, `entity_ids`, `entity_attention_mask` and `entity_position_ids`.
    ///
    /// Without [`titles`](TokenizeEntities::titles) every entity is the mask, which the model is to guess.
    pub fn tokenize_entities(
        &self,
        text: impl Into<String>,
        spans: impl Into<String>,
    ) -> TokenizeEntities {
        TokenizeEntities {
            tokenizer: self.clone(),
            text: text.into(),
            spans: spans.into(),
            titles: None,
            max_length: None,
        }
    }
}

/// Tokenizes texts with their entities; made by [`Tokenizer::tokenize_entities`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::from_pretrained("studio-ousia/luke-base")?;
/// let texts = Dataset::builder()
///     .column("text", vec!["Beyoncé lives in Los Angeles."])
///     .column("spans", vec![vec![vec![0i64, 7], vec![17, 28]]])
///     .column("titles", vec![vec!["Beyoncé", "Los Angeles"]])
///     .build()?;
/// let inputs = tokenizer.tokenize_entities("text", "spans").titles("titles").max_length(128);
/// let inputs = texts.map(Map::new(inputs).batched().remove_all_columns())?;
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenizeEntities {
    tokenizer: Tokenizer,
    text: String,
    spans: String,
    titles: Option<String>,
    max_length: Option<usize>,
}

impl TokenizeEntities {
    /// Sets the column (`list<string>`) with the title of each mention's entity.
    #[must_use]
    pub fn titles(mut self, column: impl Into<String>) -> Self {
        self.titles = Some(column.into());
        self
    }

    /// Cuts texts to at most this many tokens, and leaves out the entities that are cut off (default: nothing is cut).
    #[must_use]
    pub fn max_length(mut self, max_length: usize) -> Self {
        self.max_length = Some(max_length);
        self
    }

    fn encode(
        &self,
        text: &str,
        spans: &[Vec<i64>],
        titles: Option<&Vec<String>>,
    ) -> Result<Encoding> {
        let span = |span: &Vec<i64>| match span[..] {
            [start, end] => match (usize::try_from(start), usize::try_from(end)) {
                (Ok(start), Ok(end)) => Ok((start, end)),
                _ => Err(Error::Dataset(format!(
                    "the mention {span:?} begins before the text"
                ))),
            },
            _ => Err(Error::Dataset(format!(
                "a mention of the column {:?} has {} numbers, and needs 2: start and end",
                self.spans,
                span.len()
            ))),
        };
        let spans = spans.iter().map(span).collect::<Result<Vec<_>>>()?;
        let titles: Option<Vec<&str>> =
            titles.map(|titles| titles.iter().map(String::as_str).collect());
        let mentions = Mentions {
            spans: &spans,
            titles: titles.as_deref(),
        };
        let mut options = EncodeOptions::new();
        if let Some(max_length) = self.max_length {
            options = options.truncation(max_length);
        }
        self.tokenizer
            .encode_entities(text, mentions, None, &options)
    }
}

impl BatchFunction for TokenizeEntities {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let texts = batch.strings(&self.text)?;
        let spans: Vec<Vec<Vec<i64>>> = batch.column(&self.spans)?;
        let titles: Option<Vec<Vec<String>>> = match &self.titles {
            Some(column) => Some(batch.column(column)?),
            None => None,
        };
        let (mut ids, mut masks) = (Vec::new(), Vec::new());
        let (mut entities, mut entity_masks, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (text, spans)) in texts.iter().zip(&spans).enumerate() {
            let titles = titles.as_ref().map(|titles| &titles[row]);
            let encoding = self.encode(text, spans, titles).map_err(|error| {
                Error::Dataset(format!("row {}: {error}", batch.rows().start + row))
            })?;
            masks.push(vec![1i8; encoding.len()]);
            ids.push(encoding.ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
            let column = |name: &str| encoding.extra[name].values.clone();
            entities.push(column("entity_ids"));
            entity_masks.push(column("entity_attention_mask"));
            let width = encoding.extra["entity_position_ids"].width.max(1);
            let places = encoding.extra["entity_position_ids"].values.chunks(width);
            let widened = |place: &[i64]| {
                let mut place = place.to_vec();
                place.resize(place.len().max(WIDTH), -1);
                place
            };
            positions.push(places.map(widened).collect::<Vec<_>>());
        }
        Batch::new()
            .with_column("input_ids", ids)?
            .with_column("attention_mask", masks)?
            .with_column("entity_ids", entities)?
            .with_column("entity_attention_mask", entity_masks)?
            .with_column("entity_position_ids", positions)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!(
            "tokenize_entities({:?}, {:?}, titles {:?}, max_length {:?}) with {}",
            self.text,
            self.spans,
            self.titles,
            self.max_length,
            self.tokenizer.fingerprint()
        ))
    }
}
