//! Which of a repository's files a purpose needs: nothing else is downloaded.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::name::is_safe_path;

/// What a name is resolved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// `config.json` and the weights, safetensors before pickles.
    Model,
    /// The tokenizer's files, of the new layout and the old ones.
    Tokenizer,
    /// A dataset's files, whichever there are.
    Dataset,
}

const CONFIG: &str = "config.json";

/// Weights in transformers' order of preference: in one file, and the index of several.
const WEIGHTS: [(&str, &str); 2] = [
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
];

/// Without one of these there is no tokenizer.
pub(super) const VOCABULARIES: [&str; 9] = [
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "spm.model",
    "sentencepiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "dict.txt",
];

/// What else belongs to a tokenizer.
#[cfg(feature = "hub")]
const TOKENIZER_EXTRAS: [&str; 12] = [
    CONFIG,
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "merges.txt",
    "bpe.codes",
    "entity_vocab.json",
    "word_shape.json",
    "word_pronunciation.json",
    "nonbreaking_prefix.en",
    "nonbreaking_prefix.fr",
];

const TOKENIZER_CONFIG: &str = "tokenizer_config.json";

/// Returns whether the folder's tokenizer is one of bytes, which has no vocabulary.
fn needs_no_vocabulary(folder: &Path) -> bool {
    let text = std::fs::read(folder.join(TOKENIZER_CONFIG)).unwrap_or_default();
    let config: Value = crate::base::json::from_slice(&text).unwrap_or_default();
    config["tokenizer_class"] == "PerceiverTokenizer"
}

impl Needs {
    /// Returns whether `folder` holds all that is needed.
    pub(crate) fn are_met_by(self, folder: &Path) -> bool {
        let has = |name: &str| folder.join(name).is_file();
        match self {
            Self::Model => {
                let whole = |index: &str| {
                    has(index)
                        && shards_of(&folder.join(index))
                            .is_ok_and(|shards| shards.iter().all(|name| has(name)))
                };
                has(CONFIG)
                    && WEIGHTS
                        .iter()
                        .any(|(single, index)| has(single) || whole(index))
            }
            Self::Tokenizer => VOCABULARIES.into_iter().any(has) || needs_no_vocabulary(folder),
            Self::Dataset => folder.is_dir(),
        }
    }

    /// Returns the needs in words.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::Model => {
                "config.json and model.safetensors (or pytorch_model.bin, or their shards)"
            }
            Self::Tokenizer => "tokenizer.json (or the older vocabulary files)",
            Self::Dataset => "data files",
        }
    }
}

#[cfg(feature = "hub")]
fn no_weights(available: &BTreeSet<String>) -> String {
    let others = ["tf_model.h5", "flax_model.msgpack", "model.onnx"];
    let other = others.into_iter().find(|name| available.contains(*name));
    let hint = match other {
        Some(name) => format!("; it has {name}, which must be converted first"),
        None => String::new(),
    };
    format!("the repository has neither model.safetensors nor pytorch_model.bin{hint}")
}

/// A request to the Hub.
#[cfg(feature = "hub")]
impl Needs {
    /// Returns the files to fetch first, of those in the repository.
    pub(crate) fn first(self, available: &BTreeSet<String>) -> Result<Vec<String>, String> {
        let has = |name: &&str| available.contains(*name);
        let mut files: Vec<&str> = Vec::new();
        match self {
            Self::Model => {
                if !has(&CONFIG) {
                    return Err(format!(
                        "the repository has no {CONFIG}, so it contains no model that Cloze can open"
                    ));
                }
                files.push(CONFIG);
                let weights = WEIGHTS.iter().find_map(|(single, index)| {
                    [*single, *index].into_iter().find(|name| has(name))
                });
                files.push(weights.ok_or_else(|| no_weights(available))?);
            }
            Self::Tokenizer => {
                files.extend(VOCABULARIES.iter().filter(|name| has(name)));
                // A tokenizer of bytes has only its configuration.
                if files.is_empty() && !has(&TOKENIZER_CONFIG) {
                    return Err(format!(
                        "the repository has no tokenizer: none of {}",
                        VOCABULARIES.join(", ")
                    ));
                }
                files.extend(TOKENIZER_EXTRAS.iter().filter(|name| has(name)));
            }
            Self::Dataset => files.extend(available.iter().map(String::as_str)),
        }
        Ok(files.into_iter().map(str::to_owned).collect())
    }

    /// Returns what the fetched files of `snapshot` in turn refer to: the shards of an index.
    pub(crate) fn then(self, snapshot: &Path, fetched: &[String]) -> Result<Vec<String>, String> {
        let mut shards = BTreeSet::new();
        for (_, index) in WEIGHTS {
            if self == Self::Model && fetched.iter().any(|name| name == index) {
                shards.extend(shards_of(&snapshot.join(index))?);
            }
        }
        Ok(shards.into_iter().collect())
    }
}

/// Returns the shards that an index names: plain file names or nothing.
fn shards_of(index: &Path) -> Result<BTreeSet<String>, String> {
    let name = index.file_name().unwrap_or_default().to_string_lossy();
    let text = std::fs::read(index).map_err(|e| format!("{name} can't be read: {e}"))?;
    let json: Value = crate::base::json::from_slice(&text)
        .map_err(|e| format!("{name} is not valid JSON: {e}"))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| format!("{name} has no \"weight_map\""))?;
    map.values()
        .map(|shard| match shard.as_str() {
            Some(shard) if is_safe_path(shard) && !shard.contains('/') => Ok(shard.to_owned()),
            _ => Err(format!(
                "{name} names the shard {shard}, which is not a plain file name"
            )),
        })
        .collect()
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn safetensors_are_preferred_to_pickles_and_other_files_skipped() {
        let all = [
            ".gitattributes",
            "README.md",
            "config.json",
            "dict.txt.bak",
            "flax_model.msgpack",
            "merges.txt",
            "model.safetensors",
            "pytorch_model.bin",
            "rust_model.ot",
            "tf_model.h5",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        assert_eq!(
            Needs::Model.first(&files(&all)).unwrap(),
            ["config.json", "model.safetensors"]
        );
        let mut tokenizer = Needs::Tokenizer.first(&files(&all)).unwrap();
        tokenizer.sort();
        assert_eq!(
            tokenizer,
            [
                "config.json",
                "merges.txt",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.json"
            ]
        );
        let old = files(&["config.json", "pytorch_model.bin"]);
        assert_eq!(
            Needs::Model.first(&old).unwrap(),
            ["config.json", "pytorch_model.bin"]
        );
    }

    #[test]
    fn missing_files_of_a_repository_are_reported() {
        let text = Needs::Model
            .first(&files(&["config.json", "tf_model.h5"]))
            .unwrap_err();
        assert!(text.contains("tf_model.h5"), "{text}");
        let text = Needs::Model
            .first(&files(&["model.safetensors"]))
            .unwrap_err();
        assert!(text.contains("config.json"), "{text}");
        let text = Needs::Tokenizer
            .first(&files(&["config.json"]))
            .unwrap_err();
        assert!(text.contains("tokenizer.json"), "{text}");
    }

    #[test]
    fn a_byte_tokenizer_needs_no_vocabulary() {
        let names = ["config.json", "tokenizer_config.json", "word_shape.json"];
        assert_eq!(Needs::Tokenizer.first(&files(&names)).unwrap().len(), 3);
        let folder = tempfile::tempdir().unwrap();
        let config = |class: &str| {
            let json = serde_json::json!({"tokenizer_class": class});
            std::fs::write(
                folder.path().join("tokenizer_config.json"),
                json.to_string(),
            )
            .unwrap();
            Needs::Tokenizer.are_met_by(folder.path())
        };
        assert!(!config("BertTokenizer"));
        assert!(config("PerceiverTokenizer"));
    }

    #[test]
    fn shards_are_followed_and_must_have_plain_names() {
        let folder = tempfile::tempdir().unwrap();
        let index = "model.safetensors.index.json";
        let fetched = [index.to_owned()];
        let write = |shard: &str| {
            let json = serde_json::json!({"weight_map": {"a": shard, "b": "two.safetensors"}});
            std::fs::write(folder.path().join(index), json.to_string()).unwrap();
            std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        };
        write("one.safetensors");
        assert_eq!(
            Needs::Model.then(folder.path(), &fetched).unwrap(),
            ["one.safetensors", "two.safetensors"]
        );
        assert!(!Needs::Model.are_met_by(folder.path()));
        std::fs::write(folder.path().join("one.safetensors"), "").unwrap();
        std::fs::write(folder.path().join("two.safetensors"), "").unwrap();
        assert!(Needs::Model.are_met_by(folder.path()));
        for shard in ["../one.safetensors", "/etc/passwd", "a/b", ""] {
            write(shard);
            assert!(
                Needs::Model.then(folder.path(), &fetched).is_err(),
                "{shard:?}"
            );
        }
    }
}
