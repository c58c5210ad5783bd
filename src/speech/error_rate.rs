//! The error rate of transcripts.

use crate::{Error, Result};

/// Returns the word error rate of the transcripts `hypotheses` against `references`: the words that must be
/// substituted, deleted or inserted, divided by the words in the references. 0 is perfect; more than 1 is possible.
///
/// All texts count together, as `jiwer.wer` and the metric `wer` of `evaluate` do it: long ones weigh more than short ones.
/// Where nothing was said at all, the result is the number of words that were written.
///
/// # Errors
/// When there are not as many hypotheses as references, or none.
///
/// ```
/// use cloze::speech::word_error_rate;
/// let rate = word_error_rate(&["one two three", "four"], &["one too three", "four five"])?;
/// assert_eq!(rate, 0.5);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn word_error_rate<R: AsRef<str>, H: AsRef<str>>(
    references: &[R],
    hypotheses: &[H],
) -> Result<f64> {
    rate(references, hypotheses, words)
}

/// Returns the character error rate of `hypotheses` against `references`: as [`word_error_rate`], with characters in place of
/// words. Spaces count, those at the ends do not.
///
/// # Errors
/// Like [`word_error_rate`].
///
/// ```
/// use cloze::speech::character_error_rate;
/// assert_eq!(character_error_rate(&["cloze", "test"], &["close", "test"])?, 1.0 / 9.0);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn character_error_rate<R: AsRef<str>, H: AsRef<str>>(
    references: &[R],
    hypotheses: &[H],
) -> Result<f64> {
    rate(references, hypotheses, |text| text.trim().chars().collect())
}

/// The words of a text. A single tab or line end is a part of its word, as `jiwer` has it.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut chars = text.trim().chars().peekable();
    while let Some(c) = chars.next() {
        let several = c.is_whitespace() && chars.peek().is_some_and(|next| next.is_whitespace());
        while several && chars.peek().is_some_and(|next| next.is_whitespace()) {
            chars.next();
        }
        match (several || c == ' ', words.last_mut()) {
            (false, Some(word)) => word.push(c),
            _ => words.push(String::new()),
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn rate<R: AsRef<str>, H: AsRef<str>, T: PartialEq>(
    references: &[R],
    hypotheses: &[H],
    units: impl Fn(&str) -> Vec<T>,
) -> Result<f64> {
    if references.len() != hypotheses.len() || references.is_empty() {
        return Err(Error::argument(
            "hypotheses",
            format!(
                "there are {} for {} references; give one for each, and at least one",
                hypotheses.len(),
                references.len()
            ),
        ));
    }
    let (mut edits, mut said) = (0, 0);
    for (reference, hypothesis) in references.iter().zip(hypotheses) {
        let reference = units(reference.as_ref());
        edits += distance(&reference, &units(hypothesis.as_ref()));
        said += reference.len();
    }
    Ok(edits as f64 / said.max(1) as f64)
}

/// Returns how many units must be replaced, left out or put in (Levenshtein).
fn distance<T: PartialEq>(from: &[T], to: &[T]) -> usize {
    // The distances from the beginnings of `to` to the beginning of `from` so far.
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, unit) in from.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(unit != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results of jiwer 4.0.
    #[rustfmt::skip]
    const JIWER: &[(&[&str], &[&str], f64, f64)] = &[
        (&["hello world"], &["hello duck"], 0.5, 0.45454545454545453),
        (&["one two three", "four five"], &["one too three", "four five six"], 0.4, 0.22727272727272727),
        (&["the quick brown fox jumps over the lazy dog"], &["the quick browne fox jumped the lazy"], 0.4444444444444444, 0.23255813953488372),
        (&["a b c d"], &[""], 1.0, 1.0),
        (&[""], &["surprise words here"], 3.0, 19.0),
        (&["", ""], &["", ""], 0.0, 0.0),
        (&["  spaced   out  text "], &["spaced out text"], 0.0, 0.16666666666666666),
        (&["tab\tinside a word"], &["tab inside a word"], 0.6666666666666666, 0.058823529411764705),
        (&["two\t\ttabs", "line\nend"], &["two tabs", "line end"], 0.6666666666666666, 0.17647058823529413),
        (&["straße über"], &["strasse uber"], 1.0, 0.2727272727272727),
        (&["naïve café", "日本 語"], &["naive cafe", "日 本語"], 1.0, 0.2857142857142857),
        (&["a a a a"], &["b b b b b b b b"], 2.0, 1.7142857142857142),
        (&["wrong order of words"], &["order wrong words of"], 0.75, 0.65),
        (&["UPPER lower"], &["upper LOWER"], 1.0, 0.9090909090909091),
        (&["it's a dog's life, isn't it?"], &["its a dogs life isnt it"], 0.8333333333333334, 0.17857142857142858),
        (&["nine", "zero", "five", "one"], &["nine", "zeo", "fife", ""], 0.75, 0.3333333333333333),
    ];

    #[test]
    fn error_rates_equal_those_of_jiwer() {
        for (references, hypotheses, wer, cer) in JIWER {
            let found = word_error_rate(references, hypotheses).unwrap();
            assert!(
                (found - wer).abs() < 1e-12,
                "{references:?} {hypotheses:?}: {found}, not {wer}"
            );
            let found = character_error_rate(references, hypotheses).unwrap();
            assert!(
                (found - cer).abs() < 1e-12,
                "{references:?} {hypotheses:?}: {found}, not {cer}"
            );
        }
    }

    #[test]
    fn texts_without_a_counterpart_are_refused() {
        assert!(word_error_rate(&["a"], &["a", "b"]).is_err());
        assert!(word_error_rate::<&str, &str>(&[], &[]).is_err());
    }
}
