//! Where words begin, by the spelling of tokens.

use tokenizers::ModelWrapper;

use super::engine::Engine;
use super::{Core, Tokenizer};

impl Tokenizer {
    /// Whether the token continues the word of the token before it, by its spelling: `##ing` does, and so does whatever
    /// lacks the mark of a beginning (`Ġ`, `▁`) where the vocabulary has such marks.
    pub fn continues_word(&self, id: u32) -> bool {
        let marks = self.core.continues.get_or_init(|| continuing(&self.core));
        marks.get(id as usize).copied().unwrap_or(false)
    }
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
