//! The commands of backends on the control channel.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/properties/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|message: &[u8]| checks::command(message));
