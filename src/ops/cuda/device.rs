//! Opening a GPU, and its memory.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, DriverError, result, sys};
use candle_core::{Device, DeviceLocation};

use super::{COMPUTE_CAPABILITY, lock};
use crate::ops::DeviceMemory;
use crate::{Error, Result};

/// Returns the GPU of that number, made ready for training; always the same one for the same number.
pub(in crate::ops) fn open(ordinal: usize) -> Result<Device> {
    static OPEN: OnceLock<Mutex<HashMap<usize, Device>>> = OnceLock::new();
    let mut open = lock(OPEN.get_or_init(Mutex::default));
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    check(ordinal)?;
    // Not candle's default, the stream of the calling thread: work that moves to another thread would run unordered.
    let device = Device::new_cuda_with_stream(ordinal)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: everything on this device is put into its one stream, in order: there is nothing to synchronize by events,
    // which would cost several calls of the driver per operation.
    unsafe { cuda.disable_event_tracking() };
    keep_freed_memory(cuda).map_err(|error| Error::Device(explain(&error)))?;
    open.insert(ordinal, device.clone());
    Ok(device)
}

/// Returns how many GPUs the driver sees.
pub(in crate::ops) fn count() -> usize {
    CudaContext::device_count().map_or(0, |count| count as usize)
}

/// Whether there is such a GPU, and one that the kernels were compiled for.
fn check(ordinal: usize) -> Result<()> {
    let failed = |error: DriverError| Error::Device(explain(&error));
    let count = CudaContext::device_count().map_err(failed)?;
    if count == 0 {
        return Err(Error::Device(no_device()));
    }
    if ordinal >= count as usize {
        return Err(Error::Device(format!(
            "there is no GPU {ordinal}: the driver sees {count}, numbered from 0"
        )));
    }
    let gpu = result::device::get(ordinal as i32).map_err(failed)?;
    use sys::CUdevice_attribute_enum::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    // SAFETY: `gpu` came from the driver.
    let attribute = |kind| unsafe { result::device::get_attribute(gpu, kind) }.map_err(failed);
    let capability = (10 * attribute(MAJOR)? + attribute(MINOR)?) as u32;
    if runs_on(COMPUTE_CAPABILITY, capability) {
        return Ok(());
    }
    let name = result::device::get_name(gpu).unwrap_or_else(|_| "the GPU".to_owned());
    Err(Error::Device(format!(
        "this build is for compute capability {COMPUTE_CAPABILITY}, but {name} has {capability}: \
         build it again with CUDA_COMPUTE_CAP={capability}"
    )))
}

/// Returns whether kernels that were compiled for `compiled` run on a GPU of that capability: later ones take the
/// earlier ones', but for those with a letter (a: this one only; f: of its generation).
fn runs_on(compiled: &str, capability: u32) -> bool {
    let number = compiled.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let Ok(wanted) = number.parse::<u32>() else {
        return false;
    };
    match &compiled[number.len()..] {
        "" => capability >= wanted,
        "f" => capability >= wanted && capability / 10 == wanted / 10,
        _ => capability == wanted,
    }
}

fn no_device() -> String {
    "the NVIDIA driver sees no GPU (if there is one: is CUDA_VISIBLE_DEVICES set to hide it?)"
        .to_owned()
}

/// Explains the driver's error to the user.
fn explain(error: &DriverError) -> String {
    use sys::cudaError_enum as Code;
    match error.0 {
        Code::CUDA_ERROR_NO_DEVICE => no_device(),
        Code::CUDA_ERROR_STUB_LIBRARY => {
            "the library libcuda.so.1 that was found is the toolkit's stub, not a driver: install the NVIDIA driver, and remove the toolkit's stubs from LD_LIBRARY_PATH"
                .to_owned()
        }
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | Code::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => format!(
            "the NVIDIA driver and its library have different versions ({error}): restart after an update of the driver, or \
             install the one that belongs to libcuda.so.1"
        ),
        Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | Code::CUDA_ERROR_INVALID_PTX | Code::CUDA_ERROR_NO_BINARY_FOR_GPU => format!(
            "the NVIDIA driver can't run kernels for compute capability {COMPUTE_CAPABILITY} ({error}): update the driver, or \
             build again with an older CUDA toolkit and CUDA_COMPUTE_CAP set for this GPU"
        ),
        _ => format!("the NVIDIA driver could not be initialized ({error}); check it with nvidia-smi"),
    }
}

/// Why kernels did not load onto `device`.
pub(super) fn cannot_load(device: &CudaDevice, error: &DriverError) -> Error {
    let ordinal = device.cuda_stream().context().ordinal();
    Error::Device(format!("GPU {ordinal}: {}", explain(error)))
}

/// Makes freed memory stay with this process. By default the driver returns it to the system whenever the host waits
/// for the GPU, and has to request it again.
fn keep_freed_memory(device: &CudaDevice) -> Result<(), DriverError> {
    let Some(pool) = pool(device)? else {
        return Ok(());
    };
    let mut all = u64::MAX;
    // SAFETY: the pool is the device's own, and this attribute is a u64.
    unsafe {
        result::mem_pool::set_attribute(
            pool,
            sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
            (&raw mut all).cast(),
        )
    }
}

/// Returns where the device's memory comes from; `None` where it has no pools.
fn pool(device: &CudaDevice) -> Result<Option<sys::CUmemoryPool>, DriverError> {
    let stream = device.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return Ok(None);
    }
    context.bind_to_thread()?;
    // SAFETY: the device came from the driver.
    unsafe { result::device::get_mem_pool(context.cu_device()) }.map(Some)
}

/// Like [`super::super::device_memory`].
pub(in crate::ops) fn memory(device: &Device) -> Option<DeviceMemory> {
    let Device::Cuda(device) = device else {
        return None;
    };
    let pool = pool(device).ok()??;
    let read = |attribute| {
        let mut bytes = 0u64;
        // SAFETY: the pool is the device's own, and both attributes that are asked for are u64.
        unsafe { result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()) }
            .ok()?;
        Some(bytes)
    };
    let total = device.cuda_stream().context().total_mem().ok()?;
    Some(DeviceMemory {
        used: read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?,
        peak: read(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)?,
        total: total as u64,
    })
}

/// Like [`super::super::reset_peak_memory`].
pub(in crate::ops) fn reset_peak(device: &Device) {
    if let Device::Cuda(device) = device
        && let Ok(Some(pool)) = pool(device)
    {
        let mut zero = 0u64;
        // SAFETY: the pool is the device's own; zero is what this attribute, a u64, may be set to. That it could not be set
        // shows in the peak.
        let _ = unsafe {
            result::mem_pool::set_attribute(
                pool,
                sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH,
                (&raw mut zero).cast(),
            )
        };
    }
}

/// Returns the compute capability of a GPU, as in 90 for 9.0.
pub(in crate::ops) fn capability(device: &Device) -> Option<u32> {
    let DeviceLocation::Cuda { .. } = device.location() else {
        return None;
    };
    let stream = device.as_cuda_device().ok()?.cuda_stream();
    let (major, minor) = stream.context().compute_capability().ok()?;
    Some((10 * major + minor) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_run_on_later_gpus_except_those_with_a_letter() {
        for (compiled, capability, runs) in [
            ("80", 80, true),
            ("80", 90, true),
            ("90", 89, false),
            ("90a", 90, true),
            ("90a", 100, false),
            ("100f", 103, true),
            ("100f", 120, false),
            ("", 90, false),
        ] {
            assert_eq!(
                runs_on(compiled, capability),
                runs,
                "{compiled} on {capability}"
            );
        }
    }
}
