//! The result of one check of `cloze doctor`.

/// The outcome of a check.
pub enum Finding {
    Good(String),
    /// Missing, but only some users need it.
    Absent(String),
    Bad(String),
}
