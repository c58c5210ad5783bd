//! Shows what a masking collator did to a batch.

use super::encoding::{Kind, chips};
use crate::collate::{
    BatchKey, Collator, Examples, IGNORED, IntoExamples, MaskingCollator, MlmBatch,
};
use crate::notebook::Rich;
use crate::notebook::html::{Align, MONO, MUTED, Table, count, frame, heading, note, thousands};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// How many rows are drawn, and how many tokens of each.
const ROWS: usize = 4;
const TOKENS: usize = 128;
/// How many numbers of a bare batch are shown.
const NUMBERS: usize = 16;

/// A masked batch in words: which tokens were chosen, and what became of them. Made by [`MlmBatch::show`].
#[derive(Clone)]
pub struct MaskedBatch {
    rows: Vec<Vec<Place>>,
    seq: usize,
}

/// One token of the batch.
#[derive(Clone)]
struct Place {
    token: String,
    kind: Kind,
    /// What stood here, where it was chosen.
    original: Option<String>,
}

impl MaskingCollator {
    /// Masks the first `count` of `examples` as in an epoch, to be looked at.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
    /// let rows = Dataset::builder().column("input_ids", vec![tokenizer.encode_ids("a spiral galaxy")?]).build()?;
    /// MaskingCollator::new(&tokenizer).preview(&rows, 2)?;
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn preview(&self, examples: impl IntoExamples, count: usize) -> Result<MaskedBatch> {
        let examples = examples.into_examples();
        examples.validate()?;
        let first = (0..examples.len().min(count)).map(|row| examples.get(row));
        let first = first.collect::<Result<Vec<_>>>()?;
        let batch = self.collate(&first, BatchKey::default())?;
        let tokenizer = Collator::tokenizer(self);
        let tokenizer =
            tokenizer.ok_or_else(|| Error::argument("collator", "it has no tokenizer"))?;
        Ok(batch.show(tokenizer))
    }
}

impl MlmBatch {
    /// Returns a display of the batch that highlights masked, replaced and kept tokens.
    pub fn show(&self, tokenizer: &Tokenizer) -> MaskedBatch {
        let special = tokenizer.all_special_ids();
        let mask = tokenizer.mask_token_id();
        let name = |id: u32| {
            tokenizer
                .id_to_token(id)
                .unwrap_or_else(|| format!("#{id}"))
        };
        let place = |i: usize| {
            let id = self.input_ids[i];
            // Labels of another length stand in a column.
            let label = self.labels.get(i).copied();
            let label = label.filter(|&label| label != IGNORED);
            let kind = match label {
                _ if self.attention_mask[i] == 0 => Kind::Padding,
                _ if Some(id) == mask && (label.is_some() || self.labels.is_empty()) => Kind::Mask,
                Some(label) if label == i64::from(id) => Kind::Kept,
                Some(_) => Kind::Replaced,
                None if special.contains(&id) => Kind::Special,
                None => Kind::Plain,
            };
            Place {
                token: name(id),
                kind,
                original: label.and_then(|id| u32::try_from(id).ok()).map(name),
            }
        };
        // Of waveforms there are no tokens to show.
        let rows = if self.input_ids.is_empty() {
            0
        } else {
            self.batch
        };
        let rows = (0..rows).map(|row| {
            let start = row * self.seq;
            (start..start + self.seq).map(place).collect()
        });
        MaskedBatch {
            rows: rows.collect(),
            seq: self.seq,
        }
    }
}

impl MaskedBatch {
    fn number_of(&self, kind: Kind) -> usize {
        let places = self.rows.iter().flatten();
        places.filter(|place| place.kind == kind).count()
    }
}

impl Rich for MlmBatch {
    fn to_html(&self) -> String {
        let mut table = Table::new([("", Align::Left), ("first row", Align::Left)]);
        let mut line = |name: &str, values: Vec<String>| {
            let more = if self.seq > NUMBERS { " …" } else { "" };
            let name = format!("<span style=\"{MONO}\">{name}</span>");
            table.row(vec![name, format!("{}{more}", values.join(" "))]);
        };
        let first = ..self.seq.min(NUMBERS).min(self.input_ids.len());
        let words = |values: &[u32]| values.iter().map(u32::to_string).collect();
        line("input_ids", words(&self.input_ids[first]));
        line("attention_mask", words(&self.attention_mask[first]));
        if let Some(ids) = &self.token_type_ids {
            line("token_type_ids", words(&ids[first]));
        }
        line(
            "labels",
            (self.label_values().iter().take(NUMBERS))
                .map(i64::to_string)
                .collect(),
        );
        let further = self.columns.iter().filter(|(name, _)| *name != "labels");
        for (name, column) in further {
            line(name, vec![format!("of the shape {:?}", column.shape)]);
        }
        let what = if self.input_ids.is_empty() {
            "samples"
        } else {
            "tokens"
        };
        let title = heading(
            &format!("batch of {} × {} {what}", self.batch, self.seq),
            &format!("{} asked for", thousands(self.counted_tokens())),
        );
        let hint = note("batch.show(&amp;tokenizer) shows the tokens, masked ones in colour");
        frame(&(title + &table.to_html() + &hint))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for MaskedBatch {
    fn to_html(&self) -> String {
        let padding = self.number_of(Kind::Padding);
        let tokens = self.rows.len() * self.seq - padding;
        let kinds = [
            (Kind::Mask, "masked"),
            (Kind::Replaced, "replaced by another token"),
            (Kind::Kept, "kept, but asked for"),
        ];
        let chosen: usize = kinds.iter().map(|&(kind, _)| self.number_of(kind)).sum();
        let share = 100.0 * chosen as f64 / tokens.max(1) as f64;
        let title = heading(
            &format!("batch of {} × {} tokens", self.rows.len(), self.seq),
            &format!(
                "{} of {} chosen ({share:.1}%), {padding} padding",
                thousands(chosen),
                count(tokens, "token")
            ),
        );
        let mut legend = String::new();
        for (kind, name) in kinds {
            legend += &format!(
                "<span style=\"display:inline-block;border-radius:4px;padding:0 6px;margin-right:8px;{}\">{} {name}</span>",
                kind.style(),
                thousands(self.number_of(kind))
            );
        }
        let mut rows = String::new();
        for row in self.rows.iter().take(ROWS) {
            rows += "<div style=\"margin-top:8px\">";
            rows += &chips(row.iter().take(TOKENS).map(|place| {
                let below = place.original.as_deref().unwrap_or("\u{a0}");
                (place.token.as_str(), place.kind, below.to_owned())
            }));
            if row.len() > TOKENS {
                rows += &format!(
                    " <span style=\"{MUTED}\">… {} more</span>",
                    row.len() - TOKENS
                );
            }
            rows += "</div>";
        }
        if self.rows.len() > ROWS {
            rows += &note(&format!(
                "… and {}",
                count(self.rows.len() - ROWS, "more row")
            ));
        }
        frame(&format!("{title}<div>{legend}</div>{rows}"))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl std::fmt::Debug for MaskedBatch {
    /// Returns the tokens of each row; chosen ones as `new token ← original token`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "batch of {} × {} tokens", self.rows.len(), self.seq)?;
        for row in self.rows.iter().take(ROWS) {
            f.write_str("\n ")?;
            for place in row.iter().take(TOKENS) {
                match &place.original {
                    _ if place.kind == Kind::Padding => {}
                    Some(original) => write!(f, " [{} ← {original}]", place.token)?,
                    None => write!(f, " {}", place.token)?,
                }
            }
        }
        if self.rows.len() > ROWS {
            write!(f, "\n  ... and {} more rows", self.rows.len() - ROWS)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Column;

    #[test]
    fn a_batch_of_waveforms_displays_its_columns() {
        let batch = MlmBatch::from_waveforms(vec![0.0; 6], (2, 3)).unwrap();
        let labels = Column::ids(vec![5, 6], [2, 1]).unwrap();
        let batch = batch.with_column("labels", labels);
        let html = batch.to_html();
        for words in ["2 × 3 samples", "input_values", "[2, 3]", "2 asked for"] {
            assert!(html.contains(words), "{words}: {html}");
        }
        let tokenizer = Tokenizer::train_letters(["ab"]).unwrap();
        assert!(batch.show(&tokenizer).rows.is_empty());
        let unlabelled = MlmBatch::new(vec![5, 6], (1, 2)).unwrap();
        assert_eq!(unlabelled.show(&tokenizer).rows.len(), 1);
    }
}
