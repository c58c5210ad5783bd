//! A matrix that a model has under two names is found under either, in every kind of weight file, and two matrices that differ
//! are both kept.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cloze::model::{Config, MaskedLm, ModelInputs};

fn fixtures() -> Vec<PathBuf> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
    let entries = std::fs::read_dir(models).unwrap();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders
}

fn open(folder: &Path) -> MaskedLm {
    MaskedLm::from_pretrained(folder.to_str().unwrap()).unwrap_or_else(|error| panic!("{error}"))
}

fn stored(folder: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap()
}

fn logits(model: &MaskedLm) -> Vec<f32> {
    let ids = (0..12).map(|n| n * 5 % 32).collect();
    let logits = model.forward(ModelInputs::new(ids, (1, 12)).unwrap());
    logits.unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A folder with the config of `fixture` and other weights, written by `write`.
fn folder(fixture: &Path, write: impl FnOnce(&Path)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(
        fixture.join("config.json"),
        folder.path().join("config.json"),
    )
    .unwrap();
    write(folder.path());
    folder
}

type Writer = fn(&HashMap<String, Tensor>, &Path);

fn one_file(tensors: &HashMap<String, Tensor>, folder: &Path) {
    candle_core::safetensors::save(tensors, folder.join("model.safetensors")).unwrap();
}

fn shards(tensors: &HashMap<String, Tensor>, folder: &Path) {
    let mut parts = [HashMap::new(), HashMap::new()];
    let mut map = serde_json::Map::new();
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        parts[at % 2].insert(name.clone(), tensor.clone());
        let file = format!("model-0000{}-of-00002.safetensors", at % 2 + 1);
        map.insert(name.clone(), file.into());
    }
    for (at, part) in parts.iter().enumerate() {
        let file = format!("model-0000{}-of-00002.safetensors", at + 1);
        candle_core::safetensors::save(part, folder.join(file)).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map});
    std::fs::write(
        folder.join("model.safetensors.index.json"),
        index.to_string(),
    )
    .unwrap();
}

/// Writes what `torch.save` writes: a pickle that names the arrays, in an archive with their numbers.
fn pickled(tensors: &HashMap<String, Tensor>, folder: &Path) {
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
    };
    let number = |pickle: &mut Vec<u8>, number: usize| {
        pickle.push(b'J');
        pickle.extend((number as u32).to_le_bytes());
    };
    let mut pickle = b"\x80\x02}(".to_vec();
    let mut parts = Vec::new();
    for (at, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut pickle, name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(b"ctorch\nFloatStorage\n");
        text(&mut pickle, &at.to_string());
        text(&mut pickle, "cpu");
        number(&mut pickle, tensor.elem_count());
        pickle.extend(b"tQK\x00(");
        tensor
            .dims()
            .iter()
            .for_each(|&dim| number(&mut pickle, dim));
        pickle.extend(b"t(");
        tensor
            .stride()
            .iter()
            .for_each(|&stride| number(&mut pickle, stride));
        pickle.extend(b"t\x89tR");
        let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap();
        let values: Vec<f32> = values.to_vec1().unwrap();
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        parts.push((format!("archive/data/{at}"), bytes));
    }
    pickle.extend(b"u.");
    let file = std::fs::File::create(folder.join("pytorch_model.bin")).unwrap();
    let mut archive = zip::ZipWriter::new(file);
    let plain =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in [("archive/data.pkl".to_owned(), pickle)]
        .into_iter()
        .chain(parts)
    {
        archive.start_file(name, plain).unwrap();
        archive.write_all(&bytes).unwrap();
    }
    archive.finish().unwrap();
}

/// The names of one parameter: the one in the file, and another.
fn pairs(model: &MaskedLm, stored: &HashMap<String, Tensor>) -> Vec<(String, String)> {
    let variables = model.var_map();
    let variables = variables.data().lock().unwrap();
    let mut names: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for (name, variable) in variables.iter() {
        let id = format!("{:?}", variable.as_tensor().id());
        names.entry(id).or_default().push(name);
    }
    let mut pairs = Vec::new();
    for names in names.values().filter(|names| names.len() > 1) {
        let (known, other): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| stored.contains_key(**name));
        for known in &known {
            pairs.extend(
                other
                    .iter()
                    .map(|other| ((*known).clone(), (*other).clone())),
            );
        }
    }
    pairs
}

#[test]
fn either_name_of_a_tied_weight_is_enough_in_every_family_and_kind_of_file() {
    let mut renamed = 0;
    let writers: [Writer; 3] = [one_file, shards, pickled];
    for fixture in fixtures() {
        let model = open(&fixture);
        let tensors = stored(&fixture);
        let pairs = pairs(&model, &tensors);
        if pairs.is_empty() {
            continue;
        }
        let expected = logits(&model);
        for (known, other) in pairs {
            let mut moved = tensors.clone();
            let value = moved.remove(&known).unwrap();
            moved.insert(other.clone(), value.clone());
            let mut both = tensors.clone();
            both.insert(other.clone(), value);
            for (at, tensors) in [&moved, &both, &moved, &moved].into_iter().enumerate() {
                let write = writers[at.saturating_sub(1)];
                let folder = folder(&fixture, |folder| write(tensors, folder));
                let opened = open(folder.path());
                let report = opened.load_report();
                let case = format!("{}: {known} as {other}, {report:?}", fixture.display());
                assert!(
                    report.missing.is_empty() && report.untied.is_none(),
                    "{case}"
                );
                assert!(report.unexpected.is_empty(), "{case}");
                assert!(logits(&opened) == expected, "{case}");
            }
            renamed += 1;
        }
    }
    assert!(renamed > 50, "{renamed}");
}

#[test]
fn two_different_matrices_under_tied_names_are_both_kept() {
    let mut untied = 0;
    for fixture in fixtures() {
        let model = open(&fixture);
        let tensors = stored(&fixture);
        for (known, other) in pairs(&model, &tensors) {
            // Of the product with the vocabulary.
            if !other.ends_with(".weight") {
                continue;
            }
            let mut both = tensors.clone();
            let changed = (&tensors[&known].to_dtype(DType::F32).unwrap() * 1.5).unwrap();
            both.insert(other.clone(), changed);
            let both = folder(&fixture, |folder| one_file(&both, folder));
            let opened = open(both.path());
            let report = opened.load_report();
            let case = format!("{}: {known} and {other}, {report:?}", fixture.display());
            assert!(
                report.missing.is_empty() && report.unexpected.is_empty(),
                "{case}"
            );
            assert_eq!(
                report.untied,
                Some((known.clone(), other.clone())),
                "{case}"
            );
            let own = logits(&opened);
            // Entities have a product of their own.
            let of_words = other != "entity_predictions.decoder.weight";
            assert!((own != logits(&model)) == of_words, "{case}");
            // Saved, it is an untied model with the same results.
            let saved = tempfile::tempdir().unwrap();
            opened.save_pretrained(saved.path()).unwrap();
            let config = Config::from_folder(saved.path()).unwrap();
            assert_eq!(
                config.get("tie_word_embeddings"),
                Some(&false.into()),
                "{case}"
            );
            let again = open(saved.path());
            let report = again.load_report();
            assert!(
                report.missing.is_empty() && report.untied.is_none(),
                "{case}"
            );
            assert!(logits(&again) == own, "{case}");
            untied += 1;
        }
    }
    assert!(untied > 30, "{untied}");
}

#[test]
fn an_untied_decoder_reads_and_writes_its_own_bias() {
    let mut tried = 0;
    for fixture in fixtures() {
        let (model, tensors) = (open(&fixture), stored(&fixture));
        let pairs = pairs(&model, &tensors);
        // The bias of the product with the vocabulary has two names, as does its matrix.
        let Some((bias, own)) = pairs.iter().find(|(_, other)| other.ends_with(".bias")) else {
            continue;
        };
        let matrix = own.replace(".bias", ".weight");
        let Some((words, _)) = pairs.iter().find(|(_, other)| *other == matrix) else {
            continue;
        };
        let vocab = tensors[bias].elem_count();
        let step = Tensor::arange(0f32, vocab as f32, &Device::Cpu).unwrap();
        let mut untied = tensors.clone();
        untied.insert(matrix.clone(), tensors[words].copy().unwrap());
        untied.insert(own.clone(), (&tensors[bias] + step).unwrap());
        untied.insert(bias.clone(), tensors[bias].zeros_like().unwrap());
        let folder = folder(&fixture, |folder| one_file(&untied, folder));
        let config = Config::from_folder(&fixture).unwrap();
        let config = config.set("tie_word_embeddings", false);
        let json = config.to_json().unwrap();
        std::fs::write(folder.path().join("config.json"), json).unwrap();
        let (plain, opened) = (logits(&model), open(folder.path()));
        let report = opened.load_report();
        assert!(
            report.missing.is_empty() && report.unexpected.is_empty(),
            "{report:?}"
        );
        for (at, (changed, plain)) in logits(&opened).iter().zip(&plain).enumerate() {
            let expected = plain + (at % vocab) as f32;
            assert!(
                (changed - expected).abs() < 1e-3,
                "{own}: {changed}, {expected}"
            );
        }
        let saved = tempfile::tempdir().unwrap();
        opened.save_pretrained(saved.path()).unwrap();
        let written = stored(saved.path());
        let values =
            |tensors: &HashMap<String, Tensor>, name: &str| tensors[name].to_vec1::<f32>().unwrap();
        assert_eq!(values(&written, own), values(&untied, own));
        // Older versions of transformers read the other name.
        assert_eq!(values(&written, bias), values(&untied, own));
        tried += 1;
    }
    assert!(tried > 20, "{tried}");
}
