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
    fn every_model_agrees_with_transformers_in_f32() {
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
    fn every_model_agrees_with_transformers_within_bf16_precision() {
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
    fn training_takes_the_same_steps_as_pytorch() {
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

mod attention_options {
    use super::*;
    use cloze::ops::{
        AttentionOptions, Band, FusedLayout, RelativeIndex, RelativeTerms, Rotary, RotaryPairs,
    };

    const N: usize = 70;
    const HEADS: usize = 4;
    const D: usize = 32;

    /// What one projection gives to queries, keys and values of two heads each for four of queries.
    fn run(
        device: &Device,
        kernel: AttentionKernel,
        options: &AttentionOptions,
        with_bias: bool,
    ) -> Vec<Vec<f64>> {
        ops::set_attention_kernel(kernel);
        let batch = match options.mask {
            AttentionMask::Packed(_) => 1,
            _ => 2,
        };
        let leaf = |shape: &[usize], seed| {
            let x = noise(shape, seed).to_device(device).unwrap();
            candle_core::Var::from_tensor(&x).unwrap()
        };
        let qkv = leaf(&[batch, N, 2 * HEADS * D], 1);
        let table = leaf(&[9, HEADS], 2);
        let terms = RelativeTerms {
            bias_table: Some(table.as_tensor().clone()),
            ..RelativeTerms::new(RelativeIndex::clipped(N, N, -4, 4))
        };
        let layout = FusedLayout::Blocks;
        let out = match with_bias {
            true => ops::relative_attention_fused(&qkv, layout, &terms, options),
            false => ops::attention_fused(&qkv, layout, options),
        };
        let out = out.unwrap();
        let probe = noise(out.dims(), 9).to_device(device).unwrap();
        let probe = probe.to_dtype(out.dtype()).unwrap();
        let loss = (&out * probe).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let mut found = vec![wide(&out), wide(grads.get(&qkv).unwrap())];
        found.extend(with_bias.then(|| wide(grads.get(&table).unwrap())));
        ops::set_attention_kernel(AttentionKernel::Auto);
        found
    }

    #[test]
    fn kernels_and_products_agree_with_the_cpu() {
        let Some(device) = device() else { return };
        let mask = (0..2 * N as u32).map(|i| u32::from(i < 100 && i % 9 != 2));
        let mask = Tensor::from_vec(mask.collect(), (2, N), &Device::Cpu).unwrap();
        let of = AttentionOptions {
            kv_heads: Some(2),
            scale: 0.3,
            dropout: Dropout { p: 0.1, key: 4 },
            ..AttentionOptions::new(HEADS, D)
        };
        let masked = AttentionOptions {
            mask: AttentionMask::Keys(mask.clone()),
            ..of.clone()
        };
        let rotary = |pairs| Some(Rotary::with_theta(N, 24, 100.0, pairs).unwrap());
        let cases = [
            masked.clone(),
            AttentionOptions {
                band: Some(Band { left: 5, right: 9 }),
                rotary: rotary(RotaryPairs::Half),
                query_mask: Some(mask),
                ..masked.clone()
            },
            AttentionOptions {
                causal: true,
                rotary: rotary(RotaryPairs::Interleaved),
                ..masked
            },
            AttentionOptions {
                mask: AttentionMask::Packed([30, 1, 39].into()),
                rotary: rotary(RotaryPairs::Half),
                ..of
            },
        ];
        for options in &cases {
            for with_bias in [false, true] {
                let exact = run(&Device::Cpu, AttentionKernel::Auto, options, with_bias);
                for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F32, 1e-5)] {
                    for kernel in [AttentionKernel::Fused, AttentionKernel::Products] {
                        let found =
                            autocast(precision, || run(&device, kernel, options, with_bias));
                        for (part, (found, exact)) in found.iter().zip(&exact).enumerate() {
                            let far = distance(found, exact);
                            assert!(
                                far < tolerance,
                                "{kernel:?} {precision:?} {options:?}: part {part} differs by {far:e}"
                            );
                        }
                    }
                }
            }
        }
    }
}

mod sparse {
    use super::*;
    use cloze::ops::{AttentionOptions, Band, SparsePlan};

    const N: usize = 300;

    fn run(device: &Device, kernel: AttentionKernel, plan: &SparsePlan) -> Vec<Vec<f64>> {
        ops::set_attention_kernel(kernel);
        let leaf = |seed| {
            let x = noise(&[2, N, 2 * 16], seed).to_device(device).unwrap();
            candle_core::Var::from_tensor(&x).unwrap()
        };
        let qkv = [leaf(1), leaf(2), leaf(3)];
        let mask = (0..2 * N as u32).map(|i| u32::from(i < 500 && i % 9 != 2));
        let mask = Tensor::from_vec(mask.collect(), (2, N), device).unwrap();
        let options = AttentionOptions {
            mask: AttentionMask::Keys(mask),
            dropout: Dropout { p: 0.1, key: 4 },
            ..AttentionOptions::new(2, 16)
        };
        let out = ops::sparse_attention(&qkv[0], &qkv[1], &qkv[2], plan, &options).unwrap();
        let probe = noise(out.dims(), 9).to_device(device).unwrap();
        let probe = probe.to_dtype(out.dtype()).unwrap();
        let loss = (&out * probe).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        ops::set_attention_kernel(AttentionKernel::Auto);
        let grads = qkv.each_ref().map(|x| wide(grads.get(x).unwrap()));
        std::iter::once(wide(&out)).chain(grads).collect()
    }

    #[test]
    fn plans_are_those_of_the_cpu() {
        let Some(device) = device() else { return };
        let globals: Vec<u32> = (0..2 * N as u32)
            .map(|i| u32::from(i % 300 == 0 || i == 333 || i == 77))
            .collect();
        let globals = Tensor::from_vec(globals, (2, N), &Device::Cpu).unwrap();
        let band = Band {
            left: 40,
            right: 21,
        };
        // Blocks of a length of their own, with ranges that touch, overlap and come back.
        let head = |at: usize| {
            let block = |i: usize| vec![0..30, i * 30..(i + 1) * 30, at..at + 65, at + 60..at + 70];
            (0..10).map(block).collect::<Vec<_>>()
        };
        for plan in [
            SparsePlan::band(N, band),
            SparsePlan::band(N, band).with_globals(&globals),
            SparsePlan::per_head(N, N, 30, vec![head(63), head(200)]).unwrap(),
            SparsePlan::chunks(N, 100, 1, 0),
        ] {
            let exact = run(&Device::Cpu, AttentionKernel::Auto, &plan);
            for (precision, tolerance) in [(Precision::Bf16, 2e-2), (Precision::F32, 1e-5)] {
                for kernel in [AttentionKernel::Fused, AttentionKernel::Products] {
                    let found = autocast(precision, || run(&device, kernel, &plan));
                    for (part, (found, exact)) in found.iter().zip(&exact).enumerate() {
                        let far = distance(found, exact);
                        assert!(
                            far < tolerance,
                            "{kernel:?} {precision:?} {plan:?}: part {part} differs by {far:e}"
                        );
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
    fn clipped_steps_in_groups_agree_with_the_cpu() {
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

mod few_bits {
    use super::*;
    use cloze::model::{Config, Context, MaskedLm, ModelInputs};
    use cloze::ops::integer::{self, MaskedKeys, Scale};
    use cloze::ops::{QuantRange, fake_quantize};

    /// The result of `f`, and the gradients of its input and of a weight and a bias of that width, on `device`.
    fn run(device: &Device, f: &dyn Fn(&Tensor, &Param, &Param) -> Tensor) -> Vec<Vec<f64>> {
        let param = |name: &str, shape: &[usize], seed| {
            let value = (noise(shape, seed) + 1.25).unwrap();
            Param::new(name, &value.to_device(device).unwrap()).unwrap()
        };
        let x = noise(&[2, 3, 4, 16], 1).to_device(device).unwrap();
        let x = Param::new("x", &x).unwrap();
        let (weight, bias) = (param("weight", &[5, 16], 2), param("bias", &[5], 3));
        let y = f(&ops::param_rows(&x).unwrap(), &weight, &bias);
        assert!(y.device().same_device(device));
        let probe = noise(y.dims(), 4).to_device(device).unwrap();
        let sum = ops::sum_all(&ops::mul(&y, &probe).unwrap()).unwrap();
        let params = [x, weight, bias];
        ops::backward(&sum, &params).unwrap();
        let grads = params.iter().filter_map(Param::grad);
        std::iter::once(wide(&y))
            .chain(grads.map(|grad| wide(&grad)))
            .collect()
    }

    fn agree(name: &str, device: &Device, f: &dyn Fn(&Tensor, &Param, &Param) -> Tensor) {
        let (found, expected) = (run(device, f), run(&Device::Cpu, f));
        assert_eq!(found.len(), expected.len(), "{name}");
        for (part, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let far = distance(found, expected);
            assert!(far < 1e-6, "{name}: part {part} differs by {far:e}");
        }
    }

    #[test]
    fn rounding_agrees_with_the_cpu() {
        let Some(device) = device() else { return };
        for range in [
            QuantRange::Dynamic,
            QuantRange::DynamicRows,
            QuantRange::Fixed(0.7),
            QuantRange::FixedRows(vec![0.5, 0.9]),
        ] {
            agree(&format!("{range:?}"), &device, &|x, _, _| {
                fake_quantize(x, &range, 8).unwrap()
            });
        }
    }

    #[test]
    fn integers_agree_with_the_cpu() {
        let Some(device) = device() else { return };
        let step = Scale::All(0.01);
        let features = Scale::Features((1..17).map(|i| 0.002 * i as f32).collect());
        let seen: Vec<u32> = (0..32).map(|i| u32::from(i % 5 != 1)).collect();
        let mask = MaskedKeys {
            seen: &seen,
            batch: 2,
        };
        agree("quantize", &device, &|x, _, _| {
            integer::quantize(x, &features, 6).unwrap()
        });
        agree("requantize", &device, &|x, _, _| {
            integer::requantize(x, &features, Some((x, &step)), 0.02, 8).unwrap()
        });
        agree("gelu", &device, &|x, _, _| {
            integer::gelu(x, &step).unwrap().0
        });
        agree("exponentials", &device, &|x, _, _| {
            integer::exponentials(x, 0.01, Some(mask)).unwrap().0
        });
        agree("normalize", &device, &|x, _, _| {
            integer::normalize(&ops::mul(x, x).unwrap(), 1e-3, 8)
                .unwrap()
                .0
        });
        agree("linear", &device, &|x, weight, bias| {
            let x = ops::reshape(x, (6, 4, 16)).unwrap();
            integer::linear(&x, 0.01, weight, bias).unwrap().0
        });
        agree("layer_norm", &device, &|x, weight, bias| {
            // Five of the features.
            let x = ops::narrow(x, 3, 2, 5).unwrap();
            let weight = weight.tensor().detach().narrow(1, 0, 1).unwrap();
            let weight = Param::new("w", &weight.flatten_all().unwrap()).unwrap();
            let shift = integer::layer_norm_shift(&x.detach(), 1e-6, 0.0).unwrap();
            assert!(shift > 0.0);
            integer::layer_norm(&x, 1e-6, &weight, bias, shift)
                .unwrap()
                .0
        });
    }

    /// From floats to few bits on the GPU: ranges, a step of training, and a folder that opens on the CPU.
    #[test]
    fn models_are_calibrated_and_trained_as_on_the_cpu() {
        let Some(device) = device() else { return };
        let inputs = || {
            let inputs = ModelInputs::new((5..25).collect(), (2, 10)).unwrap();
            let mask = (0..20).map(|i| u32::from(i < 17)).collect();
            let labels = (0..20)
                .map(|i| if i % 4 == 0 { i + 3 } else { -100 })
                .collect();
            let inputs = inputs.with_attention_mask(mask).unwrap();
            inputs.with_labels(labels).unwrap()
        };
        for family in ["ibert", "qdqbert"] {
            let config = Config::new(family)
                .set("vocab_size", 60)
                .set("hidden_size", 32)
                .set("num_hidden_layers", 1)
                .set("num_attention_heads", 2)
                .set("intermediate_size", 48)
                .set("max_position_embeddings", 40)
                .set("initializer_range", 0.2)
                .set("quant_mode", true);
            let run = |device: &Device| {
                let model = MaskedLm::from_config_on(&config, 3, device).unwrap();
                assert_eq!(model.calibrate([inputs(), inputs()]).unwrap(), 2);
                let loss = model.loss(inputs(), &Context::eval()).unwrap();
                model.backward(&loss.mean().unwrap()).unwrap();
                let grads = model.params().iter().filter_map(Param::grad);
                let grads: Vec<f64> = grads.flat_map(|grad| wide(&grad)).collect();
                (model, loss.value().unwrap(), grads)
            };
            let (model, loss, grads) = run(&device);
            let (_, expected, of_cpu) = run(&Device::Cpu);
            // A value on the other side of a half is off by a whole step.
            assert!(
                (loss - expected).abs() < 0.02,
                "{family}: {loss} {expected}"
            );
            let far = distance(&grads, &of_cpu);
            assert!(far < 0.1, "{family}: gradients differ by {far:e}");
            let folder = tempfile::tempdir().unwrap();
            model.save_pretrained(folder.path()).unwrap();
            let opened = MaskedLm::from_pretrained(folder.path().to_str().unwrap()).unwrap();
            let again = opened.loss(inputs(), &Context::eval()).unwrap();
            let again = again.value().unwrap();
            assert!((again - loss).abs() < 0.02, "{family}: {again} {loss}");
        }
    }
}

mod speech {
    use super::*;
    use cloze::model::{Column, Config, Context, MaskedLm, ModelInputs};

    /// Losses and gradients in training, where frames, features and whole layers are left out, with either kind of
    /// normalization.
    #[test]
    fn dropout_in_training_agrees_with_the_cpu() {
        let Some(device) = device() else { return };
        let samples = 400;
        let values: Vec<f32> = (0..2 * samples).map(|i| (i as f32 * 0.37).sin()).collect();
        let inputs = || {
            let sound = ModelInputs::from_waveforms(values.clone(), (2, samples)).unwrap();
            let mask = (0..2 * samples).map(|i| u32::from(i < 700)).collect();
            let labels = Column::ids(vec![7, 3, 3, 7, -100, -100], [2, 3]).unwrap();
            let sound = sound.with_attention_mask(mask).unwrap();
            sound.with_column("labels", labels)
        };
        for norm in ["group", "layer"] {
            let config = Config::new("wav2vec2")
                .set("vocab_size", 12)
                .set("hidden_size", 32)
                .set("num_hidden_layers", 3)
                .set("num_attention_heads", 2)
                .set("intermediate_size", 48)
                .set("conv_dim", vec![16, 16])
                .set("conv_stride", vec![5, 2])
                .set("conv_kernel", vec![10, 3])
                .set("num_conv_pos_embeddings", 6)
                .set("num_conv_pos_embedding_groups", 4)
                .set("feat_extract_norm", norm)
                .set("do_stable_layer_norm", norm == "layer")
                .set("conv_bias", norm == "layer")
                .set("layerdrop", 0.3)
                .set("mask_time_prob", 0.3)
                .set("mask_time_length", 3)
                .set("mask_feature_prob", 0.2)
                .set("mask_feature_length", 4);
            let run = |device: &Device, context: &Context| {
                let model = MaskedLm::from_config_on(&config, 3, device).unwrap();
                let loss = model.loss(inputs(), context).unwrap();
                model.backward(&loss.mean().unwrap()).unwrap();
                let grads = model.params().iter().filter_map(Param::grad);
                let grads: Vec<f64> = grads.flat_map(|grad| wide(&grad)).collect();
                (loss.value().unwrap(), grads)
            };
            let mut losses = vec![run(&Device::Cpu, &Context::eval()).0];
            for step in 0..3 {
                let (loss, grads) = run(&device, &Context::train(5, step));
                let (expected, of_cpu) = run(&Device::Cpu, &Context::train(5, step));
                assert!(
                    (loss / expected - 1.0).abs() < 1e-5,
                    "{norm}: {loss} {expected}"
                );
                let far = distance(&grads, &of_cpu);
                assert!(far < 1e-4, "{norm}: gradients differ by {far:e}");
                // Something was left out, each time something else.
                assert!(!losses.contains(&expected), "{norm}: {losses:?}");
                losses.push(expected);
            }
        }
    }
}

mod uploads {
    use super::*;
    use cloze::model::ModelInputs;

    #[test]
    fn asynchronously_copied_batches_arrive_complete() {
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
