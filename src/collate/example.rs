//! One tokenized example, and whatever examples come from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::MlmBatch;
use crate::dataset::Dataset;
use crate::model::{Column, INPUT_VALUES, Per, Values, known_input};
use crate::tokenizer::{Encoding, ExtraColumn};
use crate::{Error, Result};

/// A tokenized text. Only `input_ids` must be there; the other columns are as long, where there are any. Of a recording it is
/// the column `input_values` that must be there, and `labels` are as many as there are letters.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// let example = Example::from(tokenizer.encode("a galaxy")?);
/// assert_eq!(example.input_ids.len(), example.offsets.as_ref().map_or(0, Vec::len));
/// let of_ids = Example::from(vec![0u32, 7, 8, 2]);
/// assert!(of_ids.attention_mask.is_none());
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// The token ids.
    pub input_ids: Vec<u32>,
    /// 1 for tokens, 0 for padding; all 1 when absent.
    pub attention_mask: Option<Vec<u32>>,
    /// 0 for the first text of a pair, 1 for the second.
    pub token_type_ids: Option<Vec<u32>>,
    /// 1 where a token must not be masked; when absent, these are the special ids.
    pub special_tokens_mask: Option<Vec<u32>>,
    /// Labels made beforehand; only [`PaddingCollator`](super::PaddingCollator) reads them.
    pub labels: Option<Vec<i64>>,
    /// Start and end of each token in its text, for whole-word masking; if absent, the spelling of the tokens marks the
    /// beginnings of words.
    pub offsets: Option<Vec<(usize, usize)>>,
    /// Inputs that only some families know, by name: boxes, languages, entities, ...
    pub columns: BTreeMap<String, Column>,
}

impl Example {
    /// Returns whether this is a waveform, which has no tokens, and labels of a different length.
    fn is_sound(&self) -> bool {
        self.input_ids.is_empty() && self.columns.contains_key(INPUT_VALUES)
    }

    /// Checks that the columns are equally long.
    pub(crate) fn validate(&self) -> Result<()> {
        if self.is_sound() {
            return Ok(());
        }
        let lengths = [
            ("attention_mask", self.attention_mask.as_ref().map(Vec::len)),
            ("token_type_ids", self.token_type_ids.as_ref().map(Vec::len)),
            (
                "special_tokens_mask",
                self.special_tokens_mask.as_ref().map(Vec::len),
            ),
            ("labels", self.labels.as_ref().map(Vec::len)),
            ("offsets", self.offsets.as_ref().map(Vec::len)),
        ];
        for (name, length) in lengths {
            if let Some(length) = length.filter(|&length| length != self.input_ids.len()) {
                return Err(Error::Dataset(format!(
                    "an example has {} input_ids but {length} values of {name}; the numbers must be equal",
                    self.input_ids.len()
                )));
            }
        }
        for (name, column) in &self.columns {
            let Some(input) = known_input(name) else {
                continue;
            };
            let tokens = [self.input_ids.len()];
            let (places, expected) = match input.per {
                Per::Token => (column.shape.get(..1), &tokens[..]),
                Per::Example => (column.shape.get(..0), &[][..]),
                // As many as there are.
                Per::Place => (column.shape.get(..1), column.shape.get(..1).unwrap_or(&[])),
            };
            let trailing = column.shape.get(expected.len()..);
            // An empty list does not say how long its items would be: a text without entities.
            let is_empty = input.per == Per::Place && column.shape.first() == Some(&0);
            if places != Some(expected) || (trailing != Some(input.trailing) && !is_empty) {
                return Err(Error::Dataset(format!(
                    "an example has {} input_ids, and {name} of the shape {:?}; it must have the shape {:?}",
                    tokens[0],
                    column.shape,
                    [expected, input.trailing].concat()
                )));
            }
        }
        Ok(())
    }
}

impl From<Vec<u32>> for Example {
    fn from(input_ids: Vec<u32>) -> Self {
        Self {
            input_ids,
            ..Self::default()
        }
    }
}

impl From<&Encoding> for Example {
    fn from(encoding: &Encoding) -> Self {
        Self::from(encoding.clone())
    }
}

impl From<Encoding> for Example {
    fn from(encoding: Encoding) -> Self {
        let columns = columns_of(&encoding);
        // TAPAS has seven types a token, which are a column.
        let typed = !columns.contains_key("token_type_ids");
        Self {
            input_ids: encoding.ids,
            attention_mask: Some(encoding.attention_mask),
            token_type_ids: typed.then_some(encoding.type_ids),
            special_tokens_mask: Some(encoding.special_tokens_mask),
            labels: None,
            offsets: Some(encoding.offsets),
            columns,
        }
    }
}

/// Returns the additional fields of an encoding as columns of an example.
fn columns_of(encoding: &Encoding) -> BTreeMap<String, Column> {
    let column = |extra: &ExtraColumn| {
        let mut shape = vec![extra.values.len() / extra.width.max(1)];
        if extra.width > 1 {
            shape.push(extra.width);
        }
        Column {
            values: Values::Ids(extra.values.clone()),
            shape,
        }
    };
    let extra = encoding.extra.iter();
    extra
        .map(|(name, extra)| (name.clone(), column(extra)))
        .collect()
}

/// A batch of the one text.
impl From<&Encoding> for MlmBatch {
    fn from(encoding: &Encoding) -> Self {
        let mut columns = columns_of(encoding);
        for (name, column) in &mut columns {
            if known_input(name).is_none_or(|input| input.per != Per::Example) {
                column.shape.insert(0, 1);
            }
        }
        let typed = !columns.contains_key("token_type_ids");
        Self {
            batch: 1,
            seq: encoding.len(),
            input_ids: encoding.ids.clone(),
            attention_mask: encoding.attention_mask.clone(),
            token_type_ids: typed.then(|| encoding.type_ids.clone()),
            labels: Vec::new(),
            columns,
        }
    }
}

/// Examples that can be fetched by index from any thread.
///
/// ```
/// use cloze::prelude::*;
///
/// /// Ever longer examples, made when they are asked for.
/// struct Counting(usize);
///
/// impl Examples for Counting {
///     fn len(&self) -> usize {
///         self.0
///     }
///
///     fn get(&self, index: usize) -> Result<Example> {
///         Ok(Example::from((5..6 + index as u32).collect::<Vec<u32>>()))
///     }
/// }
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// let mut loader = DataLoader::new(Counting(10), MaskingCollator::new(&tokenizer), 4)?;
/// assert_eq!(loader.len(), 3);
/// # Ok::<(), cloze::Error>(())
/// ```
#[allow(clippy::len_without_is_empty)]
pub trait Examples: Send + Sync {
    /// Returns how many there are.
    fn len(&self) -> usize;

    /// Returns the example at `index`, which is less than [`len`](Self::len).
    fn get(&self, index: usize) -> Result<Example>;

    /// Returns the number of tokens of the example at `index`.
    fn tokens(&self, index: usize) -> Result<usize> {
        Ok(self.get(index)?.input_ids.len())
    }

    /// Whether these are examples at all; asked before the first batch.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Returns the name on the Hub of the dataset that they were made from, if they know it.
    fn origin(&self) -> Option<&str> {
        None
    }
}

/// Converts into examples: any [`Examples`], and references to datasets and lists of examples, which are copied (a
/// dataset's copy shares its data).
///
/// ```
/// use cloze::prelude::*;
///
/// fn tokens(data: impl IntoExamples) -> cloze::Result<usize> {
///     let data = data.into_examples();
///     (0..data.len()).map(|row| data.tokens(row)).sum()
/// }
/// let rows = vec![Example::from(vec![5u32, 6, 7]); 2];
/// assert_eq!(tokens(&rows)?, 6);
/// assert_eq!(tokens(rows)?, 6);
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait IntoExamples {
    /// The resulting type.
    type Examples: Examples + 'static;

    /// Returns the examples.
    fn into_examples(self) -> Self::Examples;
}

impl<E: Examples + 'static> IntoExamples for E {
    type Examples = E;

    fn into_examples(self) -> E {
        self
    }
}

impl IntoExamples for &Dataset {
    type Examples = Dataset;

    fn into_examples(self) -> Dataset {
        self.clone()
    }
}

impl IntoExamples for &Vec<Example> {
    type Examples = Vec<Example>;

    fn into_examples(self) -> Vec<Example> {
        self.clone()
    }
}

impl Examples for Vec<Example> {
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        Ok(self[index].clone())
    }

    fn tokens(&self, index: usize) -> Result<usize> {
        Ok(self[index].input_ids.len())
    }
}

impl<E: Examples + ?Sized> Examples for Arc<E> {
    fn len(&self) -> usize {
        (**self).len()
    }

    fn get(&self, index: usize) -> Result<Example> {
        (**self).get(index)
    }

    fn tokens(&self, index: usize) -> Result<usize> {
        (**self).tokens(index)
    }

    fn validate(&self) -> Result<()> {
        (**self).validate()
    }

    fn origin(&self) -> Option<&str> {
        (**self).origin()
    }
}
