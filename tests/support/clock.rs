//! A clock for a redis-server that a test can step.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// The library that shifts the time, compiled once.
static PRELOADED: LazyLock<PathBuf> = LazyLock::new(|| {
    let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("clock-{}.so", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clock.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&built).arg(source).status();
    assert!(compiled.expect("cc is installed, as Rust needs it").success());
    built
});

/// The offset of one process's real time; steps while the process runs.
pub struct SteppedClock {
    file: PathBuf,
    offset_ms: AtomicI64,
}

impl SteppedClock {
    /// Kept in this folder.
    pub fn new(dir: &Path) -> Self {
        let file = dir.join("clock_offset");
        fs::write(&file, 0_i64.to_ne_bytes()).unwrap();
        Self { file, offset_ms: AtomicI64::new(0) }
    }

    /// What a process must be started with.
    pub fn env(&self) -> [(&'static str, PathBuf); 2] {
        [("LD_PRELOAD", PRELOADED.clone()), ("CLOCK_OFFSET_FILE", self.file.clone())]
    }

    pub fn step_ms(&self, by: i64) {
        let offset_ms = self.offset_ms.fetch_add(by, Ordering::Relaxed) + by;
        // In place: the process has the file mapped.
        let mut file: File = OpenOptions::new().write(true).open(&self.file).unwrap();
        file.write_all(&offset_ms.to_ne_bytes()).unwrap();
    }
}
