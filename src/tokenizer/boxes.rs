//! LayoutLM: the words of a page, each with its bounding box.

use super::column::Windows;
use super::encode::kept;
use super::{EncodeOptions, Encoding, ExtraColumn, Tokenizer};
use crate::dataset::{Batch, BatchFunction};
use crate::{Error, Result};

/// A box on a page: left, upper, right and lower edge, counted from the upper left corner.
pub type WordBox = [i64; 4];

/// The page is this wide and high for the model, whatever its paper.
const PAGE: i64 = 1000;

/// The model's input.
const BBOX: &str = "bbox";

/// A piece of a word, and the box of the word.
#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    /// Its place within the word.
    span: (usize, usize),
    /// `None` for a special token.
    word: Option<u32>,
    at: WordBox,
}

/// Returns `bbox`, in the units of a page of that width and height (pixels, points), in thousandths of the page, rounded down.
///
/// # Errors
/// When the page has no size, the box has its edges in the wrong order, or reaches beyond the page.
///
/// ```
/// use cloze::tokenizer::normalize_box;
/// assert_eq!(normalize_box([60, 20, 120, 40], (600, 800))?, [100, 25, 200, 50]);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn normalize_box(bbox: WordBox, (width, height): (i64, i64)) -> Result<WordBox> {
    if width <= 0 || height <= 0 {
        return Err(Error::argument(
            "page",
            format!("a page of {width} by {height} has no room for words"),
        ));
    }
    check(bbox, (width, height)).map_err(|message| Error::argument("bbox", message))?;
    // Edges of pages are far below what would overflow; damaged ones are refused above.
    let share = |edge: i64, of: i64| (i128::from(edge) * i128::from(PAGE) / i128::from(of)) as i64;
    let [x0, y0, x1, y1] = bbox;
    Ok([
        share(x0, width),
        share(y0, height),
        share(x1, width),
        share(y1, height),
    ])
}

/// Checks that a box is on a page of that width and height; returns the reason if not.
fn check(bbox: WordBox, (width, height): (i64, i64)) -> Result<(), String> {
    let [x0, y0, x1, y1] = bbox;
    if 0 <= x0 && x0 <= x1 && x1 <= width && 0 <= y0 && y0 <= y1 && y1 <= height {
        return Ok(());
    }
    Err(format!(
        "{bbox:?} is not a box [x0, y0, x1, y1] with 0 <= x0 <= x1 <= {width} and 0 <= y0 <= y1 <= {height}"
    ))
}

impl Tokenizer {
    /// Encodes the words of a page with their boxes, for LayoutLM.
    ///
    /// Every piece of a word gets the word's box, tokens before the text get [0, 0, 0, 0] and tokens after it [1000,
    /// 1000, 1000, 1000]: the encoding's [extra](Encoding::extra) column `bbox`. Boxes are in thousandths of the page;
    /// [`normalize_box`] converts them from pixels. Offsets are relative to the word.
    ///
    /// # Errors
    /// When there are not as many boxes as words, or one does not lie on the page.
    pub fn encode_boxes<W: AsRef<str>>(
        &self,
        words: &[W],
        boxes: &[WordBox],
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        let pieces = self.words_in_boxes(words, boxes)?;
        let mut window = 0..pieces.len();
        if let Some(most) = options.max_length {
            let (before, after) = self.around(options);
            let room = most.saturating_sub(before.len() + after.len());
            let (keep, _) = kept((pieces.len(), None), room, options.strategy, true)?;
            window = match self.settings.truncate_left {
                true => pieces.len() - keep..pieces.len(),
                false => 0..keep,
            };
        }
        self.encode_pieces(&pieces[window], options)
    }

    /// Returns the special tokens before and after a text.
    fn around(&self, options: &EncodeOptions) -> (&[u32], &[u32]) {
        match options.add_special_tokens {
            true => (&self.post.around.0, &self.post.around.1),
            false => (&[], &[]),
        }
    }

    /// Returns the pieces of all words, each with the box of its word.
    fn words_in_boxes<W: AsRef<str>>(&self, words: &[W], boxes: &[WordBox]) -> Result<Vec<Piece>> {
        if words.len() != boxes.len() {
            return Err(Error::argument(
                "boxes",
                format!(
                    "{} boxes for {} words; give one per word",
                    boxes.len(),
                    words.len()
                ),
            ));
        }
        let mut pieces = Vec::new();
        for (number, (word, &at)) in words.iter().zip(boxes).enumerate() {
            check(at, (PAGE, PAGE)).map_err(|message| {
                Error::argument(
                    "boxes",
                    format!("word {number}, {:?}: {message}", word.as_ref()),
                )
            })?;
            let tokens = self.core.engine.encode(word.as_ref())?;
            let ids = tokens.get_ids().iter().zip(tokens.get_offsets());
            pieces.extend(ids.map(|(&id, &span)| Piece {
                id,
                span,
                word: Some(number as u32),
                at,
            }));
        }
        Ok(pieces)
    }

    /// Puts the special tokens around pieces, and pads.
    fn encode_pieces(&self, pieces: &[Piece], options: &EncodeOptions) -> Result<Encoding> {
        let special = |at: WordBox| {
            move |&id: &u32| Piece {
                id,
                span: (0, 0),
                word: None,
                at,
            }
        };
        let (before, after) = self.around(options);
        let all = (before.iter().map(special([0; 4])))
            .chain(pieces.iter().copied())
            .chain(after.iter().map(special([PAGE; 4])));
        let mut encoding = Encoding::default();
        let mut bbox: Vec<WordBox> = Vec::new();
        for piece in all {
            encoding.ids.push(piece.id);
            let token = self.id_to_token(piece.id);
            encoding.tokens.push(token.unwrap_or_default());
            encoding.attention_mask.push(1);
            encoding.type_ids.push(0);
            let is_special = u32::from(piece.word.is_none());
            encoding.special_tokens_mask.push(is_special);
            encoding.offsets.push(piece.span);
            encoding.word_ids.push(piece.word);
            bbox.push(piece.at);
        }
        let column = ExtraColumn::per_token(bbox.concat(), 4, 0);
        encoding.extra.insert(BBOX.to_owned(), column);
        self.pad_one(encoding, options)
    }

    /// Returns the function for [`Dataset::map`](crate::dataset::Dataset::map) that makes LayoutLM's inputs of the columns
    /// `words` (`list<string>`) and `boxes` (`list<list<int64>>`, four numbers a word): `input_ids`, `attention_mask` and
    /// `bbox`.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokenizer = Tokenizer::train_wordpiece(["total sum of the bill", "total sum"], 60, true)?;
    /// let pages = Dataset::builder()
    ///     .column("words", vec![vec!["total", "sum"]])
    ///     .column("bboxes", vec![vec![vec![60i64, 20, 120, 40], vec![130, 20, 180, 40]]])
    ///     .column("width", vec![600i64])
    ///     .column("height", vec![800i64])
    ///     .build()?;
    /// let inputs = tokenizer.tokenize_boxes("words", "bboxes").page("width", "height");
    /// let inputs = pages.map(Map::new(inputs).batched().remove_columns(pages.column_names()))?;
    /// let boxes = inputs.column::<Vec<Vec<i64>>>("bbox")?;
    /// assert_eq!(boxes[0][0], [0, 0, 0, 0]);
    /// assert_eq!(boxes[0][1], [100, 25, 200, 50]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn tokenize_boxes(
        &self,
        words: impl Into<String>,
        boxes: impl Into<String>,
    ) -> TokenizeBoxes {
        TokenizeBoxes {
            tokenizer: self.clone(),
            words: words.into(),
            boxes: boxes.into(),
            page: None,
            max_length: None,
            stride: None,
        }
    }
}

/// Tokenizes words with their boxes; made by [`Tokenizer::tokenize_boxes`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
///
/// ```
/// use cloze::prelude::*;
///
/// # let tokenizer = Tokenizer::train_wordpiece(["total sum of the bill"], 60, true)?;
/// let pages = Dataset::builder()
///     .column("words", vec![vec!["total", "sum"]])
///     .column("boxes", vec![vec![vec![60i64, 20, 120, 40], vec![130, 20, 180, 40]]])
///     .build()?;
/// let inputs = tokenizer.tokenize_boxes("words", "boxes").max_length(512);
/// let inputs = pages.map(Map::new(inputs).batched().remove_all_columns())?;
/// assert_eq!(inputs.column_names(), ["input_ids", "attention_mask", "bbox"]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TokenizeBoxes {
    tokenizer: Tokenizer,
    words: String,
    boxes: String,
    page: Option<(String, String)>,
    max_length: Option<usize>,
    stride: Option<usize>,
}

impl TokenizeBoxes {
    /// Sets the columns with the width and height of each row's page, whose units its boxes are in (default: boxes are
    /// in thousandths of the page already).
    #[must_use]
    pub fn page(mut self, width: impl Into<String>, height: impl Into<String>) -> Self {
        self.page = Some((width.into(), height.into()));
        self
    }

    /// Cuts pages to at most this many tokens (default: nothing is cut).
    #[must_use]
    pub fn max_length(mut self, max_length: usize) -> Self {
        self.max_length = Some(max_length);
        self
    }

    /// Keeps the tokens that [`max_length`](Self::max_length) cuts off in further rows. Each begins with the last
    /// `stride` tokens of the row before it (default: the rest is dropped).
    #[must_use]
    pub fn stride(mut self, stride: usize) -> Self {
        self.stride = Some(stride);
        self
    }

    /// Returns the boxes of a row, in thousandths of its page.
    fn boxes_of(&self, row: &[Vec<i64>], page: Option<(i64, i64)>) -> Result<Vec<WordBox>> {
        let bbox = |numbers: &Vec<i64>| {
            let bbox = WordBox::try_from(numbers.as_slice()).map_err(|_| {
                Error::Dataset(format!(
                    "a box of the column {:?} has {} numbers, and needs 4: [x0, y0, x1, y1]",
                    self.boxes,
                    numbers.len()
                ))
            })?;
            page.map_or(Ok(bbox), |page| normalize_box(bbox, page))
        };
        row.iter().map(bbox).collect()
    }
}

impl BatchFunction for TokenizeBoxes {
    fn call(&self, batch: &Batch) -> Result<Batch> {
        let words: Vec<Vec<String>> = batch.column(&self.words)?;
        let boxes: Vec<Vec<Vec<i64>>> = batch.column(&self.boxes)?;
        let pages: Option<Vec<(i64, i64)>> = match &self.page {
            Some((width, height)) => {
                let heights: Vec<i64> = batch.column(height)?;
                let widths: Vec<i64> = batch.column(width)?;
                Some(widths.into_iter().zip(heights).collect())
            }
            None => None,
        };
        let options = EncodeOptions::new();
        let (before, after) = self.tokenizer.around(&options);
        let added = before.len() + after.len();
        let windows = self
            .max_length
            .map(|most| Windows::new(most, added, self.stride))
            .transpose()?;
        let (mut ids, mut masks, mut bbox) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (words, boxes)) in words.iter().zip(&boxes).enumerate() {
            let page = pages.as_ref().map(|pages| pages[row]);
            let pieces = self
                .boxes_of(boxes, page)
                .and_then(|boxes| self.tokenizer.words_in_boxes(words, &boxes))
                .map_err(|error| {
                    Error::Dataset(format!("row {}: {error}", batch.rows().start + row))
                })?;
            let parts = match &windows {
                Some(windows) => windows.of(pieces.len(), self.tokenizer.settings.truncate_left),
                None => std::iter::once(0..pieces.len()).collect(),
            };
            for part in parts {
                let encoding = self.tokenizer.encode_pieces(&pieces[part], &options)?;
                masks.push(vec![1i8; encoding.len()]);
                ids.push(encoding.ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
                let places = encoding.extra[BBOX].values.chunks(4);
                bbox.push(places.map(<[i64]>::to_vec).collect::<Vec<_>>());
            }
        }
        Batch::new()
            .with_column("input_ids", ids)?
            .with_column("attention_mask", masks)?
            .with_column(BBOX, bbox)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!(
            "tokenize_boxes({:?}, {:?}, page {:?}, max_length {:?}, stride {:?}) with {}",
            self.words,
            self.boxes,
            self.page,
            self.max_length,
            self.stride,
            self.tokenizer.fingerprint()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, Map};
    use crate::tokenizer::Padding;

    fn tokenizer() -> Tokenizer {
        let texts = ["invoice total sum", "invoice total", "sum of all"];
        Tokenizer::train_wordpiece(texts, 40, true).unwrap()
    }

    #[test]
    fn every_piece_has_the_box_of_its_word() {
        let tokenizer = tokenizer();
        let words = ["Invoice", "xo", "sum"];
        let boxes = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 1000, 1000]];
        let encoding = tokenizer
            .encode_boxes(&words, &boxes, &EncodeOptions::new())
            .unwrap();
        // The same tokens as the words have by themselves.
        let alone: Vec<String> = words
            .iter()
            .flat_map(|word| tokenizer.tokenize(word).unwrap())
            .collect();
        let inner = &encoding.tokens[1..encoding.len() - 1];
        assert_eq!(inner, alone);
        assert_eq!((encoding.tokens[0].as_str(), encoding.ids[0]), ("[CLS]", 2));
        let places: Vec<&[i64]> = encoding.extra["bbox"].values.chunks(4).collect();
        assert_eq!(places[0], [0; 4]);
        assert_eq!(places[encoding.len() - 1], [1000; 4]);
        for (word, place) in encoding.word_ids.iter().zip(&places) {
            if let Some(word) = word {
                assert_eq!(*place, boxes[*word as usize]);
            }
        }
        let options = EncodeOptions::new()
            .truncation(4)
            .padding(Padding::MaxLength(6));
        let cut = tokenizer.encode_boxes(&words, &boxes, &options).unwrap();
        assert_eq!(cut.ids[..3], encoding.ids[..3]);
        assert_eq!(cut.extra["bbox"].values.len(), 24);
        assert_eq!(
            cut.extra["bbox"].values[12..],
            [1000, 1000, 1000, 1000, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn the_rest_of_a_long_page_follows_in_further_rows_with_its_boxes() {
        let tokenizer = tokenizer();
        let words = vec!["invoice", "xo", "total", "sum", "of", "oxo", "all"];
        let boxes: Vec<WordBox> = (0..7).map(|i| [i, 10 * i, 20 + i, 30 + 10 * i]).collect();
        let whole = tokenizer
            .encode_boxes(&words, &boxes, &EncodeOptions::new())
            .unwrap();
        let of_page: Vec<Vec<i64>> = boxes.iter().map(|at| at.to_vec()).collect();
        let pages = Dataset::builder()
            .column("words", vec![words, vec![]])
            .column("boxes", vec![of_page, vec![]])
            .build()
            .unwrap();
        let rows = |stride: Option<usize>| {
            let mut function = tokenizer.tokenize_boxes("words", "boxes").max_length(7);
            function.stride = stride;
            let map = Map::new(function).batched().cache(false);
            pages.map(map.remove_columns(["words", "boxes"]))
        };
        let cut = rows(None).unwrap();
        assert_eq!(cut.len(), 2);
        let rows_of = rows(Some(2)).unwrap();
        let ids: Vec<Vec<u32>> = rows_of.column("input_ids").unwrap();
        let places: Vec<Vec<Vec<i64>>> = rows_of.column("bbox").unwrap();
        assert_eq!(ids[0], cut.column::<Vec<u32>>("input_ids").unwrap()[0]);
        let inner = whole.len() - 2;
        // Five pieces a row, three of them new; and the empty page.
        assert_eq!(ids.len(), 1 + (inner - 5).div_ceil(3) + 1);
        assert_eq!(ids.last().unwrap().len(), 2);
        for (row, (ids, places)) in ids.iter().zip(&places).enumerate().take(ids.len() - 1) {
            let own = ids.len() - 2;
            let from = 1 + 3 * row;
            assert_eq!(ids[1..=own], whole.ids[from..from + own]);
            assert_eq!(
                places[1..=own].concat(),
                whole.extra["bbox"].values[4 * from..4 * (from + own)]
            );
            assert_eq!(places[0], [0; 4]);
            assert_eq!(places[own + 1], [1000; 4]);
        }
        let error = rows(Some(5)).unwrap_err().to_string();
        assert!(error.contains("stride"), "{error}");
    }

    #[test]
    fn boxes_outside_the_page_and_missing_boxes_are_reported() {
        let tokenizer = tokenizer();
        let options = EncodeOptions::new();
        for bbox in [[3, 0, 2, 5], [0, 0, 1001, 5], [-1, 0, 2, 5], [0, 9, 2, 5]] {
            let error = tokenizer
                .encode_boxes(&["sum"], &[bbox], &options)
                .unwrap_err()
                .to_string();
            assert!(error.contains("word 0, \"sum\""), "{error}");
        }
        assert!(
            tokenizer
                .encode_boxes(&["sum", "all"], &[[0; 4]], &options)
                .is_err()
        );
        assert!(normalize_box([0, 0, 601, 5], (600, 800)).is_err());
        assert!(normalize_box([0, 0, 1, 1], (0, 800)).is_err());
        let most = i64::MAX;
        assert_eq!(
            normalize_box([0, 0, most, most], (most, most)).unwrap(),
            [0, 0, 1000, 1000]
        );
    }
}
