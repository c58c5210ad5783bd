//! The unit of the processor that multiplies large matrices from bf16 parts, if it has one.

#[cfg(target_arch = "x86_64")]
use super::gemm_avx512bf16;
#[cfg(target_arch = "x86_64")]
use super::gemm_packed::Unit;
#[cfg(target_arch = "x86_64")]
use super::simd::{self, Level};

/// Returns the unit that is faster than vectors of f32: at f32's precision, or, where that `suffices`, at bf16's.
#[cfg(target_arch = "x86_64")]
pub(super) fn bf16_unit(suffices: bool) -> Option<Unit> {
    match simd::level() {
        #[cfg(target_os = "linux")]
        Level::Matrix => Some(Unit::Tiles),
        Level::V4 if suffices && gemm_avx512bf16::is_available() => Some(Unit::Dots),
        _ => None,
    }
}

/// Returns whether products at bf16's precision are faster than f32's on this machine.
pub(super) fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return bf16_unit(true).is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}
