//! Looking up rows of a table.

#[cfg(feature = "cuda")]
pub(super) mod cuda;

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::parallel::{for_overwrite, rows_per_task, zero};
use super::{Param, naive};
use crate::ops::graph::param::GradRows;
use crate::ops::graph::storage;
use crate::ops::graph::tape;
use crate::{Error, Result};

/// Returns the rows of `table` (rows, width) named by `ids` (u32, any shape): the result has the shape of `ids` and
/// `width`. The ids are best on the CPU, where they are read.
///
/// The row `padding_idx` receives no gradient from here, as in PyTorch's `nn.Embedding`; its value is used.
pub fn embedding(ids: &Tensor, table: &Param, padding_idx: Option<u32>) -> Result<Tensor> {
    let lookup = Lookup::new(ids, table, padding_idx)?;
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(&table.value(), [table]) {
        return on_gpu(vec![lookup], ids);
    }
    if !table.is_cpu_f32() {
        return naive::embedding(ids, table, padding_idx);
    }
    fused(vec![lookup], ids)
}

/// Returns the sum of several lookups: of each (`ids`, table, `padding_idx`) as in [`embedding`]. All ids have the
/// shape of the first, or broadcast to it (positions given once for the whole batch), and all tables one width.
///
/// Word, position and token type embeddings in one pass over the result.
pub fn embedding_sum(lookups: &[(&Tensor, &Param, Option<u32>)]) -> Result<Tensor> {
    let Some(&(first, table, _)) = lookups.first() else {
        return Err(Error::argument(
            "lookups",
            "empty: at least one embedding is needed",
        ));
    };
    let width = table.shape().dims2()?.1;
    let mut prepared = Vec::with_capacity(lookups.len());
    for &(ids, table, padding_idx) in lookups {
        if table.shape().dims2()?.1 != width {
            return Err(Error::Weights(format!(
                "{} has rows of {}, other embeddings of {width}: they can't be added",
                table.name(),
                table.shape().dims2()?.1,
            )));
        }
        let ids = ids.broadcast_as(first.shape())?.contiguous()?;
        prepared.push((Lookup::new(&ids, table, padding_idx)?, ids));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(&table.value(), lookups.iter().map(|(_, table, _)| *table)) {
        let lookups = prepared.into_iter().map(|(lookup, _)| lookup).collect();
        return on_gpu(lookups, first);
    }
    if !lookups.iter().all(|(_, table, _)| table.is_cpu_f32()) {
        let mut sum: Option<Tensor> = None;
        for (lookup, ids) in &prepared {
            let rows = naive::embedding(ids, &lookup.table, lookup.padding_idx)?;
            sum = Some(match sum {
                Some(sum) => (sum + rows)?,
                None => rows,
            });
        }
        return sum.ok_or_else(|| Error::argument("lookups", "empty"));
    }
    fused(
        prepared.into_iter().map(|(lookup, _)| lookup).collect(),
        first,
    )
}

/// Returns the rows of `x` (rows, width) named by `rows` (u32), in that order; a row may be named several times. With
/// more dimensions, `x` is read as if all but the last were one: position (i, j) of (batch, seq, width) is row i · seq
/// + j.
pub fn select_rows(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let width = x.dim(D::Minus1)?;
    let count = x.elem_count() / width.max(1);
    let ids = rows.to_dtype(DType::U32)?.to_vec1::<u32>()?;
    if let Some(&bad) = ids.iter().find(|&&id| id as usize >= count) {
        return Err(Error::argument("rows", format!("row {bad} of {count}")));
    }
    #[cfg(feature = "cuda")]
    if crate::ops::cuda::takes(x, []) {
        return cuda::select_rows(x, ids, width);
    }
    if !storage::is_cpu_f32(x) {
        return naive::select_rows(&x.reshape((count, width))?, rows);
    }
    let x = x.contiguous()?;
    let mut out = for_overwrite(ids.len() * width);
    storage::with(&x, |x| gather(x, &ids, width, &mut out, false))?;
    tape::record(
        "select_rows",
        &[&x],
        out,
        (ids.len(), width),
        move |args, _, grad| {
            let mut dx = vec![0f32; args[0].elem_count()];
            storage::with(grad, |grad| {
                Scatter::new(&ids, None).add(grad, width, &mut dx)
            })?;
            Ok(vec![Some(storage::tensor(dx, args[0].shape())?)])
        },
    )
}

struct Lookup {
    ids: Vec<u32>,
    table: Param,
    padding_idx: Option<u32>,
}

impl Lookup {
    fn new(ids: &Tensor, table: &Param, padding_idx: Option<u32>) -> Result<Self> {
        let rows = table.shape().dims2()?.0;
        let ids = ids.flatten_all()?.to_vec1::<u32>()?;
        if let Some(&bad) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::argument(
                "input_ids",
                format!(
                    "id {bad} is outside {} with its {rows} rows: does the tokenizer belong to the model?",
                    table.name()
                ),
            ));
        }
        Ok(Self {
            ids,
            table: table.clone(),
            padding_idx,
        })
    }
}

/// Like [`fused`], on the GPU that has the tables.
#[cfg(feature = "cuda")]
fn on_gpu(lookups: Vec<Lookup>, ids: &Tensor) -> Result<Tensor> {
    let mut shape = ids.dims().to_vec();
    shape.push(lookups[0].table.shape().dims2()?.1);
    let lookups = lookups.into_iter();
    let parts = lookups.map(|lookup| (lookup.ids, lookup.table, lookup.padding_idx));
    cuda::embedding_sum(parts.collect(), shape)
}

/// Returns the sum of `lookups`, in the shape of `ids` and the tables' width.
fn fused(lookups: Vec<Lookup>, ids: &Tensor) -> Result<Tensor> {
    let width = lookups[0].table.shape().dims2()?.1;
    let mut shape = ids.dims().to_vec();
    shape.push(width);
    let mut out = for_overwrite(ids.elem_count() * width);
    for (i, lookup) in lookups.iter().enumerate() {
        storage::with(lookup.table.own_var(), |table| {
            gather(table, &lookup.ids, width, &mut out, i > 0);
        })?;
    }
    let others = lookups[1..].iter().map(|lookup| &lookup.table);
    let anchor = tape::anchor(&lookups[0].table, others);
    let wanted: Vec<bool> = (lookups.iter())
        .map(|lookup| lookup.table.tensor().track_op())
        .collect();
    tape::record("embedding", &[&anchor], out, shape, move |_, _, grad| {
        for (lookup, _) in lookups.iter().zip(&wanted).filter(|(_, wanted)| **wanted) {
            let scatter = Scatter::new(&lookup.ids, lookup.padding_idx);
            storage::with(grad, |grad| {
                if lookup
                    .table
                    .give_rows(scatter.count(), || scatter.rows(grad, width))
                {
                    return Ok(());
                }
                lookup.table.update_grad(|sums, fresh| {
                    if fresh {
                        zero(sums);
                    }
                    scatter.add(grad, width, sums);
                })
            })??;
        }
        Ok(vec![])
    })
}

/// Copies (with `add`, adds) the rows of `table` named by `ids` to `out`.
pub(super) fn gather(table: &[f32], ids: &[u32], width: usize, out: &mut [f32], add: bool) {
    if width == 0 {
        return;
    }
    let rows = rows_per_task(width);
    out.par_chunks_mut(rows * width)
        .zip(ids.par_chunks(rows))
        .for_each(|(out, ids)| {
            for (out, &id) in out.chunks_mut(width).zip(ids) {
                let row = &table[id as usize * width..][..width];
                if add {
                    out.iter_mut().zip(row).for_each(|(out, row)| *out += row);
                } else {
                    out.copy_from_slice(row);
                }
            }
        });
}

/// The positions that each row is read at: what lets rows be summed up independently, each in the order of positions.
pub(super) struct Scatter {
    /// (id, position), sorted.
    order: Vec<(u32, u32)>,
}

impl Scatter {
    pub(super) fn new(ids: &[u32], skipped: Option<u32>) -> Self {
        let mut order: Vec<(u32, u32)> = (ids.iter().zip(0..))
            .filter(|(id, _)| Some(**id) != skipped)
            .map(|(&id, position)| (id, position))
            .collect();
        order.sort_unstable();
        Self { order }
    }

    /// Returns to how many rows something is added.
    fn count(&self) -> usize {
        self.order.chunk_by(|a, b| a.0 == b.0).count()
    }

    /// Returns what [`add`](Self::add) would add to each existing row.
    fn rows(&self, grad: &[f32], width: usize) -> GradRows {
        let mut ids: Vec<u32> = self.order.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        let place = |id: &u32| ids.binary_search(id).unwrap_or(0) as u32;
        let order = self.order.iter().map(|(id, at)| (place(id), *at));
        let within = Self {
            order: order.collect(),
        };
        let mut values = vec![0.0; ids.len() * width];
        within.add(grad, width, &mut values);
        GradRows { ids, values }
    }

    /// Adds row `position` of `grad` to row `id` of `sums`, for all pairs.
    pub(super) fn add(&self, grad: &[f32], width: usize, sums: &mut [f32]) {
        if width == 0 {
            return;
        }
        // Each id's row is handed out once, so that rows can be worked on by different threads; one id may have very
        // many positions (padding, token type 0), so its columns are shared out too.
        let mut tasks = Vec::new();
        let mut rest = sums;
        let mut next = 0;
        for group in self.order.chunk_by(|a, b| a.0 == b.0) {
            let id = group[0].0 as usize;
            let (_, from) = std::mem::take(&mut rest).split_at_mut((id - next) * width);
            let (row, after) = from.split_at_mut(width);
            (rest, next) = (after, id + 1);
            let piece = if group.len() > 64 { 128 } else { width };
            for (i, row) in row.chunks_mut(piece).enumerate() {
                tasks.push((group, i * piece, row));
            }
        }
        tasks
            .into_par_iter()
            .with_min_len(8)
            .for_each(|(group, column, row)| {
                for &(_, position) in group {
                    let grad = &grad[position as usize * width + column..][..row.len()];
                    row.iter_mut()
                        .zip(grad)
                        .for_each(|(sum, grad)| *sum += grad);
                }
            });
    }
}
