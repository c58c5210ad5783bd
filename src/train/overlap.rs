//! Exchange of gradients while the backward pass goes on.
//!
//! In the last backward pass of a step a unit is handed to a thread as soon as its gradients are final, in an order that
//! all ranks share. When a gradient is final is known from the pass of the step before, by counting how often it was added
//! to; where that guess is wrong, what comes late is exchanged after it, and the sums are the same.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use candle_core::{Device, Tensor};

use super::exchange::{self, Live, Unit, all_reduce};
use crate::distributed::Group;
use crate::ops::{self, Param};
use crate::{Error, Result};

/// What the steps so far have taught.
#[derive(Default)]
pub(super) struct Overlap {
    /// The units, in the order in which all ranks exchange them; empty before the first step.
    units: Vec<Unit>,
    /// How often each parameter's gradient is added to in a pass; empty as long as this rank has made none.
    counts: HashMap<usize, usize>,
    agreed: bool,
}

/// Gradients that have been added up over all ranks.
pub(super) struct Exchanged {
    sums: Vec<(Unit, Vec<Tensor>)>,
    /// What this rank gave.
    pub(super) early: Live,
    /// What it found afterwards.
    pub(super) late: Live,
}

impl Overlap {
    /// Returns whether the first step has been taken, and all ranks have the same order.
    pub(super) fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// Does a backward pass and counts what it adds to.
    pub(super) fn learn(
        &mut self,
        params: &[Param],
        backward: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let seen = Rc::new(RefCell::new((HashMap::new(), HashMap::new(), 0)));
        let noted = Rc::clone(&seen);
        let watcher = move |param: &Param| {
            let (counts, last, time) = &mut *noted.borrow_mut();
            *counts.entry(param.id()).or_insert(0) += 1;
            *time += 1;
            last.insert(param.id(), *time);
        };
        ops::watch_gradients(Rc::new(watcher), backward)?;
        let (counts, last, _) = seen.take();
        if self.units.is_empty() {
            self.units = exchange::units(params);
            let time = |unit: &Unit| {
                let times = unit
                    .params
                    .iter()
                    .map(|(number, _)| last.get(&params[*number].id()));
                times.flatten().copied().max().unwrap_or(usize::MAX)
            };
            self.units.sort_by_key(time);
        }
        self.counts = counts;
        Ok(())
    }

    /// Makes the order of rank 0 that of all ranks, at the end of the first step.
    pub(super) fn agree(&mut self, ranks: &Group, params: &[Param]) -> Result<()> {
        let units = exchange::units(params);
        let place = |unit: &Unit| units.iter().position(|other| other == unit);
        let order: Vec<usize> = match self.units.is_empty() {
            true => (0..units.len()).rev().collect(),
            false => self.units.iter().filter_map(place).collect(),
        };
        let order = ranks.on_main("the order of gradients", || Ok(order))?;
        self.units = order
            .iter()
            .filter_map(|&unit| units.get(unit).cloned())
            .collect();
        self.agreed = true;
        Ok(())
    }

    /// Does the last backward pass of a step while what is final is exchanged.
    pub(super) fn exchange(
        &mut self,
        ranks: &Arc<Group>,
        params: &[Param],
        backward: impl FnOnce() -> Result<()>,
    ) -> Result<Exchanged> {
        let (send, receive) = channel::<(Unit, Vec<f32>, Option<Tensor>)>();
        let group = Arc::clone(ranks);
        let thread = std::thread::Builder::new()
            .name("cloze-exchange".to_owned())
            .spawn(move || -> Result<_> {
                let mut sums = Vec::new();
                for (unit, mut packed, whole) in receive {
                    match &whole {
                        Some(tensor) => {
                            ops::with_values(tensor, |values| all_reduce(&group, values))??;
                        }
                        None => all_reduce(&group, &mut packed)?,
                    }
                    sums.push((unit, packed, whole));
                }
                Ok(sums)
            })
            .map_err(|error| Error::io("start", "a thread for exchanges", error))?;
        let hand = Rc::new(RefCell::new(Hand {
            units: self.units.clone(),
            params: params.to_vec(),
            left: self.counts.clone(),
            next: 0,
            early: Live::default(),
            send,
            failure: None,
        }));
        let watched = Rc::clone(&hand);
        let known = !self.counts.is_empty();
        let watcher = move |param: &Param| {
            if known {
                watched.borrow_mut().noted(param);
            }
        };
        ops::watch_gradients(Rc::new(watcher), backward)?;
        let hand = Rc::try_unwrap(hand)
            .map_err(|_| Error::Distributed("a backward pass did not end".to_owned()))?
            .into_inner();
        let early = hand.finish()?;
        let done = thread
            .join()
            .map_err(|_| Error::Distributed("the thread for exchanges panicked".to_owned()))?;
        let mut exchanged = Vec::new();
        for (unit, packed, whole) in done? {
            let of = |(number, range): &(usize, std::ops::Range<usize>)| -> Result<Tensor> {
                let values = packed[range.clone()].to_vec();
                Ok(Tensor::from_vec(
                    values,
                    params[*number].shape(),
                    &Device::Cpu,
                )?)
            };
            let tensors = match whole {
                Some(tensor) => vec![tensor],
                None => unit.params.iter().map(of).collect::<Result<_>>()?,
            };
            exchanged.push((unit, tensors));
        }
        Ok(Exchanged {
            sums: exchanged,
            late: Live::here(params),
            early,
        })
    }
}

impl Exchanged {
    /// Gives the parameters that are live on any rank their sums; what came late on some is added up first.
    pub(super) fn finish(
        self,
        ranks: &Group,
        params: &[Param],
        live: &Live,
        late: &Live,
    ) -> Result<()> {
        for (unit, _) in self.sums.iter().filter(|(unit, _)| unit.is_live(late)) {
            unit.with_gradients(params, late, |values| all_reduce(ranks, values))?;
        }
        for (unit, sums) in self.sums {
            for ((number, _), sum) in unit.params.iter().zip(sums) {
                if live.has(*number) {
                    let param = &params[*number];
                    param.put_grad(sum.to_device(param.device())?)?;
                }
            }
        }
        Ok(())
    }
}

/// Hands units over, in their order, as their gradients become final.
struct Hand {
    units: Vec<Unit>,
    params: Vec<Param>,
    /// How often each gradient will still be added to.
    left: HashMap<usize, usize>,
    next: usize,
    early: Live,
    send: Sender<(Unit, Vec<f32>, Option<Tensor>)>,
    failure: Option<Error>,
}

impl Hand {
    fn noted(&mut self, param: &Param) {
        if let Some(left) = self.left.get_mut(&param.id()) {
            *left = left.saturating_sub(1);
        }
        while let Some(unit) = self.units.get(self.next) {
            let is_final = |(number, _): &(usize, _)| {
                self.left
                    .get(&self.params[*number].id())
                    .is_none_or(|&left| left == 0)
            };
            if !unit.params.iter().all(is_final) {
                return;
            }
            if let Err(error) = self.hand_over() {
                self.failure.get_or_insert(error);
                return;
            }
        }
    }

    fn hand_over(&mut self) -> Result<()> {
        let unit = self.units[self.next].clone();
        self.next += 1;
        let (mut packed, mut whole) = (Vec::new(), None);
        let alone = unit.alone(&self.params).filter(|param| param.is_cpu_f32());
        if let Some(param) = alone {
            let grad = param.take_grad()?;
            if grad.is_some() {
                self.early.add(unit.params[0].0);
            }
            whole = match grad {
                Some(grad) => Some(grad),
                None => Some(Tensor::zeros(param.shape(), param.dtype(), &Device::Cpu)?),
            };
        } else {
            packed = vec![0.0; unit.len];
            for (number, range) in &unit.params {
                if let Some(grad) = self.params[*number].take_grad()? {
                    let values: Vec<f32> = grad.flatten_all()?.to_vec1()?;
                    packed[range.clone()].copy_from_slice(&values);
                    self.early.add(*number);
                }
            }
        }
        self.send
            .send((unit, packed, whole))
            .map_err(|_| Error::Distributed("the thread for exchanges ended early".to_owned()))
    }

    /// Hands the rest over and returns what this rank had.
    fn finish(mut self) -> Result<Live> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        while self.next < self.units.len() {
            self.hand_over()?;
        }
        Ok(self.early)
    }
}
