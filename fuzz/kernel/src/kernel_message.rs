#![no_main]

cloze_fuzz::fuzz!(cloze_kernel_program::fuzzing::message);
