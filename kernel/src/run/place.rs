//! Decides where executed notebooks are written. All places are checked before anything runs, because the results of a
//! run would be lost if they could not be written afterwards.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cloze::files::{self, Destination};

use super::{Run, signals};
use crate::{Error, Result};

/// Names that mean standard output.
const STDOUT: [&str; 4] = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];

/// The destination of an executed notebook.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    Stdout,
    Path(PathBuf),
}

/// Returns the place of each notebook of a run, in order, creating missing folders.
pub fn settle(arguments: &Run) -> Result<Vec<Place>> {
    let notebooks = &arguments.notebooks;
    let mut taken: HashMap<PathBuf, &Path> = HashMap::new();
    let mut places = Vec::new();
    for notebook in notebooks {
        let place = match &arguments.output {
            Some(output) if STDOUT.iter().any(|name| output == Path::new(name)) => {
                if notebooks.len() > 1 {
                    return Err("Several notebooks can't all be written to standard output: name a folder with --output.".into());
                }
                Place::Stdout
            }
            _ => {
                let (path, leads_to) = path_for(notebook, arguments)?;
                let same = canonical(&leads_to);
                if let Some(other) = taken.insert(same, notebook) {
                    return Err(format!(
                        "{} and {} would both be written to {}: write them to different places.",
                        other.display(),
                        notebook.display(),
                        path.display()
                    )
                    .into());
                }
                Place::Path(path)
            }
        };
        places.push(place);
    }
    Ok(places)
}

/// Returns the path to which the notebook is written, and where its symbolic links lead.
fn path_for(notebook: &Path, arguments: &Run) -> Result<(PathBuf, PathBuf)> {
    let several = arguments.notebooks.len() > 1;
    let path = match &arguments.output {
        _ if arguments.in_place => notebook.to_owned(),
        Some(folder)
            if several
                || folder.is_dir()
                || folder.as_os_str().to_string_lossy().ends_with('/') =>
        {
            folder.join(notebook.file_name().unwrap_or_default())
        }
        Some(file) => file.clone(),
        None => notebook.with_extension("executed.ipynb"),
    };
    let path = std::path::absolute(&path).map_err(Error::file(&path))?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| {
            let file = folder.ancestors().find(|place| place.is_file());
            let reason = match file {
                Some(file) => format!("{} is a file, not a folder", file.display()),
                None => error.to_string(),
            };
            Error::from(format!(
                "Nothing was run, because the result could not be saved: can't create the folder {}: {reason}",
                folder.display()
            ))
        })?;
    }
    let checked = Destination::of(&path).and_then(|destination| {
        destination.check()?;
        if let Destination::File(place) = &destination {
            may_be_replaced(place).map_err(|error| cloze::Error::io("write", &path, error))?;
        }
        Ok(destination)
    });
    match checked {
        Ok(Destination::Stream(_)) if several => Err(format!(
            "Several notebooks can't all be written to {}, which is not a folder.",
            path.display()
        )
        .into()),
        Ok(Destination::File(place) | Destination::Stream(place)) => Ok((path, place)),
        Err(error) => {
            Err(format!("Nothing was run, because the result could not be saved: {error}").into())
        }
    }
}

/// Checks that a file may be written, if it exists: a file that is protected from writing could still be replaced.
fn may_be_replaced(file: &Path) -> io::Result<()> {
    match fs::OpenOptions::new().write(true).open(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the same path for a file however it is reached.
fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| {
        let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
        match (folder, path.file_name()) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        }
    })
}

/// Writes an executed notebook to its place or, if that fails, somewhere else. Returns where it was written.
pub fn write(json: &[u8], place: &Place, notebook: &Path) -> Result<String> {
    let bytes = json.to_vec();
    let (name, written) = match place {
        Place::Stdout => {
            let write = move || {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                written.map_err(|error| error.to_string())
            };
            ("standard output".to_owned(), unless_interrupted(write))
        }
        Place::Path(path) => {
            let name = path.display().to_string();
            let to = path.clone();
            let write =
                move || files::write_atomically(&to, &bytes).map_err(|error| error.to_string());
            let written = match Destination::of(path) {
                Ok(Destination::Stream(_)) => unless_interrupted(write),
                _ => write(),
            };
            (name, written)
        }
    };
    match written {
        Ok(()) => Ok(name),
        Err(problem) => rescue(json, notebook, &problem),
    }
}

/// Writes to something whose reader may never read, until a signal asks the program to stop.
fn unless_interrupted(
    write: impl FnOnce() -> Result<(), String> + Send + 'static,
) -> Result<(), String> {
    let (done, written) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || done.send(write()));
    let before = signals::ending();
    // Those so far were for the cells.
    signals::take_interrupts();
    loop {
        if let Ok(written) = written.recv_timeout(signals::TICK) {
            return written;
        }
        if signals::take_interrupts() > 0 || signals::ending() != before {
            return Err("interrupted: nobody read what was written".into());
        }
    }
}

/// Saves a notebook that could not be written to its place in the first folder that accepts it.
fn rescue(json: &[u8], notebook: &Path, problem: &str) -> Result<String> {
    let stem = notebook.file_stem().unwrap_or_default().to_string_lossy();
    let folders = [
        notebook.parent().map(Path::to_owned),
        dirs::home_dir(),
        Some(std::env::temp_dir()),
    ];
    for folder in folders.into_iter().flatten() {
        let named = (1..).map(|number| folder.join(format!("{stem}.executed-{number}.ipynb")));
        let free = named
            .into_iter()
            .find(|path| path.symlink_metadata().is_err());
        let Some(path) = free else { continue };
        if files::write_atomically(&path, json).is_ok() {
            return Err(format!(
                "{problem}\nThe executed notebook was saved as {} instead.",
                path.display()
            )
            .into());
        }
    }
    Err(format!("{problem}\nThe executed notebook could not be saved elsewhere either.").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(notebooks: &[&Path], output: Option<&Path>) -> Run {
        Run {
            notebooks: notebooks.iter().map(|path| path.to_path_buf()).collect(),
            output: output.map(Path::to_path_buf),
            in_place: false,
            parameters: Vec::new(),
            timeout: None,
            allow_errors: false,
        }
    }

    #[test]
    fn missing_folders_are_created_and_colliding_names_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["a", "b"] {
            fs::create_dir(at(name)).expect("made");
            fs::write(at(name).join("n.ipynb"), "{}").expect("written");
        }
        let one = settle(&arguments(
            &[&at("a/n.ipynb")],
            Some(&at("deep/er/out.ipynb")),
        ));
        assert_eq!(
            one.expect("settled"),
            [Place::Path(at("deep/er/out.ipynb"))]
        );
        assert!(at("deep/er").is_dir());
        let inside = at("a/n.ipynb/deep/out.ipynb");
        let told = settle(&arguments(&[&at("b/n.ipynb")], Some(&inside)));
        let told = told.expect_err("refused").to_string();
        assert!(told.contains("a/n.ipynb is a file"), "{told}");
        let both = settle(&arguments(
            &[&at("a/n.ipynb"), &at("b/n.ipynb")],
            Some(&at("new")),
        ));
        let told = both.expect_err("refused").to_string();
        assert!(
            told.contains("a/n.ipynb") && told.contains("b/n.ipynb"),
            "{told}"
        );
        let twice = settle(&arguments(&[&at("a/n.ipynb"), &at("a/../a/n.ipynb")], None));
        assert!(twice.is_err());
        let apart = settle(&arguments(&[&at("a/n.ipynb"), &at("b/n.ipynb")], None));
        assert_eq!(apart.expect("settled").len(), 2);
    }

    #[test]
    fn notebooks_that_links_lead_to_one_file_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        for name in ["a.ipynb", "b.ipynb"] {
            fs::write(at(name), "{}").expect("written");
        }
        let both = [&*at("a.ipynb"), &*at("b.ipynb")];
        // One is the file, or both lead to a file that does not exist yet.
        for target in ["a.executed.ipynb", "new.ipynb"] {
            for name in ["a.executed.ipynb", "b.executed.ipynb"] {
                let _ = fs::remove_file(at(name));
                if name != target {
                    std::os::unix::fs::symlink(target, at(name)).expect("linked");
                }
            }
            let told = settle(&arguments(&both, None)).expect_err(target);
            assert!(told.to_string().contains("would both be written"), "{told}");
        }
    }

    #[test]
    fn an_unwritable_place_is_refused_before_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        fs::write(&file, "").expect("written");
        let notebook = folder.path().join("n.ipynb");
        assert!(settle(&arguments(&[&notebook], Some(&file.join("out.ipynb")))).is_err());
        let many = [notebook.as_path(), &file];
        assert!(settle(&arguments(&many, Some(Path::new("-")))).is_err());
        let stdout = settle(&arguments(&[&notebook], Some(Path::new("-"))));
        assert_eq!(stdout.expect("settled"), [Place::Stdout]);
    }

    #[test]
    fn a_notebook_that_cannot_be_written_is_saved_elsewhere() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = Place::Path(folder.path().join("gone/out.ipynb"));
        let told = write(b"{}", &place, &folder.path().join("n.ipynb"))
            .expect_err("no folder")
            .to_string();
        let path = told
            .split("saved as ")
            .nth(1)
            .and_then(|rest| rest.split(" instead").next());
        assert_eq!(fs::read(path.expect("named")).expect("there"), b"{}");
    }
}
