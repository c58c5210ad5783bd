//! Finds the beginnings of words by the spelling of tokens.

use tokenizers::ModelWrapper;

use super::engine::Engine;
use super::{Core, Tokenizer};

impl Tokenizer {
    /// Returns whether the token continues the word of the token before it, by its spelling: `##ing` does, and so does
    /// whatever lacks the mark of a beginning (`Ġ`, `▁`) where the vocabulary has such marks.
    pub fn continues_word(&self, id: u32) -> bool {
        let marks = self.core.continues.get_or_init(|| continuing(&self.core));
        marks.get(id as usize).copied().unwrap_or(false)
    }

    /// Returns whether the token continues the word of `previous`, the token before it: by its own spelling, or, where
    /// the vocabulary marks the ends of words (`</w>`) and not their beginnings, by that of `previous`.
    pub fn continues_after(&self, previous: u32, id: u32) -> bool {
        match self.core.ends.get_or_init(|| ending(&self.core)) {
            Some(ends) => !ends.get(previous as usize).copied().unwrap_or(true),
            None => self.continues_word(id),
        }
    }
}

/// By id: whether the token ends a word, where the vocabulary marks that.
fn ending(core: &Core) -> Option<Box<[bool]>> {
    const MARK: &str = "</w>";
    let rows = core.engine.rows();
    let token = |id| core.engine.id_to_token(id);
    let ends: Vec<bool> = (0..rows)
        .map(|id| token(id).is_some_and(|token| token.ends_with(MARK)))
        .collect();
    let marked = ends.iter().filter(|&&ends| ends).count();
    // A token that happens to be spelled so makes no such vocabulary.
    (10 * marked >= ends.len() && marked > 0).then(|| ends.into())
}

fn continuing(core: &Core) -> Box<[bool]> {
    let library = match &core.engine {
        Engine::Library(library) => library,
        Engine::Rules(rules) => {
            return (0..rules.rows())
                .map(|id| rules.continues_word(id))
                .collect();
        }
    };
    let model = library.get_model();
    let continues = |token: String| match model {
        ModelWrapper::WordPiece(model) => token.starts_with(&model.continuing_subword_prefix),
        // Byte-level spellings of space, newline and tab; SentencePiece's of space.
        ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => !token.starts_with(['Ġ', 'Ċ', 'ĉ', '▁']),
        ModelWrapper::WordLevel(_) => false,
    };
    (0..core.engine.rows())
        .map(|id| core.engine.id_to_token(id).is_some_and(continues))
        .collect()
}
