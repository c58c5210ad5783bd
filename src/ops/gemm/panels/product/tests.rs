use super::*;
use crate::ops::gemm::noise::noise;

/// Sizes with tiles of every height, panels that are not full, one block and several, more rows than
/// columns and fewer, stretches.
const SIZES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (3, 0, 5),
    (12, 32, 32),
    (13, 33, 31),
    (7, 385, 64),
    (25, 800, 65),
    (200, 31, 40),
    (40, 31, 200),
    (131, 1000, 97),
    (97, 1000, 131),
    (600, 5, 33),
    (70, 2500, 90),
];

/// A matrix whose rows, or with `transposed` columns, lie `gap` elements further apart than they are long.
struct Matrix {
    data: Vec<f32>,
    stride: usize,
    transposed: bool,
}

impl Matrix {
    fn new((rows, columns): (usize, usize), gap: usize, transposed: bool, seed: u32) -> Self {
        let (lines, stride) = match transposed {
            false => (rows, columns + gap),
            true => (columns, rows + gap),
        };
        Self {
            data: noise(lines * stride, seed),
            stride,
            transposed,
        }
    }

    fn at(&self, row: usize, column: usize) -> f32 {
        match self.transposed {
            false => self.data[row * self.stride + column],
            true => self.data[column * self.stride + row],
        }
    }

    /// As the left operand, whose rows are its own, or as the right one, whose columns are.
    fn operand(&self, left: bool) -> Operand {
        let (outer, inner) = match self.transposed != left {
            true => (self.stride, 1),
            false => (1, self.stride),
        };
        Operand {
            start: self.data.as_ptr(),
            outer,
            inner,
        }
    }
}

struct Case {
    size: (usize, usize, usize),
    transposed: [bool; 2],
    /// Elements between the end of a row and the next.
    gap: usize,
    into: Accumulate,
    bias: bool,
    scale: f32,
}

/// A case's operands and what stands in the result before.
struct Operands {
    a: Matrix,
    b: Matrix,
    bias: Vec<f32>,
    before: Vec<f32>,
}

impl Case {
    fn operands(&self) -> Operands {
        let (m, k, n) = self.size;
        Operands {
            a: Matrix::new((m, k), self.gap, self.transposed[0], 1),
            b: Matrix::new((k, n), self.gap, self.transposed[1], 2),
            bias: noise(n, 3),
            before: noise(m * (n + self.gap), 4),
        }
    }

    /// Returns the result, with its gaps.
    fn result(&self, multiplier: Multiplier, operands: &Operands, parallel: bool) -> Vec<f32> {
        let mut c = operands.before.clone();
        let product = Product {
            size: self.size,
            into: self.into,
            scale: self.scale,
            bias: self.bias.then_some(&operands.bias),
            parallel,
        };
        let both = [operands.a.operand(true), operands.b.operand(false)];
        let stride = self.size.2 + self.gap;
        // SAFETY: the matrices have these sizes.
        unsafe { multiplier.multiply(product, (c.as_mut_ptr(), stride), both) };
        c
    }

    /// Returns the exact result, and the result of f32 multiply-adds in order.
    fn expected(&self, operands: &Operands) -> (Vec<f64>, Vec<f32>) {
        let (_, k, n) = self.size;
        let Operands { a, b, bias, before } = operands;
        let stride = n + self.gap;
        let each = before.iter().enumerate().map(|(at, &before)| {
            let (i, j) = (at / stride, at % stride);
            if j >= n {
                return (f64::from(before), before);
            }
            let old = match (self.into, self.bias) {
                (Accumulate::Add, _) => before,
                (_, true) => bias[j],
                _ => 0.0,
            };
            let pairs = || (0..k).map(|x| (a.at(i, x), b.at(x, j)));
            let wide: f64 = pairs().map(|(a, b)| f64::from(a) * f64::from(b)).sum();
            let plain = pairs().fold(0.0f32, |sum, (a, b)| a.mul_add(b, sum));
            let scale = self.scale;
            let wide = wide.mul_add(f64::from(scale), f64::from(old));
            (wide, plain.mul_add(scale, old))
        });
        each.unzip()
    }
}

fn cases() -> impl Iterator<Item = Case> {
    let layouts = [[false, false], [false, true], [true, false], [true, true]];
    let ways = [
        (0, Accumulate::Overwrite, false, 1.0),
        (5, Accumulate::Add, false, 0.3),
        (0, Accumulate::Overwrite, true, 1.0),
    ];
    SIZES.into_iter().flat_map(move |size| {
        layouts.into_iter().flat_map(move |transposed| {
            ways.into_iter().map(move |(gap, into, bias, scale)| Case {
                size,
                transposed,
                gap,
                into,
                bias,
                scale,
            })
        })
    })
}

/// Checks every case: the norm of the error in proportion to that of the result, against that of multiply-adds in order or
/// `most`, whichever is larger, and that nothing is touched beside the result.
fn check(bf16: bool, most: f64) {
    let Some(multiplier) = Multiplier::new(bf16) else {
        eprintln!("skipped: this processor multiplies otherwise");
        return;
    };
    for case in cases() {
        let (operands, stride) = (case.operands(), case.size.2 + case.gap);
        let c = case.result(multiplier, &operands, false);
        let (wide, plain) = case.expected(&operands);
        let what = format!("{:?} {:?} {}", case.size, case.transposed, case.gap);
        let error = |x: &[f32]| {
            let wrong = x.iter().zip(&wide).map(|(&x, wide)| f64::from(x) - wide);
            let norm: f64 = wide.iter().map(|x| x * x).sum();
            (wrong.map(|x| x * x).sum::<f64>() / norm.max(1e-30)).sqrt()
        };
        let (found, allowed) = (error(&c), error(&plain).max(most));
        assert!(found <= allowed, "{what}: {found:e}, {allowed:e}");
        for (at, (c, before)) in c.iter().zip(&operands.before).enumerate() {
            assert!(at % stride < case.size.2 || c == before, "{what}: {at}");
        }
    }
}

#[test]
fn products_are_as_exact_as_multiply_adds_in_every_size_and_layout() {
    check(false, 1e-7);
}

#[test]
fn products_of_bf16_are_accurate_to_eight_bits() {
    check(true, 4e-3);
}

#[test]
fn results_are_the_same_for_any_number_of_threads() {
    let pools = [1, 2, 3, 7].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for multiplier in [false, true].into_iter().filter_map(Multiplier::new) {
        for case in cases().filter(|case| case.size.0.max(case.size.2) > 100) {
            let operands = case.operands();
            let alone = case.result(multiplier, &operands, false);
            for pool in &pools {
                let shared = pool.install(|| case.result(multiplier, &operands, true));
                assert!(alone == shared, "{:?}", case.size);
            }
        }
    }
}
