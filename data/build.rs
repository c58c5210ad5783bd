//! Lists the files that are to be in the library.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// What a name after `bundled:` can stand for. The second half of the weights is in a package of its own.
const NAMES: [&str; 5] = [
    "eli5_sample.jsonl",
    "pretraining_heldout.txt",
    "pretraining_sample.txt",
    "spoken_digits",
    "tiny_roberta",
];

/// What of that is data, and not how they were made.
const ENDINGS: [&str; 7] = ["csv", "flac", "json", "jsonl", "md", "safetensors", "txt"];

fn main() -> Result<(), Box<dyn Error>> {
    let package = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let mut list = String::from("&[\n");
    for name in NAMES {
        println!("cargo::rerun-if-changed={name}");
        add(&package, Path::new(name), &mut list)?;
    }
    list += "]\n";
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    Ok(fs::write(out.join("files.rs"), list)?)
}

fn add(package: &Path, path: &Path, list: &mut String) -> Result<(), Box<dyn Error>> {
    let place = package.join(path);
    if place.is_dir() && !place.join("Cargo.toml").exists() {
        let mut names = Vec::new();
        for entry in fs::read_dir(&place)? {
            names.push(entry?.file_name());
        }
        names.sort();
        return names
            .iter()
            .try_for_each(|name| add(package, &path.join(name), list));
    }
    let is_data = path
        .extension()
        .is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
    if is_data && place.is_file() && !place.is_symlink() {
        let name = path.to_str().ok_or("a name that is no text")?;
        let place = place.to_str().ok_or("a path that is no text")?;
        writeln!(list, "    ({name:?}, include_bytes!({place:?})),")?;
    }
    Ok(())
}
