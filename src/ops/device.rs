//! Which device to compute on, and how much of its memory is in use.

use candle_core::{Device, Shape, Tensor};

#[cfg(feature = "cuda")]
use super::cuda;
use crate::Result;

/// Choosing a [`Device`] in one word.
///
/// ```
/// use cloze::prelude::*;
///
/// let device = Device::best()?;
/// println!("{}", if device.is_cpu() { "there is no GPU" } else { "a GPU" });
/// # Ok::<(), cloze::Error>(())
/// ```
pub trait DeviceExt: Sized {
    /// Returns the first GPU, or the CPU if there is none; a build with GPU support then reports on stderr what is
    /// missing. Several ranks on a machine get different GPUs.
    ///
    /// ```
    /// use cloze::prelude::*;
    ///
    /// let device = Device::best()?;
    /// let model = MaskedLm::from_pretrained_on("bundled:tiny_roberta", &device)?;
    /// # Ok::<(), cloze::Error>(())
    /// ```
    fn best() -> Result<Self>;

    /// Returns the GPU of that number, counted from 0 as in `nvidia-smi` or `CUDA_VISIBLE_DEVICES`; asked again, the
    /// same one.
    ///
    /// # Errors
    /// If it can't be used, with the reason: no GPU support in this build, no driver, no GPU, or no kernels for it.
    fn gpu(ordinal: usize) -> Result<Self>;
}

impl DeviceExt for Device {
    #[cfg(feature = "cuda")]
    fn best() -> Result<Self> {
        use std::sync::Once;
        static REPORTED: Once = Once::new();
        // The ranks of a machine share its GPUs out.
        let rank = crate::distributed::environment().local_rank;
        let ordinal = rank % cuda::device::count().max(1);
        Ok(Self::gpu(ordinal).unwrap_or_else(|reason| {
            REPORTED.call_once(|| eprintln!("note: computing on the CPU: {reason}"));
            Self::Cpu
        }))
    }

    #[cfg(not(feature = "cuda"))]
    fn best() -> Result<Self> {
        Ok(Self::Cpu)
    }

    #[cfg(feature = "cuda")]
    fn gpu(ordinal: usize) -> Result<Self> {
        cuda::device::open(ordinal)
    }

    #[cfg(not(feature = "cuda"))]
    fn gpu(_: usize) -> Result<Self> {
        Err(crate::Error::Device(
            "this build of cloze has no GPU support: build it with the feature \"cuda\"".to_owned(),
        ))
    }
}

/// Returns `values` as a tensor on `device`, without waiting for the GPU's current work.
pub(crate) fn upload(values: &[u32], shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return cuda::upload(values, shape.into(), device);
    }
    Ok(Tensor::from_slice(values, shape, device)?)
}

/// A device's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceMemory {
    /// The bytes that tensors take now.
    pub used: u64,
    /// The most they took at once since the start or [`reset_peak_memory`].
    pub peak: u64,
    /// The device's memory, in bytes.
    pub total: u64,
}

/// Returns the memory of a GPU; `None` for the CPU.
pub fn device_memory(device: &Device) -> Option<DeviceMemory> {
    #[cfg(feature = "cuda")]
    return cuda::device::memory(device);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        None
    }
}

/// Resets [`DeviceMemory::peak`] to the memory in use.
pub fn reset_peak_memory(device: &Device) {
    #[cfg(feature = "cuda")]
    cuda::device::reset_peak(device);
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// Returns whether products of bf16 matrices are fast on this GPU.
pub(super) fn has_bf16(device: &Device) -> bool {
    #[cfg(feature = "cuda")]
    return cuda::device::capability(device).is_some_and(|capability| capability >= 80);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = device;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_device_works_and_can_be_requested_again() {
        let device = Device::best().unwrap();
        assert!(device.same_device(&Device::best().unwrap()));
        let one = candle_core::Tensor::new(1f32, &device).unwrap();
        assert_eq!((&one + &one).unwrap().to_scalar::<f32>().unwrap(), 2.0);
        assert_eq!(device_memory(&device).is_some(), device.is_cuda());
        reset_peak_memory(&device);
    }

    #[test]
    fn a_missing_gpu_is_an_error_that_explains_why() {
        let error = Device::gpu(1000).unwrap_err();
        assert!(error.to_string().starts_with("device: "), "{error}");
    }
}
