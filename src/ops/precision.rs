//! The precision of large products.

use std::cell::Cell;

use super::matmul::has_bf16;

/// How exact the operands of large products are; what they add up to, and everything else, is f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32.
    #[default]
    F32,
    /// bf16: three decimal digits, and the range of f32. Only where the processor has a unit for it; elsewhere products
    /// are f32.
    Bf16,
}

impl Precision {
    /// Whether this machine's processor multiplies faster at this precision than at f32's.
    pub fn is_available(self) -> bool {
        self == Self::F32 || has_bf16()
    }
}

thread_local! {
    static PRECISION: Cell<Precision> = const { Cell::new(Precision::F32) };
}

/// Runs `f` with its products, and those of the backward passes started in it, at `precision`. Mirrors `torch.autocast`;
/// weights, gradients, sums and statistics stay f32, so that no loss scaling is needed.
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
    struct Restore(Precision);
    impl Drop for Restore {
        fn drop(&mut self) {
            PRECISION.set(self.0);
        }
    }
    let _restore = Restore(PRECISION.replace(precision));
    f()
}

/// What [`autocast`] has set on this thread.
pub(super) fn precision() -> Precision {
    PRECISION.get()
}

/// Runs `f` on a thread of the pool, at the precision that this thread has: there handing out work costs no change of
/// threads, which shows in what is over in milliseconds.
pub(crate) fn in_pool<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let precision = precision();
    rayon::scope(|_| autocast(precision, f))
}
