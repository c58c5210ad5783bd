//! `complete_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#completion>.

use jupyter_protocol::{CompleteReply, CompleteRequest, ReplyStatus};
use serde_json::{Map, Value, json};

use super::position::{to_byte, to_character};
use crate::session::Session;

/// What may follow at the cursor.
pub fn handle(session: Option<&mut Session>, request: &CompleteRequest) -> CompleteReply {
    let code = &request.code;
    let mut reply = CompleteReply {
        matches: Vec::new(),
        cursor_start: request.cursor_pos,
        cursor_end: request.cursor_pos,
        metadata: Map::new(),
        status: ReplyStatus::Ok,
        error: None,
    };
    let found =
        session.and_then(|session| session.complete(code, to_byte(code, request.cursor_pos)));
    let Some(found) = found else { return reply };
    reply.cursor_start = to_character(code, found.start_offset);
    reply.cursor_end = to_character(code, found.end_offset);
    let kinds: Vec<Value> = found
        .completions
        .iter()
        .map(|completion| {
            json!({ "start": reply.cursor_start, "end": reply.cursor_end, "text": completion.code,
                    "type": completion.kind, "signature": completion.label })
        })
        .collect();
    reply
        .metadata
        .insert("_jupyter_types_experimental".into(), kinds.into());
    reply.matches = found
        .completions
        .into_iter()
        .map(|completion| completion.code)
        .collect();
    reply
}
