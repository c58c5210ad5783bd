//! AdamW over all parameters in three launches, with the global norm and clipping on the GPU.

use std::sync::Mutex;

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DeviceRepr};
use candle_core::{DType, Tensor};

use crate::Result;
use crate::ops::cuda::{Fresh, Gpu, Grid, args, lock, pointer, size, slice_pointer};
use crate::ops::{AdamWOptions, AdamWState, Param};

/// Elements that one block works on.
const CHUNK: usize = 32_768;

/// One tensor of the update, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
struct Row {
    value: u64,
    m: u64,
    v: u64,
    grad: u64,
    /// The value in fewer bits, updated in the same pass; 0 for none.
    copy: u64,
    len: u64,
    group: u32,
    /// 0 none, 1 bf16, 2 f16.
    copy_kind: u32,
}
// SAFETY: plain numbers in C's layout.
unsafe impl DeviceRepr for Row {}

/// A part of a tensor.
#[repr(C)]
#[derive(Clone, Copy)]
struct Chunk {
    tensor: u32,
    index: u32,
}
// SAFETY: as above.
unsafe impl DeviceRepr for Chunk {}

/// The properties that tensors have in common.
#[repr(C)]
#[derive(Clone, Copy, PartialEq)]
struct Group {
    lr: f64,
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    /// Updates done so far.
    step: u64,
}
// SAFETY: as above.
unsafe impl DeviceRepr for Group {}

/// How gradients are scaled, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Control {
    grad_scale: f32,
    /// 0 for no clipping.
    max_norm: f32,
    loss_scale: f32,
    /// 1: a step whose norm is not finite is skipped.
    scaling: u32,
    growth_interval: u32,
    good_steps: u32,
    norm: f32,
    factor: f32,
    skipped: u32,
    skipped_total: u32,
    unused: [u32; 2],
}
// SAFETY: as above.
unsafe impl DeviceRepr for Control {}

/// Bytes of the values that the kernels derive from each group.
const FACTORS: usize = 32;

/// A list of tensors on the GPU, with the chunks that they are worked on in.
struct Table {
    device: DeviceId,
    rows: Vec<Row>,
    on_device: CudaSlice<Row>,
    chunks: CudaSlice<Chunk>,
    count: u32,
}

/// The tables of the last steps: the same memory takes part in step after step.
static TABLES: Mutex<Vec<std::sync::Arc<Table>>> = Mutex::new(Vec::new());

fn table(gpu: &Gpu, rows: Vec<Row>) -> Result<std::sync::Arc<Table>> {
    const KEPT: usize = 4;
    let device = gpu.device.id();
    let mut tables = lock(&TABLES);
    if let Some(at) = tables
        .iter()
        .position(|table| table.device == device && table.rows == rows)
    {
        let table = tables.remove(at);
        tables.push(table.clone());
        return Ok(table);
    }
    let mut chunks = Vec::new();
    for (tensor, row) in rows.iter().enumerate() {
        let pieces = (row.len as usize).div_ceil(CHUNK);
        for index in 0..pieces {
            chunks.push(Chunk {
                tensor: size(tensor)?,
                index: size(index)?,
            });
        }
    }
    let table = std::sync::Arc::new(Table {
        device,
        on_device: gpu.upload(&rows)?,
        chunks: gpu.upload(&chunks)?,
        count: size(chunks.len())?,
        rows,
    });
    if tables.len() == KEPT {
        tables.remove(0);
    }
    tables.push(table.clone());
    Ok(table)
}

/// The sums of squares of gradients, on the GPU.
#[derive(Clone)]
pub(in crate::ops) struct Norm {
    /// f64, one per chunk.
    partials: Tensor,
}

impl Norm {
    /// Returns the norm of the gradients of `params`, which are on one GPU and each there once; `None` if there are
    /// none.
    pub(in crate::ops) fn of(params: &[&Param]) -> Result<Option<Self>> {
        let Some(first) = params.first() else {
            return Ok(None);
        };
        let gpu = Gpu::of(first.device())?;
        let mut rows = Vec::new();
        // The gradients must stay until the launch.
        let mut alive = Vec::new();
        for param in params {
            param.with_grad(|grad| {
                let grad = grad.to_dtype(DType::F32)?.contiguous()?;
                if grad.elem_count() > 0 {
                    rows.push(Row {
                        grad: pointer(&grad)?,
                        len: grad.elem_count() as u64,
                        value: 0,
                        m: 0,
                        v: 0,
                        copy: 0,
                        group: 0,
                        copy_kind: 0,
                    });
                    alive.push(grad);
                }
                Ok(())
            })?;
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let table = table(&gpu, rows)?;
        let partials = gpu.for_overwrite(table.count as usize, DType::F64)?;
        let arguments = args![
            partials.ptr(),
            slice_pointer(&table.on_device),
            slice_pointer(&table.chunks),
            table.count,
        ];
        // SAFETY: the table names live gradients and their lengths; there is a sum per chunk.
        unsafe {
            gpu.launch(
                "adamw",
                "grad_norm_chunks",
                per_chunk(table.count),
                arguments,
            )?
        };
        Ok(Some(Self {
            partials: partials.into_tensor(),
        }))
    }

    /// Returns the norm as a number, for which the GPU is waited for.
    pub(in crate::ops) fn value(&self) -> Result<f64> {
        let partials: Vec<f64> = self.partials.to_vec1()?;
        Ok(partials.iter().sum::<f64>().sqrt())
    }
}

fn per_chunk(count: u32) -> Grid {
    Grid::new((count, 1, 1), (256, 1, 1))
}

/// One AdamW step over parameters on one GPU, each with its state and the place of its options, in place. Every
/// gradient is multiplied by `grad_scale`; with `clip`, also clipped to this norm, unless the norm is not finite.
///
/// Parameters without a gradient are skipped; the counters of the others are incremented.
pub(in crate::ops) fn step(
    params: &mut [(&Param, &mut AdamWState, usize)],
    options: &[AdamWOptions],
    grad_scale: f64,
    clip: Option<(&Norm, f64)>,
) -> Result<()> {
    let Some((first, ..)) = params.first() else {
        return Ok(());
    };
    let gpu = Gpu::of(first.device())?;
    let mut groups: Vec<Group> = Vec::new();
    let mut rows = Vec::new();
    let mut alive = Vec::new();
    let mut stepped = Vec::new();
    for (i, (param, state, group)) in params.iter().enumerate() {
        param.with_grad(|grad| {
            let grad = grad.to_dtype(DType::F32)?.contiguous()?;
            let group = place(&mut groups, &options[*group], state.step);
            let copy = param.kept_copy();
            let (copy_pointer, copy_kind) = match &copy {
                Some(copy) => (
                    pointer(copy)?,
                    if copy.dtype() == DType::F16 { 2 } else { 1 },
                ),
                None => (0, 0),
            };
            let value = param.value();
            stepped.push(i);
            if grad.elem_count() > 0 {
                rows.push(Row {
                    value: pointer(&value)?,
                    m: pointer(&state.m)?,
                    v: pointer(&state.v)?,
                    grad: pointer(&grad)?,
                    copy: copy_pointer,
                    len: grad.elem_count() as u64,
                    group,
                    copy_kind,
                });
                alive.push((grad, value, copy));
            }
            Ok(())
        })?;
    }
    if !rows.is_empty() {
        let control = Control {
            grad_scale: grad_scale as f32,
            max_norm: clip.map_or(0.0, |(_, most)| most as f32),
            loss_scale: 1.0,
            scaling: u32::from(clip.is_some()),
            growth_interval: u32::MAX,
            ..Control::default()
        };
        launch(
            &gpu,
            rows,
            &groups,
            control,
            clip.map(|(norm, _)| &norm.partials),
        )?;
    }
    for i in stepped {
        let (param, state, _) = &mut params[i];
        state.step += 1;
        param.value_changed(true);
    }
    Ok(())
}

/// Returns the place among `groups` of these options at that step.
fn place(groups: &mut Vec<Group>, options: &AdamWOptions, step: u64) -> u32 {
    let group = Group {
        lr: options.lr,
        beta1: options.betas.0,
        beta2: options.betas.1,
        eps: options.eps,
        weight_decay: options.weight_decay,
        step,
    };
    let at = groups.iter().position(|known| *known == group);
    let at = at.unwrap_or_else(|| {
        groups.push(group);
        groups.len() - 1
    });
    at as u32
}

fn launch(
    gpu: &Gpu,
    rows: Vec<Row>,
    groups: &[Group],
    control: Control,
    partials: Option<&Tensor>,
) -> Result<()> {
    let table = table(gpu, rows)?;
    let factors: Fresh = gpu.for_overwrite(groups.len() * FACTORS, DType::U8)?;
    let count = size(groups.len())?;
    let groups = gpu.upload(groups)?;
    let control = gpu.upload(&[control])?;
    let (sums, parts) = match partials {
        Some(partials) => (pointer(partials)?, size(partials.elem_count())?),
        None => (0, 0),
    };
    let arguments = args![
        slice_pointer(&control),
        slice_pointer(&groups),
        factors.ptr(),
        count,
        sums,
        parts
    ];
    let grid = Grid::new((1, 1, 1), (256, 1, 1));
    // SAFETY: there is room for the factors of every group, and `parts` sums.
    unsafe { gpu.launch("adamw", "adamw_prepare", grid, arguments)? };
    let arguments = args![
        slice_pointer(&control),
        slice_pointer(&table.on_device),
        slice_pointer(&table.chunks),
        factors.ptr(),
    ];
    // SAFETY: the table names live tensors of one length each, and groups that there are factors of.
    unsafe { gpu.launch("adamw", "adamw_update", per_chunk(table.count), arguments)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_have_the_same_size_as_in_the_kernels() {
        assert_eq!(size_of::<Row>(), 56);
        assert_eq!(size_of::<Chunk>(), 8);
        assert_eq!(size_of::<Group>(), 48);
        assert_eq!(size_of::<Control>(), 48);
    }

    #[test]
    fn equal_options_at_one_step_share_a_group() {
        let (plain, decaying) = (
            AdamWOptions::default(),
            AdamWOptions {
                weight_decay: 0.1,
                ..Default::default()
            },
        );
        let mut groups = Vec::new();
        let at: Vec<u32> = [(&plain, 3), (&decaying, 3), (&plain, 3), (&plain, 4)]
            .into_iter()
            .map(|(options, step)| place(&mut groups, options, step))
            .collect();
        assert_eq!(at, [0, 1, 0, 2]);
    }
}
