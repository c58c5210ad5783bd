//! The CUDA kernels against the CPU's operations, without a GPU: every kernel is compiled by the system's C++ compiler
//! against an emulator of the device (tests/cuda_host) and run there, thread by thread.
//!
//! This checks arithmetic, indices, barriers and memory accesses of the very source that nvcc compiles. It says nothing
//! about speed or about nvcc's code. The library's side that launches the kernels is checked by `tests/cuda_host/run`, which
//! runs the tests on a GPU on this emulator.

use candle_core::{Device, Tensor, Var};
use cloze::ops::{self, Activation, AdamWOptions, AdamWState, AttentionMask, Dropout, Param};
use half::{bf16, f16};

#[path = "../cuda_host/device.rs"]
mod device;

mod activation;
mod adamw;
mod arithmetic;
mod attention;
mod convolution;
mod cross_entropy;
mod dropout;
mod embedding;
mod emulator;
mod gated;
mod layer_norm;
mod pointers;
mod reduce;
mod rms_norm;
mod softmax;

use device::*;

/// Numbers in [-1, 1) that depend on the seed only.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    // The first numbers after a small seed are small.
    (0..n + 8).map(|_| next()).skip(8).collect()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

fn var(values: &[f32], shape: &[usize]) -> Var {
    Var::from_tensor(&tensor(values, shape)).unwrap()
}

fn param(values: &[f32], shape: &[usize]) -> Param {
    Param::new("p", &tensor(values, shape)).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn grad_of(param: &Param) -> Vec<f32> {
    values(&param.grad().unwrap())
}

/// The gradients of `inputs` when that of `y` is `dy`; those of parameters are left in them.
fn gradients(y: &Tensor, dy: &[f32], inputs: &[&Var]) -> Vec<Vec<f32>> {
    let loss = (y * tensor(dy, y.dims())).unwrap().sum_all().unwrap();
    let store = loss.backward().unwrap();
    (inputs.iter())
        .map(|x| {
            store
                .get(x)
                .map_or_else(|| vec![0.0; x.elem_count()], values)
        })
        .collect()
}

/// Whether `got` is `want` but for one rounding to `T` and a relative error of `tolerance`, measured against each number
/// and the size of all of them, or 0.1: what cancels to nearly nothing keeps the errors of its terms.
#[track_caller]
fn close<T: Element>(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let finite = want.iter().filter(|x| x.is_finite());
    let squares: f64 = finite.map(|&x| f64::from(x).powi(2)).sum();
    let size = (squares / want.len().max(1) as f64).sqrt() as f32 + 0.1;
    // Half the distance of the smallest numbers of f16.
    let smallest = if T::NAME == "f16" { 3e-8 } else { 1e-37 };
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let allowed = T::ROUNDING * 1.01 * want.abs() + tolerance * (want.abs() + size) + smallest;
        let right = got == want || (got - want).abs() <= allowed || got.is_nan() && want.is_nan();
        assert!(
            right,
            "{what} [{i}] is {got}, not {want}, {} {size}",
            T::NAME
        );
    }
}

const NO_DROPOUT: Dropout = Dropout::NONE;
const DROPOUTS: [Dropout; 3] = [
    Dropout::NONE,
    Dropout { p: 0.1, key: 77 },
    Dropout { p: 1.0, key: 3 },
];

/// Threads and rows of a block whose rows of `width` belong to one warp or to the whole block.
fn row_block(width: usize, most: usize) -> [usize; 2] {
    if width <= 1024 { [32, most] } else { [256, 1] }
}

/// The grid and the number of partial rows of the kernels that sum columns.
fn column_grid<T: Element>(rows: usize, width: usize) -> ([usize; 3], usize) {
    let parts = rows.div_ceil(64).clamp(1, 64);
    (
        [width.div_ceil(32 * (16 / size_of::<T>())), parts, 1],
        parts,
    )
}

/// Adds up partial rows into the gradients of two parameters, or of one.
fn reduce(
    into: [Option<&Buffer<f32>>; 2],
    partials: &Buffer<f32>,
    parts: usize,
    width: usize,
    add: [u32; 2],
) {
    let stride = if into[1].is_some() { 2 * width } else { width };
    let [a, b] = into.map(|x| x.map_or(NULL, Buffer::at));
    launch(
        "reduce_parts",
        [stride.div_ceil(32), 1, 1],
        [32, 8],
        0,
        (
            a,
            b,
            partials.at(),
            parts as u32,
            width as u32,
            stride as u32,
            add[0],
            add[1],
        ),
    );
}
