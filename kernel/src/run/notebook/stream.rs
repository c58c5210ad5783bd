//! Text of one stream, with what carriage returns leave of it.

/// Takes text piece by piece; each piece costs its own length, however much there is already.
#[derive(Clone, Debug, Default)]
pub struct StreamText {
    text: String,
    /// Where the last line begins.
    line: usize,
    /// A carriage return came last: what follows overwrites the line, unless it is a newline.
    returned: bool,
}

impl StreamText {
    /// Adds a piece.
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

    /// All of it. A return at the very end has overwritten nothing yet, and stays.
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
    fn a_return_overwrites_its_line_wherever_the_text_is_cut() {
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
