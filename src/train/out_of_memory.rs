//! What to do when a device has no memory left for a batch.

use super::TrainingArguments;
use crate::Error;
use crate::collate::MlmBatch;

/// What the batches were for.
#[derive(Clone, Copy)]
pub(super) enum Use {
    Training,
    Evaluation,
}

/// Returns the same error, or for an out-of-memory error one that suggests settings that need less.
pub(super) fn explain(
    error: Error,
    batches: &[MlmBatch],
    purpose: Use,
    args: &TrainingArguments,
) -> Error {
    let Error::DeviceMemory { source } = error else {
        return error;
    };
    let largest = batches.iter().max_by_key(|batch| batch.batch * batch.seq);
    let (batch_size, seq) = largest.map_or((0, 0), |batch| (batch.batch, batch.seq));
    Error::OutOfMemory {
        batch_size,
        seq,
        advice: match purpose {
            Use::Training => for_training(batch_size, args),
            Use::Evaluation => for_evaluation(batch_size),
        },
        source: Box::new(source),
    }
}

fn for_training(batch_size: usize, args: &TrainingArguments) -> String {
    let mut ways = Vec::new();
    if batch_size > 1 {
        let half = batch_size.div_ceil(2);
        let accumulation = args.gradient_accumulation_steps * batch_size.div_ceil(half);
        ways.push(format!(
            "per_device_train_batch_size({half}) with gradient_accumulation_steps({accumulation}), which takes the same steps"
        ));
    }
    if !args.gradient_checkpointing {
        ways.push(
            "gradient_checkpointing(true), which keeps a fraction of the activations for a third more time"
                .to_owned(),
        );
    }
    if !args.bf16 && !args.fp16 {
        ways.push("bf16(true), which halves them".to_owned());
    }
    ways.push("shorter blocks or a smaller model".to_owned());
    ways.join("; or ")
}

fn for_evaluation(batch_size: usize) -> String {
    if batch_size > 1 {
        format!("per_device_eval_batch_size({})", batch_size.div_ceil(2))
    } else {
        "shorter blocks or a smaller model".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(batch: usize, seq: usize) -> MlmBatch {
        MlmBatch::new(vec![5; batch * seq], (batch, seq)).unwrap()
    }

    /// As candle hands on what the driver answers.
    fn full() -> Error {
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        candle_core::Error::Cuda(driver.into()).bt().into()
    }

    #[test]
    fn an_out_of_memory_error_suggests_settings_with_the_same_steps() {
        let args = TrainingArguments::new("out").gradient_accumulation_steps(2);
        let error = explain(full(), &[batch(3, 4), batch(32, 512)], Use::Training, &args);
        assert!(
            matches!(
                error,
                Error::OutOfMemory {
                    batch_size: 32,
                    seq: 512,
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        for words in [
            "32 examples of 512 tokens",
            "per_device_train_batch_size(16) with gradient_accumulation_steps(4)",
            "gradient_checkpointing(true)",
            "bf16(true)",
            "CUDA_ERROR_OUT_OF_MEMORY",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
    }

    #[test]
    fn settings_already_in_use_are_not_suggested() {
        let args = TrainingArguments::new("out")
            .bf16(true)
            .gradient_checkpointing(true);
        let text = explain(full(), &[batch(1, 512)], Use::Training, &args).to_string();
        for words in ["batch_size(", "gradient_checkpointing", "bf16"] {
            assert!(!text.contains(words), "{words}: {text}");
        }
        assert!(text.contains("shorter blocks"), "{text}");
    }

    #[test]
    fn evaluation_has_its_own_batch_size() {
        let args = TrainingArguments::new("out");
        let text = explain(full(), &[batch(9, 128)], Use::Evaluation, &args).to_string();
        assert!(text.contains("per_device_eval_batch_size(5)"), "{text}");
    }

    #[test]
    fn other_errors_are_unchanged() {
        let args = TrainingArguments::new("out");
        let other = Error::Dataset("the dataset is empty".to_owned());
        let same = explain(other, &[batch(2, 2)], Use::Training, &args);
        assert!(matches!(same, Error::Dataset(_)), "{same}");
    }
}
