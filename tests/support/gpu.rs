//! What the tests on a GPU share.
#![allow(dead_code)]

use std::io::Write;
use std::sync::Once;

use candle_core::{DType, Device, Tensor};
use cloze::ops::DeviceExt;

/// The first GPU; `None`, told once, if there is none.
pub fn device() -> Option<Device> {
    static REPORTED: Once = Once::new();
    match Device::gpu(0) {
        Ok(device) => Some(device),
        Err(reason) => {
            // Past the test runner, which keeps what passing tests print.
            REPORTED.call_once(|| {
                let _ = writeln!(std::io::stderr(), "skipped: no CUDA device ({reason})");
            });
            None
        }
    }
}

/// Values in -1..1, the same for the same seed, on the CPU.
pub fn noise(shape: &[usize], seed: u64) -> Tensor {
    let n: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..n).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The elements in f64.
pub fn wide(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The norm of the difference, relative to that of `b`.
pub fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}
