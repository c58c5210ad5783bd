//! Shared by all operations on an NVIDIA GPU: memory that kernels write, their arguments, launches.
//!
//! Everything runs on the one stream of a tensor's device, in the order in which it was called; nothing here waits for the
//! GPU. An operation's kernels live in its folder, in `kernel.cu`, and say there what they expect.

mod composed;
pub(super) mod device;
mod staging;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr, DeviceRepr, LaunchConfig,
    PushKernelArg, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::{CudaDevice, CudaStorageSlice, DeviceId, WrapErr};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Layout, Shape, Storage, Tensor};

use super::Param;
use super::precision::{Precision, precision};
use crate::ops::gemm::cublas::Matrix;
use crate::ops::graph::tape;
use crate::{Error, Result};

pub(super) use composed::{composed, in_f32, param_rows, sum_all};

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The compute capability that the kernels were compiled for.
pub(super) const COMPUTE_CAPABILITY: &str = env!("CLOZE_CUDA_COMPUTE_CAP");

/// Returns whether the kernels support tensors like `x` with these parameters: f32, bf16 or f16, with f32 weights on
/// the same GPU.
pub(super) fn takes<'a>(x: &Tensor, params: impl IntoIterator<Item = &'a Param>) -> bool {
    let fits =
        |param: &Param| param.dtype() == DType::F32 && x.device().same_device(param.device());
    x.device().is_cuda() && is_activation(x.dtype()) && params.into_iter().all(fits)
}

/// Returns whether activations may have this dtype.
pub(super) fn is_activation(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::BF16 | DType::F16)
}

/// Returns the dtype in which an operation on `x` computes: that of [`autocast`](super::autocast), or else
/// that of `x`.
pub(super) fn compute_dtype(x: &Tensor) -> DType {
    wanted_dtype().unwrap_or(x.dtype())
}

/// Returns the dtype of activations under [`autocast`](super::autocast).
pub(super) fn wanted_dtype() -> Option<DType> {
    match precision() {
        Precision::F32 | Precision::Int8 => None,
        Precision::Bf16 => Some(DType::BF16),
        Precision::F16 => Some(DType::F16),
    }
}

/// Returns a contiguous `x` of that dtype, in the graph.
pub(super) fn prepared(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.elem_count() == 0 {
        return nothing(x.shape(), dtype, x.device());
    }
    let x = x.contiguous()?;
    if x.dtype() == dtype {
        return Ok(x);
    }
    let cast = |x: &Tensor, dtype| on_storage(x, |storage, layout| storage.to_dtype(layout, dtype));
    tape::record(
        "cast",
        &[&x],
        cast(&x, dtype)?,
        x.shape(),
        move |args, _, grad| {
            let dx = Fresh::new(cast(grad, args[0].dtype())?, grad.shape());
            Ok(vec![Some(dx.into_tensor())])
        },
    )
}

/// Returns a tensor without elements.
pub(super) fn nothing(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Gpu::of(device)?.zeros(shape, dtype)?.into_tensor())
}

/// Returns what operations make of `x` where there are no elements.
pub(super) fn empty(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    nothing(shape, compute_dtype(x), x.device())
}

/// Returns a contiguous copy of a tensor's elements.
pub(super) fn copied(tensor: &Tensor) -> Result<CudaStorage> {
    let mut copy = Gpu::of(tensor.device())?.for_overwrite(tensor.shape(), tensor.dtype())?;
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(not_on_gpu());
    };
    storage.copy_strided_src(&mut copy.storage, 0, layout)?;
    Ok(copy.storage)
}

/// Returns the result of one of candle's own operations on a tensor's storage.
pub(super) fn on_storage(
    x: &Tensor,
    f: impl FnOnce(&CudaStorage, &Layout) -> candle_core::Result<CudaStorage>,
) -> Result<CudaStorage> {
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => Ok(f(storage, layout)?),
        _ => Err(not_on_gpu()),
    }
}

pub(super) fn not_on_gpu() -> Error {
    Error::Tensor(candle_core::Error::Msg(
        "expected a tensor on the GPU".into(),
    ))
}

/// Like [`super::upload`], for a GPU.
pub(super) fn upload(values: &[u32], shape: Shape, device: &Device) -> Result<Tensor> {
    let gpu = Gpu::of(device)?;
    if values.len() != shape.elem_count() || values.is_empty() {
        return Ok(Tensor::from_slice(values, shape, device)?);
    }
    let data = CudaStorage::wrap_cuda_slice(gpu.upload(values)?, gpu.device);
    Ok(Fresh::new(data, &shape).into_tensor())
}

/// A device and its stream.
#[derive(Clone)]
pub(super) struct Gpu {
    pub(super) device: CudaDevice,
    pub(super) stream: Arc<CudaStream>,
}

impl Gpu {
    pub(super) fn of(device: &Device) -> Result<Self> {
        let device = device.as_cuda_device()?.clone();
        let stream = device.cuda_stream();
        Ok(Self { device, stream })
    }

    pub(super) fn multiprocessors(&self) -> Result<u32> {
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT as COUNT;
        Ok(self.stream.context().attribute(COUNT).w()?.unsigned_abs())
    }

    /// Returns the most shared memory that a block may have, in bytes.
    pub(super) fn block_memory(&self) -> Result<usize> {
        use sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN as MOST;
        let most = self.stream.context().attribute(MOST).w()?;
        Ok(most.unsigned_abs() as usize)
    }

    /// Memory that the caller overwrites before anyone reads it.
    pub(super) fn for_overwrite(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Fresh> {
        let shape = shape.into();
        // There is no memory of no bytes.
        let size = Shape::from(shape.elem_count().max(1));
        // SAFETY: numbers have no invalid values; that each is written before it is read is the caller's business, as for
        // vectors on the CPU.
        let storage = unsafe { self.device.alloc_uninit(&size, dtype)? };
        Ok(Fresh { storage, shape })
    }

    pub(super) fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Fresh> {
        let shape = shape.into();
        let size = Shape::from(shape.elem_count().max(1));
        let storage = self.device.zeros_impl(&size, dtype)?;
        Ok(Fresh { storage, shape })
    }

    /// Copies `values` to the GPU without waiting for it.
    pub(super) fn upload<T: DeviceRepr>(&self, values: &[T]) -> Result<CudaSlice<T>> {
        // SAFETY: all of it is written below, before anything that is called later reads it.
        let buffer = unsafe { self.device.alloc::<T>(values.len().max(1))? };
        let (start, _) = buffer.device_ptr(&self.stream);
        // SAFETY: the buffer was made for them.
        unsafe { staging::copy(self, start, values)? };
        Ok(buffer)
    }

    /// Sets `bytes` bytes from `start` on to zero.
    ///
    /// # Safety
    /// They must belong to one allocation.
    pub(super) unsafe fn zero(&self, start: u64, bytes: usize) -> Result<()> {
        self.stream.context().bind_to_thread().w()?;
        // SAFETY: the caller's promise; zero is a valid number.
        unsafe { result::memset_d8_async(start, 0, bytes, self.stream.cu_stream()).w()? };
        Ok(())
    }

    /// Puts `kernel` of `module/kernel.cu` into the stream.
    ///
    /// # Safety
    /// The arguments must match the kernel's in number, order and size, every pointer must be valid for the kernel's
    /// reads and writes with these sizes, and nobody else may read its output meanwhile.
    pub(super) unsafe fn launch(
        &self,
        module: &'static str,
        kernel: &str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<()> {
        let function = self.function(module, kernel, grid.shared)?;
        let mut builder = self.stream.launch_builder(&function);
        for Arg(slot) in args {
            builder.arg(slot);
        }
        // SAFETY: the caller's promise.
        unsafe { builder.launch(grid.config()).w()? };
        Ok(())
    }

    /// Like [`Gpu::launch`], for a kernel with one argument, by value.
    ///
    /// # Safety
    /// As there.
    pub(super) unsafe fn launch_with<T: DeviceRepr>(
        &self,
        module: &'static str,
        kernel: &str,
        grid: Grid,
        argument: &T,
    ) -> Result<()> {
        let function = self.function(module, kernel, grid.shared)?;
        let mut builder = self.stream.launch_builder(&function);
        builder.arg(argument);
        // SAFETY: the caller's promise.
        unsafe { builder.launch(grid.config()).w()? };
        Ok(())
    }

    /// Returns the kernel, ready for that much shared memory.
    pub(super) fn function(
        &self,
        module: &'static str,
        kernel: &str,
        shared: u32,
    ) -> Result<CudaFunction> {
        /// The shared memory that every kernel may use without configuration: 48 KiB, some of which its static arrays
        /// may take.
        const GRANTED: u32 = 40 << 10;
        let mut loaded = lock(loaded());
        let device = loaded.entry(self.device.id()).or_default();
        if let Some((function, granted)) = device.functions.get_mut(kernel) {
            if shared > *granted {
                allow(function, shared)?;
                *granted = shared;
            }
            return Ok(function.clone());
        }
        let module = match device.modules.get(module) {
            Some(module) => module.clone(),
            None => {
                let binary = MODULES.iter().find(|(name, _)| *name == module);
                let (_, binary) = binary.ok_or_else(|| missing(module, kernel))?;
                let compiled = Ptx::from_binary(binary.to_vec());
                let found = self.stream.context().load_module(compiled);
                let found = found.map_err(|error| device::cannot_load(&self.device, &error))?;
                device.modules.insert(module, found.clone());
                found
            }
        };
        let function = module.load_function(kernel).w()?;
        if shared > GRANTED {
            allow(&function, shared)?;
        }
        let entry = (function.clone(), shared.max(GRANTED));
        device.functions.insert(kernel.to_owned(), entry);
        Ok(function)
    }
}

pub(super) fn missing(module: &str, kernel: &str) -> Error {
    Error::Tensor(candle_core::Error::Msg(format!(
        "this build has no kernels {module} (for {kernel})"
    )))
}

/// Lets `function` use more shared memory than is granted unasked.
pub(super) fn allow(function: &CudaFunction, shared: u32) -> Result<()> {
    use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    let bytes = i32::try_from(shared).unwrap_or(i32::MAX);
    function
        .set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
        .w()?;
    Ok(())
}

/// The modules and functions loaded onto one device.
#[derive(Default)]
pub(super) struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    /// With the shared memory that each may use.
    functions: HashMap<String, (CudaFunction, u32)>,
}

pub(super) fn loaded() -> &'static Mutex<HashMap<DeviceId, Loaded>> {
    pub(super) static LOADED: OnceLock<Mutex<HashMap<DeviceId, Loaded>>> = OnceLock::new();
    LOADED.get_or_init(Mutex::default)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // What is guarded here is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a launch is divided.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: (u32, u32, u32),
    pub(super) threads: (u32, u32, u32),
    /// Bytes of dynamic shared memory per block.
    pub(super) shared: u32,
}

impl Grid {
    pub(super) fn new(blocks: (u32, u32, u32), threads: (u32, u32, u32)) -> Self {
        Self {
            blocks,
            threads,
            shared: 0,
        }
    }

    pub(super) fn shared(self, bytes: u32) -> Self {
        Self {
            shared: bytes,
            ..self
        }
    }

    fn config(&self) -> LaunchConfig {
        LaunchConfig {
            grid_dim: self.blocks,
            block_dim: self.threads,
            shared_mem_bytes: self.shared,
        }
    }

    /// For kernels that take any grid over `n` elements, about eight to a thread.
    pub(super) fn elements(n: usize) -> Self {
        let blocks = n.div_ceil(2048).min(65_535) as u32;
        Self::new((blocks, 1, 1), (256, 1, 1))
    }

    /// For kernels that work on rows: a warp for each of up to `most` short rows, a block for a long one, and `bytes` of
    /// shared memory per element of a row.
    pub(super) fn rows(rows: u32, width: u32, most: u32, bytes: u32) -> Self {
        let (threads, each) = if width <= 1024 { (32, most) } else { (256, 1) };
        Self::new((rows.div_ceil(each), 1, 1), (threads, each, 1)).shared(each * width * bytes)
    }
}

/// An argument of a kernel, by value: a number, or a pointer on the device (0 for none).
#[derive(Clone, Copy)]
pub(super) struct Arg(u64);

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Self(u64::from(value))
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        // The GPU's architecture and every host that CUDA runs on are little-endian: the number comes first.
        Self(u64::from(value.to_bits()))
    }
}

/// The arguments of a kernel.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::ops::cuda::Arg::from($arg)),*] };
}
pub(super) use args;

/// A tensor's newly allocated storage, which nothing else uses.
pub(super) struct Fresh {
    pub(super) storage: CudaStorage,
    pub(super) shape: Shape,
}

impl Fresh {
    pub(super) fn new(storage: CudaStorage, shape: &Shape) -> Self {
        let shape = shape.clone();
        Self { storage, shape }
    }

    pub(super) fn dtype(&self) -> DType {
        self.storage.dtype()
    }

    pub(super) fn ptr(&self) -> u64 {
        start(&self.storage)
    }

    /// Returns the tensor, outside of any graph.
    pub(super) fn into_tensor(self) -> Tensor {
        let storage = Storage::Cuda(self.storage);
        Tensor::from_storage(storage, self.shape, BackpropOp::none(), false)
    }
}

/// Returns where a storage begins.
pub(super) fn start(storage: &CudaStorage) -> u64 {
    pub(super) fn of<T>(slice: &CudaSlice<T>) -> u64 {
        slice.device_ptr(slice.stream()).0
    }
    match &storage.slice {
        CudaStorageSlice::U8(slice) => of(slice),
        CudaStorageSlice::U32(slice) => of(slice),
        CudaStorageSlice::I16(slice) => of(slice),
        CudaStorageSlice::I32(slice) => of(slice),
        CudaStorageSlice::I64(slice) => of(slice),
        CudaStorageSlice::BF16(slice) => of(slice),
        CudaStorageSlice::F16(slice) => of(slice),
        CudaStorageSlice::F32(slice) => of(slice),
        CudaStorageSlice::F64(slice) => of(slice),
        CudaStorageSlice::F8E4M3(slice) => of(slice),
        CudaStorageSlice::F6E2M3(slice)
        | CudaStorageSlice::F6E3M2(slice)
        | CudaStorageSlice::F4(slice)
        | CudaStorageSlice::F8E8M0(slice) => of(slice),
    }
}

/// Returns where the elements of a contiguous tensor begin.
///
/// Work is ordered by the stream; the tensor must live until the last launch with this pointer has been enqueued.
pub(super) fn pointer(tensor: &Tensor) -> Result<u64> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(not_on_gpu());
    };
    if !layout.is_contiguous() {
        return Err(candle_core::Error::RequiresContiguous { op: "fused op" }.into());
    }
    let offset = layout.start_offset() * tensor.dtype().size_in_bytes();
    Ok(start(storage) + offset as u64)
}

/// [`pointer`], or 0 for none.
pub(super) fn pointer_or_null(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), pointer)
}

/// Makes the device of `tensor` the current one on this thread.
pub(crate) fn make_current(tensor: &Tensor) -> Result<()> {
    let stream = tensor.device().as_cuda_device()?.cuda_stream();
    stream.context().bind_to_thread().w()?;
    Ok(())
}

/// Calls `work` with the address of a contiguous tensor's elements, and the stream that orders work on them.
pub(crate) fn with_pointer(
    tensor: &Tensor,
    work: impl FnOnce(*mut f32, *mut std::ffi::c_void) -> Result<()>,
) -> Result<()> {
    let stream = tensor.device().as_cuda_device()?.cuda_stream();
    work(pointer(tensor)? as *mut f32, stream.cu_stream().cast())
}

/// Returns where a buffer of numbers begins.
pub(super) fn slice_pointer<T>(slice: &CudaSlice<T>) -> u64 {
    slice.device_ptr(slice.stream()).0
}

/// Returns how kernels for that dtype of the activations end.
pub(super) fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::BF16 => "bf16",
        DType::F16 => "f16",
        _ => "f32",
    }
}

/// Returns a size as kernels take it.
pub(super) fn size(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(|_| {
        Error::argument(
            "batch",
            format!("{n} elements in one direction are more than the GPU kernels count to"),
        )
    })
}

/// Adds `parts` rows of `partials` (each `width` long, or two of those side by side) to what the parameters have, or puts
/// them there: the last step of a bias's or normalization's gradient.
pub(super) fn reduce_parts(
    gpu: &Gpu,
    partials: &Fresh,
    (parts, width): (u32, u32),
    first: Option<&Param>,
    second: Option<Option<&Param>>,
) -> Result<()> {
    let stride = if second.is_some() { 2 * width } else { width };
    let grid = Grid::new((stride.div_ceil(32), 1, 1), (32, 8, 1));
    let run = |a: u64, b: u64, add_a: bool, add_b: bool| {
        let args = args![
            a,
            b,
            partials.ptr(),
            parts,
            width,
            stride,
            u32::from(add_a),
            u32::from(add_b)
        ];
        // SAFETY: the partials are parts · stride floats, and a and b (where there are any) the `width` floats of a gradient.
        unsafe { gpu.launch("reduce", "reduce_parts", grid, args) }
    };
    let second = second.flatten();
    match (first, second) {
        (Some(first), Some(second)) => first.update_grad_tensor(|a, fresh_a| {
            second
                .update_grad_tensor(|b, fresh_b| run(pointer(a)?, pointer(b)?, !fresh_a, !fresh_b))
        }),
        (Some(first), None) => {
            first.update_grad_tensor(|a, fresh| run(pointer(a)?, 0, !fresh, false))
        }
        (None, Some(second)) => {
            second.update_grad_tensor(|b, fresh| run(0, pointer(b)?, false, !fresh))
        }
        (None, None) => Ok(()),
    }
}

/// The gradient of a bias: the sums of the columns of `dy` (rows, width).
pub(super) fn bias_gradient(
    gpu: &Gpu,
    dy: Matrix,
    (rows, width): (usize, usize),
    bias: &Param,
) -> Result<()> {
    let grid = column_grid((rows, width), dy.dtype, 64, 64)?;
    let parts = grid.blocks.1;
    let partials = gpu.for_overwrite((parts as usize, width), DType::F32)?;
    let kernel = format!("column_sums_{}", suffix(dy.dtype));
    let (rows, width) = (size(rows)?, size(width)?);
    let arguments = args![partials.ptr(), dy.ptr, rows, width, size(dy.stride)?];
    // SAFETY: there is a row of sums for each row of blocks, and dy has `rows` rows that far apart.
    unsafe { gpu.launch("activation", &kernel, grid, arguments)? };
    reduce_parts(gpu, &partials, (parts, width), Some(bias), None)
}

/// Returns the grid of the kernels over (rows, width) that go down the columns: up to `most` rows of blocks with `each`
/// rows or more, each of which leaves a row of sums where sums are wanted.
pub(super) fn column_grid(
    (rows, width): (usize, usize),
    dtype: DType,
    each: usize,
    most: u32,
) -> Result<Grid> {
    // A thread takes 16 bytes of a row.
    let columns = 32 * 16 / dtype.size_in_bytes();
    let parts = size(rows.div_ceil(each))?.clamp(1, most);
    Ok(Grid::new(
        (size(width.div_ceil(columns))?, parts, 1),
        (32, 8, 1),
    ))
}
