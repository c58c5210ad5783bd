//! What a cell does while it runs, as a front end shows it.

use std::sync::Arc;

use serde_json::{Map, Value};

/// Where what happens goes. Called in the order in which it happened.
pub type Sink = Arc<dyn Fn(Event) + Send + Sync>;

/// Where text was printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// The name that the protocol and the notebook format use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Something shown: one thing in one or several representations.
#[derive(Clone, Debug, PartialEq)]
pub struct Display {
    /// Content by MIME type.
    pub data: Map<String, Value>,
    /// Metadata by MIME type.
    pub metadata: Map<String, Value>,
    /// The name under which it can be replaced later.
    pub display_id: Option<String>,
    /// Whether it replaces the display of that name.
    pub update: bool,
    /// Whether it is the value of the cell's last expression.
    pub is_result: bool,
}

/// One thing that happened, in the order in which it did.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Text(Stream, String),
    Display(Display),
    /// Forget what the cell has shown so far; with `wait`, when something new is shown.
    Clear {
        wait: bool,
    },
    /// The cell waits for a line of input.
    Input {
        prompt: String,
        password: bool,
    },
    /// The cell reads its input, in which there is nothing, without having asked.
    Reads,
    /// What the kernel itself is doing meanwhile: building, compiling, starting.
    Waiting(String),
}
