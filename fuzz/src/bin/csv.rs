#![no_main]

cloze_fuzz::fuzz!("csv");
