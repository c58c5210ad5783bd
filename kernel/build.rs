//! Records whether the program is compiled in a clone of Cloze, and includes the versions of all crates.

use std::path::{Path, PathBuf};

fn main() {
    let variable = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .unwrap_or_default()
    };
    let package = variable("CARGO_MANIFEST_DIR");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_CFG_UNIX").is_none() {
        println!(
            "cargo::error=Cloze runs on Linux and macOS; on Windows build it in WSL 2 (wsl --install)"
        );
        return;
    }
    // For a package of a registry, the parent folder contains other packages.
    let clone = package.join("..").canonicalize().unwrap_or_default();
    if clone.join("src/lib.rs").exists() && clone.join("kernel/prelude/lib.rs").exists() {
        println!("cargo::rustc-env=CLOZE_CLONE={}", clone.display());
    }
    // The lock file of the package, or of the clone's workspace.
    let lock = [package.join("Cargo.lock"), clone.join("Cargo.lock")]
        .into_iter()
        .find(|file| file.exists());
    let versions = lock.as_deref().map(read).unwrap_or_default();
    let copy = variable("OUT_DIR").join("Cargo.lock");
    if let Err(error) = std::fs::write(&copy, versions) {
        println!("cargo::error={}: {error}", copy.display());
    }
}

fn read(lock: &Path) -> String {
    println!("cargo::rerun-if-changed={}", lock.display());
    std::fs::read_to_string(lock).unwrap_or_default()
}
