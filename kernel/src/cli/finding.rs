//! What `cloze doctor` finds when it looks at something.

/// The outcome of one look.
pub enum Finding {
    Good(String),
    /// Something that only some need.
    Absent(String),
    Bad(String),
}
