#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| paddock::fuzz::run("config", bytes));
