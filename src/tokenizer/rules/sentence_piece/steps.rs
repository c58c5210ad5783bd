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
    pub(super) fn apply(&self, text: &Aligned, after_normalized: bool) -> Option<Aligned> {
        if !after_normalized {
            return self.normalized(text);
        }
        // The library normalizes the text as one with the token before it, of which the last character stands here.
        const BEFORE: char = '>';
        let start = text.span_at(0).0;
        let mut whole = Aligned::with_capacity(text.len() + BEFORE.len_utf8());
        whole.push(BEFORE, (start, start));
        whole.push_from(text, 0..text.len());
        let whole = self.normalized(&whole)?;
        let begins = whole.as_str().starts_with(BEFORE);
        begins.then(|| whole.slice(BEFORE.len_utf8()..whole.len()))
    }

    fn normalized(&self, text: &Aligned) -> Option<Aligned> {
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

/// Returns the text of `own` with the places of `theirs`, wherever both have the same words, or the same beginnings and ends
/// of words.
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
        let (a, b) = (&own.as_str()[left.clone()], &theirs.as_str()[right.clone()]);
        let before = common(a.chars(), b.chars());
        let behind = common(a[before..].chars().rev(), b[before..].chars().rev());
        new.push_from(&theirs, right.start..right.start + before);
        new.push_from(own, left.start + before..left.end - behind);
        new.push_from(&theirs, right.end - behind..right.end);
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

/// Returns the bytes of the characters that both have in common from the first on.
fn common(a: impl Iterator<Item = char>, b: impl Iterator<Item = char>) -> usize {
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
        assert_eq!(starts, [10, 11, 12, 13, 14, 5, 17]);
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
