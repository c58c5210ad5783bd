//! Progress of long work: a bar in a terminal, a live display in a notebook, and silence everywhere else.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::live::{Host, LiveDisplay};
use super::progress_bar::progress_content;

/// Work that is over sooner shows nothing in a notebook.
const WORTH_SHOWING: Duration = Duration::from_millis(500);

/// A progress bar that counts items of one kind. Cheap to update from many threads.
///
/// In a terminal it disappears at the end; in a notebook it stays and shows how long the work took.
#[derive(Clone, Debug)]
pub struct Progress {
    bar: ProgressBar,
    notebook: Option<Arc<Notebook>>,
}

/// The bar in a notebook.
#[derive(Debug)]
struct Notebook {
    label: String,
    unit: String,
    total: u64,
    done: AtomicU64,
    began: Instant,
    display: Mutex<LiveDisplay>,
}

impl Progress {
    /// Returns a bar labelled `label` over `total` items called `unit` ("rows", "files", ...).
    ///
    /// It is drawn on stderr when that is a terminal, or in Cloze's own notebook kernel, at most five times a second.
    pub fn new(label: &str, total: u64, unit: &str) -> Self {
        let template = format!(
            "{{msg}} {{bar:32}} {{human_pos}}/{{human_len}} {unit} [{{elapsed}}<{{eta}}, {{per_sec}}]"
        );
        Self::drawn_as(&template, label, total, unit)
    }

    /// Returns a bar labelled `label` over `total` bytes, shown in MB and the like.
    pub fn bytes(label: &str, total: u64) -> Self {
        let template = "{msg} {bar:32} {bytes}/{total_bytes} [{elapsed}<{eta}, {bytes_per_sec}]";
        Self::drawn_as(template, label, total, "bytes")
    }

    fn drawn_as(template: &str, label: &str, total: u64, unit: &str) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(label.to_owned());
        bar.enable_steady_tick(Duration::from_millis(500));
        let notebook = (Host::current() == Host::Live).then(|| {
            Arc::new(Notebook {
                label: label.to_owned(),
                unit: unit.to_owned(),
                total,
                done: AtomicU64::new(0),
                began: Instant::now(),
                display: Mutex::new(LiveDisplay::new()),
            })
        });
        Self { bar, notebook }
    }

    /// Takes back `items` that were counted as done and must be done again.
    pub fn take_back(&self, items: u64) {
        self.bar
            .set_position(self.bar.position().saturating_sub(items));
        if let Some(notebook) = &self.notebook {
            let done = &notebook.done;
            let less = |done: u64| Some(done.saturating_sub(items));
            let _ = done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    #[cfg(test)]
    pub(crate) fn position(&self) -> u64 {
        self.bar.position()
    }

    /// Adds `items` done.
    pub fn inc(&self, items: u64) {
        self.bar.inc(items);
        if let Some(notebook) = &self.notebook {
            notebook.done.fetch_add(items, Ordering::Relaxed);
            notebook.draw(false);
        }
    }

    /// Ends the bar and clears its line.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if let Some(notebook) = &self.notebook {
            notebook.draw(true);
        }
    }
}

impl Notebook {
    fn draw(&self, last: bool) {
        let elapsed = self.began.elapsed();
        if elapsed < WORTH_SHOWING {
            return;
        }
        let state = || {
            let done = self.done.load(Ordering::Relaxed);
            progress_content(&self.label, done, self.total, &self.unit, elapsed, last)
        };
        if last {
            if let Ok(mut display) = self.display.lock() {
                display.finish(state);
            }
        } else if let Ok(mut display) = self.display.try_lock() {
            // Another thread that is drawing draws for this one as well.
            display.update(state);
        }
    }
}
