//! Requests that need no session: answered at once, on whichever channel they come, also while a cell runs.

use std::sync::{Arc, Mutex, PoisonError};

use jupyter_protocol::{
    CommClose, CommInfoReply, ConnectionInfo, InterruptReply, JupyterMessageContent, ReplyStatus,
    ShutdownReply, UnknownMessage,
};
use serde_json::json;

use super::history::History;
use super::iopub::IoPub;
use super::request::Request;
use super::{execute, info, is_complete};
use crate::session::remote::{Interrupted, Remote};

/// What such requests are answered from.
#[derive(Clone)]
pub struct Answers {
    pub iopub: IoPub,
    pub remote: Remote,
    pub history: Arc<Mutex<History>>,
    pub connection: Arc<ConnectionInfo>,
}

/// The answer to a request.
#[derive(Debug, Default)]
pub struct Answer {
    pub reply: Option<JupyterMessageContent>,
    /// Whether the kernel ends once the reply is sent.
    pub ends: bool,
}

impl<T: Into<JupyterMessageContent>> From<T> for Answer {
    fn from(reply: T) -> Self {
        Self {
            reply: Some(reply.into()),
            ends: false,
        }
    }
}

impl Answers {
    /// Answers a request; what is no request has no answer.
    pub fn answer(&self, request: &Request) -> Answer {
        let message = &request.message;
        let kind = message.message_type();
        if let Some(problem) = &request.problem {
            return refusal(kind, "BadRequest", &format!("this {kind}: {problem}"));
        }
        match &message.content {
            JupyterMessageContent::KernelInfoRequest(_) => info::reply().into(),
            JupyterMessageContent::IsCompleteRequest(content) => {
                is_complete::handle(content).into()
            }
            JupyterMessageContent::HistoryRequest(content) => self
                .history
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .handle(content)
                .into(),
            JupyterMessageContent::CommInfoRequest(_) => CommInfoReply {
                status: ReplyStatus::Ok,
                comms: Default::default(),
                error: None,
            }
            .into(),
            JupyterMessageContent::CommOpen(open) => {
                // There are no comm targets here; who opens one is told by its being closed.
                let close = CommClose {
                    comm_id: open.comm_id.clone(),
                    data: Default::default(),
                };
                self.iopub.send(Some(message), close);
                Answer::default()
            }
            JupyterMessageContent::InterruptRequest(_) => {
                interrupt(&self.remote, &self.iopub);
                InterruptReply {
                    status: ReplyStatus::Ok,
                    error: None,
                }
                .into()
            }
            JupyterMessageContent::ShutdownRequest(content) => {
                let reply = ShutdownReply {
                    restart: content.restart,
                    status: ReplyStatus::Ok,
                    error: None,
                };
                // Front ends other than the one that asked hear of it on iopub.
                self.iopub.send(Some(message), reply.clone());
                Answer {
                    reply: Some(reply.into()),
                    ends: true,
                }
            }
            JupyterMessageContent::UnknownMessage(_) if kind == "connect_request" => {
                let at = &self.connection;
                known(
                    kind,
                    json!({ "status": "ok", "shell_port": at.shell_port, "iopub_port": at.iopub_port,
                    "stdin_port": at.stdin_port, "control_port": at.control_port, "hb_port": at.hb_port }),
                )
            }
            _ => refusal(
                kind,
                "UnknownRequest",
                &format!("this kernel does not answer {kind} here"),
            ),
        }
    }
}

/// A reply of a type that the protocol's library has no name for.
fn known(kind: &str, content: serde_json::Value) -> Answer {
    let unknown = UnknownMessage {
        msg_type: kind.to_owned(),
        content: json!({}),
    };
    Answer {
        reply: Some(unknown.reply(content)),
        ends: false,
    }
}

/// Says that a request is not answered; nothing, if it is none.
fn refusal(kind: &str, name: &str, told: &str) -> Answer {
    match kind.ends_with("_request") {
        true => known(
            kind,
            json!({ "status": "error", "ename": name, "evalue": told, "traceback": [] }),
        ),
        false => Answer::default(),
    }
}

/// Interrupts the running cell.
pub fn interrupt(remote: &Remote, iopub: &IoPub) {
    if remote.interrupt() == Interrupted::Asked {
        tokio::spawn(execute::explain_interrupt(iopub.clone()));
    }
}
