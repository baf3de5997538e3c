//! The `tidings` command.

use std::process::ExitCode;

use mimalloc::MiMalloc;

/// A handshake frees most of what it allocates; glibc's allocator retains that memory (docs/benchmarks/choices.md).
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    // A huge page stays in memory as long as one of its blocks is in use: a storm of connections would leave most of its
    // memory behind. An optimization: if the system refuses it, nothing else changes.
    #[cfg(target_os = "linux")]
    rustix::thread::disable_transparent_huge_pages(true).ok();
    tidings::cli::run()
}
