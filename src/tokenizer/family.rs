//! The defaults of transformers' tokenizer classes, for folders that leave them out.

use serde_json::{Map, Value};

pub(crate) use super::rules::sentence_piece::{Ids, Joining};
use super::special::{Role, SpecialTokens, plain};

/// How the files from before `tokenizer.json` are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `vocab.txt`, words cut into pieces.
    WordPiece,
    /// `vocab.json` and `merges.txt` over bytes.
    ByteBpe,
    /// `vocab.txt` of single letters, every token its own word.
    Letters,
    /// A `SentencePiece` model.
    SentencePiece(Pieces),
    /// `vocab.json` and `merges.txt` over words cut by the Moses rules.
    Moses(Moses),
    /// No files: the bytes themselves.
    Bytes,
    /// `vocab.json` of letters, for speech.
    Letterwise,
    /// `vocab.txt` of Chinese words, which are found by a dictionary before they are cut into pieces.
    ChineseWords,
    /// `vocab.txt`, for tables: a text without words has its own token.
    TableWords,
}

/// What a family does with its `SentencePiece` model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    /// The model's file, as the family's class names it.
    pub(crate) file: &'static str,
    pub(crate) ids: Ids,
    pub(crate) joining: Joining,
    /// Whether the text is cleaned (`remove_space`, `keep_accents`), and whether accents are kept by default.
    pub(crate) cleans: Option<KeepAccents>,
    /// Whether the text is lowercased by default; `None` where `do_lower_case` has no meaning.
    pub(crate) lowercase: Option<bool>,
    /// Whether `split_by_punct` is understood.
    pub(crate) splits_punctuation: bool,
    /// Whether a space at the beginning of a text is no part of its first token.
    pub(crate) strips: bool,
    /// Whether transformers' fast class alone makes quotes plain.
    pub(crate) fast_quotes: bool,
}

/// Whether accents are kept.
pub(crate) type KeepAccents = bool;

/// A family's steps before and after the Moses rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moses {
    /// The default language for its rules.
    pub(crate) language: &'static str,
    /// Whether the text is composed and its quotes normalized first, and lowercased with `do_lowercase`; otherwise
    /// words are lowercased and lose their accents unless `do_lowercase_and_remove_accent` is false.
    pub(crate) composes: bool,
}

/// Where the special tokens go around one text and around two, each with its token type.
///
/// Tokens are named by their part (`cls`, `sep`, `bos`, `eos`); `lang` is the token of the text's language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) single: &'static str,
    pub(crate) pair: &'static str,
}

/// `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`.
const ONE_SEP: Template = Template {
    single: "cls:0 $A:0 sep:0",
    pair: "cls:0 $A:0 sep:0 $B:1 sep:1",
};
/// `<s> A </s>`, `<s> A </s> </s> B </s>`, token types all 0.
pub(crate) const TWO_SEPS: Template = Template {
    single: "cls:0 $A:0 sep:0",
    pair: "cls:0 $A:0 sep:0 sep:0 $B:0 sep:0",
};
/// Nothing around the texts.
const BARE: Template = Template {
    single: "$A:0",
    pair: "$A:0 $B:1",
};

/// A column of additional ids of a text's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// The file with an id for each token; a token that is not in it has the unknown token's.
    pub(crate) file: &'static str,
}

/// The defaults of one of transformers' tokenizer classes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    /// The class without `Tokenizer` and `Fast`.
    pub(crate) stem: &'static str,
    model_types: &'static [&'static str],
    /// By [`Role`]; empty for none.
    tokens: [&'static str; 7],
    /// The special tokens without a part to play.
    additional: &'static [&'static str],
    mask_lstrip: bool,
    /// The special tokens that are looked for after the text has been normalized.
    normalized: &'static [Role],
    /// Whether `token_type_ids` are among the model's inputs.
    pub(crate) type_ids: bool,
    /// Whether `attention_mask` is.
    pub(crate) attention_mask: bool,
    pub(crate) layout: Layout,
    pub(crate) template: Template,
    /// The languages whose tokens surround texts; the first is the default.
    pub(crate) languages: &'static [&'static [&'static str]],
    pub(crate) columns: &'static [Column],
    /// Whether a decoded text may have its spaces cleaned up. Version 5 of transformers no longer does it, so that families
    /// that no earlier version knows are never cleaned.
    pub(crate) cleans_up: bool,
    /// Whether texts may come with entities, whose vocabulary is `entity_vocab.json`.
    pub(crate) entities: bool,
    /// The files that transformers opens, where it has no class that opens a `tokenizer.json`; they are saved as they were.
    pub(crate) own_files: &'static [&'static str],
}

const BERT: Family = Family {
    stem: "Bert",
    model_types: &[
        "bert",
        "megatron-bert",
        "ernie",
        "nezha",
        "qdqbert",
        "visual_bert",
        "nomic_bert",
    ],
    tokens: ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
    additional: &[],
    mask_lstrip: false,
    normalized: &[],
    type_ids: true,
    attention_mask: true,
    layout: Layout::WordPiece,
    template: ONE_SEP,
    languages: &[],
    columns: &[],
    cleans_up: true,
    entities: false,
    own_files: &[],
};

const ROBERTA: Family = Family {
    stem: "Roberta",
    model_types: &[
        "roberta",
        "roberta-prelayernorm",
        "data2vec-text",
        "ibert",
        "mra",
        "mega",
    ],
    tokens: ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"],
    mask_lstrip: true,
    type_ids: false,
    layout: Layout::ByteBpe,
    template: TWO_SEPS,
    ..BERT
};

const DEBERTA: [&str; 7] = [
    "[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]",
];

const ALBERT_PIECES: Pieces = Pieces {
    file: "spiece.model",
    ids: Ids::Own,
    joining: Joining::Stretches,
    cleans: Some(false),
    lowercase: Some(true),
    splits_punctuation: false,
    strips: false,
    fast_quotes: false,
};

const ALBERT: Family = Family {
    stem: "Albert",
    model_types: &["albert", "nystromformer", "yoso"],
    tokens: [
        "[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]",
    ],
    mask_lstrip: true,
    layout: Layout::SentencePiece(ALBERT_PIECES),
    ..BERT
};

const XLM_ROBERTA_PIECES: Pieces = Pieces {
    file: "sentencepiece.bpe.model",
    ids: Ids::Fairseq {
        first: &["<s>", "<pad>", "</s>", "<unk>"],
        from: 3,
        last: &[&["<mask>"]],
    },
    joining: Joining::Plain,
    cleans: None,
    lowercase: None,
    splits_punctuation: false,
    strips: false,
    fast_quotes: false,
};

const XLM_ROBERTA: Family = Family {
    stem: "XLMRoberta",
    model_types: &["xlm-roberta", "xlm-roberta-xl", "xmod"],
    layout: Layout::SentencePiece(XLM_ROBERTA_PIECES),
    ..ROBERTA
};

/// mBART's languages.
const LANGUAGES_25: &[&str] = &[
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
];

/// What mBART-50 has besides.
const LANGUAGES_50: &[&str] = &[
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK",
    "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN",
    "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
];

/// The default language of a text.
pub(crate) const DEFAULT_LANGUAGE: &str = "en_XX";

const fn mbart(
    stem: &'static str,
    last: &'static [&'static [&'static str]],
    languages: &'static [&'static [&'static str]],
    template: Template,
    joining: Joining,
) -> Family {
    Family {
        stem,
        layout: Layout::SentencePiece(Pieces {
            ids: Ids::Fairseq {
                first: &["<s>", "<pad>", "</s>", "<unk>"],
                from: 3,
                last,
            },
            joining,
            ..XLM_ROBERTA_PIECES
        }),
        template,
        languages,
        ..XLM_ROBERTA
    }
}

const XLM: Family = Family {
    stem: "XLM",
    model_types: &["xlm"],
    tokens: ["<s>", "", "<unk>", "</s>", "<pad>", "</s>", "<special1>"],
    additional: &[
        "<special0>",
        "<special1>",
        "<special2>",
        "<special3>",
        "<special4>",
        "<special5>",
        "<special6>",
        "<special7>",
        "<special8>",
        "<special9>",
    ],
    layout: Layout::Moses(Moses {
        language: "en",
        composes: false,
    }),
    template: Template {
        single: "bos:0 $A:0 sep:0",
        pair: "bos:0 $A:0 sep:0 $B:1 sep:1",
    },
    ..BERT
};

/// One row a class. The first whose special tokens are all in a vocabulary is taken where nothing else tells.
static FAMILIES: &[Family] = &[
    BERT,
    Family {
        stem: "DistilBert",
        model_types: &["distilbert"],
        type_ids: false,
        ..BERT
    },
    Family {
        stem: "Electra",
        model_types: &["electra"],
        ..BERT
    },
    Family {
        stem: "MobileBert",
        model_types: &["mobilebert"],
        ..BERT
    },
    Family {
        stem: "ConvBert",
        model_types: &["convbert"],
        ..BERT
    },
    Family {
        stem: "SqueezeBert",
        model_types: &["squeezebert"],
        ..BERT
    },
    Family {
        stem: "LayoutLM",
        model_types: &["layoutlm"],
        ..BERT
    },
    Family {
        stem: "Lxmert",
        model_types: &["lxmert"],
        ..BERT
    },
    Family {
        stem: "RoCBert",
        model_types: &["roc_bert"],
        columns: &[
            Column {
                name: "input_shape_ids",
                file: "word_shape.json",
            },
            Column {
                name: "input_pronunciation_ids",
                file: "word_pronunciation.json",
            },
        ],
        own_files: &["vocab.txt", "word_shape.json", "word_pronunciation.json"],
        ..BERT
    },
    Family {
        stem: "RoFormer",
        model_types: &["roformer"],
        layout: Layout::ChineseWords,
        ..BERT
    },
    Family {
        stem: "Tapas",
        model_types: &["tapas"],
        additional: &["[EMPTY]"],
        layout: Layout::TableWords,
        ..BERT
    },
    Family {
        stem: "Funnel",
        model_types: &["funnel"],
        tokens: ["<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>"],
        template: Template {
            single: "cls:2 $A:0 sep:0",
            pair: "cls:2 $A:0 sep:0 $B:1 sep:1",
        },
        ..BERT
    },
    Family {
        stem: "MPNet",
        model_types: &["mpnet"],
        tokens: ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"],
        mask_lstrip: true,
        type_ids: false,
        template: Template {
            single: "cls:0 $A:0 sep:0",
            pair: "cls:0 $A:0 sep:0 sep:0 $B:1 sep:1",
        },
        ..BERT
    },
    ROBERTA,
    Family {
        stem: "Longformer",
        model_types: &["longformer"],
        ..ROBERTA
    },
    Family {
        stem: "Bart",
        model_types: &["bart"],
        ..ROBERTA
    },
    Family {
        stem: "Mvp",
        model_types: &["mvp"],
        ..ROBERTA
    },
    Family {
        stem: "Luke",
        model_types: &["luke"],
        additional: &["<ent>", "<ent2>"],
        entities: true,
        own_files: &["vocab.json", "merges.txt", "entity_vocab.json"],
        ..ROBERTA
    },
    Family {
        stem: "Deberta",
        model_types: &["deberta"],
        tokens: DEBERTA,
        type_ids: true,
        template: ONE_SEP,
        ..ROBERTA
    },
    Family {
        stem: "Esm",
        model_types: &["esm"],
        tokens: ["", "<eos>", "<unk>", "", "<pad>", "<cls>", "<mask>"],
        type_ids: false,
        own_files: &["vocab.txt"],
        layout: Layout::Letters,
        template: Template {
            single: "cls:0 $A:0 eos:0",
            pair: "cls:0 $A:0 eos:0 $B:0 eos:0",
        },
        ..BERT
    },
    XLM_ROBERTA,
    Family {
        stem: "MLuke",
        model_types: &[],
        additional: &["<ent>", "<ent2>"],
        entities: true,
        own_files: &["entity_vocab.json"],
        ..XLM_ROBERTA
    },
    Family {
        stem: "Camembert",
        model_types: &["camembert"],
        additional: &["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
        layout: Layout::SentencePiece(Pieces {
            // These tokens were put before the file's own by mistake, so that `<s>` and `</s>` are there twice.
            ids: Ids::Fairseq {
                first: &[
                    "<s>NOTUSED",
                    "<pad>",
                    "</s>NOTUSED",
                    "<unk>",
                    "<unk>NOTUSED",
                ],
                from: 1,
                last: &[],
            },
            joining: Joining::Stretches,
            ..XLM_ROBERTA_PIECES
        }),
        ..XLM_ROBERTA
    },
    Family {
        model_types: &["mbart"],
        ..mbart(
            "MBart",
            &[LANGUAGES_25, &["<mask>"]],
            &[LANGUAGES_25],
            Template {
                single: "$A:0 eos:0 lang:0",
                pair: "$A:0 $B:0 eos:0 lang:0",
            },
            Joining::Plain,
        )
    },
    Family {
        model_types: &["mbart50"],
        normalized: &[Role::Mask],
        tokens: ["", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"],
        ..mbart(
            "MBart50",
            &[LANGUAGES_25, LANGUAGES_50, &["<mask>"]],
            &[LANGUAGES_25, LANGUAGES_50],
            Template {
                single: "lang:0 $A:0 eos:0",
                pair: "lang:0 $A:0 $B:0 eos:0",
            },
            Joining::Stretches,
        )
    },
    Family {
        stem: "ModernBert",
        model_types: &["modernbert"],
        mask_lstrip: true,
        type_ids: false,
        cleans_up: false,
        ..BERT
    },
    Family {
        stem: "EuroBert",
        model_types: &["eurobert"],
        tokens: [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "",
            "<|end_of_text|>",
            "<|end_of_text|>",
            "<|begin_of_text|>",
            "<|mask|>",
        ],
        type_ids: false,
        cleans_up: false,
        ..BERT
    },
    ALBERT,
    Family {
        stem: "FNet",
        model_types: &["fnet"],
        tokens: ["", "", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
        attention_mask: false,
        layout: Layout::SentencePiece(Pieces {
            joining: Joining::TightUnknown,
            cleans: Some(true),
            lowercase: Some(false),
            ..ALBERT_PIECES
        }),
        ..ALBERT
    },
    Family {
        stem: "BigBird",
        normalized: &[Role::Mask],
        model_types: &["big_bird"],
        tokens: ["<s>", "</s>", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
        type_ids: false,
        layout: Layout::SentencePiece(Pieces {
            joining: Joining::TightMask,
            cleans: None,
            lowercase: None,
            ..ALBERT_PIECES
        }),
        ..ALBERT
    },
    Family {
        stem: "DebertaV2",
        normalized: &[Role::Unk],
        model_types: &["deberta-v2"],
        tokens: DEBERTA,
        layout: Layout::SentencePiece(Pieces {
            file: "spm.model",
            cleans: None,
            lowercase: Some(false),
            splits_punctuation: true,
            strips: true,
            ..ALBERT_PIECES
        }),
        ..BERT
    },
    Family {
        stem: "RemBert",
        model_types: &["rembert"],
        tokens: DEBERTA,
        layout: Layout::SentencePiece(Pieces {
            file: "sentencepiece.model",
            joining: Joining::Model,
            fast_quotes: true,
            cleans: None,
            lowercase: Some(false),
            ..ALBERT_PIECES
        }),
        ..BERT
    },
    XLM,
    Family {
        stem: "Flaubert",
        model_types: &["flaubert"],
        layout: Layout::Moses(Moses {
            language: "fr",
            composes: true,
        }),
        ..XLM
    },
    Family {
        stem: "Perceiver",
        model_types: &["perceiver"],
        tokens: ["[BOS]", "[EOS]", "", "[SEP]", "[PAD]", "[CLS]", "[MASK]"],
        type_ids: false,
        layout: Layout::Bytes,
        ..BERT
    },
    Family {
        stem: "Reformer",
        model_types: &["reformer"],
        tokens: ["", "</s>", "<unk>", "", "", "", ""],
        type_ids: false,
        layout: Layout::SentencePiece(Pieces {
            cleans: None,
            lowercase: None,
            joining: Joining::TightUnknown,
            ..ALBERT_PIECES
        }),
        template: BARE,
        ..BERT
    },
    Family {
        stem: "Wav2Vec2CTC",
        model_types: &["wav2vec2"],
        tokens: ["<s>", "</s>", "<unk>", "", "<pad>", "", ""],
        type_ids: false,
        layout: Layout::Letterwise,
        template: BARE,
        ..BERT
    },
];

impl Family {
    /// Returns the family of a tokenizer class such as `RobertaTokenizerFast`.
    pub(crate) fn of_class(class: &str) -> Option<&'static Family> {
        let stem = class.strip_suffix("Fast").unwrap_or(class);
        let stem = stem.strip_suffix("Tokenizer").unwrap_or(stem);
        FAMILIES.iter().find(|family| family.stem == stem)
    }

    /// Returns the family whose tokenizer a model of that `model_type` uses.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Family> {
        FAMILIES
            .iter()
            .find(|family| family.model_types.contains(&model_type))
    }

    /// Returns whether the class has a mask token by default.
    #[cfg(test)]
    pub(crate) fn has_mask(&self) -> bool {
        !self.tokens[Role::Mask as usize].is_empty()
    }

    /// Returns what the folder's own files say: `tokenizer_class`, else the model's type.
    pub(crate) fn of_folder(
        tokenizer_config: &Map<String, Value>,
        model_config: &Map<String, Value>,
    ) -> Option<&'static Family> {
        let text = |object: &Map<String, Value>, key: &str| {
            object.get(key).and_then(Value::as_str).map(str::to_owned)
        };
        text(tokenizer_config, "tokenizer_class")
            .or_else(|| text(model_config, "tokenizer_class"))
            .and_then(|class| Family::of_class(&class))
            .or_else(|| {
                text(model_config, "model_type").and_then(|kind| Family::of_model_type(&kind))
            })
    }

    /// Returns the first family all of whose special tokens are in the vocabulary.
    pub(crate) fn of_vocabulary(has: impl Fn(&str) -> bool) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| {
            family
                .tokens
                .iter()
                .all(|token| token.is_empty() || has(token))
        })
    }

    /// Returns the default special tokens of the class.
    pub(crate) fn special_tokens(&self) -> SpecialTokens {
        let mut special = SpecialTokens::default();
        for role in Role::ALL {
            let content = self.tokens[role as usize];
            if !content.is_empty() {
                let lstrip = role == Role::Mask && self.mask_lstrip;
                let normalized = self.normalized.contains(&role);
                let token = plain(content).lstrip(lstrip).normalized(normalized);
                special.set(role, Some(token));
            }
        }
        special.additional = self.additional.iter().map(|&token| plain(token)).collect();
        special
    }

    /// Returns the codes of the languages whose tokens go around texts, none for most families.
    pub(crate) fn language_codes(&self) -> impl Iterator<Item = &'static str> {
        self.languages.iter().copied().flatten().copied()
    }
}
