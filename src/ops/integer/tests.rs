//! Every function against its definition in integers, and against values of the reference's modules (transformers 4.35).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};

use super::requantize::multiplier;
use super::*;
use crate::ops::{self, Param};

type Tensors = HashMap<String, Tensor>;

fn reference() -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/quantized/integer_functions.safetensors");
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn number(of: &Tensors, name: &str) -> f32 {
    flat(&of[name])[0]
}

fn features(of: &Tensors, name: &str) -> Scale {
    Scale::Features(flat(&of[name]).into())
}

/// Checks that two tensors agree up to `limit` times the largest magnitude.
fn assert_near(found: &Tensor, expected: &Tensor, limit: f32, what: &str) {
    assert_eq!(found.elem_count(), expected.elem_count(), "{what}");
    let (found, expected) = (flat(found), flat(expected));
    let largest = expected.iter().fold(0f32, |most, x| most.max(x.abs()));
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let off = (found - expected).abs();
        assert!(
            off <= limit * largest,
            "{what}, element {i}: {found}, not {expected}"
        );
    }
}

fn assert_same(found: &Tensor, expected: &Tensor, what: &str) {
    assert_near(found, expected, 0.0, what);
}

/// Returns the gradient of `input` where that of `f(input)` is `grad`.
fn gradient(
    input: &Tensor,
    params: &[&Param],
    grad: &Tensor,
    f: impl FnOnce(&Tensor) -> Tensor,
) -> Tensor {
    let x = Param::new("x", input).unwrap();
    let y = f(&ops::param_rows(&x).unwrap());
    let sum = ops::sum_all(&ops::mul(&y, &grad.reshape(y.shape()).unwrap()).unwrap()).unwrap();
    let mut all = vec![x.clone()];
    all.extend(params.iter().map(|&param| param.clone()));
    ops::backward(&sum, &all).unwrap();
    x.grad().unwrap()
}

#[test]
fn levels_are_the_nearest_integers_halves_to_even() {
    let values = [0.5, 1.5, 2.5, -0.5, -1.5, 0.49, 300.0, -300.0, 0.0];
    let expected = [0.0, 2.0, 2.0, 0.0, -2.0, 0.0, 126.0, -127.0, 0.0];
    assert_eq!(levels(&values, |_| 1.0, 8), expected);
    assert_eq!(levels(&[6.9, -9.0], |_| 1.0, 4), [6.0, -7.0]);
    assert_eq!(levels(&[3e9], |_| 1.0, 32), [2147483648.0]);
    assert_eq!(step(-2.54, 1.0, 8), 2.54 / 127.0);
    assert_eq!(step(0.0, 0.0, 16), 1e-8 / 32767.0);
}

/// A multiplier and its shift are the ratio to 31 bits, for every size and sign.
#[test]
fn multipliers_are_ratios_in_31_bits() {
    let mut ratio = 3.7e-12f64;
    while ratio < 1e12 {
        for ratio in [ratio, -ratio] {
            let (factor, shift) = multiplier(ratio);
            assert_eq!(factor, factor.round());
            assert!((2f64.powi(30)..=2f64.powi(31)).contains(&factor.abs()));
            assert_eq!(shift.log2().fract(), 0.0);
            assert!(
                (factor / shift / ratio - 1.0).abs() <= 0.5 / 2f64.powi(30),
                "{ratio}"
            );
        }
        ratio *= 1.37;
    }
    assert_eq!(multiplier(1.0), (2f64.powi(30), 2f64.powi(30)));
    assert_eq!(multiplier(0.0), (0.0, 1.0));
}

#[test]
fn requantized_integers_equal_those_of_transformers() {
    let of = reference();
    let (x, scale) = (&of["requantize.x"], features(&of, "requantize.scale"));
    let added = &of["requantize.added"];
    let of_added = Scale::All(number(&of, "requantize.added_step"));
    for bits in [8, 22] {
        let name = |what: &str| format!("requantize{bits}.{what}");
        let step = number(&of, &name("step"));
        let alone = requantize(x, &scale, None, step, bits).unwrap();
        assert_same(&alone, &of[&name("alone")], "alone");
        let sum = requantize(x, &scale, Some((added, &of_added)), step, bits).unwrap();
        assert_same(&sum, &of[&name("sum")], "sum");
        // By the definition, in integers of 128 bits: both sides multiplied, shifted and rounded by themselves.
        let most = (1i128 << (bits - 1)) - 1;
        let side = |value: f32, of: f32| {
            let integer = (value / of).round_ties_even() as i128;
            let (factor, shift) = multiplier(f64::from(of) / f64::from(step));
            let shift = shift.log2() as u32;
            let product = integer * factor as i128;
            let down = product >> shift;
            let rest = product - (down << shift);
            let half = 1i128 << (shift - 1);
            down + i128::from(rest > half || rest == half && down % 2 != 0)
        };
        let (values, others) = (flat(x), flat(added));
        for (i, found) in flat(&sum).into_iter().enumerate() {
            let integer = side(values[i], scale.of(i)) + side(others[i], of_added.of(i));
            let integer = integer.clamp(-most - 1, most);
            assert_eq!(found, integer as f32 * step, "{bits} bits, element {i}");
        }
    }
    // The gradient is that of the one side.
    let grad = Tensor::ones(x.shape(), candle_core::DType::F32, &Device::Cpu).unwrap();
    let other = Param::new("added", added).unwrap();
    let dx = gradient(x, &[&other], &grad, |x| {
        let added = ops::param_rows(&other).unwrap();
        requantize(x, &scale, Some((&added, &of_added)), 0.05, 8).unwrap()
    });
    assert_same(&dx, &grad, "dx");
    let none = grad.zeros_like().unwrap();
    assert_same(&other.grad().unwrap(), &none, "of the other side");
    assert!(requantize(x, &Scale::Features([1.0].into()), None, 1.0, 8).is_err());
    assert!(
        requantize(
            x,
            &scale,
            Some((&grad.flatten_all().unwrap(), &of_added)),
            1.0,
            8
        )
        .is_err()
    );
}

#[test]
fn linear_maps_and_gradients_equal_those_of_transformers() {
    let of = reference();
    let weight = Param::new("weight", &of["linear.weight"]).unwrap();
    let bias = Param::new("bias", &of["linear.bias"]).unwrap();
    let step = number(&of, "linear.step");
    let integers = integer_weights(&weight, &bias, step).unwrap();
    assert_same(&integers.weight, &of["linear.weight_integer"], "weights");
    assert_eq!(integers.bias, flat(&of["linear.bias_integer"]));
    assert_eq!(integers.steps, flat(&of["linear.steps"]));
    let mut scale = None;
    let dx = gradient(
        &of["linear.x"],
        &[&weight, &bias],
        &of["linear.grad"],
        |x| {
            let (y, of_y) = linear(x, step, &weight, &bias).unwrap();
            // The input divided by its step is whole but for the last bit.
            assert_near(&y, &of["linear.y"], 1e-6, "result");
            scale = Some(of_y);
            y
        },
    );
    assert_eq!(scale, Some(features(&of, "linear.scale")));
    assert_near(&dx, &of["linear.dx"], 1e-6, "dx");
    assert_near(&weight.grad().unwrap(), &of["linear.dw"], 1e-6, "dw");
    assert_near(&bias.grad().unwrap(), &of["linear.db"], 1e-6, "db");
    // By the definition: sums of products of integers.
    let (weights, scale) = (flat(&integers.weight), features(&of, "linear.scale"));
    let x: Vec<i64> = flat(&of["linear.x"])
        .iter()
        .map(|x| (x / step).round() as i64)
        .collect();
    for (i, y) in flat(&of["linear.y"]).into_iter().enumerate() {
        let (row, out) = (i / 4, i % 4);
        let products = (0..6).map(|k| x[row * 6 + k] * weights[out * 6 + k] as i64);
        let sum = products.sum::<i64>() + integers.bias[out] as i64;
        // An input that is an integer times a step in f32 is that integer again but for rounding.
        assert!((y / scale.of(i) - sum as f32).abs() <= 1e-5 * (1.0 + sum.abs() as f32));
    }
}

#[test]
#[allow(
    clippy::approx_constant,
    reason = "the reference's number, in its few digits"
)]
fn gelu_and_its_gradient_equal_those_of_transformers() {
    let of = reference();
    let (x, scale) = (&of["gelu.x"], features(&of, "gelu.scale"));
    let dx = gradient(x, &[], &of["gelu.grad"], |x| {
        let (y, of_y) = gelu(x, &scale).unwrap();
        assert_same(&y, &of["gelu.y"], "result");
        assert_eq!(of_y, features(&of, "gelu.y_scale"));
        y
    });
    assert_near(&dx, &of["gelu.dx"], 1e-6, "dx");
    // It is near to GELU, as far as its polynomial is (0.018 at most, Kim et al. 2021) and the steps of erf allow, of which
    // one is lost to each of two roundings; where the input's steps are large, those are hopelessly so.
    for (i, (found, x)) in flat(&of["gelu.y"]).into_iter().zip(flat(x)).enumerate() {
        if scale.of(i) > 2e-3 {
            continue;
        }
        let input = Tensor::new(&[x], &Device::Cpu).unwrap();
        let exact = flat(&ops::activate(&input, ops::Activation::Gelu).unwrap())[0];
        let coarse = 0.02 + 0.012 * x.abs();
        assert!((found - exact).abs() < coarse, "{x}: {found}, not {exact}");
    }
    // By the definition, in integers.
    let s = f64::from(2e-3f32);
    let (b, c) = (
        (-1.769 * 1.4142 / s).floor(),
        (1.4142f64.powi(2) / s / s / -0.2888).floor(),
    );
    for integer in -900i64..900 {
        let x = Tensor::new(&[(integer as f32) * 2e-3], &Device::Cpu).unwrap();
        let (y, of_y) = gelu(&x, &Scale::All(2e-3)).unwrap();
        let cut = (integer.abs() as f64).min(-b);
        let erf = (integer.signum() as f64 * ((cut + b).powi(2) + c) / f64::from(1 << 14)).floor();
        let of_erf = (s / 1.4142).powi(2) * -0.2888 * f64::from(1 << 14);
        let expected = integer as f64 * (erf + (1.0 / of_erf).floor());
        let found = f64::from(flat(&y)[0] / of_y.of(0));
        assert!(
            (found - expected).abs() <= 1e-4 + 2e-6 * expected.abs(),
            "{integer}: {found}, not {expected}"
        );
    }
}

/// Where nothing is rounded away, the gradients that pass through the rounding are those of finite differences over many
/// steps.
#[test]
fn gradients_are_finite_differences_over_many_steps() {
    // Of GELU.
    let scale = Scale::All(1e-4);
    let at = |x: f32| {
        let x = Tensor::new(&[(x / 1e-4).round() * 1e-4], &Device::Cpu).unwrap();
        flat(&gelu(&x, &scale).unwrap().0)[0]
    };
    for x in [-2.9f32, -1.3, -0.4, 0.2, 0.9, 2.2, 4.0] {
        let input = Tensor::new(&[x], &Device::Cpu).unwrap();
        let one = Tensor::new(&[1f32], &Device::Cpu).unwrap();
        let slope = flat(&gradient(&input, &[], &one, |x| gelu(x, &scale).unwrap().0))[0];
        let difference = (at(x + 0.05) - at(x - 0.05)) / 0.1;
        assert!(
            (slope - difference).abs() < 0.02,
            "{x}: {slope}, not {difference}"
        );
    }
    // Of normalization to probabilities, whose steps are 2^-16 here.
    let counts = [9000f32, 4000.0, 17000.0, 100.0];
    let grad = [0.3f32, -0.7, 1.1, 0.2];
    let value = |counts: [f32; 4]| {
        let x = Tensor::new(&[counts], &Device::Cpu).unwrap();
        let y = flat(&normalize(&x, 1.0, 16).unwrap().0);
        y.iter().zip(grad).map(|(y, g)| y * g).sum::<f32>()
    };
    let x = Tensor::new(&[counts], &Device::Cpu).unwrap();
    let g = Tensor::new(&[grad], &Device::Cpu).unwrap();
    let dx = flat(&gradient(&x, &[], &g, |x| normalize(x, 1.0, 16).unwrap().0));
    for i in 0..4 {
        let moved = |by: f32| {
            let mut counts = counts;
            counts[i] += by;
            value(counts)
        };
        let difference = (moved(100.0) - moved(-100.0)) / 200.0;
        assert!(
            (dx[i] - difference).abs() < 1e-6,
            "{i}: {} {difference}",
            dx[i]
        );
    }
    // Of layer normalization, with 16 bits: with more, the reciprocal of the deviation has few.
    let values = [1.3f32, -0.4, 0.2, 2.4, -1.9];
    let grad = [0.5f32, -1.0, 0.3, 0.8, -0.2];
    let weight = Param::new(
        "w",
        &Tensor::new(&[1f32, 0.5, -2.0, 1.5, 0.7], &Device::Cpu).unwrap(),
    );
    let bias = Param::new(
        "b",
        &Tensor::new(&[0.1f32, 0.0, -0.3, 0.2, 0.5], &Device::Cpu).unwrap(),
    );
    let (weight, bias) = (weight.unwrap(), bias.unwrap());
    let step = 1e-4;
    let norm = |x: &Tensor| layer_norm(x, step, &weight, &bias, 0.0).unwrap().0;
    let value = |values: [f32; 5]| {
        let y = flat(&norm(&Tensor::new(&[values], &Device::Cpu).unwrap()));
        y.iter().zip(grad).map(|(y, g)| y * g).sum::<f32>()
    };
    let x = Tensor::new(&[values], &Device::Cpu).unwrap();
    let g = Tensor::new(&[grad], &Device::Cpu).unwrap();
    let dx = flat(&gradient(&x, &[&weight, &bias], &g, norm));
    for i in 0..5 {
        let moved = |by: f32| {
            let mut values = values;
            values[i] += by;
            value(values)
        };
        let difference = (moved(0.02) - moved(-0.02)) / 0.04;
        assert!(
            (dx[i] - difference).abs() < 5e-3,
            "{i}: {} {difference}",
            dx[i]
        );
    }
}

#[test]
fn softmax_and_its_gradient_equal_those_of_transformers() {
    let of = reference();
    for name in ["softmax", "masked"] {
        let part = |what: &str| &of[&format!("{name}.{what}")];
        let (x, step) = (part("x"), flat(part("step"))[0]);
        let seen = [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0];
        let mask = (name == "masked").then_some(MaskedKeys {
            seen: &seen,
            batch: 2,
        });
        let act = super::step(flat(part("x_min"))[0], flat(part("x_max"))[0], 16);
        let dx = gradient(x, &[], part("grad"), |x| {
            let (powers, of_powers) = exponentials(x, step, mask).unwrap();
            assert_same(&powers, part("powers"), "powers");
            assert_eq!(of_powers, flat(part("powers_step"))[0]);
            let powers = requantize(&powers, &Scale::All(of_powers), None, act, 16).unwrap();
            let (y, of_y) = normalize(&powers, act, 8).unwrap();
            assert_same(&y, part("y"), name);
            assert_eq!(of_y, 1.0 / 256.0);
            y
        });
        assert_near(&dx, part("dx"), 2e-6, "dx");
        if let Some(mask) = mask {
            let y = flat(part("y"));
            for (i, &seen) in mask.seen.iter().enumerate().skip(7) {
                let rows = (0..6).map(|row| y[(6 + row) * 7 + i - 7]);
                assert!(seen == 1 || rows.clone().all(|p| p == 0.0), "{i}");
            }
        }
    }
    let scores = Tensor::zeros((2, 1, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
    let mask = MaskedKeys {
        seen: &[1, 1, 1],
        batch: 2,
    };
    assert!(exponentials(&scores, 0.1, Some(mask)).is_err());
    // A row that sees nothing stays finite.
    let mask = MaskedKeys {
        seen: &[0, 0, 0, 1, 0, 1],
        batch: 2,
    };
    let (powers, _) = exponentials(&scores, 0.1, Some(mask)).unwrap();
    assert!(flat(&powers).iter().all(|power| power.is_finite()));
}

/// By the definition: e to the power of each difference, as far as the polynomial is near to it, with 30 halvings at most.
#[test]
fn exponentials_are_close_to_those_of_floats() {
    let step = 1e-4;
    let scores: Vec<f32> = (0..400)
        .map(|i| (i as f32 * 0.03 / step).round() * step)
        .collect();
    let x = Tensor::from_vec(scores.clone(), (1, 1, 1, 400), &Device::Cpu).unwrap();
    let (powers, of_powers) = exponentials(&x, step, None).unwrap();
    for (power, score) in flat(&powers).into_iter().zip(&scores) {
        let exact = f64::from(score - scores[399]).exp();
        let found = f64::from(power) * f64::from(of_powers);
        assert!(
            (found - exact).abs() < 4e-3 * exact + 1e-8,
            "{score}: {found}, not {exact}"
        );
    }
}

/// By the definition, in integers: 2^32 divided by the sum, and the products shifted.
#[test]
fn probabilities_are_ratios_of_integers() {
    let counts: Vec<u64> = (0..60).map(|i| (i * i * 7919 + 13) % 32768).collect();
    let x: Vec<f32> = counts.iter().map(|&count| count as f32 * 0.5).collect();
    let x = Tensor::from_vec(x, (6, 10), &Device::Cpu).unwrap();
    let (y, _) = normalize(&x, 0.5, 8).unwrap();
    let y = flat(&y);
    for (row, counts) in counts.chunks(10).enumerate() {
        let factor = (1u64 << 32) / counts.iter().sum::<u64>();
        for (i, count) in counts.iter().enumerate() {
            let (found, expected) = (y[row * 10 + i] * 256.0, (count * factor) >> 24);
            // f32 has 24 bits of the 32: a quotient that is almost whole may fall on the other side.
            assert!(
                (found - expected as f32).abs() <= 1.0,
                "{found}, not {expected}"
            );
        }
    }
    let nothing = Tensor::zeros((1, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
    assert_eq!(flat(&normalize(&nothing, 0.5, 8).unwrap().0), [0.0; 4]);
}

#[test]
fn layer_norm_and_its_gradients_equal_those_of_transformers() {
    let of = reference();
    for name in ["norm", "overflow"] {
        let part = |what: &str| &of[&format!("{name}.{what}")];
        let weight = Param::new("weight", part("weight")).unwrap();
        let bias = Param::new("bias", part("bias")).unwrap();
        let (x, step) = (part("x"), flat(part("step"))[0]);
        let shift = layer_norm_shift(x, step, 0.0).unwrap();
        assert_eq!(shift, flat(part("shift"))[0]);
        assert_eq!(layer_norm_shift(x, step, shift).unwrap(), shift);
        assert_eq!(layer_norm_shift(x, step, 9.0).unwrap(), 9.0);
        let dx = gradient(x, &[&weight, &bias], part("grad"), |x| {
            let (y, scale) = layer_norm(x, step, &weight, &bias, shift).unwrap();
            // Sums of many squares have more bits than f32: a root may fall on the other side of an integer.
            assert_near(&y, part("y"), if name == "norm" { 0.0 } else { 1e-5 }, name);
            assert_eq!(scale, Scale::Features(flat(part("scale")).into()));
            y
        });
        assert_near(&dx, part("dx"), 1e-5, "dx");
        assert_near(&weight.grad().unwrap(), part("dw"), 1e-6, "dw");
        assert!(bias.grad().is_none());
        // In 64-bit integers.
        let (x, y) = (flat(x), flat(part("y")));
        for row in 0..8 {
            let integers: Vec<i64> = x[row * 6..][..6]
                .iter()
                .map(|x| (x / step).round() as i64)
                .collect();
            let mean = (integers.iter().sum::<i64>() as f64 / 6.0).round_ties_even() as i64;
            let differences: Vec<i64> = integers.iter().map(|x| x - mean).collect();
            let squares: i64 = differences.iter().map(|d| (d >> shift as i64).pow(2)).sum();
            let deviation = (squares as f64).sqrt().floor() as i64 * (1 << shift as i64);
            let factor = (1i64 << 31) / deviation;
            for (i, d) in differences.iter().enumerate() {
                let weight = flat(&weight.value())[i];
                let root = 6f32.sqrt() / 2f32.powi(30);
                let shifted = (flat(&bias.value())[i] / weight / root).floor();
                let expected = ((d * factor) >> 1) as f32 + shifted;
                let found = y[row * 6 + i] / (root * weight);
                assert!(
                    (found - expected).abs()
                        <= 2e-6 * (1.0 + (d * factor).abs() as f32 + shifted.abs()),
                    "{found} {expected}"
                );
            }
        }
    }
    // Where all is the same there is no deviation to divide by.
    let weight = Param::new(
        "w",
        &Tensor::ones(3, candle_core::DType::F32, &Device::Cpu).unwrap(),
    );
    let weight = weight.unwrap();
    let flat_row = Tensor::new(&[[0.5f32, 0.5, 0.5]], &Device::Cpu).unwrap();
    let (y, _) = layer_norm(&flat_row, 0.1, &weight, &weight, 0.0).unwrap();
    assert!(flat(&y).iter().all(|y| (y - 1.0).abs() < 1e-6), "{y}");
}

#[test]
fn other_dtypes_are_computed_in_f32() {
    let x = Tensor::new(&[[0.5f64, -0.25]], &Device::Cpu).unwrap();
    let (found, _) = gelu(&x, &Scale::All(0.01)).unwrap();
    let narrow = x.to_dtype(candle_core::DType::F32).unwrap();
    let (expected, _) = gelu(&narrow, &Scale::All(0.01)).unwrap();
    assert_same(&found, &expected, "gelu");
}
