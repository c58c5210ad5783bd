//! The largest values of a tensor.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use crate::{Error, Result};

/// `tensor.top_k(k)`, as `torch.topk`.
///
/// ```
/// use cloze::prelude::*;
///
/// let logits = Tensor::new(&[[0.5f32, 3.0, -1.0], [2.0, 0.0, 4.0]], &Device::Cpu)?;
/// let (values, indices) = logits.top_k(2)?;
/// assert_eq!(values, [3.0, 0.5, 4.0, 2.0]);
/// assert_eq!(indices, [1, 0, 2, 0]);
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait TopK {
    /// Returns the `k` largest values along the last dimension, largest first, and their indices.
    ///
    /// A tensor of one dimension gives `k` of each; one of shape (.., n) gives `k` for each of its rows, one row after
    /// the other: `values.chunks(k)` has them row by row. Of equal values the one with the lower index comes first;
    /// NaN comes last.
    ///
    /// # Errors
    /// When `k` is larger than the last dimension, or the tensor is a scalar.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let logits = Tensor::new(&[0.5f32, 3.0, -1.0, 2.0], &Device::Cpu)?;
    /// let (values, indices) = logits.top_k(2)?;
    /// assert_eq!(values, [3.0, 2.0]);
    /// assert_eq!(indices, [1, 3]);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    fn top_k(&self, k: usize) -> Result<(Vec<f32>, Vec<u32>)>;

    /// Like [`top_k`](Self::top_k), each value with its index.
    ///
    /// ```
    /// use cloze::prelude::*;
    /// let logits = Tensor::new(&[0.5f32, 3.0, -1.0, 2.0], &Device::Cpu)?;
    /// let best = logits.largest(2)?;
    /// assert_eq!((best[0].index, best[0].value), (1, 3.0));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    fn largest(&self, k: usize) -> Result<Vec<Entry>> {
        let (values, indices) = self.top_k(k)?;
        let pairs = indices.into_iter().zip(values);
        Ok(pairs.map(|(index, value)| Entry { index, value }).collect())
    }
}

/// An element of a tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Entry {
    /// Its place along the last dimension: of logits, the token's id.
    pub index: u32,
    /// What it is.
    pub value: f32,
}

impl TopK for Tensor {
    fn top_k(&self, k: usize) -> Result<(Vec<f32>, Vec<u32>)> {
        let Some(&width) = self.dims().last() else {
            return Err(Error::argument(
                "top_k",
                "a scalar has no values to choose from",
            ));
        };
        if k > width {
            return Err(Error::argument(
                "top_k",
                format!("{k} values were requested, but the last dimension has only {width}"),
            ));
        }
        if k == 0 {
            return Ok((Vec::new(), Vec::new()));
        }
        let all = self.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let rows: Vec<Vec<u32>> = all.par_chunks(width).map(|row| best(row, k)).collect();
        let values = rows
            .iter()
            .zip(all.chunks(width))
            .flat_map(|(indices, row)| indices.iter().map(|&index| row[index as usize]));
        Ok((values.collect(), rows.concat()))
    }
}

/// Returns the places of the `k` largest values, largest first.
pub(super) fn best(values: &[f32], k: usize) -> Vec<u32> {
    if k > 0
        && k <= values.len() / SPARSE
        && let Some(best) = best_few(values, k)
    {
        return best;
    }
    let rank = |value: f32| {
        if value.is_nan() {
            f32::NEG_INFINITY
        } else {
            value
        }
    };
    let order = |a: &u32, b: &u32| {
        let (left, right) = (values[*a as usize], values[*b as usize]);
        let by_value = rank(right).total_cmp(&rank(left));
        by_value
            .then(left.is_nan().cmp(&right.is_nan()))
            .then(a.cmp(b))
    };
    let mut places: Vec<u32> = (0..values.len() as u32).collect();
    if k == 0 {
        return Vec::new();
    }
    if k < places.len() {
        places.select_nth_unstable_by(k - 1, order);
        places.truncate(k);
    }
    places.sort_unstable_by(order);
    places
}

/// If few values are requested, most are only compared with the smallest of those found so far.
const SPARSE: usize = 64;

/// Like [`best`], in one pass; `None` where fewer than `k` are numbers.
fn best_few(values: &[f32], k: usize) -> Option<Vec<u32>> {
    let mut found: Vec<(f32, u32)> = Vec::with_capacity(k + 1);
    let mut least = f32::NEG_INFINITY;
    for (piece, values) in values.chunks(SPARSE).enumerate() {
        let larger = values.iter().fold(false, |any, &x| any | (x > least));
        if found.len() == k && !larger {
            continue;
        }
        for (at, &value) in values.iter().enumerate() {
            if found.len() == k && value > least || found.len() < k && !value.is_nan() {
                // Behind its equals, which came earlier.
                let place = found.partition_point(|&(other, _)| other >= value);
                found.insert(place, (value, (piece * SPARSE + at) as u32));
                found.truncate(k);
                if found.len() == k {
                    least = found[k - 1].0;
                }
            }
        }
    }
    (found.len() == k).then(|| found.into_iter().map(|(_, place)| place).collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn equal_values_keep_their_order_and_nan_sorts_last() {
        let values = [1.0, f32::NAN, 2.0, 1.0, f32::NEG_INFINITY, 2.0];
        assert_eq!(best(&values, 6), [2, 5, 0, 3, 4, 1]);
        assert_eq!(best(&values, 3), [2, 5, 0]);
    }

    #[test]
    fn a_large_row_agrees_with_sorting() {
        let values: Vec<f32> = (0..50_000u64)
            .map(|i| (i * 48_271 % 10_007) as f32)
            .collect();
        let mut sorted: Vec<u32> = (0..50_000).collect();
        sorted.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
        assert_eq!(best(&values, 100), sorted[..100]);
    }

    #[test]
    fn a_small_k_agrees_with_sorting_even_with_nan() {
        let value = |i: usize| match i % 97 {
            0 => f32::NAN,
            1 => f32::NEG_INFINITY,
            _ => ((i * 48_271) % 211) as f32,
        };
        let values: Vec<f32> = (0..6000).map(value).collect();
        let mut sorted: Vec<u32> = (0..6000).filter(|&i| !value(i as usize).is_nan()).collect();
        sorted.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
        for k in [1, 2, 5, 64, 93] {
            assert_eq!(best(&values, k), sorted[..k]);
        }
        let mut empty = vec![f32::NAN; 500];
        empty[400] = 1.0;
        assert_eq!(best(&empty, 3), [400, 0, 1]);
    }

    #[test]
    fn each_row_of_a_matrix_has_its_own_result() {
        let tensor = Tensor::new(&[[1f32, 3., 2.], [6., 4., 5.]], &Device::Cpu).unwrap();
        let (values, indices) = tensor.top_k(2).unwrap();
        assert_eq!(values, [3., 2., 6., 5.]);
        assert_eq!(indices, [1, 2, 0, 2]);
        let error = tensor.top_k(4).unwrap_err().to_string();
        assert!(error.contains("only 3"), "{error}");
    }
}
