//! New tokenizers from texts.
//!
//! The library's trainers iterate over hash maps whose order differs from run to run, and so do their parallel sums.
//! Here they get counted words in a fixed order, and one thread sums, so that the same texts give the same tokenizer.

mod again;
mod new;

use std::collections::{BTreeMap, HashMap};

use ahash::{AHashMap, RandomState};
use rayon::prelude::*;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::{
    AddedToken, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer, TokenizerImpl,
};

use super::guard::{failed, guarded};
use crate::{Error, Result};

/// Returns a pipeline with the vocabulary that `trainer` finds in `texts`.
fn trained<I>(
    mut core: tokenizers::Tokenizer,
    mut trainer: TrainerWrapper,
    texts: I,
) -> Result<tokenizers::Tokenizer>
where
    I: IntoIterator,
    I::IntoIter: Send,
    I::Item: AsRef<str> + Send,
{
    let texts = texts.into_iter();
    guarded("training", || {
        let unk = match core.get_model() {
            ModelWrapper::WordPiece(model) => model.unk_token.clone(),
            _ => String::new(),
        };
        let (model, special): (ModelWrapper, Vec<AddedToken>) = match &mut trainer {
            TrainerWrapper::BpeTrainer(trainer) => {
                let ModelWrapper::BPE(mut model) = core.get_model().clone() else {
                    return Err(Error::Tokenizer(
                        "the trainer is not the model's".to_owned(),
                    ));
                };
                let special = bpe(trainer, &words(&core, texts)?, &mut model)?;
                (model.into(), special)
            }
            TrainerWrapper::WordPieceTrainer(trainer) => {
                let (model, special) = word_piece(trainer, &words(&core, texts)?, unk)?;
                (model.into(), special)
            }
            TrainerWrapper::UnigramTrainer(trainer) => {
                let words = words(&core, texts)?.into_iter();
                let count = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
                let words = words.map(|(word, number)| (word, count(number))).collect();
                let mut model = Unigram::default();
                let one = rayon::ThreadPoolBuilder::new().num_threads(1).build();
                let one = one.map_err(|error| Error::Tokenizer(error.to_string()))?;
                let special = one.install(|| trainer.do_train(words, &mut model));
                let special = special.map_err(failed)?;
                let unk = trainer.unk_token.as_deref();
                (in_order(&model, &special, unk)?.into(), special)
            }
            TrainerWrapper::WordLevelTrainer(_) => {
                core.train(&mut trainer, texts).map_err(failed)?;
                return Ok(core);
            }
        };
        core.with_model(model);
        core.add_special_tokens(special).map_err(failed)?;
        Ok(core)
    })
}

/// Returns how often each word occurs in the texts.
fn words<I>(core: &tokenizers::Tokenizer, texts: I) -> Result<BTreeMap<String, u64>>
where
    I: Iterator + Send,
    I::Item: AsRef<str> + Send,
{
    let core: &TokenizerImpl<_, _, _, _, _> = core;
    let count = |mut counts: HashMap<String, u64, RandomState>, text: I::Item| {
        let added = core.get_added_vocabulary();
        let mut text = added.extract_and_normalize(core.get_normalizer(), text.as_ref());
        if let Some(pre_tokenizer) = core.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut text).map_err(failed)?;
        }
        for (word, _, _) in text.get_splits(OffsetReferential::Original, OffsetType::Byte) {
            match counts.get_mut(word) {
                Some(count) => *count += 1,
                None => {
                    counts.insert(word.to_owned(), 1);
                }
            }
        }
        Ok::<_, Error>(counts)
    };
    let parts = texts.par_bridge().try_fold(HashMap::default, count);
    let all = parts.try_reduce(HashMap::default, |mut all, part| {
        for (word, count) in part {
            *all.entry(word).or_default() += count;
        }
        Ok(all)
    })?;
    Ok(all.into_iter().collect())
}

/// Merges up to the trainer's number of tokens.
fn bpe(
    trainer: &BpeTrainer,
    words: &BTreeMap<String, u64>,
    model: &mut BPE,
) -> Result<Vec<AddedToken>> {
    let order = RandomState::with_seeds(1, 2, 3, 4);
    let mut counts = HashMap::with_capacity_and_hasher(words.len(), order);
    counts.extend(
        words
            .iter()
            .map(|(word, count)| (word.as_str().into(), *count)),
    );
    trainer
        .do_train(&AHashMap::from(counts), model)
        .map_err(failed)
}

/// WordPiece's vocabulary is that of merges.
fn word_piece(
    trainer: &WordPieceTrainer,
    words: &BTreeMap<String, u64>,
    unk: String,
) -> Result<(WordPiece, Vec<AddedToken>)> {
    let prefix = trainer.continuing_subword_prefix().clone();
    let prefix = prefix.unwrap_or_else(|| "##".to_owned());
    let merges = BpeTrainer::builder()
        .vocab_size(trainer.vocab_size())
        .min_frequency(trainer.min_frequency())
        .show_progress(false)
        .special_tokens(trainer.special_tokens().to_vec())
        .initial_alphabet(trainer.initial_alphabet().iter().copied().collect())
        .continuing_subword_prefix(prefix.clone())
        .build();
    let mut model = BPE::default();
    let special = bpe(&merges, words, &mut model)?;
    let model = WordPiece::builder()
        .vocab(model.get_vocab().into_iter().collect::<AHashMap<_, _>>())
        .unk_token(unk)
        .continuing_subword_prefix(prefix)
        .build();
    Ok((model.map_err(failed)?, special))
}

/// Returns the same pieces in an order that is always the same.
///
/// The trainer gives letters that did not earn a place the least score and up, a step each, in the order of a hash map; here
/// they get those scores in their own order.
fn in_order(model: &Unigram, special: &[AddedToken], unk: Option<&str>) -> Result<Unigram> {
    const STEP: f64 = 0.0001;
    let mut pieces: Vec<(String, f64)> = model.iter().cloned().collect();
    let is_special = |text: &str| special.iter().any(|token| token.content == text);
    // An unknown token that is no special one was put before them.
    let first = special.len() + usize::from(unk.is_some_and(|unk| !is_special(unk)));
    let unk = unk.and_then(|unk| pieces.iter().position(|(text, _)| text == unk));
    let first = first.min(pieces.len());
    let own = &mut pieces[first..];
    own.sort_by(|left, right| left.0.cmp(&right.0));
    let least = own
        .iter()
        .map(|(_, score)| *score)
        .fold(f64::INFINITY, f64::min);
    let is_letter = |text: &str| text.chars().nth(1).is_none();
    let is_step = |score: f64| {
        let steps = (score - least) / STEP;
        (steps - steps.round()).abs() < 1e-6
    };
    let letters: Vec<usize> = (0..own.len())
        .filter(|&at| is_letter(&own[at].0) && is_step(own[at].1))
        .collect();
    let mut scores: Vec<f64> = letters.iter().map(|&at| own[at].1).collect();
    scores.sort_by(f64::total_cmp);
    for (at, score) in letters.into_iter().zip(scores) {
        own[at].1 = score;
    }
    own.sort_by(|left, right| right.1.total_cmp(&left.1));
    Unigram::from(pieces, unk, model.byte_fallback()).map_err(failed)
}

fn too_small(vocab_size: usize, least: usize) -> Error {
    Error::argument(
        "vocab_size",
        format!(
            "{vocab_size} tokens are too few for these texts and special tokens; give {least} or more"
        ),
    )
}
