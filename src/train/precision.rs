//! Which precision a run has: what its arguments ask for, if the model's device has it.

use std::sync::Once;

use candle_core::Device;

use super::TrainingArguments;
use crate::ops::{self, Precision};
use crate::{Error, Result};

/// Returns the precision of products for these arguments on `device`; sets the switch for TF32 on the way.
///
/// # Errors
/// For fp16 on a device without it. bf16 and TF32 are f32 there, which is said on stderr, once.
pub(super) fn choose(args: &TrainingArguments, device: &Device) -> Result<Precision> {
    let precision = match (args.bf16, args.fp16) {
        (true, _) => Precision::Bf16,
        (_, true) => Precision::F16,
        _ => Precision::F32,
    };
    let available = precision.is_available_on(device);
    if precision == Precision::F16 && !available {
        return Err(Error::argument(
            "fp16",
            "only GPUs support fp16, but the model is on another device: turn it off, set bf16(true), or open the model on \
             a GPU with MaskedLm::from_pretrained_on(name, &device)",
        ));
    }
    if !available {
        static NOTE: Once = Once::new();
        NOTE.call_once(|| {
            eprintln!("note: bf16: this device does not support it, so products stay in f32");
        });
    }
    if let Some(tf32) = args.tf32 {
        if tf32 && device.is_cpu() {
            static NOTE: Once = Once::new();
            NOTE.call_once(|| {
                eprintln!("note: tf32: the CPU does not support it, so products stay in f32")
            });
        }
        ops::set_tf32(tf32);
    }
    Ok(precision)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp16_on_the_cpu_is_an_error_with_advice() {
        let args = TrainingArguments::new("out").fp16(true);
        let error = choose(&args, &Device::Cpu).unwrap_err();
        assert!(
            matches!(error, Error::Argument { name: "fp16", .. }),
            "{error}"
        );
        let text = error.to_string();
        for way in ["turn it off", "bf16(true)", "from_pretrained_on"] {
            assert!(text.contains(way), "{text}");
        }
    }

    #[test]
    fn the_other_precisions_are_accepted() {
        let args = TrainingArguments::new("out");
        let on_cpu = |args: &TrainingArguments| choose(args, &Device::Cpu).unwrap();
        assert_eq!(on_cpu(&args), Precision::F32);
        assert_eq!(on_cpu(&args.clone().bf16(true)), Precision::Bf16);
        on_cpu(&args.clone().tf32(true));
        assert!(ops::tf32());
        // Not set: as it was.
        on_cpu(&args);
        assert!(ops::tf32());
        on_cpu(&args.tf32(false));
        assert!(!ops::tf32());
    }
}
