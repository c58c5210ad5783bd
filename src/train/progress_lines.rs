//! The progress of training on several ranks in plain lines: what a launcher passes on, a cell shows and a log file keeps.

use std::time::{Duration, Instant};

use super::{Callback, Control, Event};
use crate::Result;

/// The shortest and the longest time between two lines; in between, a tenth of what has passed.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Writes a line to stderr now and then, and one for each evaluation and checkpoint.
#[derive(Default)]
pub(super) struct ProgressLines {
    begun: Option<Instant>,
    /// When the last line about a step was written.
    last: Option<Instant>,
}

impl ProgressLines {
    /// Returns whether a line is due, and takes note that it comes.
    fn is_due(&mut self, now: Instant) -> bool {
        let begun = *self.begun.get_or_insert(now);
        let wait = (now - begun).div_f64(10.0).clamp(SHORTEST, LONGEST);
        let due = self.last.is_none_or(|last| now - last >= wait);
        if due {
            self.last = Some(now);
        }
        due
    }
}

impl Callback for ProgressLines {
    fn on_event(&mut self, event: &Event) -> Result<Control> {
        match event {
            Event::StepEnd { state, step }
                if self.is_due(Instant::now()) || state.step == state.max_steps =>
            {
                eprintln!(
                    "step {}/{}, epoch {:.2}, loss {:.4}, {:.0} tokens/s",
                    state.step,
                    state.max_steps,
                    state.epoch,
                    step.loss,
                    step.tokens_per_second()
                );
            }
            Event::Evaluate { state, metrics } => eprintln!(
                "step {}, epoch {:.2}: evaluation loss {:.4}, perplexity {:.2}",
                state.step,
                state.epoch,
                metrics.loss,
                metrics.perplexity()
            ),
            Event::Save { path, .. } => eprintln!("saved {}", path.display()),
            _ => {}
        }
        Ok(Control::Continue)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_start_at_once_and_become_less_frequent() {
        let mut lines = ProgressLines::default();
        let begun = Instant::now();
        let due: Vec<u64> = (0..1200)
            .filter(|&second| lines.is_due(begun + Duration::from_secs(second)))
            .collect();
        assert_eq!(due[..5], [0, 1, 2, 3, 4]);
        assert!((50..120).contains(&due.len()), "{due:?}");
        assert!(due.windows(2).all(|pair| pair[1] - pair[0] <= 30));
    }
}
