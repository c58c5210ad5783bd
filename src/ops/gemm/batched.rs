//! Products of activations with activations.

use candle_core::Tensor;
use gemm::Parallelism;
use rayon::prelude::*;

use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{self as gemm_f32, Strides, matmul_raw};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::for_overwrite;
use crate::{Error, Result};

/// Returns `a · b` for each pair of matrices in two tensors with the same leading dimensions: (..., m, k) times (...,
/// k, n). With `transpose_a`, `a` is stored as (..., k, m); with `transpose_b`, `b` as (..., n, k).
pub fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Result<Tensor> {
    let misfit = || {
        let written = |x: &Tensor, transposed| match transposed {
            true => format!("{:?} (transposed)", x.dims()),
            false => format!("{:?}", x.dims()),
        };
        let (a, b) = (written(a, transpose_a), written(b, transpose_b));
        Error::argument("b", format!("{a} can't be multiplied by {b}"))
    };
    let (Some((lead, of_a)), Some((lead_b, of_b))) = (
        a.dims().split_last_chunk::<2>(),
        b.dims().split_last_chunk::<2>(),
    ) else {
        return Err(misfit());
    };
    let order = |&[rows, cols]: &[usize; 2], transposed| match transposed {
        true => (cols, rows),
        false => (rows, cols),
    };
    let ((m, k), (inner, n)) = (order(of_a, transpose_a), order(of_b, transpose_b));
    if inner != k || lead != lead_b {
        return Err(misfit());
    }
    let shape = [lead, &[m, n]].concat();
    if a.elem_count() == 0 || b.elem_count() == 0 {
        return match shape.contains(&0) {
            true => storage::empty(a, shape),
            // Sums of nothing.
            false => Ok(Tensor::zeros(shape, a.dtype(), a.device())?),
        };
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(a, []) && crate::ops::cuda::takes(b, []) {
        let sizes = (lead.iter().product(), m, k, n);
        return super::cuda::matmul((a, transpose_a), (b, transpose_b), sizes, shape);
    }
    if !storage::is_cpu_f32(a) || !storage::is_cpu_f32(b) {
        return naive::matmul(a, b, transpose_a, transpose_b);
    }
    let batch = lead.iter().product();
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let y = products((batch, m, k, n), (&a, transpose_a), (&b, transpose_b))?;
    tape::record("matmul", &[&a, &b], y, shape, move |args, _, grad| {
        let [a, b] = [(args[0], transpose_a), (args[1], transpose_b)];
        let t = |(x, transposed): (_, bool)| (x, !transposed);
        let grad = (grad, false);
        // Of y = a b the gradients are dy bᵀ and aᵀ dy; of what is stored transposed, their transposes.
        let da = |(x, transposed): (&Tensor, bool)| -> Result<Tensor> {
            let data = match transposed {
                false => products((batch, m, n, k), grad, t(b))?,
                true => products((batch, k, n, m), b, t(grad))?,
            };
            storage::tensor(data, x.shape())
        };
        let db = |(x, transposed): (&Tensor, bool)| -> Result<Tensor> {
            let data = match transposed {
                false => products((batch, k, m, n), t(a), grad)?,
                true => products((batch, n, m, k), t(grad), a)?,
            };
            storage::tensor(data, x.shape())
        };
        Ok(vec![
            a.0.track_op().then(|| da(a)).transpose()?,
            b.0.track_op().then(|| db(b)).transpose()?,
        ])
    })
}

/// (batch, m, k) times (batch, k, n); an operand with `true` is stored with its last two dimensions exchanged.
fn products(
    (batch, m, k, n): (usize, usize, usize, usize),
    (a, a_t): (&Tensor, bool),
    (b, b_t): (&Tensor, bool),
) -> Result<Vec<f32>> {
    /// Products of fewer multiplications are not worth being shared out among threads.
    const LARGE: usize = 1 << 21;
    storage::with2(a, b, |a, b| {
        let mut y = for_overwrite(batch * m * n);
        let pairs = |i: usize| (&a[i * m * k..][..m * k], &b[i * k * n..][..k * n]);
        if batch == 1 || m * k * n >= LARGE {
            for (i, y) in y.chunks_mut(m * n).enumerate() {
                let (a, b) = pairs(i);
                gemm_f32::matmul((m, k, n), Accumulate::Overwrite, y, (a, a_t), (b, b_t));
            }
            return y;
        }
        let strides = |rows, cols, transposed| match transposed {
            false => Strides::rows(cols),
            true => Strides::rows(rows).t(),
        };
        y.par_chunks_mut(m * n).enumerate().for_each(|(i, y)| {
            let (a, b) = pairs(i);
            // SAFETY: the slices are as long as the sizes say, and `y` is borrowed mutably.
            unsafe {
                matmul_raw(
                    (m, k, n),
                    Accumulate::Overwrite,
                    1.0,
                    (y.as_mut_ptr(), Strides::rows(n)),
                    (a.as_ptr(), strides(m, k, a_t)),
                    (b.as_ptr(), strides(k, n, b_t)),
                    Parallelism::None,
                );
            }
        });
        y
    })
}
