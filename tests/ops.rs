//! The fused operations against finite differences, against candle's own autograd and against each other.

use candle_core::{Device, Tensor};
use cloze::ops::{self, AdamWOptions, AdamWState, Param};

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
    Tensor::from_vec(noise(n, seed), shape, &Device::Cpu).unwrap()
}

fn param(shape: &[usize], seed: u64) -> Param {
    Param::new(format!("p{seed}"), &tensor(shape, seed)).unwrap()
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
        let options = AdamWOptions {
            lr: 0.01,
            weight_decay: 0.1,
            ..Default::default()
        };
        // One that is spread over several tasks, one that is not, one empty.
        let params = [param(&[301, 333], 1), param(&[7], 2), param(&[0, 4], 3)];
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
    fn parameters_without_gradient_and_frozen_ones_stay() {
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
    fn the_norm_is_that_of_all_gradients_together() {
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
    fn states_of_another_shape_are_an_error() {
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
    fn a_gradient_that_was_handed_out_never_changes() {
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
        let p = param(&[3], 1);
        assert!(p.tensor().track_op());
        ops::no_grad(|| assert!(!p.tensor().track_op()));
        assert!(p.tensor().track_op());
    }
}
