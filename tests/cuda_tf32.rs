//! Products of f32 matrices with operands rounded to TF32, which is a switch for the whole process.

use std::io::Write;
use std::sync::Once;

use candle_core::{DType, Device, Tensor};
use cloze::ops::{self, DeviceExt, Param};

/// The first GPU; `None`, told once, if there is none.
fn device() -> Option<Device> {
    static TOLD: Once = Once::new();
    match Device::gpu(0) {
        Ok(device) => Some(device),
        Err(reason) => {
            // Past the test runner, which keeps what passing tests print.
            TOLD.call_once(|| {
                let _ = writeln!(std::io::stderr(), "skipped: no CUDA device ({reason})");
            });
            None
        }
    }
}

fn noise(shape: &[usize], seed: u64) -> Tensor {
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

fn wide(tensor: &Tensor) -> Vec<f64> {
    let tensor = tensor.to_device(&Device::Cpu).unwrap();
    let tensor = tensor.to_dtype(DType::F64).unwrap();
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn tf32_changes_products_within_its_noise_and_only_when_it_is_on() {
    let Some(device) = device() else { return };
    let weight = Param::new("w", &noise(&[256, 512], 1).to_device(&device).unwrap()).unwrap();
    let x = noise(&[256, 512], 2).to_device(&device).unwrap();
    let product = || wide(&ops::linear(&x, &weight, None).unwrap());
    assert!(!ops::tf32());
    let exact = product();
    ops::set_tf32(true);
    let rounded = product();
    ops::set_tf32(false);
    assert_eq!(exact, product());
    assert!(distance(&rounded, &exact) < 2e-3);
}
