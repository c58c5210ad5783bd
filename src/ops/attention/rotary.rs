//! Rotary positions: pairs of features turned by an angle that grows with the position.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use crate::ops::simd::simd_fn;
use crate::{Error, Result};

/// Which features of a head form the pairs that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Features 2i and 2i + 1 (RoFormer).
    Interleaved,
    /// Features i and i + width / 2 (ESM-2, ModernBERT, Nomic BERT, EuroBERT).
    Half,
}

/// The angles of rotary positions for [`attention_with`](super::attention_with); cheap to clone.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// (positions, width / 2) each.
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    positions: usize,
    width: usize,
    pairs: RotaryPairs,
    values: bool,
    /// The tables on the first GPU that asked for them.
    #[cfg(feature = "cuda")]
    placed: Arc<std::sync::OnceLock<[Tensor; 2]>>,
}

impl Rotary {
    /// Rotates the first `width` features of every head by the angles whose cosines and sines are given, as
    /// (positions, width / 2) tensors, or as (positions, width) ones in which both features of a pair have theirs.
    ///
    /// # Errors
    /// If `width` is odd or 0, or the tables have another shape.
    pub fn new(cos: &Tensor, sin: &Tensor, width: usize, pairs: RotaryPairs) -> Result<Self> {
        let half = width / 2;
        let fits = width > 0
            && width.is_multiple_of(2)
            && cos.dims() == sin.dims()
            && cos.rank() == 2
            && (cos.dims()[1] == half || cos.dims()[1] == width);
        if !fits {
            return Err(Error::argument(
                "cos, sin",
                format!(
                    "shapes {:?} and {:?} are not tables for {width} rotated features; give both as (positions, {half}) or (positions, {width})",
                    cos.dims(),
                    sin.dims()
                ),
            ));
        }
        let table = |x: &Tensor| -> Result<Arc<[f32]>> {
            let rows = x
                .to_device(&Device::Cpu)?
                .to_dtype(DType::F32)?
                .to_vec2::<f32>()?;
            let step = match pairs {
                RotaryPairs::Interleaved => cos.dims()[1] / half,
                RotaryPairs::Half => 1,
            };
            Ok(rows
                .iter()
                .flat_map(|row| row.iter().step_by(step).take(half).copied())
                .collect())
        };
        Ok(Self {
            cos: table(cos)?,
            sin: table(sin)?,
            positions: cos.dims()[0],
            width,
            pairs,
            values: false,
            #[cfg(feature = "cuda")]
            placed: Arc::default(),
        })
    }

    /// Returns the usual angles for `positions` positions: pair i of `width / 2` turns by `theta^(-2i / width)` a
    /// position. Computed in f32, as transformers does.
    ///
    /// # Errors
    /// If `width` is odd or 0.
    pub fn with_theta(
        positions: usize,
        width: usize,
        theta: f64,
        pairs: RotaryPairs,
    ) -> Result<Self> {
        let half = width / 2;
        let speeds = Self::speeds(width, theta);
        let angles: Vec<f32> = (0..positions)
            .flat_map(|at| speeds.iter().map(move |speed| at as f32 * speed))
            .collect();
        let angles = Tensor::from_vec(angles, (positions, half), &Device::Cpu)?;
        Self::new(&angles.cos()?, &angles.sin()?, width, pairs)
    }

    /// Returns the angles by which the pairs turn from one position to the next, (width / 2).
    pub fn speeds(width: usize, theta: f64) -> Vec<f32> {
        (0..width / 2)
            .map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / width as f32))
            .collect()
    }

    /// Rotates the values too (RoFormer's `rotary_value`).
    pub fn with_values(self, values: bool) -> Self {
        Self { values, ..self }
    }

    /// Returns the number of positions that have angles.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Returns the number of features of a head that are rotated.
    pub fn width(&self) -> usize {
        self.width
    }

    pub(in crate::ops) fn turns_values(&self) -> bool {
        self.values
    }

    pub(in crate::ops) fn pairs(&self) -> RotaryPairs {
        self.pairs
    }

    /// Cosines and sines of the positions from `first` on, as (count, width / 2) tensors.
    pub(in crate::ops) fn tables(&self, first: usize, count: usize) -> Result<[Tensor; 2]> {
        let half = self.width / 2;
        let rows = first * half..(first + count) * half;
        let table = |x: &[f32]| Tensor::from_slice(&x[rows.clone()], (count, half), &Device::Cpu);
        Ok([table(&self.cos)?, table(&self.sin)?])
    }

    /// Cosines and sines of all positions on a GPU, (positions, width / 2) each, which are copied there once.
    #[cfg(feature = "cuda")]
    pub(super) fn tables_on(&self, device: &Device) -> Result<[Tensor; 2]> {
        if let Some(tables) = self.placed.get()
            && tables[0].device().same_device(device)
        {
            return Ok(tables.clone());
        }
        let [cos, sin] = self.tables(0, self.positions)?;
        let tables = [cos.to_device(device)?, sin.to_device(device)?];
        // Another thread's are the same.
        let _ = self.placed.set(tables.clone());
        Ok(tables)
    }

    /// Checks that heads of these sizes and this many positions can be rotated.
    pub(super) fn check(&self, positions: usize, key: usize, value: usize) -> Result<()> {
        let turned = if self.values { key.min(value) } else { key };
        if self.width > turned {
            return Err(Error::argument(
                "rotary",
                format!(
                    "{} features are to be rotated, but a head has {turned}",
                    self.width
                ),
            ));
        }
        if self.positions < positions {
            return Err(Error::argument(
                "rotary",
                format!(
                    "there are angles for {} positions, but {positions} are needed; make the tables longer or the texts shorter",
                    self.positions
                ),
            ));
        }
        Ok(())
    }

    /// Rotates one head's features at a position in place; back again with `inverse`.
    #[inline]
    pub(super) fn turn(&self, row: &mut [f32], position: usize, inverse: bool) {
        let half = self.width / 2;
        let at = position * half..(position + 1) * half;
        let sign = if inverse { -1.0 } else { 1.0 };
        let row = &mut row[..self.width];
        match self.pairs {
            RotaryPairs::Half => turn_halves(row, &self.cos[at.clone()], &self.sin[at], sign),
            RotaryPairs::Interleaved => turn_pairs(row, &self.cos[at.clone()], &self.sin[at], sign),
        }
    }
}

simd_fn! {
    fn turn_halves(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        let (low, high) = row.split_at_mut(cos.len());
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            let (x, y, sin) = (*a, *b, sin * sign);
            *a = x * cos - y * sin;
            *b = y * cos + x * sin;
        }
    }
}

simd_fn! {
    fn turn_pairs(row: &mut [f32], cos: &[f32], sin: &[f32], sign: f32) {
        for ((pair, cos), sin) in row.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
            let ([x, y], sin) = (*pair, sin * sign);
            *pair = [x * cos - y * sin, y * cos + x * sin];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_full_and_half_width_agree() {
        let half = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let full = |rows: &[[f32; 4]; 2]| Tensor::new(rows, &Device::Cpu).unwrap();
        let cases = [
            (
                RotaryPairs::Half,
                full(&[[1.0, 2.0, 1.0, 2.0], [3.0, 4.0, 3.0, 4.0]]),
            ),
            (
                RotaryPairs::Interleaved,
                full(&[[1.0, 1.0, 2.0, 2.0], [3.0, 3.0, 4.0, 4.0]]),
            ),
        ];
        for (pairs, wide) in cases {
            let narrow = Rotary::new(&half, &half, 4, pairs).unwrap();
            let wide = Rotary::new(&wide, &wide, 4, pairs).unwrap();
            assert_eq!(narrow.cos, wide.cos);
            assert_eq!(narrow.sin, wide.sin);
        }
    }

    #[test]
    fn a_rotation_preserves_norms_and_its_inverse_undoes_it() {
        for pairs in [RotaryPairs::Half, RotaryPairs::Interleaved] {
            let rotary = Rotary::with_theta(9, 6, 1e4, pairs).unwrap();
            let before: Vec<f32> = (0..8).map(|i| i as f32 - 2.5).collect();
            let mut row = before.clone();
            rotary.turn(&mut row, 7, false);
            assert!(
                row[..6]
                    .iter()
                    .zip(&before)
                    .all(|(a, b)| (a - b).abs() > 1e-4)
            );
            assert_eq!(row[6..], before[6..]);
            let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
            assert!((norm(&row) - norm(&before)).abs() < 1e-4);
            rotary.turn(&mut row, 7, true);
            assert!(row.iter().zip(&before).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }

    #[test]
    fn tables_of_the_wrong_shape_are_errors() {
        let table = Tensor::zeros((5, 3), DType::F32, &Device::Cpu).unwrap();
        for width in [0, 2, 3, 4, 8] {
            let error = Rotary::new(&table, &table, width, RotaryPairs::Half).unwrap_err();
            assert!(error.to_string().contains("[5, 3]"), "{error}");
        }
        let rotary = Rotary::new(&table, &table, 6, RotaryPairs::Half).unwrap();
        assert!(rotary.check(5, 6, 2).is_ok());
        assert!(rotary.check(6, 6, 6).is_err());
        assert!(rotary.check(5, 4, 6).is_err());
        assert!(rotary.with_values(true).check(5, 6, 2).is_err());
    }
}
