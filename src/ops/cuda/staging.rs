//! Copies host memory to the GPU through two buffers that the GPU reads asynchronously, so that nothing blocks.
//!
//! From pageable memory the driver copies more than 64 KiB only once the stream has reached the copy, which would let a
//! GPU idle between two steps. So uploads are first copied into page-locked memory. Two buffers alternate: while the
//! GPU still reads one, the next batches go into the other, and only a buffer that is still being read must be waited
//! for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::cuda_backend::cudarc::driver::{
    CudaEvent, CudaStream, DeviceRepr, DriverError, PinnedHostSlice, result,
};
use candle_core::cuda_backend::{DeviceId, WrapErr};

use super::{Gpu, lock};
use crate::Result;

/// Bytes of one buffer: several steps' batches, tables and plans.
const BYTES: usize = 4 << 20;

/// The alignment of every upload: enough for any type that is uploaded, and the size of one read by the GPU.
const ALIGNMENT: usize = 256;

/// Copies `values` to `target` on the GPU, in the order of its stream.
///
/// # Safety
/// The memory there must hold all of `values`.
pub(super) unsafe fn copy<T: DeviceRepr>(gpu: &Gpu, target: u64, values: &[T]) -> Result<()> {
    static OPEN: OnceLock<Mutex<HashMap<DeviceId, Arc<Mutex<Staging>>>>> = OnceLock::new();
    let staging = {
        let mut open = lock(OPEN.get_or_init(Mutex::default));
        match open.get(&gpu.device.id()) {
            Some(staging) => staging.clone(),
            None => {
                let staging = Arc::new(Mutex::new(Staging::new(&gpu.stream).w()?));
                open.insert(gpu.device.id(), staging.clone());
                staging
            }
        }
    };
    // SAFETY: the caller's promise.
    unsafe { lock(&staging).copy(&gpu.stream, target, values).w()? };
    Ok(())
}

struct Staging {
    halves: [Half; 2],
    /// The half that is being filled, and how far.
    current: usize,
    used: usize,
}

struct Half {
    memory: PinnedHostSlice<u8>,
    /// Passed once everything that was copied from here has been read.
    read: CudaEvent,
}

impl Staging {
    fn new(stream: &CudaStream) -> Result<Self, DriverError> {
        let half = || {
            let context = stream.context();
            // SAFETY: nothing is copied from a byte that was not written before.
            let memory = unsafe { context.alloc_pinned(BYTES)? };
            let read = context.new_event(None)?;
            Ok(Half { memory, read })
        };
        Ok(Self {
            halves: [half()?, half()?],
            current: 0,
            used: 0,
        })
    }

    /// Like [`copy`].
    ///
    /// # Safety
    /// As there.
    unsafe fn copy<T: DeviceRepr>(
        &mut self,
        stream: &CudaStream,
        target: u64,
        values: &[T],
    ) -> Result<(), DriverError> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= ALIGNMENT) };
        stream.context().bind_to_thread()?;
        let mut target = target;
        for piece in values.chunks(BYTES / size_of::<T>()) {
            let bytes = size_of_val(piece);
            if self.used + bytes > BYTES {
                self.change(stream)?;
            }
            let memory = self.halves[self.current].memory.as_mut_ptr()?;
            // SAFETY: the half has room for the piece from `used` on, at an address that fits T, and the GPU has read what
            // was there before: `change` waits for it. The target has room by the caller's promise.
            unsafe {
                let place = memory.add(self.used).cast::<T>();
                place.copy_from_nonoverlapping(piece.as_ptr(), piece.len());
                let placed = std::slice::from_raw_parts(place, piece.len());
                result::memcpy_htod_async(target, placed, stream.cu_stream())?;
            }
            self.used = (self.used + bytes).next_multiple_of(ALIGNMENT);
            target += bytes as u64;
        }
        Ok(())
    }

    /// Goes over to the other half, once the GPU has read it.
    fn change(&mut self, stream: &CudaStream) -> Result<(), DriverError> {
        self.halves[self.current].read.record(stream)?;
        self.current = 1 - self.current;
        self.used = 0;
        self.halves[self.current].read.synchronize()
    }
}
