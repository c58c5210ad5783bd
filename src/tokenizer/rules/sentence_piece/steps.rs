//! The same model as steps of the `tokenizers` library: what transformers makes of the file for its fast classes. A text's
//! places are told as these steps find them, and a new vocabulary is trained behind them.

use std::fmt;
use std::ops::Range;

use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{
    Lowercase, NFKD, NormalizerWrapper, Precompiled, Replace, Sequence, Strip, StripAccents,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::{ModelWrapper, Normalizer};

use super::proto::{Algorithm, Proto};
use super::{Cleaning, SPACE};
use crate::Result;
use crate::tokenizer::guard::{failed, guarded};
use crate::tokenizer::rules::aligned::Aligned;

/// The normalizers, one after the other.
pub(super) struct Steps {
    normalizers: Vec<NormalizerWrapper>,
    splits_punctuation: bool,
}

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").finish_non_exhaustive()
    }
}

impl Steps {
    /// Returns `None` where the library can't read the model's map of characters.
    pub(super) fn new(proto: &Proto, cleaning: Cleaning) -> Option<Self> {
        let replace = |pattern: ReplacePattern, to: &str| Replace::new(pattern, to).ok();
        let spaces = || replace(ReplacePattern::Regex(" {2,}".to_owned()), " ");
        let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
        if cleaning.quotes || cleaning.fast_quotes {
            for quotes in ["``", "''"] {
                normalizers.push(replace(quotes.to_owned().into(), "\"")?.into());
            }
        }
        if cleaning.fast_quotes {
            normalizers.push(spaces()?.into());
        }
        if cleaning.strip_accents {
            normalizers.extend([NFKD.into(), StripAccents.into()]);
        }
        if cleaning.lowercase {
            normalizers.push(Lowercase.into());
        }
        if cleaning.strips {
            normalizers.push(Strip::new(true, true).into());
        }
        if !proto.charsmap.is_empty() {
            let map = guarded("opening", || Ok(Precompiled::from(&proto.charsmap)));
            normalizers.push(map.ok()?.ok()?.into());
        }
        if !cleaning.fast_quotes {
            normalizers.push(spaces()?.into());
        }
        Some(Self {
            normalizers,
            splits_punctuation: cleaning.split_by_punct,
        })
    }

    /// Returns the normalized text, its spaces not yet marked; `None` where the library fails.
    pub(super) fn apply(&self, text: &Aligned) -> Option<Aligned> {
        guarded("encoding", || {
            let mut done = Ok(());
            let new = text.through(|text| {
                let mut steps = self.normalizers.iter();
                done = steps.try_for_each(|step| step.normalize(text));
            });
            done.map_err(failed)?;
            Ok(new)
        })
        .ok()
    }

    /// Returns the text with its spaces marked and a mark at its beginning.
    pub(super) fn marked(text: &Aligned) -> Aligned {
        let mut new = Aligned::with_capacity(text.len() + SPACE.len_utf8());
        for (range, c) in text.chars() {
            let span = text.span_at(range.start);
            let c = if c == ' ' { SPACE } else { c };
            if range.start == 0 && c != SPACE {
                new.push(SPACE, span);
            }
            new.push(c, span);
        }
        new
    }

    /// Returns a pipeline of these steps with a model that knows `unk` alone.
    pub(super) fn pipeline(
        &self,
        algorithm: Algorithm,
        unk: &str,
    ) -> Result<tokenizers::Tokenizer> {
        let model: ModelWrapper = match algorithm {
            Algorithm::Unigram => Unigram::from(vec![(unk.to_owned(), 0.0)], Some(0), false)
                .map_err(failed)?
                .into(),
            Algorithm::Bpe => BPE::builder()
                .unk_token(unk.to_owned())
                .fuse_unk(true)
                .build()
                .map_err(failed)?
                .into(),
        };
        let marks = Metaspace::new(SPACE, PrependScheme::Always, true);
        let pre_tokenizer: PreTokenizerWrapper = if self.splits_punctuation {
            PreTokenizers::new(vec![Punctuation::default().into(), marks.clone().into()]).into()
        } else {
            marks.clone().into()
        };
        let mut pipeline = tokenizers::Tokenizer::new(model);
        pipeline
            .with_normalizer(Some(Sequence::new(self.normalizers.clone())))
            .map_err(failed)?;
        pipeline.with_pre_tokenizer(Some(pre_tokenizer));
        pipeline.with_decoder(Some(marks));
        Ok(pipeline)
    }
}

/// Returns the text of `own` with the places of `theirs`. What differs between the two is a part of something unknown where
/// both come to the same tokens.
pub(super) fn placed(own: &Aligned, mut theirs: Aligned) -> Aligned {
    if !own.as_str().ends_with(SPACE) {
        // The model's own way leaves out spaces at the end.
        theirs.truncate(theirs.as_str().trim_end_matches(SPACE).len());
    }
    let (left, right) = (words(own.as_str()), words(theirs.as_str()));
    let pairs: Vec<_> = match left.len() == right.len() {
        true => left.into_iter().zip(right).collect(),
        false => vec![(0..own.len(), 0..theirs.len())],
    };
    let mut new = Aligned::with_capacity(own.len());
    for (left, right) in pairs {
        let mut stretches = common(&own.as_str()[left.clone()], &theirs.as_str()[right.clone()]);
        stretches.push((left.len(), right.len(), 0));
        // How much of both words is taken over.
        let (mut ours, mut others) = (left.start, right.start);
        for (at, their_at, length) in stretches {
            let (at, their_at) = (left.start + at, right.start + their_at);
            let (before, theirs_before) = (ours..at, others..their_at);
            let (start, end) = theirs.span(theirs_before.clone());
            let after_mark = new.as_str().ends_with(SPACE);
            let same = new.len() + before.len();
            match (before.is_empty(), theirs_before.is_empty()) {
                (_, true) => new.push_from(own, before.clone()),
                (false, false) => {
                    let text = &own.as_str()[before.clone()];
                    new.push_str(text, (start as u32, end as u32));
                }
                (true, false) if after_mark => {}
                (true, false) => new.extend(end as u32),
            }
            new.push_from(&theirs, their_at..their_at + length);
            if length > 0 && before.is_empty() && !theirs_before.is_empty() && after_mark {
                new.begin(same, start as u32);
            }
            (ours, others) = (at + length, their_at + length);
        }
    }
    new
}

/// Returns the words of a text, each from its mark on.
fn words(text: &str) -> Vec<Range<usize>> {
    let marks = text.match_indices(SPACE).map(|(at, _)| at);
    let mut starts: Vec<usize> = marks.collect();
    if starts.first() != Some(&0) {
        starts.insert(0, 0);
    }
    let ends = starts.iter().skip(1).copied().chain([text.len()]);
    starts
        .iter()
        .copied()
        .zip(ends)
        .map(|(from, to)| from..to)
        .collect()
}

/// Characters of two words that are compared each with each.
const MOST: usize = 1 << 16;

/// Returns what both words have in common, in order: the places of each stretch in both, and its bytes.
fn common(a: &str, b: &str) -> Vec<(usize, usize, usize)> {
    let before = same(a.chars(), b.chars());
    let behind = same(a[before..].chars().rev(), b[before..].chars().rev());
    let middle = |text: &str| -> Vec<(usize, char)> {
        let inner = text[before..text.len() - behind].char_indices();
        inner.map(|(at, c)| (before + at, c)).collect()
    };
    let (left, right) = (middle(a), middle(b));
    let mut stretches = vec![(0, 0, before)];
    if left.len() * right.len() <= MOST {
        // The longest common subsequence of what follows two places.
        let width = right.len() + 1;
        let mut longest = vec![0u32; (left.len() + 1) * width];
        for (i, (_, c)) in left.iter().enumerate().rev() {
            for (j, (_, other)) in right.iter().enumerate().rev() {
                let skipped = longest[(i + 1) * width + j].max(longest[i * width + j + 1]);
                longest[i * width + j] = match c == other {
                    true => longest[(i + 1) * width + j + 1] + 1,
                    false => skipped,
                };
            }
        }
        let (mut i, mut j) = (0, 0);
        while let (Some(&(at, c)), Some(&(their_at, other))) = (left.get(i), right.get(j)) {
            if c == other {
                stretches.push((at, their_at, c.len_utf8()));
                (i, j) = (i + 1, j + 1);
            } else if longest[(i + 1) * width + j] >= longest[i * width + j + 1] {
                i += 1;
            } else {
                j += 1;
            }
        }
    }
    stretches.push((a.len() - behind, b.len() - behind, behind));
    stretches
}

/// Returns the bytes of the characters that both have in common from the first on.
fn same(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
    let same = a.zip(b).take_while(|(a, b)| a == b);
    same.map(|(a, _)| a.len_utf8()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_over_but_for_what_differs() {
        let mut own = Aligned::default();
        let mut theirs = Aligned::default();
        for (at, c) in (0..).zip("▁ab▁cxd".chars()) {
            own.push(c, (at, at + 1));
        }
        for (at, c) in (10..).zip("▁ab▁cyzd▁".chars()) {
            theirs.push(c, (at, at + 1));
        }
        let new = placed(&own, theirs.clone());
        assert_eq!(new.as_str(), own.as_str());
        let starts: Vec<u32> = new
            .chars()
            .map(|(range, _)| new.span_at(range.start).0)
            .collect();
        assert_eq!(starts, [10, 11, 12, 13, 14, 15, 17]);
        // Not as many words: what lies between the same beginning and the same end is our own.
        let more = Steps::marked(&Aligned::new("ab c e xd"));
        let starts = placed(&own, more);
        let starts: Vec<u32> = starts
            .chars()
            .map(|(range, _)| starts.span_at(range.start).0)
            .collect();
        assert_eq!(starts, [0, 0, 1, 2, 3, 7, 8]);
    }
}
