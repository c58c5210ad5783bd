//! Products of f32 matrices with operands rounded to TF32, which is a switch for the whole process.

use cloze::ops::{self, Param};

#[path = "support/gpu.rs"]
mod gpu;

use gpu::{device, distance, noise, wide};

#[test]
fn tf32_changes_products_only_when_enabled() {
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
