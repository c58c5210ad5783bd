//! The guide's `preprocess_function`: a text column to `input_ids` and `attention_mask`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int8Array, Int32Array, ListArray, StringArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use rayon::prelude::*;

use super::Tokenizer;
use crate::dataset::{Batch, BatchFunction, type_name};
use crate::{Error, Result};

/// Rows that a thread takes at once.
const ROWS: usize = 32;

/// Tokenizes one column of each batch; made by [`Tokenizer::tokenize_column`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
#[derive(Clone, Debug)]
pub struct TokenizeColumn {
    tokenizer: Tokenizer,
    column: String,
    special_tokens_mask: bool,
}

impl Tokenizer {
    /// The function for [`Dataset::map`](crate::dataset::Dataset::map) that tokenizes `column`, which holds one text per
    /// row, or a list of them that is joined with spaces (as `answers.text` of ELI5 is).
    ///
    /// The result has the columns `input_ids` (`list<int32>`, with the model's special tokens around each row) and
    /// `attention_mask` (`list<int8>`, all 1), and those that the family's model takes besides (RoCBert's `input_shape_ids`
    /// and `input_pronunciation_ids`, `list<int32>`). Nothing is truncated: [`group_texts`] or the model's limit come later.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
    /// let dataset = Dataset::builder()
    ///     .column("answers.text", vec![vec!["a spiral", "galaxy"], vec!["a staircase"]])
    ///     .build()?;
    /// let tokenized = dataset.map(
    ///     Map::new(tokenizer.tokenize_column("answers.text"))
    ///         .batched()
    ///         .num_proc(4)
    ///         .remove_columns(dataset.column_names()),
    /// )?;
    /// assert_eq!(tokenized.column_names(), ["input_ids", "attention_mask"]);
    /// let ids = tokenized.column::<Vec<u32>>("input_ids")?;
    /// assert_eq!(tokenizer.decode(&ids[0], true)?, "a spiral galaxy");
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// [`group_texts`]: crate::dataset::Dataset::group_texts
    pub fn tokenize_column(&self, column: impl Into<String>) -> TokenizeColumn {
        TokenizeColumn {
            tokenizer: self.clone(),
            column: column.into(),
            special_tokens_mask: false,
        }
    }
}

impl TokenizeColumn {
    /// Whether there is a third column `special_tokens_mask` (`list<int8>`), 1 for the special tokens around each row
    /// (default: no). With it the masking collator spares just these; without it, every special id.
    #[must_use]
    pub fn return_special_tokens_mask(mut self, wanted: bool) -> Self {
        self.special_tokens_mask = wanted;
        self
    }

    /// The ids of `rows` texts, one after the other, and how many each row has.
    fn encode(
        &self,
        rows: usize,
        append_text: impl Fn(usize, &mut String) -> Result<()> + Sync,
    ) -> Result<(Vec<i32>, Vec<usize>)> {
        let chunks: Vec<(Vec<u32>, Vec<usize>)> = (0..rows.div_ceil(ROWS))
            .into_par_iter()
            .map(|chunk| {
                let (mut ids, mut lengths, mut text) = (Vec::new(), Vec::new(), String::new());
                for row in chunk * ROWS..rows.min((chunk + 1) * ROWS) {
                    text.clear();
                    append_text(row, &mut text)?;
                    let before = ids.len();
                    self.tokenizer.append_ids(&text, &mut ids)?;
                    lengths.push(ids.len() - before);
                }
                Ok((ids, lengths))
            })
            .collect::<Result<_>>()?;
        let total = chunks.iter().map(|(ids, _)| ids.len()).sum();
        if i32::try_from(total).is_err() {
            return Err(Error::argument(
                "batch_size",
                format!("{total} tokens are too many for one batch; map with a smaller batch_size"),
            ));
        }
        let mut ids = Vec::with_capacity(total);
        let mut lengths = Vec::with_capacity(rows);
        for (chunk, rows) in chunks {
            ids.extend(chunk.into_iter().map(|id| id as i32));
            lengths.extend(rows);
        }
        Ok((ids, lengths))
    }

    /// The texts of a string column.
    fn of_texts(&self, texts: &StringArray, first: usize) -> Result<(Vec<i32>, Vec<usize>)> {
        self.encode(texts.len(), |row, text| {
            if texts.is_null(row) {
                return Err(self.no_text(first + row));
            }
            text.push_str(texts.value(row));
            Ok(())
        })
    }

    /// The texts of a column of lists, those of each row joined.
    fn of_lists(
        &self,
        lists: &ListArray,
        texts: &StringArray,
        first: usize,
    ) -> Result<(Vec<i32>, Vec<usize>)> {
        let offsets = lists.value_offsets();
        self.encode(lists.len(), |row, text| {
            let items = offsets[row] as usize..offsets[row + 1] as usize;
            for (number, item) in items.enumerate() {
                if texts.is_null(item) {
                    return Err(self.no_text(first + row));
                }
                if number > 0 {
                    text.push(' ');
                }
                text.push_str(texts.value(item));
            }
            match lists.is_null(row) {
                true => Err(self.no_text(first + row)),
                false => Ok(()),
            }
        })
    }

    fn no_text(&self, row: usize) -> Error {
        self.unsuitable(format!(
            "a null in row {row} (filter such rows out, or give them empty texts)"
        ))
    }

    fn unsuitable(&self, found: String) -> Error {
        Error::ColumnType {
            name: self.column.clone(),
            operation: "tokenizing it".to_owned(),
            expected: "string or list<string>".to_owned(),
            found,
        }
    }
}

impl BatchFunction for TokenizeColumn {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let array = batch.array(&self.column)?;
        let first = batch.rows().start;
        let (ids, lengths) = match array.data_type() {
            DataType::Utf8 => self.of_texts(array.as_string(), first)?,
            // Where no row has an item, the items have no type.
            DataType::List(item) if *item.data_type() == DataType::Null => {
                let none = StringArray::new_null(array.as_list::<i32>().values().len());
                self.of_lists(array.as_list(), &none, first)?
            }
            DataType::List(item) if *item.data_type() == DataType::Utf8 => {
                let lists = array.as_list::<i32>();
                self.of_lists(lists, lists.values().as_string(), first)?
            }
            other => return Err(self.unsuitable(type_name(other))),
        };
        let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
        let lists = |values: ArrayRef| -> ArrayRef {
            let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
            Arc::new(ListArray::new(item, offsets.clone(), values, None))
        };
        let tokens = ids.len();
        // Which tokens stand around a row's text.
        let (before, after) = &self.tokenizer.post.around;
        let mut around = vec![0i8; tokens];
        let mut start = 0;
        for length in lengths {
            around[start..start + before.len()].fill(1);
            start += length;
            around[start - after.len()..start].fill(1);
        }
        let mut others = Vec::new();
        for column in self.tokenizer.core.columns.iter() {
            let number = |(id, around): (&i32, &i8)| {
                let token = self.tokenizer.id_to_token(*id as u32).unwrap_or_default();
                column.number(&token, *around == 1) as i32
            };
            let numbers: Vec<i32> = ids.iter().zip(&around).map(number).collect();
            others.push((column.name(), lists(Arc::new(Int32Array::from(numbers)))));
        }
        let ones = Int8Array::new(ScalarBuffer::from(vec![1; tokens]), None);
        let mut result = Batch::new()
            .with_column("input_ids", lists(Arc::new(Int32Array::from(ids))))?
            .with_column("attention_mask", lists(Arc::new(ones)))?;
        for (name, numbers) in others {
            result = result.with_column(name, numbers)?;
        }
        if self.special_tokens_mask {
            let mask = lists(Arc::new(Int8Array::from(around)));
            result = result.with_column("special_tokens_mask", mask)?;
        }
        Ok(result)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!(
            "tokenize_column({:?}, special_tokens_mask: {}) with {}",
            self.column,
            self.special_tokens_mask,
            self.tokenizer.fingerprint()
        ))
    }
}
