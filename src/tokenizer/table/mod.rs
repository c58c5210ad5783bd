//! TAPAS: a question and a table as one row of tokens, with seven numbers per token that describe its position.

mod numbers;

use std::cmp::Ordering;

use super::{EncodeOptions, Encoding, ExtraColumn, Tokenizer};
use crate::{Error, Result};
use numbers::{Order, Value};

/// The number of numbers that describe a token's position.
const TYPES: usize = 7;
/// The limit of rows, columns and ranks: the published models have 256 vectors for each of them.
const MOST: usize = 256;

/// A token of the table and its position.
struct Token {
    id: u32,
    span: (usize, usize),
    begins_word: bool,
    /// From 1.
    column: usize,
    /// From 0, the header's.
    row: usize,
    /// The place in the cell of the word's first piece.
    word_at: usize,
}

impl Tokenizer {
    /// Encodes a question about a table, for TAPAS.
    ///
    /// Each row has a cell for each name of the header. The encoding's [extra](Encoding::extra) column `token_type_ids` has
    /// seven numbers a token: 1 for the table's tokens, column and row from 1 (0 for the header's row), 0 for the label of an
    /// earlier answer, the rank of the cell's number or date in its column from the smallest and from the largest, and how it
    /// compares with those of the question (1 equal, 2 greater, 4 less). [`Encoding::type_ids`] has the first of them.
    ///
    /// With [`truncation`](EncodeOptions::truncation), words at the ends of cells are left out, and rows at the end where that
    /// is not enough. Ranks are those among all rows, and 255 where that is more.
    ///
    /// The keys of `tokenizer_config.json` count: `max_column_id`, `max_row_id`, `strip_column_names`, `cell_trim_length` (with
    /// truncation, so many tokens a cell stay, and rows are left out where that is too much), and `min_question_length` and
    /// `max_question_length`, beyond which the question is left out.
    ///
    /// # Errors
    ///
    /// If the tokenizer is not one for tables, a row is shorter or longer than the header, there are 256 columns or rows or
    /// more, or not even the question and the header's first words fit.
    pub fn encode_table<H, C>(
        &self,
        header: &[H],
        rows: &[Vec<C>],
        question: &str,
        options: &EncodeOptions,
    ) -> Result<Encoding>
    where
        H: AsRef<str>,
        C: AsRef<str>,
    {
        let (Some(cls), Some(sep)) = (self.cls_token_id(), self.sep_token_id()) else {
            return Err(self.no_tables());
        };
        if !self.settings.tables {
            return Err(self.no_tables());
        }
        let header: Vec<&str> = header.iter().map(AsRef::as_ref).collect();
        let cells: Vec<Vec<&str>> = rows
            .iter()
            .map(|row| row.iter().map(AsRef::as_ref).collect())
            .collect();
        let most = self.most_lines(&header, &cells, options)?;
        let (question, question_tokens) = self.asked(question)?;
        let mut tokens = Vec::new();
        let mut longest = 0;
        let names: Vec<&str> = match self.settings.config.get("strip_column_names") {
            Some(serde_json::Value::Bool(true)) => vec![""; header.len()],
            _ => header.clone(),
        };
        for (row, cells) in std::iter::once(&names).chain(&cells).enumerate() {
            for (column, cell) in cells.iter().enumerate() {
                longest = longest.max(self.tokens_of_cell(cell, column + 1, row, &mut tokens)?);
            }
        }
        let (mut lines, mut words) = (most, longest);
        if let Some(max_length) = options.max_length {
            let room = max_length.saturating_sub(question_tokens.len() + 2);
            (lines, words) = fit(&tokens, lines, (longest, self.trim()), room);
        }
        let stays = |token: &Token| token.row < lines && token.word_at < words;
        tokens.retain(stays);

        let around = options.add_special_tokens.then_some((cls, sep));
        let mut encoding = self.joined(&question_tokens, &tokens, around);
        if let Some(max_length) = options.max_length.filter(|max| encoding.len() > *max) {
            return Err(Error::argument(
                "truncation",
                format!(
                    "the question and the table's header are already {} tokens, more than {max_length}; allow more",
                    encoding.len()
                ),
            ));
        }
        let before = encoding.len() - tokens.len();
        let ranks = Ranks::new(&cells, header.len(), question);
        let mut types = vec![0; before * TYPES];
        for token in &tokens {
            let [rank, inverse, relation] = ranks.of(token.column - 1, token.row);
            types.extend([
                1,
                token.column as i64,
                token.row as i64,
                0,
                rank,
                inverse,
                relation,
            ]);
        }
        let column = ExtraColumn::per_token(types, TYPES, 0);
        encoding.extra.insert("token_type_ids".to_owned(), column);
        self.pad_one(encoding, options)
    }

    /// Returns the question and its tokens: nothing where the tokenizer is made for longer or shorter ones alone.
    fn asked<'a>(&self, question: &'a str) -> Result<(&'a str, tokenizers::Encoding)> {
        let tokens = self.core.engine.encode(question)?;
        let number = |key: &str| {
            self.settings
                .config
                .get(key)
                .and_then(|value| value.as_u64())
        };
        let (least, most) = (number("min_question_length"), number("max_question_length"));
        let length = tokens.len() as u64;
        if least.is_some_and(|least| length < least) || most.is_some_and(|most| length > most) {
            return Ok(("", tokenizers::Encoding::default()));
        }
        Ok((question, tokens))
    }

    /// Returns how many tokens of a cell stay where not all fit; `None` where as many do as fit.
    fn trim(&self) -> Option<usize> {
        let trim = self.settings.config.get("cell_trim_length");
        usize::try_from(trim?.as_i64()?).ok()
    }

    /// Returns how many lines of the table, its header among them, may stay.
    fn most_lines(
        &self,
        header: &[&str],
        cells: &[Vec<&str>],
        options: &EncodeOptions,
    ) -> Result<usize> {
        if let Some(at) = cells.iter().position(|row| row.len() != header.len()) {
            return Err(Error::argument(
                "rows",
                format!(
                    "row {at} has {} cells, but the header has {}",
                    cells[at].len(),
                    header.len()
                ),
            ));
        }
        if header.len() >= self.limit("max_column_id") {
            return Err(Error::argument(
                "header",
                format!("{} columns are too many", header.len()),
            ));
        }
        let most_rows = self.limit("max_row_id");
        if cells.len() >= most_rows {
            if options.max_length.is_none() {
                return Err(Error::argument(
                    "rows",
                    format!(
                        "{} rows are too many; use truncation to drop the last ones",
                        cells.len()
                    ),
                ));
            }
            return Ok(most_rows);
        }
        Ok(cells.len() + 1)
    }

    /// Returns the question and the table's tokens after each other, between the special tokens if there are to be any.
    fn joined(
        &self,
        question: &tokenizers::Encoding,
        tokens: &[Token],
        around: Option<(u32, u32)>,
    ) -> Encoding {
        let mut encoding = Encoding::default();
        let mut push =
            |id: u32, span: (usize, usize), word: Option<u32>, kind: u32, special: u32| {
                encoding.ids.push(id);
                encoding
                    .tokens
                    .push(self.id_to_token(id).unwrap_or_default());
                encoding.attention_mask.push(1);
                encoding.type_ids.push(kind);
                encoding.special_tokens_mask.push(special);
                encoding.offsets.push(span);
                encoding.word_ids.push(word);
            };
        if let Some((cls, _)) = around {
            push(cls, (0, 0), None, 0, 1);
        }
        for at in 0..question.len() {
            let span = question.get_offsets()[at];
            push(
                question.get_ids()[at],
                span,
                question.get_word_ids()[at],
                0,
                0,
            );
        }
        if let Some((_, sep)) = around {
            push(sep, (0, 0), None, 0, 1);
        }
        let mut word = 0;
        for token in tokens {
            word += u32::from(token.begins_word);
            push(token.id, token.span, Some(word), 1, 0);
        }
        encoding
    }

    /// Appends a cell's tokens and gives their number.
    fn tokens_of_cell(
        &self,
        cell: &str,
        column: usize,
        row: usize,
        tokens: &mut Vec<Token>,
    ) -> Result<usize> {
        let encoding = self.core.engine.encode(cell)?;
        let mut word_at = 0;
        let mut word = None;
        for at in 0..encoding.len() {
            let id = encoding.get_ids()[at];
            if !self.continues_word(id) {
                word_at = at;
            }
            let number = encoding.get_word_ids()[at];
            tokens.push(Token {
                id,
                span: encoding.get_offsets()[at],
                begins_word: at == 0 || number != word,
                column,
                row,
                word_at,
            });
            word = number;
        }
        Ok(encoding.len())
    }

    fn limit(&self, key: &str) -> usize {
        let value = self
            .settings
            .config
            .get(key)
            .and_then(serde_json::Value::as_u64);
        value.map_or(MOST, |value| value as usize)
    }

    fn no_tables(&self) -> Error {
        Error::Tokenizer(format!(
            "a {} is not a tokenizer for tables",
            self.class_name()
        ))
    }
}

/// Returns how many lines of the table, the header's among them, and how many pieces up to the last word of a cell, fit
/// into `room` tokens, where cells have up to `longest` pieces. With `trim`, that many pieces stay, and lines alone go.
fn fit(
    tokens: &[Token],
    lines: usize,
    (longest, trim): (usize, Option<usize>),
    room: usize,
) -> (usize, usize) {
    let cost = |lines: usize, words: usize| {
        let kept = tokens
            .iter()
            .filter(|token| token.row < lines && token.word_at < words);
        kept.count()
    };
    let most = longest.min(trim.unwrap_or(longest));
    let mut lines = lines;
    loop {
        let fitting = (0..=most)
            .find(|&words| cost(lines, words + 1) > room)
            .unwrap_or(most);
        let enough = match trim {
            Some(_) => fitting == most,
            None => fitting > 0 || most == 0,
        };
        if enough {
            return (lines, fitting.max(1));
        }
        // The header alone stays where one row does not fit; where there are no rows, not even the header.
        lines = lines.saturating_sub(1);
        if lines < 2 {
            return (lines, 1);
        }
    }
}

/// The numbers and dates in a table's cells.
struct Ranks {
    /// By column, then by row of the body: the rank from the smallest, from the largest, and the relation to the
    /// question.
    by_column: Vec<Vec<[i64; 3]>>,
}

impl Ranks {
    fn new(cells: &[Vec<&str>], columns: usize, question: &str) -> Self {
        let asked = numbers::values(question);
        let by_column = (0..columns).map(|column| {
            let texts: Vec<&str> = cells.iter().map(|row| row[column]).collect();
            let values = numbers::column(&texts);
            let mut numbers = vec![[0; 3]; texts.len()];
            rank(&values, &mut numbers);
            for value in &asked {
                relate(value, &values, &mut numbers);
            }
            numbers
        });
        Self {
            by_column: by_column.collect(),
        }
    }

    /// For a cell by its column from 0 and its row from 1; nothing for the header.
    fn of(&self, column: usize, row: usize) -> [i64; 3] {
        let numbers = row
            .checked_sub(1)
            .and_then(|row| self.by_column[column].get(row));
        numbers.copied().unwrap_or_default()
    }
}

/// Notes the place of each value among the different values of its column, from 1, counted from either end.
fn rank(values: &[Option<Value>], numbers: &mut [[i64; 3]]) {
    let Some(order) = Order::of(values.iter().flatten()) else {
        return;
    };
    let mut sorted: Vec<Value> = values.iter().flatten().copied().collect();
    sorted.sort_by(|left, right| order.compare(left, right));
    sorted.dedup_by(|left, right| order.compare(left, right) == Ordering::Equal);
    for (value, numbers) in values.iter().zip(numbers) {
        if let Some(value) = value {
            let smaller = sorted
                .iter()
                .filter(|other| order.compare(other, value) == Ordering::Less);
            let smaller = smaller.count();
            let rank = |rank: usize| rank.min(MOST - 1) as i64;
            numbers[0] = rank(smaller + 1);
            numbers[1] = rank(sorted.len() - smaller);
        }
    }
}

/// Notes how a value of the question compares with those of a column.
fn relate(asked: &Value, values: &[Option<Value>], numbers: &mut [[i64; 3]]) {
    if values.iter().all(Option::is_none) {
        return;
    }
    let Some(order) = Order::of(values.iter().flatten().chain([asked])) else {
        return;
    };
    for (value, numbers) in values.iter().zip(numbers) {
        if let Some(value) = value {
            numbers[2] |= match order.compare(asked, value) {
                Ordering::Equal => 1,
                Ordering::Less => 2,
                Ordering::Greater => 4,
            };
        }
    }
}
