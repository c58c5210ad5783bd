//! The compiler's messages about a cell that did not compile, kept by the stand-in for cargo: evcxr's own report shows
//! an error's note in place of the error, and drops messages about code outside the cell.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file that the stand-in writes in the session's folder.
const FILE: &str = "failed.json";

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
                true => Some(message["message"].clone()),
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

/// Returns the compiler's messages without the positions of notes: evcxr would mistake a note in the cell for the error
/// itself.
pub fn for_evcxr(said: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in said.split_inclusive(|&byte| byte == b'\n') {
        match serde_json::from_slice::<Value>(line) {
            Ok(mut message) => {
                let of_compiler = match message["message"].is_object() {
                    true => &mut message["message"],
                    false => &mut message,
                };
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
}
