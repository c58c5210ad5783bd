//! The thread that owns the session. Requests that need the session queue here; everything else is answered elsewhere.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use jupyter_protocol::{
    ExecuteReply, ExecutionState, JupyterMessage, JupyterMessageContent, ReplyStatus,
};
use tokio::sync::mpsc::UnboundedSender;

use super::history::History;
use super::iopub::IoPub;
use super::stdin::Ask;
use super::waiting::Waiting;
use super::{complete, execute, inspect};
use crate::Error;
use crate::evcxr::session_dir::SessionDir;
use crate::session::Session;
use crate::session::event::{Event, Sink};
use crate::session::failure::Failure;
use crate::session::remote::Remote;
use crate::toolchain::prelude::Sources;

/// How long to wait for requests that were already on their way when a cell failed.
const IN_TRANSIT: Duration = Duration::from_millis(100);

/// The name of the failure of a start that the user stopped.
const INTERRUPTED: &str = "Interrupted";

/// The state that the evaluator's handlers work with.
pub struct Evaluator {
    pub iopub: IoPub,
    pub replies: UnboundedSender<JupyterMessage>,
    pub history: Arc<Mutex<History>>,
    pub remote: Remote,
    /// The number of the last cell.
    pub count: usize,
    /// A warning to show before anything runs.
    pub warning: Option<String>,
    session_dir: Arc<SessionDir>,
    sources: Option<Sources>,
    events: Sink,
    waiting: Waiting,
    session: Option<Session>,
    /// How the start of the session was interrupted while a cell waited for it: that cell fails instead of starting it again.
    interrupted: Option<Failure>,
    /// Incoming requests.
    line: Receiver<Arc<JupyterMessage>>,
    /// Requests already taken from the channel.
    next: VecDeque<Arc<JupyterMessage>>,
}

/// The parts of a new evaluator.
pub struct Parts {
    pub iopub: IoPub,
    pub replies: UnboundedSender<JupyterMessage>,
    pub history: Arc<Mutex<History>>,
    pub remote: Remote,
    pub session_dir: Arc<SessionDir>,
    pub sources: Option<Sources>,
    pub waiting: Waiting,
    pub ask: Ask,
}

/// Starts the thread. Requests sent to the returned channel are handled one after the other.
pub fn start(parts: Parts) -> std::io::Result<Sender<Arc<JupyterMessage>>> {
    let (requests, line) = crossbeam_channel::unbounded();
    let waiting = parts.waiting;
    let events: Sink = {
        let (iopub, waiting, ask) = (parts.iopub.clone(), waiting.clone(), parts.ask);
        let remote = parts.remote.clone();
        Arc::new(move |event| match (event, iopub.running()) {
            (Event::Waiting(what), _) => waiting.on(what),
            (Event::Reads, _) if !remote.reads() => {}
            (event @ (Event::Input { .. } | Event::Reads), running) => {
                let (prompt, password) = match event {
                    Event::Input { prompt, password } => (prompt, password),
                    _ => (String::new(), false),
                };
                remote.asks();
                match running {
                    Some((request, _)) => ask(&request, prompt, password),
                    // A silent cell can't ask for input.
                    None => drop(remote.end_input()),
                }
            }
            (event, Some((request, count))) => iopub.happened(&request, count, event),
            // Output of a thread after its cell has ended can't be attributed to any request.
            (_, None) => {}
        })
    };
    let mut evaluator = Evaluator {
        iopub: parts.iopub,
        replies: parts.replies,
        history: parts.history,
        remote: parts.remote,
        count: 0,
        warning: match parts.sources {
            Some(_) => None,
            None => Some(format!("{}\n", Sources::missing())),
        },
        session_dir: parts.session_dir,
        sources: parts.sources,
        events,
        waiting,
        session: None,
        interrupted: None,
        line,
        next: VecDeque::new(),
    };
    std::thread::Builder::new()
        .name("evaluator".into())
        .stack_size(crate::code::STACK)
        .spawn(move || evaluator.run())?;
    Ok(requests)
}

impl Evaluator {
    fn run(&mut self) {
        // Start the session before the first request; if that fails, the first request starts it again and reports it.
        if let Err(failure) = self.session()
            && failure.name == INTERRUPTED
        {
            self.take_in_queue();
            let waits = self.next.iter().any(is_cell);
            self.interrupted = waits.then_some(failure);
        }
        if self.line.is_empty()
            && let Some(session) = &mut self.session
        {
            session.warm_up();
        }
        loop {
            let request = match self.next.pop_front() {
                Some(request) => request,
                None => match self.line.recv() {
                    Ok(request) => request,
                    Err(_) => return,
                },
            };
            self.iopub.status(Some(&request), ExecutionState::Busy);
            let stop = self.handle(&request);
            self.iopub.status(Some(&request), ExecutionState::Idle);
            if stop {
                self.abort();
            }
        }
    }

    /// Answers a request. Returns true if the cells queued after it must not run.
    fn handle(&mut self, request: &Arc<JupyterMessage>) -> bool {
        match &request.content {
            JupyterMessageContent::ExecuteRequest(content) => {
                execute::handle(self, request, content)
            }
            JupyterMessageContent::CompleteRequest(content) => {
                let reply = complete::handle(self.session.as_mut(), content);
                self.reply(request, reply);
                false
            }
            JupyterMessageContent::InspectRequest(content) => {
                let reply = inspect::handle(self.session.as_mut(), content);
                self.reply(request, reply);
                false
            }
            _ => false,
        }
    }

    /// Takes in requests that were sent before the running cell's reply: whoever sends a later one has seen the
    /// failure.
    pub fn take_in_queue(&mut self) {
        let end = Instant::now() + IN_TRANSIT;
        while let Ok(request) = self.line.recv_deadline(end) {
            self.next.push_back(request);
        }
    }

    /// Answers the cells queued after a failed one, without running them.
    fn abort(&mut self) {
        for request in std::mem::take(&mut self.next) {
            if !is_cell(&request) {
                self.next.push_back(request);
                continue;
            }
            self.iopub.status(Some(&request), ExecutionState::Busy);
            let aborted = Failure::new("Aborted", "an earlier cell failed");
            self.reply(
                &request,
                ExecuteReply {
                    status: ReplyStatus::Aborted,
                    execution_count: self.count.into(),
                    payload: vec![],
                    user_expressions: Some(Default::default()),
                    error: Some(Box::new(execute::error(&aborted))),
                },
            );
            self.iopub.status(Some(&request), ExecutionState::Idle);
        }
    }

    /// Returns the session for a cell, starting it if necessary.
    pub fn session_for_cell(&mut self) -> Result<&mut Session, Failure> {
        match self.interrupted.take() {
            Some(failure) => Err(failure),
            None => self.session(),
        }
    }

    /// Returns the session, starting it if necessary.
    pub fn session(&mut self) -> Result<&mut Session, Failure> {
        if self.session.is_none() {
            let started = Session::start(
                self.session_dir.clone(),
                self.sources.as_ref(),
                self.remote.clone(),
                self.events.clone(),
            );
            self.waiting.over();
            let started = started.map_err(|error| {
                let name = match error {
                    Error::Interrupted { .. } => INTERRUPTED,
                    _ => "KernelError",
                };
                Failure::new(name, error.to_string())
            })?;
            started.expect_completions();
            self.session = Some(started);
        }
        self.session
            .as_mut()
            .ok_or_else(|| Failure::new("KernelError", "there is no session"))
    }

    pub fn reply(&self, request: &Arc<JupyterMessage>, content: impl Into<JupyterMessageContent>) {
        let _ = self
            .replies
            .send(JupyterMessage::new(content, Some(request)));
    }

    pub fn remember(&self, count: usize, code: &str) {
        self.history
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .add(count, code);
    }
}

/// Whether a request is to run a cell.
fn is_cell(request: &Arc<JupyterMessage>) -> bool {
    matches!(request.content, JupyterMessageContent::ExecuteRequest(_))
}
