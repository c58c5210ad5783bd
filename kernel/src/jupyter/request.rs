//! Parses requests: checks the signature, and fills in what the protocol lets a client leave out.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use jupyter_protocol::{Header, JupyterMessage, JupyterMessageContent, UnknownMessage};
use jupyter_zmq_client::{Connection, RawMessage};
use serde_json::{Map, Value, json};
use zeromq::ZmqMessage;

/// A message from a client.
#[derive(Debug)]
pub struct Request {
    /// If its content is invalid, this is a message of the same type without content.
    pub message: Arc<JupyterMessage>,
    /// Why its content is invalid.
    pub problem: Option<String>,
}

/// The signatures of accepted messages: none is accepted twice, on whatever channel.
#[derive(Clone, Debug, Default)]
pub struct SeenSignatures {
    inner: Arc<Mutex<Signatures>>,
}

#[derive(Debug, Default)]
struct Signatures {
    known: HashSet<Vec<u8>>,
    /// Oldest first.
    order: VecDeque<Vec<u8>>,
}

impl SeenSignatures {
    /// The number of signatures that are remembered.
    const MOST: usize = 1 << 16;

    /// Whether a signature is new; remembers it.
    fn is_new(&self, signature: Vec<u8>) -> bool {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.known.insert(signature.clone()) {
            return false;
        }
        inner.order.push_back(signature);
        if inner.order.len() > Self::MOST
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.known.remove(&oldest);
        }
        true
    }
}

/// Parses a message. Returns `None` if it can't be answered: its signature is wrong or was seen before, or its type or
/// sender is missing.
pub fn read<S>(
    message: ZmqMessage,
    connection: &Connection<S>,
    seen: &SeenSignatures,
) -> Option<Request> {
    match understand(message, connection, seen) {
        Ok(request) => Some(request),
        Err(problem) => {
            eprintln!("A message was dropped: {problem}");
            None
        }
    }
}

fn understand<S>(
    message: ZmqMessage,
    connection: &Connection<S>,
    seen: &SeenSignatures,
) -> Result<Request, String> {
    let mark = message.iter().position(|frame| &frame[..] == b"<IDS|MSG>");
    let signature = mark
        .and_then(|at| message.get(at + 1))
        .map(|it| it.to_vec());
    let raw =
        RawMessage::from_multipart(message, &connection.mac).map_err(|error| error.to_string())?;
    if let Some(signature) = signature.filter(|_| connection.mac.is_some())
        && !seen.is_new(signature)
    {
        return Err("it was received before".into());
    }
    let [header, parent, metadata, content, buffers @ ..] = &raw.jparts[..] else {
        return Err("it has too few frames".into());
    };
    let header = read_header(header).map_err(|error| format!("its header: {error}"))?;
    let kind = header.msg_type.as_str();
    let understood = serde_json::from_slice(content).and_then(|mut content| {
        fill_in(kind, &mut content);
        JupyterMessageContent::from_type_and_content(kind, content)
    });
    let (content, problem) = match understood {
        Ok(content) => (content, None),
        Err(error) => {
            let nothing = UnknownMessage {
                msg_type: kind.to_owned(),
                content: json!({}),
            };
            (nothing.into(), Some(error.to_string()))
        }
    };
    let message = JupyterMessage {
        zmq_identities: raw.zmq_identities,
        // Empty if there is none.
        parent_header: serde_json::from_slice(parent).ok(),
        metadata: serde_json::from_slice(metadata).unwrap_or_default(),
        content,
        buffers: buffers.to_vec(),
        channel: None,
        header,
    };
    Ok(Request {
        message: Arc::new(message),
        problem,
    })
}

/// Parses the header; only the type and the id of the message are required.
fn read_header(bytes: &[u8]) -> serde_json::Result<Header> {
    let mut header: Value = serde_json::from_slice(bytes)?;
    if let Value::Object(header) = &mut header {
        for name in ["username", "session", "version"] {
            if !header.get(name).is_some_and(Value::is_string) {
                header.insert(name.into(), "".into());
            }
        }
    }
    serde_json::from_value(header)
}

fn fill_in(kind: &str, content: &mut Value) {
    let defaults = match kind {
        "execute_request" => json!({
            "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": true, "stop_on_error": true,
        }),
        // Defaults to the end of the code.
        "complete_request" => json!({ "cursor_pos": usize::MAX }),
        "inspect_request" => json!({ "cursor_pos": usize::MAX, "detail_level": 0 }),
        "history_request" => json!({
            "hist_access_type": "tail", "output": false, "raw": true, "session": 0, "start": 0, "stop": 0,
            "n": i32::MAX, "pattern": "*", "unique": false,
        }),
        "shutdown_request" => json!({ "restart": false }),
        "comm_open" | "comm_msg" | "comm_close" => json!({ "data": {} }),
        _ => return,
    };
    let (Value::Object(defaults), Value::Object(content)) = (defaults, content) else {
        return;
    };
    // A silent cell is never stored.
    let null =
        |content: &Map<String, Value>, name: &str| content.get(name).is_none_or(Value::is_null);
    for (name, value) in defaults {
        if null(content, &name) {
            content.insert(name, value);
        }
    }
    if kind == "history_request" {
        for name in ["n", "session", "start", "stop"] {
            // A number larger than any history means all of it.
            if let Some(number) = content[name].as_i64() {
                let within = number.clamp(i32::MIN.into(), i32::MAX.into());
                content.insert(name.into(), within.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(frames: &[&str]) -> Option<Request> {
        let connection = Connection {
            socket: (),
            mac: None,
            session_id: String::new(),
        };
        let mut message = ZmqMessage::from(frames[0].to_owned());
        for frame in &frames[1..] {
            message.push_back(frame.to_string().into());
        }
        read(message, &connection, &SeenSignatures::default())
    }

    #[test]
    fn a_header_needs_only_the_message_id_and_type() {
        let with = |header: &str| parsed(&["<IDS|MSG>", "", header, "{}", "{}", "{}"]);
        let request = with(r#"{"msg_id": "1", "msg_type": "kernel_info_request", "username": 5}"#)
            .expect("understood");
        assert!(request.problem.is_none());
        assert_eq!(request.message.header.msg_id, "1");
        for header in [r#"{"msg_id": "1"}"#, r#"{"msg_type": "x"}"#, "[]", "", "{"] {
            assert!(with(header).is_none(), "{header}");
        }
    }

    #[test]
    fn a_message_with_invalid_content_can_still_be_answered() {
        for (kind, content) in [
            ("execute_request", "{}"),
            ("execute_request", "[]"),
            ("execute_request", r#"{"code": "\ud800"}"#),
            ("inspect_request", r#"{"code": "a", "cursor_pos": -1}"#),
            ("history_request", r#"{"hist_access_type": "dance"}"#),
            ("shutdown_request", r#"{"restart": "maybe"}"#),
        ] {
            let header = format!(r#"{{"msg_id": "1", "msg_type": "{kind}"}}"#);
            let request = parsed(&["<IDS|MSG>", "", &header, "{}", "{}", content]);
            let request = request.expect("a message");
            assert!(request.problem.is_some(), "{kind} {content}");
            assert_eq!(request.message.message_type(), kind);
        }
    }

    #[test]
    fn optional_fields_are_filled_in() {
        for (kind, content) in [
            ("execute_request", r#"{"code": "1", "silent": null}"#),
            ("complete_request", r#"{"code": "1", "cursor_pos": null}"#),
            ("inspect_request", r#"{"code": "1"}"#),
            ("history_request", r#"{"n": 99999999999, "stop": null}"#),
            ("comm_open", r#"{"comm_id": "a", "target_name": "t"}"#),
            ("shutdown_request", "{}"),
        ] {
            let header = format!(r#"{{"msg_id": "1", "msg_type": "{kind}"}}"#);
            let request = parsed(&["<IDS|MSG>", "", &header, "{}", "{}", content]);
            let problem = request.expect("a message").problem;
            assert_eq!(problem, None, "{kind} {content}");
        }
    }

    #[test]
    fn a_signature_is_accepted_once() {
        let seen = SeenSignatures::default();
        assert!(seen.is_new(vec![1]) && seen.is_new(vec![2]) && !seen.is_new(vec![1]));
        for number in 0..=SeenSignatures::MOST {
            seen.is_new(number.to_le_bytes().to_vec());
        }
        let inner = seen.inner.lock().expect("whole");
        assert_eq!(
            (inner.known.len(), inner.order.len()),
            (SeenSignatures::MOST, SeenSignatures::MOST)
        );
    }
}
