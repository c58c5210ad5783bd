//! The stdin channel: a cell asks the user for a line.
//! See <https://jupyter-client.readthedocs.io/en/stable/messaging.html#messages-on-the-stdin-router-dealer-channel>.

use std::sync::Arc;

use jupyter_protocol::{InputRequest, JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client::KernelStdinConnection;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use zeromq::SocketRecv;

use super::iopub::IoPub;
use super::request::{self, SeenSignatures};
use crate::session::event::Stream;
use crate::session::remote::Remote;

/// A question of a cell: the request that runs the cell, and the prompt.
struct Question {
    request: Arc<JupyterMessage>,
    prompt: String,
    password: bool,
}

/// Forwards a cell's question: the request that runs it, the prompt, and whether the input is hidden.
pub type Ask = Arc<dyn Fn(&Arc<JupyterMessage>, String, bool) + Send + Sync>;

/// Serves the channel.
pub fn start(
    socket: KernelStdinConnection,
    seen: SeenSignatures,
    iopub: IoPub,
    remote: Remote,
) -> Ask {
    let (questions, asked): (UnboundedSender<Question>, _) = unbounded_channel();
    tokio::spawn(serve(socket, seen, asked, remote.clone()));
    Arc::new(move |request, prompt, password| {
        let allowed = matches!(&request.content, JupyterMessageContent::ExecuteRequest(content) if content.allow_stdin);
        if allowed {
            let _ = questions.send(Question {
                request: request.clone(),
                prompt,
                password,
            });
            return;
        }
        let what = match prompt.as_str() {
            "" => String::new(),
            prompt => format!(" ({prompt})"),
        };
        let text = format!(
            "The cell asks for input{what}, which this front end can't give: it reads the end of the input.\n"
        );
        iopub.text(Some(request), Stream::Stderr, text);
        let _ = remote.end_input();
    })
}

async fn serve(
    mut socket: KernelStdinConnection,
    seen: SeenSignatures,
    mut asked: UnboundedReceiver<Question>,
    remote: Remote,
) {
    loop {
        tokio::select! {
            question = asked.recv() => {
                let Some(Question { request, prompt, password }) = question else { return };
                let question = InputRequest { prompt, password };
                let _ = socket.send(JupyterMessage::new(question, Some(&request))).await;
            }
            message = socket.socket.recv() => {
                let Ok(message) = message else { return };
                if let Some(message) = request::read(message, &socket, &seen)
                    && let JupyterMessageContent::InputReply(reply) = &message.message.content
                {
                    let _ = remote.answer(&reply.value);
                }
            }
        }
    }
}
