//! The standard library as shown to rust-analyzer: only what a notebook can name.
//!
//! Reading the whole library would take most of the time of a session's first `let`. So the library's internal crates
//! are left out, and of the thousands of intrinsics, three times as long as the rest of `core`, only the signatures are
//! shown. Everything else is linked to the toolchain's own files.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::toolchain::Toolchain;
use crate::toolchain::environment::cache_folder;
use crate::{Error, Result};

/// Parts of the sources that are shown unchanged.
const SHOWN: [&str; 9] = [
    "Cargo.toml",
    "Cargo.lock",
    "alloc",
    "core",
    "std",
    "std_detect",
    "rustc-std-workspace-alloc",
    "rustc-std-workspace-core",
    "rustc-std-workspace-std",
];
/// External crates that define types or macros of the library itself.
const USED: [&str; 2] = ["cfg-if", "hashbrown"];
/// The intrinsics: part of `core`, in a folder of their own.
const INTRINSICS: &str = "stdarch/crates/core_arch/src";

/// Returns the folder to show in place of the toolchain's own, creating it if necessary.
pub fn shown(toolchain: &Toolchain) -> Result<PathBuf> {
    let real = toolchain.std_sources();
    let key = format!(
        "{}\n{}\n{}",
        toolchain.version,
        real.display(),
        env!("CARGO_PKG_VERSION")
    );
    let key = blake3::hash(key.as_bytes()).to_hex();
    let cache = cache_folder()?;
    let folder = cache.join(format!("library-{}", &key[..16]));
    if folder.exists() {
        return Ok(folder);
    }
    // Created under a temporary name: two sessions may get here at once.
    let unfinished = tempfile::Builder::new()
        .prefix("unfinished-")
        .tempdir_in(&cache)
        .map_err(Error::file(&cache))?;
    for name in SHOWN {
        let (from, to) = (real.join(name), unfinished.path().join(name));
        if from.exists() {
            std::os::unix::fs::symlink(&from, &to).map_err(Error::file(&to))?;
        }
    }
    if real.join(INTRINSICS).exists() {
        outline_folder(&real.join(INTRINSICS), &unfinished.path().join(INTRINSICS))?;
    }
    let unfinished = unfinished.keep();
    if let Err(error) = fs::rename(&unfinished, &folder) {
        let _ = fs::remove_dir_all(&unfinished);
        if !folder.exists() {
            return Err(Error::file(&folder)(error));
        }
    }
    Ok(folder)
}

/// Removes the hidden crates from cargo's metadata of the library.
pub fn without_hidden_crates(metadata: &str) -> Option<String> {
    let mut metadata: Value = serde_json::from_str(metadata).ok()?;
    let is_shown = |name: &str| SHOWN.contains(&name) || USED.contains(&name);
    let packages = metadata["packages"].as_array_mut()?;
    packages.retain(|package| package["name"].as_str().is_some_and(is_shown));
    let kept: Vec<Value> = packages
        .iter()
        .map(|package| package["id"].clone())
        .collect();
    let retain = |list: &mut Value, id: &dyn Fn(&Value) -> Value| {
        if let Some(list) = list.as_array_mut() {
            list.retain(|entry| kept.contains(&id(entry)));
        }
    };
    retain(&mut metadata["workspace_members"], &Value::clone);
    retain(&mut metadata["workspace_default_members"], &Value::clone);
    if metadata["resolve"].is_object() {
        let nodes = &mut metadata["resolve"]["nodes"];
        retain(nodes, &|node| node["id"].clone());
        for node in nodes.as_array_mut()? {
            retain(&mut node["dependencies"], &Value::clone);
            retain(&mut node["deps"], &|dependency| dependency["pkg"].clone());
        }
    }
    Some(metadata.to_string())
}

/// Writes the outlines of all sources below `from`.
fn outline_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(Error::file(to))?;
    for entry in fs::read_dir(from).map_err(Error::file(from))?.flatten() {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            outline_folder(&from, &to)?;
        } else if from.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&from).map_err(Error::file(&from))?;
            fs::write(&to, outline(&source)).map_err(Error::file(&to))?;
        }
    }
    Ok(())
}

/// Returns a source formatted by rustfmt without function bodies, documentation, tests, and the compiler intrinsics
/// that the bodies call. An item begins and ends at the left margin.
fn outline(source: &str) -> String {
    let mut out = String::with_capacity(source.len() / 4);
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let of_no_interest = [
            "///",
            "#[inline",
            "#[stable",
            "#[unstable",
            "#[rustc_",
            "#[cfg_attr(test",
            "#[target_feature",
        ];
        let goes_on = line.starts_with("#[") && !line.ends_with(']');
        if of_no_interest.iter().any(|start| line.starts_with(start)) && !goes_on {
            continue;
        }
        if line == "#[cfg(test)]" {
            // The item that the attribute belongs to: a `use`, or a block.
            let whole = lines.by_ref().find(|line| {
                line.starts_with('}') || line.ends_with(';') && !line.starts_with(' ')
            });
            debug_assert!(whole.is_some(), "a test has an end");
            continue;
        }
        if line.starts_with("unsafe extern \"") && line.ends_with('{') {
            lines.by_ref().find(|line| line.starts_with('}'));
            continue;
        }
        let is_function = line
            .split(' ')
            .take_while(|word| {
                word.chars()
                    .all(|c| c.is_alphanumeric() || "()_\"".contains(c))
            })
            .any(|word| word == "fn");
        if !is_function || line.starts_with(' ') {
            out.push_str(line);
            out.push('\n');
            continue;
        }
        let mut head = line;
        while !head.ends_with(['{', '}', ';']) {
            out.push_str(head);
            out.push('\n');
            let Some(next) = lines.next() else { break };
            head = next;
        }
        out.push_str(head);
        if head.ends_with('{') {
            out.push_str(" loop {} }");
            lines.by_ref().find(|line| line.starts_with('}'));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_crates_are_removed_everywhere() {
        let package = |name: &str| serde_json::json!({ "name": name, "id": format!("id-{name}") });
        let node = |name: &str, uses: &[&str]| {
            let ids: Vec<String> = uses.iter().map(|name| format!("id-{name}")).collect();
            let deps: Vec<Value> = ids
                .iter()
                .map(|id| serde_json::json!({ "pkg": id }))
                .collect();
            serde_json::json!({ "id": format!("id-{name}"), "dependencies": ids, "deps": deps })
        };
        let metadata = serde_json::json!({
            "packages": [package("std"), package("core"), package("libc"), package("hashbrown"), package("coretests")],
            "workspace_members": ["id-std", "id-coretests"],
            "resolve": { "nodes": [node("std", &["core", "libc", "hashbrown"]), node("libc", &["core"])], "root": null },
        });
        let shown = without_hidden_crates(&metadata.to_string()).expect("metadata");
        for hidden in ["libc", "coretests"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
        let shown: Value = serde_json::from_str(&shown).expect("JSON");
        assert_eq!(shown["packages"].as_array().map(Vec::len), Some(3));
        assert_eq!(
            shown["resolve"]["nodes"][0]["deps"]
                .as_array()
                .map(Vec::len),
            Some(2)
        );
        assert!(without_hidden_crates("error: no").is_none());
    }

    #[test]
    fn functions_keep_their_signatures_and_other_items_stay() {
        let source = "\
use crate::simd::*;

#[cfg(test)]
use stdarch_test::assert_instr;

types! {
    /// A vector.
    pub struct v(4 x f32);
}

/// Adds.
#[inline]
#[stable(feature = \"x\", since = \"1.0.0\")]
pub const unsafe fn add(a: v, b: v) -> v {
    if true {
        a
    } else {
        b
    }
}

#[rustc_legacy_const_generics(2)]
pub fn shift<const N: i32>(
    a: v,
) -> v
where
    i32: Copy,
{
    a
}

pub fn nothing() {}

unsafe extern \"C\" {
    #[link_name = \"x\"]
    fn raw(a: v) -> v;
}

#[cfg(test)]
mod tests {
    #[test]
    fn works() {
        assert!(true);
    }
}
pub use self::add as plus;
";
        let expected = "\
use crate::simd::*;


types! {
    /// A vector.
    pub struct v(4 x f32);
}

pub const unsafe fn add(a: v, b: v) -> v { loop {} }

pub fn shift<const N: i32>(
    a: v,
) -> v
where
    i32: Copy,
{ loop {} }

pub fn nothing() {}


pub use self::add as plus;
";
        assert_eq!(outline(source), expected);
    }
}
