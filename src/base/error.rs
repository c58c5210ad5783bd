//! The error type of the crate. Every message explains what is wrong, where, and how to fix it.

use std::fmt;
use std::path::{Path, PathBuf};

/// `std::result::Result` with this crate's [`Error`].
///
/// ```
/// use cloze::prelude::*;
///
/// fn longest(texts: &Dataset) -> cloze::Result<usize> {
///     let texts: Vec<String> = texts.column("text")?;
///     Ok(texts.iter().map(String::len).max().unwrap_or(0))
/// }
/// # let texts = Dataset::builder().column("text", vec!["a", "abc"]).build()?;
/// assert_eq!(longest(&texts)?, 3);
/// # Ok::<(), cloze::Error>(())
/// ```
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong in Cloze.
///
/// `Debug` prints the same text as `Display`, followed by the causes: a notebook shows the error that a
/// cell's `?` returned through `Debug`, and it should read as a sentence there.
///
/// ```
/// use cloze::prelude::*;
///
/// match MaskedLm::from_pretrained("bundled:huge_roberta") {
///     Err(Error::NotFound { kind, message, .. }) => {
///         assert_eq!(kind, "model");
///         assert!(message.contains("bundled:tiny_roberta"));
///     }
///     other => panic!("{:?}", other.err()),
/// }
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("could not {action} {}: {source}{}", path.display(), io_hint(source))]
    Io {
        /// The operation: "read", "write", "create", ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file was read, but its content is not what was expected.
    #[error("{}{}: {message}", path.display(), line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Format {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1, where one is to blame.
        line: Option<usize>,
        /// The problem and how to fix it.
        message: String,
    },
    /// A column was asked for that the dataset does not have.
    #[error("there is no column {name:?}; the columns are {}", available.join(", "))]
    MissingColumn {
        /// The name asked for.
        name: String,
        /// The names there are.
        available: Vec<String>,
    },
    /// A column holds another type than the operation works on.
    #[error("column {name:?} holds {found}, but {operation} needs {expected}")]
    ColumnType {
        /// The column.
        name: String,
        /// The operation.
        operation: String,
        /// The type needed.
        expected: String,
        /// The type found.
        found: String,
    },
    /// A dataset's content does not allow the operation.
    #[error("{0}")]
    Dataset(String),
    /// A split such as `train[:10%]` could not be understood or does not exist.
    #[error("split {split:?}: {message}")]
    Split {
        /// The split as written.
        split: String,
        /// The problem.
        message: String,
    },
    /// An argument has a value that makes no sense.
    #[error("{name}: {message}")]
    Argument {
        /// The argument's name.
        name: &'static str,
        /// The problem with the value, and the allowed values.
        message: String,
    },
    /// A model, tokenizer or dataset of that name is not to be found.
    #[error("{kind} {name:?} was not found: {message}")]
    NotFound {
        /// "model", "tokenizer", "dataset", ...
        kind: &'static str,
        /// The name as it was given.
        name: String,
        /// The places that were searched, and what to do.
        message: String,
    },
    /// A model's `config.json` is incomplete, contradictory or of an unsupported kind.
    #[error("model config: {0}")]
    Config(String),
    /// Weights do not fit the model.
    #[error("model weights: {0}")]
    Weights(String),
    /// The tokenizer files or a tokenizer operation failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Text for the fill-mask pipeline that it can't work on.
    #[error("fill_mask: {0}")]
    FillMask(String),
    /// The loss became NaN or infinite.
    #[error(
        "the loss became {loss} at step {step} (learning rate {learning_rate:e}): training stopped before the weights were touched; \
         lower the learning rate, raise the warmup, or look for broken inputs in that batch"
    )]
    NonFiniteLoss {
        /// The optimizer step, counted from 1.
        step: usize,
        /// The loss.
        loss: f32,
        /// The learning rate of that step.
        learning_rate: f64,
    },
    /// The gradients became NaN or infinite though the loss did not.
    #[error(
        "the gradient norm became {grad_norm} at step {step} (learning rate {learning_rate:e}): training stopped before the weights were touched; \
         lower the learning rate, raise the warmup, or look for broken inputs in that batch"
    )]
    NonFiniteGradient {
        /// The optimizer step, counted from 1.
        step: usize,
        /// The global norm of the gradients.
        grad_norm: f32,
        /// The learning rate of that step.
        learning_rate: f64,
    },
    /// A checkpoint can't be used.
    #[error("checkpoint {}: {message}", path.display())]
    Checkpoint {
        /// The checkpoint's folder.
        path: PathBuf,
        /// The problem.
        message: String,
    },
    /// The work was interrupted by the user; what existed before it is unchanged.
    #[error("interrupted while {0}")]
    Interrupted(String),
    /// The Hub could not be reached or refused.
    #[error("hub: {0}")]
    Hub(String),
    /// The processes that train together can't, or one of them failed.
    #[error("distributed training: {0}")]
    Distributed(String),
    /// A device can't be used.
    #[error("device: {0}")]
    Device(String),
    /// The device has no memory left.
    #[error(
        "the GPU is out of memory: lower per_device_train_batch_size and raise gradient_accumulation_steps by the same factor, \
         which gives the same training, or set gradient_checkpointing; nvidia-smi shows the memory of other programs ({source})"
    )]
    DeviceMemory {
        /// The driver's answer.
        source: candle_core::Error,
    },
    /// The device has no memory left for a batch of a run or an evaluation.
    #[error(
        "the GPU ran out of memory in a batch of {batch_size} examples of {seq} tokens: try {advice}; nvidia-smi shows the memory of other programs ({source})"
    )]
    OutOfMemory {
        /// The examples in the batch.
        batch_size: usize,
        /// The tokens of each, padding counted.
        seq: usize,
        /// The settings that need less.
        advice: String,
        /// The driver's answer.
        source: Box<candle_core::Error>,
    },
    /// A tensor operation failed: most often shapes or dtypes that do not fit.
    #[error("tensor operation: {0}")]
    Tensor(#[source] candle_core::Error),
    /// An Arrow operation failed.
    #[error("arrow: {0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// JSON could not be read or written.
    #[error("json: {0}")]
    Json(#[from] serde_json::Error),
    /// A function given by the user (to `map`, `filter`, a callback) failed.
    #[error("{context}: {source}")]
    User {
        /// The place of the call.
        context: String,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Returns an [`Error::Io`] about `path`.
    pub fn io(action: &'static str, path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            action,
            path: path.as_ref().to_path_buf(),
            source,
        }
    }

    /// Returns an [`Error::Format`] about the whole file `path`.
    pub fn format(path: impl AsRef<Path>, message: impl Into<String>) -> Self {
        Self::Format {
            path: path.as_ref().to_path_buf(),
            line: None,
            message: message.into(),
        }
    }

    /// Returns an [`Error::Argument`].
    pub fn argument(name: &'static str, message: impl Into<String>) -> Self {
        Self::Argument {
            name,
            message: message.into(),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        // The driver's and cuBLAS's names for it, which reach us as text from wherever memory was asked for.
        let names = ["CUDA_ERROR_OUT_OF_MEMORY", "CUBLAS_STATUS_ALLOC_FAILED"];
        let text = source.to_string();
        match names.iter().any(|name| text.contains(name)) {
            true => Self::DeviceMemory { source },
            false => Self::Tensor(source),
        }
    }
}

fn io_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            " (the disk is full: free some space and try again; nothing that was there before is lost)"
        }
        std::io::ErrorKind::NotFound => {
            " (check the spelling and the folder that the program runs in)"
        }
        std::io::ErrorKind::PermissionDenied => {
            " (check the permissions, or choose another folder)"
        }
        _ => "",
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")?;
        let mut shown = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            let text = error.to_string();
            // Most variants end with their source's own words; repeat only what is news.
            if !shown.contains(&text) {
                write!(f, "\n  caused by: {text}")?;
                shown.push_str(&text);
            }
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_out_of_memory_error_suggests_what_helps() {
        let driver = r#"DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        let error = Error::from(candle_core::Error::Cuda(driver.into()).bt());
        assert!(matches!(error, Error::DeviceMemory { .. }), "{error}");
        assert!(error.to_string().contains("gradient_accumulation_steps"));
        let error = Error::from(candle_core::Error::Msg("shape mismatch".into()));
        assert!(matches!(error, Error::Tensor(_)), "{error}");
    }

    #[test]
    fn debug_reads_like_display_and_adds_causes() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let error = Error::io("write", "out/model.safetensors", full);
        let text = format!("{error:?}");
        assert!(
            text.starts_with("could not write out/model.safetensors: "),
            "{text}"
        );
        assert!(text.contains("disk is full"), "{text}");
        assert!(
            !text.contains("caused by"),
            "the cause is already said: {text}"
        );
    }
}
