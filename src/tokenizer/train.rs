//! A new tokenizer from texts.

use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::roberta::RobertaProcessing;

use super::Tokenizer;
use super::encode::failed;
use super::family::Family;
use super::special::{Role, plain};
use crate::{Error, Result};

impl Tokenizer {
    /// Trains a byte-level BPE tokenizer in RoBERTa's layout: special tokens `<s>` `<pad>` `</s>` `<unk>` `<mask>` with
    /// the ids 0 to 4, then the 256 bytes, then the most frequent merges up to `vocab_size` tokens in all (fewer when
    /// the texts run out of pairs that occur twice).
    ///
    /// The same texts in the same order give the same tokenizer.
    pub fn train_bpe<I>(texts: I, vocab_size: usize) -> Result<Self>
    where
        I: IntoIterator,
        I::IntoIter: Send,
        I::Item: AsRef<str> + Send,
    {
        const SPECIAL: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];
        let least = SPECIAL.len() + 256;
        if vocab_size < least {
            return Err(Error::argument(
                "vocab_size",
                format!(
                    "{vocab_size} does not even hold the bytes and special tokens; give {least} or more"
                ),
            ));
        }
        let family = Family::of_class("RobertaTokenizer").expect("a class of the table");
        let special = family.special_tokens();
        let tokens = SPECIAL.map(|token| {
            let mask = special.get(Role::Mask).filter(|mask| mask.content == token);
            mask.cloned().unwrap_or_else(|| plain(token))
        });
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(tokens.to_vec())
            .build();
        let mut core = tokenizers::Tokenizer::new(BPE::default());
        core.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        core.with_decoder(Some(ByteLevel::default()));
        core.train(&mut TrainerWrapper::from(trainer), texts.into_iter())
            .map_err(failed)?;
        let post = RobertaProcessing::new(("</s>".into(), 2), ("<s>".into(), 0));
        core.with_post_processor(Some(post.add_prefix_space(false).trim_offsets(true)));
        Tokenizer::made(core, "RobertaTokenizer", special)
    }
}
