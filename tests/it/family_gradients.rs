//! What a family's config can choose beyond its fixtures: whether gradients are those of the loss, with dropout at work.

use candle_core::Tensor;
use cloze::model::{Config, Context, MaskedLm, ModelInputs};
use cloze::ops::Param;

/// Two rows of `seq` tokens, the second of which ends in tokens that are masked out; none is the padding token.
fn inputs(seq: usize) -> ModelInputs {
    let count = 2 * seq;
    let ids = (0..count).map(|at| 5 + (at * 7 % 40) as u32).collect();
    let mask = (0..count).map(|at| u32::from(at < count - 3)).collect();
    let labels = (0..count).map(|at| match at % 3 == 0 && at < count - 3 {
        true => 6 + (at % 30) as i64,
        false => -100,
    });
    let inputs = ModelInputs::new(ids, (2, seq)).unwrap();
    let inputs = inputs.with_attention_mask(mask).unwrap();
    inputs.with_labels(labels.collect()).unwrap()
}

fn small(model_type: &str) -> Config {
    Config::new(model_type)
        .set("vocab_size", 50)
        .set("hidden_size", 16)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 24)
        .set("max_position_embeddings", 64)
        .set("pad_token_id", 1)
        .set("initializer_range", 0.2)
}

fn loss(model: &MaskedLm, inputs: &ModelInputs) -> f64 {
    let loss = model.loss(inputs, &Context::train(3, 1)).unwrap();
    f64::from(loss.value().unwrap())
}

/// Checks that along the gradient of each parameter the loss rises as fast as the gradient is long.
fn assert_gradients(name: &str, config: &Config, seq: usize) {
    let model = MaskedLm::from_config(config, 11).unwrap();
    let inputs = inputs(seq);
    let mean = model.loss(&inputs, &Context::train(3, 1)).unwrap();
    model.backward(&mean.mean().unwrap()).unwrap();
    let mut reached = 0;
    for param in model.params() {
        let Some(gradient) = param.grad() else {
            continue;
        };
        let squares = gradient.sqr().unwrap().sum_all().unwrap();
        let length = f64::from(squares.to_scalar::<f32>().unwrap()).sqrt();
        if length < 1e-4 {
            continue;
        }
        reached += 1;
        let before = param.var().as_tensor().copy().unwrap();
        let slope = |step: f64| {
            let at = |step: f64| moved(&model, param, &before, &gradient, step / length, &inputs);
            (at(step) - at(-step)) / (2.0 * step)
        };
        // The second removes what the third derivative adds to the first.
        let step = 0.02;
        let found = (4.0 * slope(step / 2.0) - slope(step)) / 3.0;
        let error = (found - length).abs();
        assert!(
            error <= 0.02 * length + 2e-4,
            "{name}: the loss rises by {found} along {}, but its gradient is {length} long",
            param.name()
        );
    }
    assert!(reached > 10, "{name}: only {reached} gradients");
}

/// The loss with `param` moved from `before` by `step` times `direction`.
fn moved(
    model: &MaskedLm,
    param: &Param,
    before: &Tensor,
    direction: &Tensor,
    step: f64,
    inputs: &ModelInputs,
) -> f64 {
    param
        .set(&(before + (direction * step).unwrap()).unwrap())
        .unwrap();
    let value = loss(model, inputs);
    param.set(before).unwrap();
    value
}

fn mega() -> Config {
    small("mega")
        .set("ema_projection_size", 3)
        .set("shared_representation_size", 8)
        .set("nffn_hidden_size", 20)
        .set("max_positions", 32)
}

#[test]
fn megas_attention_functions_have_correct_gradients() {
    for attention in ["softmax", "laplace", "relu2"] {
        for bias in ["rotary", "simple"] {
            let config = mega()
                .set("attention_activation", attention)
                .set("relative_positional_bias", bias);
            assert_gradients(&format!("{attention} {bias}"), &config, 9);
            // Two chunks and a part of a third.
            let chunked = config.set("use_chunking", true).set("chunk_size", 4);
            assert_gradients(&format!("{attention} {bias} in chunks"), &chunked, 9);
        }
    }
}

#[test]
fn megas_norms_and_averages_have_correct_gradients() {
    for norm in ["scalenorm", "rmsnorm", "layernorm", "batchnorm"] {
        for affine in [true, false] {
            for first in [true, false] {
                let config = mega()
                    .set("normalization_type", norm)
                    .set("norm_affine", affine)
                    .set("normalize_before_mega", first)
                    .set("normalize_before_ffn", !first);
                assert_gradients(&format!("{norm} {affine} {first}"), &config, 7);
            }
        }
    }
    let others = [
        mega().set("bidirectional", false),
        mega().set("truncation", 3),
        mega().set("use_feature_dropout", true),
        mega()
            .set("use_normalized_ffn", false)
            .set("add_lm_hidden_dense_layer", false)
            .set("add_token_type_embeddings", true),
    ];
    for (i, config) in others.iter().enumerate() {
        assert_gradients(&format!("another MEGA, {i}"), config, 7);
    }
}

#[test]
fn grouped_maps_and_landmarks_have_correct_gradients() {
    let convbert = small("convbert")
        .set("embedding_size", 12)
        .set("num_attention_heads", 4)
        .set("conv_kernel_size", 3)
        .set("num_groups", 2);
    assert_gradients("convbert", &convbert, 9);
    let nystromformer = small("nystromformer")
        .set("segment_means_seq_len", 12)
        .set("num_landmarks", 3)
        .set("conv_kernel_size", serde_json::Value::Null);
    assert_gradients("nystromformer", &nystromformer, 12);
    let fnet = small("fnet");
    assert_gradients("fnet", &fnet, 9);
}

#[test]
fn windows_and_blocks_have_correct_gradients() {
    let longformer = small("longformer").set("attention_window", vec![2, 6]);
    assert_gradients("longformer", &longformer, 17);
    let big_bird = small("big_bird")
        .set("block_size", 2)
        .set("num_random_blocks", 1)
        .set("use_bias", false)
        .set("rescale_embeddings", true);
    assert_gradients("big_bird", &big_bird, 17);
    let reformer = small("reformer")
        .set("attn_layers", vec!["local", "local"])
        .set("attention_head_size", 6)
        .set("feed_forward_size", 20)
        // Without the kinks of its ReLU, which differences step over.
        .set("hidden_act", "gelu")
        .set("axial_pos_embds_dim", vec![6, 10])
        .set("axial_pos_shape", vec![4, 8])
        .set("local_attn_chunk_length", 4)
        .set("local_num_chunks_after", 1);
    assert_gradients("reformer", &reformer, 10);
    let tables = reformer.set("axial_pos_embds", false);
    assert_gradients("reformer with a table", &tables, 3);
}

#[test]
fn running_statistics_follow_the_batches_of_training_and_are_saved() {
    let config = mega().set("normalization_type", "batchnorm");
    let model = MaskedLm::from_config(&config, 1).unwrap();
    let inputs = inputs(8);
    let before = model.forward(&inputs).unwrap();
    let step = model.loss(&inputs, &Context::train(1, 0)).unwrap();
    step.value().unwrap();
    let after = model.forward(&inputs).unwrap();
    let change = (&after - &before).unwrap().abs().unwrap();
    let change: f32 = change
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap();
    assert!(
        change > 1e-3,
        "evaluation does not see the statistics: {change}"
    );
    let folder = std::env::temp_dir().join(format!("cloze-mega-{}", std::process::id()));
    model.save_pretrained(&folder).unwrap();
    let again = MaskedLm::from_pretrained(folder.to_string_lossy()).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    let reopened = again.forward(&inputs).unwrap();
    let change = (&reopened - &after).unwrap().abs().unwrap();
    let change: f32 = change
        .flatten_all()
        .unwrap()
        .max(0)
        .unwrap()
        .to_scalar()
        .unwrap();
    assert_eq!(change, 0.0);
}

#[test]
fn padding_does_not_change_results_unless_the_family_is_padding_sensitive() {
    let plain = [
        ("longformer", small("longformer").set("attention_window", 4)),
        ("yoso", small("yoso").set("conv_window", 3)),
        ("mega", mega().set("attention_activation", "laplace")),
    ];
    for (name, config) in plain {
        let model = MaskedLm::from_config(&config, 5).unwrap();
        let ids: Vec<u32> = (0..8).map(|at| 5 + at * 3).collect();
        let alone = ModelInputs::new(ids.clone(), (1, 8)).unwrap();
        let padded = [&ids[..], &[1; 5]].concat();
        let mask = [vec![1; 8], vec![0; 5]].concat();
        let padded = ModelInputs::new(padded, (1, 13)).unwrap();
        let padded = padded.with_attention_mask(mask).unwrap();
        let alone = model.forward(&alone).unwrap();
        let padded = model.forward(&padded).unwrap().narrow(1, 0, 8).unwrap();
        let change = (&alone - &padded).unwrap().abs().unwrap();
        let change: f32 = change
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar()
            .unwrap();
        assert!(change < 1e-4, "{name}: {change}");
    }
}

#[test]
fn invalid_configs_are_refused_with_a_reason() {
    let refused = [
        (small("reformer").set("is_decoder", true), "left-to-right"),
        (small("reformer"), "add up to hidden_size"),
        (small("longformer").set("attention_window", 3), "even"),
        (
            small("longformer").set("attention_window", vec![4]),
            "2 layers",
        ),
        (small("big_bird").set("block_size", 0), "block_size"),
        (
            small("big_bird").set("attention_type", "round"),
            "original_full",
        ),
        (small("convbert").set("conv_kernel_size", 4), "odd"),
        (small("convbert").set("head_ratio", 0), "head_ratio"),
        (
            small("nystromformer").set("num_landmarks", 7),
            "equal stretches",
        ),
        (small("mega").set("normalization_type", "x"), "scalenorm"),
        (small("mega").set("attention_activation", "x"), "laplace"),
        (small("mega").set("use_chunking", true), "chunk_size"),
        (small("mra").set("max_position_embeddings", 16), "block"),
        (small("mra").set("approx_mode", "x"), "sparse"),
    ];
    for (config, reason) in refused {
        let error = MaskedLm::from_config(&config, 1).err();
        let error = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(
            error.contains(reason),
            "{config:?}: {error:?} does not say {reason:?}"
        );
    }
}
