//! The masking policies of masked language modelling.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::padding::{Padding, check_multiple};
use super::rng::Stream;
use super::{BatchKey, Collator, Example, MlmBatch};
use crate::model::{Column, Masked, Values, known_input};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Pads examples and masks some of their tokens, differently in each epoch, like `DataCollatorForLanguageModeling` of
/// `transformers`.
///
/// Each token is chosen with probability `mlm_probability` (default 0.15); its label is its own id, and every other
/// label is [`IGNORED`](super::IGNORED). Of the chosen tokens 80 % become the mask token, 10 % a random token of the whole
/// vocabulary, and 10 % stay. Special tokens and padding are never chosen: without a `special_tokens_mask` column these
/// are all special ids, with one exactly the positions marked there.
///
/// Which tokens are chosen follows from the seed, the epoch, the example's position in the epoch's order and the token's
/// position in the example alone, so neither threads nor the batch size change it.
///
/// ```
/// use cloze::collate::{BatchKey, Example, MaskingCollator};
/// use cloze::tokenizer::Tokenizer;
/// # fn main() -> cloze::Result<()> {
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let examples: Vec<Example> = tokenizer
///     .encode_batch(&["a spiral galaxy", "a staircase"])?
///     .into_iter()
///     .map(Example::from)
///     .collect();
/// let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.15);
/// let batch = collator.collate(&examples, BatchKey::new(0, 0))?;
/// assert_eq!(batch.input_ids.len(), batch.batch * batch.seq);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct MaskingCollator {
    tokenizer: Tokenizer,
    special: Arc<[u32]>,
    mlm_probability: f64,
    mask_replace_prob: f64,
    random_replace_prob: f64,
    pad_to_multiple_of: Option<usize>,
    whole_word_mask: bool,
    spans: Option<Spans>,
    schedule: Option<RateSchedule>,
    entity_mask_probability: Option<f64>,
    seed: u64,
    /// The mask token's values in the columns that would reveal the hidden token; computed when first needed.
    mask_values: Arc<OnceLock<BTreeMap<String, i64>>>,
}

/// Masks in spans of words.
#[derive(Clone, Copy, Debug)]
struct Spans {
    /// The probability that a span ends with each further word.
    p: f64,
    max_words: usize,
}

/// The rates of masking at a place in the training.
#[derive(Clone)]
struct RateSchedule(Arc<dyn Fn(BatchKey) -> MaskingRates + Send + Sync>);

impl std::fmt::Debug for RateSchedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a closure")
    }
}

/// How much of a batch is masked, and how; returned by [`MaskingCollator::schedule`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskingRates {
    /// The probability with which each token is chosen.
    pub mlm_probability: f64,
    /// The part of the chosen tokens that become the mask token.
    pub mask_replace_prob: f64,
    /// The part of the chosen tokens that become a random token.
    pub random_replace_prob: f64,
}

impl Default for MaskingRates {
    /// 0.15, 0.8 and 0.1.
    fn default() -> Self {
        Self {
            mlm_probability: 0.15,
            mask_replace_prob: 0.8,
            random_replace_prob: 0.1,
        }
    }
}

/// Keeps the draws of spans apart from those of tokens under the same seed.
const SPANS: u64 = 0x0073_7061_6e73;

/// The column of what masked entities were.
const LABELS: &str = "entity_labels";

/// Keeps the draws of entities apart from those of tokens under the same seed.
const ENTITIES: u64 = 0x656e_7469_7479;

impl MaskingCollator {
    /// Returns a collator with the defaults and seed 42.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        Self {
            tokenizer: tokenizer.clone(),
            special: tokenizer.all_special_ids().into(),
            mlm_probability: 0.15,
            mask_replace_prob: 0.8,
            random_replace_prob: 0.1,
            pad_to_multiple_of: None,
            whole_word_mask: false,
            spans: None,
            schedule: None,
            entity_mask_probability: None,
            seed: 42,
            mask_values: Arc::default(),
        }
    }

    /// Sets the probability with which each token is chosen (default 0.15).
    #[must_use]
    pub fn mlm_probability(mut self, probability: f64) -> Self {
        self.mlm_probability = probability;
        self
    }

    /// Sets the part of the chosen tokens that become the mask token (default 0.8).
    #[must_use]
    pub fn mask_replace_prob(mut self, probability: f64) -> Self {
        self.mask_replace_prob = probability;
        self
    }

    /// Sets the part of the chosen tokens that become a random token (default 0.1); the rest stay as they are.
    #[must_use]
    pub fn random_replace_prob(mut self, probability: f64) -> Self {
        self.random_replace_prob = probability;
        self
    }

    /// Rounds the length of the rows up to a multiple of `multiple` (default: just the longest row).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Chooses whole words instead of tokens (default: no): a word is drawn by its first token with `mlm_probability`,
    /// then all its tokens become the mask token, none a random one.
    ///
    /// A word begins where there is a gap in the text before the token, as the examples' offsets tell; without offsets
    /// the spelling tells (`##` continues a word, `Ġ` and `▁` begin one, `</w>` ends one).
    #[must_use]
    pub fn whole_word_mask(mut self, whole_words: bool) -> Self {
        self.whole_word_mask = whole_words;
        self
    }

    /// Chooses spans of whole words instead of tokens (default: no), as SpanBERT (Joshi et al. 2020): spans of 1 to `max_words`
    /// words, whose lengths follow a geometric distribution with success probability `p` (0.2 and 10 in the paper), until
    /// `mlm_probability` of the tokens are chosen. All tokens of a span become the mask token, or random ones, or stay.
    #[must_use]
    pub fn span_mask(mut self, p: f64, max_words: usize) -> Self {
        self.spans = Some(Spans { p, max_words });
        self
    }

    /// Makes the masking rates depend on the position of a batch in the training, for rates that change from epoch to
    /// epoch. They replace the fixed rates; evaluations use those of epoch 0.
    ///
    /// ```
    /// use cloze::collate::{MaskingCollator, MaskingRates};
    /// # let tokenizer = cloze::tokenizer::Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
    /// // From 30 % down to 15 % within five epochs.
    /// let collator = MaskingCollator::new(&tokenizer).schedule(|key| MaskingRates {
    ///     mlm_probability: (0.3 - 0.03 * key.epoch as f64).max(0.15),
    ///     ..MaskingRates::default()
    /// });
    /// # Ok::<(), cloze::Error>(())
    /// ```
    #[must_use]
    pub fn schedule(
        mut self,
        rates: impl Fn(BatchKey) -> MaskingRates + Send + Sync + 'static,
    ) -> Self {
        self.schedule = Some(RateSchedule(Arc::new(rates)));
        self
    }

    /// Sets the probability with which each entity of LUKE's is chosen (default: `mlm_probability`). A chosen entity becomes
    /// the mask, and its label in `entity_labels` is its own id; entities that are masks already, or unknown, are left alone.
    /// It has no effect on examples without entities, or with `entity_labels` of their own.
    #[must_use]
    pub fn entity_mask_probability(mut self, probability: f64) -> Self {
        self.entity_mask_probability = Some(probability);
        self
    }

    /// Sets the seed of all that is random (default 42).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks that the probabilities are between 0 and 1 and that there is a mask token, as [`collate`](Self::collate)
    /// does, too.
    pub fn validate(&self) -> Result<()> {
        let probabilities = [
            ("mlm_probability", self.mlm_probability),
            ("mask_replace_prob", self.mask_replace_prob),
            ("random_replace_prob", self.random_replace_prob),
            (
                "entity_mask_probability",
                self.entity_mask_probability.unwrap_or(0.0),
            ),
        ];
        for (name, probability) in probabilities {
            if !(0.0..=1.0).contains(&probability) {
                let message =
                    format!("{probability} is not a probability; give a number from 0 to 1");
                return Err(Error::argument(name, message));
            }
        }
        // 0.9 + 0.1 and the like may end a rounding error above 1.
        let sum = self.mask_replace_prob + self.random_replace_prob;
        if sum > 1.0 + 1e-9 {
            let message = format!(
                "{} and mask_replace_prob {} together are more than 1",
                self.random_replace_prob, self.mask_replace_prob
            );
            return Err(Error::argument("random_replace_prob", message));
        }
        if let Some(Spans { p, max_words }) = self.spans
            && (!(0.0..=1.0).contains(&p) || max_words == 0)
        {
            let message = format!(
                "spans of up to {max_words} words that end with probability {p} can't be drawn; give a probability from 0 to 1, and at least 1 word"
            );
            return Err(Error::argument("span_mask", message));
        }
        self.tokenizer.needed_mask_id()?;
        check_multiple(self.pad_to_multiple_of)
    }

    /// Returns the masked batch of `examples`, the first of which is at `key` in the order of its epoch.
    pub fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        if let Some(RateSchedule(rates)) = &self.schedule {
            let rates = rates(key);
            let now = Self {
                mlm_probability: rates.mlm_probability,
                mask_replace_prob: rates.mask_replace_prob,
                random_replace_prob: rates.random_replace_prob,
                schedule: None,
                ..self.clone()
            };
            return now.collate(examples, key);
        }
        self.validate()?;
        let mask_id = self.tokenizer.needed_mask_id()?;
        let padding = Padding::of(&self.tokenizer, self.pad_to_multiple_of);
        let mut batch = padding.pad(examples)?;
        batch.labels.fill(super::IGNORED);
        let seq = batch.seq;
        let mut changed = Vec::new();
        for (i, example) in examples.iter().enumerate() {
            let from = i * seq + padding.start(example.input_ids.len(), seq);
            let row = from..from + example.input_ids.len();
            let draws = Stream::new(&[self.seed, key.epoch, key.position + i as u64]);
            let (ids, labels) = (&mut batch.input_ids[row.clone()], &mut batch.labels[row]);
            if let Some(spans) = self.spans {
                let draws = Stream::new(&[self.seed, SPANS, key.epoch, key.position + i as u64]);
                self.mask_spans(example, (spans, draws), mask_id, ids, labels);
            } else if self.whole_word_mask {
                self.mask_words(example, draws, mask_id, ids, labels);
            } else {
                self.mask_tokens(example, draws, mask_id, ids, labels);
            }
            for (t, (id, original)) in ids.iter().zip(&example.input_ids).enumerate() {
                if id != original {
                    changed.push(from + t);
                }
            }
        }
        self.hide(&mut batch, &changed, mask_id)?;
        self.mask_entities(&mut batch, key)?;
        Ok(batch)
    }

    /// Chooses entities, if the batch has any and the tokenizer knows how to mask them.
    fn mask_entities(&self, batch: &mut MlmBatch, key: BatchKey) -> Result<()> {
        let Some(special) = self.tokenizer.special_entities() else {
            return Ok(());
        };
        if batch.columns.contains_key(LABELS) {
            return Ok(());
        }
        let seen = match batch.columns.get("entity_attention_mask") {
            Some(column) => Some(column.as_ids("entity_attention_mask")?.to_vec()),
            None => None,
        };
        let Some(column) = batch.columns.get_mut("entity_ids") else {
            return Ok(());
        };
        let shape = column.shape.clone();
        let most = shape.get(1).copied().unwrap_or(0);
        let Values::Ids(ids) = &mut column.values else {
            return Ok(());
        };
        let probability = self.entity_mask_probability.unwrap_or(self.mlm_probability);
        let mut labels = vec![super::IGNORED; ids.len()];
        for (place, (id, label)) in ids.iter_mut().zip(&mut labels).enumerate() {
            let (example, entity) = (place / most.max(1), place % most.max(1));
            let draws = Stream::new(&[
                self.seed,
                ENTITIES,
                key.epoch,
                key.position + example as u64,
            ]);
            let is_padding = seen.as_ref().is_some_and(|seen| seen[place] == 0);
            let is_special = [special.padding, special.unknown, special.mask]
                .into_iter()
                .any(|other| i64::from(other) == *id);
            if is_padding || is_special || draws.unit(entity as u64) >= probability {
                continue;
            }
            *label = *id;
            *id = i64::from(special.mask);
        }
        let labels = Column::ids(labels, shape)?;
        batch.columns.insert(LABELS.to_owned(), labels);
        Ok(())
    }

    /// Sets positions with a changed token to the mask token's values, in the columns that would reveal the original
    /// token.
    fn hide(&self, batch: &mut MlmBatch, places: &[usize], mask_id: u32) -> Result<()> {
        let tells =
            |name: &str| known_input(name).is_some_and(|input| input.masked == Masked::Hidden);
        if places.is_empty() || !batch.columns.keys().any(|name| tells(name)) {
            return Ok(());
        }
        let values = match self.mask_values.get() {
            Some(values) => values,
            None => {
                let values = self.values_of(mask_id)?;
                self.mask_values.get_or_init(|| values)
            }
        };
        for (name, column) in &mut batch.columns {
            if let (true, Values::Ids(ids)) = (tells(name), &mut column.values) {
                let value = values.get(name).copied().unwrap_or(0);
                places.iter().for_each(|&place| ids[place] = value);
            }
        }
        Ok(())
    }

    /// Returns what the mask token has in columns of one number for each token.
    fn values_of(&self, mask_id: u32) -> Result<BTreeMap<String, i64>> {
        let mask = self.tokenizer.id_to_token(mask_id).unwrap_or_default();
        let mask = Example::from(self.tokenizer.encode(&mask)?);
        let at = mask.input_ids.iter().position(|&id| id == mask_id);
        let value = |(name, column): (&String, &Column)| {
            let value = *column.as_ids(name).ok()?.get(at?)?;
            Some((name.clone(), value))
        };
        Ok(mask.columns.iter().filter_map(value).collect())
    }

    fn mask_tokens(
        &self,
        example: &Example,
        draws: Stream,
        mask_id: u32,
        ids: &mut [u32],
        labels: &mut [i64],
    ) {
        let random_below = self.mask_replace_prob + self.random_replace_prob;
        let vocabulary = self.tokenizer.len() as u64;
        for t in 0..ids.len() {
            // Three draws per token: chosen or not, what becomes of it, which random token.
            let draw = 3 * t as u64;
            if draws.unit(draw) >= self.mlm_probability || self.is_exempt(example, t) {
                continue;
            }
            labels[t] = i64::from(ids[t]);
            let fate = draws.unit(draw + 1);
            if fate < self.mask_replace_prob {
                ids[t] = mask_id;
            } else if fate < random_below {
                ids[t] = draws.below(draw + 2, vocabulary) as u32;
            }
        }
    }

    fn mask_words(
        &self,
        example: &Example,
        draws: Stream,
        mask_id: u32,
        ids: &mut [u32],
        labels: &mut [i64],
    ) {
        for word in self.words(example) {
            if draws.unit(3 * word.start as u64) < self.mlm_probability {
                for t in word {
                    labels[t] = i64::from(ids[t]);
                    ids[t] = mask_id;
                }
            }
        }
    }

    fn mask_spans(
        &self,
        example: &Example,
        (spans, draws): (Spans, Stream),
        mask_id: u32,
        ids: &mut [u32],
        labels: &mut [i64],
    ) {
        let words = self.words(example);
        let tokens: usize = words.iter().map(ExactSizeIterator::len).sum();
        let wanted = (tokens as f64 * self.mlm_probability).round() as usize;
        let random_below = self.mask_replace_prob + self.random_replace_prob;
        let vocabulary = self.tokenizer.len() as u64;
        let (mut chosen, mut counter) = (0, 0);
        let mut draw = || {
            counter += 1;
            counter
        };
        // Spans that meet another are drawn again; where little room is left, this ends it.
        for _ in 0..20 * words.len() {
            if chosen >= wanted {
                return;
            }
            let first = draws.below(draw(), words.len() as u64) as usize;
            let mut count = 1;
            while count < spans.max_words && draws.unit(draw()) >= spans.p {
                count += 1;
            }
            let span = &words[first..words.len().min(first + count)];
            // Words that do not stand side by side have something between them that is never masked.
            let together = span.windows(2).all(|pair| pair[0].end == pair[1].start);
            let length: usize = span.iter().map(ExactSizeIterator::len).sum();
            let free = span
                .iter()
                .cloned()
                .flatten()
                .all(|t| labels[t] == super::IGNORED);
            let fits = chosen + length <= wanted || chosen == 0;
            if !together || !free || !fits {
                continue;
            }
            let fate = draws.unit(draw());
            for t in span.iter().cloned().flatten() {
                labels[t] = i64::from(ids[t]);
                if fate < self.mask_replace_prob {
                    ids[t] = mask_id;
                } else if fate < random_below {
                    ids[t] = draws.below(draw(), vocabulary) as u32;
                }
            }
            chosen += length;
        }
    }

    /// Returns the words of an example, as ranges of its tokens.
    fn words(&self, example: &Example) -> Vec<std::ops::Range<usize>> {
        let mut words: Vec<std::ops::Range<usize>> = Vec::new();
        let mut after_special = true;
        for t in 0..example.input_ids.len() {
            if self.is_exempt(example, t) {
                after_special = true;
                continue;
            }
            let begins = after_special
                || match &example.offsets {
                    Some(offsets) => offsets[t].0 != offsets[t - 1].1,
                    None => {
                        let (previous, id) = (example.input_ids[t - 1], example.input_ids[t]);
                        !self.tokenizer.continues_after(previous, id)
                    }
                };
            after_special = false;
            match words.last_mut() {
                Some(word) if !begins => word.end = t + 1,
                _ => words.push(t..t + 1),
            }
        }
        words
    }

    /// Returns whether the token at `t` may not be chosen.
    fn is_exempt(&self, example: &Example, t: usize) -> bool {
        match &example.special_tokens_mask {
            Some(mask) => mask[t] != 0,
            None => self.special.contains(&example.input_ids[t]),
        }
    }
}

impl Collator for MaskingCollator {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        MaskingCollator::collate(self, examples, key)
    }

    fn validate(&self) -> Result<()> {
        MaskingCollator::validate(self)
    }

    fn tokenizer(&self) -> Option<&Tokenizer> {
        Some(&self.tokenizer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let texts = [
            "galaxies of stars and stars of galaxies",
            "a galaxy of barred spirals",
        ];
        Tokenizer::train_bpe(texts, 290).unwrap()
    }

    fn example(tokenizer: &Tokenizer, words: usize) -> Example {
        let text = "galaxies of quasars and barred spirals and stars ".repeat(words / 8);
        Example::from(tokenizer.encode_ids(text.trim()).unwrap())
    }

    #[test]
    fn spans_are_adjacent_whole_words_with_the_requested_number_of_tokens() {
        let tokenizer = tokenizer();
        let example = example(&tokenizer, 400);
        let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.2);
        let collator = collator.span_mask(0.2, 4);
        let words = collator.words(&example);
        let batch = collator
            .collate(std::slice::from_ref(&example), BatchKey::new(0, 0))
            .unwrap();
        let chosen: Vec<bool> = batch.labels.iter().map(|&label| label >= 0).collect();
        let tokens: usize = words.iter().map(ExactSizeIterator::len).sum();
        let count = chosen.iter().filter(|&&chosen| chosen).count();
        let wanted = tokens as f64 * 0.2;
        assert!(
            (count as f64 - wanted).abs() <= 0.05 * wanted,
            "{count} of {wanted}"
        );
        let (mut runs, mut run) = (Vec::new(), 0);
        for word in words {
            let of_word: Vec<bool> = word.map(|t| chosen[t]).collect();
            assert!(
                of_word.iter().all(|&one| one == of_word[0]),
                "a word is whole"
            );
            match of_word[0] {
                true => run += 1,
                false => runs.push(std::mem::take(&mut run)),
            }
        }
        let spans: Vec<usize> = runs.into_iter().filter(|&run| run > 0).collect();
        let mean = spans.iter().sum::<usize>() as f64 / spans.len() as f64;
        // Lengths of 1 to 4 have a mean of about 3; spans that touch look like one.
        assert!((2.0..4.5).contains(&mean), "{mean}");
        let again = collator
            .collate(std::slice::from_ref(&example), BatchKey::new(0, 0))
            .unwrap();
        assert_eq!(again.input_ids, batch.input_ids);
        let next = collator
            .collate(std::slice::from_ref(&example), BatchKey::new(1, 0))
            .unwrap();
        assert_ne!(next.labels, batch.labels);
        assert!(collator.span_mask(0.2, 0).validate().is_err());
    }

    #[test]
    fn rates_may_follow_the_epoch() {
        let tokenizer = tokenizer();
        let examples = vec![example(&tokenizer, 800)];
        let collator = MaskingCollator::new(&tokenizer).schedule(|key| MaskingRates {
            mlm_probability: 0.1 + 0.2 * key.epoch as f64,
            mask_replace_prob: 1.0,
            random_replace_prob: 0.0,
        });
        let part = |epoch| {
            let batch = collator
                .collate(&examples, BatchKey::new(epoch, 0))
                .unwrap();
            let mask = tokenizer.mask_token_id().unwrap();
            let masked = batch.input_ids.iter().filter(|&&id| id == mask).count();
            assert_eq!(
                masked,
                batch.labels.iter().filter(|&&label| label >= 0).count()
            );
            masked as f64 / batch.input_ids.len() as f64
        };
        for (epoch, expected) in [(0, 0.1), (1, 0.3), (4, 0.9)] {
            assert!((part(epoch) - expected).abs() < 0.04, "{epoch}");
        }
        assert!(collator.collate(&examples, BatchKey::new(9, 0)).is_err());
    }
}
