//! Maps lines of the code that evcxr generates back to the cells they come from.

use std::ops::Range;
use std::sync::Arc;

use ra_ap_syntax::{AstNode, ast};

use super::generated::{HOLDS_STATEMENTS, Wrapping, wrapping};
use crate::code::{Cell, chunks, line_and_column};

/// The origin of each line of the generated code.
#[derive(Clone, Debug, Default)]
pub struct SourceMap {
    lines: Vec<Option<Origin>>,
    generated: Vec<String>,
}

/// The line of a cell's prepared code that begins at a byte.
#[derive(Clone, Debug)]
struct Origin {
    cell: Arc<Cell>,
    start: usize,
}

/// A place in a cell; lines and columns count from 1, columns count characters.
#[derive(Clone, Debug)]
pub struct Spot {
    pub cell: Arc<Cell>,
    pub line: usize,
    pub column: usize,
    /// The byte in the original code.
    pub offset: usize,
    /// The function or item that contains it.
    pub within: Option<String>,
}

impl Spot {
    /// Moves the place of an out-of-bounds index, which the compiler reports at the bracket, to the indexed value.
    pub fn of_indexed(mut self) -> Self {
        let code = &self.cell.original;
        if !code[self.offset..].starts_with('[') {
            return self;
        }
        let start = chunks(code).iter().find_map(|chunk| {
            let indexed = chunk.node.descendants().filter_map(ast::IndexExpr::cast);
            let mut starts = indexed.filter_map(|indexed| {
                let base = indexed.base()?;
                let end = chunk.range(base.syntax()).end;
                let between = code.get(end..self.offset)?;
                between
                    .trim()
                    .is_empty()
                    .then(|| chunk.range(base.syntax()).start)
            });
            starts.next()
        });
        if let Some(start) = start {
            let (line, column) = line_and_column(code, start);
            if line == self.line {
                (self.offset, self.column) = (start, column);
            }
        }
        self
    }
}

impl SourceMap {
    /// Finds the cells' statements in `generated`: all statements of `current`, and the items of earlier cells.
    pub fn new(generated: &str, current: Option<&Arc<Cell>>, earlier: &[Arc<Cell>]) -> Self {
        let mut map = Self {
            lines: vec![None; generated.lines().count() + 1],
            generated: generated.lines().map(str::to_owned).collect(),
        };
        // Items come first, then the function that holds the statements.
        let function = HOLDS_STATEMENTS
            .iter()
            .filter_map(|start| generated.rfind(start))
            .max()
            .unwrap_or(0);
        for cell in current.into_iter().chain(earlier.iter().rev()) {
            let is_current = current.is_some_and(|current| Arc::ptr_eq(current, cell));
            for chunk in cell.chunks() {
                let text = cell.prepared[chunk.start..chunk.end].trim_end_matches('\n');
                let parts = match chunk.is_item() {
                    true => [0..function, function..generated.len()],
                    false if is_current => [function..generated.len(), 0..0],
                    false => continue,
                };
                for part in parts {
                    if map.claim(generated, part, text, cell, chunk.start) {
                        break;
                    }
                }
            }
        }
        map.adopt_wrapping();
        map
    }

    /// Maps the code that evcxr writes around a cell's value, to show it, to that value: the compiler gives a call that
    /// ends a cell the place of the bracket before it.
    fn adopt_wrapping(&mut self) {
        for line in 0..self.generated.len() {
            if self.lines[line].is_some() {
                continue;
            }
            let wrapping = wrapping(self.generated[line].trim());
            if wrapping == Some(Wrapping::Before) {
                self.lines[line] = self.lines.get(line + 1).cloned().flatten();
                self.generated[line].clear();
            } else if wrapping == Some(Wrapping::Behind) && line > 0 {
                // Map it to the beginning of the value.
                let open = (0..line)
                    .rev()
                    .find(|&at| self.generated[at].is_empty() && self.lines[at].is_some());
                self.lines[line] = open.and_then(|at| self.lines[at].clone());
                self.generated[line].clear();
            }
        }
    }

    /// Claims the first place in a part of the generated code where a text fills whole lines that are not claimed yet.
    fn claim(
        &mut self,
        generated: &str,
        part: Range<usize>,
        text: &str,
        cell: &Arc<Cell>,
        start: usize,
    ) -> bool {
        if text.trim().is_empty() {
            return false;
        }
        let found = generated[part.clone()]
            .match_indices(text)
            .find_map(|(at, _)| {
                let (at, end) = (part.start + at, part.start + at + text.len());
                let begins = at == 0 || generated.as_bytes()[at - 1] == b'\n';
                let ends = generated[end..].is_empty() || generated[end..].starts_with('\n');
                let first = generated[..at].matches('\n').count();
                let lines = first..first + text.matches('\n').count() + 1;
                let free = self
                    .lines
                    .get(lines.clone())
                    .is_some_and(|lines| lines.iter().all(Option::is_none));
                (begins && ends && free).then_some(lines)
            });
        let Some(lines) = found else { return false };
        let mut start = start;
        for (line, text) in lines.zip(text.split_inclusive('\n')) {
            self.lines[line] = Some(Origin {
                cell: cell.clone(),
                start,
            });
            start += text.len();
        }
        true
    }

    /// Returns the place in a cell that a line and a column (in characters) of the generated code come from.
    pub fn spot(&self, line: usize, column: usize) -> Option<Spot> {
        let text = self.generated.get(line.checked_sub(1)?)?;
        let bytes: usize = text
            .chars()
            .take(column.saturating_sub(1))
            .map(char::len_utf8)
            .sum();
        self.spot_at_byte(line, bytes + 1)
    }

    /// The same for a column in bytes.
    pub fn spot_at_byte(&self, line: usize, column: usize) -> Option<Spot> {
        let origin = self.lines.get(line.checked_sub(1)?)?.as_ref()?;
        // For a line that evcxr wrote, use the beginning.
        let column = match self.line(line).is_empty() {
            true => 1,
            false => column,
        };
        let prepared = (origin.start + column.saturating_sub(1)).min(origin.cell.prepared.len());
        let offset = origin.cell.original_offset(prepared);
        let (line, column) = line_and_column(&origin.cell.original, offset);
        let chunks = origin.cell.chunks();
        let chunk = chunks
            .iter()
            .find(|chunk| (chunk.start..chunk.end).contains(&prepared));
        Some(Spot {
            cell: origin.cell.clone(),
            line,
            column,
            offset,
            within: chunk
                .filter(|chunk| chunk.is_item())
                .and_then(|chunk| chunk.function_at(prepared)),
        })
    }

    /// Whether a word is in the code of a cell.
    pub fn was_written(&self, word: &str) -> bool {
        let of_cells = self.lines.iter().flatten();
        let mut last: Option<&Arc<Cell>> = None;
        for Origin { cell, .. } in of_cells {
            if last.is_none_or(|last| !Arc::ptr_eq(last, cell)) && cell.original.contains(word) {
                return true;
            }
            last = Some(cell);
        }
        false
    }

    /// Returns a line of the generated code.
    pub fn line(&self, number: usize) -> &str {
        number
            .checked_sub(1)
            .and_then(|at| self.generated.get(at))
            .map_or("", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_map_to_statements_that_share_a_line_and_to_items_of_earlier_cells() {
        let earlier = Cell::new(2, "// a note\nfn base() {\n    boom()\n}", vec![]);
        let current = Cell::new(5, "let a = 1; let b = a;\nfoo();\nfoo();\nb", vec![]);
        let generated = "#![allow(x)]\nfn base() {\n    boom()\n}\nuse std::fmt;\npub extern \"C\" fn run_user_code_3(\nlet a = 1; \n\
                         let b = a;\nfoo();\nfoo();\n(\nb\n).evcxr_display();\n}\n";
        let map = SourceMap::new(generated, Some(&current), &[earlier]);
        let at = |line, column| {
            map.spot(line, column)
                .map(|spot| (spot.cell.number, spot.line, spot.column))
        };
        assert_eq!(at(7, 5), Some((5, 1, 5)));
        assert_eq!(at(8, 5), Some((5, 1, 16)));
        assert_eq!(at(9, 1), Some((5, 2, 1)));
        assert_eq!(at(10, 1), Some((5, 3, 1)));
        assert_eq!(at(12, 1), Some((5, 4, 1)));
        assert_eq!(at(3, 5), Some((2, 3, 5)));
        assert_eq!(
            map.spot(3, 5).and_then(|spot| spot.within).as_deref(),
            Some("base")
        );
        let index = Cell::new(1, "let q = f(vec![1])[7]; g()[h[2]]", vec![]);
        let map = SourceMap::new("let q = f(vec![1])[7]; \ng()[h[2]]\n", Some(&index), &[]);
        let of_indexed = |line, column| map.spot(line, column).map(|spot| spot.of_indexed().column);
        assert_eq!(of_indexed(1, 19), Some(9));
        assert_eq!([of_indexed(2, 4), of_indexed(2, 6)], [Some(24), Some(28)]);
        assert_eq!([at(11, 1), at(13, 8)], [Some((5, 4, 1)); 2]);
        for generated in [1, 5, 6, 14, 99] {
            assert_eq!(at(generated, 1), None, "{generated}");
        }
    }
}
