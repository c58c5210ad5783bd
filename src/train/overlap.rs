//! Exchanges gradients during the backward pass.
//!
//! In the last backward pass of a step a unit is handed to a thread as soon as its gradients are final, in an order
//! that all ranks share. When a gradient is final is known from the previous step, by counting its contributions; where
//! that guess is wrong, late gradients are exchanged afterwards, and the sums are the same.
//!
//! A table that is tied to the decoder is added to at the beginning of the pass, by the decoder, and at its very end, by the
//! lookups. Where the ranks look up few of its rows, it is handed over in between, and these rows follow after the pass.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use candle_core::{Device, Tensor};

use super::exchange::{self, Live, Unit, all_reduce};
use crate::distributed::Group;
use crate::ops::{self, GradRows, GradWatcher, Param};
use crate::{Error, Result};

/// The knowledge gained from earlier steps.
#[derive(Default)]
pub(super) struct Overlap {
    /// The units, in the order in which all ranks exchange them; empty before the first step.
    units: Vec<Unit>,
    /// What is added to each parameter's gradient in a pass; empty as long as this rank has made none.
    additions: HashMap<usize, Additions>,
    /// The numbers of the parameters whose lookups are exchanged as rows.
    split: Vec<usize>,
    agreed: bool,
}

/// How often a gradient is added to in a pass, and when.
#[derive(Clone, Default)]
struct Additions {
    dense: usize,
    lookups: usize,
    /// When the last of either came, by the number of additions to whatever gradient.
    last_dense: usize,
    last: usize,
    /// Whether a lookup came before the last of the others.
    mixed: bool,
    /// How many rows were looked up.
    rows: usize,
}

impl Additions {
    /// Whether lookups come last, and something comes before them.
    fn can_be_split(&self) -> bool {
        self.dense > 0 && self.lookups > 0 && !self.mixed
    }
}

/// Counts the contributions to gradients in a pass.
#[derive(Default)]
struct Learning {
    additions: HashMap<usize, Additions>,
    time: usize,
    /// The table of the lookup that adds next, and to how many rows.
    lookup: Option<(usize, usize)>,
}

impl GradWatcher for RefCell<Learning> {
    fn added(&self, param: &Param) {
        let learning = &mut *self.borrow_mut();
        learning.time += 1;
        let additions = learning.additions.entry(param.id()).or_default();
        additions.last = learning.time;
        if let Some((_, rows)) = learning.lookup.take_if(|(table, _)| *table == param.id()) {
            additions.lookups += 1;
            additions.rows += rows;
        } else {
            additions.dense += 1;
            additions.last_dense = learning.time;
            additions.mixed |= additions.lookups > 0;
        }
    }

    fn wants_rows(&self, table: &Param, count: usize) -> bool {
        self.borrow_mut().lookup = Some((table.id(), count));
        false
    }

    fn take_rows(&self, _: &Param, _: GradRows) {}
}

/// Gradients that have been added up over all ranks.
pub(super) struct Exchanged {
    sums: Vec<(Unit, Vec<Tensor>)>,
    /// This rank's part.
    pub(super) early: Live,
    /// What it found afterwards.
    pub(super) late: Live,
}

impl Overlap {
    /// Returns whether the first step has been taken, and all ranks have the same order.
    pub(super) fn is_agreed(&self) -> bool {
        self.agreed
    }

    /// Returns the numbers of the parameters whose lookups are exchanged as rows.
    #[cfg(test)]
    pub(super) fn split(&self) -> &[usize] {
        &self.split
    }

    /// Runs a backward pass and counts the contributions to each gradient.
    pub(super) fn learn(
        &mut self,
        params: &[Param],
        backward: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let seen = Rc::new(RefCell::new(Learning::default()));
        ops::watch_gradients(Rc::clone(&seen) as Rc<dyn GradWatcher>, backward)?;
        self.additions = std::mem::take(&mut seen.borrow_mut().additions);
        if self.units.is_empty() {
            self.units = exchange::units(params);
            let can_be_split = |unit: &Unit| {
                let alone = unit.alone(params)?;
                let additions = self.additions.get(&alone.id())?;
                additions.can_be_split().then_some(additions.last_dense)
            };
            let time = |unit: &Unit| {
                let times = unit.params.iter();
                let times =
                    times.filter_map(|(number, _)| self.additions.get(&params[*number].id()));
                let last = times.map(|additions| additions.last).max();
                can_be_split(unit).or(last).unwrap_or(usize::MAX)
            };
            let split = self
                .units
                .iter()
                .filter(|unit| can_be_split(unit).is_some());
            self.split = split.map(|unit| unit.params[0].0).collect();
            self.units.sort_by_key(time);
        }
        Ok(())
    }

    /// Copies the order of rank 0 to all ranks, at the end of the first step.
    pub(super) fn agree(&mut self, ranks: &Group, params: &[Param]) -> Result<()> {
        let units = exchange::units(params);
        let place = |unit: &Unit| units.iter().position(|other| other == unit);
        let order: Vec<usize> = match self.units.is_empty() {
            true => (0..units.len()).rev().collect(),
            false => self.units.iter().filter_map(place).collect(),
        };
        let rows = |number: &usize| {
            let additions = self.additions.get(&params[*number].id());
            (*number, additions.map_or(0, |additions| additions.rows))
        };
        let split: Vec<(usize, usize)> = self.split.iter().map(rows).collect();
        let (order, split) = ranks.on_main("the order of gradients", || Ok((order, split)))?;
        // Every rank gets the rows of all; with many of them, the whole table at the end is less.
        let few = |(number, rows): &(usize, usize)| {
            let table = params[*number].elem_count();
            let width = params[*number].shape().dims().last().copied().unwrap_or(1);
            2 * ranks.size() * rows * width <= table
        };
        let (split, whole): (Vec<_>, Vec<_>) = split.into_iter().partition(few);
        self.split = split.into_iter().map(|(number, _)| number).collect();
        self.units = order
            .iter()
            .filter_map(|&unit| units.get(unit).cloned())
            .collect();
        // What is not split after all is final with its lookups, and must not hold the others back.
        let is_whole = |unit: &Unit| whole.iter().any(|(number, _)| unit.params[0].0 == *number);
        self.units.sort_by_key(is_whole);
        self.agreed = true;
        Ok(())
    }

    /// Runs the last backward pass of a step while final gradients are exchanged.
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
            left: self.left(params),
            rows: self.rows(params),
            next: 0,
            early: Live::default(),
            send,
            failure: None,
        }));
        ops::watch_gradients(Rc::clone(&hand) as Rc<dyn GradWatcher>, backward)?;
        let hand = Rc::try_unwrap(hand)
            .map_err(|_| Error::Distributed("a backward pass did not end".to_owned()))?
            .into_inner();
        let (early, rows) = hand.finish()?;
        let ended = Instant::now();
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
        let mut exchanged = Exchanged {
            sums: exchanged,
            late: Live::here(params),
            early,
        };
        for number in &self.split {
            let own = rows.values().find(|(of, _)| of == number);
            exchanged.add_rows(ranks, *number, own.map(|(_, rows)| rows))?;
        }
        ranks.note_wait(ended.elapsed());
        Ok(exchanged)
    }

    /// Returns how often each gradient is added to before it is handed over.
    fn left(&self, params: &[Param]) -> HashMap<usize, usize> {
        let split: Vec<usize> = self.split.iter().map(|&n| params[n].id()).collect();
        let of = |(id, additions): (&usize, &Additions)| {
            let left = match split.contains(id) && additions.can_be_split() {
                true => additions.dense,
                false => additions.dense + additions.lookups,
            };
            (*id, left)
        };
        self.additions.iter().map(of).collect()
    }

    /// Returns the place for the rows of each table that is split, by its id.
    fn rows(&self, params: &[Param]) -> RowsOf {
        let split = self.split.iter();
        let empty = |&number: &usize| (params[number].id(), (number, Rows::default()));
        split.map(empty).collect()
    }
}

/// The numbers of the tables that are split and their rows, by the tables' ids.
type RowsOf = BTreeMap<usize, (usize, Rows)>;

/// What lookups gave to a table after it was handed over.
#[derive(Default)]
struct Rows {
    /// Whether it was handed over.
    wanted: bool,
    rows: GradRows,
}

impl Exchanged {
    /// Adds the rows that the ranks looked up to the table with this number, in the order of the ranks.
    fn add_rows(&mut self, ranks: &Group, number: usize, own: Option<&Rows>) -> Result<()> {
        let mut bytes = Vec::new();
        if let Some(Rows { rows, .. }) = own.filter(|own| !own.rows.ids.is_empty()) {
            self.early.add(number);
            bytes.extend(rows.ids.iter().flat_map(|id| id.to_le_bytes()));
            bytes.extend(rows.values.iter().flat_map(|value| value.to_le_bytes()));
        }
        let all = ranks.exchange(&bytes)?;
        let table = self
            .sums
            .iter()
            .find(|(unit, _)| unit.params[0].0 == number);
        let Some((_, tensors)) = table else {
            return Err(Error::Distributed("a table was not exchanged".to_owned()));
        };
        let width = tensors[0].dims2()?.1;
        ops::with_values(&tensors[0], |sums| {
            for bytes in &all {
                let words = bytes.as_chunks().0;
                let (ids, values) = words.split_at(words.len() / (1 + width));
                for (id, values) in ids.iter().zip(values.chunks(width)) {
                    let row = u32::from_le_bytes(*id) as usize;
                    let sums = &mut sums[row * width..][..width];
                    let values = values.iter().map(|value| f32::from_le_bytes(*value));
                    sums.iter_mut()
                        .zip(values)
                        .for_each(|(sum, value)| *sum += value);
                }
            }
        })?;
        Ok(())
    }

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
    /// How often each gradient will still be added to; empty where nothing is known, and then the pass ends first.
    left: HashMap<usize, usize>,
    /// The rows of each table that is split, by its id.
    rows: RowsOf,
    next: usize,
    early: Live,
    send: Sender<(Unit, Vec<f32>, Option<Tensor>)>,
    failure: Option<Error>,
}

impl GradWatcher for RefCell<Hand> {
    fn added(&self, param: &Param) {
        let hand = &mut *self.borrow_mut();
        if !hand.left.is_empty() {
            hand.noted(param);
        }
    }

    fn wants_rows(&self, table: &Param, _: usize) -> bool {
        let hand = self.borrow();
        let rows = hand.rows.get(&table.id());
        rows.is_some_and(|(_, rows)| rows.wanted)
    }

    fn take_rows(&self, table: &Param, rows: GradRows) {
        if let Some((_, own)) = self.borrow_mut().rows.get_mut(&table.id()) {
            own.rows.ids.extend(rows.ids);
            own.rows.values.extend(rows.values);
        }
    }
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
        if let Some(param) = unit.alone(&self.params)
            && let Some((_, rows)) = self.rows.get_mut(&param.id())
        {
            rows.wanted = true;
        }
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

    /// Sends the rest and returns what this rank had, and the rows that followed their tables.
    fn finish(mut self) -> Result<(Live, RowsOf)> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        while self.next < self.units.len() {
            self.hand_over()?;
        }
        Ok((self.early, self.rows))
    }
}
