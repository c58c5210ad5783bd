//! Looking up rows of a table.

use candle_core::Tensor;

use super::Param;
use crate::{Error, Result};

/// The rows of `table` (rows, width) named by `ids` (u32, any shape): the result has the shape of `ids` and `width`.
///
/// The row `padding_idx` receives no gradient from here, as in PyTorch's `nn.Embedding`; its value is used as it is.
pub fn embedding(ids: &Tensor, table: &Param, padding_idx: Option<u32>) -> Result<Tensor> {
    let (rows, width) = table.shape().dims2()?;
    let flat = ids.flatten_all()?;
    if let Some(&bad) = flat
        .to_vec1::<u32>()?
        .iter()
        .find(|&&id| id as usize >= rows)
    {
        return Err(Error::argument(
            "input_ids",
            format!(
                "id {bad} is outside {} with its {rows} rows: do tokenizer and model belong together?",
                table.name()
            ),
        ));
    }
    let mut dims = ids.dims().to_vec();
    dims.push(width);
    let gathered = table.tensor().index_select(&flat, 0)?;
    let gathered = match padding_idx {
        None => gathered,
        Some(pad) => {
            let keep = flat
                .ne(pad)?
                .to_dtype(gathered.dtype())?
                .reshape(((), 1))?
                .broadcast_as(gathered.shape())?;
            let passing = (&gathered * &keep)?;
            ((&gathered - &passing)?.detach() + passing)?
        }
    };
    Ok(gathered.reshape(dims)?)
}
