//! Whether a speech model learns, from recordings to error rates.

use std::path::Path;

use crate::audio::{FeatureExtractor, SpeechProcessor};
use crate::collate::{BatchKey, Collator, CtcCollator, Example, Examples};
use crate::dataset::{Dataset, Map};
use crate::model::{Config, MaskedLm};
use crate::speech::SpeechRecognizer;
use crate::tokenizer::Tokenizer;
use crate::train::{IntervalStrategy, SchedulerType, Trainer, TrainingArguments, error_rates};

const RATE: u32 = 8_000;

/// Returns a WAV file of a tone for each letter, the higher the later in the alphabet, with silence between them.
fn spoken(text: &str, loudness: f64) -> Vec<u8> {
    let mut samples: Vec<i16> = Vec::new();
    for letter in text.bytes() {
        let hertz = 300.0 + 500.0 * f64::from(letter - b'a');
        let tone = |i: usize| {
            let phase = std::f64::consts::TAU * hertz * i as f64 / f64::from(RATE);
            (loudness * 20_000.0 * phase.sin()) as i16
        };
        samples.extend((0..960).map(tone));
        samples.extend([0; 480]);
    }
    let bytes = 2 * samples.len() as u32;
    let mut wav = b"RIFF".to_vec();
    wav.extend((36 + bytes).to_le_bytes());
    wav.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    wav.extend(RATE.to_le_bytes());
    wav.extend((2 * RATE).to_le_bytes());
    wav.extend(b"\x02\0\x10\0data");
    wav.extend(bytes.to_le_bytes());
    wav.extend(samples.into_iter().flat_map(i16::to_le_bytes));
    wav
}

const TEXTS: [&str; 8] = ["a", "b", "c", "ab", "ca", "bc", "cab", "ba"];

fn recordings(count: usize) -> Dataset {
    let text = |i: usize| TEXTS[i % TEXTS.len()];
    let files = (0..count).map(|i| spoken(text(i), 0.5 + 0.06 * (i % 7) as f64));
    let files: Vec<Vec<u8>> = files.collect();
    let files = arrow::array::BinaryArray::from_iter_values(files);
    Dataset::builder()
        .column("audio", std::sync::Arc::new(files))
        .column("text", (0..count).map(text).collect::<Vec<_>>())
        .build()
        .unwrap()
}

fn processor(norm: &str) -> SpeechProcessor {
    let extractor = FeatureExtractor {
        return_attention_mask: norm == "layer",
        ..FeatureExtractor::default()
    };
    SpeechProcessor::new(extractor, Tokenizer::train_letters(TEXTS).unwrap())
}

fn model(processor: &SpeechProcessor, norm: &str, seed: u64) -> MaskedLm {
    let config = Config::small("wav2vec2")
        .set("vocab_size", processor.tokenizer().len())
        .set("conv_dim", vec![12, 16, 20])
        .set("conv_kernel", vec![40, 8, 8])
        .set("conv_stride", vec![10, 8, 4])
        .set("feat_extract_norm", norm)
        .set("mask_time_length", 2)
        .set("mask_feature_length", 2)
        .set("hidden_dropout", 0.05)
        .set("layerdrop", 0.05);
    MaskedLm::from_config(&config, seed).unwrap()
}

fn arguments(folder: &Path, steps: usize) -> TrainingArguments {
    TrainingArguments::new(folder)
        .max_steps(steps)
        .per_device_train_batch_size(8)
        .per_device_eval_batch_size(8)
        .learning_rate(3e-3)
        .lr_scheduler_type(SchedulerType::Constant)
        .eval_strategy(IntervalStrategy::Steps)
        .eval_steps(steps / 2)
        .save_strategy(IntervalStrategy::Steps)
        .save_steps(steps / 2)
}

fn prepared(processor: &SpeechProcessor, count: usize) -> Dataset {
    let map = Map::new(processor.prepare("audio", "text")).batched();
    let columns = ["audio", "text"];
    recordings(count).map(map.remove_columns(columns)).unwrap()
}

fn weights(model: &MaskedLm) -> Vec<Vec<f32>> {
    let flat = |param: &crate::ops::Param| param.value().flatten_all().unwrap().to_vec1().unwrap();
    model.params().iter().map(flat).collect()
}

#[test]
fn training_lowers_the_loss_and_its_checkpoint_gives_the_same_transcripts() {
    for norm in ["group", "layer"] {
        let processor = processor(norm);
        let model = model(&processor, norm, 3);
        let recognizer = SpeechRecognizer::new(model.clone(), processor.clone()).unwrap();
        let held = recordings(16);
        let rates = recognizer.error_rates(&held, "audio", "text").unwrap();
        assert!(rates.characters > 0.6, "{rates:?}");
        let folder = tempfile::tempdir().unwrap();
        let data = prepared(&processor, 64);
        let mut trainer = Trainer::new(
            model.clone(),
            arguments(folder.path(), 120),
            (data.clone(), data.clone()),
            CtcCollator::new(&processor),
        )
        .compute_metrics(error_rates(&processor));
        let history = trainer.train().unwrap();
        let losses = &history.evaluations;
        println!("{norm}: {:?} -> {:?}", rates, losses);
        assert!(losses[1].metrics.loss < 0.5 * f64::from(history.steps[0].loss));
        let after = recognizer.error_rates(&held, "audio", "text").unwrap();
        println!("{norm}: {after:?} {:?}", after.hypotheses);
        // What evaluations measured is what the recognizer makes of the same recordings.
        let same = recognizer
            .error_rates(&recordings(64), "audio", "text")
            .unwrap();
        let last = &losses[1].metrics;
        if norm == "layer" {
            assert_eq!(last.get("wer"), Some(same.words));
            assert_eq!(last.get("eval_cer"), Some(same.characters));
        }
        assert!(last.get("wer").is_some_and(|rate| rate <= 1.0));
        assert!(
            after.characters < rates.characters,
            "{after:?} {:?}",
            after.hypotheses
        );
        // The checkpoint has the processor beside the model.
        let checkpoint = folder.path().join("checkpoint-120");
        let opened = SpeechRecognizer::from_pretrained(checkpoint.to_str().unwrap()).unwrap();
        assert_eq!(opened.error_rates(&held, "audio", "text").unwrap(), after);
        let error = trainer.predict(data).unwrap_err().to_string();
        assert!(error.contains("no tokens"), "{error}");
    }
}

#[test]
fn a_stopped_run_resumes_bit_for_bit_and_recognises_its_data() {
    let processor = processor("group");
    let data = prepared(&processor, 24);
    let trainer = |folder: &Path, seed: u64, data: Dataset, steps: usize| {
        let arguments = arguments(folder, 6).max_steps(steps);
        let collator = CtcCollator::new(&processor);
        let model = model(&processor, "group", seed);
        assert_eq!(model.freeze_feature_encoder().unwrap(), 5);
        Trainer::new(model, arguments, (data.clone(), data), collator)
    };
    let (whole, halves) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut uninterrupted = trainer(whole.path(), 5, data.clone(), 6);
    uninterrupted.train().unwrap();
    trainer(halves.path(), 5, data.clone(), 3).train().unwrap();
    let mut resumed = trainer(halves.path(), 99, data.clone(), 6);
    resumed.resume_from_latest_checkpoint().unwrap();
    assert_eq!(weights(resumed.model()), weights(uninterrupted.model()));
    // What was frozen is what it was.
    let first = |model: &MaskedLm| {
        let name = "wav2vec2.feature_extractor.conv_layers.0.conv.weight";
        let value = model.param(name).unwrap().value();
        value.flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    let fresh = model(&processor, "group", 5);
    assert_eq!(first(uninterrupted.model()), first(&fresh));
    // The same recordings with other words are other data.
    let other = data
        .map(
            Map::new(|batch: &crate::dataset::Batch| {
                let labels: Vec<Vec<i32>> = batch.column("labels")?;
                let labels: Vec<Vec<i32>> = labels
                    .into_iter()
                    .map(|mut row| {
                        row.reverse();
                        row.push(5);
                        row
                    })
                    .collect();
                crate::dataset::Batch::new().with_column("labels", labels)
            })
            .batched(),
        )
        .unwrap();
    let error = trainer(halves.path(), 5, other, 6)
        .resume_from_latest_checkpoint()
        .unwrap_err();
    assert!(error.to_string().contains("data"), "{error}");
}

#[test]
fn batches_of_datasets_and_of_examples_are_equal() {
    let processor = processor("layer");
    let data = prepared(&processor, 4);
    assert_eq!(data.column_names(), ["input_values", "labels"]);
    data.validate().unwrap();
    let examples: Vec<Example> = (0..4).map(|i| data.get(i).unwrap()).collect();
    let batch = CtcCollator::new(&processor)
        .collate(&examples, BatchKey::new(0, 0))
        .unwrap();
    // Two letters of 0.18 s, at the extractor's rate.
    assert_eq!(batch.shape(), (4, 5760));
    assert_eq!(batch.label_values().len(), 8);
    let sound: u32 = batch.attention_mask[..5760].iter().sum();
    assert_eq!(sound, 2880);
    let text = MaskedLm::from_config(&Config::small("bert"), 1).unwrap();
    assert!(text.freeze_feature_encoder().is_err());
    let error = SpeechRecognizer::new(text, processor)
        .unwrap_err()
        .to_string();
    assert!(error.contains("instead of sound"), "{error}");
}

/// Reads digits of voices that it has not heard in training, as `notebooks/spoken_digits.ipynb` has it.
#[test]
#[ignore = "takes a minute"]
fn spoken_digits_are_learned() {
    let digits = crate::dataset::load_dataset("bundled:spoken_digits").unwrap();
    let texts: Vec<String> = digits["train"].column("transcription").unwrap();
    let extractor = FeatureExtractor {
        sampling_rate: 8_000,
        return_attention_mask: true,
        ..FeatureExtractor::default()
    };
    let processor = SpeechProcessor::new(extractor, Tokenizer::train_letters(&texts).unwrap());
    let prepare = Map::new(processor.prepare("audio", "transcription")).batched();
    let data = digits.map(prepare).unwrap();
    let config = Config::new("wav2vec2")
        .set("vocab_size", processor.tokenizer().len())
        .set("conv_dim", vec![64; 4])
        .set("conv_kernel", vec![10, 8, 4, 4])
        .set("conv_stride", vec![5, 4, 4, 2])
        .set("conv_bias", true)
        .set("feat_extract_norm", "layer")
        .set("do_stable_layer_norm", true)
        .set("hidden_size", 96)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 192)
        .set("num_conv_pos_embeddings", 15)
        .set("num_conv_pos_embedding_groups", 4)
        .set("hidden_dropout", 0.0)
        .set("activation_dropout", 0.0)
        .set("attention_dropout", 0.0)
        .set("final_dropout", 0.0)
        .set("layerdrop", 0.0)
        .set("apply_spec_augment", false)
        .set("ctc_loss_reduction", "mean");
    for seed in [1, 2] {
        let model = MaskedLm::from_config(&config, seed).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let arguments = TrainingArguments::new(folder.path())
            .max_steps(480)
            .per_device_train_batch_size(12)
            .learning_rate(2e-3)
            .warmup_steps(40)
            .save_strategy(IntervalStrategy::No);
        let (train, test) = (data["train"].clone(), data["test"].clone());
        let mut trainer = Trainer::new(
            model,
            arguments,
            (train, test),
            CtcCollator::new(&processor),
        )
        .compute_metrics(error_rates(&processor));
        let before = trainer.evaluate().unwrap();
        let history = trainer.train().unwrap();
        let after = trainer.evaluate().unwrap();
        println!("{before:?} -> {after:?} in {:.0} s", history.seconds);
        let wer = |metrics: &crate::train::EvalMetrics| metrics.get("wer").unwrap();
        assert!(wer(&before) >= 0.9 && wer(&after) < 0.3);
    }
}
