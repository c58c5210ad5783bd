//! `inspect_request`: <https://jupyter-client.readthedocs.io/en/stable/messaging.html#introspection>.

use jupyter_protocol::{InspectReply, InspectRequest, ReplyStatus};
use serde_json::Map;

use super::iopub::media;
use super::position::to_byte;
use crate::code::tokens;
use crate::session::Session;

/// Returns the documentation of the name at the cursor.
pub fn handle(session: Option<&mut Session>, request: &InspectRequest) -> InspectReply {
    let mut reply = InspectReply {
        found: false,
        data: media(Map::new()),
        metadata: Map::new(),
        status: ReplyStatus::Ok,
        error: None,
    };
    let code = &request.code;
    let Some(end) = end_of_name(code, to_byte(code, request.cursor_pos)) else {
        return reply;
    };
    if let Some((text, html)) = session.and_then(|session| session.inspect(code, end)) {
        reply.found = true;
        reply.data = media(
            [
                ("text/plain".to_owned(), text.into()),
                ("text/html".to_owned(), html.into()),
            ]
            .into_iter()
            .collect(),
        );
    }
    reply
}

/// Returns where the name at or before a byte ends. After `f(`, and among its arguments where there is no other name,
/// that is the name of the function.
fn end_of_name(code: &str, at: usize) -> Option<usize> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let rest = code[at..]
        .find(|c| !is_name(c))
        .map_or(code.len(), |length| at + length);
    let before = code[..rest].trim_end_matches(|c: char| c == '(' || c == '!' || c.is_whitespace());
    if before.ends_with(is_name) {
        return Some(before.len());
    }
    let call = open_call(&code[..at])?;
    let before = code[..call].trim_end_matches(|c: char| c == '!' || c.is_whitespace());
    before.ends_with(is_name).then_some(before.len())
}

/// Returns the innermost open bracket that belongs to a call.
fn open_call(code: &str) -> Option<usize> {
    let mut open: Vec<(usize, &str)> = Vec::new();
    for (at, token) in tokens(code) {
        match token {
            "(" | "[" | "{" => open.push((at, token)),
            ")" | "]" | "}" => drop(open.pop()),
            _ => {}
        }
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let called = |at: usize| code[..at].trim_end_matches('!').ends_with(is_name);
    open.into_iter()
        .rev()
        .find(|&(at, token)| token == "(" && called(at))
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cursor_may_be_anywhere_in_a_name_or_after_its_bracket() {
        let code = "foo(bar)";
        assert_eq!(
            [0, 2, 3, 4, 6].map(|at| end_of_name(code, at)),
            [3, 3, 3, 7, 7].map(Some)
        );
        assert_eq!(end_of_name("foo(", 4), Some(3));
        assert_eq!(end_of_name("1 + ", 4), None);
        // Among the arguments of a call, and after a call nested in it.
        let call = "let t = Trainer::new(model, f(1), ";
        assert_eq!(end_of_name(call, call.len()), call.find('('));
        assert_eq!(end_of_name("f(\"(\", ", 7), Some(1));
        assert_eq!(end_of_name("x.map(|y| (y, ", 14), Some(5));
        assert_eq!(end_of_name("", 0), None);
    }
}
