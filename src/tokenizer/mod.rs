//! Text to token ids and back, from every layout in which pretrained tokenizers lie on disk.

mod boxes;
mod byte_words;
mod checks;
mod column;
mod columns;
mod decode;
mod edit;
mod encode;
mod encoding;
mod engine;
mod entities;
mod entity_columns;
mod family;
mod folder;
mod guard;
mod languages;
mod legacy;
mod library;
mod load;
mod options;
#[cfg(test)]
mod reformer;
mod rules;
mod save;
mod special;
mod speech;
mod table;
mod train;
mod words;

use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};
use tokenizers::PostProcessorWrapper;

pub use boxes::{TokenizeBoxes, WordBox, normalize_box};
pub use column::TokenizeColumn;
pub use encoding::{Encoding, ExtraColumn};
pub use entities::Mentions;
pub use entity_columns::TokenizeEntities;
pub use options::{EncodeOptions, Padding, TruncationStrategy};
pub use speech::Spoken;

use crate::{Error, Result};
use special::{Role, SpecialTokens};

/// A pretrained tokenizer: what `AutoTokenizer` is in `transformers`. Cheap to clone, shared freely between threads.
///
/// ```
/// use cloze::tokenizer::Tokenizer;
/// # fn main() -> cloze::Result<()> {
/// let texts = ["the milky way is a spiral galaxy", "a galaxy is a system of stars"];
/// let tokenizer = Tokenizer::train_bpe(texts, 300)?;
/// let encoding = tokenizer.encode("the milky <mask>")?;
/// assert_eq!(encoding.tokens.first().unwrap(), "<s>");
/// assert_eq!(tokenizer.decode(&encoding.ids, true)?, "the milky");
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    core: Arc<Core>,
    post: Arc<Post>,
    special: Arc<SpecialTokens>,
    settings: Arc<Settings>,
    /// The languages of texts, where their tokens go around them.
    languages: Option<languages::Languages>,
}

/// The part that never changes after loading.
struct Core {
    engine: engine::Engine,
    /// A short way to the ids, where there is one.
    byte_words: Option<byte_words::ByteWords>,
    /// Columns of additional ids of the tokens.
    columns: Arc<[columns::Ids]>,
    /// The entities that texts may come with.
    entities: Option<Arc<entities::Entities>>,
    /// The folder's own files, where transformers has no class that opens a `tokenizer.json` for the family.
    own_files: save::Files,
    hash: OnceLock<String>,
    /// By id: whether the token continues a word.
    continues: OnceLock<Box<[bool]>>,
    /// By id: whether the token ends a word, where the vocabulary marks ends.
    ends: OnceLock<Option<Box<[bool]>>>,
}

/// Puts the special tokens around a text, after truncation.
#[derive(Clone, Default)]
struct Post {
    processor: Option<PostProcessorWrapper>,
    /// The ids that go before and after a single text.
    around: (Vec<u32>, Vec<u32>),
}

/// The contents of `tokenizer_config.json` besides the special tokens.
#[derive(Clone, Debug)]
struct Settings {
    /// The class without `Tokenizer` and `Fast`; `PreTrained` if unknown.
    class: String,
    model_max_length: Option<usize>,
    pad_left: bool,
    truncate_left: bool,
    clean_up: bool,
    type_ids: bool,
    attention_mask: bool,
    /// Whether texts come with tables.
    tables: bool,
    /// Whether decoded texts are ever cleaned up.
    cleans_up: bool,
    /// Built from the files from before `tokenizer.json`: pairs are treated as transformers' Python tokenizers do.
    legacy: bool,
    /// The whole `tokenizer_config.json`, to be saved again.
    config: Map<String, Value>,
}

macro_rules! special_tokens {
    ($($role:ident $token:ident $id:ident $what:literal),* $(,)?) => {
        impl Tokenizer {
            $(
                #[doc = concat!("The ", $what, " token, where there is one.")]
                pub fn $token(&self) -> Option<&str> {
                    self.special.get(Role::$role).map(|token| token.content.as_str())
                }

                #[doc = concat!("The id of the ", $what, " token, where there is one.")]
                pub fn $id(&self) -> Option<u32> {
                    self.$token().and_then(|token| self.token_to_id(token))
                }
            )*
        }
    };
}

special_tokens! {
    Bos bos_token bos_token_id "beginning-of-sequence",
    Eos eos_token eos_token_id "end-of-sequence",
    Unk unk_token unk_token_id "unknown",
    Sep sep_token sep_token_id "separator",
    Pad pad_token pad_token_id "padding",
    Cls cls_token cls_token_id "classification",
    Mask mask_token mask_token_id "mask",
}

impl Tokenizer {
    /// Loads a tokenizer by name: a folder (or a `tokenizer.json`), a `bundled:` name, or a Hub id that is in the cache.
    ///
    /// The folder contains `tokenizer.json`, or else the older files: `vocab.json` and `merges.txt` (RoBERTa and
    /// similar, XLM, FlauBERT), `vocab.txt` (BERT and similar, RoFormer, RoCBert, ESM), a `SentencePiece` model
    /// (ALBERT, BigBird, CamemBERT, DeBERTa-v2, FNet, mBART, RemBERT, XLM-RoBERTa and similar), `vocab.json` of letters
    /// (Wav2Vec2), or only configuration files (Perceiver). `tokenizer_config.json`, `special_tokens_map.json`,
    /// `added_tokens.json` and the `model_type` in `config.json` are taken into account.
    pub fn from_pretrained(name: &str) -> Result<Self> {
        load::from_path(&crate::hub::resolve("tokenizer", name)?)
    }

    /// Loads a tokenizer from a folder or a `tokenizer.json`; see [`from_pretrained`](Self::from_pretrained).
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        load::from_path(path.as_ref())
    }

    /// Returns the size of the vocabulary that the model was built with; added tokens come on top ([`len`](Self::len)).
    pub fn vocab_size(&self) -> usize {
        self.core.engine.vocab_size(false)
    }

    /// Returns the number of tokens, added ones included: the minimum size of the model's embedding.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.core.engine.vocab_size(true)
    }

    /// Returns the id of a token as the vocabulary spells it (`Ġgalaxy`); `None` if there is none.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.core.engine.token_to_id(token)
    }

    /// Returns the token of an id as the vocabulary spells it; `None` if there is none.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.core.engine.id_to_token(id)
    }

    /// Returns the longest input that the model was made for, special tokens included; `None` when the files don't say.
    pub fn model_max_length(&self) -> Option<usize> {
        self.settings.model_max_length
    }

    /// Returns the ids of all special tokens, each once, in transformers' order.
    pub fn all_special_ids(&self) -> Vec<u32> {
        self.special
            .all()
            .into_iter()
            .filter_map(|token| self.token_to_id(&token.content))
            .collect()
    }

    /// Returns the places of the mask token in an encoded text, in order.
    ///
    /// ```
    /// use cloze::tokenizer::Tokenizer;
    /// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
    /// let inputs = tokenizer.encode("a <mask> galaxy")?;
    /// let positions = tokenizer.mask_positions(&inputs);
    /// assert_eq!(inputs.tokens[positions[0]], "<mask>");
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn mask_positions(&self, encoding: &Encoding) -> Vec<usize> {
        let mask = self.mask_token_id();
        let places = encoding.ids.iter().enumerate();
        places
            .filter(|(_, id)| Some(**id) == mask)
            .map(|(place, _)| place)
            .collect()
    }

    /// Returns whether `token_type_ids` are among the inputs of the models that this tokenizer is made for.
    pub fn uses_token_type_ids(&self) -> bool {
        self.settings.type_ids
    }

    /// Returns whether `attention_mask` is among the inputs of the models that this tokenizer is made for (FNet's take
    /// none).
    pub fn uses_attention_mask(&self) -> bool {
        self.settings.attention_mask
    }

    /// Returns whether rows are padded on the left instead of the right.
    pub fn pads_left(&self) -> bool {
        self.settings.pad_left
    }

    /// Returns the name of transformers' class for this tokenizer, such as `RobertaTokenizer`.
    pub fn class_name(&self) -> String {
        match self.settings.class.as_str() {
            "PreTrained" => "PreTrainedTokenizerFast".to_owned(),
            stem => format!("{stem}Tokenizer"),
        }
    }

    /// Sets the padding token to `token`, which must be in the vocabulary.
    pub fn set_pad_token(&mut self, token: &str) -> Result<()> {
        if self.token_to_id(token).is_none() {
            return Err(Error::Tokenizer(format!(
                "{token:?} can't be the padding token: it is not in the vocabulary of {} tokens",
                self.len()
            )));
        }
        let known = self.special.all().into_iter();
        let token = known
            .filter(|special| special.content == token)
            .map(Clone::clone)
            .next()
            .unwrap_or_else(|| special::plain(token));
        Arc::make_mut(&mut self.special).set(Role::Pad, Some(token));
        Ok(())
    }

    /// Pads with the end-of-sequence token: the guide's `tokenizer.pad_token = tokenizer.eos_token`.
    pub fn set_pad_token_to_eos(&mut self) -> Result<()> {
        let Some(eos) = self.eos_token().map(str::to_owned) else {
            return Err(Error::Tokenizer(format!(
                "a {} has no end-of-sequence token to pad with; choose another with set_pad_token",
                self.class_name()
            )));
        };
        self.set_pad_token(&eos)
    }

    /// Returns a hash of everything that decides what texts become: equal for equal tokenizers, wherever they lie.
    pub fn fingerprint(&self) -> String {
        let core = self.core.hash.get_or_init(|| {
            let mut hasher = blake3::Hasher::new();
            for (name, bytes) in save::files(&self.core.engine, None).unwrap_or_default() {
                hasher.update(name.as_bytes());
                hasher.update(&bytes);
            }
            let added = self.core.engine.added_tokens();
            hasher.update(format!("{added:?}").as_bytes());
            if self.core.engine.has_leading_space() {
                hasher.update(b"leading space");
            }
            hasher.finalize().to_hex().to_string()
        });
        let mut hasher = blake3::Hasher::new();
        hasher.update(core.as_bytes());
        let post = serde_json::to_string(&self.post.processor).unwrap_or_default();
        hasher.update(post.as_bytes());
        let special = Value::Object(self.special.to_json());
        hasher.update(special.to_string().as_bytes());
        let settings = &self.settings;
        let flags = [
            settings.pad_left,
            settings.truncate_left,
            settings.type_ids,
            settings.legacy,
        ];
        hasher.update(&flags.map(u8::from));
        hasher.finalize().to_hex().to_string()
    }
}

impl From<&Tokenizer> for Tokenizer {
    fn from(tokenizer: &Tokenizer) -> Self {
        tokenizer.clone()
    }
}

/// Returns whether the tokenizers of models of that type have a mask token. ModernBERT's and EuroBERT's are files
/// alone, which do.
#[cfg(test)]
pub(crate) fn has_mask(model_type: &str) -> bool {
    family::Family::of_model_type(model_type).is_none_or(family::Family::has_mask)
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} tokens", self.class_name(), self.len())?;
        if let Some(limit) = self.model_max_length() {
            write!(f, ", texts of at most {limit}")?;
        }
        for role in Role::ALL {
            if let Some(token) = self.special.get(role) {
                let id = self.token_to_id(&token.content);
                let id = id.map_or_else(|| "not in the vocabulary".to_owned(), |id| id.to_string());
                write!(f, "\n  {:<10} {:<10} {id}", role.key(), token.content)?;
            }
        }
        Ok(())
    }
}
