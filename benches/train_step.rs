//! One training step of a DistilRoBERTa-sized model (82M parameters, random weights): forward, backward, clipping, AdamW.
//!
//! `cargo bench --bench train_step -- --batch 8 --seq 128 --steps 8 --dtype f32 --device cpu` prints one JSON line.
//! `--max-rss-mib N` makes the run fail when it needed more memory than that. `peer_train_step.py` is the PyTorch peer.

mod support;

use std::time::Instant;

use candle_core::Device;
use cloze::model::{Context, MaskedLm, ModelInputs};
use cloze::ops::{Precision, autocast};
use cloze::train::{AdamW, Schedule};
use cloze::{Error, Result};
use support::{Arguments, distilroberta, median, peak_rss_mib};

/// Steps that warm up caches and allocators and are not timed, as in the peer.
const WARMUP: usize = 2;
const MASK: u32 = 50264;

fn main() -> Result<()> {
    let names = ["batch", "seq", "steps", "device", "dtype", "max-rss-mib"];
    let arguments = Arguments::read(&names, &[])?;
    let (batch, seq) = (arguments.get("batch", 8)?, arguments.get("seq", 128)?);
    let steps = arguments.get("steps", 8)?.max(1);
    let device_name = arguments.get("device", "cpu".to_owned())?;
    let dtype = arguments.get("dtype", "f32".to_owned())?;
    let max_rss_mib: Option<f64> = arguments.find("max-rss-mib")?;
    let device = match device_name.as_str() {
        "cpu" => Device::Cpu,
        "cuda" => Device::new_cuda(0)?,
        other => {
            return Err(Error::argument(
                "--device",
                format!("{other:?} is neither cpu nor cuda"),
            ));
        }
    };
    let precision = match dtype.as_str() {
        "f32" => Precision::F32,
        "bf16" => Precision::Bf16,
        other => {
            let message = format!("--dtype {other:?} is neither f32 nor bf16");
            return Err(Error::argument("arguments", message));
        }
    };
    if !precision.is_available() {
        eprintln!("this processor has no unit for bf16; products are f32");
    }
    let model = MaskedLm::from_config_on(&distilroberta(), 0, &device)?;
    let inputs = masked_batch(batch, seq)?;
    let mut optimizer = AdamW::new(&model).weight_decay(0.01);
    let schedule = Schedule::constant(2e-5);
    let mut times = Vec::with_capacity(steps);
    let mut phases: [Vec<f64>; 3] = Default::default();
    let mut last = 0.0;
    for step in 0..steps + WARMUP {
        let started = Instant::now();
        let (loss, forward) = autocast(precision, || -> Result<_> {
            let loss = model.loss(&inputs, &Context::train(42, step as u64))?;
            let forward = started.elapsed();
            model.backward(&loss.mean()?)?;
            Ok((loss, forward))
        })?;
        let backward = started.elapsed();
        optimizer.clip_grad_norm(1.0)?;
        optimizer.step(schedule.lr(step))?;
        optimizer.zero_grad();
        device.synchronize()?;
        let all = started.elapsed();
        if step >= WARMUP {
            times.push(all.as_secs_f64());
            let parts = [forward, backward - forward, all - backward];
            for (phase, part) in phases.iter_mut().zip(parts) {
                phase.push(part.as_secs_f64());
            }
        }
        last = loss.value()?;
    }
    let middle = median(&mut times);
    // A GPU works on after the calls have returned, so that only the whole can be timed there.
    let [forward, backward, update] =
        phases.map(|mut phase| device.is_cpu().then(|| median(&mut phase)));
    let peak = peak_rss_mib();
    let line = serde_json::json!({
        "bench": "train_step", "peer": "cloze", "device": device_name, "dtype": dtype,
        "batch": batch, "seq": seq, "steps": steps, "threads": rayon::current_num_threads(),
        "median_s": middle, "min_s": times[0], "max_s": times[times.len() - 1],
        "tokens_per_s": (batch * seq) as f64 / middle,
        "forward_s": forward, "backward_s": backward, "update_s": update, "matmul": cloze::ops::matmul_kernel(), "peak_rss_mib": peak, "loss": last,
    });
    println!("{line}");
    match (max_rss_mib, peak) {
        (Some(most), Some(peak)) if peak > most => Err(Error::argument(
            "--max-rss-mib",
            format!("{peak:.0} MiB were needed, more than {most:.0}"),
        )),
        _ => Ok(()),
    }
}

/// Random tokens, of which 15% are masked and count.
fn masked_batch(batch: usize, seq: usize) -> Result<ModelInputs> {
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
    let count = ids.len();
    ModelInputs::new(ids, (batch, seq))?
        .with_attention_mask(vec![1; count])?
        .with_labels(labels)
}
