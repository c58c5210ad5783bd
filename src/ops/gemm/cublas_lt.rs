//! Products by cuBLASLt, which adds a bias or sums its gradient in the same pass, and saves a pass over memory for
//! each.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::sync::{Mutex, OnceLock};

use candle_core::DType;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::cublas;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};

use crate::ops::cuda::{Fresh, Gpu, lock};
use crate::ops::gemm::cublas::Matrix;
use crate::ops::tf32;
use crate::{Error, Result};

/// The fused operation, with a vector of `c`'s dtype.
#[derive(Clone, Copy)]
pub(in crate::ops) enum Epilogue {
    /// The vector, as long as `c` is wide, is added to each row of `c`.
    AddBias(u64),
    /// The vector, as long as `c` is high, is overwritten with the sums of `a`'s rows.
    SumRows(u64),
}

/// The key of a product's algorithm.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    sizes: (usize, usize, usize),
    /// Of c, a and b: dtype, stride, transposition, and the alignment of its address.
    matrices: [(DType, usize, bool, u32); 3],
    sums: bool,
    adds: bool,
    tf32: bool,
}

/// A product that has been prepared; cuBLASLt's objects live as long as the process, or until there are too many.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of c, a and b.
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: both were made for this plan, and only its owner uses them. That they could not be given back is no
        // reason to stop.
        unsafe {
            let _ = result::destroy_matmul_desc(self.description);
            for layout in self.layouts {
                let _ = result::destroy_matrix_layout(layout);
            }
        }
    }
}

/// cuBLASLt on one device.
struct Library {
    handle: sys::cublasLtHandle_t,
    workspace: Fresh,
    /// `None` where it has no algorithm.
    plans: HashMap<Key, Option<Plan>>,
}
// SAFETY: the handle and the plans may be used from any thread, by one at a time: that is what the mutex around it is for.
unsafe impl Send for Library {}

/// What algorithms may use besides their operands: enough for all of them on all GPUs so far.
const WORKSPACE: usize = 32 << 20;

fn libraries() -> &'static Mutex<HashMap<DeviceId, Library>> {
    static LIBRARIES: OnceLock<Mutex<HashMap<DeviceId, Library>>> = OnceLock::new();
    LIBRARIES.get_or_init(Mutex::default)
}

/// Returns whether this is used at all: the environment variable `CLOZE_CUDA_EPILOGUES=off` turns it off, for
/// comparisons.
fn is_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    *WANTED.get_or_init(|| std::env::var("CLOZE_CUDA_EPILOGUES").as_deref() != Ok("off"))
}

/// Like [`gemm`](crate::ops::gemm::cublas::gemm) with alpha 1, and the epilogue; `false`, with nothing done, if cuBLASLt has no algorithm
/// for it or refuses the one that it named.
///
/// # Safety
/// As for `gemm`, and the epilogue's vector must be there.
pub(in crate::ops) unsafe fn gemm_with(
    gpu: &Gpu,
    sizes: (usize, usize, usize),
    beta: f32,
    c: Matrix,
    a: Matrix,
    b: Matrix,
    epilogue: Epilogue,
) -> Result<bool> {
    let (m, k, n) = sizes;
    if !is_wanted() || m == 0 || k == 0 || n == 0 {
        return Ok(false);
    }
    let (sums, vector) = match epilogue {
        Epilogue::AddBias(vector) => (false, vector),
        Epilogue::SumRows(vector) => (true, vector),
    };
    // What an address is a multiple of, as far as algorithms care.
    let aligned = |matrix: Matrix| 1 << matrix.ptr.trailing_zeros().min(8);
    let part = |x: Matrix| (x.dtype, x.stride, x.transposed, aligned(x));
    let key = Key {
        sizes,
        matrices: [part(c), part(a), part(b)],
        sums,
        adds: beta != 0.0,
        tf32: a.dtype == DType::F32 && tf32(),
    };
    gpu.stream.context().bind_to_thread().w()?;
    let mut libraries = lock(libraries());
    let library = match libraries.entry(gpu.device.id()) {
        Entry::Occupied(library) => library.into_mut(),
        Entry::Vacant(place) => place.insert(Library {
            handle: result::create_handle().map_err(failed)?,
            workspace: gpu.for_overwrite(WORKSPACE, DType::U8)?,
            plans: HashMap::new(),
        }),
    };
    // Batches of ever new lengths make ever new plans.
    const MOST_PLANS: usize = 4096;
    if library.plans.len() >= MOST_PLANS && !library.plans.contains_key(&key) {
        library.plans.clear();
    }
    let handle = library.handle;
    let plan = library.plans.entry(key.clone());
    let entry = plan.or_insert_with(|| Plan::new(handle, &key, vector).ok());
    let Some(plan) = entry else {
        return Ok(false);
    };
    plan.set_vector(vector).map_err(failed)?;
    let alpha = 1f32;
    // cuBLASLt counts by columns: what is row-major here is the transpose there, so it computes cᵀ = bᵀ · aᵀ.
    // SAFETY: the caller's promise; the plan was made for these sizes, strides and addresses; alpha and beta are read at once.
    let called = unsafe {
        result::matmul(
            handle,
            plan.description,
            (&raw const alpha).cast(),
            (&raw const beta).cast(),
            b.ptr as *const c_void,
            plan.layouts[2],
            a.ptr as *const c_void,
            plan.layouts[1],
            c.ptr as *const c_void,
            plan.layouts[0],
            c.ptr as *mut c_void,
            plan.layouts[0],
            &raw const plan.algorithm,
            library.workspace.ptr() as *mut c_void,
            WORKSPACE,
            gpu.stream.cu_stream().cast(),
        )
    };
    if called.is_err() {
        // What is refused here has not begun, and is not asked for again.
        *entry = None;
    }
    Ok(called.is_ok())
}

fn failed(error: result::CublasError) -> Error {
    Error::from(candle_core::Error::Cuda(Box::new(error)))
}

fn kind(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::BF16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
        _ => sys::cudaDataType_t::CUDA_R_32F,
    }
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        key: &Key,
        vector: u64,
    ) -> Result<Self, result::CublasError> {
        use sys::cublasLtEpilogue_t::{CUBLASLT_EPILOGUE_BGRADB, CUBLASLT_EPILOGUE_BIAS};
        use sys::cublasLtMatmulDescAttributes_t::{
            CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, CUBLASLT_MATMUL_DESC_EPILOGUE,
            CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
        };
        use sys::cublasLtMatmulPreferenceAttributes_t::{
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        };
        let (m, k, n) = key.sizes;
        let [c, a, b] = key.matrices;
        let compute = match key.tf32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        // A matrix of these rows and columns (as stored, by rows) is one of these columns and rows, by columns.
        let layout = |(dtype, stride, transposed, _): (DType, usize, bool, u32),
                      rows: usize,
                      columns: usize| {
            let (rows, columns) = if transposed {
                (columns, rows)
            } else {
                (rows, columns)
            };
            result::create_matrix_layout(kind(dtype), columns as u64, rows as u64, stride as i64)
        };
        let mut plan = Self {
            description: result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F)?,
            layouts: [layout(c, m, n)?, layout(a, m, k)?, layout(b, k, n)?],
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
        };
        let operation = |transposed: bool| match transposed {
            true => cublas::sys::cublasOperation_t::CUBLAS_OP_T,
            false => cublas::sys::cublasOperation_t::CUBLAS_OP_N,
        };
        let epilogue = match key.sums {
            // Their B is our a.
            true => CUBLASLT_EPILOGUE_BGRADB,
            false => CUBLASLT_EPILOGUE_BIAS,
        };
        plan.set(CUBLASLT_MATMUL_DESC_TRANSA, &operation(b.2))?;
        plan.set(CUBLASLT_MATMUL_DESC_TRANSB, &operation(a.2))?;
        plan.set(CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
        plan.set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &kind(c.0))?;
        plan.set_vector(vector)?;
        let wishes = result::create_matmul_pref()?;
        let found = wish(wishes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)
            .and_then(|()| wish(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b.3))
            .and_then(|()| wish(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a.3))
            .and_then(|()| wish(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c.3))
            .and_then(|()| wish(wishes, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c.3))
            .and_then(|()| {
                let [c, a, b] = plan.layouts;
                // SAFETY: all of these were made above.
                unsafe {
                    result::get_matmul_algo_heuristic(handle, plan.description, b, a, c, c, wishes)
                }
            });
        // SAFETY: made above, and not used any more.
        unsafe { result::destroy_matmul_pref(wishes)? };
        plan.algorithm = found?.algo;
        Ok(plan)
    }

    /// Sets where the epilogue's vector is.
    fn set_vector(&self, vector: u64) -> Result<(), result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        self.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, &vector)
    }

    fn set<T>(
        &self,
        what: sys::cublasLtMatmulDescAttributes_t,
        value: &T,
    ) -> Result<(), result::CublasError> {
        let at = (&raw const *value).cast();
        // SAFETY: the description is alive, and the value is read at once.
        unsafe { result::set_matmul_desc_attribute(self.description, what, at, size_of::<T>()) }
    }
}

fn wish<T>(
    wishes: sys::cublasLtMatmulPreference_t,
    what: sys::cublasLtMatmulPreferenceAttributes_t,
    value: &T,
) -> Result<(), result::CublasError> {
    let at = (&raw const *value).cast();
    // SAFETY: the callers' wishes are alive, and the value is read at once.
    unsafe { result::set_matmul_pref_attribute(wishes, what, at, size_of::<T>()) }
}
