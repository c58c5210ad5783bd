//! Attention with everything that it offers: bands, the causal rule, grouped heads, rotary and relative positions, fused
//! projections.

use cloze::ops::{
    AttentionOptions, Band, FusedLayout, RelativeIndex, RelativeTerms, Rotary, RotaryPairs,
};

use super::*;

const NONE: Dropout = Dropout::NONE;
const SOME: Dropout = Dropout { p: 0.2, key: 6 };

/// Batch, queries, keys, heads, heads of keys and values, features of a head of q and k, of v.
#[derive(Clone, Copy, Debug)]
struct Sizes([usize; 7]);

impl Sizes {
    fn inputs(self) -> Vec<Tensor> {
        let Self([batch, queries, keys, heads, kv_heads, d, e]) = self;
        vec![
            tensor(&[batch, queries, heads * d], 1),
            tensor(&[batch, keys, kv_heads * d], 2),
            tensor(&[batch, keys, kv_heads * e], 3),
        ]
    }

    /// Sharper than 1 / sqrt(d), so that the softmax is far from uniform.
    fn options(self) -> AttentionOptions {
        let Self([_, _, _, heads, kv_heads, d, _]) = self;
        AttentionOptions {
            kv_heads: Some(kv_heads),
            scale: 0.9,
            ..AttentionOptions::new(heads, d)
        }
    }
}

/// Checks the options with and without dropout; an additive mask's gradient too.
fn case(sizes: [usize; 7], change: impl Fn(&mut AttentionOptions)) {
    let sizes = Sizes(sizes);
    for dropout in [NONE, SOME] {
        let mut options = AttentionOptions {
            dropout,
            ..sizes.options()
        };
        change(&mut options);
        let mut inputs = sizes.inputs();
        if let AttentionMask::Additive(bias) = &options.mask {
            inputs.push(bias.clone());
        }
        let name = format!("{sizes:?} {:?} {options:?}", options.mask);
        check(&name, &inputs, &[], &|given| {
            let mut options = options.clone();
            if let Some(bias) = given.inputs.get(3) {
                options.mask = AttentionMask::Additive(bias.clone());
            }
            let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
            ops::attention_with(q, k, v, &options).unwrap()
        });
    }
}

/// A mask of three sequences of 9 keys: all, padded behind, padded in front with a hole.
fn nine_keys() -> AttentionMask {
    let mask = [
        [1, 1, 1, 1, 1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 1, 1, 0, 0, 0],
    ];
    AttentionMask::Keys(ids(&mask.concat(), &[3, 9]))
}

fn rotary(positions: usize, width: usize, pairs: RotaryPairs) -> Rotary {
    Rotary::with_theta(positions, width, 10.0, pairs).unwrap()
}

#[test]
fn bands_have_correct_values_and_gradients() {
    needs_device!();
    for (left, right) in [(1, 0), (2, 1), (0, 3), (4, 0), (100, 1), (9, usize::MAX)] {
        let band = Band { left, right };
        case([2, 9, 9, 2, 2, 4, 3], |options| options.band = Some(band));
    }
    // Several blocks of queries, and keys that no block sees all of.
    case([1, 150, 150, 2, 2, 4, 4], |options| {
        options.band = Some(Band::both(7));
    });
    // A prefix of keys.
    case([2, 5, 9, 2, 2, 4, 4], |options| {
        options.band = Some(Band { left: 2, right: 1 });
    });
}

#[test]
fn a_query_with_one_key_gets_its_value() {
    needs_device!();
    let [q, k, v] = [1, 2, 3].map(|seed| tensor(&[2, 9, 8], seed));
    let options = AttentionOptions {
        band: Some(Band::both(0)),
        ..AttentionOptions::new(2, 4)
    };
    let out = ops::attention_with(&q, &k, &v, &options).unwrap();
    assert_eq!(values(&out), values(&v));
}

#[test]
fn causal_attention_has_correct_values_and_gradients() {
    needs_device!();
    case([2, 9, 9, 2, 2, 4, 3], |options| options.causal = true);
    case([2, 5, 9, 2, 2, 4, 3], |options| options.causal = true);
    case([1, 150, 155, 1, 1, 4, 4], |options| options.causal = true);
    case([2, 9, 9, 2, 2, 4, 3], |options| {
        options.causal = true;
        options.band = Some(Band::both(3));
    });
}

#[test]
fn masks_combine_with_bands_and_causal_attention() {
    needs_device!();
    for causal in [false, true] {
        case([3, 9, 9, 2, 2, 4, 4], |options| {
            options.mask = nine_keys();
            options.causal = causal;
            options.band = Some(Band { left: 1, right: 2 });
        });
        case([3, 9, 9, 2, 2, 4, 4], |options| {
            options.mask = nine_keys();
            options.causal = true;
        });
        case([3, 9, 9, 2, 2, 4, 4], |options| {
            options.mask = AttentionMask::Additive(tensor(&[2, 9, 9], 4));
            options.causal = causal;
            options.band = Some(Band { left: 3, right: 2 });
        });
    }
}

#[test]
fn a_query_without_keys_is_zero_and_has_no_gradient() {
    needs_device!();
    let given = Given::new(&Sizes([3, 9, 9, 2, 2, 4, 4]).inputs(), &[], DType::F32);
    let outcome = run(&given, &|given| {
        let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
        let options = AttentionOptions {
            mask: nine_keys(),
            band: Some(Band::both(1)),
            ..AttentionOptions::new(2, 4)
        };
        ops::attention_with(q, k, v, &options).unwrap()
    });
    // The second sequence has five keys, the third those at 2, 4 and 5.
    let blind = |row: usize| [9 + 6, 9 + 7, 9 + 8, 18, 18 + 7, 18 + 8].contains(&row);
    let dq = outcome.grads[0].as_ref().unwrap();
    for row in 0..27 {
        let zero = |x: &[f64]| x[row * 8..][..8].iter().all(|&x| x == 0.0);
        assert_eq!(zero(&outcome.value), blind(row), "row {row}");
        assert!(zero(dq) || !blind(row), "row {row}");
    }
    for grad in &outcome.grads[1..] {
        let grad = grad.as_ref().unwrap();
        assert!(grad[(18 + 3) * 8..][..8].iter().all(|&x| x == 0.0));
    }
}

#[test]
fn ignored_queries_are_zero_and_have_no_gradient() {
    needs_device!();
    let counts = ids(&[1, 1, 0, 1, 0, 0, 1, 1, 1, 1], &[2, 5]);
    case([2, 5, 9, 2, 2, 4, 3], |options| {
        options.query_mask = Some(counts.clone());
    });
    let mask = AttentionMask::Keys(ids(&[1, 1, 1, 0, 0, 1, 1, 1, 1, 1], &[2, 5]));
    case([2, 5, 5, 2, 2, 4, 3], |options| {
        options.query_mask = Some(counts.clone());
        options.mask = mask.clone();
        options.band = Some(Band::both(2));
    });
}

#[test]
fn heads_may_share_keys_and_values() {
    needs_device!();
    for kv_heads in [1, 2, 4] {
        case([2, 7, 9, 4, kv_heads, 4, 3], |_| ());
        case([2, 9, 9, 4, kv_heads, 4, 3], |options| {
            options.band = Some(Band { left: 2, right: 1 });
        });
    }
    case([1, 70, 70, 4, 2, 4, 4], |options| options.causal = true);
    case([3, 4, 9, 4, 2, 4, 4], |options| options.mask = nine_keys());
}

#[test]
fn rotations_have_correct_values_and_gradients() {
    needs_device!();
    for pairs in [RotaryPairs::Half, RotaryPairs::Interleaved] {
        for width in [8, 4] {
            for values in [false, true] {
                case([2, 9, 9, 2, 2, 8, 8], |options| {
                    let rotary = rotary(11, width, pairs);
                    options.rotary = Some(rotary.with_values(values));
                });
            }
            case([3, 9, 9, 4, 2, 8, 3], |options| {
                options.rotary = Some(rotary(9, width, pairs));
                options.mask = nine_keys();
                options.band = Some(Band { left: 3, right: 1 });
            });
            case([2, 70, 75, 2, 1, 8, 8], |options| {
                options.rotary = Some(rotary(75, width, pairs).with_values(true));
                options.causal = true;
            });
        }
    }
}

#[test]
fn rotated_scores_depend_only_on_distances() {
    needs_device!();
    let x = tensor(&[1, 1, 8], 1);
    let x = x.broadcast_as((1, 6, 8)).unwrap().contiguous().unwrap();
    let v = tensor(&[1, 6, 8], 2);
    for pairs in [RotaryPairs::Half, RotaryPairs::Interleaved] {
        let all = rotary(9, 8, pairs);
        let table = |f: fn(f32) -> f32, skip: usize| {
            let speeds = [0, 1, 2, 3].map(|i| 10f32.powf(-2.0 * i as f32 / 8.0));
            let angles = (skip..skip + 6).flat_map(|at| speeds.map(|s| f(at as f32 * s)));
            Tensor::from_vec(angles.collect::<Vec<_>>(), (6, 4), &here()).unwrap()
        };
        let attend = |rotary: &Rotary| {
            let options = AttentionOptions {
                rotary: Some(rotary.clone()),
                ..AttentionOptions::new(1, 8)
            };
            wide(&ops::attention_with(&x, &x, &v, &options).unwrap())
        };
        let shifted = Rotary::new(&table(f32::cos, 3), &table(f32::sin, 3), 8, pairs).unwrap();
        assert!(distance(&attend(&shifted), &attend(&all)) < 1e-5);
        let slower = Rotary::with_theta(6, 8, 1e4, pairs).unwrap();
        assert!(distance(&attend(&slower), &attend(&all)) > 1e-2);
    }
}

#[test]
fn a_fused_projection_is_read_in_both_layouts_and_gets_one_gradient() {
    needs_device!();
    for (layout, heads, kv_heads) in [
        (FusedLayout::Blocks, 3, 3),
        (FusedLayout::Blocks, 4, 2),
        (FusedLayout::PerHead, 3, 3),
    ] {
        let d = 6;
        let width = (heads + 2 * kv_heads) * d;
        let mut options = Sizes([3, 9, 9, heads, kv_heads, d, d]).options();
        for (dropout, band, turned) in [
            (NONE, None, false),
            (SOME, Some(Band { left: 2, right: 3 }), true),
        ] {
            options.dropout = dropout;
            options.band = band;
            options.mask = nine_keys();
            options.rotary = turned.then(|| rotary(9, 4, RotaryPairs::Half));
            let name = format!("{layout:?} {options:?}");
            check(&name, &[tensor(&[3, 9, width], 1)], &[], &|given| {
                ops::attention_fused(&given.inputs[0], layout, &options).unwrap()
            });
        }
    }
}

#[test]
fn views_agree_with_copies() {
    needs_device!();
    let all = tensor(&[2, 5, 24], 1);
    let options = AttentionOptions {
        dropout: SOME,
        ..AttentionOptions::new(2, 4)
    };
    let part = |i: usize| all.narrow(2, i * 8, 8).unwrap();
    let attend = |parts: [Tensor; 3]| {
        let [q, k, v] = parts;
        values(&ops::attention_with(&q, &k, &v, &options).unwrap())
    };
    let copied = attend([0, 1, 2].map(|i| part(i).contiguous().unwrap()));
    assert_eq!(attend([0, 1, 2].map(part)), copied);
    let fused = ops::attention_fused(&all, FusedLayout::Blocks, &options).unwrap();
    if here().is_cuda() {
        // In f32 a GPU takes the two by different kernels.
        let copied: Vec<f64> = copied.iter().map(|&x| x.into()).collect();
        assert!(distance(&wide(&fused), &copied) < 1e-6);
    } else {
        assert_eq!(values(&fused), copied);
    }
    // Rows that do not lie side by side, and one sequence for all.
    let turned = |i: usize| {
        let copy = part(i).transpose(1, 2).unwrap().contiguous().unwrap();
        copy.transpose(1, 2).unwrap()
    };
    assert_eq!(attend([0, 1, 2].map(turned)), copied);
    let same = part(0).narrow(0, 0, 1).unwrap();
    let same = same.broadcast_as((2, 5, 8)).unwrap();
    assert_eq!(
        attend([same.clone(), part(1), part(2)]),
        attend([same.contiguous().unwrap(), part(1), part(2)])
    );
}

#[test]
fn a_band_costs_time_proportional_to_its_width() {
    needs_device!();
    // All pairs would be 10^12; on a GPU, which may be an emulated one, 10^10.
    let n = if here().is_cuda() { 100_000 } else { 1_000_000 };
    let zeros = Tensor::zeros((1, n, 1), DType::F32, &here()).unwrap();
    let v: Vec<f32> = (0..n).map(|i| (i % 1000) as f32).collect();
    let v = Tensor::from_vec(v, (1, n, 1), &here()).unwrap();
    let options = AttentionOptions {
        band: Some(Band { left: 1, right: 0 }),
        ..AttentionOptions::new(1, 1)
    };
    let out = values(&ops::attention_with(&zeros, &zeros, &v, &options).unwrap());
    assert_eq!(out[0], 0.0);
    assert_eq!(out[777], 776.5);
    assert_eq!(out[n - 1], 998.5);
}

/// In a decoder what comes later is masked, and in what it was told the padding at the end. NaN there would show if any part
/// of it were computed.
#[test]
fn what_the_causal_rule_or_padding_at_the_end_hides_is_not_computed() {
    needs_device!();
    if here().is_cuda() {
        return;
    }
    let n = 512;
    let half = |n: usize| {
        let of = |i: usize| if i < 2 * n { 1.0 } else { f32::NAN };
        Tensor::from_vec((0..4 * n).map(of).collect::<Vec<_>>(), (1, n, 4), &here()).unwrap()
    };
    let seen = half(n);
    let q = Tensor::ones((1, n, 4), DType::F32, &here()).unwrap();
    let finite = |options: AttentionOptions, queries: usize| {
        let q = q.narrow(1, 0, queries).unwrap();
        let out = values(&ops::attention_with(&q, &seen, &seen, &options).unwrap());
        out.iter().filter(|x| x.is_finite()).count() / 4
    };
    let causal = AttentionOptions {
        causal: true,
        ..AttentionOptions::new(2, 2)
    };
    assert_eq!(finite(causal, n), n / 2);
    let text: Vec<u32> = (0..n).map(|i| u32::from(i < n / 2)).collect();
    let padded = AttentionOptions {
        mask: AttentionMask::Keys(ids(&text, &[1, n])),
        ..AttentionOptions::new(2, 2)
    };
    assert_eq!(finite(padded, 3), 3);
}

#[test]
fn invalid_options_are_clear_errors() {
    needs_device!();
    let x = tensor(&[2, 3, 8], 1);
    let long = tensor(&[2, 5, 8], 2);
    let fails = |q: &Tensor, k: &Tensor, change: &dyn Fn(&mut AttentionOptions), says: &str| {
        let mut options = AttentionOptions::new(2, 4);
        change(&mut options);
        let error = ops::attention_with(q, k, k, &options)
            .unwrap_err()
            .to_string();
        assert!(error.contains(says), "{error}");
    };
    fails(&x, &x, &|o| o.heads = 3, "3 heads");
    fails(&x, &x, &|o| o.heads = 0, "0 heads");
    fails(&x, &x, &|o| o.kv_heads = Some(0), "0 heads");
    fails(&x, &x, &|o| o.kv_heads = Some(1), "with 1 of keys");
    fails(&long, &x, &|o| o.causal = true, "5 queries and 3 keys");
    fails(
        &long,
        &x,
        &|o| o.band = Some(Band::both(1)),
        "5 queries and 3 keys",
    );
    let short = rotary(4, 4, RotaryPairs::Half);
    fails(
        &x,
        &long,
        &|o| o.rotary = Some(short.clone()),
        "angles for 4",
    );
    let wide = rotary(9, 6, RotaryPairs::Half);
    fails(&x, &x, &|o| o.rotary = Some(wide.clone()), "a head has 4");
    fails(
        &x,
        &x,
        &|o| o.query_mask = Some(ids(&[1; 6], &[3, 2])),
        "2 sequences of 3",
    );
    let fused = |width: usize, layout, kv_heads| {
        let options = AttentionOptions {
            kv_heads: Some(kv_heads),
            ..AttentionOptions::new(2, 4)
        };
        ops::attention_fused(&tensor(&[1, 3, width], 1), layout, &options).unwrap_err()
    };
    let error = fused(25, FusedLayout::Blocks, 2).to_string();
    assert!(error.contains("[1, 3, 25]"), "{error}");
    let error = fused(16, FusedLayout::PerHead, 1).to_string();
    assert!(error.contains("PerHead"), "{error}");
}

/// Which tables there are, and whether each head has its own.
#[derive(Clone, Copy, Debug)]
struct Tables {
    query: bool,
    key: bool,
    bias: bool,
    value: bool,
    shared: bool,
}

impl Tables {
    const ALL: Self = Self {
        query: true,
        key: true,
        bias: true,
        value: true,
        shared: false,
    };

    fn of(bits: usize, shared: bool) -> Self {
        Self {
            query: bits & 1 != 0,
            key: bits & 2 != 0,
            bias: bits & 4 != 0,
            value: bits & 8 != 0,
            shared,
        }
    }
}

/// Checks the terms with and without dropout, all gradients of the tables included.
fn relative(
    sizes: [usize; 7],
    index: &RelativeIndex,
    rows: usize,
    tables: Tables,
    change: impl Fn(&mut AttentionOptions, &mut RelativeTerms),
) {
    let Sizes([_, _, _, heads, _, d, e]) = Sizes(sizes);
    let copies = if tables.shared { 1 } else { heads };
    let mut inputs = Sizes(sizes).inputs();
    let kinds = [tables.query, tables.key, tables.bias, tables.value];
    for (i, (width, _)) in [d, d, 1, e]
        .into_iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, is))| *is)
    {
        inputs.push(tensor(&[rows, copies * width], 10 + i as u64));
    }
    for dropout in [NONE, SOME] {
        let op = |given: &Given| {
            let mut options = AttentionOptions {
                dropout,
                ..Sizes(sizes).options()
            };
            let mut left = given.inputs[3..].iter().cloned();
            let mut next = |is: bool| if is { left.next() } else { None };
            let mut terms = RelativeTerms {
                query_table: next(tables.query),
                key_table: next(tables.key),
                bias_table: next(tables.bias),
                value_table: next(tables.value),
                ..RelativeTerms::new(index.clone())
            };
            change(&mut options, &mut terms);
            let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
            ops::relative_attention(q, k, v, &terms, &options).unwrap()
        };
        check(
            &format!("{sizes:?} {tables:?} {dropout:?}"),
            &inputs,
            &[],
            &op,
        );
    }
}

#[test]
fn relative_terms_have_correct_values_and_gradients_in_every_combination() {
    needs_device!();
    let index = RelativeIndex::clipped(7, 9, -3, 4);
    for bits in 0..16 {
        for shared in [false, true] {
            let tables = Tables::of(bits, shared);
            relative([2, 7, 9, 2, 2, 4, 3], &index, 8, tables, |_, _| ());
        }
    }
}

#[test]
fn relative_terms_span_blocks_strips_and_sequences() {
    needs_device!();
    // Several strips of rows and of columns, the last of them short.
    let index = RelativeIndex::log_buckets(75, 70, 16, 64);
    relative([1, 75, 70, 1, 1, 4, 4], &index, 32, Tables::ALL, |_, _| ());
    // Several blocks of queries.
    let index = RelativeIndex::clipped(40, 4500, -4400, 30);
    relative(
        [1, 40, 4500, 1, 1, 2, 2],
        &index,
        4431,
        Tables::ALL,
        |_, _| (),
    );
    // More sequences than there are parts of the batch.
    let index = RelativeIndex::clipped(3, 3, -2, 2);
    for batch in [5, 9] {
        relative([batch, 3, 3, 2, 2, 2, 2], &index, 5, Tables::ALL, |_, _| ());
    }
    relative(
        [1, 1, 1, 1, 1, 1, 1],
        &RelativeIndex::clipped(1, 1, 0, 0),
        1,
        Tables::ALL,
        |_, _| (),
    );
}

#[test]
fn relative_terms_combine_with_every_option() {
    needs_device!();
    let index = RelativeIndex::new(9, 9, |distance| (distance * 5).rem_euclid(7) as u32);
    let mask = nine_keys();
    let counts = ids(&[1, 0, 1, 1, 1, 1, 0, 1, 1].repeat(3), &[3, 9]);
    let tables = Tables::ALL;
    let sizes = [3, 9, 9, 4, 2, 4, 4];
    relative(sizes, &index, 7, tables, |options, terms| {
        options.mask = mask.clone();
        terms.scale = Some(1.3);
    });
    relative(sizes, &index, 7, tables, |options, _| {
        options.mask = mask.clone();
        options.query_mask = Some(counts.clone());
    });
    relative(sizes, &index, 7, tables, |options, _| {
        options.causal = true;
        options.rotary = Some(rotary(9, 4, RotaryPairs::Half).with_values(true));
    });
    relative(sizes, &index, 7, tables, |options, terms| {
        options.mask = mask.clone();
        options.band = Some(Band { left: 3, right: 2 });
        terms.skip_first = true;
    });
    relative(
        [2, 70, 70, 2, 1, 2, 2],
        &RelativeIndex::clipped(70, 70, -9, 9),
        19,
        tables,
        |options, terms| {
            options.band = Some(Band::both(11));
            terms.skip_first = true;
        },
    );
}

#[test]
fn positions_of_queries_and_keys_may_have_different_strides() {
    needs_device!();
    let tables = Tables::of(1 | 4 | 8, false);
    // Queries pooled by two, keys not.
    let row = |distance: i64| (distance + 90).clamp(0, 179) as u32;
    let index = RelativeIndex::linear((40, 79), -1, 2, 1, row).unwrap();
    for i in [0, 17, 39] {
        for j in [0, 5, 78] {
            assert_eq!(index.get(i, j), row(-1 + 2 * i as i64 - j as i64));
        }
    }
    relative([1, 40, 79, 2, 2, 4, 4], &index, 180, tables, |_, terms| {
        terms.skip_first = true;
    });
    // Both pooled, with a term by key too.
    let index = RelativeIndex::linear((6, 6), 3, 2, 2, row).unwrap();
    assert_eq!(index.get(5, 1), row(3 + 10 - 2));
    relative([2, 6, 6, 2, 2, 4, 4], &index, 180, Tables::ALL, |_, _| ());
    for steps in [(0, 1), (1, 0), (3, 2)] {
        assert!(RelativeIndex::linear((6, 6), 0, steps.0, steps.1, row).is_err());
    }
}

#[test]
fn a_constant_table_needs_no_gradient() {
    needs_device!();
    let index = RelativeIndex::clipped(5, 5, -2, 2);
    let tables = [tensor(&[5, 4], 8), tensor(&[5, 3], 9)];
    check(
        "constant",
        &Sizes([2, 5, 5, 2, 2, 4, 3]).inputs(),
        &[],
        &|given| {
            let dtype = given.inputs[0].dtype();
            let [key, value] = [0, 1].map(|i| tables[i].to_dtype(dtype).unwrap());
            let place = |x: Tensor| x.to_device(given.inputs[0].device()).unwrap();
            let terms = RelativeTerms {
                query_table: Some(place(key)),
                value_table: Some(place(value)),
                ..RelativeTerms::new(index.clone())
            };
            let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
            let options = Sizes([2, 5, 5, 2, 2, 4, 3]).options();
            ops::relative_attention(q, k, v, &terms, &options).unwrap()
        },
    );
}

#[test]
fn fused_projections_support_relative_terms() {
    needs_device!();
    let index = RelativeIndex::clipped(6, 6, -4, 3);
    let inputs = [
        tensor(&[2, 6, 24], 1),
        tensor(&[8, 8], 2),
        tensor(&[8, 8], 3),
    ];
    for layout in [FusedLayout::Blocks, FusedLayout::PerHead] {
        check("fused", &inputs, &[], &|given| {
            let terms = RelativeTerms {
                query_table: Some(given.inputs[1].clone()),
                key_table: Some(given.inputs[2].clone()),
                ..RelativeTerms::new(index.clone())
            };
            let options = AttentionOptions::new(2, 4);
            ops::relative_attention_fused(&given.inputs[0], layout, &terms, &options).unwrap()
        });
    }
}

#[test]
fn invalid_terms_are_clear_errors() {
    needs_device!();
    let x = tensor(&[1, 5, 8], 1);
    let fails = |index: RelativeIndex, shape: &[usize], says: &str| {
        let terms = RelativeTerms {
            key_table: Some(tensor(shape, 2)),
            ..RelativeTerms::new(index)
        };
        let options = AttentionOptions::new(2, 4);
        let error = ops::relative_attention(&x, &x, &x, &terms, &options).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    };
    let index = || RelativeIndex::clipped(5, 5, -2, 2);
    fails(index(), &[5, 7], "rows of 4 or of 8");
    fails(index(), &[5, 8, 1], "rows of 4 or of 8");
    fails(index(), &[4, 8], "asks for row 4");
    fails(
        RelativeIndex::clipped(5, 4, -2, 2),
        &[5, 8],
        "made for 5 queries and 4 keys",
    );
    let uneven = RelativeIndex::linear((5, 5), 0, 2, 1, |_| 0).unwrap();
    fails(uneven, &[5, 8], "2 times as far apart");
}

#[test]
fn results_and_gradients_are_bit_equal_on_any_number_of_threads() {
    needs_device!();
    if here().is_cuda() {
        return;
    }
    let inputs = [
        tensor(&[6, 90, 8 * 8], 1),
        tensor(&[17, 4 * 8], 2),
        tensor(&[17, 8], 3),
        tensor(&[17, 4], 4),
        tensor(&[17, 8], 5),
    ];
    let outcome = || {
        let given = Given::new(&inputs, &[], DType::F32);
        run(&given, &|given| {
            let mut tables = given.inputs[1..].iter().cloned();
            let terms = RelativeTerms {
                query_table: tables.next(),
                key_table: tables.next(),
                bias_table: tables.next(),
                value_table: tables.next(),
                ..RelativeTerms::new(RelativeIndex::clipped(90, 90, -8, 8))
            };
            let options = AttentionOptions {
                kv_heads: Some(2),
                dropout: SOME,
                band: Some(Band {
                    left: 40,
                    right: 20,
                }),
                rotary: Some(rotary(90, 8, RotaryPairs::Half)),
                ..AttentionOptions::new(4, 8)
            };
            let qkv = &given.inputs[0];
            ops::relative_attention_fused(qkv, FusedLayout::Blocks, &terms, &options).unwrap()
        })
    };
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(outcome)
    };
    let one = with(1);
    for threads in [2, 3, 7] {
        let many = with(threads);
        assert_eq!(one.value, many.value);
        assert_eq!(one.grads, many.grads);
    }
}
