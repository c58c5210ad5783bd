//! Rows put to their places: the inverse of selecting them.

use candle_core::{D, DType, Tensor};

use super::embedding::{Scatter, gather};
use super::naive;
use super::parallel::for_overwrite;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns a tensor (`into_len`, width) of zeros to whose row `rows[i]` (u32) row `i` of `x` (count, width) was added:
/// undoes [`select_rows`](super::select_rows) where that named each row once.
pub fn scatter_rows(x: &Tensor, rows: &Tensor, into_len: usize) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let count = x.dims()[..x.rank() - 1].iter().product::<usize>();
    let ids = rows.to_dtype(DType::U32)?.flatten_all()?.to_vec1::<u32>()?;
    if ids.len() != count {
        return Err(Error::argument(
            "rows",
            format!("{} places for {count} rows", ids.len()),
        ));
    }
    if let Some(&bad) = ids.iter().find(|&&id| id as usize >= into_len) {
        return Err(Error::argument("rows", format!("row {bad} of {into_len}")));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return crate::ops::embedding::cuda::scatter_rows(x, ids, width, into_len);
    }
    if !storage::is_cpu_f32(x) {
        return naive::scatter_rows(&x.reshape((count, width))?, rows, into_len);
    }
    let x = x.contiguous()?;
    let mut y = vec![0f32; into_len * width];
    storage::with(&x, |x| Scatter::new(&ids, None).add(x, width, &mut y))?;
    let shape = (into_len, width);
    tape::record("scatter_rows", &[&x], y, shape, move |args, _, grad| {
        let mut dx = for_overwrite(ids.len() * width);
        storage::with(grad, |grad| gather(grad, &ids, width, &mut dx, false))?;
        Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
    })
}
