//! Handles requests that need no session: they are answered at once, on either channel, even while a cell runs.

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

/// The state that such requests are answered from.
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
    /// Whether the kernel exits after sending the reply.
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
    /// Answers a request. Messages that are no requests get no answer.
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
                // There are no comm targets here, so a comm that is opened is closed at once.
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
                // Other front ends learn of it on iopub.
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
                &format!("this kernel does not handle {kind} on this channel"),
            ),
        }
    }
}

/// Builds a reply whose type the protocol's library does not know.
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

/// Builds an error reply to a request; a message that is no request gets none.
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
