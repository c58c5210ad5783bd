//! A second, independent reference: candle-transformers' own inference models on the same weights.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, distilbert};
use cloze::model::{Config, MaskedLm, ModelInputs};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/models")
        .join(name)
}

/// The fixture's weights, with the tied matrix under its second name too.
fn weights(name: &str, tied: &str, alias: &str) -> VarBuilder<'static> {
    let path = fixture(name).join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    tensors.insert(alias.to_owned(), tensors[tied].clone());
    VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
}

const IDS: [u32; 10] = [2, 17, 99, 149, 3, 4, 5, 70, 71, 9];

fn ours(folder: &Path) -> Tensor {
    let model = MaskedLm::from_pretrained(folder.to_string_lossy()).unwrap();
    model
        .forward(ModelInputs::new(IDS.to_vec(), (2, 5)).unwrap())
        .unwrap()
}

fn assert_close(ours: &Tensor, theirs: &Tensor) {
    let difference = (ours - theirs)
        .unwrap()
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap();
    let worst: f32 = difference.max(0).unwrap().to_scalar().unwrap();
    assert!(worst <= 2e-5, "max |Δlogits| {worst}");
}

/// A copy of the fixture whose config has `key` set to "relu": the other side approximates GELU.
fn with_relu(name: &str, key: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::from_folder(fixture(name)).unwrap().set(key, "relu");
    let config = config.to_json().unwrap();
    std::fs::write(folder.path().join("config.json"), &config).unwrap();
    let weights = "model.safetensors";
    std::fs::copy(fixture(name).join(weights), folder.path().join(weights)).unwrap();
    (folder, config)
}

#[test]
fn bert_logits_agree() {
    let (folder, config) = with_relu("bert", "hidden_act");
    let weights = weights(
        "bert",
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    );
    let weights = weights.rename_f(|name| match name {
        "cls.predictions.decoder.bias" => "cls.predictions.bias".to_owned(),
        other => other.to_owned(),
    });
    let config: bert::Config = serde_json::from_str(&config).unwrap();
    let model = bert::BertForMaskedLM::load(weights, &config).unwrap();
    let ids = Tensor::from_slice(&IDS, (2, 5), &Device::Cpu).unwrap();
    let theirs = model
        .forward(&ids, &ids.zeros_like().unwrap(), None)
        .unwrap();
    assert_close(&ours(folder.path()), &theirs);
}

#[test]
fn distilbert_logits_agree() {
    let (folder, config) = with_relu("distilbert", "activation");
    let weights = weights(
        "distilbert",
        "distilbert.embeddings.word_embeddings.weight",
        "vocab_projector.weight",
    );
    let config: distilbert::Config = serde_json::from_str(&config).unwrap();
    let model = distilbert::DistilBertForMaskedLM::load(weights, &config).unwrap();
    let ids = Tensor::from_slice(&IDS, (2, 5), &Device::Cpu).unwrap();
    // Here the mask marks what to hide.
    let nothing_hidden = Tensor::zeros((2, 1, 1, 5), DType::U8, &Device::Cpu).unwrap();
    let theirs = model.forward(&ids, &nothing_hidden).unwrap();
    assert_close(&ours(folder.path()), &theirs);
}

/// A model that was fine-tuned here runs in candle-transformers on its own variables.
#[test]
fn a_fine_tuned_model_gives_the_same_logits_in_candle_transformers() {
    use cloze::model::Context;
    use cloze::train::AdamW;

    let (folder, config) = with_relu("bert", "hidden_act");
    let model = MaskedLm::from_pretrained(folder.path().to_string_lossy()).unwrap();
    let before = ours(folder.path());
    let mut optimizer = AdamW::new(&model).weight_decay(0.01);
    for step in 0..5 {
        let labels = IDS.iter().map(|&id| if id % 3 == 0 { 7 } else { -100 });
        let batch = ModelInputs::new(IDS.to_vec(), (2, 5)).unwrap();
        let batch = batch.with_labels(labels.collect()).unwrap();
        let loss = model.loss(batch, &Context::train(42, step)).unwrap();
        model.backward(&loss.mean().unwrap()).unwrap();
        optimizer.step(1e-2).unwrap();
        optimizer.zero_grad();
    }
    let config: bert::Config = serde_json::from_str(&config).unwrap();
    let theirs = bert::BertForMaskedLM::load(model.var_builder(), &config).unwrap();
    let ids = Tensor::from_slice(&IDS, (2, 5), &Device::Cpu).unwrap();
    let types = ids.zeros_like().unwrap();
    let theirs = theirs.forward(&ids, &types, None).unwrap();
    let inputs = ModelInputs::new(IDS.to_vec(), (2, 5)).unwrap();
    let tuned = model.forward(inputs).unwrap();
    assert_close(&tuned, &theirs);
    let moved = (&tuned - &before).unwrap().abs().unwrap();
    let moved: f32 = moved
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap();
    assert!(moved > 0.1, "the training changed something: {moved}");
}
