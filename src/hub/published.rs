//! Dataset repositories before and after a push.

use std::collections::BTreeSet;
use std::path::Path;

use super::client::Hub;
use super::http::Request;
use super::login::offline;
use super::name::{Repo, RepoKind};
use super::push::{PushOptions, Pushed, make_repo, push_files};
use crate::Result;

/// A dataset repository as it was before a push.
pub(crate) struct PublishedDataset {
    repo: Repo,
    commit: String,
    /// The paths of its files.
    pub(crate) files: BTreeSet<String>,
    /// Its README.md.
    pub(crate) card: Option<String>,
}

impl Hub {
    /// Returns the dataset repository `name`, made if it does not exist, with what it holds.
    pub(crate) fn published_dataset(
        &self,
        name: &str,
        options: &PushOptions,
    ) -> Result<PublishedDataset> {
        const CARD: &str = "README.md";
        const LONGEST_CARD: u64 = 16 << 20;
        let client = &self.client;
        if client.settings().offline {
            return Err(offline("push"));
        }
        let repo = make_repo(client, RepoKind::Dataset, name, options)?;
        let info = client.info(&repo)?;
        let card = match info.files.contains(CARD) {
            true => {
                let url = client.file_url(&repo, &info.commit, CARD);
                let request = Request::get(url, format!("read the card of {:?}", repo.id()));
                let bytes = client.retry(|| {
                    let mut response = client.send(&request)?;
                    client.read_body(&request, &mut response, LONGEST_CARD)
                })?;
                Some(String::from_utf8_lossy(&bytes).into_owned())
            }
            false => None,
        };
        Ok(PublishedDataset {
            repo,
            commit: info.commit,
            files: info.files,
            card,
        })
    }

    /// Returns the bytes of a file of the repository; 0 where they can't be learnt.
    pub(crate) fn size_in_dataset(&self, dataset: &PublishedDataset, path: &str) -> u64 {
        let found = self.client.head(&dataset.repo, &dataset.commit, path);
        found.map_or(0, |file| file.size)
    }

    /// Pushes the files of `folder` to the repository and removes `deleted` from it, in one commit.
    pub(crate) fn push_dataset_folder(
        &self,
        dataset: &PublishedDataset,
        folder: &Path,
        deleted: &[String],
        options: &PushOptions,
    ) -> Result<Pushed> {
        push_files(&self.client, &dataset.repo, folder, deleted, options)
    }
}
