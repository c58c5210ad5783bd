//! Results that several ranks make together: a file of each rank's rows in the cache, and last a list of them, without which
//! they are none.

use serde::{Deserialize, Serialize};

use super::cache::Cache;
use super::concatenate::concatenate;
use super::fingerprint::Fingerprint;
use super::sink::Sink;
use super::table::Dataset;
use crate::distributed::Group;
use crate::{Error, Result};

/// The contents of the list.
#[derive(Serialize, Deserialize)]
struct Parts {
    /// The fingerprint of each part, and how many rows it has.
    parts: Vec<(String, usize)>,
}

/// Returns the result known as `key`, if its list and all of its parts are in the cache.
pub(super) fn cached(cache: &Cache, key: Fingerprint) -> Option<Dataset> {
    if !cache.is_enabled() {
        return None;
    }
    let text = std::fs::read(cache.path(key).with_extension("parts.json")).ok()?;
    let list: Parts = serde_json::from_slice(&text).ok()?;
    let part = |(name, rows): &(String, usize)| {
        let part = Sink::cached(cache, Fingerprint::from_hex(name)?)?;
        (part.len() == *rows).then_some(part)
    };
    // A rank without rows leaves no file.
    let parts = list.parts.iter().filter(|(_, rows)| *rows > 0).map(part);
    let parts: Vec<Dataset> = parts.collect::<Option<_>>()?;
    let whole = concatenate(&parts).ok()?;
    let (schema, batches) = (whole.schema().clone(), whole.batches().to_vec());
    Some(Dataset::from_parts(schema, batches, key))
}

/// Makes each rank compute its part with `work`, which takes the key of the part.
pub(super) fn make(
    cache: &Cache,
    key: Fingerprint,
    ranks: &Group,
    work: impl FnOnce(Fingerprint) -> Result<Dataset>,
) -> Result<Dataset> {
    ranks.begin();
    let own = [ranks.rank().to_le_bytes(), ranks.size().to_le_bytes()];
    let name = key.derive("part", &[&own[0], &own[1]]);
    let made = match cache.is_enabled() {
        true => work(name),
        false => Err(Error::argument(
            "by_ranks",
            "the ranks exchange their parts through the cache, but it is turned off (CLOZE_NO_CACHE, Map::cache)",
        )),
    };
    let made = made.map(|part| (name.to_hex(), part.len()));
    let parts = ranks.vote("parts of a dataset", made)?;
    ranks.on_main("the list of a dataset's parts", || {
        let path = cache.path(key).with_extension("parts.json");
        let text = serde_json::to_vec_pretty(&Parts { parts })?;
        crate::base::files::write_atomically(&path, &text)
    })?;
    let found = cached(cache, key).ok_or_else(|| {
        Error::Distributed(format!(
            "a part of a dataset that another rank made is not in {}: the ranks must share that folder (CLOZE_CACHE names \
             another one), or leave out by_ranks",
            cache.folder().display()
        ))
    });
    ranks.settle(found)
}
