//! The training loop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::data::{Data, EvalData, IntoTrainingData, TrainLoader, TrainingData};
use super::exchange;
use super::metrics::Metric;
use super::overlap::Overlap;
use super::plan::{Plan, fingerprint};
use super::progress_bar::ProgressBar;
use super::progress_lines::ProgressLines;
use super::reports::Reports;
use super::run::Run;
use super::shards::Shards;
#[cfg(feature = "hub")]
use super::strategy::HubStrategy;
use super::{
    AdamW, Adapters, Callback, Control, Event, GradScaler, History, IntervalStrategy,
    LoraOptimizer, Optimizer, OptimizerName, ParamGroup, PredictionOutput, Schedule, TrainState,
    TrainingArguments,
};
use crate::base::interrupt;
use crate::collate::{Batches, Collator, DataLoader, Examples, StreamLoader};
use crate::dataset::{Dataset, DatasetDict, IterableDataset};
use crate::distributed::{self, Group};
use crate::model::MaskedLm;
use crate::ops::{self, Param, Precision};
use crate::{Error, Result};

/// Fine-tunes a masked language model, in the manner of the reference's `Trainer`.
///
/// A step takes `gradient_accumulation_steps` batches. Its loss is the mean over all masked tokens in them, its gradient
/// is clipped by its global norm, and AdamW moves the weights by the scheduled learning rate. What falls due after a
/// step (a log, an evaluation, a checkpoint) happens before the next one begins.
///
/// Two runs with equal arguments and data take exactly the same steps, and so does one that was resumed in between.
///
/// ```
/// use cloze::collate::{Example, MaskingCollator};
/// use cloze::model::{Config, MaskedLm};
/// use cloze::tokenizer::Tokenizer;
/// use cloze::train::{IntervalStrategy, Trainer, TrainingArguments};
///
/// let texts = ["a spiral galaxy", "a barred spiral galaxy", "a spiral staircase"];
/// let tokenizer = Tokenizer::train_bpe(texts, 300)?;
/// let examples: Vec<Example> = tokenizer.encode_batch(&texts)?.into_iter().map(Example::from).collect();
/// let config = Config::new("roberta")
///     .set("vocab_size", tokenizer.len())
///     .set("hidden_size", 16)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 32);
/// let model = MaskedLm::from_config(&config, 42)?;
/// let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.5);
/// # let folder = tempfile::tempdir().unwrap();
/// # let out = folder.path();
/// let args = TrainingArguments::new(out)
///     .learning_rate(1e-3)
///     .epochs(2)
///     .eval_strategy(IntervalStrategy::Epoch);
/// let mut trainer = Trainer::new(model, args, (examples.clone(), examples), collator);
/// let history = trainer.train()?;
/// assert_eq!(history.evaluations.len(), 2);
/// println!("perplexity {:.2}", trainer.evaluate()?.perplexity());
/// # Ok::<(), cloze::Error>(())
/// ```
pub struct Trainer {
    pub(super) model: MaskedLm,
    pub(super) args: TrainingArguments,
    pub(super) train_data: Data,
    pub(super) eval_data: Option<EvalData>,
    pub(super) collator: Option<Arc<dyn Collator>>,
    /// A schedule in place of the arguments'.
    schedule: Option<Schedule>,
    /// Makes the optimizer, in place of the arguments'.
    optimizer: Option<Box<MakeOptimizer>>,
    param_groups: Vec<ParamGroup>,
    pub(super) compute_metrics: Option<Box<ComputeMetrics>>,
    callbacks: Vec<Box<dyn Callback>>,
    reports: Option<Reports>,
    requests: Requests,
    /// The history of the last run.
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    pub(super) history: Option<History>,
    /// Whether the callback that pushes checkpoints is among the callbacks.
    #[cfg(feature = "hub")]
    pushes: bool,
    /// The initial scale of the loss; `None` for a precision that needs no scaling.
    pub(super) scaler: Option<GradScaler>,
    /// Whether reading a number waits for a device, so that numbers are read when something needs them.
    pub(super) reads_later: bool,
    /// The processes that train together, once they are known.
    pub(super) ranks: OnceLock<Arc<Group>>,
    /// An interrupted or failed run, which the next [`Trainer::train`] continues.
    pub(super) unfinished: Option<Box<Run>>,
}

/// Makes an optimizer that has not taken a step.
type MakeOptimizer = dyn Fn() -> Box<dyn Optimizer> + Send;

/// Metrics of predictions, by name.
pub(super) type ComputeMetrics =
    dyn Fn(&PredictionOutput) -> Result<BTreeMap<String, f64>> + Send + Sync;

/// Requests of callbacks since the last step.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Requests {
    evaluate: bool,
    save: bool,
    stop: bool,
}

impl Trainer {
    /// Returns a trainer of `model` on `data`, made into batches by `collator`.
    ///
    /// A [`DatasetDict`] is trained on its split "train" and evaluated on "validation", or else on "test"; a dataset or a
    /// list of examples is only trained on; a pair says both, `(&blocks["train"], &blocks["test"])`. [`IntoTrainingData`]
    /// has the whole list.
    ///
    /// The training examples come in a new order each epoch, as `args.order_seed()` decides. Evaluation has the same
    /// order and the same masks every time, so that its results compare.
    ///
    /// A stream is trained on for as many steps as `max_steps` of the arguments says. The order of its examples is its own
    /// ([`IterableDataset::shuffle`](crate::dataset::IterableDataset::shuffle)), not the arguments'; the steps are the same
    /// on any number of ranks with the same [`IterableDataset::lanes`](crate::dataset::IterableDataset::lanes), and a resumed
    /// run goes on from the rows where it stopped.
    ///
    /// Clones of a model share its weights: the one that is given here and kept elsewhere is trained too.
    ///
    /// ```no_run
    /// use cloze::prelude::*;
    /// # fn f(model: &MaskedLm, tokenizer: &Tokenizer, collator: MaskingCollator) -> cloze::Result<()> {
    /// let stream = load_dataset_streaming("crawl/*.jsonl.zst", "train")?
    ///     .map(Map::new(tokenizer.tokenize_column("text")).batched().remove_all_columns())?
    ///     .group_texts(512)?
    ///     .shuffle(42, 10_000);
    /// let arguments = TrainingArguments::new("pretrained").max_steps(100_000);
    /// let held_out = stream.take(500).to_dataset()?;
    /// Trainer::new(model, arguments, (&stream.skip(500), held_out), collator).train()?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// A dict without a split "train" can be evaluated; [`Trainer::train`] says that there is none.
    pub fn new(
        model: impl Into<MaskedLm>,
        args: TrainingArguments,
        data: impl IntoTrainingData,
        collator: impl Collator + 'static,
    ) -> Self {
        let collator: Arc<dyn Collator> = Arc::new(collator);
        Self::assemble(
            model.into(),
            args,
            data.into_training_data(),
            Some(collator),
        )
    }

    /// Does what [`Trainer::new`] does for a dict, and fails where that has no split "train".
    #[deprecated(note = "`Trainer::new` takes the splits as they are")]
    pub fn of_splits(
        model: impl Into<MaskedLm>,
        args: TrainingArguments,
        splits: &DatasetDict,
        collator: impl Collator + 'static,
    ) -> Result<Self> {
        splits.get("train")?;
        Ok(Self::new(model, args, splits, collator))
    }

    /// Returns a trainer on the batches of loaders, which have their own order, batch size and collator; the arguments
    /// on these have no effect. Evaluation takes the batches of its loader's epoch 0 every time.
    pub fn from_loaders(
        model: impl Into<MaskedLm>,
        args: TrainingArguments,
        train: DataLoader,
        eval: impl Into<Option<DataLoader>>,
    ) -> Self {
        let data = TrainingData {
            train: Data::Loader(train),
            eval: eval.into().map(EvalData::Loader),
        };
        Self::assemble(model.into(), args, data, None)
    }

    /// Does what [`Trainer::new`] does for a stream.
    #[deprecated(note = "`Trainer::new` takes the stream, or a pair of it and what to evaluate on")]
    pub fn of_stream(
        model: impl Into<MaskedLm>,
        args: TrainingArguments,
        train: &IterableDataset,
        eval: impl Into<Option<Dataset>>,
        collator: impl Collator + 'static,
    ) -> Self {
        Self::new(model, args, (train, eval.into()), collator)
    }

    fn assemble(
        model: MaskedLm,
        args: TrainingArguments,
        data: TrainingData,
        collator: Option<Arc<dyn Collator>>,
    ) -> Self {
        crate::ops::tune_allocator();
        // The one place where training knows of pictures: which callback shows it, in a notebook or in a terminal.
        // One rank of several shows it.
        let watcher = match super::training_display() {
            _ if !distributed::is_main() => None,
            Some(display) => Some(Box::new(display) as Box<dyn Callback>),
            None => match ProgressBar::for_terminal() {
                Some(bar) => Some(Box::new(bar) as Box<dyn Callback>),
                // A launcher passes lines on, to a cell or a file.
                None => (distributed::environment().size > 1)
                    .then(|| Box::new(ProgressLines::default()) as Box<dyn Callback>),
            },
        };
        Self {
            scaler: args.fp16.then(GradScaler::new),
            reads_later: !model.device().is_cpu(),
            model,
            args,
            train_data: data.train,
            eval_data: data.eval,
            collator,
            schedule: None,
            optimizer: None,
            param_groups: Vec::new(),
            compute_metrics: None,
            callbacks: watcher.into_iter().collect(),
            reports: None,
            requests: Requests::default(),
            history: None,
            #[cfg(feature = "hub")]
            pushes: false,
            ranks: OnceLock::new(),
            unfinished: None,
        }
    }

    /// Returns the group of processes that train together: only this one, unless a launcher started several.
    pub(super) fn ranks(&self) -> Result<Arc<Group>> {
        match self.ranks.get() {
            Some(ranks) => Ok(Arc::clone(ranks)),
            None => Ok(Arc::clone(self.ranks.get_or_init({
                let ranks = Group::current()?;
                || ranks
            }))),
        }
    }

    /// Adds a callback for the events of training; callbacks are called in the order in which they were added.
    #[must_use]
    pub fn callback(mut self, callback: impl Callback + 'static) -> Self {
        self.callbacks.push(Box::new(callback));
        self
    }

    /// Sets the metrics that evaluations compute besides the loss, from the predictions at the masked positions: pairs
    /// of a name and a number. [`masked_accuracy`](super::masked_accuracy) is one such function.
    /// `metric_for_best_model` may name one of them.
    ///
    /// ```
    /// # use cloze::prelude::*;
    /// # fn f(trainer: Trainer) -> Trainer {
    /// trainer.compute_metrics(|predictions| {
    ///     Ok([
    ///         ("accuracy", predictions.accuracy()),
    ///         ("top_5", predictions.top_k_accuracy(5)),
    ///     ])
    /// })
    /// # }
    /// ```
    #[must_use]
    pub fn compute_metrics<N: Into<String>, M: IntoIterator<Item = (N, f64)>>(
        mut self,
        compute: impl Fn(&PredictionOutput) -> Result<M> + Send + Sync + 'static,
    ) -> Self {
        self.compute_metrics = Some(Box::new(move |predictions| {
            let metrics = compute(predictions)?.into_iter();
            let named = metrics.map(|(name, value)| {
                let name: String = name.into();
                let name = name.strip_prefix("eval_").unwrap_or(&name).to_owned();
                match name.as_str() {
                    "loss" | "perplexity" => Err(Error::argument(
                        "compute_metrics",
                        format!("{name:?} is always measured; choose another name"),
                    )),
                    _ => Ok((name, value)),
                }
            });
            named.collect()
        }));
        self
    }

    /// Sets a schedule in place of the arguments' `learning_rate` and `lr_scheduler_type`.
    #[must_use]
    pub fn schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = Some(schedule);
        self
    }

    /// Replaces the optimizer that the arguments describe. Every run begins with it in its current state.
    #[must_use]
    pub fn optimizer(mut self, optimizer: impl Optimizer + Clone + 'static) -> Self {
        self.optimizer = Some(Box::new(move || Box::new(optimizer.clone())));
        self
    }

    /// Trains adapters that [`Lora::attach`](super::Lora::attach) gave the model, by AdamW as the arguments set it, and nothing
    /// else.
    ///
    /// ```
    /// # use cloze::prelude::*;
    /// # use cloze::train::Lora;
    /// # fn f(model: MaskedLm, trainer: Trainer) -> cloze::Result<()> {
    /// let adapters = Lora::new(8).targets(["query", "value"]).attach(&model)?;
    /// let mut trainer = trainer.lora(&adapters);
    /// trainer.train()?;
    /// adapters.save_pretrained("adapters")?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn lora(self, adapters: &Adapters) -> Self {
        let optimizer = LoraOptimizer::of(adapters, &self.args);
        self.optimizer(optimizer)
    }

    /// Sets a separate learning rate and weight decay for some parameters, in the optimizer that the arguments
    /// describe.
    #[must_use]
    pub fn param_groups(mut self, groups: impl IntoIterator<Item = ParamGroup>) -> Self {
        self.param_groups = groups.into_iter().collect();
        self
    }

    /// Returns the model that is trained.
    pub fn model(&self) -> &MaskedLm {
        &self.model
    }

    /// Returns the arguments.
    pub fn args(&self) -> &TrainingArguments {
        &self.args
    }

    /// Trains, and returns what happened.
    ///
    /// An interrupt ends the run after the current step: the returned history records it, a checkpoint is written
    /// (unless `save_strategy` is No), and the model can be used. Called again after an interrupt or an error, the run
    /// continues where it stopped; called again after its end, a new run starts from the current weights.
    ///
    /// # Errors
    /// Before the first step, if arguments or data are invalid. [`Error::NonFiniteLoss`] or
    /// [`Error::NonFiniteGradient`] before a step that would corrupt the weights, which are then those of the previous
    /// step. (On a GPU such a step changes no weights either, but is reported when its loss is read, some steps later.)
    /// [`Error::OutOfMemory`] with settings that need less memory.
    pub fn train(&mut self) -> Result<History> {
        self.together(|trainer| {
            let run = match trainer.unfinished.take() {
                Some(run) => run,
                None => {
                    let run = Box::new(trainer.begin()?);
                    exchange::share_weights(&*trainer.ranks()?, trainer.model.params())?;
                    run
                }
            };
            trainer.drive(run)
        })
    }

    /// Does `work` that all ranks do: where one fails all do, and where one panics all end.
    pub(super) fn together<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let ranks = self.ranks()?;
        let _guard = ranks.panic_guard();
        ranks.begin();
        let result = work(self);
        ranks.settle(result)
    }

    /// Returns a run before its first step.
    pub(super) fn begin(&self) -> Result<Run> {
        self.args.validate()?;
        let ranks = self.ranks()?;
        let precision = self.precision()?;
        if self.compute_metrics.is_none() {
            Metric::of_best(&self.args).check_known()?;
        }
        let evaluates = self.args.eval_strategy != IntervalStrategy::No || self.args.eval_on_start;
        if evaluates && self.eval_data.is_none() {
            return Err(Error::argument(
                "eval_strategy",
                "there are no examples to evaluate on; give the trainer splits with one called \"validation\" or \"test\", or a \
                 pair (&train, &eval), or set eval_strategy to No",
            ));
        }
        let loader = self.train_loader()?;
        let plan = Plan::new(&self.args, loader.batches_per_epoch(), ranks.size())?;
        let first = loader.first_batch().next().transpose()?;
        if let Some(batch) = &first
            && self.args.label_smoothing_factor != 0.0
            && (self.model.counts(batch).len() > 1 || self.model.main_input() != "input_ids")
        {
            return Err(Error::argument(
                "label_smoothing_factor",
                format!(
                    "{} has its own loss, whose labels can't be smoothed; turn this off",
                    self.model.class()
                ),
            ));
        }
        let mut data = first.as_ref().map(fingerprint).unwrap_or_default();
        if loader.batches_per_epoch().is_none() {
            data = format!("{data} {}", loader.identity());
        }
        if ranks.size() > 1 {
            let shapes = self.model.params().iter().map(|param| param.shape().dims());
            let shapes = serde_json::to_string(&shapes.collect::<Vec<_>>())?;
            exchange::check_equal(&ranks, "a model", digest(&shapes))?;
            exchange::check_equal(
                &ranks,
                "training data",
                format!("{data} {}", loader.identity()),
            )?;
            let args = serde_json::to_string(&self.args)?;
            exchange::check_equal(&ranks, "training arguments", digest(&args))?;
        }
        if !self.model.params().iter().any(Param::is_trainable) {
            return Err(Error::argument(
                "model",
                "all its parameters are frozen, so there is nothing to train; freeze fewer",
            ));
        }
        let several = ranks.size() > 1;
        let plain = self.args.optim == OptimizerName::AdamW
            && self.args.layerwise_lr_decay.is_none()
            && self.param_groups.is_empty()
            && self.optimizer.is_none();
        if several && self.args.shard_optimizer && !plain {
            return Err(Error::argument(
                "shard_optimizer",
                "only the state of AdamW with the same settings for all parameters can be sharded so far; turn this off",
            ));
        }
        let shards = match several && self.args.shard_optimizer {
            true => Some(Shards::new(&ranks, self.model.params())?),
            false => None,
        };
        let optimizer: Box<dyn Optimizer> = match (&shards, &self.optimizer) {
            (Some(shards), _) => Box::new(self.set_up(AdamW::from_params(&shards.params()))),
            (None, Some(fresh)) => fresh(),
            (None, None) => {
                super::make_optimizer::optimizer(&self.args, &self.model, &self.param_groups)?
            }
        };
        let schedule = match &self.schedule {
            Some(schedule) => schedule.clone().checked()?,
            None => self.args.schedule(plan.max_steps)?,
        };
        let mut run = Run::new(plan, data, optimizer, schedule);
        run.scaler.clone_from(&self.scaler);
        let overlaps = several && self.args.overlap_exchange && shards.is_none();
        run.overlap = overlaps.then(Overlap::default);
        run.shards = shards;
        run.history.peak_flops = match self.args.peak_tflops {
            Some(tera) => Some(tera * 1e12),
            None => super::peak_flops(self.model.device(), precision),
        };
        // Operations are counted over all ranks, each of which has a device.
        let devices = ranks.size() as f64;
        run.history.peak_flops = run.history.peak_flops.map(|peak| peak * devices);
        Ok(run)
    }

    /// Gives an optimizer the settings of the arguments.
    pub(super) fn set_up(&self, optimizer: AdamW) -> AdamW {
        optimizer
            .weight_decay(self.args.weight_decay)
            .betas(self.args.adam_beta1, self.args.adam_beta2)
            .eps(self.args.adam_epsilon)
    }

    /// Brings a run to its end, or keeps it for later.
    pub(super) fn drive(&mut self, mut run: Box<Run>) -> Result<History> {
        self.requests = Requests::default();
        let begun = match self.ranks()?.is_main() {
            true => self.begin_pushing(),
            false => Ok(()),
        };
        if let Err(error) = begun {
            self.unfinished = Some(run);
            return Err(error);
        }
        (run.history.interrupted, run.history.stopped_early) = (false, false);
        run.start_clock();
        self.reports = self.ranks()?.is_main().then(|| Reports::of(&self.args));
        ops::reset_peak_memory(self.model.device());
        let ranks = self.ranks()?;
        // All ranks tell of the end, whichever of them failed.
        let result = ranks.settle(self.steps(&mut run));
        // After an error, half of a step's gradients may be there.
        self.model.zero_grad();
        run.note_progress();
        let (state, history) = (run.state(), run.history.clone());
        if result.is_err() || history.interrupted {
            self.unfinished = Some(run);
        }
        let emitted = self.emit(Event::TrainEnd {
            state,
            history: history.clone(),
        });
        self.reports = None;
        self.history = Some(history.clone());
        // The first error is the one to tell.
        result.and(emitted)?;
        if !history.interrupted && self.ranks()?.is_main() {
            self.push_at_the_end();
        }
        Ok(history)
    }

    /// Without networking there is nothing to push with, and that is said before the training.
    #[cfg(not(feature = "hub"))]
    fn begin_pushing(&self) -> Result<()> {
        match self.args.push_to_hub {
            false => Ok(()),
            true => Err(Error::argument(
                "push_to_hub",
                "this build of cloze can't reach the Hub: build it with the feature \"hub\"",
            )),
        }
    }

    #[cfg(not(feature = "hub"))]
    fn push_at_the_end(&self) {}

    /// Pushes checkpoints during training, if the arguments ask for it.
    #[cfg(feature = "hub")]
    fn begin_pushing(&mut self) -> Result<()> {
        let pushes = self.args.push_to_hub && self.args.hub_strategy == HubStrategy::EverySave;
        if pushes && !self.pushes {
            let push = self.args.push_callback()?;
            self.callbacks.push(Box::new(push));
            self.pushes = true;
        }
        Ok(())
    }

    /// Pushes the trained model if the arguments ask for it. A push that fails is reported and does not lose the training.
    #[cfg(feature = "hub")]
    fn push_at_the_end(&self) {
        if self.args.push_to_hub {
            match self.push_to_hub() {
                Ok(pushed) => eprintln!("note: pushed to {}", pushed.url),
                Err(error) => {
                    eprintln!("warning: the training is complete, but the push failed: {error}")
                }
            }
        }
    }

    /// The loop: one turn is one optimizer step.
    pub(super) fn steps(&mut self, run: &mut Run) -> Result<()> {
        let (state, history) = (run.state(), run.history.clone());
        self.emit(Event::TrainBegin { state, history })?;
        let loader = self.train_loader()?;
        let ranks = self.ranks()?;
        let (rank, size) = (ranks.rank(), ranks.size());
        let mut batches: Option<Batches> = None;
        loop {
            match self.after_step(run) {
                // An evaluation was interrupted; it comes first when the run goes on.
                Err(Error::Interrupted(_)) => {
                    ranks.begin();
                    return self.pause(run);
                }
                other => other?,
            }
            if run.is_complete() || run.history.stopped_early {
                return self.finish(run);
            }

            let started = Instant::now();
            let at = run.plan.position(run.step);
            let epoch = match batches.take() {
                Some(epoch) if at.batch > 0 => epoch,
                _ => {
                    let plan = run.plan;
                    let mine = move |batch| plan.is_dealt_to(batch, rank, size);
                    loader.batches_where(at, &run.lanes, mine)
                }
            };
            let epoch = batches.insert(epoch);
            let mine = (rank..run.plan.batches(run.step)).step_by(size);
            let passes = mine.clone().map(|batch| at.pass + batch as u64);
            let group = epoch.take(mine.len()).collect::<Result<Vec<_>>>();
            let lanes = epoch.lanes().clone();
            self.take_step(run, group, passes, started)?;
            run.lanes.extend(lanes);
            if self.must_read(run) {
                self.read_steps(run)?;
            }
            if ranks.any("an interrupt", interrupt::take())? {
                return self.pause(run);
            }
        }
    }

    /// Returns the precision that the arguments ask for, on the model's device.
    pub(super) fn precision(&self) -> Result<Precision> {
        super::precision::choose(&self.args, self.model.device())
    }

    /// Does what falls due after the current step and has not been done: log, evaluate, save, give up.
    pub(super) fn after_step(&mut self, run: &mut Run) -> Result<()> {
        if run.step == 0 {
            if self.args.eval_on_start && run.history.evaluations.is_empty() {
                self.evaluate_in(run)?;
            }
            return Ok(());
        }
        let metric = &Metric::of_best(&self.args);
        if run.log_is_due(&self.args)
            && let Some(log) = run.log()
        {
            run.history.logs.push(log);
            let state = run.state();
            self.emit(Event::Log { state, log })?;
        }
        if run.evaluation_is_due(&self.args, self.requests.evaluate) {
            self.evaluate_in(run)?;
            run.note_best(metric);
        }
        if run.save_is_due(&self.args, self.requests.save) {
            self.save_checkpoint(run, metric)?;
        }
        run.history.stopped_early =
            !run.is_complete() && (self.requests.stop || run.gives_up(&self.args, metric));
        self.requests = Requests::default();
        Ok(())
    }

    /// Leaves an interrupted run so that it can be continued, now or from disk.
    fn pause(&mut self, run: &mut Run) -> Result<()> {
        self.read_steps(run)?;
        interrupt::clear();
        run.history.interrupted = true;
        if self.args.save_strategy != IntervalStrategy::No && run.saved.last() != Some(&run.step) {
            self.save_checkpoint(run, &Metric::of_best(&self.args))?;
        }
        Ok(())
    }

    fn finish(&mut self, run: &mut Run) -> Result<()> {
        check_anything_counted(&run.history)?;
        if self.args.load_best_model_at_end
            && let Some(best) = run.history.best_step
            && best != run.step
        {
            self.load_weights_of(best)?;
        }
        Ok(())
    }

    /// Calls all callbacks, and collects their requests from all ranks.
    pub(super) fn emit(&mut self, event: Event) -> Result<()> {
        let emitted = self.emit_locally(&event);
        let ranks = self.ranks()?;
        if ranks.size() == 1 {
            return emitted;
        }
        let requests = self.requests;
        for requests in ranks.vote(event.name(), emitted.map(|()| requests))? {
            self.requests.evaluate |= requests.evaluate;
            self.requests.save |= requests.save;
            self.requests.stop |= requests.stop;
        }
        Ok(())
    }

    /// Calls the callbacks of this rank only, for events that the other ranks may not reach, or not at the same time.
    pub(super) fn emit_locally(&mut self, event: &Event) -> Result<()> {
        if let Some(reports) = &mut self.reports {
            reports.note(event);
        }
        for callback in &mut self.callbacks {
            match callback.on_event(event)? {
                Control::Continue => {}
                Control::Evaluate => self.requests.evaluate = true,
                Control::Save => self.requests.save = true,
                Control::Stop => self.requests.stop = true,
            }
        }
        Ok(())
    }

    pub(super) fn train_loader(&self) -> Result<TrainLoader> {
        match &self.train_data {
            Data::Loader(loader) => Ok(TrainLoader::Epochs(loader.clone())),
            Data::Examples(examples) => self.shuffled(examples),
            Data::Splits(splits) => {
                let train: Arc<dyn Examples> = Arc::new(splits.get("train")?.clone());
                self.shuffled(&train)
            }
            Data::Stream(_) if self.args.group_by_length => Err(Error::argument(
                "group_by_length",
                "the lengths of a stream's examples are not known in advance; turn this off",
            )),
            Data::Stream(stream) => {
                let collator = self.collator_of_examples()?;
                let loader =
                    StreamLoader::new(stream, collator, self.args.per_device_train_batch_size)?;
                Ok(TrainLoader::Stream(loader))
            }
        }
    }

    fn shuffled(&self, examples: &Arc<dyn Examples>) -> Result<TrainLoader> {
        let loader = self
            .loader(examples, self.args.per_device_train_batch_size)?
            .shuffle(self.args.order_seed())
            .drop_last(self.args.dataloader_drop_last)
            .group_by_length(self.args.group_by_length)?;
        Ok(TrainLoader::Epochs(loader))
    }

    fn collator_of_examples(&self) -> Result<Arc<dyn Collator>> {
        self.collator.clone().ok_or_else(|| {
            Error::argument(
                "examples",
                "a trainer made from loaders has no collator for examples; give it a loader",
            )
        })
    }

    /// Returns a loader of `examples` in their order.
    pub(super) fn loader(
        &self,
        examples: &Arc<dyn Examples>,
        batch_size: usize,
    ) -> Result<DataLoader> {
        DataLoader::new(
            Arc::clone(examples),
            self.collator_of_examples()?,
            batch_size,
        )
    }

    /// Returns the step of the trainer when it is not training.
    pub(super) fn idle_state(&self) -> TrainState {
        match &self.unfinished {
            Some(run) => run.state(),
            None => TrainState::default(),
        }
    }

    /// Returns the folder of the checkpoint after `step`.
    pub(super) fn checkpoint_folder(&self, step: usize) -> PathBuf {
        super::checkpoint::folder(&self.args.output_dir, step)
    }
}

fn digest(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

/// A batch without a masked token is bad luck; an epoch of them is a mistake.
pub(super) fn check_anything_counted(history: &History) -> Result<()> {
    if history.steps.iter().any(|step| step.counted > 0) {
        return Ok(());
    }
    Err(Error::argument(
        "labels",
        "no token of the training data was masked, so there is nothing to learn (is mlm_probability 0?)",
    ))
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Trainer({:?}, checkpoints in {:?}",
            self.model, self.args.output_dir
        )?;
        if let Some(run) = &self.unfinished {
            write!(
                f,
                ", stopped after step {} of {}",
                run.step, run.plan.max_steps
            )?;
        }
        write!(f, ")")
    }
}
