//! The compiler's messages about a cell that did not compile, kept by the stand-in for cargo: evcxr's own report shows
//! an error's note in place of the error, and drops messages about code outside the cell.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file that the stand-in writes in the session's folder.
const FILE: &str = "failed.json";

/// The crate that evcxr generates for each cell.
pub const CELL: &str = "ctx";
/// In a message about another crate: its name, and its manifest.
pub const CRATE: &str = "crate";
pub const MANIFEST: &str = "manifest";

/// A failed compilation: the source, and the compiler's messages.
#[derive(Debug, Deserialize, Serialize)]
pub struct Failed {
    pub source: String,
    pub messages: Vec<Value>,
}

impl Failed {
    /// Keeps the JSON messages, one per line, of the compiler or of cargo.
    pub fn write(folder: &Path, source: &str, said: &[u8]) {
        let messages = String::from_utf8_lossy(said)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| match message["message"].is_object() {
                true => {
                    let mut of_compiler = message["message"].clone();
                    if let Some(name) = other_crate(&message) {
                        of_compiler[CRATE] = name.into();
                        of_compiler[MANIFEST] = message["manifest_path"].clone();
                    }
                    Some(of_compiler)
                }
                false => message["message"].is_string().then_some(message),
            })
            .filter(|message| message["level"] == "error")
            .collect();
        let failed = Self {
            source: source.to_owned(),
            messages,
        };
        // If this fails, evcxr's own report is used.
        let _ = serde_json::to_vec(&failed).map(|json| fs::write(folder.join(FILE), json));
    }

    /// Returns the last failure since [`forget`](Self::forget).
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Deletes the record, when a new cell begins.
    pub fn forget(folder: &Path) {
        let _ = fs::remove_file(folder.join(FILE));
    }
}

/// Returns the crate that one of cargo's messages is about, unless it is the cell.
fn other_crate(message: &Value) -> Option<&str> {
    message["target"]["name"]
        .as_str()
        .filter(|name| *name != CELL)
}

/// Returns the compiler's messages without the positions of notes, which evcxr would mistake for the error itself if they
/// are in the cell, and without positions in other crates, which it would look for in the cell.
pub fn for_evcxr(said: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in said.split_inclusive(|&byte| byte == b'\n') {
        match serde_json::from_slice::<Value>(line) {
            Ok(mut message) => {
                let elsewhere = other_crate(&message).is_some();
                let of_compiler = match message["message"].is_object() {
                    true => &mut message["message"],
                    false => &mut message,
                };
                if elsewhere && of_compiler["spans"].is_array() {
                    of_compiler["spans"] = Value::Array(Vec::new());
                }
                if let Some(children) = of_compiler
                    .get_mut("children")
                    .and_then(Value::as_array_mut)
                {
                    for child in children {
                        child["spans"] = Value::Array(Vec::new());
                    }
                }
                out.extend(message.to_string().as_bytes());
                out.push(b'\n');
            }
            Err(_) => out.extend(line),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn positions_of_notes_are_withheld_from_evcxr() {
        let said = json!({ "reason": "compiler-message", "message": { "message": "m", "spans": [1], "children": [{ "spans": [2] }] } });
        let passed = for_evcxr(format!("{said}\nnot JSON\n").as_bytes());
        let passed = String::from_utf8_lossy(&passed).into_owned();
        assert!(
            passed.contains("\"spans\":[1]") && passed.contains("\"spans\":[]"),
            "{passed}"
        );
        assert!(passed.ends_with("not JSON\n"));
    }
    #[test]
    fn messages_about_other_crates_name_them_and_have_no_position_in_the_cell() {
        let of = |name: &str| {
            json!({
                "reason": "compiler-message", "manifest_path": "/a/Cargo.toml", "target": { "name": name },
                "message": { "message": "m", "level": "error", "spans": [{ "line_start": 9000 }], "children": [] }
            })
        };
        let said = format!("{}\n{}\n", of("helper"), of(CELL));
        let passed = String::from_utf8_lossy(&for_evcxr(said.as_bytes())).into_owned();
        assert_eq!(passed.matches("9000").count(), 1, "{passed}");
        let folder = tempfile::tempdir().expect("a folder");
        Failed::write(folder.path(), "source", said.as_bytes());
        let failed = Failed::read(folder.path()).expect("a record");
        assert_eq!(failed.messages[0][CRATE], "helper");
        assert_eq!(failed.messages[0][MANIFEST], "/a/Cargo.toml");
        assert!(failed.messages[1][CRATE].is_null());
    }
}
