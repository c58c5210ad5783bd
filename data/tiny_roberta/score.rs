//! What the small model in this folder knows, in figures:
//! `cargo run --release --example score [-- MODEL]` prints the table of `data/README.md`.
//!
//! On held-out text of the pretraining's kind and on the ELI5 sample: perplexity and accuracy on masked tokens, for
//! guesses by frequency, for the model, and for the model after the guide's fine-tuning on the sample.

use cloze::prelude::*;

const BLOCK_SIZE: usize = 128;
/// The special tokens, which are never masked, come first in the vocabulary.
const SPECIAL: usize = 5;

/// Perplexity and accuracy on masked tokens.
struct Score {
    perplexity: f64,
    accuracy: f64,
    counted: usize,
}

fn main() -> Result<()> {
    let name = std::env::args()
        .nth(1)
        .unwrap_or("bundled:tiny_roberta".to_owned());
    let tokenizer = Tokenizer::from_pretrained(&name)?;
    let tokenize = |documents: &Dataset, column: &str| {
        let columns = documents.column_names();
        let tokenize = Map::new(tokenizer.tokenize_column(column)).batched();
        documents
            .map(tokenize.remove_columns(columns))?
            .group_texts(BLOCK_SIZE)
    };
    let held_out = load_dataset("bundled:pretraining_heldout.txt")?.split("train")?;
    let held_out = tokenize(&held_out, "text")?;
    // The guide's split.
    let eli5 = load_eli5("train_asks")?
        .train_test_split(TrainTestSplit::new(0.2).seed(42))?
        .flatten()?;
    let train = tokenize(&eli5["train"], "answers.text")?;
    let test = tokenize(&eli5["test"], "answers.text")?;
    let collator = MaskingCollator::new(&tokenizer);
    let rows = [("held-out text", &held_out), ("ELI5 sample", &test)];
    for (text, blocks) in rows {
        print(
            text,
            "by frequency",
            by_frequency(blocks, &collator, tokenizer.len())?,
        );
    }
    let model = MaskedLm::from_pretrained(&name)?;
    let arguments = TrainingArguments::new("")
        .learning_rate(5e-4)
        .epochs(3.0)
        .weight_decay(0.01)
        .save_strategy(IntervalStrategy::No);
    let mut trainer = Trainer::new(model, arguments, (train.clone(), test.clone()), collator);
    for which in ["the model", "after the guide"] {
        for (text, blocks) in rows {
            let output = trainer.predict(blocks.clone())?;
            let score = Score {
                perplexity: output.metrics.perplexity(),
                accuracy: output.accuracy(),
                counted: output.tokens.len(),
            };
            print(text, which, score);
        }
        if which == "the model" {
            trainer.train()?;
        }
    }
    Ok(())
}

fn print(text: &str, which: &str, score: Score) {
    println!(
        "{text:14} {which:16} perplexity {:8.2}, accuracy {:5.2}% of {} masked tokens",
        score.perplexity,
        100.0 * score.accuracy,
        score.counted
    );
}

/// Guesses each masked token of `blocks` by how frequent it is in these very blocks, which flatters the guess.
fn by_frequency(blocks: &Dataset, collator: &MaskingCollator, vocab: usize) -> Result<Score> {
    let mut counts = vec![1_usize; vocab];
    for token in blocks
        .column::<Vec<usize>>("input_ids")?
        .into_iter()
        .flatten()
    {
        counts[token] += 1;
    }
    let total: usize = counts[SPECIAL..].iter().sum();
    let most_frequent = (SPECIAL..vocab).max_by_key(|&token| counts[token]);
    let (mut sum, mut right, mut counted) = (0.0, 0, 0);
    for batch in DataLoader::new(blocks.clone(), collator.clone(), 8)?.epoch(0) {
        for &label in batch?.labels.iter().filter(|&&label| label >= 0) {
            sum += (total as f64 / counts[label as usize] as f64).ln();
            right += usize::from(Some(label as usize) == most_frequent);
            counted += 1;
        }
    }
    Ok(Score {
        perplexity: (sum / counted as f64).exp(),
        accuracy: right as f64 / counted as f64,
        counted,
    })
}
