#![no_main]

cloze_fuzz::fuzz!("safetensors");
