//! The fused operations on the CPU.

use candle_core::Device;

#[path = "../support/op_checks.rs"]
mod checks;

/// How far values and gradients in f32 may be from those in f64, relative to their norm.
pub const TOLERANCES: (f64, f64) = (2e-6, 4e-6);

pub fn device() -> Option<Device> {
    Some(Device::Cpu)
}
