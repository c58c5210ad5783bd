//! The names that a notebook imports: `use cloze::prelude::*;`

pub use crate::audio::{Audio, FeatureExtractor, SpeechProcessor};
pub use crate::collate::{
    BatchKey, Batches, Collator, CtcCollator, DataLoader, DenoisingCollator, Example, Examples,
    IntoExamples, MaskingCollator, MlmBatch, PaddingCollator,
};
#[cfg(feature = "hub")]
pub use crate::dataset::PushDataset;
pub use crate::dataset::{
    Batch, BatchFunction, ColumnType, Dataset, DatasetDict, FileFormat, GroupTexts, Interleave,
    IterableDataset, Loader, Map, NullPlacement, Row, SampleBy, Sort, StoppingStrategy, TestSize,
    TrainTestSplit, Value, concatenate, interleave, load_dataset, load_dataset_split,
    load_dataset_streaming, load_eli5, load_eli5_from, load_from_disk,
};
pub use crate::fill_mask::{FillMask, Prediction, Predictions, PredictionsBatch, TopK};
#[cfg(feature = "hub")]
pub use crate::hub::{self, Hub, ModelCard, PushOptions, notebook_login};
pub use crate::model::{Config, Context, MaskedLm, ModelInputs, ResizeEmbeddings};
pub use crate::notebook::{Rich, input, show};
pub use crate::ops::{DeviceExt, Precision, no_grad};
pub use crate::speech::{
    ErrorRates, SpeechRecognizer, Transcription, character_error_rate, word_error_rate,
};
pub use crate::tokenizer::{
    EncodeOptions, Encoding, ExtraColumn, Mentions, Padding, Spoken, TokenizeBoxes, TokenizeColumn,
    TokenizeEntities, Tokenizer, TruncationStrategy, normalize_box,
};
#[cfg(feature = "hub")]
pub use crate::train::PushToHubCallback;
pub use crate::train::{
    Adafactor, AdamW, Callback, Control, EvalMetrics, Event, GradScaler, History, IntervalStrategy,
    Lion, Lora, LossPlot, ParamGroup, PredictionOutput, ReduceLrOnPlateau, Schedule,
    SchedulerKwargs, SchedulerType, Sgd, Trainer, TrainingArguments, error_rates, evaluate,
    get_scheduler, masked_accuracy,
};
pub use crate::{Error, Result};
pub use candle_core::{DType, Device, IndexOp, Tensor};
pub use {arrow, candle_core, candle_nn};
