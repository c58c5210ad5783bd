//! What a training run looks like: its curves, its evaluations, its summary.

use super::html::{Align, MONO, ORANGE, Table, count, escape, facts, frame, heading, thousands};
use super::live_training::stands_above;
use super::{LossPlot, Rich};
use crate::train::{EvalMetrics, Evaluation, History, StepRecord, gib};

impl History {
    /// The run's curves: the loss and the learning rate of every step, and the evaluations.
    pub fn plot(&self) -> LossPlot {
        curves(&self.steps, &self.evaluations)
    }
}

/// The curves of a run, or of as much of it as there is.
pub(super) fn curves(steps: &[StepRecord], evaluations: &[Evaluation]) -> LossPlot {
    let loss = |step: &StepRecord| {
        // Nothing was masked in such a step: it has no loss.
        let loss = if step.counted == 0 {
            f64::NAN
        } else {
            f64::from(step.loss)
        };
        (step.step, loss)
    };
    LossPlot::new()
        .train(steps.iter().map(loss))
        .learning_rate(steps.iter().map(|step| (step.step, step.learning_rate)))
        .eval(evaluations.iter().map(|e| (e.step, e.metrics.loss)))
}

/// Epoch, training and validation loss, perplexity: a line for each evaluation. The training loss is the mean over the
/// steps since the evaluation before.
pub(super) fn evaluation_table(steps: &[StepRecord], evaluations: &[Evaluation]) -> String {
    let Some(best) = evaluations.iter().map(|e| e.metrics.loss).reduce(f64::min) else {
        return String::new();
    };
    let mut table = Table::new([
        ("Epoch", Align::Right),
        ("Step", Align::Right),
        ("Training Loss", Align::Right),
        ("Validation Loss", Align::Right),
        ("Perplexity", Align::Right),
    ]);
    let mut before = 0;
    for evaluation in evaluations {
        // Steps come in order.
        let end = |step: usize| steps.partition_point(|record| record.step <= step);
        let since = &steps[end(before).min(end(evaluation.step))..end(evaluation.step)];
        let losses: Vec<f64> = since
            .iter()
            .filter(|step| step.counted > 0)
            .map(|step| f64::from(step.loss))
            .collect();
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        before = evaluation.step;
        let metrics = &evaluation.metrics;
        let strong = |text: String| match metrics.loss == best && evaluations.len() > 1 {
            true => format!("<b>{text}</b>"),
            false => text,
        };
        table.row(vec![
            epochs(evaluation.epoch),
            thousands(evaluation.step),
            if losses.is_empty() {
                "–".to_owned()
            } else {
                format!("{mean:.4}")
            },
            strong(format!("{:.4}", metrics.loss)),
            strong(perplexity(metrics.perplexity())),
        ]);
    }
    format!("<div style=\"margin-top:8px\">{}</div>", table.to_html())
}

/// Steps per second: digits after the point only where they say something.
pub(super) fn rate(per_second: f64) -> String {
    match per_second {
        fast if fast >= 100.0 => format!("{fast:.0}"),
        slow => format!("{slow:.2}"),
    }
}

/// How well the device is used: model FLOPs utilisation and the most memory, each after `separator`; nothing where
/// neither is known.
pub(super) fn device_use(mfu: Option<f64>, memory: Option<u64>, separator: &str) -> String {
    let mfu = mfu.map(|mfu| format!("{separator}{:.1}% MFU", 100.0 * mfu));
    let memory = memory.map(|bytes| format!("{separator}{:.1} GiB", gib(bytes)));
    mfu.unwrap_or_default() + &memory.unwrap_or_default()
}

/// Whole epochs without digits after the point.
pub(super) fn epochs(epoch: f64) -> String {
    if (epoch - epoch.round()).abs() < 5e-3 {
        return format!("{:.0}", epoch);
    }
    format!("{epoch:.2}")
}

fn perplexity(value: f64) -> String {
    match value {
        value if value < 1e6 => format!("{value:.2}"),
        value => format!("{value:.2e}"),
    }
}

/// "42 s", "3:07", "1:02:09".
pub(super) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

/// What stopped the run before its end, as a mark beside its title.
pub(super) fn mark(history: &History) -> String {
    let words = match (history.interrupted, history.stopped_early) {
        (true, _) => "interrupted",
        (_, true) => "stopped early",
        _ => return String::new(),
    };
    format!(
        "<span style=\"border:1px solid {ORANGE};background:rgba(232,113,10,.22);border-radius:4px;padding:0 5px\">{words}</span> "
    )
}

impl Rich for History {
    fn to_html(&self) -> String {
        let skipped = match self.skipped_steps() {
            0 => String::new(),
            count => format!(" · {count} left out"),
        };
        let summary = format!(
            "{}{}{skipped} · {} epochs · {} · {} tokens/s{} · mean training loss {:.4}",
            mark(self),
            count(self.step(), "step"),
            epochs(self.epoch),
            duration(self.seconds),
            thousands(self.tokens_per_second() as usize),
            device_use(self.mfu(), self.peak_device_memory, " · "),
            self.train_loss()
        );
        let title = heading("training", &summary);
        if stands_above(self) {
            return frame(&title);
        }
        let table = evaluation_table(&self.steps, &self.evaluations);
        frame(&(title + &self.plot().image() + &table))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

impl Rich for EvalMetrics {
    fn to_html(&self) -> String {
        let rows = [
            ("loss", format!("{:.4} nats per masked token", self.loss)),
            (
                "perplexity",
                format!("<b>{}</b>", perplexity(self.perplexity())),
            ),
            ("masked tokens", thousands(self.counted)),
            ("examples", thousands(self.samples)),
            (
                "time",
                format!(
                    "{} ({:.1} examples/s)",
                    duration(self.seconds),
                    self.samples_per_second()
                ),
            ),
        ];
        frame(&(heading("evaluation", "") + &facts(&rows)))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

/// A file or folder, as text.
pub(super) fn path(path: &std::path::Path) -> String {
    format!(
        "<span style=\"{MONO}\">{}</span>",
        escape(&path.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_like_a_clock() {
        for (seconds, text) in [
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (42.4, "42 s"),
            (187.0, "3:07"),
            (3729.0, "1:02:09"),
            (f64::INFINITY, "?"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(device_use(None, None, ", "), "");
        let memory = Some(5 << 29);
        assert_eq!(
            device_use(Some(0.4123), memory, ", "),
            ", 41.2% MFU, 2.5 GiB"
        );
        assert_eq!(epochs(2.0), "2");
        assert_eq!(epochs(0.333), "0.33");
    }
}
