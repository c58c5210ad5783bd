//! Dropout whose mask is a function of a key and the element's index, so that it is never stored.

use candle_core::Tensor;

use crate::Result;

/// How much to drop, and the key that decides what: the same key always drops the same elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dropout {
    /// The probability that an element becomes zero; the others are scaled by 1 / (1 - p).
    pub p: f32,
    /// The key of the counter-based random generator.
    pub key: u64,
}

impl Dropout {
    /// No dropout.
    pub const NONE: Self = Self { p: 0.0, key: 0 };

    /// Whether anything is dropped at all.
    pub fn is_active(self) -> bool {
        self.p > 0.0
    }

    /// The factor of element `index`: 0, or 1 / (1 - p).
    #[inline]
    pub fn factor(self, index: u64) -> f32 {
        // SplitMix64's finalizer over key and counter: a bijection of the counter for every key.
        let mut z = self
            .key
            .wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        // The upper 24 bits are exactly a float in [0, 1).
        let uniform = (z >> 40) as f32 / (1u32 << 24) as f32;
        if uniform < self.p {
            0.0
        } else {
            1.0 / (1.0 - self.p)
        }
    }
}

/// Drops elements of `x` (any shape) as `dropout` says.
pub fn dropout(x: &Tensor, dropout: Dropout) -> Result<Tensor> {
    if !dropout.is_active() {
        return Ok(x.clone());
    }
    let factors: Vec<f32> = (0..x.elem_count() as u64)
        .map(|i| dropout.factor(i))
        .collect();
    let factors = Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?;
    Ok((x * factors)?)
}
