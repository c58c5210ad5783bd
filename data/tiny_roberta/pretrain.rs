//! How the small model in this folder is made, from the text that `gather.py` leaves in a folder:
//!
//! ```text
//! cargo run --release --example pretrain -- tokenizer TEXT_FOLDER RUN_FOLDER
//! cargo run --release --example pretrain -- train TEXT_FOLDER RUN_FOLDER --steps 40000
//! cargo run --release --example pretrain -- decay TEXT_FOLDER RUN_FOLDER --steps 8000
//! cargo run --release --example pretrain -- again TEXT_FOLDER RUN_FOLDER --steps 14000     # if there is time left
//! cargo run --release --example pretrain -- export TEXT_FOLDER RUN_FOLDER
//! ```
//!
//! `train` warms up and then keeps its learning rate, so that its end can be moved; `decay` branches off its latest
//! checkpoint and brings the rate down to 0 on a mixture with more of the encyclopedic text; `again` warms the result of
//! `decay` up once more and brings the rate down a second time. Each goes on from its last checkpoint when it was stopped.
//! `export` writes the model of the last phase to `RUN_FOLDER/model`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloze::prelude::*;
use cloze::train::latest_checkpoint;

const USAGE: &str =
    "usage: pretrain tokenizer|train|decay|again|export TEXT_FOLDER RUN_FOLDER [--NAME VALUE]...";

/// In the order in which one goes on from another.
const PHASES: [&str; 3] = ["train", "decay", "again"];

/// The settings, each a flag of the command line.
struct Settings {
    vocab_size: usize,
    hidden_size: usize,
    layers: usize,
    block_size: usize,
    batch_size: usize,
    learning_rate: f64,
    warmup: usize,
    steps: usize,
    mlm_probability: f64,
    weight_decay: f64,
    initializer_range: f64,
    /// How often the encyclopedic part of the text is seen for each time that the rest is.
    facts: usize,
    /// Blocks that are evaluated on.
    eval_blocks: usize,
    eval_steps: usize,
    save_steps: usize,
    /// Ends the run, with a checkpoint, after so many minutes.
    minutes: f64,
    /// Starts from these weights instead of random ones, or of the latest checkpoint of the phase before.
    from: PathBuf,
}

impl Settings {
    fn new(phase: &str) -> Self {
        let decay = phase != "train";
        Self {
            vocab_size: 11_008,
            hidden_size: 256,
            layers: 4,
            block_size: 128,
            batch_size: 16,
            learning_rate: if phase == "again" { 1e-3 } else { 1.5e-3 },
            warmup: match phase {
                "train" => 300,
                "decay" => 20,
                _ => 100,
            },
            steps: if decay { 8000 } else { 40_000 },
            mlm_probability: if decay { 0.2 } else { 0.25 },
            weight_decay: 0.05,
            initializer_range: 0.04,
            facts: if decay { 4 } else { 3 },
            eval_blocks: 300,
            eval_steps: 500,
            save_steps: 250,
            minutes: f64::INFINITY,
            from: PathBuf::new(),
        }
    }

    fn read(mut self, flags: &[String]) -> Result<Self> {
        for pair in flags.chunks(2) {
            let wrong = || {
                Error::argument(
                    "flags",
                    format!("{} is unknown or lacks its number; {USAGE}", pair[0]),
                )
            };
            let value = pair.get(1).ok_or_else(wrong)?;
            let number = || value.parse::<f64>().map_err(|_| wrong());
            let count = || value.parse::<usize>().map_err(|_| wrong());
            match pair[0].as_str() {
                "--vocab-size" => self.vocab_size = count()?,
                "--hidden-size" => self.hidden_size = count()?,
                "--layers" => self.layers = count()?,
                "--block-size" => self.block_size = count()?,
                "--batch-size" => self.batch_size = count()?,
                "--learning-rate" => self.learning_rate = number()?,
                "--warmup" => self.warmup = count()?,
                "--steps" => self.steps = count()?,
                "--mlm-probability" => self.mlm_probability = number()?,
                "--weight-decay" => self.weight_decay = number()?,
                "--initializer-range" => self.initializer_range = number()?,
                "--facts" => self.facts = count()?,
                "--eval-blocks" => self.eval_blocks = count()?,
                "--eval-steps" => self.eval_steps = count()?,
                "--save-steps" => self.save_steps = count()?,
                "--minutes" => self.minutes = number()?,
                "--from" => self.from = value.into(),
                _ => return Err(wrong()),
            }
        }
        Ok(self)
    }

    fn config(&self, vocab_size: usize) -> Config {
        Config::new("roberta")
            .set("vocab_size", vocab_size)
            .set("hidden_size", self.hidden_size)
            .set("num_hidden_layers", self.layers)
            .set("num_attention_heads", self.hidden_size / 64)
            .set("intermediate_size", 4 * self.hidden_size)
            .set("max_position_embeddings", 128 + 2)
            .set("type_vocab_size", 1)
            .set("layer_norm_eps", 1e-5)
            .set("initializer_range", self.initializer_range)
            .set("hidden_dropout_prob", 0.0)
            .set("attention_probs_dropout_prob", 0.0)
            .set("bos_token_id", 0)
            .set("pad_token_id", 1)
            .set("eos_token_id", 2)
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [verb, text, run, flags @ ..] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let (text, run) = (Path::new(text), Path::new(run));
    let settings = Settings::new(verb).read(flags)?;
    match verb.as_str() {
        "tokenizer" => tokenizer(&settings, text, run),
        "train" | "decay" | "again" => train(verb, &settings, text, run),
        "export" => export(run),
        other => Err(Error::argument(
            "arguments",
            format!("there is no {other}; {USAGE}"),
        )),
    }
}

/// A byte-level BPE tokenizer of the encyclopedic part and every fourth document of the rest.
fn tokenizer(settings: &Settings, text: &Path, run: &Path) -> Result<()> {
    let read = |name: &str| {
        let path = text.join(name);
        std::fs::read_to_string(&path).map_err(|e| Error::io("read", path, e))
    };
    let (all, facts) = (read("train.txt")?, read("train_facts.txt")?);
    let texts = all.lines().step_by(4).chain(facts.lines());
    let tokenizer = Tokenizer::train_bpe(texts.map(str::to_owned), settings.vocab_size)?;
    tokenizer.save_pretrained(run.join("tokenizer"))?;
    println!("{tokenizer:?}");
    Ok(())
}

/// Blocks of one text file, kept on disk.
fn blocks(
    name: &str,
    settings: &Settings,
    tokenizer: &Tokenizer,
    text: &Path,
    run: &Path,
) -> Result<Dataset> {
    let kept = run.join(format!("blocks_{name}_{}", settings.block_size));
    if !kept.exists() {
        let path = text.join(format!("{name}.txt"));
        let documents = load_dataset(path.to_string_lossy().as_ref())?.split("train")?;
        let columns = documents.column_names();
        let tokenize = Map::new(tokenizer.tokenize_column("text"))
            .batched()
            .remove_columns(columns);
        documents
            .map(tokenize)?
            .group_texts(settings.block_size)?
            .save_to_disk(&kept)?;
    }
    Dataset::load_from_disk(&kept)
}

fn train(phase: &str, settings: &Settings, text: &Path, run: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_pretrained(&run.join("tokenizer").to_string_lossy())?;
    let all = blocks("train", settings, &tokenizer, text, run)?;
    let facts = blocks("train_facts", settings, &tokenizer, text, run)?;
    let held_out = blocks("heldout", settings, &tokenizer, text, run)?;
    let held_out = held_out.select(&Vec::from_iter(0..settings.eval_blocks.min(held_out.len())))?;
    // All the text holds its facts once.
    let mixture: Vec<Dataset> = std::iter::once(all.clone())
        .chain(std::iter::repeat_n(facts, settings.facts.saturating_sub(1)))
        .collect();
    let mixture = concatenate(&mixture)?;

    let before = PHASES.iter().position(|&name| name == phase).unwrap_or(0);
    let from = match before.checked_sub(1) {
        _ if !settings.from.as_os_str().is_empty() => Some(settings.from.clone()),
        Some(before) => Some(latest_checkpoint(run.join(PHASES[before]))?),
        None => None,
    };
    let model = match &from {
        Some(folder) => MaskedLm::from_pretrained(folder.to_string_lossy())?,
        None => {
            let model = MaskedLm::from_config(&settings.config(tokenizer.len()), 42)?;
            start_from_counts(&model, &all, settings.initializer_range)?;
            model
        }
    };
    println!(
        "{model:?}, {} blocks of {}",
        mixture.len(),
        settings.block_size
    );

    let output = run.join(phase);
    let arguments = TrainingArguments::new(&output)
        .learning_rate(settings.learning_rate)
        .lr_scheduler_type(match phase {
            "train" => SchedulerType::ConstantWithWarmup,
            _ => SchedulerType::Linear,
        })
        .max_steps(settings.steps)
        .per_device_train_batch_size(settings.batch_size)
        .per_device_eval_batch_size(25)
        .warmup_steps(settings.warmup)
        .weight_decay(settings.weight_decay)
        .adam_beta2(0.98)
        .adam_epsilon(1e-6)
        .bf16(true)
        .logging_steps(50)
        .eval_strategy(IntervalStrategy::Steps)
        .eval_steps(settings.eval_steps)
        .save_steps(settings.save_steps)
        .save_total_limit(2);
    let limit = Duration::try_from_secs_f64(60.0 * settings.minutes).unwrap_or(Duration::MAX);
    let started = Instant::now();
    let mut trainer = Trainer::new(
        model,
        arguments,
        (mixture, held_out),
        MaskingCollator::new(&tokenizer).mlm_probability(settings.mlm_probability),
    )
    .callback(move |event: &Event| {
        match event {
            Event::Log { state, log } => println!(
                "step {} loss {:.4} lr {:.2e} norm {:.2} seconds {:.0}",
                log.step,
                log.loss,
                log.learning_rate,
                log.grad_norm,
                state.elapsed.as_secs_f64()
            ),
            Event::Evaluate { state, metrics } => {
                println!("evaluation {} loss {:.4}", state.step, metrics.loss);
            }
            Event::TrainBegin { state, .. } => println!("begins at step {}", state.step),
            Event::StepEnd { .. } if started.elapsed() > limit => return Ok(Control::Stop),
            _ => {}
        }
        Ok(Control::Continue)
    });
    // A folder without a checkpoint is a run that was stopped before its first.
    let history = match latest_checkpoint(&output) {
        Ok(checkpoint) => trainer.resume_from_checkpoint(checkpoint)?,
        Err(_) => trainer.train()?,
    };
    let plot = run.join(format!("{phase}.svg"));
    std::fs::write(&plot, history.plot().to_svg()).map_err(|e| Error::io("write", plot, e))?;
    println!("{history:?}, {:.0} tokens/s", history.tokens_per_second());
    Ok(())
}

/// Gives the random `model` what can be counted, so that no training is spent on it: the frequencies of tokens as the
/// output's bias, embeddings from what stands near what, and positions as waves.
fn start_from_counts(model: &MaskedLm, blocks: &Dataset, std: f64) -> Result<()> {
    let texts: Vec<Vec<u32>> = blocks.column("input_ids")?;
    let vocab = model.vocab_size();
    let width = model
        .param("lm_head.dense.bias")
        .map_or(0, |param| param.elem_count());
    let mut counts = vec![1.0_f64; vocab];
    for &token in texts.iter().flatten() {
        counts[token as usize] += 1.0;
    }
    let total: f64 = counts.iter().sum();
    set(
        model,
        "lm_head.bias",
        counts.iter().map(|count| (count / total).ln() as f32),
    )?;
    set(
        model,
        "roberta.embeddings.word_embeddings.weight",
        word_vectors(&texts, vocab, width, std)?,
    )?;
    // The head begins in the space of the embeddings that it is compared with.
    let identity = |i: usize| if i / width == i % width { 1.0 } else { 0.0 };
    set(
        model,
        "lm_head.dense.weight",
        (0..width * width).map(identity),
    )?;
    // As in Vaswani et al. 2017, with shorter waves for shorter texts: attention to a neighbour is then one and the same
    // linear map for all positions, and is found much sooner.
    let wave = |i: usize| {
        let (position, column) = ((i / width) as f64, i % width);
        let angle = position * 100_f64.powf(-((column / 2 * 2) as f64) / width as f64);
        let value = if column.is_multiple_of(2) {
            angle.sin()
        } else {
            angle.cos()
        };
        (value * std * std::f64::consts::SQRT_2) as f32
    };
    let name = "roberta.embeddings.position_embeddings.weight";
    let elements = model.param(name).map_or(0, |param| param.elem_count());
    set(model, name, (0..elements).map(wave))
}

fn set(model: &MaskedLm, name: &str, values: impl IntoIterator<Item = f32>) -> Result<()> {
    let param = model
        .param(name)
        .ok_or_else(|| Error::argument("model", format!("it has no {name}")))?;
    let values: Vec<f32> = values.into_iter().collect();
    Ok(param
        .var()
        .set(&Tensor::from_vec(values, param.shape(), &Device::Cpu)?)?)
}

/// Vectors whose products tell how much more often than by chance two tokens stand near each other: the leading
/// eigenvectors of their positive pointwise mutual information (Levy & Goldberg 2014), all of the same length.
fn word_vectors(texts: &[Vec<u32>], vocab: usize, width: usize, std: f64) -> Result<Vec<f32>> {
    const WINDOW: usize = 5;
    let mut near = vec![0_f32; vocab * vocab];
    for text in texts.iter().step_by(2) {
        for (i, &a) in text.iter().enumerate() {
            for (distance, &b) in (1..=WINDOW).zip(&text[i + 1..]) {
                let weight = 1.0 / distance as f32;
                near[a as usize * vocab + b as usize] += weight;
                near[b as usize * vocab + a as usize] += weight;
            }
        }
    }
    let sums: Vec<f32> = near
        .chunks(vocab)
        .map(|row| row.iter().sum::<f32>() + 1.0)
        .collect();
    let total: f32 = sums.iter().sum();
    for (row, &of_row) in near.chunks_mut(vocab).zip(&sums) {
        for (value, &of_column) in row.iter_mut().zip(&sums) {
            *value = (*value * total / (of_row * of_column)).max(1.0).ln();
        }
    }
    let information = Tensor::from_vec(near, (vocab, vocab), &Device::Cpu)?;
    // Orthogonal iteration; the columns are kept as rows.
    let mut columns: Vec<Vec<f32>> =
        Tensor::randn(0_f32, 1.0, (width, vocab), &Device::Cpu)?.to_vec2()?;
    for _ in 0..8 {
        let stacked = Tensor::new(columns, &Device::Cpu)?;
        columns = stacked.matmul(&information)?.to_vec2()?;
        orthonormalize(&mut columns);
    }
    let stacked = Tensor::new(columns.clone(), &Device::Cpu)?;
    let images: Vec<Vec<f32>> = stacked.matmul(&information)?.to_vec2()?;
    let mut vectors = vec![0_f32; vocab * width];
    for (j, (column, image)) in columns.iter().zip(&images).enumerate() {
        let strength = dot(column, image).abs().sqrt();
        for (i, value) in column.iter().enumerate() {
            vectors[i * width + j] = value * strength;
        }
    }
    let length = (std * (width as f64).sqrt()) as f32;
    for vector in vectors.chunks_mut(width) {
        let scale = length / dot(vector, vector).sqrt().max(1e-6);
        vector.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(vectors)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gram and Schmidt's way.
fn orthonormalize(vectors: &mut [Vec<f32>]) {
    for i in 0..vectors.len() {
        let (done, rest) = vectors.split_at_mut(i);
        let vector = &mut rest[0];
        for other in done.iter() {
            let part = dot(vector, other);
            vector
                .iter_mut()
                .zip(other)
                .for_each(|(value, other)| *value -= part * other);
        }
        let length = dot(vector, vector).sqrt().max(1e-12);
        vector.iter_mut().for_each(|value| *value /= length);
    }
}

/// The phases that this run has gone through.
fn phases(run: &Path) -> impl Iterator<Item = PathBuf> {
    PHASES
        .map(|phase| run.join(phase))
        .into_iter()
        .filter(|folder| folder.exists())
}

/// The losses and learning rates of all phases, one behind the other.
fn curve(run: &Path) -> Result<LossPlot> {
    let (mut train, mut eval, mut rate, mut start) = (vec![], vec![], vec![], 0);
    for phase in phases(run) {
        let path = latest_checkpoint(phase)?.join("trainer_state.json");
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let state: serde_json::Value = serde_json::from_str(&text)
            .map_err(|e| Error::argument("run", format!("{}: {e}", path.display())))?;
        let entries = state["log_history"].as_array().map_or(&[][..], |all| all);
        let mut end = start;
        for entry in entries {
            let step = start + entry["step"].as_u64().unwrap_or(0) as usize;
            let to = [
                ("loss", &mut train),
                ("eval_loss", &mut eval),
                ("learning_rate", &mut rate),
            ];
            for (name, points) in to {
                points.extend(entry[name].as_f64().map(|value| (step, value)));
            }
            end = step;
        }
        start = end;
    }
    Ok(LossPlot::new().train(train).eval(eval).learning_rate(rate))
}

/// The model of the latest checkpoint, with its tokenizer, in half precision, and the curve of its training.
fn export(run: &Path) -> Result<()> {
    let last = phases(run).last().unwrap_or_else(|| run.join("train"));
    let model = MaskedLm::from_pretrained(latest_checkpoint(last)?.to_string_lossy())?;
    let output = run.join("model");
    model.save_pretrained_as(&output, DType::F16)?;
    Tokenizer::from_pretrained(&run.join("tokenizer").to_string_lossy())?
        .save_pretrained(&output)?;
    // Fine-tuning regularizes as usual, whatever pretraining did.
    let config = Config::from_folder(&output)?
        .set("hidden_dropout_prob", 0.1)
        .set("attention_probs_dropout_prob", 0.1);
    let write = |name: &str, text: String| {
        let path = output.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io("write", path, e))
    };
    write("config.json", config.to_json()?)?;
    write("curve.svg", curve(run)?.to_svg())
}
