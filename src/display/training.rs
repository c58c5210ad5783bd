//! The summary of a training run and of an evaluation.

use crate::notebook::Rich;
use crate::notebook::html::{count, duration, facts, frame, heading, thousands};
use crate::train::report::{device_use, epochs, evaluation_table, mark, perplexity};
use crate::train::{EvalMetrics, History, is_shown_above};

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
        if is_shown_above(self) {
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
        let mut rows = vec![
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
        let computed = self.computed.iter();
        rows.extend(computed.map(|(name, value)| (name.as_str(), format!("{value:.4}"))));
        frame(&(heading("evaluation", "") + &facts(&rows)))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}
