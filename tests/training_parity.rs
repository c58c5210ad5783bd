//! Replays transformers' training runs: same weights, same batches, so the same losses, norms, rates and final weights.
//!
//! `CLOZE_TRAINING_FIXTURES=DIR` replays the runs in another folder of the same layout.

use candle_core::Device;

#[path = "support/replay_checks.rs"]
mod checks;

#[test]
fn training_takes_the_same_steps_as_pytorch() {
    checks::replay_all(&Device::Cpu, 1e-4);
}
