//! One training step of a DistilRoBERTa-sized model (82M parameters, random weights): forward, backward, clipping, AdamW.
//!
//! `cargo bench --bench train_step -- --batch 8 --seq 128 --steps 8 --dtype f32 --device cpu` prints one JSON line.
//! `--device cuda` measures the first GPU (build with `--features cuda`), `--dtype` is f32, tf32, bf16 or f16, and
//! `--checkpointing` runs the blocks once more in the backward pass instead of keeping their parts. `--round N` waits for the
//! device after every N steps only, as a trainer does that reads its losses seldom. `--max-rss-mib N` makes the run fail when
//! it needed more memory than that. `peer_train_step.py` is the PyTorch peer.

mod support;

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use cloze::model::{Context, MaskedLm, ModelInputs};
use cloze::ops::{self, DeviceExt, Precision, autocast};
use cloze::train::{AdamW, GradScaler, Schedule, peak_flops};
use cloze::{Error, Result};
use support::{Arguments, distilroberta, median, peak_rss_mib};

/// Steps that warm up caches and allocators and are not timed, as in the peer.
const WARMUP: usize = 2;
const MASK: u32 = 50264;

fn main() -> Result<()> {
    let names = [
        "batch",
        "seq",
        "steps",
        "round",
        "device",
        "dtype",
        "max-rss-mib",
    ];
    let arguments = Arguments::read(&names, &["checkpointing"])?;
    let (batch, seq) = (arguments.get("batch", 8)?, arguments.get("seq", 128)?);
    let device_name = arguments.get("device", "cpu".to_owned())?;
    let dtype = arguments.get("dtype", "f32".to_owned())?;
    let checkpointing = arguments.flag("checkpointing");
    let max_rss_mib: Option<f64> = arguments.find("max-rss-mib")?;
    let device = match device_name.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::gpu(0)?,
        other => return Err(unknown("device", other, "cpu or cuda")),
    };
    let round: usize = arguments
        .get("round", if device.is_cpu() { 1 } else { 10 })?
        .max(1);
    let steps: usize = arguments.get("steps", 8)?;
    let steps = steps.max(1).next_multiple_of(round);
    let precision = match dtype.as_str() {
        "f32" | "tf32" => Precision::F32,
        "bf16" => Precision::Bf16,
        "f16" => Precision::F16,
        other => return Err(unknown("dtype", other, "f32, tf32, bf16 or f16")),
    };
    ops::set_tf32(dtype == "tf32");
    if precision == Precision::F16 && !precision.is_available_on(&device) {
        return Err(unknown("dtype", "f16", "available on this device"));
    }
    if !precision.is_available_on(&device) {
        eprintln!("this device has no unit for bf16; products are f32");
    }
    let model = MaskedLm::from_config_on(&distilroberta(), 0, &device)?;
    let (inputs, counted) = masked_batch(batch, seq)?;
    let mut step = Step {
        optimizer: AdamW::new(&model).weight_decay(0.01),
        scaler: (precision == Precision::F16).then(GradScaler::new),
        schedule: Schedule::constant(2e-5),
        model: &model,
        inputs: &inputs,
        precision,
        checkpointing,
        number: 0,
    };
    for _ in 0..WARMUP {
        step.take()?;
    }
    device.synchronize()?;
    ops::reset_peak_memory(&device);
    let mut times = Vec::with_capacity(steps / round);
    let mut phases: [Vec<f64>; 3] = Default::default();
    let mut loss = None;
    for _ in 0..steps / round {
        let started = Instant::now();
        for _ in 0..round {
            let (sum, parts) = step.take()?;
            loss = Some(sum);
            for (phase, part) in phases.iter_mut().zip(parts) {
                phase.push(part.as_secs_f64());
            }
        }
        device.synchronize()?;
        times.push(started.elapsed().as_secs_f64() / round as f64);
    }
    let loss = loss.map_or(Ok(0.0), |sum| sum.to_scalar::<f32>())? / counted as f32;
    let middle = median(&mut times);
    // A GPU works on after the calls have returned, so that only the whole can be timed there.
    let [forward, backward, update] =
        phases.map(|mut phase| device.is_cpu().then(|| median(&mut phase)));
    let peak_rss = peak_rss_mib();
    let peak_device = ops::device_memory(&device).map(|m| m.peak as f64 / f64::from(1 << 20));
    let flops = model.flops().unwrap_or_default();
    let flops_per_token = flops.of_training(batch * seq, seq, counted) / (batch * seq) as f64;
    let peak = peak_flops(&device, precision);
    let tokens_per_s = (batch * seq) as f64 / middle;
    let line = serde_json::json!({
        "bench": "train_step", "peer": "cloze", "device": device_name, "dtype": dtype,
        "batch": batch, "seq": seq, "steps": steps, "round": round, "checkpointing": checkpointing,
        "threads": rayon::current_num_threads(),
        "median_s": middle, "min_s": times[0], "max_s": times[times.len() - 1],
        "tokens_per_s": tokens_per_s, "flops_per_token": flops_per_token, "peak_flops": peak,
        "mfu": peak.map(|peak| tokens_per_s * flops_per_token / peak),
        "forward_s": forward, "backward_s": backward, "update_s": update, "matmul": ops::matmul_kernel(),
        "peak_rss_mib": peak_rss, "peak_device_mib": peak_device, "loss": loss,
    });
    println!("{line}");
    match (max_rss_mib, peak_rss) {
        (Some(most), Some(peak)) if peak > most => Err(Error::argument(
            "--max-rss-mib",
            format!("{peak:.0} MiB were needed, more than {most:.0}"),
        )),
        _ => Ok(()),
    }
}

/// A training step that can be taken again and again.
struct Step<'a> {
    model: &'a MaskedLm,
    inputs: &'a ModelInputs,
    optimizer: AdamW,
    scaler: Option<GradScaler>,
    schedule: Schedule,
    precision: Precision,
    checkpointing: bool,
    number: usize,
}

impl Step<'_> {
    /// Takes the step; its summed loss, and the time until forward, backward and update had returned.
    fn take(&mut self) -> Result<(Tensor, [Duration; 3])> {
        let started = Instant::now();
        let context =
            Context::train(42, self.number as u64).gradient_checkpointing(self.checkpointing);
        let (loss, forward) = autocast(self.precision, || -> Result<_> {
            let loss = self.model.loss(self.inputs, &context)?;
            let forward = started.elapsed();
            let mean = loss.mean()?;
            self.model.backward(&match &self.scaler {
                Some(scaler) => scaler.scale(&mean)?,
                None => mean,
            })?;
            Ok((loss, forward))
        })?;
        let backward = started.elapsed();
        let lr = self.schedule.lr(self.number);
        let finite = match &mut self.scaler {
            Some(scaler) => {
                scaler.unscale(&mut self.optimizer);
                scaler.update(self.optimizer.clip_grad_norm(1.0)?)
            }
            None => {
                self.optimizer.clip_grad_norm_later(1.0)?;
                true
            }
        };
        if finite {
            self.optimizer.step(lr)?;
        }
        self.optimizer.zero_grad();
        self.number += 1;
        let all = started.elapsed();
        let parts = [forward, backward - forward, all - backward];
        Ok((loss.terms[0].sum.detach(), parts))
    }
}

fn unknown(name: &str, value: &str, known: &str) -> Error {
    Error::argument("arguments", format!("--{name} {value:?} is not {known}"))
}

/// Random tokens, of which 15% are masked and count, and how many do.
fn masked_batch(batch: usize, seq: usize) -> Result<(ModelInputs, usize)> {
    use rand::{Rng, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(0);
    let mut ids: Vec<u32> = (0..batch * seq)
        .map(|_| random.random_range(5..50_000))
        .collect();
    let mut labels = vec![-100; ids.len()];
    for (id, label) in ids.iter_mut().zip(&mut labels) {
        if random.random_bool(0.15) {
            *label = i64::from(std::mem::replace(id, MASK));
        }
    }
    let (count, counted) = (ids.len(), labels.iter().filter(|&&l| l >= 0).count());
    let inputs = ModelInputs::new(ids, (batch, seq))?
        .with_attention_mask(vec![1; count])?
        .with_labels(labels)?;
    Ok((inputs, counted))
}
