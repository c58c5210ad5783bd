//! Events of a running cell, for front ends.

use std::sync::Arc;

use serde_json::{Map, Value};

/// Receives events, in the order in which they happened.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// The stream that text was printed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// Returns the name used by the protocol and the notebook format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A display: one value in one or several representations.
#[derive(Clone, Debug, PartialEq)]
pub struct Display {
    /// Content by MIME type.
    pub data: Map<String, Value>,
    /// Metadata by MIME type.
    pub metadata: Map<String, Value>,
    /// The id under which it can be replaced later.
    pub display_id: Option<String>,
    /// Whether it replaces the display with that id.
    pub update: bool,
    /// Whether it is the value of the cell's last expression.
    pub is_result: bool,
}

/// An event of a running cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Text(Stream, String),
    Display(Display),
    /// Clear the cell's output; with `wait`, only when the next output arrives.
    Clear {
        wait: bool,
    },
    /// The cell waits for a line of input.
    Input {
        prompt: String,
        password: bool,
    },
    /// The cell reads from its empty standard input without having asked for a line.
    Reads,
    /// The kernel's own activity: building, compiling, starting.
    Waiting(String),
}
