//! The program accepts the configurations in docs/deploy.md and in the files under deploy/.

use std::path::PathBuf;
use std::process::Stdio;

use tempfile::TempDir;

use crate::support::{Authority, SECRET, command, output};

/// The files that the page has made by then.
struct Etc {
    _authority: Authority,
    dir: TempDir,
}

impl Etc {
    fn new() -> Self {
        let (authority, dir) = (Authority::new(), TempDir::new().unwrap());
        let [certificate, key] = authority.certificate(&["push.example.com"]);
        let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
        for (name, text) in [
            ("hmac_secret", SECRET.to_owned()),
            ("admin_api_key", SECRET.to_owned()),
            ("redis_url", "redis://tidings:secret@10.0.0.5:6379\n".to_owned()),
            ("certificate.pem", read(certificate)),
            ("key.pem", read(key)),
        ] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        Self { _authority: authority, dir }
    }

    /// A text with the paths of these files.
    fn here(&self, text: &str) -> String {
        let here = self.dir.path().to_str().unwrap();
        text.replace("/etc/tidings", here).replace("/run/secrets/tidings", here)
    }
}

/// Whether `tidings serve` would start with a configuration.
async fn is_accepted(file: Option<&str>, env: &[(String, String)]) {
    let etc = Etc::new();
    let mut command = command(&["check-config"]);
    if let Some(text) = file {
        let path = etc.dir.path().join("tidings.toml");
        std::fs::write(&path, etc.here(text)).unwrap();
        command.arg("--config").arg(path);
    }
    command.envs(env.iter().map(|(name, value)| (name, etc.here(value)))).stdin(Stdio::null());
    let done = output(command).await;
    let stderr = String::from_utf8(done.stderr).unwrap();
    // Parts of a file need not have a way to verify tokens; everything else must be right.
    let whole = done.status.success() || stderr.starts_with("tidings: no way to verify a token");
    assert!(whole, "{file:?} {env:?}: {stderr}");
}

#[tokio::test]
async fn every_configuration_file_of_the_page_is_accepted() {
    let page = include_str!("../docs/deploy.md");
    let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
    assert!(blocks.len() >= 4, "{blocks:?}");
    for block in blocks {
        is_accepted(Some(block), &[]).await;
    }
}

#[tokio::test]
async fn every_variable_of_the_manifest_is_accepted() {
    let manifest = include_str!("../deploy/kubernetes/tidings.yaml");
    let variables = manifest.lines().filter_map(|line| {
        let pair = line.trim().strip_prefix("- { name: TIDINGS_")?.strip_suffix(" }")?;
        let (name, value) = pair.split_once(", value: ").unwrap();
        Some((format!("TIDINGS_{name}"), value.trim_matches('"').to_owned()))
    });
    let variables: Vec<(String, String)> = variables.collect();
    assert!(variables.len() > 5, "{variables:?}");
    is_accepted(None, &variables).await;
}

#[test]
fn every_stop_has_time_for_the_drain() {
    // The default `drain.window`, and the additional time that docs/operations.md requires.
    const LEAST_SECONDS: u32 = 20;
    for (file, before) in [
        (include_str!("../deploy/kubernetes/tidings.yaml"), "terminationGracePeriodSeconds: "),
        (include_str!("../deploy/systemd/tidings.service"), "TimeoutStopSec="),
        (include_str!("../docker-compose.yml"), "stop_grace_period: "),
    ] {
        let (_, after) = file.split_once(before).unwrap();
        let seconds: String = after.chars().take_while(char::is_ascii_digit).collect();
        assert!(seconds.parse::<u32>().unwrap() >= LEAST_SECONDS, "{before}{seconds}");
    }
}
