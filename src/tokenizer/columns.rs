//! Columns of additional ids of a text's tokens: RoCBert's shapes and pronunciations.

use std::collections::HashMap;
use std::path::Path;

use super::checks;
use super::family::Family;
use super::folder::Folder;
use super::{Encoding, ExtraColumn};
use crate::Result;

/// A number for every token.
#[derive(Debug)]
pub(super) struct Ids {
    name: &'static str,
    by_token: HashMap<String, u32>,
    /// For tokens that have none, and for special tokens around a text.
    unknown: u32,
}

impl Ids {
    /// Reads the columns of a family from their files.
    pub(super) fn read_all(folder: &Folder, family: &Family, unk: &str) -> Result<Vec<Self>> {
        let columns = family.columns.iter();
        columns
            .map(|column| Self::read(&folder.path.join(column.file), column.name, unk))
            .collect()
    }

    fn read(path: &Path, name: &'static str, unk: &str) -> Result<Self> {
        let text = crate::base::files::read(path)?;
        let by_token: HashMap<String, u32> =
            crate::base::json::from_slice(&text).map_err(|error| {
                checks::damaged(
                    path,
                    format!("not a JSON object of tokens and ids: {error}"),
                )
            })?;
        let unknown = by_token.get(unk).copied().ok_or_else(|| {
            checks::damaged(
                path,
                format!("it has no entry for the unknown token {unk:?}"),
            )
        })?;
        Ok(Self {
            name,
            by_token,
            unknown,
        })
    }

    /// Returns the column's name, as the model's input is called.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the id of a token, or of a special token around a text.
    pub(super) fn number(&self, token: &str, around: bool) -> u32 {
        let own = (!around).then(|| self.by_token.get(token)).flatten();
        own.copied().unwrap_or(self.unknown)
    }

    /// Adds the column to a text that is not padded yet.
    pub(super) fn add_to(&self, encoding: &mut Encoding, padding: i64) {
        let tokens = encoding.tokens.iter().zip(&encoding.special_tokens_mask);
        let value =
            |(token, special): (&String, &u32)| i64::from(self.number(token, *special == 1));
        let column = ExtraColumn::per_token(tokens.map(value).collect(), 1, padding);
        encoding.extra.insert(self.name.to_owned(), column);
    }
}
