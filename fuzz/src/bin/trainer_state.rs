#![no_main]

cloze_fuzz::fuzz!("trainer_state");
