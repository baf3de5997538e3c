//! The headers in which proxies and clients state a client's address.
#![no_main]

#[allow(dead_code)]
#[path = "../../tests/properties/checks.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|lines: &str| checks::forwarded(lines));
