//! Candidates for masks, with bars for their scores.

use super::Rich;
use super::html::{
    Align, BLUE, MONO, MUTED, ORANGE, Table, bar, clip, count, escape, frame, note, thousands,
};
use crate::fill_mask::{Prediction, Predictions, PredictionsBatch};

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
    let highest = predictions.iter().map(|p| p.score).fold(0.0, f32::max);
    for (number, candidates) in predictions.masks().iter().enumerate() {
        if predictions.masks().len() > 1 {
            out += &format!(
                "<div style=\"margin:8px 0 2px\">{mark} <b>{}</b> <span style=\"{MUTED}\">of {}</span></div>",
                number + 1,
                predictions.masks().len()
            );
        }
        out += &table(candidates, highest);
    }
    for warning in predictions.warnings() {
        out += &note(&escape(warning));
    }
    out
}

fn table(candidates: &[Prediction], highest: f32) -> String {
    let mut table = Table::new([
        ("score", Align::Right),
        ("", Align::Left),
        ("token_str", Align::Left),
        ("token", Align::Right),
        ("sequence", Align::Left),
    ]);
    for candidate in candidates {
        let share = f64::from(candidate.score / highest.max(f32::MIN_POSITIVE));
        table.row(vec![
            score(candidate.score),
            bar(share, "120px", BLUE),
            format!(
                "<span style=\"{MONO};white-space:pre;background:rgba(128,128,128,.16);border-radius:4px;padding:1px 4px\">{}</span>",
                escape(&candidate.token_str)
            ),
            format!("<span style=\"{MUTED}\">{}</span>", candidate.token),
            sequence(candidate),
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

/// The sequence, with the filled-in word in bold where it can be told apart.
fn sequence(candidate: &Prediction) -> String {
    let sequence = clip(&candidate.sequence, 300);
    let word = candidate.token_str.trim().trim_start_matches("##");
    let mut found = sequence.match_indices(word);
    match (word.is_empty(), found.next(), found.next()) {
        (false, Some((at, _)), None) => format!(
            "{}<b>{}</b>{}",
            escape(&sequence[..at]),
            escape(word),
            escape(&sequence[at + word.len()..])
        ),
        _ => escape(&sequence),
    }
}
