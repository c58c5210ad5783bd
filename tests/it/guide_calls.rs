//! The guide's cells, call by call, as a person who comes from Python writes them.

use cloze::prelude::*;

/// The cells of the guide for a model and tokenizer of whatever kind, in a folder.
fn walk(name: &str, output: &str) -> cloze::Result<()> {
    let tokenizer = Tokenizer::from_pretrained(name)?;
    let model = MaskedLm::from_pretrained(name)?;
    let eli5 = load_eli5("train_asks[:30]")?
        .train_test_split(0.2)?
        .flatten()?;
    let tokenized = eli5.map(tokenizer.tokenize_column("answers.text").num_proc(4))?;
    assert_eq!(tokenized["train"].column_names()[0], "input_ids");
    let blocks = tokenized.group_texts(64)?;

    let collator = MaskingCollator::new(&tokenizer).mlm_probability(0.15);
    let preview = collator.preview(&blocks["train"], 2)?;
    let mask = tokenizer
        .mask_token()
        .expect("a masked-LM tokenizer has a mask");
    assert!(preview.to_text().contains(mask), "{}", preview.to_text());

    // The prompt has the tokenizer's own mask.
    let text = format!("The Milky Way is a {mask} galaxy.");
    let guesses = FillMask::new(&model, &tokenizer).top_k(3).fill(&text)?;
    assert_eq!(guesses.len(), 3);

    let arguments = TrainingArguments::new(output)
        .learning_rate(2e-5)
        .max_steps(2)
        .weight_decay(0.01);
    let mut trainer = Trainer::new(&model, arguments, &blocks, collator);
    trainer.train()?;
    assert!(trainer.evaluate()?.perplexity() > 1.0);

    // The pipeline by hand: positions of masks, and the best with named fields.
    let inputs = tokenizer.encode(&text)?;
    let logits = model.forward(&inputs)?;
    let position = tokenizer.mask_positions(&inputs)[0];
    let best = logits.i((0, position))?.largest(3)?;
    let guesses = FillMask::new(&model, &tokenizer).top_k(3).fill(&text)?;
    for (candidate, guess) in best.iter().zip(&guesses) {
        assert_eq!(candidate.index, guess.token);
    }
    assert!(best[0].value >= best[1].value);
    Ok(())
}

#[test]
fn the_same_cells_serve_a_roberta_and_a_bert() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out").to_string_lossy().into_owned();
    walk("bundled:tiny_roberta", &output).unwrap();

    let titles = load_eli5("train_asks").unwrap();
    let titles: Vec<String> = titles.column("title").unwrap();
    let tokenizer = Tokenizer::train_wordpiece(&titles, 800, true).unwrap();
    assert_eq!(tokenizer.mask_token(), Some("[MASK]"));
    let config = Config::new("bert")
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 32)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 64)
        .set("max_position_embeddings", 64);
    let bert = folder.path().join("bert");
    MaskedLm::from_config(&config, 42)
        .unwrap()
        .save_pretrained(&bert)
        .unwrap();
    tokenizer.save_pretrained(&bert).unwrap();
    walk(&bert.to_string_lossy(), &output).unwrap();
}

/// The loop by hand: no casts, `evaluate` from the prelude, a plot that takes the loss.
fn loop_by_hand() -> cloze::Result<LossPlot> {
    let (epochs, batch_size) = (2, 8);
    let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta")?;
    let model = MaskedLm::from_pretrained("bundled:tiny_roberta")?;
    let eli5 = load_eli5("train_asks[:12]")?
        .train_test_split(0.25)?
        .flatten()?;
    let blocks = eli5
        .map(tokenizer.tokenize_column("answers.text"))?
        .group_texts(64)?;
    let collator = MaskingCollator::new(&tokenizer);
    let train_loader = DataLoader::new(&blocks["train"], collator.clone(), batch_size)?.shuffle(42);
    let eval_loader = DataLoader::new(&blocks["test"], collator, batch_size)?;
    let mut optimizer = AdamW::new(&model).weight_decay(0.01);
    let schedule = Schedule::linear(5e-4, 0, epochs * train_loader.len());
    let before = evaluate(&model, &eval_loader)?;
    let mut plot = LossPlot::new();
    let mut step = 0;
    for epoch in 0..epochs {
        for batch in train_loader.epoch(epoch) {
            let loss = model.loss(&batch?, &Context::train(42, step))?.mean()?;
            model.backward(&loss)?;
            optimizer.clip_grad_norm(1.0)?;
            optimizer.step(schedule.lr(step))?;
            optimizer.zero_grad();
            plot.push(&loss)?;
            step += 1;
        }
        plot.push_eval(evaluate(&model, &eval_loader)?.loss);
    }
    assert!(evaluate(&model, &eval_loader)?.perplexity() < before.perplexity());
    Ok(plot)
}

#[test]
fn a_loop_by_hand_needs_no_casts() {
    let plot = loop_by_hand().unwrap();
    assert!(plot.to_svg().starts_with("<svg"));
    assert!(
        plot.to_text().contains("validation loss"),
        "{}",
        plot.to_text()
    );
}

#[test]
fn a_function_of_ones_own_does_what_tokenize_column_does() {
    let tokenizer = Tokenizer::from_pretrained("bundled:tiny_roberta").unwrap();
    let eli5 = load_eli5("train_asks[:20]").unwrap().flatten().unwrap();
    let own = tokenizer.clone();
    let preprocess = move |batch: &Batch| {
        let answers: Vec<Vec<String>> = batch.column("answers.text")?;
        let texts: Vec<String> = answers.iter().map(|answers| answers.join(" ")).collect();
        let ids: Vec<Vec<u32>> = own
            .encode_batch(&texts)?
            .into_iter()
            .map(|encoding| encoding.ids)
            .collect();
        Batch::new().with_column("input_ids", ids)
    };
    let mapped = eli5
        .map(
            Map::new(preprocess)
                .batched()
                .num_proc(4)
                .remove_all_columns(),
        )
        .unwrap();
    let tokenized = eli5.map(tokenizer.tokenize_column("answers.text")).unwrap();
    let ids = |rows: &Dataset| rows.column::<Vec<u32>>("input_ids").unwrap();
    assert_eq!(ids(&mapped), ids(&tokenized));
}

/// Never called: who logs in is asked for a token.
#[cfg(feature = "hub")]
#[allow(dead_code)]
fn logs_in_and_shares(
    model: &MaskedLm,
    blocks: &DatasetDict,
    collator: MaskingCollator,
) -> cloze::Result<()> {
    notebook_login()?;
    let pushes = PushToHubCallback::new("eli5_mlm_model")?;
    let arguments = TrainingArguments::new("eli5_mlm_model").save_strategy("epoch");
    let mut trainer = Trainer::new(model, arguments, blocks, collator).callback(pushes);
    trainer.train()?;
    trainer.push_to_hub()?;
    Ok(())
}
