//! Adapters: the same steps as those of a naive implementation, PEFT's layout, and exact resumption.

use candle_core::{Device, Tensor};

use super::{bits, model, nowhere, rows, trainer};
use crate::collate::MlmBatch;
use crate::model::{Context, MaskedLm};
use crate::train::{AdamW, Lora, TrainingArguments};

fn batch() -> MlmBatch {
    let row = &rows(2)[1];
    let batch = MlmBatch::new(row.input_ids.clone(), (1, 6)).unwrap();
    batch.with_labels(row.labels.clone().unwrap()).unwrap()
}

fn loss(model: &MaskedLm) -> f64 {
    let loss = model.loss(batch(), &Context::eval()).unwrap();
    f64::from(loss.value().unwrap())
}

#[test]
fn gradients_of_the_factors_agree_with_finite_differences() {
    let model = model(3);
    let adapters = Lora::new(2)
        .alpha(6.0)
        .targets(["query", "output.dense"])
        .seed(5);
    let before = loss(&model);
    let adapters = adapters.attach(&model).unwrap();
    assert_eq!(loss(&model), before, "nothing is changed by attaching");
    // Away from B = 0, where the slopes of A are.
    let folder = tempfile::tempdir().unwrap();
    for param in adapters.params() {
        let noise: Vec<f32> = (0..param.elem_count())
            .map(|i| ((i * 37 % 23) as f32 - 11.0) / 40.0)
            .collect();
        param
            .set(&Tensor::from_vec(noise, param.shape(), &Device::Cpu).unwrap())
            .unwrap();
    }
    adapters.save_pretrained(folder.path()).unwrap();
    adapters.load_pretrained(folder.path()).unwrap();
    let mut optimizer = adapters.optimizer(AdamW::from_params(&adapters.params()));
    let mean = model
        .loss(batch(), &Context::eval())
        .unwrap()
        .mean()
        .unwrap();
    model.backward(&mean).unwrap();
    optimizer.clip_grad_norm(0.0).unwrap();
    for param in adapters.params() {
        let slopes: Vec<f32> = param
            .grad()
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1()
            .unwrap();
        let values: Vec<f32> = param.value().flatten_all().unwrap().to_vec1().unwrap();
        for i in [0, values.len() / 2, values.len() - 1] {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                param
                    .set(&Tensor::from_vec(values, param.shape(), &Device::Cpu).unwrap())
                    .unwrap();
                adapters.save_pretrained(folder.path()).unwrap();
                adapters.load_pretrained(folder.path()).unwrap();
                loss(&model)
            };
            let slope = (moved(0.02) - moved(-0.02)) / 0.04;
            moved(0.0);
            let difference = (slope - f64::from(slopes[i])).abs();
            assert!(
                difference < 2e-3,
                "{} {i}: {slope} {}",
                param.name(),
                slopes[i]
            );
        }
    }
}

#[test]
fn only_the_targets_change_and_a_run_resumes_bit_for_bit() {
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path())
        .per_device_train_batch_size(4)
        .epochs(3)
        .learning_rate(2e-2)
        .save_steps(6);
    let straight = model(1);
    let before = bits(&straight);
    let adapters = Lora::new(4).attach(&straight).unwrap();
    let history = trainer(args.clone(), &straight)
        .lora(&adapters)
        .train()
        .unwrap();
    assert!(history.losses()[17] < history.losses()[0]);
    for (param, (before, after)) in straight
        .params()
        .iter()
        .zip(before.iter().zip(bits(&straight)))
    {
        let name = param.name();
        let target = name.ends_with("query.weight") || name.ends_with("value.weight");
        assert_eq!(*before != after, target, "{name}");
    }
    let resumed = model(1);
    let adapters = Lora::new(4).attach(&resumed).unwrap();
    let mut again = trainer(args.clone(), &resumed).lora(&adapters);
    again
        .resume_from_checkpoint(out.path().join("checkpoint-6"))
        .unwrap();
    assert_eq!(bits(&resumed), bits(&straight));
    let other = model(2);
    let adapters = Lora::new(4).attach(&other).unwrap();
    let mut again = trainer(args, &other).lora(&adapters);
    let error = again.resume_from_checkpoint(out.path().join("checkpoint-6"));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("other weights"), "{error}");
}

#[test]
fn files_have_pefts_layout() {
    let trained = model(1);
    let adapters = Lora::new(4).alpha(16.0).attach(&trained).unwrap();
    trainer(nowhere(), &trained)
        .lora(&adapters)
        .train()
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    adapters.save_pretrained(folder.path()).unwrap();
    let config = std::fs::read(folder.path().join("adapter_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        (&config["peft_type"], &config["r"]),
        (&"LORA".into(), &4.into())
    );
    assert_eq!(
        config["target_modules"],
        serde_json::json!(["query", "value"])
    );
    let path = folder.path().join("adapter_model.safetensors");
    let file = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    assert_eq!(file.len(), 8);
    let name = "base_model.model.roberta.encoder.layer.1.attention.self.value";
    assert_eq!(file[&format!("{name}.lora_A.weight")].dims(), [4, 16]);
    assert_eq!(file[&format!("{name}.lora_B.weight")].dims(), [16, 4]);
    // Opened over the base model they give the trained one.
    let opened = model(1);
    let fresh = Lora::new(4).alpha(16.0).attach(&opened).unwrap();
    fresh.load_pretrained(folder.path()).unwrap();
    assert_eq!(bits(&opened), bits(&trained));
    fresh.detach(&opened).unwrap();
    assert_eq!(bits(&opened), bits(&model(1)));
    assert!(opened.params().iter().all(crate::ops::Param::is_trainable));
    let error = Lora::new(4)
        .targets(["q_proj"])
        .attach(&opened)
        .unwrap_err();
    assert!(error.to_string().contains("query"), "{error}");
    assert!(Lora::new(0).attach(&opened).is_err());
}

/// Runs with `CLOZE_PEFT_PYTHON=PYTHON cargo test --release --lib -- --ignored peft`, where that Python has torch, transformers
/// and PEFT from PyPI.
#[test]
#[ignore = "needs torch, transformers and PEFT from PyPI"]
fn peft_opens_the_adapters_with_the_same_logits() {
    let python = std::env::var("CLOZE_PEFT_PYTHON").unwrap_or("python3".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let trained = model(1);
    trained.save_pretrained(folder.path().join("base")).unwrap();
    let adapters = Lora::new(4).alpha(16.0).attach(&trained).unwrap();
    trainer(nowhere().learning_rate(2e-2), &trained)
        .lora(&adapters)
        .train()
        .unwrap();
    adapters
        .save_pretrained(folder.path().join("adapter"))
        .unwrap();
    let mut grown = model(2);
    grown.resize_token_embeddings(67).unwrap();
    grown.save_pretrained(folder.path().join("grown")).unwrap();
    let script = "
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForMaskedLM
folder = sys.argv[1]
ids = torch.tensor([[5, 9, 20, 31, 40, 2]])
base = AutoModelForMaskedLM.from_pretrained(folder + '/base').eval()
tuned = PeftModel.from_pretrained(base, folder + '/adapter').eval()
grown = AutoModelForMaskedLM.from_pretrained(folder + '/grown').eval()
with torch.no_grad():
    print(json.dumps([tuned(input_ids=ids).logits.flatten().tolist(), grown(input_ids=ids).logits.flatten().tolist()]))
";
    let mut command = std::process::Command::new(python);
    let read = command
        .args(["-c", script])
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(
        read.status.success(),
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
    let theirs: Vec<Vec<f32>> = serde_json::from_slice(&read.stdout).unwrap();
    for (model, theirs) in [trained, grown].iter().zip(theirs) {
        let inputs = MlmBatch::new(vec![5, 9, 20, 31, 40, 2], (1, 6)).unwrap();
        let ours = model.forward(inputs).unwrap().flatten_all().unwrap();
        let ours: Vec<f32> = ours.to_vec1().unwrap();
        assert_eq!(ours.len(), theirs.len());
        let worst = ours
            .iter()
            .zip(&theirs)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
}
