//! WordPiece from `vocab.txt`: BERT, DistilBERT, ELECTRA, MPNet, Funnel, ...

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, NFC, NormalizerWrapper, Sequence};
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
        core.with_normalizer(Some(normalizer(folder)))
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
