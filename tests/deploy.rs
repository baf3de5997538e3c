//! The program accepts the configurations in the pages under docs/ and in the files under deploy/.

use std::path::{Path, PathBuf};
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
            ("session", SECRET.to_owned()),
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
        ["/etc/tidings", "/run/secrets/tidings", "/run/secrets"]
            .iter()
            .fold(text.to_owned(), |text, dir| text.replace(dir, here))
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
async fn every_configuration_file_of_the_pages_is_accepted() {
    for (page, least) in [
        (include_str!("../docs/deploy.md"), 4),
        (include_str!("../docs/tokens.md"), 5),
        (include_str!("../docs/sessions.md"), 1),
        (include_str!("../docs/scale.md"), 2),
    ] {
        let blocks: Vec<&str> = page.split("```toml\n").skip(1).map(|rest| rest.split_once("```").unwrap().0).collect();
        assert!(blocks.len() >= least, "{blocks:?}");
        for block in blocks {
            is_accepted(Some(block), &[]).await;
        }
    }
}

#[tokio::test]
async fn every_variable_of_the_manifest_is_accepted() {
    let manifest = include_str!("../deploy/kubernetes/base/deployment.yaml");
    let variables = manifest.lines().filter_map(|line| {
        let pair = line.trim().strip_prefix("- { name: TIDINGS_")?.strip_suffix(" }")?;
        let (name, value) = pair.split_once(", value: ").unwrap();
        Some((format!("TIDINGS_{name}"), value.trim_matches('"').to_owned()))
    });
    let variables: Vec<(String, String)> = variables.collect();
    assert!(variables.len() > 5, "{variables:?}");
    is_accepted(None, &variables).await;
}

/// The default of `drain.window`.
const WINDOW_SECONDS: u32 = 8;

#[tokio::test]
async fn the_window_in_the_comments_is_the_default() {
    let done = output(command(&["check-config", "--set", &format!("auth.hmac_secret={SECRET}")])).await;
    let printed = String::from_utf8(done.stdout).unwrap();
    assert!(printed.contains(&format!("[drain]\nwindow = \"{WINDOW_SECONDS}s\"\n")), "{printed}");
}

#[test]
fn the_image_names_the_signal_that_starts_the_drain() {
    assert!(include_str!("../Dockerfile").lines().any(|line| line == "STOPSIGNAL SIGTERM"));
}

/// Otherwise five failed starts in ten seconds, as with an address that appears late at boot, would be the last.
#[test]
fn a_unit_is_restarted_however_often_its_start_failed() {
    for unit in
        [include_str!("../deploy/systemd/tidings.service"), include_str!("../deploy/systemd/tidings-nginx.service")]
    {
        let (head, _) = unit.split_once("[Service]").unwrap();
        assert!(head.contains("[Unit]") && head.lines().any(|line| line == "StartLimitIntervalSec=0"), "{head}");
    }
}

#[test]
fn every_stop_has_time_for_the_drain() {
    // The default `drain.window`, and the additional time that docs/operations.md requires.
    const LEAST_SECONDS: u32 = WINDOW_SECONDS + 10;
    for (file, before) in [
        (include_str!("../deploy/kubernetes/base/deployment.yaml"), "terminationGracePeriodSeconds: "),
        (include_str!("../deploy/systemd/tidings.service"), "TimeoutStopSec="),
        (include_str!("../docker-compose.yml"), "stop_grace_period: "),
    ] {
        assert!(file.contains(&format!("drain.window ({WINDOW_SECONDS} s) plus 10 s")), "{before}");
        let (_, after) = file.split_once(before).unwrap();
        let seconds: String = after.chars().take_while(char::is_ascii_digit).collect();
        assert!(seconds.parse::<u32>().unwrap() >= LEAST_SECONDS, "{before}{seconds}");
    }
}

/// The sleep of the hook, the drain, and the rest of a stop.
#[test]
fn a_pod_has_time_for_its_hook_and_for_the_drain() {
    let manifest = include_str!("../deploy/kubernetes/base/deployment.yaml");
    let number = |before: &str| {
        let (_, after) = manifest.split_once(before).unwrap();
        after.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().unwrap()
    };
    let hook = number("command: [sleep, \"");
    assert!(manifest.contains(&format!("preStop hook ({hook} s)")));
    assert!(number("terminationGracePeriodSeconds: ") >= hook + WINDOW_SECONDS + 10);
}

#[test]
fn the_base_lists_every_manifest() {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes/base");
    let list = std::fs::read_to_string(base.join("kustomization.yaml")).unwrap();
    for entry in std::fs::read_dir(base).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "kustomization.yaml" || list.contains(&format!("- {name}\n")), "{name}");
    }
}
