//! `cloze notebooks`: writes the notebooks that are built into this program to a folder.

use std::fs;
use std::path::Path;

use cloze::files;

use crate::{Error, Result};

macro_rules! notebooks {
    ($($name:literal)*) => {
        [$(($name, include_bytes!(concat!("../../notebooks/", $name)) as &[u8]),)*]
    };
}

/// The notebooks, the main guide first.
const NOTEBOOKS: [(&str, &[u8]); 7] = notebooks!(
    "masked_language_modeling.ipynb"
    "training_loop_by_hand.ipynb"
    "pretrain_from_scratch.ipynb"
    "gpu.ipynb"
    "other_models.ipynb"
    "long_documents.ipynb"
    "spoken_digits.ipynb"
);

/// Writes the notebooks to `folder`, which is created if needed. Existing files are kept.
pub fn write(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::file(folder))?;
    for (name, text) in NOTEBOOKS {
        let path = folder.join(name);
        // A dangling symbolic link counts as existing too.
        if path.symlink_metadata().is_ok() {
            println!("{} already exists and was kept", path.display());
            continue;
        }
        files::write_atomically(&path, text).map_err(|error| error.to_string())?;
        println!("{}", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_notebook_is_built_in_and_none_is_overwritten() {
        let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("../notebooks");
        let folder = tempfile::tempdir().expect("a folder");
        let to = folder.path().join("mine");
        fs::create_dir(&to).expect("made");
        fs::write(to.join("gpu.ipynb"), "changed").expect("written");
        write(&to).expect("written");
        assert_eq!(fs::read(to.join("gpu.ipynb")).expect("read"), b"changed");
        let mut count = 0;
        for entry in fs::read_dir(&clone).expect("read") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".ipynb") && !name.ends_with(".executed.ipynb") {
                count += 1;
                let written = fs::read(to.join(&*name)).expect("it is in the program");
                let original = fs::read(&path).expect("read");
                assert!(name == "gpu.ipynb" || written == original, "{name}");
            }
        }
        assert_eq!(count, NOTEBOOKS.len());
        let written = fs::read_dir(&to).expect("read").count();
        assert_eq!(written, NOTEBOOKS.len(), "and nothing beside them");
    }
}
