//! What several integration tests share.
#![allow(dead_code)]

pub mod bench;
pub mod hub_server;
pub mod tunnel;

use std::path::{Path, PathBuf};

/// A file of `tests/fixtures`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(path)
}
