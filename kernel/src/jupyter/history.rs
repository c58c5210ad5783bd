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

/// Whether a pattern with `*` and `?` describes the whole text.
fn matches_glob(pattern: &str, text: &str) -> bool {
    let mut rest = pattern.chars();
    match rest.next() {
        None => text.is_empty(),
        Some('*') => {
            let mut ends = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            ends.any(|at| matches_glob(rest.as_str(), &text[at..]))
        }
        Some(wanted) => {
            let mut characters = text.chars();
            let first = characters
                .next()
                .is_some_and(|c| wanted == '?' || wanted == c);
            first && matches_glob(rest.as_str(), characters.as_str())
        }
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
