//! Handles untrusted notebooks as far as that needs no session, for the fuzzers: whatever the bytes are, it returns.

use std::path::Path;

use serde_json::Map;

use super::notebook::Notebook;
use super::parameters::{self, Parameter};
use crate::code;
use crate::session::event::{Display, Event, Stream};
use crate::session::failure::Failure;
use crate::session::prelude_dep;

/// Parses bytes as a notebook, injects parameters, analyses its cells, adds outputs, and writes it.
pub fn notebook(bytes: &[u8]) {
    code::on_deep_stack(|| read(bytes));
}

fn read(bytes: &[u8]) {
    let path = Path::new("n.ipynb");
    let Ok(mut notebook) = Notebook::parse(path, bytes) else {
        return;
    };
    let parameters = ["n=5", "rate=0.5", "text=a \" b", "list=[1, 2]", "full=true"];
    for parameter in parameters {
        let parameter: Parameter = parameter.parse().expect("a parameter");
        let _ = parameters::inject(&mut notebook.clone(), &[parameter]);
    }
    for (number, cell) in notebook.code_cells().into_iter().enumerate() {
        let code = notebook.source(cell);
        let _ = code.lines().find_map(prelude_dep);
        if let Ok(prepared) = code::prepare(number, &code) {
            let _ = (prepared.called_macros(), prepared.macros_that_define());
            for chunk in prepared.chunks() {
                let offset = prepared.original_offset(chunk.start);
                assert!(prepared.original.is_char_boundary(offset));
                let _ = (chunk.is_item(), chunk.function_at(chunk.end));
            }
        }
        notebook.begin(cell, number);
        let display = |id: &str, update| {
            Event::Display(Display {
                data: Map::from_iter([("text/html".to_owned(), code.clone().into())]),
                metadata: Map::new(),
                display_id: Some(id.to_owned()),
                update,
                is_result: false,
            })
        };
        for event in [
            Event::Text(Stream::Stdout, code.clone()),
            display("first", false),
            Event::Text(Stream::Stderr, "\r".to_owned()),
            display("first", true),
            Event::Clear {
                wait: number % 2 == 0,
            },
            display("other", true),
        ] {
            notebook.add(cell, &event);
        }
        notebook.fail(cell, &Failure::new("error", code));
    }
    let json = notebook.json().expect("JSON");
    let again = Notebook::parse(path, &json).expect("what was written is a notebook");
    assert_eq!(again.code_cells(), notebook.code_cells());
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_notebook_is_read_or_refused() {
        crate::damage::replay("notebook", 300, super::notebook);
    }
}
