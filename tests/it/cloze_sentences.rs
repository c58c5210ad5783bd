//! What the bundled model knows: cloze sentences of common knowledge, written for this purpose.
//!
//! `cargo test --release --test it cloze_sentences -- --nocapture` prints the answers and the scores.

use std::collections::HashSet;

use cloze::prelude::*;

/// How many answers the bundled model gives first, and among its first five.
const SCORES: (usize, usize) = (18, 52);

/// A sentence with its hidden word.
struct Cloze {
    sentence: &'static str,
    answer: &'static str,
}

fn sentences() -> Vec<Cloze> {
    include_str!("../fixtures/cloze_sentences.tsv")
        .lines()
        .map(|line| {
            let (sentence, answer) = line.split_once('\t').expect("a sentence and its answer");
            Cloze { sentence, answer }
        })
        .collect()
}

#[test]
fn the_sentences_are_numerous_distinct_and_hide_one_word_each() {
    let sentences = sentences();
    assert!(sentences.len() >= 100, "only {}", sentences.len());
    let different: HashSet<_> = sentences.iter().map(|cloze| cloze.sentence).collect();
    assert_eq!(different.len(), sentences.len());
    for Cloze { sentence, answer } in sentences {
        assert_eq!(sentence.matches("<mask>").count(), 1, "{sentence}");
        assert!(answer.chars().all(char::is_alphabetic), "{answer}");
    }
}

#[test]
fn the_bundled_model_keeps_its_accuracy() {
    let sentences = sentences();
    let fill_mask = FillMask::from_pretrained("bundled:tiny_roberta").unwrap();
    let texts: Vec<&str> = sentences.iter().map(|cloze| cloze.sentence).collect();
    let filled = fill_mask.clone().top_k(5).fill_batch(&texts).unwrap();
    let (mut one_token, mut first, mut among_five) = (0, 0, 0);
    for (cloze, predictions) in sentences.iter().zip(filled.iter()) {
        // Between the two special tokens.
        let tokens = fill_mask.tokenizer().encode(&format!(" {}", cloze.answer));
        one_token += usize::from(tokens.unwrap().ids.len() == 3);
        let guesses: Vec<&str> = predictions.iter().map(|p| p.token_str.trim()).collect();
        let place = guesses.iter().position(|&guess| guess == cloze.answer);
        first += usize::from(place == Some(0));
        among_five += usize::from(place.is_some());
        println!(
            "{} [{}]: {}",
            cloze.sentence,
            cloze.answer,
            guesses.join(", ")
        );
    }
    let percent = |count: usize| 100.0 * count as f64 / sentences.len() as f64;
    println!(
        "{} cloze sentences, the answers to {one_token} of them one token of the model: top-1 {:.1}%, top-5 {:.1}%",
        sentences.len(),
        percent(first),
        percent(among_five)
    );
    assert_eq!((first, among_five), SCORES);
}
