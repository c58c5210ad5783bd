//! Notebook files: read, given outputs, written. What we do not know in them is kept as it is.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::event::{Display, Event, Stream};
use crate::failure::Failure;
use crate::{Error, Result};

/// A notebook of format 4.
#[derive(Clone, Debug)]
pub struct Notebook {
    path: PathBuf,
    root: Value,
    /// Where each display with a name is: the cell and the output.
    displays: HashMap<String, Vec<(usize, usize)>>,
    /// Cells whose outputs are to be cleared when something new is shown.
    clear_next: bool,
}

impl Notebook {
    /// Reads a notebook.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(Error::file(path))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let wrong = |problem: String| Error::Notebook {
            path: path.to_owned(),
            problem,
        };
        let root: Value = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
        match root["nbformat"].as_u64() {
            Some(4) => {}
            Some(other) => return Err(wrong(format!("its format is {other}, and 4 is read"))),
            None => return Err(wrong("it has no `nbformat`".into())),
        }
        if !root["cells"].is_array() {
            return Err(wrong("it has no list of cells".into()));
        }
        let language = root["metadata"]["kernelspec"]["language"].as_str();
        let language = language
            .or(root["metadata"]["language_info"]["name"].as_str())
            .unwrap_or("rust");
        if !language.eq_ignore_ascii_case("rust") {
            return Err(wrong(format!("its language is {language}")));
        }
        Ok(Self {
            path: path.to_owned(),
            root,
            displays: HashMap::new(),
            clear_next: false,
        })
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

    /// The places of the cells that hold code.
    pub fn code_cells(&self) -> Vec<usize> {
        (0..self.cells().len())
            .filter(|&cell| self.cells()[cell]["cell_type"] == "code")
            .collect()
    }

    /// The source of a cell.
    pub fn source(&self, cell: usize) -> String {
        text(&self.cells()[cell]["source"])
    }

    /// The first cell with a tag.
    pub fn tagged(&self, tag: &str) -> Option<usize> {
        self.cells().iter().position(|cell| {
            cell["metadata"]["tags"]
                .as_array()
                .is_some_and(|tags| tags.iter().any(|other| other == tag))
        })
    }

    /// Puts in a new code cell with a tag.
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

    /// Forgets all outputs, as before a run.
    pub fn clear(&mut self) {
        for cell in self.code_cells() {
            let cell = self.cell_mut(cell);
            cell["outputs"] = json!([]);
            cell["execution_count"] = Value::Null;
        }
    }

    /// A cell begins to run, as number `count` of the session.
    pub fn begin(&mut self, cell: usize, count: usize) {
        self.clear_next = false;
        self.cell_mut(cell)["execution_count"] = json!(count);
    }

    /// Adds to a cell's outputs what it did.
    pub fn add(&mut self, cell: usize, event: &Event) {
        match event {
            Event::Text(stream, text) => {
                self.clear_if_due(cell);
                self.add_text(cell, *stream, text);
            }
            Event::Display(display) => self.add_display(cell, display),
            Event::Clear { wait: true } => self.clear_next = true,
            Event::Clear { wait: false } => self.clear_cell(cell),
            Event::Input { .. } | Event::Waiting(_) => {}
        }
    }

    /// Adds a cell's failure to its outputs.
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
        self.cell_mut(cell)["outputs"] = json!([]);
        for places in self.displays.values_mut() {
            places.retain(|(other, _)| *other != cell);
        }
    }

    fn add_text(&mut self, cell: usize, stream: Stream, new: &str) {
        let last = self.cell_mut(cell)["outputs"]
            .as_array_mut()
            .and_then(|outputs| outputs.last_mut());
        if let Some(last) =
            last.filter(|last| last["output_type"] == "stream" && last["name"] == stream.name())
        {
            last["text"] = lines(&overwrite(&(text(&last["text"]) + new)));
            return;
        }
        self.push(cell, json!({ "name": stream.name(), "output_type": "stream", "text": lines(&overwrite(new)) }));
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

    /// Writes the notebook as Jupyter does, all of it or nothing.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut json = Vec::new();
        let indent = serde_json::ser::PrettyFormatter::with_indent(b" ");
        self.root
            .serialize(&mut serde_json::Serializer::with_formatter(
                &mut json, indent,
            ))
            .map_err(|error| error.to_string())?;
        json.push(b'\n');
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::Builder::new()
                .prefix(".cloze-")
                .suffix(".ipynb")
                .tempfile_in(folder)?;
            file.write_all(&json)?;
            file.as_file().sync_all()?;
            // A temporary file is private; a notebook is what other new files are, or what it was.
            let permissions = match fs::metadata(path) {
                Ok(old) => old.permissions(),
                Err(_) => std::os::unix::fs::PermissionsExt::from_mode(0o666 & !umask()),
            };
            file.as_file().set_permissions(permissions)?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(Error::file(path))
    }
}

fn umask() -> u32 {
    // SAFETY: reads the mask by setting it and back; no other thread of this program makes files at the same time.
    unsafe {
        let mask = libc::umask(0o022);
        libc::umask(mask);
        mask
    }
}

/// A text that may be stored as one string or as a list of lines.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(lines) => lines.iter().filter_map(Value::as_str).collect(),
        _ => String::new(),
    }
}

/// A text as the format stores it: a list of lines, each with its newline.
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

/// What is left to see where a carriage return went back to the beginning of the line.
fn overwrite(text: &str) -> String {
    if !text.contains('\r') {
        return text.to_owned();
    }
    text.replace("\r\n", "\n")
        .split_inclusive('\n')
        .map(|line| {
            let (body, newline) = line
                .strip_suffix('\n')
                .map_or((line, ""), |body| (body, "\n"));
            // A return at the very end has overwritten nothing yet.
            let (body, returned) = body
                .strip_suffix('\r')
                .map_or((body, ""), |body| (body, "\r"));
            let last = body.rsplit('\r').next().unwrap_or_default();
            format!("{last}{returned}{newline}")
        })
        .collect()
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
        Notebook::parse(Path::new("n.ipynb"), &text.to_string()).expect("a notebook")
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
    fn a_cells_source_is_its_lines_together() {
        let notebook = notebook();
        assert_eq!(notebook.code_cells(), [1]);
        assert_eq!(notebook.source(1), "let a = 1;\na");
    }

    #[test]
    fn text_is_gathered_by_stream() {
        let mut notebook = notebook();
        notebook.clear();
        for event in [
            out("a"),
            out("b\n"),
            Event::Text(Stream::Stderr, "c".into()),
            out("d"),
        ] {
            notebook.add(1, &event);
        }
        let outputs = &notebook.root["cells"][1]["outputs"];
        assert_eq!(outputs.as_array().map(Vec::len), Some(3));
        assert_eq!(outputs[0]["text"], json!(["ab\n"]));
        assert_eq!(outputs[1]["name"], "stderr");
    }

    #[test]
    fn only_the_last_state_of_a_progress_line_is_kept() {
        let mut notebook = notebook();
        notebook.clear();
        for step in 0..1000 {
            notebook.add(1, &out(&format!("\r{step}/1000")));
        }
        notebook.add(1, &out("\ndone\n"));
        assert_eq!(
            notebook.root["cells"][1]["outputs"][0]["text"],
            json!(["999/1000\n", "done\n"])
        );
    }

    #[test]
    fn an_update_replaces_the_display_of_its_name() {
        let mut notebook = notebook();
        notebook.clear();
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
        notebook.clear();
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
    fn what_is_unknown_survives_a_write() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.ipynb");
        notebook().write(&path).expect("written");
        let again = Notebook::read(&path).expect("read");
        assert_eq!(again.root, notebook().root);
        assert_eq!(
            fs::read_dir(folder.path()).expect("listed").count(),
            1,
            "no temporary file stays"
        );
    }

    #[test]
    fn a_notebook_of_another_language_is_refused() {
        let text =
            r#"{"cells": [], "metadata": {"kernelspec": {"language": "python"}}, "nbformat": 4}"#;
        let error = Notebook::parse(Path::new("n.ipynb"), text).expect_err("refused");
        assert!(error.to_string().contains("python"), "{error}");
    }
}
