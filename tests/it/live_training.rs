//! What a notebook's kernel hears while a model trains: the process under test is this one, started again as a cell.

use std::process::Command;

use cloze::prelude::*;

/// Trains a small model for 60 steps with three evaluations; run in a process of its own by the tests below.
#[test]
#[ignore = "the tests below start it in the surroundings that they are about"]
fn train_a_little() {
    let texts: Vec<String> = (0..160)
        .map(|i| format!("the {} galaxy is number {i}", ["spiral", "barred"][i % 2]))
        .collect();
    let tokenizer = Tokenizer::train_bpe(&texts, 320).unwrap();
    let examples: Vec<Example> = tokenizer
        .encode_batch(&texts)
        .unwrap()
        .into_iter()
        .map(Example::from)
        .collect();
    let config = Config::new("roberta")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 64)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 128);
    let model = MaskedLm::from_config(&config, 42).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let args = TrainingArguments::new(folder.path())
        .epochs(3)
        .eval_strategy(IntervalStrategy::Epoch)
        .peak_tflops(1.0);
    let collator = MaskingCollator::new(&tokenizer);
    let mut trainer = Trainer::new(model, args, (examples.clone(), examples), collator);
    let history = trainer.train().unwrap();
    println!("trained {} steps", history.step());
    history.evcxr_display();
}

/// The blocks that the process printed: each with its first line and its content.
fn blocks(environment: &[&str]) -> Vec<(String, String)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--ignored",
        "--exact",
        "live_training::train_a_little",
        "--nocapture",
    ]);
    for name in ["CLOZE_KERNEL", "EVCXR_IS_RUNTIME"] {
        command.env_remove(name);
    }
    for name in environment {
        command.env(name, "1");
    }
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("trained 60 steps"), "{text}");
    let blocks = text.split("EVCXR_BEGIN_CONTENT ").skip(1);
    blocks
        .map(|block| {
            // Our kernel's mark stands before its words: a control character, and what the variable says.
            let marked = if environment.contains(&"CLOZE_KERNEL") {
                "\u{1}1"
            } else {
                ""
            };
            let end = format!("\n{marked}EVCXR_END_CONTENT\n");
            let (block, _) = block.split_once(end.as_str()).expect("an end");
            let (header, content) = block.split_once('\n').unwrap();
            (header.to_owned(), content.to_owned())
        })
        .collect()
}

#[test]
fn in_our_kernel_one_display_updates_in_place_and_ends_complete() {
    let blocks = blocks(&["EVCXR_IS_RUNTIME", "CLOZE_KERNEL"]);
    let html: Vec<_> = blocks
        .iter()
        .filter(|(header, _)| header.starts_with("text/html"))
        .collect();
    let (run, after): (Vec<_>, Vec<_>) = html
        .into_iter()
        .partition(|(header, _)| header.contains("display_id="));

    // The same display every time; only the first block makes it.
    let name = run[0].0.split(' ').nth(1).unwrap();
    for (number, (header, _)) in run.iter().enumerate() {
        assert_eq!(header.split(' ').nth(1), Some(name));
        assert_eq!(header.ends_with("update=1"), number > 0, "{header}");
    }
    let last = &run.last().unwrap().1;
    for words in [
        "60 / 60",
        "epoch 3 of 3",
        "it/s",
        "tokens/s",
        "% MFU",
        "<img",
        "Validation Loss",
        "Perplexity",
    ] {
        assert!(last.contains(words), "{words}");
    }
    assert_eq!(last.matches("<tr").count(), 1 + 3);
    assert!(!last.contains(" left ·"), "nothing is left at the end");

    // The cell's value does not repeat what stands right above it.
    assert_eq!(after.len(), 1);
    assert!(after[0].1.contains("60 steps") && !after[0].1.contains("<img"));
}

#[test]
fn in_the_stock_kernel_the_run_is_shown_once_and_the_value_is_complete() {
    let blocks = blocks(&["EVCXR_IS_RUNTIME"]);
    let headers: Vec<&str> = blocks.iter().map(|(header, _)| header.as_str()).collect();
    assert_eq!(
        headers,
        ["text/html", "text/plain", "text/html", "text/plain"]
    );
    // The stock kernel keeps the last of each type.
    for (_, html) in [&blocks[0], &blocks[2]] {
        assert!(html.contains("<img") && html.contains("Perplexity"));
    }
}

#[test]
fn outside_a_notebook_no_display_is_printed() {
    // The history was asked to show itself, and did so as text.
    assert!(blocks(&[]).is_empty());
}
