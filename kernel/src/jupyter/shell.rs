//! The shell channel: requests that need the session go to its thread, the others are answered here, at once.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use jupyter_protocol::{
    CommClose, CommInfoReply, ExecutionState, JupyterMessage, JupyterMessageContent, ReplyStatus,
};
use jupyter_zmq_client::{RouterRecvConnection, RouterSendConnection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use zeromq::SocketRecv;

use super::history::History;
use super::iopub::IoPub;
use super::waiting::Waiting;
use super::{info, is_complete, request};

/// What the shell hands on and answers with.
pub struct Shell {
    pub iopub: IoPub,
    pub replies: UnboundedSender<JupyterMessage>,
    pub evaluator: Sender<Arc<JupyterMessage>>,
    pub history: Arc<Mutex<History>>,
    pub waiting: Waiting,
}

impl Shell {
    /// Reads requests until the kernel ends.
    pub async fn serve(self, mut socket: RouterRecvConnection) {
        while let Ok(message) = socket.socket.recv().await {
            if let Some(request) = request::read(message, &socket) {
                self.handle(Arc::new(request));
            }
        }
    }

    fn handle(&self, request: Arc<JupyterMessage>) {
        let content: JupyterMessageContent = match &request.content {
            JupyterMessageContent::ExecuteRequest(_)
            | JupyterMessageContent::CompleteRequest(_)
            | JupyterMessageContent::InspectRequest(_) => {
                self.waiting.for_request(&request);
                let _ = self.evaluator.send(request);
                return;
            }
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
                self.iopub.status(Some(&request), ExecutionState::Busy);
                self.iopub.send(Some(&request), close);
                self.iopub.status(Some(&request), ExecutionState::Idle);
                return;
            }
            JupyterMessageContent::UnknownMessage(unknown)
                if unknown.msg_type.ends_with("_request") =>
            {
                let told = format!("this kernel does not know {}", unknown.msg_type);
                unknown.reply(serde_json::json!({ "status": "error", "ename": "UnknownRequest", "evalue": told, "traceback": [] }))
            }
            _ => return,
        };
        self.iopub.status(Some(&request), ExecutionState::Busy);
        let _ = self
            .replies
            .send(JupyterMessage::new(content, Some(&request)));
        self.iopub.status(Some(&request), ExecutionState::Idle);
    }
}

/// Sends replies, whoever they are from.
pub async fn send(
    mut socket: RouterSendConnection,
    mut replies: UnboundedReceiver<JupyterMessage>,
) {
    while let Some(reply) = replies.recv().await {
        let _ = socket.send(reply).await;
    }
}
