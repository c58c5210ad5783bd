//! Tokenizers that are made here: trained on texts, or given more tokens.

use std::collections::BTreeSet;
use std::path::Path;

use cloze::tokenizer::Tokenizer;
use serde_json::Value;

use super::{eli5_texts, fixture};

/// Saves, opens, and compares what both do.
fn survives(tokenizer: &Tokenizer, texts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    tokenizer.save_pretrained(folder.path()).unwrap();
    let again = Tokenizer::from_path(folder.path()).unwrap();
    assert_eq!(format!("{tokenizer:?}"), format!("{again:?}"));
    assert_eq!(tokenizer.all_special_ids(), again.all_special_ids());
    for text in texts {
        let encoding = tokenizer.encode(text).unwrap();
        assert_eq!(encoding, again.encode(text).unwrap(), "{text:?}");
        for skip in [false, true] {
            let decode = |tokenizer: &Tokenizer| tokenizer.decode(&encoding.ids, skip).unwrap();
            assert_eq!(decode(tokenizer), decode(&again), "{text:?}");
        }
    }
}

#[test]
fn a_trained_wordpiece_tokenizer_behaves_like_berts() {
    let texts = eli5_texts();
    let tokenizer = Tokenizer::train_wordpiece(&texts, 2000, true).unwrap();
    assert_eq!(
        (tokenizer.len(), tokenizer.class_name().as_str()),
        (2000, "BertTokenizer")
    );
    let first = (0..5).map(|id| tokenizer.id_to_token(id).unwrap());
    assert_eq!(
        first.collect::<Vec<_>>(),
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    );
    let encoding = tokenizer
        .encode_pair("Why is the Sky blue?", "[MASK] light")
        .unwrap();
    assert_eq!(encoding.tokens[0], "[CLS]");
    assert!(encoding.ids.contains(&4) && encoding.type_ids.ends_with(&[1, 1]));
    assert!(!encoding.ids.contains(&1), "{encoding:?}");
    assert_eq!(
        tokenizer.decode(&encoding.ids, true).unwrap(),
        "why is the sky blue? light"
    );
    survives(&tokenizer, &["The Sky", "naïve [MASK]s", ""]);
    let again = Tokenizer::train_wordpiece(&texts, 2000, true).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    let cased = Tokenizer::train_wordpiece(&texts, 2000, false).unwrap();
    assert_eq!(
        cased
            .decode(&cased.encode("The Sky").unwrap().ids, true)
            .unwrap(),
        "The Sky"
    );
    survives(&cased, &["The Sky"]);
    let error = Tokenizer::train_wordpiece(&texts, 5, true)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("vocab_size") && error.contains('6'),
        "{error}"
    );
}

#[test]
fn a_trained_unigram_tokenizer_behaves_like_xlm_robertas() {
    let texts = eli5_texts();
    let tokenizer = Tokenizer::train_unigram(&texts, 1500).unwrap();
    assert!(
        tokenizer.len() <= 1500 && tokenizer.len() > 1000,
        "{}",
        tokenizer.len()
    );
    let first = (0..5).map(|id| tokenizer.id_to_token(id).unwrap());
    assert_eq!(
        first.collect::<Vec<_>>(),
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    );
    let text = "Why is the sky blue?";
    let encoding = tokenizer.encode(text).unwrap();
    assert_eq!((encoding.ids[0], *encoding.ids.last().unwrap()), (0, 2));
    assert!(encoding.len() < text.len());
    assert_eq!(tokenizer.decode(&encoding.ids, true).unwrap(), text);
    let masked = tokenizer.encode("the <mask> sky").unwrap();
    assert!(masked.ids.contains(&4));
    survives(&tokenizer, &[text, "the <mask> sky", "ünknown 漢"]);
    let again = Tokenizer::train_unigram(&texts, 1500).unwrap();
    assert_eq!(again.fingerprint(), tokenizer.fingerprint());
    assert!(Tokenizer::train_unigram(&texts, 20).is_err());
    assert!(Tokenizer::train_unigram(&texts, 5).is_err());
}

#[test]
fn a_retrained_tokenizer_changes_only_its_vocabulary() {
    let texts = eli5_texts();
    for name in [
        "roberta",
        "bert_uncased_fast",
        "mpnet",
        "deberta_fast",
        "funnel",
        "albert_fast",
        "modernbert_fast",
        "xlm-roberta_fast",
        "albert",
        "bigbird",
        "camembert",
        "deberta-v3",
        "fnet",
        "mbart50",
        "rembert",
        "xlm-roberta",
    ] {
        let old = fixture(name);
        let new = old.train_new_from_iterator(&texts, 900).unwrap();
        assert_eq!(new.class_name(), old.class_name());
        assert_eq!(new.mask_token(), old.mask_token());
        assert_eq!(new.pad_token(), old.pad_token());
        assert_eq!(new.uses_token_type_ids(), old.uses_token_type_ids());
        assert!(new.len() > 600 && new.len() <= 905, "{name}: {}", new.len());
        let text = "Why is the sky blue?";
        let (ours, theirs) = (new.encode(text).unwrap(), old.encode(text).unwrap());
        assert!(
            ours.len() < theirs.len() || theirs.ids.contains(&old.unk_token_id().unwrap()),
            "{name}"
        );
        // The same special tokens around the text, by their new ids.
        for (at, other) in [(0, 0), (ours.len() - 1, theirs.len() - 1)] {
            assert_eq!(ours.tokens[at], theirs.tokens[other], "{name}");
            assert_eq!(ours.special_tokens_mask[at], 1);
            assert_eq!(new.token_to_id(&ours.tokens[at]), Some(ours.ids[at]));
        }
        let mask = new.mask_token().unwrap().to_owned();
        let masked = new.encode(&format!("the {mask} sky")).unwrap();
        assert!(masked.ids.contains(&new.mask_token_id().unwrap()), "{name}");
        survives(&new, &[text, &format!("the {mask} sky")]);
    }
    let error = fixture("roberta")
        .train_new_from_iterator(&texts, 100)
        .unwrap_err();
    assert!(error.to_string().contains("vocab_size"), "{error}");
    let error = fixture("xlm")
        .train_new_from_iterator(&texts, 900)
        .unwrap_err();
    assert!(error.to_string().contains("train_unigram"), "{error}");
}

/// What the `tokenizers` library and transformers train from the same texts; see `trained.py` beside the file.
fn trained() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tokenizers/trained.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Compares a vocabulary and the tokens of some texts with those of one run.
fn same_vocabulary(name: &str, tokenizer: &Tokenizer, run: &Value) {
    let all = (0..tokenizer.len() as u32).filter_map(|id| tokenizer.id_to_token(id));
    let ours: BTreeSet<String> = all.collect();
    let theirs = run["vocab"].as_array().unwrap().iter();
    let theirs: BTreeSet<String> = theirs
        .map(|token| token.as_str().unwrap().to_owned())
        .collect();
    let only = |left: &BTreeSet<String>, right: &BTreeSet<String>| -> Vec<String> {
        left.difference(right).cloned().collect()
    };
    assert_eq!(
        (only(&ours, &theirs), only(&theirs, &ours)),
        (Vec::new(), Vec::new()),
        "{name}: tokens of ours alone, and of theirs alone"
    );
    // Where ids do not hang on the order of a hash map they are the same too.
    if run["ordered"] == true {
        let token = |id: usize| tokenizer.id_to_token(id as u32).unwrap();
        for (id, theirs) in run["vocab"].as_array().unwrap().iter().enumerate() {
            assert_eq!(token(id), theirs.as_str().unwrap(), "{name}: {id}");
        }
    }
    for probe in run["probes"].as_array().unwrap() {
        let text = probe["text"].as_str().unwrap();
        let ours = tokenizer.encode(text).unwrap().tokens;
        assert_eq!(serde_json::json!(ours), probe["tokens"], "{name}: {text:?}");
    }
}

#[test]
fn new_vocabularies_are_those_that_the_tokenizers_library_finds() {
    let texts = eli5_texts();
    for run in trained()["new"].as_array().unwrap() {
        let size = run["size"].as_u64().unwrap() as usize;
        let kind = run["kind"].as_str().unwrap();
        let tokenizer = match kind {
            "bpe" => Tokenizer::train_bpe(&texts, size),
            "unigram" => Tokenizer::train_unigram(&texts, size),
            _ => Tokenizer::train_wordpiece(&texts, size, kind == "wordpiece"),
        };
        same_vocabulary(kind, &tokenizer.unwrap(), run);
    }
}

#[test]
fn vocabularies_trained_anew_are_those_of_transformers() {
    let texts = eli5_texts();
    for run in trained()["again"].as_array().unwrap() {
        let name = run["folder"].as_str().unwrap();
        let size = run["size"].as_u64().unwrap() as usize;
        let tokenizer = fixture(name).train_new_from_iterator(&texts, size).unwrap();
        same_vocabulary(name, &tokenizer, run);
    }
}

#[test]
fn added_tokens_are_matched_and_round_trip() {
    for name in [
        "roberta_fast",
        "bert_uncased_fast",
        "albert",
        "xlm",
        "perceiver",
        "esm",
        "luke",
        "roc_bert",
        "wav2vec2",
        "roformer_fast",
        "mbart50",
        "tapas",
    ] {
        let mut tokenizer = fixture(name);
        let (before, hash) = (tokenizer.len(), tokenizer.fingerprint());
        assert_eq!(
            tokenizer.add_tokens(&["qzjx", "qzjx", "vwkq7"]).unwrap(),
            2,
            "{name}"
        );
        assert_eq!(tokenizer.add_tokens(&["vwkq7"]).unwrap(), 0);
        assert_eq!(tokenizer.add_special_tokens(&["<note>"]).unwrap(), 1);
        assert_eq!(tokenizer.len(), before + 3);
        assert_ne!(tokenizer.fingerprint(), hash);
        let id = |token: &str| tokenizer.token_to_id(token).unwrap();
        let ids = [id("qzjx"), id("vwkq7"), id("<note>")];
        let largest = fixture(name);
        assert!(
            ids.iter().all(|id| largest.id_to_token(*id).is_none()),
            "{name}: {ids:?}"
        );
        let encoding = tokenizer.encode("qzjx e vwkq7 <note>").unwrap();
        let found = |id: &u32| ids.contains(id);
        assert_eq!(
            encoding
                .ids
                .iter()
                .copied()
                .filter(found)
                .collect::<Vec<_>>(),
            ids,
            "{name}"
        );
        assert_eq!(
            tokenizer.encode_ids("qzjx e vwkq7 <note>").unwrap(),
            encoding.ids
        );
        assert!(tokenizer.all_special_ids().contains(&ids[2]));
        assert!(!tokenizer.all_special_ids().contains(&ids[0]));
        let text = tokenizer.decode(&encoding.ids, true).unwrap();
        assert!(
            text.contains("qzjx") && !text.contains("<note>"),
            "{name}: {text:?}"
        );
        survives(&tokenizer, &["qzjx e vwkq7 <note>", "evwkq7qzjx"]);
    }
    let error = fixture("roberta")
        .add_tokens(&["a", ""])
        .unwrap_err()
        .to_string();
    assert!(error.contains("empty"), "{error}");
}
