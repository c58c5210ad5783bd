//! The words and curves of a training run that its live display and its summary share.

use super::{Evaluation, History, LossPlot, StepRecord, gib};
use crate::notebook::html::{Align, MONO, ORANGE, Table, escape, thousands};

impl History {
    /// Returns the run's curves: the loss and the learning rate of every step, and the evaluations.
    pub fn plot(&self) -> LossPlot {
        curves(&self.steps, &self.evaluations)
    }
}

/// Returns the curves of a run, or of as much of it as there is.
pub(crate) fn curves(steps: &[StepRecord], evaluations: &[Evaluation]) -> LossPlot {
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
pub(crate) fn evaluation_table(steps: &[StepRecord], evaluations: &[Evaluation]) -> String {
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
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        fast if fast >= 100.0 => format!("{fast:.0}"),
        slow => format!("{slow:.2}"),
    }
}

/// Returns how well the device is used: model FLOPs utilisation and the most memory, each after `separator`; nothing
/// where neither is known.
pub(crate) fn device_use(mfu: Option<f64>, memory: Option<u64>, separator: &str) -> String {
    let mfu = mfu.map(|mfu| format!("{separator}{:.1}% MFU", 100.0 * mfu));
    let memory = memory.map(|bytes| format!("{separator}{:.1} GiB", gib(bytes)));
    mfu.unwrap_or_default() + &memory.unwrap_or_default()
}

/// Whole epochs without digits after the point.
pub(crate) fn epochs(epoch: f64) -> String {
    if (epoch - epoch.round()).abs() < 5e-3 {
        return format!("{:.0}", epoch);
    }
    format!("{epoch:.2}")
}

pub(crate) fn perplexity(value: f64) -> String {
    match value {
        value if value < 1e6 => format!("{value:.2}"),
        value => format!("{value:.2e}"),
    }
}

/// Returns a mark for the title that says what stopped the run early.
pub(crate) fn mark(history: &History) -> String {
    let words = match (history.interrupted, history.stopped_early) {
        (true, _) => "interrupted",
        (_, true) => "stopped early",
        _ => return String::new(),
    };
    format!(
        "<span style=\"border:1px solid {ORANGE};background:rgba(232,113,10,.22);border-radius:4px;padding:0 5px\">{words}</span> "
    )
}

/// Returns a file or folder, as text.
pub(crate) fn path(path: &std::path::Path) -> String {
    format!(
        "<span style=\"{MONO}\">{}</span>",
        escape(&path.display().to_string())
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_significant_digits() {
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
