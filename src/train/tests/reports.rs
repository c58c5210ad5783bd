//! Tests of the reports that a run writes.

use serde_json::Value;

use super::{model, trainer};
use crate::train::{Control, Event, TrainingArguments};

fn lines(folder: &std::path::Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("history.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn logs_are_written_immediately_and_not_repeated_by_a_resumed_run() {
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path())
        .per_device_train_batch_size(4)
        .epochs(2)
        .logging_steps(2)
        .eval_strategy("epoch")
        .save_steps(4);
    let folder = out.path().to_owned();
    let mut first = trainer(args.clone(), &model(1)).callback(move |event: &Event| {
        if let Event::Log { log, .. } = event {
            assert_eq!(lines(&folder).last().unwrap()["step"], log.step);
        }
        Ok(Control::Continue)
    });
    let history = first.train().unwrap();
    assert_eq!(lines(out.path()).len(), 8);
    let expected: Vec<Value> = history.log_history();
    assert_eq!(lines(out.path()), expected);
    let mut again = trainer(args, &model(1));
    let again = again
        .resume_from_checkpoint(out.path().join("checkpoint-8"))
        .unwrap();
    let losses =
        |entries: &[Value]| -> Vec<Value> { entries.iter().map(|e| e["loss"].clone()).collect() };
    assert_eq!(losses(&lines(out.path())), losses(&again.log_history()));
    assert_eq!(losses(&lines(out.path())), losses(&expected));
    let runs = std::fs::read_dir(out.path().join("runs")).unwrap();
    for run in runs {
        let events = std::fs::read_dir(run.unwrap().path()).unwrap();
        for events in events {
            let events = events.unwrap();
            assert!(
                events
                    .file_name()
                    .to_string_lossy()
                    .starts_with("events.out.tfevents.")
            );
            assert!(events.metadata().unwrap().len() > 200);
        }
    }
}

#[test]
fn event_files_can_be_turned_off() {
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path())
        .max_steps(2)
        .logging_steps(1);
    trainer(args.clone().report_to("none"), &model(1))
        .train()
        .unwrap();
    assert!(!out.path().join("runs").exists());
    assert_eq!(lines(out.path()).len(), 2);
    let elsewhere = tempfile::tempdir().unwrap();
    let args = args.save_strategy("no").logging_dir(elsewhere.path());
    let nowhere = tempfile::tempdir().unwrap();
    let mut args = args;
    args.output_dir = nowhere.path().to_owned();
    trainer(args.clone(), &model(1)).train().unwrap();
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read_dir(nowhere.path()).unwrap().count(), 0);
    let error = trainer(args.report_to("wandb"), &model(1))
        .train()
        .unwrap_err();
    assert!(error.to_string().contains("tensorboard"), "{error}");
}

/// Runs with `CLOZE_TENSORBOARD_PYTHON=PYTHON cargo test --release --lib -- --ignored tensorboard`, where that Python has
/// TensorBoard from PyPI.
#[test]
#[ignore = "needs TensorBoard from PyPI"]
fn tensorboard_reads_the_events() {
    let python = std::env::var("CLOZE_TENSORBOARD_PYTHON").unwrap_or("python3".to_owned());
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path())
        .per_device_train_batch_size(4)
        .epochs(2)
        .logging_steps(2)
        .eval_strategy("epoch");
    let history = trainer(args, &model(1)).train().unwrap();
    let script = "
import json, sys, glob
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(glob.glob(sys.argv[1] + '/runs/*')[0])
events.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}))
";
    let mut command = std::process::Command::new(python);
    let read = command
        .args(["-c", script])
        .arg(out.path())
        .output()
        .unwrap();
    assert!(
        read.status.success(),
        "{}",
        String::from_utf8_lossy(&read.stderr)
    );
    let read: Value = serde_json::from_slice(&read.stdout).unwrap();
    let points = |tag: &str| -> Vec<(u64, f32)> {
        let points = read[tag].as_array().unwrap().iter();
        let point = |p: &Value| (p[0].as_u64().unwrap(), p[1].as_f64().unwrap() as f32);
        points.map(point).collect()
    };
    let losses: Vec<(u64, f32)> = history
        .logs
        .iter()
        .map(|log| (log.step as u64, log.loss))
        .collect();
    assert_eq!(points("train/loss"), losses);
    let evaluations = history.evaluations.iter();
    let evaluations: Vec<(u64, f32)> = evaluations
        .map(|e| (e.step as u64, e.metrics.loss as f32))
        .collect();
    assert_eq!(points("eval/loss"), evaluations);
    assert_eq!(points("train/learning_rate").len(), 6);
}
