//! `tidings serve`: runs an instance in the foreground until a signal stops it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use secrecy::SecretString;
use serde_json::json;
use tracing::{info, warn};

use super::notify::{READY, STOPPING, notify};
use super::{ConfigArgs, block_on, say};
use crate::config::{Config, Redis, secret_bytes};
use crate::shutdown::{Signal, Signals};
use crate::{Gateway, log, server};

/// The minimum for HS256 (RFC 7518, section 3.2).
const MIN_SECRET_BYTES: usize = 32;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Development mode, on loopback only: in-memory unless --redis-url is set, random secret, demo page
    #[arg(long)]
    dev: bool,
    /// Write {"public":…,"admin":…,"instance":…,"pid":…} to this file once both listeners accept
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let mut config = self.config.load(self.dev)?;
        log::init(config.log);
        config.require_way_in()?;
        let is_short = |secret: &SecretString| secret_bytes(secret).len() < MIN_SECRET_BYTES;
        let auth = &config.auth;
        let secrets =
            [("auth.hmac_secret", &auth.hmac_secret), ("auth.previous_hmac_secret", &auth.previous_hmac_secret)];
        for (key, secret) in secrets {
            if secret.as_ref().is_some_and(is_short) {
                warn!("{key} is shorter than {MIN_SECRET_BYTES} bytes and may be guessed");
            }
        }
        if config.auth.sessions.as_ref().is_some_and(|sessions| sessions.secrets.iter().any(is_short)) {
            warn!("a secret in auth.session_secret is shorter than {MIN_SECRET_BYTES} bytes and may be guessed");
        }
        if config.auth.jwks_url.is_some() && config.auth.audience.is_none() {
            warn!(
                "auth.jwks_url without auth.audience: tokens that the issuer signed for other audiences are accepted too"
            );
        }
        if !self.dev && config.redis.url.is_none() {
            info!(url = Redis::DEFAULT_URL, "redis.url is not set: using the default");
            config.redis.url = Some(Redis::DEFAULT_URL.to_owned().into());
        }
        if config.server.demo && !self.dev {
            warn!("server.demo is on: any client that reaches this listener may sign in as any user");
        }
        block_on(serve(config, self.ready_file.as_deref()))
    }
}

async fn serve(config: Config, ready_file: Option<&Path>) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("cannot listen for signals")?;
    let in_memory = config.redis.url.is_none();
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let demo = config.server.demo.then_some(scheme);
    server::raise_limit();
    let gateway = Gateway::start(config)?;
    let (public, admin, instance) = (gateway.public(), gateway.admin(), gateway.instance().clone());
    info!(%public, %admin, %instance, "listening");
    if let Some(path) = ready_file {
        let ready = json!({
            "public": public.to_string(),
            "admin": admin.to_string(),
            "instance": instance.as_str(),
            "pid": std::process::id(),
        });
        write_whole(path, &ready.to_string()).with_context(|| format!("--ready-file {}", path.display()))?;
    }
    notify(READY);
    for line in greeting(public, demo, in_memory) {
        // An instance keeps running if its standard output is closed.
        if let Err(error) = say(&line) {
            warn!(%error, "cannot write to standard output");
        }
    }

    while signals.next().await == Signal::Reload {
        gateway.reload();
    }
    notify(STOPPING);
    let second = async { while signals.next().await == Signal::Reload {} };
    tokio::select! {
        () = gateway.stop() => info!("stopped"),
        () = second => anyhow::bail!("second signal: stopped at once"),
    }
    Ok(())
}

fn greeting(public: SocketAddr, demo: Option<&str>, in_memory: bool) -> Vec<String> {
    let page = demo.map(|scheme| format!("tidings: the demo page is at {scheme}://{public}/"));
    let note = "tidings: no Redis URL is set, so all data is in memory and does not survive a restart";
    page.into_iter().chain(in_memory.then(|| note.to_owned())).collect()
}

/// Writes a file atomically.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    std::fs::write(&part, text)?;
    std::fs::rename(&part, path)
}
