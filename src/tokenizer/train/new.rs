//! New tokenizers from texts alone, in the layouts that are used most.

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::normalizers::{BertNormalizer, NFKC, Replace, Sequence, replace::ReplacePattern};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::{AddedToken, PostProcessorWrapper};

use super::super::family::Family;
use super::super::guard::failed;
use super::super::special::{Role, SpecialTokens, plain};
use super::super::{Tokenizer, legacy};
use crate::{Error, Result};

/// The special tokens of RoBERTa's and XLM-RoBERTa's layouts, with the ids 0 to 4.
const ROBERTA: [&str; 5] = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"];
/// The special tokens of BERT's layout, with the ids 0 to 4.
const BERT: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

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
        let least = ROBERTA.len() + 256;
        if vocab_size < least {
            return Err(Error::argument(
                "vocab_size",
                format!(
                    "{vocab_size} is less than the bytes and special tokens need; give {least} or more"
                ),
            ));
        }
        let (family, special) = layout("RobertaTokenizer");
        let trainer = BpeTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(tokens(&ROBERTA, &special))
            .build();
        let mut core = tokenizers::Tokenizer::new(BPE::default());
        core.with_pre_tokenizer(Some(ByteLevel::default().add_prefix_space(false)));
        core.with_decoder(Some(ByteLevel::default()));
        let core = super::trained(core, trainer.into(), texts)?;
        made(core, family, special)
    }

    /// Trains a WordPiece tokenizer in BERT's layout: special tokens `[PAD]` `[UNK]` `[CLS]` `[SEP]` `[MASK]` with the ids 0
    /// to 4, then the letters of the texts, then pieces up to `vocab_size` tokens in all; a piece that continues a word
    /// begins with `##`. With `lowercase` texts lose capitals and accents, as for the uncased models.
    ///
    /// The same texts in the same order give the same tokenizer.
    ///
    /// ```
    /// use cloze::tokenizer::Tokenizer;
    /// let tokenizer = Tokenizer::train_wordpiece(["a galaxy of stars", "a star"], 60, true)?;
    /// assert_eq!(tokenizer.tokenize("A star")?.join(" ").replace(" ##", ""), "a star");
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn train_wordpiece<I>(texts: I, vocab_size: usize, lowercase: bool) -> Result<Self>
    where
        I: IntoIterator,
        I::IntoIter: Send,
        I::Item: AsRef<str> + Send,
    {
        if vocab_size <= BERT.len() {
            return Err(super::too_small(vocab_size, BERT.len() + 1));
        }
        let (family, special) = layout("BertTokenizer");
        let trainer = WordPieceTrainer::builder()
            .vocab_size(vocab_size)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(tokens(&BERT, &special))
            .build();
        let model = WordPiece::builder().unk_token("[UNK]".to_owned()).build();
        let mut core = tokenizers::Tokenizer::new(model.map_err(failed)?);
        core.with_normalizer(Some(BertNormalizer::new(true, true, None, lowercase)))
            .map_err(failed)?;
        core.with_pre_tokenizer(Some(BertPreTokenizer));
        core.with_decoder(Some(WordPieceDecoder::default()));
        let core = super::trained(core, trainer.into(), texts)?;
        let mut tokenizer = made(core, family, special)?;
        tokenizer.set_config("do_lower_case", lowercase.into());
        Ok(tokenizer)
    }

    /// Trains a unigram tokenizer in XLM-RoBERTa's layout: special tokens `<s>` `<pad>` `</s>` `<unk>` `<mask>` with the ids
    /// 0 to 4, then pieces up to `vocab_size` tokens in all; a piece that begins a word begins with `▁`. Texts are taken in
    /// compatibility form (NFKC), with single spaces.
    ///
    /// The same texts in the same order give the same tokenizer.
    ///
    /// # Errors
    ///
    /// If `vocab_size` is no more than the special tokens, or the texts have more different letters than it holds.
    pub fn train_unigram<I>(texts: I, vocab_size: usize) -> Result<Self>
    where
        I: IntoIterator,
        I::IntoIter: Send,
        I::Item: AsRef<str> + Send,
    {
        if vocab_size <= ROBERTA.len() {
            return Err(super::too_small(vocab_size, ROBERTA.len() + 1));
        }
        let (family, special) = layout("XLMRobertaTokenizer");
        let trainer = UnigramTrainer::builder()
            .vocab_size(u32::try_from(vocab_size).unwrap_or(u32::MAX))
            .show_progress(false)
            .special_tokens(tokens(&ROBERTA, &special))
            .unk_token(Some("<unk>".to_owned()))
            .build()
            .map_err(|error| Error::Tokenizer(error.to_string()))?;
        let mut core = tokenizers::Tokenizer::new(Unigram::default());
        let spaces = Replace::new(ReplacePattern::Regex(" {2,}".to_owned()), " ");
        let normalizer = Sequence::new(vec![NFKC.into(), spaces.map_err(failed)?.into()]);
        core.with_normalizer(Some(normalizer)).map_err(failed)?;
        let words = Metaspace::new('\u{2581}', PrependScheme::Always, true);
        core.with_pre_tokenizer(Some(words.clone()));
        core.with_decoder(Some(words));
        let core = super::trained(core, TrainerWrapper::from(trainer), texts)?;
        let tokenizer = made(core, family, special)?;
        if tokenizer.len() > vocab_size {
            return Err(super::too_small(vocab_size, tokenizer.len()));
        }
        Ok(tokenizer)
    }
}

/// Returns a family's row and its special tokens.
fn layout(class: &str) -> (&'static Family, SpecialTokens) {
    let family = Family::of_class(class).expect("a class of the table");
    (family, family.special_tokens())
}

/// Returns the special tokens to be trained with, the mask as the family has it.
fn tokens(contents: &[&str], special: &SpecialTokens) -> Vec<AddedToken> {
    let token = |content: &&str| {
        let mask = special
            .get(Role::Mask)
            .filter(|mask| mask.content == **content);
        mask.cloned().unwrap_or_else(|| plain(content))
    };
    contents.iter().map(token).collect()
}

/// Returns the tokenizer with the family's special tokens around texts.
fn made(
    mut core: tokenizers::Tokenizer,
    family: &'static Family,
    special: SpecialTokens,
) -> Result<Tokenizer> {
    let id = |token: &str| core.token_to_id(token);
    let post: PostProcessorWrapper =
        legacy::post_processor(family, &special, "the new tokenizer", false, None, id)?;
    core.with_post_processor(Some(post));
    Tokenizer::made(core, family, special)
}
