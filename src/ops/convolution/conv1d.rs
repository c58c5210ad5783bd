//! Convolutions over time.

use std::borrow::Cow;

use candle_core::Tensor;

use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{PARALLEL, Strides, matmul_raw};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::for_overwrite;
use crate::ops::shapes::narrow::Piece;
use crate::ops::shapes::permute::permuted;
use crate::{Error, Result};

/// How a convolution's kernel moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv1d {
    /// Positions from one place of the kernel to the next.
    pub stride: usize,
    /// Zeros before the first and after the last position.
    pub pad: usize,
    /// Groups of features, each of which produces its own features.
    pub groups: usize,
}

impl Default for Conv1d {
    /// From each position to the next, without padding, all features together.
    fn default() -> Self {
        Self {
            stride: 1,
            pad: 0,
            groups: 1,
        }
    }
}

/// Returns `y[t, o] = Σ_{i, j} w[o, i, j] · x[stride · t + j - pad, i]`: of `x` (b, n, in) and `w` (out, in / groups,
/// k), as PyTorch keeps it, (b, (n + 2 pad - k) / stride + 1, out). `w` is a tensor of the graph: give a parameter by
/// [`param_rows`](crate::ops::param_rows), and a bias by [`add_broadcast`](crate::ops::add_broadcast).
pub fn conv1d(x: &Tensor, w: &Tensor, conv: Conv1d) -> Result<Tensor> {
    let sizes = Sizes::new(x, w, conv)?;
    if x.elem_count() == 0 {
        return storage::empty(x, (x.dim(0)?, sizes.places, sizes.out));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) && crate::ops::cuda::takes(w, []) {
        return crate::ops::cuda::composed("conv1d", &[x, w], &[], move |args| {
            naive::conv1d(&args[0], &args[1], conv)
        });
    }
    if !storage::is_cpu_f32(x) || !storage::is_cpu_f32(w) {
        return naive::conv1d(x, w, conv);
    }
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let (batch, places) = (x.dim(0)?, sizes.places);
    let kernels = permuted(&w, &[0, 2, 1])?;
    let y = storage::with(&x, |x| sizes.forward(&sizes.padded(x), &kernels))?;
    let shape = (batch, places, sizes.out);
    tape::record("conv1d", &[&x, &w], y, shape, move |args, _, dy| {
        let (x, w) = (args[0], args[1]);
        let dw = match w.track_op() {
            true => {
                let dw =
                    storage::with2(x, dy, |x, dy| sizes.weight_gradient(&sizes.padded(x), dy))?;
                let by_place = (sizes.out, sizes.kernel, sizes.width / sizes.groups);
                let dw = storage::tensor(dw, &by_place.into())?;
                Some(storage::tensor(permuted(&dw, &[0, 2, 1])?, w.shape())?)
            }
            false => None,
        };
        let dx = match x.track_op() {
            true => {
                let kernels = permuted(w, &[0, 2, 1])?;
                let dx = storage::with(dy, |dy| sizes.input_gradient(&kernels, dy))?;
                Some(storage::tensor(dx, x.shape())?)
            }
            false => None,
        };
        Ok(vec![dx, dw])
    })
}

/// Sizes, with kernels as (out, kernel, width / groups): the factors of one product are adjacent.
#[derive(Clone, Copy)]
struct Sizes {
    len: usize,
    width: usize,
    out: usize,
    kernel: usize,
    /// Places of the kernel, which are the positions of the result.
    places: usize,
    stride: usize,
    pad: usize,
    groups: usize,
}

impl Sizes {
    fn new(x: &Tensor, w: &Tensor, conv: Conv1d) -> Result<Self> {
        let (_, len, width) = x.dims3()?;
        let (out, inner, kernel) = w.dims3()?;
        let Conv1d {
            stride,
            pad,
            groups,
        } = conv;
        let fits = stride > 0
            && groups > 0
            && kernel > 0
            && inner * groups == width
            && out % groups == 0
            && len + 2 * pad >= kernel;
        if !fits {
            return Err(Error::argument(
                "w",
                format!(
                    "shape {:?} does not fit x of shape {:?} with {conv:?}",
                    w.dims(),
                    x.dims()
                ),
            ));
        }
        Ok(Self {
            len,
            width,
            out,
            kernel,
            places: (len + 2 * pad - kernel) / stride + 1,
            stride,
            pad,
            groups,
        })
    }

    /// Returns each sequence of x between its zeros.
    fn padded(self, x: &[f32]) -> Cow<'_, [f32]> {
        if self.pad == 0 {
            return Cow::Borrowed(x);
        }
        let piece = self.piece();
        let mut padded = vec![0f32; x.len() / piece.len * piece.row];
        piece.put(x, &mut padded);
        Cow::Owned(padded)
    }

    /// Returns a sequence between its zeros.
    fn piece(self) -> Piece {
        Piece {
            row: (self.len + 2 * self.pad) * self.width,
            start: self.pad * self.width,
            len: self.len * self.width,
        }
    }

    /// Calls `f(first feature of x, of the result, first element of the kernels, their length)` for all that is multiplied
    /// at once: with one group the kernel's positions lie one behind the other in x, with more each by itself.
    fn products(self, mut f: impl FnMut(usize, usize, usize, usize)) {
        let inner = self.width / self.groups;
        if self.groups == 1 {
            return f(0, 0, 0, self.kernel * inner);
        }
        let out = self.out / self.groups;
        for group in 0..self.groups {
            for j in 0..self.kernel {
                let kernels = group * out * self.kernel * inner + j * inner;
                f(j * self.width + group * inner, group * out, kernels, inner);
            }
        }
    }

    /// From one place of the kernel to the next in x; in the result; from one kernel to the next.
    fn strides(self) -> [Strides; 3] {
        [
            Strides::rows(self.stride * self.width),
            Strides::rows(self.out),
            Strides::rows(self.kernel * self.width / self.groups),
        ]
    }

    fn forward(self, padded: &[f32], kernels: &[f32]) -> Vec<f32> {
        let row = self.piece().row;
        let mut y = for_overwrite(padded.len() / row * self.places * self.out);
        let [of_x, of_y, of_w] = self.strides();
        let sequences = y.chunks_mut(self.places * self.out).zip(padded.chunks(row));
        for (y, x) in sequences {
            self.products(|from, to, w, inner| {
                let first = self.groups == 1 || from < self.width;
                let sizes = (self.places, inner, self.out / self.groups);
                let into = Accumulate::fresh(first);
                // SAFETY: the last place of the kernel ends within the padded sequence, and rows may overlap where they
                // are only read; a group is a block of columns of y and of rows of the kernels.
                unsafe {
                    let y = (y[to..].as_mut_ptr(), of_y);
                    let x = (x[from..].as_ptr(), of_x);
                    let w = (kernels[w..].as_ptr(), of_w.t());
                    matmul_raw(sizes, into, 1.0, y, x, w, PARALLEL);
                }
            });
        }
        y
    }

    fn weight_gradient(self, padded: &[f32], dy: &[f32]) -> Vec<f32> {
        let row = self.piece().row;
        let mut dw = for_overwrite(self.out * self.kernel * self.width / self.groups);
        let [of_x, of_y, of_w] = self.strides();
        let sequences = padded
            .chunks(row)
            .zip(dy.chunks(self.places * self.out))
            .enumerate();
        for (sequence, (x, dy)) in sequences {
            self.products(|from, to, w, inner| {
                let sizes = (self.out / self.groups, self.places, inner);
                let into = Accumulate::fresh(sequence == 0);
                // SAFETY: as above.
                unsafe {
                    let dw = (dw[w..].as_mut_ptr(), of_w);
                    let dy = (dy[to..].as_ptr(), of_y.t());
                    let x = (x[from..].as_ptr(), of_x);
                    matmul_raw(sizes, into, 1.0, dw, dy, x, PARALLEL);
                }
            });
        }
        dw
    }

    fn input_gradient(self, kernels: &[f32], dy: &[f32]) -> Vec<f32> {
        let piece = self.piece();
        let batch = dy.len() / (self.places * self.out);
        let mut padded = vec![0f32; batch * piece.row];
        let [of_x, of_y, of_w] = self.strides();
        let (inner, out) = (self.width / self.groups, self.out / self.groups);
        let sequences = padded
            .chunks_mut(piece.row)
            .zip(dy.chunks(self.places * self.out));
        for (dx, dy) in sequences {
            // Places overlap, so that each position of the kernel is added by itself.
            for group in 0..self.groups {
                for j in 0..self.kernel {
                    let from = j * self.width + group * inner;
                    let w = group * out * self.kernel * inner + j * inner;
                    let sizes = (self.places, out, inner);
                    // SAFETY: as above; rows of dx that one product writes do not overlap.
                    unsafe {
                        let dx = (dx[from..].as_mut_ptr(), of_x);
                        let dy = (dy[group * out..].as_ptr(), of_y);
                        let w = (kernels[w..].as_ptr(), of_w);
                        matmul_raw(sizes, Accumulate::Add, 1.0, dx, dy, w, PARALLEL);
                    }
                }
            }
        }
        match self.pad {
            0 => padded,
            _ => piece.take(&padded),
        }
    }
}
