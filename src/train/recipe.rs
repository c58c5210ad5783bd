//! A whole training run from settings, as given on a command line or in a file: load, tokenize, mask, train, save.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map as Object, Value};

use super::data::held_out;
use super::{History, IntervalStrategy, Trainer, TrainingArguments};
use crate::collate::MaskingCollator;
use crate::dataset::{DatasetDict, Loader, Map, TrainTestSplit, load_dataset};
use crate::model::MaskedLm;
use crate::ops::DeviceExt;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};

/// What is trained on what: the settings of `run_mlm.py` under its names, and those of [`TrainingArguments`] under theirs.
///
/// ```
/// use cloze::train::Recipe;
///
/// let recipe = Recipe::from_args(
///     ["--model", "bundled:tiny_roberta", "--dataset", "lines.txt", "--output", "out", "--learning-rate=5e-4"],
///     None,
/// )?;
/// assert_eq!(recipe.arguments.learning_rate, 5e-4);
/// assert_eq!(recipe.max_seq_length, 128);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Recipe {
    /// The model to begin with: `bundled:NAME`, a folder, or a name on the Hub.
    pub model: String,
    /// The tokenizer, where it is not the model's.
    pub tokenizer: Option<String>,
    /// The data: a file, a folder, or a name on the Hub.
    pub dataset: String,
    /// The configuration of a dataset that has several.
    pub dataset_config: Option<String>,
    /// Data to evaluate on: a file, a folder, or a name on the Hub. Default: the dataset's split "validation" or "test", or
    /// else a part of the rows.
    pub validation_file: Option<String>,
    /// The split that is trained on. Default: "train".
    pub split: String,
    /// The column of texts; with a dot, a field of it. Default: "text".
    pub text_column: String,
    /// The part of the rows that is kept for evaluation, where the data have no split for it. Default: 0.05.
    pub validation_split: f64,
    /// Whether each row is a separate example; otherwise texts are concatenated and split into blocks. Default: no.
    pub line_by_line: bool,
    /// The length of a block, or the most tokens of a line. Default: 128.
    pub max_seq_length: usize,
    /// The part of the tokens that is masked. Default: 0.15.
    pub mlm_probability: f64,
    /// Whether whole words are masked. Default: no.
    pub whole_word_mask: bool,
    /// Whether to resume from the newest checkpoint in the output folder, if there is one; or the checkpoint to resume
    /// from. Default: no.
    pub resume: Resume,
    /// Whether to stay on the CPU where there is a GPU. Default: no.
    pub use_cpu: bool,
    /// The arguments of the training.
    #[serde(skip)]
    pub arguments: TrainingArguments,
}

/// The model, tokenizer and data that a run begins with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Resume {
    /// The newest checkpoint in the output folder, if this is true and there is one.
    Latest(bool),
    /// The checkpoint in this folder.
    From(PathBuf),
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            tokenizer: None,
            dataset: String::new(),
            dataset_config: None,
            validation_file: None,
            split: "train".to_owned(),
            text_column: "text".to_owned(),
            validation_split: 0.05,
            line_by_line: false,
            max_seq_length: 128,
            mlm_probability: 0.15,
            whole_word_mask: false,
            resume: Resume::Latest(false),
            use_cpu: false,
            arguments: TrainingArguments::default(),
        }
    }
}

/// The settings of the recipe itself.
const OWN: [&str; 14] = [
    "model",
    "tokenizer",
    "dataset",
    "dataset_config",
    "validation_file",
    "split",
    "text_column",
    "validation_split",
    "line_by_line",
    "max_seq_length",
    "mlm_probability",
    "whole_word_mask",
    "resume",
    "use_cpu",
];

/// Settings that are text, whatever they look like.
const TEXTS: [&str; 14] = [
    "model",
    "tokenizer",
    "dataset",
    "dataset_config",
    "validation_file",
    "split",
    "text_column",
    "output_dir",
    "logging_dir",
    "hub_model_id",
    "optim_args",
    "report_to",
    "metric_for_best_model",
    "lr_scheduler_type",
];

/// Names that settings have elsewhere.
const ALIASES: [(&str, &str); 13] = [
    ("output", "output_dir"),
    ("model_name_or_path", "model"),
    ("tokenizer_name", "tokenizer"),
    ("dataset_name", "dataset"),
    ("train_file", "dataset"),
    ("dataset_config_name", "dataset_config"),
    ("evaluation_strategy", "eval_strategy"),
    ("epochs", "num_train_epochs"),
    ("resume_from_checkpoint", "resume"),
    ("no_cuda", "use_cpu"),
    ("activation_checkpointing", "gradient_checkpointing"),
    ("per_gpu_train_batch_size", "per_device_train_batch_size"),
    ("per_gpu_eval_batch_size", "per_device_eval_batch_size"),
];

/// Arguments of transformers and `run_mlm.py` that would change nothing here, and why.
const NEEDLESS: [(&str, &str); 8] = [
    (
        "do_train do_eval do_predict",
        "it always trains, and evaluates as eval_strategy says",
    ),
    (
        "overwrite_output_dir overwrite_cache",
        "a new run never overwrites existing data",
    ),
    (
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor \
         dataloader_in_order preprocessing_num_workers",
        "batches are prefetched on all cores",
    ),
    (
        "remove_unused_columns label_names prediction_loss_only eval_do_concat_batches eval_accumulation_steps \
         batch_eval_metrics",
        "only the necessary columns and results are kept",
    ),
    (
        "disable_tqdm log_level log_level_replica log_on_each_node logging_nan_inf_filter run_name project \
         skip_memory_metrics include_num_input_tokens_seen",
        "progress goes to the terminal, and history.jsonl has it all",
    ),
    (
        "torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps use_liger_kernel use_cache \
         full_determinism save_safetensors use_fast_tokenizer average_tokens_across_devices",
        "it is always so, or has no meaning here",
    ),
    (
        "local_rank ddp_backend ddp_timeout ddp_bucket_cap_mb ddp_find_unused_parameters ddp_broadcast_buffers \
         ddp_static_graph",
        "ranks find each other through MPI",
    ),
    (
        "hub_token",
        "the token comes from HF_TOKEN or from a login, not from a command line that others can read",
    ),
];

impl Recipe {
    /// Returns the names of all settings.
    pub fn names() -> impl Iterator<Item = &'static str> {
        OWN.into_iter()
            .chain(TrainingArguments::NAMES.iter().copied())
    }

    /// Parses `--name value`, `--name=value` and `--name` (for true); names may be written with hyphens. Arguments take
    /// precedence over `config`.
    ///
    /// # Errors
    /// [`Error::Argument`] for an unknown name, an invalid value, or a missing model or dataset.
    pub fn from_args<S: AsRef<str>>(
        args: impl IntoIterator<Item = S>,
        config: Option<Object<String, Value>>,
    ) -> Result<Self> {
        let mut settings = Object::new();
        let mut set = |name: &str, value: Value| -> Result<()> {
            if let Some((name, value)) = setting(name, value)? {
                settings.insert(name.to_owned(), value);
            }
            Ok(())
        };
        for (name, value) in config.unwrap_or_default() {
            set(&name, value)?;
        }
        let mut args = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .peekable();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--") else {
                return Err(Error::argument(
                    "arguments",
                    format!("{arg:?} has no value; settings are written --name value"),
                ));
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (
                    name.to_owned(),
                    args.next_if(|next| !next.starts_with("--")),
                ),
            };
            set(&name, value.map_or(Value::Bool(true), Value::String))?;
        }
        Self::from_settings(settings)
    }

    fn from_settings(settings: Object<String, Value>) -> Result<Self> {
        let (own, arguments): (Object<_, _>, Object<_, _>) = settings
            .into_iter()
            .partition(|(name, _)| OWN.contains(&name.as_str()));
        let mut recipe: Self = fit(own)?;
        recipe.arguments = fit(arguments)?;
        for (name, value) in [("model", &recipe.model), ("dataset", &recipe.dataset)] {
            if value.is_empty() {
                return Err(Error::argument(
                    name,
                    format!("it is missing; give --{name} NAME"),
                ));
            }
        }
        if recipe.arguments.output_dir.as_os_str().is_empty() {
            let message = "it is missing; give --output FOLDER";
            return Err(Error::argument("output", message));
        }
        recipe.arguments.validate()?;
        Ok(recipe)
    }

    /// Loads, tokenizes, trains, and saves the model with its tokenizer into the output folder.
    pub fn run(&self) -> Result<History> {
        let tokenizer = self.tokenizer.as_ref().unwrap_or(&self.model);
        let tokenizer = Tokenizer::from_pretrained(tokenizer)?;
        let examples = self.examples(&tokenizer)?;
        let device = match self.use_cpu {
            true => candle_core::Device::Cpu,
            false => candle_core::Device::best()?,
        };
        let model = MaskedLm::from_pretrained_on(&self.model, &device)?;
        let collator = MaskingCollator::new(&tokenizer)
            .mlm_probability(self.mlm_probability)
            .whole_word_mask(self.whole_word_mask)
            .seed(self.arguments.seed);
        let mut trainer = Trainer::new(&model, self.arguments.clone(), &examples, collator);
        let there_is_one = || super::latest_checkpoint(&self.arguments.output_dir).is_ok();
        let history = match &self.resume {
            Resume::Latest(true) if there_is_one() => trainer.resume_from_latest_checkpoint()?,
            Resume::Latest(_) => trainer.train()?,
            Resume::From(folder) => trainer.resume_from_checkpoint(folder)?,
        };
        trainer.save_model(&self.arguments.output_dir)?;
        Ok(history)
    }

    /// Returns the examples: "train", and "test" if evaluations are wanted.
    fn examples(&self, tokenizer: &Tokenizer) -> Result<DatasetDict> {
        let loader = Loader::new(&self.dataset);
        let loader = match &self.dataset_config {
            Some(config) => loader.config(config),
            None => loader,
        };
        let splits = loader.load()?;
        let train = splits.split(&self.split)?;
        let args = &self.arguments;
        let evaluates = args.eval_strategy != IntervalStrategy::No || args.eval_on_start;
        let given = match &self.validation_file {
            Some(file) => {
                let others = load_dataset(file)?;
                let first = others.iter().next().map(|(_, rows)| rows.clone());
                held_out(&others).cloned().or(first)
            }
            None => held_out(&splits).cloned(),
        };
        let splits = match (evaluates, given) {
            (false, _) => DatasetDict::from_iter([("train", train)]),
            (true, Some(test)) => DatasetDict::from_iter([("train", train), ("test", test)]),
            (true, None) => train.train_test_split(
                TrainTestSplit::new(self.validation_split).seed(args.order_seed()),
            )?,
        };
        let splits = match self.text_column.contains('.') {
            true => splits.flatten()?,
            false => splits,
        };
        let tokenize = tokenizer.tokenize_column(&self.text_column);
        if self.line_by_line {
            return splits.map(tokenize.truncation(self.max_seq_length));
        }
        let blocks = splits.map(Map::from(tokenize))?;
        blocks.group_texts(self.max_seq_length)
    }
}

/// Returns a setting by the name that it has here, and its value; nothing if it changes nothing here, which is said.
fn setting(name: &str, value: Value) -> Result<Option<(&'static str, Value)>> {
    let name = name.trim_start_matches("--").replace('-', "_");
    let needless = NEEDLESS
        .iter()
        .find(|(names, _)| names.split(' ').any(|known| known == name));
    if let Some((_, why)) = needless {
        eprintln!("note: {name} is ignored: {why}");
        return Ok(None);
    }
    let text = match &value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    Ok(match name.as_str() {
        // As transformers say that it is not set.
        "max_steps" if text == "-1" => Some(("max_steps", Value::Null)),
        "validation_split_percentage" => {
            let part = text.parse::<f64>().ok().map(|percent| percent / 100.0);
            Some(("validation_split", part.map_or(value, Value::from)))
        }
        "train_sampling_strategy" => match text.as_str() {
            "random" => Some(("group_by_length", Value::Bool(false))),
            "group_by_length" => Some(("group_by_length", Value::Bool(true))),
            _ => {
                let message =
                    format!("there is no {text:?}; choose one of random, group_by_length");
                return Err(Error::argument("train_sampling_strategy", message));
            }
        },
        name => Some((known(name)?, value)),
    })
}

/// Returns the name of a setting, by whatever name it was given.
fn known(name: &str) -> Result<&'static str> {
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    let name = alias.map_or(name, |(_, name)| name);
    Recipe::names().find(|known| *known == name).ok_or_else(|| {
        let names: Vec<&str> = Recipe::names().collect();
        let near: Vec<&str> = names
            .iter()
            .copied()
            .filter(|known| alike(known, name))
            .collect();
        let hint = match near.is_empty() {
            true => format!("there are {}", names.join(", ")),
            false => format!("did you mean {}?", near.join(" or ")),
        };
        Error::argument("arguments", format!("there is no setting {name:?}; {hint}"))
    })
}

/// Returns whether two names share most of their words.
fn alike(a: &str, b: &str) -> bool {
    let words = |text: &str| text.split('_').map(str::to_owned).collect::<Vec<_>>();
    let (a, b) = (words(a), words(b));
    let common = a.iter().filter(|word| b.contains(word)).count();
    2 * common >= a.len().max(b.len()) && common > 0
}

/// Returns what a text of the command line may mean, the likeliest first.
fn meanings(text: &str) -> Vec<Value> {
    let json: Option<Value> = serde_json::from_str(text).ok();
    // ".5" and "+1", which JSON does not know.
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    let truth = match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "t" | "y" | "1" => Some(true),
        "false" | "no" | "f" | "n" | "0" => Some(false),
        _ => None,
    };
    let text = Some(Value::String(text.to_owned()));
    let number = number.and_then(serde_json::Number::from_f64);
    let all = [
        json,
        number.map(Value::Number),
        text,
        truth.map(Value::Bool),
    ];
    all.into_iter().flatten().collect()
}

/// Makes a type of settings; text is read as whatever suits a setting.
fn fit<T: Default + for<'d> Deserialize<'d> + Serialize>(
    settings: Object<String, Value>,
) -> Result<T> {
    let mut whole = serde_json::to_value(T::default())?;
    let mut result = T::default();
    for (name, value) in settings {
        let is_text = TEXTS.contains(&name.as_str());
        let shown = value.to_string();
        let meanings = match value {
            Value::String(text) if !is_text => meanings(&text),
            Value::Number(_) | Value::Bool(_) if is_text => vec![Value::String(shown.clone())],
            other => vec![other],
        };
        let mut refused = None;
        let mut suits = None;
        for meaning in meanings {
            whole[&name] = meaning;
            match serde_json::from_value::<T>(whole.clone()) {
                Ok(now) => {
                    suits = Some(now);
                    break;
                }
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        result = suits.ok_or_else(|| {
            let mut named = Recipe::names().filter(|known| *known == name);
            let why = refused.map_or_else(String::new, |error| format!(": {error}"));
            Error::argument(
                named.next().unwrap_or("arguments"),
                format!("{shown} does not suit it{why}"),
            )
        })?;
    }
    Ok(result)
}

/// Reads the settings of a JSON or TOML file's table, once it is parsed.
impl TryFrom<Value> for Recipe {
    type Error = Error;

    fn try_from(value: Value) -> Result<Self> {
        match value {
            Value::Object(settings) => Self::from_args(Vec::<String>::new(), Some(settings)),
            _ => Err(Error::argument("config", "it is not a table of settings")),
        }
    }
}
