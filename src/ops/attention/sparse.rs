//! Attention in which every block of queries sees some ranges of keys only.

use std::ops::Range;

use candle_core::Tensor;
use gemm::Parallelism;
use rayon::prelude::*;

use super::layout::{Heads, Margin, Rows, RowsMut, Shared, Tile, View, readable, with_heads};
use super::masks::{self, KeyMask};
use super::plan::SparsePlan;
use super::rows::{BLIND, Row, add, dot, softmax, softmax_backward, softmax_backward_dropped};
use super::window::Window;
use super::{AttentionMask, AttentionOptions, Sizes};
use crate::Result;
use crate::ops::gemm::accumulate::Accumulate;
use crate::ops::gemm::{Strides, matmul_raw};
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::ops::parallel::for_overwrite;
use crate::ops::{Dropout, dropout, naive};

/// Returns attention in which every block of queries sees the keys of a plan only: time and memory grow with their number.
///
/// `q` is (batch, query, heads · d), `k` (batch, key, heads · d), `v` (batch, key, heads · e); the result is (batch, query,
/// heads · e), and 0 for a query that sees no key. Of the options it takes the heads, the scale, dropout, and masks of keys
/// and queries.
///
/// # Errors
/// If shapes, plan and options do not fit together.
pub fn sparse_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &SparsePlan,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], plan, options, false)
}

/// Like [`sparse_attention`], with the logarithm of every query's sum of exponentials after the features of each head: (batch,
/// query, heads · (e + 1)). With it, results for the same queries and other keys can be joined. It is the lowest finite
/// number where no key is seen.
///
/// # Errors
/// Like [`sparse_attention`].
pub fn sparse_attention_sums(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    plan: &SparsePlan,
    options: &AttentionOptions,
) -> Result<Tensor> {
    attend([q, k, v], plan, options, true)
}

fn attend(
    qkv: [&Tensor; 3],
    plan: &SparsePlan,
    options: &AttentionOptions,
    sums: bool,
) -> Result<Tensor> {
    let sizes = Sizes::new(qkv, options)?;
    super::check(&sizes, options, None)?;
    plan.check(&sizes, options)?;
    let [q, k, v] = qkv;
    let width = sizes.value + usize::from(sums);
    let shape = (sizes.batch, sizes.queries, sizes.heads * width);
    if sizes.is_empty() {
        return Ok(Tensor::zeros(shape, q.dtype(), q.device())?);
    }
    #[cfg(feature = "cuda")]
    if qkv.iter().all(|x| crate::ops::cuda::takes(x, [])) && plan.own.is_none() && !sums {
        return on_gpu(qkv, sizes, plan, options);
    }
    if !qkv.iter().all(|x| storage::is_cpu_f32(x)) {
        return naive::sparse(qkv, plan, options, sums);
    }
    let args = [readable(q)?, readable(k)?, readable(v)?];
    let args = args.each_ref();
    let sparse = Sparse::new(plan, sizes, options, sums)?;
    let (out, rows) = with_inputs(&args, &sizes, |x| sparse.forward(x))?;
    tape::record(
        "sparse_attention",
        &args,
        out,
        shape,
        move |args, out, grad| {
            let mut grads = [0, 1, 2].map(|i| for_overwrite(args[i].elem_count()));
            with_inputs(args, &sizes, |x| {
                storage::with2(out, grad, |out, grad| {
                    let view = sparse.result();
                    let heads = |data| Heads { data, view };
                    sparse.backward(x, (heads(out), heads(grad)), &rows, &mut grads);
                })
            })??;
            let grads = grads.into_iter().zip(args);
            grads
                .map(|(grad, x)| {
                    let grad = storage::tensor(grad, x.shape())?;
                    Ok(x.track_op().then_some(grad))
                })
                .collect()
        },
    )
}

/// By the kernels of a GPU, which visit what the plan says; or by way of all pairs, where they do not take it.
#[cfg(feature = "cuda")]
fn on_gpu(
    qkv: [&Tensor; 3],
    sizes: Sizes,
    plan: &SparsePlan,
    options: &AttentionOptions,
) -> Result<Tensor> {
    let request = super::cuda::Request {
        qkv: &qkv,
        layout: None,
        sizes,
        options,
        terms: None,
        lengths: None,
        plan: Some(plan),
    };
    if let Some(out) = super::cuda::attend(&request)? {
        return Ok(out);
    }
    let (scale, dropout) = (options.scale, options.dropout);
    super::composed::sparse(qkv, plan, options, |qkv, mask| {
        super::cuda::attention(qkv, sizes, mask, scale, dropout)
    })
}

fn with_inputs<T>(args: &[&Tensor], sizes: &Sizes, f: impl FnOnce([Heads; 3]) -> T) -> Result<T> {
    with_heads(args[0], sizes.key, |q| {
        with_heads(args[1], sizes.key, |k| {
            with_heads(args[2], sizes.value, |v| f([q, k, v]))
        })
    })??
}

/// A plan and options, as the loops of the CPU read them.
struct Sparse {
    sizes: Sizes,
    plan: SparsePlan,
    window: Option<Window>,
    mask: Option<KeyMask>,
    queries: Option<Vec<Vec<bool>>>,
    globals: Option<Vec<Vec<bool>>>,
    own: Option<(Vec<Vec<u32>>, f32)>,
    scale: f32,
    dropout: Dropout,
    sums: bool,
}

/// A block of queries in one head of one sequence, and the keys that it sees.
struct Block {
    batch: usize,
    head: usize,
    first: usize,
    queries: usize,
    /// The window's keys first, if there is one.
    runs: Vec<Range<usize>>,
    /// How many of `width` keys are the window's.
    window: usize,
    width: usize,
    /// 0 or -∞ for each key; empty if all are 0.
    bias: Vec<f32>,
}

/// Memory that a thread takes from block to block.
#[derive(Default)]
struct Scratch {
    scores: Tile,
    grads: Tile,
    k: Vec<f32>,
    v: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

impl Sparse {
    fn new(
        plan: &SparsePlan,
        sizes: Sizes,
        options: &AttentionOptions,
        sums: bool,
    ) -> Result<Self> {
        let banded = AttentionOptions {
            band: plan.band,
            ..options.clone()
        };
        let rows = |mask: &Option<Tensor>| mask.as_ref().map(masks::rows).transpose();
        Ok(Self {
            sizes,
            window: Window::new(&banded, &sizes),
            mask: match &options.mask {
                AttentionMask::Keys(mask) => Some(KeyMask::new(mask)?),
                _ => None,
            },
            queries: rows(&options.query_mask)?,
            globals: rows(&plan.globals)?,
            own: match &plan.own {
                Some((numbers, score)) => Some((numbers.to_vec2::<u32>()?, *score)),
                None => None,
            },
            scale: options.scale as f32,
            dropout: options.dropout,
            sums,
            plan: plan.clone(),
        })
    }

    /// Returns where the heads' results lie.
    fn result(&self) -> View {
        let s = &self.sizes;
        View::contiguous(s.queries, s.heads, s.value + usize::from(self.sums))
    }

    fn block(&self, batch: usize, head: usize, index: usize) -> Block {
        let first = index * self.plan.block;
        let queries = self.plan.block.min(self.sizes.queries - first);
        let end = match &self.mask {
            Some(mask) => mask.sequences[batch].end,
            None => self.sizes.keys,
        };
        let mut runs = Vec::new();
        if let Some(window) = &self.window {
            runs.push(window.keys(first, first + queries - 1, end));
        }
        let window = runs.first().map_or(0, Range::len);
        let planned = self.plan.ranges(head, index).iter();
        runs.extend(planned.map(|range| range.start.min(end)..range.end.min(end)));
        if let Some(globals) = &self.globals {
            runs.extend(
                (0..end)
                    .filter(|&key| globals[batch][key])
                    .map(|key| key..key + 1),
            );
        }
        let width = runs.iter().map(Range::len).sum();
        let mask = match &self.mask {
            Some(mask) => mask.sequences[batch].bias.as_deref(),
            None => None,
        };
        let mut bias = Vec::new();
        if mask.is_some() || (window > 0 && self.globals.is_some()) {
            for range in &runs {
                match mask {
                    Some(mask) => bias.extend_from_slice(&mask[range.clone()]),
                    None => bias.resize(bias.len() + range.len(), 0.0),
                }
            }
            // The window leaves those out that everybody sees.
            if let (Some(globals), Some(range)) = (&self.globals, runs.first()) {
                for (bias, key) in bias[..window].iter_mut().zip(range.clone()) {
                    if globals[batch][key] {
                        *bias = f32::NEG_INFINITY;
                    }
                }
            }
        }
        Block {
            batch,
            head,
            first,
            queries,
            runs,
            window,
            width,
            bias,
        }
    }

    /// The block's scores, with -∞ where it must not attend.
    fn scores(&self, block: &Block, q: Rows, k: Rows, tile: &mut Tile) {
        tile.shape(block.queries, block.width, Margin::default());
        // SAFETY: the tile has that shape, and there are as many queries and keys.
        unsafe {
            matmul_raw(
                (block.queries, self.sizes.key, block.width),
                Accumulate::Overwrite,
                self.scale,
                (tile.start(), Strides::rows(tile.pitch())),
                q.operand(),
                k.transposed(),
                Parallelism::None,
            );
        }
        for i in 0..block.queries {
            let query = block.first + i;
            let row = tile.row(i);
            if let Some((numbers, score)) = &self.own {
                let numbers = &numbers[block.batch];
                let keys = block.runs.iter().cloned().flatten();
                for (x, key) in row.iter_mut().zip(keys) {
                    if numbers[key] == numbers[query] {
                        *x = *score;
                    }
                }
            }
            if !block.bias.is_empty() {
                add(row, &block.bias);
            }
            if let (Some(window), Some(run)) = (&self.window, block.runs.first()) {
                let seen = window.keys(query, query, run.end);
                let (lo, hi) = (seen.start.max(run.start), seen.end.max(run.start));
                row[..lo - run.start].fill(f32::NEG_INFINITY);
                row[hi - run.start..block.window].fill(f32::NEG_INFINITY);
            }
        }
    }

    /// Returns whether a query counts.
    fn counts(&self, block: &Block, query: usize) -> bool {
        self.queries
            .as_ref()
            .is_none_or(|queries| queries[block.batch][query])
    }

    /// Calls `f(stream, lower half of the first index, position in the row, count)` for every piece of a row of
    /// probabilities, where there is dropout.
    fn dropped(
        &self,
        block: &Block,
        query: usize,
        mut f: impl FnMut(&dropout::Stream, u32, usize, usize),
    ) {
        let s = &self.sizes;
        let row = ((block.batch * s.heads + block.head) * s.queries + query) as u64;
        let mut done = 0;
        for run in &block.runs {
            let index = row * s.keys as u64 + run.start as u64;
            self.dropout
                .pieces(index, run.len(), |stream, offset, at, n| {
                    f(&stream, offset, done + at, n);
                });
            done += run.len();
        }
    }

    fn forward(&self, [q, k, v]: [Heads; 3]) -> (Vec<f32>, Vec<Row>) {
        let s = self.sizes;
        let view = self.result();
        let mut out = for_overwrite(s.batch * view.batch);
        let mut rows = vec![BLIND; s.batch * s.heads * s.queries];
        let target = Shared::new(&mut out, view);
        let heads = rows.par_chunks_mut(s.queries).enumerate();
        heads.for_each_init(Scratch::default, |scratch, (index, rows)| {
            let (batch, head) = (index / s.heads, index % s.heads);
            for (index, rows) in rows.chunks_mut(self.plan.block).enumerate() {
                let block = self.block(batch, head, index);
                // SAFETY: these rows of this head belong to this task alone.
                let out = unsafe { target.rows(batch, head, block.first) };
                self.forward_block([q, k, v], &block, rows, out, scratch);
            }
        });
        (out, rows)
    }

    fn forward_block(
        &self,
        [q, k, v]: [Heads; 3],
        block: &Block,
        rows: &mut [Row],
        out: RowsMut,
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        let (batch, head) = (block.batch, block.head);
        if block.width == 0 {
            // SAFETY: the rows belong to this task alone.
            unsafe {
                out.zero(block.queries, s.value);
                self.write_sums(rows, out);
            }
            return;
        }
        let keys = gathered(k.rows(batch, head, 0), s.key, block, &mut scratch.k);
        let tile = &mut scratch.scores;
        self.scores(block, q.rows(batch, head, block.first), keys, tile);
        for (i, kept) in rows.iter_mut().enumerate() {
            let (query, row) = (block.first + i, tile.row(i));
            if !self.counts(block, query) {
                row.fill(0.0);
                continue;
            }
            *kept = softmax(row);
            if self.dropout.is_active() {
                self.dropped(block, query, |stream, offset, at, n| {
                    dropout::multiply_in_place(stream, offset, &mut row[at..at + n]);
                });
            }
        }
        let values = gathered(v.rows(batch, head, 0), s.value, block, &mut scratch.v);
        // SAFETY: the tile has that shape; the rows of `out` belong to this task alone.
        unsafe {
            matmul_raw(
                (block.queries, block.width, s.value),
                Accumulate::Overwrite,
                1.0,
                out.target(),
                (tile.start().cast_const(), Strides::rows(tile.pitch())),
                values.operand(),
                Parallelism::None,
            );
            self.write_sums(rows, out);
        }
    }

    /// Writes the logarithms of the sums after the features of the results, if requested.
    ///
    /// # Safety
    /// Nothing else touches these results.
    unsafe fn write_sums(&self, rows: &[Row], out: RowsMut) {
        if !self.sums {
            return;
        }
        for (i, &[top, scale]) in rows.iter().enumerate() {
            let sum = if scale == 0.0 {
                f32::MIN
            } else {
                top - scale.ln()
            };
            // SAFETY: the caller's promise; a result has room for its sum.
            unsafe { *out.skip(i).start.add(self.sizes.value) = sum };
        }
    }

    fn backward(&self, x: [Heads; 3], up: (Heads, Heads), rows: &[Row], grads: &mut [Vec<f32>; 3]) {
        let s = self.sizes;
        let [dq, dk, dv] = grads;
        let to = [
            Shared::new(dq, View::contiguous(s.queries, s.heads, s.key)),
            Shared::new(dk, View::contiguous(s.keys, s.heads, s.key)),
            Shared::new(dv, View::contiguous(s.keys, s.heads, s.value)),
        ];
        let heads = rows.par_chunks(s.queries).enumerate();
        heads.for_each_init(Scratch::default, |scratch, (index, rows)| {
            let (batch, head) = (index / s.heads, index % s.heads);
            // SAFETY: this head of the gradients belongs to this task alone.
            let [dq, dk, dv] = to.map(|to| unsafe { to.rows(batch, head, 0) });
            // SAFETY: as above.
            unsafe {
                dk.zero(s.keys, s.key);
                dv.zero(s.keys, s.value);
            }
            for (index, rows) in rows.chunks(self.plan.block).enumerate() {
                let block = self.block(batch, head, index);
                // SAFETY: the block is one of the queries.
                let dq = unsafe { dq.skip(block.first) };
                self.backward_block(x, up, &block, rows, [dq, dk, dv], scratch);
            }
        });
    }

    fn backward_block(
        &self,
        [q, k, v]: [Heads; 3],
        (out, grad): (Heads, Heads),
        block: &Block,
        rows: &[Row],
        [dq, dk, dv]: [RowsMut; 3],
        scratch: &mut Scratch,
    ) {
        let s = &self.sizes;
        let (batch, head) = (block.batch, block.head);
        if block.width == 0 {
            // SAFETY: the rows belong to this task alone.
            unsafe { dq.zero(block.queries, s.key) };
            return;
        }
        let q = q.rows(batch, head, block.first);
        let keys = gathered(k.rows(batch, head, 0), s.key, block, &mut scratch.k);
        let values = gathered(v.rows(batch, head, 0), s.value, block, &mut scratch.v);
        let (probs, grads) = (&mut scratch.scores, &mut scratch.grads);
        self.scores(block, q, keys, probs);
        grads.shape(block.queries, block.width, Margin::default());
        let of_out = grad.rows(batch, head, block.first);
        // SAFETY: the tile has that shape, and there are as many queries and keys.
        unsafe {
            matmul_raw(
                (block.queries, s.value, block.width),
                Accumulate::Overwrite,
                1.0,
                (grads.start(), Strides::rows(grads.pitch())),
                of_out.operand(),
                values.transposed(),
                Parallelism::None,
            );
        }
        self.softmax_grads((out, grad), block, rows, (&mut *probs, &mut *grads));
        scratch.dk.resize(block.width * s.key, 0.0);
        scratch.dv.resize(block.width * s.value, 0.0);
        // SAFETY: as above; the gradients belong to this task alone.
        unsafe {
            matmul_raw(
                (block.queries, block.width, s.key),
                Accumulate::Overwrite,
                self.scale,
                dq.target(),
                (grads.start().cast_const(), Strides::rows(grads.pitch())),
                keys.operand(),
                Parallelism::None,
            );
            matmul_raw(
                (block.width, block.queries, s.key),
                Accumulate::Overwrite,
                self.scale,
                (scratch.dk.as_mut_ptr(), Strides::rows(s.key)),
                (grads.start().cast_const(), Strides::rows(grads.pitch()).t()),
                q.operand(),
                Parallelism::None,
            );
            matmul_raw(
                (block.width, block.queries, s.value),
                Accumulate::Overwrite,
                1.0,
                (scratch.dv.as_mut_ptr(), Strides::rows(s.value)),
                (probs.start().cast_const(), Strides::rows(probs.pitch()).t()),
                of_out.operand(),
                Parallelism::None,
            );
            scatter(&scratch.dk, s.key, block, dk);
            scatter(&scratch.dv, s.value, block, dv);
        }
    }

    /// Turns scores into the probabilities that were used, and their gradient into that of the scores.
    fn softmax_grads(
        &self,
        (out, grad): (Heads, Heads),
        block: &Block,
        rows: &[Row],
        (probs, grads): (&mut Tile, &mut Tile),
    ) {
        let s = &self.sizes;
        let (batch, head) = (block.batch, block.head);
        for (i, &kept) in rows.iter().enumerate() {
            let query = block.first + i;
            let (probs, row) = (probs.row(i), grads.row(i));
            if kept == BLIND {
                probs.fill(0.0);
                row.fill(0.0);
                continue;
            }
            let at = out.view.at(batch, head, query);
            let (out, up) = (&out.data[at..], &grad.data[at..]);
            let mut inner = dot(&out[..s.value], &up[..s.value]);
            if self.sums {
                inner -= up[s.value];
            }
            if self.dropout.is_active() {
                self.dropped(block, query, |stream, offset, at, n| {
                    let (probs, row) = (&mut probs[at..at + n], &mut row[at..at + n]);
                    softmax_backward_dropped(stream, offset, probs, row, kept, inner);
                });
            } else {
                softmax_backward(probs, row, kept, inner);
            }
            if let Some((numbers, _)) = &self.own {
                let numbers = &numbers[batch];
                let keys = block.runs.iter().cloned().flatten();
                for (x, key) in row.iter_mut().zip(keys) {
                    if numbers[key] == numbers[query] {
                        *x = 0.0;
                    }
                }
            }
        }
    }
}

/// Returns the rows of the keys that a block sees, one after another.
fn gathered(rows: Rows, width: usize, block: &Block, memory: &mut Vec<f32>) -> Rows {
    // One run needs no copy.
    if let [run] = &block.runs[..] {
        // SAFETY: the keys are there.
        return unsafe { rows.skip(run.start) };
    }
    memory.clear();
    for key in block.runs.iter().cloned().flatten() {
        // SAFETY: as above.
        let row = unsafe { std::slice::from_raw_parts(rows.skip(key).start, width) };
        memory.extend_from_slice(row);
    }
    Rows {
        start: memory.as_ptr(),
        stride: width,
    }
}

/// Adds the gradients of the keys that a block sees to those of all keys.
///
/// # Safety
/// Nothing else touches the rows meanwhile.
unsafe fn scatter(grads: &[f32], width: usize, block: &Block, rows: RowsMut) {
    let keys = block.runs.iter().cloned().flatten();
    for (key, grad) in keys.zip(grads.chunks_exact(width)) {
        // SAFETY: the caller's promise; the keys are there.
        let row = unsafe { std::slice::from_raw_parts_mut(rows.skip(key).start, width) };
        add(row, grad);
    }
}
