//! Every model against transformers: logits, loss, and the gradient of every parameter.
//!
//! `CLOZE_FIXTURES=DIR` points the test to another folder of the same layout (one subfolder per model).

use candle_core::Device;
use cloze::ops::Precision;

#[path = "support/parity_checks.rs"]
mod checks;

#[test]
fn every_fixture_of_a_supported_family_is_reproduced() {
    let limits = checks::Limits {
        logits: 2e-5,
        loss: 1e-5,
        gradient: 1e-4,
        all_gradients: 1e-4,
    };
    checks::reproduce(&Device::Cpu, Precision::F32, &limits);
}
