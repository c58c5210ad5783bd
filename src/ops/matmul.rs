//! Products of row-major f32 matrices on the shared thread pool.

use gemm::Parallelism;

/// A matrix inside a larger buffer: element (i, j) lies `i · rows + j · cols` elements after the start.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub rows: usize,
    pub cols: usize,
}

impl Strides {
    /// A row-major matrix whose rows are `width` elements apart.
    pub(crate) fn rows(width: usize) -> Self {
        Self {
            rows: width,
            cols: 1,
        }
    }

    /// The transpose.
    pub(crate) fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
        }
    }
}

/// What happens to the destination's old content.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// It is never read.
    Overwrite,
    /// The product is added to it.
    Add,
}

impl Into {
    /// Overwrites fresh memory, adds to other.
    pub(crate) fn fresh(fresh: bool) -> Self {
        if fresh { Self::Overwrite } else { Self::Add }
    }
}

/// `dst (m, n) = or += scale · a (m, k) · b (k, n)`, on this thread or on all of the pool's.
///
/// # Safety
/// Each pointer must be valid for the matrix that its strides and dimensions describe, `dst` for writes that nobody
/// else sees meanwhile. With [`Into::Overwrite`], `dst` may be uninitialized.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn matmul_raw(
    (m, k, n): (usize, usize, usize),
    into: Into,
    scale: f32,
    (dst, dst_strides): (*mut f32, Strides),
    (a, a_strides): (*const f32, Strides),
    (b, b_strides): (*const f32, Strides),
    parallelism: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    // SAFETY: the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            dst_strides.cols as isize,
            dst_strides.rows as isize,
            into == Into::Add,
            a,
            a_strides.cols as isize,
            a_strides.rows as isize,
            b,
            b_strides.cols as isize,
            b_strides.rows as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// All threads of the pool that the caller is in.
pub(crate) const PARALLEL: Parallelism = Parallelism::Rayon(0);

/// `dst (m, n) = or += a · b`, all row-major and contiguous; `a` is (m, k), or with `a_t` stored as (k, m); `b` is
/// (k, n), or with `b_t` stored as (n, k).
pub(crate) fn matmul(
    (m, k, n): (usize, usize, usize),
    into: Into,
    dst: &mut [f32],
    (a, a_t): (&[f32], bool),
    (b, b_t): (&[f32], bool),
) {
    assert!(
        dst.len() == m * n && a.len() == m * k && b.len() == k * n,
        "a product's shapes do not fit its buffers"
    );
    let strides = |rows, cols, transposed| match transposed {
        false => Strides::rows(cols),
        true => Strides::rows(rows).t(),
    };
    // SAFETY: the lengths were checked, and `dst` is borrowed mutably.
    unsafe {
        matmul_raw(
            (m, k, n),
            into,
            1.0,
            (dst.as_mut_ptr(), Strides::rows(n)),
            (a.as_ptr(), strides(m, k, a_t)),
            (b.as_ptr(), strides(k, n, b_t)),
            PARALLEL,
        );
    }
}
