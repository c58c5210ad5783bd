//! Convolutions over time: full ones, feature by feature, and with a kernel for each place.

pub(super) mod conv1d;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
pub(super) mod depthwise_conv;
pub(super) mod dynamic_conv;
