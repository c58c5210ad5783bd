//! The results: candidates for every mask of a text.

use std::fmt;
use std::ops::{Deref, Index};

use serde::{Serialize, Serializer};

use crate::Result;

/// One candidate for one mask.
///
/// ```
/// use cloze::prelude::*;
///
/// let guesses = FillMask::from_pretrained("bundled:tiny_roberta")?.fill("Paris is the capital of <mask>.")?;
/// for Prediction { score, token, token_str, sequence } in &guesses {
///     println!("{score:.3} {token:>6} {token_str:?}: {sequence}");
/// }
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The probability of the token at the mask, over the whole vocabulary.
    pub score: f32,
    /// The token's id.
    pub token: u32,
    /// The token as text, with the space before it where the vocabulary has one.
    pub token_str: String,
    /// The text with the mask filled in; special tokens are shown only when there are several masks.
    pub sequence: String,
}

/// The candidates for the masks of one text, best first.
///
/// For a text with one mask this is a list: `predictions[0].token_str`, `for p in &predictions`. With several masks
/// [`Predictions::masks`] has one list for each, and indexing and iterating go through them one after the other.
/// Serialized, it has transformers' form: a list of records, or a list of such lists.
///
/// ```
/// use cloze::prelude::*;
///
/// let predictions = FillMask::from_pretrained("bundled:tiny_roberta")?.fill("Paris is the capital of <mask>.")?;
/// let first = &predictions[0];
/// println!("{} {:.3}", first.token_str, first.score);
/// assert!(predictions.iter().all(|other| other.score <= first.score));
/// assert!(first.sequence.starts_with("Paris is the capital of"));
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Predictions {
    text: String,
    mask_token: String,
    masks: Vec<Vec<Prediction>>,
    warnings: Vec<String>,
}

impl Predictions {
    pub(super) fn new(
        text: String,
        mask_token: String,
        masks: Vec<Vec<Prediction>>,
        warnings: Vec<String>,
    ) -> Self {
        Self {
            text,
            mask_token,
            masks,
            warnings,
        }
    }

    /// Returns the text that was given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the tokenizer's mask token.
    pub fn mask_token(&self) -> &str {
        &self.mask_token
    }

    /// Returns one list of candidates for each mask, in the order of the text.
    pub fn masks(&self) -> &[Vec<Prediction>] {
        &self.masks
    }

    /// Returns the number of candidates, of all masks together.
    pub fn len(&self) -> usize {
        self.masks.iter().map(Vec::len).sum()
    }

    /// Returns whether there are no candidates: with a `top_k` of 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the candidates of all masks, one after the other.
    pub fn iter(&self) -> std::iter::Flatten<std::slice::Iter<'_, Vec<Prediction>>> {
        self.masks.iter().flatten()
    }

    /// Returns the assumptions made about the targets.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the predictions as indented JSON, in transformers' form.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

impl Index<usize> for Predictions {
    type Output = Prediction;

    /// Candidate `index`, counted through all masks.
    ///
    /// # Panics
    /// If there are not that many.
    fn index(&self, index: usize) -> &Prediction {
        let len = self.len();
        match self.iter().nth(index) {
            Some(prediction) => prediction,
            None => panic!("there is no prediction {index}: there are {len}, numbered from 0"),
        }
    }
}

impl<'a> IntoIterator for &'a Predictions {
    type Item = &'a Prediction;
    type IntoIter = std::iter::Flatten<std::slice::Iter<'a, Vec<Prediction>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Serialize for Predictions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.masks.as_slice() {
            [single] => single.serialize(serializer),
            several => several.serialize(serializer),
        }
    }
}

impl fmt::Debug for Predictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.text)?;
        for (number, mask) in self.masks.iter().enumerate() {
            if self.masks.len() > 1 {
                write!(f, "\n{} {}", self.mask_token, number + 1)?;
            }
            let shown = |prediction: &Prediction| format!("{:?}", prediction.token_str);
            let width = mask.iter().map(|p| shown(p).chars().count()).max();
            let width = width.unwrap_or(0);
            for prediction in mask {
                let token = shown(prediction);
                let score = prediction.score;
                write!(
                    f,
                    "\n  {score:.4}  {token:<width$}  {}",
                    prediction.sequence
                )?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Predictions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The predictions for many texts, in the order of the texts; used as a slice of [`Predictions`].
///
/// ```
/// use cloze::prelude::*;
///
/// let texts = ["Paris is the capital of <mask>.", "A <mask> has four legs."];
/// let batch = FillMask::from_pretrained("bundled:tiny_roberta")?.fill_batch(&texts)?;
/// assert_eq!(batch.len(), 2);
/// assert_eq!(batch[1].text(), texts[1]);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct PredictionsBatch {
    texts: Vec<Predictions>,
}

impl PredictionsBatch {
    pub(super) fn new(texts: Vec<Predictions>) -> Self {
        Self { texts }
    }

    /// Returns the predictions as indented JSON, in transformers' form.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)?)
    }
}

impl Deref for PredictionsBatch {
    type Target = [Predictions];

    fn deref(&self) -> &[Predictions] {
        &self.texts
    }
}

impl IntoIterator for PredictionsBatch {
    type Item = Predictions;
    type IntoIter = std::vec::IntoIter<Predictions>;

    fn into_iter(self) -> Self::IntoIter {
        self.texts.into_iter()
    }
}

impl<'a> IntoIterator for &'a PredictionsBatch {
    type Item = &'a Predictions;
    type IntoIter = std::slice::Iter<'a, Predictions>;

    fn into_iter(self) -> Self::IntoIter {
        self.texts.iter()
    }
}

impl fmt::Debug for PredictionsBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, predictions) in self.texts.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{predictions:?}")?;
        }
        Ok(())
    }
}
