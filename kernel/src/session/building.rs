//! A progress bar for building the crates that a cell adds.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::RecvTimeoutError;
use serde_json::{Map, Value};

use super::event::{Display, Event, Sink};
use crate::evcxr::building::Progress;

/// The delay after which the bar appears.
const BUILDING: Duration = Duration::from_secs(1);

/// How often the progress is read.
const LOOK: Duration = Duration::from_millis(250);

/// The thread that shows the progress; dropping this waits for its last display.
pub struct ProgressDisplay {
    end: Option<crossbeam_channel::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for ProgressDisplay {
    fn drop(&mut self) {
        self.end.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl ProgressDisplay {
    /// Shows how far the crates that a cell adds have been built, if that takes a while, until the cell has begun or
    /// this is dropped. The stand-in for cargo records the progress in the session's folder.
    pub fn begin(begun: Arc<AtomicBool>, events: Sink, folder: PathBuf) -> Self {
        Progress::forget(&folder);
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let telling = std::thread::spawn(move || {
            let start = Instant::now();
            let id = format!("cloze-building-{}", uuid::Uuid::new_v4().simple());
            let mut shown: Option<(Progress, u64)> = None;
            let mut progress = Progress::default();
            let show = |progress: &Progress, state| {
                events(Event::Display(display(
                    &id,
                    progress,
                    start.elapsed(),
                    state,
                )));
            };
            let finished = loop {
                let wait = if shown.is_some() { LOOK } else { BUILDING };
                let ended = ended.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
                let begun = begun.load(Ordering::SeqCst);
                if ended || begun {
                    break begun;
                }
                progress = Progress::of(&folder).unwrap_or(progress);
                let now = (progress.clone(), start.elapsed().as_secs());
                if shown.as_ref() != Some(&now) {
                    show(&progress, shown.map_or(State::First, |_| State::Working));
                    shown = Some(now);
                }
            };
            if shown.is_some() {
                show(
                    &progress,
                    if finished { State::Done } else { State::Failed },
                );
            }
        });
        Self {
            end: Some(end),
            thread: Some(telling),
        }
    }
}

/// Renders the bar.
fn display(id: &str, progress: &Progress, took: Duration, state: State) -> Display {
    let seconds = took.as_secs_f64();
    let share = match (state, progress.total) {
        (State::Done, _) => 100.0,
        (_, 0) => 0.0,
        (_, total) => 100.0 * progress.done as f64 / total as f64,
    };
    let words = match state {
        State::Done => "built the crates added by this cell".to_owned(),
        State::Failed => "the crates added by this cell were not built".to_owned(),
        State::First | State::Working if progress.total == 0 => {
            "finding and downloading the crates added by this cell".to_owned()
        }
        State::First | State::Working => {
            let names = match progress.names.as_str() {
                "" => String::new(),
                names => format!(": {names}"),
            };
            format!("building {} of {}{names}", progress.done, progress.total)
        }
    };
    let text = format!("{words} ({seconds:.0} s)");
    let escaped = text
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let html = format!(
        "<div style=\"margin:4px 0;font:13px/1.45 system-ui,-apple-system,'Segoe UI',sans-serif\">\
         <div style=\"display:inline-block;vertical-align:middle;width:220px;height:9px;border-radius:5px;\
         background:rgba(128,128,128,.2);overflow:hidden\"><div style=\"width:{share:.1}%;height:9px;background:#3b82f6\"></div></div> \
         <span style=\"margin-left:8px;opacity:.65\">{escaped}</span></div>"
    );
    let data: Map<String, Value> = [("text/html", html), ("text/plain", text)]
        .into_iter()
        .map(|(mime, content)| (mime.to_owned(), content.into()))
        .collect();
    Display {
        data,
        metadata: Map::new(),
        display_id: Some(id.to_owned()),
        update: state != State::First,
        is_result: false,
    }
}

/// The state of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Shown for the first time.
    First,
    Working,
    Done,
    Failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_shows_the_progress_of_the_crates() {
        let progress = Progress {
            doing: "Building".into(),
            done: 12,
            total: 34,
            names: "syn, quote(build)".into(),
        };
        let shown = display("x", &progress, Duration::from_secs(3), State::Working);
        assert_eq!(
            shown.data["text/plain"],
            "building 12 of 34: syn, quote(build) (3 s)"
        );
        assert!(
            shown.data["text/html"]
                .as_str()
                .is_some_and(|html| html.contains("width:35.3%"))
        );
        let failed = display("x", &progress, Duration::from_secs(3), State::Failed);
        assert!(
            failed.update
                && failed.data["text/plain"]
                    .as_str()
                    .is_some_and(|text| text.contains("not built"))
        );
    }
}
