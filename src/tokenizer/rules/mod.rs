//! The rules of transformers' Python tokenizer classes, for the folders that hold no `tokenizer.json`.
//!
//! A text is cut at its added tokens, each part between them is segmented by the family's own [`Segmenter`], and decoding
//! goes the way back. Special tokens around a text, truncation and padding are not of this room.

pub(super) mod added;
pub(super) mod aligned;
pub(super) mod classes;
pub(super) mod vocabulary;

pub(super) mod bytes;
pub(super) mod chinese_words;
pub(super) mod letterwise;
pub(super) mod moses;
pub(super) mod sentence_piece;
pub(super) mod table_words;
mod word_pieces;

use std::fmt;
use std::sync::Arc;

use tokenizers::AddedToken;

use crate::{Error, Result};
use added::{Added, Part};
use aligned::Aligned;
use vocabulary::Vocabulary;

/// Returns whether Python takes `c` for a space.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// A token found in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) id: u32,
    /// Start and end in characters of the text.
    pub(super) span: (usize, usize),
    /// Whether a word begins here.
    pub(super) begins_word: bool,
}

/// A token that is to be joined to a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spelled<'a> {
    pub(super) text: &'a str,
    /// Whether it is one of the tokenizer's special tokens.
    pub(super) special: bool,
    /// Whether it is an added token.
    pub(super) added: bool,
    /// Whether it is kept separate.
    alone: bool,
}

/// How a family cuts a text without added tokens into pieces, and joins tokens to a text.
pub(super) trait Segmenter: Send + Sync + fmt::Debug {
    /// Appends the pieces of `text`. `placed` is what [`normalized`](Self::normalized) makes of it, where the places of the
    /// pieces are asked for and the family has such steps.
    fn segment(
        &self,
        text: &Aligned,
        placed: Option<&Aligned>,
        pieces: &mut Vec<Piece>,
    ) -> Result<()>;

    /// Returns the text as the library's steps for this family normalize it, which say where the pieces stand; `None` where
    /// there are no such steps, or they fail.
    fn normalized(&self, _text: &Aligned) -> Option<Aligned> {
        None
    }

    /// Returns the text of tokens in a row.
    fn join(&self, tokens: &[Spelled<'_>]) -> String;

    /// Returns how [`join`](Self::join) is called on all tokens of a sequence.
    fn stretches(&self) -> Stretches {
        Stretches::Spaced
    }

    /// Returns whether a token continues the word of the one before it, by its spelling.
    fn continues_word(&self, token: &str) -> bool;

    /// Returns the text of `ids`, where the family does not go by its tokens.
    fn decode(&self, _ids: &[u32], _skip_special_tokens: bool) -> Option<Result<String>> {
        None
    }

    /// Returns the same rules as a pipeline of the library whose model knows nothing yet; `None` where transformers has no
    /// such pipeline.
    fn pipeline(&self) -> Option<Result<tokenizers::Tokenizer>> {
        None
    }

    /// Itself, where it is a tokenizer for speech.
    fn letterwise(&self) -> Option<&letterwise::Letterwise> {
        None
    }

    /// Returns what is done to the whole text when it is joined.
    fn finish(&self, text: String) -> String {
        text
    }
}

/// Which tokens are kept separate in a decoded text, and what is put between the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stretches {
    /// All tokens are one stretch.
    One,
    /// Added tokens without a role are kept separate, with spaces between the parts.
    Spaced,
    /// Like [`Stretches::Spaced`], with nothing between the stretches.
    Tight,
    /// All added tokens are kept separate, with spaces between.
    EveryAdded,
}

/// What a tokenizer of this kind is made of.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    segmenter: Arc<dyn Segmenter>,
    vocabulary: Arc<Vocabulary>,
    added: Added,
    /// Those of them that are looked for in the normalized text, spelled as they are there.
    normalized: Added,
    /// Whether everything but special tokens is lowercased before it is cut at added tokens.
    lowercase: bool,
    /// The family's files, to be saved as they are.
    files: Vec<(&'static str, Arc<[u8]>)>,
}

impl Rules {
    pub(super) fn new(
        segmenter: impl Segmenter + 'static,
        vocabulary: Vocabulary,
        files: Vec<(&'static str, Arc<[u8]>)>,
    ) -> Self {
        Self {
            segmenter: Arc::new(segmenter),
            vocabulary: Arc::new(vocabulary),
            added: Added::default(),
            normalized: Added::default(),
            lowercase: false,
            files,
        }
    }

    pub(super) fn lowercase(mut self, lowercase: bool) -> Self {
        self.lowercase = lowercase;
        self
    }

    /// Returns the files that the family's tokenizer is opened from, by name.
    pub(super) fn files(&self) -> &[(&'static str, Arc<[u8]>)] {
        &self.files
    }

    pub(super) fn vocab_size(&self, with_added: bool) -> usize {
        let added = self.added.iter();
        let beyond = added.filter(|(_, token)| self.vocabulary.id(&token.content).is_none());
        self.vocabulary.len() + if with_added { beyond.count() } else { 0 }
    }

    /// Returns one more than the largest id.
    pub(super) fn rows(&self) -> u32 {
        let added = self.added.iter().map(|(id, _)| id + 1).max();
        self.vocabulary.rows().max(added.unwrap_or(0))
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.added.id(token).or_else(|| self.vocabulary.id(token))
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        let added = self.added.get(id).map(|token| token.content.as_str());
        added
            .or_else(|| self.vocabulary.token(id))
            .map(str::to_owned)
    }

    pub(super) fn added(&self) -> impl Iterator<Item = (u32, &AddedToken)> {
        self.added.iter()
    }

    pub(super) fn vocabulary(&self) -> impl Iterator<Item = (&str, u32)> {
        let beyond = self
            .added
            .iter()
            .map(|(id, token)| (token.content.as_str(), id));
        let own = self.vocabulary.iter();
        own.filter(|(token, _)| self.added.id(token).is_none())
            .chain(beyond)
    }

    pub(super) fn continues_word(&self, id: u32) -> bool {
        let own = self
            .added
            .get(id)
            .is_none()
            .then(|| self.vocabulary.token(id));
        own.flatten()
            .is_some_and(|token| self.segmenter.continues_word(token))
    }

    /// Adds tokens, each with its requested or existing id, or else one after the largest.
    pub(super) fn add(&mut self, tokens: Vec<(Option<u32>, AddedToken)>) -> Result<()> {
        for (wanted, mut token) in tokens {
            if token.content.is_empty() {
                continue;
            }
            if self.lowercase && !token.special && token.normalized {
                token.content = token.content.to_lowercase();
            }
            let known = self.token_to_id(&token.content);
            let id = wanted.or(known).unwrap_or_else(|| self.rows());
            let holder = self.id_to_token(id);
            if let Some(holder) = holder.filter(|holder| *holder != token.content) {
                return Err(Error::Tokenizer(format!(
                    "the added token {:?} is to have the id {id}, which {holder:?} has; the files do not belong together",
                    token.content
                )));
            }
            if let Some(other) = known.filter(|known| *known != id) {
                return Err(Error::Tokenizer(format!(
                    "the added token {:?} is to have the id {id}, but the vocabulary has it as {other}; the files do not \
                     belong together",
                    token.content
                )));
            }
            if id >= super::checks::MAX_ID {
                return Err(Error::Tokenizer(format!(
                    "the added token {:?} is to have the id {id}, but the vocabulary has {} tokens",
                    token.content,
                    self.vocabulary.len()
                )));
            }
            self.normalized.remove(id);
            if token.normalized {
                let content = self.segmenter.normalized(&Aligned::new(&token.content));
                let mut token = token.clone();
                if let Some(content) = content {
                    token.content = content.as_str().to_owned();
                }
                self.normalized.insert(id, token);
            }
            self.added.insert(id, token);
        }
        Ok(())
    }

    /// Returns the pieces of `text`, added tokens among them; without `spans` it may be unsaid where they stand.
    pub(super) fn pieces(&self, text: &str, spans: bool) -> Result<Vec<Piece>> {
        let mut aligned = Aligned::new(text);
        if self.lowercase {
            aligned = self.lowercased(&aligned);
        }
        let mut pieces = Vec::new();
        let parts = self.added.split(&aligned, is_space);
        // What lies between two tokens that are looked for in the text as it is written is normalized together.
        let apart = |part: &Part| {
            part.token()
                .is_some_and(|id| self.normalized.get(id).is_none())
        };
        let mut open = 0;
        let stretches = parts.chunk_by(|left, right| !apart(left) && !apart(right));
        let mut stretches = stretches.peekable();
        while let Some(stretch) = stretches.next() {
            let placed = match spans && !apart(&stretch[0]) {
                true => {
                    let next = stretches.peek().map(|next| next[0].range().start);
                    let end = next.unwrap_or(aligned.len());
                    self.placed(&aligned.slice(open..end), stretch)
                }
                false => None,
            };
            open = stretch[stretch.len() - 1].range().end;
            for (at, part) in stretch.iter().enumerate() {
                let placed = placed.as_ref().map(|placed| &placed[at]);
                match part {
                    Part::Text(range) => {
                        let text = aligned.slice(range.clone());
                        self.segmenter.segment(&text, placed, &mut pieces)?;
                    }
                    Part::Token(id, range) => pieces.push(Piece {
                        id: *id,
                        span: match placed {
                            Some(token) => token.span(0..token.len()),
                            None => aligned.span(range.clone()),
                        },
                        begins_word: true,
                    }),
                }
            }
        }
        Ok(pieces)
    }

    /// Returns what the library's steps make of each part of a stretch of text; `None` where they find other tokens in it.
    fn placed(&self, text: &Aligned, stretch: &[Part]) -> Option<Vec<Aligned>> {
        let whole = self.segmenter.normalized(text)?;
        let found = self.normalized.split(&whole, char::is_whitespace);
        let tokens = |parts: &[Part]| parts.iter().filter_map(Part::token).collect::<Vec<_>>();
        if tokens(stretch) != tokens(&found) {
            return None;
        }
        let mut found = found.iter().peekable();
        let placed = stretch.iter().map(|part| {
            let text = found.next_if(|part| part.token().is_none());
            let found = match part {
                Part::Text(_) => text,
                Part::Token(..) => found.next(),
            };
            // A text of which nothing stays is no part of theirs.
            found.map_or_else(Aligned::default, |part| whole.slice(part.range()))
        });
        Some(placed.collect())
    }

    pub(super) fn encode(&self, text: &str) -> Result<tokenizers::Encoding> {
        let pieces = self.pieces(text, true)?;
        let mut word = 0;
        let words = pieces.iter().enumerate().map(|(at, piece)| {
            word += u32::from(at > 0 && piece.begins_word);
            Some(word)
        });
        let words: Vec<Option<u32>> = words.collect();
        let spell = |piece: &Piece| self.id_to_token(piece.id).unwrap_or_default();
        let number = pieces.len();
        Ok(tokenizers::Encoding::new(
            pieces.iter().map(|piece| piece.id).collect(),
            vec![0; number],
            pieces.iter().map(spell).collect(),
            words,
            pieces.iter().map(|piece| piece.span).collect(),
            vec![0; number],
            vec![1; number],
            Vec::new(),
            Default::default(),
        ))
    }

    /// Returns the text with everything lowercased but special tokens and tokens that are matched as they are written.
    fn lowercased(&self, text: &Aligned) -> Aligned {
        let mut new = Aligned::with_capacity(text.len());
        let mut skip = 0;
        for (range, c) in text.chars() {
            if range.start < skip {
                new.push_from(text, range);
                continue;
            }
            let found = self.added.at_start(&text.as_str()[range.start..]);
            let found = found.filter(|(id, _)| {
                self.added
                    .get(*id)
                    .is_some_and(|token| token.special || token.normalized)
            });
            if let Some((_, length)) = found {
                skip = range.start + length;
                new.push_from(text, range);
                continue;
            }
            let span = text.span_at(range.start);
            c.to_lowercase().for_each(|c| new.push(c, span));
        }
        new
    }

    /// Decodes `ids`; ids without a token are skipped. Those in `alone` are kept separate.
    pub(super) fn decode(
        &self,
        ids: &[u32],
        skip: bool,
        special: &[u32],
        alone: &dyn Fn(u32) -> bool,
    ) -> Result<String> {
        if let Some(text) = self.segmenter.decode(ids, skip) {
            return text;
        }
        let tokens: Vec<(u32, String)> = ids
            .iter()
            .filter(|id| !(skip && special.contains(id)))
            .filter_map(|&id| Some((id, self.id_to_token(id)?)))
            .collect();
        let stretches = self.segmenter.stretches();
        let spelled: Vec<Spelled<'_>> = tokens
            .iter()
            .map(|(id, text)| Spelled {
                text,
                special: special.contains(id),
                added: self.added.get(*id).is_some(),
                alone: match stretches {
                    Stretches::One => false,
                    Stretches::EveryAdded => self.added.get(*id).is_some(),
                    Stretches::Spaced | Stretches::Tight => alone(*id),
                },
            })
            .collect();
        let mut texts: Vec<String> = Vec::new();
        for stretch in spelled.chunk_by(|left, right| !left.alone && !right.alone) {
            let text = match stretch[0].alone {
                true => stretch[0].text.to_owned(),
                false => self.segmenter.join(stretch),
            };
            if !text.is_empty() || stretches == Stretches::EveryAdded {
                texts.push(text);
            }
        }
        let between = if stretches == Stretches::Tight {
            ""
        } else {
            " "
        };
        Ok(self.segmenter.finish(texts.join(between)))
    }

    /// Returns the same rules as a pipeline of the library whose model knows nothing yet; `None` where there is none.
    pub(super) fn pipeline(&self) -> Option<Result<tokenizers::Tokenizer>> {
        self.segmenter.pipeline()
    }

    /// Returns the letters and what they say, of a tokenizer for speech.
    pub(super) fn letterwise(&self) -> Option<&letterwise::Letterwise> {
        self.segmenter.letterwise()
    }
}
