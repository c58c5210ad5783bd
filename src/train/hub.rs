//! Pushes to the Hub during and after a run.

use std::path::{Path, PathBuf};

use super::LossPlot;
use super::{Callback, Control, Event, History, Trainer, TrainingArguments};
use crate::hub::{BackgroundPush, CardResult, Hub, ModelCard, PushOptions, Pushed};
use crate::{Error, Result};

/// Files of a checkpoint that are only needed to resume.
const RESUMING: [&str; 3] = [
    super::checkpoint::OPTIMIZER,
    super::checkpoint::STATE,
    super::checkpoint::MANIFEST,
];

/// The picture of the losses in a pushed folder.
const PLOT: &str = "loss.svg";
/// The run's records in a pushed folder.
const HISTORY: &str = "training_history.json";

/// What visitors of a model's page may try, with the model's own mask for `<mask>`.
const WIDGETS: [&str; 2] = [
    "The Milky Way is a <mask> galaxy.",
    "Water freezes at a lower <mask> when salt is dissolved in it.",
];

/// The libraries that the numbers of a run depend on.
const VERSIONS: [(&str, &str); 2] = [("Candle", "0.11"), ("Tokenizers", "0.23")];

/// Pushes every checkpoint to the Hub during training, as `push_to_hub` in [`TrainingArguments`] does.
///
/// Pushes run one at a time on a separate thread; a checkpoint that is completed during a push is skipped. A failed
/// push is reported on stderr and does not end the run. For a manual loop, use [`PushToHubCallback::push`].
///
/// Mirrors the callback of that name in `transformers`.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// # fn f(model: &MaskedLm, blocks: &DatasetDict, collator: MaskingCollator) -> cloze::Result<()> {
/// // A private repository, which is made if there is none.
/// let pushes = PushToHubCallback::with_options("me/eli5_mlm_model", PushOptions::new().private(true))?;
/// let arguments = TrainingArguments::new("eli5_mlm_model").save_strategy("epoch");
/// let mut trainer = Trainer::new(model, arguments, blocks, collator).callback(pushes);
/// trainer.train()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PushToHubCallback {
    push: BackgroundPush,
    options: PushOptions,
}

impl PushToHubCallback {
    /// Pushes to `repo`, `owner/name` or one's own `name`, which is made when needed.
    ///
    /// # Errors
    /// If you are not logged in: better to fail before the training than after it.
    pub fn new(repo: impl Into<String>) -> Result<Self> {
        Self::with_options(repo, PushOptions::new())
    }

    /// Like [`PushToHubCallback::new`], with a private repository or your own message.
    pub fn with_options(repo: impl Into<String>, options: PushOptions) -> Result<Self> {
        let hub = Hub::from_env()?;
        if hub.settings().token.is_none() {
            return Err(Error::Hub(
                "push_to_hub needs a login: call hub::login(token) or notebook_login() first, or set HF_TOKEN".to_owned(),
            ));
        }
        Ok(Self {
            push: BackgroundPush::new(hub, repo),
            options,
        })
    }

    /// Begins to push `folder` in the background, unless a push is under way; returns whether it began.
    ///
    /// # Errors
    /// If the folder can't be read. Errors of the upload are returned by [`PushToHubCallback::finish`].
    pub fn push(&mut self, folder: impl AsRef<Path>) -> Result<bool> {
        let resuming = RESUMING
            .iter()
            .fold(self.options.clone(), |options, name| options.ignore(*name));
        self.push.start(folder, &resuming)
    }

    /// Waits for the push that is under way; `None` if there was none.
    pub fn finish(&mut self) -> Option<Result<Pushed>> {
        self.push.wait()
    }
}

impl Callback for PushToHubCallback {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        match event {
            Event::Save { path, .. } => {
                if let Err(error) = self.push(path) {
                    eprintln!(
                        "warning: {} was not pushed; training continues: {error}",
                        path.display()
                    );
                }
            }
            Event::TrainEnd { .. } => {
                if let Some(Err(error)) = self.finish() {
                    eprintln!("warning: the last push in the background failed: {error}");
                }
            }
            _ => {}
        }
        Ok(Control::Continue)
    }
}

impl TrainingArguments {
    /// Returns the repository that the model is pushed to: `hub_model_id`, else the name of the output folder.
    pub(super) fn repo(&self) -> Result<String> {
        if !self.hub_model_id.is_empty() {
            return Ok(self.hub_model_id.clone());
        }
        let folder = std::path::absolute(&self.output_dir)
            .map_err(|e| Error::io("find", &self.output_dir, e))?;
        let name = folder.file_name().and_then(|name| name.to_str());
        name.map(str::to_owned).ok_or_else(|| {
            Error::argument(
                "hub_model_id",
                "output_dir has no name that could be the repository's; give one",
            )
        })
    }

    fn push_options(&self) -> PushOptions {
        match self.hub_private_repo {
            Some(private) => PushOptions::new().private(private),
            None => PushOptions::new(),
        }
    }

    /// Returns the callback that pushes checkpoints.
    pub(super) fn push_callback(&self) -> Result<PushToHubCallback> {
        PushToHubCallback::with_options(
            self.repo()?,
            self.push_options().message("Training in progress"),
        )
    }
}

impl Trainer {
    /// Returns the model's card as [`Trainer::push_to_hub`] writes it, to add to or to correct: the base model, the
    /// dataset where it came from the Hub, texts to try, the hyperparameters, and the results of the evaluations.
    pub fn model_card(&self) -> ModelCard {
        let repo = self.args.repo().unwrap_or_else(|_| "model".to_owned());
        let name = repo.rsplit('/').next().unwrap_or_default().to_owned();
        let mut card = ModelCard::new(name).repo(repo);
        // A model that was made from a config is called by its type, and began with nothing.
        if self.model.name() != self.model.config().model_type() {
            card = card.base_model(self.model.name());
        }
        if let Some(origin) = self.train_data.origin() {
            card = card.dataset(origin);
        }
        let tokenizer = self
            .collator
            .as_ref()
            .and_then(|collator| collator.tokenizer());
        if let Some(mask) = tokenizer.and_then(|tokenizer| tokenizer.mask_token()) {
            for text in WIDGETS {
                card = card.widget(text.replace("<mask>", mask));
            }
        }
        for (name, value) in hyperparameters(&self.args) {
            card = card.hyperparameter(name, value);
        }
        for (name, version) in VERSIONS {
            card = card.version(name, version);
        }
        let Some(history) = &self.history else {
            return card;
        };
        if let Some(best) = history
            .best_step
            .filter(|_| self.args.load_best_model_at_end)
        {
            card = card.best_step(best);
        }
        results(history).into_iter().fold(card, ModelCard::result)
    }

    /// Writes the model, its tokenizer, the training's history, a plot of the losses and a model card into the output
    /// folder, and uploads them to the Hub as one commit.
    ///
    /// The repository is `hub_model_id` of the arguments, else called like the output folder; it is made when needed.
    ///
    /// # Errors
    /// If you are not logged in, or the Hub can't be reached or refuses. The folder is then complete on this machine,
    /// and the error tells how to push it again.
    pub fn push_to_hub(&self) -> Result<Pushed> {
        self.push_to_hub_with(&self.model_card())
    }

    /// Like [`Trainer::push_to_hub`], with your own card.
    pub fn push_to_hub_with(&self, card: &ModelCard) -> Result<Pushed> {
        let (hub, mut repo) = (Hub::from_env()?, self.args.repo()?);
        // The card says under which name others load the model, owner and all. Who can't be asked now can't be pushed to
        // either, and that is said below, when all files are there.
        if !repo.contains('/')
            && let Ok(account) = hub.whoami()
        {
            repo = format!("{}/{repo}", account.name);
        }
        let folder = self.write_for_hub(card.clone().repo(&repo))?;
        let options = self.args.push_options().message("End of training");
        let options = options.ignore("runs/*").ignore(super::reports::LINES);
        hub.push_folder(&repo, folder, &options)
    }

    /// Fills the output folder with all that is to be shared.
    fn write_for_hub(&self, card: ModelCard) -> Result<PathBuf> {
        let folder = self.args.output_dir.clone();
        self.save_model(&folder)?;
        let write = |name: &str, text: &str| {
            crate::base::files::write_atomically(&folder.join(name), text.as_bytes())
        };
        let mut card = card.license_of_base();
        if let Some(history) = &self.history {
            write(
                HISTORY,
                &serde_json::to_string_pretty(&history.log_history())?,
            )?;
            write(PLOT, &plot(history).to_svg())?;
            card = card.plot(PLOT);
        }
        write("README.md", &card.to_markdown())?;
        Ok(folder)
    }
}

/// Returns the settings that decide over a run, as the card lists them.
fn hyperparameters(args: &TrainingArguments) -> Vec<(&'static str, String)> {
    let total = args.per_device_train_batch_size * args.gradient_accumulation_steps;
    let mut list = vec![
        ("learning_rate", format!("{:e}", args.learning_rate)),
        (
            "train_batch_size",
            args.per_device_train_batch_size.to_string(),
        ),
        (
            "eval_batch_size",
            args.per_device_eval_batch_size.to_string(),
        ),
        ("seed", args.seed.to_string()),
    ];
    if args.gradient_accumulation_steps > 1 {
        list.push((
            "gradient_accumulation_steps",
            args.gradient_accumulation_steps.to_string(),
        ));
        list.push(("total_train_batch_size", total.to_string()));
    }
    if args.optim != super::OptimizerName::AdamW {
        list.push(("optimizer", args.optim.name()));
    }
    let (beta1, beta2, epsilon) = (args.adam_beta1, args.adam_beta2, args.adam_epsilon);
    let adamw = args.optim == super::OptimizerName::AdamW;
    list.extend(adamw.then(|| {
        (
            "optimizer",
            format!("AdamW with betas ({beta1}, {beta2}) and epsilon {epsilon:e}"),
        )
    }));
    list.push(("weight_decay", args.weight_decay.to_string()));
    list.push(("lr_scheduler_type", args.lr_scheduler_type.name()));
    if args.warmup_steps > 0.0 {
        list.push(("warmup_steps", args.warmup_steps.to_string()));
    } else if args.warmup_ratio > 0.0 {
        list.push(("warmup_ratio", args.warmup_ratio.to_string()));
    }
    for (on, name) in [(args.bf16, "bf16"), (args.fp16, "fp16")] {
        if on {
            list.push(("mixed_precision_training", name.to_owned()));
        }
    }
    match args.max_steps {
        Some(steps) => list.push(("training_steps", steps.to_string())),
        None => list.push(("num_train_epochs", args.num_train_epochs.to_string())),
    }
    list
}

fn plot(history: &History) -> LossPlot {
    let evaluations = history.evaluations.iter();
    LossPlot::new()
        .train(
            history
                .steps
                .iter()
                .map(|step| (step.step, f64::from(step.loss))),
        )
        .eval(evaluations.map(|evaluation| (evaluation.step, evaluation.metrics.loss)))
        .learning_rate(
            history
                .steps
                .iter()
                .map(|step| (step.step, step.learning_rate)),
        )
}

/// Returns the evaluations, each with the mean loss of the training steps since the one before.
fn results(history: &History) -> Vec<CardResult> {
    let mut before = 0;
    let evaluations = history.evaluations.iter();
    evaluations
        .map(|evaluation| {
            let since = before;
            before = evaluation.step;
            let steps: Vec<_> = history
                .steps
                .iter()
                .filter(|step| step.step > since && step.step <= evaluation.step)
                .cloned()
                .collect();
            CardResult {
                epoch: evaluation.epoch,
                step: evaluation.step,
                train_loss: (!steps.is_empty())
                    .then(|| f64::from(super::history::mean_loss(&steps))),
                eval_loss: evaluation.metrics.loss,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_card_lists_the_versions_of_the_build() {
        let manifest = include_str!("../../Cargo.toml");
        for (name, version) in super::VERSIONS {
            let key = if name == "Candle" {
                "candle-core"
            } else {
                "tokenizers"
            };
            let expected = format!("\n{key} = {{ version = \"{version}\"");
            assert!(manifest.contains(&expected), "{name} is not at {version}");
        }
    }
}
