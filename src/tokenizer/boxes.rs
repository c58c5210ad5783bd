//! LayoutLM: the words of a page, each with the box that it stands in.

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

/// Returns whether a box lies on a page of that width and height; in words if not.
fn check(bbox: WordBox, (width, height): (i64, i64)) -> Result<(), String> {
    let [x0, y0, x1, y1] = bbox;
    if 0 <= x0 && x0 <= x1 && x1 <= width && 0 <= y0 && y0 <= y1 && y1 <= height {
        return Ok(());
    }
    Err(format!(
        "{bbox:?} is no box [x0, y0, x1, y1] with 0 <= x0 <= x1 <= {width} and 0 <= y0 <= y1 <= {height}"
    ))
}

impl Tokenizer {
    /// Encodes the words of a page with their boxes, for LayoutLM.
    ///
    /// Every piece of a word gets the word's box, tokens before the text get [0, 0, 0, 0] and tokens behind it [1000, 1000,
    /// 1000, 1000]: the encoding's [extra](Encoding::extra) column `bbox`. Boxes are in thousandths of the page;
    /// [`normalize_box`] makes them of pixels. Offsets are those within a word.
    ///
    /// # Errors
    /// When there are not as many boxes as words, or one does not lie on the page.
    pub fn encode_boxes<W: AsRef<str>>(
        &self,
        words: &[W],
        boxes: &[WordBox],
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        if words.len() != boxes.len() {
            return Err(Error::argument(
                "boxes",
                format!(
                    "{} boxes for {} words; give one a word",
                    boxes.len(),
                    words.len()
                ),
            ));
        }
        let mut encoding = Encoding::default();
        let mut bbox: Vec<WordBox> = Vec::new();
        let mut push = |id: u32, span: (usize, usize), word: Option<u32>, at: WordBox| {
            encoding.ids.push(id);
            encoding
                .tokens
                .push(self.id_to_token(id).unwrap_or_default());
            encoding.attention_mask.push(1);
            encoding.type_ids.push(0);
            encoding.special_tokens_mask.push(u32::from(word.is_none()));
            encoding.offsets.push(span);
            encoding.word_ids.push(word);
            bbox.push(at);
        };
        let (before, after) = match options.add_special_tokens {
            true => (&self.post.around.0[..], &self.post.around.1[..]),
            false => (&[][..], &[][..]),
        };
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
            pieces.extend(ids.map(|(&id, &span)| (id, span, Some(number as u32), at)));
        }
        if let Some(most) = options.max_length {
            let room = most.saturating_sub(before.len() + after.len());
            let (keep, _) = kept((pieces.len(), None), room, options.strategy, true)?;
            pieces.truncate(keep);
        }
        before.iter().for_each(|&id| push(id, (0, 0), None, [0; 4]));
        pieces
            .into_iter()
            .for_each(|(id, span, word, at)| push(id, span, word, at));
        after
            .iter()
            .for_each(|&id| push(id, (0, 0), None, [PAGE; 4]));
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
        }
    }
}

/// Tokenizes words with their boxes; made by [`Tokenizer::tokenize_boxes`] for
/// [`Dataset::map`](crate::dataset::Dataset::map).
#[derive(Clone, Debug)]
pub struct TokenizeBoxes {
    tokenizer: Tokenizer,
    words: String,
    boxes: String,
    page: Option<(String, String)>,
    max_length: Option<usize>,
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
        let mut options = EncodeOptions::new();
        if let Some(max_length) = self.max_length {
            options = options.truncation(max_length);
        }
        let (mut ids, mut masks, mut bbox) = (Vec::new(), Vec::new(), Vec::new());
        for (row, (words, boxes)) in words.iter().zip(&boxes).enumerate() {
            let page = pages.as_ref().map(|pages| pages[row]);
            let encoding = self
                .boxes_of(boxes, page)
                .and_then(|boxes| self.tokenizer.encode_boxes(words, &boxes, &options))
                .map_err(|error| {
                    Error::Dataset(format!("row {}: {error}", batch.rows().start + row))
                })?;
            masks.push(vec![1i8; encoding.len()]);
            ids.push(encoding.ids.iter().map(|&id| id as i32).collect::<Vec<_>>());
            let places = encoding.extra[BBOX].values.chunks(4);
            bbox.push(places.map(<[i64]>::to_vec).collect::<Vec<_>>());
        }
        Batch::new()
            .with_column("input_ids", ids)?
            .with_column("attention_mask", masks)?
            .with_column(BBOX, bbox)
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!(
            "tokenize_boxes({:?}, {:?}, page {:?}, max_length {:?}) with {}",
            self.words,
            self.boxes,
            self.page,
            self.max_length,
            self.tokenizer.fingerprint()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
    fn boxes_off_the_page_and_too_few_of_them_are_told() {
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
