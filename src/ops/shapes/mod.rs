//! Operations that only change the places of elements.

pub(super) mod concat;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod narrow;
pub(super) mod permute;
pub(super) mod reshape;
