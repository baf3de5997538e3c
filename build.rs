//! Names the commit that is built: `SOURCE_COMMIT`, for builds without git, otherwise that of the checkout.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_COMMIT");
    let given = std::env::var("SOURCE_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(checked_out).unwrap_or_else(|| "unknown".to_owned());
    // Not under a name that begins with `TIDINGS_`: `cargo run` passes it on, and tidings refuses unknown variables.
    println!("cargo:rustc-env=BUILD_COMMIT={commit}");
}

/// `None` without git, and for sources that were unpacked within the checkout of another project.
fn checked_out() -> Option<String> {
    let within = git(&["--show-prefix"])?;
    let commit = git(&["--short=12", "HEAD"]).filter(|_| within.is_empty())?;
    // Written by each commit and checkout. Cargo would run this script every time for a file that does not exist.
    let log = git(&["--git-path", "logs/HEAD"]).filter(|path| Path::new(path).exists());
    println!("cargo:rerun-if-changed={}", log.as_deref().unwrap_or("build.rs"));
    Some(commit)
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("rev-parse").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
