//! Evaluation and prediction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{D, DType, Tensor};
use serde::{Deserialize, Serialize};

use super::data::EvalData;
use super::metrics::Metric;
use super::out_of_memory::{self, Use};
use super::prediction::{MaskedPrediction, PredictionOutput, SpokenPrediction};
use super::run::Run;
use super::{EvalMetrics, Evaluation, Event, TrainState, Trainer};
use crate::base::interrupt;
use crate::collate::{DataLoader, Examples, IntoExamples, MlmBatch};
use crate::distributed::Group;
use crate::model::{Context, INPUT_VALUES, MaskedLm, ModelInputs};
use crate::{Error, Result, ops};

/// The model's results for a batch, as exchanged between ranks.
#[derive(Serialize, Deserialize)]
struct Predicted {
    number: usize,
    samples: usize,
    tokens: Vec<PredictedToken>,
    /// Of a speech model, for each example: what was said, and the letter of each frame.
    spoken: Vec<(Vec<u32>, Vec<u32>)>,
}

/// The example in its batch, the position, the label, the prediction, the loss's bits, and the label's rank.
type PredictedToken = (usize, usize, u32, u32, u32, u32);

impl Trainer {
    /// Returns the loss over the evaluation data, each masked token weighing the same.
    ///
    /// The masks depend on the collator's seed and are the same every time, so that results before, during and after
    /// training can be compared.
    ///
    /// # Errors
    /// When the trainer has no evaluation data, or nothing in them is masked. [`Error::Interrupted`] when interrupted.
    pub fn evaluate(&mut self) -> Result<EvalMetrics> {
        self.together(|trainer| {
            trainer.args.validate()?;
            let loader = trainer.eval_loader()?;
            let state = trainer.idle_state();
            let metrics = trainer.evaluate_with(&loader, state)?;
            let told = metrics.clone();
            trainer.emit(Event::Evaluate {
                state,
                metrics: told,
            })?;
            Ok(metrics)
        })
    }

    /// Returns the loss over the batches of `loader`.
    pub fn evaluate_on(&mut self, loader: &DataLoader) -> Result<EvalMetrics> {
        let state = self.idle_state();
        self.together(|trainer| trainer.evaluate_with(loader, state))
    }

    /// Masks `examples` with the trainer's collator and lets the model guess.
    pub fn predict(&mut self, examples: impl IntoExamples) -> Result<PredictionOutput> {
        self.args.validate()?;
        let examples: Arc<dyn Examples> = Arc::new(examples.into_examples());
        let loader = self.loader(&examples, self.args.per_device_eval_batch_size)?;
        self.predict_on(&loader)
    }

    /// Lets the model guess the masked tokens of `loader`'s batches.
    pub fn predict_on(&mut self, loader: &DataLoader) -> Result<PredictionOutput> {
        let started = Instant::now();
        if self.model.main_input() != "input_ids" {
            return Err(Error::argument(
                "loader",
                format!(
                    "{} reads no tokens, so it can't predict masked ones; use SpeechRecognizer to transcribe recordings",
                    self.model.class()
                ),
            ));
        }
        let found = self.together(|trainer| {
            let ranks = trainer.ranks()?;
            ranks.vote("a prediction", trainer.predict_here(&ranks, loader))
        })?;
        let batches: Vec<Predicted> = found.into_iter().flatten().collect();
        let samples = batches.iter().map(|batch| batch.samples).sum();
        let (tokens, spoken) = in_order(batches, loader.batch_size());
        let sum: f64 = tokens.iter().map(|token| f64::from(token.loss)).sum();
        let metrics = EvalMetrics {
            loss: mean(sum, tokens.len())?,
            counted: tokens.len(),
            samples,
            seconds: started.elapsed().as_secs_f64(),
            computed: BTreeMap::new(),
        };
        let mut output = PredictionOutput {
            tokens,
            spoken,
            metrics,
        };
        if let Some(compute) = &self.compute_metrics {
            output.metrics.computed = compute(&output)?;
        }
        Ok(output)
    }

    /// Lets the model guess the masked tokens of the batches that are dealt to this rank.
    fn predict_here(&self, ranks: &Group, loader: &DataLoader) -> Result<Vec<Predicted>> {
        let precision = self.precision()?;
        let (rank, size) = (ranks.rank(), ranks.size());
        let numbers = (rank..).step_by(size);
        let batches = loader.epoch_where(0, 0, move |number| number % size == rank);
        let predict = |(number, batch): (usize, Result<MlmBatch>)| {
            interrupt::check("predicting")?;
            let batch = batch?;
            let predicted = ops::autocast(precision, || {
                predict_batch(&self.model, &batch, number, None)
            });
            predicted.map_err(|error| {
                let batches = std::slice::from_ref(&batch);
                out_of_memory::explain(error, batches, Use::Evaluation, &self.args)
            })
        };
        numbers.zip(batches).map(predict).collect()
    }

    /// An evaluation within a run.
    pub(super) fn evaluate_in(&mut self, run: &mut Run) -> Result<()> {
        let loader = self.eval_loader()?;
        let state = run.state();
        let metrics = self.evaluate_with(&loader, state)?;
        Metric::of_best(&self.args).of(&metrics)?;
        if !metrics.loss.is_finite() {
            return Err(Error::NonFiniteLoss {
                step: run.step,
                loss: metrics.loss as f32,
                learning_rate: run
                    .history
                    .steps
                    .last()
                    .map_or(0.0, |step| step.learning_rate),
            });
        }
        run.history.evaluations.push(Evaluation {
            step: state.step,
            epoch: state.epoch,
            metrics: metrics.clone(),
        });
        self.emit(Event::Evaluate {
            state: run.state(),
            metrics,
        })
    }

    fn evaluate_with(&mut self, loader: &DataLoader, state: TrainState) -> Result<EvalMetrics> {
        let model = self.model.clone();
        let total = loader.len();
        let args = self.args.clone();
        let explain = |error, batch: &MlmBatch| {
            let batches = std::slice::from_ref(batch);
            out_of_memory::explain(error, batches, Use::Evaluation, &args)
        };
        let metric = Metric::of_best(&self.args);
        let wanted = self.compute_metrics.is_some() || metric.needs_predictions();
        let ranks = self.ranks()?;
        let context = Context::eval().label_smoothing(args.label_smoothing_factor);
        let task = Task {
            deal: (ranks.rank(), ranks.size()),
            context: if wanted {
                context.keeping_logits()
            } else {
                context
            },
            predicts: wanted,
        };
        let started = Instant::now();
        let precision = self.precision();
        let here = precision.and_then(|precision| {
            ops::autocast(precision, || {
                measure(&model, loader, &task, explain, |done| {
                    self.emit_locally(&Event::EvaluateStep { state, done, total })
                })
            })
        });
        let mut everywhere = ranks.vote("an evaluation", here)?;
        let predicted = everywhere.iter_mut();
        let predicted = predicted.flat_map(|of| std::mem::take(&mut of.predicted));
        let (tokens, spoken) = in_order(predicted.collect(), loader.batch_size());
        let metrics = Measured::metrics(everywhere, started)?;
        if !wanted {
            return Ok(metrics);
        }
        let mut output = PredictionOutput {
            tokens,
            spoken,
            metrics,
        };
        if let Some(compute) = &self.compute_metrics {
            output.metrics.computed = compute(&output)?;
        }
        if metric.needs_predictions() {
            let accuracy = output.accuracy();
            let computed = &mut output.metrics.computed;
            computed.entry("accuracy".to_owned()).or_insert(accuracy);
        }
        Ok(output.metrics)
    }

    fn eval_loader(&self) -> Result<DataLoader> {
        match &self.eval_data {
            Some(EvalData::Loader(loader)) => Ok(loader.clone()),
            Some(EvalData::Examples(examples)) => {
                self.loader(examples, self.args.per_device_eval_batch_size)
            }
            None => Err(Error::argument(
                "eval",
                "there are no examples to evaluate on; give the trainer splits with one called \"validation\" or \"test\", or a \
                 pair (&train, &eval)",
            )),
        }
    }
}

/// Lets the model guess the masked tokens of a batch, which has that number. `logits` are those of the positions whose label
/// counts, where a loss has left them.
fn predict_batch(
    model: &MaskedLm,
    batch: &MlmBatch,
    number: usize,
    logits: Option<Tensor>,
) -> Result<Predicted> {
    let mut predicted = Predicted {
        number,
        samples: batch.batch,
        tokens: Vec::new(),
        spoken: Vec::new(),
    };
    if model.main_input() == INPUT_VALUES {
        predicted.spoken = hear_batch(model, batch)?;
        return Ok(predicted);
    }
    let (rows, labels) = batch.counted(model.vocab_size())?;
    if rows.is_empty() {
        return Ok(predicted);
    }
    let logits = match logits {
        Some(logits) => logits,
        None => model.logits_at(batch, rows.clone())?,
    };
    let logits = logits.to_dtype(DType::F32)?;
    let best: Vec<u32> = logits.argmax(D::Minus1)?.to_vec1()?;
    let targets = Tensor::new(labels.as_slice(), logits.device())?.unsqueeze(1)?;
    let log_sums = logits.log_sum_exp(D::Minus1)?;
    let of_labels = logits.gather(&targets, 1)?;
    let losses: Vec<f32> = (log_sums - of_labels.squeeze(1)?)?.to_vec1()?;
    let above = logits.broadcast_gt(&of_labels)?.to_dtype(DType::U32)?;
    let ranks: Vec<u32> = above.sum(D::Minus1)?.to_vec1()?;
    // The labels of a decoder are not as many as the tokens that the encoder reads.
    let length = batch.label_values().len() / batch.batch.max(1);
    for (i, &row) in rows.iter().enumerate() {
        let (example, position) = (row as usize / length, row as usize % length);
        let token = (
            example,
            position,
            labels[i],
            best[i],
            losses[i].to_bits(),
            ranks[i],
        );
        predicted.tokens.push(token);
    }
    Ok(predicted)
}

/// Returns what was said in each recording of a batch, and the letter of each of its frames; one by one, without padding.
fn hear_batch(model: &MaskedLm, batch: &MlmBatch) -> Result<Vec<(Vec<u32>, Vec<u32>)>> {
    let samples = batch.seq;
    let values = batch.floats_of(INPUT_VALUES, &[batch.batch, samples])?;
    let labels = batch.label_values();
    let letters = labels.len() / batch.batch.max(1);
    let hear = |row: usize| -> Result<_> {
        let mask = &batch.attention_mask[row * samples..(row + 1) * samples];
        let sound = mask.iter().take_while(|&&seen| seen != 0).count();
        let values = values[row * samples..row * samples + sound].to_vec();
        let logits = model.forward(ModelInputs::from_waveforms(values, (1, sound))?)?;
        let said = &labels[row * letters..(row + 1) * letters];
        let said = said.iter().filter_map(|&label| u32::try_from(label).ok());
        let written = logits.argmax(D::Minus1)?.flatten_all()?.to_vec1()?;
        Ok((said.collect(), written))
    };
    (0..batch.batch).map(hear).collect()
}

/// Puts what the ranks' models say in the order of the data, batch by batch, whichever rank it was dealt to.
fn in_order(
    mut batches: Vec<Predicted>,
    batch_size: usize,
) -> (Vec<MaskedPrediction>, Vec<SpokenPrediction>) {
    let mut spoken = Vec::new();
    batches.sort_by_key(|batch| batch.number);
    let mut tokens = Vec::with_capacity(batches.iter().map(|batch| batch.tokens.len()).sum());
    for batch in batches {
        let first = batch.number * batch_size;
        let token = |(example, position, label, predicted, loss, rank)| MaskedPrediction {
            example: first + example,
            position,
            label,
            predicted,
            loss: f32::from_bits(loss),
            rank,
        };
        tokens.extend(batch.tokens.into_iter().map(token));
        let heard = batch.spoken.into_iter().enumerate();
        spoken.extend(heard.map(|(row, (labels, predicted))| SpokenPrediction {
            example: first + row,
            labels,
            predicted,
        }));
    }
    (tokens, spoken)
}

/// Returns the loss of `model` over the batches of `loader`'s epoch 0, each masked token weighing the same: what
/// [`Trainer::evaluate`] does, for a loop by hand.
///
/// # Errors
/// When nothing in the data is masked. [`Error::Interrupted`] when interrupted.
///
/// ```
/// use cloze::prelude::*;
///
/// let tokenizer = Tokenizer::train_bpe(["a spiral galaxy", "a spiral staircase"], 300)?;
/// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let examples = vec![Example::from(tokenizer.encode("a spiral galaxy is a galaxy")?)];
/// let loader = DataLoader::new(examples, MaskingCollator::new(&tokenizer).mlm_probability(0.5), 8)?;
/// // Always the same masks, so that results compare.
/// assert_eq!(evaluate(&model, &loader)?.loss, evaluate(&model, &loader)?.loss);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn evaluate(model: &MaskedLm, loader: &DataLoader) -> Result<EvalMetrics> {
    let started = Instant::now();
    let task = Task {
        deal: (0, 1),
        context: Context::eval(),
        predicts: false,
    };
    let measured = measure(model, loader, &task, |error, _| error, |_| Ok(()))?;
    Measured::metrics(vec![measured], started)
}

/// Batches of an evaluation whose losses wait to be read.
const AHEAD: usize = 8;

/// The results of a rank's batches in an evaluation.
#[derive(Default, Serialize, Deserialize)]
struct Measured {
    samples: usize,
    /// The number of each batch in which something counts.
    batches: Vec<usize>,
    /// For each of them and each term the sum, as bits, and the count.
    terms: Vec<Vec<(u64, usize)>>,
    /// The model's predictions, where they are wanted.
    predicted: Vec<Predicted>,
}

/// Which batches are measured, and how.
struct Task {
    /// The rank, and how many there are.
    deal: (usize, usize),
    context: Context,
    /// Whether the guesses of the model are wanted.
    predicts: bool,
}

impl Measured {
    /// Sums the measurements of all ranks, batch by batch: in the same order whichever rank a batch was dealt to.
    fn metrics(ranks: Vec<Self>, started: Instant) -> Result<EvalMetrics> {
        let samples = ranks.iter().map(|rank| rank.samples).sum();
        let of = |rank: Self| rank.batches.into_iter().zip(rank.terms);
        let mut batches: Vec<_> = ranks.into_iter().flat_map(of).collect();
        batches.sort_by_key(|(number, _)| *number);
        let (mut sums, mut counts) = (Vec::new(), Vec::new());
        for (_, terms) in batches {
            sums.resize(terms.len(), 0.0);
            counts.resize(terms.len(), 0);
            for (term, (sum, count)) in terms.into_iter().enumerate() {
                sums[term] += f64::from_bits(sum);
                counts[term] += count;
            }
        }
        let mut loss = 0.0;
        for (&sum, &count) in sums.iter().zip(&counts) {
            loss += if count > 0 { mean(sum, count)? } else { 0.0 };
        }
        let counted = counts.iter().sum();
        Ok(EvalMetrics {
            loss: if counted == 0 { mean(0.0, 0)? } else { loss },
            counted,
            samples,
            seconds: started.elapsed().as_secs_f64(),
            computed: BTreeMap::new(),
        })
    }
}

/// Measures the batches that are dealt to one rank of several, telling `after` how many batches are done on all; `explain`
/// turns a batch's error into one that helps.
fn measure(
    model: &MaskedLm,
    loader: &DataLoader,
    task: &Task,
    explain: impl Fn(Error, &MlmBatch) -> Error,
    mut after: impl FnMut(usize) -> Result<()>,
) -> Result<Measured> {
    let (rank, ranks) = task.deal;
    let mut measured = Measured::default();
    // Read a few at a time, so that a GPU has the next batches to work on meanwhile.
    let mut unread = Vec::with_capacity(AHEAD);
    let mut batches = loader.epoch_where(0, 0, move |number| number % ranks == rank);
    let mut number = rank;
    while let Some(batch) = batches.next() {
        interrupt::check("evaluating")?;
        let batch = batch?;
        measured.samples += batch.batch;
        if model.counts(&batch).iter().any(|&count| count > 0) {
            let loss = ops::no_grad(|| model.loss(&batch, &task.context))
                .map_err(|error| explain(error, &batch))?;
            unread.push(loss);
            measured.batches.push(number);
        }
        if task.predicts {
            let predicted = predict_batch(model, &batch, number, task.context.take_logits());
            let predicted = predicted.map_err(|error| explain(error, &batch))?;
            measured.predicted.push(predicted);
        }
        if unread.len() >= AHEAD || batches.len() == 0 {
            for loss in unread.drain(..) {
                let mut terms = Vec::with_capacity(loss.terms.len());
                for part in loss.terms {
                    let sum = part.sum.to_dtype(DType::F32)?.to_scalar::<f32>()?;
                    terms.push(((part.weight * f64::from(sum)).to_bits(), part.count));
                }
                measured.terms.push(terms);
            }
        }
        number += ranks;
        after((number - rank).min(loader.len()))?;
    }
    Ok(measured)
}

fn mean(sum: f64, counted: usize) -> Result<f64> {
    if counted == 0 {
        return Err(Error::argument(
            "labels",
            "no token of the evaluation data is masked, so there is no loss (is mlm_probability 0?)",
        ));
    }
    Ok(sum / counted as f64)
}
