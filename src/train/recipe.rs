//! A whole training by its settings alone, as a command line or a file gives them: load, tokenize, mask, train, save.

use serde::{Deserialize, Serialize};
use serde_json::{Map as Object, Value};

use super::{History, IntervalStrategy, Trainer, TrainingArguments};
use crate::collate::MaskingCollator;
use crate::dataset::{DatasetDict, Map, TrainTestSplit, load_dataset};
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
    /// The split that is trained on. Default: "train".
    pub split: String,
    /// The column of texts; with a dot, a field of it. Default: "text".
    pub text_column: String,
    /// The part of the rows that is kept for evaluation, where the data have no split for it. Default: 0.05.
    pub validation_split: f64,
    /// Whether each row is an example of its own; otherwise texts are put end to end and cut into blocks. Default: no.
    pub line_by_line: bool,
    /// The length of a block, or the most tokens of a line. Default: 128.
    pub max_seq_length: usize,
    /// The part of the tokens that is masked. Default: 0.15.
    pub mlm_probability: f64,
    /// Whether whole words are masked. Default: no.
    pub whole_word_mask: bool,
    /// Whether to go on from the newest checkpoint in the output folder, if there is one. Default: no.
    pub resume: bool,
    /// The arguments of the training.
    #[serde(skip)]
    pub arguments: TrainingArguments,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            model: String::new(),
            tokenizer: None,
            dataset: String::new(),
            split: "train".to_owned(),
            text_column: "text".to_owned(),
            validation_split: 0.05,
            line_by_line: false,
            max_seq_length: 128,
            mlm_probability: 0.15,
            whole_word_mask: false,
            resume: false,
            arguments: TrainingArguments::default(),
        }
    }
}

/// The settings of the recipe itself.
const OWN: [&str; 11] = [
    "model",
    "tokenizer",
    "dataset",
    "split",
    "text_column",
    "validation_split",
    "line_by_line",
    "max_seq_length",
    "mlm_probability",
    "whole_word_mask",
    "resume",
];

/// Names that settings have elsewhere.
const ALIASES: [(&str, &str); 6] = [
    ("output", "output_dir"),
    ("model_name_or_path", "model"),
    ("tokenizer_name", "tokenizer"),
    ("dataset_name", "dataset"),
    ("evaluation_strategy", "eval_strategy"),
    ("epochs", "num_train_epochs"),
];

impl Recipe {
    /// Returns the names of all settings.
    pub fn names() -> impl Iterator<Item = &'static str> {
        OWN.into_iter()
            .chain(TrainingArguments::NAMES.iter().copied())
    }

    /// Reads `--name value`, `--name=value` and `--name` (for true); names may be written with hyphens. What `config` says
    /// counts where no argument says anything else.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that there is not, a value that does not suit, or a missing model or dataset.
    pub fn from_args<S: AsRef<str>>(
        args: impl IntoIterator<Item = S>,
        config: Option<Object<String, Value>>,
    ) -> Result<Self> {
        let mut settings = Object::new();
        for (name, value) in config.unwrap_or_default() {
            settings.insert(known(&name)?.to_owned(), value);
        }
        let mut args = args
            .into_iter()
            .map(|arg| arg.as_ref().to_owned())
            .peekable();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix("--") else {
                return Err(Error::argument(
                    "arguments",
                    format!("{arg:?} stands alone; settings are written --name value"),
                ));
            };
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (
                    name.to_owned(),
                    args.next_if(|next| !next.starts_with("--")),
                ),
            };
            let value = value.map_or(Value::Bool(true), |text| read(&text));
            settings.insert(known(&name)?.to_owned(), value);
        }
        Self::from_settings(settings)
    }

    fn from_settings(settings: Object<String, Value>) -> Result<Self> {
        let (own, arguments): (Object<_, _>, Object<_, _>) = settings
            .into_iter()
            .partition(|(name, _)| OWN.contains(&name.as_str()));
        let texts = ["model", "tokenizer", "dataset", "split", "text_column"];
        let mut recipe: Self = fit(own, &texts)?;
        let texts = [
            "output_dir",
            "logging_dir",
            "hub_model_id",
            "optim_args",
            "report_to",
            "metric_for_best_model",
        ];
        recipe.arguments = fit(arguments, &texts)?;
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
        let device = candle_core::Device::best()?;
        let model = MaskedLm::from_pretrained_on(&self.model, &device)?;
        let collator = MaskingCollator::new(&tokenizer)
            .mlm_probability(self.mlm_probability)
            .whole_word_mask(self.whole_word_mask)
            .seed(self.arguments.seed);
        let mut trainer = Trainer::of_splits(&model, self.arguments.clone(), &examples, collator)?;
        let goes_on = self.resume && super::latest_checkpoint(&self.arguments.output_dir).is_ok();
        let history = match goes_on {
            true => trainer.resume_from_latest_checkpoint()?,
            false => trainer.train()?,
        };
        trainer.save_model(&self.arguments.output_dir)?;
        Ok(history)
    }

    /// Returns the examples: "train", and "test" if evaluations are wanted.
    fn examples(&self, tokenizer: &Tokenizer) -> Result<DatasetDict> {
        let splits = load_dataset(&self.dataset)?;
        let train = splits.split(&self.split)?;
        let args = &self.arguments;
        let evaluates = args.eval_strategy != IntervalStrategy::No || args.eval_on_start;
        let given = ["validation", "test"]
            .into_iter()
            .find_map(|name| splits.get(name).ok());
        let splits = match (evaluates, given) {
            (false, _) => DatasetDict::from_iter([("train", train)]),
            (true, Some(test)) => {
                DatasetDict::from_iter([("train", train), ("test", test.clone())])
            }
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

/// Returns the name of a setting, by whatever name it was given.
fn known(name: &str) -> Result<&'static str> {
    let name = name.trim_start_matches("--").replace('-', "_");
    let alias = ALIASES.iter().find(|(alias, _)| *alias == name);
    let name = alias.map_or(name.as_str(), |(_, name)| name);
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

/// Returns a value as JSON has it, or as text.
fn read(text: &str) -> Value {
    match text {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        text => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned())),
    }
}

/// Makes a type of settings, of which those named in `texts` stay text whatever they look like.
fn fit<T: Default + for<'d> Deserialize<'d> + Serialize>(
    settings: Object<String, Value>,
    texts: &[&str],
) -> Result<T> {
    let mut whole = serde_json::to_value(T::default())?;
    let mut result = T::default();
    for (name, value) in settings {
        let value = match value {
            Value::String(text) => Value::String(text),
            other if texts.contains(&name.as_str()) => Value::String(other.to_string()),
            other => other,
        };
        let shown = value.to_string();
        whole[&name] = value;
        result = serde_json::from_value(whole.clone()).map_err(|error| {
            let names = Recipe::names();
            let mut named = names.filter(|known| *known == name);
            Error::argument(
                named.next().unwrap_or("arguments"),
                format!("{shown} does not suit it: {error}"),
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
            _ => Err(Error::argument("config", "it is no table of settings")),
        }
    }
}
