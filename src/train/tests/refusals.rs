//! Tests that invalid settings are reported before they do harm.

use super::{model, nowhere, trainer};
use crate::train::{Lora, Schedule, get_scheduler};

#[test]
fn a_fully_frozen_model_is_refused() {
    let frozen = model(3);
    frozen.freeze("");
    let error = trainer(nowhere(), &frozen).train().unwrap_err().to_string();
    assert!(error.contains("frozen"), "{error}");
}

#[test]
fn an_invalid_rate_of_a_schedule_is_reported_with_its_step() {
    for wrong in [f64::NAN, f64::INFINITY, -1.0] {
        let given = move |done| if done == 2 { wrong } else { 1.0 };
        let mut trainer = trainer(nowhere(), &model(3)).schedule(Schedule::lambda(1e-3, given));
        let error = trainer.train().unwrap_err().to_string();
        assert!(
            error.starts_with("schedule: ") && error.contains("step 3"),
            "{error}"
        );
    }
    assert!(get_scheduler("linear", -1e-3, 0, 10).is_err());
}

#[test]
fn metrics_cannot_reuse_built_in_names() {
    for name in ["loss", "eval_loss", "perplexity"] {
        let mut trainer = trainer(nowhere(), &model(3)).compute_metrics(move |_| Ok([(name, 1.0)]));
        let error = trainer.evaluate().unwrap_err().to_string();
        assert!(error.contains("compute_metrics"), "{error}");
    }
}

#[test]
fn adapters_need_targets_and_settings_are_unique() {
    let model = model(3);
    let none = Lora::new(2).targets(Vec::<String>::new());
    assert!(none.attach(&model).is_err());
    assert!(Lora::new(2).alpha(f64::NAN).attach(&model).is_err());
    let error = trainer(nowhere().lr_scheduler_type("cosin"), &model)
        .train()
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("lr_scheduler_type: there is no"),
        "{error}"
    );
}
