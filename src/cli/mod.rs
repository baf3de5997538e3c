//! The command line: one file per command.

#![warn(missing_docs)]

mod check_config;
mod load;
mod notify;
mod publish;
mod serve;
mod token;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::StartError;
use crate::backplane::{Backplane, BackplaneError};
use crate::config::{Config, ConfigError, Layers};
use crate::history::HistoryStore;
use crate::protocol::InstanceId;

/// A realtime notification gateway: Redis PUBLISH in, browsers' WebSockets out, exact presence.
#[derive(Debug, Parser)]
#[command(name = "tidings", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run an instance in the foreground
    Serve(serve::Serve),
    /// Print a token for a user, signed with the configured secret
    Token(token::Token),
    /// Publish one notification as a backend does
    Publish(publish::Publish),
    /// Validate the configuration and print it, secrets masked
    CheckConfig(check_config::CheckConfig),
    /// Put a server under load and check every delivery
    Load(load::Load),
}

/// The sources of the configuration, in ascending precedence: the file, `TIDINGS_…` variables, flags.
#[derive(Debug, Args)]
struct ConfigArgs {
    /// A TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where browsers connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Where operators and backends connect [default: 127.0.0.1:9090]
    #[arg(long, value_name = "IP:PORT")]
    admin_listen: Option<String>,
    /// redis://, rediss:// or unix://
    #[arg(long, value_name = "URL")]
    redis_url: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// trace, debug, info, warn or error
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Any other key, such as presence.lease=20s; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn layers(self, dev: bool) -> Result<Layers, ConfigError> {
        let named = [
            ("--listen", "server.listen", self.listen),
            ("--admin-listen", "server.admin_listen", self.admin_listen),
            ("--redis-url", "redis.url", self.redis_url),
            ("--log-format", "log.format", self.log_format),
            ("--log-level", "log.level", self.log_level),
        ];
        let mut flags: Vec<_> = named
            .into_iter()
            .filter_map(|(flag, key, value)| Some((flag.to_owned(), key.to_owned(), value?)))
            .collect();
        for pair in self.set {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(ConfigError::new("--set: expected KEY=VALUE, such as presence.lease=20s"));
            };
            flags.push(("--set".to_owned(), key.to_owned(), value.to_owned()));
        }
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
            .collect();
        Ok(Layers { file: self.config, env, flags, dev })
    }

    fn load(self, dev: bool) -> Result<Config, ConfigError> {
        Config::load(self.layers(dev)?)
    }
}

/// The configured backplane and its history store, for a command that publishes as a backend does.
fn stores(config: &Config) -> Result<(Backplane, Arc<HistoryStore>), BackplaneError> {
    let metrics = Arc::default();
    let backplane = Backplane::new(config, &InstanceId::random(), &metrics)?;
    let history = HistoryStore::new(config, &backplane, &metrics);
    Ok((backplane, history))
}

/// A wrong argument. The exit status is 2, as for a wrong configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// Runs the command line and returns its exit status: 0 on success, 2 for a wrong command line or configuration, else
/// 1.
#[must_use]
pub fn run() -> ExitCode {
    // A wrong command line exits here, with 2.
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(command) => command.run(),
        Command::Token(command) => command.run(),
        Command::Publish(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Load(command) => command.run(),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    print_error(&error);
    if is_wrong_use(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Whether the configuration or the command line is wrong; some values are validated only on use.
fn is_wrong_use(error: &anyhow::Error) -> bool {
    let backplane = match error.downcast_ref::<StartError>() {
        Some(StartError::Config(_) | StartError::Tls(_)) => return true,
        Some(StartError::Backplane(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    error.is::<ConfigError>() || error.is::<Usage>() || matches!(backplane, Some(BackplaneError::Config(_)))
}

#[allow(clippy::print_stderr, reason = "errors of a command belong on standard error")]
fn print_error(error: &anyhow::Error) {
    for line in format!("{error:#}").lines() {
        eprintln!("tidings: {line}");
    }
}

/// Prints a line to standard output; fails rather than panics if it is closed.
fn say(line: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    stdout.flush()
}

/// Runs a command's future. Does not wait for blocking work that it leaves behind, such as a DNS lookup.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(future);
    runtime.shutdown_background();
    done
}
