//! Candle tensors as plain slices of f32, for reading and for updates in place.

use std::cell::Cell;

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Shape, Storage, Tensor, Var};

use crate::Result;
use crate::ops::allocator::advise_huge;

/// Returns whether the fused CPU operations can work on `tensor`.
pub(crate) fn is_cpu_f32(tensor: &Tensor) -> bool {
    tensor.dtype() == DType::F32 && tensor.device().is_cpu()
}

/// Calls `f` with the elements of a contiguous f32 tensor on the CPU.
pub(crate) fn with<T>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => Err(candle_core::Error::Msg("expected a tensor on the CPU".into()).into()),
    }
}

/// Calls `f` with all elements of the storage that an f32 tensor on the CPU shares with others, and the offset of its
/// own.
pub(crate) fn with_layout<T>(tensor: &Tensor, f: impl FnOnce(&[f32], &Layout) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(storage.as_slice::<f32>()?, layout)),
        _ => Err(candle_core::Error::Msg("expected a tensor on the CPU".into()).into()),
    }
}

/// Returns the elements of a contiguous f32 layout.
pub(crate) fn slice<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<&'a [f32]> {
    let data = storage.as_slice::<f32>()?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&data[start..end]),
        None => Err(candle_core::Error::RequiresContiguous { op: "fused op" }),
    }
}

/// Calls `f` with the elements of a contiguous f32 tensor on the CPU, to edit them in place.
///
/// All tensors that share the storage see the change: only for tensors that belong to a parameter or an optimizer.
pub(crate) fn with_mut<T>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> T) -> Result<T> {
    struct Update<F, T> {
        f: Cell<Option<F>>,
        result: Cell<Option<T>>,
    }
    impl<T, F: FnOnce(&mut [f32]) -> T> InplaceOp1 for Update<F, T> {
        fn name(&self) -> &'static str {
            "update"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let CpuStorage::F32(data) = storage else {
                return Err(candle_core::Error::Msg("expected f32".into()));
            };
            let Some((start, end)) = layout.contiguous_offsets() else {
                return Err(candle_core::Error::RequiresContiguous { op: "update" });
            };
            if let Some(f) = self.f.take() {
                self.result.set(Some(f(&mut data[start..end])));
            }
            Ok(())
        }
    }
    let update = Update {
        f: Cell::new(Some(f)),
        result: Cell::new(None),
    };
    tensor.inplace_op1(&update)?;
    update
        .result
        .take()
        .ok_or_else(|| candle_core::Error::Msg("an update in place did not run".into()).into())
}

/// Returns a tensor of zeros that will live long (gradients, optimizer moments): large ones sit on huge pages where the
/// system has them, which spares most page faults and address translations.
pub(crate) fn zeros_huge(shape: &Shape) -> Result<Tensor> {
    let data = zeros(shape.elem_count());
    Ok(Tensor::from_vec(data, shape, &candle_core::Device::Cpu)?)
}

/// Returns `n` zeros that will live long, as [`zeros_huge`].
pub(crate) fn zeros(n: usize) -> Vec<f32> {
    let mut data = vec![0f32; n];
    advise_huge(&mut data);
    data
}

/// Returns a variable on the CPU with the f32 values whose little-endian bytes are given; copied by all threads, onto
/// huge pages where it is large. As a variable it becomes a parameter without being copied again.
pub(crate) fn copied(bytes: &[u8], shape: &[usize]) -> Result<Tensor> {
    use rayon::prelude::*;
    const CHUNK: usize = 1 << 18;
    let mut data: Vec<f32> = Vec::with_capacity(bytes.len() / 4);
    let spare = &mut data.spare_capacity_mut()[..bytes.len() / 4];
    advise_huge(spare);
    spare
        .par_chunks_mut(CHUNK)
        .zip(bytes.par_chunks(4 * CHUNK))
        .for_each(|(values, bytes)| {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                value.write(f32::from_le_bytes(*bytes));
            }
        });
    // SAFETY: the loop has written every element.
    unsafe { data.set_len(bytes.len() / 4) };
    Ok(Var::from_vec(data, shape, &candle_core::Device::Cpu)?.into_inner())
}

/// [`with`] for two tensors.
pub(crate) fn with2<T>(a: &Tensor, b: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> T) -> Result<T> {
    with(a, |a| with(b, |b| f(a, b)))?
}

/// Returns the result of an operation on `x` for a tensor without elements.
pub(crate) fn empty(x: &Tensor, shape: impl Into<Shape>) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::cuda::empty(x, shape);
    }
    Ok(Tensor::zeros(shape, x.dtype(), x.device())?)
}

/// Returns a tensor on the CPU over `data`, outside of any graph.
pub(crate) fn tensor(data: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape, &candle_core::Device::Cpu)?)
}
