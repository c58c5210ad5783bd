//! The fused operations against finite differences, against candle's own autograd and against each other, on the device
//! that the test says (`crate::device()`; `None` skips everything).

use candle_core::{DType, Device, Tensor, Var};
use cloze::ops::{
    self, Activation, AdamWOptions, AdamWState, AttentionMask, Conv1d, CtcTargets, Dropout,
    EmaParams, Gate, Param, Precision,
};

/// Leaves a test that has no device to run on.
macro_rules! needs_device {
    () => {
        if crate::device().is_none() {
            return;
        }
    };
}

/// Where the operations under test run.
pub fn here() -> Device {
    crate::device().expect("a test that needs a device begins with needs_device!()")
}

/// Numbers in [-1, 1) that depend on the seed only.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

fn tensor(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product();
    Tensor::from_vec(noise(n, seed), shape, &here()).unwrap()
}

fn param(shape: &[usize], seed: u64) -> Param {
    Param::new(format!("p{seed}"), &tensor(shape, seed)).unwrap()
}

/// A tensor without elements, though of some memory: a GPU has none of no bytes.
fn nothing(shape: &[usize]) -> Tensor {
    let none = tensor(&[1], 0).narrow(0, 0, 0).unwrap();
    none.reshape(shape).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

mod adamw {
    use super::*;

    /// PyTorch's single-tensor AdamW, in f64, element by element.
    fn expected(mut p: f64, grads: &[f64], options: &AdamWOptions, scale: f64) -> f64 {
        let (b1, b2) = options.betas;
        let (mut m, mut v) = (0.0, 0.0);
        for (step, &g) in grads.iter().enumerate() {
            let (g, t) = (g * scale, (step + 1) as i32);
            p *= 1.0 - options.lr * options.weight_decay;
            m = b1 * m + (1.0 - b1) * g;
            v = b2 * v + (1.0 - b2) * g * g;
            let root = v.sqrt() / (1.0 - b2.powi(t)).sqrt() + options.eps;
            p -= options.lr / (1.0 - b1.powi(t)) * m / root;
        }
        p
    }

    #[test]
    fn three_steps_agree_with_the_formula_in_f64() {
        needs_device!();
        let options = AdamWOptions {
            lr: 0.01,
            weight_decay: 0.1,
            ..Default::default()
        };
        // One that is spread over several tasks, one that is not, one empty.
        let mut params = vec![param(&[301, 333], 1), param(&[7], 2)];
        if here().is_cpu() {
            params.push(param(&[0, 4], 3));
        }
        let before: Vec<_> = params.iter().map(|p| values(&p.tensor())).collect();
        let mut states: Vec<_> = params.iter().map(|p| AdamWState::new(p).unwrap()).collect();
        for step in 0..3 {
            for p in &params {
                p.zero_grad();
                p.add_grad(&tensor(p.shape().dims(), 10 + step)).unwrap();
            }
            ops::adamw_step(&params, &mut states, &options, 0.5).unwrap();
        }
        for (p, before) in params.iter().zip(before) {
            let grads: Vec<_> = (0..3).map(|s| noise(p.elem_count(), 10 + s)).collect();
            for (i, (&after, before)) in values(&p.tensor()).iter().zip(before).enumerate() {
                let grads: Vec<f64> = grads.iter().map(|g| f64::from(g[i])).collect();
                let want = expected(f64::from(before), &grads, &options, 0.5);
                // Two roundings to f32 a step, at magnitudes up to 2.
                assert!((f64::from(after) - want).abs() < 4e-7, "{after} {want}");
            }
        }
        assert!(states.iter().all(|s| s.step == 3));
    }

    #[test]
    fn parameters_without_gradient_and_frozen_ones_are_unchanged() {
        needs_device!();
        let (idle, frozen) = (param(&[5], 1), param(&[5], 2));
        frozen.add_grad(&tensor(&[5], 3)).unwrap();
        frozen.set_trainable(false);
        let params = [idle, frozen];
        let before: Vec<_> = params.iter().map(|p| values(&p.tensor())).collect();
        let mut states: Vec<_> = params.iter().map(|p| AdamWState::new(p).unwrap()).collect();
        let options = AdamWOptions {
            weight_decay: 0.1,
            ..Default::default()
        };
        ops::adamw_step(&params, &mut states, &options, 1.0).unwrap();
        for (p, before) in params.iter().zip(before) {
            assert_eq!(values(&p.tensor()), before);
        }
        assert!(states.iter().all(|s| s.step == 0));
        assert_eq!(ops::grad_norm(&params).unwrap(), 0.0);
    }

    #[test]
    fn the_norm_covers_all_gradients() {
        needs_device!();
        let params = [param(&[123, 457], 1), param(&[3], 2)];
        let mut squares = 0.0;
        for p in &params {
            let grad = tensor(p.shape().dims(), 5);
            p.add_grad(&grad).unwrap();
            squares += values(&grad)
                .iter()
                .map(|&x| f64::from(x).powi(2))
                .sum::<f64>();
        }
        let tied = [params[0].clone(), params[1].clone(), params[0].clone()];
        assert!((ops::grad_norm(&tied).unwrap() - squares.sqrt()).abs() < 1e-9);
        let single = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(
            single.install(|| ops::grad_norm(&params).unwrap()),
            ops::grad_norm(&params).unwrap(),
            "the number of threads must not show"
        );
    }

    #[test]
    fn states_of_the_wrong_shape_are_an_error() {
        needs_device!();
        let params = [param(&[4], 1)];
        let mut states = [AdamWState::new(&param(&[5], 1)).unwrap()];
        params[0].add_grad(&tensor(&[4], 3)).unwrap();
        let error = ops::adamw_step(&params, &mut states, &AdamWOptions::default(), 1.0);
        assert!(error.unwrap_err().to_string().contains("shape"));
    }
}

mod gradients {
    use super::*;

    #[test]
    fn a_returned_gradient_never_changes() {
        needs_device!();
        let p = param(&[3], 1);
        p.add_grad(&tensor(&[3], 2)).unwrap();
        let first = p.grad().unwrap();
        p.add_grad(&tensor(&[3], 2)).unwrap();
        p.zero_grad();
        assert!(p.grad().is_none());
        p.add_grad(&tensor(&[3], 4)).unwrap();
        assert_eq!(values(&first), noise(3, 2));
        assert_eq!(values(&p.grad().unwrap()), noise(3, 4));
    }

    #[test]
    fn nothing_is_recorded_under_no_grad() {
        needs_device!();
        let p = param(&[3], 1);
        assert!(p.tensor().track_op());
        ops::no_grad(|| assert!(!p.tensor().track_op()));
        assert!(p.tensor().track_op());
    }
}

/// What an operation under test is given: activations and parameters, all of one dtype, on one device.
struct Given {
    inputs: Vec<Tensor>,
    params: Vec<Param>,
}

impl Given {
    /// On the device under test in f32; in f64, which the plain operations compute, on the CPU.
    fn new(inputs: &[Tensor], params: &[Tensor], dtype: DType) -> Self {
        let device = if dtype == DType::F64 {
            Device::Cpu
        } else {
            here()
        };
        let place = |x: &Tensor| x.to_device(&device).unwrap().to_dtype(dtype).unwrap();
        let leaf = |x: &Tensor| Var::from_tensor(&place(x)).unwrap().into_inner();
        Self {
            inputs: inputs.iter().map(leaf).collect(),
            params: (params.iter().enumerate())
                .map(|(i, p)| Param::new(format!("p{i}"), &place(p)).unwrap())
                .collect(),
        }
    }
}

struct Outcome {
    value: Vec<f64>,
    /// Of the inputs, then of the parameters; `None` where none arrived.
    grads: Vec<Option<Vec<f64>>>,
}

fn wide(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F64).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Forward and backward of `op`, weighted by fixed noise so that no symmetry hides a mistake.
fn run(given: &Given, op: &dyn Fn(&Given) -> Tensor) -> Outcome {
    let out = op(given);
    let probe = tensor(out.dims(), 77).to_device(out.device()).unwrap();
    let probe = probe.to_dtype(out.dtype()).unwrap();
    // A scalar has no dimension to sum over.
    let products = (&out * probe).unwrap().flatten_all().unwrap();
    let loss = products.sum_all().unwrap();
    let mut grads = Vec::new();
    let mut store = loss.backward().unwrap();
    grads.extend(given.inputs.iter().map(|x| store.get(x).map(wide)));
    for param in &given.params {
        param.absorb(&mut store).unwrap();
        grads.push(param.grad().map(|g| wide(&g)));
    }
    Outcome {
        value: wide(&out),
        grads,
    }
}

/// As [`run`], with nothing but our own operations behind the loss, so that the backward pass is our own walk.
fn run_alone(given: &Given, op: &dyn Fn(&Given) -> Tensor) -> Outcome {
    let out = op(given);
    let row = (1, out.elem_count());
    let probe = tensor(out.dims(), 77).reshape(row).unwrap();
    let flat = ops::reshape(&out, row).unwrap();
    let loss = ops::matmul(&flat, &probe, false, true).unwrap();
    let leaf = |x: &Tensor| Param::new("input", x).unwrap();
    let inputs: Vec<Param> = given.inputs.iter().map(leaf).collect();
    ops::backward(&loss, &[&inputs[..], &given.params[..]].concat()).unwrap();
    let grads = inputs.iter().chain(&given.params);
    Outcome {
        value: wide(&out),
        grads: grads.map(|p| p.grad().map(|g| wide(&g))).collect(),
    }
}

/// ‖a - b‖ / ‖b‖, with a floor for gradients that vanish.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(a, b)| a - b));
    difference / (norm(&mut b.iter().copied()) + 1e-2)
}

/// The fused operation (f32) against the plain one (f64, differentiated by candle), which is returned with what it got. On a
/// GPU also in bf16 and f16, within the noise of these.
fn agree(
    name: &str,
    inputs: &[Tensor],
    params: &[Tensor],
    op: &dyn Fn(&Given) -> Tensor,
) -> (Given, Outcome) {
    let plain_given = Given::new(inputs, params, DType::F64);
    let plain = run(&plain_given, op);
    let (values, gradients) = crate::TOLERANCES;
    let fused = run(&Given::new(inputs, params, DType::F32), op);
    close(name, &fused, &plain, (values, gradients));
    let alone = run_alone(&Given::new(inputs, params, DType::F32), op);
    let own_walk = format!("{name}, our own walk");
    close(&own_walk, &alone, &plain, (values, gradients));
    if here().is_cuda() {
        for (precision, tolerance) in [(Precision::Bf16, 4e-2), (Precision::F16, 5e-3)] {
            let given = Given::new(inputs, params, DType::F32);
            let rounded = ops::autocast(precision, || run(&given, op));
            let name = format!("{name}, {precision:?}");
            close(&name, &rounded, &plain, (tolerance, tolerance));
        }
    }
    (plain_given, plain)
}

fn close(name: &str, fused: &Outcome, plain: &Outcome, (values, gradients): (f64, f64)) {
    assert!(
        fused.value.iter().all(|x| x.is_finite()),
        "{name}: {:?}",
        fused.value
    );
    let d = distance(&fused.value, &plain.value);
    assert!(d < values, "{name}: values differ by {d:e}");
    for (i, (fused, plain)) in fused.grads.iter().zip(&plain.grads).enumerate() {
        let (Some(fused), Some(plain)) = (fused, plain) else {
            panic!("{name}: gradient {i} is missing");
        };
        let d = distance(fused, plain);
        assert!(d < gradients, "{name}: gradient {i} differs by {d:e}");
    }
}

/// [`agree`], and the plain one's gradients against finite differences.
fn check(name: &str, inputs: &[Tensor], params: &[Tensor], op: &dyn Fn(&Given) -> Tensor) {
    let (plain_given, plain) = agree(name, inputs, params, op);
    let probe = wide(&tensor(op(&plain_given).dims(), 77));
    let leaves: Vec<Tensor> = (plain_given.inputs.iter().cloned())
        .chain(plain_given.params.iter().map(Param::tensor))
        .collect();
    for (i, leaf) in leaves.iter().enumerate() {
        let direction: Vec<f64> = wide(&tensor(leaf.dims(), 1000 + i as u64));
        let at = |step: f64| {
            let moved: Vec<Tensor> = leaves
                .iter()
                .enumerate()
                .map(|(j, leaf)| {
                    let direction = Tensor::new(&direction[..], leaf.device()).unwrap();
                    match i == j {
                        true => (leaf + direction.reshape(leaf.shape()).unwrap() * step).unwrap(),
                        false => leaf.clone(),
                    }
                })
                .collect();
            let (inputs, params) = moved.split_at(inputs.len());
            let values = wide(&op(&Given::new(inputs, params, DType::F64)));
            values.iter().zip(&probe).map(|(v, p)| v * p).sum::<f64>()
        };
        let h = 1e-5;
        let slope = (at(h) - at(-h)) / (2.0 * h);
        let grad = plain.grads[i].as_ref().unwrap();
        let along: f64 = grad.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let error = (slope - along).abs() / (along.abs() + 1.0);
        assert!(
            error < 1e-6,
            "{name}: slope {i} is {slope}, the gradient says {along}"
        );
    }
}

/// Integers, which operations read on the CPU.
fn ids(values: &[u32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap()
}

const ACTIVATIONS: [Activation; 10] = [
    Activation::Gelu,
    Activation::GeluTanh,
    Activation::Relu,
    Activation::Silu,
    Activation::Tanh,
    Activation::Sigmoid,
    Activation::ReluSquared,
    Activation::QuickGelu,
    Activation::Laplace,
    Activation::Linear,
];

mod linear {
    use super::*;

    fn case(x: &[usize], out: usize, bias: bool, activation: Activation) {
        let width = *x.last().unwrap();
        let mut params = vec![tensor(&[out, width], 2)];
        if bias {
            params.push(tensor(&[out], 3));
        }
        let name = format!("{x:?} -> {out}, bias {bias}, {activation:?}");
        check(&name, &[tensor(x, 1)], &params, &|given| {
            let (weight, bias) = (&given.params[0], given.params.get(1));
            ops::linear_act(&given.inputs[0], weight, bias, activation).unwrap()
        });
    }

    #[test]
    fn gradients_are_correct_for_every_activation_and_odd_sizes() {
        needs_device!();
        for activation in ACTIVATIONS {
            for bias in [true, false] {
                case(&[3, 7, 13], 5, bias, activation);
                case(&[1, 1], 1, bias, activation);
            }
        }
        case(&[130, 67], 259, true, Activation::Gelu);
        case(&[2, 65, 67], 259, true, Activation::Linear);
    }

    #[test]
    fn transposed_and_narrowed_inputs_are_read_in_place() {
        needs_device!();
        check(
            "transposed",
            &[tensor(&[13, 7, 3], 1)],
            &[tensor(&[5, 13], 2)],
            &|given| {
                let x = given.inputs[0].transpose(0, 2).unwrap();
                ops::linear(&x, &given.params[0], None).unwrap()
            },
        );
        check(
            "narrowed",
            &[tensor(&[9, 13], 1)],
            &[tensor(&[5, 13], 2)],
            &|given| {
                let x = given.inputs[0].narrow(0, 2, 6).unwrap();
                ops::linear_act(&x, &given.params[0], None, Activation::Gelu).unwrap()
            },
        );
    }

    #[test]
    fn no_rows_give_no_rows() {
        needs_device!();
        let x = nothing(&[0, 4]);
        let (w, b) = (param(&[3, 4], 1), param(&[3], 2));
        for activation in [Activation::Linear, Activation::Gelu] {
            let y = ops::linear_act(&x, &w, Some(&b), activation).unwrap();
            assert_eq!(y.dims(), [0, 3]);
        }
    }

    #[test]
    fn mismatched_shapes_are_an_error_that_names_them() {
        needs_device!();
        let error = ops::linear(&tensor(&[2, 5], 1), &param(&[3, 4], 2), None).unwrap_err();
        assert!(error.to_string().contains("needs 4"), "{error}");
        let (w, b) = (param(&[3, 4], 2), param(&[4], 3));
        assert!(ops::linear(&tensor(&[2, 4], 1), &w, Some(&b)).is_err());
    }

    #[test]
    fn frozen_parameters_get_no_gradient_and_the_others_do() {
        needs_device!();
        for (train_weight, train_bias) in [(false, true), (true, false), (false, false)] {
            for activation in [Activation::Linear, Activation::Gelu] {
                let params = [tensor(&[5, 4], 2), tensor(&[5], 3)];
                let op = |given: &Given| {
                    let (w, b) = (&given.params[0], &given.params[1]);
                    ops::linear_act(&given.inputs[0], w, Some(b), activation).unwrap()
                };
                let full = run(&Given::new(&[tensor(&[6, 4], 1)], &params, DType::F32), &op);
                let given = Given::new(&[tensor(&[6, 4], 1)], &params, DType::F32);
                given.params[0].set_trainable(train_weight);
                given.params[1].set_trainable(train_bias);
                let part = run(&given, &op);
                let expected = [
                    full.grads[0].clone(),
                    full.grads[1].clone().filter(|_| train_weight),
                    full.grads[2].clone().filter(|_| train_bias),
                ];
                for (part, expected) in part.grads.iter().zip(&expected) {
                    match (part, expected) {
                        // A bias's gradient may be formed along with the weight's, in another order.
                        (Some(part), Some(expected)) if here().is_cuda() => {
                            assert!(distance(part, expected) < 1e-6);
                        }
                        _ => assert_eq!(part, expected),
                    }
                }
            }
        }
    }

    #[test]
    fn an_input_outside_the_graph_still_trains_the_weights() {
        needs_device!();
        let (w, b) = (param(&[5, 4], 2), param(&[5], 3));
        let y = ops::linear_act(&tensor(&[6, 4], 1), &w, Some(&b), Activation::Gelu).unwrap();
        ops::backward(&y.sum_all().unwrap(), &[w.clone(), b.clone()]).unwrap();
        assert!(w.grad().is_some() && b.grad().is_some());
    }

    #[test]
    fn two_backward_passes_accumulate_and_may_share_a_graph() {
        needs_device!();
        let (w, b) = (param(&[5, 4], 2), param(&[5], 3));
        let y = ops::linear_act(&tensor(&[6, 4], 1), &w, Some(&b), Activation::Gelu).unwrap();
        let loss = y.sum_all().unwrap();
        ops::backward(&loss, &[]).unwrap();
        let once: Vec<_> = [&w, &b]
            .iter()
            .map(|p| values(&p.grad().unwrap()))
            .collect();
        ops::backward(&loss, &[]).unwrap();
        for (p, once) in [&w, &b].iter().zip(once) {
            for (twice, once) in values(&p.grad().unwrap()).iter().zip(once) {
                assert!(
                    (twice - 2.0 * once).abs() <= 1e-6 * once.abs(),
                    "{twice} {once}"
                );
            }
        }
    }

    #[test]
    fn a_weight_shared_by_twelve_layers_accumulates_twelve_gradients() {
        needs_device!();
        let params = [tensor(&[6, 6], 2), tensor(&[6], 3)];
        check("shared", &[tensor(&[3, 5, 6], 1)], &params, &|given| {
            let (w, b) = (&given.params[0], &given.params[1]);
            (0..12).fold(given.inputs[0].clone(), |x, layer| {
                let bias = (layer % 2 == 0).then_some(b);
                let activation = ACTIVATIONS[4 + layer % 2];
                let y = ops::linear_act(&x, w, bias, activation).unwrap();
                ops::add(&x, &y).unwrap()
            })
        });
    }

    #[test]
    fn results_repeat_bit_for_bit_and_hardly_depend_on_threads() {
        needs_device!();
        let inputs = [tensor(&[300, 130], 1)];
        let params = [tensor(&[259, 130], 2), tensor(&[259], 3)];
        let op = |given: &Given| {
            let (w, b) = (&given.params[0], &given.params[1]);
            ops::linear_act(&given.inputs[0], w, Some(b), Activation::Gelu).unwrap()
        };
        let with_threads = |n| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(n)
                .build()
                .unwrap();
            pool.install(|| run(&Given::new(&inputs, &params, DType::F32), &op))
        };
        let (one, four, again) = (with_threads(1), with_threads(4), with_threads(4));
        assert_eq!(four.value, again.value);
        assert_eq!(four.grads, again.grads);
        for (a, b) in one.grads.iter().zip(&four.grads) {
            assert!(distance(a.as_ref().unwrap(), b.as_ref().unwrap()) < 1e-6);
        }
    }
}

mod elementwise {
    use super::*;

    #[test]
    fn activations_have_correct_gradients() {
        needs_device!();
        for activation in ACTIVATIONS {
            let x = (tensor(&[5, 7, 11], 1) * 6.0).unwrap();
            check(&format!("{activation:?}"), &[x], &[], &|given| {
                let x = given.inputs[0].transpose(0, 1).unwrap();
                // Candle's autograd needs an operation even where the function is the identity.
                (activation.apply(&x).unwrap() * 1.0).unwrap()
            });
        }
    }

    #[test]
    fn dropout_has_the_same_mask_forward_and_backward() {
        needs_device!();
        let dropout = Dropout { p: 0.3, key: 5 };
        check("dropout", &[tensor(&[3, 40_001], 1)], &[], &|given| {
            ops::dropout(&given.inputs[0], dropout).unwrap()
        });
    }
}

mod layer_norm {
    use super::*;

    #[test]
    fn gradients_are_correct_with_and_without_residual_dropout_and_bias() {
        needs_device!();
        for shape in [&[3usize, 5, 37][..], &[1, 1, 8], &[70, 768]] {
            let width = *shape.last().unwrap();
            let params = [tensor(&[width], 3), tensor(&[width], 4)];
            for count in [1, 2] {
                let inputs = [tensor(shape, 1)];
                check(
                    &format!("alone {shape:?} {count}"),
                    &inputs,
                    &params[..count],
                    &|given| {
                        let (w, b) = (&given.params[0], given.params.get(1));
                        ops::layer_norm(&given.inputs[0], w, b, 1e-5).unwrap()
                    },
                );
                for dropout in [Dropout::NONE, Dropout { p: 0.25, key: 8 }] {
                    let inputs = [tensor(shape, 1), tensor(shape, 2)];
                    check(
                        &format!("sum {shape:?} {dropout:?}"),
                        &inputs,
                        &params[..count],
                        &|given| {
                            let (x, residual) = (&given.inputs[0], &given.inputs[1]);
                            let (w, b) = (&given.params[0], given.params.get(1));
                            ops::add_layer_norm(x, residual, w, b, 1e-12, dropout).unwrap()
                        },
                    );
                }
            }
        }
    }

    #[test]
    fn a_strided_input_is_read_in_place() {
        needs_device!();
        let params = [tensor(&[6], 3), tensor(&[6], 4)];
        check("strided", &[tensor(&[6, 9], 1)], &params, &|given| {
            let x = given.inputs[0].t().unwrap();
            ops::add_layer_norm(
                &x,
                &x,
                &given.params[0],
                Some(&given.params[1]),
                1e-5,
                Dropout::NONE,
            )
            .unwrap()
        });
    }

    #[test]
    fn no_rows_give_no_rows() {
        needs_device!();
        let x = nothing(&[0, 4]);
        let y = ops::layer_norm(&x, &param(&[4], 1), None, 1e-5).unwrap();
        assert_eq!(y.dims(), [0, 4]);
    }

    #[test]
    fn a_row_of_equal_numbers_becomes_the_bias() {
        needs_device!();
        let x = Tensor::full(3f32, (2, 5), &here()).unwrap();
        let (w, b) = (param(&[5], 1), param(&[5], 2));
        let y = ops::layer_norm(&x, &w, Some(&b), 1e-5).unwrap();
        assert_eq!(values(&y.get(0).unwrap()), values(&b.tensor()));
    }

    #[test]
    fn mismatched_lengths_are_an_error() {
        needs_device!();
        assert!(ops::layer_norm(&tensor(&[2, 5], 1), &param(&[4], 1), None, 1e-5).is_err());
        let (x, r) = (tensor(&[2, 4], 1), tensor(&[4], 1));
        assert!(ops::add_layer_norm(&x, &r, &param(&[4], 1), None, 1e-5, Dropout::NONE).is_err());
    }
}

mod embedding {
    use super::*;

    #[test]
    fn repeated_rows_accumulate_and_padding_gets_no_gradient() {
        needs_device!();
        let words: Vec<u32> = (0..600).map(|i| (i * i) % 11).collect();
        let positions: Vec<u32> = (0..100).collect();
        let (words, positions) = (ids(&words, &[6, 100]), ids(&positions, &[1, 100]));
        let tables = [
            tensor(&[11, 131], 1),
            tensor(&[100, 131], 2),
            tensor(&[2, 131], 3),
        ];
        check("single", &[], &tables[..1], &|given| {
            ops::embedding(&words, &given.params[0], None).unwrap()
        });
        let kinds = ids(&[0; 600], &[6, 100]);
        check("sum", &[], &tables, &|given| {
            let [word, position, kind] = &given.params[..] else {
                unreachable!()
            };
            ops::embedding_sum(&[
                (&words, word, None),
                (&positions, position, None),
                (&kinds, kind, None),
            ])
            .unwrap()
        });
        // The padding row's own slope is not its gradient here, so that the plain version is the only judge.
        let op = |given: &Given| ops::embedding(&words, &given.params[0], Some(4)).unwrap();
        let fused = run(&Given::new(&[], &tables[..1], DType::F32), &op);
        let plain = run(&Given::new(&[], &tables[..1], DType::F64), &op);
        let (fused, plain) = (
            fused.grads[0].as_ref().unwrap(),
            plain.grads[0].as_ref().unwrap(),
        );
        assert!(distance(fused, plain) < 1e-6);
        assert!(fused[4 * 131..5 * 131].iter().all(|&g| g == 0.0));
        assert!(fused[..131].iter().any(|&g| g != 0.0));
    }

    #[test]
    fn any_number_of_lookups_is_summed_even_in_one_table() {
        needs_device!();
        let tables: Vec<Tensor> = (0..8).map(|i| tensor(&[5 + i, 13], i as u64)).collect();
        // The first table is read twice, as XLM reads its words; a row is named in both.
        let rows: Vec<Tensor> = (0..9)
            .map(|i| {
                let row = |j: usize| ((i * 7 + j * j) % (5 + i % 8)) as u32;
                ids(&(0..12).map(row).collect::<Vec<_>>(), &[2, 6])
            })
            .collect();
        check("nine", &[], &tables, &|given| {
            let table = |i: usize| &given.params[i % 8];
            let lookups: Vec<_> = (rows.iter().enumerate())
                .map(|(i, rows)| (rows, table(i), None))
                .collect();
            ops::embedding_sum(&lookups).unwrap()
        });
    }

    #[test]
    fn scattered_rows_return_their_gradients_and_undo_selecting() {
        needs_device!();
        let rows = ids(&[4, 0, 4, 2], &[2, 2]);
        check("scatter", &[tensor(&[2, 2, 21], 1)], &[], &|given| {
            ops::scatter_rows(&given.inputs[0], &rows, 6).unwrap()
        });
        let (x, order) = (tensor(&[4, 3], 1), ids(&[2, 0, 3, 1], &[4]));
        let there = ops::select_rows(&x, &order).unwrap();
        let back = ops::scatter_rows(&there, &order, 4).unwrap();
        assert_eq!(values(&back), values(&x));
        assert!(ops::scatter_rows(&x, &order, 3).is_err());
        assert!(ops::scatter_rows(&x, &ids(&[0], &[1]), 4).is_err());
    }

    #[test]
    fn a_tied_table_collects_both_gradients() {
        needs_device!();
        let words = ids(&[3, 1, 3, 0], &[4]);
        let labels = ids(&[2, 2, 0, 4], &[4]);
        for padding in [None, Some(3)] {
            let op = |given: &Given| {
                let table = &given.params[0];
                let hidden = ops::embedding(&words, table, padding).unwrap();
                ops::masked_cross_entropy(&hidden, table, None, &labels).unwrap()
            };
            if padding.is_none() {
                check("tied", &[], &[tensor(&[5, 9], 1)], &op);
            }
            let fused = run(&Given::new(&[], &[tensor(&[5, 9], 1)], DType::F32), &op);
            let plain = run(&Given::new(&[], &[tensor(&[5, 9], 1)], DType::F64), &op);
            assert!(
                distance(
                    fused.grads[0].as_ref().unwrap(),
                    plain.grads[0].as_ref().unwrap()
                ) < 4e-6
            );
        }
    }

    #[test]
    fn an_id_outside_the_table_is_an_error_that_names_it() {
        needs_device!();
        let error = ops::embedding(&ids(&[1, 7], &[2]), &param(&[5, 3], 1), None).unwrap_err();
        assert!(error.to_string().contains("id 7"), "{error}");
    }

    #[test]
    fn no_ids_give_no_rows() {
        needs_device!();
        let y = ops::embedding(&ids(&[], &[0]), &param(&[5, 3], 1), None).unwrap();
        assert_eq!(y.dims(), [0, 3]);
    }

    #[test]
    fn selected_rows_return_their_gradients_and_repeats_accumulate() {
        needs_device!();
        let rows = ids(&[4, 0, 4, 2], &[4]);
        check("select", &[tensor(&[6, 21], 1)], &[], &|given| {
            ops::select_rows(&given.inputs[0], &rows).unwrap()
        });
        assert!(ops::select_rows(&tensor(&[4, 2], 1), &rows).is_err());
        let none = ops::select_rows(&tensor(&[4, 2], 1), &ids(&[], &[0])).unwrap();
        assert_eq!(none.dims(), [0, 2]);
    }
}

mod shapes {
    use super::*;

    #[test]
    fn reshaped_tensors_and_their_views_return_their_gradients() {
        needs_device!();
        check("of an input", &[tensor(&[4, 6], 1)], &[], &|given| {
            ops::reshape(&given.inputs[0], (2, 3, 4)).unwrap()
        });
        // The result is read as it is, as a view, and as a view of a view.
        let inputs = [tensor(&[4, 6], 1), tensor(&[3, 8], 2)];
        check("of a result", &inputs, &[], &|given| {
            let x = ops::scale(&given.inputs[0], 0.7).unwrap();
            let half = ops::narrow(&ops::reshape(&x, (8, 3)).unwrap(), 0, 4, 4).unwrap();
            let again = ops::reshape(&half, (2, ())).unwrap();
            let all = ops::mul(&ops::reshape(&x, (3, 8)).unwrap(), &given.inputs[1]).unwrap();
            let all = ops::narrow(&all, 0, 1, 2).unwrap();
            let part = ops::narrow(&all, 1, 1, 6).unwrap();
            let rows = ops::narrow(&x, 0, 2, 2).unwrap();
            ops::concat(&[&part, &again, &rows, &again], 0).unwrap()
        });
        assert!(ops::reshape(&tensor(&[4, 6], 1), (5, 5)).is_err());
    }

    #[test]
    fn dimensions_may_be_permuted() {
        needs_device!();
        for order in [
            [0, 2, 1, 3],
            [3, 2, 1, 0],
            [0, 1, 3, 2],
            [2, 0, 1, 3],
            [0, 1, 2, 3],
        ] {
            check(
                &format!("{order:?}"),
                &[tensor(&[2, 3, 5, 4], 1)],
                &[],
                &|given| {
                    let x = ops::scale(&given.inputs[0], 1.5).unwrap();
                    let y = ops::permute(&x, &order).unwrap();
                    assert!(y.is_contiguous());
                    y
                },
            );
        }
        check("large", &[tensor(&[70, 300], 1)], &[], &|given| {
            ops::permute(&given.inputs[0], &[1, 0]).unwrap()
        });
        for wrong in [&[0, 0][..], &[0], &[1, 2]] {
            assert!(ops::permute(&tensor(&[2, 2], 1), wrong).is_err());
        }
    }

    #[test]
    fn narrowing_along_every_dimension_returns_gradients() {
        needs_device!();
        for (dim, start, len) in [(0, 1, 2), (1, 0, 3), (2, 2, 5), (2, 0, 7), (0, 0, 4)] {
            let name = format!("{dim} {start} {len}");
            check(&name, &[tensor(&[4, 5, 7], 1)], &[], &|given| {
                let x = ops::scale(&given.inputs[0], 1.5).unwrap();
                ops::narrow(&x, dim, start, len).unwrap()
            });
        }
        assert!(ops::narrow(&tensor(&[4, 5], 1), 1, 3, 3).is_err());
        assert!(ops::narrow(&tensor(&[4, 5], 1), 2, 0, 1).is_err());
    }

    #[test]
    fn any_number_of_concatenated_tensors_get_their_gradients() {
        needs_device!();
        for count in 1..=7usize {
            for dim in 0..3 {
                let shape = |i: usize| {
                    let mut shape = [2, 3, 4];
                    shape[dim] = 1 + i % 3;
                    shape
                };
                let inputs: Vec<_> = (0..count).map(|i| tensor(&shape(i), i as u64)).collect();
                check(&format!("{count} along {dim}"), &inputs, &[], &|given| {
                    let scaled: Vec<_> = (given.inputs.iter())
                        .map(|x| ops::scale(x, 0.5).unwrap())
                        .collect();
                    ops::concat(&scaled.iter().collect::<Vec<_>>(), dim).unwrap()
                });
            }
        }
        let x = tensor(&[2, 3], 1);
        assert!(ops::concat(&[&x, &tensor(&[3, 2], 1)], 0).is_err());
        assert!(ops::concat(&[], 0).is_err());
    }

    #[test]
    fn some_concatenated_tensors_may_be_constants() {
        needs_device!();
        for constant in 0..5 {
            let fixed = tensor(&[2, 3], 9);
            let inputs: Vec<_> = (0..4).map(|i| tensor(&[2, 3], i)).collect();
            check(&format!("{constant}"), &inputs, &[], &|given| {
                let fixed = fixed.to_dtype(given.inputs[0].dtype()).unwrap();
                let fixed = fixed.to_device(given.inputs[0].device()).unwrap();
                let mut parts: Vec<&Tensor> = given.inputs.iter().collect();
                parts.insert(constant, &fixed);
                ops::concat(&parts, 1).unwrap()
            });
        }
    }

    #[test]
    fn means_over_segments_spread_their_gradients() {
        needs_device!();
        for (shape, count) in [
            (&[2usize, 6, 5][..], 3),
            (&[2, 6], 2),
            (&[3, 4, 2, 5], 4),
            (&[1, 7, 3], 1),
        ] {
            check(
                &format!("{shape:?} {count}"),
                &[tensor(shape, 1)],
                &[],
                &|given| ops::mean_segments(&given.inputs[0], count).unwrap(),
            );
        }
        assert!(ops::mean_segments(&tensor(&[2, 6], 1), 4).is_err());
        assert!(ops::mean_segments(&tensor(&[2, 6], 1), 0).is_err());
    }
}

mod rows_of_one_length {
    use super::*;
    use cloze::ops::RowLength;

    #[test]
    fn rows_divided_by_their_norm_have_correct_gradients() {
        needs_device!();
        let lengths = [
            RowLength::RootMeanSquare { eps: 1e-5 },
            RowLength::Euclidean { least: 1e-12 },
            // Some rows are shorter than this, some longer.
            RowLength::Euclidean { least: 1.6 },
        ];
        for (shape, length) in [[2, 3, 7], [40, 9, 5]]
            .into_iter()
            .flat_map(|shape| lengths.map(|length| (shape, length)))
        {
            check(
                &format!("{shape:?} {length:?}"),
                &[tensor(&shape, 1)],
                &[],
                &|given| ops::normalize_rows(&given.inputs[0], length).unwrap(),
            );
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero_and_uses_the_minimum_norm_in_its_gradient() {
        needs_device!();
        let x = Var::from_tensor(&Tensor::zeros((1, 3), DType::F32, &here()).unwrap()).unwrap();
        let y = ops::normalize_rows(&x, RowLength::Euclidean { least: 0.5 }).unwrap();
        assert_eq!(values(&y), [0.0; 3]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(grads.get(&x).unwrap()), [2.0; 3]);
    }
}

mod standardize {
    use super::*;

    #[test]
    fn batch_normalization_has_correct_gradients() {
        needs_device!();
        for shape in [vec![2, 3, 7], vec![130, 5], vec![1, 4]] {
            check(
                &format!("standardize {shape:?}"),
                &[tensor(&shape, 3)],
                &[],
                &|given| ops::standardize(&given.inputs[0], 0.1).unwrap().values,
            );
        }
    }

    #[test]
    fn mean_and_variance_cover_all_rows() {
        needs_device!();
        let x = Tensor::new(&[[1f32, 2.0], [3.0, 2.0], [5.0, 8.0]], &here()).unwrap();
        let found = ops::standardize(&x, 0.0).unwrap();
        assert_eq!(values(&found.mean), [3.0, 4.0]);
        assert_eq!(values(&found.variance), [8.0 / 3.0, 8.0]);
        let sums = values(&found.values.sum(0).unwrap());
        assert!(sums.iter().all(|sum| sum.abs() < 1e-6), "{sums:?}");
    }
}

mod arithmetic {
    use super::*;

    #[test]
    fn products_with_a_learned_scalar_have_correct_gradients() {
        needs_device!();
        check(
            "scale_by",
            &[tensor(&[3, 4, 5], 1)],
            &[tensor(&[1], 2)],
            &|given| {
                let factor = ops::param_rows(&given.params[0]).unwrap();
                ops::scale_by(&given.inputs[0], &factor).unwrap()
            },
        );
        assert!(ops::scale_by(&tensor(&[2, 3], 1), &tensor(&[3], 1)).is_err());
    }

    #[test]
    fn products_differences_and_squares_have_correct_gradients() {
        needs_device!();
        let inputs = [tensor(&[3, 7, 11], 1), tensor(&[3, 7, 11], 2)];
        check("mul, sub", &inputs, &[], &|given| {
            let (a, b) = (&given.inputs[0], &given.inputs[1]);
            let product = ops::mul(a, b).unwrap();
            ops::sub(&product, &ops::mul(a, a).unwrap()).unwrap()
        });
        assert!(ops::mul(&tensor(&[2, 3], 1), &tensor(&[3], 1)).is_err());
    }

    #[test]
    fn rows_are_multiplied_by_constants() {
        needs_device!();
        let factors = Tensor::from_vec(noise(6, 3), (2, 3), &Device::Cpu).unwrap();
        check("rows", &[tensor(&[2, 3, 5], 1)], &[], &|given| {
            ops::mul_rows(&given.inputs[0], &factors).unwrap()
        });
        assert!(ops::mul_rows(&tensor(&[2, 5], 1), &factors).is_err());
    }

    #[test]
    fn scales_and_shifts_of_features_have_correct_gradients() {
        needs_device!();
        for shape in [&[3usize, 5, 37][..], &[1, 1], &[700, 96]] {
            let width = *shape.last().unwrap();
            let params = [tensor(&[width], 3), tensor(&[width], 4)];
            for count in [1, 2] {
                check(
                    &format!("{shape:?} {count}"),
                    &[tensor(shape, 1)],
                    &params[..count],
                    &|given| {
                        ops::affine(&given.inputs[0], &given.params[0], given.params.get(1))
                            .unwrap()
                    },
                );
            }
        }
        assert!(ops::affine(&tensor(&[2, 5], 1), &param(&[4], 1), None).is_err());
    }

    #[test]
    fn a_term_broadcast_over_the_batch_collects_its_gradient() {
        needs_device!();
        for (x, y) in [
            (&[3usize, 5, 7][..], &[5usize, 7][..]),
            (&[3, 5, 7], &[7]),
            (&[3, 5, 7], &[3, 5, 7]),
            (&[200, 9], &[9]),
            (&[2, 150, 130], &[150, 130]),
            (&[4], &[]),
        ] {
            check(
                &format!("{x:?} {y:?}"),
                &[tensor(x, 1), tensor(y, 2)],
                &[],
                &|given| ops::add_broadcast(&given.inputs[0], &given.inputs[1]).unwrap(),
            );
        }
        assert!(ops::add_broadcast(&tensor(&[3, 5], 1), &tensor(&[3], 1)).is_err());
    }

    #[test]
    fn matrices_are_multiplied_in_every_layout() {
        needs_device!();
        for (lead, [m, k, n]) in [
            (&[][..], [5, 7, 3]),
            (&[4], [5, 7, 3]),
            (&[2, 3], [1, 6, 4]),
            // Each shared out among threads, and one after the other.
            (&[2], [130, 129, 131]),
        ] {
            for (ta, tb) in [(false, false), (false, true), (true, false), (true, true)] {
                let shape = |rows, cols, t| match t {
                    true => [lead, &[cols, rows]].concat(),
                    false => [lead, &[rows, cols]].concat(),
                };
                let inputs = [tensor(&shape(m, k, ta), 1), tensor(&shape(k, n, tb), 2)];
                check(
                    &format!("{lead:?} {m} {k} {n} {ta} {tb}"),
                    &inputs,
                    &[],
                    &|given| {
                        let y = ops::matmul(&given.inputs[0], &given.inputs[1], ta, tb).unwrap();
                        assert_eq!(y.dims(), [lead, &[m, n]].concat());
                        y
                    },
                );
            }
        }
        check("square", &[tensor(&[2, 4, 4], 1)], &[], &|given| {
            ops::matmul(&given.inputs[0], &given.inputs[0], true, false).unwrap()
        });
        let product =
            |a: &[usize], b: &[usize]| ops::matmul(&tensor(a, 1), &tensor(b, 2), false, false);
        assert!(product(&[2, 3], &[2, 3]).is_err());
        assert!(product(&[2, 2, 3], &[3, 3, 2]).is_err());
        assert!(product(&[3], &[3, 2]).is_err());
    }

    #[test]
    fn softmax_has_correct_gradients_and_does_not_overflow() {
        needs_device!();
        for shape in [&[3usize, 5, 37][..], &[4, 1], &[900, 33]] {
            check(
                &format!("{shape:?}"),
                &[(tensor(shape, 1) * 4.0).unwrap()],
                &[],
                &|given| ops::softmax(&given.inputs[0]).unwrap(),
            );
        }
        let x = Tensor::new(
            &[[1e4f32, 1e4, -1e4], [f32::MIN, f32::MIN, f32::MIN]],
            &here(),
        )
        .unwrap();
        let y = values(&ops::softmax(&x).unwrap());
        assert_eq!(y[..3], [0.5, 0.5, 0.0]);
        assert!(y[3..].iter().all(|y| (y - 1.0 / 3.0).abs() < 1e-6), "{y:?}");
    }

    #[test]
    fn parameters_can_be_used_like_activations() {
        needs_device!();
        let params = [tensor(&[4, 6], 1), tensor(&[6], 2)];
        check("rows", &[tensor(&[3, 4, 6], 3)], &params, &|given| {
            let [latents, bias] = [0, 1].map(|i| ops::param_rows(&given.params[i]).unwrap());
            let x = ops::add_broadcast(&given.inputs[0], &latents).unwrap();
            let x = ops::add_broadcast(&x, &bias).unwrap();
            let rows = ops::reshape(&latents, (1, 4, 6)).unwrap();
            let x = ops::concat(&[&rows, &x], 0).unwrap();
            ops::linear(&x, &given.params[0], None).unwrap()
        });
        let frozen = param(&[2], 1);
        frozen.set_trainable(false);
        assert!(!ops::param_rows(&frozen).unwrap().track_op());
    }
}

mod gates_and_norms {
    use super::*;

    #[test]
    fn either_half_may_be_the_gate_of_the_other() {
        needs_device!();
        for activation in ACTIVATIONS {
            for gate in [Gate::First, Gate::Second] {
                for shape in [&[3usize, 5, 14][..], &[1, 2]] {
                    let name = format!("{activation:?} {gate:?} {shape:?}");
                    check(&name, &[(tensor(shape, 1) * 3.0).unwrap()], &[], &|given| {
                        ops::gated(&given.inputs[0], activation, gate).unwrap()
                    });
                }
            }
        }
        check("large", &[tensor(&[150, 600], 1)], &[], &|given| {
            ops::gated(&given.inputs[0], Activation::Silu, Gate::Second).unwrap()
        });
        assert!(ops::gated(&tensor(&[2, 5], 1), Activation::Silu, Gate::First).is_err());
        let y = ops::gated(&nothing(&[0, 4]), Activation::Silu, Gate::First).unwrap();
        assert_eq!(y.dims(), [0, 2]);
    }

    #[test]
    fn rms_norm_normalizes() {
        needs_device!();
        for shape in [&[3usize, 5, 37][..], &[1, 1, 8], &[70, 768], &[3, 1030]] {
            let width = *shape.last().unwrap();
            check(
                &format!("{shape:?}"),
                &[tensor(shape, 1)],
                &[tensor(&[width], 3)],
                &|given| ops::rms_norm(&given.inputs[0], &given.params[0], 1e-5).unwrap(),
            );
        }
        assert!(ops::rms_norm(&tensor(&[2, 5], 1), &param(&[4], 1), 1e-5).is_err());
        let y = ops::rms_norm(&nothing(&[0, 4]), &param(&[4], 1), 1e-5).unwrap();
        assert_eq!(y.dims(), [0, 4]);
    }

    #[test]
    fn groups_of_features_have_their_own_maps() {
        needs_device!();
        for (x, out, groups) in [
            (&[3usize, 7, 12][..], 8, 4),
            (&[5, 12], 6, 2),
            (&[2, 3, 5], 4, 1),
            (&[90, 64], 96, 4),
        ] {
            let inner = x[x.len() - 1] / groups;
            for on_disk in [&[out, inner][..], &[out, inner, 1]] {
                for count in [1, 2] {
                    let params = [tensor(on_disk, 2), tensor(&[out], 3)];
                    let name = format!("{x:?} {on_disk:?} {groups} {count}");
                    check(&name, &[tensor(x, 1)], &params[..count], &|given| {
                        let (w, b) = (&given.params[0], given.params.get(1));
                        ops::linear_grouped(&given.inputs[0], w, b, groups).unwrap()
                    });
                }
            }
        }
        let x = tensor(&[2, 6], 1);
        assert!(ops::linear_grouped(&x, &param(&[4, 2], 1), None, 2).is_err());
        assert!(ops::linear_grouped(&x, &param(&[3, 3], 1), None, 2).is_err());
        assert!(ops::linear_grouped(&x, &param(&[4, 3], 1), None, 0).is_err());
        assert!(ops::linear_grouped(&x, &param(&[4, 3], 1), Some(&param(&[3], 1)), 2).is_err());
    }

    #[test]
    fn a_total_sum_gives_every_element_its_gradient() {
        needs_device!();
        check("sum", &[tensor(&[3, 40, 701], 1)], &[], &|given| {
            let x = ops::mul(&given.inputs[0], &given.inputs[0]).unwrap();
            ops::sum_all(&x).unwrap()
        });
    }
}

mod convolutions {
    use super::*;

    #[test]
    fn kernels_apply_to_features_or_whole_heads() {
        needs_device!();
        for (x, w, pad) in [
            ([2, 9, 6], &[6usize, 3][..], 1),
            ([2, 9, 6], &[6, 1, 5], 2),
            ([2, 9, 6], &[2, 1, 5, 1], 2),
            ([1, 4, 3], &[3, 4], 0),
            ([1, 2, 4], &[4, 7], 3),
            ([2, 5, 4], &[1, 3], 4),
        ] {
            check(
                &format!("{x:?} {w:?} {pad}"),
                &[tensor(&x, 1), tensor(w, 2)],
                &[],
                &|given| ops::depthwise_conv(&given.inputs[0], &given.inputs[1], pad).unwrap(),
            );
        }
        check(
            "of a parameter",
            &[tensor(&[2, 20, 130], 1)],
            &[tensor(&[130, 1, 9], 2)],
            &|given| {
                let w = ops::param_rows(&given.params[0]).unwrap();
                ops::depthwise_conv(&given.inputs[0], &w, 4).unwrap()
            },
        );
        let x = tensor(&[2, 3, 4], 1);
        assert!(ops::depthwise_conv(&x, &tensor(&[3, 3], 1), 1).is_err());
        assert!(ops::depthwise_conv(&x, &tensor(&[4, 6], 1), 1).is_err());
    }

    #[test]
    fn positions_have_their_own_kernels() {
        needs_device!();
        for ([batch, len, heads, d], kernel) in [
            ([2, 9, 3, 4], 5),
            ([1, 3, 2, 5], 9),
            ([2, 6, 1, 3], 4),
            ([3, 1, 2, 2], 1),
        ] {
            let inputs = [
                tensor(&[batch, len, heads * d], 1),
                tensor(&[batch, len, heads, kernel], 2),
            ];
            check(&format!("{len} {heads} {kernel}"), &inputs, &[], &|given| {
                let kernels = ops::softmax(&given.inputs[1]).unwrap();
                ops::dynamic_conv(&given.inputs[0], &kernels).unwrap()
            });
        }
        let x = tensor(&[2, 3, 4], 1);
        assert!(ops::dynamic_conv(&x, &tensor(&[2, 3, 3, 5], 1)).is_err());
        assert!(ops::dynamic_conv(&x, &tensor(&[2, 4, 2, 5], 1)).is_err());
    }

    #[test]
    fn convolutions_support_strides_padding_and_groups() {
        needs_device!();
        for (x, w, stride, pad, groups) in [
            ([2, 11, 3], [4, 3, 3], 1, 0, 1),
            ([2, 11, 3], [4, 3, 4], 2, 1, 1),
            ([1, 16, 1], [5, 1, 10], 5, 0, 1),
            ([2, 7, 6], [4, 3, 3], 1, 1, 2),
            ([1, 9, 8], [8, 2, 4], 3, 2, 4),
            ([1, 5, 4], [4, 1, 5], 1, 0, 4),
        ] {
            let conv = Conv1d {
                stride,
                pad,
                groups,
            };
            check(
                &format!("{x:?} {w:?} {conv:?}"),
                &[tensor(&x, 1), tensor(&w, 2)],
                &[],
                &|given| ops::conv1d(&given.inputs[0], &given.inputs[1], conv).unwrap(),
            );
        }
        let (x, w) = (tensor(&[2, 5, 4], 1), tensor(&[4, 4, 6], 1));
        assert!(ops::conv1d(&x, &w, Conv1d::default()).is_err());
        let w = tensor(&[4, 2, 3], 1);
        assert!(ops::conv1d(&x, &w, Conv1d::default()).is_err());
        assert!(
            ops::conv1d(
                &x,
                &w,
                Conv1d {
                    stride: 0,
                    groups: 2,
                    pad: 0
                }
            )
            .is_err()
        );
    }
}

mod mixers {
    use super::*;

    #[test]
    fn an_empty_batch_stays_empty_everywhere() {
        needs_device!();
        let x = || nothing(&[0, 4, 6]);
        let dims = |y: cloze::Result<Tensor>| y.unwrap().dims().to_vec();
        assert_eq!(dims(ops::reshape(&x(), (0, 24))), [0, 24]);
        assert_eq!(dims(ops::permute(&x(), &[2, 0, 1])), [6, 0, 4]);
        assert_eq!(dims(ops::narrow(&x(), 2, 1, 3)), [0, 4, 3]);
        assert_eq!(dims(ops::concat(&[&x(), &x()], 1)), [0, 8, 6]);
        assert_eq!(dims(ops::mul(&x(), &x())), [0, 4, 6]);
        assert_eq!(dims(ops::sub(&x(), &x())), [0, 4, 6]);
        assert_eq!(dims(ops::mul_rows(&x(), &nothing(&[0, 4]))), [0, 4, 6]);
        assert_eq!(dims(ops::affine(&x(), &param(&[6], 1), None)), [0, 4, 6]);
        assert_eq!(
            dims(ops::add_broadcast(&x(), &tensor(&[4, 6], 1))),
            [0, 4, 6]
        );
        assert_eq!(dims(ops::matmul(&x(), &x(), false, true)), [0, 4, 4]);
        assert_eq!(dims(ops::softmax(&x())), [0, 4, 6]);
        assert_eq!(dims(ops::activate(&x(), Activation::Sigmoid)), [0, 4, 6]);
        assert_eq!(dims(ops::mean_segments(&x(), 2)), [0, 2, 6]);
        assert_eq!(
            dims(ops::linear_grouped(&x(), &param(&[4, 3], 1), None, 2)),
            [0, 4, 4]
        );
        assert_eq!(
            dims(ops::depthwise_conv(&x(), &tensor(&[6, 3], 1), 1)),
            [0, 4, 6]
        );
        assert_eq!(
            dims(ops::dynamic_conv(&x(), &nothing(&[0, 4, 2, 3]))),
            [0, 4, 6]
        );
        let w = tensor(&[5, 6, 3], 1);
        assert_eq!(dims(ops::conv1d(&x(), &w, Conv1d::default())), [0, 2, 5]);
        assert_eq!(dims(ops::fourier_mix(&x())), [0, 4, 6]);
        let none = ids(&[], &[0]);
        assert_eq!(dims(ops::scatter_rows(&nothing(&[0, 6]), &none, 2)), [2, 6]);
    }

    #[test]
    fn fourier_transforms_are_their_own_gradients() {
        needs_device!();
        for shape in [[2, 5, 6], [1, 8, 4], [1, 1, 3], [2, 7, 1], [1, 33, 40]] {
            check(&format!("{shape:?}"), &[tensor(&shape, 1)], &[], &|given| {
                ops::fourier_mix(&given.inputs[0]).unwrap()
            });
        }
        // All in one place spreads evenly; all equal stands in the first.
        let one = Tensor::ones((1, 3, 4), DType::F32, &here()).unwrap();
        let y = values(&ops::fourier_mix(&one).unwrap());
        assert!(
            (y[0] - 12.0).abs() < 1e-5 && y[1..].iter().all(|y| y.abs() < 1e-5),
            "{y:?}"
        );
    }

    #[test]
    fn newtons_iteration_inverts_and_has_correct_gradients() {
        needs_device!();
        for shape in [&[2usize, 3, 5, 5][..], &[4, 4]] {
            let a = (tensor(shape, 1) * 0.3).unwrap();
            let unit = Tensor::eye(shape[shape.len() - 1], DType::F32, &here()).unwrap();
            let a = a.broadcast_add(&unit).unwrap();
            check(&format!("{shape:?}"), &[a], &[], &|given| {
                let probabilities = ops::softmax(&ops::scale(&given.inputs[0], 4.0).unwrap());
                ops::newton_pinv(&probabilities.unwrap()).unwrap()
            });
        }
        let a = Tensor::new(&[[0.75f32, 0.25], [0.2, 0.8]], &here()).unwrap();
        let z = ops::newton_pinv(&a).unwrap();
        let found = values(&z.matmul(&a).unwrap());
        for (found, unit) in found.iter().zip([1.0, 0.0, 0.0, 1.0]) {
            assert!((found - unit).abs() < 1e-4, "{found}");
        }
        assert!(ops::newton_pinv(&tensor(&[2, 3], 1)).is_err());
    }

    #[test]
    fn moving_averages_look_both_ways() {
        needs_device!();
        let (h, states) = (6, 4);
        for (shape, truncation, directions) in [
            ([2, 7, h], None, 2),
            ([1, 2, h], None, 2),
            ([2, 9, h], Some(3), 2),
            ([1, 3, h], Some(8), 2),
            ([2, 7, h], None, 1),
            ([2, 9, h], Some(3), 1),
        ] {
            let sizes: [&[usize]; 4] = [
                &[directions * h, states, 1],
                &[directions * h, states, 1],
                &[directions * h, states, 1],
                &[directions * h, states],
            ];
            let params: Vec<_> = (sizes.iter().zip(2..))
                .map(|(s, seed)| tensor(s, seed))
                .collect();
            check(
                &format!("{shape:?} {truncation:?} {directions}"),
                &[tensor(&shape, 1)],
                &params,
                &|given| {
                    let [damping, decay, expansion, projection] = &given.params[..] else {
                        unreachable!()
                    };
                    let params = EmaParams {
                        damping,
                        decay,
                        expansion,
                        projection,
                    };
                    ops::damped_ema(&given.inputs[0], params, truncation).unwrap()
                },
            );
        }
    }
}

mod ctc {
    use super::*;

    #[test]
    fn all_alignments_count() {
        needs_device!();
        let labels = [vec![1, 2, 2, 3], vec![4], vec![], vec![2, 1]];
        let targets = CtcTargets {
            frames: &[9, 7, 5, 2],
            labels: &labels,
            blank: 0,
            zero_infinity: false,
        };
        check(
            "losses",
            &[(tensor(&[4, 9, 5], 1) * 2.0).unwrap()],
            &[],
            &|given| ops::ctc_loss(&given.inputs[0], targets).unwrap(),
        );
        let last = CtcTargets {
            frames: &[4],
            labels: &[vec![0, 1]],
            blank: 4,
            ..targets
        };
        check("another blank", &[tensor(&[1, 6, 5], 1)], &[], &|given| {
            ops::sum_all(&ops::ctc_loss(&given.inputs[0], last).unwrap()).unwrap()
        });
    }

    #[test]
    fn the_loss_agrees_with_brute_force() {
        needs_device!();
        let (frames, classes) = (4usize, 3usize);
        let logits = tensor(&[1, frames, classes], 5);
        let rows = logits
            .squeeze(0)
            .unwrap()
            .to_device(&Device::Cpu)
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        let probability = |t: usize, c: usize| {
            let total: f64 = rows[t].iter().map(|&x| f64::from(x).exp()).sum();
            f64::from(rows[t][c]).exp() / total
        };
        for labels in [vec![], vec![1], vec![1, 1], vec![1, 2], vec![2, 1, 2]] {
            let mut sum = 0.0;
            for way in 0..classes.pow(frames as u32) {
                let classes: Vec<usize> = (0..frames)
                    .map(|t| way / classes.pow(t as u32) % classes)
                    .collect();
                let mut said = classes.clone();
                said.dedup();
                said.retain(|&c| c != 0);
                if said.iter().map(|&c| c as u32).eq(labels.iter().copied()) {
                    sum += (0..frames)
                        .map(|t| probability(t, classes[t]))
                        .product::<f64>();
                }
            }
            let targets = CtcTargets {
                frames: &[frames],
                labels: std::slice::from_ref(&labels),
                blank: 0,
                zero_infinity: false,
            };
            let loss = values(&ops::ctc_loss(&logits, targets).unwrap())[0];
            assert!(
                (f64::from(loss) + sum.ln()).abs() < 1e-5,
                "{labels:?}: {loss} {}",
                -sum.ln()
            );
        }
    }

    #[test]
    fn labels_longer_than_the_frames_are_infinite_or_zeroed() {
        needs_device!();
        let given = Given::new(&[tensor(&[2, 3, 4], 1)], &[], DType::F32);
        let labels = [vec![1, 1], vec![1, 2, 3, 1]];
        let targets = |zero_infinity| CtcTargets {
            frames: &[3, 3],
            labels: &labels,
            blank: 0,
            zero_infinity,
        };
        let losses = values(&ops::ctc_loss(&given.inputs[0], targets(false)).unwrap());
        assert!(
            losses[0].is_finite() && losses[1] == f32::INFINITY,
            "{losses:?}"
        );
        let outcome = run_alone(&given, &|given| {
            ops::ctc_loss(&given.inputs[0], targets(true)).unwrap()
        });
        assert!(outcome.value[0] > 0.0 && outcome.value[1] == 0.0);
        let grads = outcome.grads[0].as_ref().unwrap();
        assert!(grads[..12].iter().any(|&g| g != 0.0) && grads[12..].iter().all(|&g| g == 0.0));
        let refused = |frames: &[usize], labels: Vec<u32>, blank| {
            let targets = CtcTargets {
                frames,
                labels: &[labels],
                blank,
                zero_infinity: false,
            };
            ops::ctc_loss(&tensor(&[1, 3, 4], 1), targets).is_err()
        };
        assert!(refused(&[4], vec![1], 0) && refused(&[3], vec![4], 0));
        assert!(refused(&[3], vec![0], 0) && refused(&[3], vec![1], 4) && refused(&[], vec![1], 0));
    }
}

mod cross_entropy {
    use super::*;

    fn case(rows: usize, width: usize, vocab: usize, bias: bool) {
        let labels: Vec<u32> = (0..rows).map(|i| (i * 31 % vocab) as u32).collect();
        let labels = ids(&labels, &[rows]);
        let mut params = vec![tensor(&[vocab, width], 2)];
        if bias {
            params.push(tensor(&[vocab], 3));
        }
        check(
            &format!("{rows} {width} {vocab} {bias}"),
            &[tensor(&[rows, width], 1)],
            &params,
            &|given| {
                let (w, b) = (&given.params[0], given.params.get(1));
                ops::masked_cross_entropy(&given.inputs[0], w, b, &labels).unwrap()
            },
        );
    }

    #[test]
    fn loss_and_gradients_are_correct() {
        needs_device!();
        case(17, 23, 101, true);
        case(17, 23, 101, false);
        case(1, 1, 2, true);
        case(5, 16, 4099, true);
    }

    #[test]
    fn huge_logits_neither_overflow_nor_lose_the_loss() {
        needs_device!();
        let hidden = Tensor::new(&[[1000f32], [-1000.0]], &here()).unwrap();
        let weight = Param::new(
            "w",
            &Tensor::new(&[[1f32], [0.0], [-1.0]], &here()).unwrap(),
        )
        .unwrap();
        let loss = ops::masked_cross_entropy(&hidden, &weight, None, &ids(&[1, 2], &[2])).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 1000.0);
    }

    #[test]
    fn nan_propagates_to_the_loss() {
        needs_device!();
        let hidden = Tensor::new(&[[f32::NAN, 1.0]], &here()).unwrap();
        let loss = ops::masked_cross_entropy(&hidden, &param(&[33, 2], 1), None, &ids(&[1], &[1]))
            .unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_nan());
    }

    #[test]
    fn without_gradients_the_loss_is_the_same() {
        needs_device!();
        let (hidden, w, b) = (tensor(&[300, 8], 1), param(&[77, 8], 2), param(&[77], 3));
        let labels: Vec<u32> = (0..300).map(|i| i % 77).collect();
        let labels = ids(&labels, &[300]);
        let loss = || ops::masked_cross_entropy(&hidden, &w, Some(&b), &labels).unwrap();
        let (with, without) = (loss(), ops::no_grad(loss));
        assert!(with.track_op() && !without.track_op());
        let (with, without) = (
            with.to_scalar::<f32>().unwrap(),
            without.to_scalar::<f32>().unwrap(),
        );
        assert!((with - without).abs() < 1e-6 * with, "{with} {without}");
    }

    #[test]
    fn an_empty_batch_has_a_loss_and_a_backward_pass() {
        needs_device!();
        let hidden = nothing(&[0, 4]);
        let w = param(&[9, 4], 1);
        let loss = ops::masked_cross_entropy(&hidden, &w, None, &ids(&[], &[0])).unwrap();
        assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
        ops::backward(&loss, std::slice::from_ref(&w)).unwrap();
        assert!(values(&w.grad().unwrap()).iter().all(|&g| g == 0.0));
    }

    #[test]
    fn a_label_outside_the_vocabulary_is_an_error() {
        needs_device!();
        let error = ops::masked_cross_entropy(
            &tensor(&[1, 2], 1),
            &param(&[3, 2], 2),
            None,
            &ids(&[3], &[1]),
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .contains("outside the vocabulary")
        );
    }

    #[test]
    fn a_second_backward_pass_accumulates_the_same_gradients() {
        needs_device!();
        let w = param(&[9, 4], 1);
        let loss =
            ops::masked_cross_entropy(&tensor(&[2, 4], 2), &w, None, &ids(&[3, 8], &[2])).unwrap();
        ops::backward(&loss, &[]).unwrap();
        let once = values(&w.grad().unwrap());
        ops::backward(&loss, &[]).unwrap();
        for (twice, once) in values(&w.grad().unwrap()).iter().zip(once) {
            assert!(
                (twice - 2.0 * once).abs() <= 1e-6 * once.abs(),
                "{twice} {once}"
            );
        }
    }
}

mod attention {
    use super::*;

    const NONE: Dropout = Dropout::NONE;
    const SOME: Dropout = Dropout { p: 0.2, key: 6 };

    /// (batch, queries, keys, heads, head of q and k, head of v)
    fn case(sizes: [usize; 6], mask: &AttentionMask, dropout: Dropout) {
        let [batch, queries, keys, heads, d, e] = sizes;
        let mut inputs = vec![
            tensor(&[batch, queries, heads * d], 1),
            tensor(&[batch, keys, heads * d], 2),
            tensor(&[batch, keys, heads * e], 3),
        ];
        if let AttentionMask::Additive(bias) = mask {
            inputs.push(bias.clone());
        }
        check(
            &format!("{sizes:?} {mask:?} {dropout:?}"),
            &inputs,
            &[],
            &|given| {
                let mask = match mask {
                    AttentionMask::Additive(_) => AttentionMask::Additive(given.inputs[3].clone()),
                    other => other.clone(),
                };
                let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                // Sharper than 1 / sqrt(d), so that the softmax is far from uniform.
                ops::attention(q, k, v, heads, &mask, 0.9, dropout).unwrap()
            },
        );
    }

    #[test]
    fn gradients_are_correct_at_all_sizes() {
        needs_device!();
        for dropout in [NONE, SOME] {
            case([2, 9, 9, 3, 5, 5], &AttentionMask::None, dropout);
            case([2, 7, 11, 2, 8, 3], &AttentionMask::None, dropout);
            case([1, 1, 1, 1, 1, 1], &AttentionMask::None, dropout);
            case([1, 33, 128, 2, 64, 64], &AttentionMask::None, dropout);
            // Several blocks of queries.
            case([1, 37, 4500, 1, 4, 4], &AttentionMask::None, dropout);
        }
    }

    #[test]
    fn masked_keys_are_ignored_at_any_position() {
        needs_device!();
        let mask = ids(
            &[
                1, 1, 1, 1, 1, 1, 1, // all
                1, 1, 1, 1, 0, 0, 0, // padded behind
                0, 0, 1, 0, 1, 1, 0, // padded in front, with a hole
            ],
            &[3, 7],
        );
        for dropout in [NONE, SOME] {
            case(
                [3, 5, 7, 2, 6, 6],
                &AttentionMask::Keys(mask.clone()),
                dropout,
            );
            let bytes = mask.to_dtype(DType::U8).unwrap();
            case([3, 5, 7, 2, 6, 6], &AttentionMask::Keys(bytes), dropout);
        }
    }

    #[test]
    fn with_all_keys_masked_results_and_gradients_agree_with_pytorch() {
        needs_device!();
        let mask = AttentionMask::Keys(ids(&[0, 0, 0, 1, 1, 0], &[2, 3]));
        let inputs = [1, 2, 3].map(|seed| tensor(&[2, 3, 8], seed));
        for dropout in [NONE, SOME] {
            agree("all masked", &inputs, &[], &|given| {
                let [q, k, v] = [0, 1, 2].map(|i| &given.inputs[i]);
                ops::attention(q, k, v, 2, &mask, 0.9, dropout).unwrap()
            });
        }
        let [q, k, v] = inputs;
        let out = ops::attention(&q, &k, &v, 2, &mask, 0.9, NONE).unwrap();
        let mean = v.narrow(0, 0, 1).unwrap().mean_keepdim(1).unwrap();
        let mean = mean.broadcast_as((1, 3, 8)).unwrap();
        assert!(distance(&wide(&out.narrow(0, 0, 1).unwrap()), &wide(&mean)) < 1e-6);
    }

    #[test]
    fn a_masked_key_does_not_affect_the_result() {
        needs_device!();
        let mask = AttentionMask::Keys(ids(&[1, 0, 1], &[1, 3]));
        let v = Tensor::new(&[[[1f32], [f32::MAX], [1.0]]], &here()).unwrap();
        let out = ops::attention(
            &tensor(&[1, 2, 4], 1),
            &tensor(&[1, 3, 4], 2),
            &v,
            1,
            &mask,
            1.0,
            NONE,
        );
        for x in values(&out.unwrap()) {
            assert!((x - 1.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn additive_masks_get_their_gradient_however_they_are_broadcast() {
        needs_device!();
        for shape in [
            &[2usize, 3, 5, 7][..],
            &[1, 3, 5, 7],
            &[3, 5, 7],
            &[2, 1, 1, 7],
            &[5, 7],
        ] {
            for dropout in [NONE, SOME] {
                case(
                    [2, 5, 7, 3, 4, 4],
                    &AttentionMask::Additive(tensor(shape, 9)),
                    dropout,
                );
            }
        }
    }

    #[test]
    fn a_constant_mask_changes_nothing() {
        needs_device!();
        let given = Given::new(
            &[tensor(&[2, 3, 8], 1), tensor(&[2, 2, 3, 1], 2)],
            &[],
            DType::F32,
        );
        let attend = |mask: AttentionMask| {
            let x = &given.inputs[0];
            ops::attention(x, x, x, 2, &mask, 0.9, NONE).unwrap()
        };
        let plain = attend(AttentionMask::None);
        let outcome = run(&given, &|given| {
            attend(AttentionMask::Additive(given.inputs[1].clone()))
        });
        assert!(distance(&outcome.value, &wide(&plain)) < 1e-6);
        assert!(
            outcome.grads[1]
                .as_ref()
                .unwrap()
                .iter()
                .all(|g| g.abs() < 1e-6)
        );
    }

    #[test]
    fn an_additive_mask_may_use_the_lowest_number() {
        needs_device!();
        let bias = Tensor::full(f32::MIN, (1, 1, 2, 3), &here()).unwrap();
        let v = Tensor::new(&[[[1f32], [2.0], [6.0]]], &here()).unwrap();
        let (q, k) = (tensor(&[1, 2, 4], 1), tensor(&[1, 3, 4], 2));
        let out = ops::attention(&q, &k, &v, 1, &AttentionMask::Additive(bias), 1.0, NONE).unwrap();
        for x in values(&out) {
            assert!((x - 3.0).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn one_tensor_may_be_query_key_and_value() {
        needs_device!();
        check("self", &[tensor(&[2, 6, 8], 1)], &[], &|given| {
            let x = &given.inputs[0];
            ops::attention(x, x, x, 2, &AttentionMask::None, 0.5, NONE).unwrap()
        });
    }

    #[test]
    fn strided_inputs_are_read_in_place() {
        needs_device!();
        check("strided", &[tensor(&[2, 5, 24], 1)], &[], &|given| {
            let part = |i: usize| given.inputs[0].narrow(2, i * 8, 8).unwrap();
            ops::attention(
                &part(0),
                &part(1),
                &part(2),
                2,
                &AttentionMask::None,
                0.5,
                SOME,
            )
            .unwrap()
        });
    }

    #[test]
    fn an_empty_batch_gives_an_empty_batch() {
        needs_device!();
        let x = nothing(&[0, 3, 4]);
        let y = ops::attention(&x, &x, &x, 2, &AttentionMask::None, 1.0, NONE).unwrap();
        assert_eq!(y.dims(), [0, 3, 4]);
    }

    #[test]
    fn mismatched_shapes_are_errors() {
        needs_device!();
        let x = tensor(&[2, 3, 8], 1);
        let attend = |heads, mask| ops::attention(&x, &x, &x, heads, &mask, 1.0, NONE);
        assert!(attend(3, AttentionMask::None).is_err());
        assert!(attend(2, AttentionMask::Keys(ids(&[1; 8], &[2, 4]))).is_err());
        assert!(attend(2, AttentionMask::Additive(tensor(&[4], 1))).is_err());
    }
}

mod backward {
    use super::*;

    /// A small encoder block whose input is used three times and whose table is tied to the vocabulary.
    fn block(params: &[Param], through_candle: bool) -> Tensor {
        let [table, w, b, norm] = params else {
            unreachable!()
        };
        let words = ids(&[1, 4, 4, 0, 2, 3], &[2, 3]);
        let x = ops::embedding_sum(&[(&words, table, None), (&words, table, Some(4))]).unwrap();
        let y = ops::linear_act(&x, w, Some(b), Activation::Gelu).unwrap();
        let dropout = Dropout { p: 0.2, key: 1 };
        let y = ops::attention(&x, &y, &x, 2, &AttentionMask::None, 0.7, dropout).unwrap();
        let y = ops::add_layer_norm(&y, &x, norm, None, 1e-5, Dropout::NONE).unwrap();
        let y = ops::add(&y, &x).unwrap();
        let y = if through_candle {
            (y * 1.0).unwrap()
        } else {
            y
        };
        let rows = ops::select_rows(&y, &ids(&[5, 0, 5], &[3])).unwrap();
        let loss = ops::masked_cross_entropy(&rows, table, None, &ids(&[1, 2, 3], &[3])).unwrap();
        ops::scale(&loss, 1.0 / 3.0).unwrap()
    }

    fn params(dtype: DType) -> Vec<Param> {
        let shapes: [&[usize]; 4] = [&[5, 8], &[8, 8], &[8], &[8]];
        let tensors: Vec<_> = (shapes.iter().zip(1..))
            .map(|(s, seed)| tensor(s, seed))
            .collect();
        Given::new(&[], &tensors, dtype).params
    }

    #[test]
    fn skipping_candles_backward_pass_changes_no_gradient() {
        needs_device!();
        let grads = |run: &dyn Fn(&[Param])| {
            let params = params(DType::F32);
            run(&params);
            params
                .iter()
                .map(|p| wide(&p.grad().unwrap()))
                .collect::<Vec<_>>()
        };
        let own = grads(&|params| ops::backward(&block(params, false), params).unwrap());
        let mixed = grads(&|params| ops::backward(&block(params, true), params).unwrap());
        let candles = grads(&|params| {
            let mut store = block(params, false).backward().unwrap();
            params.iter().for_each(|p| p.absorb(&mut store).unwrap());
        });
        for ((own, mixed), candles) in own.iter().zip(&mixed).zip(&candles) {
            assert!(distance(own, candles) < 1e-6);
            assert!(distance(mixed, candles) < 1e-6);
        }
        let wide_params = params(DType::F64);
        ops::backward(&block(&wide_params, false), &wide_params).unwrap();
        for (own, param) in own.iter().zip(&wide_params) {
            assert!(distance(own, &wide(&param.grad().unwrap())) < 4e-6);
        }
    }

    #[test]
    fn a_loss_without_parameters_has_no_gradients() {
        needs_device!();
        let p = param(&[2], 1);
        p.set_trainable(false);
        let loss = p.tensor().sum_all().unwrap();
        ops::backward(&loss, std::slice::from_ref(&p)).unwrap();
        assert!(p.grad().is_none());
    }

    #[test]
    fn sums_and_multiples_have_correct_gradients() {
        needs_device!();
        check(
            "add, scale",
            &[tensor(&[3, 7], 1), tensor(&[3, 7], 2)],
            &[],
            &|given| {
                let sum = ops::add(&given.inputs[0], &given.inputs[1]).unwrap();
                ops::scale(&ops::add(&sum, &sum).unwrap(), -0.3).unwrap()
            },
        );
    }
}

#[path = "attention_checks.rs"]
mod attention_options;

#[path = "sparse_checks.rs"]
mod sparse_attention;

#[path = "pointwise_checks.rs"]
mod pointwise_attention;
