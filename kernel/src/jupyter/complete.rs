//! `complete_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#completion>.

use jupyter_protocol::{CompleteReply, CompleteRequest, ReplyStatus};
use serde_json::{Map, Value, json};

use super::position::{to_byte, to_character};
use crate::session::Session;

/// Returns the completions at the cursor.
pub fn handle(session: Option<&mut Session>, request: &CompleteRequest) -> CompleteReply {
    let code = &request.code;
    let cursor = to_character(code, to_byte(code, request.cursor_pos));
    let mut reply = CompleteReply {
        matches: Vec::new(),
        cursor_start: cursor,
        cursor_end: cursor,
        metadata: Map::new(),
        status: ReplyStatus::Ok,
        error: None,
    };
    let found =
        session.and_then(|session| session.complete(code, to_byte(code, request.cursor_pos)));
    let Some(found) = found else { return reply };
    reply.cursor_start = to_character(code, found.start);
    reply.cursor_end = to_character(code, found.end);
    let kinds: Vec<Value> = found
        .candidates
        .iter()
        .map(|candidate| {
            json!({ "start": reply.cursor_start, "end": reply.cursor_end, "text": candidate.name,
                    "type": candidate.kind, "signature": candidate.signature })
        })
        .collect();
    reply
        .metadata
        .insert("_jupyter_types_experimental".into(), kinds.into());
    reply.matches = found
        .candidates
        .into_iter()
        .map(|candidate| candidate.name)
        .collect();
    reply
}
