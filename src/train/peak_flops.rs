//! The peak speed of a device in matrix products, the reference for a run's speed.

use candle_core::Device;

use crate::ops::{self, Precision};

/// Dense rates in TFLOP/s, from the vendors' data sheets: f32 without tensor cores, TF32, bf16 and fp16 with sums in f32.
/// 0 where the device has no unit for it.
struct Rates {
    /// A part of the name that the driver gives. The first that fits counts, so longer names come first.
    name: &'static str,
    f32: f64,
    tf32: f64,
    bf16: f64,
    f16: f64,
}

const fn rates(name: &'static str, f32: f64, tf32: f64, bf16: f64, f16: f64) -> Rates {
    Rates {
        name,
        f32,
        tf32,
        bf16,
        f16,
    }
}

const KNOWN: [Rates; 19] = [
    rates("B200", 75.0, 1125.0, 2250.0, 2250.0),
    rates("GH200", 67.0, 494.7, 989.4, 989.4),
    rates("H200", 67.0, 494.7, 989.4, 989.4),
    rates("H100 NVL", 60.0, 417.5, 835.0, 835.0),
    rates("H100 PCIe", 51.0, 378.0, 756.0, 756.0),
    rates("H100", 67.0, 494.7, 989.4, 989.4),
    rates("A100", 19.5, 156.0, 312.0, 312.0),
    rates("A10G", 31.2, 35.0, 70.0, 70.0),
    rates("A10", 31.2, 62.5, 125.0, 125.0),
    rates("A30", 10.3, 82.0, 165.0, 165.0),
    rates("RTX A6000", 38.7, 77.4, 154.8, 154.8),
    rates("A40", 37.4, 74.8, 149.7, 149.7),
    rates("L40S", 91.6, 183.0, 362.0, 362.0),
    rates("L40", 90.5, 90.5, 181.0, 181.0),
    rates("L4", 30.3, 60.0, 121.0, 121.0),
    rates("RTX 4090", 82.6, 82.6, 165.2, 165.2),
    rates("RTX 3090", 35.6, 35.6, 71.0, 71.0),
    rates("V100", 15.7, 0.0, 0.0, 125.0),
    rates("T4", 8.1, 0.0, 0.0, 65.0),
];

/// Returns the floating-point operations per second that `device` can do at best in products at `precision`, by its
/// vendor's data sheet and without sparsity; `None` for a device that is not known. What
/// [`History::mfu`](super::History::mfu) compares with.
pub fn peak_flops(device: &Device, precision: Precision) -> Option<f64> {
    by_name(&name(device)?, precision, ops::tf32())
}

fn by_name(name: &str, precision: Precision, tf32: bool) -> Option<f64> {
    let known = KNOWN.iter().find(|known| has_word(name, known.name))?;
    let tera = match precision {
        Precision::F32 if tf32 && known.tf32 > 0.0 => known.tf32,
        Precision::F32 | Precision::Int8 => known.f32,
        Precision::Bf16 => known.bf16,
        Precision::F16 => known.f16,
    };
    (tera > 0.0).then_some(tera * 1e12)
}

/// Returns whether `name` contains `part` as whole words: "NVIDIA A100-SXM4-40GB" has "A100", but neither "A10" nor
/// "A1".
fn has_word(name: &str, part: &str) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.match_indices(part).any(|(at, _)| {
        !is_word(name[..at].chars().next_back()) && !is_word(name[at + part.len()..].chars().next())
    })
}

/// Returns the name that the driver gives the device.
#[cfg(feature = "cuda")]
fn name(device: &Device) -> Option<String> {
    let device = device.as_cuda_device().ok()?;
    device.cuda_stream().context().name().ok()
}

#[cfg(not(feature = "cuda"))]
fn name(_: &Device) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_recognised_by_their_driver_names() {
        for (name, precision, tf32, tera) in [
            ("NVIDIA H100 80GB HBM3", Precision::Bf16, false, 989.4),
            ("NVIDIA H100 80GB HBM3", Precision::F32, true, 494.7),
            ("NVIDIA H100 80GB HBM3", Precision::F32, false, 67.0),
            ("NVIDIA H100 PCIe", Precision::Bf16, false, 756.0),
            ("NVIDIA H200", Precision::F16, false, 989.4),
            ("NVIDIA GH200 480GB", Precision::F16, false, 989.4),
            ("NVIDIA A100-SXM4-40GB", Precision::Bf16, false, 312.0),
            ("NVIDIA A10G", Precision::Bf16, false, 70.0),
            ("NVIDIA A10", Precision::Bf16, false, 125.0),
            ("NVIDIA L40S", Precision::Bf16, false, 362.0),
            ("NVIDIA L4", Precision::Bf16, false, 121.0),
            ("NVIDIA RTX A6000", Precision::F32, true, 77.4),
            ("NVIDIA GeForce RTX 4090", Precision::Bf16, false, 165.2),
            ("Tesla V100-SXM2-16GB", Precision::F16, false, 125.0),
            // It has no TF32, so that the switch changes nothing.
            ("Tesla T4", Precision::F32, true, 8.1),
        ] {
            assert_eq!(
                by_name(name, precision, tf32),
                Some(tera * 1e12),
                "{name} {precision:?}"
            );
        }
    }

    #[test]
    fn unknown_devices_have_no_peak() {
        for name in ["NVIDIA A1000 Laptop GPU", "NVIDIA H1000", "", "Tesla K80"] {
            assert_eq!(by_name(name, Precision::Bf16, false), None, "{name}");
        }
        assert_eq!(by_name("Tesla T4", Precision::Bf16, false), None);
        assert_eq!(peak_flops(&Device::Cpu, Precision::F32), None);
    }
}
