//! Sparse attention: windows with global keys, lists of blocks, chunks.

// A list of one range is meant as such.
#![allow(clippy::single_range_in_vec_init)]

use cloze::ops::{AttentionOptions, Band, SparsePlan};

use super::*;

const NONE: Dropout = Dropout::NONE;
const SOME: Dropout = Dropout { p: 0.2, key: 6 };

/// Checks a plan for two heads with and without dropout, and with and without sums.
fn case(batch: usize, plan: &SparsePlan, [queries, keys]: [usize; 2], options: &AttentionOptions) {
    let inputs = [
        tensor(&[batch, queries, 8], 1),
        tensor(&[batch, keys, 8], 2),
        tensor(&[batch, keys, 6], 3),
    ];
    for dropout in [NONE, SOME] {
        // The sums of queries that see nothing are other numbers in f64.
        let with_sums = [false, true];
        for &sums in &with_sums[..if options.query_mask.is_some() { 1 } else { 2 }] {
            let options = AttentionOptions {
                dropout,
                scale: 0.9,
                ..options.clone()
            };
            let attend = match sums {
                false => ops::sparse_attention,
                true => ops::sparse_attention_sums,
            };
            let name = format!("{plan:?} {options:?}, sums {sums}");
            check(&name, &inputs, &[], &|given| {
                let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                attend(q, k, v, plan, &options).unwrap()
            });
        }
    }
}

fn two_heads() -> AttentionOptions {
    AttentionOptions::new(2, 4)
}

/// Everything, padding behind, padding in front with a hole.
fn masked(n: usize) -> AttentionOptions {
    let all = (0..n).map(|_| 1);
    let behind = (0..n).map(|i| u32::from(i < n / 2 + 1));
    let front = (0..n).map(|i| u32::from(i > n / 3 && i != n / 2));
    let mask: Vec<u32> = all.chain(behind).chain(front).collect();
    AttentionOptions {
        mask: AttentionMask::Keys(ids(&mask, &[3, n])),
        ..two_heads()
    }
}

fn mask_of(options: &AttentionOptions) -> Tensor {
    match &options.mask {
        AttentionMask::Keys(mask) => mask.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn windows_with_global_keys_have_correct_values_and_gradients() {
    needs_device!();
    let n = 80;
    let plan = SparsePlan::band(n, Band { left: 5, right: 3 });
    case(3, &plan, [n, n], &two_heads());
    let globals: Vec<u32> = (0..3 * n as u32)
        .map(|i| u32::from(i % 80 == 0 || i % 37 == 5))
        .collect();
    let plan = plan.with_globals(&ids(&globals, &[3, n]));
    case(3, &plan, [n, n], &two_heads());
    // Every query sees a global key, none of which is masked.
    let mask = mask_of(&masked(n));
    let open: Vec<u32> = (wide(&mask).into_iter())
        .zip(&globals)
        .map(|(m, &global)| m as u32 | global)
        .collect();
    let options = AttentionOptions {
        mask: AttentionMask::Keys(ids(&open, &[3, n])),
        query_mask: Some(mask),
        ..two_heads()
    };
    case(3, &plan, [n, n], &options);
}

#[test]
fn repeated_blocks_count_repeatedly() {
    needs_device!();
    // In the manner of BigBird, each head with blocks of its own, the last of them short.
    let head = |random: [usize; 3]| {
        vec![
            vec![0..22],
            vec![0..4, 4..8, 8..12, random[0]..random[0] + 4, 20..22],
            vec![0..4, 4..8, 8..12, 12..16, 0..4, 0..4],
            vec![8..20, random[1]..random[1] + 4],
            vec![random[2]..random[2] + 4, 12..22],
            vec![0..22],
        ]
    };
    let ranges = vec![head([12, 0, 4]), head([4, 4, 8])];
    let plan = SparsePlan::per_head(22, 22, 4, ranges).unwrap();
    case(2, &plan, [22, 22], &two_heads());
    let options = AttentionOptions {
        query_mask: Some(mask_of(&masked(22))),
        ..masked(22)
    };
    case(3, &plan, [22, 22], &options);
    // A key that counts twice is as good as another that is the same.
    let plan = |ranges| SparsePlan::new(3, 4, 3, vec![ranges]).unwrap();
    let x = tensor(&[1, 4, 8], 1);
    let q = x.narrow(1, 0, 3).unwrap();
    let twice = x
        .index_select(&Tensor::new(&[0u32, 1, 1, 1], &here()).unwrap(), 1)
        .unwrap();
    let attend = |k: &Tensor, ranges| {
        wide(&ops::sparse_attention(&q, k, k, &plan(ranges), &two_heads()).unwrap())
    };
    let repeated = attend(&x, vec![0..2, 1..2, 1..2]);
    assert!(distance(&repeated, &attend(&twice, std::iter::once(0..4).collect())) < 1e-6);
    assert!(distance(&repeated, &attend(&x, std::iter::once(0..2).collect())) > 1e-3);
}

#[test]
fn blocks_without_keys_give_zero() {
    needs_device!();
    let plan = SparsePlan::new(4, 5, 2, vec![vec![], vec![1..3]]).unwrap();
    let inputs = [
        tensor(&[2, 4, 8], 1),
        tensor(&[2, 5, 8], 2),
        tensor(&[2, 5, 6], 3),
    ];
    check("empty", &inputs, &[], &|given| {
        let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
        ops::sparse_attention(q, k, v, &plan, &two_heads()).unwrap()
    });
    let [q, k, v] = inputs.each_ref();
    let out = ops::sparse_attention_sums(q, k, v, &plan, &two_heads()).unwrap();
    let out = values(&out);
    assert_eq!(out[..3], [0.0; 3]);
    assert_eq!(out[3], f32::MIN);
    assert!(
        out[16..32]
            .iter()
            .all(|x| x.is_finite() && *x != 0.0 && *x > f32::MIN)
    );
}

#[test]
fn chunks_wrap_around_and_attend_to_themselves_last() {
    needs_device!();
    let plan = SparsePlan::chunks(12, 4, 1, 0);
    assert_eq!(plan.ranges(0, 0), [8..12, 0..4]);
    assert_eq!(plan.ranges(1, 2), [4..8, 8..12]);
    let both = SparsePlan::chunks(12, 4, 1, 1);
    assert_eq!(both.ranges(0, 2), [4..8, 8..12, 0..4]);
    assert_eq!(SparsePlan::chunks(3, 4, 1, 0).ranges(0, 0), [0..3, 0..3]);
    case(2, &plan, [12, 12], &two_heads());
    case(2, &both, [12, 12], &two_heads());
    // Some tokens stand at several places.
    let numbers = ids(&[3, 0, 5, 1, 2, 4, 0, 3, 5, 2, 1, 4].repeat(2), &[2, 12]);
    case(
        2,
        &plan.with_own_score(&numbers, -1e5),
        [12, 12],
        &two_heads(),
    );
    // Who sees nothing but itself gets its own value.
    let alone = SparsePlan::chunks(3, 1, 0, 0).with_own_score(&ids(&[7, 8, 9], &[1, 3]), -1e5);
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&[1, 3, 8], seed));
    let out = ops::sparse_attention(&q, &k, &v, &alone, &two_heads()).unwrap();
    assert_eq!(values(&out), values(&v));
}

#[test]
fn a_plan_with_all_keys_equals_full_attention() {
    needs_device!();
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&[2, 9, 8], seed));
    let options = AttentionOptions {
        dropout: SOME,
        ..two_heads()
    };
    let all: Vec<Vec<std::ops::Range<usize>>> = vec![vec![0..9]; 3];
    let plan = SparsePlan::new(9, 9, 4, all).unwrap();
    let sparse = ops::sparse_attention(&q, &k, &v, &plan, &options).unwrap();
    let full = ops::attention_with(&q, &k, &v, &options).unwrap();
    assert!(distance(&wide(&sparse), &wide(&full)) < 1e-6);
    let banded = AttentionOptions {
        band: Some(Band::both(2)),
        ..options.clone()
    };
    let plan = SparsePlan::band(9, Band::both(2));
    let sparse = ops::sparse_attention(&q, &k, &v, &plan, &options).unwrap();
    let full = ops::attention_with(&q, &k, &v, &banded).unwrap();
    assert!(distance(&wide(&sparse), &wide(&full)) < 1e-6);
}

#[test]
fn partial_results_combine_through_their_sums() {
    needs_device!();
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&[1, 6, 4], seed));
    let options = AttentionOptions::new(1, 4);
    let attend = |ranges: Vec<std::ops::Range<usize>>| {
        let plan = SparsePlan::new(6, 6, 6, vec![ranges]).unwrap();
        values(&ops::sparse_attention_sums(&q, &k, &v, &plan, &options).unwrap())
    };
    let [a, b, all] = [vec![0..4], vec![4..6], vec![0..6]].map(attend);
    for ((a, b), all) in a.chunks(5).zip(b.chunks(5)).zip(all.chunks(5)) {
        let (wa, wb) = (a[4].exp(), b[4].exp());
        assert!((all[4] - (wa + wb).ln()).abs() < 1e-5);
        for i in 0..4 {
            let joined = (wa * a[i] + wb * b[i]) / (wa + wb);
            assert!((joined - all[i]).abs() < 1e-5);
        }
    }
}

#[test]
fn a_window_costs_time_proportional_to_its_width() {
    needs_device!();
    if here().is_cuda() {
        return;
    }
    // All pairs would be 4 · 10^10.
    let n = 200_000;
    let zeros = Tensor::zeros((1, n, 1), DType::F32, &here()).unwrap();
    let v: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let v = Tensor::from_vec(v, (1, n, 1), &here()).unwrap();
    let mut globals = vec![0u32; n];
    globals[5] = 1;
    let plan = SparsePlan::band(n, Band { left: 1, right: 0 });
    let plan = plan.with_globals(&ids(&globals, &[1, n]));
    let out = ops::sparse_attention(&zeros, &zeros, &v, &plan, &AttentionOptions::new(1, 1));
    let out = values(&out.unwrap());
    assert!((out[778] - (777.0 + 778.0 + 5.0) / 3.0).abs() < 1e-3);
    assert_eq!(out[5], 4.5);
}

#[test]
fn results_and_gradients_are_bit_equal_on_any_number_of_threads() {
    needs_device!();
    if here().is_cuda() {
        return;
    }
    let plan = SparsePlan::band(90, Band::both(9));
    let plan = plan.with_globals(&ids(&[1, 0, 0, 0, 0, 0, 0, 0, 0].repeat(30), &[3, 90]));
    let inputs = [1, 2, 3].map(|seed| tensor(&[3, 90, 16], seed));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            run(&Given::new(&inputs, &[], DType::F32), &|given| {
                let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                let options = AttentionOptions {
                    dropout: SOME,
                    ..AttentionOptions::new(4, 4)
                };
                ops::sparse_attention(q, k, v, &plan, &options).unwrap()
            })
        })
    };
    let one = with(1);
    for threads in [2, 5] {
        let many = with(threads);
        assert_eq!(one.value, many.value);
        assert_eq!(one.grads, many.grads);
    }
}

#[test]
fn invalid_plans_are_clear_errors() {
    needs_device!();
    let says = |result: cloze::Result<SparsePlan>, text: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    let ranges: Vec<Vec<std::ops::Range<usize>>> = vec![vec![0..5]; 2];
    says(SparsePlan::new(8, 5, 3, ranges.clone()), "3 blocks of 3");
    says(SparsePlan::new(8, 5, 0, ranges.clone()), "blocks of 0");
    says(SparsePlan::new(8, 4, 4, ranges.clone()), "0..5 ends after");
    let plan = SparsePlan::new(8, 5, 4, ranges.clone()).unwrap();
    let (q, k) = (tensor(&[2, 8, 8], 1), tensor(&[2, 5, 8], 2));
    let fails = |k: &Tensor, plan: &SparsePlan, options: &AttentionOptions, text: &str| {
        let error = ops::sparse_attention(&q, k, k, plan, options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(text), "{error}");
    };
    fails(&q, &plan, &two_heads(), "8 queries and 5 keys");
    let causal = AttentionOptions {
        causal: true,
        ..two_heads()
    };
    fails(
        &q,
        &SparsePlan::band(8, Band::both(1)),
        &causal,
        "sparse attention takes",
    );
    fails(
        &k,
        &plan.clone().with_globals(&ids(&[1; 8], &[1, 8])),
        &two_heads(),
        "globals",
    );
    fails(
        &k,
        &plan.with_own_score(&ids(&[1; 10], &[2, 5]), 0.0),
        &two_heads(),
        "same sequence",
    );
    let three = SparsePlan::per_head(8, 5, 4, vec![ranges.clone(), ranges.clone(), ranges]);
    fails(&k, &three.unwrap(), &two_heads(), "3 heads");
}
