//! Sharded optimizer state (ZeRO-1, Rajbhandari et al. 2020): each rank keeps the moments of its part of every unit, updates
//! that part of the weights, and hands it to the others.
//!
//! The optimizer works on separate parameters, which are those parts. Checkpoints contain the combined moments, like
//! those of an unsharded run, so that any number of ranks can load them.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::AdamW;
use super::exchange::{self, Live, Unit, all_gather, reduce_scatter};
use crate::distributed::Group;
use crate::ops::{self, AdamWState, Param};
use crate::{Error, Result};

/// The parts of a model's parameters that this rank updates.
pub(super) struct Shards {
    units: Vec<Unit>,
    params: Vec<Param>,
    parts: Vec<Part>,
}

/// A part of one parameter.
struct Part {
    unit: usize,
    /// Its position in the unit.
    range: Range<usize>,
    /// The parameter's number, and the position of the part in it.
    source: usize,
    within: Range<usize>,
    param: Param,
}

impl Shards {
    /// Returns this rank's parts of `params`.
    pub(super) fn new(ranks: &Group, params: &[Param]) -> Result<Self> {
        if let Some(param) = params.iter().find(|param| !param.is_cpu_f32()) {
            return Err(Error::argument(
                "shard_optimizer",
                format!(
                    "{} is not an f32 parameter on the CPU, and only those can be sharded so far; turn this off",
                    param.name()
                ),
            ));
        }
        let units = exchange::units(params);
        let mut parts = Vec::new();
        for (number, unit) in units.iter().enumerate() {
            for own in unit.own(ranks.rank(), ranks.size()) {
                for (source, range) in &unit.params {
                    let common = own.start.max(range.start)..own.end.min(range.end);
                    if common.is_empty() {
                        continue;
                    }
                    let within = common.start - range.start..common.end - range.start;
                    // The name decides on weight decay: it ends with the parameter's.
                    let name = format!(
                        "{}..{}.{}",
                        within.start,
                        within.end,
                        params[*source].name()
                    );
                    let zeros = Tensor::zeros(common.len(), DType::F32, &Device::Cpu)?;
                    parts.push(Part {
                        unit: number,
                        range: common,
                        source: *source,
                        within,
                        param: Param::owned(name, &zeros)?,
                    });
                }
            }
        }
        for part in &parts {
            let trainable = params[part.source].is_trainable();
            part.param.set_trainable(trainable);
        }
        Ok(Self {
            units,
            params: params.to_vec(),
            parts,
        })
    }

    /// Returns the parts, as parameters.
    pub(super) fn params(&self) -> Vec<Param> {
        self.parts.iter().map(|part| part.param.clone()).collect()
    }

    fn parts_of(&self, unit: usize) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(move |part| part.unit == unit)
    }

    /// Adds the gradients up, each rank those of its parts, which also get their weights.
    pub(super) fn add_up(&self, ranks: &Group, live: &Live) -> Result<()> {
        for (number, unit) in self.units.iter().enumerate() {
            if !unit.is_live(live) {
                continue;
            }
            unit.with_gradients(&self.params, live, |values| {
                reduce_scatter(ranks, values)?;
                for part in self.parts_of(number).filter(|part| live.has(part.source)) {
                    let own = &values[part.range.clone()];
                    part.param
                        .update_grad(|grad, _| grad.copy_from_slice(own))?;
                }
                Ok(())
            })?;
        }
        for part in &self.parts {
            let within = part.within.clone();
            let source = self.params[part.source].value().flatten_all()?;
            let own = source.narrow(0, within.start, within.len())?;
            part.param.set(&own.contiguous()?)?;
        }
        Ok(())
    }

    /// Returns the norm of the gradients of all parts of all ranks.
    pub(super) fn norm(&self, ranks: &Group) -> Result<f64> {
        let norm = ops::grad_norm(&self.params());
        // As bits, for JSON has no word for what is not finite.
        let squares = ranks.vote("a norm", norm.map(|norm| (norm * norm).to_bits()))?;
        Ok(squares.into_iter().map(f64::from_bits).sum::<f64>().sqrt())
    }

    /// Gives all ranks the weights that each has updated.
    pub(super) fn share_weights(&self, ranks: &Group) -> Result<()> {
        for (number, unit) in self.units.iter().enumerate() {
            unit.with_weights(&self.params, |values| {
                for part in self.parts_of(number) {
                    let own: Vec<f32> = part.param.value().to_vec1()?;
                    values[part.range.clone()].copy_from_slice(&own);
                }
                all_gather(ranks, values)
            })?;
        }
        Ok(())
    }

    /// Returns, on rank 0, the optimizer of the whole parameters with all ranks' moments.
    pub(super) fn gather(&self, ranks: &Group, optimizer: &AdamW) -> Result<Option<AdamW>> {
        let mut whole = AdamW::from_params(&self.params);
        let states = optimizer.states();
        // They are made in the first step, on all ranks.
        if states.is_empty() {
            return Ok(ranks.is_main().then_some(whole));
        }
        let mut steps = vec![0; self.params.len()];
        for part in &self.parts {
            let state = states.get(&part.param.id());
            steps[part.source] = state.map_or(0, |state| state.step);
        }
        // A rank need not have a part of every parameter.
        for other in ranks.vote("the optimizer's steps", Ok(steps.clone()))? {
            steps
                .iter_mut()
                .zip(other)
                .for_each(|(step, other)| *step = (*step).max(other));
        }
        let mut found = HashMap::new();
        for (number, unit) in self.units.iter().enumerate() {
            let moment = |of: fn(&AdamWState) -> &Tensor| -> Result<Vec<f32>> {
                let mut values = vec![0.0; unit.len];
                for part in self.parts_of(number) {
                    if let Some(state) = states.get(&part.param.id()) {
                        let own: Vec<f32> = of(state).flatten_all()?.to_vec1()?;
                        values[part.range.clone()].copy_from_slice(&own);
                    }
                }
                all_gather(ranks, &mut values)?;
                Ok(values)
            };
            let (m, v) = (moment(|state| &state.m)?, moment(|state| &state.v)?);
            if !ranks.is_main() {
                continue;
            }
            for (source, range) in &unit.params {
                let param = &self.params[*source];
                let tensor = |values: &[f32]| -> Result<Tensor> {
                    let values = values[range.clone()].to_vec();
                    Ok(Tensor::from_vec(values, param.shape(), &Device::Cpu)?)
                };
                let state = AdamWState {
                    m: tensor(&m)?,
                    v: tensor(&v)?,
                    step: steps[*source],
                };
                found.insert(param.id(), state);
            }
        }
        if !ranks.is_main() {
            return Ok(None);
        }
        whole.set_states(found)?;
        Ok(Some(whole))
    }

    /// Gives `optimizer`, which is that of the parts, its part of the moments of `whole`.
    pub(super) fn scatter(&self, whole: &AdamW, optimizer: &mut AdamW) -> Result<()> {
        let states = whole.states();
        let mut found = HashMap::new();
        for part in &self.parts {
            let Some(state) = states.get(&self.params[part.source].id()) else {
                continue;
            };
            let (start, len) = (part.within.start, part.within.len());
            let own = |moment: &Tensor| -> Result<Tensor> {
                Ok(moment
                    .flatten_all()?
                    .narrow(0, start, len)?
                    .force_contiguous()?)
            };
            let state = AdamWState {
                m: own(&state.m)?,
                v: own(&state.v)?,
                step: state.step,
            };
            found.insert(part.param.id(), state);
        }
        optimizer.set_states(found)
    }
}
