//! The precision of large products.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::Device;

use super::device;
#[cfg(target_arch = "x86_64")]
use super::gemm::panels::product::Multiplier;
#[cfg(target_arch = "x86_64")]
use super::simd::{self, Level};

/// How exact the operands of large products are, and on a GPU the activations; weights, what products add up to, statistics
/// and losses are f32.
///
/// ```
/// use cloze::prelude::*;
///
/// let fill_mask = FillMask::from_pretrained("bundled:tiny_roberta")?.precision(Precision::Int8);
/// assert_eq!(fill_mask.top_k(3).fill("The sun is a <mask>.")?.len(), 3);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16: three decimal digits, and the range of f32. Only where the processor has a unit for it; elsewhere products
    /// are f32.
    Bf16,
    /// f16: four decimal digits, but numbers below 6e-8 vanish and those above 65504 overflow, so that the loss must be
    /// scaled up and the gradients down again. On GPUs only; elsewhere products are f32.
    F16,
    /// Whole numbers of 8 bits, for models that are only read: each output of a map has a scale for its weights, each row
    /// of inputs a range found as it comes. Only where the processor multiplies them (AVX-512 with VNNI); elsewhere, and
    /// wherever gradients are recorded, products are f32.
    Int8,
}

impl Precision {
    /// Returns whether this machine's processor multiplies faster at this precision than at f32's.
    pub fn is_available(self) -> bool {
        self.is_available_on(&Device::Cpu)
    }

    /// Returns whether `device` multiplies faster at this precision than at f32's.
    pub fn is_available_on(self, device: &Device) -> bool {
        match self {
            Self::F32 => true,
            Self::Bf16 if device.is_cpu() => has_bf16(),
            Self::Bf16 => device::has_bf16(device),
            Self::F16 => device.is_cuda(),
            Self::Int8 => device.is_cpu() && has_int8(),
        }
    }
}

/// Returns whether products of numbers rounded to bf16 are faster than f32's on this machine.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    return simd::level() == Level::Matrix || Multiplier::new(true).is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// Returns whether products of whole numbers of 8 bits are faster than f32's on this machine.
fn has_int8() -> bool {
    #[cfg(target_arch = "x86_64")]
    return super::gemm::panels::Kind::Int8.unit().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
    /// The number of the outermost [`autocast`] that this thread is in; 0 outside.
    static SCOPE: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f` with its products, and those of the backward passes started in it, at `precision`. Mirrors `torch.autocast`;
/// weights, their gradients, sums and statistics stay f32, so that bf16 needs no loss scaling.
///
/// On a GPU activations and their gradients have this precision too.
///
/// ```
/// use cloze::ops::{Precision, autocast};
/// use cloze::prelude::*;
///
/// let config = Config::new("roberta")
///     .set("vocab_size", 300)
///     .set("hidden_size", 64)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 128);
/// let model = MaskedLm::from_config(&config, 42)?;
/// let inputs = ModelInputs::new(vec![5u32; 256], (8, 32))?.with_labels(vec![7i64; 256])?;
/// let loss = |precision| autocast(precision, || model.loss(&inputs, &Context::eval())?.value());
/// assert!((loss(Precision::Bf16)? - loss(Precision::F32)?).abs() < 0.01);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn autocast<T>(precision: Precision, f: impl FnOnce() -> T) -> T {
    static SCOPES: AtomicU64 = AtomicU64::new(0);
    struct Restore(Precision, u64);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRECISION.set(self.0);
            SCOPE.set(self.1);
        }
    }
    let outer = SCOPE.get();
    let _restore = Restore(PRECISION.replace(precision), outer);
    if outer == 0 {
        SCOPE.set(1 + SCOPES.fetch_add(1, Ordering::Relaxed));
    }
    f()
}

/// Returns the number of the outermost [`autocast`] that this thread is in, never seen before; 0 outside of any.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
pub(super) fn scope() -> u64 {
    SCOPE.get()
}

/// Whether products of f32 matrices may round their operands to TF32.
static TF32: AtomicBool = AtomicBool::new(false);

/// Lets products of f32 matrices on a GPU round their operands to TF32 (three decimal digits, the range of f32), which is
/// several times as fast; the counterpart of PyTorch's `torch.backends.cuda.matmul.allow_tf32`. Off at first; without
/// effect on the CPU.
pub fn set_tf32(allowed: bool) {
    TF32.store(allowed, Ordering::Relaxed);
}

/// Returns what [`set_tf32`] has set.
pub fn tf32() -> bool {
    TF32.load(Ordering::Relaxed)
}

/// Returns what [`autocast`] has set on this thread.
pub(super) fn precision() -> Precision {
    PRECISION.get()
}

/// Runs `f` on a thread of the pool, at the precision of this thread: inside the pool handing out work needs no switch
/// of threads, which matters for work of a few milliseconds.
pub(crate) fn in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let precision = precision();
    rayon::scope(|_| autocast(precision, f))
}
