//! The command line: one file per command.

#![warn(missing_docs)]

mod admin;
mod check_config;
mod checks;
mod disconnect;
mod listen;
mod load;
mod notify;
mod offered;
mod progress;
mod publish;
mod ready_file;
mod serve;
mod shell;
mod token;
mod who;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueHint};

use self::offered::Offered;
use crate::StartError;
use crate::backplane::{Backplane, BackplaneError};
use crate::config::{Config, ConfigError, ENV_PREFIX, FILE_VARIABLE, Layers, Log, MASK, may_have_secret, shown};
use crate::history::HistoryStore;
use crate::protocol::{InstanceId, UserId};

/// The version with the commit, which `--version` prints.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");

/// A realtime notification gateway: Redis PUBLISH in, browsers' WebSockets out, exact presence.
#[derive(Debug, Parser)]
#[command(name = "tidings", version = VERSION, about)]
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
    /// Print a user's events as they arrive, one line of JSON each
    Listen(listen::Listen),
    /// Show who is online, or a user's presence and connections
    Who(who::Who),
    /// Close a user's connections on every instance
    Disconnect(disconnect::Disconnect),
    /// Validate the configuration and print it, secrets masked
    CheckConfig(check_config::CheckConfig),
    /// Put a server under load and check every delivery
    Load(load::Load),
    /// Print the completion script for a shell
    Completions(shell::Completions),
    /// Print the page for `man`
    Man(shell::Man),
}

/// The sources of the configuration, in ascending precedence: the file, `TIDINGS_…` variables, flags.
#[derive(Debug, Clone, Args)]
struct ConfigArgs {
    /// A TOML file [default: the one that TIDINGS_CONFIG names]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where browsers connect [default: 127.0.0.1:8080]
    #[arg(long, value_name = "IP:PORT", value_hint = ValueHint::Other)]
    listen: Option<String>,
    /// Where operators and backends connect [default: 127.0.0.1:9090]
    #[arg(long, value_name = "IP:PORT", value_hint = ValueHint::Other)]
    admin_listen: Option<String>,
    /// redis://, rediss:// or unix://; redis+sentinel://HOST:PORT,…/MASTER; redis+cluster://HOST:PORT,…
    // bash would complete `ValueHint::Url` with file names.
    #[arg(long, value_name = "URL", value_hint = ValueHint::Other)]
    redis_url: Option<String>,
    /// The format of the log
    #[arg(long, value_name = "FORMAT", value_parser = Offered::of(Log::FORMATS))]
    log_format: Option<String>,
    /// The least severe level that is logged
    #[arg(long, value_name = "LEVEL", value_parser = Offered::of(Log::LEVELS))]
    log_level: Option<String>,
    /// Any other key, such as presence.lease=20s; repeatable
    #[arg(long = "set", value_name = "KEY=VALUE", value_hint = ValueHint::Other)]
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
        let mut env = environment()?;
        let named = env.extract_if(.., |(name, _)| name == FILE_VARIABLE).next().map(|(_, path)| path.into());
        Ok(Layers { file: self.config.or(named), env, flags, dev })
    }

    fn load(self, dev: bool) -> Result<Config, ConfigError> {
        Config::load(self.layers(dev)?)
    }
}

/// The variables that are read. One that is not UTF-8 is refused: altered, a secret would verify nothing.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let vars = std::env::vars_os().map(|(name, value)| {
        let is_text = name.to_str().is_some();
        (name.to_string_lossy().into_owned(), value.into_string().ok().filter(|_| is_text))
    });
    let own = vars.filter(|(name, _)| name.starts_with(ENV_PREFIX));
    own.map(|(name, value)| {
        let why = "is not UTF-8: expected a name and a value in UTF-8";
        let value =
            value.ok_or_else(|| ConfigError::new(format!("the environment variable {} {why}", shown(&name))))?;
        Ok((name, value))
    })
    .collect()
}

/// The configured backplane and its history store, for a command that publishes as a backend does.
fn stores(config: &Config) -> Result<(Backplane, Arc<HistoryStore>), BackplaneError> {
    let metrics = Arc::default();
    let backplane = Backplane::new(config, &InstanceId::random(), &metrics)?;
    let history = HistoryStore::new(config, &backplane, &metrics);
    Ok((backplane, history))
}

fn user_id(text: &str) -> Result<UserId, Usage> {
    UserId::new(text).map_err(|error| Usage(format!("USER {text:?}: {error}")))
}

/// The URL of a configured listener, as seen from this machine; `scheme` is the one without TLS.
fn configured_url(config: &Config, scheme: &str, key: &str, address: SocketAddr, flag: &str) -> Result<String, Usage> {
    let address = as_seen_from_here(key, address, &format!("{flag} URL"))?;
    let tls = if config.server.tls.is_some() { "s" } else { "" };
    Ok(format!("{scheme}{tls}://{address}"))
}

/// The address of a configured listener; `otherwise` is the argument that is needed if it has none.
fn as_seen_from_here(key: &str, mut address: SocketAddr, otherwise: &str) -> Result<SocketAddr, Usage> {
    if address.port() == 0 {
        return Err(Usage(format!("{key} = {address} has no fixed port: expected {otherwise}")));
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(address)
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
    let cli = Cli::try_parse().unwrap_or_else(|error| without_secrets(error).exit());
    let done = match cli.command {
        Command::Serve(command) => command.run(),
        Command::Token(command) => command.run(),
        Command::Publish(command) => command.run(),
        Command::Listen(command) => command.run(),
        Command::Who(command) => command.run(),
        Command::Disconnect(command) => command.run(),
        Command::CheckConfig(command) => command.run(),
        Command::Load(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    let Err(error) = done else { return ExitCode::SUCCESS };
    print_error(&error);
    if is_wrong_use(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Masks the arguments that the error quotes, if they may be secrets: whatever follows a `--set KEY` without a `=` may be
/// its value.
fn without_secrets(mut error: clap::Error) -> clap::Error {
    let unknown = error.kind() == ErrorKind::UnknownArgument;
    let sets = std::env::args_os().any(|argument| argument == "--set");
    let quoted = error.context().filter_map(|(kind, value)| match (kind, value) {
        (ContextKind::InvalidArg, _) if !unknown => None,
        (
            ContextKind::InvalidArg | ContextKind::InvalidValue | ContextKind::InvalidSubcommand,
            ContextValue::String(text),
        ) => (may_have_secret(text) || (sets && !text.starts_with('-'))).then_some(kind),
        _ => None,
    });
    let quoted: Vec<ContextKind> = quoted.collect();
    if !quoted.is_empty() {
        // A suggestion quotes it too.
        error.remove(ContextKind::Suggested);
    }
    for kind in quoted {
        error.insert(kind, ContextValue::String(MASK.to_owned()));
    }
    error
}

/// Whether the configuration or the command line is wrong; some values are validated only on use.
fn is_wrong_use(error: &anyhow::Error) -> bool {
    let backplane = match error.downcast_ref::<StartError>() {
        Some(StartError::Config(_) | StartError::Tls(_)) => return true,
        Some(StartError::Backplane(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    let unsuitable = |error: &BackplaneError| matches!(error, BackplaneError::Config(_)) || error.is_unsuitable();
    error.is::<ConfigError>() || error.is::<Usage>() || backplane.is_some_and(unsuitable)
}

fn print_error(error: &anyhow::Error) {
    format!("{error:#}").lines().for_each(note);
}

/// Prints a line to standard error, for a person; a failed write loses only that.
fn note(line: &str) {
    writeln!(std::io::stderr(), "tidings: {line}").ok();
}

/// Prints a line to standard output; fails rather than panics if it is closed.
fn say(line: &str) -> std::io::Result<()> {
    print(format!("{line}\n").as_bytes())
}

/// As [`say`], of whole lines.
fn print(lines: &[u8]) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()
}

/// Runs a command's future. Does not wait for blocking work that it leaves behind, such as a DNS lookup.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(future);
    runtime.shutdown_background();
    done
}
