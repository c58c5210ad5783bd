//! A stand-in for the Hub with a cache of its own, and what tests of downloads need around them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cloze::hub::{Hub, Settings, Token};

use super::hub_server::{HubServer, TOKEN};

/// A stand-in, a cache of its own, and settings that know both.
pub struct Bench {
    pub server: HubServer,
    pub folder: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            server: HubServer::start(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn settings(&self) -> Settings {
        let mut settings = Settings::from_env().unwrap().with_token(None);
        settings = settings.with_endpoint(self.server.url()).unwrap();
        settings.cache_dir = self.folder.path().join("hub");
        settings.token_path = self.folder.path().join("token");
        settings.offline = false;
        settings.token_on_reads = true;
        settings.first_delay = Duration::from_millis(5);
        settings.read_timeout = Duration::from_millis(500);
        settings
    }

    pub fn hub(&self) -> Hub {
        Hub::new(self.settings())
    }

    pub fn offline(&self) -> Hub {
        let mut settings = self.settings();
        settings.offline = true;
        Hub::new(settings)
    }

    pub fn with_token(&self) -> Hub {
        Hub::new(self.settings().with_token(Some(Token::new(TOKEN).unwrap())))
    }

    pub fn blobs(&self, folder: &str) -> Vec<String> {
        let blobs = self.folder.path().join("hub").join(folder).join("blobs");
        let mut names: Vec<String> = std::fs::read_dir(blobs)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Bytes that look like nothing in particular.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

pub fn read(folder: &Path, file: &str) -> Vec<u8> {
    std::fs::read(folder.join(file)).unwrap()
}

/// Every file under `folder`, with its path.
pub fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => open.push(path),
                false => files.push(path),
            }
        }
    }
    files
}
