//! Masked language modelling for Rust notebooks: from raw text to a model that fills blanks, with the numbers of
//! `transformers` and `datasets`.
//!
//! The [`prelude`] contains everything that a notebook or a program needs. Here is the whole workflow with the bundled data and
//! model. Instead of `"bundled:tiny_roberta"` you can use a folder, or a name on the Hub such as `"distilbert/distilroberta-base"`:
//!
//! ```
//! use cloze::prelude::*;
//!
//! let eli5 = load_eli5("train_asks[:40]")?.train_test_split(0.2)?.flatten()?;
//! let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;
//! let blocks = eli5.map(tokenizer.tokenize_column("answers.text"))?.group_texts(128)?;
//!
//! let model = MaskedLm::from_pretrained("bundled:tiny_roberta")?;
//! let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.15);
//! # let folder = tempfile::tempdir().unwrap();
//! # let out = folder.path().join("eli5_mlm_model");
//! let arguments = TrainingArguments::new(&out).learning_rate(2e-5).max_steps(2);
//! let mut trainer = Trainer::new(&model, arguments, &blocks, collator);
//! trainer.train()?;
//! println!("perplexity {:.1}", trainer.evaluate()?.perplexity());
//!
//! let guesses = FillMask::new(&model, &tokenizer).top_k(3).fill("The Milky Way is a <mask> galaxy.")?;
//! assert_eq!(guesses.len(), 3);
//! # Ok::<(), cloze::Error>(())
//! ```
//!
//! # Modules
//!
//! | module | contents | start with |
//! |---|---|---|
//! | [`dataset`] | Arrow tables: load, split, flatten, map, group, save | [`load_dataset`](dataset::load_dataset), [`Dataset`](dataset::Dataset) |
//! | [`tokenizer`] | every layout on disk; training new ones | [`Tokenizer`](tokenizer::Tokenizer) |
//! | [`model`] | 48 families in the Hub's layout: config, logits, loss, save | [`MaskedLm`](model::MaskedLm), [`families`] |
//! | [`collate`] | padding, masking, prefetching of batches | [`MaskingCollator`](collate::MaskingCollator), [`DataLoader`](collate::DataLoader) |
//! | [`train`] | arguments, the loop, optimizers, schedules, checkpoints, callbacks | [`Trainer`](train::Trainer), [`TrainingArguments`](train::TrainingArguments) |
//! | [`fill_mask`] | the pipeline from a text to predictions | [`FillMask`](fill_mask::FillMask) |
//! | [`audio`], [`speech`] | recordings, and their transcription | [`SpeechRecognizer`](speech::SpeechRecognizer) |
//! | [`hub`] | resolving names to folders; login, push, model card | [`hub::resolve`] |
//! | [`display`], [`notebook`] | the display of values; live displays | [`notebook::show`] |
//! | [`distributed`] | the ranks of a job | [`distributed::launch`] |
//! | [`ops`] | differentiable fused operations, for families and loops of your own | [`ops::no_grad`] |
//!
//! Every function that can fail returns an [`Error`] that explains what is wrong, where, and what to do.
//!
//! # Features
//!
//! | feature | default | adds |
//! |---|---|---|
//! | `bundled` | yes | the small model and the samples, 14 MB in the program: names that begin with `bundled:` |
//! | `hub` | yes | downloads, login and uploads |
//! | `xet` | no | large files through Xet, to and from servers that choose it, by the crate `hf-hub` |
//! | `cuda` | no | models and training on NVIDIA GPUs; the build needs the CUDA toolkit |
//!
//! # In a notebook
//!
//! The crate `cloze-kernel` contains the Jupyter kernel and the program `cloze`: `cargo install --locked cloze-kernel`, then `cloze
//! install`. The stock `evcxr_jupyter` runs the same cells, more slowly and without live output.
#![warn(missing_docs)]

pub mod audio;
mod base;
pub mod collate;
pub mod dataset;
pub mod display;
pub mod distributed;
pub mod fill_mask;
pub mod hub;
pub mod model;
pub mod notebook;
pub mod ops;
pub mod prelude;
pub mod speech;
pub mod tokenizer;
pub mod train;

// Part of the room `base`, but declared here because compiler messages and cells name the type by this path.
#[path = "base/error.rs"]
pub mod error;

#[doc = include_str!("../docs/families.md")]
pub mod families {}

pub use base::{files, interrupt, number};
pub use error::{Error, Result};
// The crates whose types appear in this library's API, in the versions that it is built with.
pub use {arrow, candle_core, candle_nn};
