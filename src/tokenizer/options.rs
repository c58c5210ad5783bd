//! How texts are encoded: special tokens, truncation, padding.

/// Which of two texts gives way when a pair is too long.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let (first, second) = ("a galaxy", "a spiral staircase");
/// let whole = tokenizer.encode_pair(first, second)?;
/// let options = EncodeOptions::new()
///     .truncation(whole.len() - 2)
///     .truncation_strategy(TruncationStrategy::OnlySecond);
/// let cut = tokenizer.encode_pair_with(first, second, &options)?;
/// assert_eq!(cut.len(), whole.len() - 2);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TruncationStrategy {
    /// The longer one first.
    #[default]
    LongestFirst,
    /// Only the first; an error if that is not enough.
    OnlyFirst,
    /// Only the second; an error if that is not enough.
    OnlySecond,
}

/// How far rows are filled with the padding token.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let texts = ["a galaxy", "a spiral staircase of stone"];
/// let lengths = |padding| -> cloze::Result<Vec<usize>> {
///     let encodings = tokenizer.encode_batch_with(&texts, &EncodeOptions::new().padding(padding))?;
///     Ok(encodings.iter().map(|encoding| encoding.len()).collect())
/// };
/// assert_eq!(lengths(Padding::MaxLength(32))?, [32, 32]);
/// let longest = lengths(Padding::None)?[1];
/// assert_eq!(lengths(Padding::Longest)?, [longest, longest]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Padding {
    /// Not at all.
    #[default]
    None,
    /// To the longest row of the batch.
    Longest,
    /// To this many tokens; longer rows stay as they are.
    MaxLength(usize),
}

/// Options of [`encode_with`](super::Tokenizer::encode_with) and similar methods. By default special tokens are added,
/// and nothing is truncated or padded.
///
/// ```
/// use cloze::tokenizer::{EncodeOptions, Padding};
/// let options = EncodeOptions::new().truncation(128).padding(Padding::Longest).pad_to_multiple_of(8);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    pub(crate) add_special_tokens: bool,
    pub(crate) max_length: Option<usize>,
    pub(crate) strategy: TruncationStrategy,
    pub(crate) padding: Padding,
    pub(crate) pad_to_multiple_of: Option<usize>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl EncodeOptions {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self {
            add_special_tokens: true,
            max_length: None,
            strategy: TruncationStrategy::default(),
            padding: Padding::default(),
            pad_to_multiple_of: None,
        }
    }

    /// Sets whether the model's special tokens go around the text (default: yes).
    #[must_use]
    pub fn add_special_tokens(mut self, add: bool) -> Self {
        self.add_special_tokens = add;
        self
    }

    /// Cuts to at most `max_length` tokens, special tokens included. The model's own limit is
    /// [`model_max_length`](super::Tokenizer::model_max_length).
    #[must_use]
    pub fn truncation(mut self, max_length: usize) -> Self {
        self.max_length = Some(max_length);
        self
    }

    /// Sets which text of a pair is cut (default: the longer one first).
    #[must_use]
    pub fn truncation_strategy(mut self, strategy: TruncationStrategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Sets how rows are padded (default: not).
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Rounds the padded length up to a multiple of `multiple` tokens. Counts only together with
    /// [`padding`](Self::padding).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }
}
