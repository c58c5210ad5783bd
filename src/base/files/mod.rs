//! Writes files and folders so that a reader never sees half of one, and only plain files are ever replaced.
//!
//! The file type at a path decides how it is written ([`Destination`]): a plain file, or a new one, is replaced as a
//! whole by a rename (of the target, if the path is a symbolic link); a pipe or a device is written into; folders,
//! sockets and disks are refused.

mod folder;
mod pointer;
mod set;
mod temporary;

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

#[cfg(feature = "hub")]
pub(crate) use folder::Hidden;
pub use folder::{recover_folder, remove_folder, replace_folder, sweep_folders};
pub use pointer::{is_lfs_pointer, read, refuse_lfs_pointer};
pub use set::{finish_replacing, replace_files, replace_files_without};
pub(crate) use temporary::Temporary;

use crate::{Error, Result};

/// The maximum number of symbolic links in a chain.
const LINKS: usize = 40;

/// The kind of file that a path refers to when it is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// A plain file, or the place for a new one: the path with symbolic links followed.
    File(PathBuf),
    /// A pipe or a character device, which takes bytes and keeps none.
    Stream(PathBuf),
}

impl Destination {
    /// Looks at what `path` names, through symbolic links; nothing is opened or changed.
    ///
    /// # Errors
    /// For a folder, a socket, a disk, and links that lead in a circle.
    pub fn of(path: &Path) -> Result<Self> {
        let refuse = |what: &str| {
            let problem = io::Error::new(io::ErrorKind::InvalidInput, what);
            Err(Error::io("write", path, problem))
        };
        let mut place = path.to_path_buf();
        for _ in 0..LINKS {
            let kind = match std::fs::symlink_metadata(&place) {
                Ok(found) => found.file_type(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return Ok(Self::File(place));
                }
                Err(error) => return Err(Error::io("write", path, error)),
            };
            if kind.is_symlink() {
                let target = std::fs::read_link(&place).map_err(|e| Error::io("write", path, e))?;
                // What a descriptor stands for has no path of its own (`/proc/self/fd/1` → `pipe:[123]`).
                if std::fs::metadata(&place).is_ok_and(|found| is_stream(found.file_type())) {
                    return Ok(Self::Stream(place));
                }
                place = folder_of(&place).join(target);
                continue;
            }
            if kind.is_file() {
                return Ok(Self::File(place));
            }
            if is_stream(kind) {
                return Ok(Self::Stream(place));
            }
            return refuse(if kind.is_dir() {
                "it is a folder: give the name of a file in it"
            } else {
                "it is a socket or a disk, not a file: choose another place"
            });
        }
        refuse("its symbolic links form a circle")
    }

    /// Checks that bytes can be written here, as far as that can be known in advance: the folder exists and accepts a
    /// file.
    pub fn check(&self) -> Result<()> {
        let Self::File(path) = self else {
            return Ok(());
        };
        Temporary::beside(path).map(drop)
    }
}

/// Returns whether a file of this kind takes bytes without keeping them.
#[cfg(unix)]
fn is_stream(kind: std::fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_fifo() || kind.is_char_device()
}

#[cfg(not(unix))]
fn is_stream(_: std::fs::FileType) -> bool {
    false
}

/// Returns the folder that a path is in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes `bytes` to `path`: complete, or not at all.
///
/// # Errors
/// Like [`replace_atomically`].
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_atomically(path, |temporary| {
        std::fs::write(temporary, bytes).map_err(|e| Error::io("write", path, e))
    })
}

/// Writes `bytes` to `path` like [`write_atomically`]: a file there is one that its owner alone can read, from the first byte on.
#[cfg(feature = "hub")]
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let io = |e| Error::io("write", path, e);
    match Destination::of(path)? {
        Destination::File(place) => {
            let mut temporary = Temporary::beside(&place)?;
            temporary.keep_private().map_err(io)?;
            std::fs::write(temporary.path(), bytes).map_err(io)?;
            temporary.put(&place).map_err(io)
        }
        Destination::Stream(_) => write_atomically(path, bytes),
    }
}

/// Lets `write` fill a temporary file, then puts its contents where `path` leads: into the place of a plain file by a
/// synced rename, into a pipe or a device by writing to it.
///
/// The file keeps the permissions of the one that it replaces; a new one gets those that new files have.
///
/// # Errors
/// If `path` cannot be written ([`Destination::of`]), or anything fails: the content of `path` is then unchanged, and
/// the temporary file is removed.
pub fn replace_atomically(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let io = |e| Error::io("write", path, e);
    let place = match Destination::of(path)? {
        Destination::File(place) => place,
        Destination::Stream(place) => {
            let temporary = NamedTempFile::new().map_err(io)?;
            write(temporary.path())?;
            return pour(temporary.path(), &place).map_err(io);
        }
    };
    let temporary = Temporary::beside(&place)?;
    write(temporary.path())?;
    temporary.put(&place).map_err(io)
}

/// Copies a file into a pipe or a device.
fn pour(from: &Path, to: &Path) -> io::Result<()> {
    let mut bytes = Vec::new();
    std::fs::File::open(from)?.read_to_end(&mut bytes)?;
    let mut stream = open_stream(to)?;
    stream.write_all(&bytes)?;
    stream.flush()
}

/// Opens a pipe or a device for writing. Opening a pipe without a reader would block forever, so there is a time limit.
#[cfg(unix)]
fn open_stream(path: &Path) -> io::Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt;
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);
    const LOOK: std::time::Duration = std::time::Duration::from_millis(20);
    let end = std::time::Instant::now() + PATIENCE;
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    loop {
        match options.clone().custom_flags(libc::O_NONBLOCK).open(path) {
            // There is a reader: now for one that waits when the pipe is full.
            Ok(_reader_is_there) => return options.open(path),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                if std::time::Instant::now() > end {
                    return Err(io::Error::new(
                        io::ErrorKind::NotConnected,
                        "it is a pipe without a reader",
                    ));
                }
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(not(unix))]
fn open_stream(path: &Path) -> io::Result<std::fs::File> {
    std::fs::OpenOptions::new().write(true).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_keeps_the_old_file_and_leaves_no_temporary_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write_atomically(&path, b"old").unwrap();
        let failed = replace_atomically(&path, |temporary| {
            std::fs::write(temporary, b"half").unwrap();
            Err(Error::Dataset("stopped".to_owned()))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_symbolic_link_is_kept_and_its_target_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("deep")).unwrap();
        std::fs::write(at("deep/real.json"), "old").unwrap();
        std::os::unix::fs::symlink("deep/real.json", at("middle")).unwrap();
        std::os::unix::fs::symlink(at("middle"), at("link")).unwrap();
        write_atomically(&at("link"), b"new").unwrap();
        assert!(at("link").is_symlink() && at("middle").is_symlink());
        assert_eq!(std::fs::read(at("deep/real.json")).unwrap(), b"new");
        // A link may lead to where nothing is yet.
        std::os::unix::fs::symlink("deep/new.json", at("dangling")).unwrap();
        write_atomically(&at("dangling"), b"first").unwrap();
        assert!(at("dangling").is_symlink());
        assert_eq!(std::fs::read(at("deep/new.json")).unwrap(), b"first");
        std::os::unix::fs::symlink("round", at("round")).unwrap();
        assert!(write_atomically(&at("round"), b"x").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_written_to_and_stays_a_pipe() {
        use std::os::unix::fs::FileTypeExt;
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.is_ok_and(|made| made.success()));
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe)
        });
        // More than a pipe holds.
        let long = vec![7; 200_000];
        write_atomically(&pipe, &long).unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), long);
        assert!(std::fs::metadata(&pipe).unwrap().file_type().is_fifo());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn devices_are_written_to_and_sockets_and_folders_are_refused() {
        // Only looked at: a device must not be put at risk by a test.
        let null = Path::new("/dev/null");
        assert_eq!(
            Destination::of(null).unwrap(),
            Destination::Stream(null.to_owned())
        );
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused = write_atomically(&socket, b"x").unwrap_err().to_string();
        assert!(refused.contains("socket"), "{refused}");
        let refused = write_atomically(folder.path(), b"x")
            .unwrap_err()
            .to_string();
        assert!(refused.contains("folder"), "{refused}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn files_keep_their_permissions_and_new_files_get_the_default() {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret.json");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        write_atomically(&path, b"new").unwrap();
        assert_eq!(mode(&path), 0o600);
        let (plain, ours) = (folder.path().join("plain"), folder.path().join("ours"));
        std::fs::write(&plain, "").unwrap();
        write_atomically(&ours, b"").unwrap();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[test]
    fn a_path_is_checked_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let check = |path: &Path| Destination::of(path).and_then(|place| place.check());
        assert!(check(&folder.path().join("new.json")).is_ok());
        assert!(check(&folder.path().join("missing/new.json")).is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
