//! Whether configs and inputs that make no sense end in errors: every key of every family takes values that nobody would
//! give it, and what can be built is run forwards and backwards.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::family::family_of;
use super::{
    Column, Config, Context, MaskedLm, ModelInputs, Per, SUPPORTED_MODEL_TYPES, config_keys,
};

/// Of all cases, one in so many is tried; `CLOZE_TEST_LONG` has all of them tried.
const ONE_IN: usize = 4;
const LONGEST: Duration = Duration::from_secs(20);

/// Keys of `transformers` in every config that some family reads.
const COMMON: [&str; 8] = [
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "decoder_start_token_id",
    "chunk_size_feed_forward",
    "tie_word_embeddings",
    "is_encoder_decoder",
];

fn values() -> Vec<Value> {
    let numbers = [-1, 0, 1, 2, 3, 7, 99, 100, 1000].map(Value::from);
    let others = [
        json!(0.5),
        json!(-1.5),
        json!(true),
        json!(false),
        json!(null),
        json!(""),
        json!("mystery"),
        json!([]),
        json!([0]),
        json!([3]),
        json!([1, 1]),
        json!([0, 2, 0]),
        json!([7, 1000]),
        json!([[0, 1], 5]),
        json!({}),
    ];
    numbers.into_iter().chain(others).collect()
}

/// Two examples of `seq` tokens, or of sound, with padding and labels.
fn inputs(model: &MaskedLm, seq: usize) -> ModelInputs {
    let mask = |length: usize| (0..2 * length).map(move |i| u32::from(i < 2 * length - length / 3));
    if model.main_input() != "input_ids" {
        let samples = 40 * seq;
        let sound = (0..2 * samples).map(|i| (i as f32 * 0.37).sin()).collect();
        let labels = Column::ids(vec![0, 3, 3, 7, -100, -100], [2, 3]).unwrap();
        let inputs = ModelInputs::from_waveforms(sound, (2, samples)).unwrap();
        let inputs = inputs.with_attention_mask(mask(samples).collect());
        return inputs.unwrap().with_column("labels", labels);
    }
    let vocab = model.vocab_size().max(1) as u32;
    let ids = (0..2 * seq as u32).map(|i| (5 + i) % vocab).collect();
    let labels = (0..2 * seq as i64).map(|i| {
        if i % 3 == 0 {
            i64::from(vocab) - 1
        } else {
            -100
        }
    });
    let inputs = ModelInputs::new(ids, (2, seq)).unwrap();
    let inputs = inputs.with_attention_mask(mask(seq).collect()).unwrap();
    inputs.with_labels(labels.collect()).unwrap()
}

/// Uses a model as training and filling do. Errors are what is expected of it.
fn run(model: &MaskedLm, inputs: ModelInputs) {
    if let Ok(loss) = model.loss(&inputs, &Context::train(1, 0))
        && let Ok(mean) = loss.mean()
    {
        let _ = model.backward(&mean);
    }
    let _ = model.logits_at(&inputs, vec![0, 1]);
    let _ = model.forward(inputs);
}

/// Says what is wrong where `work` panics or takes too long.
fn problem(name: &str, work: impl FnOnce()) -> Option<String> {
    eprintln!("{:?} {name}", std::thread::current().id());
    let started = Instant::now();
    let result = catch_unwind(AssertUnwindSafe(work));
    if let Err(panic) = result {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or(panic.downcast_ref::<&str>().copied());
        return Some(format!("{name}: panic: {}", words.unwrap_or_default()));
    }
    (started.elapsed() > LONGEST).then(|| format!("{name}: {:?}", started.elapsed()))
}

fn problems_of(model_type: &str) -> Vec<String> {
    let all = std::env::var_os("CLOZE_TEST_LONG").is_some();
    let keys: Vec<&str> = config_keys::of(model_type).chain(COMMON).collect();
    let values = values();
    let cases = keys
        .iter()
        .flat_map(|key| values.iter().map(move |value| (key, value)));
    // A stride that shares no divisor with the number of values, and begins elsewhere in each family.
    let begin = model_type.len();
    let chosen = cases
        .enumerate()
        .filter(|(at, _)| all || (at + begin + at / 24) % ONE_IN == 0);
    let mut problems = Vec::new();
    for (_, (key, value)) in chosen {
        let config = Config::small(model_type).set(*key, value.clone());
        problems.extend(problem(&format!("{model_type}: {key} = {value}"), || {
            if let Ok(model) = MaskedLm::from_config(&config, 1) {
                for seq in [1, 9] {
                    run(&model, inputs(&model, seq));
                }
            }
        }));
    }
    problems
}

/// Asks every family, two at a time.
fn every_family(problems_of: impl Fn(&str) -> Vec<String> + Sync) {
    let next = AtomicUsize::new(0);
    let ask = || {
        let families =
            std::iter::from_fn(|| SUPPORTED_MODEL_TYPES.get(next.fetch_add(1, Ordering::Relaxed)));
        families
            .flat_map(|name| problems_of(name))
            .collect::<Vec<_>>()
    };
    let problems: Vec<String> = std::thread::scope(|scope| {
        let other = scope.spawn(ask);
        [ask(), other.join().unwrap()].concat()
    });
    assert!(problems.is_empty(), "{}: {problems:#?}", problems.len());
}

#[test]
fn no_value_of_any_key_of_any_family_panics() {
    every_family(problems_of);
}

#[test]
fn no_input_of_any_family_panics() {
    every_family(|model_type| {
        let model = MaskedLm::from_config(&Config::small(model_type), 1).unwrap();
        let usual = inputs(&model, 6);
        let (batch, seq) = usual.shape();
        let count = batch * seq;
        let mut odd: Vec<(String, ModelInputs)> = Vec::new();
        for mask in [0, 7] {
            let inputs = usual.clone().with_attention_mask(vec![mask; count]);
            odd.push((format!("mask {mask}"), inputs.unwrap()));
        }
        for types in [1, 2, u32::MAX] {
            let inputs = usual.clone().with_token_type_ids(vec![types; count]);
            odd.push((format!("types {types}"), inputs.unwrap()));
        }
        for label in [-1, -101, 100, i64::MAX, i64::MIN] {
            let inputs = usual.clone().with_labels(vec![label; count]);
            let labels = Column::ids(vec![label; 6], [2, 3]).unwrap();
            let inputs = match model.main_input() {
                "input_ids" => inputs.unwrap(),
                _ => usual.clone().with_column("labels", labels),
            };
            odd.push((format!("labels {label}"), inputs));
        }
        for id in [100, u32::MAX] {
            if let Ok(inputs) = ModelInputs::new(vec![id; count], (batch, seq)) {
                odd.push((format!("ids {id}"), inputs));
            }
        }
        for input in family_of(model_type).unwrap().inputs {
            for value in [-1, 0, 1, 1000, 1 << 40, i64::MIN] {
                let mut shape = match input.per {
                    Per::Token => vec![batch, seq],
                    Per::Example => vec![batch],
                    Per::Place => vec![batch, 3],
                };
                shape.extend(input.trailing);
                let values = vec![value; shape.iter().product()];
                let column = Column::ids(values, shape.clone()).unwrap();
                let inputs = usual.clone().with_column(input.name, column);
                odd.push((format!("{} {value}", input.name), inputs));
                shape.push(2);
                let values = vec![0.5; shape.iter().product()];
                let column = Column::floats(values, shape).unwrap();
                let inputs = usual.clone().with_column(input.name, column);
                odd.push((format!("{} of another shape", input.name), inputs));
            }
        }
        let problems = odd.into_iter().filter_map(|(name, inputs)| {
            problem(&format!("{model_type}: {name}"), || run(&model, inputs))
        });
        problems.collect()
    });
}
