//! Tokenized texts joined and cut into blocks of one length.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{concat, filter, is_not_null};
use arrow::datatypes::{DataType, Field};

use super::batch::Batch;
use super::cache::Cache;
use super::data_type::type_name;
use super::map::{BatchFunction, Map};
use super::sink::{MEMORY_LIMIT, Sink};
use super::table::Dataset;
use crate::{Error, Result};

/// Options of [`Dataset::group_texts`]. A plain number is short for [`GroupTexts::new`].
///
/// ```
/// use cloze::prelude::*;
///
/// let tokens = Dataset::builder().column("input_ids", vec![vec![1i32, 2, 3], vec![4, 5], vec![6, 7, 8]]).build()?;
/// let blocks = tokens.group_texts(GroupTexts::new(4).whole_dataset())?;
/// assert_eq!(blocks.column::<Vec<i32>>("input_ids")?, [[1, 2, 3, 4], [5, 6, 7, 8]]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct GroupTexts {
    block_size: usize,
    batch_size: usize,
    whole_dataset: bool,
    drop_short_blocks: bool,
    max_length: Option<usize>,
    num_proc: Option<usize>,
    cache: Cache,
}

impl GroupTexts {
    /// Blocks of `block_size` tokens, cut within batches of 1000 rows.
    pub fn new(block_size: usize) -> Self {
        Self {
            block_size,
            batch_size: 1000,
            whole_dataset: false,
            drop_short_blocks: false,
            max_length: None,
            num_proc: None,
            cache: Cache::default(),
        }
    }

    /// Sets the number of rows whose texts are joined (default 1000). The remainder at the end of a batch is dropped.
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Joins the texts of the whole dataset: the remainder of a batch continues in the next, and in total less than one
    /// block is dropped.
    pub fn whole_dataset(mut self) -> Self {
        self.whole_dataset = true;
        self
    }

    /// Drops the text of a batch that has less than one block. By default it stays as one short block, as in the
    /// Python guide's function.
    pub fn drop_short_blocks(mut self) -> Self {
        self.drop_short_blocks = true;
        self
    }

    /// Sets the longest sequence that the model takes; a larger block size is an error.
    pub fn max_length(mut self, tokens: usize) -> Self {
        self.max_length = Some(tokens);
        self
    }

    /// Sets the number of threads (default: one per core). The result does not depend on it.
    pub fn num_proc(mut self, num_proc: usize) -> Self {
        self.num_proc = Some(num_proc);
        self
    }

    /// Sets whether the result may come from the cache and go there (default: yes).
    pub fn cache(mut self, enabled: bool) -> Self {
        self.cache.set_enabled(enabled);
        self
    }

    /// Sets the cache's folder (default [`cache_dir`](super::cache_dir)).
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache.set_folder(folder.into());
        self
    }

    fn check(&self, dataset: &Dataset) -> Result<()> {
        self.check_sizes()?;
        if dataset.is_empty() {
            return Err(Error::Dataset(
                "group_texts: the dataset is empty".to_owned(),
            ));
        }
        self.check_columns(dataset)
    }

    /// Checks what can be checked without any text.
    pub(super) fn check_sizes(&self) -> Result<()> {
        let block_size = |message: String| Err(Error::argument("block_size", message));
        if self.block_size == 0 {
            return block_size("must be at least 1".to_owned());
        }
        if let Some(max) = self.max_length.filter(|&max| self.block_size > max) {
            return block_size(format!(
                "{} is more than the {max} tokens that the model takes; choose at most {max}",
                self.block_size
            ));
        }
        match self.batch_size {
            0 => Err(Error::argument("batch_size", "must be at least 1")),
            _ => Ok(()),
        }
    }

    /// Checks that all columns contain lists.
    pub(super) fn check_columns(&self, dataset: &Dataset) -> Result<()> {
        let fields = dataset.schema().fields();
        if fields.is_empty() {
            return Err(Error::Dataset(
                "group_texts: the dataset has no columns".to_owned(),
            ));
        }
        match fields
            .iter()
            .find(|field| !matches!(field.data_type(), DataType::List(_)))
        {
            Some(field) => Err(Error::ColumnType {
                name: field.name().clone(),
                operation: "group_texts".to_owned(),
                expected:
                    "lists of token ids in every column (drop the others with remove_columns)"
                        .to_owned(),
                found: type_name(field.data_type()),
            }),
            None => Ok(()),
        }
    }

    /// Returns the function for each batch of texts.
    fn function(&self) -> GroupBatch {
        GroupBatch {
            block_size: self.block_size,
            drop_short_blocks: self.drop_short_blocks,
        }
    }

    /// Returns what a stream does to its rows; of a whole dataset it has what is in memory at once.
    pub(super) fn for_stream(&self) -> Map {
        Map::new(self.function())
            .batched()
            .batch_size(match self.whole_dataset {
                true => usize::MAX,
                false => self.batch_size,
            })
            .remove_all_columns()
    }
}

impl From<usize> for GroupTexts {
    fn from(block_size: usize) -> Self {
        Self::new(block_size)
    }
}

impl Dataset {
    /// Returns the texts joined, and cut into blocks of `block_size` tokens, in all columns (which must be lists:
    /// `input_ids`, `attention_mask`, ...).
    ///
    /// As in the Python guide, texts are joined within batches of 1000 rows, the tokens left over at a batch's end are
    /// dropped, and a batch that has less than one block stays as one short block; [`GroupTexts`] has other choices.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokens = Dataset::builder().column("input_ids", vec![vec![1, 2, 3], vec![4, 5], vec![6, 7]]).build()?;
    /// let blocks = tokens.group_texts(GroupTexts::new(3).cache(false))?;
    /// assert_eq!(blocks.column::<Vec<u32>>("input_ids")?, [[1, 2, 3], [4, 5, 6]]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// A block size of 0, beyond [`GroupTexts::max_length`], or longer than all the text; a column that holds no lists;
    /// an empty dataset; columns whose lists differ in length.
    pub fn group_texts(&self, group: impl Into<GroupTexts>) -> Result<Self> {
        let group = group.into();
        group.check(self)?;
        let tokens = self.tokens();
        if tokens < group.block_size {
            return Err(Error::argument(
                "block_size",
                format!(
                    "{} is longer than all the text: {tokens} tokens in {} rows; choose a smaller block",
                    group.block_size,
                    self.len()
                ),
            ));
        }
        if group.whole_dataset {
            return self.pack(&group);
        }
        let mut map = Map::new(group.function())
            .batched()
            .batch_size(group.batch_size)
            .remove_columns(self.column_names())
            .description("Group texts")
            .with_cache(group.cache.clone());
        if let Some(num_proc) = group.num_proc {
            map = map.num_proc(num_proc);
        }
        let blocks = self.map(map).map_err(own_error)?;
        if blocks.is_empty() {
            return Err(Error::argument(
                "block_size",
                format!(
                    "no batch of {} rows has a whole block of {} tokens; use a larger batch_size or whole_dataset()",
                    group.batch_size, group.block_size
                ),
            ));
        }
        Ok(blocks)
    }

    /// Returns the number of items in all lists of the first column.
    fn tokens(&self) -> usize {
        let lengths = |batch: &RecordBatch| batch.column(0).as_list::<i32>().clone();
        let lists: Vec<ListArray> = self.batches().iter().map(lengths).collect();
        let length = |lists: &ListArray, row: usize| match lists.is_null(row) {
            true => 0,
            false => lists.value_length(row) as usize,
        };
        match self.indices() {
            None => lists
                .iter()
                .map(|lists| {
                    (0..lists.len())
                        .map(|row| length(lists, row))
                        .sum::<usize>()
                })
                .sum(),
            Some(indices) => indices
                .iter()
                .map(|&row| {
                    let (batch, row) = self.locate(row);
                    length(&lists[batch], row)
                })
                .sum(),
        }
    }

    /// Blocks over the whole dataset, the rest of one batch carried to the next.
    fn pack(&self, group: &GroupTexts) -> Result<Self> {
        let key = self.content().derive(
            "group_texts, whole dataset",
            &[&group.block_size.to_le_bytes()],
        );
        let _turn = group.cache.one_rank_at_a_time(key);
        if let Some(found) = Sink::cached(&group.cache, key) {
            return Ok(found.with_origin(self.origin()));
        }
        let mut sink = Sink::new(group.cache.clone(), Some(key), MEMORY_LIMIT);
        let mut rest: Vec<ArrayRef> = Vec::new();
        for range in self.chunks(group.batch_size) {
            crate::base::interrupt::check("grouping texts")?;
            let batch = self.gather(range.clone())?;
            let mut columns = Vec::new();
            for (i, (field, column)) in batch
                .schema()
                .fields()
                .iter()
                .zip(batch.columns())
                .enumerate()
            {
                let joined = joined(column)?;
                let joined = match rest.get(i).filter(|rest| !rest.is_empty()) {
                    Some(rest) => concat(&[rest, &joined])?,
                    None => joined,
                };
                columns.push((field.name().clone(), joined));
            }
            let total = equal_length(&columns, range.start)?;
            let whole = total / group.block_size * group.block_size;
            rest = columns
                .iter()
                .map(|(_, column)| column.slice(whole, total - whole))
                .collect();
            if whole > 0 {
                let mut packed = Batch::new();
                for (name, column) in columns {
                    packed =
                        packed.with_column(name, cut(&column.slice(0, whole), group.block_size))?;
                }
                sink.write(packed.to_record_batch()?)?;
            }
        }
        Ok(sink.finish(self.schema(), key)?.with_origin(self.origin()))
    }
}

/// An error of the function itself is this module's own, not a user's.
fn own_error(error: Error) -> Error {
    match error {
        Error::User { context, source } => {
            let context = context.replacen("map", "group_texts", 1);
            Error::Dataset(format!("{context}: {source}"))
        }
        error => error,
    }
}

struct GroupBatch {
    block_size: usize,
    drop_short_blocks: bool,
}

impl BatchFunction for GroupBatch {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let columns = batch
            .columns()
            .map(|(name, column)| Ok((name.clone(), joined(column)?)))
            .collect::<Result<Vec<_>>>()?;
        let total = equal_length(&columns, batch.rows().start)?;
        let short = total < self.block_size && !self.drop_short_blocks;
        let kept = if short {
            total
        } else {
            total / self.block_size * self.block_size
        };
        let mut blocks = Batch::new();
        for (name, column) in columns {
            blocks = blocks.with_column(name, cut(&column.slice(0, kept), self.block_size))?;
        }
        Ok(blocks)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!(
            "group_texts {} {}",
            self.block_size, self.drop_short_blocks
        ))
    }
}

/// Returns all lists of a column as one, without copying where no list is null.
fn joined(column: &ArrayRef) -> Result<ArrayRef> {
    let lists = column.as_list::<i32>();
    if lists.null_count() > 0 {
        // A null list may still lie over values.
        let present = filter(lists, &is_not_null(lists)?)?;
        return joined(&present);
    }
    let offsets = lists.offsets();
    let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
    Ok(lists
        .values()
        .slice(first as usize, (last - first) as usize))
}

/// Returns `values` as lists of `block_size` of them; the last one may be shorter.
fn cut(values: &ArrayRef, block_size: usize) -> ArrayRef {
    let lengths = (0..values.len())
        .step_by(block_size)
        .map(|start| block_size.min(values.len() - start));
    let item = Arc::new(Field::new_list_field(values.data_type().clone(), true));
    Arc::new(ListArray::new(
        item,
        OffsetBuffer::from_lengths(lengths),
        values.clone(),
        None,
    ))
}

/// Returns the number of tokens, which must be the same in all columns.
fn equal_length(columns: &[(String, ArrayRef)], start: usize) -> Result<usize> {
    let Some((first, column)) = columns.first() else {
        return Ok(0);
    };
    match columns
        .iter()
        .find(|(_, other)| other.len() != column.len())
    {
        Some((name, other)) => Err(Error::Dataset(format!(
            "from row {start} on, the lists of {first:?} have {} items in all and those of {name:?} {}; grouped columns must correspond item by item; drop the others with remove_columns",
            column.len(),
            other.len()
        ))),
        None => Ok(column.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(rows: Vec<Vec<u32>>) -> Dataset {
        let mask: Vec<Vec<u8>> = rows.iter().map(|row| vec![1; row.len()]).collect();
        Dataset::builder()
            .column("input_ids", rows)
            .column("attention_mask", mask)
            .build()
            .unwrap()
    }

    fn group(dataset: &Dataset, group: GroupTexts) -> Result<Vec<Vec<u32>>> {
        dataset.group_texts(group.cache(false))?.column("input_ids")
    }

    #[test]
    fn blocks_are_cut_within_batches_and_the_remainder_is_dropped() {
        let dataset = tokens(vec![
            vec![1, 2, 3],
            vec![4, 5],
            vec![],
            vec![6, 7, 8, 9],
            vec![10],
        ]);
        assert_eq!(
            group(&dataset, 4.into()).unwrap(),
            [[1, 2, 3, 4], [5, 6, 7, 8]]
        );
        assert_eq!(
            group(&dataset, GroupTexts::new(3).batch_size(2)).unwrap(),
            [vec![1, 2, 3], vec![6, 7, 8], vec![10]]
        );
        assert_eq!(
            group(
                &dataset,
                GroupTexts::new(3).batch_size(2).drop_short_blocks()
            )
            .unwrap(),
            [[1, 2, 3], [6, 7, 8]]
        );
        assert_eq!(
            group(&dataset, GroupTexts::new(3).batch_size(2).whole_dataset()).unwrap(),
            [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        );
        assert_eq!(
            dataset
                .group_texts(GroupTexts::new(4).cache(false))
                .unwrap()
                .column::<Vec<u8>>("attention_mask")
                .unwrap(),
            [[1; 4], [1; 4]]
        );
    }

    #[test]
    fn a_selection_of_rows_groups_like_those_rows() {
        let dataset = tokens(vec![
            vec![1, 2, 3],
            vec![4, 5],
            vec![],
            vec![6, 7, 8, 9],
            vec![10],
        ]);
        let view = dataset.select(&[3, 0]).unwrap();
        assert_eq!(group(&view, 3.into()).unwrap(), [[6, 7, 8], [9, 1, 2]]);
        assert_eq!(
            group(&dataset.slice(1..5), 3.into()).unwrap(),
            [[4, 5, 6], [7, 8, 9]]
        );
    }

    #[test]
    fn null_lists_count_as_empty() {
        let rows = vec![Some(vec![1, 2]), None, Some(vec![3, 4])];
        let dataset = Dataset::builder()
            .column("input_ids", rows)
            .build()
            .unwrap();
        assert_eq!(group(&dataset, 4.into()).unwrap(), [[1, 2, 3, 4]]);
    }

    #[test]
    fn an_invalid_block_size_is_refused() {
        let dataset = tokens(vec![vec![1, 2, 3], vec![4, 5]]);
        let message = |g: GroupTexts| group(&dataset, g).unwrap_err().to_string();
        assert_eq!(message(0.into()), "block_size: must be at least 1");
        let long =
            "block_size: 6 is longer than all the text: 5 tokens in 2 rows; choose a smaller block";
        assert_eq!(message(6.into()), long);
        assert_eq!(message(GroupTexts::new(6).drop_short_blocks()), long);
        assert_eq!(message(GroupTexts::new(6).whole_dataset()), long);
        assert!(
            message(GroupTexts::new(4).max_length(3)).contains("the 3 tokens that the model takes")
        );
        assert!(
            message(GroupTexts::new(4).batch_size(1).drop_short_blocks())
                .contains("use a larger batch_size")
        );
        assert_eq!(group(&dataset, 5.into()).unwrap(), [[1, 2, 3, 4, 5]]);
    }

    #[test]
    fn columns_that_cannot_be_grouped_are_named() {
        let dataset = Dataset::builder()
            .column("input_ids", vec![vec![1, 2], vec![3]])
            .column("title", vec!["a", "b"])
            .build()
            .unwrap();
        let error = dataset.group_texts(2).unwrap_err().to_string();
        assert!(
            error.contains("\"title\" holds string") && error.contains("remove_columns"),
            "{error}"
        );
        let uneven = Dataset::builder()
            .column("input_ids", vec![vec![1, 2], vec![3]])
            .column("other", vec![vec![1], vec![3]])
            .build()
            .unwrap();
        let error = uneven
            .group_texts(GroupTexts::new(2).cache(false))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("group_texts, rows 0..2") && error.contains("\"other\" 2"),
            "{error}"
        );
        let empty = dataset.select_columns(["input_ids"]).unwrap().slice(0..0);
        assert!(
            empty
                .group_texts(2)
                .unwrap_err()
                .to_string()
                .contains("is empty")
        );
    }
}
