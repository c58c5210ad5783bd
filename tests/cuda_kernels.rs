//! The CUDA kernels against the CPU's operations, without a GPU: every kernel is compiled by the system's C++ compiler
//! against an emulator of the device (tests/cuda_host) and run there, thread by thread.
//!
//! This checks arithmetic, indices, barriers and memory accesses of the very source that nvcc compiles. It says nothing
//! about speed or about nvcc's code. The library's side that launches the kernels is checked by `tests/cuda_host/run`, which
//! runs the tests on a GPU on this emulator.

use candle_core::{Device, Tensor, Var};
use cloze::ops::{self, Activation, AdamWOptions, AdamWState, AttentionMask, Dropout, Param};
use half::{bf16, f16};

#[path = "cuda_host/device.rs"]
mod device;

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

mod emulator {
    use super::*;

    fn run(name: &str, threads: usize) -> (Result<(), String>, Vec<f32>) {
        let out = unwritten::<f32>(threads);
        let result = try_launch(name, [1, 1, 1], [threads, 1], 4 * threads, (out.at(),));
        (result, out.values())
    }

    #[test]
    fn a_right_kernel_runs() {
        let (result, out) = run("fault_none", 64);
        assert_eq!(result, Ok(()));
        let want: Vec<f32> = (0..64).rev().map(|i| i as f32).collect();
        assert_eq!(out, want);
        in_all_orders(|| vec![run("fault_none", 64).1]);
    }

    #[test]
    #[should_panic(expected = "the order of threads shows")]
    fn a_missing_barrier_is_found() {
        in_all_orders(|| vec![run("fault_missing_barrier", 64).1]);
    }

    #[test]
    fn shared_memory_begins_as_nan() {
        assert!(
            run("fault_unwritten_shared", 64)
                .1
                .iter()
                .all(|x| x.is_nan())
        );
    }

    #[test]
    fn faults_are_told_apart() {
        for (name, complaint) in [
            (
                "fault_divergent_barrier",
                "a barrier that not all threads reach",
            ),
            ("fault_two_barriers", "a barrier that not all threads reach"),
            (
                "fault_divergent_shuffle",
                "a warp function that not all lanes reach",
            ),
            (
                "fault_past_the_end",
                "access outside of every buffer: block (0, 0, 0), thread (63, 0, 0)",
            ),
            (
                "fault_past_shared",
                "access outside of every buffer: block (0, 0, 0), thread (63, 0, 0)",
            ),
            ("fault_misaligned", "undefined behaviour"),
        ] {
            let error = run(name, 64).0.expect_err(name);
            assert!(error.contains(complaint), "{error}");
        }
    }

    #[test]
    #[should_panic(expected = "a kernel wrote beside a buffer")]
    fn writing_in_front_of_a_buffer_is_found() {
        let out = Buffer::new(&[0f32; 32]);
        // SAFETY: the four bytes in front of the buffer belong to its mapping.
        unsafe { out.at().cast::<f32>().sub(1).write(1.0) };
    }

    #[test]
    fn narrow_types_round_as_the_half_crate_does() {
        fn check<T: Element>(bits: impl Fn(u16) -> T) {
            let all: Vec<T> = (0..=u16::MAX).map(bits).collect();
            let wide: Vec<f32> = all.iter().map(|x| x.widen()).collect();
            // Each number, the middle between it and the next, and the neighbours of that.
            let mut x = Vec::new();
            for pair in wide.windows(2) {
                let middle = pair[0] / 2.0 + pair[1] / 2.0;
                x.extend([pair[0], middle, middle.next_down(), middle.next_up()]);
            }
            let count = x.len();
            let mut padded = all.clone();
            padded.resize(count, T::round(0.0));
            let (out, back) = (unwritten::<T>(count), unwritten::<f32>(count));
            let (x_buffer, all_buffer) = (Buffer::new(&x), Buffer::new(&padded));
            launch(
                &format!("convert_{}", T::NAME),
                [1, 1, 1],
                [32, 1],
                0,
                (
                    out.at(),
                    back.at(),
                    x_buffer.at(),
                    all_buffer.at(),
                    count as u32,
                ),
            );
            let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            for (got, x) in widened(&out).iter().zip(&x) {
                assert!(same(*got, T::round(*x).widen()), "{x} became {got}");
            }
            for (got, want) in back.values().iter().zip(&wide) {
                assert!(same(*got, *want), "{want} became {got}");
            }
        }
        check(bf16::from_bits);
        check(f16::from_bits);
    }
}

mod dropout {
    use super::*;

    #[test]
    fn the_mask_is_the_cpus_also_where_the_indexs_upper_half_changes() {
        for (p, key) in [(0.1, 0), (0.3, u64::MAX), (1.0, 5), (0.999_999_94, 1 << 40)] {
            for start in [0, 12_345, (1u64 << 32) - 50, (7 << 32) - 1] {
                let out = unwritten::<f32>(200);
                launch(
                    "mask_factors",
                    [1, 1, 1],
                    [32, 1],
                    0,
                    (out.at(), start, 200u32, p, key),
                );
                let mut want = vec![0.0; 200];
                Dropout { p, key }.factors(start, &mut want);
                assert_eq!(out.values(), want, "{p} {key} {start}");
            }
        }
    }

    #[test]
    fn a_part_of_a_tensor_has_the_tensors_mask() {
        let half = 1u64 << 32;
        for (base, first) in [
            (0, 0),
            (12_345, 678),
            (half - 50, 0),
            (half - 1000, 900),
            (7 * half + 5, u32::MAX - 100),
            (8 * half - 1, u32::MAX - 200),
        ] {
            let (out, p, key) = (unwritten::<f32>(200), 0.3, 11u64);
            launch(
                "part_factors",
                [1, 1, 1],
                [32, 1],
                0,
                (out.at(), base, first, 200u32, p, key),
            );
            let mut want = vec![0.0; 200];
            Dropout { p, key }.factors(base + u64::from(first), &mut want);
            // 2^32 elements behind the base nothing belongs to the part.
            let within = (u32::MAX - first).min(199) as usize + 1;
            assert_eq!(out.values()[..within], want[..within], "{base} {first}");
        }
    }

    fn check<T: Element>() {
        for (n, grid) in [(1, 1), (7, 1), (2048, 1), (5003, 2)] {
            for dropout in DROPOUTS {
                let x = rounded::<T>(&noise(n, 1));
                let want = values(&ops::dropout(&tensor(&x, &[n]), dropout).unwrap());
                for got in in_all_orders(|| {
                    let (out, x) = (unwritten::<T>(n), activations::<T>(&x));
                    let name = format!("dropout_{}", T::NAME);
                    let arguments = (out.at(), x.at(), n as u64, dropout.p, dropout.key);
                    launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                    // In place.
                    let arguments = (x.at(), x.at(), n as u64, dropout.p, dropout.key);
                    launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                    vec![widened(&out), widened(&x)]
                }) {
                    assert_eq!(got[0], rounded::<T>(&want));
                    assert_eq!(got[1], got[0]);
                }
            }
        }
    }

    #[test]
    fn every_type_drops_what_the_cpu_drops() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }
}

mod arithmetic {
    use super::*;

    fn check<T: Element>() {
        for (n, grid) in [(1, 1), (7, 1), (2048, 1), (5003, 2)] {
            let (a, b) = (rounded::<T>(&noise(n, 1)), rounded::<T>(&noise(n, 2)));
            let sum: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
            let multiple: Vec<f32> = a.iter().map(|a| a * 0.3).collect();
            for got in in_all_orders(|| {
                let (x, y) = (activations::<T>(&a), activations::<T>(&b));
                let [out, scaled] = [(); 2].map(|()| unwritten::<T>(n));
                let add = |to: &Buffer<T>| {
                    let name = format!("add_{}", T::NAME);
                    let arguments = (to.at(), x.at(), y.at(), n as u64);
                    launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                };
                let scale = |to: &Buffer<T>, from: &Buffer<T>| {
                    let name = format!("scale_{}", T::NAME);
                    let arguments = (to.at(), from.at(), n as u64, 0.3f32);
                    launch(&name, [grid, 1, 1], [256, 1], 0, arguments);
                };
                add(&out);
                scale(&scaled, &x);
                // In place.
                add(&x);
                scale(&y, &y);
                vec![widened(&out), widened(&scaled), widened(&x), widened(&y)]
            }) {
                assert_eq!(got[0], rounded::<T>(&sum));
                assert_eq!(got[1], rounded::<T>(&multiple));
                assert_eq!(got[2], got[0]);
                let multiple: Vec<f32> = b.iter().map(|b| b * 0.3).collect();
                assert_eq!(got[3], rounded::<T>(&multiple));
            }
        }
    }

    #[test]
    fn sums_and_multiples_are_the_cpus_in_every_type() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }
}

mod reduce {
    use super::*;

    #[test]
    fn parts_are_added_up_into_one_or_two_gradients() {
        for (parts, width) in [(1, 1), (5, 30), (40, 768), (9, 33)] {
            let partials = noise(parts * 2 * width, 1);
            let before = noise(width, 2);
            let sums = |first: usize, stride: usize| -> Vec<f32> {
                let column = |c: usize| {
                    (0..parts)
                        .map(|p| f64::from(partials[p * stride + first + c]))
                        .sum::<f64>()
                };
                (0..width).map(|c| column(c) as f32).collect()
            };
            let added = |sums: Vec<f32>| -> Vec<f32> {
                sums.iter()
                    .zip(&before)
                    .map(|(sum, before)| sum + before)
                    .collect()
            };
            for got in in_all_orders(|| {
                let both = [Buffer::new(&before), Buffer::new(&before)];
                let buffer = Buffer::new(&partials);
                super::reduce(
                    [Some(&both[0]), Some(&both[1])],
                    &buffer,
                    parts,
                    width,
                    [1, 0],
                );
                let one = Buffer::new(&partials[..parts * width]);
                let single = unwritten::<f32>(width);
                super::reduce([Some(&single), None], &one, parts, width, [0, 0]);
                vec![both[0].values(), both[1].values(), single.values()]
            }) {
                close::<f32>("added", &got[0], &added(sums(0, 2 * width)), 1e-6);
                close::<f32>("overwritten", &got[1], &sums(width, 2 * width), 1e-6);
                close::<f32>("single", &got[2], &sums(0, width), 1e-6);
            }
        }
    }

    #[test]
    fn values_are_summed_and_scaled() {
        for n in [1, 7, 256, 10_001] {
            let x = noise(n, 5);
            let want = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n as f64;
            for got in in_all_orders(|| {
                let (out, x) = (unwritten::<f32>(1), Buffer::new(&x));
                let arguments = (out.at(), x.at(), n as u32, 1.0 / n as f32);
                launch("sum_values", [1, 1, 1], [256, 1], 0, arguments);
                vec![out.values()]
            }) {
                assert!((f64::from(got[0][0]) - want).abs() < 1e-7, "{n}");
            }
        }
    }
}

mod layer_norm {
    use super::*;

    const EPS: f64 = 1e-5;

    struct Case<T> {
        rows: usize,
        width: usize,
        residual: bool,
        bias: bool,
        dropout: Dropout,
        element: std::marker::PhantomData<T>,
    }

    impl<T: Element> Case<T> {
        fn check(&self, edit: impl Fn(&mut [f32])) {
            let &Self {
                rows,
                width,
                dropout,
                ..
            } = self;
            let shape = [rows, width];
            let n = rows * width;
            let mut x = noise(n, 1);
            edit(&mut x);
            let x = rounded::<T>(&x);
            let residual = rounded::<T>(&noise(n, 2));
            let dy = rounded::<T>(&noise(n, 3));
            let (w, b) = (noise(width, 4), noise(width, 5));

            let inputs = [var(&x, &shape), var(&residual, &shape)];
            let (weight, bias) = (param(&w, &[width]), param(&b, &[width]));
            let some_bias = self.bias.then_some(&bias);
            let y = if self.residual {
                ops::add_layer_norm(&inputs[0], &inputs[1], &weight, some_bias, EPS, dropout)
            } else {
                let dropped = ops::dropout(&inputs[0], dropout).unwrap();
                ops::layer_norm(&dropped, &weight, some_bias, EPS)
            }
            .unwrap();
            let grads = gradients(&y, &dy, &[&inputs[0], &inputs[1]]);

            for got in in_all_orders(|| self.run(&x, &residual, &dy, &w, &b)) {
                close::<T>("y", &got[0], &values(&y), 1e-5);
                close::<T>("dx", &got[2], &grads[0], 1e-5);
                if self.residual {
                    close::<T>("dsum", &got[1], &grads[1], 1e-5);
                }
                close::<f32>("dw", &got[3], &grad_of(&weight), 1e-5);
                if self.bias {
                    close::<f32>("db", &got[4], &grad_of(&bias), 1e-5);
                }
            }
        }

        /// y, dsum, dx, dw, db.
        fn run(
            &self,
            x: &[f32],
            residual: &[f32],
            dy: &[f32],
            w: &[f32],
            b: &[f32],
        ) -> Vec<Vec<f32>> {
            let &Self {
                rows,
                width,
                dropout,
                ..
            } = self;
            let n = rows * width;
            let [x, residual, dy] = [x, residual, dy].map(activations::<T>);
            let [w, b] = [w, b].map(Buffer::new);
            let residual = if self.residual { residual.at() } else { NULL };
            let y = unwritten::<T>(n);
            let [mean, rstd] = [(); 2].map(|()| unwritten::<f32>(rows));
            let block = row_block(width, 8);
            launch(
                &format!("layer_norm_forward_{}", T::NAME),
                [rows.div_ceil(block[1]), 1, 1],
                block,
                4 * block[1] * width,
                (
                    y.at(),
                    mean.at(),
                    rstd.at(),
                    x.at(),
                    residual,
                    w.at(),
                    if self.bias { b.at() } else { NULL },
                    rows as u32,
                    width as u32,
                    EPS as f32,
                    dropout.p,
                    dropout.key,
                ),
            );
            let block = row_block(width, (49_152 / (16 * width)).clamp(1, 8));
            // Fewer blocks than rows, so that blocks have several.
            let blocks = rows.div_ceil(block[1]).min(2);
            let [dsum, dx] = [(); 2].map(|()| unwritten::<T>(n));
            let partials = unwritten::<f32>(blocks * 2 * width);
            launch(
                &format!("layer_norm_backward_{}", T::NAME),
                [blocks, 1, 1],
                block,
                16 * block[1] * width,
                (
                    dsum.at(),
                    if dropout.is_active() { dx.at() } else { NULL },
                    partials.at(),
                    dy.at(),
                    x.at(),
                    residual,
                    w.at(),
                    mean.at(),
                    rstd.at(),
                    rows as u32,
                    width as u32,
                    dropout.p,
                    dropout.key,
                ),
            );
            let [dw, db] = [(); 2].map(|()| unwritten::<f32>(width));
            reduce([Some(&dw), Some(&db)], &partials, blocks, width, [0, 0]);
            let dx = if dropout.is_active() { &dx } else { &dsum };
            vec![
                widened(&y),
                widened(&dsum),
                widened(dx),
                dw.values(),
                db.values(),
            ]
        }
    }

    fn check<T: Element>() {
        for (rows, width) in [
            (1, 1),
            (7, 30),
            (7, 768),
            (40, 8),
            (1, 1000),
            (3, 1500),
            (2, 1024),
        ] {
            for dropout in DROPOUTS {
                for (residual, bias) in [(true, true), (false, false)] {
                    let element = std::marker::PhantomData;
                    Case::<T> {
                        rows,
                        width,
                        residual,
                        bias,
                        dropout,
                        element,
                    }
                    .check(|_| ());
                }
            }
        }
    }

    #[test]
    fn f32_is_the_cpus() {
        check::<f32>();
    }

    #[test]
    fn narrow_types_are_the_cpus_rounded() {
        check::<bf16>();
        check::<f16>();
    }

    #[test]
    fn nan_stays_in_its_row() {
        for (rows, width) in [(3, 30), (3, 768), (2, 1500)] {
            let case = Case::<f32> {
                rows,
                width,
                residual: true,
                bias: true,
                dropout: NO_DROPOUT,
                element: std::marker::PhantomData,
            };
            case.check(|x| x[width + width / 2] = f32::NAN);
        }
    }
}

mod activation {
    use super::*;

    const ALL: [Activation; 6] = [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Linear,
    ];

    fn check<T: Element>() {
        for (rows, width) in [(1, 1), (7, 30), (130, 40), (5, 1000), (9, 768)] {
            for (code, activation) in ALL.into_iter().enumerate() {
                for with_bias in [true, false] {
                    case::<T>([rows, width], code as u32, activation, with_bias);
                }
            }
        }
    }

    fn case<T: Element>(
        [rows, width]: [usize; 2],
        code: u32,
        activation: Activation,
        with_bias: bool,
    ) {
        let n = rows * width;
        let mut x: Vec<f32> = noise(n, 1).iter().map(|x| 5.0 * x).collect();
        for (x, extreme) in x[n / 2..].iter_mut().zip([0.0, -1e4, 1e4, f32::NAN]) {
            *x = extreme;
        }
        let x = rounded::<T>(&x);
        let dy = rounded::<T>(&noise(n, 2));
        let b = if with_bias {
            noise(width, 3)
        } else {
            vec![0.0; width]
        };
        let sums: Vec<f32> = x
            .iter()
            .enumerate()
            .map(|(i, x)| x + b[i % width])
            .collect();
        let input = var(&sums, &[rows, width]);
        let y = activation.apply(&input).unwrap();
        let dx = gradients(&y, &dy, &[&input]).remove(0);
        let db: Vec<f32> = (0..width)
            .map(|c| (0..rows).map(|r| f64::from(dx[r * width + c])).sum::<f64>() as f32)
            .collect();
        let plain: Vec<f32> = (0..width)
            .map(|c| (0..rows).map(|r| f64::from(x[r * width + c])).sum::<f64>() as f32)
            .collect();
        for got in in_all_orders(|| {
            let [dy, x] = [&dy, &x].map(|x| activations::<T>(x));
            let b = Buffer::new(&b);
            let bias = if with_bias { b.at() } else { NULL };
            let [y, dx] = [(); 2].map(|()| unwritten::<T>(n));
            let (grid, parts) = column_grid::<T>(rows, width);
            let sizes = (rows as u32, width as u32);
            launch(
                &format!("bias_act_forward_{}", T::NAME),
                [grid[0], rows.div_ceil(32), 1],
                [32, 8],
                0,
                (y.at(), x.at(), bias, sizes.0, sizes.1, code),
            );
            let [partials, columns] = [(); 2].map(|()| unwritten::<f32>(parts * width));
            launch(
                &format!("bias_act_backward_{}", T::NAME),
                grid,
                [32, 8],
                0,
                (
                    dx.at(),
                    partials.at(),
                    dy.at(),
                    x.at(),
                    bias,
                    sizes.0,
                    sizes.1,
                    code,
                ),
            );
            launch(
                &format!("column_sums_{}", T::NAME),
                grid,
                [32, 8],
                0,
                (columns.at(), x.at(), sizes.0, sizes.1, sizes.1),
            );
            let [db, plain] = [(); 2].map(|()| unwritten::<f32>(width));
            reduce([Some(&db), None], &partials, parts, width, [0, 0]);
            reduce([Some(&plain), None], &columns, parts, width, [0, 0]);
            // In the gradient's place.
            launch(
                &format!("bias_act_backward_{}", T::NAME),
                grid,
                [32, 8],
                0,
                (dy.at(), NULL, dy.at(), x.at(), bias, sizes.0, sizes.1, code),
            );
            vec![
                widened(&y),
                widened(&dx),
                db.values(),
                plain.values(),
                widened(&dy),
            ]
        }) {
            let what = |part| format!("{activation:?} {rows} {width} {part}");
            close::<T>(&what("y"), &got[0], &values(&y), 1e-5);
            close::<T>(&what("dx"), &got[1], &dx, 1e-5);
            close::<f32>(&what("db"), &got[2], &db, 1e-5);
            close::<f32>(&what("sums"), &got[3], &plain, 1e-5);
            close::<T>(&what("dx in place"), &got[4], &got[1], 0.0);
        }
    }

    #[test]
    fn f32_is_the_cpus() {
        check::<f32>();
    }

    #[test]
    fn narrow_types_are_the_cpus_rounded() {
        check::<bf16>();
        check::<f16>();
    }

    #[test]
    fn column_sums_pass_over_what_lies_between_rows() {
        fn check<T: Element>() {
            for (rows, width, stride) in [(7, 30, 31), (70, 101, 104)] {
                let mut x = noise(rows * stride, 1);
                for row in x.chunks_mut(stride) {
                    row[width..].fill(f32::NAN);
                }
                let x = rounded::<T>(&x);
                let want: Vec<f32> = (0..width)
                    .map(|c| (0..rows).map(|r| x[r * stride + c]).sum::<f32>())
                    .collect();
                for got in in_all_orders(|| {
                    let x = activations::<T>(&x);
                    let (grid, parts) = column_grid::<T>(rows, width);
                    let (partials, sums) =
                        (unwritten::<f32>(parts * width), unwritten::<f32>(width));
                    let arguments = (
                        partials.at(),
                        x.at(),
                        rows as u32,
                        width as u32,
                        stride as u32,
                    );
                    launch(
                        &format!("column_sums_{}", T::NAME),
                        grid,
                        [32, 8],
                        0,
                        arguments,
                    );
                    reduce([Some(&sums), None], &partials, parts, width, [0, 0]);
                    vec![sums.values()]
                }) {
                    close::<f32>("sums", &got[0], &want, 1e-5);
                }
            }
        }
        check::<f32>();
        check::<bf16>();
    }
}

mod softmax {
    use super::*;

    struct Case {
        batch: usize,
        heads: usize,
        queries: usize,
        keys: usize,
        mask: Mask,
        dropout: Dropout,
    }

    #[derive(Clone)]
    enum Mask {
        None,
        Keys(Vec<u32>),
        /// Values, and the shape that is broadcast.
        Additive(Vec<f32>, [usize; 4]),
    }

    const SCALE: f32 = 0.7;

    impl Case {
        fn rows(&self) -> usize {
            self.batch * self.heads * self.queries
        }

        fn strides(&self) -> [u64; 4] {
            let Mask::Additive(_, shape) = &self.mask else {
                return [0; 4];
            };
            let mut strides = [0; 4];
            let mut step = 1;
            for dim in (0..4).rev() {
                strides[dim] = if shape[dim] == 1 { 0 } else { step };
                step *= shape[dim] as u64;
            }
            strides
        }

        /// The probabilities, in f64.
        fn expected(&self, scores: &[f32]) -> Vec<f32> {
            let Case {
                heads,
                queries,
                keys,
                ..
            } = *self;
            let strides = self.strides();
            let mut all = vec![];
            for row in 0..self.rows() {
                let [b, h, q] = [row / queries / heads, row / queries % heads, row % queries];
                let hidden = |k: usize| match &self.mask {
                    Mask::Keys(mask) => mask[b * keys + k] == 0,
                    _ => false,
                };
                let even = (0..keys).all(hidden);
                let score = |k: usize| {
                    let scaled = f64::from(scores[row * keys + k]) * f64::from(SCALE);
                    match &self.mask {
                        _ if even => 0.0,
                        Mask::Additive(bias, _) => {
                            let at = [b, h, q, k]
                                .into_iter()
                                .zip(strides)
                                .map(|(i, s)| i as u64 * s);
                            scaled + f64::from(bias[at.sum::<u64>() as usize])
                        }
                        _ if hidden(k) => f64::NEG_INFINITY,
                        _ => scaled,
                    }
                };
                let top = (0..keys).map(score).fold(f64::NEG_INFINITY, f64::max);
                let exps: Vec<f64> = (0..keys).map(|k| (score(k) - top).exp()).collect();
                let sum: f64 = exps.iter().sum();
                all.extend(exps.iter().map(|exp| (exp / sum) as f32));
            }
            all
        }

        /// In f64, what becomes of these probabilities under dropout, and the gradient of the masked scores.
        fn expected_backward(&self, probs: &[f32], dprobs: &[f32]) -> [Vec<f32>; 2] {
            let mut all = [vec![], vec![]];
            for (row, (probs, dprobs)) in probs
                .chunks(self.keys)
                .zip(dprobs.chunks(self.keys))
                .enumerate()
            {
                let factor = |k: usize| match self.dropout.is_active() {
                    true => f64::from(self.dropout.factor((row * self.keys + k) as u64)),
                    false => 1.0,
                };
                let prob = |k: usize| f64::from(probs[k]);
                let grad = |k: usize| f64::from(dprobs[k]) * factor(k);
                let inner: f64 = (0..self.keys).map(|k| prob(k) * grad(k)).sum();
                for k in 0..self.keys {
                    all[0].push((prob(k) * factor(k)) as f32);
                    all[1].push((prob(k) * (grad(k) - inner)) as f32);
                }
            }
            all
        }

        /// Probabilities before and after dropout, the dropped again from backward, the gradient of the scores.
        fn run<T: Element>(&self, scores: &[f32], dprobs: &[f32]) -> Vec<Vec<f32>> {
            let &Case {
                batch,
                heads,
                queries,
                keys,
                dropout,
                ..
            } = self;
            let n = self.rows() * keys;
            let [scores, dprobs] = [scores, dprobs].map(activations::<T>);
            let [dropped, again] = [(); 2].map(|()| unwritten::<T>(n));
            let (mask, bias) = match &self.mask {
                Mask::None => (None, None),
                Mask::Keys(mask) => (Some(Buffer::new(mask)), None),
                Mask::Additive(bias, _) => (None, Some(activations::<T>(bias))),
            };
            let strides = self.strides();
            let if_active = |x: &Buffer<T>| if dropout.is_active() { x.at() } else { NULL };
            let block = row_block(keys, 8);
            // The probabilities take the scores' place.
            launch(
                &format!("softmax_forward_{}", T::NAME),
                [self.rows().div_ceil(block[1]), 1, 1],
                block,
                4 * block[1] * keys,
                (
                    scores.at(),
                    if_active(&dropped),
                    scores.at(),
                    mask.as_ref().map_or(NULL, Buffer::at),
                    bias.as_ref().map_or(NULL, Buffer::at),
                    batch as u32,
                    heads as u32,
                    queries as u32,
                    keys as u32,
                    strides[0],
                    strides[1],
                    strides[2],
                    strides[3],
                    SCALE,
                    dropout.p,
                    dropout.key,
                ),
            );
            let block = row_block(keys, 4);
            launch(
                &format!("softmax_backward_{}", T::NAME),
                [self.rows().div_ceil(block[1]), 1, 1],
                block,
                8 * block[1] * keys,
                (
                    dprobs.at(),
                    if_active(&again),
                    dprobs.at(),
                    scores.at(),
                    self.rows() as u64,
                    keys as u32,
                    dropout.p,
                    dropout.key,
                ),
            );
            let pick = |x| widened(if dropout.is_active() { x } else { &scores });
            vec![
                widened(&scores),
                pick(&dropped),
                pick(&again),
                widened(&dprobs),
            ]
        }

        fn check<T: Element>(&self) {
            let n = self.rows() * self.keys;
            let scores: Vec<f32> = noise(n, 1).iter().map(|x| 6.0 * x).collect();
            let (scores, dprobs) = (rounded::<T>(&scores), rounded::<T>(&noise(n, 2)));
            let rounding = Case {
                mask: match &self.mask {
                    Mask::Additive(bias, shape) => Mask::Additive(rounded::<T>(bias), *shape),
                    other => other.clone(),
                },
                ..*self
            };
            let want = rounding.expected(&scores);
            for got in in_all_orders(|| rounding.run::<T>(&scores, &dprobs)) {
                close::<T>("probs", &got[0], &want, 1e-5);
                let [dropped, _] = rounding.expected_backward(&want, &dprobs);
                close::<T>("dropped", &got[1], &dropped, 1e-5);
                let [again, dscores] = rounding.expected_backward(&got[0], &dprobs);
                close::<T>("dropped again", &got[2], &again, 1e-5);
                close::<T>("dscores", &got[3], &dscores, 1e-5);
            }
        }
    }

    /// Keys of two sequences: one padded behind and with a hole, one of which nothing may be seen.
    fn padding(keys: usize) -> Vec<u32> {
        let seen = |k| u32::from(k == 0 || k < keys * 2 / 3 && k != 1);
        (0..2 * keys)
            .map(|i| if i < keys { seen(i) } else { 0 })
            .collect()
    }

    fn cases() -> Vec<Case> {
        let mut cases = Vec::new();
        for [heads, queries, keys] in [[3, 5, 5], [1, 7, 128], [2, 3, 200], [1, 2, 1500], [1, 1, 1]]
        {
            let masks = [
                Mask::None,
                Mask::Keys(padding(keys)),
                Mask::Additive(noise(heads * queries * keys, 8), [1, heads, queries, keys]),
                Mask::Additive(noise(2 * keys, 9), [2, 1, 1, keys]),
                Mask::Additive(noise(2 * queries, 9), [2, 1, queries, 1]),
            ];
            for mask in masks {
                for dropout in DROPOUTS {
                    let mask = mask.clone();
                    cases.push(Case {
                        batch: 2,
                        heads,
                        queries,
                        keys,
                        mask,
                        dropout,
                    });
                }
            }
        }
        cases
    }

    #[test]
    fn every_mask_and_type_is_the_softmax_in_f64() {
        for case in cases() {
            case.check::<f32>();
            case.check::<bf16>();
            case.check::<f16>();
        }
    }

    #[test]
    fn nan_stays_in_its_row() {
        for keys in [5, 128, 1500] {
            let case = Case {
                batch: 1,
                heads: 1,
                queries: 3,
                keys,
                mask: Mask::None,
                dropout: NO_DROPOUT,
            };
            let mut scores = noise(3 * keys, 1);
            scores[keys + 2] = f32::NAN;
            for got in in_all_orders(|| case.run::<f32>(&scores, &noise(3 * keys, 2))) {
                for got in got {
                    assert!(
                        got[..keys]
                            .iter()
                            .chain(&got[2 * keys..])
                            .all(|x| x.is_finite())
                    );
                    assert!(got[keys..2 * keys].iter().all(|x| x.is_nan()));
                }
            }
        }
    }

    /// a (m, k) times b (k, n), of which each element is named.
    fn product(
        [m, k, n]: [usize; 3],
        a: impl Fn(usize, usize) -> f32,
        b: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let sum = |i, j| {
            (0..k)
                .map(|l| f64::from(a(i, l)) * f64::from(b(l, j)))
                .sum::<f64>() as f32
        };
        (0..m * n).map(|at| sum(at / n, at % n)).collect()
    }

    #[test]
    fn between_two_products_it_is_the_cpus_attention() {
        const D: usize = 8;
        for case in cases().into_iter().filter(|case| case.keys <= 200) {
            let Case {
                batch,
                heads,
                queries,
                keys,
                dropout,
                ..
            } = case;
            let width = heads * D;
            let shapes = [
                [batch, queries, width],
                [batch, keys, width],
                [batch, keys, width],
            ];
            let [q, k, v] = [0, 1, 2].map(|i| noise(shapes[i].iter().product(), i as u64));
            let dout = noise(q.len(), 7);
            let at = |b: usize, h: usize, seq: usize, i: usize, d: usize| {
                (b * seq + i) * width + h * D + d
            };
            let each = |f: &dyn Fn(usize, usize) -> Vec<f32>| -> Vec<f32> {
                (0..batch * heads)
                    .flat_map(|i| f(i / heads, i % heads))
                    .collect()
            };
            let scores = each(&|b, h| {
                let (q, k) = (&q, &k);
                product(
                    [queries, D, keys],
                    |i, d| q[at(b, h, queries, i, d)],
                    |d, j| k[at(b, h, keys, j, d)],
                )
            });
            let dprobs = each(&|b, h| {
                let (g, v) = (&dout, &v);
                product(
                    [queries, D, keys],
                    |i, d| g[at(b, h, queries, i, d)],
                    |d, j| v[at(b, h, keys, j, d)],
                )
            });
            let got = case.run::<f32>(&scores, &dprobs);
            let (dropped, dscores) = (&got[1], &got[3]);
            let mut outcome =
                [0, 1, 2, 1].map(|i: usize| vec![0f32; shapes[i.min(1)].iter().product()]);
            for (b, h) in (0..batch * heads).map(|i| (i / heads, i % heads)) {
                let first = (b * heads + h) * queries * keys;
                let (p, s) = (&dropped[first..], &dscores[first..]);
                let out = product(
                    [queries, keys, D],
                    |i, j| p[i * keys + j],
                    |j, d| v[at(b, h, keys, j, d)],
                );
                let dq = product(
                    [queries, keys, D],
                    |i, j| s[i * keys + j] * SCALE,
                    |j, d| k[at(b, h, keys, j, d)],
                );
                let dk = product(
                    [keys, queries, D],
                    |j, i| s[i * keys + j] * SCALE,
                    |i, d| q[at(b, h, queries, i, d)],
                );
                let dv = product(
                    [keys, queries, D],
                    |j, i| p[i * keys + j],
                    |i, d| dout[at(b, h, queries, i, d)],
                );
                for (i, d) in (0..queries * D).map(|i| (i / D, i % D)) {
                    outcome[0][at(b, h, queries, i, d)] = out[i * D + d];
                    outcome[3].resize(q.len(), 0.0);
                    outcome[3][at(b, h, queries, i, d)] = dq[i * D + d];
                }
                for (j, d) in (0..keys * D).map(|j| (j / D, j % D)) {
                    outcome[1][at(b, h, keys, j, d)] = dk[j * D + d];
                    outcome[2][at(b, h, keys, j, d)] = dv[j * D + d];
                }
            }
            let inputs = [
                var(&q, &shapes[0]),
                var(&k, &shapes[1]),
                var(&v, &shapes[2]),
            ];
            let mask = match &case.mask {
                Mask::None => AttentionMask::None,
                Mask::Keys(mask) => AttentionMask::Keys(
                    Tensor::from_vec(mask.clone(), (batch, keys), &Device::Cpu).unwrap(),
                ),
                Mask::Additive(bias, shape) => AttentionMask::Additive(tensor(bias, shape)),
            };
            let [vq, vk, vv] = &inputs;
            let out = ops::attention(vq, vk, vv, heads, &mask, f64::from(SCALE), dropout).unwrap();
            let grads = gradients(&out, &dout, &[vq, vk, vv]);
            close::<f32>("out", &outcome[0], &values(&out), 1e-5);
            close::<f32>("dq", &outcome[3], &grads[0], 1e-5);
            close::<f32>("dk", &outcome[1], &grads[1], 1e-5);
            close::<f32>("dv", &outcome[2], &grads[2], 1e-5);
        }
    }
}

mod cross_entropy {
    use super::*;

    /// The label of a row that does not count.
    const NONE: u32 = u32::MAX;
    /// The gradient of the loss: large, so that its roundings stand out.
    const UPSTREAM: f32 = 1000.0;

    struct Case {
        rows: usize,
        vocab: usize,
        stride: usize,
        bias: bool,
    }

    impl Case {
        fn labels(&self) -> Vec<u32> {
            let label = |row| (row * 7919 % self.vocab) as u32;
            (0..self.rows)
                .map(|row| if row == 1 { NONE } else { label(row) })
                .collect()
        }

        /// Rows of logits, NaN between them.
        fn logits(&self) -> Vec<f32> {
            let mut logits: Vec<f32> = noise(self.rows * self.stride, 1)
                .iter()
                .map(|x| 8.0 * x)
                .collect();
            for row in logits.chunks_mut(self.stride) {
                row[self.vocab..].fill(f32::NAN);
            }
            logits
        }

        fn bias_values(&self) -> Vec<f32> {
            if self.bias {
                noise(self.vocab, 2)
            } else {
                vec![0.0; self.vocab]
            }
        }

        /// By the CPU's operation, one row at a time: its loss, and the gradient of its logits.
        fn expected(&self, logits: &[f32], bias: &[f32]) -> [Vec<f32>; 2] {
            let Case { vocab, stride, .. } = *self;
            let (mut losses, mut grads) = (vec![], vec![]);
            for (row, &label) in logits.chunks(stride).zip(&self.labels()) {
                if label == NONE {
                    losses.push(0.0);
                    grads.extend(std::iter::repeat_n(0.0, stride));
                    continue;
                }
                // The logits are the product of a one with them.
                let weight = param(&row[..vocab], &[vocab, 1]);
                let bias = param(bias, &[vocab]);
                let labels = Tensor::from_vec(vec![label], 1, &Device::Cpu).unwrap();
                let hidden = tensor(&[1.0], &[1, 1]);
                let loss =
                    ops::masked_cross_entropy(&hidden, &weight, Some(&bias), &labels).unwrap();
                gradients(&loss, &[UPSTREAM], &[]);
                losses.push(values(&loss)[0]);
                grads.extend(grad_of(&weight));
                grads.extend(std::iter::repeat_n(0.0, stride - vocab));
            }
            [losses, grads]
        }

        fn check<T: Element, U: Element>(&self, suffix: &str) {
            let Case {
                rows,
                vocab,
                stride,
                ..
            } = *self;
            let (logits, bias, labels) = (
                rounded::<T>(&self.logits()),
                self.bias_values(),
                self.labels(),
            );
            let [want_losses, want_grads] = self.expected(&logits, &bias);
            let in_place = T::NAME == U::NAME;
            for got in in_all_orders(|| {
                let [x, y] = [(); 2].map(|()| activations::<T>(&logits));
                let [to_x, to_y] = [(); 2].map(|()| unwritten::<U>(rows * stride));
                let (bias, labels) = (Buffer::new(&bias), Buffer::new(&labels));
                let bias_at = if self.bias { bias.at() } else { NULL };
                let scale = Buffer::new(&[UPSTREAM]);
                let [losses, lse, fused_losses] = [(); 3].map(|()| unwritten::<f32>(rows));
                let correct = Buffer::new(&vec![9u32; rows]);
                let sizes = (rows as u32, vocab as u32, stride as u32);
                launch(
                    &format!("cross_entropy_forward_{}", T::NAME),
                    [rows, 1, 1],
                    [512, 1],
                    0,
                    (
                        losses.at(),
                        lse.at(),
                        correct.at(),
                        x.at(),
                        bias_at,
                        labels.at(),
                        sizes.0,
                        sizes.1,
                        sizes.2,
                    ),
                );
                launch(
                    &format!("cross_entropy_backward_{suffix}"),
                    [rows, 1, 1],
                    [512, 1],
                    0,
                    (
                        if in_place { x.at() } else { to_x.at() },
                        x.at(),
                        bias_at,
                        labels.at(),
                        lse.at(),
                        scale.at(),
                        sizes.0,
                        sizes.1,
                        sizes.2,
                    ),
                );
                launch(
                    &format!("cross_entropy_fused_{suffix}"),
                    [rows, 1, 1],
                    [512, 1],
                    0,
                    (
                        fused_losses.at(),
                        if in_place { y.at() } else { to_y.at() },
                        y.at(),
                        bias_at,
                        labels.at(),
                        scale.at(),
                        sizes.0,
                        sizes.1,
                        sizes.2,
                    ),
                );
                let picked = correct.values().iter().map(|&c| c as f32).collect();
                let [dx, dy] = if in_place {
                    [widened(&x), widened(&y)]
                } else {
                    [widened(&to_x), widened(&to_y)]
                };
                vec![losses.values(), picked, dx, fused_losses.values(), dy]
            }) {
                close::<f32>("losses", &got[0], &want_losses, 1e-5);
                close::<f32>("fused losses", &got[3], &want_losses, 1e-5);
                close::<U>("gradient", &got[2], &want_grads, 1e-5);
                close::<U>("fused gradient", &got[4], &want_grads, 1e-5);
                let sums: Vec<Vec<f32>> = (logits.chunks(stride))
                    .map(|row| row[..vocab].iter().zip(&bias).map(|(x, b)| x + b).collect())
                    .collect();
                for ((row, &label), &picked) in sums.iter().zip(&labels).zip(&got[1]) {
                    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let first = row.iter().position(|&x| x == top).unwrap();
                    assert_eq!(picked == 1.0, first == label as usize);
                }
            }
        }
    }

    #[test]
    fn losses_and_gradients_are_the_cpus() {
        for [rows, vocab, stride] in [[3, 1, 1], [3, 7, 8], [5, 1009, 1009], [4, 2000, 2000]] {
            for bias in [true, false] {
                let case = Case {
                    rows,
                    vocab,
                    stride,
                    bias,
                };
                case.check::<f32, f32>("f32");
                case.check::<bf16, bf16>("bf16");
                case.check::<f16, f16>("f16");
                case.check::<f32, bf16>("f32_bf16");
                case.check::<f32, f16>("f32_f16");
            }
        }
    }

    #[test]
    fn a_whole_vocabulary_of_odd_size_is_the_cpus() {
        let bias = true;
        let (rows, vocab) = (2, 50_265);
        Case {
            rows,
            vocab,
            stride: vocab,
            bias,
        }
        .check::<bf16, bf16>("bf16");
        let stride = 50_272;
        Case {
            rows,
            vocab,
            stride,
            bias,
        }
        .check::<f32, bf16>("f32_bf16");
    }

    #[test]
    fn of_equal_logits_the_first_is_the_largest() {
        // In one thread's columns, in one warp's, in two warps'; before the first multiple of 16 bytes and behind the last.
        for (first, second) in [(9, 11), (1, 40), (3, 900), (1, 1008), (0, 2)] {
            let mut logits = noise(2 * 1009, 1);
            for row in logits.chunks_mut(1009) {
                (row[first], row[second]) = (2.0, 2.0);
            }
            let labels = [first as u32, second as u32];
            for got in in_all_orders(|| {
                let [losses, lse] = [(); 2].map(|()| unwritten::<f32>(2));
                let (correct, x, labels) = (
                    Buffer::new(&[9u32; 2]),
                    Buffer::new(&logits),
                    Buffer::new(&labels),
                );
                let sizes = (2u32, 1009u32, 1009u32);
                launch(
                    "cross_entropy_forward_f32",
                    [2, 1, 1],
                    [512, 1],
                    0,
                    (
                        losses.at(),
                        lse.at(),
                        correct.at(),
                        x.at(),
                        NULL,
                        labels.at(),
                        sizes.0,
                        sizes.1,
                        sizes.2,
                    ),
                );
                vec![correct.values().iter().map(|&c| c as f32).collect()]
            }) {
                assert_eq!(got[0], [1.0, 0.0], "{first} {second}");
            }
        }
    }

    #[test]
    fn nan_and_infinities_show_as_on_the_cpu() {
        let case = Case {
            rows: 4,
            vocab: 1009,
            stride: 1009,
            bias: false,
        };
        let mut logits = case.logits();
        logits[3] = f32::NAN;
        logits[2 * 1009 + 3] = f32::INFINITY;
        logits[3 * 1009..][..600].fill(f32::NEG_INFINITY);
        let labels = Buffer::new(&[5u32, 5, 5, 700]);
        let [losses, lse] = [(); 2].map(|()| unwritten::<f32>(4));
        let x = Buffer::new(&logits);
        launch(
            "cross_entropy_forward_f32",
            [4, 1, 1],
            [512, 1],
            0,
            (
                losses.at(),
                lse.at(),
                NULL,
                x.at(),
                NULL,
                labels.at(),
                4u32,
                1009u32,
                1009u32,
            ),
        );
        let got = losses.values();
        assert!(
            got[0].is_nan() && got[1].is_finite() && !got[2].is_finite(),
            "{got:?}"
        );
        let row = param(&logits[3 * 1009..], &[1009, 1]);
        let label = Tensor::from_vec(vec![700u32], 1, &Device::Cpu).unwrap();
        let want = ops::masked_cross_entropy(&tensor(&[1.0], &[1, 1]), &row, None, &label).unwrap();
        close::<f32>("loss", &got[3..], &values(&want), 1e-6);
    }
}

mod embedding {
    use super::*;

    const PIECE: usize = 64;

    /// What the host prepares for the backward pass: positions by id in pieces, and where each piece goes.
    #[derive(Default)]
    struct Plan {
        positions: Vec<u32>,
        piece_begin: Vec<u32>,
        piece_target: Vec<u32>,
        run_begin: Vec<u32>,
        run_ids: Vec<u32>,
    }

    impl Plan {
        fn new(ids: &[u32], padding: Option<u32>) -> Self {
            let mut order: Vec<(u32, u32)> = ids.iter().copied().zip(0..).collect();
            order.retain(|(id, _)| Some(*id) != padding);
            order.sort_unstable();
            let mut plan = Self {
                run_begin: vec![0],
                ..Self::default()
            };
            let mut partials = 0;
            for run in order.chunk_by(|a, b| a.0 == b.0) {
                let several = run.len() > PIECE;
                for piece in run.chunks(PIECE) {
                    plan.piece_begin.push(plan.positions.len() as u32);
                    plan.positions
                        .extend(piece.iter().map(|(_, position)| position));
                    plan.piece_target.push(if several {
                        0x8000_0000 | partials
                    } else {
                        run[0].0
                    });
                    partials += u32::from(several);
                }
                if several {
                    plan.run_ids.push(run[0].0);
                    plan.run_begin.push(partials);
                }
            }
            plan.piece_begin.push(plan.positions.len() as u32);
            plan
        }

        fn run<T: Element>(&self, grad: &Buffer<f32>, dy: &Buffer<T>, width: usize, add: u32) {
            let pieces = self.piece_target.len();
            if pieces == 0 {
                return;
            }
            let parts = *self.run_begin.last().unwrap() as usize;
            let partials = unwritten::<f32>(parts * width);
            let [positions, begin, target] =
                [&self.positions, &self.piece_begin, &self.piece_target].map(|x| Buffer::new(x));
            launch(
                &format!("embedding_backward_{}", T::NAME),
                [pieces, width.div_ceil(512), 1],
                [128, 1],
                0,
                (
                    grad.at(),
                    if parts == 0 { NULL } else { partials.at() },
                    dy.at(),
                    positions.at(),
                    begin.at(),
                    target.at(),
                    pieces as u32,
                    width as u32,
                    add,
                ),
            );
            let runs = self.run_ids.len();
            if runs == 0 {
                return;
            }
            let [begin, ids] = [&self.run_begin, &self.run_ids].map(|x| Buffer::new(x));
            launch(
                "embedding_backward_combine",
                [runs, width.div_ceil(32), 1],
                [32, 8],
                0,
                (
                    grad.at(),
                    partials.at(),
                    begin.at(),
                    ids.at(),
                    runs as u32,
                    width as u32,
                    add,
                ),
            );
        }
    }

    fn check<T: Element>() {
        for (batch, seq, width) in [(1, 1, 1), (2, 5, 30), (3, 70, 768), (1, 7, 1000)] {
            let rows = batch * seq;
            let shape = [batch, seq];
            let vocab = 11;
            // Word 1 is padding; positions are given once; there is one type, named by every row.
            let words: Vec<u32> = (0..rows).map(|i| (i * i % vocab) as u32).collect();
            let positions: Vec<u32> = (0..seq as u32).collect();
            let types = vec![0u32; rows];
            let tables = [
                noise(vocab * width, 1),
                noise(seq * width, 2),
                noise(width, 3),
            ];
            let params = [
                param(&tables[0], &[vocab, width]),
                param(&tables[1], &[seq, width]),
                param(&tables[2], &[1, width]),
            ];
            let ids = |x: &[u32], shape: &[usize]| {
                Tensor::from_vec(x.to_vec(), shape, &Device::Cpu).unwrap()
            };
            let lookups = [
                ids(&words, &shape),
                ids(&positions, &[1, seq]),
                ids(&types, &shape),
            ];
            let padding = [Some(1), None, None];
            let list: Vec<_> = (0..3)
                .map(|i| (&lookups[i], &params[i], padding[i]))
                .collect();
            let y = ops::embedding_sum(&list).unwrap();
            let dy = rounded::<T>(&noise(rows * width, 4));
            gradients(&y, &dy, &[]);
            let all_positions = positions.repeat(batch);

            for got in in_all_orders(|| {
                let [a, b, c] = [0, 1, 2].map(|i| Buffer::new(&tables[i]));
                let [p, q, r] = [&words, &positions, &types].map(|x| Buffer::new(x));
                let [all, one] = [(); 2].map(|()| unwritten::<T>(rows * width));
                let name = format!("embedding_forward_{}", T::NAME);
                let (n, seq, width_arg) = (rows as u32, seq as u32, width as u32);
                let grid = [rows.div_ceil(8), 1, 1];
                let arguments = (
                    all.at(),
                    a.at(),
                    p.at(),
                    n,
                    b.at(),
                    q.at(),
                    seq,
                    c.at(),
                    r.at(),
                    n,
                    n,
                    width_arg,
                );
                launch(&name, grid, [32, 8], 0, arguments);
                let arguments = (
                    one.at(),
                    b.at(),
                    q.at(),
                    seq,
                    NULL,
                    NULL,
                    1u32,
                    NULL,
                    NULL,
                    1u32,
                    n,
                    width_arg,
                );
                launch(&name, grid, [32, 8], 0, arguments);
                let dy = activations::<T>(&dy);
                // The words' gradient is added to zeros, as one that is new; the others' overwrite.
                let grads = [
                    Buffer::new(&vec![0f32; vocab * width]),
                    unwritten::<f32>(seq as usize * width),
                    unwritten::<f32>(width),
                ];
                Plan::new(&words, Some(1)).run(&grads[0], &dy, width, 1);
                Plan::new(&all_positions, None).run(&grads[1], &dy, width, 0);
                Plan::new(&types, None).run(&grads[2], &dy, width, 0);
                let [x, y, z] = &grads;
                let first = [x.values(), y.values(), z.values()];
                // Once more on top.
                Plan::new(&types, None).run(&grads[2], &dy, width, 1);
                let [x, y, z] = first;
                vec![widened(&all), widened(&one), x, y, z, grads[2].values()]
            }) {
                close::<T>("sum", &got[0], &values(&y), 1e-6);
                close::<T>("one", &got[1], &tables[1].repeat(batch), 0.0);
                close::<f32>("words", &got[2], &grad_of(&params[0]), 1e-5);
                close::<f32>("positions", &got[3], &grad_of(&params[1]), 1e-5);
                close::<f32>("types", &got[4], &grad_of(&params[2]), 1e-5);
                let twice: Vec<f32> = got[4].iter().map(|x| 2.0 * x).collect();
                assert_eq!(got[5], twice);
            }
        }
    }

    #[test]
    fn sums_of_lookups_and_their_gradients_are_the_cpus() {
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }

    #[test]
    fn rows_are_selected_and_put_back() {
        fn check<T: Element>() {
            for width in [1, 30, 768] {
                let count = 20;
                let x = rounded::<T>(&noise(count * width, 1));
                let rows = [7u32, 0, 19, 3, 4, 5, 6, 18, 1];
                let dy = rounded::<T>(&noise(rows.len() * width, 2));
                let input = var(&x, &[count, width]);
                let ids = Tensor::new(&rows, &Device::Cpu).unwrap();
                let y = ops::select_rows(&input, &ids).unwrap();
                let dx = gradients(&y, &dy, &[&input]).remove(0);
                for got in in_all_orders(|| {
                    let [x, dy] = [&x, &dy].map(|x| activations::<T>(x));
                    let (out, dx) = (
                        unwritten::<T>(rows.len() * width),
                        activations::<T>(&vec![0.0; count * width]),
                    );
                    let ids = Buffer::new(&rows);
                    let (n, width) = (rows.len() as u32, width as u32);
                    let arguments = (out.at(), x.at(), ids.at(), n, width);
                    launch(
                        &format!("select_rows_{}", T::NAME),
                        [2, 1, 1],
                        [32, 8],
                        0,
                        arguments,
                    );
                    let arguments = (dx.at(), dy.at(), ids.at(), n, width);
                    launch(
                        &format!("scatter_rows_{}", T::NAME),
                        [2, 1, 1],
                        [32, 8],
                        0,
                        arguments,
                    );
                    vec![widened(&out), widened(&dx)]
                }) {
                    assert_eq!(got[0], values(&y));
                    assert_eq!(got[1], dx);
                }
            }
        }
        check::<f32>();
        check::<bf16>();
        check::<f16>();
    }
}

mod adamw {
    use super::*;

    const CHUNK: usize = 1 << 15;

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct TensorEntry {
        value: Address,
        m: Address,
        v: Address,
        grad: Address,
        copy: Address,
        length: u64,
        group: u32,
        copy_kind: u32,
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Group {
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        weight_decay: f64,
        step: u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq)]
    struct Control {
        grad_scale: f32,
        max_norm: f32,
        loss_scale: f32,
        scaling: u32,
        growth_interval: u32,
        good_steps: u32,
        norm: f32,
        factor: f32,
        skipped: u32,
        skipped_total: u32,
        unused: [u32; 2],
    }

    /// Several chunks with a ragged end, one element, an odd small one.
    const LENGTHS: [usize; 3] = [2 * CHUNK + 4465, 1, 37];
    const GROUPS: [usize; 3] = [0, 1, 0];

    fn options() -> [AdamWOptions; 2] {
        let decaying = AdamWOptions {
            lr: 0.01,
            weight_decay: 0.1,
            ..Default::default()
        };
        [
            decaying,
            AdamWOptions {
                weight_decay: 0.0,
                ..decaying
            },
        ]
    }

    /// The parameters on the device.
    struct Model {
        values: Vec<Buffer<f32>>,
        m: Vec<Buffer<f32>>,
        v: Vec<Buffer<f32>>,
        grads: Vec<Buffer<f32>>,
        bf16: Buffer<bf16>,
        f16: Buffer<f16>,
        tensors: Buffer<TensorEntry>,
        chunks: Buffer<[u32; 2]>,
        groups: Buffer<Group>,
        factors: Buffer<[f32; 8]>,
        partials: Buffer<f64>,
        count: usize,
    }

    impl Model {
        fn new() -> Self {
            let buffers = |f: &dyn Fn(usize) -> Vec<f32>| -> Vec<_> {
                (0..3).map(|i| Buffer::new(&f(i))).collect()
            };
            let values = buffers(&|i| noise(LENGTHS[i], i as u64));
            let [m, v] = [(); 2].map(|()| buffers(&|i| vec![0.0; LENGTHS[i]]));
            let grads = buffers(&|i| vec![0.0; LENGTHS[i]]);
            let bf16 = unwritten::<bf16>(LENGTHS[0]);
            let f16 = unwritten::<f16>(LENGTHS[2]);
            let entries: Vec<_> = (0..3)
                .map(|i| TensorEntry {
                    value: values[i].at(),
                    m: m[i].at(),
                    v: v[i].at(),
                    grad: grads[i].at(),
                    copy: [bf16.at(), NULL, f16.at()][i],
                    length: LENGTHS[i] as u64,
                    group: GROUPS[i] as u32,
                    copy_kind: [1, 0, 2][i],
                })
                .collect();
            let chunks: Vec<[u32; 2]> = (0..3)
                .flat_map(|i| {
                    (0..LENGTHS[i].div_ceil(CHUNK)).map(move |chunk| [i as u32, chunk as u32])
                })
                .collect();
            let groups = options().map(|options| Group {
                lr: options.lr,
                beta1: options.betas.0,
                beta2: options.betas.1,
                eps: options.eps,
                weight_decay: options.weight_decay,
                step: 0,
            });
            Self {
                values,
                m,
                v,
                grads,
                bf16,
                f16,
                tensors: Buffer::new(&entries),
                count: chunks.len(),
                partials: Buffer::new(&vec![f64::NAN; chunks.len()]),
                chunks: Buffer::new(&chunks),
                groups: Buffer::new(&groups),
                factors: Buffer::new(&[[f32::NAN; 8]; 2]),
            }
        }

        /// One step with these gradients; what the control says afterwards.
        fn step(&self, grads: &[Vec<f32>], control: Control, norm: bool) -> Control {
            for (buffer, grad) in self.grads.iter().zip(grads) {
                // SAFETY: the buffer has the gradient's length.
                unsafe {
                    std::ptr::copy_nonoverlapping(grad.as_ptr(), buffer.at().cast(), grad.len())
                };
            }
            let control = Buffer::new(&[control]);
            let grid = [self.count, 1, 1];
            let count = if norm { self.count as u32 } else { 0 };
            if norm {
                let arguments = (
                    self.partials.at(),
                    self.tensors.at(),
                    self.chunks.at(),
                    count,
                );
                launch("grad_norm_chunks", grid, [256, 1], 0, arguments);
            }
            let arguments = (
                control.at(),
                self.groups.at(),
                self.factors.at(),
                2u32,
                if norm { self.partials.at() } else { NULL },
                count,
            );
            launch("adamw_prepare", [1, 1, 1], [256, 1], 0, arguments);
            let arguments = (
                control.at(),
                self.tensors.at(),
                self.chunks.at(),
                self.factors.at(),
            );
            launch("adamw_update", grid, [256, 1], 0, arguments);
            control.values()[0]
        }

        fn outcome(&self) -> Vec<Vec<f32>> {
            let all = self.values.iter().chain(&self.m).chain(&self.v);
            all.map(Buffer::values).collect()
        }
    }

    /// The same on the CPU.
    struct Expected {
        params: Vec<Param>,
        states: Vec<AdamWState>,
    }

    impl Expected {
        fn new() -> Self {
            let params: Vec<_> = (0..3)
                .map(|i| param(&noise(LENGTHS[i], i as u64), &[LENGTHS[i]]))
                .collect();
            let states = params.iter().map(|p| AdamWState::new(p).unwrap()).collect();
            Self { params, states }
        }

        /// One step; the norm of the gradients.
        fn step(&mut self, grads: &[Vec<f32>], grad_scale: f64, max_norm: f64) -> f64 {
            for (param, grad) in self.params.iter().zip(grads) {
                param.zero_grad();
                param.add_grad(&tensor(grad, &[grad.len()])).unwrap();
            }
            let norm = ops::grad_norm(&self.params).unwrap() * grad_scale;
            let clip = if max_norm > 0.0 {
                (max_norm / (norm + 1e-6)).min(1.0)
            } else {
                1.0
            };
            for (i, group) in GROUPS.into_iter().enumerate() {
                let options = options()[group];
                let (params, states) = (&self.params[i..=i], &mut self.states[i..=i]);
                ops::adamw_step(params, states, &options, grad_scale * clip).unwrap();
            }
            norm
        }

        fn outcome(&self) -> Vec<Vec<f32>> {
            let mut all: Vec<_> = self.params.iter().map(|p| values(&p.tensor())).collect();
            all.extend(self.states.iter().map(|state| values(&state.m)));
            all.extend(self.states.iter().map(|state| values(&state.v)));
            all
        }
    }

    fn grads(step: u64) -> Vec<Vec<f32>> {
        (0..3)
            .map(|i| noise(LENGTHS[i], 10 + 3 * step + i as u64))
            .collect()
    }

    const PLAIN: Control = Control {
        grad_scale: 0.5,
        max_norm: 0.0,
        loss_scale: 1.0,
        scaling: 0,
        growth_interval: 2000,
        good_steps: 0,
        norm: f32::NAN,
        factor: f32::NAN,
        skipped: 7,
        skipped_total: 0,
        unused: [0; 2],
    };

    #[test]
    fn three_steps_are_the_cpus_with_and_without_clipping() {
        for (max_norm, measured) in [(0.0, false), (0.0, true), (1.0, true), (1e6, true)] {
            let mut expected = Expected::new();
            let norms: Vec<f64> = (0..3)
                .map(|step| expected.step(&grads(step), 0.5, f64::from(max_norm)))
                .collect();
            let want = expected.outcome();
            for got in in_all_orders(|| {
                let model = Model::new();
                for (step, norm) in norms.iter().enumerate() {
                    let control = Control { max_norm, ..PLAIN };
                    let after = model.step(&grads(step as u64), control, measured);
                    assert_eq!(after.skipped, 0);
                    assert_eq!((after.loss_scale, after.good_steps), (1.0, 0));
                    if measured {
                        assert!((f64::from(after.norm) / norm - 1.0).abs() < 1e-6);
                    }
                }
                assert!(model.groups.values().iter().all(|group| group.step == 3));
                let first = &model.values[0].values();
                assert_eq!(widened(&model.bf16), rounded::<bf16>(first));
                assert_eq!(
                    widened(&model.f16),
                    rounded::<f16>(&model.values[2].values())
                );
                model.outcome()
            }) {
                for (got, want) in got.iter().zip(&want) {
                    // Clipping multiplies by a number that may be rounded otherwise.
                    close::<f32>(
                        "state",
                        got,
                        want,
                        if max_norm == 1.0 { 1e-6 } else { 1e-7 },
                    );
                }
            }
        }
    }

    #[test]
    fn with_loss_scaling_a_step_that_overflowed_changes_nothing_but_the_scale() {
        let scaled = |step: u64, scale: f32| -> Vec<Vec<f32>> {
            let scale = |grad: Vec<f32>| grad.iter().map(|g| g * scale).collect();
            grads(step).into_iter().map(scale).collect()
        };
        let mut expected = Expected::new();
        expected.step(&grads(0), 0.5, 1.0);
        expected.step(&grads(2), 0.5, 1.0);
        for got in in_all_orders(|| {
            let model = Model::new();
            let control = Control {
                max_norm: 1.0,
                loss_scale: 1024.0,
                scaling: 1,
                growth_interval: 2,
                ..PLAIN
            };
            let first = model.step(&scaled(0, 1024.0), control, true);
            assert_eq!(
                (first.skipped, first.good_steps, first.loss_scale),
                (0, 1, 1024.0)
            );
            let before = model.outcome();
            let mut broken = scaled(1, 1024.0);
            broken[0][CHUNK + 5] = f32::INFINITY;
            let second = model.step(&broken, first, true);
            assert_eq!((second.skipped, second.skipped_total), (1, 1));
            assert_eq!((second.good_steps, second.loss_scale), (0, 512.0));
            assert!(model.groups.values().iter().all(|group| group.step == 1));
            assert_eq!(model.outcome(), before);
            let third = model.step(&scaled(2, 512.0), second, true);
            assert_eq!(
                (third.skipped, third.good_steps, third.loss_scale),
                (0, 1, 512.0)
            );
            let outcome = model.outcome();
            let fourth = model.step(&scaled(3, 512.0), third, true);
            assert_eq!((fourth.good_steps, fourth.loss_scale), (0, 1024.0), "grown");
            outcome
        }) {
            for (got, want) in got.iter().zip(expected.outcome()) {
                close::<f32>("state", got, &want, 1e-6);
            }
        }
    }

    #[test]
    fn without_loss_scaling_nan_is_not_hidden() {
        let model = Model::new();
        let mut broken = grads(0);
        broken[1][0] = f32::NAN;
        let after = model.step(
            &broken,
            Control {
                max_norm: 1.0,
                ..PLAIN
            },
            true,
        );
        assert!(after.skipped == 0 && after.norm.is_nan());
        assert!(model.values[0].values().iter().all(|x| x.is_nan()));
    }
}

mod attention {
    use super::*;

    struct Case {
        batch: usize,
        heads: usize,
        queries: usize,
        keys: usize,
        head_dim: usize,
        mask: Option<Vec<u32>>,
        dropout: Dropout,
    }

    const SCALE: f32 = 0.2;
    const NAMES: [&str; 5] = ["out", "lse", "dq", "dk", "dv"];

    impl Case {
        fn width(&self) -> usize {
            self.heads * self.head_dim
        }

        /// out, dq, dk, dv of the CPU.
        fn expected(&self, [q, k, v]: [&[f32]; 3], dout: &[f32]) -> [Vec<f32>; 4] {
            let shape = |seq| [self.batch, seq, self.width()];
            let [q, k, v] = [(q, self.queries), (k, self.keys), (v, self.keys)]
                .map(|(x, seq)| var(x, &shape(seq)));
            let mask = match &self.mask {
                None => AttentionMask::None,
                Some(mask) => {
                    let mask =
                        Tensor::from_vec(mask.clone(), (self.batch, self.keys), &Device::Cpu);
                    AttentionMask::Keys(mask.unwrap())
                }
            };
            let out = ops::attention(
                &q,
                &k,
                &v,
                self.heads,
                &mask,
                f64::from(SCALE),
                self.dropout,
            )
            .unwrap();
            let mut grads = gradients(&out, dout, &[&q, &k, &v]).into_iter();
            let mut next = || grads.next().unwrap();
            [values(&out), next(), next(), next()]
        }

        /// The logarithm of each query's sum, in f64.
        fn expected_lse(&self, q: &[f32], k: &[f32]) -> Vec<f32> {
            let Case {
                batch,
                heads,
                queries,
                keys,
                head_dim,
                ..
            } = *self;
            let mut all = vec![];
            for (b, h, i) in (0..batch * heads * queries)
                .map(|i| (i / queries / heads, i / queries % heads, i % queries))
            {
                let row = |x: &[f32], seq: usize, i: usize| -> Vec<f32> {
                    x[((b * seq + i) * heads + h) * head_dim..][..head_dim].to_vec()
                };
                let hidden = |j: usize| {
                    self.mask
                        .as_ref()
                        .is_some_and(|mask| mask[b * keys + j] == 0)
                };
                let even = (0..keys).all(hidden);
                let q = row(q, queries, i);
                let exp = |j: usize| {
                    let dot: f64 = q
                        .iter()
                        .zip(row(k, keys, j))
                        .map(|(q, k)| f64::from(*q) * f64::from(k))
                        .sum();
                    (dot * f64::from(SCALE)).exp()
                };
                let sum: f64 = if even {
                    keys as f64
                } else {
                    (0..keys).filter(|&j| !hidden(j)).map(exp).sum()
                };
                all.push(sum.ln() as f32);
            }
            all
        }

        /// out, lse, dq, dk, dv. With `joined`, q, k and v are columns of one tensor, and so are their gradients.
        fn run<T: Element>(
            &self,
            [q, k, v]: [&[f32]; 3],
            dout: &[f32],
            joined: bool,
        ) -> Vec<Vec<f32>> {
            let &Case {
                batch,
                heads,
                queries,
                keys,
                head_dim,
                dropout,
                ..
            } = self;
            let (width, d) = (self.width(), head_dim);
            let rows = batch * heads * queries;
            let stride = if joined { 3 * width } else { width };
            let lengths = [queries, keys, keys].map(|seq| batch * seq * width);
            let parts = [q, k, v];
            let (given, grads): (Vec<_>, Vec<_>) = if joined {
                let all: Vec<f32> = (0..batch * queries)
                    .flat_map(|row| {
                        parts
                            .into_iter()
                            .flat_map(move |part| part[row * width..][..width].to_vec())
                    })
                    .collect();
                (
                    vec![activations::<T>(&all)],
                    vec![unwritten::<T>(all.len())],
                )
            } else {
                let given = parts.map(activations::<T>).into_iter().collect();
                (given, lengths.map(unwritten::<T>).into_iter().collect())
            };
            let place = |buffers: &[Buffer<T>], i: usize| match joined {
                // SAFETY: each part begins within the first row.
                true => unsafe { buffers[0].at().cast::<T>().add(i * width).cast() },
                false => buffers[i].at(),
            };
            let [q, k, v] = [0, 1, 2].map(|i| place(&given, i));
            let [dq, dk, dv] = [0, 1, 2].map(|i| place(&grads, i));
            let (out, dout) = (unwritten::<T>(lengths[0]), activations::<T>(dout));
            let [lse, delta] = [(); 2].map(|()| unwritten::<f32>(rows));
            let mask = self
                .mask
                .as_ref()
                .map(|mask| (Buffer::new(mask), Buffer::new(&vec![77u32; batch])));
            if let Some((mask, ends)) = &mask {
                let arguments = (ends.at(), mask.at(), batch as u32, keys as u32);
                launch("attention_key_ends", [batch, 1, 1], [128, 1], 0, arguments);
            }
            let [mask, ends] = match &mask {
                Some((mask, ends)) => [mask.at(), ends.at()],
                None => [NULL, NULL],
            };
            let name = |kernel: &str| format!("attention_{kernel}_{}_d{d}", T::NAME);
            let [b, h, n, m, s] = [batch, heads, queries, keys, stride].map(|x| x as u32);
            let (p, key) = (dropout.p, dropout.key);
            let by_queries = [queries.div_ceil(64), heads, batch];
            let by_keys = [keys.div_ceil(64), heads, batch];
            let shared = |rows: usize| rows * (d + 8) * 2;
            launch(
                &name("forward"),
                by_queries,
                [128, 1],
                shared(64 + 4 * 64),
                (
                    out.at(),
                    lse.at(),
                    q,
                    k,
                    v,
                    mask,
                    ends,
                    b,
                    h,
                    n,
                    m,
                    s,
                    s,
                    s,
                    SCALE,
                    p,
                    key,
                ),
            );
            let arguments = (delta.at(), dout.at(), out.at(), b, h, n);
            launch(
                &name("delta"),
                [rows.div_ceil(4), 1, 1],
                [128, 1],
                0,
                arguments,
            );
            let (given, statistics) = ((dout.at(), q, k, v), (lse.at(), delta.at()));
            launch(
                &name("backward_kv"),
                by_keys,
                [128, 1],
                shared(2 * 64 + 4 * 32),
                (
                    dk,
                    dv,
                    given.0,
                    given.1,
                    given.2,
                    given.3,
                    statistics.0,
                    statistics.1,
                    mask,
                    ends,
                    b,
                    h,
                    n,
                    m,
                    s,
                    s,
                    s,
                    s,
                    s,
                    SCALE,
                    p,
                    key,
                ),
            );
            launch(
                &name("backward_q"),
                by_queries,
                [128, 1],
                shared(2 * 64 + 4 * 32),
                (
                    dq,
                    given.0,
                    given.1,
                    given.2,
                    given.3,
                    statistics.0,
                    statistics.1,
                    mask,
                    ends,
                    b,
                    h,
                    n,
                    m,
                    s,
                    s,
                    s,
                    s,
                    SCALE,
                    p,
                    key,
                ),
            );
            let [dq, dk, dv] = [0, 1, 2].map(|i| match joined {
                true => widened(&grads[0])
                    .chunks(stride)
                    .flat_map(|row| row[i * width..][..width].to_vec())
                    .collect(),
                false => widened(&grads[i]),
            });
            vec![widened(&out), lse.values(), dq, dk, dv]
        }

        fn check<T: Element>(&self) {
            let Case {
                batch,
                queries,
                keys,
                ..
            } = *self;
            let given = [queries, keys, keys, queries].map(|seq| batch * seq * self.width());
            let [q, k, v, dout] = [0, 1, 2, 3].map(|i| {
                rounded::<T>(
                    &noise(given[i], i as u64)
                        .iter()
                        .map(|x| 2.0 * x)
                        .collect::<Vec<_>>(),
                )
            });
            let given = [&q[..], &k, &v];
            let [out, dq, dk, dv] = self.expected(given, &dout);
            let want = [out, self.expected_lse(&q, &k), dq, dk, dv];
            let got = in_orders(2, || self.run::<T>(given, &dout, false));
            for ((got, want), name) in got.iter().zip(&want).zip(NAMES) {
                let what = format!(
                    "{name} {:?}",
                    (
                        batch,
                        self.heads,
                        queries,
                        keys,
                        self.head_dim,
                        self.dropout
                    )
                );
                match name {
                    "lse" => close::<f32>(&what, got, want, 2e-6),
                    // Probabilities and their gradients are rounded before they are multiplied, and out before its
                    // product with dout: single elements may be some roundings off, all together may not.
                    _ => {
                        close::<T>(&what, got, want, 8.0 * T::ROUNDING);
                        let squares = |x: &mut dyn Iterator<Item = f32>| {
                            x.map(|x| f64::from(x).powi(2)).sum::<f64>()
                        };
                        let error = squares(&mut got.iter().zip(want).map(|(a, b)| a - b)).sqrt();
                        let size = squares(&mut want.iter().copied()).sqrt();
                        assert!(
                            error <= 2.0 * f64::from(T::ROUNDING) * size,
                            "{what}: {error} of {size}"
                        );
                    }
                }
            }
            if queries == keys {
                assert_eq!(
                    self.run::<T>(given, &dout, true),
                    got,
                    "as parts of one tensor"
                );
            }
        }
    }

    /// Keys of two sequences: one padded behind and with holes, one of which nothing may be seen.
    fn padding(keys: usize) -> Vec<u32> {
        let seen = |k| u32::from(k < keys * 3 / 5 && k % 7 != 1);
        (0..2 * keys)
            .map(|i| if i < keys { seen(i) } else { 0 })
            .collect()
    }

    fn check<T: Element>() {
        for (head_dim, sizes) in [
            (32, vec![[2, 5, 5], [1, 70, 130]]),
            (
                64,
                vec![[2, 5, 5], [1, 128, 128], [1, 200, 200], [2, 1, 65]],
            ),
            (96, vec![[1, 33, 70]]),
            (128, vec![[1, 66, 66]]),
        ] {
            for [heads, queries, keys] in sizes {
                for (mask, dropout) in [
                    (None, DROPOUTS[0]),
                    (Some(padding(keys)), DROPOUTS[1]),
                    (Some(padding(keys)), DROPOUTS[0]),
                    (None, DROPOUTS[2]),
                ] {
                    // One sequence is enough where none is padded.
                    let batch = if mask.is_some() { 2 } else { 1 };
                    Case {
                        batch,
                        heads,
                        queries,
                        keys,
                        head_dim,
                        mask,
                        dropout,
                    }
                    .check::<T>();
                }
            }
        }
    }

    #[test]
    fn bf16_is_the_cpus_rounded() {
        check::<bf16>();
    }

    #[test]
    fn f16_is_the_cpus_rounded() {
        check::<f16>();
    }

    #[test]
    fn nan_stays_in_its_query() {
        let (batch, heads, queries, keys, head_dim) = (1, 1, 70, 70, 64);
        let case = Case {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            mask: None,
            dropout: NO_DROPOUT,
        };
        let [mut q, k, v, dout] = [1, 2, 3, 4].map(|seed| noise(queries * head_dim, seed));
        q[20 * head_dim + 3] = f32::NAN;
        let got = case.run::<bf16>([&q, &k, &v], &dout, false);
        for (i, row) in got[0].chunks(head_dim).enumerate() {
            assert!(row.iter().all(|x| x.is_nan() == (i == 20)), "query {i}");
        }
    }

    #[test]
    fn lengths_need_no_mask() {
        let (batch, heads, queries, keys, head_dim) = (2, 1, 70, 70, 32);
        let lengths = [41usize, 70];
        let mask: Vec<u32> = (0..batch * keys)
            .map(|i| u32::from(i % keys < lengths[i / keys]))
            .collect();
        let given = [1, 2, 3].map(|seed| rounded::<f16>(&noise(batch * keys * head_dim, seed)));
        let case = Case {
            batch,
            heads,
            queries,
            keys,
            head_dim,
            mask: Some(mask),
            dropout: NO_DROPOUT,
        };
        let [q, k, v] = &given;
        let want = case.run::<f16>([q, k, v], q, false);
        let [q, k, v] = given.map(|x| activations::<f16>(&x));
        let ends = Buffer::new(&lengths.map(|n| n as u32));
        let (out, lse) = (
            unwritten::<f16>(batch * queries * head_dim),
            unwritten::<f32>(batch * queries),
        );
        let n = 70u32;
        launch(
            "attention_forward_f16_d32",
            [2, heads, batch],
            [128, 1],
            320 * 40 * 2,
            (
                out.at(),
                lse.at(),
                q.at(),
                k.at(),
                v.at(),
                NULL,
                ends.at(),
                2u32,
                1u32,
                n,
                n,
                32u32,
                32u32,
                32u32,
                SCALE,
                0f32,
                0u64,
            ),
        );
        assert_eq!(widened(&out), want[0]);
        assert_eq!(lse.values(), want[1]);
    }
}

mod pointers {
    use super::*;

    #[test]
    fn every_head_begins_where_the_layout_says() {
        let (batch, heads) = (3u64, 5u64);
        let n = (batch * heads) as usize;
        // Base, and the distances of sequences and heads, beyond 32 bits.
        let tables = [(1 << 40, 1 << 33, 128), (16, 4096, 1 << 34), (0, 7, 0)];
        let out = Buffer::new(&vec![u64::MAX; 3 * n]);
        let [a, b, c] = tables;
        launch(
            "head_pointers",
            [1, 1, 1],
            [256, 1],
            0,
            (
                out.at(),
                a.0,
                a.1,
                a.2,
                b.0,
                b.1,
                b.2,
                c.0,
                c.1,
                c.2,
                batch as u32,
                heads as u32,
            ),
        );
        let expected: Vec<u64> = (tables.iter())
            .flat_map(|&(base, sequence, head): &(u64, u64, u64)| {
                let at = move |i: u64| base + i / heads * sequence + i % heads * head;
                (0..batch * heads).map(at)
            })
            .collect();
        assert_eq!(out.values(), expected);
    }
}
