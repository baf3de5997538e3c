//! JSON in the `data` lines of an event stream.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/properties/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::event_block(text));
