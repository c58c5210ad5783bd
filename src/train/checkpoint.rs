//! Checkpoint folders: complete or absent, and known to be undamaged before they are used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::plan::Plan;
use super::{GradScaler, History};
use crate::collate::Lanes;
use crate::distributed::Group;
use crate::ops::MappedFile;
use crate::{Error, Result};

pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
pub(super) const STATE: &str = "trainer_state.json";
pub(super) const ARGUMENTS: &str = "training_args.json";
/// Lists the other files with their digests; written last.
pub(super) const MANIFEST: &str = "checkpoint.json";
const PREFIX: &str = "checkpoint-";

/// `trainer_state.json`: the keys of transformers where it has them, then the state that an exact resumption needs.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TrainerState {
    pub(super) global_step: usize,
    pub(super) max_steps: usize,
    pub(super) epoch: f64,
    pub(super) num_train_epochs: f64,
    pub(super) best_metric: Option<f64>,
    pub(super) best_model_checkpoint: Option<PathBuf>,
    pub(super) log_history: Vec<Value>,
    /// Which batches make up which step.
    pub(super) plan: Plan,
    /// The seed of dropout, which draws by this and the number of the forward pass.
    pub(super) seed: u64,
    /// Digest of the first batch.
    pub(super) data: String,
    /// The steps of the checkpoints that the run keeps.
    pub(super) saved: Vec<usize>,
    /// For a stream, the positions of its lanes.
    #[serde(default, skip_serializing_if = "Lanes::is_empty")]
    pub(super) lanes: Lanes,
    /// Of fp16 training.
    #[serde(default)]
    pub(super) scaler: Option<GradScaler>,
    pub(super) history: History,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, Digest>,
}

#[derive(PartialEq, Serialize, Deserialize)]
struct Digest {
    bytes: u64,
    blake3: String,
}

/// Returns the folder of the checkpoint after `step`.
pub(super) fn folder(output_dir: &Path, step: usize) -> PathBuf {
    output_dir.join(format!("{PREFIX}{step}"))
}

/// Lets `fill` write files into a new folder, then makes it the folder `path`: complete, or not at all.
///
/// An older folder of that name goes only when the new one is complete.
pub(super) fn write(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    crate::base::files::replace_folder(path, |folder| {
        fill(folder)?;
        let manifest = Manifest {
            files: digests(folder)?,
        };
        let manifest = serde_json::to_vec_pretty(&manifest)?;
        crate::base::files::write_atomically(&folder.join(MANIFEST), &manifest)
    })
}

/// Removes a checkpoint: it is gone at once, never half of it.
pub(super) fn remove(path: &Path) {
    if let Err(error) = crate::base::files::remove_folder(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!(
            "warning: could not remove the old checkpoint {}: {error}",
            path.display()
        );
    }
}

/// Removes what killed runs have left half written or half removed in `output_dir`.
pub(super) fn sweep(output_dir: &Path) {
    crate::base::files::sweep_folders(output_dir, &format!(".{PREFIX}"));
}

/// Checks that the folder holds all its files as they were written.
///
/// # Errors
/// [`Error::Checkpoint`] that names the first file at fault.
pub(super) fn verify(path: &Path) -> Result<()> {
    let refuse = |message: String| Error::Checkpoint {
        path: path.to_path_buf(),
        message,
    };
    let advice = "resume from an older checkpoint";
    crate::base::files::recover_folder(path);
    if !path.is_dir() {
        return Err(refuse("there is no such folder".to_owned()));
    }
    let manifest = std::fs::read(path.join(MANIFEST)).map_err(|e| {
        refuse(format!(
            "{MANIFEST}, which is written last, can't be read ({e}): it is incomplete or not a checkpoint; {advice}"
        ))
    })?;
    let manifest: Manifest = serde_json::from_slice(&manifest)
        .map_err(|e| refuse(format!("{MANIFEST} is damaged ({e}); {advice}")))?;
    for name in [WEIGHTS, STATE] {
        if !manifest.files.contains_key(name) {
            return Err(refuse(format!("{MANIFEST} does not list {name}; {advice}")));
        }
    }
    for (name, expected) in &manifest.files {
        let file = path.join(name);
        let found = std::fs::metadata(&file)
            .map_err(|e| refuse(format!("{name} can't be read ({e}); {advice}")))?;
        if found.len() != expected.bytes {
            return Err(refuse(format!(
                "{name} has {} bytes instead of {}: it was cut short or changed; {advice}",
                found.len(),
                expected.bytes
            )));
        }
        if digest(&file)? != *expected {
            return Err(refuse(format!(
                "{name} is not what was written: it is damaged or was changed; {advice}"
            )));
        }
    }
    Ok(())
}

/// A checkpoint's folder as this rank reads it: the folder itself, or a copy of rank 0's, which is removed after use.
pub(super) enum Fetched {
    Shared(PathBuf),
    Copied(tempfile::TempDir),
}

impl Fetched {
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Shared(path) => path,
            Self::Copied(folder) => folder.path(),
        }
    }
}

/// Returns the verified checkpoint in `path`. Ranks that do not share rank 0's disk get copies of its files.
pub(super) fn fetch(ranks: &Group, path: &Path) -> Result<Fetched> {
    if ranks.size() == 1 {
        verify(path)?;
        return Ok(Fetched::Shared(path.to_path_buf()));
    }
    let files = ranks.on_main("a checkpoint's files", || {
        verify(path)?;
        let manifest = path.join(MANIFEST);
        let bytes = std::fs::read(&manifest).map_err(|e| Error::io("read", &manifest, e))?;
        let manifest: Manifest = serde_json::from_slice(&bytes)?;
        let sizes = manifest
            .files
            .iter()
            .map(|(name, file)| (name.clone(), file.bytes));
        Ok((sizes.collect::<Vec<_>>(), bytes))
    })?;
    let (files, manifest) = files;
    let same = std::fs::read(path.join(MANIFEST)).is_ok_and(|own| own == manifest);
    let all_same = !ranks.any("who lacks the checkpoint", !same)?;
    if all_same {
        return Ok(Fetched::Shared(path.to_path_buf()));
    }
    let made = match same {
        true => Ok(None),
        false => tempfile::tempdir()
            .map(Some)
            .map_err(|e| Error::io("create", std::env::temp_dir(), e)),
    };
    let (copy, made) = match made {
        Ok(copy) => (copy, Ok(())),
        Err(error) => (None, Err(error)),
    };
    ranks.vote("a folder for a copy", made)?;
    let to = copy.as_ref().map(tempfile::TempDir::path);
    ranks.or_abort("copying a checkpoint", copy_files(ranks, &files, path, to))?;
    Ok(match copy {
        Some(copy) => Fetched::Copied(copy),
        None => Fetched::Shared(path.to_path_buf()),
    })
}

/// Reads the files on rank 0 and writes them on the ranks that have a folder for them.
fn copy_files(
    ranks: &Group,
    files: &[(String, u64)],
    path: &Path,
    to: Option<&Path>,
) -> Result<()> {
    const PART: u64 = 1 << 23;
    for (name, bytes) in files {
        let (source, target) = (path.join(name), to.map(|folder| folder.join(name)));
        let open = |path: &PathBuf| File::open(path).map_err(|e| Error::io("read", path, e));
        let mut from = ranks.is_main().then(|| open(&source)).transpose()?;
        let create = |path: &PathBuf| File::create(path).map_err(|e| Error::io("write", path, e));
        let mut into = target.as_ref().map(create).transpose()?;
        let mut done = 0;
        while done < *bytes {
            let mut part = vec![0; (bytes - done).min(PART) as usize];
            if let Some(file) = &mut from {
                file.read_exact(&mut part)
                    .map_err(|e| Error::io("read", &source, e))?;
            }
            ranks.broadcast(&mut part)?;
            if let (Some(file), Some(target)) = (&mut into, &target) {
                file.write_all(&part)
                    .map_err(|e| Error::io("write", target, e))?;
            }
            done += part.len() as u64;
        }
    }
    Ok(())
}

/// Reads the state of a verified checkpoint.
pub(super) fn read_state(path: &Path) -> Result<TrainerState> {
    let file = path.join(STATE);
    let text = std::fs::read(&file).map_err(|e| Error::io("read", &file, e))?;
    let refuse = |message: String| Error::Checkpoint {
        path: path.to_path_buf(),
        message: format!("{STATE} is not one of this library's: {message}"),
    };
    let state: TrainerState = serde_json::from_slice(&text).map_err(|e| refuse(e.to_string()))?;
    let seconds = state.history.seconds;
    // Thirty thousand years and more are no time that a clock can go on from.
    if !(0.0..1e12).contains(&seconds) {
        return Err(refuse(format!("a run can't have taken {seconds} seconds")));
    }
    Ok(state)
}

/// Returns the newest complete checkpoint in `output_dir`, by its step; damaged ones are reported on stderr and
/// skipped.
///
/// # Errors
/// When there is none.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let model = MaskedLm::from_pretrained(&cloze::train::latest_checkpoint("eli5_mlm_model")?.to_string_lossy())?;
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn latest_checkpoint(output_dir: impl AsRef<Path>) -> Result<PathBuf> {
    let output_dir = output_dir.as_ref();
    // A crash may have left a checkpoint between its old name and its own.
    sweep(output_dir);
    let mut steps: Vec<usize> = match std::fs::read_dir(output_dir) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix(PREFIX)?
                    .parse()
                    .ok()
            })
            .collect(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(Error::io("read", output_dir, e)),
    };
    steps.sort_unstable_by(|a, b| b.cmp(a));
    for &step in &steps {
        let path = folder(output_dir, step);
        match verify(&path) {
            Ok(()) => return Ok(path),
            Err(error) => eprintln!("warning: passing over a damaged checkpoint: {error}"),
        }
    }
    Err(Error::Checkpoint {
        path: output_dir.to_path_buf(),
        message: match steps.len() {
            0 => "there is no checkpoint to resume from; train() starts a new run".to_owned(),
            n => format!(
                "none of its {n} checkpoints is complete and undamaged; train() starts afresh"
            ),
        },
    })
}

/// Returns the digests of all files in `folder`.
fn digests(folder: &Path) -> Result<BTreeMap<String, Digest>> {
    let io = |e| Error::io("read", folder, e);
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let entry = entry.map_err(io)?;
        files.insert(
            entry.file_name().to_string_lossy().into_owned(),
            digest(&entry.path())?,
        );
    }
    Ok(files)
}

fn digest(path: &Path) -> Result<Digest> {
    let bytes = MappedFile::open(path)?;
    Ok(Digest {
        bytes: bytes.len() as u64,
        blake3: blake3::hash(&bytes).to_hex().to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |folder| {
            for name in [WEIGHTS, OPTIMIZER, STATE] {
                crate::base::files::write_atomically(&folder.join(name), text.as_bytes())?;
            }
            Ok(())
        }
    }

    #[test]
    fn a_failed_write_keeps_the_older_folder_and_leaves_no_temporary_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = folder(dir.path(), 5);
        write(&path, files("old")).unwrap();
        let failed = write(&path, |temporary| {
            files("new")(temporary)?;
            Err(Error::Dataset("stopped".to_owned()))
        });
        assert!(failed.is_err());
        verify(&path).unwrap();
        assert_eq!(std::fs::read(path.join(WEIGHTS)).unwrap(), b"old");
        write(&path, files("new")).unwrap();
        verify(&path).unwrap();
        assert_eq!(std::fs::read(path.join(WEIGHTS)).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_state_with_invalid_numbers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let write = |seconds: f64| {
            let history = History {
                seconds,
                ..History::default()
            };
            let state = TrainerState {
                global_step: 0,
                max_steps: 2,
                epoch: 0.0,
                num_train_epochs: 1.0,
                best_metric: None,
                best_model_checkpoint: None,
                log_history: Vec::new(),
                plan: Plan {
                    batches_per_epoch: 2,
                    accumulation: 1,
                    max_steps: 2,
                },
                seed: 1,
                data: String::new(),
                saved: Vec::new(),
                lanes: Lanes::new(),
                scaler: None,
                history,
            };
            std::fs::write(dir.path().join(STATE), serde_json::to_vec(&state).unwrap()).unwrap();
            read_state(dir.path())
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(write(3.5), Ok(()));
        for seconds in [1e308, -1.0] {
            let error = write(seconds).unwrap_err();
            assert!(error.contains("seconds"), "{error}");
        }
    }

    #[test]
    fn killed_runs_leave_no_files() {
        let dir = tempfile::tempdir().unwrap();
        write(&folder(dir.path(), 5), files("five")).unwrap();
        // Half written, by this version and the one before it; half removed; replaced when the power went.
        for name in [
            ".checkpoint-6.new-aaaaaa",
            ".checkpoint-6.Ab3dEf",
            ".checkpoint-4.gone-bbbbbb",
        ] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join(WEIGHTS), "half").unwrap();
        }
        std::fs::rename(
            folder(dir.path(), 5),
            dir.path().join(".checkpoint-5.old-cccccc"),
        )
        .unwrap();
        assert_eq!(
            latest_checkpoint(dir.path()).unwrap(),
            folder(dir.path(), 5)
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        remove(&folder(dir.path(), 5));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_latest_checkpoint_is_the_highest_undamaged_one() {
        let dir = tempfile::tempdir().unwrap();
        for step in [9, 10, 100] {
            write(&folder(dir.path(), step), files("weights")).unwrap();
        }
        std::fs::create_dir(dir.path().join("checkpoint-best")).unwrap();
        std::fs::create_dir(folder(dir.path(), 200)).unwrap();
        assert_eq!(
            latest_checkpoint(dir.path()).unwrap(),
            folder(dir.path(), 100)
        );
        std::fs::write(folder(dir.path(), 100).join(OPTIMIZER), "weight5").unwrap();
        let error = verify(&folder(dir.path(), 100)).unwrap_err().to_string();
        assert!(
            error.contains("optimizer.safetensors is not what was written"),
            "{error}"
        );
        assert_eq!(
            latest_checkpoint(dir.path()).unwrap(),
            folder(dir.path(), 10)
        );
        std::fs::write(folder(dir.path(), 10).join(WEIGHTS), "w").unwrap();
        assert_eq!(
            latest_checkpoint(dir.path()).unwrap(),
            folder(dir.path(), 9)
        );
        std::fs::remove_file(folder(dir.path(), 9).join(STATE)).unwrap();
        let error = latest_checkpoint(dir.path()).unwrap_err().to_string();
        assert!(error.contains("none of its 4 checkpoints"), "{error}");
    }
}
