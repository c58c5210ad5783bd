//! Code that each cell would otherwise compile again: the drop code of the library's types, and its generic functions
//! for the types that they are mostly called with.
//!
//! Nobody calls these functions. A crate that is compiled without optimization uses the generic code of a dependency if
//! that is compiled without optimization, too, as this one is for notebooks (see `src/toolchain/prelude/build.rs`).
//! Most cells are such crates.
#![allow(missing_docs, clippy::all)]

use std::collections::HashMap;

use cloze::prelude::*;

/// All types of the library that a notebook keeps in variables.
pub fn types(
    _: (
        AdamW,
        BatchKey,
        Batches,
        Collator1,
        Config,
        Context,
        Control,
        Device,
    ),
    _: (
        Dataset,
        DatasetDict,
        DataLoader,
        EncodeOptions,
        Encoding,
        Error,
        EvalMetrics,
        Example,
    ),
    _: (
        FillMask,
        GradScaler,
        GroupTexts,
        History,
        LossPlot,
        MaskedLm,
        MaskingCollator,
        MlmBatch,
    ),
    _: (
        ModelInputs,
        PaddingCollator,
        Prediction,
        Predictions,
        PredictionsBatch,
        Row,
        Tensor,
    ),
    _: (Tokenizer, TrainTestSplit, Trainer, TrainingArguments, Value),
) {
}

type Collator1 = Box<dyn Collator>;

/// Types of other crates that library calls return.
pub fn others(
    _: (
        String,
        Vec<String>,
        Vec<u32>,
        Vec<usize>,
        Vec<f32>,
        Vec<Vec<u32>>,
        Vec<Vec<f32>>,
        Vec<Encoding>,
        Vec<Tensor>,
    ),
    _: (
        HashMap<String, String>,
        HashMap<String, Tensor>,
        Option<u32>,
        Option<String>,
        Option<Tensor>,
        Option<MlmBatch>,
    ),
) {
}

/// The calls of the guides.
pub fn calls(name: &str, text: &String) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let eli5 = load_eli5(name)?;
    let eli5 = eli5
        .train_test_split(TrainTestSplit::new(0.2).seed(42))?
        .flatten()?;
    let _ = load_dataset(name)?;
    let tokenizer = Tokenizer::from_pretrained(name)?;
    let _ = (
        tokenizer.encode(name)?,
        tokenizer.encode(text)?,
        tokenizer.encode_ids(text)?,
    );
    tokenizer.save_pretrained(name)?;
    let tokenized = eli5.map(
        Map::new(tokenizer.tokenize_column("answers.text"))
            .batched()
            .num_proc(2)
            .remove_columns(eli5["train"].column_names()),
    )?;
    let blocks = tokenized.group_texts(128)?;
    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.15);
    let look = DataLoader::new(blocks["train"].clone(), collator.clone(), 2)?;
    if let Some(batch) = look.epoch(0).next() {
        let _ = batch?.show(&tokenizer);
    }
    let model = MaskedLm::from_pretrained(name)?;
    let fill_mask = FillMask::from_pretrained(name)?.top_k(3);
    let _ = (fill_mask.fill(name)?, fill_mask.fill(text)?);
    let arguments = TrainingArguments::new(name)
        .num_train_epochs(1.0)
        .learning_rate(1e-3);
    let mut trainer = Trainer::new(&model, arguments, &blocks, collator);
    let _ = (trainer.evaluate()?, trainer.train()?);
    trainer.save_model(name)?;
    let logits = model.forward(&tokenizer.encode(text)?)?;
    tensors(&logits)
}

/// Operations on tensors.
fn tensors(tensor: &Tensor) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let zeros = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
    let _ = (
        Tensor::ones((2, 3), DType::F32, &Device::Cpu)?,
        Tensor::zeros(3, DType::F32, &Device::Cpu)?,
    );
    let sum = (((&zeros + 1.0)? * 2.0)? + &zeros)?;
    let _ = (
        zeros.matmul(&sum)?,
        sum.sum_all()?.to_scalar::<f32>()?,
        sum.mean_all()?,
    );
    let _ = (
        sum.to_vec1::<f32>()?,
        sum.to_vec2::<f32>()?,
        sum.argmax(0)?,
        sum.dims().len(),
    );
    let _ = (
        tensor.i(0)?,
        tensor.i((0, 0))?,
        tensor.reshape((2, 3))?,
        tensor.narrow(0, 0, 1)?,
    );
    Ok(())
}
