//! The split grammar of `datasets`: `train`, `train[:10%]`, `train[-5:]`, `train[:10]+test[50%:]`.

use super::concatenate::concatenate;
use super::dict::DatasetDict;
use super::table::Dataset;
use crate::{Error, Result};

/// One term of a split: a name, and the part of it that is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    pub(crate) name: String,
    from: Option<i64>,
    to: Option<i64>,
    rounding: Option<Rounding>,
}

/// How a percentage becomes a row; `None` in a [`Term`] means that the boundaries count rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// To the closest row, halves to the even one.
    Closest,
    /// One per cent is as many whole rows as fit a hundred times.
    Pct1DropRemainder,
}

/// Returns the terms of `split`, which is one of a dataset's splits, a part of it, or a sum of such.
pub(crate) fn parse(split: &str) -> Result<Vec<Term>> {
    let terms = split
        .split('+')
        .enumerate()
        .map(|(i, term)| {
            // Spaces are allowed around a plus, and only there.
            let term = if i > 0 { term.trim_start() } else { term };
            let last = i == split.matches('+').count();
            parse_term(split, if last { term } else { term.trim_end() })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut roundings = terms.iter().filter_map(|term| term.rounding);
    if let Some(first) = roundings.next()
        && roundings.any(|other| other != first)
    {
        return Err(fail(
            split,
            "a sum can't mix (closest) with (pct1_dropremainder)",
        ));
    }
    Ok(terms)
}

fn fail(split: &str, message: impl Into<String>) -> Error {
    Error::Split {
        split: split.to_owned(),
        message: message.into(),
    }
}

fn parse_term(split: &str, term: &str) -> Result<Term> {
    let unrecognized = || {
        fail(
            split,
            "not a valid split; write a name, or a name and a slice in whole rows or whole per cent, without spaces: \
             train, train[:5000], train[10%:20%], train[-5:], train[:10]+test[:10]",
        )
    };
    let name_end = term
        .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'))
        .unwrap_or(term.len());
    let (name, rest) = term.split_at(name_end);
    if name.split('.').any(str::is_empty) {
        return Err(unrecognized());
    }
    let (slice, rest) = match rest.strip_prefix('[') {
        Some(rest) => {
            let (slice, rest) = rest.split_once(']').ok_or_else(unrecognized)?;
            (Some(slice.split_once(':').ok_or_else(unrecognized)?), rest)
        }
        None => (None, rest),
    };
    let rounding = match rest {
        "" => None,
        "(closest)" => Some(Rounding::Closest),
        "(pct1_dropremainder)" => Some(Rounding::Pct1DropRemainder),
        rest if rest.starts_with('(') && rest.find(')') == Some(rest.len() - 1) => {
            return Err(fail(
                split,
                "rounding must be (closest) or (pct1_dropremainder)",
            ));
        }
        _ => return Err(unrecognized()),
    };
    let (from, to) = slice.unwrap_or(("", ""));
    let (from, from_percent) = parse_boundary(from).ok_or_else(unrecognized)?;
    let (to, to_percent) = parse_boundary(to).ok_or_else(unrecognized)?;
    // One per cent sign makes both boundaries percentages, as in datasets.
    if !from_percent && !to_percent {
        if rounding.is_some() {
            return Err(fail(split, "rounding goes only with a slice in per cent"));
        }
    } else if [from, to]
        .into_iter()
        .flatten()
        .any(|percent| percent.abs() > 100)
    {
        return Err(fail(
            split,
            "boundaries in per cent must be between -100% and 100%",
        ));
    }
    let percent = from_percent || to_percent;
    Ok(Term {
        name: name.to_owned(),
        from,
        to,
        rounding: percent.then(|| rounding.unwrap_or(Rounding::Closest)),
    })
}

/// Returns a boundary, and whether it has a per cent sign; `None` if it is no whole number.
fn parse_boundary(text: &str) -> Option<(Option<i64>, bool)> {
    if text.is_empty() {
        return Some((None, false));
    }
    let (number, percent) = match text.strip_suffix('%') {
        Some(number) => (number, true),
        None => (text, false),
    };
    let digits = number.strip_prefix('-').unwrap_or(number);
    // Python's way to write long numbers: single underscores between digits.
    if digits
        .split('_')
        .any(|part| part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()))
    {
        return None;
    }
    // Whatever is too large to count lies past any end.
    let magnitude = digits.replace('_', "").parse().unwrap_or(i64::MAX);
    let value = if number.starts_with('-') {
        -magnitude
    } else {
        magnitude
    };
    Some((Some(value), percent))
}

impl Term {
    /// Returns the rows that the term means, where they do not depend on how many there are; they may lie past the end.
    pub(crate) fn fixed(&self) -> Option<std::ops::Range<usize>> {
        if self.rounding.is_some() {
            return None;
        }
        let from = usize::try_from(self.from.unwrap_or(0)).ok()?;
        let to = usize::try_from(self.to?).ok()?;
        Some(from..to.max(from))
    }

    /// Returns the rows that the term means of a split of `rows` rows.
    pub(crate) fn range(&self, split: &str, rows: usize) -> Result<std::ops::Range<usize>> {
        let absolute = |boundary: Option<i64>, default: usize| -> Result<usize> {
            let Some(boundary) = boundary else {
                return Ok(default);
            };
            let boundary = match self.rounding {
                None => boundary,
                Some(Rounding::Closest) => {
                    (boundary as f64 * rows as f64 / 100.0).round_ties_even() as i64
                }
                Some(Rounding::Pct1DropRemainder) if rows < 100 => {
                    return Err(fail(
                        split,
                        format!(
                            "(pct1_dropremainder) of a split of fewer than 100 rows ({rows}) is always empty; \
                             leave the rounding out"
                        ),
                    ));
                }
                Some(Rounding::Pct1DropRemainder) => boundary * (rows / 100) as i64,
            };
            let from_end =
                |back: u64| rows.saturating_sub(usize::try_from(back).unwrap_or(usize::MAX));
            Ok(match usize::try_from(boundary) {
                Ok(boundary) => boundary.min(rows),
                Err(_) => from_end(boundary.unsigned_abs()),
            })
        };
        Ok(absolute(self.from, 0)?..absolute(self.to, rows)?)
    }
}

/// Returns the part of `dict` that `split` means.
pub(crate) fn resolve(dict: &DatasetDict, split: &str) -> Result<Dataset> {
    let mut parts = Vec::new();
    let mut asked_for_rows = false;
    // As in datasets: all splits, one behind the other.
    let all = dict.names().join("+");
    let split = match split {
        "all" if dict.find("all").is_none() && !all.is_empty() => all.as_str(),
        split => split,
    };
    for term in parse(split)? {
        let dataset = dict.find(&term.name).ok_or_else(|| {
            fail(
                split,
                format!(
                    "there is no split {:?}; the splits are {}",
                    term.name,
                    dict.names().join(", ")
                ),
            )
        })?;
        let range = term.range(split, dataset.len())?;
        // As in datasets, a slice from behind its own end is empty, and one without rows in it is a mistake.
        asked_for_rows |= range.start != range.end;
        parts.push(dataset.slice(range.start..range.end.max(range.start)));
    }
    if !asked_for_rows {
        return Err(fail(
            split,
            format!(
                "it selects no rows; the splits have {}",
                dict.iter()
                    .map(|(name, dataset)| format!("{} rows in {name}", dataset.len()))
                    .collect::<Vec<_>>()
                    .join(", ")
            ),
        ));
    }
    concatenate(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_means_every_split() {
        let rows = |rows: Vec<i64>| Dataset::builder().column("n", rows).build().unwrap();
        let dict = DatasetDict::from_iter([("train", rows(vec![1, 2])), ("test", rows(vec![3]))]);
        let all = resolve(&dict, "all").unwrap();
        assert_eq!(all.column::<i64>("n").unwrap(), [1, 2, 3]);
        let own = DatasetDict::from_iter([("all", rows(vec![7])), ("test", rows(vec![3]))]);
        assert_eq!(resolve(&own, "all").unwrap().len(), 1);
    }

    #[test]
    fn percentages_round_halves_to_even() {
        let part = |percent: i64, rows: usize| {
            let term = &parse(&format!("train[:{percent}%]")).unwrap()[0];
            term.range("", rows).unwrap().end
        };
        assert_eq!(part(10, 65), 6);
        assert_eq!(part(30, 65), 20);
        assert_eq!(part(50, 65), 32);
        assert_eq!(part(50, 55), 28);
        assert_eq!(part(-10, 65), 59);
    }

    #[test]
    fn malformed_splits_are_refused_with_the_syntax() {
        for split in [
            "",
            "train[5]",
            "train[:2.5%]",
            "train[ :10]",
            "train[:10 %]",
            "train[:10",
            "train]",
            "train[:10]x",
            "train[a:]",
            "+train",
            "train+",
            " train",
            "train ",
            "train[--5:]",
            "train[:%]",
            "train[:1__0]",
            "tr-ain",
            "train.[:1]",
            "train[::2]",
        ] {
            let error = parse(split).expect_err(split).to_string();
            assert!(error.contains("train[10%:20%]"), "{split}: {error}");
        }
        assert!(
            parse("train[:101%]")
                .unwrap_err()
                .to_string()
                .contains("between -100% and 100%")
        );
        assert!(
            parse("train[:10](closest)")
                .unwrap_err()
                .to_string()
                .contains("per cent")
        );
        assert!(
            parse("train[:10%](up)")
                .unwrap_err()
                .to_string()
                .contains("rounding must be")
        );
        assert!(
            parse("a[:1%]+a[:1%](pct1_dropremainder)")
                .unwrap_err()
                .to_string()
                .contains("mix")
        );
    }

    #[test]
    fn every_valid_split_is_parsed() {
        for split in [
            "train",
            "train_asks[:5000]",
            "v1.train[10:]",
            "train[:1_000]",
            "train + test[:5%]",
            "train[:]",
            "train[99999999999999999999:]",
            "a[5:]+b[:5%]",
        ] {
            parse(split).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
