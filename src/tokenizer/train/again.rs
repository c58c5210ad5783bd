//! A tokenizer like another one, with a vocabulary from other texts.

use std::sync::Arc;

use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Model, ModelWrapper, PostProcessorWrapper};

use super::super::engine::Engine;
use super::super::folder::post;
use super::super::guard::failed;
use super::super::guard::guarded;
use super::super::{Core, Post, Tokenizer};
use crate::{Error, Result};

impl Tokenizer {
    /// Trains a tokenizer of the same kind on other texts: the same way to split words, the same special tokens, a new
    /// vocabulary of up to `vocab_size` tokens. It is `train_new_from_iterator` of `transformers`.
    ///
    /// The special tokens come first, in the order of their ids. The same texts in the same order give the same tokenizer.
    ///
    /// # Errors
    ///
    /// If the tokenizer was opened from files whose rules can't be trained (XLM, Chinese words, tables, bytes, letters), or
    /// `vocab_size` does not even hold the special tokens and, over bytes, the 256 bytes.
    ///
    /// ```
    /// use cloze::tokenizer::Tokenizer;
    /// let old = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
    /// let new = old.train_new_from_iterator(["les galaxies spirales", "une galaxie"], 280)?;
    /// assert_eq!(new.mask_token(), old.mask_token());
    /// assert_eq!(new.class_name(), old.class_name());
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn train_new_from_iterator<I>(&self, texts: I, vocab_size: usize) -> Result<Self>
    where
        I: IntoIterator,
        I::IntoIter: Send,
        I::Item: AsRef<str> + Send,
    {
        let mut json = guarded("training", || self.pipeline())?;
        let unk = forget_vocabulary(&mut json);
        let unigram = json["model"]["type"] == "Unigram";
        let added = self.core.engine.added_tokens().into_iter();
        let special: Vec<AddedToken> = added
            .map(|(_, token)| token)
            .filter(|token| token.special || unigram)
            .collect();
        let bytes = json["pre_tokenizer"].to_string().contains("\"ByteLevel\"");
        let least = special.len() + if bytes { 256 } else { 0 };
        if vocab_size < least {
            return Err(super::too_small(vocab_size, least));
        }
        let core = tokenizers::Tokenizer::from_bytes(json.to_string()).map_err(failed)?;
        let trainer = trainer(core.get_model(), vocab_size, special, bytes, unk);
        let mut core = super::trained(core, trainer, texts)?;
        let mut processor = serde_json::to_value(&self.post.processor)?;
        renumber(&mut processor, &|token| core.token_to_id(token))?;
        let processor: Option<PostProcessorWrapper> = serde_json::from_value(processor)?;
        core.with_post_processor(processor);
        let (mut engine, processor) = Engine::library(core);
        if !self.settings.cleans_up {
            // Version 5 of transformers, which alone knows these families, puts the other added tokens behind the vocabulary.
            let added = self.core.engine.added_tokens().into_iter();
            let others = added.map(|(_, token)| (None, token));
            let others = others.filter(|(_, token)| !token.special);
            engine.add(others.collect())?;
        }
        self.with_engine(engine, processor)
    }

    /// Returns the pipeline that is trained, as its `tokenizer.json` would be.
    fn pipeline(&self) -> Result<Value> {
        let json = |pipeline: &tokenizers::Tokenizer| -> Result<Value> {
            Ok(serde_json::from_str(
                &pipeline.to_string(false).map_err(failed)?,
            )?)
        };
        match &self.core.engine {
            Engine::Library(library) => {
                let mut json = json(library)?;
                if library.has_leading_space() {
                    json["pre_tokenizer"]["add_prefix_space"] = true.into();
                }
                Ok(json)
            }
            Engine::Rules(rules) => {
                let pipeline = rules.pipeline().ok_or_else(|| {
                    Error::Tokenizer(format!(
                        "a {} can't be trained again; train_wordpiece, train_unigram and train_bpe make new tokenizers",
                        self.class_name()
                    ))
                })?;
                json(&pipeline?)
            }
        }
    }

    /// This tokenizer with another vocabulary.
    fn with_engine(&self, engine: Engine, processor: Option<PostProcessorWrapper>) -> Result<Self> {
        let mut settings = (*self.settings).clone();
        // They speak of the old vocabulary.
        settings.config.shift_remove("added_tokens_decoder");
        settings.legacy = false;
        let special = (*self.special).clone();
        let mut tokenizer = Self {
            core: Arc::new(Core::new(engine)),
            post: Arc::new(processor.map_or_else(|| Ok(Post::default()), post)?),
            special: Arc::new(special),
            settings: Arc::new(settings),
            languages: self.languages.clone(),
        };
        let missing = tokenizer.special.all().into_iter();
        let missing: Vec<String> = missing
            .filter(|token| tokenizer.token_to_id(&token.content).is_none())
            .map(|token| token.content.clone())
            .collect();
        if !missing.is_empty() {
            tokenizer.add_special_tokens(&missing)?;
        }
        Ok(tokenizer)
    }
}

/// Takes the vocabulary out of a tokenizer; gives the unknown token where the model needs it among the pieces.
fn forget_vocabulary(json: &mut Value) -> Option<String> {
    json["added_tokens"] = json!([]);
    let model = &mut json["model"];
    let mut unk = None;
    match model["type"].as_str() {
        Some("BPE") => {
            model["vocab"] = json!({});
            model["merges"] = json!([]);
        }
        Some("Unigram") => {
            let id = model["unk_id"].as_u64();
            unk = id.and_then(|id| model["vocab"][id as usize][0].as_str().map(str::to_owned));
            model["vocab"] = match &unk {
                Some(unk) => json!([[unk, 0.0]]),
                None => json!([]),
            };
            model["unk_id"] = match &unk {
                Some(_) => json!(0),
                None => Value::Null,
            };
        }
        _ => model["vocab"] = json!({}),
    }
    unk
}

/// Returns the model's own trainer.
fn trainer(
    model: &ModelWrapper,
    vocab_size: usize,
    special: Vec<AddedToken>,
    bytes: bool,
    unk: Option<String>,
) -> TrainerWrapper {
    let mut trainer = model.get_trainer();
    match &mut trainer {
        TrainerWrapper::BpeTrainer(trainer) => {
            trainer.vocab_size = vocab_size;
            trainer.show_progress = false;
            trainer.special_tokens = special;
            if let ModelWrapper::BPE(model) = model {
                trainer
                    .continuing_subword_prefix
                    .clone_from(&model.continuing_subword_prefix);
                trainer
                    .end_of_word_suffix
                    .clone_from(&model.end_of_word_suffix);
            }
            if bytes {
                trainer.initial_alphabet = ByteLevel::alphabet().into_iter().collect();
            }
        }
        TrainerWrapper::WordPieceTrainer(trainer) => {
            trainer.set_vocab_size(vocab_size);
            trainer.set_show_progress(false);
            trainer.set_special_tokens(special);
        }
        TrainerWrapper::WordLevelTrainer(trainer) => {
            trainer.vocab_size = vocab_size;
            trainer.show_progress = false;
            trainer.special_tokens = special;
        }
        TrainerWrapper::UnigramTrainer(trainer) => {
            trainer.vocab_size = vocab_size as u32;
            trainer.show_progress = false;
            trainer.special_tokens = special;
            trainer.unk_token = unk;
        }
    }
    trainer
}

/// Gives the special tokens in a post-processor the ids that they have now.
fn renumber(processor: &mut Value, id: &dyn Fn(&str) -> Option<u32>) -> Result<()> {
    let id = |token: &Value| {
        let known = token.as_str().and_then(id);
        known.ok_or_else(|| {
            Error::Tokenizer(format!(
                "the template's token {token} is not in the new vocabulary"
            ))
        })
    };
    if let Some(Value::Object(tokens)) = processor.get_mut("special_tokens") {
        for token in tokens.values_mut() {
            let names = token["tokens"].as_array().into_iter().flatten();
            token["ids"] = names
                .map(|name| id(name).map(Value::from))
                .collect::<Result<_>>()?;
        }
    }
    for part in ["sep", "cls"] {
        if let Some(Value::Array(pair)) = processor.get_mut(part)
            && let [token, number] = &mut pair[..]
        {
            *number = id(token)?.into();
        }
    }
    if let Some(Value::Array(parts)) = processor.get_mut("processors") {
        parts
            .iter_mut()
            .try_for_each(|part| renumber(part, &|token| id(&token.into()).ok()))?;
    }
    Ok(())
}
