//! Finds the kernelspec that Jupyter would use.

use std::path::{Path, PathBuf};

use super::{Install, Place};

/// Returns the folder of the kernelspec that the JupyterLab on the path sees, or else of the user's own.
pub fn find() -> Option<PathBuf> {
    let name = Install::default().place.name;
    data_folders(find_jupyter().as_deref())
        .into_iter()
        .map(|data| data.join("kernels").join(&name))
        .find(|folder| folder.join("kernel.json").exists())
}

/// Returns the program `jupyter-lab` on the path.
pub fn find_jupyter() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join("jupyter-lab"))
        .find(|file| file.is_file())
}

/// Returns the folders that Jupyter searches, in its order: those named by the environment, the user's, the
/// installation's, and the system's.
fn data_folders(jupyter: Option<&Path>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = std::env::var_os("JUPYTER_PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .collect();
    let user = Place::default().folder().ok();
    folders.extend(
        user.iter()
            .filter_map(|kernel| Some(kernel.parent()?.parent()?.to_owned())),
    );
    folders.extend(
        jupyter
            .and_then(prefix)
            .map(|prefix| prefix.join("share/jupyter")),
    );
    folders.extend(["/usr/local/share/jupyter", "/usr/share/jupyter"].map(PathBuf::from));
    folders
}

/// Returns the installation that a Python program belongs to, from the interpreter named in its first line.
fn prefix(program: &Path) -> Option<PathBuf> {
    let program = program.canonicalize().ok()?;
    let text = std::fs::read(&program).ok()?;
    let first = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    let interpreter = first
        .strip_prefix("#!")
        .and_then(|line| line.split_whitespace().next());
    let interpreter = interpreter
        .map(Path::new)
        .filter(|path| path.file_name().is_some_and(|name| name != "env"));
    let bin = interpreter.unwrap_or(&program).parent()?;
    Some(bin.parent()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installation_is_found_through_the_interpreter() {
        let folder = tempfile::tempdir().expect("a folder");
        let bin = folder.path().join("venv/bin");
        std::fs::create_dir_all(&bin).expect("made");
        let lab = bin.join("jupyter-lab");
        std::fs::write(&lab, "#!/opt/tools/venv/bin/python3 -s\nimport sys\n").expect("written");
        assert_eq!(prefix(&lab), Some("/opt/tools/venv".into()));
        std::fs::write(&lab, "#!/usr/bin/env python3\n").expect("written");
        let own = folder.path().join("venv").canonicalize().expect("there");
        assert_eq!(prefix(&lab), Some(own));
        assert!(
            data_folders(Some(&lab))
                .iter()
                .any(|folder| folder.ends_with("venv/share/jupyter"))
        );
    }
}
