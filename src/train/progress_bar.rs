//! The progress of training in a terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar as Bar, ProgressDrawTarget, ProgressStyle};

use super::{Callback, Control, Event, TrainState};
use crate::Result;

/// A bar with the step, the loss, tokens per second and the time left; evaluations and checkpoints are lines above it.
pub(super) struct ProgressBar {
    bar: Bar,
    /// A loss that the eye can follow: recent steps weigh most.
    loss: Option<f64>,
    tokens_per_second: f64,
}

impl ProgressBar {
    /// Returns a bar on stderr, if that is a terminal.
    pub(super) fn for_terminal() -> Option<Self> {
        std::io::stderr().is_terminal().then(|| Self {
            bar: Bar::hidden(),
            loss: None,
            tokens_per_second: 0.0,
        })
    }

    fn begin(&mut self, state: &TrainState) {
        self.bar = Bar::with_draw_target(
            Some(state.max_steps as u64),
            ProgressDrawTarget::stderr_with_hz(5),
        );
        let template = "training {bar:32} {human_pos}/{human_len} steps [{elapsed}<{eta}] {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_position(state.step as u64);
        self.bar.reset_eta();
    }

    fn message(&self, epoch: f64) -> String {
        let loss = self.loss.map(|loss| format!("loss {loss:.4}, "));
        format!(
            "epoch {epoch:.2}, {}{:.0} tokens/s",
            loss.unwrap_or_default(),
            self.tokens_per_second
        )
    }
}

impl Callback for ProgressBar {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        match event {
            Event::TrainBegin { state, .. } => self.begin(state),
            Event::StepEnd { state, step } => {
                let smooth = |old: f64, new: f64| 0.9 * old + 0.1 * new;
                let (loss, speed) = (f64::from(step.loss), step.tokens_per_second());
                self.tokens_per_second = match self.loss {
                    Some(_) => smooth(self.tokens_per_second, speed),
                    None => speed,
                };
                // A step in which nothing was masked has no loss.
                if !loss.is_nan() {
                    self.loss = Some(self.loss.map_or(loss, |old| smooth(old, loss)));
                }
                self.bar.set_position(state.step as u64);
                self.bar.set_message(self.message(state.epoch));
            }
            Event::EvaluateStep { done, total, .. } => {
                self.bar
                    .set_message(format!("evaluating, batch {done} of {total}"));
            }
            Event::Evaluate { state, metrics } => {
                self.bar.println(format!(
                    "step {}, epoch {:.2}: evaluation loss {:.4}, perplexity {:.2}",
                    state.step,
                    state.epoch,
                    metrics.loss,
                    metrics.perplexity()
                ));
                self.bar.set_message(self.message(state.epoch));
            }
            Event::Save { path, .. } => self.bar.println(format!("saved {}", path.display())),
            Event::TrainEnd { .. } => self.bar.finish(),
            _ => {}
        }
        Ok(Control::Continue)
    }
}
