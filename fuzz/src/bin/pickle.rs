#![no_main]

cloze_fuzz::fuzz!("pickle");
