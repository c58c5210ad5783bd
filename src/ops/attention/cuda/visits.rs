//! A sparse plan as the kernels read it: for every block of queries the tiles of keys that it visits, and the other way round.

use std::ops::Range;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};

use super::call::Call;
use crate::Result;
use crate::ops::attention::window::Window;
use crate::ops::attention::{AttentionOptions, Sizes, SparsePlan, masks};
use crate::ops::cuda::{Gpu, size, slice_pointer};

/// Keys in a tile, and the most queries in a block.
const TILE: usize = 64;

/// Which keys of a tile all queries of a block see, as `head.cuh` declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Visit {
    keys: u64,
    /// The tile of keys; or the block of queries, where tiles list what visits them.
    other: u32,
    /// Whether of these keys each query sees only those in its window.
    banded: u32,
}

// SAFETY: numbers alone, in C's layout.
unsafe impl DeviceRepr for Visit {}

/// Visits of one thing after another, and where those of each begin.
struct Lists {
    starts: Vec<u32>,
    visits: Vec<Visit>,
}

impl Lists {
    fn of(lists: &[Vec<Visit>]) -> Result<Self> {
        let mut starts = vec![0];
        for list in lists {
            starts.push(starts[starts.len() - 1] + size(list.len())?);
        }
        Ok(Self {
            starts,
            visits: lists.concat(),
        })
    }
}

/// What a plan comes to for batches of one size.
struct Plan {
    /// Where blocks of queries begin, and the number of queries.
    blocks: Vec<u32>,
    /// For each sequence (or for all), each head (or for all): each block's visits.
    of_queries: Lists,
    /// The same visits by the tiles of keys.
    of_keys: Lists,
    per_sequence: bool,
    copies: usize,
}

impl Plan {
    fn new(plan: &SparsePlan, sizes: &Sizes) -> Result<Self> {
        let globals = plan.globals.as_ref().map(masks::rows).transpose()?;
        let per_sequence = globals.is_some();
        let sequences = if per_sequence { sizes.batch } else { 1 };
        let (copies, blocks) = (plan.copies(), blocks(plan));
        let tiles = plan.keys.div_ceil(TILE);
        let window = window(plan, sizes);
        let (mut of_queries, mut of_keys) = (Vec::new(), Vec::new());
        for sequence in 0..sequences {
            let globals = globals.as_ref().map(|globals| tiles_of(&globals[sequence]));
            for head in 0..copies {
                let mut by_tile = vec![Vec::new(); tiles];
                for (i, block) in blocks.iter().enumerate() {
                    let ranges = plan.ranges(head, block.start / plan.block);
                    let seen =
                        window.map(|window| window.keys(block.start, block.end - 1, plan.keys));
                    let visits = visits(ranges, seen, globals.as_deref());
                    for visit in &visits {
                        by_tile[visit.other as usize].push(Visit {
                            other: size(i)?,
                            ..*visit
                        });
                    }
                    of_queries.push(visits);
                }
                of_keys.append(&mut by_tile);
            }
        }
        let starts = blocks.iter().map(|block| size(block.start));
        let mut blocks = starts.collect::<Result<Vec<u32>>>()?;
        blocks.push(size(plan.queries)?);
        Ok(Self {
            blocks,
            of_queries: Lists::of(&of_queries)?,
            of_keys: Lists::of(&of_keys)?,
            per_sequence,
            copies,
        })
    }
}

/// Returns a plan's window, which leaves nothing out at the end: masks of keys are the kernels' business.
fn window(plan: &SparsePlan, sizes: &Sizes) -> Option<Window> {
    let banded = AttentionOptions {
        band: plan.band,
        ..AttentionOptions::new(1, 1)
    };
    Window::new(&banded, sizes)
}

/// Returns the plan's blocks of queries, cut into such as the kernels work on at once; without ranges the plan's own do not
/// matter.
fn blocks(plan: &SparsePlan) -> Vec<Range<usize>> {
    let whole = plan.ranges.iter().all(Vec::is_empty);
    let own = if whole { plan.queries } else { plan.block };
    let mut blocks = Vec::new();
    for start in (0..plan.queries).step_by(own) {
        let end = (start + own).min(plan.queries);
        blocks.extend(
            (start..end)
                .step_by(TILE)
                .map(|at| at..(at + TILE).min(end)),
        );
    }
    blocks
}

/// Returns the bits of those that are set, a number for every tile.
fn tiles_of(row: &[bool]) -> Vec<u64> {
    let bits = |tile: &[bool]| {
        let bits = tile.iter().enumerate();
        bits.fold(0, |bits, (at, &set)| bits | u64::from(set) << at)
    };
    row.chunks(TILE).map(bits).collect()
}

/// The tiles that a range of keys touches, and its bits in each.
fn in_tiles(range: &Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let (start, end) = (range.start, range.end);
    (start / TILE..end.div_ceil(TILE)).filter_map(move |tile| {
        let first = start.max(tile * TILE) - tile * TILE;
        let count = end
            .min((tile + 1) * TILE)
            .checked_sub(tile * TILE + first)?;
        (count > 0).then(|| (tile, (u64::MAX >> (64 - count)) << first))
    })
}

/// Returns the visits of a block that sees these ranges, this window but for the global keys, and those.
fn visits(
    ranges: &[Range<usize>],
    window: Option<Range<usize>>,
    globals: Option<&[u64]>,
) -> Vec<Visit> {
    let mut visits: Vec<Visit> = Vec::new();
    let global = |tile: usize| globals.map_or(0, |globals| globals[tile]);
    for (tile, keys) in window.iter().flat_map(in_tiles) {
        visits.push(Visit {
            keys: keys & !global(tile),
            other: tile as u32,
            banded: 1,
        });
    }
    let everywhere = globals.unwrap_or_default().iter().copied().enumerate();
    let others = ranges.iter().flat_map(in_tiles).chain(everywhere);
    for (tile, keys) in others.filter(|(_, keys)| *keys != 0) {
        let other = tile as u32;
        // A key that is there once more needs a visit more.
        let free = |visit: &&mut Visit| {
            visit.banded == 0 && visit.other == other && visit.keys & keys == 0
        };
        match visits.iter_mut().find(free) {
            Some(visit) => visit.keys |= keys,
            None => visits.push(Visit {
                keys,
                other,
                banded: 0,
            }),
        }
    }
    visits.retain(|visit| visit.keys != 0);
    visits
}

/// A plan on the GPU.
pub(super) struct Visits {
    pub blocks: usize,
    per_sequence: bool,
    copies: u32,
    tiles: u32,
    starts: CudaSlice<u32>,
    of_queries: CudaSlice<u32>,
    of_keys: CudaSlice<u32>,
    query_visits: CudaSlice<Visit>,
    key_visits: CudaSlice<Visit>,
}

impl Visits {
    pub(super) fn new(plan: &SparsePlan, sizes: &Sizes, gpu: &Gpu) -> Result<Self> {
        let tiles = size(plan.keys.div_ceil(TILE))?;
        let plan = Plan::new(plan, sizes)?;
        Ok(Self {
            blocks: plan.blocks.len() - 1,
            per_sequence: plan.per_sequence,
            copies: size(plan.copies)?,
            tiles,
            starts: gpu.upload(&plan.blocks)?,
            of_queries: gpu.upload(&plan.of_queries.starts)?,
            of_keys: gpu.upload(&plan.of_keys.starts)?,
            query_visits: gpu.upload(&plan.of_queries.visits)?,
            key_visits: gpu.upload(&plan.of_keys.visits)?,
        })
    }

    /// Returns the call with this plan.
    pub(super) fn in_call(&self, call: Call) -> Result<Call> {
        Ok(Call {
            block_starts: slice_pointer(&self.starts),
            query_visit_starts: slice_pointer(&self.of_queries),
            key_visit_starts: slice_pointer(&self.of_keys),
            query_visits: slice_pointer(&self.query_visits),
            key_visits: slice_pointer(&self.key_visits),
            blocks: size(self.blocks)?,
            tiles: self.tiles,
            plan_copies: self.copies,
            plan_per_sequence: u32::from(self.per_sequence),
            ..call
        })
    }
}
