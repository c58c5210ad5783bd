//! Interrupts during training. The request is one for the whole process, so these tests have a process of their own.

use std::path::Path;

use cloze::collate::{Example, MaskingCollator};
use cloze::interrupt;
use cloze::model::{Config, MaskedLm};
use cloze::tokenizer::Tokenizer;
use cloze::train::{Control, Event, History, IntervalStrategy, Trainer, TrainingArguments};

fn trainer(out: &Path) -> Trainer {
    let tokenizer = Tokenizer::train_bpe(["the light of a star bends"], 300).unwrap();
    let config = Config::new("roberta")
        .set("vocab_size", 300)
        .set("hidden_size", 16)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 32);
    let examples: Vec<Example> = (0..12u32)
        .map(|i| {
            Example::from(
                (0..9)
                    .map(|t| 10 + (i * 31 + t * 7) % 250)
                    .collect::<Vec<u32>>(),
            )
        })
        .collect();
    let args = TrainingArguments::new(out)
        .per_device_train_batch_size(3)
        .per_device_eval_batch_size(3)
        .max_steps(6)
        .eval_strategy(IntervalStrategy::Steps)
        .eval_steps(3)
        .logging_steps(3);
    let model = MaskedLm::from_config(&config, 1).unwrap();
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.4);
    Trainer::new(model, args, (examples.clone(), examples), collator)
}

fn key(history: &History) -> (Vec<u32>, Vec<(usize, f64)>, usize) {
    let losses = history.losses().into_iter().map(f32::to_bits).collect();
    let evaluations = history
        .evaluations
        .iter()
        .map(|e| (e.step, e.metrics.loss))
        .collect();
    (losses, evaluations, history.logs.len())
}

/// Requests an interrupt at the first event for which `when` holds.
fn interrupting(when: fn(&Event) -> bool) -> impl FnMut(&Event) -> cloze::Result<Control> + Send {
    let mut done = false;
    move |event| {
        if !done && when(event) {
            done = true;
            interrupt::request();
        }
        Ok(Control::Continue)
    }
}

#[test]
fn an_interrupt_ends_the_run_after_the_step_and_it_resumes_from_memory_or_disk() {
    let _alone = crate::alone();
    let whole = trainer(tempfile::tempdir().unwrap().path())
        .train()
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let at_step_2 = |event: &Event| matches!(event, Event::StepEnd { step, .. } if step.step == 2);
    let mut stopped = trainer(out.path()).callback(interrupting(at_step_2));
    let history = stopped.train().unwrap();
    assert!(history.interrupted);
    assert_eq!(history.steps.len(), 2);
    assert!(!interrupt::is_requested());
    assert!(out.path().join("checkpoint-2").is_dir());
    assert!(stopped.evaluate().unwrap().loss.is_finite());
    let resumed = trainer(out.path()).resume_from_latest_checkpoint().unwrap();
    assert_eq!(key(&resumed), key(&whole));
    let continued = stopped.train().unwrap();
    assert!(!continued.interrupted);
    assert_eq!(key(&continued), key(&whole));
}

#[test]
fn an_interrupted_evaluation_is_repeated_when_the_run_resumes() {
    let _alone = crate::alone();
    let whole = trainer(tempfile::tempdir().unwrap().path())
        .train()
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    let in_evaluation = |event: &Event| matches!(event, Event::EvaluateStep { done: 2, .. });
    let mut stopped = trainer(out.path()).callback(interrupting(in_evaluation));
    let history = stopped.train().unwrap();
    assert!(history.interrupted);
    assert_eq!((history.steps.len(), history.evaluations.len()), (3, 0));
    let resumed = trainer(out.path()).resume_from_latest_checkpoint().unwrap();
    assert_eq!(key(&resumed), key(&whole));
    assert_eq!(key(&stopped.train().unwrap()), key(&whole));
}

#[test]
fn an_interrupt_between_evaluations_is_an_error() {
    let _alone = crate::alone();
    let out = tempfile::tempdir().unwrap();
    let mut trainer = trainer(out.path());
    interrupt::request();
    let error = trainer.evaluate().unwrap_err().to_string();
    assert_eq!(error, "interrupted while evaluating");
    assert!(trainer.evaluate().is_ok());
}

#[test]
fn resuming_from_a_checkpoint_discards_the_run_in_memory() {
    let _alone = crate::alone();
    let out = tempfile::tempdir().unwrap();
    let at_step_2 = |event: &Event| matches!(event, Event::StepEnd { step, .. } if step.step == 2);
    let mut trainer = trainer(out.path()).callback(interrupting(at_step_2));
    assert!(trainer.train().unwrap().interrupted);
    assert_eq!(
        trainer.resume_from_latest_checkpoint().unwrap().steps.len(),
        6
    );
    let anew = trainer.train().unwrap();
    assert_eq!(anew.steps.len(), 6);
    assert_eq!(anew.steps[0].learning_rate, 5e-5);
}
