//! Which row of a table a distance has.

use std::sync::Arc;

use super::skew::Grid;
use crate::{Error, Result};

/// Which row of a table every pair of a query and a key has, as a function of the distance between them.
///
/// It holds one number for each distance, never one for each pair; clones share them.
///
/// ```
/// use cloze::ops::RelativeIndex;
/// // A row for each distance i - j from -2 to 2; those beyond take the nearest.
/// let index = RelativeIndex::clipped(4, 4, -2, 2);
/// assert_eq!(index.get(1, 1), 2);
/// assert_eq!(index.get(3, 0), 4);
/// assert_eq!(index.get(0, 3), 0);
/// ```
#[derive(Clone, Debug)]
pub struct RelativeIndex {
    pub(super) grid: Grid,
    /// In the order in which a query meets them from key to key.
    pub(super) rows: Arc<[u32]>,
}

impl RelativeIndex {
    /// Returns an index in which `row(i - j)` is the row for query i of `queries` and key j of `keys`. There is at least one of each.
    pub fn new(queries: usize, keys: usize, row: impl Fn(i64) -> u32) -> Self {
        let grid = Grid {
            queries: queries.max(1),
            keys: keys.max(1),
            ratio: 1,
        };
        Self::of(grid, 0, 1, row)
    }

    /// Returns an index in which `row(offset + query_step · i - key_step · j)` is the row for query i and key j: for
    /// queries or keys at different positions, as after the pooling of Funnel Transformer.
    ///
    /// # Errors
    /// If the steps are 0, or `query_step` is not a multiple of `key_step`.
    pub fn linear(
        (queries, keys): (usize, usize),
        offset: i64,
        query_step: usize,
        key_step: usize,
        row: impl Fn(i64) -> u32,
    ) -> Result<Self> {
        if key_step == 0 || query_step == 0 || !query_step.is_multiple_of(key_step) {
            return Err(Error::argument(
                "query_step, key_step",
                format!(
                    "the positions of queries are {query_step} apart and those of keys {key_step}; the first must be a multiple of the second, and neither 0"
                ),
            ));
        }
        let grid = Grid {
            queries: queries.max(1),
            keys: keys.max(1),
            ratio: query_step / key_step,
        };
        Ok(Self::of(grid, offset, key_step as i64, row))
    }

    fn of(grid: Grid, offset: i64, step: i64, row: impl Fn(i64) -> u32) -> Self {
        let last = (grid.ratio * (grid.queries - 1)) as i64;
        let rows = (0..grid.distances() as i64).map(|at| row(offset - step * (at - last)));
        Self {
            grid,
            rows: rows.collect(),
        }
    }

    /// Distances i - j, those below `low` as `low` and those above `high` as `high`: row `distance - low`.
    ///
    /// DeBERTa clips to `-span ..= span - 1`; the `distance_embedding` of BERT has a row for every distance, which are
    /// `1 - max ..= max - 1`.
    pub fn clipped(queries: usize, keys: usize, low: i64, high: i64) -> Self {
        let high = high.max(low);
        Self::new(queries, keys, |distance| {
            (distance.clamp(low, high) - low) as u32
        })
    }

    /// Returns T5's buckets for both directions, as MPNet has them: a half of the `buckets` for keys before the query and one for
    /// those after it. A half of each half is for single distances; the others grow with the logarithm up to
    /// `max_distance`, beyond which all share the last. Computed in f32, as transformers does.
    pub fn t5_buckets(queries: usize, keys: usize, buckets: u32, max_distance: u32) -> Self {
        Self::new(queries, keys, |distance| {
            t5_bucket(distance, buckets, max_distance)
        })
    }

    /// Returns DeBERTa-v2's buckets: single distances up to `span / 2`, then such that grow with the logarithm up to
    /// `max_position`; row `bucket + span`, at most `2 · span - 1`. Computed in f32, as transformers does.
    pub fn log_buckets(queries: usize, keys: usize, span: u32, max_position: u32) -> Self {
        let last = 2 * i64::from(span) - 1;
        Self::new(queries, keys, |distance| {
            let bucket = log_bucket(distance, span, max_position) + i64::from(span);
            bucket.clamp(0, last.max(0)) as u32
        })
    }

    /// Returns the number of queries.
    pub fn queries(&self) -> usize {
        self.grid.queries
    }

    /// Returns the number of keys.
    pub fn keys(&self) -> usize {
        self.grid.keys
    }

    /// Returns the row for a query and a key.
    ///
    /// # Panics
    /// If there is no such query or key.
    pub fn get(&self, query: usize, key: usize) -> u32 {
        self.rows[self.grid.by_query(query, key)]
    }

    /// Returns the index of the first `len` queries and keys only; both must exist, with equal steps.
    pub(super) fn first(&self, len: usize) -> Self {
        let grid = Grid {
            queries: len.max(1),
            keys: len.max(1),
            ratio: 1,
        };
        let start = self.grid.by_query(grid.queries - 1, 0);
        Self {
            grid,
            rows: self.rows[start..start + grid.distances()].into(),
        }
    }

    /// Returns whether distances that share a row follow one another.
    #[cfg(any(test, feature = "cuda"))]
    pub(super) fn has_rows_in_runs(&self) -> bool {
        let starts = self.rows.chunk_by(|a, b| a == b).map(|run| run[0]);
        let mut starts: Vec<u32> = starts.collect();
        let count = starts.len();
        starts.sort_unstable();
        starts.dedup();
        starts.len() == count
    }

    /// Returns the highest row of all.
    pub(super) fn highest(&self) -> u32 {
        self.rows.iter().copied().max().unwrap_or(0)
    }
}

fn t5_bucket(distance: i64, buckets: u32, max_distance: u32) -> u32 {
    let half = (buckets / 2).max(1);
    let exact = (half / 2).max(1);
    let after = if distance < 0 { half } else { 0 };
    let far = distance.unsigned_abs();
    if far < u64::from(exact) {
        return after + far as u32;
    }
    let log = (far as f32 / exact as f32).ln();
    let whole = (f64::from(max_distance) / f64::from(exact)).ln() as f32;
    let step = (log / whole * (half - exact) as f32) as u32;
    after + (exact + step).min(half - 1)
}

fn log_bucket(distance: i64, span: u32, max_position: u32) -> i64 {
    let mid = i64::from(span / 2);
    let far = distance.abs();
    if far <= mid {
        return distance;
    }
    let log = (far as f32 / mid as f32).ln();
    let whole = ((f64::from(max_position) - 1.0) / mid as f64) as f32;
    let bucket = ((log / whole.ln() * (mid - 1) as f32).ceil() as i64).saturating_add(mid);
    bucket * distance.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the first distance from `from` on with another row, and that row.
    fn changes(index: &RelativeIndex, key: usize) -> Vec<(usize, u32)> {
        let rows: Vec<u32> = (key..index.queries()).map(|i| index.get(i, key)).collect();
        let mut changes = vec![(0, rows[0])];
        for (at, pair) in rows.windows(2).enumerate() {
            if pair[0] != pair[1] {
                changes.push((at + 1, pair[1]));
            }
        }
        changes
    }

    #[test]
    fn t5s_buckets_grow_as_published() {
        let index = RelativeIndex::t5_buckets(300, 300, 32, 128);
        let exact = (0..8).map(|i| (i as usize, i));
        let far = [
            (8, 8),
            (12, 9),
            (16, 10),
            (23, 11),
            (32, 12),
            (46, 13),
            (64, 14),
            (91, 15),
        ];
        let expected: Vec<(usize, u32)> = exact.chain(far).collect();
        assert_eq!(changes(&index, 0), expected);
        for far in 1..300 {
            assert_eq!(index.get(0, far), index.get(far, 0) + 16);
        }
        assert_eq!(index.get(5, 5), 0);
    }

    #[test]
    fn debertas_buckets_are_single_at_first_and_logarithmic_then() {
        let index = RelativeIndex::log_buckets(600, 600, 256, 512);
        let exact: Vec<u32> = (0..=128).map(|i| index.get(i, 0)).collect();
        assert_eq!(exact, (256..=384).collect::<Vec<_>>());
        // ceil(ln(129 / 128) / ln(511 / 128) · 127) = 1, and so on up to all 127.
        assert_eq!(index.get(129, 0), 385);
        assert_eq!(index.get(130, 0), 386);
        assert_eq!(index.get(200, 0), 256 + 128 + 41);
        assert_eq!(index.get(511, 0), 256 + 255);
        assert_eq!(index.get(599, 0), 511);
        for far in 0..255 {
            assert_eq!(index.get(far, 0) + index.get(0, far), 512);
        }
        assert_eq!(index.get(0, 599), 0);
    }

    #[test]
    fn a_prefix_of_an_index_is_an_index() {
        let index = RelativeIndex::log_buckets(40, 40, 8, 64);
        for len in [1, 2, 17, 40] {
            let first = index.first(len);
            assert_eq!((first.queries(), first.keys()), (len, len));
            for i in 0..len {
                for j in 0..len {
                    assert_eq!(first.get(i, j), index.get(i, j));
                }
            }
        }
    }

    #[test]
    fn rows_are_in_runs_unless_one_comes_back() {
        assert!(RelativeIndex::clipped(5, 7, -3, 2).has_rows_in_runs());
        assert!(RelativeIndex::log_buckets(40, 40, 8, 64).has_rows_in_runs());
        assert!(
            !RelativeIndex::new(5, 5, |distance| distance.unsigned_abs() as u32).has_rows_in_runs()
        );
        assert!(RelativeIndex::new(1, 1, |_| 3).has_rows_in_runs());
    }

    #[test]
    fn distances_are_clipped_at_both_ends() {
        let index = RelativeIndex::clipped(5, 7, -3, 2);
        for i in 0..5i64 {
            for j in 0..7i64 {
                let expected = ((i - j).clamp(-3, 2) + 3) as u32;
                assert_eq!(index.get(i as usize, j as usize), expected);
            }
        }
        assert_eq!(index.rows.len(), 11);
        assert_eq!(index.highest(), 5);
    }
}
