//! The inputs that only some families take, used as the page on the families uses them.

use std::path::{Path, PathBuf};

use cloze::prelude::*;

fn tokenizer(name: &str) -> Tokenizer {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/tokenizers");
    Tokenizer::from_path(folder.join(name)).unwrap()
}

fn small(model_type: &str, tokenizer: &Tokenizer) -> Config {
    Config::new(model_type)
        .set("vocab_size", tokenizer.len())
        .set("hidden_size", 32)
        .set("num_hidden_layers", 2)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 64)
        .set("hidden_dropout_prob", 0.0)
        .set("attention_probs_dropout_prob", 0.0)
}

fn arguments(folder: &Path, steps: usize) -> TrainingArguments {
    TrainingArguments::new(folder)
        .max_steps(steps)
        .learning_rate(5e-3)
        .save_strategy("no")
}

/// Checks that the loss of the last ten steps is below half that of the first.
fn assert_learned(history: &History) {
    let losses: Vec<f32> = history.steps.iter().map(|step| step.loss).collect();
    let last = losses[losses.len() - 10..].iter().sum::<f32>() / 10.0;
    assert!(last < 0.5 * losses[0], "{} -> {last}", losses[0]);
}

#[test]
fn a_table_is_encoded_and_learned() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer("tapas");
    let model = MaskedLm::from_config(&small("tapas", &tokenizer), 42)?;
    let header = ["zinbrum", "gai", "shat"];
    let rows = vec![
        vec!["quom", "2,748,109", "21 October 2001"],
        vec!["vlai", "-1,354.5", "May 5, 2010"],
        vec!["", "3rd", "2016-06-21"],
    ];
    let options = EncodeOptions::new().truncation(512);
    let inputs = tokenizer.encode_table(&header, &rows, "[MASK] gai 3", &options)?;

    // Of the first piece of each cell: column, row, ranks from either end, and how its number compares with 3.
    let types = &inputs.extra["token_type_ids"].values;
    let cell = |column: i64, row: i64| {
        let found = types.chunks(7).find(|of| of[..3] == [1, column, row]);
        found.map(|of| [of[4], of[5], of[6]])
    };
    assert_eq!(cell(1, 1), Some([0, 0, 0]));
    let numbers = [cell(2, 1), cell(2, 2), cell(2, 3)];
    assert_eq!(numbers, [Some([3, 1, 2]), Some([1, 3, 4]), Some([2, 2, 1])]);
    let dates = [cell(3, 1), cell(3, 2), cell(3, 3)];
    assert_eq!(dates, [Some([1, 3, 0]), Some([2, 2, 0]), Some([3, 1, 0])]);

    // There is a prediction for the mask, and training on the table lowers the loss.
    let likely = model
        .forward(&inputs)?
        .argmax(2)?
        .flatten_all()?
        .to_vec1::<u32>()?;
    let places = tokenizer.mask_positions(&inputs);
    assert!(places.len() == 1 && tokenizer.id_to_token(likely[places[0]]).is_some());
    let inputs = tokenizer.encode_table(&header, &rows, "zinbrum gai", &options)?;
    let examples = vec![Example::from(&inputs)];
    let collator = MaskingCollator::new(&tokenizer);
    let mut trainer = Trainer::new(model, arguments(folder.path(), 120), examples, collator);
    assert_learned(&trainer.train()?);
    Ok(())
}

#[test]
fn masked_entities_are_learned_and_predicted() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer("luke");
    let config = small("luke", &tokenizer)
        .set("entity_vocab_size", 20)
        .set("entity_emb_size", 16);
    let model = MaskedLm::from_config(&config, 42)?;
    let texts = Dataset::builder()
        .column("text", vec!["zhir Shat gai.", "Kaim betquoul zhir."])
        .column("spans", vec![vec![vec![5i64, 9]], vec![vec![0, 4]]])
        .column("titles", vec![vec!["Shat"], vec!["Kaim"]])
        .build()?;
    let inputs = tokenizer
        .tokenize_entities("text", "spans")
        .titles("titles")
        .max_length(512);
    let data = texts.map(
        Map::new(inputs)
            .batched()
            .remove_columns(texts.column_names()),
    )?;
    let collator = MaskingCollator::new(&tokenizer).entity_mask_probability(0.5);
    Trainer::new(&model, arguments(folder.path(), 150), data, collator).train()?;

    for (text, spans, title) in [
        ("zhir Shat gai.", [(5, 9)], "Shat"),
        ("Kaim betquoul zhir.", [(0, 4)], "Kaim"),
    ] {
        let mentions = Mentions {
            spans: &spans,
            titles: None,
        };
        let inputs = tokenizer.encode_entities(text, mentions, None, &EncodeOptions::new())?;
        let likely = model
            .entity_logits(&inputs)?
            .argmax(2)?
            .flatten_all()?
            .to_vec1::<u32>()?;
        assert_eq!(tokenizer.entity_title(likely[0]), Some(title));
    }
    let words = tokenizer.encode("zhir gai")?;
    assert!(
        model
            .entity_logits(&words)
            .unwrap_err()
            .to_string()
            .contains("no entities")
    );
    assert_eq!(tokenizer.entity_title(9999), None);
    Ok(())
}

#[test]
fn shapes_and_pronunciations_are_columns_and_their_characters_are_learned() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = tokenizer("roc_bert");
    let config = small("roc_bert", &tokenizer)
        .set("shape_embed_dim", 16)
        .set("pronunciation_embed_dim", 16);
    let model = MaskedLm::from_config(&config, 42)?;
    let texts = Dataset::builder()
        .column("text", vec!["zhir gai", "betquoul zhir gai"])
        .build()?;
    let data = texts.map(tokenizer.tokenize_column("text"))?;
    assert_eq!(
        data.column_names(),
        [
            "input_ids",
            "attention_mask",
            "input_shape_ids",
            "input_pronunciation_ids"
        ]
    );
    let collator = MaskingCollator::new(&tokenizer);
    let mut trainer = Trainer::new(model, arguments(folder.path(), 150), data, collator);
    assert_learned(&trainer.train()?);
    Ok(())
}

/// Returns a file of `samples` at `rate`, as programs that have not set the rate write it where that is 0.
fn wav(folder: &Path, rate: u32, samples: &[i16]) -> PathBuf {
    let bytes = 2 * samples.len() as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0\x01\0");
    file.extend(rate.to_le_bytes());
    file.extend((2 * rate).to_le_bytes());
    file.extend(b"\x02\0\x10\0data");
    file.extend(bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|sample| sample.to_le_bytes()));
    let path = folder.join(format!("{rate}_{}.wav", samples.len()));
    std::fs::write(&path, file).unwrap();
    path
}

#[test]
fn recordings_of_every_rate_are_transcribed_and_empty_ones_refused() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let processor = SpeechProcessor::new(
        FeatureExtractor::default(),
        Tokenizer::train_letters(["ab c"])?,
    );
    let config = Config::new("wav2vec2")
        .set("vocab_size", processor.tokenizer().len())
        .set("conv_dim", vec![16; 2])
        .set("conv_kernel", vec![10, 4])
        .set("conv_stride", vec![8, 4])
        .set("hidden_size", 16)
        .set("num_hidden_layers", 1)
        .set("num_attention_heads", 2)
        .set("intermediate_size", 32)
        .set("num_conv_pos_embeddings", 4)
        .set("num_conv_pos_embedding_groups", 2)
        .set("initializer_range", 0.5);
    let recognizer = SpeechRecognizer::new(MaskedLm::from_config(&config, 1)?, processor)?;
    for rate in [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000] {
        let tone = |i: u32| {
            let seconds = f64::from(i) / f64::from(rate);
            ((seconds * (400.0 + 3000.0 * seconds) * std::f64::consts::TAU).sin() * 20_000.0) as i16
        };
        let samples: Vec<i16> = (0..rate / 2).map(tone).collect();
        let heard = recognizer.transcribe_file(wav(folder.path(), rate, &samples))?;
        // Half a second, whatever the rate; a frame begins every 32 samples at 16 kHz.
        let mut end = 0.0;
        for word in &heard.words {
            assert!(
                end <= word.start && word.start < word.end && word.end <= 0.5,
                "{rate}: {word:?}"
            );
            assert!((word.start - word.start_offset as f64 * 0.002).abs() < 1e-9);
            end = word.end;
        }
        let words: Vec<&str> = heard.words.iter().map(|word| word.text.as_str()).collect();
        assert_eq!(words.join(" "), heard.text, "{rate}");
    }
    for (rate, samples, words) in [
        (0, &[1i16; 100][..], "0 is not a valid sampling rate"),
        (16_000, &[], "no samples"),
        (16_000, &[1; 5], "too few"),
    ] {
        let error = recognizer
            .transcribe_file(wav(folder.path(), rate, samples))
            .unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
    Ok(())
}
