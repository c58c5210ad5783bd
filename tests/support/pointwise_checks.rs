//! Attention by weights that depend on each pair's own score alone.

use cloze::ops::{AttentionOptions, Band, PairWeights, RelativeIndex, RelativeTerms};

use super::*;

fn inputs(batch: usize, queries: usize, keys: usize) -> [Tensor; 3] {
    [
        tensor(&[batch, queries, 8], 1),
        tensor(&[batch, keys, 8], 2),
        tensor(&[batch, keys, 6], 3),
    ]
}

/// All, padded behind, padded in front with a hole, none.
fn masked() -> AttentionMask {
    let mask = [
        [1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ];
    AttentionMask::Keys(ids(&mask.concat(), &[4, 7]))
}

fn all_options() -> Vec<AttentionOptions> {
    let plain = AttentionOptions {
        scale: 2.5,
        ..AttentionOptions::new(2, 4)
    };
    let dropped = AttentionOptions {
        dropout: Dropout { p: 0.2, key: 6 },
        ..plain.clone()
    };
    vec![
        plain,
        AttentionOptions {
            mask: masked(),
            ..dropped.clone()
        },
        AttentionOptions {
            mask: masked(),
            query_mask: Some(ids(&[1, 0, 1, 1, 1, 1, 0].repeat(4), &[4, 7])),
            band: Some(Band { left: 2, right: 1 }),
            ..dropped.clone()
        },
        AttentionOptions {
            causal: true,
            ..dropped
        },
    ]
}

#[test]
fn megas_functions_have_correct_values_and_gradients() {
    needs_device!();
    for weights in [PairWeights::Laplace, PairWeights::ReluSquared] {
        for options in all_options() {
            check(
                &format!("{weights:?} {options:?}"),
                &inputs(4, 7, 7),
                &[],
                &|given| {
                    let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                    ops::pointwise_attention(q, k, v, weights, None, &options).unwrap()
                },
            );
            let [q, k, v] = inputs(4, 7, 7);
            let with_table = [q, k, v, tensor(&[13, 1], 4)];
            check(
                &format!("{weights:?}, a bias"),
                &with_table,
                &[],
                &|given| {
                    let [q, k, v, table] = [0, 1, 2, 3].map(|i| &given.inputs[i]);
                    let terms = RelativeTerms {
                        bias_table: Some(table.clone()),
                        ..RelativeTerms::new(RelativeIndex::clipped(7, 7, -6, 6))
                    };
                    ops::pointwise_attention(q, k, v, weights, Some(&terms), &options).unwrap()
                },
            );
        }
    }
}

/// Rows of heads of length 1.
fn unit(shape: &[usize], seed: u64) -> Tensor {
    let mut all = noise(shape.iter().product(), seed);
    for head in all.chunks_mut(4) {
        let length = head.iter().map(|x| x * x).sum::<f32>().sqrt();
        head.iter_mut().for_each(|x| *x /= length);
    }
    Tensor::from_vec(all, shape, &here()).unwrap()
}

#[test]
fn yosos_function_has_correct_values_and_its_authors_gradients() {
    needs_device!();
    for power in [1, 8, 9] {
        let weights = PairWeights::AnglePower(power);
        for options in all_options() {
            let options = AttentionOptions {
                scale: 1.0,
                ..options
            };
            let inputs = [
                unit(&[4, 7, 8], 1),
                unit(&[4, 7, 8], 2),
                tensor(&[4, 7, 6], 3),
            ];
            agree(
                &format!("{weights:?} {options:?}"),
                &inputs,
                &[],
                &|given| {
                    let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                    ops::pointwise_attention(q, k, v, weights, None, &options).unwrap()
                },
            );
        }
    }
}

#[test]
fn a_single_pair_follows_the_formulas() {
    needs_device!();
    let one = |x: f32| Tensor::new(&[[[x]]], &here()).unwrap();
    let options = AttentionOptions {
        scale: 1.0,
        ..AttentionOptions::new(1, 1)
    };
    for x in [-0.9f64, -0.2, 0.0, 0.6, 0.97] {
        let given = Given::new(&[one(x as f32), one(1.0), one(1.0)], &[], DType::F32);
        let got = |weights| {
            let outcome = run(&given, &|given| {
                let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                ops::pointwise_attention(q, k, v, weights, None, &options).unwrap()
            });
            // The loss multiplies by a number of its own.
            let probe = wide(&tensor(&[1, 1, 1], 77))[0];
            (
                outcome.value[0],
                outcome.grads[0].as_ref().unwrap()[0] / probe,
            )
        };
        let near = |(a, b): (f64, f64), (c, d): (f64, f64)| {
            assert!(
                (a - c).abs() < 1e-6 && (b - d).abs() < 5e-6,
                "{x}: {a} {b}, {c} {d}"
            );
        };
        let weight = (1.0 - x.acos() / std::f64::consts::PI).powi(9);
        near(got(PairWeights::AnglePower(9)), (weight, 4.5 * weight));
        let positive = x.max(0.0);
        near(
            got(PairWeights::ReluSquared),
            (positive * positive, 2.0 * positive),
        );
        let z = (x - 707_107e-6) / 0.282095;
        let density = (-z * z / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (_, slope) = got(PairWeights::Laplace);
        assert!((slope - density / 0.282095).abs() < 5e-6, "{x}");
    }
}

#[test]
fn products_are_divided_by_the_number_of_unmasked_keys() {
    needs_device!();
    let ones = Tensor::ones((1, 4, 1), DType::F32, &here()).unwrap();
    let weigh = |mask: [u32; 4]| {
        let options = AttentionOptions {
            scale: 6.0,
            mask: AttentionMask::Keys(ids(&mask, &[1, 4])),
            ..AttentionOptions::new(1, 1)
        };
        let weights = PairWeights::ReluSquared;
        let out = ops::pointwise_attention(&ones, &ones, &ones, weights, None, &options);
        values(&out.unwrap())[0]
    };
    assert_eq!(weigh([1, 1, 1, 0]), 3.0 * 4.0);
    assert_eq!(weigh([0, 1, 0, 1]), 2.0 * 9.0);
    assert_eq!(weigh([0, 0, 0, 0]), 0.0);
}
