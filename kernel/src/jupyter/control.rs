//! The control channel: heard while a cell runs.

use std::sync::Arc;

use jupyter_protocol::{
    ExecutionState, InterruptReply, JupyterMessage, JupyterMessageContent, ReplyStatus,
    ShutdownReply,
};
use jupyter_zmq_client::KernelControlConnection;
use zeromq::SocketRecv;

use super::iopub::IoPub;
use super::{execute, info, request};
use crate::session::remote::Remote;

/// Serves until a client asks the kernel to shut down.
pub async fn serve(mut socket: KernelControlConnection, iopub: IoPub, remote: Remote) {
    while let Ok(message) = socket.socket.recv().await {
        let Some(request) = request::read(message, &socket).map(Arc::new) else {
            continue;
        };
        iopub.status(Some(&request), ExecutionState::Busy);
        let mut shut_down = false;
        let reply: Option<JupyterMessageContent> = match &request.content {
            JupyterMessageContent::InterruptRequest(_) => {
                interrupt(&remote, &iopub);
                Some(
                    InterruptReply {
                        status: ReplyStatus::Ok,
                        error: None,
                    }
                    .into(),
                )
            }
            JupyterMessageContent::ShutdownRequest(content) => {
                shut_down = true;
                Some(
                    ShutdownReply {
                        restart: content.restart,
                        status: ReplyStatus::Ok,
                        error: None,
                    }
                    .into(),
                )
            }
            JupyterMessageContent::KernelInfoRequest(_) => Some(info::reply().into()),
            _ => None,
        };
        if let Some(reply) = reply {
            if shut_down {
                // Front ends other than the one that asked hear of it on iopub.
                iopub.send(Some(&request), reply.clone());
            }
            let _ = socket
                .send(JupyterMessage::new(reply, Some(&request)))
                .await;
        }
        iopub.status(Some(&request), ExecutionState::Idle);
        if shut_down {
            return;
        }
    }
}

/// Interrupts the running cell.
pub fn interrupt(remote: &Remote, iopub: &IoPub) {
    if remote.interrupt() == 1 {
        tokio::spawn(execute::explain_interrupt(iopub.clone()));
    }
}
