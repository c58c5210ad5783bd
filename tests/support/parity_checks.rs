//! Every model against transformers: logits, loss, and the gradient of every parameter, on any device.
//!
//! `CLOZE_FIXTURES=DIR` points the test to another folder of the same layout (one subfolder per model).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use cloze::model::{Column, Config, Context, MaskedLm, ModelInputs, SUPPORTED_MODEL_TYPES};
use cloze::ops::{Precision, autocast};

/// How far a model may be from transformers.
pub struct Limits {
    pub logits: f32,
    pub loss: f32,
    /// Of each parameter, relative to the gradient's norm.
    pub gradient: f32,
    /// Of all parameters taken as one vector, relative to its norm.
    pub all_gradients: f32,
}

/// Gradients that are zero but for rounding (key biases) are compared absolutely; where the loss is a sum over letters, in
/// proportion to the largest gradient, and so to what cancels out in them.
const GRADIENT_FLOOR: f32 = 1e-7;

/// Families that choose which keys to see by the largest of their scores: rounded to fewer bits, they choose others, and
/// compute another function.
pub const CHOOSING: [&str; 2] = ["mra", "reformer"];

/// What a model that rounds to few bits may be off by where a value has fallen on the other side of a half.
///
/// Sums that are added up in another order differ in their last bits. Where one lies that near to the middle between two
/// integers it is rounded to the other, and all that follows sees a step of a whole integer: such a result is as far from the
/// reference as the reference is from itself with weights that are 1e-6 off (logits as far as floats are, gradients with a
/// cosine of 0.999, the loss within 0.009, on two models with six draws each). So a fixture passes if it meets the limits
/// of all others, or if at least one example of its batch, which no such step has reached, does, and the whole stays within
/// these bounds.
mod rounded {
    /// Root mean square of the logits' deviation, as a part of that of a model in floats.
    pub const LOGITS: f32 = 1.5;
    pub const LOSS: f32 = 0.02;
    /// Cosine between the gradients of all parameters.
    pub const COSINE: f32 = 0.99;
}

type Tensors = HashMap<String, Tensor>;

pub fn fixtures() -> PathBuf {
    std::env::var_os("CLOZE_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models"),
        PathBuf::from,
    )
}

fn integers(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<i64> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(|v| v as u32).collect()
}

/// What of a folder's tensors are results, or what transformers drew on the way.
fn is_result(name: &str) -> bool {
    name.ends_with("logits")
        || name.ends_with("loss")
        || name.starts_with("grad.")
        || name.starts_with("aux.")
}

/// What transformers drew on its way, for models that are to draw the same: the numbers of `aux.NAME.0`, `aux.NAME.1`, ...
/// one behind the other, for each of `batch` rows alike.
fn drawn(io: &Tensors, batch: usize) -> Vec<(String, Column)> {
    let mut parts: BTreeMap<&str, BTreeMap<usize, &Tensor>> = BTreeMap::new();
    for (name, tensor) in io {
        if let Some((name, number)) = name
            .strip_prefix("aux.")
            .and_then(|name| name.rsplit_once('.'))
        {
            let number = number.parse().expect("aux tensors are numbered");
            parts.entry(name).or_default().insert(number, tensor);
        }
    }
    let column = |(name, parts): (&str, BTreeMap<usize, &Tensor>)| {
        let flat: Vec<Tensor> = parts.values().map(|t| t.flatten_all().unwrap()).collect();
        let row = Tensor::cat(&flat, 0).unwrap().unsqueeze(0).unwrap();
        let rows = Tensor::cat(&vec![row; batch], 0).unwrap();
        (name.to_owned(), Column::from_tensor(&rows).unwrap())
    };
    parts.into_iter().map(column).collect()
}

pub fn inputs(io: &Tensors) -> ModelInputs {
    let mut inputs = match (io.get("input_ids"), io.get("input_values")) {
        (Some(ids), _) => ModelInputs::new(integers(ids), ids.dims2().unwrap()).unwrap(),
        (None, Some(sound)) => {
            let values = sound.flatten_all().unwrap().to_vec1().unwrap();
            ModelInputs::from_waveforms(values, sound.dims2().unwrap()).unwrap()
        }
        (None, None) => panic!("neither input_ids nor input_values"),
    };
    for (name, column) in drawn(io, inputs.batch) {
        inputs = inputs.with_column(&name, column);
    }
    for (name, tensor) in io.iter().filter(|(name, _)| !is_result(name)) {
        inputs = match (name.as_str(), tensor.rank()) {
            ("input_ids" | "input_values", _) => inputs,
            ("attention_mask", _) => inputs.with_attention_mask(integers(tensor)).unwrap(),
            ("token_type_ids", 2) => inputs.with_token_type_ids(integers(tensor)).unwrap(),
            ("labels", _) if tensor.dims() == [inputs.batch, inputs.seq] => {
                let labels = tensor.flatten_all().unwrap().to_vec1().unwrap();
                inputs.with_labels(labels).unwrap()
            }
            _ => inputs.with_column(name, Column::from_tensor(tensor).unwrap()),
        };
    }
    inputs
}

pub fn max_abs(tensor: &Tensor) -> f32 {
    tensor
        .abs()
        .unwrap()
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap()
}

pub fn norm(tensor: &Tensor) -> f32 {
    tensor
        .sqr()
        .unwrap()
        .sum_all()
        .unwrap()
        .sqrt()
        .unwrap()
        .to_scalar()
        .unwrap()
}

fn on_cpu(tensor: &Tensor) -> candle_core::Result<Tensor> {
    tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)
}

/// The largest deviations from one folder's reference results.
struct Deviation {
    logits: f32,
    loss: f32,
    /// The worst parameter and its relative error.
    gradient: (String, f32),
    /// The relative error of all gradients together.
    all_gradients: f32,
    compared: usize,
    /// Of models that round to few bits.
    rounded: Option<Rounded>,
}

/// How near a model that rounds to few bits is on the whole.
struct Rounded {
    /// The largest deviation of logits in the example that is nearest.
    nearest: f32,
    /// Root mean square of the logits' deviation, and that of the same model in floats.
    logits: (f32, f32),
    /// The cosine between the gradients.
    cosine: f32,
}

impl Rounded {
    /// Written so that NaN fails.
    fn is_near(&self, loss: f32, limits: &Limits) -> bool {
        self.nearest <= limits.logits
            && self.logits.0 <= rounded::LOGITS * self.logits.1
            && loss <= rounded::LOSS
            && self.cosine >= rounded::COSINE
    }
}

/// Returns whether the reference computed a folder's results in few bits.
fn is_rounded(config: &Config, meta: &serde_json::Value) -> bool {
    let notes = meta["notes"].to_string();
    // NVIDIA's quantizers are no matter of the config.
    config.get("quant_mode") == Some(&true.into()) || notes.contains("quantisers ON")
}

/// Opens a folder's model as the reference had it.
fn open(folder: &Path, device: &Device, meta: &serde_json::Value) -> cloze::Result<MaskedLm> {
    let mut model = MaskedLm::from_pretrained_on(folder.to_string_lossy(), device)?;
    if is_rounded(model.config(), meta) && model.config().get("quant_mode").is_none() {
        model.set_quant_mode(true)?;
    }
    Ok(model)
}

fn read_meta(folder: &Path) -> Result<serde_json::Value, String> {
    let meta = std::fs::read_to_string(folder.join("meta.json")).map_err(|e| e.to_string())?;
    serde_json::from_str(&meta).map_err(|e| e.to_string())
}

/// Compares a model that rounds to few bits with the reference on the whole, given how far its logits are off, and its
/// gradients.
fn on_the_whole(
    model: &MaskedLm,
    inputs: &ModelInputs,
    off: &Tensor,
    io: &Tensors,
) -> cloze::Result<Rounded> {
    let rms = |x: &Tensor| norm(x) / (x.elem_count() as f32).sqrt();
    let mut float = model.clone();
    float.set_quant_mode(false)?;
    let of_float = (on_cpu(&float.forward(inputs.clone())?)? - &io["logits"])?;
    let examples = off.abs()?.flatten_from(1)?.max(1)?.to_vec1::<f32>()?;
    let (mut product, mut own, mut theirs) = (0f32, 0f32, 0f32);
    for param in model.params() {
        if let (Some(grad), Some(expected)) =
            (param.grad(), io.get(&format!("grad.{}", param.name())))
        {
            let grad = on_cpu(&grad)?;
            product += (&grad * expected)?.sum_all()?.to_scalar::<f32>()?;
            own += norm(&grad).powi(2);
            theirs += norm(expected).powi(2);
        }
    }
    Ok(Rounded {
        nearest: examples.into_iter().fold(f32::INFINITY, f32::min),
        logits: (rms(off), rms(&of_float)),
        cosine: product / (own * theirs).sqrt(),
    })
}

fn compare(folder: &Path, device: &Device, exact: bool) -> Result<Deviation, String> {
    let text = |e: cloze::Error| e.to_string();
    let io = candle_core::safetensors::load(folder.join("io.safetensors"), &Device::Cpu)
        .map_err(|e| e.to_string())?;
    let meta = read_meta(folder)?;
    let model = open(folder, device, &meta).map_err(text)?;
    let report = model.load_report();
    if !report.missing.is_empty() || !report.unexpected.is_empty() {
        return Err(format!("weights do not match: {report:?}"));
    }
    let inputs = inputs(&io);
    let context = match meta["mode"].as_str() {
        Some("train") => Context::train(0, 0),
        _ => Context::eval(),
    };

    let logits = model.logits(&inputs, &context).map_err(text)?;
    let logits = on_cpu(&logits).map_err(|e| e.to_string())?;
    let mut difference = (logits - &io["logits"]).map_err(|e| e.to_string())?;
    let all = meta["logits_valid"]
        .as_str()
        .is_none_or(|s| s.starts_with("all"));
    if let (false, Some(mask)) = (all, io.get("attention_mask")) {
        let mask = mask.to_dtype(DType::F32).and_then(|m| m.unsqueeze(2));
        difference = mask
            .and_then(|m| difference.broadcast_mul(&m))
            .map_err(|e| e.to_string())?;
    }

    let mut of_logits = max_abs(&difference);
    if let Some(expected) = io.get("entity_logits") {
        let found = model.entity_logits(inputs.clone()).map_err(text)?;
        let difference = on_cpu(&found).and_then(|found| found - expected);
        of_logits = of_logits.max(max_abs(&difference.map_err(|e| e.to_string())?));
    }

    let parts = model.loss(&inputs, &context).map_err(text)?;
    let loss = parts.mean().map_err(text)?;
    let value: f32 = loss.to_scalar().map_err(|e| e.to_string())?;
    let expected: f32 = io["loss"].to_scalar().map_err(|e| e.to_string())?;
    let mut of_loss = (value - expected).abs();
    // The parts of a loss that has several: LUKE's of words and of entities.
    for (name, term) in ["mlm_loss", "mep_loss"].iter().zip(&parts.terms) {
        if let Some(expected) = io.get(*name) {
            let expected: f32 = expected.to_scalar().map_err(|e| e.to_string())?;
            let sum: f32 = term.sum.to_scalar().map_err(|e| e.to_string())?;
            of_loss = of_loss.max((sum / term.count as f32 - expected).abs());
        }
    }
    model.backward(&loss).map_err(text)?;

    let gradients = compare_gradients(&model, &io, exact)?;
    if !exact && model.config().get("ctc_loss_reduction").is_some() {
        // A sum over all frames rounds in proportion to its size.
        of_loss /= expected.abs().max(1.0);
    }
    let rounded = is_rounded(model.config(), &meta)
        .then(|| on_the_whole(&model, &inputs, &difference, &io).map_err(text))
        .transpose()?;
    Ok(Deviation {
        rounded,
        logits: of_logits,
        // One or two steps of f32 are no deviation: a summed loss is a large number.
        loss: match of_loss <= 2.0 * f32::EPSILON * expected.abs() {
            true => 0.0,
            false => of_loss,
        },
        gradient: gradients.worst,
        all_gradients: gradients.all,
        compared: gradients.compared,
    })
}

/// How far a model's gradients are from the expected ones.
struct Gradients {
    /// The parameter with the largest relative deviation.
    worst: (String, f32),
    /// The relative deviation of all gradients together.
    all: f32,
    compared: usize,
}

/// Compares the gradient of every parameter with that in `io`. With `exact`, no other parameter may have one.
fn compare_gradients(
    model: &MaskedLm,
    io: &HashMap<String, Tensor>,
    exact: bool,
) -> Result<Gradients, String> {
    let expected_grads: BTreeMap<&str, &Tensor> = io
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor)))
        .collect();
    let largest = expected_grads.values().map(|grad| max_abs(grad));
    let floor = match model.config().get("ctc_loss_reduction") {
        Some(_) => GRADIENT_FLOOR * largest.fold(1f32, f32::max),
        None => GRADIENT_FLOOR,
    };
    // Names that stand for one parameter: an untied head's bias has two.
    let mut compared = BTreeSet::new();
    let mut worst = (String::new(), 0f32);
    let mut squares = (0f32, 0f32);
    for (name, expected) in &expected_grads {
        let param = model
            .param(name)
            .ok_or(format!("the model has no parameter {name}"))?;
        compared.insert(param.name().to_owned());
        let found = param.grad().ok_or(format!("{name} received no gradient"))?;
        // A parameter may have another shape on disk.
        let found = on_cpu(&found).and_then(|found| found.reshape(expected.shape()));
        let found = found.map_err(|e| format!("{name}: {e}"))?;
        let delta = (found - *expected).map_err(|e| format!("{name}: {e}"))?;
        squares.0 += norm(&delta).powi(2);
        squares.1 += norm(expected).powi(2);
        let relative = if max_abs(&delta) <= floor {
            0.0
        } else {
            norm(&delta) / norm(expected)
        };
        if worst.0.is_empty() || relative.is_nan() || relative > worst.1 {
            worst = ((*name).to_owned(), relative);
        }
    }
    for param in model.params() {
        if !compared.contains(param.name())
            && let Some(grad) = param.grad()
            && exact
            && max_abs(&on_cpu(&grad).map_err(|e| e.to_string())?) > GRADIENT_FLOOR
        {
            return Err(format!(
                "{} has a gradient, transformers has none",
                param.name()
            ));
        }
    }
    Ok(Gradients {
        worst,
        all: (squares.0 / squares.1).sqrt(),
        compared: expected_grads.len(),
    })
}

/// Compares every fixture of a supported family, computed on `device` at `precision`, with transformers' results.
pub fn reproduce(device: &Device, precision: Precision, limits: &Limits) {
    let root = fixtures();
    let mut folders: Vec<PathBuf> = std::fs::read_dir(&root)
        .unwrap_or_else(|e| panic!("{}: {e}", root.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("io.safetensors").exists())
        .collect();
    folders.sort();
    let mut failed = Vec::new();
    let mut unsupported = Vec::new();
    let mut passed = 0;
    for folder in &folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let config = cloze::model::Config::from_folder(folder).unwrap();
        let family = config.model_type().to_owned();
        if !SUPPORTED_MODEL_TYPES.contains(&family.as_str()) {
            println!("{name:<24} {family:<16} not supported");
            unsupported.push(family);
            continue;
        }
        let exact = precision == Precision::F32;
        let meta = read_meta(folder).unwrap();
        if is_rounded(&config, &meta) && !exact {
            println!("{name:<24} {family:<16} rounds what is computed in f32");
            continue;
        }
        if !exact && CHOOSING.contains(&family.as_str()) {
            println!("{name:<24} {family:<16} chooses by what rounding changes");
            continue;
        }
        match autocast(precision, || compare(folder, device, exact)) {
            Err(message) => {
                println!("{name:<24} {family:<16} FAILED: {message}");
                failed.push(name);
            }
            Ok(deviation) => {
                let Deviation {
                    logits,
                    loss,
                    gradient: (worst, gradient),
                    all_gradients,
                    compared,
                    rounded,
                } = deviation;
                // Written so that NaN fails.
                let exact = logits <= limits.logits
                    && loss <= limits.loss
                    && gradient <= limits.gradient
                    && all_gradients <= limits.all_gradients;
                let near = rounded.filter(|rounded| rounded.is_near(loss, limits));
                let ok = exact || near.is_some();
                if let (false, Some(near)) = (exact, near) {
                    println!(
                        "{name:<24} {family:<16} was rounded another way somewhere: nearest example {:.1e}, logits {:.1e} (floats {:.1e}), cosine {:.5}",
                        near.nearest, near.logits.0, near.logits.1, near.cosine
                    );
                }
                println!(
                    "{name:<24} {family:<16} {} max |Δlogits| {logits:.1e}  |Δloss| {loss:.1e}  gradients {all_gradients:.1e}, the worst {gradient:.1e} ({worst}; {compared} compared)",
                    if ok { "ok    " } else { "FAILED" }
                );
                if ok { passed += 1 } else { failed.push(name) }
            }
        }
    }
    unsupported.sort();
    unsupported.dedup();
    println!(
        "{passed} reproduced, {} failed; unsupported families: {unsupported:?}",
        failed.len()
    );
    assert!(failed.is_empty(), "not reproduced: {failed:?}");
    assert!(
        passed > 0,
        "no fixture of a supported family in {}",
        root.display()
    );
}
