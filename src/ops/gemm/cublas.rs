//! Products of row-major matrices by cuBLAS, added up in f32.

use std::ffi::c_void;

use candle_core::DType;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas::{result, sys};

use crate::ops::cuda::{Gpu, Grid, args, size};
use crate::ops::tf32;
use crate::{Error, Result};

/// A row-major operand on the GPU whose rows are `stride` elements apart. Transposed, element (i, j) of the product's
/// operand is element (j, i) in memory.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Matrix {
    pub ptr: u64,
    pub dtype: DType,
    pub stride: usize,
    pub transposed: bool,
}

impl Matrix {
    pub(in crate::ops) fn new(ptr: u64, dtype: DType, stride: usize) -> Self {
        Self {
            ptr,
            dtype,
            stride,
            transposed: false,
        }
    }

    pub(in crate::ops) fn t(self) -> Self {
        Self {
            transposed: !self.transposed,
            ..self
        }
    }

    /// Returns the matrix this many elements further on.
    fn moved(self, elements: usize) -> Self {
        Self {
            ptr: self.ptr + (elements * self.dtype.size_in_bytes()) as u64,
            ..self
        }
    }

    fn operation(self) -> sys::cublasOperation_t {
        match self.transposed {
            false => sys::cublasOperation_t::CUBLAS_OP_N,
            true => sys::cublasOperation_t::CUBLAS_OP_T,
        }
    }
}

/// Many equally large matrices: of each of `batch` sequences, one for each head.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Heads {
    /// The first matrix.
    pub matrix: Matrix,
    /// Elements from one sequence to the next.
    pub per_sequence: usize,
    /// Elements from one head to the next.
    pub per_head: usize,
}

impl Heads {
    pub(in crate::ops) fn t(self) -> Self {
        Self {
            matrix: self.matrix.t(),
            ..self
        }
    }

    /// Returns what separates the matrices if they all lie equally far apart.
    fn step(self, heads: usize) -> Option<usize> {
        (self.per_sequence == heads * self.per_head).then_some(self.per_head)
    }

    /// Returns whether cuBLAS may be given a table of these: the matrix unit's algorithms for tables don't look at the
    /// addresses, and want all of them at multiples of 16 bytes.
    fn takes_a_table(self) -> bool {
        let aligned = |elements: usize| self.matrix.moved(elements).ptr.is_multiple_of(16);
        let plain = self.matrix.dtype == DType::F32 && !tf32();
        plain || aligned(0) && aligned(self.per_sequence) && aligned(self.per_head)
    }
}

fn kind(dtype: DType) -> Result<sys::cudaDataType> {
    Ok(match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        other => {
            return Err(Error::argument(
                "dtype",
                format!("{other:?} matrices are not multiplied on the GPU"),
            ));
        }
    })
}

fn compute(a: Matrix) -> sys::cublasComputeType_t {
    match a.dtype {
        DType::F32 if tf32() => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
        _ => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
    }
}

const ALGORITHM: sys::cublasGemmAlgo_t = sys::cublasGemmAlgo_t::CUBLAS_GEMM_DFALT;

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| {
        Error::argument(
            "batch",
            format!("{n} is more than cuBLAS counts to in one direction"),
        )
    })
}

/// `c (m, n) = alpha · a (m, k) · b (k, n) + beta · c`; `a` and `b` of one dtype, `c` of theirs or f32. With `beta` 0, what
/// `c` held is never read.
///
/// # Safety
/// Each pointer must be valid for the matrix that its stride and the sizes describe, and nothing else may touch `c`
/// meanwhile.
pub(in crate::ops) unsafe fn gemm(
    gpu: &Gpu,
    (m, k, n): (usize, usize, usize),
    (alpha, beta): (f32, f32),
    c: Matrix,
    a: Matrix,
    b: Matrix,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let blas = gpu.device.cublas_handle();
    gpu.stream.context().bind_to_thread().w()?;
    // cuBLAS counts by columns: what is row-major here is the transpose there, so it computes cᵀ = bᵀ · aᵀ.
    // SAFETY: the caller's promise; alpha and beta outlive the call, which reads them at once.
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            b.operation(),
            a.operation(),
            int(n)?,
            int(m)?,
            int(k)?,
            (&raw const alpha).cast(),
            b.ptr as *const c_void,
            kind(b.dtype)?,
            int(b.stride)?,
            a.ptr as *const c_void,
            kind(a.dtype)?,
            int(a.stride)?,
            (&raw const beta).cast(),
            c.ptr as *mut c_void,
            kind(c.dtype)?,
            int(c.stride)?,
            compute(a),
            ALGORITHM,
        )
        .w()?;
    }
    Ok(())
}

/// [`gemm`] for every head of every sequence.
///
/// # Safety
/// As for [`gemm`], for each of the matrices.
pub(in crate::ops) unsafe fn gemm_heads(
    gpu: &Gpu,
    (batch, heads): (usize, usize),
    (m, k, n): (usize, usize, usize),
    (alpha, beta): (f32, f32),
    c: Heads,
    a: Heads,
    b: Heads,
) -> Result<()> {
    let count = batch * heads;
    if m == 0 || n == 0 || count == 0 {
        return Ok(());
    }
    let blas = gpu.device.cublas_handle();
    gpu.stream.context().bind_to_thread().w()?;
    let (alpha, beta): (*const c_void, *const c_void) =
        ((&raw const alpha).cast(), (&raw const beta).cast());
    // Of equally distant matrices `count`, at these places and so far apart.
    let strided = |count: usize, from: [Matrix; 3], steps: [usize; 3]| -> Result<()> {
        let ([c, a, b], [step_c, step_a, step_b]) = (from, steps);
        // SAFETY: as in `gemm`.
        unsafe {
            result::gemm_strided_batched_ex(
                *blas.handle(),
                b.operation(),
                a.operation(),
                int(n)?,
                int(m)?,
                int(k)?,
                alpha,
                b.ptr as *const c_void,
                kind(b.dtype)?,
                int(b.stride)?,
                step_b as i64,
                a.ptr as *const c_void,
                kind(a.dtype)?,
                int(a.stride)?,
                step_a as i64,
                beta,
                c.ptr as *mut c_void,
                kind(c.dtype)?,
                int(c.stride)?,
                step_c as i64,
                int(count)?,
                compute(a),
                ALGORITHM,
            )
            .w()?;
        }
        Ok(())
    };
    let all = [c, a, b];
    if let [Some(step_c), Some(step_a), Some(step_b)] = all.map(|h| h.step(heads)) {
        let first = all.map(|h| h.matrix);
        return strided(count, first, [step_c, step_a, step_b]);
    }
    if !all.iter().all(|h| h.takes_a_table()) {
        // The shorter way through: all heads of a sequence at once, or all sequences of a head.
        let (per_sequence, per_head) = (all.map(|h| h.per_sequence), all.map(|h| h.per_head));
        let (calls, between, count, steps) = match batch <= heads {
            true => (batch, per_sequence, heads, per_head),
            false => (heads, per_head, batch, per_sequence),
        };
        for call in 0..calls {
            let at = |i: usize| all[i].matrix.moved(call * between[i]);
            strided(count, [at(0), at(1), at(2)], steps)?;
        }
        return Ok(());
    }
    // SAFETY: as for this function.
    unsafe { gemm_table(gpu, (batch, heads), (m, k, n), (alpha, beta), c, a, b) }
}

/// Like [`gemm_heads`] by a table of pointers.
///
/// # Safety
/// As there; `alpha` and `beta` must point to an f32.
unsafe fn gemm_table(
    gpu: &Gpu,
    (batch, heads): (usize, usize),
    (m, k, n): (usize, usize, usize),
    (alpha, beta): (*const c_void, *const c_void),
    c: Heads,
    a: Heads,
    b: Heads,
) -> Result<()> {
    let count = batch * heads;
    let blas = gpu.device.cublas_handle();
    // Heads side by side in a row, sequences further apart: cuBLAS is told where each matrix begins.
    let table = gpu.for_overwrite(3 * count, DType::I64)?;
    let bytes = |h: Heads, elements: usize| (elements * h.matrix.dtype.size_in_bytes()) as u64;
    let part = |h: Heads| (h.matrix.ptr, bytes(h, h.per_sequence), bytes(h, h.per_head));
    let [(a0, a1, a2), (b0, b1, b2), (c0, c1, c2)] = [part(a), part(b), part(c)];
    let arguments = args![
        table.ptr(),
        a0,
        a1,
        a2,
        b0,
        b1,
        b2,
        c0,
        c1,
        c2,
        size(batch)?,
        size(heads)?
    ];
    let grid = Grid::new((size(count)?.div_ceil(256), 1, 1), (256, 1, 1));
    // SAFETY: the table has room for three pointers per matrix; the rest is as in `gemm`.
    unsafe {
        gpu.launch("pointers", "head_pointers", grid, arguments)?;
        let part = |i: usize| table.ptr() + (i * count * size_of::<u64>()) as u64;
        sys::cublasGemmBatchedEx(
            *blas.handle(),
            b.matrix.operation(),
            a.matrix.operation(),
            int(n)?,
            int(m)?,
            int(k)?,
            alpha,
            part(1) as *const *const c_void,
            kind(b.matrix.dtype)?,
            int(b.matrix.stride)?,
            part(0) as *const *const c_void,
            kind(a.matrix.dtype)?,
            int(a.matrix.stride)?,
            beta,
            part(2) as *const *mut c_void,
            kind(c.matrix.dtype)?,
            int(c.matrix.stride)?,
            int(count)?,
            compute(a.matrix),
            ALGORITHM,
        )
        .result()
        .w()?;
    }
    Ok(())
}
