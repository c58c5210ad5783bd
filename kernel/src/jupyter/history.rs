//! `history_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#history>.

use std::collections::HashSet;

use jupyter_protocol::{HistoryEntry, HistoryReply, HistoryRequest};

/// The number that this session has in replies.
const SESSION: i32 = 1;

/// A cell: its number and its code.
type Cell = (usize, String);

/// The cells of this session, the only one that is remembered.
#[derive(Debug, Default)]
pub struct History {
    cells: Vec<Cell>,
}

impl History {
    /// Remembers a cell.
    pub fn add(&mut self, count: usize, code: &str) {
        self.cells.push((count, code.to_owned()));
    }

    /// The cells that are asked for.
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
            // Outputs are not remembered: where they are asked for, they are empty.
            true => {
                HistoryEntry::InputOutput(SESSION as usize, *count, (code.clone(), String::new()))
            }
            false => HistoryEntry::Input(SESSION as usize, *count, code.clone()),
        };
        HistoryReply::new(found.into_iter().map(entry).collect())
    }

    fn range(&self, session: Option<i32>, start: i32, stop: i32) -> Vec<&Cell> {
        // 0 is the current session, as is its number; others are forgotten.
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
        let mut found: Vec<&Cell> = self
            .cells
            .iter()
            .filter(|(_, code)| matches_glob(pattern, code))
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

/// Whether a pattern with `*` and `?` describes the whole text. Takes no more steps than the two lengths multiplied: when
/// something does not match, only the last `*` is tried with more, because what the earlier ones took is as good as any.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let (mut pattern_rest, mut text_rest) = (pattern.chars(), text.chars());
    // Behind the last `*`: what is left of the pattern, and of the text when that `*` takes one character more.
    let mut star: Option<(std::str::Chars, std::str::Chars)> = None;
    loop {
        let mut after = pattern_rest.clone();
        match (after.next(), text_rest.clone().next()) {
            (Some('*'), _) => {
                star = Some((after.clone(), text_rest.clone()));
                pattern_rest = after;
                continue;
            }
            (None, None) => return true,
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                pattern_rest = after;
                text_rest.next();
                continue;
            }
            _ => {}
        }
        let Some((pattern, text)) = &mut star else {
            return false;
        };
        if text.next().is_none() {
            return false;
        }
        pattern_rest = pattern.clone();
        text_rest = text.clone();
    }
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
    fn the_tail_is_the_last_cells() {
        let tail =
            found(json!({ "hist_access_type": "tail", "n": 2, "output": false, "raw": true }));
        assert_eq!(tail, json!([[1, 3, "let a = 1;"], [1, 4, "a"]]));
    }

    #[test]
    fn a_range_ends_before_its_stop() {
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

    #[test]
    fn any_pattern_is_matched_in_no_time() {
        let text = "a".repeat(3000);
        let start = std::time::Instant::now();
        assert!(!matches_glob(&format!("{}b", "*a".repeat(200)), &text));
        assert!(matches_glob(&"*".repeat(100_000), &text));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
        for (pattern, found) in [
            ("", false),
            ("*", true),
            ("a*?é", true),
            ("?", false),
            ("*b*é", true),
            ("a*b", false),
        ] {
            assert_eq!(matches_glob(pattern, "ab c é"), found, "{pattern}");
        }
        assert!(matches_glob("", "") && matches_glob("**", "") && !matches_glob("?", ""));
    }

    #[test]
    fn a_search_takes_a_pattern() {
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
