use super::*;
use crate::ops::gemm::noise::noise;

/// Rows, inner dimension, columns: tiles of every height, panels that are not full, stretches, words that are not full.
const SIZES: [(usize, usize, usize); 9] = [
    (1, 64, 32),
    (5, 7, 3),
    (10, 768, 96),
    (12, 33, 31),
    (13, 130, 33),
    (37, 1601, 65),
    (64, 20, 200),
    (0, 8, 8),
    (128, 3201, 40),
];

/// Returns the naive form of the product, in f64.
fn naive(x: &[f32], w: &[f32], bias: &[f32], inner: usize) -> Vec<f64> {
    let row = |x: &[f32]| -> Vec<f64> {
        let sums = w.chunks(inner).zip(bias).map(|(w, &bias)| {
            let products = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w));
            f64::from(bias) + products.sum::<f64>()
        });
        sums.collect()
    };
    x.chunks(inner).flat_map(row).collect()
}

/// Returns the norm of the error in proportion to that of the result, and the result.
fn error(kind: Kind, (rows, inner, out): (usize, usize, usize)) -> Option<f64> {
    let (x, w, bias) = (noise(rows * inner, 1), noise(out * inner, 2), noise(out, 3));
    let panels = Panels::new(kind, &w, (out, inner))?;
    let y = panels.multiply(&x, Some(&bias), |_| {});
    let wide = naive(&x, &w, &bias, inner);
    assert_eq!(y.len(), wide.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let wrong = norm(&mut y.iter().zip(&wide).map(|(&y, wide)| f64::from(y) - wide));
    Some(wrong / norm(&mut wide.iter().copied()).max(1e-9))
}

#[test]
fn products_agree_with_the_naive_form_within_their_precision() {
    // Of 8 and 9 bits, rounded: uniform numbers are wrong by 2⁻⁹ and 2⁻⁹/√3 of the largest, on both sides.
    for (kind, most) in [(Kind::F32, 1e-6), (Kind::Bf16, 4e-3), (Kind::Int8, 1e-2)] {
        for size in SIZES {
            match error(kind, size) {
                Some(error) => assert!(error < most, "{kind:?} {size:?}: {error:e}"),
                None => eprintln!("skipped: this processor has no unit for {kind:?}"),
            }
        }
    }
}

#[test]
fn small_integers_are_multiplied_exactly() {
    // Rows from -100 to 155 and weights from -127 to 127 have the scale 1 in 8 bits.
    let (rows, inner, out) = (7, 259, 45);
    let whole = |n: usize, low: i32, count: i32| -> Vec<f32> {
        let value = |i: usize| (low + (i as i32 * 37) % count) as f32;
        (0..n).map(value).collect()
    };
    let (mut x, mut w) = (
        whole(rows * inner, -100, 256),
        whole(out * inner, -127, 255),
    );
    x.chunks_mut(inner)
        .for_each(|row| row[..2].copy_from_slice(&[-100.0, 155.0]));
    w.chunks_mut(inner).for_each(|row| row[3] = 127.0);
    let bias = vec![0.5; out];
    let wide = naive(&x, &w, &bias, inner);
    for kind in [Kind::F32, Kind::Bf16, Kind::Int8] {
        let Some(panels) = Panels::new(kind, &w, (out, inner)) else {
            continue;
        };
        let y = panels.multiply(&x, Some(&bias), |_| {});
        for (y, wide) in y.iter().zip(&wide) {
            assert!(
                (f64::from(*y) - wide).abs() <= 1e-6 * wide.abs() + 0.6,
                "{kind:?} {y} {wide}"
            );
        }
    }
}

#[test]
fn avx2_agrees_with_avx512() {
    if simd::level() < Level::V3 {
        return;
    }
    let (rows, inner, out) = (29, 801, 50);
    let (x, w) = (noise(rows * inner, 1), noise(out * inner, 2));
    let wide = naive(&x, &w, &vec![0.0; out], inner);
    let columns = 16;
    let steps = inner;
    let panels = out.div_ceil(columns);
    let mut words = vec![0; panels * steps * columns];
    for (panel, rows) in words
        .chunks_mut(steps * columns)
        .zip(w.chunks(columns * inner))
    {
        for (column, row) in rows.chunks(inner).enumerate() {
            for (step, &x) in row.iter().enumerate() {
                panel[step * columns + column] = x.to_bits();
            }
        }
    }
    let by_avx2 = Panels {
        kind: Kind::F32,
        unit: Unit {
            columns,
            tiles: tiles::f32_avx2::TILES,
        },
        out,
        inner,
        words,
        scales: vec![1.0; panels * columns],
        sums: vec![0.0; panels * columns],
    };
    for (y, wide) in by_avx2.multiply(&x, None, |_| {}).iter().zip(&wide) {
        assert!((f64::from(*y) - wide).abs() < 1e-4, "{y} {wide}");
    }
}

#[test]
fn every_element_is_finished_once() {
    let (rows, inner, out) = (33, 40, 131);
    let (x, w) = (noise(rows * inner, 1), noise(out * inner, 2));
    let Some(panels) = Panels::new(Kind::F32, &w, (out, inner)) else {
        return;
    };
    let plain = panels.multiply(&x, None, |_| {});
    let finished = panels.multiply(&x, None, |row| row.iter_mut().for_each(|y| *y += 1.0));
    assert!(
        plain
            .iter()
            .zip(&finished)
            .all(|(plain, y)| plain + 1.0 == *y)
    );
}

#[test]
fn nan_and_infinity_propagate() {
    for kind in [Kind::F32, Kind::Bf16, Kind::Int8] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = noise(3 * 50, 1);
            x[60] = bad;
            let mut w = noise(40 * 50, 2);
            let Some(panels) = Panels::new(kind, &w, (40, 50)) else {
                continue;
            };
            let y = panels.multiply(&x, None, |_| {});
            assert!(y[40..80].iter().all(|y| !y.is_finite()), "{kind:?} {bad}");
            assert!(y[..40].iter().chain(&y[80..]).all(|y| y.is_finite()));
            w[70] = bad;
            x[60] = 0.5;
            let panels = Panels::new(kind, &w, (40, 50)).unwrap();
            let y = panels.multiply(&x, None, |_| {});
            for (at, y) in y.iter().enumerate() {
                assert_eq!(y.is_finite(), at % 40 != 1, "{kind:?} {bad}");
            }
        }
    }
}

#[test]
fn rows_and_columns_of_zeros_give_the_bias() {
    for kind in [Kind::F32, Kind::Bf16, Kind::Int8] {
        let mut x = noise(2 * 50, 1);
        x[..50].fill(0.0);
        let mut w = noise(40 * 50, 2);
        w[50..100].fill(0.0);
        let bias = noise(40, 3);
        let Some(panels) = Panels::new(kind, &w, (40, 50)) else {
            continue;
        };
        let y = panels.multiply(&x, Some(&bias), |_| {});
        assert_eq!(y[..40], bias);
        assert_eq!(y[41], bias[1]);
        assert_ne!(y[42], bias[2]);
    }
}
