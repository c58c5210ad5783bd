//! The ranks' gradients, added up, and their weights, made equal.
//!
//! Gradients are exchanged in units: a large parameter by itself, in place, or several small ones (biases,
//! normalization) packed together. Each element is summed by one rank, in the order of the ranks, and sent to the
//! others, so all ranks hold the same bits, and repeated runs give the same bits.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use crate::distributed::{Group, share};
use crate::ops::Param;
use crate::{Error, Result};

/// The most elements that are exchanged at once: what bounds the memory for those of the others.
const PIECE: usize = 1 << 22;

/// Parameters with fewer elements are packed together, up to four times as many.
const SMALL: usize = 1 << 16;

/// Parameters that are exchanged together.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unit {
    /// Their numbers, and the position of each in the unit.
    pub(super) params: Vec<(usize, Range<usize>)>,
    pub(super) len: usize,
}

/// Returns the units of a model's parameters, in their order. They are the same on all ranks.
pub(super) fn units(params: &[Param]) -> Vec<Unit> {
    let mut units = Vec::new();
    let mut pack = Unit {
        params: Vec::new(),
        len: 0,
    };
    for (number, param) in params.iter().enumerate() {
        let len = param.elem_count();
        if len >= SMALL {
            let params = vec![(number, 0..len)];
            units.push(Unit { params, len });
            continue;
        }
        pack.params.push((number, pack.len..pack.len + len));
        pack.len += len;
        if pack.len >= 4 * SMALL {
            let params = std::mem::take(&mut pack.params);
            let len = std::mem::take(&mut pack.len);
            units.push(Unit { params, len });
        }
    }
    units.extend((pack.len > 0).then_some(pack));
    units
}

impl Unit {
    /// Returns what a rank adds up of it.
    pub(super) fn own(&self, rank: usize, size: usize) -> Vec<Range<usize>> {
        let piece = |start: usize| {
            let own = share((self.len - start).min(PIECE), rank, size);
            start + own.start..start + own.end
        };
        (0..self.len).step_by(PIECE).map(piece).collect()
    }

    /// Returns whether any of its parameters has a gradient somewhere.
    pub(super) fn is_live(&self, live: &Live) -> bool {
        self.params.iter().any(|(param, _)| live.has(*param))
    }

    /// Returns the one parameter that it is, if it is no pack.
    pub(super) fn alone<'a>(&self, params: &'a [Param]) -> Option<&'a Param> {
        match &self.params[..] {
            [(number, _)] => params.get(*number),
            _ => None,
        }
    }

    /// Calls `change` with the gradients of the unit, to be changed in place: zeros for those that this rank does not
    /// have. Those that no rank has are unchanged.
    pub(super) fn with_gradients(
        &self,
        params: &[Param],
        live: &Live,
        change: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if let Some(param) = self.alone(params) {
            return with_gradient(param, change);
        }
        let mut packed = vec![0.0; self.len];
        for (number, range) in &self.params {
            params[*number].with_grad(|grad| {
                let values: Vec<f32> = grad.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                packed[range.clone()].copy_from_slice(&values);
                Ok(())
            })?;
        }
        change(&mut packed)?;
        for (number, range) in &self.params {
            if live.has(*number) {
                with_gradient(&params[*number], |grad| {
                    grad.copy_from_slice(&packed[range.clone()]);
                    Ok(())
                })?;
            }
        }
        Ok(())
    }

    /// Passes the weights of the unit to `change`, which edits them in place.
    pub(super) fn with_weights(
        &self,
        params: &[Param],
        change: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        if let Some(param) = self.alone(params).filter(|param| param.is_cpu_f32()) {
            return param.update_value(change)?;
        }
        let mut packed = Vec::with_capacity(self.len);
        for (number, _) in &self.params {
            packed.extend(values_of(&params[*number])?);
        }
        change(&mut packed)?;
        for (number, range) in &self.params {
            set_values(&params[*number], packed[range.clone()].to_vec())?;
        }
        Ok(())
    }
}

/// Which parameters have a gradient, as bits.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(super) struct Live(Vec<u64>);

impl Live {
    /// Returns those that have one on this rank.
    pub(super) fn here(params: &[Param]) -> Self {
        let mut live = Self::default();
        for (number, param) in params.iter().enumerate() {
            if param.with_grad(|_| Ok(())).is_ok_and(|grad| grad.is_some()) {
                live.add(number);
            }
        }
        live
    }

    /// Returns those that have one on any of the ranks. The others stay untouched, as in one process.
    pub(super) fn anywhere<'a>(ranks: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut all = Self::default();
        for Self(bits) in ranks {
            all.0.resize(all.0.len().max(bits.len()), 0);
            all.0
                .iter_mut()
                .zip(bits)
                .for_each(|(all, bits)| *all |= bits);
        }
        all
    }

    pub(super) fn add(&mut self, number: usize) {
        let words = self.0.len().max(number / 64 + 1);
        self.0.resize(words, 0);
        self.0[number / 64] |= 1 << (number % 64);
    }

    pub(super) fn has(&self, number: usize) -> bool {
        let word = self.0.get(number / 64);
        word.is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }
}

/// Sums the gradients of `params` over all ranks, for a hand-written training loop: a [`Trainer`](super::Trainer) does
/// the same after the backward passes of a step.
///
/// The losses must have been divided by the count over all ranks, or the sums be divided afterwards. A parameter
/// without a gradient on any rank stays without one.
pub fn sum_gradients(ranks: &Group, params: &[Param]) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let all = ranks.vote("gradients", Ok(Live::here(params)))?;
    let added = add_up(ranks, params, &Live::anywhere(&all));
    ranks.or_abort("adding up the gradients", added)
}

/// Replaces the gradients of the parameters that are `live` anywhere by their sums over all ranks.
pub(super) fn add_up(ranks: &Group, params: &[Param], live: &Live) -> Result<()> {
    #[cfg(feature = "cuda")]
    if add_up_on_gpus(ranks, params, live)? {
        return Ok(());
    }
    for unit in units(params).iter().filter(|unit| unit.is_live(live)) {
        unit.with_gradients(params, live, |values| all_reduce(ranks, values))?;
    }
    Ok(())
}

/// Adds up gradients that are on GPUs where they are; whether that was done.
#[cfg(feature = "cuda")]
fn add_up_on_gpus(ranks: &Group, params: &[Param], live: &Live) -> Result<bool> {
    use crate::ops::cuda;
    let Some(first) = params.first().filter(|param| param.device().is_cuda()) else {
        return Ok(false);
    };
    cuda::make_current(&first.value())?;
    let Some(nccl) = ranks.nccl()? else {
        return Ok(false);
    };
    for (_, param) in params
        .iter()
        .enumerate()
        .filter(|(number, _)| live.has(*number))
    {
        param.update_grad_tensor(|grad, fresh| {
            if fresh {
                grad.zero_set()?;
            }
            cuda::with_pointer(grad, |data, stream| {
                // SAFETY: the gradient is this parameter's own, f32 and contiguous, and all that touches it is in its stream;
                // all ranks have the same parameters.
                unsafe { nccl.all_reduce(data, grad.elem_count(), stream) }
            })
        })?;
    }
    Ok(true)
}

/// Replaces `values` by their sums over all ranks.
pub(super) fn all_reduce(ranks: &Group, values: &mut [f32]) -> Result<()> {
    values.chunks_mut(PIECE).try_for_each(|piece| {
        ranks.reduce_scatter(piece)?;
        ranks.all_gather(piece)
    })
}

/// Adds up this rank's own parts of `values`.
pub(super) fn reduce_scatter(ranks: &Group, values: &mut [f32]) -> Result<()> {
    let mut pieces = values.chunks_mut(PIECE);
    pieces.try_for_each(|piece| ranks.reduce_scatter(piece))
}

/// Fills in the other ranks' parts of `values`.
pub(super) fn all_gather(ranks: &Group, values: &mut [f32]) -> Result<()> {
    let mut pieces = values.chunks_mut(PIECE);
    pieces.try_for_each(|piece| ranks.all_gather(piece))
}

/// Passes the gradient of `param` (zeros if it has none) to `change`, which edits it in place.
pub(super) fn with_gradient(
    param: &Param,
    change: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut done = Ok(());
    if param.is_cpu_f32() {
        param.update_grad(|grad, fresh| {
            if fresh {
                grad.fill(0.0);
            }
            done = change(grad);
        })?;
        return done;
    }
    param.update_grad_tensor(|grad, fresh| {
        let mut values: Vec<f32> = match fresh {
            true => vec![0.0; grad.elem_count()],
            false => grad.flatten_all()?.to_vec1()?,
        };
        change(&mut values)?;
        let values = Tensor::from_vec(values, grad.elem_count(), grad.device())?;
        grad.flatten_all()?.slice_set(&values, 0, 0)?;
        Ok(())
    })
}

/// Returns the weights of a parameter.
fn values_of(param: &Param) -> Result<Vec<f32>> {
    Ok(param
        .value()
        .to_dtype(DType::F32)?
        .flatten_all()?
        .to_vec1()?)
}

fn set_values(param: &Param, values: Vec<f32>) -> Result<()> {
    let value = Tensor::from_vec(values, param.shape(), &Device::Cpu)?;
    param.set(&value.to_device(param.device())?.to_dtype(param.dtype())?)
}

/// Copies the weights of rank 0 to all ranks.
pub(super) fn share_weights(ranks: &Group, params: &[Param]) -> Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    for param in params {
        let values = match ranks.is_main() {
            true => values_of(param)?,
            false => vec![0.0; param.elem_count()],
        };
        let mut bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        ranks.broadcast(&mut bytes)?;
        if !ranks.is_main() {
            let values = bytes.as_chunks().0.iter();
            set_values(
                param,
                values.map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            )?;
        }
    }
    Ok(())
}

/// Checks that all ranks have the same parameters, data and settings.
pub(super) fn check_equal(ranks: &Group, what: &'static str, mine: String) -> Result<()> {
    let all = ranks.vote(what, Ok(mine))?;
    match all.iter().position(|other| *other != all[0]) {
        None => Ok(()),
        Some(rank) => Err(Error::Distributed(format!(
            "rank {rank} has other {what} than rank 0: all ranks must run the same program on the same files"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_cover_every_parameter_once_and_are_divided_among_ranks() {
        let param = |i: usize, len: usize| {
            let zeros = Tensor::zeros(len, DType::F32, &Device::Cpu).unwrap();
            Param::new(format!("p{i}"), &zeros).unwrap()
        };
        let lengths = [
            7,
            SMALL,
            SMALL - 1,
            3,
            SMALL - 1,
            SMALL - 1,
            SMALL - 1,
            5,
            PIECE + 9,
            1,
        ];
        let params: Vec<Param> = lengths
            .iter()
            .enumerate()
            .map(|(i, len)| param(i, *len))
            .collect();
        let units = units(&params);
        let mut found: Vec<usize> = Vec::new();
        for unit in &units {
            found.extend(unit.params.iter().map(|(number, _)| *number));
            assert_eq!(unit.params.last().unwrap().1.end, unit.len);
            for size in 1..=3 {
                let mut covered = vec![0; unit.len];
                for rank in 0..size {
                    for range in unit.own(rank, size) {
                        covered[range].iter_mut().for_each(|times| *times += 1);
                    }
                }
                assert!(covered.iter().all(|&times| times == 1));
            }
        }
        found.sort_unstable();
        assert_eq!(found, (0..lengths.len()).collect::<Vec<_>>());
    }
}
