//! Requests off the wire: the signature checked, and what the protocol lets a client leave out filled in.

use jupyter_protocol::{Header, JupyterMessage, JupyterMessageContent};
use jupyter_zmq_client::RawMessage;
use serde_json::{Map, Value, json};
use zeromq::ZmqMessage;

/// The message, or nothing if its signature is wrong or it can't be read: such a message is dropped.
pub fn read<S>(
    message: ZmqMessage,
    connection: &jupyter_zmq_client::Connection<S>,
) -> Option<JupyterMessage> {
    let raw = match RawMessage::from_multipart(message, &connection.mac) {
        Ok(raw) => raw,
        Err(error) => {
            eprintln!("A message was dropped: {error}");
            return None;
        }
    };
    let [header, parent, metadata, content, buffers @ ..] = &raw.jparts[..] else {
        return None;
    };
    let header: Header = serde_json::from_slice(header).ok()?;
    let mut content: Value = serde_json::from_slice(content).ok()?;
    fill_in(&header.msg_type, &mut content);
    let content = JupyterMessageContent::from_type_and_content(&header.msg_type, content);
    let content = content
        .inspect_err(|error| eprintln!("A {} was dropped: {error}", header.msg_type))
        .ok()?;
    Some(JupyterMessage {
        zmq_identities: raw.zmq_identities,
        header,
        // Empty where there is none.
        parent_header: serde_json::from_slice(parent).ok(),
        metadata: serde_json::from_slice(metadata).unwrap_or_default(),
        content,
        buffers: buffers.to_vec(),
        channel: None,
    })
}

fn fill_in(kind: &str, content: &mut Value) {
    let defaults = match kind {
        "execute_request" => json!({
            "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": true, "stop_on_error": true,
        }),
        "history_request" => json!({
            "hist_access_type": "tail", "output": false, "raw": true, "session": 0, "start": 0, "stop": 0,
            "n": i32::MAX, "pattern": "*", "unique": false,
        }),
        "inspect_request" => json!({ "detail_level": 0 }),
        "shutdown_request" => json!({ "restart": false }),
        _ => return,
    };
    let (Value::Object(defaults), Value::Object(content)) = (defaults, content) else {
        return;
    };
    // A silent cell is not stored, whatever else is said.
    let null =
        |content: &Map<String, Value>, name: &str| content.get(name).is_none_or(Value::is_null);
    for (name, value) in defaults {
        if null(content, &name) {
            content.insert(name, value);
        }
    }
}
