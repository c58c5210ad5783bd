//! Sums and multiples, by candle's own kernels: what is added is their place in our graph.

use candle_core::backend::BackendStorage;
use candle_core::{CudaStorage, Storage, Tensor};

use super::{Fresh, not_on_gpu, on_storage};
use crate::Result;
use crate::ops::tape;

/// As [`super::super::scale`].
pub(in crate::ops) fn scale(x: &Tensor, factor: f64) -> Result<Tensor> {
    let times =
        move |x: &Tensor| on_storage(x, |storage, layout| storage.affine(layout, factor, 0.0));
    tape::record("scale", &[x], times(x)?, x.shape(), move |_, _, grad| {
        Ok([
            Some(Fresh::new(times(grad)?, grad.shape()).into_tensor()),
            None,
            None,
        ])
    })
}

/// As [`super::super::add`], for two of one shape and dtype.
pub(in crate::ops) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    tape::record("add", &[a, b], sum(a, b)?, a.shape(), |args, _, grad| {
        let of = |arg: &Tensor| arg.track_op().then(|| grad.clone());
        Ok([of(args[0]), of(args[1]), None])
    })
}

fn sum(a: &Tensor, b: &Tensor) -> Result<CudaStorage> {
    let (other, other_layout) = b.storage_and_layout();
    let Storage::Cuda(other) = &*other else {
        return Err(not_on_gpu());
    };
    on_storage(a, |storage, layout| {
        storage.binary_impl::<candle_core::op::Add>(other, layout, other_layout)
    })
}
