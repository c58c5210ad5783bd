//! Candidates for masks, with bars for their scores.

use crate::fill_mask::{Prediction, Predictions, PredictionsBatch};
use crate::notebook::Rich;
use crate::notebook::html::{
    Align, BLUE, MONO, MUTED, ORANGE, Table, bar, clip, count, escape, frame, note, thousands,
};

/// How many texts of a batch are shown.
const SHOWN: usize = 20;
/// How many characters of a sequence are shown on each side of the filled-in word.
const AROUND: usize = 150;
/// How wide the bars are.
const SCALE_WIDTH: &str = "120px";

impl Rich for Predictions {
    fn to_html(&self) -> String {
        frame(&block(self))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for PredictionsBatch {
    fn to_html(&self) -> String {
        let mut out = String::new();
        for predictions in self.iter().take(SHOWN) {
            out += &format!(
                "<div style=\"margin-bottom:14px\">{}</div>",
                block(predictions)
            );
        }
        let rest = self.len().saturating_sub(SHOWN);
        if rest > 0 {
            out += &note(&format!("… and {} more", count(rest, "text")));
        }
        frame(&out)
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

fn block(predictions: &Predictions) -> String {
    let mark = format!(
        "<span style=\"{MONO};border:1px solid {ORANGE};background:rgba(232,113,10,.22);border-radius:4px;padding:0 4px\">{}</span>",
        escape(predictions.mask_token())
    );
    let text = clip(predictions.text(), 600);
    let parts: Vec<String> = text.split(predictions.mask_token()).map(escape).collect();
    let mut out = format!(
        "<div style=\"margin:2px 0 6px;white-space:pre-wrap\">{}</div>",
        parts.join(&mark)
    );
    // How many characters stand before and after each mask.
    let places: Vec<(usize, usize)> = predictions
        .text()
        .match_indices(predictions.mask_token())
        .map(|(at, mask)| {
            let (before, rest) = predictions.text().split_at(at);
            (before.chars().count(), rest[mask.len()..].chars().count())
        })
        .collect();
    for (number, candidates) in predictions.masks().iter().enumerate() {
        if predictions.masks().len() > 1 {
            out += &format!(
                "<div style=\"margin:8px 0 2px\">{mark} <b>{}</b> <span style=\"{MUTED}\">of {}</span></div>",
                number + 1,
                predictions.masks().len()
            );
        }
        out += &table(candidates, places.get(number).copied().unwrap_or((0, 0)));
    }
    for warning in predictions.warnings() {
        out += &note(&escape(warning));
    }
    out
}

fn table(candidates: &[Prediction], place: (usize, usize)) -> String {
    let mut table = Table::new([
        ("score".to_owned(), Align::Right),
        (scale(), Align::Left),
        ("token_str".to_owned(), Align::Left),
        ("token".to_owned(), Align::Right),
        ("sequence".to_owned(), Align::Left),
    ]);
    for candidate in candidates {
        table.row(vec![
            score(candidate.score),
            bar(f64::from(candidate.score), SCALE_WIDTH, BLUE),
            format!(
                "<span style=\"{MONO};white-space:pre;background:rgba(128,128,128,.16);border-radius:4px;padding:1px 4px\">{}</span>",
                escape(&candidate.token_str)
            ),
            format!("<span style=\"{MUTED}\">{}</span>", candidate.token),
            // Beside it the other columns leave little room on a narrow page, which then scrolls.
            format!(
                "<div style=\"min-width:{}px\">{}</div>",
                if candidate.sequence.chars().count() > 30 { 260 } else { 0 },
                sequence(&candidate.sequence, &candidate.token_str, place)
            ),
        ]);
    }
    if candidates.is_empty() {
        return note(&format!("{} candidates: top_k is 0", thousands(0)));
    }
    table.to_html()
}

/// Four digits after the point, or a power of ten where those would all be 0.
fn score(score: f32) -> String {
    if score == 0.0 || score >= 5e-5 {
        format!("{score:.4}")
    } else {
        format!("{score:.1e}")
    }
}

/// Returns the title of the bars: a probability of 1 fills one.
fn scale() -> String {
    format!(
        "<div style=\"display:flex;justify-content:space-between;width:{SCALE_WIDTH};font-weight:400;{MUTED}\" \
         title=\"Each bar shows the score: a probability, from 0 to 1.\"><span>0</span><span>1</span></div>"
    )
}

/// Returns the sequence with the filled-in word in bold; a long one is clipped around that word.
///
/// `place` counts the characters of the text before and after the mask. Of all places where the word stands, the word is
/// the one whose distance from the beginning or from the end is nearest to the mask's: a tokenizer may have changed the
/// text on one side (lower case, spaces, special tokens), and the other side still tells.
fn sequence(sequence: &str, token: &str, place: (usize, usize)) -> String {
    let word = token.trim().trim_start_matches("##");
    let total = sequence.chars().count();
    let length = word.chars().count();
    let distance = |at: usize| {
        let before = sequence[..at].chars().count();
        let from_start = before.abs_diff(place.0);
        let from_end = (total - before - length).abs_diff(place.1);
        (from_start.min(from_end), from_start.max(from_end))
    };
    let nearest = sequence
        .match_indices(word)
        .map(|(at, _)| at)
        .min_by_key(|&at| distance(at));
    match nearest.filter(|_| !word.is_empty()) {
        Some(at) => format!(
            "{}<b>{}</b>{}",
            escape(&last(&sequence[..at], AROUND)),
            escape(word),
            escape(&clip(&sequence[at + word.len()..], AROUND))
        ),
        None => escape(&clip(sequence, 2 * AROUND)),
    }
}

/// Returns the last `limit` characters of `text`, after an ellipsis if there are more.
fn last(text: &str, limit: usize) -> String {
    match text.char_indices().rev().nth(limit) {
        Some((at, c)) => format!("…{}", text[at + c.len_utf8()..].trim_start()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_at_the_mask_is_bold() {
        assert_eq!(
            sequence("The round is round.", " round", (13, 1)),
            "The round is <b>round</b>."
        );
        assert_eq!(
            sequence("the round is round.", "round", (4, 10)),
            "the <b>round</b> is round."
        );
        assert_eq!(
            sequence("Way, way, Way", "Way", (10, 0)),
            "Way, way, <b>Way</b>"
        );
        assert_eq!(sequence("a < b", "zebra", (0, 0)), "a &lt; b");
    }

    #[test]
    fn the_word_is_found_even_if_the_tokenizer_changed_its_context() {
        // Twelve spaces before the mask became one, so only the end tells which "is" it is.
        assert_eq!(
            sequence("it is as it is now", "is", (23, 4)),
            "it is as it <b>is</b> now"
        );
        // What follows the mask was cut off: only the beginning tells.
        assert_eq!(
            sequence("it is as it is now", "is", (3, 400)),
            "it <b>is</b> as it is now"
        );
    }

    #[test]
    fn a_long_sequence_is_clipped_around_the_word() {
        let long = format!("{}word {}", "before ".repeat(100), "after ".repeat(100));
        let shown = sequence(&long, "word", (700, 601));
        assert!(shown.contains("before <b>word</b> after"), "{shown}");
        assert!(shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert!(shown.chars().count() < 2 * AROUND + 20, "{shown}");
    }
}
