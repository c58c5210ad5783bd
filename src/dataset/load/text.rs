//! Plain text: every line is a row.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::chunks::LineChunks;
use super::{Options, Rows};
use crate::{Error, Result};

/// Lines without their ends, empty ones too, in the column `text`.
pub(super) fn load(paths: &[PathBuf], options: &Options, rows: &mut Rows) -> Result<SchemaRef> {
    let schema = Arc::new(Schema::new(vec![Field::new("text", DataType::Utf8, true)]));
    for path in paths {
        rows.fill(LineChunks::open(path, options.encoding)?, |chunk| {
            let text = std::str::from_utf8(&chunk.bytes).map_err(|error| {
                let before = &chunk.bytes[..error.valid_up_to()];
                Error::Format {
                    path: path.clone(),
                    line: Some(
                        chunk.first_line + before.iter().filter(|&&byte| byte == b'\n').count(),
                    ),
                    message: "the text is not valid UTF-8; name its encoding with Loader::encoding, or convert the file"
                        .to_owned(),
                }
            })?;
            let mut lines = StringBuilder::with_capacity(text.len() / 40, text.len());
            for line in text.lines() {
                lines.append_value(line);
            }
            let lines: ArrayRef = Arc::new(lines.finish());
            let batch = RecordBatch::try_new(schema.clone(), vec![lines])?;
            Ok((vec![batch], chunk.bytes.len()))
        })?;
    }
    Ok(schema)
}
