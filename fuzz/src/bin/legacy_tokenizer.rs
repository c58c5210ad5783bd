#![no_main]

cloze_fuzz::fuzz!("legacy_tokenizer");
