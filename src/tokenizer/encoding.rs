//! An encoded text.

use std::collections::BTreeMap;
use std::fmt;

use super::engine::Engine;

/// The encoding of a text: one entry per token in every field.
///
/// `Debug` shows it as a table, one token a line.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// let encoding = tokenizer.encode("a spiral")?;
/// assert_eq!(encoding.special_tokens_mask.first(), Some(&1));
/// assert_eq!(encoding.offsets.len(), encoding.len());
/// assert_eq!(tokenizer.decode(&encoding.ids, true)?, "a spiral");
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// The token ids: the model's `input_ids`.
    pub ids: Vec<u32>,
    /// The tokens as the vocabulary spells them (`Ġmilky`, `##ing`).
    pub tokens: Vec<String>,
    /// 1 for tokens, 0 for padding.
    pub attention_mask: Vec<u32>,
    /// 0 for the first text, 1 for the second, where the family tells them apart: the model's `token_type_ids`.
    pub type_ids: Vec<u32>,
    /// 1 for tokens added around the text (special tokens and padding), 0 for the text's own tokens.
    pub special_tokens_mask: Vec<u32>,
    /// Start and end of each token in its text, in characters (Unicode scalar values); (0, 0) for added tokens.
    pub offsets: Vec<(usize, usize)>,
    /// The word (as the pre-tokenizer splits the text) that each token belongs to; `None` for added tokens.
    pub word_ids: Vec<Option<u32>>,
    /// Whatever else the family's model takes, by the name of its input: RoCBert's shapes, LUKE's entities, the seven
    /// token types of TAPAS. Empty for most families.
    pub extra: BTreeMap<String, ExtraColumn>,
}

/// A column of numbers for a text's tokens, or for its entities.
///
/// ```
/// use cloze::prelude::*;
///
/// // A box for each of three tokens; padding has none.
/// let boxes = ExtraColumn::per_token(vec![0, 0, 0, 0, 10, 20, 30, 40, 0, 0, 0, 0], 4, 0);
/// assert_eq!(boxes.len(), 3);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtraColumn {
    /// The numbers, entry after entry.
    pub values: Vec<i64>,
    /// How many numbers an entry has.
    pub width: usize,
    /// The number that fills entries of padding.
    pub padding: i64,
    /// Whether there is an entry for each token, rather than for each entity.
    pub per_token: bool,
}

impl ExtraColumn {
    /// Returns a column with an entry of `width` numbers for each token.
    pub fn per_token(values: Vec<i64>, width: usize, padding: i64) -> Self {
        Self {
            values,
            width,
            padding,
            per_token: true,
        }
    }

    /// Returns a column with an entry of `width` numbers for each entity.
    pub fn per_entity(values: Vec<i64>, width: usize, padding: i64) -> Self {
        Self {
            per_token: false,
            ..Self::per_token(values, width, padding)
        }
    }

    /// Returns the number of entries.
    pub fn len(&self) -> usize {
        self.values.len() / self.width.max(1)
    }

    /// Returns whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Fills up to `length` entries on the left or on the right.
    pub(crate) fn pad(&mut self, length: usize, left: bool) {
        let missing = length.saturating_sub(self.len()) * self.width;
        let at = if left { 0 } else { self.values.len() };
        let fill = std::iter::repeat_n(self.padding, missing);
        self.values.splice(at..at, fill);
    }
}

/// How many tokens `Debug` shows.
const SHOWN: usize = 64;

impl Encoding {
    /// Returns the number of tokens, padding included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether there are no tokens at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub(super) fn from_crate(encoding: &tokenizers::Encoding, engine: &Engine) -> Self {
        // The crate's tokens are pieces of the text (" <mask>" with its space, the unknown word itself).
        let spell = |&id: &u32| engine.id_to_token(id).unwrap_or_default();
        Self {
            ids: encoding.get_ids().to_vec(),
            tokens: encoding.get_ids().iter().map(spell).collect(),
            attention_mask: encoding.get_attention_mask().to_vec(),
            type_ids: encoding.get_type_ids().to_vec(),
            special_tokens_mask: encoding.get_special_tokens_mask().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            word_ids: encoding.get_word_ids().to_vec(),
            extra: BTreeMap::new(),
        }
    }

    /// Fills up to `length` tokens on the left or on the right.
    pub(crate) fn pad(&mut self, length: usize, id: u32, token: &str, left: bool) {
        fn fill<T: Clone>(row: &mut Vec<T>, missing: usize, value: T, left: bool) {
            let at = if left { 0 } else { row.len() };
            row.splice(at..at, std::iter::repeat_n(value, missing));
        }
        let missing = length.saturating_sub(self.len());
        let columns = self.extra.values_mut();
        columns
            .filter(|column| column.per_token)
            .for_each(|column| column.pad(length, left));
        fill(&mut self.ids, missing, id, left);
        fill(&mut self.tokens, missing, token.to_owned(), left);
        fill(&mut self.attention_mask, missing, 0, left);
        fill(&mut self.type_ids, missing, 0, left);
        fill(&mut self.special_tokens_mask, missing, 1, left);
        fill(&mut self.offsets, missing, (0, 0), left);
        fill(&mut self.word_ids, missing, None, left);
    }
}

impl fmt::Debug for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let padding = self.attention_mask.iter().filter(|&&m| m == 0).count();
        write!(f, "Encoding of {} tokens", self.len())?;
        if padding > 0 {
            write!(f, ", {padding} of them padding")?;
        }
        let width = self
            .tokens
            .iter()
            .take(SHOWN)
            .map(|token| token.chars().count())
            .max()
            .unwrap_or(0)
            .max(5);
        write!(
            f,
            "\n  {:>7}  {:<width$}  {:<11}  special",
            "id", "token", "characters"
        )?;
        for i in 0..self.len().min(SHOWN) {
            let (start, end) = self.offsets[i];
            let special = match (self.special_tokens_mask[i], self.attention_mask[i]) {
                (_, 0) => "padding",
                (1, _) => "yes",
                _ => "",
            };
            let span = format!("{start}..{end}");
            let line = format!(
                "  {:>7}  {:<width$}  {span:<11}  {special}",
                self.ids[i], self.tokens[i]
            );
            write!(f, "\n{}", line.trim_end())?;
        }
        if self.len() > SHOWN {
            write!(f, "\n  ... and {} more", self.len() - SHOWN)?;
        }
        Ok(())
    }
}
