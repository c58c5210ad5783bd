//! Opening, refusing and saving model folders.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use cloze::model::{Config, Context, MaskedLm, ModelInputs};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(name)
}

/// A copy of a fixture's config and weights that a test may damage.
fn copy_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture(name).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

fn open(folder: &Path) -> cloze::Result<MaskedLm> {
    MaskedLm::from_pretrained(folder.to_string_lossy())
}

fn edit_config(folder: &Path, key: &str, value: impl Into<serde_json::Value>) {
    let config = Config::from_folder(folder).unwrap().set(key, value);
    std::fs::write(folder.join("config.json"), config.to_json().unwrap()).unwrap();
}

fn ids(seq: usize) -> ModelInputs {
    ModelInputs::new((0..seq as u32).map(|i| i % 150).collect(), (1, seq)).unwrap()
}

fn logits(model: &MaskedLm) -> Vec<f32> {
    let logits: Tensor = model.forward(ids(9)).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_truncated_weight_file_is_refused_by_name() {
    let folder = copy_of("roberta");
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for keep in [bytes.len() - 1, bytes.len() / 2, 100, 7, 0] {
        std::fs::write(&path, &bytes[..keep]).unwrap();
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors"), "{keep}: {error}");
        assert!(keep == 0 || error.contains("truncated"), "{keep}: {error}");
    }
}

#[test]
fn a_config_of_another_size_is_refused_with_both_shapes() {
    let folder = copy_of("bert");
    edit_config(folder.path(), "hidden_size", 64);
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("64") && error.contains("32"), "{error}");
}

#[test]
fn invalid_configs_are_refused() {
    let cases: [(&str, serde_json::Value, &str); 6] = [
        ("num_attention_heads", 5.into(), "multiple"),
        (
            "num_attention_heads",
            0.into(),
            "num_attention_heads is 0, but must be positive",
        ),
        ("hidden_act", "mystery".into(), "mystery"),
        ("model_type", "gpt2".into(), "gpt2"),
        ("is_decoder", true.into(), "is_decoder"),
        ("hidden_size", "many".into(), "many"),
    ];
    for (key, value, expected) in cases {
        let folder = copy_of("roberta");
        edit_config(folder.path(), key, value);
        let error = open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    let folder = copy_of("roberta");
    std::fs::write(folder.path().join("config.json"), "{\"model_type\": ").unwrap();
    assert!(
        open(folder.path())
            .unwrap_err()
            .to_string()
            .contains("not valid JSON")
    );
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    assert!(
        open(folder.path())
            .unwrap_err()
            .to_string()
            .contains("model_type")
    );
}

#[test]
fn a_folder_without_weights_lists_the_expected_files() {
    let folder = copy_of("bert");
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("model.safetensors") && error.contains("pytorch_model.bin"),
        "{error}"
    );
}

#[test]
fn weights_of_another_model_are_refused() {
    let folder = copy_of("bert");
    std::fs::copy(
        fixture("distilbert").join("model.safetensors"),
        folder.path().join("model.safetensors"),
    )
    .unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("none of the"), "{error}");
}

#[test]
fn a_missing_head_is_initialized_and_reported() {
    let folder = copy_of("roberta");
    let path = folder.path().join("model.safetensors");
    let all = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    // The bare model also lacks the prefix of its body.
    let body: std::collections::HashMap<String, Tensor> = all
        .into_iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("roberta.")?.to_owned(), tensor)))
        .collect();
    candle_core::safetensors::save(&body, &path).unwrap();
    let model = open(folder.path()).unwrap();
    let missing = &model.load_report().missing;
    assert_eq!(
        missing,
        &[
            "lm_head.dense.weight",
            "lm_head.dense.bias",
            "lm_head.layer_norm.weight",
            "lm_head.layer_norm.bias",
            "lm_head.bias",
        ]
    );
    assert!(model.load_report().unexpected.is_empty());
    let word = "roberta.embeddings.word_embeddings.weight";
    let original = open(&fixture("roberta")).unwrap();
    let values =
        |m: &MaskedLm| -> Vec<Vec<f32>> { m.param(word).unwrap().var().to_vec2().unwrap() };
    assert_eq!(values(&model), values(&original));
}

#[test]
fn a_saved_model_opens_with_the_same_logits_and_transformers_layout() {
    for name in [
        "roberta",
        "bert",
        "bert_relpos",
        "distilbert",
        "data2vec-text",
        "camembert",
        "xlm-roberta",
    ] {
        let model = open(&fixture(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("new/sub");
        model.save_pretrained(&target).unwrap();
        assert_eq!(logits(&open(&target).unwrap()), logits(&model), "{name}");

        let read = |path: &Path| {
            let bytes = std::fs::read(path.join("model.safetensors")).unwrap();
            let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
            let tensors = metadata.tensors().into_iter();
            let mut layout: Vec<_> = tensors
                .map(|(n, t)| (n, t.shape.clone(), t.dtype))
                .collect();
            layout.sort_by(|a, b| a.0.cmp(&b.0));
            (layout, metadata.metadata().clone())
        };
        assert_eq!(read(&target), read(&fixture(name)), "{name}");
        let (ours, theirs) = (
            Config::from_folder(&target).unwrap(),
            Config::from_folder(fixture(name)).unwrap(),
        );
        for key in [
            "architectures",
            "model_type",
            "hidden_size",
            "vocab_size",
            "torch_dtype",
        ] {
            assert_eq!(ours.get(key), theirs.get(key), "{name}: {key}");
        }
    }
}

/// The tied copies that transformers 5 asks a file for and that those of 4.35 did not hold, by the beginning of the fixture's
/// name.
const ALSO_SAVED: [(&str, &str); 3] = [
    ("bert_untied", "cls.predictions.decoder.bias"),
    ("luke", "lm_head.decoder.weight"),
    ("reformer", "lm_head.decoder.bias"),
];

/// What transformers wrote is written again as it was: the same names, shapes and numbers, those that the model has no use for
/// among them.
#[test]
fn a_saved_model_of_every_family_contains_the_tensors_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let read = |folder: &Path| {
        let path = folder.join("model.safetensors");
        candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap()
    };
    let mut folders: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let mut failed = Vec::new();
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let saved = tempfile::tempdir().unwrap();
        open(folder).unwrap().save_pretrained(saved.path()).unwrap();
        let (ours, theirs) = (read(saved.path()), read(folder));
        let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
        names.sort();
        names.dedup();
        for tensor in names {
            let (Some(a), Some(b)) = (ours.get(tensor), theirs.get(tensor)) else {
                if ALSO_SAVED
                    .iter()
                    .any(|(family, also)| name.starts_with(family) && tensor == also)
                {
                    continue;
                }
                let whose = if ours.contains_key(tensor) {
                    "ours"
                } else {
                    "theirs"
                };
                failed.push(format!("{name}: {tensor} is in {whose} alone"));
                continue;
            };
            let same = a.dims() == b.dims() && a.dtype() == b.dtype();
            let equal = |a: &Tensor, b: &Tensor| {
                let unequal = a.ne(b).unwrap().flatten_all().unwrap();
                unequal.max(0).unwrap().to_scalar::<u8>().unwrap() == 0
            };
            if !same || (a.elem_count() > 0 && !equal(a, b)) {
                failed.push(format!("{name}: {tensor} differs"));
            }
        }
    }
    assert!(folders.len() > 30);
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn a_model_saved_in_half_precision_opens_with_logits_within_its_rounding() {
    let model = open(&fixture("roberta")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    model
        .save_pretrained_as(folder.path(), candle_core::DType::F16)
        .unwrap();
    let full = std::fs::metadata(fixture("roberta").join("model.safetensors"))
        .unwrap()
        .len();
    let half = std::fs::metadata(folder.path().join("model.safetensors"))
        .unwrap()
        .len();
    assert!(half < full * 6 / 10, "{half} of {full} bytes");
    let (ours, theirs) = (logits(&open(folder.path()).unwrap()), logits(&model));
    let worst = ours
        .iter()
        .zip(&theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    assert!(worst > 0.0 && worst < 0.02, "{worst}");
    assert!(
        model
            .save_pretrained_as(folder.path(), candle_core::DType::U8)
            .is_err()
    );
}

#[test]
fn saving_over_a_model_that_cannot_be_written_keeps_the_old_one() {
    let model = open(&fixture("bert")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "not a folder").unwrap();
    let error = model.save_pretrained(&blocked).unwrap_err().to_string();
    assert!(error.contains("could not create"), "{error}");
    assert_eq!(std::fs::read(&blocked).unwrap(), b"not a folder");
}

#[test]
fn mismatched_inputs_are_refused() {
    let model = open(&fixture("roberta")).unwrap();
    assert_eq!(model.max_positions(), Some(64));
    let cases = [
        (ModelInputs::new(vec![0; 65], (1, 65)).unwrap(), "65 tokens"),
        (ModelInputs::new(vec![0, 150, 2], (1, 3)).unwrap(), "150"),
        (ModelInputs::new(vec![], (0, 0)).unwrap(), "empty"),
    ];
    for (inputs, expected) in cases {
        let error = model.forward(&inputs).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    assert!(ModelInputs::new(vec![0; 5], (2, 3)).is_err());
    let context = Context::eval();
    assert!(
        model
            .loss(ids(4), &context)
            .unwrap_err()
            .to_string()
            .contains("labels")
    );
    let labelled = |labels| ids(3).with_labels(labels).unwrap();
    for bad in [-1, 150, i64::MAX] {
        let error = model
            .loss(labelled(vec![-100, bad, 5]), &context)
            .unwrap_err()
            .to_string();
        assert!(error.contains(&bad.to_string()), "{error}");
    }
    let none = model.loss(labelled(vec![-100; 3]), &context).unwrap();
    assert_eq!(none.counted(), 0);
    assert!(none.mean().unwrap_err().to_string().contains("-100"));
}

#[test]
fn random_models_depend_on_config_and_seed() {
    let config = Config::new("roberta")
        .set("vocab_size", 300)
        .set("hidden_size", 64)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 128)
        .set("initializer_range", 0.05);
    let model = |seed| MaskedLm::from_config(&config, seed).unwrap();
    assert_eq!(logits_of(&model(1)), logits_of(&model(1)));
    assert_ne!(logits_of(&model(1)), logits_of(&model(2)));
    let model = model(1);
    for param in model.params() {
        let values: Vec<f32> = param.var().flatten_all().unwrap().to_vec1().unwrap();
        let name = param.name();
        if name.ends_with("bias") {
            assert!(values.iter().all(|&v| v == 0.0), "{name}");
        } else if name.contains("orm.weight") || name.contains("norm.weight") {
            assert!(values.iter().all(|&v| v == 1.0), "{name}");
        } else {
            let std = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
            assert!((std / 0.05 - 1.0).abs() < 0.2, "{name}: {std}");
        }
    }
    // The padding row starts at zero, in words and in positions.
    for table in ["word", "position"] {
        let name = format!("roberta.embeddings.{table}_embeddings.weight");
        let row: Vec<f32> = model
            .param(&name)
            .unwrap()
            .var()
            .get(1)
            .unwrap()
            .to_vec1()
            .unwrap();
        assert!(row.iter().all(|&v| v == 0.0), "{name}");
    }
}

fn logits_of(model: &MaskedLm) -> Vec<f32> {
    model
        .forward(ids(5))
        .unwrap()
        .flatten_all()
        .unwrap()
        .to_vec1()
        .unwrap()
}

#[test]
fn dropout_depends_on_the_context_and_is_off_in_evaluation() {
    let config = Config::new("distilbert")
        .set("vocab_size", 150)
        .set("dim", 32)
        .set("n_layers", 2)
        .set("n_heads", 4)
        .set("hidden_dim", 64);
    let model = MaskedLm::from_config(&config, 3).unwrap();
    let run = |context: Context| -> Vec<f32> {
        model
            .logits(&ids(7), &context)
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap()
    };
    assert_eq!(run(Context::train(1, 5)), run(Context::train(1, 5)));
    assert_ne!(run(Context::train(1, 5)), run(Context::train(1, 6)));
    assert_ne!(run(Context::train(1, 5)), run(Context::eval()));
    assert_eq!(run(Context::eval()), run(Context::eval()));
}

#[test]
fn every_parameter_gets_a_gradient_in_training() {
    for name in ["roberta", "bert", "distilbert"] {
        let folder = copy_of(name);
        for key in [
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "dropout",
            "attention_dropout",
        ] {
            edit_config(folder.path(), key, 0.1);
        }
        let model = open(folder.path()).unwrap();
        let inputs = ids(12).with_labels((0..12).collect()).unwrap();
        let loss = model.loss(&inputs, &Context::train(0, 0)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        for param in model.params() {
            assert!(
                param.grad().is_some(),
                "{name}: {} got no gradient",
                param.name()
            );
        }
    }
}

#[test]
fn logits_at_selected_rows_equal_those_of_all_rows() {
    let model = open(&fixture("bert")).unwrap();
    let all: Vec<Vec<f32>> = model
        .forward(ids(9))
        .unwrap()
        .get(0)
        .unwrap()
        .to_vec2()
        .unwrap();
    let some: Vec<Vec<f32>> = model
        .logits_at(&ids(9), vec![2, 7])
        .unwrap()
        .to_vec2()
        .unwrap();
    for (found, expected) in some.iter().zip([&all[2], &all[7]]) {
        let worst = found
            .iter()
            .zip(expected)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-5, "{worst}");
    }
}

#[test]
fn weights_are_loaded_only_if_all_of_them_fit() {
    let model = open(&fixture("roberta")).unwrap();
    let before = logits(&model);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.safetensors");
    model.save_weights(&path).unwrap();
    for param in model.params() {
        param.var().set(&param.var().zeros_like().unwrap()).unwrap();
    }
    assert_ne!(logits(&model), before);
    model.load_weights(&path).unwrap();
    assert_eq!(logits(&model), before);
    let error = model.load_weights(&fixture("bert").join("model.safetensors"));
    assert!(error.is_err());
    assert_eq!(logits(&model), before, "a refused file must change nothing");
}

/// The weights of a folder under other names; those that `rename` gives none are left out.
fn rename_weights(folder: &Path, rename: impl Fn(&str) -> Option<String>) {
    let path = folder.join("model.safetensors");
    let all = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let renamed: std::collections::HashMap<String, Tensor> = all
        .into_iter()
        .filter_map(|(name, tensor)| Some((rename(&name)?, tensor)))
        .collect();
    candle_core::safetensors::save(&renamed, &path).unwrap();
}

/// A DeBERTa head's name in most published checkpoints.
fn as_published(name: &str) -> String {
    let head = [
        (
            "cls.predictions.transform.dense",
            "lm_predictions.lm_head.dense",
        ),
        (
            "cls.predictions.transform.LayerNorm",
            "lm_predictions.lm_head.LayerNorm",
        ),
        ("cls.predictions.bias", "lm_predictions.lm_head.bias"),
    ];
    let renamed = head.into_iter().find_map(|(ours, theirs)| {
        let rest = name.strip_prefix(ours)?;
        Some(format!("{theirs}{rest}"))
    });
    renamed.unwrap_or_else(|| name.to_owned())
}

#[test]
fn debertas_head_is_read_and_saved_under_either_name() {
    for family in ["deberta", "deberta-v2"] {
        let original = open(&fixture(family)).unwrap();
        let notes = original.load_report().notes.join("\n");
        assert!(notes.contains("cls.predictions"), "{notes}");

        let folder = copy_of(family);
        rename_weights(folder.path(), |name| Some(as_published(name)));
        // What published files have beside the model.
        let path = folder.path().join("model.safetensors");
        let mut all = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        let nothing = Tensor::zeros((4, 4), candle_core::DType::F32, &candle_core::Device::Cpu);
        for name in [
            "mask_predictions.dense.weight",
            "deberta.embeddings.position_embeddings.weight",
        ] {
            all.insert(name.to_owned(), nothing.as_ref().unwrap().clone());
        }
        candle_core::safetensors::save(&all, &path).unwrap();
        let model = open(folder.path()).unwrap();
        let report = model.load_report();
        assert!(
            report.missing.is_empty() && report.unexpected.is_empty(),
            "{report:?}"
        );
        let notes = report.notes.join("\n");
        assert!(notes.contains("lm_predictions.lm_head"), "{notes}");
        assert_eq!(logits(&model), logits(&original), "{family}");

        let saved = tempfile::tempdir().unwrap();
        model.save_pretrained(saved.path()).unwrap();
        let path = saved.path().join("model.safetensors");
        let all = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        assert!(all.contains_key("lm_predictions.lm_head.dense.weight"));
        assert!(!all.keys().any(|name| name.starts_with("cls.")));
        assert_eq!(logits(&open(saved.path()).unwrap()), logits(&original));
    }
}

#[test]
fn a_deberta_without_a_head_warns_about_random_predictions() {
    let folder = copy_of("deberta-v2");
    rename_weights(folder.path(), |name| {
        (!name.starts_with("cls.")).then(|| name.to_owned())
    });
    let model = open(folder.path()).unwrap();
    let report = model.load_report();
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("random tokens until the model has been trained"),
        "{notes}"
    );
    let head = [
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
    ];
    assert!(
        head.iter()
            .all(|name| report.missing.iter().any(|other| other == name))
    );
}

#[test]
fn a_funnel_without_a_decoder_is_refused_with_the_reason() {
    let folder = copy_of("funnel");
    rename_weights(folder.path(), |name| {
        (!name.starts_with("funnel.decoder.")).then(|| name.to_owned())
    });
    let error = open(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("no decoder") && error.contains("-base"),
        "{error}"
    );
}
