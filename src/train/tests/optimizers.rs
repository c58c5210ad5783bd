//! Optimizers: compared with PyTorch's results, resumed, and on several threads.

use candle_core::{Device, Tensor};

use super::{bits, model, nowhere, rows, trainer};
use crate::ops::Param;
use crate::train::{
    Adafactor, AdamW, Lion, Optimizer, ParamGroup, Schedule, Sgd, TrainingArguments,
};

/// Returns a matrix and a bias, as the figures below begin with.
fn params() -> [Param; 2] {
    let weight: Vec<f32> = (0..12)
        .map(|i| ((i / 4 * 7 + i % 4 * 3) % 11) as f32 / 10.0 - 0.5)
        .collect();
    let weight = Tensor::from_vec(weight, (3, 4), &Device::Cpu).unwrap();
    let bias = Tensor::new(&[0.3f32, -0.2, 0.0, 0.7], &Device::Cpu).unwrap();
    [
        Param::new("layer.weight", &weight).unwrap(),
        Param::new("layer.bias", &bias).unwrap(),
    ]
}

/// Takes four steps with fixed gradients, and returns all numbers.
fn four_steps(params: &[Param; 2], optimizer: &mut dyn Optimizer) -> Vec<f32> {
    for step in 0..4 {
        let size = if step == 1 { 0.1 } else { 1.0 };
        let of = |i: usize| ((i / 4 * 5 + i % 4 * 2 + step * 3) % 13) as f32 / 6.0 - 1.0;
        let weight: Vec<f32> = (0..12).map(|i| of(i) * size).collect();
        let weight = Tensor::from_vec(weight, (3, 4), &Device::Cpu).unwrap();
        let at = step as f32;
        let bias = [0.5 - 0.25 * at, 0.125 * at, -0.75, 0.25];
        params[0].add_grad(&weight).unwrap();
        params[1]
            .add_grad(&Tensor::new(&bias, &Device::Cpu).unwrap())
            .unwrap();
        optimizer.step(1e-2 * (step + 1) as f64).unwrap();
        optimizer.zero_grad();
    }
    let values =
        |param: &Param| -> Vec<f32> { param.value().flatten_all().unwrap().to_vec1().unwrap() };
    params.iter().flat_map(values).collect()
}

fn assert_close(found: &[f32], expected: [f32; 16]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 2e-6,
            "{found} instead of {expected}"
        );
    }
}

#[test]
fn sgd_with_momentum_equals_that_of_pytorch() {
    let all = params();
    let mut sgd = Sgd::from_params(&all).weight_decay(0.1);
    assert_close(
        &four_steps(&all, &mut sgd),
        [
            -0.504_114_2,
            -0.23436248,
            0.12205592,
            0.39180765,
            0.20743002,
            0.54192173,
            -0.277365,
            -0.0033102,
            -0.18768783,
            0.08206393,
            0.373_287_9,
            -0.44599885,
            0.3,
            -0.225,
            0.075,
            0.675,
        ],
    );
    let all = params();
    let damped = Sgd::from_params(&all).momentum(0.9).dampening(0.25);
    assert_close(
        &four_steps(&all, &mut damped.weight_decay(0.1)),
        [
            -0.41993076,
            -0.18201964,
            0.12089153,
            0.35880268,
            0.19094665,
            0.53596157,
            -0.30193743,
            -0.05116275,
            -0.2190188,
            0.01889236,
            0.43253168,
            -0.40536726,
            0.25188252,
            -0.23106876,
            0.16538249,
            0.644_872_5,
        ],
    );
    let all = params();
    let ahead = Sgd::from_params(&all).momentum(0.9).nesterov(true);
    assert_close(
        &four_steps(&all, &mut ahead.weight_decay(0.1)),
        [
            -0.43417218,
            -0.229_788,
            0.13926284,
            0.34364703,
            0.193_145,
            0.590_290_6,
            -0.26814413,
            -0.04411942,
            -0.19462147,
            0.00976273,
            0.392_669_1,
            -0.46576557,
            0.254_478,
            -0.262_282_5,
            0.25513047,
            0.6149565,
        ],
    );
}

#[test]
fn adafactor_equals_that_of_transformers() {
    let all = params();
    let given = Adafactor::from_params(&all).scale_parameter(false);
    assert_close(
        &four_steps(&all, &mut given.relative_step(false).weight_decay(0.1)),
        [
            -0.50883126,
            -0.251_819_3,
            0.12465367,
            0.380_271_3,
            0.21790886,
            0.566_285_3,
            -0.2689493,
            -0.00797829,
            -0.17390908,
            0.07615834,
            0.35349643,
            -0.48039153,
            0.30970007,
            -0.32045883,
            0.09566341,
            0.60433656,
        ],
    );
    let all = params();
    let mean = Adafactor::from_params(&all).relative_step(false).beta1(0.8);
    assert_close(
        &four_steps(&all, &mut mean.clip_threshold(0.5).weight_decay(0.1)),
        [
            -0.49767783,
            -0.20078932,
            0.09980361,
            0.39662766,
            0.1989508,
            0.501_179_5,
            -0.29875457,
            -0.00031848,
            -0.19791897,
            0.09876127,
            0.39801496,
            -0.4016563,
            0.29869437,
            -0.20752648,
            0.00675672,
            0.693_243_2,
        ],
    );
    let all = params();
    assert_close(
        &four_steps(&all, &mut Adafactor::from_params(&all).weight_decay(0.1)),
        [
            -0.49682522,
            -0.20207216,
            0.1022064,
            0.39669752,
            0.2008343,
            0.50519794,
            -0.29954726,
            -0.00424174,
            -0.19865002,
            0.09571278,
            0.3987118,
            -0.40516776,
            0.29670143,
            -0.21563579,
            0.0151686,
            0.684_831_4,
        ],
    );
    let all = params();
    let slow = Adafactor::from_params(&all).scale_parameter(false);
    assert_close(
        &four_steps(&all, &mut slow.warmup_init(true).weight_decay(0.1)),
        [
            -0.50000083,
            -0.20000519,
            0.10000245,
            0.39999804,
            0.20000178,
            0.500_006_7,
            -0.299_996_9,
            -8e-07,
            -0.1999974,
            0.09999761,
            0.39999542,
            -0.40000808,
            0.30000097,
            -0.20001204,
            9.57e-06,
            0.699_990_4,
        ],
    );
}

#[test]
fn lion_follows_its_paper() {
    let all = params();
    let mut lion = Lion::from_params(&all).weight_decay(0.1);
    assert_close(
        &four_steps(&all, &mut lion),
        [
            -0.47536698,
            -0.2381165,
            0.13889399,
            0.386_273_7,
            0.19817701,
            0.535_127,
            -0.25690103,
            -0.00017002,
            -0.19817701,
            0.059113,
            0.355_904_5,
            -0.436_123_5,
            0.28,
            -0.29,
            0.09999999,
            0.6,
        ],
    );
}

/// All optimizers that arguments name.
const NAMES: [(&str, &str, f64); 5] = [
    ("adamw_torch", "", 2e-3),
    ("adafactor", "beta1=0.9", 2e-3),
    ("lion", "", 5e-4),
    ("sgd", "momentum=0.9, nesterov=true", 0.1),
    ("sgd", "", 0.1),
];

#[test]
fn every_optimizer_learns_resumes_bit_for_bit_and_is_thread_independent() {
    for (name, settings, rate) in NAMES {
        let out = tempfile::tempdir().unwrap();
        let args = TrainingArguments::new(out.path())
            .per_device_train_batch_size(4)
            .epochs(4)
            .optim(name)
            .optim_args(settings)
            .learning_rate(rate)
            .weight_decay(0.01)
            .layerwise_lr_decay(0.9)
            .save_steps(10);
        let straight = model(1);
        straight.freeze("roberta.embeddings.");
        let before = bits(&straight);
        let history = trainer(args.clone(), &straight).train().unwrap();
        let losses = history.losses();
        assert!(losses.iter().all(|loss| loss.is_finite()), "{name}");
        assert!(losses[23] < losses[0], "{name}: {losses:?}");
        let frozen = straight
            .params()
            .iter()
            .zip(before.iter().zip(bits(&straight)));
        for (param, (before, after)) in frozen {
            let fixed = param.name().starts_with("roberta.embeddings.");
            assert_eq!(*before == after, fixed, "{name}: {}", param.name());
        }
        let resumed = model(7);
        resumed.freeze("roberta.embeddings.");
        let mut again = trainer(args.clone(), &resumed);
        let folder = out.path().join("checkpoint-10");
        let again = again.resume_from_checkpoint(folder).unwrap();
        assert_eq!(bits(&resumed), bits(&straight), "{name} {settings}");
        assert_eq!(again.losses(), losses, "{name}");
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let alone = model(1);
        alone.freeze("roberta.embeddings.");
        pool.install(|| trainer(args.save_strategy("no"), &alone).train())
            .unwrap();
        assert_eq!(bits(&alone), bits(&straight), "{name} on one thread");
    }
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused() {
    let out = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(out.path()).max_steps(2);
    trainer(args.clone().optim("lion"), &model(1))
        .train()
        .unwrap();
    let mut other = trainer(args.optim("adafactor"), &model(1));
    let error = other
        .resume_from_latest_checkpoint()
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("Lion") && error.contains("Adafactor"),
        "{error}"
    );
    let error = trainer(nowhere().optim("sgd").optim_args("moment=0.9"), &model(1)).train();
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("\"moment\"") && error.contains("momentum"),
        "{error}"
    );
    let error = trainer(nowhere().optim("adam"), &model(1))
        .train()
        .unwrap_err();
    assert!(error.to_string().contains("adafactor"), "{error}");
}

#[test]
fn groups_have_their_own_rates_and_decays() {
    let (a, b) = (model(1), model(1));
    let args = nowhere().weight_decay(0.1);
    // The same as without groups, by hand.
    trainer(args.clone(), &a).train().unwrap();
    let own = AdamW::new(&b).weight_decay(0.1).param_groups([]);
    trainer(args.clone(), &b).optimizer(own).train().unwrap();
    assert_eq!(bits(&a), bits(&b));
    let still = model(1);
    let before = bits(&still);
    let groups = [
        ParamGroup::new("").lr_scale(0.0),
        ParamGroup::new("lm_head.").lr_scale(1.0),
    ];
    trainer(args.clone(), &still)
        .param_groups(groups)
        .train()
        .unwrap();
    for (param, (before, after)) in still.params().iter().zip(before.iter().zip(bits(&still))) {
        let moves = param.name().starts_with("lm_head.");
        assert_eq!(*before != after, moves, "{}", param.name());
    }
}

#[test]
fn a_closure_can_be_the_schedule() {
    let schedule = Schedule::lambda(1e-3, |done| 1.0 / (1 + done) as f64);
    let mut trainer = trainer(nowhere(), &model(1)).schedule(schedule);
    let history = trainer.train().unwrap();
    let rates: Vec<f64> = history.steps.iter().map(|s| s.learning_rate).collect();
    let expected: Vec<f64> = (1..=12).map(|i| 1e-3 * (1.0 / f64::from(i))).collect();
    assert_eq!(rates, expected);
    assert_eq!(rows(24).len() / 4 * 2, rates.len());
}
