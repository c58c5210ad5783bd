//! The masking policies of masked language modelling.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::padding::{Padding, check_multiple};
use super::rng::Stream;
use super::{BatchKey, Collator, Example, MlmBatch};
use crate::model::{Column, Masked, Values, known_input};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// Pads examples and masks some of their tokens anew in each epoch: what `DataCollatorForLanguageModeling` is in
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
    seed: u64,
    /// What the mask token has in the columns that would tell what it hides; found out when first needed.
    mask_values: Arc<OnceLock<BTreeMap<String, i64>>>,
}

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
    /// the spelling tells (`##` continues a word, `Ġ` and `▁` begin one).
    #[must_use]
    pub fn whole_word_mask(mut self, whole_words: bool) -> Self {
        self.whole_word_mask = whole_words;
        self
    }

    /// Sets the seed of all that is random (default 42).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks that the probabilities lie between 0 and 1 and that there is a mask token, as [`collate`](Self::collate) does
    /// too.
    pub fn validate(&self) -> Result<()> {
        let probabilities = [
            ("mlm_probability", self.mlm_probability),
            ("mask_replace_prob", self.mask_replace_prob),
            ("random_replace_prob", self.random_replace_prob),
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
        self.tokenizer.needed_mask_id()?;
        check_multiple(self.pad_to_multiple_of)
    }

    /// Returns the masked batch of `examples`, the first of which stands at `key` in the order of its epoch.
    pub fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
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
            if self.whole_word_mask {
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
        Ok(batch)
    }

    /// Gives the places at which another token stands now the values that the mask token has, in the columns that would tell
    /// what stood there.
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

    /// What the mask token has in columns of one number for each token.
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
        let mut after_special = true;
        let mut chosen = false;
        for t in 0..ids.len() {
            if self.is_exempt(example, t) {
                after_special = true;
                continue;
            }
            let begins = after_special
                || match &example.offsets {
                    Some(offsets) => offsets[t].0 != offsets[t - 1].1,
                    None => !self.tokenizer.continues_word(example.input_ids[t]),
                };
            if begins {
                chosen = draws.unit(3 * t as u64) < self.mlm_probability;
            }
            after_special = false;
            if chosen {
                labels[t] = i64::from(ids[t]);
                ids[t] = mask_id;
            }
        }
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
