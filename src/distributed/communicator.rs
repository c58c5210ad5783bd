//! The operations between the ranks of a group.

use std::ops::Range;

use crate::Result;

/// One rank's end of a group of processes. Every method but the first four and `abort` is collective: all ranks call it,
/// in the same order.
pub trait Communicator: Send + Sync {
    /// Returns this process's number, from 0.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Returns this process's number among those of its machine.
    fn local_rank(&self) -> usize;

    /// Returns the number of ranks on this machine.
    fn local_size(&self) -> usize;

    /// Replaces this rank's [`share`] of `values` by the sums over all ranks, added in rank order; the rest is
    /// undefined afterwards. All ranks pass equally many values.
    fn reduce_scatter(&self, values: &mut [f32]) -> Result<()>;

    /// Fills in the other ranks' shares of `values`.
    fn all_gather(&self, values: &mut [f32]) -> Result<()>;

    /// Replaces `bytes` by those of rank 0. All ranks give equally many.
    fn broadcast(&self, bytes: &mut [u8]) -> Result<()>;

    /// Returns the bytes of every rank, in rank order; their lengths may differ.
    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Leaves the group in an orderly way; all ranks do. Nothing else may be asked for afterwards.
    fn finalize(&self);

    /// Ends all ranks of the group at once.
    fn abort(&self, code: i32) -> !;

    /// Names what carries the data.
    fn name(&self) -> String;
}

/// Returns which of `len` elements belong to `rank` of `size`: neighbours, and as many as the others have, give or take
/// one.
///
/// ```
/// use cloze::distributed::share;
///
/// assert_eq!([share(10, 0, 3), share(10, 1, 3), share(10, 2, 3)], [0..3, 3..6, 6..10]);
/// ```
pub fn share(len: usize, rank: usize, size: usize) -> Range<usize> {
    let at = |rank: usize| (len as u128 * rank as u128 / size as u128) as usize;
    at(rank)..at(rank + 1)
}
