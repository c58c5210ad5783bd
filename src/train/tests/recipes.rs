//! Tests of settings from a command line.

use crate::train::{IntervalStrategy, OptimizerName, Recipe, Resume};

const LINES: &str =
    "A galaxy is a system of stars.\nThe Milky Way is a spiral galaxy.\nWater is wet.\n";

#[test]
fn settings_are_accepted_by_every_name_and_checked() {
    let config =
        serde_json::json!({ "learning_rate": 1e-3, "weight_decay": 0.1, "model": "other" });
    let config = config.as_object().cloned();
    let recipe = Recipe::from_args(
        [
            "--model",
            "bundled:tiny_roberta",
            "--dataset_name=lines.txt",
            "--output",
            "7",
            "--learning-rate",
            "5e-4",
            "--evaluation_strategy",
            "epoch",
            "--bf16",
            "--epochs=2",
            "--warmup-steps",
            "0.1",
            "--line-by-line",
            "--max_steps",
            "12",
        ],
        config,
    );
    let recipe = recipe.unwrap();
    let args = &recipe.arguments;
    assert_eq!(recipe.model, "bundled:tiny_roberta");
    assert_eq!(args.output_dir.to_str(), Some("7"));
    assert_eq!((args.learning_rate, args.weight_decay), (5e-4, 0.1));
    assert_eq!(args.eval_strategy, IntervalStrategy::Epoch);
    assert_eq!((args.warmup_steps, args.max_steps), (0.1, Some(12)));
    assert!(args.bf16 && recipe.line_by_line);
    let given = ["--model", "m", "--dataset", "d", "--output", "o"];
    let error = |more: &[&str]| {
        let all = given.iter().chain(more);
        Recipe::from_args(all, None).unwrap_err().to_string()
    };
    assert!(error(&["--learning_rat", "1"]).contains("learning_rate"));
    assert!(error(&["--eval-strategy", "epochs"]).contains("eval_strategy"));
    assert!(error(&["--num-train-epochs", "two"]).contains("two"));
    assert!(error(&["stray"]).contains("stray"));
    assert!(error(&["--bf16", "maybe"]).contains("bf16"));
    assert!(error(&["--train-sampling-strategy", "x"]).contains("group_by_length"));
    assert!(error(&["--optim", "adamx"]).contains("adafactor"));
    assert!(error(&["--learning-rate", "-1"]).contains("learning_rate"));
    let missing = Recipe::from_args(&given[..4], None).unwrap_err();
    assert!(missing.to_string().contains("--output"), "{missing}");
}

#[test]
fn values_are_parsed_as_in_python() {
    let given = ["--model", "m", "--dataset", "d", "--output", "o"];
    let recipe = |more: &[&str]| {
        let config = serde_json::json!({ "max_steps": 7 });
        let all = given.iter().chain(more);
        Recipe::from_args(all, config.as_object().cloned()).unwrap()
    };
    let read = recipe(&[
        "--learning-rate=.5",
        "--bf16=yes",
        "--tf32",
        "0",
        "--logging_steps",
        "0.25",
        "--optim",
        "adamw_torch_fused",
        "--train_sampling_strategy",
        "group_by_length",
        "--validation_split_percentage",
        "10",
        "--hub-model-id",
        "1e3",
        "--resume-from-checkpoint",
        "out/checkpoint-7",
        "--lr-scheduler-kwargs",
        r#"{"min_lr_rate": 0.1}"#,
        "--max_steps",
        "-1",
        "--dataloader-num-workers",
        "4",
        "--do_train",
    ]);
    let args = &read.arguments;
    assert_eq!((args.learning_rate, args.max_steps), (0.5, None));
    assert!(args.bf16 && args.group_by_length);
    assert_eq!(args.tf32, Some(false));
    assert_eq!(
        (args.optim, read.validation_split),
        (OptimizerName::AdamW, 0.1)
    );
    assert_eq!(args.hub_model_id, "1e3");
    assert_eq!(read.resume, Resume::From("out/checkpoint-7".into()));
    assert_eq!(args.lr_scheduler_kwargs.min_lr_rate, Some(0.1));
    assert_eq!(args.logging_interval(10), 3);
    assert_eq!(recipe(&["--resume"]).resume, Resume::Latest(true));
    assert_eq!(recipe(&[]).arguments.max_steps, Some(7));
}

#[test]
fn a_recipe_trains_and_saves_a_model_that_opens_again() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("lines.txt");
    std::fs::write(&data, LINES.repeat(8)).unwrap();
    let out = folder.path().join("out");
    for more in [
        vec!["--line-by-line", "--max-seq-length", "12"],
        vec!["--max-seq-length", "16"],
    ] {
        let (data, out) = (data.to_string_lossy(), out.to_string_lossy());
        let mut args = vec![
            "--model",
            "bundled:tiny_roberta",
            "--dataset",
            &data,
            "--output",
            &out,
        ];
        args.extend([
            "--max-steps",
            "2",
            "--eval-strategy",
            "steps",
            "--eval-steps",
            "2",
        ]);
        args.extend(["--validation-split", "0.25", "--save-strategy", "no"]);
        args.extend(more);
        let history = Recipe::from_args(args, None).unwrap().run().unwrap();
        assert_eq!((history.step(), history.evaluations.len()), (2, 1));
        crate::fill_mask::FillMask::from_pretrained(&out)
            .unwrap()
            .fill("The Milky Way is a <mask> galaxy.")
            .unwrap();
    }
}
