//! Looking up rows of tables. Where a row is named often, its gradient is added up in pieces whose order the host has
//! decided: no two threads add to one number, and results repeat.

use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{DType, Shape, Tensor};

use crate::Result;
use crate::ops::Param;
use crate::ops::cuda::{
    Fresh, Gpu, Grid, args, on_storage, pointer, size, slice_pointer, suffix, wanted_dtype,
};
use crate::ops::graph::tape;
use candle_core::backend::BackendStorage;

/// Returns the sum of up to three lookups, each of (ids, table, the row that gets no gradient); the ids have been
/// checked.
pub(in crate::ops) fn embedding_sum(
    lookups: Vec<(Vec<u32>, Param, Option<u32>)>,
    shape: impl Into<Shape>,
) -> Result<Tensor> {
    const MOST: usize = 3;
    let shape = shape.into();
    let mut lookups = lookups.into_iter().peekable();
    let mut total: Option<Tensor> = None;
    while lookups.peek().is_some() {
        let some = sum(lookups.by_ref().take(MOST).collect(), &shape)?;
        total = Some(match total {
            Some(total) => crate::ops::arithmetic::cuda::add(&total, &some)?,
            None => some,
        });
    }
    total.ok_or_else(|| crate::Error::argument("lookups", "empty"))
}

fn sum(lookups: Vec<(Vec<u32>, Param, Option<u32>)>, shape: &Shape) -> Result<Tensor> {
    let table = &lookups[0].1;
    let dtype = wanted_dtype().unwrap_or(DType::F32);
    let gpu = Gpu::of(table.device())?;
    let width = table.shape().dims2()?.1;
    let rows = lookups[0].0.len();
    let out = gpu.for_overwrite(shape, dtype)?;
    if shape.elem_count() > 0 {
        let mut arguments = vec![out.ptr().into()];
        let mut alive = Vec::new();
        for (ids, table, _) in &lookups {
            let (ids, table) = (gpu.upload(ids)?, table.value());
            arguments.extend(args![pointer(&table)?, slice_pointer(&ids), size(rows)?]);
            alive.push((ids, table));
        }
        // Tables that are not there have neither ids; their period only must not be zero.
        (lookups.len()..3).for_each(|_| arguments.extend(args![0u64, 0u64, 1u32]));
        arguments.extend(args![size(rows)?, size(width)?]);
        let kernel = format!("embedding_forward_{}", suffix(dtype));
        // SAFETY: each table has `width` columns and a row for each of its ids, of which there are `rows`; out is
        // (rows, width) of that dtype.
        unsafe { gpu.launch("embedding", &kernel, by_rows(rows)?, &arguments)? };
    }
    let anchor = tape::anchor(table, lookups[1..].iter().map(|(_, table, _)| table));
    let wanted: Vec<bool> = (lookups.iter())
        .map(|(_, table, _)| table.tensor().track_op())
        .collect();
    tape::record(
        "embedding",
        &[&anchor],
        out.storage,
        shape,
        move |_, _, grad| {
            for ((ids, table, skipped), _) in
                lookups.iter().zip(&wanted).filter(|(_, wanted)| **wanted)
            {
                let plan = Plan::new(&gpu, ids, *skipped)?;
                table.update_grad_tensor(|sums, fresh| {
                    let start = pointer(sums)?;
                    if fresh {
                        // SAFETY: the gradient is one allocation of f32.
                        unsafe { gpu.zero(start, sums.elem_count() * size_of::<f32>())? };
                    }
                    plan.add(&gpu, grad, width, start)
                })?;
            }
            Ok(vec![])
        },
    )
}

/// Returns a warp for each of `rows` rows.
fn by_rows(rows: usize) -> Result<Grid> {
    Ok(Grid::new((size(rows)?.div_ceil(8), 1, 1), (32, 8, 1)))
}

/// The positions that each row is named at, cut into pieces that are summed up independently.
struct Plan {
    positions: CudaSlice<u32>,
    begins: CudaSlice<u32>,
    targets: CudaSlice<u32>,
    pieces: usize,
    /// Of the rows that have several pieces: how many these are, where each row's begin, and the rows.
    shared: usize,
    runs: Option<(CudaSlice<u32>, CudaSlice<u32>, usize)>,
}

impl Plan {
    fn new(gpu: &Gpu, ids: &[u32], skipped: Option<u32>) -> Result<Self> {
        let host = HostPlan::new(ids, skipped);
        let runs = match host.run_ids.len() {
            0 => None,
            runs => Some((
                gpu.upload(&host.run_begins)?,
                gpu.upload(&host.run_ids)?,
                runs,
            )),
        };
        Ok(Self {
            positions: gpu.upload(&host.positions)?,
            begins: gpu.upload(&host.begins)?,
            targets: gpu.upload(&host.targets)?,
            pieces: host.targets.len(),
            shared: host.run_begins.last().map_or(0, |&end| end as usize),
            runs,
        })
    }

    /// Adds the rows of `grad` (positions, width) to those rows of `sums` (f32) that name them.
    fn add(&self, gpu: &Gpu, grad: &Tensor, width: usize, sums: u64) -> Result<()> {
        if self.pieces == 0 || width == 0 {
            return Ok(());
        }
        let partials = gpu.for_overwrite((self.shared.max(1), width), DType::F32)?;
        let width = size(width)?;
        let arguments = args![
            sums,
            partials.ptr(),
            pointer(grad)?,
            slice_pointer(&self.positions),
            slice_pointer(&self.begins),
            slice_pointer(&self.targets),
            size(self.pieces)?,
            width,
            1u32,
        ];
        let kernel = format!("embedding_backward_{}", suffix(grad.dtype()));
        let grid = Grid::new((size(self.pieces)?, width.div_ceil(512), 1), (128, 1, 1));
        // SAFETY: the plan names rows that the table and the gradient have, and `shared` rows of partials.
        unsafe { gpu.launch("embedding", &kernel, grid, arguments)? };
        if let Some((begins, ids, runs)) = &self.runs {
            let runs = size(*runs)?;
            let arguments = args![
                sums,
                partials.ptr(),
                slice_pointer(begins),
                slice_pointer(ids),
                runs,
                width,
                1u32
            ];
            let grid = Grid::new((runs, width.div_ceil(32), 1), (32, 8, 1));
            // SAFETY: as above.
            unsafe { gpu.launch("embedding", "embedding_backward_combine", grid, arguments)? };
        }
        Ok(())
    }
}

/// [`Plan`] before it is on the GPU.
#[derive(Default)]
struct HostPlan {
    positions: Vec<u32>,
    /// Where each piece begins in `positions`, and the end of the last.
    begins: Vec<u32>,
    /// The row that a piece belongs to, or with the highest bit the place of its sum among the shared ones.
    targets: Vec<u32>,
    run_begins: Vec<u32>,
    run_ids: Vec<u32>,
}

impl HostPlan {
    const PIECE: usize = 64;
    const SHARED: u32 = 1 << 31;

    fn new(ids: &[u32], skipped: Option<u32>) -> Self {
        let mut order: Vec<(u32, u32)> = (ids.iter().zip(0..))
            .filter(|(id, _)| Some(**id) != skipped)
            .map(|(&id, position)| (id, position))
            .collect();
        order.sort_unstable();
        let mut plan = Self::default();
        let mut shared = 0;
        for run in order.chunk_by(|a, b| a.0 == b.0) {
            let id = run[0].0;
            let several = run.len() > Self::PIECE;
            if several {
                plan.run_begins.push(shared);
                plan.run_ids.push(id);
            }
            for piece in run.chunks(Self::PIECE) {
                plan.begins.push(plan.positions.len() as u32);
                plan.positions
                    .extend(piece.iter().map(|(_, position)| position));
                plan.targets
                    .push(if several { Self::SHARED | shared } else { id });
                shared += u32::from(several);
            }
        }
        plan.begins.push(plan.positions.len() as u32);
        plan.run_begins.push(shared);
        plan
    }
}

/// Like [`crate::ops::select_rows`], for `rows` that `x` has (as many as `width` divides it into).
pub(in crate::ops) fn select_rows(x: &Tensor, rows: Vec<u32>, width: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let out = gather(&x, &rows, width)?;
    let shape = (rows.len(), width);
    tape::record(
        "select_rows",
        &[&x],
        out.storage,
        shape,
        move |args, _, grad| {
            let dx = scatter(grad, &rows, width, args[0].shape())?;
            Ok(vec![Some(dx.into_tensor())])
        },
    )
}

/// Like [`crate::ops::scatter_rows()`], for a row of `x` for each of `rows`, all below `into_len`.
pub(in crate::ops) fn scatter_rows(
    x: &Tensor,
    rows: Vec<u32>,
    width: usize,
    into_len: usize,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let shape = Shape::from((into_len, width));
    let out = scatter(&x, &rows, width, &shape)?;
    tape::record(
        "scatter_rows",
        &[&x],
        out.storage,
        shape,
        move |args, _, grad| {
            let dx = gather(grad, &rows, width)?;
            Ok(vec![Some(
                Fresh::new(dx.storage, args[0].shape()).into_tensor(),
            )])
        },
    )
}

/// Returns the rows of the contiguous `x` that are named.
fn gather(x: &Tensor, rows: &[u32], width: usize) -> Result<Fresh> {
    let gpu = Gpu::of(x.device())?;
    let count = rows.len();
    let out = gpu.for_overwrite((count, width), x.dtype())?;
    if count * width > 0 {
        let ids = gpu.upload(rows)?;
        let (from, which) = (pointer(x)?, slice_pointer(&ids));
        let arguments = args![out.ptr(), from, which, size(count)?, size(width)?];
        let kernel = format!("select_rows_{}", suffix(x.dtype()));
        // SAFETY: x has every row that is named, out `count` rows, each of `width` elements of that dtype.
        unsafe { gpu.launch("embedding", &kernel, by_rows(count)?, arguments)? };
    }
    Ok(out)
}

/// Zeros of `shape`, to whose rows named by `rows` the rows of the contiguous `x` were added.
fn scatter(x: &Tensor, rows: &[u32], width: usize, shape: &Shape) -> Result<Fresh> {
    let gpu = Gpu::of(x.device())?;
    let (count, dtype) = (rows.len(), x.dtype());
    if count * width == 0 {
        return gpu.zeros(shape, dtype);
    }
    if has_repeats(rows) {
        let sums = gpu.zeros(shape, DType::F32)?;
        Plan::new(&gpu, rows, None)?.add(&gpu, x, width, sums.ptr())?;
        let sums = sums.into_tensor();
        let out = on_storage(&sums, |storage, layout| storage.to_dtype(layout, dtype))?;
        return Ok(Fresh::new(out, shape));
    }
    let out = gpu.zeros(shape, dtype)?;
    let ids = gpu.upload(rows)?;
    let (from, which) = (pointer(x)?, slice_pointer(&ids));
    let arguments = args![out.ptr(), from, which, size(count)?, size(width)?];
    let kernel = format!("scatter_rows_{}", suffix(dtype));
    // SAFETY: x has `count` rows, out every row that is named, and none is named twice.
    unsafe { gpu.launch("embedding", &kernel, by_rows(count)?, arguments)? };
    Ok(out)
}

fn has_repeats(rows: &[u32]) -> bool {
    let mut sorted = rows.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns what the kernels make of a plan.
    fn sums(plan: &HostPlan, rows: usize, values: &[u64]) -> Vec<u64> {
        let mut sums = vec![0; rows];
        let mut shared = vec![0; plan.run_begins.last().map_or(0, |&n| n as usize)];
        for (i, &target) in plan.targets.iter().enumerate() {
            let piece = plan.begins[i] as usize..plan.begins[i + 1] as usize;
            assert!((1..=HostPlan::PIECE).contains(&piece.len()));
            let sum: u64 = plan.positions[piece]
                .iter()
                .map(|&p| values[p as usize])
                .sum();
            match target & HostPlan::SHARED {
                0 => sums[target as usize] += sum,
                _ => shared[(target ^ HostPlan::SHARED) as usize] += sum,
            }
        }
        for (i, &id) in plan.run_ids.iter().enumerate() {
            let run = plan.run_begins[i] as usize..plan.run_begins[i + 1] as usize;
            assert!(run.len() > 1);
            sums[id as usize] += shared[run].iter().sum::<u64>();
        }
        sums
    }

    #[test]
    fn a_plan_adds_every_position_to_its_row_once() {
        let often: Vec<u32> = (0..1000)
            .map(|i| if i % 3 == 0 { i % 7 } else { 5 })
            .collect();
        for (ids, skipped) in [
            (often.clone(), None),
            (often, Some(5)),
            (vec![2; 64], None),
            (vec![2; 65], None),
            (vec![1, 0, 6], Some(9)),
            (vec![4, 4], Some(4)),
            (vec![], None),
        ] {
            let values: Vec<u64> = (0..ids.len() as u64).map(|i| i * i + 1).collect();
            let mut expected = vec![0; 7];
            for (&id, value) in ids
                .iter()
                .zip(&values)
                .filter(|(id, _)| Some(**id) != skipped)
            {
                expected[id as usize] += value;
            }
            assert_eq!(sums(&HostPlan::new(&ids, skipped), 7, &values), expected);
        }
    }

    #[test]
    fn repeated_ids_are_found_at_any_position() {
        assert!(has_repeats(&[3, 1, 3]) && has_repeats(&[1, 1]));
        assert!(!has_repeats(&[3, 1, 2]) && !has_repeats(&[]));
    }
}
