//! The objective that BART was trained with: the whole text is written again from a damaged one.

use std::sync::Arc;

use super::padding::{Padding, check_multiple};
use super::rng::Stream;
use super::{BatchKey, Collator, Example, IGNORED, MlmBatch};
use crate::model::Column;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What ends a sentence, where a token ends with it. The last four are what byte-level vocabularies write for `…`, `。`, `！`
/// and `？`.
const SENTENCE_ENDS: [&str; 15] = [
    ".", "!", "?", "…", "。", "！", "？", "؟", "۔", "।", "။", "âĢ¦", "ãĢĤ", "ï¼ģ", "ï¼Ł",
];

/// Damages texts as BART's authors do (Lewis et al. 2019, arXiv:1910.13461, section 2.2), and asks for the whole text: for
/// BART, mBART and MVP, whose decoders learn little from the labels of a
/// [`MaskingCollator`](super::MaskingCollator).
///
/// - **Sentence permutation**: of a text's sentences the part `permute_sentence_ratio` (default 1: all) changes places at
///   random. A sentence ends behind a token that ends with a full stop, a question mark or an exclamation mark, behind the
///   last of several such tokens in a row, and at special tokens, which stay where they are.
/// - **Text infilling**: spans whose lengths follow Poisson's distribution with mean `poisson_lambda` (default 3) each become
///   one mask token, until the part `mask_ratio` (default 0.3) of the tokens is gone. A span of no token puts a mask token
///   between two others. Spans do not overlap.
///
/// The batch's labels are the column `labels` (batch, m), the undamaged texts padded with [`IGNORED`]; `input_ids` are
/// mostly shorter. The decoder's inputs follow from the labels.
///
/// All that is random follows from the seed, the epoch and the example's position in the epoch's order alone.
///
/// ```
/// use cloze::collate::{BatchKey, DenoisingCollator, Example};
/// use cloze::tokenizer::Tokenizer;
/// # fn main() -> cloze::Result<()> {
/// let texts = ["A galaxy turns. A staircase winds.", "Stars are born in its arms."];
/// let tokenizer = Tokenizer::train_bpe(texts, 300)?;
/// let examples: Vec<Example> = tokenizer.encode_batch(&texts)?.into_iter().map(Example::from).collect();
/// let batch = DenoisingCollator::new(&tokenizer).collate(&examples, BatchKey::new(0, 0))?;
/// assert_eq!(batch.label_values()[0], i64::from(examples[0].input_ids[0]));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct DenoisingCollator {
    tokenizer: Tokenizer,
    special: Arc<[u32]>,
    /// For each token of the vocabulary, whether a sentence ends with it.
    ends: Arc<[bool]>,
    mask_ratio: f64,
    poisson_lambda: f64,
    permute_sentence_ratio: f64,
    pad_to_multiple_of: Option<usize>,
    seed: u64,
}

impl DenoisingCollator {
    /// Returns a collator with the defaults and seed 42.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let ends = |id| {
            let token = tokenizer.id_to_token(id as u32);
            token.is_some_and(|token| SENTENCE_ENDS.iter().any(|end| token.ends_with(end)))
        };
        Self {
            tokenizer: tokenizer.clone(),
            special: tokenizer.all_special_ids().into(),
            ends: (0..tokenizer.len()).map(ends).collect(),
            mask_ratio: 0.3,
            poisson_lambda: 3.0,
            permute_sentence_ratio: 1.0,
            pad_to_multiple_of: None,
            seed: 42,
        }
    }

    /// Sets the fraction of the tokens that mask tokens replace (default 0.3).
    #[must_use]
    pub fn mask_ratio(mut self, ratio: f64) -> Self {
        self.mask_ratio = ratio;
        self
    }

    /// Sets the mean length of a span, in tokens, from 0.1 to 100 (default 3).
    #[must_use]
    pub fn poisson_lambda(mut self, mean: f64) -> Self {
        self.poisson_lambda = mean;
        self
    }

    /// Sets the part of a text's sentences that change places (default 1).
    #[must_use]
    pub fn permute_sentence_ratio(mut self, ratio: f64) -> Self {
        self.permute_sentence_ratio = ratio;
        self
    }

    /// Rounds the length of the damaged rows up to a multiple of `multiple` (default: just the longest row).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Sets the seed of all that is random (default 42).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks the settings and that there is a mask token, as [`collate`](Self::collate) does too.
    pub fn validate(&self) -> Result<()> {
        let ratios = [
            ("mask_ratio", self.mask_ratio),
            ("permute_sentence_ratio", self.permute_sentence_ratio),
        ];
        for (name, ratio) in ratios {
            if !(0.0..=1.0).contains(&ratio) {
                let message = format!("{ratio} is not a ratio; give a number from 0 to 1");
                return Err(Error::argument(name, message));
            }
        }
        if !(0.1..=100.0).contains(&self.poisson_lambda) {
            let message = format!(
                "{} is not a valid mean length; give a number from 0.1 to 100",
                self.poisson_lambda
            );
            return Err(Error::argument("poisson_lambda", message));
        }
        self.tokenizer.needed_mask_id()?;
        check_multiple(self.pad_to_multiple_of)
    }

    /// Returns the corrupted batch of `examples`, the first of which is at `key` in the order of its epoch.
    pub fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        self.validate()?;
        examples.iter().try_for_each(Example::validate)?;
        let mask_id = self.tokenizer.needed_mask_id()?;
        let mut damaged = Vec::with_capacity(examples.len());
        let mut whole = Vec::with_capacity(examples.len());
        for (i, example) in examples.iter().enumerate() {
            let text = self.text_of(example);
            let draws = |part| Draws::new(&[self.seed, key.epoch, key.position + i as u64, part]);
            let permuted = self.permute_sentences(&text, &mut draws(0));
            let infilled = self.infill(&permuted, mask_id, &mut draws(1));
            damaged.push(Example::from(infilled));
            whole.push(text);
        }
        let mut batch = Padding::of(&self.tokenizer, self.pad_to_multiple_of).pad(&damaged)?;
        let longest = whole.iter().map(Vec::len).max().unwrap_or(0);
        let mut labels = Vec::with_capacity(whole.len() * longest);
        for text in &whole {
            labels.extend(text.iter().map(|token| i64::from(token.id)));
            labels.resize(labels.len() + longest - text.len(), IGNORED);
        }
        batch.labels = Vec::new();
        Ok(batch.with_column("labels", Column::ids(labels, [whole.len(), longest])?))
    }

    /// Returns the example's tokens, padding left out.
    fn text_of(&self, example: &Example) -> Vec<Token> {
        let is_text = |t: &usize| {
            example
                .attention_mask
                .as_ref()
                .is_none_or(|mask| mask[*t] != 0)
        };
        let token = |t: usize| {
            let id = example.input_ids[t];
            let fixed = match &example.special_tokens_mask {
                Some(mask) => mask[t] != 0,
                None => self.special.contains(&id),
            };
            Token { id, fixed }
        };
        (0..example.input_ids.len())
            .filter(is_text)
            .map(token)
            .collect()
    }

    /// Returns the text with some of its sentences in each other's places.
    fn permute_sentences(&self, text: &[Token], draws: &mut Draws) -> Vec<Token> {
        let ends = |token: &Token| self.ends.get(token.id as usize).copied().unwrap_or(false);
        // A run of special tokens is a piece of its own, which stays.
        let pieces: Vec<&[Token]> = text
            .chunk_by(|a, b| a.fixed == b.fixed && (a.fixed || !ends(a) || ends(b)))
            .collect();
        let mut order: Vec<usize> = (0..pieces.len()).collect();
        let sentences: Vec<usize> = order
            .iter()
            .copied()
            .filter(|&i| !pieces[i][0].fixed)
            .collect();
        let count = (sentences.len() as f64 * self.permute_sentence_ratio).ceil() as usize;
        // Which ones, in their order, and in another.
        let mut chosen = draws.permutation(sentences.len());
        chosen.truncate(count);
        let mut places = chosen.clone();
        places.sort_unstable();
        for (place, sentence) in places.into_iter().zip(chosen) {
            order[sentences[place]] = sentences[sentence];
        }
        order
            .into_iter()
            .flat_map(|piece| pieces[piece])
            .copied()
            .collect()
    }

    /// Returns the text's ids with one mask token in the place of each drawn span.
    fn infill(&self, text: &[Token], mask_id: u32, draws: &mut Draws) -> Vec<u32> {
        let words = text.iter().filter(|token| !token.fixed).count();
        let hidden = ((words as f64 * self.mask_ratio).ceil() as usize).min(words);
        let mut spans = self.spans(hidden, draws);
        let mut ids = Vec::with_capacity(text.len());
        let mut tokens = text.iter().copied().peekable();
        // Spans and tokens that stay, in random order: spans lie everywhere alike.
        let mut words = words;
        for items in (1..=words - hidden + spans.len()).rev() {
            // What is fixed stands before the next word; behind the last one it ends the text.
            while words > 0
                && let Some(token) = tokens.next_if(|token| token.fixed)
            {
                ids.push(token.id);
            }
            let hidden = match draws.below(items) < spans.len() {
                true => spans.pop(),
                false => None,
            };
            let Some(span) = hidden else {
                ids.extend(tokens.next().map(|token| token.id));
                words -= 1;
                continue;
            };
            ids.push(mask_id);
            words -= span;
            let mut left = span;
            while left > 0
                && let Some(token) = tokens.next()
            {
                match token.fixed {
                    true => ids.push(token.id),
                    false => left -= 1,
                }
            }
        }
        ids.extend(tokens.map(|token| token.id));
        ids
    }

    /// Draws lengths of spans that cover this many tokens in total, in random order; never more spans than tokens.
    fn spans(&self, hidden: usize, draws: &mut Draws) -> Vec<usize> {
        let mut spans = Vec::new();
        let mut sum = 0;
        while sum < hidden {
            let span = draws.poisson(self.poisson_lambda).min(hidden - sum);
            sum += span;
            spans.push(span);
        }
        let mut extra = spans.len().saturating_sub(hidden);
        spans.retain(|&span| {
            let goes = span == 0 && extra > 0;
            extra -= usize::from(goes);
            !goes
        });
        let order = draws.permutation(spans.len());
        order.into_iter().map(|i| spans[i]).collect()
    }
}

/// A token, and whether it must stay as and where it is.
#[derive(Clone, Copy, Debug)]
struct Token {
    id: u32,
    fixed: bool,
}

/// Random numbers, one after the other.
struct Draws {
    stream: Stream,
    used: u64,
}

impl Draws {
    fn new(key: &[u64]) -> Self {
        Self {
            stream: Stream::new(key),
            used: 0,
        }
    }

    fn next(&mut self) -> u64 {
        self.used += 1;
        self.used - 1
    }

    /// Uniform in 0..n.
    fn below(&mut self, n: usize) -> usize {
        let at = self.next();
        self.stream.below(at, n as u64) as usize
    }

    /// Poisson's distribution, by its products of uniform numbers.
    fn poisson(&mut self, mean: f64) -> usize {
        let least = (-mean).exp();
        let (mut product, mut count) = (1.0, 0);
        loop {
            let at = self.next();
            product *= self.stream.unit(at);
            if product <= least {
                return count;
            }
            count += 1;
        }
    }

    /// 0..n in random order.
    fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for last in (1..n).rev() {
            let other = self.below(last + 1);
            order.swap(last, other);
        }
        order
    }
}

impl Collator for DenoisingCollator {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        DenoisingCollator::collate(self, examples, key)
    }

    fn validate(&self) -> Result<()> {
        DenoisingCollator::validate(self)
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        Tokenizer::train_bpe(
            [
                "One two. Three four! Five six? Seven eight.",
                "a b c d e f g h",
            ],
            320,
        )
        .unwrap()
    }

    /// Returns `<s>`, `count` ordinary tokens, `</s>`.
    fn example(tokenizer: &Tokenizer, count: usize) -> Example {
        let letters = tokenizer.encode("a b c d e f g h").unwrap();
        let letters: Vec<u32> = (letters.ids.iter().copied())
            .filter(|id| !tokenizer.all_special_ids().contains(id))
            .collect();
        let [bos, eos] = [tokenizer.bos_token_id(), tokenizer.eos_token_id()].map(Option::unwrap);
        let middle = (0..count).map(|i| letters[i % letters.len()]);
        Example::from(
            std::iter::once(bos)
                .chain(middle)
                .chain([eos])
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn spans_have_the_mean_length_and_labels_are_the_whole_text() {
        let tokenizer = tokenizer();
        let mask = tokenizer.mask_token_id().unwrap();
        let examples = vec![example(&tokenizer, 400); 40];
        for (ratio, mean) in [(0.3, 3.0), (0.15, 1.5), (0.5, 6.0)] {
            let collator = DenoisingCollator::new(&tokenizer)
                .mask_ratio(ratio)
                .poisson_lambda(mean);
            let batch = collator.collate(&examples, BatchKey::new(0, 0)).unwrap();
            let hidden = (400.0 * ratio) as usize;
            let mut masks = 0;
            for (i, row) in batch.input_ids.chunks(batch.seq).enumerate() {
                let length: u32 = batch.attention_mask[i * batch.seq..][..batch.seq]
                    .iter()
                    .sum();
                let row = &row[..length as usize];
                let own = row.iter().filter(|&&id| id == mask).count();
                assert_eq!(row.len() - own, 402 - hidden);
                assert_eq!(
                    (row[0], *row.last().unwrap()),
                    (examples[0].input_ids[0], examples[0].input_ids[401])
                );
                masks += own;
            }
            let found = (40 * hidden) as f64 / masks as f64;
            // The last span of each row is cut.
            assert!((found - mean).abs() < 0.15 * mean, "{found} for {mean}");
            let labels: Vec<i64> = examples
                .iter()
                .flat_map(|e| &e.input_ids)
                .map(|&id| i64::from(id))
                .collect();
            assert_eq!(batch.label_values(), labels);
        }
    }

    #[test]
    fn spans_are_uniformly_distributed() {
        let tokenizer = tokenizer();
        let mask = tokenizer.mask_token_id().unwrap();
        let examples = vec![example(&tokenizer, 30); 4000];
        let collator = DenoisingCollator::new(&tokenizer)
            .poisson_lambda(2.0)
            .permute_sentence_ratio(0.0);
        let batch = collator.collate(&examples, BatchKey::new(0, 0)).unwrap();
        let mut halves = [0usize; 2];
        for row in batch.input_ids.chunks(batch.seq) {
            let row: Vec<u32> = row
                .iter()
                .copied()
                .filter(|&id| id != tokenizer.pad_token_id().unwrap())
                .collect();
            for (i, _) in row.iter().enumerate().filter(|(_, id)| **id == mask) {
                halves[usize::from(2 * i + 1 > row.len())] += 1;
            }
        }
        let [first, second] = halves.map(|n| n as f64);
        assert!((first / second - 1.0).abs() < 0.05, "{halves:?}");
    }

    #[test]
    fn sentences_are_permuted_without_loss() {
        let tokenizer = tokenizer();
        let encoding = tokenizer
            .encode("One two. Three four! Five six? Seven eight.")
            .unwrap();
        let examples = vec![Example::from(encoding.clone()); 60];
        let collator = DenoisingCollator::new(&tokenizer).mask_ratio(0.0);
        let batch = collator.collate(&examples, BatchKey::new(0, 0)).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for row in batch.input_ids.chunks(batch.seq) {
            assert_eq!(
                (row[0], row[batch.seq - 1]),
                (encoding.ids[0], *encoding.ids.last().unwrap())
            );
            let (mut row, mut ids) = (row.to_vec(), encoding.ids.clone());
            seen.insert(tokenizer.decode(&row, true).unwrap());
            row.sort_unstable();
            ids.sort_unstable();
            assert_eq!(row, ids);
        }
        // Of 24 orders.
        assert!(seen.len() > 15, "{seen:?}");
        assert!(
            seen.iter()
                .all(|text| text.contains("Three four!") && text.contains("Five six?"))
        );
        let still = collator
            .permute_sentence_ratio(0.0)
            .collate(&examples, BatchKey::new(0, 0))
            .unwrap();
        assert_eq!(still.input_ids[..still.seq], encoding.ids);
    }

    #[test]
    fn sentences_end_behind_runs_of_marks_in_all_scripts() {
        let japanese = "よし。行こう！どこ？ほら…はい。";
        let trained = Tokenizer::train_bpe([japanese; 20], 600).unwrap();
        let sentences = ["よし。", "行こう！", "どこ？", "ほら…", "はい。"];
        // To the other tokenizer each of these marks is a token.
        for (tokenizer, text, sentences) in [
            (trained, japanese, &sentences[..]),
            (
                tokenizer(),
                "Wait... what?! Ah.",
                &["Wait...", " what?!", " Ah."],
            ),
        ] {
            let collator = DenoisingCollator::new(&tokenizer).mask_ratio(0.0);
            let examples = vec![Example::from(tokenizer.encode(text).unwrap()); 40];
            let batch = collator.collate(&examples, BatchKey::new(0, 0)).unwrap();
            let mut first: std::collections::BTreeSet<&str> = std::collections::BTreeSet::new();
            for row in batch.input_ids.chunks(batch.seq) {
                let text = tokenizer.decode(row, true).unwrap();
                let whole = |sentence: &&&str| text.contains(**sentence);
                assert_eq!(sentences.iter().filter(whole).count(), sentences.len());
                let start = |sentence: &&&str| text.starts_with(**sentence);
                first.extend(sentences.iter().find(start));
            }
            // Every one of them comes first in some row.
            assert_eq!(first.len(), sentences.len(), "{first:?}");
        }
    }

    #[test]
    fn rows_without_ordinary_tokens_stay_as_they_are() {
        let tokenizer = tokenizer();
        let special = |count| {
            let ids = [tokenizer.bos_token_id(), tokenizer.eos_token_id()];
            Example::from(ids.map(Option::unwrap)[..count].to_vec())
        };
        let one = example(&tokenizer, 1);
        let examples = [special(0), special(1), special(2), one.clone()];
        let pad = tokenizer.pad_token_id().unwrap();
        let mask = tokenizer.mask_token_id().unwrap();
        for (ratio, hidden) in [(0.0, false), (0.01, true), (1.0, true)] {
            let collator = DenoisingCollator::new(&tokenizer).mask_ratio(ratio);
            for epoch in 0..20 {
                let batch = collator
                    .collate(&examples, BatchKey::new(epoch, 0))
                    .unwrap();
                let row = |at: usize| &batch.input_ids[at * batch.seq..][..batch.seq];
                for (at, example) in examples[..3].iter().enumerate() {
                    let (text, padding) = row(at).split_at(example.input_ids.len());
                    assert_eq!(text, example.input_ids);
                    assert!(padding.iter().all(|&id| id == pad));
                }
                let seen = if hidden { mask } else { one.input_ids[1] };
                assert_eq!(row(3), [one.input_ids[0], seen, one.input_ids[2]]);
                assert_eq!(batch.label_values().len(), 4 * 3);
                assert_eq!(batch.label_values()[..3], [IGNORED; 3]);
            }
        }
        // Nothing but empty rows: padding, of which nothing counts.
        let nothing = DenoisingCollator::new(&tokenizer)
            .collate(&[special(0), special(0)], BatchKey::default())
            .unwrap();
        assert_eq!(nothing.counted_tokens(), 0);
    }

    #[test]
    fn a_ratio_of_one_hides_all_but_special_tokens() {
        let tokenizer = tokenizer();
        let mask = tokenizer.mask_token_id().unwrap();
        let special = tokenizer.all_special_ids();
        // Two texts in one row, as a pair.
        let [a, b] = [7, 4].map(|count| example(&tokenizer, count).input_ids);
        let pair = Example::from([&a[..], &b].concat());
        let collator = DenoisingCollator::new(&tokenizer).mask_ratio(1.0);
        for epoch in 0..50 {
            let batch = collator
                .collate(std::slice::from_ref(&pair), BatchKey::new(epoch, 0))
                .unwrap();
            let kept: Vec<u32> = (batch.input_ids.iter().copied())
                .filter(|&id| id != mask)
                .collect();
            let fixed: Vec<u32> = (pair.input_ids.iter().copied())
                .filter(|id| special.contains(id))
                .collect();
            assert_eq!(kept, fixed);
            let masks = batch.seq - kept.len();
            assert!((1..=11).contains(&masks), "{masks} masks for 11 tokens");
        }
    }

    #[test]
    fn a_batch_depends_only_on_its_position_and_padding_is_ignored() {
        let tokenizer = tokenizer();
        let examples: Vec<Example> = [5, 40, 17].map(|n| example(&tokenizer, n)).into();
        let collator = DenoisingCollator::new(&tokenizer);
        let whole = collator.collate(&examples, BatchKey::new(2, 7)).unwrap();
        let last = collator
            .collate(&examples[2..], BatchKey::new(2, 9))
            .unwrap();
        assert_eq!(whole.input_ids[2 * whole.seq..][..last.seq], last.input_ids);
        assert_ne!(
            whole,
            collator.collate(&examples, BatchKey::new(3, 7)).unwrap()
        );
        let mut padded = examples[2].clone();
        padded.attention_mask = Some([vec![1; 19], vec![0; 6]].concat());
        padded
            .input_ids
            .resize(25, tokenizer.pad_token_id().unwrap());
        let padded = collator.collate(&[padded], BatchKey::new(2, 9)).unwrap();
        assert_eq!(padded, last);
        assert_eq!(whole.label_values()[7..42], [IGNORED; 35]);
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        let collator = DenoisingCollator::new(&tokenizer());
        for wrong in [
            collator.clone().mask_ratio(1.5),
            collator.clone().poisson_lambda(0.0),
            collator.clone().poisson_lambda(f64::NAN),
            collator.clone().permute_sentence_ratio(-0.1),
            collator.clone().pad_to_multiple_of(0),
        ] {
            assert!(wrong.validate().is_err(), "{wrong:?}");
        }
        let tokenizer = tokenizer();
        let all = collator.mask_ratio(1.0).poisson_lambda(0.1);
        let batch = all
            .collate(&[example(&tokenizer, 9)], BatchKey::default())
            .unwrap();
        assert!(batch.seq <= 11, "no longer than the text");
        assert!(collator_of_nothing(&all).is_err());
    }

    fn collator_of_nothing(collator: &DenoisingCollator) -> Result<MlmBatch> {
        collator.collate(&[], BatchKey::default())
    }
}
