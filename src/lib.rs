//! Masked language modelling for Rust notebooks: from raw text to a model that fills blanks, with the numbers of
//! `transformers` and `datasets`.
//!
//! Everything that a notebook or a program needs is in the [`prelude`]. This is the whole way, on what ships with the crate;
//! `"bundled:tiny_roberta"` may as well be a folder, or a name on the Hub such as `"distilbert/distilroberta-base"`:
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
//! # The rooms
//!
//! | module | what is in it | begin with |
//! |---|---|---|
//! | [`dataset`] | Arrow tables: load, split, flatten, map, group, save | [`load_dataset`](dataset::load_dataset), [`Dataset`](dataset::Dataset) |
//! | [`tokenizer`] | every layout on disk; training new ones | [`Tokenizer`](tokenizer::Tokenizer) |
//! | [`model`] | 48 families in the Hub's layout: config, logits, loss, save | [`MaskedLm`](model::MaskedLm), [`families`] |
//! | [`collate`] | padding, masking, batches ahead of the step | [`MaskingCollator`](collate::MaskingCollator), [`DataLoader`](collate::DataLoader) |
//! | [`train`] | arguments, the loop, optimizers, schedules, checkpoints, callbacks | [`Trainer`](train::Trainer), [`TrainingArguments`](train::TrainingArguments) |
//! | [`fill_mask`] | the pipeline from text to guesses | [`FillMask`](fill_mask::FillMask) |
//! | [`audio`], [`speech`] | recordings, and from them to text | [`SpeechRecognizer`](speech::SpeechRecognizer) |
//! | [`hub`] | names to folders; login, push, model card | [`hub::resolve`] |
//! | [`display`], [`notebook`] | how values look; displays that change while a cell runs | [`notebook::show`] |
//! | [`distributed`] | the ranks of a job | [`distributed::launch`] |
//! | [`ops`] | differentiable fused operations, for families and loops of your own | [`ops::no_grad`] |
//!
//! Every function that can fail returns an [`Error`] that says what was wrong, where, and what to do.
//!
//! # Features
//!
//! | feature | default | what it brings |
//! |---|---|---|
//! | `bundled` | yes | the small model and the samples, 14 MB in the program: names that begin with `bundled:` |
//! | `hub` | yes | downloads, login and pushes |
//! | `xet` | no | large files by Xet to and from servers that pick it, through `hf-hub` |
//! | `cuda` | no | models and training on NVIDIA GPUs; the build needs the CUDA toolkit |
//!
//! # In a notebook
//!
//! The crate `cloze-kernel` has the Jupyter kernel and the program `cloze`: `cargo install --locked cloze-kernel`, then `cloze install`.
//! The stock `evcxr_jupyter` runs the same cells, slower and without live output.
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

// Of the room `base`; here, because messages of the compiler and of cells name the type by this path.
#[path = "base/error.rs"]
pub mod error;

#[doc = include_str!("../docs/families.md")]
pub mod families {}

pub use base::{files, interrupt, number};
pub use error::{Error, Result};
// The crates whose types are in this library's, in the very versions that it is built with.
pub use {arrow, candle_core, candle_nn};
