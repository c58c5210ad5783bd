//! What one rank does in each case.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use cloze::collate::{BatchKey, Collator, Example, MlmBatch};
use cloze::distributed::{Group, Launch};
use cloze::model::{Config, MaskedLm};
use cloze::train::{Callback, Control, Event, IntervalStrategy, Trainer, TrainingArguments};
use cloze::{Error, Result};
use serde_json::json;

/// The variable that says what this process is to do.
pub const ROLE: &str = "CLOZE_TEST_ROLE";
/// The variable that names the folder to do it in.
pub const OUT: &str = "CLOZE_TEST_OUT";

const VOCAB: u32 = 200;
const ROWS: u32 = 101;
const BATCH: usize = 2;
/// Batches in a step, all ranks together.
pub const PER_STEP: usize = 12;
/// Steps of a run: four epochs of 51 batches, 12 a step, the last step of each of 3.
pub const STEPS: usize = 20;

/// Does it.
pub fn play(role: &str) -> ExitCode {
    let out = PathBuf::from(std::env::var_os(OUT).unwrap());
    match act(role, &out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn act(role: &str, out: &Path) -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let number = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok());
    if role == "stream" {
        return crate::stream::train(out);
    }
    let group = Group::current()?;
    std::fs::write(
        out.join(format!("pid-{}", group.rank())),
        std::process::id().to_string(),
    )
    .unwrap();
    match role {
        "facts" => {
            println!("{group:?} local {}", group.local_rank());
            Ok(())
        }
        "train" => {
            let mut trainer = trainer(1 + group.rank() as u64, arguments(out));
            let recorder = Recorder::new(out, &group, number("STOP_AT"), trainer.model());
            trainer = trainer.callback(recorder);
            match variable("RESUME") {
                Some(_) => trainer.resume_from_latest_checkpoint()?,
                None => trainer.train()?,
            };
            Ok(())
        }
        "long" => {
            let arguments = arguments(out).epochs(400).save_steps(2).save_total_limit(3);
            let mut trainer = trainer(1, arguments);
            let recorder = Recorder::new(out, &group, number("STOP_AT"), trainer.model());
            trainer = trainer.callback(recorder);
            let history = match variable("RESUME") {
                Some(_) => trainer.resume_from_latest_checkpoint()?,
                None => trainer.train()?,
            };
            println!("stopped after {} steps", history.step());
            Ok(())
        }
        "evaluate" => {
            let model = model(1);
            let mut trainer = Trainer::new(
                model,
                arguments(out),
                (rows(ROWS), rows(57)),
                Rows { empty: true },
            );
            let metrics = trainer.evaluate()?;
            let predicted = trainer.predict(rows(57))?;
            let tokens: Vec<_> = (predicted.tokens.iter())
                .map(|t| {
                    (
                        t.example,
                        t.position,
                        t.label,
                        t.predicted,
                        t.loss.to_bits(),
                    )
                })
                .collect();
            write_line(
                out,
                group.rank(),
                &json!({
                    "loss": metrics.loss.to_bits(), "counted": metrics.counted,
                    "samples": metrics.samples, "tokens": tokens,
                    "predicted": predicted.metrics.samples,
                }),
            );
            Ok(())
        }
        "exchange" => exchange(&group),
        "hidden" => hidden(out, &group),
        "tied" => {
            let arguments = arguments(out).max_steps(6);
            let model = larger_model()?;
            let recorder = Recorder::new(out, &group, None, &model);
            let collator = Rows { empty: true };
            let trainer = Trainer::new(model, arguments, rows(ROWS), collator);
            trainer.callback(recorder).train().map(drop)
        }
        // As from a cell: a program that is no rank starts two.
        "launch" => {
            let me = std::env::current_exe().unwrap();
            let mut command = Launch::new(2, me).command()?;
            let status = command.env(ROLE, "facts").status().unwrap();
            let missing = Launch::new(2, "/nowhere/program").run().unwrap_err();
            println!("{status}; {missing}");
            Ok(())
        }
        "map" => map(out, &group),
        // Faults, of which one rank alone knows.
        "panic" | "nan" | "callback" | "leave" | "full" | "data" => fault(role, out, &group),
        other => panic!("there is no role {other:?}"),
    }
}

/// A model of 4 million parameters, half of them in the tied table.
fn larger_model() -> Result<MaskedLm> {
    let config = Config::new("roberta")
        .set("vocab_size", 8000)
        .set("hidden_size", 256)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 1024);
    MaskedLm::from_config(&config, 1)
}

/// Trains with exchanges beside the backward pass, and tells how long a step's exchanges took and how much of that was still to
/// be waited for.
fn hidden(out: &Path, group: &Arc<Group>) -> Result<()> {
    let times = Arc::new(Mutex::new(Vec::new()));
    let (noted, by) = (Arc::clone(&times), Arc::clone(group));
    let arguments = arguments(out)
        .overlap_exchange(true)
        .per_device_train_batch_size(16)
        .global_batch_size(16 * group.size())
        .max_steps(12);
    let rows = rows(64 * group.size() as u32);
    let mut trainer = Trainer::new(larger_model()?, arguments, rows, Rows { empty: false })
        .callback(move |event: &Event| {
            if let Event::StepEnd { step, .. } = event {
                let now = (step.seconds, by.exchange_seconds(), by.waited_seconds());
                noted.lock().unwrap().push(now);
            }
            Ok(Control::Continue)
        });
    trainer.train()?;
    // The first step learns the order, the second one is the first with it.
    let times = times.lock().unwrap();
    let (first, last, steps) = (times[1], times[times.len() - 1], times.len() - 2);
    let seconds: f64 = times[2..].iter().map(|(seconds, ..)| seconds).sum();
    let each = |all: f64| all / steps as f64;
    if group.rank() == 0 {
        let (exchange, wait) = (each(last.1 - first.1), each(last.2 - first.2));
        println!("hidden {} {exchange} {wait}", each(seconds));
    }
    Ok(())
}

/// Adds up the gradients of a model of 4 million parameters, by turns with nothing but the calls for as many numbers.
fn exchange(group: &Group) -> Result<()> {
    let model = larger_model()?;
    let params = model.params();
    for param in params {
        param.add_grad(&param.tensor().detach().force_contiguous()?)?;
    }
    let count: usize = params.iter().map(|param| param.elem_count()).sum();
    let mut flat = vec![1.0f32; count];
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..9 {
        group.vote("a start", Ok(()))?;
        let started = Instant::now();
        cloze::train::sum_gradients(group, params)?;
        ours.push(started.elapsed().as_secs_f64());
        group.vote("a start", Ok(()))?;
        let started = Instant::now();
        // The same calls: each large parameter by itself, all small ones together.
        let mut rest = flat.as_mut_slice();
        for len in params.iter().map(|param| param.elem_count()) {
            if len >= 1 << 16 {
                let (piece, others) = rest.split_at_mut(len);
                group.reduce_scatter(piece)?;
                group.all_gather(piece)?;
                rest = others;
            }
        }
        group.reduce_scatter(rest)?;
        group.all_gather(rest)?;
        bare.push(started.elapsed().as_secs_f64());
    }
    let median = |times: &mut Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    if group.rank() == 0 {
        println!(
            "exchange {count} {} {}",
            median(&mut ours),
            median(&mut bare)
        );
    }
    Ok(())
}

/// Maps 10,000 rows, each rank its part, and tells how many it did and what came out.
fn map(out: &Path, group: &Group) -> Result<()> {
    use cloze::dataset::{Batch, Dataset, Map};
    static CALLED: AtomicUsize = AtomicUsize::new(0);
    let texts: Vec<String> = (0..10_007).map(|i| format!("text {i}")).collect();
    let data = Dataset::builder().column("text", texts).build()?;
    let double = |batch: &Batch| {
        CALLED.fetch_add(batch.len(), Ordering::Relaxed);
        let texts = batch.strings("text")?;
        let doubled: Vec<String> = texts.iter().map(|text| format!("{text}{text}")).collect();
        Batch::new().with_column("doubled", doubled)
    };
    let map = Map::new(double)
        .fingerprint("doubled")
        .batched()
        .num_proc(2)
        .by_ranks();
    let mapped = data.map(map)?;
    let digest = blake3::hash(format!("{:?}", mapped.row(9_999)?).as_bytes());
    let line = json!({
        "rows": mapped.len(), "columns": mapped.column_names(), "called": CALLED.load(Ordering::Relaxed),
        "row": digest.to_hex().as_str(), "fingerprint": mapped.fingerprint(),
    });
    write_line(out, group.rank(), &line);
    Ok(())
}

fn fault(role: &str, out: &Path, group: &Group) -> Result<()> {
    let model = model(1);
    let mut arguments = arguments(out);
    let kind = role.to_owned();
    let faulty = group.rank() == 1;
    if role == "leave" && faulty {
        return Ok(());
    }
    if role == "full" && group.rank() == 0 {
        limit_files();
    }
    if role == "full" {
        arguments = arguments.save_steps(3);
    }
    let broken = model.clone();
    let rows = rows(if role == "data" && faulty {
        ROWS - 2
    } else {
        ROWS
    });
    let mut trainer = Trainer::new(model, arguments, rows, Rows { empty: true });
    trainer = trainer.callback(move |event: &Event| {
        let Event::StepEnd { step, .. } = event else {
            return Ok(Control::Continue);
        };
        match kind.as_str() {
            "panic" if faulty && step.step == 3 => panic!("a test's panic"),
            "callback" if faulty && step.step == 3 => {
                Err(Error::Dataset("a test's error".to_owned()))
            }
            "nan" if faulty && step.step == 3 => {
                let param = &broken.params()[0];
                let spoilt = (param.tensor().detach() * f64::NAN).unwrap();
                param.set(&spoilt).unwrap();
                Ok(Control::Continue)
            }
            _ => Ok(Control::Continue),
        }
    });
    let result = trainer.train();
    if let Err(error) = &result {
        println!("rank {} got: {error}", group.rank());
    }
    result.map(drop)
}

/// Lets this process write no file longer than a page: what a full disk comes to.
fn limit_files() {
    // SAFETY: both calls change only this process's own settings.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        let limit = libc::rlimit {
            rlim_cur: 4096,
            rlim_max: 4096,
        };
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
}

pub fn arguments(out: &Path) -> TrainingArguments {
    TrainingArguments::new(out.join("checkpoints"))
        .per_device_train_batch_size(BATCH)
        .per_device_eval_batch_size(5)
        .global_batch_size(BATCH * PER_STEP)
        .epochs(4)
        .learning_rate(1e-3)
        .weight_decay(0.1)
        .warmup_steps(3)
        .max_grad_norm(0.8)
        .logging_steps(5)
        .save_steps(1000)
        .save_strategy(IntervalStrategy::Steps)
        .shard_optimizer(std::env::var_os("SHARD").is_some())
        .overlap_exchange(std::env::var_os("OVERLAP").is_some())
}

/// Each rank begins with weights of its own: those of the first are taken.
fn trainer(seed: u64, arguments: TrainingArguments) -> Trainer {
    Trainer::new(model(seed), arguments, rows(ROWS), Rows { empty: true })
}

/// Dropout is on.
pub fn model(seed: u64) -> MaskedLm {
    let config = Config::new("roberta")
        .set("vocab_size", VOCAB)
        .set("hidden_size", 64)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 4)
        .set("intermediate_size", 128)
        .set("hidden_dropout_prob", 0.1)
        .set("attention_probs_dropout_prob", 0.1);
    MaskedLm::from_config(&config, seed).unwrap()
}

pub fn rows(count: u32) -> Vec<Example> {
    let row = |i: u32| {
        let length = 5 + i % 9;
        let id = |t: u32| 5 + (i * 131 + t * 29 + i * t) % (VOCAB - 5);
        Example::from((0..length).map(id).collect::<Vec<u32>>())
    };
    (0..count).map(row).collect()
}

/// Pads, and masks every third token or so; some batches get no mask at all.
struct Rows {
    empty: bool,
}

impl Collator for Rows {
    fn collate(&self, examples: &[Example], key: BatchKey) -> Result<MlmBatch> {
        let batch = key.position as usize / BATCH;
        // In the third step those of rank 1 of 3, in the fourth those of the odd ranks of 2 and 4.
        let unmasked = match batch / PER_STEP {
            2 => batch % 3 == 1,
            3 => batch % 2 == 1,
            _ => false,
        };
        let longest = examples.iter().map(|e| e.input_ids.len()).max().unwrap();
        let (mut ids, mut labels, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            for t in 0..longest {
                let id = example.input_ids.get(t).copied();
                ids.push(id.unwrap_or(1));
                mask.push(u32::from(id.is_some()));
                let picked = (t + row + batch + key.epoch as usize).is_multiple_of(3);
                labels.push(match id {
                    Some(id) if picked && !(self.empty && unmasked) => i64::from(id),
                    _ => -100,
                });
            }
        }
        MlmBatch::new(ids, (examples.len(), longest))?
            .with_attention_mask(mask)?
            .with_labels(labels)
    }
}

pub fn write_line(out: &Path, rank: usize, line: &serde_json::Value) {
    let path = out.join(format!("rank-{rank}.jsonl"));
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path);
    writeln!(file.unwrap(), "{line}").unwrap();
}

/// Writes down every step, with a digest of the weights after it.
struct Recorder {
    out: PathBuf,
    rank: usize,
    stop_at: Option<usize>,
    model: MaskedLm,
}

impl Recorder {
    fn new(out: &Path, group: &Group, stop_at: Option<usize>, model: &MaskedLm) -> Self {
        Self {
            out: out.to_path_buf(),
            rank: group.rank(),
            stop_at,
            model: model.clone(),
        }
    }
}

impl Callback for Recorder {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        let Event::StepEnd { step, .. } = event else {
            return Ok(Control::Continue);
        };
        let digest = digest(&self.model);
        write_line(
            &self.out,
            self.rank,
            &json!({
                "step": step.step, "loss": step.loss, "bits": step.loss.to_bits(),
                "norm": step.grad_norm.to_bits(), "counted": step.counted, "tokens": step.tokens,
                "weights": digest,
                "bytes": Group::current()?.bytes_received(),
            }),
        );
        // One rank is interrupted: not the first, where there are several.
        if self.stop_at == Some(step.step) && self.rank + 1 == Group::current()?.size() {
            cloze::interrupt::request();
        }
        Ok(Control::Continue)
    }
}

/// The bits of all weights, in one number.
pub fn digest(model: &MaskedLm) -> String {
    let mut hasher = blake3::Hasher::new();
    for param in model.params() {
        let values: Vec<f32> = param.tensor().flatten_all().unwrap().to_vec1().unwrap();
        values.iter().for_each(|value| {
            hasher.update(&value.to_le_bytes());
        });
    }
    hasher.finalize().to_hex().to_string()
}
