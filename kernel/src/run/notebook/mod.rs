//! Notebook files: reads them, adds outputs and writes them. Unknown fields are preserved.

mod stream;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::session::event::{Display, Event, Stream};
use crate::session::failure::Failure;
use crate::{Error, Result};

use self::stream::StreamText;

/// A notebook in format 4.
#[derive(Clone, Debug)]
pub struct Notebook {
    path: PathBuf,
    root: Value,
    /// The cell and the output of each display that has an id.
    displays: HashMap<String, Vec<(usize, usize)>>,
    /// Whether to clear the running cell's outputs at its next output.
    clear_next: bool,
    /// The stream text that the running cell is printing, until another output follows.
    open: Option<OpenText>,
}

/// Text of one stream that may continue; it is copied into its output when it is complete.
#[derive(Clone, Debug)]
struct OpenText {
    cell: usize,
    output: usize,
    stream: Stream,
    text: StreamText,
}

impl Notebook {
    /// Reads a notebook.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::file(path))?;
        Self::parse(path, &bytes)
    }

    /// Parses a notebook.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let wrong = |problem: String| Error::Notebook {
            path: path.to_owned(),
            problem,
        };
        let text = std::str::from_utf8(bytes).map_err(|_| wrong("it is not UTF-8 text".into()))?;
        // Some editors write a byte order mark.
        let text = text.trim_start_matches('\u{feff}');
        if text.trim().is_empty() {
            return Err(wrong("the file is empty".into()));
        }
        let root: Value = serde_json::from_str(text)
            .map_err(|error| wrong(format!("it is not JSON: {error}")))?;
        match root["nbformat"].as_u64() {
            Some(4) => {}
            Some(other) => {
                return Err(wrong(format!(
                    "its format is {other}, but only format 4 is supported; `jupyter nbconvert --to notebook --nbformat 4 {}` converts it",
                    path.display()
                )));
            }
            None => return Err(wrong("it has no `nbformat`".into())),
        }
        if !root["cells"].is_array() {
            return Err(wrong("it has no `cells`".into()));
        }
        let notebook = Self {
            path: path.to_owned(),
            root,
            displays: HashMap::new(),
            clear_next: false,
            open: None,
        };
        match notebook.other_language() {
            Some(language) => Err(wrong(format!(
                "its language is {language}, but this kernel runs Rust"
            ))),
            None => Ok(notebook),
        }
    }

    /// Returns the notebook's language if it is stated, or if the code is plainly not Rust.
    fn other_language(&self) -> Option<String> {
        let metadata = &self.root["metadata"];
        let named = metadata["kernelspec"]["language"]
            .as_str()
            .or(metadata["language_info"]["name"].as_str());
        if let Some(language) = named {
            let is_rust = language.eq_ignore_ascii_case("rust");
            return (!is_rust).then(|| language.to_owned());
        }
        // Kernelspecs that name no language: the kernels of most notebooks.
        let kernel = metadata["kernelspec"]["name"].as_str().unwrap_or_default();
        if kernel.starts_with("python") || kernel == "ir" || kernel.starts_with("julia") {
            return Some(kernel.to_owned());
        }
        let python = kernel.is_empty()
            && self.code_cells().iter().any(|&cell| {
                let source = self.source(cell);
                source.lines().any(super::foreign::is_python)
            });
        python.then(|| "Python, judging by its cells".into())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    fn cells(&self) -> &[Value] {
        self.root["cells"].as_array().map_or(&[], Vec::as_slice)
    }

    fn cell_mut(&mut self, cell: usize) -> &mut Value {
        &mut self.root["cells"][cell]
    }

    /// Returns the indexes of the code cells.
    pub fn code_cells(&self) -> Vec<usize> {
        (0..self.cells().len())
            .filter(|&cell| self.cells()[cell]["cell_type"] == "code")
            .collect()
    }

    /// Returns the source of a cell, without a byte order mark.
    pub fn source(&self, cell: usize) -> String {
        let source = text(&self.cells()[cell]["source"]);
        source.trim_start_matches('\u{feff}').to_owned()
    }

    /// Returns the first cell with a tag.
    pub fn tagged(&self, tag: &str) -> Option<usize> {
        (0..self.cells().len()).find(|&cell| self.has_tag(cell, tag))
    }

    /// Whether a cell has a tag.
    pub fn has_tag(&self, cell: usize, tag: &str) -> bool {
        self.cells()[cell]["metadata"]["tags"]
            .as_array()
            .is_some_and(|tags| tags.iter().any(|other| other == tag))
    }

    /// Inserts a new code cell with a tag.
    pub fn insert(&mut self, at: usize, source: &str, tag: &str) {
        let mut cell = json!({
            "cell_type": "code",
            "execution_count": null,
            "id": tag,
            "metadata": { "tags": [tag] },
            "outputs": [],
            "source": lines(source),
        });
        let has_ids = self.root["nbformat_minor"]
            .as_u64()
            .is_some_and(|minor| minor >= 5);
        if !has_ids && let Some(cell) = cell.as_object_mut() {
            cell.remove("id");
        }
        if let Some(cells) = self.root["cells"].as_array_mut() {
            cells.insert(at, cell);
        }
    }

    /// Replaces a cell's source.
    pub fn set_source(&mut self, cell: usize, source: &str) {
        self.cell_mut(cell)["source"] = lines(source);
    }

    /// Begins a cell, as number `count` of the session: its earlier outputs are removed.
    pub fn begin(&mut self, cell: usize, count: usize) {
        self.close_text();
        self.clear_next = false;
        self.clear_cell(cell);
        self.cell_mut(cell)["execution_count"] = json!(count);
    }

    /// Adds an event to a cell's outputs.
    pub fn add(&mut self, cell: usize, event: &Event) {
        match event {
            Event::Text(stream, text) => {
                self.clear_if_due(cell);
                self.add_text(cell, *stream, text);
            }
            Event::Display(display) => self.add_display(cell, display),
            Event::Clear { wait: true } => self.clear_next = true,
            Event::Clear { wait: false } => self.clear_cell(cell),
            Event::Input { .. } | Event::Reads | Event::Waiting(_) => {}
        }
    }

    /// Adds a failure to a cell's outputs.
    pub fn fail(&mut self, cell: usize, failure: &Failure) {
        self.push(
            cell,
            json!({
                "ename": failure.name,
                "evalue": failure.value,
                "output_type": "error",
                "traceback": failure.traceback,
            }),
        );
    }

    fn push(&mut self, cell: usize, output: Value) -> usize {
        self.close_text();
        let Some(outputs) = self.cell_mut(cell)["outputs"].as_array_mut() else {
            return 0;
        };
        outputs.push(output);
        outputs.len() - 1
    }

    fn clear_if_due(&mut self, cell: usize) {
        if std::mem::take(&mut self.clear_next) {
            self.clear_cell(cell);
        }
    }

    fn clear_cell(&mut self, cell: usize) {
        self.open = None;
        self.cell_mut(cell)["outputs"] = json!([]);
        for places in self.displays.values_mut() {
            places.retain(|(other, _)| *other != cell);
        }
    }

    fn add_text(&mut self, cell: usize, stream: Stream, new: &str) {
        if let Some(open) = &mut self.open
            && open.cell == cell
            && open.stream == stream
        {
            return open.text.push(new);
        }
        let output = json!({ "name": stream.name(), "output_type": "stream", "text": [] });
        let output = self.push(cell, output);
        let mut text = StreamText::default();
        text.push(new);
        self.open = Some(OpenText {
            cell,
            output,
            stream,
            text,
        });
    }

    /// Copies the open text into its output: it is complete.
    fn close_text(&mut self) {
        if let Some(open) = self.open.take() {
            self.cell_mut(open.cell)["outputs"][open.output]["text"] =
                lines(&open.text.into_text());
        }
    }

    fn add_display(&mut self, cell: usize, display: &Display) {
        let data: Map<String, Value> = display
            .data
            .iter()
            .map(|(mime, value)| (mime.clone(), content(mime, value)))
            .collect();
        let metadata = &display.metadata;
        let places = display
            .display_id
            .as_ref()
            .and_then(|id| self.displays.get(id))
            .cloned()
            .unwrap_or_default();
        for (cell, output) in &places {
            let output = &mut self.cell_mut(*cell)["outputs"][*output];
            output["data"] = Value::Object(data.clone());
            output["metadata"] = json!(metadata);
        }
        if display.update && !places.is_empty() {
            return;
        }
        self.clear_if_due(cell);
        let output = if display.is_result {
            let count = self.cells()[cell]["execution_count"].clone();
            json!({ "data": data, "execution_count": count, "metadata": metadata, "output_type": "execute_result" })
        } else {
            json!({ "data": data, "metadata": metadata, "output_type": "display_data" })
        };
        let place = self.push(cell, output);
        if let Some(id) = &display.display_id {
            self.displays
                .entry(id.clone())
                .or_default()
                .push((cell, place));
        }
    }

    /// Serializes the notebook the way Jupyter does.
    pub fn json(&mut self) -> Result<Vec<u8>> {
        self.close_text();
        let mut json = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b" ");
        self.root
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut json, indent,
            ))
            .map_err(|error| error.to_string())?;
        json.push(b'\n');
        Ok(json)
    }
}

/// Joins a text that may be stored as one string or as a list of lines.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => String::new(),
    }
}

/// Splits a text into the list of lines that the format stores, each with its newline.
fn lines(text: &str) -> Value {
    text.split_inclusive('\n').collect::<Vec<_>>().into()
}

fn content(mime: &str, value: &Value) -> Value {
    let is_text =
        mime.starts_with("text/") || mime == "image/svg+xml" || mime == "application/javascript";
    match value {
        Value::String(text) if is_text => lines(text),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notebook() -> Notebook {
        let text = json!({
            "cells": [
                { "cell_type": "markdown", "id": "a", "metadata": {}, "source": "# Title" },
                { "cell_type": "code", "id": "b", "execution_count": 7, "metadata": { "mine": 1 },
                  "outputs": [{ "output_type": "stream", "name": "stdout", "text": "old" }], "source": ["let a = 1;\n", "a"] },
            ],
            "metadata": { "kernelspec": { "name": "x", "language": "rust" }, "unknown": { "kept": true } },
            "nbformat": 4, "nbformat_minor": 5,
        });
        Notebook::parse(Path::new("n.ipynb"), text.to_string().as_bytes()).expect("a notebook")
    }

    fn out(text: &str) -> Event {
        Event::Text(Stream::Stdout, text.to_owned())
    }

    fn html(text: &str, id: Option<&str>, update: bool) -> Event {
        let data = [("text/html".to_owned(), Value::from(text))]
            .into_iter()
            .collect();
        Event::Display(Display {
            data,
            metadata: Map::new(),
            display_id: id.map(str::to_owned),
            update,
            is_result: false,
        })
    }

    #[test]
    fn a_cells_source_joins_its_lines() {
        let notebook = notebook();
        assert_eq!(notebook.code_cells(), [1]);
        assert_eq!(notebook.source(1), "let a = 1;\na");
    }

    #[test]
    fn consecutive_text_of_a_stream_is_joined() {
        let mut notebook = notebook();
        notebook.begin(1, 1);
        for event in [
            out("a"),
            out("b\n"),
            Event::Text(Stream::Stderr, "c".into()),
            out("d"),
        ] {
            notebook.add(1, &event);
        }
        notebook.close_text();
        let outputs = &notebook.root["cells"][1]["outputs"];
        assert_eq!(outputs.as_array().map(Vec::len), Some(3));
        assert_eq!(outputs[0]["text"], json!(["ab\n"]));
        assert_eq!(outputs[1]["name"], "stderr");
    }

    #[test]
    fn only_the_last_state_of_a_progress_line_is_kept() {
        let mut notebook = notebook();
        notebook.begin(1, 1);
        for step in 0..1000 {
            notebook.add(1, &out(&format!("\r{step}/1000")));
        }
        notebook.add(1, &out("\ndone\n"));
        notebook.close_text();
        assert_eq!(
            notebook.root["cells"][1]["outputs"][0]["text"],
            json!(["999/1000\n", "done\n"])
        );
    }

    #[test]
    fn an_update_replaces_the_display_with_its_id() {
        let mut notebook = notebook();
        notebook.begin(1, 1);
        notebook.add(1, &html("1", Some("p"), false));
        notebook.add(1, &out("between\n"));
        notebook.add(1, &html("2", Some("p"), true));
        let outputs = &notebook.root["cells"][1]["outputs"];
        assert_eq!(outputs.as_array().map(Vec::len), Some(2));
        assert_eq!(outputs[0]["data"]["text/html"], json!(["2"]));
    }

    #[test]
    fn clearing_can_wait_for_the_next_output() {
        let mut notebook = notebook();
        notebook.begin(1, 1);
        notebook.add(1, &out("a"));
        notebook.add(1, &Event::Clear { wait: true });
        assert_eq!(
            notebook.root["cells"][1]["outputs"]
                .as_array()
                .map(Vec::len),
            Some(1)
        );
        notebook.add(1, &html("b", None, false));
        assert_eq!(
            notebook.root["cells"][1]["outputs"][0]["data"]["text/html"],
            json!(["b"])
        );
    }

    #[test]
    fn unknown_fields_and_unreached_cells_are_preserved() {
        let json = notebook().json().expect("JSON");
        let again = Notebook::parse(Path::new("n.ipynb"), &json);
        let again = again.expect("a notebook");
        assert_eq!(again.root, notebook().root);
        assert_eq!(again.root["cells"][1]["outputs"][0]["text"], "old");
    }

    #[test]
    fn many_short_lines_take_linear_time() {
        let mut notebook = notebook();
        notebook.begin(1, 1);
        let start = std::time::Instant::now();
        for line in 0..300_000 {
            notebook.add(1, &out(&format!("line {line}\n")));
        }
        notebook.json().expect("JSON");
        assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
        let text = &notebook.root["cells"][1]["outputs"][0]["text"];
        assert_eq!(text.as_array().map(Vec::len), Some(300_000));
    }

    #[test]
    fn a_notebook_of_another_language_is_refused() {
        for (metadata, told) in [
            (json!({ "kernelspec": { "language": "python" } }), "python"),
            (json!({ "kernelspec": { "name": "python3" } }), "python3"),
            (json!({ "language_info": { "name": "R" } }), "R"),
            (json!({}), "Python"),
        ] {
            let cell = json!({ "cell_type": "code", "metadata": {}, "outputs": [], "source": "from os import path\npath" });
            let text = json!({ "cells": [cell], "metadata": metadata, "nbformat": 4 }).to_string();
            let error =
                Notebook::parse(Path::new("n.ipynb"), text.as_bytes()).expect_err("refused");
            assert!(error.to_string().contains(told), "{error}");
        }
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_old_formats_are_refused_by_name() {
        let text = "\u{feff}{\"cells\": [], \"metadata\": {}, \"nbformat\": 4}";
        assert!(Notebook::parse(Path::new("n.ipynb"), text.as_bytes()).is_ok());
        let old = "{\"worksheets\": [], \"nbformat\": 3}";
        let error = Notebook::parse(Path::new("n.ipynb"), old.as_bytes()).expect_err("refused");
        assert!(error.to_string().contains("nbconvert"), "{error}");
        let error = Notebook::parse(Path::new("n.ipynb"), b" \n").expect_err("refused");
        assert!(error.to_string().contains("empty"), "{error}");
    }
}
