//! Progress of long work: a bar in a terminal, silent where nobody looks.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A progress bar that counts items of one kind. Cheap to update from many threads; disappears when dropped.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar labelled `label` over `total` items called `unit` ("rows", "files", ...).
    ///
    /// It is drawn on stderr when that is a terminal, at most five times a second.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
        let template = format!(
            "{{msg}} {{bar:32}} {{human_pos}}/{{human_len}} {unit} [{{elapsed}}<{{eta}}, {{per_sec}}]"
        );
        if let Ok(style) = ProgressStyle::with_template(&template) {
            bar.set_style(style);
        }
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    /// A bar labelled `label` over `total` bytes, shown in MB and the like.
    pub fn bytes(label: &str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
        let template = "{msg} {bar:32} {bytes}/{total_bytes} [{elapsed}<{eta}, {bytes_per_sec}]";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        Self { bar }
    }

    /// Takes back `items` that were counted as done and must be done again.
    pub fn take_back(&self, items: u64) {
        self.bar
            .set_position(self.bar.position().saturating_sub(items));
    }

    /// Adds `items` done.
    pub fn inc(&self, items: u64) {
        self.bar.inc(items);
    }

    /// Ends the bar and clears its line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
