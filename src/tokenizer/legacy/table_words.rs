//! TAPAS from `vocab.txt`.

use super::super::folder::Folder;
use super::super::rules::Rules;
use super::super::rules::table_words::TableWords;
use super::super::rules::vocabulary::Vocabulary;
use super::super::special::SpecialTokens;
use crate::Result;

pub(super) fn build(folder: &Folder, special: &SpecialTokens, unk: &str) -> Result<Rules> {
    let bert = super::wordpiece::build(folder, unk)?;
    let vocabulary = Vocabulary::new(super::read_lines(folder, "vocab.txt")?);
    let files = vec![super::read_bytes(folder, "vocab.txt")?];
    // The token for what says nothing gets its id here where the vocabulary lacks it.
    let rows = vocabulary.rows();
    let empty = special.additional.first();
    let known = empty.and_then(|token| vocabulary.id(&token.content));
    let words = TableWords {
        bert,
        empty: known.unwrap_or(rows),
    };
    let mut rules = Rules::new(words, vocabulary, files);
    if let (Some(token), None) = (empty, known) {
        rules.add(vec![(Some(rows), token.clone())])?;
    }
    Ok(rules.lowercase(folder.flag("do_lower_case").unwrap_or(true)))
}
