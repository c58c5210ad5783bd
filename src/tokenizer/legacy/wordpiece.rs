//! WordPiece from `vocab.txt`: BERT, DistilBERT, ELECTRA, MPNet, Funnel, ...

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::replace::ReplacePattern;
use tokenizers::normalizers::{BertNormalizer, NFC, NormalizerWrapper, Replace, Sequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

use super::super::folder::Folder;
use super::super::guard::failed;
use crate::Result;

pub(super) fn build(folder: &Folder, unk: &str) -> Result<tokenizers::Tokenizer> {
    let model = WordPiece::builder()
        .vocab(super::read_lines(folder, "vocab.txt")?)
        .unk_token(unk.to_owned())
        .build()
        .map_err(failed)?;
    let mut core = tokenizers::Tokenizer::new(model);
    if folder.flag("do_basic_tokenize").unwrap_or(true) {
        // The Python classes drop what is no character; the library's own cleaning passes some of it.
        let pattern = ReplacePattern::Regex(r"[\p{C}&&[^\t\n\r]]".to_owned());
        let dropped = Replace::new(pattern, "").map_err(failed)?;
        let parts = vec![dropped.into(), normalizer(folder)];
        core.with_normalizer(Some(Sequence::new(parts)))
            .map_err(failed)?;
        core.with_pre_tokenizer(Some(BertPreTokenizer));
    } else {
        core.with_pre_tokenizer(Some(WhitespaceSplit));
    }
    core.with_decoder(Some(WordPieceDecoder::new("##".to_owned(), false)));
    Ok(core)
}

fn normalizer(folder: &Folder) -> NormalizerWrapper {
    let lowercase = folder.flag("do_lower_case").unwrap_or(true);
    let strip_accents = folder.flag("strip_accents");
    let chinese = folder.flag("tokenize_chinese_chars").unwrap_or(true);
    if strip_accents.unwrap_or(lowercase) {
        return BertNormalizer::new(true, chinese, strip_accents, lowercase).into();
    }
    // The Python classes compose accents (NFC), which shows where they are not stripped afterwards.
    let clean = BertNormalizer::new(true, chinese, Some(false), false);
    let case = BertNormalizer::new(false, false, Some(false), lowercase);
    Sequence::new(vec![clean.into(), NFC.into(), case.into()]).into()
}
