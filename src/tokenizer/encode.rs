//! Encoding: one text, a pair, a batch; truncation and padding.

use rayon::prelude::*;
use tokenizers::{PostProcessor, TruncationDirection};

use super::guard::{failed, guarded};
use super::{EncodeOptions, Encoding, Padding, Tokenizer, TruncationStrategy};
use crate::{Error, Result};

impl Tokenizer {
    /// Encodes `text` with the model's special tokens around it.
    pub fn encode(&self, text: &str) -> Result<Encoding> {
        self.encode_with(text, &EncodeOptions::new())
    }

    /// Encodes `text` as `options` say.
    pub fn encode_with(&self, text: &str, options: &EncodeOptions) -> Result<Encoding> {
        let encoding = self.encode_unpadded(text, None, options)?;
        self.pad_one(encoding, options)
    }

    /// Encodes two texts as one input (`<s> text </s></s> pair </s>`, or as the family does it).
    pub fn encode_pair(&self, text: &str, pair: &str) -> Result<Encoding> {
        self.encode_pair_with(text, pair, &EncodeOptions::new())
    }

    /// Encodes two texts as one input as `options` say.
    ///
    /// With a `tokenizer.json` an empty second text counts as none, as in transformers' fast tokenizers; with the
    /// older files it is an empty text between its separators, as in the slow ones.
    pub fn encode_pair_with(
        &self,
        text: &str,
        pair: &str,
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        let encoding = self.encode_unpadded(text, Some(pair), options)?;
        self.pad_one(encoding, options)
    }

    /// Encodes many texts on all cores, with the model's special tokens, without padding.
    pub fn encode_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Encoding>> {
        self.encode_batch_with(texts, &EncodeOptions::new())
    }

    /// Encodes many texts on all cores as `options` say.
    pub fn encode_batch_with<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        options: &EncodeOptions,
    ) -> Result<Vec<Encoding>> {
        let mut encodings = texts
            .par_iter()
            .map(|text| self.encode_unpadded(text.as_ref(), None, options))
            .collect::<Result<Vec<_>>>()?;
        self.pad_all(&mut encodings, options)?;
        Ok(encodings)
    }

    /// Encodes many pairs of texts on all cores as `options` say.
    pub fn encode_pairs_with<S: AsRef<str> + Sync, T: AsRef<str> + Sync>(
        &self,
        pairs: &[(S, T)],
        options: &EncodeOptions,
    ) -> Result<Vec<Encoding>> {
        let mut encodings = pairs
            .par_iter()
            .map(|(text, pair)| self.encode_unpadded(text.as_ref(), Some(pair.as_ref()), options))
            .collect::<Result<Vec<_>>>()?;
        self.pad_all(&mut encodings, options)?;
        Ok(encodings)
    }

    /// Returns the tokens of `text` as the vocabulary spells them, without special tokens around them.
    pub fn tokenize(&self, text: &str) -> Result<Vec<String>> {
        let options = EncodeOptions::new().add_special_tokens(false);
        Ok(self.encode_with(text, &options)?.tokens)
    }

    /// Returns only the ids of `text`, with special tokens around them: the quickest way, since nothing else is computed.
    pub fn encode_ids(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.append_ids(text, &mut ids)?;
        Ok(ids)
    }

    /// Returns the [`encode_ids`](Self::encode_ids) of many texts, on all cores.
    pub fn encode_ids_batch<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>> {
        texts
            .par_iter()
            .map(|text| self.encode_ids(text.as_ref()))
            .collect()
    }

    /// Appends what [`encode_ids`](Self::encode_ids) gives.
    pub(super) fn append_ids(&self, text: &str, ids: &mut Vec<u32>) -> Result<()> {
        let core = &*self.core;
        let (before, after) = &self.post.around;
        // English text has about four bytes to a token.
        ids.reserve(before.len() + text.len() / 4 + after.len());
        ids.extend_from_slice(before);
        let done = match &core.byte_words {
            Some(words) => guarded("encoding", || words.encode(&core.engine, text, ids))?,
            None => false,
        };
        if !done {
            core.engine.append_ids(text, ids)?;
        }
        ids.extend_from_slice(after);
        Ok(())
    }

    fn encode_unpadded(
        &self,
        text: &str,
        pair: Option<&str>,
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        let pair = pair.filter(|pair| self.settings.legacy || !pair.is_empty());
        let engine = &self.core.engine;
        let first = engine.encode(text)?;
        let second = pair.map(|pair| engine.encode(pair)).transpose()?;
        Ok(self.assemble(first, second, options)?.0)
    }

    /// Cuts texts that have been tokenized and puts special tokens around them. Also gives how many tokens of each stay.
    pub(super) fn assemble(
        &self,
        mut first: tokenizers::Encoding,
        mut second: Option<tokenizers::Encoding>,
        options: &EncodeOptions,
    ) -> Result<(Encoding, (usize, usize))> {
        let legacy = self.settings.legacy;
        let post = self.post.processor.as_ref();
        if let Some(max_length) = options.max_length {
            let added = match post {
                Some(post) if options.add_special_tokens => post.added_tokens(second.is_some()),
                _ => 0,
            };
            let room = max_length.checked_sub(added).ok_or_else(|| {
                Error::argument(
                    "truncation",
                    format!(
                        "{max_length} tokens are fewer than the {added} special tokens; allow more"
                    ),
                )
            })?;
            let lengths = (first.len(), second.as_ref().map(tokenizers::Encoding::len));
            let keep = kept(lengths, room, options.strategy, legacy)?;
            let side = if self.settings.truncate_left {
                TruncationDirection::Left
            } else {
                TruncationDirection::Right
            };
            first.truncate(keep.0, 0, side);
            if let Some(second) = &mut second {
                second.truncate(keep.1, 0, side);
            }
        }
        let second_length = second.as_ref().map_or(0, tokenizers::Encoding::len);
        let lengths = (first.len(), second_length);
        let whole = match post {
            Some(post) => guarded("encoding", || {
                let processed = post.process(first, second, options.add_special_tokens);
                processed.map_err(failed)
            })?,
            None => {
                if let Some(mut second) = second {
                    second.set_type_ids(vec![1; second.len()]);
                    first.merge_with(second, false);
                }
                first
            }
        };
        let mut encoding = Encoding::from_crate(&whole, &self.core.engine);
        for column in self.core.columns.iter() {
            column.add_to(&mut encoding, i64::from(self.pad_token_id().unwrap_or(0)));
        }
        Ok((encoding, lengths))
    }

    pub(super) fn pad_one(
        &self,
        mut encoding: Encoding,
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        self.pad_all(std::slice::from_mut(&mut encoding), options)?;
        Ok(encoding)
    }

    fn pad_all(&self, encodings: &mut [Encoding], options: &EncodeOptions) -> Result<()> {
        let length = match options.padding {
            Padding::None => return Ok(()),
            Padding::Longest => encodings.iter().map(Encoding::len).max().unwrap_or(0),
            Padding::MaxLength(length) => length,
        };
        let length = match options.pad_to_multiple_of {
            Some(0) => {
                return Err(Error::argument("pad_to_multiple_of", "must be at least 1"));
            }
            Some(multiple) => length.next_multiple_of(multiple),
            None => length,
        };
        if encodings.iter().all(|encoding| encoding.len() >= length) {
            return Ok(());
        }
        let (Some(token), Some(id)) = (self.pad_token(), self.pad_token_id()) else {
            return Err(self.no_pad_token());
        };
        for encoding in encodings {
            encoding.pad(length, id, token, self.settings.pad_left);
        }
        Ok(())
    }

    /// Returns the id of the mask token, which masked language modelling needs.
    pub(crate) fn needed_mask_id(&self) -> Result<u32> {
        self.mask_token_id().ok_or_else(|| {
            Error::Tokenizer(format!(
                "a {} has no mask token, which masked language modelling needs; its special tokens are in \
                 tokenizer_config.json",
                self.class_name()
            ))
        })
    }

    pub(crate) fn no_pad_token(&self) -> Error {
        Error::Tokenizer(format!(
            "a {} has no padding token, which rows of different lengths need; choose one with set_pad_token, for \
             instance the end-of-sequence token with set_pad_token_to_eos",
            self.class_name()
        ))
    }
}

/// Returns how many tokens of each text stay when both together may have `room`.
///
/// `transformers`' two kinds of tokenizers differ here, and so do we: where both texts of a pair must give way, the
/// fast ones leave the odd token to the longer text, the slow ones (`legacy`) to the first; and where one text alone can't
/// give way enough, the fast ones fail and the slow ones leave it as it is with a warning.
pub(super) fn kept(
    (first, second): (usize, Option<usize>),
    room: usize,
    strategy: TruncationStrategy,
    legacy: bool,
) -> Result<(usize, usize)> {
    let excess = (first + second.unwrap_or(0)).saturating_sub(room);
    let pair = second.unwrap_or(0);
    if excess == 0 {
        return Ok((first, pair));
    }
    let too_short = |which: &str, length: usize| {
        let message = format!(
            "the {which} text has {length} tokens, but {excess} must go; allow more, or cut both texts with \
             TruncationStrategy::LongestFirst"
        );
        if legacy {
            tracing::warn!("truncation: {message}");
            return Ok((first, pair));
        }
        Err(Error::argument("truncation", message))
    };
    match (strategy, second) {
        (TruncationStrategy::LongestFirst, None) => Ok((first - excess, 0)),
        (TruncationStrategy::LongestFirst, Some(pair)) => {
            Ok(longest_first(first, pair, room, legacy))
        }
        (TruncationStrategy::OnlyFirst, _) if first > excess => Ok((first - excess, pair)),
        (TruncationStrategy::OnlyFirst, _) => too_short("first", first),
        (TruncationStrategy::OnlySecond, Some(pair)) if pair > excess => Ok((first, pair - excess)),
        (TruncationStrategy::OnlySecond, Some(pair)) => too_short("second", pair),
        (TruncationStrategy::OnlySecond, None) => too_short("second", 0),
    }
}

/// Returns how many tokens stay of each text when the longer one gives way first, together more than `room`.
fn longest_first(first: usize, second: usize, room: usize, legacy: bool) -> (usize, usize) {
    let short = first.min(second);
    if 2 * short <= room {
        // The longer text alone gives way.
        let long = room - short;
        return if first > second {
            (long, short)
        } else {
            (short, long)
        };
    }
    let (less, more) = (room / 2, room - room / 2);
    if legacy || first > second {
        (more, less)
    } else {
        (less, more)
    }
}
