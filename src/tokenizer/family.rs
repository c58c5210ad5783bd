//! What the reference's tokenizer classes take for granted when a folder does not say it.

use serde_json::{Map, Value};

use super::special::{Role, SpecialTokens, plain};

/// How the files from before `tokenizer.json` are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// `vocab.txt`, words cut into pieces; the template says how the special tokens go around them.
    WordPiece,
    /// `vocab.json` and `merges.txt` over bytes.
    ByteBpe,
    /// `vocab.txt` of single letters, every token its own word.
    Letters,
    /// A `SentencePiece` model.
    SentencePiece,
    /// `vocab.json` and `merges.txt` after the Moses rules: not supported.
    Moses,
}

/// Where the special tokens go around one text and around two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Template {
    /// `[CLS] A [SEP]`, `[CLS] A [SEP] B [SEP]`.
    Bert,
    /// As [`Template::Bert`] with token type 2 for the first token.
    Funnel,
    /// As [`Template::DoubleSep`] with token types.
    MpNet,
    /// `<s> A </s>`, `<s> A </s> </s> B </s>`, trimmed offsets, token types all 0.
    DoubleSep,
    /// `<cls> A <eos>`, `<cls> A <eos> B <eos>`.
    Esm,
}

/// The defaults of one of the reference's tokenizer classes.
#[derive(Debug)]
pub(crate) struct Family {
    /// The class without `Tokenizer` and `Fast`.
    pub(crate) stem: &'static str,
    model_types: &'static [&'static str],
    /// By [`Role`]; empty for none.
    tokens: [&'static str; 7],
    mask_lstrip: bool,
    /// Whether `token_type_ids` are among the model's inputs.
    pub(crate) type_ids: bool,
    pub(crate) layout: Layout,
    pub(crate) template: Template,
}

const BERT: [&str; 7] = ["", "", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"];
const ROBERTA: [&str; 7] = ["<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"];
const DEBERTA: [&str; 7] = [
    "[CLS]", "[SEP]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]",
];
const ALBERT: [&str; 7] = [
    "[CLS]", "[SEP]", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]",
];
const XLM: [&str; 7] = ["<s>", "", "<unk>", "</s>", "<pad>", "</s>", "<special1>"];

const fn bert(stem: &'static str, types: &'static [&'static str], type_ids: bool) -> Family {
    Family {
        stem,
        model_types: types,
        tokens: BERT,
        mask_lstrip: false,
        type_ids,
        layout: Layout::WordPiece,
        template: Template::Bert,
    }
}

const fn roberta(stem: &'static str, types: &'static [&'static str]) -> Family {
    Family {
        stem,
        model_types: types,
        tokens: ROBERTA,
        mask_lstrip: true,
        type_ids: false,
        layout: Layout::ByteBpe,
        template: Template::DoubleSep,
    }
}

/// A family from `SentencePiece` files.
const fn pieces(
    stem: &'static str,
    types: &'static [&'static str],
    tokens: [&'static str; 7],
    mask_lstrip: bool,
    type_ids: bool,
    template: Template,
) -> Family {
    Family {
        stem,
        model_types: types,
        tokens,
        mask_lstrip,
        type_ids,
        layout: Layout::SentencePiece,
        template,
    }
}

static FAMILIES: &[Family] = &[
    bert(
        "Bert",
        &[
            "bert",
            "megatron-bert",
            "ernie",
            "nezha",
            "qdqbert",
            "visual_bert",
        ],
        true,
    ),
    bert("DistilBert", &["distilbert"], false),
    bert("Electra", &["electra"], true),
    bert("MobileBert", &["mobilebert"], true),
    bert("ConvBert", &["convbert"], true),
    bert("SqueezeBert", &["squeezebert"], true),
    bert("LayoutLM", &["layoutlm"], true),
    bert("Lxmert", &["lxmert"], true),
    Family {
        tokens: ["<s>", "</s>", "<unk>", "<sep>", "<pad>", "<cls>", "<mask>"],
        template: Template::Funnel,
        ..bert("Funnel", &["funnel"], true)
    },
    Family {
        tokens: ["<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"],
        mask_lstrip: true,
        template: Template::MpNet,
        ..bert("MPNet", &["mpnet"], false)
    },
    roberta(
        "Roberta",
        &[
            "roberta",
            "roberta-prelayernorm",
            "data2vec-text",
            "ibert",
            "mra",
            "mega",
        ],
    ),
    roberta("Longformer", &["longformer"]),
    roberta("Bart", &["bart"]),
    roberta("Mvp", &["mvp"]),
    Family {
        tokens: DEBERTA,
        type_ids: true,
        template: Template::Bert,
        ..roberta("Deberta", &["deberta"])
    },
    Family {
        tokens: ["", "<eos>", "<unk>", "", "<pad>", "<cls>", "<mask>"],
        type_ids: false,
        layout: Layout::Letters,
        template: Template::Esm,
        ..bert("Esm", &["esm"], false)
    },
    pieces(
        "XLMRoberta",
        &["xlm-roberta", "xlm-roberta-xl", "xmod"],
        ROBERTA,
        true,
        false,
        Template::DoubleSep,
    ),
    pieces(
        "Camembert",
        &["camembert"],
        ROBERTA,
        true,
        false,
        Template::DoubleSep,
    ),
    pieces(
        "Albert",
        &["albert", "nystromformer", "yoso"],
        ALBERT,
        true,
        true,
        Template::Bert,
    ),
    pieces(
        "BigBird",
        &["big_bird"],
        ["<s>", "</s>", "<unk>", "[SEP]", "<pad>", "[CLS]", "[MASK]"],
        true,
        false,
        Template::Bert,
    ),
    pieces(
        "DebertaV2",
        &["deberta-v2"],
        DEBERTA,
        false,
        true,
        Template::Bert,
    ),
    pieces(
        "RemBert",
        &["rembert"],
        DEBERTA,
        false,
        true,
        Template::Bert,
    ),
    Family {
        layout: Layout::Moses,
        ..pieces("XLM", &["xlm"], XLM, false, true, Template::Bert)
    },
    Family {
        layout: Layout::Moses,
        ..pieces("Flaubert", &["flaubert"], XLM, false, true, Template::Bert)
    },
];

impl Family {
    /// The family of a tokenizer class such as `RobertaTokenizerFast`.
    pub(crate) fn of_class(class: &str) -> Option<&'static Family> {
        let stem = class.strip_suffix("Fast").unwrap_or(class);
        let stem = stem.strip_suffix("Tokenizer").unwrap_or(stem);
        FAMILIES.iter().find(|family| family.stem == stem)
    }

    /// The family whose tokenizer a model of that `model_type` uses.
    pub(crate) fn of_model_type(model_type: &str) -> Option<&'static Family> {
        FAMILIES
            .iter()
            .find(|family| family.model_types.contains(&model_type))
    }

    /// What the folder's own files say: `tokenizer_class`, else the model's type.
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

    /// The first family all of whose special tokens are in the vocabulary.
    pub(crate) fn of_vocabulary(has: impl Fn(&str) -> bool) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| {
            family
                .tokens
                .iter()
                .all(|token| token.is_empty() || has(token))
        })
    }

    /// The special tokens that the class has unless told otherwise.
    pub(crate) fn special_tokens(&self) -> SpecialTokens {
        let mut special = SpecialTokens::default();
        for role in Role::ALL {
            let content = self.tokens[role as usize];
            if !content.is_empty() {
                let lstrip = role == Role::Mask && self.mask_lstrip;
                special.set(role, Some(plain(content).lstrip(lstrip)));
            }
        }
        if self.stem == "Camembert" {
            special.additional = ["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"]
                .map(plain)
                .into();
        }
        special
    }
}
