//! ESM's protein letters from `vocab.txt`: every token of the vocabulary is matched anywhere in the text.

use tokenizers::models::wordlevel::WordLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, decoders};

use super::super::folder::Folder;
use super::super::guard::failed;
use crate::Result;

pub(super) fn build(folder: &Folder, unk: &str) -> Result<tokenizers::Tokenizer> {
    let vocab = super::read_lines(folder, "vocab.txt")?;
    let mut tokens: Vec<&str> = vocab.keys().map(|token| token.trim()).collect();
    // Longer tokens first: an alternation takes the first that fits.
    tokens.sort_by_key(|token| (std::cmp::Reverse(token.len()), *token));
    let pattern: Vec<String> = tokens.iter().map(|token| escaped(token)).collect();
    let split = Split::new(
        SplitPattern::Regex(pattern.join("|")),
        SplitDelimiterBehavior::Isolated,
        false,
    );
    // Python's spaces, which are some more than Unicode's.
    let spaces = Split::new(
        SplitPattern::Regex(r"[\s\x1c-\x1f]+".to_owned()),
        SplitDelimiterBehavior::Removed,
        false,
    );
    let pre_tokenizer = Sequence::new(vec![
        split.map_err(failed)?.into(),
        spaces.map_err(failed)?.into(),
    ]);
    let model = WordLevel::builder()
        .vocab(
            vocab
                .into_iter()
                .map(|(token, id)| (token.trim().to_owned(), id))
                .collect(),
        )
        .unk_token(unk.to_owned())
        .build()
        .map_err(failed)?;
    let mut core = tokenizers::Tokenizer::new(model);
    core.with_pre_tokenizer(Some(pre_tokenizer));
    // Without a decoder tokens are joined with spaces, as they should be.
    core.with_decoder(None::<decoders::DecoderWrapper>);
    Ok(core)
}

/// Returns `token` as a regular expression that matches it alone.
fn escaped(token: &str) -> String {
    let mut pattern = String::new();
    for c in token.chars() {
        if !c.is_alphanumeric() {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
