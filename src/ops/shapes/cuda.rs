//! Elements that only change their places.

use candle_core::backend::BackendStorage;
use candle_core::{Storage, Tensor};

use crate::Result;
use crate::ops::cuda::{Fresh, Gpu, compute_dtype, copied, not_on_gpu, prepared};
use crate::ops::graph::tape;
use crate::ops::shapes::narrow::Piece;

/// Like [`crate::ops::permute()`], for an order of the dimensions.
pub(in crate::ops) fn permute(x: &Tensor, dims: &[usize]) -> Result<Tensor> {
    let x = x.contiguous()?;
    let y = x.detach().permute(dims)?;
    let mut back = vec![0; dims.len()];
    for (to, &from) in dims.iter().enumerate() {
        back[from] = to;
    }
    tape::record(
        "permute",
        &[&x],
        copied(&y)?,
        y.shape(),
        move |args, _, grad| {
            let dx = grad.detach().permute(&back[..])?;
            Ok(vec![Some(
                Fresh::new(copied(&dx)?, args[0].shape()).into_tensor(),
            )])
        },
    )
}

/// Like [`crate::ops::narrow()`].
pub(in crate::ops) fn narrow(x: &Tensor, dim: usize, start: usize, len: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let part = x.narrow(dim, start, len)?;
    let before = x.shape().clone();
    let piece = Piece::new(x.dims(), dim, start, len);
    let widened = move |grad: &Tensor| -> Result<Tensor> {
        let gpu = Gpu::of(grad.device())?;
        let mut dx = gpu.zeros(&before, grad.dtype())?;
        put(piece, grad, &mut dx)?;
        Ok(dx.into_tensor())
    };
    if part.is_contiguous() {
        return tape::view("narrow", &x, part, widened);
    }
    let y = copied(&part.detach())?;
    tape::record("narrow", &[&x], y, part.shape(), move |_, _, grad| {
        Ok(vec![Some(widened(grad)?)])
    })
}

/// Like [`crate::ops::concat()`], for parts that fit together.
pub(in crate::ops) fn concat(parts: &[&Tensor], dim: usize) -> Result<Tensor> {
    let dtype = compute_dtype(parts[0]);
    let gpu = Gpu::of(parts[0].device())?;
    let parts: Vec<Tensor> = parts
        .iter()
        .map(|part| prepared(part, dtype))
        .collect::<Result<_>>()?;
    let mut shape = parts[0].dims().to_vec();
    shape[dim] = parts.iter().map(|part| part.dims()[dim]).sum();
    let mut start = 0;
    let mut pieces = Vec::with_capacity(parts.len());
    let mut y = gpu.for_overwrite(&shape[..], dtype)?;
    for part in &parts {
        let len = part.dims()[dim];
        let piece = Piece::new(&shape, dim, start, len);
        put(piece, part, &mut y)?;
        pieces.push(piece);
        start += len;
    }
    let args: Vec<&Tensor> = parts.iter().collect();
    tape::record("concat", &args, y.storage, shape, move |args, _, grad| {
        let of = |(arg, piece): (&&Tensor, &Piece)| -> Result<Option<Tensor>> {
            if !arg.track_op() {
                return Ok(None);
            }
            let mut part = gpu.for_overwrite(arg.shape(), dtype)?;
            let rows = grad.elem_count() / piece.row.max(1);
            copy_rows(
                grad,
                &mut part,
                (rows, piece.len),
                (piece.row, piece.start),
                (piece.len, 0),
            )?;
            Ok(Some(part.into_tensor()))
        };
        args.iter().zip(&pieces).map(of).collect()
    })
}

/// Like [`Piece::put`].
fn put(piece: Piece, from: &Tensor, to: &mut Fresh) -> Result<()> {
    let rows = to.shape.elem_count() / piece.row.max(1);
    copy_rows(
        from,
        to,
        (rows, piece.len),
        (piece.len, 0),
        (piece.row, piece.start),
    )
}

/// Copies `rows` rows of `len` elements from the contiguous `from`; where the first stands and how far apart they are is
/// said for both sides as (distance, first).
fn copy_rows(
    from: &Tensor,
    to: &mut Fresh,
    (rows, len): (usize, usize),
    (from_row, from_first): (usize, usize),
    (to_row, to_first): (usize, usize),
) -> Result<()> {
    if rows * len == 0 {
        return Ok(());
    }
    let (storage, layout) = from.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else {
        return Err(not_on_gpu());
    };
    let first = layout.start_offset() + from_first;
    storage.copy2d(
        &mut to.storage,
        rows,
        len,
        from_row,
        to_row,
        first,
        to_first,
    )?;
    Ok(())
}
