//! Reports compiler errors in terms of the cells' lines.
//!
//! evcxr's own report shows an error's note in place of the error, and drops messages about code outside the cell. Here
//! the stand-in for cargo keeps the compiler's messages ([`Failed`]), and every span in them is mapped back to the cell
//! it comes from.

use std::path::Path;
use std::sync::Arc;

use ra_ap_syntax::{AstNode, ast};
use serde_json::Value;

use super::failure::{BLUE, BOLD, CYAN, Failure, Mark, PLAIN, excerpt, in_cell};
use crate::code::{Cell, Chunk, Complaint, chunks, line_and_column, tokens};
use crate::evcxr::failed::{CRATE, Failed, MANIFEST};
use crate::evcxr::generated::{SHOWS_VALUE, mentions_generated, without_generated_names};
use crate::evcxr::source_map::{SourceMap, Spot};

/// A span of a compiler message, in a cell.
struct Place {
    cell: Arc<Cell>,
    /// Bytes of the original code.
    start: usize,
    end: usize,
    within: Option<String>,
    label: String,
    primary: bool,
    replacement: Option<String>,
    /// Whether the message is about generated code after the cell.
    behind: bool,
}

impl Place {
    /// Whether it is in a function or a closure that the user wrote.
    fn in_function(&self) -> bool {
        let chunks = chunks(&self.cell.original);
        let holds = |chunk: &Chunk| (chunk.start..chunk.end).contains(&self.start);
        let Some(chunk) = chunks.iter().find(|chunk| holds(chunk)) else {
            return false;
        };
        let mut inside = chunk.node.descendants().filter(|node| {
            ast::Fn::can_cast(node.kind()) || ast::ClosureExpr::can_cast(node.kind())
        });
        inside.any(|node| chunk.range(&node).contains(&self.start))
    }
}

/// Builds the failure from the compiler's errors; `None` if there is no error among them.
pub fn failure(failed: &Failed, map: &SourceMap, cell: &Arc<Cell>) -> Option<Failure> {
    let mut errors: Vec<(u8, &Value, Vec<Place>)> = Vec::new();
    let mut elsewhere: Vec<&Value> = Vec::new();
    for message in &failed.messages {
        let text = message["message"].as_str().unwrap_or_default();
        if text.starts_with("aborting due to") || text.starts_with("could not compile") {
            continue;
        }
        if message[CRATE].is_string() {
            elsewhere.push(message);
            continue;
        }
        let mut places = places(message, map);
        if message["code"].is_null() && is_behind_value(message, map) {
            places = end_of(cell).into_iter().collect();
        }
        let shows = |span: &Value| {
            span["line_start"].as_u64().is_some_and(|line| {
                SHOWS_VALUE
                    .iter()
                    .any(|word| map.line(line as usize).contains(word))
            })
        };
        if !places.iter().any(|place| place.primary) && spans(message).iter().any(shows) {
            places.extend(shown_value(cell));
        }
        // Errors in this cell first, then errors that it causes in other cells, then errors in no cell at all.
        let rank = if places
            .iter()
            .any(|place| place.primary && Arc::ptr_eq(&place.cell, cell))
        {
            0
        } else if places.iter().any(|place| place.primary) {
            1
        } else if !places.is_empty() {
            2
        } else {
            3
        };
        errors.push((rank, message, places));
    }
    // The cell is not compiled before the crates that it uses are.
    if let Some(failure) = of_crates(&elsewhere) {
        return Some(failure);
    }
    errors.sort_by_key(|(rank, ..)| *rank);
    let best = errors.first()?.0;
    // Errors outside all cells follow from an error in a cell.
    errors.retain(|(rank, ..)| *rank < 2 || *rank == best);
    let mut traceback: Vec<String> = Vec::new();
    let mut reports: Vec<Vec<String>> = Vec::new();
    for (_, message, places) in &errors {
        let report = report(message, places, map, cell);
        if !reports.contains(&report) {
            traceback.extend(report.clone());
            reports.push(report);
        }
    }
    let (_, first, places) = errors.first()?;
    Some(Failure {
        name: title(first),
        value: headline(first, places),
        traceback,
    })
}

/// Builds the failure from a fault that was found before compilation.
pub fn complaint(complaint: &Complaint, code: &str) -> Failure {
    let (line, column) = line_and_column(code, complaint.at.start);
    let length = code[complaint.at.start..]
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .count();
    let marked = code
        .get(complaint.at.clone())
        .map_or(1, |text| text.chars().count());
    let mut traceback = vec![format!("{BOLD}error{PLAIN}: {}", complaint.message)];
    traceback.extend(excerpt(
        code,
        vec![Mark {
            line,
            columns: column..column + marked.min(length).max(1),
            label: &complaint.label,
            primary: true,
        }],
    ));
    if let Some(help) = &complaint.help {
        traceback.push(format!("{CYAN}help{PLAIN}: {help}"));
    }
    Failure {
        name: "error".into(),
        value: complaint.message.clone(),
        traceback,
    }
}

/// Builds the failure from errors in crates that the session adds, as the compiler reports them.
fn of_crates(messages: &[&Value]) -> Option<Failure> {
    let first = messages.first()?;
    let name = first[CRATE].as_str().unwrap_or_default();
    let manifest = Path::new(first[MANIFEST].as_str().unwrap_or_default());
    let folder = manifest.parent().unwrap_or(Path::new(""));
    let value = format!(
        "the crate `{name}` in {} does not compile: {}",
        folder.display(),
        first["message"].as_str().unwrap_or_default()
    );
    let mut traceback = vec![
        format!("{BOLD}{}{PLAIN}: {value}", title(first)),
        format!("{CYAN}help{PLAIN}: correct it, and run the cell again"),
    ];
    for message in messages {
        let rendered = message["rendered"].as_str().unwrap_or_default();
        traceback.extend(rendered.trim_end().lines().map(str::to_owned));
    }
    Some(Failure {
        name: title(first),
        value,
        traceback,
    })
}

fn title(message: &Value) -> String {
    match message["code"]["code"].as_str() {
        Some(code) => format!("error[{code}]"),
        None => "error".into(),
    }
}

/// Returns the message, without references to generated code.
fn headline(message: &Value, places: &[Place]) -> String {
    let text = message["message"].as_str().unwrap_or_default();
    let text = &match places
        .iter()
        .any(|place| place.primary && !place.in_function())
    {
        true => without_closure(text),
        false => text.to_owned(),
    };
    let found_generated =
        message["code"].is_null() && places.iter().all(|place| !place.primary || place.behind);
    if text.contains("`evcxr_display`") {
        let kind = text
            .split('`')
            .nth(3)
            .filter(|kind| !kind.contains("evcxr"));
        let kind = kind.map_or_else(|| "the value".to_owned(), |kind| format!("a `{kind}`"));
        return format!("{kind} can't be displayed: it does not implement `Debug`");
    }
    if found_generated && text.starts_with("unexpected token: ") {
        return "unexpected end of the cell".into();
    }
    match text.split_once(", found ") {
        // Generated code after the cell is not shown to the user.
        Some((expected, _)) if found_generated => format!("{expected}, found the end of the cell"),
        Some((expected, found)) if message["code"].is_null() => {
            match places.iter().find_map(|place| found_instead(place, found)) {
                Some(found) => format!("{expected}, found {found}"),
                None => without_generated_names(text),
            }
        }
        _ => without_generated_names(text),
    }
}

/// Rewords a message about the closure into which evcxr puts the cell.
fn without_closure(text: &str) -> String {
    text.replace(
        " inside of a closure",
        " outside of a loop or labeled block",
    )
    .replace("in a closure that returns", "in a cell, which returns")
}

/// Returns what follows in the cell where the compiler found code that was inserted after a statement.
fn found_instead(place: &Place, found: &str) -> Option<String> {
    let word = found.split('`').nth(1).filter(|_| place.primary)?;
    let code = &place.cell.original;
    let (at, behind) = (code.get(place.start..)?, code.get(place.end..)?);
    if [at, behind]
        .iter()
        .any(|text| text.trim_start().starts_with(word))
    {
        return None;
    }
    Some(match tokens(behind).next() {
        Some((_, next)) => format!("`{next}`"),
        None => "the end of the cell".to_owned(),
    })
}

fn report(message: &Value, places: &[Place], map: &SourceMap, cell: &Arc<Cell>) -> Vec<String> {
    let headline = headline(message, places);
    let mut lines = vec![format!("{BOLD}{}{PLAIN}: {headline}", title(message))];
    lines.extend(show(places, cell));
    if places.is_empty() && headline.ends_with("the end of the cell") {
        let code = &cell.original;
        let (line, column) = line_and_column(code, code.trim_end().len());
        let mark = Mark {
            line,
            columns: column..column + 1,
            label: "the cell ends here",
            primary: true,
        };
        lines.extend(excerpt(code, vec![mark]));
    } else if places.is_empty() {
        // Of the lines outside all cells, the user wrote the imports, which evcxr rewrites.
        let told = spans(message).iter().find_map(|span| {
            let line = map.line(span["line_start"].as_u64()? as usize).trim();
            let is_import = ["use ", "pub use ", "extern crate "]
                .iter()
                .any(|begin| line.starts_with(begin));
            (is_import && !mentions_generated(line, |_| false)).then(|| line.to_owned())
        });
        if let Some(line) = told {
            lines.push(format!("{BLUE}  -->{PLAIN} in {line}"));
        }
    }
    let about_return = [&message["spans"], &message["children"]]
        .iter()
        .any(|part| part.to_string().contains("Result<(), EvcxrUserCodeError>"));
    if title(message) == "error[E0308]" && about_return {
        lines.push(format!(
            "{CYAN}help{PLAIN}: `return` leaves the cell with `Ok(())` or an error; a value to be shown comes last, without `return`"
        ));
    }
    let written = |word: &str| map.was_written(word);
    let children = message["children"].as_array().into_iter().flatten();
    for child in children {
        let text = without_generated_names(child["message"].as_str().unwrap_or_default());
        if text.is_empty() || mentions_generated(&text, written) {
            continue;
        }
        // The rest is a suggestion, and about code around the cell.
        if text.ends_with(", try") && self::places(child, map).is_empty() {
            continue;
        }
        let level = child["level"].as_str().unwrap_or("note");
        let about = self::places(child, map);
        let mut text = text.lines();
        let first = text.next().unwrap_or_default();
        lines.push(match level {
            "help" => format!("{CYAN}help{PLAIN}: {first}"),
            _ => format!("  {BLUE}={PLAIN} {level}: {first}"),
        });
        lines.extend(text.map(|line| format!("      {line}")));
        let suggested = about.iter().any(|place| place.replacement.is_some());
        match suggested {
            true => lines.extend(
                with_suggestions(&about)
                    .into_iter()
                    .map(|line| format!("      {line}")),
            ),
            false => {
                lines.extend(show(&about, cell));
                lines.extend(imports(child).map(|line| format!("      {line}")));
            }
        }
    }
    lines
}

/// Returns the suggested imports, which belong before all other code of the cell.
fn imports(child: &Value) -> impl Iterator<Item = String> {
    spans(child)
        .iter()
        .filter_map(|span| span["suggested_replacement"].as_str())
        .map(|text| without_generated_names(text.trim()))
        .filter(|text| text.starts_with("use ") && !text.contains("evcxr"))
}

/// Formats the marked lines of the cells, those of the running cell first.
fn show(places: &[Place], cell: &Arc<Cell>) -> Vec<String> {
    let mut lines = Vec::new();
    let mut shown: Vec<&Arc<Cell>> = Vec::new();
    for place in places {
        if !shown.iter().any(|other| Arc::ptr_eq(other, &place.cell)) {
            shown.push(&place.cell);
        }
    }
    shown.sort_by_key(|other| !Arc::ptr_eq(other, cell));
    for other in shown {
        let of_cell = || {
            places
                .iter()
                .filter(|place| Arc::ptr_eq(&place.cell, other))
        };
        if !Arc::ptr_eq(other, cell) {
            let within = of_cell().find_map(|place| place.within.as_deref());
            lines.push(format!(
                "{BLUE}  -->{PLAIN} {}",
                in_cell(within, other.number)
            ));
        }
        let code = &other.original;
        let marks = of_cell().map(|place| {
            let (line, column) = line_and_column(code, place.start);
            let (last, end) = line_and_column(code, place.end);
            // A span of several lines is marked up to the end of its first line.
            let first = code.lines().nth(line - 1).unwrap_or_default();
            let end = if last == line {
                end
            } else {
                first.chars().count() + 1
            };
            Mark {
                line,
                columns: column..end.max(column + 1),
                label: &place.label,
                primary: place.primary,
            }
        });
        lines.extend(excerpt(code, marks.collect()));
    }
    lines
}

/// Returns the place of the cell's last value: an error in the code that displays it is reported there.
fn shown_value(cell: &Arc<Cell>) -> Option<Place> {
    let chunks = cell.chunks();
    let last = chunks.last().filter(|last| !last.is_item())?;
    let range = last.range(&last.node);
    Some(Place {
        cell: cell.clone(),
        start: cell.original_offset(range.start),
        end: cell.original_offset(range.end),
        within: None,
        label: "the value at the end of a cell is displayed; add `;` to hide it".into(),
        primary: true,
        replacement: None,
        behind: false,
    })
}

/// Whether an error is in the code that evcxr writes around the cell's value, as for an incomplete expression.
fn is_behind_value(message: &Value, map: &SourceMap) -> bool {
    spans(message).iter().any(|span| {
        let line = span["line_start"].as_u64().unwrap_or(0) as usize;
        span["is_primary"] == true && line > 0 && map.line(line).is_empty()
    })
}

/// Returns the last character of a cell.
fn end_of(cell: &Arc<Cell>) -> Option<Place> {
    let text = cell.original.trim_end();
    let start = text.char_indices().last()?.0;
    Some(Place {
        cell: cell.clone(),
        start,
        end: text.len(),
        within: None,
        label: "the cell ends here".into(),
        primary: true,
        replacement: None,
        behind: true,
    })
}

/// Returns the lines with all suggestions applied.
fn with_suggestions(places: &[Place]) -> Vec<String> {
    let Some(first) = places.iter().find(|place| place.replacement.is_some()) else {
        return Vec::new();
    };
    let code = &first.cell.original;
    let mut changes: Vec<(usize, usize, &str)> = places
        .iter()
        .filter(|place| Arc::ptr_eq(&place.cell, &first.cell))
        .filter_map(|place| Some((place.start, place.end, place.replacement.as_deref()?)))
        .collect();
    changes.sort_by_key(|change| change.0);
    let (Some(from), Some(to)) = (
        changes
            .first()
            .map(|change| code[..change.0].rfind('\n').map_or(0, |at| at + 1)),
        changes.iter().map(|change| change.1).max(),
    ) else {
        return Vec::new();
    };
    let to = code[to..].find('\n').map_or(code.len(), |at| to + at);
    // Some suggestions are about the code around the cell.
    let written = |word: &str| code.contains(word);
    if changes
        .iter()
        .any(|(.., with)| mentions_generated(with, written))
    {
        return Vec::new();
    }
    let mut text = String::new();
    let mut at = from;
    for (start, end, replacement) in changes {
        if start >= at {
            text += &code[at..start];
            text += replacement;
            at = end.max(start);
        }
    }
    text += &code[at.min(to)..to];
    text.lines().map(str::to_owned).collect()
}

fn spans(message: &Value) -> &[Value] {
    message["spans"].as_array().map_or(&[], Vec::as_slice)
}

fn places(message: &Value, map: &SourceMap) -> Vec<Place> {
    let spans = spans(message).iter();
    let found = spans.flat_map(|span| [place(span, map), macro_call(span, map)]);
    found.flatten().collect()
}

/// Returns the call of a macro, if a span is in a macro that a cell defines.
fn macro_call(span: &Value, map: &SourceMap) -> Option<Place> {
    if !span["file_name"].as_str()?.ends_with("lib.rs") {
        return None;
    }
    let (inside, _) = spots(span, map)?;
    let mut call = place(span["expansion"].get("span")?, map)?;
    if Arc::ptr_eq(&call.cell, &inside.cell) && call.start == inside.offset {
        return None;
    }
    call.label = "in this call of the macro".into();
    call.primary = span["is_primary"] == true;
    Some(call)
}

/// Returns the place of a span in a cell. In code generated by a macro, that is the macro call.
fn place(span: &Value, map: &SourceMap) -> Option<Place> {
    let mut at = span;
    while !at["file_name"].as_str()?.ends_with("lib.rs") || spots(at, map).is_none() {
        at = at["expansion"].get("span")?;
    }
    let (start, end) = spots(at, map)?;
    let label = without_generated_names(span["label"].as_str().unwrap_or_default());
    let is_theirs = !mentions_generated(&label, |word| map.was_written(word));
    let code = &start.cell.original;
    let one = code[start.offset..]
        .chars()
        .next()
        .map_or(0, char::len_utf8);
    let mut place = Place {
        start: start.offset,
        end: end.map_or(start.offset + one, |end| end.offset),
        cell: start.cell,
        within: start.within,
        label: if is_theirs { label } else { String::new() },
        primary: span["is_primary"] == true,
        replacement: span["suggested_replacement"]
            .as_str()
            .map(without_generated_names),
        behind: false,
    };
    if !place.in_function() {
        place.label = without_closure(&place.label);
    }
    Some(place)
}

fn spots(span: &Value, map: &SourceMap) -> Option<(Spot, Option<Spot>)> {
    let number = |name: &str| span[name].as_u64().map(|number| number as usize);
    let (first, last) = (number("line_start")?, number("line_end")?);
    let start = map.spot(first, number("column_start")?)?;
    let follows = |end: &Spot| Arc::ptr_eq(&end.cell, &start.cell) && end.offset >= start.offset;
    let end = map.spot(last, number("column_end")?).filter(follows);
    // A span may end in generated code: then it is marked up to the end of the cell's own lines.
    let end = end.or_else(|| {
        let own = (first..last).rev();
        let mut ends = own.filter_map(|line| map.spot(line, map.line(line).chars().count() + 1));
        ends.find(follows)
    });
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain(failure: &Failure) -> String {
        let text = failure.traceback.join("\n");
        [BOLD, crate::session::failure::RED, BLUE, CYAN, PLAIN]
            .iter()
            .fold(text, |text, colour| text.replace(colour, ""))
    }

    fn span(line: usize, columns: std::ops::Range<usize>, label: &str, primary: bool) -> Value {
        json!({ "file_name": "cell/lib.rs", "line_start": line, "line_end": line, "column_start": columns.start,
                "column_end": columns.end, "label": label, "is_primary": primary, "expansion": null })
    }

    fn told(messages: Vec<Value>) -> String {
        let earlier = Cell::new(3, "fn area(w: f32) -> f32 { w }", vec![]);
        let cell = Cell::new(7, "let s = 1;\narea(s)", vec![]);
        let source = "fn area(w: f32) -> f32 { w }\npub extern \"C\" fn run_user_code_1(\nlet s = 1;\n(\narea(s)\n).evcxr_display();\n}\n";
        let map = SourceMap::new(source, Some(&cell), &[earlier]);
        let failed = Failed {
            source: source.into(),
            messages,
        };
        plain(&failure(&failed, &map, &cell).expect("an error"))
    }

    #[test]
    fn a_note_is_not_shown_in_place_of_its_error() {
        let note = json!({ "level": "note", "message": "function defined here", "spans": [span(1, 4..8, "", true)] });
        let error = json!({ "level": "error", "message": "mismatched types", "code": { "code": "E0308" },
                            "spans": [span(5, 6..7, "expected `f32`, found integer", true)], "children": [note] });
        assert_eq!(
            told(vec![error]),
            "error[E0308]: mismatched types\n  |\n2 | area(s)\n  |      ^ expected `f32`, found integer\n  = note: function defined here\n  \
             --> in `area` of cell 3\n  |\n1 | fn area(w: f32) -> f32 { w }\n  |    ^^^^"
        );
    }

    #[test]
    fn an_error_in_an_earlier_cell_is_named() {
        let error = json!({ "level": "error", "message": "this function takes 1 argument", "code": { "code": "E0061" },
                            "spans": [span(1, 26..27, "", true)], "children": [] });
        assert!(told(vec![error]).contains("--> in `area` of cell 3"));
    }

    #[test]
    fn types_of_the_prelude_have_the_name_that_cells_use() {
        let error = json!({ "level": "error", "message": "`cloze_prelude::prelude::Tensor` is no number", "code": null,
                            "spans": [span(3, 5..6, "not for `cloze_prelude::prelude::Tensor`", true)], "children": [] });
        let told = told(vec![error]);
        assert!(
            !told.contains("cloze_prelude") && told.matches("cloze::prelude::Tensor").count() == 2,
            "{told}"
        );
    }

    #[test]
    fn errors_in_generated_code_are_hidden_if_a_cell_has_errors() {
        let generated = json!({ "level": "error", "message": "cannot find type `X`", "code": { "code": "E0412" },
                                "spans": [span(2, 1..2, "", true)], "children": [] });
        let own = json!({ "level": "error", "message": "oh", "code": null, "spans": [span(3, 5..6, "", true)], "children": [] });
        assert!(!told(vec![generated.clone(), own]).contains("E0412"));
        assert!(told(vec![generated]).contains("E0412"));
    }

    #[test]
    fn an_error_after_the_cell_is_reported_at_its_end() {
        let error = json!({ "level": "error", "message": "expected identifier, found `#`", "code": null,
                            "spans": [span(2, 1..2, "", true)], "children": [] });
        let told = told(vec![error]);
        assert!(
            told.ends_with("2 | area(s)\n  |        ^ the cell ends here"),
            "{told}"
        );
    }

    #[test]
    fn all_parts_of_a_suggestion_are_applied_to_the_line() {
        let part = |columns: std::ops::Range<usize>, text: &str| {
            let mut span = span(5, columns, "", true);
            span["suggested_replacement"] = text.into();
            span
        };
        let help = json!({ "level": "help", "message": "try", "spans": [part(6..6, "Some("), part(7..7, ")")] });
        let error = json!({ "level": "error", "message": "no", "code": null, "spans": [span(5, 6..7, "", true)], "children": [help] });
        assert!(told(vec![error]).contains("area(Some(s))"));
    }
}
