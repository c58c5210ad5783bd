//! The folder for what can be made again.

use std::path::PathBuf;

/// The variable that names the folder.
pub(crate) const CACHE: &str = "CLOZE_CACHE";

/// Returns the folder of results that may be reused: `CLOZE_CACHE` if set, else `cloze` in the user's cache folder
/// (`XDG_CACHE_HOME`, or `~/.cache`). With `CLOZE_NO_CACHE=1` nothing is looked up or kept there.
pub fn cache_dir() -> PathBuf {
    if let Some(folder) = std::env::var_os(CACHE).filter(|value| !value.is_empty()) {
        return folder.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    in_cache_of(cache, std::env::home_dir())
}

/// Cloze's folder in the cache of a user with these folders; never one in the folder that the program happens to run in.
fn in_cache_of(cache: Option<PathBuf>, home: Option<PathBuf>) -> PathBuf {
    let given = |path: &PathBuf| !path.as_os_str().is_empty();
    let cache = cache
        .filter(given)
        .or_else(|| home.filter(given).map(|home| home.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("cloze")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_never_in_the_working_folder() {
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(
            in_cache_of(path("/c"), path("/h")),
            PathBuf::from("/c/cloze")
        );
        assert_eq!(
            in_cache_of(path(""), path("/h")),
            PathBuf::from("/h/.cache/cloze")
        );
        for home in [None, path("")] {
            assert!(in_cache_of(None, home).is_absolute());
        }
    }
}
