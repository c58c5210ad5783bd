//! Handles untrusted messages as far as that needs no session, for the fuzzers: whatever the bytes are, it returns.

use std::sync::Arc;

use jupyter_protocol::{ConnectionInfo, JupyterMessage, JupyterMessageContent, Transport};
use jupyter_zmq_client::Connection;
use zeromq::ZmqMessage;

use super::answers::Answers;
use super::history::History;
use super::iopub::IoPub;
use super::request::{self, SeenSignatures};
use super::{complete, inspect};
use crate::code;
use crate::session::remote::Remote;

/// Parses bytes as a message, one frame per line, answers it, and serializes the answer.
pub fn message(bytes: &[u8]) {
    let mut frames = bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec);
    let mut message = ZmqMessage::from(frames.next().unwrap_or_default());
    for frame in frames {
        message.push_back(frame.into());
    }
    // No key: a mutated message could not be signed.
    let connection = Connection {
        socket: (),
        mac: None,
        session_id: String::new(),
    };
    let Some(request) = request::read(message, &connection, &SeenSignatures::default()) else {
        return;
    };
    let (iopub, mut shown) = IoPub::queue();
    let mut history = History::default();
    for (number, code) in ["let a = 1;", "a\nb", "", "aaaaaaaa"].iter().enumerate() {
        history.add(number, code);
    }
    let answers = Answers {
        iopub,
        remote: Remote::default(),
        history: Arc::new(history.into()),
        connection: Arc::new(connection_info()),
    };
    let parent = &request.message;
    let mut replies: Vec<JupyterMessageContent> = Vec::new();
    match &parent.content {
        JupyterMessageContent::ExecuteRequest(content) => {
            code::on_deep_stack(|| {
                if let Ok(cell) = code::prepare(1, &content.code) {
                    cell.chunks();
                }
            });
        }
        JupyterMessageContent::CompleteRequest(content) => {
            let reply = complete::handle(None, content);
            assert!(reply.cursor_end <= content.code.chars().count());
            replies.push(reply.into());
        }
        JupyterMessageContent::InspectRequest(content) => {
            replies.push(inspect::handle(None, content).into());
        }
        _ => replies.extend(answers.answer(&request).reply),
    }
    while let Ok((_, content)) = shown.try_recv() {
        replies.push(content);
    }
    for reply in replies {
        let reply = JupyterMessage::new(reply, Some(parent));
        serde_json::to_vec(&reply.content).expect("JSON");
        serde_json::to_vec(&reply.parent_header).expect("JSON");
    }
}

fn connection_info() -> ConnectionInfo {
    ConnectionInfo {
        ip: "127.0.0.1".into(),
        transport: Transport::TCP,
        shell_port: 1,
        iopub_port: 2,
        stdin_port: 3,
        control_port: 4,
        hb_port: 5,
        key: String::new(),
        signature_scheme: "hmac-sha256".into(),
        kernel_name: None,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_message_is_answered_or_dropped() {
        crate::damage::replay("kernel_message", 500, super::message);
    }
}
