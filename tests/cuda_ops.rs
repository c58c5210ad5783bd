//! The operations on a GPU: the checks of `tests/it/ops.rs`, the models against transformers, and what only a GPU has.
//!
//! Everything is skipped, and says so, where there is no GPU or no support for one:
//! `cargo test --release --features cuda --test cuda_ops` on a machine with one runs it.

use candle_core::{DType, Device, Tensor};
use cloze::ops::{
    self, AdamWGroup, AdamWOptions, AdamWState, AttentionKernel, AttentionMask, Dropout, GradScale,
    Param, Precision, autocast,
};

#[path = "support/op_checks.rs"]
mod checks;
#[path = "support/gpu.rs"]
mod gpu;
#[path = "support/parity_checks.rs"]
mod parity;
#[path = "support/replay_checks.rs"]
mod replay;

use gpu::{device, distance, noise, wide};

/// How far values and gradients in f32 may be from those in f64, relative to their norm.
const TOLERANCES: (f64, f64) = (1e-5, 1e-5);

mod models {
    use super::*;

    #[test]
    fn every_model_is_the_references_in_f32() {
        let Some(device) = device() else { return };
        let limits = parity::Limits {
            logits: 1e-4,
            loss: 1e-4,
            gradient: 1e-4,
            all_gradients: 1e-4,
        };
        parity::reproduce(&device, Precision::F32, &limits);
    }

    #[test]
    fn every_model_is_the_references_within_the_noise_of_bf16() {
        let Some(device) = device() else { return };
        if !Precision::Bf16.is_available_on(&device) {
            eprintln!("skipped: this GPU has no unit for bf16");
            return;
        }
        let limits = parity::Limits {
            // The largest of many thousands, which themselves go up to 5.
            logits: 0.2,
            loss: 0.02,
            // Those that are nearly zero are all noise.
            gradient: f32::INFINITY,
            all_gradients: 0.05,
        };
        parity::reproduce(&device, Precision::Bf16, &limits);
    }

    #[test]
    fn training_takes_the_references_steps() {
        let Some(device) = device() else { return };
        replay::replay_all(&device, 1e-4);
    }
}

mod attention {
    use super::*;

    /// The result and the gradients of q, k and v.
    fn run(device: &Device, kernel: AttentionKernel, dropout: Dropout, d: usize) -> Vec<Vec<f64>> {
        ops::set_attention_kernel(kernel);
        let (batch, queries, keys, heads) = (3, 130, 197, 2);
        let leaf = |seq: usize, seed| {
            let x = noise(&[batch, seq, heads * d], seed);
            candle_core::Var::from_tensor(&x.to_device(device).unwrap()).unwrap()
        };
        let [q, k, v] = [(queries, 1), (keys, 2), (keys, 3)].map(|(seq, seed)| leaf(seq, seed));
        let mut mask = vec![1u32; batch * keys];
        mask[keys + 150..2 * keys].fill(0);
        mask[2 * keys..2 * keys + 5].fill(0);
        let mask = Tensor::from_vec(mask, (batch, keys), device).unwrap();
        let scale = 1.0 / (d as f64).sqrt();
        let out = ops::attention(
            &q,
            &k,
            &v,
            heads,
            &AttentionMask::Keys(mask),
            scale,
            dropout,
        );
        let out = out.unwrap();
        let probe = noise(out.dims(), 9).to_device(device).unwrap();
        let probe = probe.to_dtype(out.dtype()).unwrap();
        let grads = (&out * probe)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        let grads = [&q, &k, &v].map(|x| wide(grads.get(x).unwrap()));
        ops::set_attention_kernel(AttentionKernel::Auto);
        std::iter::once(wide(&out)).chain(grads).collect()
    }

    #[test]
    fn the_fused_kernel_and_products_agree_with_the_cpu() {
        let Some(device) = device() else { return };
        for dropout in [Dropout::NONE, Dropout { p: 0.1, key: 4 }] {
            for d in [32, 64, 96, 128, 40] {
                let exact = run(&Device::Cpu, AttentionKernel::Auto, dropout, d);
                for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F16, 3e-3)] {
                    for kernel in [AttentionKernel::Fused, AttentionKernel::Products] {
                        let found = autocast(precision, || run(&device, kernel, dropout, d));
                        for (part, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let far = distance(found, exact);
                            assert!(
                                far < tolerance,
                                "{kernel:?} {precision:?} {dropout:?} d {d}: part {part} differs by {far:e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

mod training {
    use super::*;

    fn params(device: &Device) -> Vec<Param> {
        let shapes: [&[usize]; 3] = [&[257, 301], &[7], &[33_000]];
        let param = |(i, shape): (usize, &&[usize])| {
            let value = noise(shape, 1 + i as u64).to_device(device).unwrap();
            let param = Param::new(format!("p{i}"), &value).unwrap();
            let grad = noise(shape, 10 + i as u64).to_device(device).unwrap();
            param.add_grad(&grad).unwrap();
            param
        };
        shapes.iter().enumerate().map(param).collect()
    }

    /// The values after two clipped steps in two groups.
    fn stepped(device: &Device, spoil: bool) -> Vec<Vec<f64>> {
        let params = params(device);
        if spoil {
            let bad = Tensor::full(f32::NAN, 7, device).unwrap();
            params[1].add_grad(&bad).unwrap();
        }
        let mut states: Vec<_> = params.iter().map(|p| AdamWState::new(p).unwrap()).collect();
        for _ in 0..2 {
            let norm = ops::grad_norm_later(&params).unwrap();
            let scale = GradScale::new(0.5).clipped(norm, 3.0);
            let (first, rest) = states.split_at_mut(1);
            let options = AdamWOptions::default();
            let mut groups = [
                AdamWGroup {
                    params: &params[..1],
                    states: first,
                    options: AdamWOptions {
                        weight_decay: 0.1,
                        ..options
                    },
                },
                AdamWGroup {
                    params: &params[1..],
                    states: rest,
                    options,
                },
            ];
            ops::adamw_step_groups(&mut groups, &scale).unwrap();
        }
        params.iter().map(|p| wide(&p.tensor())).collect()
    }

    #[test]
    fn clipped_steps_in_groups_are_those_of_the_cpu() {
        let Some(device) = device() else { return };
        for (gpu, cpu) in stepped(&device, false)
            .iter()
            .zip(&stepped(&Device::Cpu, false))
        {
            for (gpu, cpu) in gpu.iter().zip(cpu) {
                assert!((gpu - cpu).abs() < 1e-6, "{gpu} {cpu}");
            }
        }
    }

    #[test]
    fn a_step_without_a_finite_norm_changes_nothing() {
        let Some(device) = device() else { return };
        let before: Vec<_> = params(&device).iter().map(|p| wide(&p.tensor())).collect();
        assert_eq!(stepped(&device, true), before);
    }

    #[test]
    fn rounded_weights_follow_every_change() {
        let Some(device) = device() else { return };
        let weight = Param::new("w", &noise(&[64, 64], 1).to_device(&device).unwrap()).unwrap();
        let x = noise(&[64, 64], 2).to_device(&device).unwrap();
        let product = || {
            let y = autocast(Precision::Bf16, || ops::linear(&x, &weight, None).unwrap());
            assert_eq!(y.dtype(), DType::BF16);
            wide(&y)
        };
        let expected = || {
            let exact = ops::linear(&x, &weight, None).unwrap();
            wide(&exact)
        };
        let mut states = [AdamWState::new(&weight).unwrap()];
        let params = [weight.clone()];
        let options = AdamWOptions {
            lr: 0.5,
            ..Default::default()
        };
        assert!(distance(&product(), &expected()) < 1e-2);
        for step in 0..3 {
            weight.zero_grad();
            weight
                .add_grad(&noise(&[64, 64], 3 + step).to_device(&device).unwrap())
                .unwrap();
            ops::adamw_step(&params, &mut states, &options, 1.0).unwrap();
            assert!(
                distance(&product(), &expected()) < 1e-2,
                "after the optimizer's step {step}"
            );
        }
        weight
            .set(&noise(&[64, 64], 7).to_device(&device).unwrap())
            .unwrap();
        assert!(distance(&product(), &expected()) < 1e-2, "after set");
        ops::adamw_step(&params, &mut states, &options, 1.0).unwrap();
        let new = noise(&[64, 64], 8).to_device(&device).unwrap();
        weight.var().set(&new).unwrap();
        assert!(
            distance(&product(), &expected()) < 1e-2,
            "after a change of the variable"
        );
    }
}

mod uploads {
    use super::*;
    use cloze::model::ModelInputs;

    #[test]
    fn batches_that_nobody_waited_for_arrive_whole() {
        let Some(device) = device() else { return };
        let ids = |n: u32, len: u32| -> Vec<u32> {
            (0..len).map(|i| i ^ n.wrapping_mul(0x9E37_79B9)).collect()
        };
        // Several times what the buffers on the way hold, and one batch that is larger than both.
        let shapes = (0..60).map(|n| (n, (64, 1024))).chain([(60, (64, 40_000))]);
        let uploaded: Vec<_> = shapes
            .map(|(n, (batch, seq))| {
                let inputs = ModelInputs::new(ids(n, batch * seq), (batch as usize, seq as usize));
                let tensor = inputs.unwrap().input_ids_tensor(&device).unwrap();
                (n, batch * seq, tensor)
            })
            .collect();
        for (n, len, tensor) in uploaded {
            let arrived: Vec<u32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
            assert!(arrived == ids(n, len), "batch {n}");
        }
    }
}
