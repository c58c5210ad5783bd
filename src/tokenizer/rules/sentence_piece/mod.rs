//! A `SentencePiece` model, as ALBERT, XLM-RoBERTa, DeBERTa-v2, mBART and others have it.
//!
//! Kudo and Richardson 2018. The text is normalized by the model's own map of characters and cut by the scores of its
//! pieces, or by merges; what no piece fits is unknown, or bytes where the model has them.

mod bpe;
mod decode;
mod normalize;
mod proto;
mod steps;
mod trie;
mod unigram;

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;

use super::aligned::Aligned;
use super::classes::CharClass;
use super::vocabulary::Vocabulary;
use super::{Piece, Segmenter, Spelled, Stretches, is_space};
use crate::Result;
use bpe::Bpe;
use normalize::Normalizer;
use proto::{Algorithm, Kind, Proto};
use steps::Steps;
use trie::Trie;
use unigram::Unigram;

const SPACE: char = '\u{2581}';
const SPACE_STR: &str = "\u{2581}";

/// Where a family's ids are not the model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// A piece's id is its place in the file.
    Own,
    /// Numbered as in fairseq: `first` come before the file's pieces from `from` on, `last` after them; the unknown
    /// token is `<unk>`.
    Fairseq {
        first: &'static [&'static str],
        from: usize,
        last: &'static [&'static [&'static str]],
    },
}

/// What a family does to a text before the model sees it, as its `tokenizer_config.json` may say otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cleaning {
    /// Runs of spaces of all kinds become one space.
    pub(crate) remove_space: bool,
    /// Two backticks or apostrophes become a quotation mark.
    pub(crate) quotes: bool,
    /// Accents go, after a compatibility decomposition.
    pub(crate) strip_accents: bool,
    pub(crate) lowercase: bool,
    /// Every punctuation mark is a separate piece.
    pub(crate) split_by_punct: bool,
    /// A comma after digits is a separate piece.
    pub(crate) comma_after_digits: bool,
    /// Spaces before and after a text that is normalized together are in none of its pieces.
    pub(crate) strips: bool,
    /// transformers' fast class alone makes quotes plain, and spaces single before the model's own map.
    pub(crate) fast_quotes: bool,
}

/// How tokens are joined to a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    /// Pieces one after the other, special tokens among them.
    Plain,
    /// The model's own way, stretch by stretch between special tokens, with a space before the first of these in a row.
    Stretches,
    /// The same, but without spaces between parts, or after `<unk>`.
    TightUnknown,
    /// Like [`Joining::Stretches`] between all added tokens, with no space before `[MASK]` and `[SEP]`.
    TightMask,
    /// The model's own way for all tokens, special ones too.
    Model,
}

#[derive(Debug)]
enum Cut {
    Unigram(Unigram),
    Bpe(Bpe),
}

#[derive(Debug)]
pub(crate) struct SentencePiece {
    proto: Proto,
    normalizer: Normalizer,
    cut: Cut,
    /// By text.
    places: HashMap<String, usize>,
    /// The place of each byte's piece, where the model has them.
    bytes: Option<Box<[usize; 256]>>,
    cleaning: Cleaning,
    /// The same as steps of the library, where it can take them.
    steps: Option<Steps>,
    joining: Joining,
    /// What is added to a place to make it an id, and the id of what is unknown.
    shift: i64,
    unk_id: u32,
    unk_token: String,
}

impl SentencePiece {
    /// Reads a model file.
    pub(crate) fn read(
        path: &Path,
        bytes: &[u8],
        ids: Ids,
        cleaning: Cleaning,
        joining: Joining,
    ) -> Result<(Self, Vocabulary)> {
        let proto = Proto::read(path, bytes)?;
        let texts = proto.pieces.iter().map(|piece| piece.text.clone());
        let (vocabulary, shift, unk_id, unk_token) = match ids {
            Ids::Own => {
                let unk = proto.pieces[proto.unk].text.clone();
                (Vocabulary::in_order(texts), 0, proto.unk as u32, unk)
            }
            Ids::Fairseq { first, from, last } => {
                let first_tokens = first.iter().map(|&token| token.to_owned());
                let last = last
                    .iter()
                    .copied()
                    .flatten()
                    .map(|&token| token.to_owned());
                let all = first_tokens.chain(texts.skip(from)).chain(last);
                let vocabulary = Vocabulary::in_order(all);
                let unk = vocabulary.id("<unk>").unwrap_or_default();
                let shift = first.len() as i64 - from as i64;
                (vocabulary, shift, unk, "<unk>".to_owned())
            }
        };
        let places = proto.pieces.iter().enumerate();
        let mut by_text = HashMap::with_capacity(proto.pieces.len());
        for (place, piece) in places {
            by_text.entry(piece.text.clone()).or_insert(place);
        }
        let mut bytes = Box::new([0; 256]);
        for (place, piece) in proto.pieces.iter().enumerate() {
            if let Kind::Byte(byte) = piece.kind {
                bytes[usize::from(byte)] = place;
            }
        }
        let symbols = proto.pieces.iter().zip(0..);
        let symbols = symbols.filter(|(piece, _)| piece.kind == Kind::UserDefined);
        let symbols = Trie::new(symbols.map(|(piece, place)| (piece.text.as_str(), place)));
        let model = Self {
            normalizer: Normalizer::new(&proto, symbols),
            steps: Steps::new(&proto, cleaning),
            cut: match proto.algorithm {
                Algorithm::Unigram => Cut::Unigram(Unigram::new(&proto.pieces)),
                Algorithm::Bpe => Cut::Bpe(Bpe::new(&proto.pieces)),
            },
            places: by_text,
            bytes: proto.byte_fallback.then_some(bytes),
            proto,
            cleaning,
            joining,
            shift,
            unk_id,
            unk_token,
        };
        Ok((model, vocabulary))
    }

    /// Returns the id of the piece at `place` of the file.
    fn id(&self, place: usize) -> u32 {
        if place == self.proto.unk {
            return self.unk_id;
        }
        u32::try_from(place as i64 + self.shift).unwrap_or(self.unk_id)
    }

    /// Returns the text as the model sees it: whole, or every punctuation mark by itself. Its places are those of `placed`.
    fn parts(&self, text: &Aligned, placed: Option<&Aligned>) -> Vec<Aligned> {
        let parts = |text: Aligned| match self.cleaning.split_by_punct {
            true => by_punctuation(&text),
            false => vec![text],
        };
        let own = parts(self.clean(text)).into_iter();
        let own = own.map(|part| self.normalizer.apply(&part));
        let mut own: Vec<Aligned> = own.filter(|part| !part.is_empty()).collect();
        // Places are those that the library's steps find, wherever these come to the same text.
        let theirs = placed.cloned().map(parts).unwrap_or_default();
        let theirs = theirs.iter().map(Steps::marked);
        let says_something = |part: &Aligned| part.as_str().contains(|c| c != SPACE);
        let theirs: Vec<Aligned> = theirs.filter(says_something).collect();
        if theirs.len() == own.len() {
            for (own, theirs) in own.iter_mut().zip(theirs) {
                *own = steps::placed(own, theirs);
            }
        }
        own
    }

    /// Returns the pieces of a text that is normalized, each with its text.
    fn cut(&self, normalized: &Aligned) -> Vec<Found> {
        let unk = self.proto.unk;
        let cut = match &self.cut {
            Cut::Unigram(model) => model.cut(normalized.as_str(), unk),
            Cut::Bpe(model) => model.cut(normalized.as_str(), unk),
        };
        let mut found: Vec<Found> = Vec::with_capacity(cut.len());
        // Characters in a row that no piece fits are one unknown piece.
        for stretch in cut.chunk_by(|left, right| left.1 == unk && right.1 == unk) {
            let range = stretch[0].0.start..stretch[stretch.len() - 1].0.end;
            let place = stretch[0].1;
            match &self.bytes {
                Some(bytes) if place == unk => {
                    let span = normalized.span(range.clone());
                    for byte in normalized.as_str()[range].bytes() {
                        let place = bytes[usize::from(byte)];
                        found.push(Found {
                            place,
                            text: Aligned::default(),
                            span,
                        });
                    }
                }
                _ => found.push(Found {
                    place,
                    span: normalized.span(range.clone()),
                    text: normalized.slice(range),
                }),
            }
        }
        found
    }

    /// Returns the pieces of a text that is normalized, with commas behind digits cut off.
    fn cut_commas(&self, normalized: &Aligned) -> Vec<Found> {
        let mut new = Vec::new();
        for piece in self.cut(normalized) {
            let mut last = piece.text.as_str().chars().rev();
            if !(last.next() == Some(',') && last.next().is_some_and(is_digit)) {
                new.push(piece);
                continue;
            }
            let comma = piece.text.len() - 1;
            let bare = piece.text.slice(0..comma).filter(|c| c != SPACE);
            let mut pieces = self.cut(&self.normalizer.apply(&bare));
            let begins_word = piece.text.as_str().starts_with(SPACE);
            if let Some(first) = pieces.first_mut() {
                if begins_word {
                    first.span.0 = piece.span.0;
                } else if let Some(rest) = normalize::without_space(first.text.as_str()) {
                    if rest.is_empty() {
                        pieces.remove(0);
                    } else {
                        first.text = first.text.slice(SPACE.len_utf8()..first.text.len());
                        first.place = self.place(first.text.as_str());
                    }
                }
            }
            new.extend(pieces);
            let text = piece.text.slice(comma..comma + 1);
            new.push(Found {
                place: self.place(","),
                span: text.span(0..1),
                text,
            });
        }
        new
    }

    /// Returns the place of the piece that is spelled so, or of the unknown one.
    fn place(&self, text: &str) -> usize {
        self.places.get(text).copied().unwrap_or(self.proto.unk)
    }

    /// Returns the text after what the family does before the model.
    fn clean(&self, text: &Aligned) -> Aligned {
        let cleaning = self.cleaning;
        let mut text = text.clone();
        if cleaning.remove_space {
            text = single_spaces(&text);
        }
        if cleaning.quotes {
            text = text.replace("``", "\"").replace("''", "\"");
        }
        if cleaning.strip_accents {
            let accent =
                |c| unicode_normalization_alignments::char::canonical_combining_class(c) != 0;
            text = text
                .through(|text| {
                    text.nfkd();
                })
                .filter(|c| !accent(c));
            // Marks of no class stay, but nothing of the text is theirs: the library's fast tokenizers drop them.
            text = text.with_empty_spans(is_mark);
        }
        if cleaning.lowercase {
            text = text.map(char::to_lowercase);
        }
        text
    }
}

/// A piece of a text.
#[derive(Debug)]
struct Found {
    place: usize,
    /// Its text in the normalized input; empty for bytes.
    text: Aligned,
    span: (usize, usize),
}

impl Segmenter for SentencePiece {
    fn segment(
        &self,
        text: &Aligned,
        placed: Option<&Aligned>,
        pieces: &mut Vec<Piece>,
    ) -> Result<()> {
        let mut found = Vec::new();
        for normalized in self.parts(text, placed) {
            found.extend(match self.cleaning.comma_after_digits {
                true => self.cut_commas(&normalized),
                false => self.cut(&normalized),
            });
        }
        pieces.extend(found.into_iter().enumerate().map(|(at, piece)| Piece {
            id: self.id(piece.place),
            span: piece.span,
            begins_word: at == 0 || piece.text.as_str().starts_with(SPACE),
        }));
        Ok(())
    }

    fn normalized(&self, text: &Aligned) -> Option<Aligned> {
        self.steps.as_ref()?.apply(text)
    }

    fn pipeline(&self) -> Option<Result<tokenizers::Tokenizer>> {
        let steps = self.steps.as_ref()?;
        Some(steps.pipeline(self.proto.algorithm, &self.unk_token))
    }

    fn join(&self, tokens: &[Spelled<'_>]) -> String {
        match self.joining {
            Joining::Plain => {
                let text: String = tokens.iter().map(|token| token.text).collect();
                text.replace(SPACE, " ").trim_matches(is_space).to_owned()
            }
            Joining::Model => self.decode(tokens.iter().map(|token| token.text)),
            Joining::Stretches | Joining::TightUnknown | Joining::TightMask => {
                let mut text = String::new();
                let mut open = 0;
                let mut after_special = false;
                for (at, token) in tokens.iter().enumerate() {
                    if token.special {
                        // transformers puts the space before the stretch, not between it and the special token.
                        if !after_special {
                            text.push(' ');
                        }
                        let stretch = tokens[open..at].iter().map(|token| token.text);
                        text.push_str(&self.decode(stretch));
                        text.push_str(token.text);
                        open = at + 1;
                    }
                    after_special = token.special;
                }
                text.push_str(&self.decode(tokens[open..].iter().map(|token| token.text)));
                text.trim_matches(is_space).to_owned()
            }
        }
    }

    fn stretches(&self) -> Stretches {
        match self.joining {
            Joining::TightUnknown => Stretches::Tight,
            Joining::TightMask => Stretches::EveryAdded,
            _ => Stretches::Spaced,
        }
    }

    fn finish(&self, text: String) -> String {
        match self.joining {
            Joining::TightUnknown => text.replace("<unk> ", "<unk>"),
            Joining::TightMask => text.replace(" [MASK]", "[MASK]").replace(" [SEP]", "[SEP]"),
            _ => text,
        }
    }

    fn continues_word(&self, token: &str) -> bool {
        !token.starts_with(SPACE)
    }
}

/// Runs of spaces as one space each, none at the ends.
fn single_spaces(text: &Aligned) -> Aligned {
    let mut new = Aligned::with_capacity(text.len());
    let mut space: Option<(u32, u32)> = None;
    let mut before = None;
    for (range, c) in text.chars() {
        let span = text.span_at(range.start);
        let line_end = before.replace(c) == Some('\r') && c == '\n';
        if is_space(c) {
            // Of several the last is the one that stays; a line's end of two characters is one.
            space = space.filter(|_| line_end).or(Some(span));
            continue;
        }
        if let Some(span) = space.take().filter(|_| !new.is_empty()) {
            new.push(' ', span);
        }
        new.push(c, span);
    }
    new
}

/// Splits the text at punctuation marks, which become separate parts.
fn by_punctuation(text: &Aligned) -> Vec<Aligned> {
    let mut parts = Vec::new();
    let mut open = 0;
    for (range, c) in text.chars() {
        if is_punctuation(c) {
            if range.start > open {
                parts.push(text.slice(open..range.start));
            }
            open = range.end;
            parts.push(text.slice(range));
        }
    }
    if open < text.len() {
        parts.push(text.slice(open..text.len()));
    }
    parts
}

/// Returns whether BERT's classes take `c` for punctuation: that of Unicode, and every ASCII sign.
fn is_punctuation(c: char) -> bool {
    static MARKS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"\p{P}"));
    c.is_ascii_punctuation() || MARKS.contains(c)
}

/// Returns whether `c` is a mark that goes with another character.
fn is_mark(c: char) -> bool {
    static MARKS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"\p{M}"));
    MARKS.contains(c)
}

/// Returns whether Python takes `c` for a digit.
fn is_digit(c: char) -> bool {
    static DIGITS: LazyLock<CharClass> = LazyLock::new(|| {
        CharClass::new(
            "[\\p{Nd}\u{b2}\u{b3}\u{b9}\u{2070}\u{2074}-\u{2079}\u{2080}-\u{2089}\u{2460}-\u{2468}]",
        )
    });
    DIGITS.contains(c)
}
