//! Tables of a vocabulary that grows or shrinks.

use candle_core::{DType, Device, Tensor};

use super::context::mix;
use super::draws::{name_hash, normal};
use crate::Result;

/// A change of the vocabulary's length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resize {
    pub(super) old: usize,
    pub(super) new: usize,
    /// The standard deviation of new rows around 0, where they do not begin at the mean.
    pub(super) fresh: Option<f64>,
}

impl Resize {
    /// Returns `tensor` in the shape `stored`, where these differ by the vocabulary's length in one dimension.
    pub(super) fn fit(&self, name: &str, tensor: Tensor, stored: &[usize]) -> Result<Tensor> {
        if tensor.rank() != stored.len() {
            return Ok(tensor);
        }
        let pairs = tensor.dims().iter().zip(stored).enumerate();
        let mut differing = pairs.filter(|(_, (have, want))| have != want);
        let Some((dim, (&have, &want))) = differing.next() else {
            return Ok(tensor);
        };
        if differing.next().is_some() || have != self.old || want != self.new {
            return Ok(tensor);
        }
        if want < have {
            return Ok(tensor.narrow(dim, 0, want)?.force_contiguous()?);
        }
        let added = self.rows(name, &tensor.transpose(0, dim)?.contiguous()?)?;
        Ok(Tensor::cat(&[&tensor, &added.transpose(0, dim)?], dim)?)
    }

    /// Returns the rows that are added to `table`, (vocabulary, ...), for the parameter called `name`.
    fn rows(&self, name: &str, table: &Tensor) -> Result<Tensor> {
        let added = self.new - self.old;
        let mut shape = table.dims().to_vec();
        shape[0] = added;
        let width = table.elem_count() / self.old.max(1);
        let seed = mix(name_hash(name) ^ self.new as u64);
        let rows = if name.ends_with("final_logits_bias") {
            // BART's has none for tokens that it was not made for.
            Tensor::zeros((added, width), DType::F32, &Device::Cpu)?
        } else if let Some(std) = self.fresh {
            let std = if table.rank() == 1 { 0.0 } else { std };
            Tensor::from_vec(
                normal(added * width, std, seed),
                (added, width),
                &Device::Cpu,
            )?
        } else {
            let table = table.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            around_the_mean(&table.reshape((self.old, width))?, added, seed)?
        };
        Ok(rows
            .to_dtype(table.dtype())?
            .to_device(table.device())?
            .reshape(shape)?)
    }
}

/// Draws `added` rows around the mean of those of `table`, with a billionth of their covariance.
///
/// Normal numbers times the rows' distances from their mean, over the root of their count, have just that covariance: no
/// decomposition is needed, and none fails where there are fewer rows than columns.
pub(super) fn around_the_mean(table: &Tensor, added: usize, seed: u64) -> Result<Tensor> {
    let (count, _) = table.dims2()?;
    let mean = table
        .to_dtype(DType::F64)?
        .mean_keepdim(0)?
        .to_dtype(DType::F32)?;
    let centered = table.broadcast_sub(&mean)?;
    let std = (1e-9 / count as f64).sqrt();
    let mut rows = Vec::new();
    // A few rows at a time: the numbers are as many as tokens for each.
    for first in (0..added).step_by(64) {
        let many = (added - first).min(64);
        let draws = normal(many * count, std, mix(seed ^ first as u64));
        let draws = Tensor::from_vec(draws, (many, count), &Device::Cpu)?;
        rows.push(draws.matmul(&centered)?.broadcast_add(&mean)?);
    }
    Ok(Tensor::cat(&rows, 0)?)
}
