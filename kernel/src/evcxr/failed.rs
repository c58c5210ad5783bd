//! What the compiler said of a cell that did not compile, kept by the stand-in for cargo: evcxr's own report puts an error's
//! note in the place of the error, and drops what is not in the cell.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The file that the stand-in writes, in the session's folder.
const FILE: &str = "failed.json";

/// A compilation that failed: what was compiled, and what the compiler said.
#[derive(Debug, Deserialize, Serialize)]
pub struct Failed {
    pub source: String,
    pub messages: Vec<Value>,
}

impl Failed {
    /// Keeps what was said, in JSON one a line, by the compiler or by cargo.
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
        // Without it evcxr's report must do.
        let _ = serde_json::to_vec(&failed).map(|json| fs::write(folder.join(FILE), json));
    }

    /// The last one since it was [forgotten](Self::forget).
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// A new cell begins.
    pub fn forget(folder: &Path) {
        let _ = fs::remove_file(folder.join(FILE));
    }
}

/// What the compiler said, without the places of its notes: evcxr takes a note in the cell for the error itself.
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
    fn evcxr_gets_no_places_of_notes() {
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
