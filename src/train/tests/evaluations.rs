//! What evaluations measure, and what depends on it.

use super::{AsTheyAre, bits, model, nowhere, rows, rows_of, trainer};
use crate::collate::{BatchKey, Collator};
use crate::model::Context;
use crate::train::{
    IntervalStrategy, SchedulerKwargs, Trainer, TrainingArguments, evaluate, masked_accuracy,
};

/// Returns the highest logit's token at every masked place of the evaluation rows, and the true one's rank.
fn by_hand(model: &crate::model::MaskedLm) -> (f64, f64, f64) {
    let (mut right, mut among, mut loss, mut count) = (0, 0, 0.0, 0);
    for row in rows(9) {
        let inputs = crate::collate::MlmBatch::new(row.input_ids.clone(), (1, 6)).unwrap();
        let logits = model.forward(inputs).unwrap();
        let logits: Vec<Vec<f32>> = logits.squeeze(0).unwrap().to_vec2().unwrap();
        for (t, label) in row.labels.unwrap().into_iter().enumerate() {
            if label < 0 {
                continue;
            }
            let of_label = logits[t][label as usize];
            let rank = logits[t].iter().filter(|&&x| x > of_label).count();
            let sum: f64 = logits[t].iter().map(|&x| f64::from(x).exp()).sum();
            right += usize::from(rank == 0);
            among += usize::from(rank < 5);
            loss += sum.ln() - f64::from(of_label);
            count += 1;
        }
    }
    let part = |n: usize| n as f64 / f64::from(count);
    (part(right), part(among), loss / f64::from(count))
}

#[test]
fn metrics_are_computed_from_the_predictions_at_masked_positions() {
    let trained = model(3);
    let args = nowhere().eval_strategy("epoch").epochs(20);
    let mut trainer = trainer(args, &trained).compute_metrics(|predictions| {
        Ok([
            ("accuracy", predictions.accuracy()),
            ("eval_top_5", predictions.top_k_accuracy(5)),
        ])
    });
    let history = trainer.train().unwrap();
    let (right, among, loss) = by_hand(&trained);
    assert!(right > 0.2 && among > right, "{right} {among}");
    let last = &history.evaluations.last().unwrap().metrics;
    assert_eq!(last.get("accuracy"), Some(right));
    assert_eq!(last.get("eval_top_5"), Some(among));
    assert!((last.loss - loss).abs() < 1e-5);
    let logged = history.log_history().pop().unwrap();
    assert_eq!(logged["eval_accuracy"], right);
    let again = trainer.evaluate().unwrap();
    assert_eq!(again.computed, last.computed);
    let written = serde_json::to_string(&history).unwrap();
    let read: crate::train::History = serde_json::from_str(&written).unwrap();
    assert_eq!(read.evaluations, history.evaluations);
}

#[test]
fn the_loss_pass_also_returns_the_logits() {
    let model = model(3);
    let rows = rows(4);
    let batch = AsTheyAre.collate(&rows, BatchKey::new(0, 0)).unwrap();
    let context = Context::eval().keeping_logits();
    assert!(context.take_logits().is_none());
    model.loss(&batch, &context).unwrap();
    let kept: Vec<Vec<f32>> = context.take_logits().unwrap().to_vec2().unwrap();
    let (places, _) = batch.counted(model.vocab_size()).unwrap();
    let again: Vec<Vec<f32>> = model.logits_at(&batch, places).unwrap().to_vec2().unwrap();
    assert_eq!(kept.len(), again.len());
    for (kept, again) in kept.iter().flatten().zip(again.iter().flatten()) {
        assert!((kept - again).abs() < 1e-5);
    }
    // They are given once, and to nobody who did not ask.
    assert!(context.take_logits().is_none());
    let plain = Context::eval();
    model.loss(&batch, &plain).unwrap();
    assert!(plain.take_logits().is_none());
}

#[test]
fn the_best_model_may_be_chosen_by_accuracy() {
    let out = tempfile::tempdir().unwrap();
    let trained = model(3);
    let args = TrainingArguments::new(out.path())
        .per_device_train_batch_size(4)
        .epochs(12)
        .learning_rate(4e-2)
        .evaluation_strategy("epoch")
        .save_strategy("best")
        .metric_for_best_model("eval_accuracy")
        .load_best_model_at_end(true);
    let mut trainer = trainer(args, &trained);
    let history = trainer.train().unwrap();
    let of = |e: &crate::train::Evaluation| e.metrics.get("accuracy").unwrap();
    // Only evaluations that are better than all before have a checkpoint.
    let mut best = f64::NEG_INFINITY;
    for evaluation in &history.evaluations {
        let saved = out.path().join(format!("checkpoint-{}", evaluation.step));
        assert_eq!(saved.is_dir(), of(evaluation) > best, "{evaluation:?}");
        best = best.max(of(evaluation));
    }
    let step = history.best_step.unwrap();
    let at = history.evaluations.iter().find(|e| e.step == step).unwrap();
    assert_eq!(of(at), best);
    assert_eq!(trainer.evaluate().unwrap().get("accuracy"), Some(best));
}

#[test]
fn an_unknown_metric_lists_the_known_ones() {
    let args = nowhere().eval_strategy("epoch").metric_for_best_model("f1");
    let mut trainer = trainer(args, &model(1)).compute_metrics(masked_accuracy);
    let error = trainer.train().unwrap_err().to_string();
    assert!(
        error.contains("\"f1\"") && error.contains("loss, perplexity, accuracy"),
        "{error}"
    );
}

#[test]
fn an_evaluation_before_the_first_step_affects_nothing_else() {
    let untrained = model(2);
    let args = nowhere().eval_on_start(true).eval_strategy("epoch");
    let history = trainer(args.clone(), &untrained).train().unwrap();
    let steps: Vec<usize> = history.evaluations.iter().map(|e| e.step).collect();
    assert_eq!(steps, [0, 6, 12]);
    let fresh = model(2);
    let before = trainer(args, &fresh).evaluate().unwrap();
    assert_eq!(history.evaluations[0].metrics.loss, before.loss);
}

#[test]
fn the_rate_falls_on_a_plateau_and_resumes_with_the_run() {
    let kwargs = SchedulerKwargs {
        patience: 1,
        factor: 0.5,
        eps: 0.0,
        ..SchedulerKwargs::default()
    };
    let out = tempfile::tempdir().unwrap();
    // Nothing is learnt without a rate to speak of: no evaluation improves by a ten-thousandth.
    let args = TrainingArguments::new(out.path())
        .per_device_train_batch_size(4)
        .epochs(6)
        .learning_rate(1e-9)
        .lr_scheduler_type("reduce_lr_on_plateau")
        .lr_scheduler_kwargs(kwargs)
        .eval_strategy("epoch")
        .save_strategy("epoch");
    let history = trainer(args.clone(), &model(1)).train().unwrap();
    let rates: Vec<f64> = history.steps.iter().map(|s| s.learning_rate).collect();
    let expected = [1.0, 1.0, 1.0, 0.5, 0.5, 0.25];
    for (epoch, part) in expected.iter().enumerate() {
        assert_eq!(rates[6 * epoch..6 * epoch + 6], [1e-9 * part; 6], "{epoch}");
    }
    let resumed = model(5);
    let mut again = trainer(args, &resumed);
    let again = again.resume_from_checkpoint(out.path().join("checkpoint-18"));
    let again: Vec<f64> = again
        .unwrap()
        .steps
        .iter()
        .map(|s| s.learning_rate)
        .collect();
    assert_eq!(again, rates);
}

#[test]
fn steps_without_masked_tokens_have_no_loss() {
    // Every second batch of four has no label.
    let data = rows_of(16, |_| 6, |i| if i / 4 % 2 == 0 { 0 } else { 2 });
    let loader = crate::collate::DataLoader::new(data, AsTheyAre, 4).unwrap();
    let args = nowhere().logging_steps(1).epochs(1);
    let mut trainer = Trainer::from_loaders(model(1), args, loader, None);
    let history = trainer.train().unwrap();
    let counted: Vec<bool> = history.steps.iter().map(|s| s.counted > 0).collect();
    assert_eq!(counted, [false, true, false, true]);
    for step in &history.steps {
        assert_eq!(step.loss.is_nan(), step.counted == 0);
    }
    let logged: Vec<usize> = history.logs.iter().map(|log| log.step).collect();
    assert_eq!(logged, [2, 4]);
    assert!(history.logs.iter().all(|log| log.loss > 0.0));
    assert!(history.train_loss() > 1.0);
    let written = serde_json::to_string(&history).unwrap();
    let read: crate::train::History = serde_json::from_str(&written).unwrap();
    assert_eq!(read.losses()[1], history.losses()[1]);
    assert!(read.losses()[0].is_nan());
}

#[test]
fn a_model_only_checkpoint_opens_but_cannot_be_resumed() {
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path())
        .max_steps(3)
        .save_steps(2)
        .save_only_model(true);
    let trained = model(1);
    let mut trainer = trainer(args, &trained);
    trainer.train().unwrap();
    let folder = out.path().join("checkpoint-3");
    assert!(!folder.join("optimizer.safetensors").exists());
    let opened = crate::model::MaskedLm::from_pretrained(folder.to_string_lossy()).unwrap();
    assert_eq!(bits(&opened), bits(&trained));
    let error = trainer
        .resume_from_checkpoint(&folder)
        .unwrap_err()
        .to_string();
    assert!(error.contains("save_only_model"), "{error}");
}

#[test]
fn label_smoothing_applies_in_training_and_evaluation() {
    let fresh = model(4);
    let plain = trainer(nowhere(), &fresh).evaluate().unwrap().loss;
    let args = nowhere().label_smoothing_factor(0.2);
    let smoothed = trainer(args.clone(), &fresh).evaluate().unwrap().loss;
    let (mut even, mut count) = (0.0, 0.0);
    for row in rows(9) {
        let inputs = crate::collate::MlmBatch::new(row.input_ids.clone(), (1, 6)).unwrap();
        let logits = fresh.forward(inputs).unwrap().squeeze(0).unwrap();
        let log = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        let means: Vec<f32> = log.mean(1).unwrap().to_vec1().unwrap();
        for (mean, label) in means.iter().zip(row.labels.unwrap()) {
            if label >= 0 {
                (even, count) = (even - f64::from(*mean), count + 1.0);
            }
        }
    }
    let expected = 0.8 * plain + 0.2 * even / count;
    assert!((smoothed - expected).abs() < 1e-5, "{smoothed} {expected}");
    let history = trainer(args, &fresh).train().unwrap();
    assert!(history.losses()[11] < history.losses()[0]);
    let refused = trainer(nowhere().label_smoothing_factor(1.5), &fresh).train();
    assert!(refused.is_err());
}

#[test]
fn unknown_names_are_reported_before_the_run() {
    let args = nowhere().eval_strategy("epochs").lr_scheduler_type("cosin");
    let error = trainer(args, &model(1)).train().unwrap_err().to_string();
    assert!(
        error.contains("\"epochs\"") && error.contains("steps, epoch"),
        "{error}"
    );
    let error = trainer(nowhere().eval_strategy("best"), &model(1)).train();
    assert!(error.unwrap_err().to_string().contains("checkpoints only"));
    let strategy = nowhere().logging_strategy(IntervalStrategy::Epoch);
    assert_eq!(strategy, nowhere().logging_strategy("epoch"));
    let part = nowhere().warmup_steps(0.25).schedule(12).unwrap();
    assert_eq!(part, nowhere().warmup_steps(3usize).schedule(12).unwrap());
    assert_eq!(part, nowhere().warmup_ratio(0.25).schedule(12).unwrap());
}

#[test]
fn empty_rows_are_skipped_in_training_and_evaluation() {
    use crate::collate::{DataLoader, MaskingCollator};
    use crate::dataset::Dataset;
    let tokenizer = crate::tokenizer::Tokenizer::train_bpe(["a spiral galaxy"], 300).unwrap();
    let column = vec![vec![0u32, 20, 30, 2], vec![], vec![0, 25, 2], vec![]];
    let rows = Dataset::builder()
        .column("input_ids", column)
        .build()
        .unwrap();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(1.0);
    let config = crate::model::Config::small("roberta").set("vocab_size", 300);
    let model = crate::model::MaskedLm::from_config(&config, 1).unwrap();
    for size in [1, 2, 4] {
        let args = nowhere().per_device_train_batch_size(size).epochs(1);
        let mut trainer = Trainer::new(
            model.clone(),
            args.per_device_eval_batch_size(size),
            (rows.clone(), rows.clone()),
            collator.clone(),
        );
        let history = trainer.train().unwrap();
        assert_eq!(history.steps.iter().map(|s| s.counted).sum::<usize>(), 3);
        let metrics = trainer.evaluate().unwrap();
        assert_eq!((metrics.counted, metrics.samples), (3, 4));
        let loader = DataLoader::new(rows.clone(), collator.clone(), size).unwrap();
        let loss = evaluate(&model, &loader).unwrap().loss;
        assert!((metrics.loss - loss).abs() < 1e-6);
        let batch = loader.epoch(0).next().unwrap().unwrap();
        assert!(model.loss(&batch, &Context::eval()).unwrap().counted() > 0);
    }
}

#[test]
fn grouping_by_length_needs_less_padding_and_uses_every_row_once() {
    use crate::collate::DataLoader;
    let data = rows_of(101, |i| 2 + (i * 37) % 23, |_| 1);
    let lengths: Vec<usize> = data.iter().map(|e| e.input_ids.len()).collect();
    let shuffled = DataLoader::new(data, AsTheyAre, 4).unwrap().shuffle(7);
    let grouped = shuffled.clone().group_by_length(true).unwrap();
    let padding = |loader: &DataLoader, epoch| -> usize {
        let order = loader.order(epoch);
        let batches = order.chunks(4).map(|batch| {
            let longest = batch.iter().map(|&i| lengths[i]).max().unwrap();
            batch.iter().map(|&i| longest - lengths[i]).sum::<usize>()
        });
        batches.sum()
    };
    for epoch in 0..3 {
        let mut order = grouped.order(epoch);
        assert_eq!(lengths[order[0]], 24, "the longest comes first");
        assert!(4 * padding(&grouped, epoch) < padding(&shuffled, epoch));
        assert_ne!(grouped.order(epoch), grouped.order(epoch + 1));
        order.sort_unstable();
        assert_eq!(order, (0..101).collect::<Vec<_>>());
    }
}

#[test]
fn evaluations_wait_as_long_as_they_are_told() {
    let steps = |args: crate::train::TrainingArguments| -> Vec<usize> {
        let history = trainer(args, &model(3)).train().unwrap();
        history.evaluations.iter().map(|e| e.step).collect()
    };
    // Six steps an epoch.
    let by_epoch = nowhere().epochs(4).eval_strategy("epoch");
    assert_eq!(steps(by_epoch.clone()), [6, 12, 18, 24]);
    assert_eq!(steps(by_epoch.clone().eval_delay(2)), [12, 18, 24]);
    assert_eq!(steps(by_epoch.eval_delay(2.5)), [18, 24]);
    let by_steps = nowhere().eval_strategy("steps").eval_steps(4);
    assert_eq!(steps(by_steps.clone().eval_delay(5)), [8, 12]);
    assert_eq!(
        steps(by_steps.eval_delay(8).eval_on_start(true)),
        [0, 8, 12]
    );
    let error = trainer(nowhere().eval_delay(-1.0), &model(3)).train();
    assert!(error.unwrap_err().to_string().starts_with("eval_delay: "));
}
