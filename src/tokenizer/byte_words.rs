//! A fast path for byte-level BPE when only ids are wanted: split the text with GPT-2's pattern, look each word up, and
//! run the model only on words that have not been seen. Returns the same ids as the full path, many times faster.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use regex_syntax::hir::{Class, HirKind};
use tokenizers::models::bpe::BPE;
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper};

use super::engine::Engine;
use super::library::Library;
use crate::Result;

/// How many words a thread remembers. Natural text rarely has more; unnatural text is merely not remembered.
const REMEMBERED: usize = 1 << 17;

/// Longer words are rare, and not worth remembering.
const LONGEST: usize = 64;

/// What the short way needs to know about a tokenizer that it is possible for.
#[derive(Debug)]
pub(super) struct ByteWords {
    /// Tells the tokenizers apart in the threads' memories.
    number: u64,
    /// A text that contains one of these takes the slow path.
    added: Vec<String>,
}

/// The words that a thread has seen last, of one tokenizer.
#[derive(Default)]
struct Memory {
    number: u64,
    /// The range of each word's ids in `ids`.
    words: HashMap<Box<[u8]>, (u32, u32), ahash::RandomState>,
    ids: Vec<u32>,
}

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

impl ByteWords {
    /// Returns `None` unless the tokenizer is byte-level BPE with nothing before and no chance in it.
    pub(super) fn new(engine: &Engine) -> Option<Self> {
        let Engine::Library(tokenizer) = engine else {
            return None;
        };
        let model = bpe(tokenizer)?;
        let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() else {
            return None;
        };
        let simple = tokenizer.get_normalizer().is_none()
            && bytes.use_regex
            && !bytes.add_prefix_space
            && model.dropout.is_none()
            && !tokenizer.has_leading_space();
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let added = tokenizer.get_added_tokens_decoder().into_values();
        simple.then(|| Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            added: added.map(|token| token.content).collect(),
        })
    }

    /// Appends the ids of `text`. `false`, and nothing is appended, when it must take the long way.
    pub(super) fn encode(&self, engine: &Engine, text: &str, ids: &mut Vec<u32>) -> Result<bool> {
        let Engine::Library(tokenizer) = engine else {
            return Ok(false);
        };
        let Some(model) = bpe(tokenizer) else {
            return Ok(false);
        };
        if self.added.iter().any(|added| text.contains(added)) {
            return Ok(false);
        }
        MEMORY.with_borrow_mut(|memory| {
            if memory.number != self.number {
                *memory = Memory {
                    number: self.number,
                    ..Memory::default()
                };
            }
            let mut rest = text;
            while !rest.is_empty() {
                let (word, after) = rest.split_at(word_length(rest));
                memory.append(model, word, ids)?;
                rest = after;
            }
            Ok(true)
        })
    }
}

impl Memory {
    #[inline]
    fn append(&mut self, model: &BPE, word: &str, ids: &mut Vec<u32>) -> Result<()> {
        if let Some(&(from, to)) = self.words.get(word.as_bytes()) {
            ids.extend_from_slice(&self.ids[from as usize..to as usize]);
            return Ok(());
        }
        let spelled: String = word.bytes().map(|byte| SPELLING[byte as usize]).collect();
        let tokens = model.tokenize(&spelled).map_err(super::guard::failed)?;
        let new = tokens.iter().map(|token| token.id);
        if word.len() <= LONGEST && self.words.len() < REMEMBERED {
            let from = self.ids.len() as u32;
            self.ids.extend(new.clone());
            let to = self.ids.len() as u32;
            self.words.insert(word.as_bytes().into(), (from, to));
        }
        ids.extend(new);
        Ok(())
    }
}

fn bpe(tokenizer: &Library) -> Option<&BPE> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => Some(model),
        _ => None,
    }
}

/// The character that represents each byte in a byte-level vocabulary: the printable ones of Latin-1 represent
/// themselves, the others get characters from U+0100 on, in order.
static SPELLING: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 as char {
        c @ ('!'..='~' | '¡'..='¬' | '®'..='ÿ') => c,
        _ => others.next().unwrap_or_default(),
    })
});

/// What GPT-2's pattern tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Other,
    Letter,
    Number,
    Space,
}

/// The kind of every character, by code point.
static KINDS: LazyLock<Box<[Kind]>> = LazyLock::new(|| {
    let mut kinds = vec![Kind::Other; char::MAX as usize + 1].into_boxed_slice();
    for (pattern, kind) in [
        (r"\p{L}", Kind::Letter),
        (r"\p{N}", Kind::Number),
        (r"\s", Kind::Space),
    ] {
        let parsed = regex_syntax::parse(pattern).expect("a pattern without user input");
        let HirKind::Class(Class::Unicode(class)) = parsed.into_kind() else {
            unreachable!("these patterns are classes of characters");
        };
        for range in class.ranges() {
            kinds[range.start() as usize..=range.end() as usize].fill(kind);
        }
    }
    kinds
});

/// Returns the length in bytes of the first match of GPT-2's pattern, which always matches at the start of a text:
/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
#[inline]
fn word_length(text: &str) -> usize {
    let kinds = &**KINDS;
    let bytes = text.as_bytes();
    if bytes[0] == b'\'' {
        match bytes[1..] {
            [b's' | b't' | b'm' | b'd', ..] => return 2,
            [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => return 3,
            _ => {}
        }
    }
    let mut chars = text.char_indices();
    let (_, mut first) = chars.next().unwrap_or_default();
    if first == ' ' {
        // One space goes to what follows it.
        match chars.next() {
            Some((_, c)) if kinds[c as usize] != Kind::Space => first = c,
            _ => {}
        }
    }
    let kind = kinds[first as usize];
    if kind == Kind::Space {
        let run = text.find(|c| kinds[c as usize] != Kind::Space);
        let Some(run) = run else {
            return text.len();
        };
        // The last space of several before a word is the word's, or a piece of its own.
        let last = text[..run].chars().next_back().map_or(0, char::len_utf8);
        return if run > last { run - last } else { run };
    }
    let end = chars.find(|&(_, c)| kinds[c as usize] != kind);
    end.map_or(text.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::Tokenizer;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};

    fn words(text: &str) -> Vec<&str> {
        let mut words = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (word, after) = rest.split_at(word_length(rest));
            words.push(word);
            rest = after;
        }
        words
    }

    /// Returns the library's own splits of a text.
    fn expected(text: &str) -> Vec<String> {
        let mut pieces = PreTokenizedString::from(text);
        let bytes = ByteLevel::default().add_prefix_space(false);
        bytes.pre_tokenize(&mut pieces).unwrap();
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
        let spans = splits.into_iter().map(|(_, span, _)| span);
        spans.map(|(from, to)| text[from..to].to_owned()).collect()
    }

    #[test]
    fn every_character_is_classified_as_in_the_tokenizers_crate() {
        // Between a letter, a digit and a mark, the splits tell what a character is taken for.
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for chunk in all.chunks(256) {
            let text: String = chunk
                .iter()
                .flat_map(|&c| ['a', c, '1', c, '+', c])
                .collect();
            assert_eq!(words(&text), expected(&text), "from {:?}", chunk[0]);
        }
    }

    #[test]
    fn random_texts_split_as_in_the_tokenizers_crate() {
        let alphabet: Vec<char> = "aZé漢'  \t\n\u{a0}\u{3000}19½.,-\u{301}🧿smtdrevl<>"
            .chars()
            .collect();
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as usize
        };
        for _ in 0..20_000 {
            let length = next() % 24;
            let text: String = (0..length)
                .map(|_| alphabet[next() % alphabet.len()])
                .collect();
            assert_eq!(words(&text), expected(&text), "{text:?}");
        }
    }

    #[test]
    fn the_fast_path_gives_the_same_ids() {
        let texts: Vec<String> = (0..200)
            .map(|i| {
                format!(
                    "It's the {i}th day;  they'll see {} caf\u{e9}s\n\n\tand \u{6f22}\u{5b57} {}",
                    i * 7,
                    "ab".repeat(i)
                )
            })
            .collect();
        let one = Tokenizer::train_bpe(&texts, 400).unwrap();
        let other = Tokenizer::train_bpe(&texts[..20], 320).unwrap();
        assert!(one.core.byte_words.is_some());
        for text in &texts {
            // Two tokenizers in turn: neither may see what the other remembers.
            for tokenizer in [&one, &other] {
                for text in [text.as_str(), &format!("{text} <mask> {text}")] {
                    assert_eq!(
                        tokenizer.encode_ids(text).unwrap(),
                        tokenizer.encode(text).unwrap().ids
                    );
                }
            }
        }
    }
}
