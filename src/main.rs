//! The `tidings` command.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A handshake allocates much and keeps little: glibc's keeps the holes (docs/benchmarks/choices.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tidings::cli::run()
}
