//! `history_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#history>.

use std::collections::HashSet;

use jupyter_protocol::{HistoryEntry, HistoryReply, HistoryRequest};

/// The number of this session in replies.
const SESSION: i32 = 1;

/// The number of characters that a search compares with parts of its pattern that contain `?`: enough for any sensible
/// pattern, and done in a moment.
const STEPS: usize = 20_000_000;

/// A cell: its number and its code.
type Cell = (usize, String);

/// The cells of this session; earlier sessions are not kept.
#[derive(Debug, Default)]
pub struct History {
    cells: Vec<Cell>,
}

impl History {
    /// Adds a cell.
    pub fn add(&mut self, count: usize, code: &str) {
        self.cells.push((count, code.to_owned()));
    }

    /// Returns the requested cells.
    pub fn handle(&self, request: &HistoryRequest) -> HistoryReply {
        let (found, output) = match request {
            HistoryRequest::Range {
                session,
                start,
                stop,
                output,
                ..
            } => (self.range(*session, *start, *stop), *output),
            HistoryRequest::Tail { n, output, .. } => {
                (last(self.cells.iter().collect(), *n), *output)
            }
            HistoryRequest::Search {
                pattern,
                unique,
                output,
                n,
                ..
            } => (self.search(pattern, *unique, *n), *output),
        };
        let entry = |(count, code): &Cell| match output {
            // Outputs are not kept; where they are requested they are empty.
            true => {
                HistoryEntry::InputOutput(SESSION as usize, *count, (code.clone(), String::new()))
            }
            false => HistoryEntry::Input(SESSION as usize, *count, code.clone()),
        };
        HistoryReply::new(found.into_iter().map(entry).collect())
    }

    fn range(&self, session: Option<i32>, start: i32, stop: i32) -> Vec<&Cell> {
        // 0 means the current session, and so does its number; other sessions are not kept.
        if !matches!(session, None | Some(0 | SESSION)) {
            return Vec::new();
        }
        let stop = if stop > 0 { stop as usize } else { usize::MAX };
        self.cells
            .iter()
            .filter(|(count, _)| (start.max(0) as usize..stop).contains(count))
            .collect()
    }

    fn search(&self, pattern: &str, unique: bool, n: i32) -> Vec<&Cell> {
        let mut steps = STEPS;
        let mut found: Vec<&Cell> = self
            .cells
            .iter()
            .filter(|(_, code)| matches_glob(pattern, code, &mut steps))
            .collect();
        if unique {
            let mut seen = HashSet::new();
            found.reverse();
            found.retain(|(_, code)| seen.insert(code));
            found.reverse();
        }
        last(found, n)
    }
}

fn last(mut cells: Vec<&Cell>, n: i32) -> Vec<&Cell> {
    let skip = cells.len().saturating_sub(n.max(0) as usize);
    cells.split_off(skip)
}

/// Whether a pattern with `*` and `?` matches the whole text. The part between two `*` is searched for after the
/// previous match: the first match is as good as any.
fn matches_glob(pattern: &str, text: &str, steps: &mut usize) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return behind(pattern, text) == Some("");
    };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut text) = behind(first, text).and_then(|text| before(last, text)) else {
        return false;
    };
    for part in middle.split('*').filter(|part| !part.is_empty()) {
        match find(part, text, steps) {
            Some(rest) => text = rest,
            None => return false,
        }
    }
    true
}

fn is_one(wanted: char, found: char) -> bool {
    wanted == '?' || wanted == found
}

/// Returns the rest of a text that begins with a match of this part of a pattern.
fn behind<'t>(part: &str, text: &'t str) -> Option<&'t str> {
    let mut rest = text.chars();
    part.chars()
        .all(|wanted| rest.next().is_some_and(|found| is_one(wanted, found)))
        .then_some(rest.as_str())
}

/// Returns the rest of a text that ends with a match of this part of a pattern.
fn before<'t>(part: &str, text: &'t str) -> Option<&'t str> {
    let mut rest = text.chars();
    part.chars()
        .rev()
        .all(|wanted| rest.next_back().is_some_and(|found| is_one(wanted, found)))
        .then_some(rest.as_str())
}

/// Returns the rest of a text after the first match of this part of a pattern.
fn find<'t>(part: &str, text: &'t str, steps: &mut usize) -> Option<&'t str> {
    if !part.contains('?') {
        return text.find(part).map(|at| &text[at + part.len()..]);
    }
    for (at, _) in text.char_indices() {
        let (mut wanted, mut rest) = (part.chars(), text[at..].chars());
        loop {
            let Some(next) = wanted.next() else {
                return Some(rest.as_str());
            };
            *steps = steps.checked_sub(1)?;
            if !rest.next().is_some_and(|found| is_one(next, found)) {
                break;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn found(request: Value) -> Value {
        let mut history = History::default();
        for (count, code) in ["a", "b", "let a = 1;", "a"].into_iter().enumerate() {
            history.add(count + 1, code);
        }
        let request: HistoryRequest = serde_json::from_value(request).expect("a request");
        serde_json::to_value(history.handle(&request).history).expect("JSON")
    }

    #[test]
    fn a_tail_request_returns_the_last_cells() {
        let tail =
            found(json!({ "hist_access_type": "tail", "n": 2, "output": false, "raw": true }));
        assert_eq!(tail, json!([[1, 3, "let a = 1;"], [1, 4, "a"]]));
    }

    #[test]
    fn a_range_excludes_its_stop() {
        let range = |session: i32| {
            found(
                json!({ "hist_access_type": "range", "session": session, "start": 2, "stop": 4,
                          "output": true, "raw": true }),
            )
        };
        assert_eq!(
            range(0),
            json!([[1, 2, ["b", ""]], [1, 3, ["let a = 1;", ""]]])
        );
        assert_eq!(range(7), json!([]));
    }

    fn matches(pattern: &str, text: &str) -> bool {
        matches_glob(pattern, text, &mut { STEPS })
    }

    #[test]
    fn hostile_patterns_are_matched_quickly() {
        let text = "a".repeat(200_000);
        let half = "a".repeat(100_000);
        let start = std::time::Instant::now();
        assert!(!matches(&format!("{}b", "*a".repeat(200)), &text));
        assert!(!matches(&format!("{}*b*", "*a".repeat(50_000)), &text));
        assert!(!matches(&format!("*{half}b*"), &text));
        assert!(!matches(&format!("*?{half}b*"), &text));
        assert!(!matches(&format!("*{half}?b*"), &text));
        assert!(matches(&"*".repeat(100_000), &text));
        assert!(matches(&text, &text) && matches(&format!("*{half}*?*"), &text));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        for (pattern, found) in [
            ("", false),
            ("*", true),
            ("a*?é", true),
            ("?", false),
            ("*b*é", true),
            ("a*b", false),
            ("a?*?é", true),
            ("a?c ?", false),
            ("?b?c??", true),
            ("?b?c?é", true),
            ("*?c*?", true),
            ("*é*é", false),
            ("ab c é*", true),
            ("*ab c é", true),
        ] {
            assert_eq!(matches(pattern, "ab c é"), found, "{pattern}");
        }
        assert!(matches("", "") && matches("**", "") && !matches("?", ""));
    }

    #[test]
    fn a_search_request_matches_a_pattern() {
        let search = |unique: bool| {
            found(
                json!({ "hist_access_type": "search", "pattern": "a*", "n": 10, "unique": unique,
                          "output": false, "raw": true }),
            )
        };
        assert_eq!(search(false), json!([[1, 1, "a"], [1, 4, "a"]]));
        assert_eq!(search(true), json!([[1, 4, "a"]]));
    }
}
