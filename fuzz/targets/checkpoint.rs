#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| lighthpc::fuzz::checkpoint(bytes));
