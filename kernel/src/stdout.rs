//! Reads what a cell prints: plain text, displays, and evcxr's own notices, all in one stream of bytes.

use serde_json::{Map, Value};

use crate::child::{END_OF_CELL, END_OF_PROCESS};
use crate::event::{Display, Event, Stream};

const BEGIN_CONTENT: &str = "EVCXR_BEGIN_CONTENT ";
const END_CONTENT: &str = "EVCXR_END_CONTENT";
const PANICKED: &str = "EVCXR_PANIC_NOTIFICATION";
const ERROR_RETURNED: &str = "EVCXR_ERROR_OCCURRED";
const TYPE_CHANGED: &str = "EVCXR_VARIABLE_CHANGED_TYPE:";
const INPUT: &str = "EVCXR_INPUT_REQUEST";
const PASSWORD: &str = "EVCXR_INPUT_REQUEST_PASSWORD";
/// Everything that does not belong to the text begins with one of these.
const MARKERS: [&str; 7] = [
    BEGIN_CONTENT,
    PANICKED,
    ERROR_RETURNED,
    TYPE_CHANGED,
    INPUT,
    END_OF_CELL,
    END_OF_PROCESS,
];

/// The type under which the library asks for the cell's output to be cleared; the content is `wait` or empty.
const CLEAR_OUTPUT: &str = "application/x-cloze-clear-output";

/// What the stream said.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// For the front end.
    Event(Event),
    /// A line that evcxr must hear before it is told that the cell is done.
    Notice(String),
    /// The cell has printed all that it will.
    EndOfCell,
    /// The process is dead, and so said its last.
    EndOfProcess,
}

/// Takes bytes as they arrive and gives back what they said, as early as it is sure.
#[derive(Debug, Default)]
pub struct Reader {
    /// Bytes of an unfinished line.
    pending: Vec<u8>,
    /// The content block that is being read.
    block: Option<Block>,
    /// A display that may get another representation in the next block.
    bundle: Option<Display>,
}

#[derive(Debug)]
struct Block {
    mime: String,
    display_id: Option<String>,
    update: bool,
    metadata: Option<Value>,
    lines: Vec<String>,
}

impl Reader {
    /// Reads on.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        while let Some(length) = self.pending[start..].iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&self.pending[start..start + length]).into_owned();
            start += length + 1;
            self.line(line, &mut said);
        }
        self.pending.drain(..start);
        if self.block.is_none() {
            let ready = ready_prefix(&self.pending);
            if ready > 0 {
                let text: Vec<u8> = self.pending.drain(..ready).collect();
                self.text(String::from_utf8_lossy(&text).into_owned(), &mut said);
            }
        }
        said
    }

    /// Whether a display waits for another representation of itself.
    pub fn holds_display(&self) -> bool {
        self.bundle.is_some()
    }

    /// Gives back a display that waited for another representation of itself.
    pub fn flush(&mut self, said: &mut Vec<Said>) {
        if let Some(display) = self.bundle.take() {
            said.push(Said::Event(Event::Display(display)));
        }
    }

    fn line(&mut self, line: String, said: &mut Vec<Said>) {
        if let Some(block) = &mut self.block {
            if line == END_CONTENT {
                let block = self.block.take();
                self.content(block, said);
            } else if line == PANICKED {
                // The block never ends: a panic got in between.
                self.block = None;
                said.push(Said::Notice(line));
            } else if line.ends_with(END_OF_PROCESS) {
                self.block = None;
                said.push(Said::EndOfProcess);
            } else {
                block.lines.push(line);
            }
            return;
        }
        let marker = MARKERS.iter().filter_map(|marker| line.find(marker)).min();
        let Some(at) = marker else {
            return self.text(line + "\n", said);
        };
        // Text without a newline came before the marker on its line.
        let (before, marked) = line.split_at(at);
        self.text(before.to_owned(), said);
        if let Some(header) = marked.strip_prefix(BEGIN_CONTENT) {
            self.block = Some(Block::from_header(header));
            return;
        }
        if marked == END_OF_CELL {
            said.push(Said::EndOfCell);
            return;
        }
        self.flush(said);
        if marked == END_OF_PROCESS {
            said.push(Said::EndOfProcess);
        } else if marked == PANICKED || marked == ERROR_RETURNED || marked.starts_with(TYPE_CHANGED)
        {
            said.push(Said::Notice(marked.to_owned()));
        } else if marked.starts_with(INPUT) {
            let prompt = marked
                .split_once(':')
                .map_or("", |(_, prompt)| prompt)
                .to_owned();
            said.push(Said::Event(Event::Input {
                prompt,
                password: marked.starts_with(PASSWORD),
            }));
        } else {
            self.text(marked.to_owned() + "\n", said);
        }
    }

    fn text(&mut self, text: String, said: &mut Vec<Said>) {
        if text.is_empty() {
            return;
        }
        self.flush(said);
        said.push(Said::Event(Event::Text(Stream::Stdout, text)));
    }

    fn content(&mut self, block: Option<Block>, said: &mut Vec<Said>) {
        let Some(block) = block else { return };
        let content = block.lines.join("\n");
        if block.mime == CLEAR_OUTPUT {
            self.flush(said);
            said.push(Said::Event(Event::Clear {
                wait: content.trim() == "wait",
            }));
            return;
        }
        let value = match block.mime.as_str() {
            mime if mime == "application/json" || mime.ends_with("+json") => {
                serde_json::from_str(&content).unwrap_or(Value::String(content))
            }
            _ => Value::String(content),
        };
        // Blocks that follow each other are one display in several representations, until one comes twice.
        let same = self.bundle.as_ref().is_some_and(|bundle| {
            bundle.display_id == block.display_id
                && bundle.update == block.update
                && !bundle.data.contains_key(&block.mime)
        });
        if !same {
            self.flush(said);
        }
        let bundle = self.bundle.get_or_insert_with(|| Display {
            data: Map::new(),
            metadata: Map::new(),
            display_id: block.display_id,
            update: block.update,
            is_result: false,
        });
        if let Some(metadata) = block.metadata {
            bundle.metadata.insert(block.mime.clone(), metadata);
        }
        bundle.data.insert(block.mime, value);
    }

    /// At the end of a cell: the display that still waits, if the cell's last expression may have shown it.
    pub fn take_result(&mut self) -> Option<Display> {
        self.bundle.take()
    }
}

impl Block {
    /// `text/html`, or `text/html display_id=progress update=1 metadata={"isolated":true}`.
    fn from_header(header: &str) -> Self {
        let mut block = Self {
            mime: String::new(),
            display_id: None,
            update: false,
            metadata: None,
            lines: Vec::new(),
        };
        let (mime, mut attributes) = header.split_once(' ').unwrap_or((header, ""));
        block.mime = mime.to_owned();
        // The metadata may hold spaces, so it comes last.
        if let Some((before, metadata)) = attributes.split_once("metadata=") {
            block.metadata = serde_json::from_str(metadata).ok();
            attributes = before;
        }
        for attribute in attributes.split_whitespace() {
            match attribute.split_once('=') {
                Some(("display_id", id)) => block.display_id = Some(id.to_owned()),
                Some(("update", value)) => block.update = value == "1",
                _ => {}
            }
        }
        block
    }
}

/// How much of an unfinished line can't be the beginning of a marker, nor of a character.
fn ready_prefix(bytes: &[u8]) -> usize {
    let whole = match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // An error in the middle stays one; only an unfinished character at the end may still become whole.
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        Err(_) => bytes.len(),
    };
    (0..whole)
        .find(|&at| {
            MARKERS.iter().any(|marker| {
                let rest = &bytes[at..];
                rest.starts_with(marker.as_bytes()) || marker.as_bytes().starts_with(rest)
            })
        })
        .unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Said {
        Said::Event(Event::Text(Stream::Stdout, text.to_owned()))
    }

    fn display(said: &Said) -> &Display {
        match said {
            Said::Event(Event::Display(display)) => display,
            other => panic!("not a display: {other:?}"),
        }
    }

    #[test]
    fn text_without_a_newline_is_passed_on_at_once() {
        let mut reader = Reader::default();
        assert_eq!(reader.read(b"50%\r"), [text("50%\r")]);
        assert_eq!(reader.read(b"100%\n"), [text("100%\n")]);
    }

    #[test]
    fn a_character_cut_in_two_is_put_together() {
        let mut reader = Reader::default();
        let bytes = "é".as_bytes();
        assert_eq!(reader.read(&bytes[..1]), []);
        assert_eq!(reader.read(&bytes[1..]), [text("é")]);
    }

    #[test]
    fn a_marker_cut_anywhere_is_never_shown_as_text() {
        let all = format!("abc{PANICKED}\n");
        for cut in 0..all.len() {
            let mut reader = Reader::default();
            let mut said = reader.read(&all.as_bytes()[..cut]);
            said.extend(reader.read(&all.as_bytes()[cut..]));
            let shown: String = said
                .iter()
                .filter_map(|said| match said {
                    Said::Event(Event::Text(_, text)) => Some(text.as_str()),
                    _ => None,
                })
                .collect();
            assert_eq!(shown, "abc", "cut at {cut}");
            assert_eq!(said.last(), Some(&Said::Notice(PANICKED.to_owned())));
        }
    }

    #[test]
    fn a_line_that_begins_like_a_marker_comes_out_whole() {
        let mut reader = Reader::default();
        let mut said = reader.read(b"EVCXR_");
        assert_eq!(said, []);
        said.extend(reader.read(b"is a word\n"));
        assert_eq!(said, [text("EVCXR_is a word\n")]);
    }

    #[test]
    fn representations_that_follow_each_other_are_one_display() {
        let mut reader = Reader::default();
        let mut said = reader.read(
            b"EVCXR_BEGIN_CONTENT text/html\n<b>1</b>\nEVCXR_END_CONTENT\n\
              EVCXR_BEGIN_CONTENT text/plain\n1\nEVCXR_END_CONTENT\nafter\n",
        );
        assert_eq!(said.len(), 2);
        let shown = display(&said[0]);
        assert_eq!(shown.data["text/html"], "<b>1</b>");
        assert_eq!(shown.data["text/plain"], "1");
        assert_eq!(said.remove(1), text("after\n"));
    }

    #[test]
    fn the_same_representation_twice_is_two_displays() {
        let mut reader = Reader::default();
        let said = reader.read(
            b"EVCXR_BEGIN_CONTENT text/html\na\nEVCXR_END_CONTENT\n\
              EVCXR_BEGIN_CONTENT text/html\nb\nEVCXR_END_CONTENT\n",
        );
        assert_eq!(display(&said[0]).data["text/html"], "a");
        assert_eq!(
            reader
                .take_result()
                .map(|last| last.data["text/html"].clone()),
            Some("b".into())
        );
    }

    #[test]
    fn an_update_names_the_display_that_it_replaces() {
        let mut reader = Reader::default();
        let mut said = reader.read(
            b"EVCXR_BEGIN_CONTENT text/html display_id=p1 update=1 metadata={\"a\": 1}\nx\ny\nEVCXR_END_CONTENT\n",
        );
        reader.flush(&mut said);
        let shown = display(&said[0]);
        assert_eq!(shown.display_id.as_deref(), Some("p1"));
        assert!(shown.update);
        assert_eq!(shown.data["text/html"], "x\ny");
        assert_eq!(shown.metadata["text/html"]["a"], 1);
    }

    #[test]
    fn json_is_sent_as_json() {
        let mut reader = Reader::default();
        reader.read(b"EVCXR_BEGIN_CONTENT application/json\n{\"a\": [1]}\nEVCXR_END_CONTENT\n");
        let shown = reader.take_result().expect("one display");
        assert_eq!(shown.data["application/json"]["a"][0], 1);
    }

    #[test]
    fn a_request_for_input_carries_its_prompt() {
        let mut reader = Reader::default();
        let said = reader.read(b"EVCXR_INPUT_REQUEST_PASSWORD:Token: \n");
        assert_eq!(
            said,
            [Said::Event(Event::Input {
                prompt: "Token: ".into(),
                password: true
            })]
        );
    }

    #[test]
    fn a_block_cut_off_by_a_panic_is_dropped() {
        let mut reader = Reader::default();
        let said =
            reader.read(b"EVCXR_BEGIN_CONTENT text/html\nhalf\nEVCXR_PANIC_NOTIFICATION\nnext\n");
        assert_eq!(said, [Said::Notice(PANICKED.into()), text("next\n")]);
    }
}
