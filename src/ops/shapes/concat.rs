//! Tensors one behind the other.

use candle_core::Tensor;
use candle_core::shape::Dim;

use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::naive;
use crate::ops::parallel::for_overwrite;
use crate::ops::shapes::narrow::Piece;
use crate::{Error, Result};

/// Joins tensors along dimension `dim`; all other dimensions must be equal.
pub fn concat(parts: &[&Tensor], dim: impl Dim) -> Result<Tensor> {
    let Some(&first) = parts.first() else {
        return Err(Error::argument(
            "parts",
            "empty: at least one tensor is needed",
        ));
    };
    let dim = dim.to_index(first.shape(), "concat")?;
    let fits = |part: &Tensor| {
        part.rank() == first.rank()
            && (0..first.rank()).all(|i| i == dim || part.dims()[i] == first.dims()[i])
    };
    if let Some(other) = parts.iter().find(|part| !fits(part)) {
        return Err(Error::argument(
            "parts",
            format!(
                "shapes {:?} and {:?} can't be joined along dimension {dim}",
                first.dims(),
                other.dims()
            ),
        ));
    }
    #[cfg(feature = "cuda")]
    if parts.iter().all(|part| crate::ops::cuda::takes(part, [])) {
        return super::cuda::concat(parts, dim);
    }
    if !parts.iter().all(|part| storage::is_cpu_f32(part)) {
        return naive::concat(parts, dim);
    }
    let parts: Vec<Tensor> = (parts.iter())
        .map(|part| part.contiguous())
        .collect::<candle_core::Result<_>>()?;
    let mut shape = first.dims().to_vec();
    shape[dim] = parts.iter().map(|part| part.dims()[dim]).sum();
    let mut start = 0;
    let pieces: Vec<Piece> = (parts.iter())
        .map(|part| {
            let len = part.dims()[dim];
            start += len;
            Piece::new(&shape, dim, start - len, len)
        })
        .collect();
    let mut y = for_overwrite(shape.iter().product());
    for (part, piece) in parts.iter().zip(&pieces) {
        storage::with(part, |part| piece.put(part, &mut y))?;
    }
    let args: Vec<&Tensor> = parts.iter().collect();
    tape::record("concat", &args, y, shape, move |args, _, grad| {
        storage::with(grad, |grad| {
            let of = |(arg, piece): (&&Tensor, &Piece)| -> Result<Option<Tensor>> {
                match arg.track_op() {
                    true => storage::tensor(piece.take(grad), arg.shape()).map(Some),
                    false => Ok(None),
                }
            };
            args.iter().zip(&pieces).map(of).collect()
        })?
    })
}
