//! Attention on the CPU: a tile of scores at a time, for a block of queries and the keys that any of them sees.
//!
//! A task has the queries' heads that share a head of keys and values, and goes through them in order, so that its sums
//! do not depend on the number of threads.

use std::ops::Range;

use gemm::Parallelism;
use rayon::prelude::*;

use super::layout::{Heads, Margin, Rows, RowsMut, Shared, Tile, View};
use super::masks::{Bias, KeyMask};
use super::pointwise::PairWeights;
use super::relative::{Parts, Terms};
use super::rotary::Rotary;
use super::rows::{BLIND, Row, add, dot, softmax, softmax_backward, softmax_backward_dropped};
use super::skew::Place;
use super::window::Window;
use super::{AttentionMask, AttentionOptions, Sizes, masks};
use crate::Result;
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{Strides, matmul_raw};
use crate::ops::parallel::for_overwrite;
use crate::ops::{Dropout, dropout};

/// The settings of the computation, apart from the tensors.
pub(super) struct Attention {
    pub sizes: Sizes,
    keys: Option<KeyMask>,
    pub bias: Option<Bias>,
    queries: Option<Vec<Vec<bool>>>,
    window: Option<Window>,
    rotary: Option<Rotary>,
    scale: f32,
    dropout: Dropout,
    /// `None`: the softmax.
    weights: Option<PairWeights>,
}

/// Queries, keys and values.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub q: Heads<'a>,
    pub k: Heads<'a>,
    pub v: Heads<'a>,
    /// The additive mask's elements, or none.
    pub bias: &'a [f32],
    pub terms: Option<&'a Terms>,
}

/// The inputs of the backward pass.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub out: Heads<'a>,
    pub grad: Heads<'a>,
    pub rows: &'a [Row],
}

/// The gradients that the backward pass writes.
pub(super) struct Targets<'a> {
    pub q: Shared,
    pub k: Shared,
    pub v: Shared,
    /// Of the scores, (batch, heads, query, key), initially zero; empty if not needed.
    pub scores: &'a mut [f32],
    pub terms: Option<&'a Parts>,
}

/// A head of the queries in a sequence.
#[derive(Clone, Copy)]
struct Head {
    batch: usize,
    head: usize,
    /// How many keys are looked at.
    keys: usize,
    /// The factor of products of queries and keys.
    scale: f32,
    /// Whether all keys are masked, which makes their scores all equal.
    uniform: bool,
}

/// A block of queries and the keys that any of them sees.
#[derive(Clone, Copy)]
struct Block {
    first: usize,
    queries: usize,
    lo: usize,
    hi: usize,
}

impl Block {
    fn width(&self) -> usize {
        self.hi - self.lo
    }

    fn place(&self) -> Place {
        Place {
            first_query: self.first,
            queries: self.queries,
            first_key: self.lo,
            keys: self.width(),
        }
    }
}

/// Memory that a thread takes from tile to tile.
#[derive(Default)]
struct Scratch {
    scores: Tile,
    grads: Tile,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    first_scores: Vec<f32>,
}

impl Attention {
    pub(super) fn new(
        sizes: Sizes,
        options: &AttentionOptions,
        weights: Option<PairWeights>,
    ) -> Result<Self> {
        Ok(Self {
            sizes,
            keys: match &options.mask {
                AttentionMask::Keys(keys) => Some(KeyMask::new(keys)?),
                _ => None,
            },
            bias: match &options.mask {
                AttentionMask::Additive(bias) => {
                    Some(Bias::new(&bias.detach().contiguous()?, &sizes)?)
                }
                _ => None,
            },
            queries: options.query_mask.as_ref().map(masks::rows).transpose()?,
            window: Window::new(options, &sizes),
            rotary: options.rotary.clone(),
            scale: options.scale as f32,
            dropout: options.dropout,
            weights,
        })
    }

    /// Queries that are worked on at once: as many as keep their scores in the second-level cache.
    fn block(&self) -> usize {
        let s = &self.sizes;
        let cached = (1usize << 16).div_ceil(s.keys).next_multiple_of(16);
        let block = self.window.and_then(|window| window.block(s.keys));
        let block = block.unwrap_or(cached);
        block.min(s.queries)
    }

    fn head(&self, batch: usize, head: usize) -> Head {
        let (end, count) = match &self.keys {
            Some(keys) => (keys.sequences[batch].end, keys.sequences[batch].count),
            None => (self.sizes.keys, self.sizes.keys),
        };
        let uniform = end == 0 && self.window.is_none() && self.weights.is_none();
        let mean = self.weights.is_some_and(PairWeights::are_means);
        Head {
            batch,
            head,
            keys: if uniform { self.sizes.keys } else { end },
            scale: if mean {
                self.scale / count.max(1) as f32
            } else {
                self.scale
            },
            uniform,
        }
    }

    fn blocks(&self, head: Head) -> impl Iterator<Item = Block> + use<> {
        let (block, queries, window) = (self.block(), self.sizes.queries, self.window);
        (0..queries).step_by(block).map(move |first| {
            let queries = block.min(queries - first);
            let keys = match window {
                Some(window) => window.keys(first, first + queries - 1, head.keys),
                None => 0..head.keys,
            };
            Block {
                first,
                queries,
                lo: keys.start,
                hi: keys.end,
            }
        })
    }

    /// Returns the keys of the block that its query at `first + at` sees, counted from the block's first.
    fn seen(&self, head: Head, block: Block, at: usize) -> Range<usize> {
        let query = block.first + at;
        if let Some(queries) = &self.queries
            && !queries[head.batch][query]
        {
            return 0..0;
        }
        match self.window {
            Some(window) => {
                let keys = window.keys(query, query, head.keys);
                keys.start.max(block.lo) - block.lo..keys.end.max(block.lo) - block.lo
            }
            None => 0..block.width(),
        }
    }

    fn margin(&self, x: &Inputs) -> Margin {
        x.terms.map_or_else(Margin::default, Terms::margin)
    }

    /// Returns the index that dropout knows a query's first probability by.
    fn dropout_index(&self, head: Head, query: usize) -> u64 {
        let rows = (head.batch * self.sizes.heads + head.head) * self.sizes.queries + query;
        rows as u64 * self.sizes.keys as u64
    }

    /// Returns the position of the first query, on the keys' scale.
    fn offset(&self) -> usize {
        self.sizes.keys.saturating_sub(self.sizes.queries)
    }

    /// Rows of `width` as they are, or rotated into `memory`.
    fn turned(
        rotary: Option<&Rotary>,
        rows: Rows,
        (count, width): (usize, usize),
        position: usize,
        memory: &mut Vec<f32>,
    ) -> Rows {
        let Some(rotary) = rotary else {
            return rows;
        };
        memory.resize(count * width, 0.0);
        for (i, to) in memory.chunks_exact_mut(width.max(1)).enumerate() {
            // SAFETY: the row is one of `count` of that width, which the caller says there are.
            let from = unsafe { std::slice::from_raw_parts(rows.skip(i).start, width) };
            to.copy_from_slice(from);
            rotary.turn(to, position + i, false);
        }
        Rows {
            start: memory.as_ptr(),
            stride: width,
        }
    }

    /// Rotates gradients back from `memory` into `rows`, where they have been rotated.
    fn turn_back(
        rotary: Option<&Rotary>,
        memory: &mut [f32],
        width: usize,
        position: usize,
        rows: RowsMut,
    ) {
        let Some(rotary) = rotary else {
            return;
        };
        for (i, from) in memory.chunks_exact_mut(width.max(1)).enumerate() {
            rotary.turn(from, position + i, true);
            // SAFETY: the row is one of those that the memory was made for, and belongs to the task alone.
            unsafe {
                let to = std::slice::from_raw_parts_mut(rows.skip(i).start, width);
                to.copy_from_slice(from);
            }
        }
    }

    fn rotary_of_values(&self) -> Option<&Rotary> {
        self.rotary.as_ref().filter(|rotary| rotary.turns_values())
    }

    /// Forms a block's scores, masks included.
    fn scores(
        &self,
        x: &Inputs,
        head: Head,
        block: Block,
        (q, k): (Rows, Rows),
        scratch: (&mut Tile, &mut Vec<f32>),
    ) {
        let (tile, first_scores) = scratch;
        tile.shape(block.queries, block.width(), self.margin(x));
        let scale = if head.uniform { 0.0 } else { head.scale };
        // SAFETY: the tile has that shape, the block is one of the queries and keys.
        unsafe {
            matmul_raw(
                (block.queries, self.sizes.key, block.width()),
                Accumulate::Overwrite,
                scale,
                (tile.start(), Strides::rows(tile.pitch())),
                q.operand(),
                k.skip(block.lo).transposed(),
                Parallelism::None,
            );
        }
        if let Some(terms) = x.terms
            && !head.uniform
        {
            // SAFETY: as above; the tile has the margin that the terms need.
            unsafe {
                let k = k.skip(block.lo);
                terms.add_scores(head.head, block.place(), (q, k), tile, first_scores);
            }
        }
        self.add_masks(x.bias, head, block, tile);
    }

    fn add_masks(&self, bias: &[f32], head: Head, block: Block, tile: &mut Tile) {
        if let Some(keys) = &self.keys {
            if let Some(bias) = &keys.sequences[head.batch].bias {
                for i in 0..block.queries {
                    add(tile.row(i), &bias[block.lo..block.hi]);
                }
            }
        } else if let Some(Bias {
            strides: [b, h, q, k],
            ..
        }) = self.bias
        {
            for i in 0..block.queries {
                let at = head.batch * b + head.head * h + (block.first + i) * q + block.lo * k;
                let row = tile.row(i);
                match k {
                    1 => add(row, &bias[at..at + row.len()]),
                    _ => row
                        .iter_mut()
                        .enumerate()
                        .for_each(|(j, s)| *s += bias[at + j * k]),
                }
            }
        }
    }

    /// Returns the result, (batch, query, heads · e), and the softmax statistics of each query.
    pub(super) fn forward(&self, x: &Inputs) -> (Vec<f32>, Vec<Row>) {
        let s = self.sizes;
        let group = s.heads / s.kv_heads;
        let mut out = for_overwrite(s.batch * s.queries * s.heads * s.value);
        let mut rows = vec![BLIND; s.batch * s.heads * s.queries];
        let target = Shared::new(&mut out, View::contiguous(s.queries, s.heads, s.value));
        let groups = rows.par_chunks_mut(group * s.queries).enumerate();
        groups.for_each_init(Scratch::default, |scratch, (index, rows)| {
            let (batch, kv) = (index / s.kv_heads, index % s.kv_heads);
            self.forward_group(x, (batch, kv), rows, target, scratch);
        });
        (out, rows)
    }

    fn forward_group(
        &self,
        x: &Inputs,
        (batch, kv): (usize, usize),
        rows: &mut [Row],
        out: Shared,
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        let group = s.heads / s.kv_heads;
        let keys = self.head(batch, kv * group).keys;
        let k = Self::turned(
            self.rotary.as_ref(),
            x.k.rows(batch, kv, 0),
            (keys, s.key),
            0,
            &mut scratch.k,
        );
        let v = Self::turned(
            self.rotary_of_values(),
            x.v.rows(batch, kv, 0),
            (keys, s.value),
            0,
            &mut scratch.v,
        );
        for (i, rows) in rows.chunks_mut(s.queries).enumerate() {
            let head = self.head(batch, kv * group + i);
            for block in self.blocks(head) {
                let rows = &mut rows[block.first..block.first + block.queries];
                // SAFETY: these rows of this head belong to this task alone.
                let out = unsafe { out.rows(batch, head.head, block.first) };
                self.forward_block(x, head, block, (k, v), rows, out, scratch);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn forward_block(
        &self,
        x: &Inputs,
        head: Head,
        block: Block,
        (k, v): (Rows, Rows),
        rows: &mut [Row],
        out: RowsMut,
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        if block.width() == 0 {
            // SAFETY: the rows belong to this task alone.
            unsafe { out.zero(block.queries, s.value) };
            return;
        }
        let q = Self::turned(
            self.rotary.as_ref(),
            x.q.rows(head.batch, head.head, block.first),
            (block.queries, s.key),
            self.offset() + block.first,
            &mut scratch.q,
        );
        let tile = &mut scratch.scores;
        self.scores(x, head, block, (q, k), (tile, &mut scratch.first_scores));
        for (i, kept) in rows.iter_mut().enumerate() {
            let seen = self.seen(head, block, i);
            let row = tile.row(i);
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
            if seen.is_empty() {
                continue;
            }
            let key = block.lo + seen.start;
            let probs = &mut row[seen];
            match self.weights {
                None => *kept = softmax(probs),
                Some(weights) => weights.weigh(probs),
            }
            if self.dropout.is_active() {
                let index = self.dropout_index(head, block.first + i) + key as u64;
                self.dropout
                    .pieces(index, probs.len(), |stream, offset, at, n| {
                        dropout::multiply_in_place(&stream, offset, &mut probs[at..at + n]);
                    });
            }
        }
        // SAFETY: the tile has that shape; the rows of `out` belong to this task alone.
        unsafe {
            matmul_raw(
                (block.queries, block.width(), s.value),
                Accumulate::Overwrite,
                1.0,
                out.target(),
                (tile.start().cast_const(), Strides::rows(tile.pitch())),
                v.skip(block.lo).operand(),
                Parallelism::None,
            );
            if let Some(terms) = x.terms {
                terms.add_values(head.head, block.place(), tile, out);
            }
        }
    }

    /// The gradients.
    pub(super) fn backward(&self, x: &Inputs, up: &Upstream, to: &mut Targets) {
        let s = self.sizes;
        // Tables get their gradients from all sequences: a few tasks for each head, which add up some sequences each.
        let chunks = match to.terms {
            Some(parts) => parts.chunks(),
            None => s.batch,
        };
        let per_chunk = s.batch.div_ceil(chunks);
        let scores = Shared::new(
            to.scores,
            View {
                start: 0,
                batch: s.heads * s.queries * s.keys,
                row: s.keys,
                head: s.queries * s.keys,
            },
        );
        let (to, wants_scores) = (
            Outputs {
                q: to.q,
                k: to.k,
                v: to.v,
                scores,
                parts: to.terms,
            },
            !to.scores.is_empty(),
        );
        let tasks = (0..s.kv_heads * chunks).into_par_iter();
        tasks.for_each_init(Scratch::default, |scratch, index| {
            let (kv, chunk) = (index / chunks, index % chunks);
            let first = (chunk * per_chunk).min(s.batch);
            for batch in first..(first + per_chunk).min(s.batch) {
                let task = Task {
                    batch,
                    kv,
                    chunk,
                    wants_scores,
                };
                self.backward_group(x, up, &to, task, scratch);
            }
        });
    }

    fn backward_group(
        &self,
        x: &Inputs,
        up: &Upstream,
        to: &Outputs,
        task: Task,
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        let Task { batch, kv, .. } = task;
        let group = s.heads / s.kv_heads;
        let keys = self.head(batch, kv * group).keys;
        let (rotary, of_values) = (self.rotary.as_ref(), self.rotary_of_values());
        let k = Self::turned(
            rotary,
            x.k.rows(batch, kv, 0),
            (keys, s.key),
            0,
            &mut scratch.k,
        );
        let v = Self::turned(
            of_values,
            x.v.rows(batch, kv, 0),
            (keys, s.value),
            0,
            &mut scratch.v,
        );
        // SAFETY: this head of keys and values belongs to this task alone.
        let (to_k, to_v) = unsafe { (to.k.rows(batch, kv, 0), to.v.rows(batch, kv, 0)) };
        // Where keys and values were rotated, so are their gradients at first.
        let mut aside =
            |rotary: Option<&Rotary>, width, rows, memory: fn(&mut Scratch) -> &mut Vec<f32>| {
                let Some(_) = rotary else { return rows };
                let memory = memory(scratch);
                memory.resize(keys * width, 0.0);
                RowsMut {
                    start: memory.as_mut_ptr(),
                    stride: width,
                }
            };
        let dk = aside(rotary, s.key, to_k, |scratch| &mut scratch.dk);
        let dv = aside(of_values, s.value, to_v, |scratch| &mut scratch.dv);
        // The first block's products overwrite what is there, if all keys take part in them.
        let mut fresh = self.window.is_none() && keys > 0;
        if !fresh {
            // SAFETY: as above.
            unsafe {
                dk.zero(keys, s.key);
                dv.zero(keys, s.value);
            }
        }
        for i in 0..group {
            let head = self.head(batch, kv * group + i);
            for block in self.blocks(head) {
                let ends = Ends { k, v, dk, dv };
                self.backward_block(x, up, to, (task, head, block), ends, fresh, scratch);
                fresh = false;
            }
        }
        Self::turn_back(rotary, &mut scratch.dk, s.key, 0, to_k);
        Self::turn_back(of_values, &mut scratch.dv, s.value, 0, to_v);
        // Keys that nobody looked at.
        // SAFETY: as above.
        unsafe {
            to_k.skip(keys).zero(s.keys - keys, s.key);
            to_v.skip(keys).zero(s.keys - keys, s.value);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn backward_block(
        &self,
        x: &Inputs,
        up: &Upstream,
        to: &Outputs,
        (task, head, block): (Task, Head, Block),
        ends: Ends,
        fresh: bool,
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        let Head { batch, head: h, .. } = head;
        // SAFETY: these queries of this head belong to this task alone.
        let to_q = unsafe { to.q.rows(batch, h, block.first) };
        if block.width() == 0 {
            // SAFETY: as above.
            unsafe { to_q.zero(block.queries, s.key) };
            return;
        }
        let rotary = self.rotary.as_ref();
        let position = self.offset() + block.first;
        let q = x.q.rows(batch, h, block.first);
        let q = Self::turned(rotary, q, (block.queries, s.key), position, &mut scratch.q);
        let grad = up.grad.rows(batch, h, block.first);
        let (probs, grads) = (&mut scratch.scores, &mut scratch.grads);
        self.scores(
            x,
            head,
            block,
            (q, ends.k),
            (probs, &mut scratch.first_scores),
        );
        grads.shape(block.queries, block.width(), self.margin(x));
        self.prob_grads(x, (h, block), grad, ends.v, grads);
        self.softmax_grads(up, head, block, (probs, grads));
        if task.wants_scores {
            Self::copy_scores(grads, to, head, block);
        }
        let dq = match rotary {
            None => to_q,
            Some(_) => {
                scratch.dq.resize(block.queries * s.key, 0.0);
                RowsMut {
                    start: scratch.dq.as_mut_ptr(),
                    stride: s.key,
                }
            }
        };
        let add = Accumulate::fresh(fresh);
        let scale = head.scale;
        // SAFETY: as above; these rows of the gradients belong to this task alone.
        unsafe {
            let (dk, dv) = (ends.dk.skip(block.lo), ends.dv.skip(block.lo));
            let k = ends.k.skip(block.lo);
            matmul_raw(
                (block.width(), block.queries, s.value),
                add,
                1.0,
                dv.target(),
                (probs.start().cast_const(), Strides::rows(probs.pitch()).t()),
                grad.operand(),
                Parallelism::None,
            );
            matmul_raw(
                (block.queries, block.width(), s.key),
                Accumulate::Overwrite,
                scale,
                dq.target(),
                (grads.start().cast_const(), Strides::rows(grads.pitch())),
                k.operand(),
                Parallelism::None,
            );
            matmul_raw(
                (block.width(), block.queries, s.key),
                add,
                scale,
                dk.target(),
                (grads.start().cast_const(), Strides::rows(grads.pitch()).t()),
                q.operand(),
                Parallelism::None,
            );
            if let Some(terms) = x.terms
                && let Some(parts) = to.parts
            {
                terms.add_value_grads(h, task.chunk, block.place(), probs, grad, parts);
                let task = (h, task.chunk);
                terms.add_score_grads(task, block.place(), grads, (q, k), (dq, dk), parts);
            }
        }
        Self::turn_back(rotary, &mut scratch.dq, s.key, position, to_q);
    }

    /// Sets the tile to the gradients of a block's probabilities.
    fn prob_grads(
        &self,
        x: &Inputs,
        (h, block): (usize, Block),
        grad: Rows,
        v: Rows,
        grads: &mut Tile,
    ) {
        let s = &self.sizes;
        // SAFETY: the tile has that shape, and the block is one of the queries and keys.
        unsafe {
            matmul_raw(
                (block.queries, s.value, block.width()),
                Accumulate::Overwrite,
                1.0,
                (grads.start(), Strides::rows(grads.pitch())),
                grad.operand(),
                v.skip(block.lo).transposed(),
                Parallelism::None,
            );
            if let Some(terms) = x.terms {
                terms.add_value_scores(h, block.place(), grad, grads);
            }
        }
    }

    /// Copies the gradients of a block's scores to where those of all scores are wanted.
    fn copy_scores(grads: &mut Tile, to: &Outputs, head: Head, block: Block) {
        for i in 0..block.queries {
            let row = grads.row(i);
            // SAFETY: this row of the scores belongs to this query of this head alone.
            unsafe {
                let target = to
                    .scores
                    .rows(head.batch, head.head, block.first + i)
                    .start
                    .add(block.lo);
                std::ptr::copy_nonoverlapping(row.as_ptr(), target, row.len());
            }
        }
    }

    /// Turns scores into the probabilities that were used, and their gradient into that of the scores.
    fn softmax_grads(
        &self,
        up: &Upstream,
        head: Head,
        block: Block,
        (probs, grads): (&mut Tile, &mut Tile),
    ) {
        let s = &self.sizes;
        let kept = ((head.batch * s.heads + head.head) * s.queries) + block.first;
        for (i, &kept) in up.rows[kept..kept + block.queries].iter().enumerate() {
            let seen = self.seen(head, block, i);
            let query = block.first + i;
            let (probs, grads) = (probs.row(i), grads.row(i));
            for row in [&mut *probs, &mut *grads] {
                row[..seen.start].fill(0.0);
                row[seen.end..].fill(0.0);
            }
            if seen.is_empty() {
                continue;
            }
            let key = block.lo + seen.start;
            let (probs, grads) = (&mut probs[seen.clone()], &mut grads[seen]);
            if let Some(weights) = self.weights {
                self.weight_grads(weights, (head, query, key), probs, grads);
                continue;
            }
            let features = |x: &Heads| {
                let at = x.view.at(head.batch, head.head, query);
                at..at + s.value
            };
            let inner = dot(
                &up.out.data[features(&up.out)],
                &up.grad.data[features(&up.grad)],
            );
            if self.dropout.is_active() {
                let index = self.dropout_index(head, query) + key as u64;
                self.dropout
                    .pieces(index, probs.len(), |stream, offset, at, n| {
                        let (probs, grads) = (&mut probs[at..at + n], &mut grads[at..at + n]);
                        softmax_backward_dropped(&stream, offset, probs, grads, kept, inner);
                    });
            } else {
                softmax_backward(probs, grads, kept, inner);
            }
        }
    }
}

impl Attention {
    /// Like [`Attention::softmax_grads`], for the row of one query from a key on, without the softmax.
    fn weight_grads(
        &self,
        weights: PairWeights,
        (head, query, key): (Head, usize, usize),
        scores: &mut [f32],
        grads: &mut [f32],
    ) {
        if !self.dropout.is_active() {
            return weights.weigh_backward(None, scores, grads);
        }
        let index = self.dropout_index(head, query) + key as u64;
        let pieces = scores.len();
        self.dropout.pieces(index, pieces, |stream, offset, at, n| {
            let (scores, grads) = (&mut scores[at..at + n], &mut grads[at..at + n]);
            weights.weigh_backward(Some((&stream, offset)), scores, grads);
        });
    }
}

/// [`Targets`], shared by all tasks.
struct Outputs<'a> {
    q: Shared,
    k: Shared,
    v: Shared,
    scores: Shared,
    parts: Option<&'a Parts>,
}

/// The data of a task of the backward pass.
#[derive(Clone, Copy)]
struct Task {
    batch: usize,
    kv: usize,
    chunk: usize,
    wants_scores: bool,
}

/// One head of keys and values, and their gradients.
#[derive(Clone, Copy)]
struct Ends {
    k: Rows,
    v: Rows,
    dk: RowsMut,
    dv: RowsMut,
}
