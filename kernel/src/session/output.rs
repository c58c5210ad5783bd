//! Parses what a cell prints: plain text, displays, and the kernel's own control words, all in one stream of bytes.
//!
//! What a cell prints is data, whatever it looks like. The kernel's own control words, and the displays of its library,
//! follow the session's mark ([`crate::evcxr::child::MARK`]), anywhere in a line. Of the stock kernel's control words,
//! two are recognised at the beginning of a line: a well-formed display, and a request for input. A display that is
//! still open when the cell ends is returned as text.

use serde_json::{Map, Value};

use super::event::{Display, Event, Stream};
use crate::evcxr::child::{END_OF_CELL, END_OF_PROCESS};

const BEGIN_CONTENT: &str = "EVCXR_BEGIN_CONTENT ";
const END_CONTENT: &str = "EVCXR_END_CONTENT";
const INPUT: &str = "EVCXR_INPUT_REQUEST";
const PASSWORD: &str = "EVCXR_INPUT_REQUEST_PASSWORD";
/// After the mark: the number of following bytes that belong to stderr, printed at exactly this point.
const STDERR: &str = "CLOZE_STDERR ";

/// The MIME type with which the library asks to clear the cell's output; the content is `wait` or empty.
const CLEAR_OUTPUT: &str = "application/x-cloze-clear-output";

/// A parsed part of the stream.
#[derive(Debug, PartialEq)]
pub enum Output {
    /// An event for the front end.
    Event(Event),
    /// The cell has finished printing.
    EndOfCell,
    /// The process is dead, and all of its output has been read.
    EndOfProcess,
}

/// Takes bytes as they arrive, and returns what they mean as soon as that is certain.
#[derive(Debug)]
pub struct Reader {
    /// Precedes the kernel's own control words.
    mark: String,
    /// The bytes of an incomplete line.
    pending: Vec<u8>,
    /// The number of pending bytes that are known to contain no newline.
    searched: usize,
    /// Whether the next byte begins a line.
    fresh: bool,
    /// The number of the next bytes that belong to stderr.
    aside: usize,
    /// The content block that is being read.
    block: Option<Block>,
    /// A display that may get another representation from the next block.
    bundle: Option<Display>,
}

#[derive(Debug)]
struct Block {
    /// Its first line, unchanged.
    header: String,
    /// Whether it followed the mark; its end then does, too.
    marked: bool,
    mime: String,
    display_id: Option<String>,
    update: bool,
    metadata: Option<Value>,
    lines: Vec<String>,
}

impl Reader {
    /// Creates a reader for the session with this mark.
    pub fn new(mark: &str) -> Self {
        Self {
            mark: format!("\u{1}{mark}"),
            pending: Vec::new(),
            searched: 0,
            fresh: true,
            aside: 0,
            block: None,
            bundle: None,
        }
    }

    /// Parses more bytes.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Output> {
        let mut said = Vec::new();
        self.pending.extend_from_slice(bytes);
        let mut start = 0;
        loop {
            if self.aside > 0 {
                let Some(text) = self.pending.get(start..start + self.aside) else {
                    break;
                };
                let text = String::from_utf8_lossy(text).into_owned();
                start += std::mem::take(&mut self.aside);
                self.say(Stream::Stderr, text, &mut said);
            }
            let from = start + self.searched;
            let Some(length) = self.pending[from..].iter().position(|&byte| byte == b'\n') else {
                self.searched = self.pending.len() - start;
                break;
            };
            let line = String::from_utf8_lossy(&self.pending[start..from + length]).into_owned();
            start = from + length + 1;
            self.searched = 0;
            self.line(line, &mut said);
        }
        self.pending.drain(..start);
        if self.block.is_none() && self.aside == 0 {
            let ready = self.ready();
            if ready > 0 {
                let text: Vec<u8> = self.pending.drain(..ready).collect();
                self.searched = self.pending.len();
                self.text(String::from_utf8_lossy(&text).into_owned(), &mut said);
            }
        }
        said
    }

    /// Whether a display is being held for another representation.
    pub fn holds_display(&self) -> bool {
        self.bundle.is_some()
    }

    /// Returns a display that was held for another representation.
    pub fn flush(&mut self, said: &mut Vec<Output>) {
        if let Some(display) = self.bundle.take() {
            said.push(Output::Event(Event::Display(display)));
        }
    }

    fn line(&mut self, line: String, said: &mut Vec<Output>) {
        if let Some((before, word)) = line.split_once(&self.mark) {
            return self.marked(before, word, said);
        }
        if let Some(block) = &mut self.block {
            if line == END_CONTENT && !block.marked {
                self.content(said);
            } else {
                block.lines.push(line);
            }
            return;
        }
        if self.fresh {
            if let Some(block) = Block::from_header(&line, false) {
                self.block = Some(block);
                return;
            }
            if is_request(&line) {
                return self.request(&line, said);
            }
        }
        self.text(line + "\n", said);
    }

    /// Handles a line that contains the mark: text before it, and a control word after it.
    fn marked(&mut self, before: &str, word: &str, said: &mut Vec<Output>) {
        if word == END_CONTENT
            && let Some(block) = self.block.as_mut().filter(|block| block.marked)
        {
            if !before.is_empty() {
                block.lines.push(before.to_owned());
            }
            return self.content(said);
        }
        // Whatever the control word, a block that is still open was none.
        self.give_back(said);
        self.text(before.to_owned(), said);
        if let Some(block) = Block::from_header(word, true) {
            self.block = Some(block);
        } else if let Some(length) = word.strip_prefix(STDERR) {
            self.aside = length.parse().unwrap_or(0);
        } else if word == END_OF_CELL {
            self.fresh = true;
            said.push(Output::EndOfCell);
        } else if word == END_OF_PROCESS {
            self.flush(said);
            self.fresh = true;
            said.push(Output::EndOfProcess);
        } else if is_request(word) {
            self.request(word, said);
        } else {
            self.text(format!("{word}\n"), said);
        }
    }

    /// Returns the text of a block that has no end.
    fn give_back(&mut self, said: &mut Vec<Output>) {
        if let Some(block) = self.block.take() {
            let lines = std::iter::once(block.header).chain(block.lines);
            let text: String = lines.map(|line| line + "\n").collect();
            self.text(text, said);
        }
    }

    fn request(&mut self, line: &str, said: &mut Vec<Output>) {
        self.flush(said);
        let prompt = line.split_once(':').map_or("", |(_, prompt)| prompt);
        said.push(Output::Event(Event::Input {
            prompt: prompt.to_owned(),
            password: line.starts_with(PASSWORD),
        }));
    }

    fn text(&mut self, text: String, said: &mut Vec<Output>) {
        if let Some(last) = text.chars().last() {
            self.fresh = last == '\n';
            self.say(Stream::Stdout, text, said);
        }
    }

    fn say(&mut self, stream: Stream, text: String, said: &mut Vec<Output>) {
        self.flush(said);
        said.push(Output::Event(Event::Text(stream, text)));
    }

    /// Completes the open block.
    fn content(&mut self, said: &mut Vec<Output>) {
        let Some(block) = self.block.take() else {
            return;
        };
        let content = block.lines.join("\n");
        if block.mime == CLEAR_OUTPUT {
            self.flush(said);
            said.push(Output::Event(Event::Clear {
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
        // Consecutive blocks are one display in several representations, until a MIME type is repeated.
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

    /// At the end of a cell, returns the display that is still held, if the cell's last expression may have shown it.
    pub fn take_result(&mut self) -> Option<Display> {
        self.bundle.take()
    }

    /// Returns how much of the incomplete line can be neither the beginning of a control word nor part of a character.
    fn ready(&self) -> usize {
        let bytes = &self.pending[..];
        let may_be = |word: &[u8]| bytes.starts_with(word) || word.starts_with(bytes);
        if self.fresh
            && [BEGIN_CONTENT, INPUT]
                .iter()
                .any(|word| may_be(word.as_bytes()))
        {
            return 0;
        }
        let whole = match std::str::from_utf8(bytes) {
            // An invalid byte in the middle stays invalid; only an incomplete character at the end may still become
            // valid.
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => bytes.len(),
        };
        let mark = self.mark.as_bytes();
        (0..whole)
            .filter(|&at| bytes[at] == mark[0])
            .find(|&at| bytes[at..].starts_with(mark) || mark.starts_with(&bytes[at..]))
            .unwrap_or(whole)
    }
}

/// Parses a request for input: `EVCXR_INPUT_REQUEST:prompt`.
fn is_request(line: &str) -> bool {
    [PASSWORD, INPUT].iter().any(|word| {
        let rest = line.strip_prefix(word);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
    })
}

impl Block {
    /// `EVCXR_BEGIN_CONTENT text/html`, or `... text/html display_id=progress update=1 metadata={"isolated":true}`.
    fn from_header(line: &str, marked: bool) -> Option<Self> {
        let header = line.strip_prefix(BEGIN_CONTENT)?;
        let (mime, mut attributes) = header.split_once(' ').unwrap_or((header, ""));
        let (kind, subtype) = mime.split_once('/')?;
        if kind.is_empty() || subtype.is_empty() {
            return None;
        }
        let mut block = Self {
            header: line.to_owned(),
            marked,
            mime: mime.to_owned(),
            display_id: None,
            update: false,
            metadata: None,
            lines: Vec::new(),
        };
        // The metadata may contain spaces, so it comes last.
        if let Some((before, metadata)) = attributes.split_once("metadata=") {
            block.metadata = serde_json::from_str(metadata).ok();
            attributes = before;
        }
        for attribute in attributes.split_whitespace() {
            match attribute.split_once('=')? {
                ("display_id", id) => block.display_id = Some(id.to_owned()),
                ("update", value) => block.update = value == "1",
                _ => {}
            }
        }
        Some(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Output {
        Output::Event(Event::Text(Stream::Stdout, text.to_owned()))
    }

    fn display(said: &Output) -> &Display {
        match said {
            Output::Event(Event::Display(display)) => display,
            other => panic!("not a display: {other:?}"),
        }
    }

    #[test]
    fn text_without_a_newline_is_passed_on_at_once() {
        let mut reader = Reader::new("m");
        assert_eq!(reader.read(b"50%\r"), [text("50%\r")]);
        assert_eq!(reader.read(b"100%\n"), [text("100%\n")]);
    }

    #[test]
    fn a_character_that_arrives_in_two_parts_is_joined() {
        let mut reader = Reader::new("m");
        let bytes = "é".as_bytes();
        assert_eq!(reader.read(&bytes[..1]), []);
        assert_eq!(reader.read(&bytes[1..]), [text("é")]);
    }

    fn shown(said: &[Output]) -> String {
        let text = said.iter().filter_map(|said| match said {
            Output::Event(Event::Text(_, text)) => Some(text.as_str()),
            _ => None,
        });
        text.collect()
    }

    #[test]
    fn a_control_word_split_anywhere_is_never_shown_as_text() {
        let all = "abc\u{1}mEVCXR_BEGIN_CONTENT text/html\nx\n\u{1}mEVCXR_END_CONTENT\nd\u{1}mCLOZE_END_OF_CELL\n";
        for cut in 0..all.len() {
            let mut reader = Reader::new("m");
            let mut said = reader.read(&all.as_bytes()[..cut]);
            said.extend(reader.read(&all.as_bytes()[cut..]));
            assert_eq!(shown(&said), "abcd", "cut at {cut}");
            assert_eq!(said.last(), Some(&Output::EndOfCell));
        }
    }

    #[test]
    fn control_words_in_the_output_of_a_cell_are_text() {
        for printed in [
            "see EVCXR_BEGIN_CONTENT text/html in the docs\n",
            "EVCXR_BEGIN_CONTENT text/html in the docs\n",
            "EVCXR_BEGIN_CONTENT \n",
            "    EVCXR_BEGIN_CONTENT text/html\nx\nEVCXR_END_CONTENT\n",
            "EVCXR_PANIC_NOTIFICATION\n",
            "EVCXR_ERROR_OCCURRED\nEVCXR_VARIABLE_CHANGED_TYPE:a\n",
            "CLOZE_END_OF_CELL\n\u{1}CLOZE_END_OF_CELL\n\u{1}otherCLOZE_END_OF_CELL\n",
            "use EVCXR_INPUT_REQUEST:x here\nEVCXR_INPUT_REQUESTS\n",
            "EVCXR_END_CONTENT\n",
        ] {
            let mut reader = Reader::new("m");
            let mut said = reader.read(printed.as_bytes());
            said.extend(reader.read("\u{1}mCLOZE_END_OF_CELL\n".as_bytes()));
            assert_eq!(shown(&said), printed);
            assert_eq!(said.last(), Some(&Output::EndOfCell));
            assert!(reader.take_result().is_none());
        }
    }

    #[test]
    fn an_unterminated_block_is_returned_as_text_when_the_cell_ends() {
        let mut reader = Reader::new("m");
        let printed = "EVCXR_BEGIN_CONTENT text/html\nhalf\nmore";
        assert_eq!(reader.read(printed.as_bytes()), []);
        let said = reader.read("\u{1}mCLOZE_END_OF_CELL\nnext\n".as_bytes());
        assert_eq!(shown(&said), format!("{printed}next\n"));
        assert!(said.contains(&Output::EndOfCell));
    }

    #[test]
    fn only_the_library_can_end_its_own_display() {
        let mut reader = Reader::new("m");
        reader.read("\u{1}mEVCXR_BEGIN_CONTENT text/plain\na\nEVCXR_END_CONTENT\nb\n\u{1}mEVCXR_END_CONTENT\n".as_bytes());
        let display = reader.take_result().expect("one display");
        assert_eq!(display.data["text/plain"], "a\nEVCXR_END_CONTENT\nb");
    }

    #[test]
    fn text_on_stderr_keeps_its_place() {
        let mut reader = Reader::new("m");
        let all = "a\nb\u{1}mCLOZE_STDERR 4\ne\né\u{1}mCLOZE_STDERR 1\n!c\n";
        let mut said = Vec::new();
        for byte in all.as_bytes() {
            said.extend(reader.read(&[*byte]));
        }
        let err = |text: &str| Output::Event(Event::Text(Stream::Stderr, text.to_owned()));
        assert_eq!(shown(&said), "a\nbe\né!c\n");
        assert!(
            said.contains(&err("e\né")) && said.contains(&err("!")),
            "{said:?}"
        );
    }

    #[test]
    fn a_line_of_many_pieces_is_searched_once() {
        let mut reader = Reader::new("m");
        reader.read(b"EVCXR_BEGIN_CONTENT text/plain\n");
        let start = std::time::Instant::now();
        for _ in 0..20_000 {
            reader.read(&[b'x'; 100]);
        }
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }

    #[test]
    fn a_line_that_begins_like_a_control_word_is_kept_whole() {
        let mut reader = Reader::new("m");
        let mut said = reader.read(b"EVCXR_");
        assert_eq!(said, []);
        said.extend(reader.read(b"is a word\n"));
        assert_eq!(said, [text("EVCXR_is a word\n")]);
    }

    #[test]
    fn consecutive_representations_are_one_display() {
        let mut reader = Reader::new("m");
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
        let mut reader = Reader::new("m");
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
    fn an_update_carries_the_id_of_the_display_it_replaces() {
        let mut reader = Reader::new("m");
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
        let mut reader = Reader::new("m");
        reader.read(b"EVCXR_BEGIN_CONTENT application/json\n{\"a\": [1]}\nEVCXR_END_CONTENT\n");
        let shown = reader.take_result().expect("one display");
        assert_eq!(shown.data["application/json"]["a"][0], 1);
    }

    #[test]
    fn a_request_for_input_carries_its_prompt() {
        let mut reader = Reader::new("m");
        let said = reader.read(b"EVCXR_INPUT_REQUEST_PASSWORD:Token: \n");
        assert_eq!(
            said,
            [Output::Event(Event::Input {
                prompt: "Token: ".into(),
                password: true
            })]
        );
    }
}
