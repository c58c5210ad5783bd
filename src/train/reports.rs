//! Reports of a run in progress: a line of JSON for each log and evaluation, and TensorBoard's event files.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use super::history::{evaluation_entry, log_entry};
use super::tensorboard::{EventFile, run_name};
use super::{Event, History, IntervalStrategy, TrainingArguments};
use crate::{Error, Result};

/// The file that grows by a line for each log and each evaluation.
pub(super) const LINES: &str = "history.jsonl";

/// The reports of one run. If a report can't be written, that is reported once, and training continues.
pub(super) struct Reports {
    lines: Option<PathBuf>,
    file: Option<File>,
    events_folder: Option<PathBuf>,
    events: Option<EventFile>,
}

impl Reports {
    /// Returns the requested reports: none for a run without checkpoints, unless a folder is given.
    pub(super) fn of(args: &TrainingArguments) -> Self {
        let writes = args.save_strategy != IntervalStrategy::No;
        let folder =
            (writes && !args.output_dir.as_os_str().is_empty()).then_some(&args.output_dir);
        let runs = || Some(folder?.join("runs").join(run_name()));
        let events_folder = args.logging_dir.clone().or_else(runs);
        Self {
            lines: folder.map(|folder| folder.join(LINES)),
            file: None,
            events_folder: events_folder
                .filter(|_| args.report_to.contains("tensorboard") || args.report_to == "all"),
            events: None,
        }
    }

    /// Writes down what is to be written down of an event.
    pub(super) fn note(&mut self, event: &Event) {
        let noted = match event {
            Event::TrainBegin { history, .. } => self.begin(history),
            Event::Log { log, .. } => self.add("train", log.step, &log_entry(log)),
            Event::Evaluate { .. } => match event.evaluation() {
                Some(evaluation) if self.file.is_some() || self.events_folder.is_some() => {
                    self.add("eval", evaluation.step, &evaluation_entry(&evaluation))
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        };
        if let Err(error) = noted {
            eprintln!("warning: no more reports of this training are written: {error}");
            *self = Self {
                lines: None,
                file: None,
                events_folder: None,
                events: None,
            };
        }
    }

    /// Starts the file of lines with the records before the checkpoint from which the run resumes: later ones will be
    /// repeated.
    fn begin(&mut self, history: &History) -> Result<()> {
        let Some(path) = &self.lines else {
            return Ok(());
        };
        let mut text = String::new();
        for entry in history.log_history() {
            text.push_str(&entry.to_string());
            text.push('\n');
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("make", folder, e))?;
        }
        crate::base::files::write_atomically(path, text.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path);
        self.file = Some(file.map_err(|e| Error::io("open", path, e))?);
        Ok(())
    }

    fn add(&mut self, group: &str, step: usize, entry: &Value) -> Result<()> {
        if let Some(file) = &mut self.file {
            let line = format!("{entry}\n");
            let written = file.write_all(line.as_bytes());
            written.map_err(|e| Error::io("write", LINES, e))?;
        }
        let Some(folder) = &self.events_folder else {
            return Ok(());
        };
        let events = match &mut self.events {
            Some(events) => events,
            None => self.events.insert(EventFile::create(folder)?),
        };
        let scalar = |(name, value): (&String, &Value)| {
            let name = name.strip_prefix("eval_").unwrap_or(name);
            (name != "step").then_some(())?;
            Some((format!("{group}/{name}"), value.as_f64()?))
        };
        let entry = entry.as_object().into_iter().flatten();
        let scalars: Vec<(String, f64)> = entry.filter_map(scalar).collect();
        events.scalars(step, &scalars)
    }
}
