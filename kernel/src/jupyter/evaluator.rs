//! The thread that owns the session. Requests that need it wait here in line; everything else is answered beside it.

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
use crate::evcxr::session_dir::SessionDir;
use crate::session::Session;
use crate::session::event::{Event, Sink};
use crate::session::failure::Failure;
use crate::session::remote::Remote;
use crate::toolchain::prelude::Sources;

/// Requests that were on their way when a cell failed arrive within this time.
const IN_TRANSIT: Duration = Duration::from_millis(100);

/// What the evaluator's handlers work with.
pub struct Evaluator {
    pub iopub: IoPub,
    pub replies: UnboundedSender<JupyterMessage>,
    pub history: Arc<Mutex<History>>,
    pub remote: Remote,
    /// The number of the last cell.
    pub count: usize,
    /// What the person should know before anything runs.
    pub warning: Option<String>,
    session_dir: Arc<SessionDir>,
    sources: Option<Sources>,
    events: Sink,
    waiting: Waiting,
    session: Option<Session>,
    /// Requests as they come in.
    line: Receiver<Arc<JupyterMessage>>,
    /// Requests that were taken out of the line already.
    next: VecDeque<Arc<JupyterMessage>>,
}

/// What to start one with.
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

/// Starts the thread; requests that are sent to the answer are handled one after the other.
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
                    // A silent cell speaks to nobody.
                    None => drop(remote.end_input()),
                }
            }
            (event, Some((request, count))) => iopub.happened(&request, count, event),
            // What a thread prints after its cell has ended has no place to go.
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
        // Started before anybody asks; if that fails, whoever asks first is told.
        let _ = self.session();
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

    /// Answers a request; true if the cells that are queued behind it must not be run.
    fn handle(&mut self, request: &Arc<JupyterMessage>) -> bool {
        match &request.content {
            JupyterMessageContent::ExecuteRequest(content) => {
                execute::handle(self, request, content)
            }
            JupyterMessageContent::CompleteRequest(content) => {
                let reply = complete::handle(self.session().ok(), content);
                self.reply(request, reply);
                false
            }
            JupyterMessageContent::InspectRequest(content) => {
                let reply = inspect::handle(self.session().ok(), content);
                self.reply(request, reply);
                false
            }
            _ => false,
        }
    }

    /// Takes in what was sent before the running cell's reply is: what comes later was sent by somebody who knows it.
    pub fn take_in_queue(&mut self) {
        let end = Instant::now() + IN_TRANSIT;
        while let Ok(request) = self.line.recv_deadline(end) {
            self.next.push_back(request);
        }
    }

    /// Answers the cells that were queued behind a failed one, without running them.
    fn abort(&mut self) {
        for request in std::mem::take(&mut self.next) {
            if !matches!(request.content, JupyterMessageContent::ExecuteRequest(_)) {
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

    /// The session, started if there is none.
    pub fn session(&mut self) -> Result<&mut Session, Failure> {
        if self.session.is_none() {
            let started = Session::start(
                self.session_dir.clone(),
                self.sources.as_ref(),
                self.remote.clone(),
                self.events.clone(),
            );
            self.waiting.over();
            let started =
                started.map_err(|error| Failure::new("KernelError", error.to_string()))?;
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
