//! Text of one stream, with carriage returns applied.

/// Appends text piece by piece; each piece costs time proportional to its own length.
#[derive(Clone, Debug, Default)]
pub struct StreamText {
    text: String,
    /// The offset of the last line.
    line: usize,
    /// The last character was a carriage return: what follows overwrites the line, unless it is a newline.
    returned: bool,
}

impl StreamText {
    /// Appends a piece.
    pub fn push(&mut self, mut new: &str) {
        while !new.is_empty() {
            let end = new.find(['\r', '\n']).unwrap_or(new.len());
            let (plain, rest) = new.split_at(end);
            if !plain.is_empty() {
                if std::mem::take(&mut self.returned) {
                    self.text.truncate(self.line);
                }
                self.text.push_str(plain);
            }
            let mut rest = rest.chars();
            match rest.next() {
                Some('\r') => self.returned = true,
                Some(_) => {
                    self.returned = false;
                    self.text.push('\n');
                    self.line = self.text.len();
                }
                None => {}
            }
            new = rest.as_str();
        }
    }

    /// Returns the whole text. A carriage return at the very end has overwritten nothing yet, and is kept.
    pub fn into_text(self) -> String {
        match self.returned {
            true => self.text + "\r",
            false => self.text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(pieces: &[&str]) -> String {
        let mut text = StreamText::default();
        pieces.iter().for_each(|piece| text.push(piece));
        text.into_text()
    }

    #[test]
    fn a_carriage_return_overwrites_its_line_wherever_the_text_is_split() {
        let all = "a\r\nbc\rd\n1\r2\r3";
        for cut in 0..=all.len() {
            let (before, after) = all.split_at(cut);
            assert_eq!(seen(&[before, after]), "a\nd\n3", "cut at {cut}");
        }
        assert_eq!(seen(&["50%\r"]), "50%\r");
        assert_eq!(seen(&["50%\r", "60%\r"]), "60%\r");
        assert_eq!(seen(&["\r\r\n"]), "\n");
    }
}
