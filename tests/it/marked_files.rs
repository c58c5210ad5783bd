//! Files of models and tokenizers that an editor has begun with a byte order mark.

use std::path::{Path, PathBuf};

use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::Tokenizer;

/// Copies a folder; its JSON files get a mark.
fn marked(from: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut marked = 0;
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            bytes.splice(..0, *b"\xef\xbb\xbf");
            marked += 1;
        }
        std::fs::write(folder.path().join(path.file_name().unwrap()), bytes).unwrap();
    }
    assert!(marked > 0);
    folder
}

#[test]
fn tokenizers_open_in_spite_of_byte_order_marks() {
    let fixtures: PathBuf =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    let mut opened = 0;
    for entry in std::fs::read_dir(&fixtures).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let folder = marked(&path);
        let open = |folder: &Path| Tokenizer::from_path(folder);
        let Ok(plain) = open(&path) else {
            assert!(open(folder.path()).is_err(), "{}", path.display());
            continue;
        };
        let with_mark = open(folder.path()).unwrap_or_else(|error| panic!("{error}"));
        for text in ["the light of a star", "A cell divides, twice."] {
            let ids =
                |tokenizer: &Tokenizer| tokenizer.encode(text).ok().map(|encoding| encoding.ids);
            assert_eq!(ids(&with_mark), ids(&plain), "{}", path.display());
        }
        opened += 1;
    }
    assert!(opened > 40, "{opened}");
}

#[test]
fn models_open_in_spite_of_byte_order_marks() {
    let config = Config::new("roberta")
        .set("vocab_size", 8)
        .set("hidden_size", 4)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 1)
        .set("intermediate_size", 4)
        .set("max_position_embeddings", 8);
    let model = MaskedLm::from_config(&config, 1).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model.save_pretrained(folder.path()).unwrap();
    // As one shard with an index.
    let shard = "model-00001-of-00001.safetensors";
    std::fs::rename(
        folder.path().join("model.safetensors"),
        folder.path().join(shard),
    )
    .unwrap();
    let tensors =
        candle_core::safetensors::load(folder.path().join(shard), &candle_core::Device::Cpu);
    let names = tensors.unwrap().into_keys();
    let map: serde_json::Map<String, serde_json::Value> =
        names.map(|name| (name, shard.into())).collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
    let folder = marked(folder.path());
    MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
}
