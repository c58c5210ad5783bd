//! The control channel, which is served while a cell runs.

use jupyter_protocol::{ExecutionState, JupyterMessage};
use jupyter_zmq_client::KernelControlConnection;
use tokio::sync::mpsc::UnboundedSender;
use zeromq::SocketRecv;

use super::answers::Answers;
use super::request::{self, SeenSignatures};

/// Serves until the kernel exits; notifies `end` when a client asks for a shutdown.
pub async fn serve(
    mut socket: KernelControlConnection,
    seen: SeenSignatures,
    answers: Answers,
    end: UnboundedSender<()>,
) {
    while let Ok(message) = socket.socket.recv().await {
        let Some(request) = request::read(message, &socket, &seen) else {
            continue;
        };
        let message = &request.message;
        answers.iopub.status(Some(message), ExecutionState::Busy);
        let answer = answers.answer(&request);
        if let Some(reply) = answer.reply {
            let _ = socket.send(JupyterMessage::new(reply, Some(message))).await;
        }
        answers.iopub.status(Some(message), ExecutionState::Idle);
        if answer.ends {
            let _ = end.send(());
        }
    }
}
