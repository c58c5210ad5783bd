//! How the small model in this folder was made:
//! `cargo run --release --example pretrain_tiny -- TEXT.txt OUTPUT_FOLDER [EPOCHS]`
//!
//! `TEXT.txt` holds one document per line. The tokenizer is trained on the bundled question-and-answer sample, the model
//! on `TEXT.txt` alone. A run that was stopped goes on from its last checkpoint.

use cloze::prelude::*;

const VOCAB_SIZE: usize = 4000;
const BLOCK_SIZE: usize = 128;

fn main() -> cloze::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(text), Some(output)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: pretrain_tiny TEXT.txt OUTPUT_FOLDER [EPOCHS]");
        std::process::exit(2);
    };
    let epochs: f64 = arguments.next().and_then(|e| e.parse().ok()).unwrap_or(4.0);

    let sample = load_eli5("train_asks")?.flatten()?;
    let answers: Vec<Vec<String>> = sample.column("answers.text")?;
    let titles: Vec<String> = sample.column("title")?;
    let texts = answers.into_iter().flatten().chain(titles);
    let tokenizer = Tokenizer::train_bpe(texts, VOCAB_SIZE)?;
    tokenizer.save_pretrained(&output)?;

    let documents = load_dataset(&text)?.split("train")?;
    let columns = documents.column_names();
    let tokenize = Map::new(tokenizer.tokenize_column("text"))
        .batched()
        .remove_columns(columns);
    let blocks = documents.map(tokenize)?.group_texts(BLOCK_SIZE)?;
    let blocks = blocks.train_test_split(TrainTestSplit::new(200).seed(42))?;

    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 192)
        .set("num_hidden_layers", 4)
        .set("num_attention_heads", 3)
        .set("intermediate_size", 768)
        .set("max_position_embeddings", BLOCK_SIZE + 2)
        .set("type_vocab_size", 1)
        .set("layer_norm_eps", 1e-5)
        .set("hidden_dropout_prob", 0.0)
        .set("attention_probs_dropout_prob", 0.0)
        .set("bos_token_id", 0)
        .set("pad_token_id", 1)
        .set("eos_token_id", 2);
    let model = MaskedLm::from_config(&config, 42)?;
    println!("{model:?}, {} blocks", blocks["train"].len());

    let checkpoints = std::path::Path::new(&output).with_extension("checkpoints");
    let arguments = TrainingArguments::new(&checkpoints)
        .learning_rate(1e-3)
        .epochs(epochs)
        .per_device_train_batch_size(32)
        .warmup_ratio(0.03)
        .weight_decay(0.01)
        .adam_beta2(0.98)
        .logging_steps(50)
        .eval_strategy(IntervalStrategy::Steps)
        .eval_steps(250)
        .save_steps(250)
        .save_total_limit(2);
    let mut trainer = Trainer::new(
        model.clone(),
        arguments,
        blocks["train"].clone(),
        blocks["test"].clone(),
        MaskingCollator::new(&tokenizer).mlm_probability(0.2),
    );
    if checkpoints.exists() {
        trainer.resume_from_checkpoint(&checkpoints)?;
    }
    let history = trainer.train()?;
    println!("{history:?}");

    // Fine-tuning regularizes as usual, whatever pretraining did.
    model.save_pretrained_as(&output, DType::F16)?;
    let config = Config::from_folder(&output)?
        .set("hidden_dropout_prob", 0.1)
        .set("attention_probs_dropout_prob", 0.1);
    std::fs::write(
        std::path::Path::new(&output).join("config.json"),
        config.to_json()?,
    )
    .map_err(|e| cloze::Error::io("write", &output, e))?;
    Ok(())
}
