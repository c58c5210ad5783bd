//! The guide's `preprocess_function`: a text column to `input_ids` and `attention_mask`.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int8Array, Int32Array, ListArray, StringArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field};
use rayon::prelude::*;

use super::{Padding, Tokenizer};
use crate::dataset::{Batch, BatchFunction, Map, type_name};
use crate::{Error, Result};

/// Rows that a thread takes at once.
const ROWS: usize = 32;

/// Tokenizes one column of each batch; made by [`Tokenizer::tokenize_column`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// let lines = Dataset::builder().column("text", vec!["a spiral galaxy of many stars", "a staircase"]).build()?;
/// // Long lines go on in further rows, which repeat two tokens.
/// let windows = lines.map(tokenizer.tokenize_column("text").max_length(8).stride(2))?;
/// assert!(windows.len() > 2);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenizeColumn {
    tokenizer: Tokenizer,
    column: String,
    special_tokens_mask: bool,
    max_length: Option<usize>,
    stride: Option<usize>,
    padding: Padding,
    pad_to_multiple_of: Option<usize>,
    num_proc: Option<usize>,
    keep_columns: bool,
}

/// The outcome of a batch of texts.
#[derive(Default)]
struct Tokens {
    /// The ids of all rows, one after the other.
    ids: Vec<i32>,
    /// How many each row has.
    lengths: Vec<usize>,
    /// 1 for tokens, 0 for padding.
    attention: Vec<i8>,
    /// 1 for special tokens around a text, and for padding.
    around: Vec<i8>,
}

impl Tokenizer {
    /// Returns the function for [`Dataset::map`](crate::dataset::Dataset::map) that tokenizes `column`, which holds one
    /// text per row, or a list of them that is joined with spaces (as `answers.text` of ELI5 is).
    ///
    /// The result has the columns `input_ids` (`list<int32>`, with the model's special tokens around each row) and
    /// `attention_mask` (`list<int8>`, all 1), and the family's additional inputs (RoCBert's `input_shape_ids` and
    /// `input_pronunciation_ids`, `list<int32>`). Nothing is truncated by default, see [`TokenizeColumn::truncation`]:
    /// [`group_texts`] or the model's limit come later. If passed to `map` directly, it drops all other columns.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
    /// let dataset = Dataset::builder()
    ///     .column("answers.text", vec![vec!["a spiral", "galaxy"], vec!["a staircase"]])
    ///     .build()?;
    /// let tokenized = dataset.map(tokenizer.tokenize_column("answers.text").num_proc(4))?;
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
            max_length: None,
            stride: None,
            padding: Padding::None,
            pad_to_multiple_of: None,
            num_proc: None,
            keep_columns: false,
        }
    }
}

/// Batches of 1000 rows, of whose columns none but the new ones stay.
impl From<TokenizeColumn> for Map {
    fn from(function: TokenizeColumn) -> Self {
        let (threads, keep) = (function.num_proc, function.keep_columns);
        let mut map = Map::new(function).batched();
        if let Some(threads) = threads {
            map = map.num_proc(threads);
        }
        match keep {
            true => map,
            false => map.remove_all_columns(),
        }
    }
}

impl TokenizeColumn {
    /// Sets whether there is a third column `special_tokens_mask` (`list<int8>`), 1 for the special tokens around each
    /// row (default: no). With it the masking collator spares just these; without it, every special id.
    #[must_use]
    pub fn return_special_tokens_mask(mut self, wanted: bool) -> Self {
        self.special_tokens_mask = wanted;
        self
    }

    /// Cuts each row to at most `max_length` tokens, special tokens included (default: nothing is cut): a line of text
    /// becomes one example, as in `run_mlm.py --line_by_line`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
    /// let lines = Dataset::builder().column("text", vec!["a spiral galaxy of stars", "a staircase"]).build()?;
    /// let tokenized = lines.map(tokenizer.tokenize_column("text").truncation(6).padding(Padding::MaxLength(6)))?;
    /// let rows = tokenized.column::<Vec<u32>>("input_ids")?;
    /// assert!(rows.iter().all(|row| row.len() == 6));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    #[must_use]
    pub fn truncation(mut self, max_length: usize) -> Self {
        self.max_length = Some(max_length);
        self
    }

    /// Returns the same under the name of the argument in `transformers`.
    #[must_use]
    pub fn max_length(self, max_length: usize) -> Self {
        self.truncation(max_length)
    }

    /// Keeps the tokens cut off a row in further rows, each of which begins with the last `stride` tokens of the one
    /// before: `return_overflowing_tokens` of `transformers`. Has an effect only together with
    /// [`truncation`](Self::truncation).
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// Sets how rows are padded (default: not; the collator pads each batch to its longest row).
    #[must_use]
    pub fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Rounds the padded length up to a multiple of `multiple` tokens. Counts together with [`padding`](Self::padding).
    #[must_use]
    pub fn pad_to_multiple_of(mut self, multiple: usize) -> Self {
        self.pad_to_multiple_of = Some(multiple);
        self
    }

    /// Sets the number of threads (default: one per core), for `map` when it is given this as it is.
    #[must_use]
    pub fn num_proc(mut self, num_proc: usize) -> Self {
        self.num_proc = Some(num_proc);
        self
    }

    /// Sets whether the other columns stay, for `map` when it is given this as it is (default: no). The number of rows
    /// must not change then.
    #[must_use]
    pub fn keep_columns(mut self, keep: bool) -> Self {
        self.keep_columns = keep;
        self
    }

    /// Truncates and pads the rows of a batch, and records the type of each token.
    fn arrange(&self, ids: Vec<i32>, lengths: Vec<usize>) -> Result<Tokens> {
        let (before, after) = &self.tokenizer.post.around;
        let added = before.len() + after.len();
        if self.max_length.is_none() && self.padding == Padding::None {
            let mut around = vec![0; ids.len()];
            let mut start = 0;
            for &length in &lengths {
                around[start..start + before.len()].fill(1);
                start += length;
                around[start - after.len()..start].fill(1);
            }
            return Ok(Tokens {
                attention: vec![1; ids.len()],
                around,
                ids,
                lengths,
            });
        }
        let windows = match self.max_length {
            Some(most) => Some(Windows::new(most, added, self.stride)?),
            None => None,
        };
        let mut tokens = Tokens::default();
        let mut start = 0;
        for length in lengths {
            let text = start + before.len()..start + length - after.len();
            start += length;
            let parts = match &windows {
                Some(windows) => windows.of(text.len(), self.tokenizer.settings.truncate_left),
                None => std::iter::once(0..text.len()).collect(),
            };
            for part in parts {
                let signed = |ids: &[u32]| ids.iter().map(|&id| id as i32).collect::<Vec<_>>();
                tokens.ids.extend(signed(before));
                tokens.around.extend(vec![1; before.len()]);
                tokens
                    .ids
                    .extend(&ids[text.start + part.start..text.start + part.end]);
                tokens.around.extend(vec![0; part.len()]);
                tokens.ids.extend(signed(after));
                tokens.around.extend(vec![1; after.len()]);
                tokens.lengths.push(added + part.len());
            }
        }
        tokens.attention = vec![1; tokens.ids.len()];
        self.pad(tokens)
    }

    fn pad(&self, tokens: Tokens) -> Result<Tokens> {
        let longest = tokens.lengths.iter().copied().max().unwrap_or(0);
        let length = match self.padding {
            Padding::None => return Ok(tokens),
            Padding::Longest => longest,
            Padding::MaxLength(length) => length,
        };
        let length = match self.pad_to_multiple_of {
            Some(0) => {
                let message = "must be at least 1";
                return Err(Error::argument("pad_to_multiple_of", message));
            }
            Some(multiple) => length.next_multiple_of(multiple),
            None => length,
        };
        if tokens.lengths.iter().all(|&own| own >= length) {
            return Ok(tokens);
        }
        let Some(pad) = self.tokenizer.pad_token_id() else {
            return Err(self.tokenizer.no_pad_token());
        };
        let mut padded = Tokens::default();
        let mut start = 0;
        for own in tokens.lengths {
            let row = start..start + own;
            start += own;
            let missing = length.saturating_sub(own);
            let (left, right) = match self.tokenizer.settings.pad_left {
                true => (missing, 0),
                false => (0, missing),
            };
            for (many, is_row) in [(left, false), (own, true), (right, false)] {
                if is_row {
                    padded.ids.extend(&tokens.ids[row.clone()]);
                    padded.attention.extend(&tokens.attention[row.clone()]);
                    padded.around.extend(&tokens.around[row.clone()]);
                } else {
                    padded.ids.extend(vec![pad as i32; many]);
                    padded.attention.extend(vec![0; many]);
                    padded.around.extend(vec![1; many]);
                }
            }
            padded.lengths.push(own + missing);
        }
        Ok(padded)
    }

    /// Returns the ids of `rows` texts, one after the other, and how many each row has.
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

    /// Returns the texts of a string column.
    fn of_texts(&self, texts: &StringArray, first: usize) -> Result<(Vec<i32>, Vec<usize>)> {
        self.encode(texts.len(), |row, text| {
            if texts.is_null(row) {
                return Err(self.no_text(first + row));
            }
            text.push_str(texts.value(row));
            Ok(())
        })
    }

    /// Returns the texts of a column of lists, those of each row joined.
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
        let Tokens {
            ids,
            lengths,
            attention,
            around,
        } = self.arrange(ids, lengths)?;
        let offsets = OffsetBuffer::from_lengths(lengths);
        let lists = |values: ArrayRef| -> ArrayRef {
            let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
            Arc::new(ListArray::new(item, offsets.clone(), values, None))
        };
        let mut others = Vec::new();
        for column in self.tokenizer.core.columns.iter() {
            let pad = self.tokenizer.pad_token_id().unwrap_or(0) as i32;
            let number = |((id, around), attention): ((&i32, &i8), &i8)| {
                if *attention == 0 {
                    return pad;
                }
                let token = self.tokenizer.id_to_token(*id as u32).unwrap_or_default();
                column.number(&token, *around == 1) as i32
            };
            let numbers = ids.iter().zip(&around).zip(&attention);
            let numbers: Vec<i32> = numbers.map(number).collect();
            others.push((column.name(), lists(Arc::new(Int32Array::from(numbers)))));
        }
        let attention = Int8Array::new(ScalarBuffer::from(attention), None);
        let mut result = Batch::new()
            .with_column("input_ids", lists(Arc::new(Int32Array::from(ids))))?
            .with_column("attention_mask", lists(Arc::new(attention)))?;
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
        let mut settings = format!("special_tokens_mask: {}", self.special_tokens_mask);
        if let Some(most) = self.max_length {
            settings += &format!(", max_length: {most}, stride: {:?}", self.stride);
        }
        if self.padding != Padding::None {
            settings += &format!(", {:?} {:?}", self.padding, self.pad_to_multiple_of);
        }
        Some(format!(
            "tokenize_column({:?}, {settings}) with {}",
            self.column,
            self.tokenizer.fingerprint()
        ))
    }
}

/// How long rows are cut.
pub(super) struct Windows {
    /// How many tokens of a text fit between the special tokens.
    room: usize,
    /// From the beginning of one window to the next; `None` where only the first is kept.
    step: Option<usize>,
}

impl Windows {
    pub(super) fn new(max_length: usize, added: usize, stride: Option<usize>) -> Result<Self> {
        let room = max_length.checked_sub(added).filter(|&room| room > 0);
        let room = room.ok_or_else(|| {
            Error::argument(
                "truncation",
                format!("{max_length} tokens leave no room for a text with {added} special tokens; allow more"),
            )
        })?;
        let step = stride.map(|stride| match room.saturating_sub(stride) {
            0 => Err(Error::argument(
                "stride",
                format!(
                    "windows of {room} tokens that overlap by {stride} never advance; give a stride below {room}"
                ),
            )),
            step => Ok(step),
        });
        Ok(Self {
            room,
            step: step.transpose()?,
        })
    }

    /// Returns the windows of a text with this many tokens, from its end if that is the side that is kept.
    pub(super) fn of(&self, length: usize, from_end: bool) -> Vec<Range<usize>> {
        let mut windows = Vec::new();
        let mut at = 0;
        loop {
            let end = length.min(at + self.room);
            windows.push(match from_end {
                true => length - end..length - at,
                false => at..end,
            });
            match self.step {
                Some(step) if end < length => at += step,
                _ => return windows,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokenizers::TruncationDirection;

    use super::*;
    use crate::dataset::Dataset;
    use crate::tokenizer::EncodeOptions;

    const TEXTS: [&str; 4] = [
        "a barred spiral galaxy with a bright bar of old stars in its middle",
        "a spiral staircase",
        "",
        "galaxies of stars and stars of galaxies and of gas and dust and more",
    ];

    fn tokenizer() -> Tokenizer {
        Tokenizer::train_bpe(TEXTS, 280).unwrap()
    }

    /// A list of numbers for each row.
    type Lists = Vec<Vec<u32>>;

    fn rows(function: TokenizeColumn) -> (Lists, Lists, Lists) {
        let texts = Dataset::builder()
            .column("text", TEXTS.to_vec())
            .build()
            .unwrap();
        let function = function.return_special_tokens_mask(true);
        let rows = texts.map(function).unwrap();
        let column = |name| rows.column::<Vec<u32>>(name).unwrap();
        let names = ["input_ids", "attention_mask", "special_tokens_mask"];
        assert_eq!(rows.column_names(), names);
        (column(names[0]), column(names[1]), column(names[2]))
    }

    #[test]
    fn rows_are_truncated_and_padded_like_single_texts() {
        let tokenizer = tokenizer();
        for padding in [Padding::None, Padding::Longest, Padding::MaxLength(12)] {
            let function = tokenizer.tokenize_column("text").truncation(9);
            let (ids, attention, special) = rows(function.padding(padding).pad_to_multiple_of(4));
            let options = EncodeOptions::new().truncation(9).padding(padding);
            let options = options.pad_to_multiple_of(4);
            let expected = tokenizer.encode_batch_with(&TEXTS, &options).unwrap();
            for (row, expected) in expected.into_iter().enumerate() {
                assert_eq!(ids[row], expected.ids, "{padding:?}");
                assert_eq!(attention[row], expected.attention_mask);
                assert_eq!(special[row], expected.special_tokens_mask);
            }
        }
    }

    /// The windows that the tokenizers crate cuts.
    #[test]
    fn windows_overlap_as_in_the_tokenizers_crate() {
        for (length, most, stride) in [
            (23, 7, 0),
            (23, 7, 3),
            (21, 7, 2),
            (7, 7, 6),
            (3, 7, 1),
            (0, 7, 1),
        ] {
            for from_end in [false, true] {
                let ids: Vec<u32> = (0..length).collect();
                let tokens: Vec<(u32, String)> =
                    ids.iter().map(|&id| (id, id.to_string())).collect();
                let mut whole = tokenizers::Encoding::default();
                for (id, token) in tokens {
                    let one = tokenizers::Token::new(id, token, (0, 0));
                    whole.merge_with(tokenizers::Encoding::from_tokens(vec![one], 0), false);
                }
                let side = match from_end {
                    true => TruncationDirection::Left,
                    false => TruncationDirection::Right,
                };
                whole.truncate(most, stride, side);
                let mut expected = vec![whole.get_ids().to_vec()];
                let overflowing = whole.get_overflowing().iter();
                expected.extend(overflowing.map(|part| part.get_ids().to_vec()));
                let windows = Windows::new(most + 2, 2, Some(stride)).unwrap();
                let found: Vec<Vec<u32>> = windows
                    .of(length as usize, from_end)
                    .into_iter()
                    .map(|part| ids[part].to_vec())
                    .collect();
                assert_eq!(found, expected, "{length} {most} {stride} {from_end}");
            }
        }
    }

    #[test]
    fn truncated_text_follows_in_further_rows() {
        let tokenizer = tokenizer();
        let function = tokenizer.tokenize_column("text").max_length(9).stride(2);
        let (ids, ..) = rows(function);
        assert!(ids.len() > TEXTS.len() && ids.iter().all(|row| row.len() <= 9));
        let whole = tokenizer.encode_ids(TEXTS[0]).unwrap();
        let inner = &whole[1..whole.len() - 1];
        assert_eq!(ids[0][1..8], inner[..7]);
        assert_eq!(ids[1][1..8], inner[5..12]);
        let refused = tokenizer.tokenize_column("text").max_length(9).stride(7);
        let texts = Dataset::builder()
            .column("text", TEXTS.to_vec())
            .build()
            .unwrap();
        let error = texts.map(refused).unwrap_err().to_string();
        assert!(error.contains("stride"), "{error}");
    }
}
