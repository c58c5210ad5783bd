//! Training steps of one family's model, whose config is given: forward, backward, clipping, AdamW, in f32 on the CPU.
//!
//! `cargo bench --bench families -- --config FILE --batch 8 --seq 128` takes one step for every line that it reads, and
//! prints one JSON line for each, so that `compare_families.py` can let it and its peers take turns. `--steps N` takes N steps
//! by itself.
//!
//! `--eli5` takes the answers of the bundled sample as they are, cut off at `--seq` tokens, in place of rows of one
//! length, and takes each step twice: with padding, and without.

mod support;

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use cloze::collate::{BatchKey, Example, MaskingCollator};
use cloze::dataset::load_eli5;
use cloze::model::{Column, Config, Context, MaskedLm, ModelInputs};
use cloze::tokenizer::{EncodeOptions, Tokenizer};
use cloze::train::AdamW;
use cloze::{Error, Result};
use support::{Arguments, cpu_seconds, peak_rss_mib};

fn main() -> Result<()> {
    let names = ["config", "batch", "seq", "steps"];
    let arguments = Arguments::read(&names, &["checkpointing", "eli5"])?;
    let missing = || Error::argument("arguments", "--config FOLDER is missing");
    let folder: PathBuf = arguments
        .find::<String>("config")?
        .ok_or_else(missing)?
        .into();
    let (batch, seq) = (arguments.get("batch", 8)?, arguments.get("seq", 128)?);
    let steps: Option<usize> = arguments.find("steps")?;
    let checkpointing = arguments.flag("checkpointing");
    let config = Config::from_folder(&folder)?;
    let model = MaskedLm::from_config(&config, 0)?;
    if arguments.flag("eli5") {
        return with_and_without_padding(&model, (batch, seq), steps.unwrap_or(8));
    }
    let inputs = match (model.main_input(), config.model_type()) {
        ("input_ids", "luke") => with_entities(masked(batch, seq, model.vocab_size())?)?,
        ("input_ids", _) => masked(batch, seq, model.vocab_size())?,
        _ => heard(batch, seq, model.vocab_size())?,
    };
    let mut optimizer = AdamW::new(&model).weight_decay(0.01);
    let ready = serde_json::json!({
        "ready": true, "parameters": model.num_parameters(), "threads": rayon::current_num_threads(),
        "rss_mib": peak_rss_mib(),
    });
    println!("{ready}");
    let mut lines = std::io::stdin().lock().lines();
    for number in 0.. {
        let more = match steps {
            Some(steps) => number < steps,
            None => lines.next().is_some(),
        };
        if !more {
            break;
        }
        let context = Context::train(42, number as u64).gradient_checkpointing(checkpointing);
        println!("{}", step(&model, &mut optimizer, &inputs, &context)?);
    }
    Ok(())
}

/// Takes a step; what it took.
fn step(
    model: &MaskedLm,
    optimizer: &mut AdamW,
    inputs: &ModelInputs,
    context: &Context,
) -> Result<serde_json::Value> {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let loss = model.loss(inputs, context)?;
    let forward = started.elapsed();
    let loss = loss.mean()?;
    model.backward(&loss)?;
    let backward = started.elapsed();
    optimizer.clip_grad_norm_later(1.0)?;
    optimizer.step(2e-5)?;
    optimizer.zero_grad();
    let all = started.elapsed();
    Ok(serde_json::json!({
        "wall_s": all.as_secs_f64(),
        "cpu_s": cpu_seconds().zip(cpu).map(|(now, then)| now - then),
        "forward_s": forward.as_secs_f64(), "backward_s": (backward - forward).as_secs_f64(),
        "update_s": (all - backward).as_secs_f64(),
        "peak_rss_mib": peak_rss_mib(), "loss": loss.to_scalar::<f32>()?,
    }))
}

/// Takes steps on answers of the bundled sample, each with padding and without it, and prints one JSON line with what all of
/// them took.
fn with_and_without_padding(
    model: &MaskedLm,
    (batch, seq): (usize, usize),
    steps: usize,
) -> Result<()> {
    let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;
    let answers = load_eli5("train_asks")?.flatten()?;
    let options = EncodeOptions::new().truncation(seq);
    let mut examples = Vec::new();
    let texts: Vec<Vec<String>> = answers.column("answers.text")?;
    for texts in texts.iter().take(batch * steps) {
        let encoding = tokenizer.encode_with(&texts.join(" "), &options)?;
        examples.push(Example::from(encoding));
    }
    let collator = MaskingCollator::new(&tokenizer);
    let mut optimizer = AdamW::new(model).weight_decay(0.01);
    let (mut tokens, mut places) = (0, 0);
    // Of both ways: wall time and processor time, the first step left out.
    let mut sums = [[0.0; 2]; 2];
    for (number, examples) in examples.chunks(batch).enumerate() {
        let inputs = collator.collate(examples, BatchKey::new(0, (number * batch) as u64))?;
        for (unpadded, sums) in [false, true].into_iter().zip(&mut sums) {
            let context = Context::train(42, number as u64).unpadded(unpadded);
            let took = step(model, &mut optimizer, &inputs, &context)?;
            if number > 0 {
                for (sum, key) in sums.iter_mut().zip(["wall_s", "cpu_s"]) {
                    *sum += took[key].as_f64().unwrap_or(f64::NAN);
                }
            }
        }
        if number > 0 {
            tokens += inputs.attention_mask.iter().sum::<u32>() as usize;
            places += inputs.attention_mask.len();
        }
    }
    let [padded, unpadded] = sums;
    let line = serde_json::json!({
        "bench": "families", "eli5": true, "batch": batch, "seq": seq, "tokens": tokens, "places": places,
        "padded_wall_s": padded[0], "padded_cpu_s": padded[1],
        "unpadded_wall_s": unpadded[0], "unpadded_cpu_s": unpadded[1],
    });
    println!("{line}");
    Ok(())
}

/// A number that looks random.
fn mixed(i: usize) -> usize {
    let mut x = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (x >> 33) as usize
}

/// Tokens of which 15% are masked and count; the peers make the same.
fn masked(batch: usize, seq: usize, vocab: usize) -> Result<ModelInputs> {
    let mut ids: Vec<u32> = (0..batch * seq)
        .map(|i| (5 + mixed(i) % (vocab - 5)) as u32)
        .collect();
    let mut labels = vec![-100; ids.len()];
    for (i, (id, label)) in ids.iter_mut().zip(&mut labels).enumerate() {
        if mixed(i + (1 << 32)) % 100 < 15 {
            *label = i64::from(std::mem::replace(id, 4));
        }
    }
    ModelInputs::new(ids, (batch, seq))?.with_labels(labels)
}

/// An entity for every sixteen tokens, mentioned by two of them; the model is asked for every fourth.
fn with_entities(inputs: ModelInputs) -> Result<ModelInputs> {
    let (batch, seq) = inputs.shape();
    let count = (seq / 16).max(1);
    let (mut ids, mut labels) = (Vec::new(), Vec::new());
    let mut places = vec![-1; batch * count * 30];
    for (i, places) in places.chunks_mut(30).enumerate() {
        let id = (4 + mixed(i) % 900) as i64;
        let counts = i % 4 == 0;
        ids.push(if counts { 2 } else { id });
        labels.push(if counts { id } else { -100 });
        let first = (16 * (i % count)) as i64;
        places[..2].copy_from_slice(&[first, first + 1]);
    }
    let shape = [batch, count];
    let ones = Column::ids(vec![1; batch * count], shape)?;
    Ok(inputs
        .with_column("entity_ids", Column::ids(ids, shape)?)
        .with_column("entity_labels", Column::ids(labels, shape)?)
        .with_column("entity_attention_mask", ones)
        .with_column(
            "entity_position_ids",
            Column::ids(places, [batch, count, 30])?,
        ))
}

/// Sound, and twenty letters for each.
fn heard(batch: usize, samples: usize, vocab: usize) -> Result<ModelInputs> {
    let sound = (0..batch * samples).map(|i| mixed(i) as f32 / (1u64 << 30) as f32 - 1.0);
    let letters = (0..batch * 20).map(|i| (1 + mixed(i) % (vocab - 1)) as i64);
    let letters = Column::ids(letters.collect(), [batch, 20])?;
    let inputs = ModelInputs::from_waveforms(sound.collect(), (batch, samples))?;
    Ok(inputs.with_column("labels", letters))
}
