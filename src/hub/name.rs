//! What counts as a name on the Hub: `owner/name` or an old bare `name`, with an optional `@revision`.

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepoKind {
    /// A model, with or without its tokenizer.
    Model,
    /// A dataset.
    Dataset,
}

impl RepoKind {
    /// Returns the plural that the Hub's addresses and the cache's folders use.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// Returns the word for one.
    pub(crate) fn singular(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
        }
    }
}

/// A repository on the Hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repo {
    kind: RepoKind,
    id: String,
    revision: String,
}

impl Repo {
    /// Reads `owner/name`, `name`, `owner/name@revision` or `name@revision`. The revision is a branch, a tag or a
    /// commit; `main` if none is given.
    ///
    /// # Errors
    /// What is wrong with the name, as the end of a sentence that begins with the name.
    pub fn parse(kind: RepoKind, name: &str) -> Result<Self, String> {
        let (id, revision) = name.split_once('@').unwrap_or((name, "main"));
        check_id(id)?;
        check_revision(revision)?;
        Ok(Self {
            kind,
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    /// Returns the same repository at another revision.
    #[cfg(feature = "hub")]
    pub(crate) fn at(&self, revision: &str) -> Self {
        Self {
            revision: revision.to_owned(),
            ..self.clone()
        }
    }

    /// Returns what it holds.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// Returns `owner/name` or `name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

/// The Hub's own rules: they also keep every id usable as a folder name.
fn check_id(id: &str) -> Result<(), String> {
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 {
        return Err("has more than one slash, but a name on the Hub is owner/name".to_owned());
    }
    for part in parts {
        let word = |c: char| c.is_alphanumeric() || c == '_';
        if part.is_empty() || part.len() > 96 {
            return Err(
                "has an empty or overlong part, but a name on the Hub is owner/name".to_owned(),
            );
        }
        if !part.chars().all(|c| word(c) || c == '-' || c == '.') {
            return Err("contains a character that names on the Hub can't have".to_owned());
        }
        if !part.starts_with(word) || !part.ends_with(word) {
            return Err(
                "has a part that begins or ends with '.' or '-', which names on the Hub can't"
                    .to_owned(),
            );
        }
    }
    if id.contains("--") || id.contains("..") || id.ends_with(".git") {
        return Err(
            "contains \"--\" or \"..\" or ends with \".git\", which names on the Hub can't"
                .to_owned(),
        );
    }
    Ok(())
}

/// Git's rules for names, as far as a cache folder depends on them.
fn check_revision(revision: &str) -> Result<(), String> {
    let fine =
        |part: &str| !part.is_empty() && !part.starts_with(['.', '-']) && !part.ends_with('.');
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || "~^:?*[\\\"<>|".contains(c);
    if revision.split('/').all(fine)
        && !revision.contains("..")
        && !revision.contains(forbidden)
        && revision.len() <= 200
    {
        return Ok(());
    }
    Err(format!(
        "has the revision {revision:?} after the @, which is not a valid branch, tag or commit"
    ))
}

/// Returns whether `path` is a plain relative path with forward slashes that stays inside the folder that it is joined
/// to.
pub(crate) fn is_safe_path(path: &str) -> bool {
    let part_is_safe = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(part_is_safe) && !path.contains(['\\', ':', '\0']) && path.len() <= 1000
}

/// Returns whether `text` is a full commit hash, which never changes its meaning.
pub(crate) fn is_commit_hash(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_owner_and_revision() {
        let repo = |name| Repo::parse(RepoKind::Model, name).unwrap();
        let parts = |name| {
            let repo = repo(name);
            (repo.id().to_owned(), repo.revision().to_owned())
        };
        assert_eq!(
            parts("distilbert/distilroberta-base"),
            ("distilbert/distilroberta-base".into(), "main".into())
        );
        assert_eq!(parts("distilroberta-base").0, "distilroberta-base");
        assert_eq!(parts("a/b.c_d@v1.0").1, "v1.0");
        assert_eq!(parts("a/b@refs/pr/3").1, "refs/pr/3");
        assert!(is_commit_hash(
            &parts("a/b@ec58a5b7f5dbab94e8aa2a10c0f4e1a4e4a3a7a1").1
        ));
    }

    #[test]
    fn names_that_would_leave_the_cache_are_refused() {
        for name in [
            "",
            "/",
            "a/",
            "/etc/passwd",
            "../secret",
            "a/..",
            ".hidden/x",
            "a/b/c",
            "a--b/c",
            "a..b",
            "a\\b",
            "C:\\x",
            "a b",
            "a/b@",
            "a/b@../../x",
            "a/b@/etc",
            "a/b@x\ny",
            "a/b.git",
            "a/-b",
        ] {
            assert!(Repo::parse(RepoKind::Model, name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn only_paths_that_stay_inside_are_safe() {
        for path in ["config.json", "a/b/c.json", ".gitattributes", "..a/b"] {
            assert!(is_safe_path(path), "{path}");
        }
        for path in [
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "a/./b",
            "a//b",
            "a\\..\\x",
            "C:x",
            "x\0y",
            "..",
        ] {
            assert!(!is_safe_path(path), "{path:?}");
        }
    }
}
