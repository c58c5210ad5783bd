//! Where words begin, by the spelling of tokens.

use tokenizers::ModelWrapper;

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
    let model = core.tokenizer.get_model();
    let continues = |token: String| match model {
        ModelWrapper::WordPiece(model) => token.starts_with(&model.continuing_subword_prefix),
        // Byte-level spellings of space, newline and tab; SentencePiece's of space.
        ModelWrapper::BPE(_) | ModelWrapper::Unigram(_) => !token.starts_with(['Ġ', 'Ċ', 'ĉ', '▁']),
        ModelWrapper::WordLevel(_) => false,
    };
    (0..core.tokenizer.get_vocab_size(true) as u32)
        .map(|id| core.tokenizer.id_to_token(id).is_some_and(continues))
        .collect()
}
