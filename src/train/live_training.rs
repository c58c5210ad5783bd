//! Training as it runs: one display with bar, curves and table that changes in place.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::report::{curves, device_use, epochs, evaluation_table, mark, path, rate};
use super::{Callback, Control, Evaluation, Event, History, StepRecord, TrainState, mfu};
use crate::Result;
use crate::notebook::content;
use crate::notebook::html::{
    BLUE, MONO, MUTED, bar, duration, escape, frame, heading, note, thousands,
};
use crate::notebook::live::{Host, LiveDisplay};
use crate::notebook::progress::Progress;

/// The minimum time of training between two redraws, as a multiple of the drawing time. The curves of very long runs
/// take tens of milliseconds.
const REST: u32 = 50;

/// Returns the callback that shows a run in a notebook; `None` outside one. [`Trainer`](super::Trainer) adds it
/// automatically.
pub fn training_display() -> Option<LiveTraining> {
    (Host::current() != Host::Plain).then(LiveTraining::new)
}

/// Shows a run in a notebook: step, time, speed, curves and evaluations, in one display that changes in place and stays
/// as it was last.
///
/// In the stock evcxr kernel, where displays appear when the cell ends, it shows the run once, at its end.
pub struct LiveTraining {
    display: LiveDisplay,
    state: Option<TrainState>,
    steps: Vec<StepRecord>,
    evaluations: Vec<Evaluation>,
    /// The device's peak speed.
    peak_flops: Option<f64>,
    /// The work besides the steps.
    doing: String,
    saved: Option<String>,
    /// When this run began, at which step.
    began: (Instant, usize),
    /// Whether a run is in progress; an evaluation outside a run has its own bar.
    running: bool,
    evaluation: Option<Progress>,
    /// When it was drawn last, and how long that took.
    drawn: Option<(Instant, Duration)>,
}

impl LiveTraining {
    fn new() -> Self {
        Self {
            display: LiveDisplay::new(),
            state: None,
            steps: Vec::new(),
            evaluations: Vec::new(),
            peak_flops: None,
            doing: String::new(),
            saved: None,
            began: (Instant::now(), 0),
            running: false,
            evaluation: None,
            drawn: None,
        }
    }

    /// Shows how far an evaluation outside of a run is.
    fn evaluate_alone(&mut self, event: &Event) {
        let Event::EvaluateStep { done, total, .. } = event else {
            return;
        };
        // One that was interrupted has left its bar.
        if *done == 1 {
            self.evaluation = Some(Progress::new("Evaluate", *total as u64, "batches"));
        }
        if let Some(progress) = &self.evaluation {
            progress.inc(1);
        }
        if done == total
            && let Some(progress) = self.evaluation.take()
        {
            progress.finish();
        }
    }

    fn begin(&mut self, state: &TrainState, history: &History) {
        *self = Self::new();
        self.steps.clone_from(&history.steps);
        self.evaluations.clone_from(&history.evaluations);
        self.peak_flops = history.peak_flops;
        self.began.1 = state.step;
        self.running = true;
    }

    fn draw(&mut self) {
        if self.display.is_due() && self.rested() {
            let start = Instant::now();
            let state = content(self.html(None), self.status());
            self.display.update(|| state);
            self.drawn = Some((Instant::now(), start.elapsed()));
        }
    }

    /// Returns whether the last drawing was cheap compared with the training since then, so that the training thread
    /// may draw.
    fn rested(&self) -> bool {
        self.drawn
            .is_none_or(|(when, cost)| when.elapsed() >= REST * cost)
    }

    fn end(&mut self, history: &History) {
        self.running = false;
        self.doing.clear();
        let state = content(self.html(Some(history)), format!("{history:?}"));
        self.display.finish(|| state);
        // The stock kernel has room for one display in a cell, so there the next one must be whole.
        if Host::current() == Host::Live
            && let Ok(mut last) = LAST_SHOWN.lock()
        {
            *last = Some((Instant::now(), history.step(), history.seconds));
        }
    }

    /// Returns the last few steps, whose speed is the present one.
    fn recent(&self) -> &[StepRecord] {
        &self.steps[self.steps.len().saturating_sub(20)..]
    }

    /// Steps per second and tokens per second, of the last few steps.
    fn speed(&self) -> (f64, f64) {
        let recent = self.recent();
        let seconds: f64 = recent.iter().map(|step| step.seconds).sum();
        let tokens: usize = recent.iter().map(|step| step.tokens).sum();
        let seconds = seconds.max(f64::MIN_POSITIVE);
        (recent.len() as f64 / seconds, tokens as f64 / seconds)
    }

    /// Returns the estimated remaining time, from the average speed so far, including evaluations.
    fn time_left(&self, state: &TrainState) -> Option<f64> {
        let done = state
            .step
            .checked_sub(self.began.1)
            .filter(|&done| done > 0)?;
        let left = state.max_steps.saturating_sub(state.step);
        Some(self.began.0.elapsed().as_secs_f64() / done as f64 * left as f64)
    }

    fn status(&self) -> String {
        let (Some(state), Some(last)) = (&self.state, self.steps.last()) else {
            return "training begins".to_owned();
        };
        let (steps, tokens) = self.speed();
        let left = self.time_left(state).map_or("?".to_owned(), duration);
        let loss = last.loss;
        format!(
            "step {}/{}, epoch {:.2}, loss {loss:.4}, {steps:.2} it/s, {tokens:.0} tokens/s{}, {} < {left} {}",
            state.step,
            state.max_steps,
            state.epoch,
            device_use(
                mfu(self.recent(), self.peak_flops),
                state.peak_device_memory,
                ", "
            ),
            duration(state.elapsed.as_secs_f64()),
            self.doing
        )
    }

    fn html(&self, history: Option<&History>) -> String {
        let Some(state) = &self.state else {
            return frame(&heading("training", "begins"));
        };
        let share = state.step as f64 / state.max_steps.max(1) as f64;
        let (steps, tokens, mfu) = match history {
            // At the end, of the whole run.
            Some(history) => {
                let tokens = history.tokens_per_second();
                let seconds: f64 = history.steps.iter().map(|step| step.seconds).sum();
                let steps = history.steps.len() as f64 / seconds.max(f64::MIN_POSITIVE);
                (steps, tokens, history.mfu())
            }
            None => {
                let (steps, tokens) = self.speed();
                (steps, tokens, mfu(self.recent(), self.peak_flops))
            }
        };
        let left = match (history, self.time_left(state)) {
            (None, Some(left)) => format!(" · {} left", duration(left)),
            _ => String::new(),
        };
        let line = format!(
            "<div style=\"margin:2px 0 8px\">{} <b style=\"margin-left:6px;{MONO}\">{} / {}</b> \
             <span style=\"{MUTED}\">steps · epoch {} of {} · {}{left} · {} it/s · {} tokens/s{}</span></div>",
            bar(share, "220px", BLUE),
            thousands(state.step),
            thousands(state.max_steps),
            epochs(state.epoch),
            epochs(state.num_train_epochs),
            duration(state.elapsed.as_secs_f64()),
            rate(steps),
            thousands(tokens as usize),
            device_use(mfu, state.peak_device_memory, " · "),
        );
        let mark = history.map(mark).unwrap_or_default();
        let plot = curves(&self.steps, &self.evaluations).up_to(state.max_steps);
        let mut out = mark + &line + &plot.image();
        out += &evaluation_table(&self.steps, &self.evaluations);
        if !self.doing.is_empty() {
            out += &note(&escape(&self.doing));
        }
        if let Some(saved) = &self.saved {
            out += &note(&format!("saved {saved}"));
        }
        frame(&out)
    }
}

impl Callback for LiveTraining {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        if let Event::TrainBegin { state, history } = event {
            self.begin(state, history);
        }
        if !self.running {
            self.evaluate_alone(event);
            return Ok(Control::Continue);
        }
        self.state = Some(*event.state());
        match event {
            Event::StepEnd { step, .. } => {
                self.steps.push(*step);
                self.doing.clear();
            }
            Event::EvaluateStep { done, total, .. } => {
                self.doing = format!("evaluating, batch {done} of {total}");
            }
            Event::Evaluate { .. } => {
                self.evaluations.extend(event.evaluation());
                self.doing.clear();
            }
            Event::Save { path: folder, .. } => self.saved = Some(path(folder)),
            _ => {}
        }
        match event {
            Event::TrainEnd { history, .. } => self.end(history),
            _ => self.draw(),
        }
        Ok(Control::Continue)
    }
}

/// The run that was shown last, and when: its number of steps and its seconds.
static LAST_SHOWN: Mutex<Option<(Instant, usize, f64)>> = Mutex::new(None);

/// Returns whether the display of this run was completed a moment ago, so that it is right above the next output: a
/// cell that ends with `trainer.train()?` need not show everything twice.
pub(crate) fn is_shown_above(history: &History) -> bool {
    LAST_SHOWN.lock().is_ok_and(|last| {
        last.is_some_and(|(when, step, seconds)| {
            when.elapsed() < Duration::from_secs(2)
                && step == history.step()
                && seconds == history.seconds
        })
    })
}
