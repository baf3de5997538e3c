//! The `tidings` command.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A handshake frees most of what it allocates; glibc's allocator retains that memory (docs/benchmarks/choices.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    tidings::cli::run()
}
