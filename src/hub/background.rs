//! Background uploads during training: they never slow or stop it, and see files that do not change.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use super::push::push_folder;
use super::{Hub, PushOptions, Pushed};
use crate::base::interrupt::Background;
use crate::files::{Hidden, sweep_folders};
use crate::{Error, Result};

/// Pushes folders one at a time on a separate thread.
///
/// The files are first linked (or, across file systems, copied) to a separate folder, so that a checkpoint may be
/// removed or rewritten in the meantime. During a push further ones are skipped, as in transformers: the last one,
/// after the training, uploads everything. An interrupt stops the push, and the work that runs beside it as well.
#[derive(Debug)]
pub struct BackgroundPush {
    hub: Hub,
    repo: String,
    running: Option<JoinHandle<Result<Pushed>>>,
}

impl BackgroundPush {
    /// Pushes to `repo` through `hub`.
    pub fn new(hub: Hub, repo: impl Into<String>) -> Self {
        Self {
            hub,
            repo: repo.into(),
            running: None,
        }
    }

    /// Returns whether a push is under way.
    pub fn is_busy(&self) -> bool {
        self.running
            .as_ref()
            .is_some_and(|thread| !thread.is_finished())
    }

    /// Starts to push `folder` in its current state, unless a push is in progress; returns whether it started. A
    /// previous failure is reported on stderr.
    ///
    /// # Errors
    /// When the folder can't be set aside.
    pub fn start(&mut self, folder: impl AsRef<Path>, options: &PushOptions) -> Result<bool> {
        if self.is_busy() {
            return Ok(false);
        }
        if let Some(Err(error)) = self.wait() {
            eprintln!("warning: the background upload failed; training continues: {error}");
        }
        let aside = set_aside(folder.as_ref())?;
        let (hub, repo, options) = (self.hub.clone(), self.repo.clone(), options.clone());
        let thread = std::thread::Builder::new().name("push".to_owned());
        let kept = folder.as_ref().to_path_buf();
        let background = Background::begin();
        let push = move || {
            background.enter();
            push_folder(&hub.client, &repo, &aside.path, &kept, &options)
        };
        self.running = Some(
            thread
                .spawn(push)
                .map_err(|e| Error::io("start a thread for", folder, e))?,
        );
        Ok(true)
    }

    /// Waits for the push that is under way and returns what came of the last one; `None` if there was none.
    pub fn wait(&mut self) -> Option<Result<Pushed>> {
        let result = self.running.take()?.join();
        Some(
            result.unwrap_or_else(|_| Err(Error::Hub("the background upload panicked".to_owned()))),
        )
    }
}

/// Returns a copy of `folder` that costs neither time nor space where links are possible. It is next to the folder,
/// under a hidden name, and removed when dropped. Copies left by killed processes are removed.
fn set_aside(folder: &Path) -> Result<Hidden> {
    let beside = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    sweep_folders(beside, ".push.");
    let aside = Hidden::create(beside, "push")?;
    let mut open = vec![(folder.to_path_buf(), aside.path.clone())];
    while let Some((from, to)) = open.pop() {
        let io = |e| Error::io("read", &from, e);
        for entry in std::fs::read_dir(&from).map_err(io)? {
            let entry = entry.map_err(io)?;
            let name = entry.file_name();
            if name.to_string_lossy().starts_with(['.'])
                || name.to_string_lossy().starts_with("checkpoint-")
            {
                continue;
            }
            let (source, target): (PathBuf, PathBuf) = (entry.path(), to.join(&name));
            let io = |e| Error::io("copy", &source, e);
            if entry.file_type().map_err(io)?.is_dir() {
                std::fs::create_dir(&target).map_err(io)?;
                open.push((source.clone(), target));
            } else if source.is_file() && std::fs::hard_link(&source, &target).is_err() {
                std::fs::copy(&source, &target).map_err(io)?;
            }
        }
    }
    Ok(aside)
}
