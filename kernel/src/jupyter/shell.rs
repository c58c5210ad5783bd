//! The shell channel: requests that need the session are forwarded to its thread, the others are answered here, at
//! once.

use std::sync::Arc;

use crossbeam_channel::Sender;
use jupyter_protocol::{ExecutionState, JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client::{RouterRecvConnection, RouterSendConnection};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use zeromq::SocketRecv;

use super::answers::Answers;
use super::request::{self, Request, SeenSignatures};
use super::waiting::Waiting;

/// The shell channel's destinations and sources of replies.
pub struct Shell {
    pub answers: Answers,
    pub replies: UnboundedSender<JupyterMessage>,
    pub evaluator: Sender<Arc<JupyterMessage>>,
    pub waiting: Waiting,
    pub end: UnboundedSender<()>,
}

impl Shell {
    /// Reads requests until the kernel exits.
    pub async fn serve(self, mut socket: RouterRecvConnection, seen: SeenSignatures) {
        while let Ok(message) = socket.socket.recv().await {
            if let Some(request) = request::read(message, &socket, &seen) {
                self.handle(request);
            }
        }
    }

    fn handle(&self, request: Request) {
        let message = &request.message;
        if let JupyterMessageContent::ExecuteRequest(_)
        | JupyterMessageContent::CompleteRequest(_)
        | JupyterMessageContent::InspectRequest(_) = &message.content
        {
            self.waiting.for_request(message);
            let _ = self.evaluator.send(message.clone());
            return;
        }
        let iopub = &self.answers.iopub;
        iopub.status(Some(message), ExecutionState::Busy);
        let answer = self.answers.answer(&request);
        if let Some(reply) = answer.reply {
            let _ = self.replies.send(JupyterMessage::new(reply, Some(message)));
        }
        iopub.status(Some(message), ExecutionState::Idle);
        if answer.ends {
            let _ = self.end.send(());
        }
    }
}

/// Sends the replies of all threads.
pub async fn send(
    mut socket: RouterSendConnection,
    mut replies: UnboundedReceiver<JupyterMessage>,
) {
    while let Some(reply) = replies.recv().await {
        let _ = socket.send(reply).await;
    }
}
