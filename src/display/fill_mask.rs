//! Candidates for masks, with bars for their scores.

use crate::fill_mask::{Prediction, Predictions, PredictionsBatch};
use crate::notebook::Rich;
use crate::notebook::html::{
    Align, BLUE, MONO, MUTED, ORANGE, Table, bar, clip, count, escape, frame, note, thousands,
};

/// How many texts of a batch are shown.
const SHOWN: usize = 20;

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
    // Where each mask stands, counted in characters.
    let places: Vec<usize> = predictions
        .text()
        .match_indices(predictions.mask_token())
        .map(|(at, _)| predictions.text()[..at].chars().count())
        .collect();
    for (number, candidates) in predictions.masks().iter().enumerate() {
        if predictions.masks().len() > 1 {
            out += &format!(
                "<div style=\"margin:8px 0 2px\">{mark} <b>{}</b> <span style=\"{MUTED}\">of {}</span></div>",
                number + 1,
                predictions.masks().len()
            );
        }
        out += &table(candidates, places.get(number).copied().unwrap_or(0));
    }
    for warning in predictions.warnings() {
        out += &note(&escape(warning));
    }
    out
}

fn table(candidates: &[Prediction], place: usize) -> String {
    let mut table = Table::new([
        ("score", Align::Right),
        ("", Align::Left),
        ("token_str", Align::Left),
        ("token", Align::Right),
        ("sequence", Align::Left),
    ]);
    for candidate in candidates {
        table.row(vec![
            score(candidate.score),
            // The whole bar is a probability of 1.
            bar(f64::from(candidate.score), "120px", BLUE),
            format!(
                "<span style=\"{MONO};white-space:pre;background:rgba(128,128,128,.16);border-radius:4px;padding:1px 4px\">{}</span>",
                escape(&candidate.token_str)
            ),
            format!("<span style=\"{MUTED}\">{}</span>", candidate.token),
            sequence(&candidate.sequence, &candidate.token_str, place),
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

/// The sequence, with the filled-in word in bold: of all places where the word stands, the one nearest to the mask's.
/// A tokenizer may have changed the text before it, but not by much.
fn sequence(sequence: &str, token: &str, place: usize) -> String {
    let sequence = clip(sequence, 300);
    let word = token.trim().trim_start_matches("##");
    let nearest = sequence
        .match_indices(word)
        .map(|(at, _)| at)
        .min_by_key(|&at| sequence[..at].chars().count().abs_diff(place));
    match nearest.filter(|_| !word.is_empty()) {
        Some(at) => format!(
            "{}<b>{}</b>{}",
            escape(&sequence[..at]),
            escape(word),
            escape(&sequence[at + word.len()..])
        ),
        None => escape(&sequence),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_at_the_mask_is_bold_wherever_else_it_stands() {
        assert_eq!(
            sequence("The round is round.", " round", 13),
            "The round is <b>round</b>."
        );
        assert_eq!(
            sequence("the round is round.", "round", 4),
            "the <b>round</b> is round."
        );
        assert_eq!(sequence("Way, way, Way", "Way", 99), "Way, way, <b>Way</b>");
        assert_eq!(sequence("a < b", "zebra", 0), "a &lt; b");
    }
}
