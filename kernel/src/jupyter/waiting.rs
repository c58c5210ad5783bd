//! Shows what a cell is waiting for while the session starts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jupyter_protocol::{
    ClearOutput, DisplayData, JupyterMessage, JupyterMessageContent, MediaType, Transient,
    UpdateDisplayData,
};

use super::iopub::IoPub;
use crate::session::STARTING;

/// The display that shows it.
const DISPLAY: &str = "cloze-waiting";

/// What the session's start is waiting for, shown in the output of the waiting cell.
#[derive(Clone)]
pub struct Waiting {
    iopub: IoPub,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    what: Option<String>,
    request: Option<Arc<JupyterMessage>>,
    shown: bool,
    over: bool,
}

impl Waiting {
    pub fn new(iopub: IoPub) -> Self {
        Self {
            iopub,
            state: Arc::default(),
        }
    }

    /// Sets what is being waited for.
    pub fn on(&self, what: String) {
        let mut state = self.state();
        state.over = false;
        state.what = Some(what);
        self.show(&mut state);
    }

    /// Called for each request: a cell has to wait if the session has not started yet.
    pub fn for_request(&self, request: &Arc<JupyterMessage>) {
        let is_cell = matches!(&request.content, JupyterMessageContent::ExecuteRequest(content) if !content.silent);
        let mut state = self.state();
        if is_cell && state.request.is_none() && !state.over {
            state.request = Some(request.clone());
            self.show(&mut state);
        }
    }

    /// Ends the display: the session has started.
    pub fn over(&self) {
        let state = std::mem::replace(
            &mut *self.state(),
            State {
                over: true,
                ..State::default()
            },
        );
        if state.shown {
            self.iopub
                .send(state.request.as_ref(), ClearOutput { wait: false });
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, state: &mut State) {
        let (Some(what), Some(request)) = (&state.what, &state.request) else {
            return;
        };
        // A start that builds nothing is over before anyone could read the message.
        if what == STARTING {
            return;
        }
        let data = MediaType::Plain(format!("Waiting: {what}"));
        let transient = Transient {
            display_id: Some(DISPLAY.into()),
        };
        if state.shown {
            let update = UpdateDisplayData {
                data: data.into(),
                metadata: Default::default(),
                transient,
            };
            self.iopub.send(Some(request), update);
        } else {
            let display = DisplayData {
                data: data.into(),
                metadata: Default::default(),
                transient: Some(transient),
            };
            self.iopub.send(Some(request), display);
        }
        state.shown = true;
    }
}
