//! `tidings serve`: runs an instance in the foreground until a signal stops it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::checks::{Finding, Level, of_process, of_redis};
use super::notify::{READY, STOPPING, notify};
use super::ready_file::ReadyFile;
use super::{ConfigArgs, block_on, say, stores};
use crate::backplane::BackplaneError;
use crate::config::{Config, ConfigError, Redis, RedisUrl};
use crate::shutdown::{Signal, Signals};
use crate::{Gateway, log, server};

/// Between two looks at servers that cannot be reached.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// For the first look at Redis, which only a server that accepts and does not answer can use up.
const CHECK_REDIS: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Development mode, on loopback only: in-memory unless --redis-url is set, random secret, demo page
    #[arg(long)]
    dev: bool,
    /// Write {"public":…,"admin":…,"instance":…,"pid":…} to this file once both listeners accept, and remove it at the end
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Serve {
    pub(super) fn run(self) -> anyhow::Result<()> {
        self.ready_file.as_deref().map_or(Ok(()), ReadyFile::clear)?;
        let mut config = self.config.clone().load(self.dev)?;
        log::init(config.log);
        config.require_way_in()?;
        if !self.dev && config.redis.url.is_none() {
            info!(url = Redis::DEFAULT_URL, "redis.url is not set: using the default");
            config.redis.url = Some(RedisUrl::default());
        }
        let load = || self.config.clone().load(self.dev);
        block_on(serve(config, load, self.ready_file.as_deref()))
    }
}

/// `load` reads the configuration again.
async fn serve(
    config: Config,
    load: impl Fn() -> Result<Config, ConfigError>,
    ready_file: Option<&Path>,
) -> anyhow::Result<()> {
    let mut signals = Signals::install().context("cannot listen for signals")?;
    let mut level = config.log.level;
    let in_memory = config.redis.url.is_none();
    let scheme = if config.server.tls.is_some() { "https" } else { "http" };
    let demo = config.server.demo.then_some(scheme);
    server::raise_limit();
    of_process(&config).iter().for_each(warn_of);
    tokio::select! {
        checked = check_redis(&config) => checked?,
        () = signals.stops.next() => {
            info!("stopped before the start");
            return Ok(());
        }
    }
    let gateway = Gateway::start(config.clone())?;
    if let Some(redis) = gateway.redis().cloned() {
        gateway.context().shutdown.spawn_until_stop(async move { warn_of_redis(&redis, &config).await });
    }
    let (public, admin, instance) = (gateway.public(), gateway.admin(), gateway.instance().clone());
    info!(%public, %admin, %instance, "listening");
    let ready_file = ready_file.map(|path| ReadyFile::write(path, &gateway)).transpose()?;
    notify(READY);
    for line in greeting(public, demo, in_memory) {
        // An instance keeps running if its standard output is closed.
        if let Err(error) = say(&line) {
            warn!(%error, "cannot write to standard output");
        }
    }

    while signals.next().await == Signal::Reload {
        reload(&gateway, load(), &mut level);
    }
    notify(STOPPING);
    tokio::select! {
        () = gateway.stop() => info!("stopped"),
        () = signals.stops.next() => anyhow::bail!("second signal: stopped at once"),
    }
    ready_file.map_or(Ok(()), ReadyFile::remove)
}

/// The file, the environment and the flags are the same; the file and those that it names may have changed.
/// `level` is that of the log.
fn reload(gateway: &Gateway, loaded: Result<Config, ConfigError>, level: &mut tracing::Level) {
    let wanted = loaded.as_ref().ok().map(|config| (config.log.level, of_process(config)));
    let next = wanted.as_ref().map_or(*level, |wanted| wanted.0);
    // The report is written if one of the two levels includes it.
    let for_report = next.max(*level);
    // The error is logged.
    if gateway.reload(loaded, || log::set_level(for_report)).is_ok() {
        log::set_level(next);
        *level = next;
        wanted.iter().flat_map(|(_, findings)| findings).for_each(warn_of);
    }
}

/// Fails if the server can never be used. Waits briefly: an instance starts without its Redis, too.
async fn check_redis(config: &Config) -> Result<(), BackplaneError> {
    let (backplane, _) = stores(config)?;
    let Some(redis) = backplane.redis() else { return Ok(()) };
    match timeout(CHECK_REDIS, redis.check()).await {
        Ok(Err(error)) if error.is_unsuitable() => Err(error),
        _ => Ok(()),
    }
}

/// Once those of its servers that this instance uses can be reached.
async fn warn_of_redis(redis: &crate::redis::Redis, config: &Config) {
    loop {
        let findings = of_redis(redis, config, false).await;
        if !findings.iter().any(|finding| finding.is_logged && finding.level == Level::Error) {
            return findings.iter().for_each(warn_of);
        }
        sleep(LOOK_AGAIN).await;
    }
}

fn warn_of(finding: &Finding) {
    if finding.level != Level::Ok && !finding.is_logged {
        warn!("{}", finding.line());
    }
}

fn greeting(public: SocketAddr, demo: Option<&str>, in_memory: bool) -> Vec<String> {
    let page = demo.map(|scheme| format!("tidings: the demo page is at {scheme}://{public}/"));
    let note = "tidings: no Redis URL is set, so all data is in memory and does not survive a restart";
    page.into_iter().chain(in_memory.then(|| note.to_owned())).collect()
}
