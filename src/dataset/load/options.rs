//! Options of the readers of formats.

use encoding_rs::Encoding;

use super::source;
use crate::{Error, Result};

/// The unit that becomes a row of a text file, like `sample_by` of `datasets`.
///
/// ```
/// use cloze::prelude::*;
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("poem.txt");
///
/// std::fs::write(&path, "one\ntwo\n\nthree\n").unwrap();
/// let poem = Loader::new(path.to_str().unwrap()).sample_by(SampleBy::Paragraph).cache(false).load()?;
/// assert_eq!(poem["train"].len(), 2);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SampleBy {
    /// A line, without its end.
    #[default]
    Line,
    /// The text between empty lines, including its line ends.
    Paragraph,
    /// All of a file.
    Document,
}

/// Options of reading, each for the formats that it makes sense for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// The field of a JSON document that holds the records.
    pub(crate) field: Option<String>,
    /// The delimiter of CSV files.
    pub(crate) delimiter: Option<u8>,
    /// The names of the columns of CSV files that have no header.
    pub(crate) column_names: Option<Vec<String>>,
    /// The unit of a text file that makes a row.
    pub(crate) sample_by: SampleBy,
    /// The encoding of text, where it is not UTF-8.
    pub(crate) encoding: Option<&'static Encoding>,
}

impl Options {
    pub(crate) fn set_delimiter(&mut self, delimiter: char) -> Result<()> {
        if !delimiter.is_ascii() || "\"\r\n".contains(delimiter) {
            return Err(Error::argument(
                "delimiter",
                format!(
                    "{delimiter:?} can't be a delimiter; give one ASCII character that is neither a quote nor a line end"
                ),
            ));
        }
        self.delimiter = Some(delimiter as u8);
        Ok(())
    }

    pub(crate) fn set_encoding(&mut self, label: &str) -> Result<()> {
        self.encoding = Some(source::encoding(label)?);
        Ok(())
    }
}
