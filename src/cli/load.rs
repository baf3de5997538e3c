//! `tidings load`: what a server bears.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser, ValueEnum};
use secrecy::ExposeSecret;

use super::{ConfigArgs, Usage, block_on, say};
use crate::auth::mint;
use crate::config::{Redis, parse_duration};
use crate::load::{self, Admin, Mode, Pace, Phase, Plan, Progress, Tongue, Way};
use crate::protocol::UserId;

/// How long the clients' tokens live: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);

#[derive(Debug, Args)]
pub(super) struct Load {
    /// The server's public listener
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8080")]
    target: SocketAddr,
    /// The path of the handshake
    #[arg(long, default_value = "/ws")]
    path: String,
    /// How many connections
    #[arg(long, default_value_t = 1_000)]
    connections: u32,
    /// Over how many users [default: one each]
    #[arg(long)]
    users: Option<u32>,
    /// Connects a second
    #[arg(long, default_value_t = 2_000)]
    connect_rate: u32,
    /// Loopback source addresses: each has some 28,000 ports
    #[arg(long, default_value_t = 4)]
    sources: u8,
    /// Connections are left idle for this long before their memory is read
    #[arg(long, default_value = "2s", value_parser = duration)]
    settle: Duration,
    #[command(flatten)]
    phase: PhaseArgs,
    /// Publish this next, on the same connections: the flags of a phase, such as "--mode miss --flat-out"
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, value_parser = phase, long_help = THEN)]
    then: Vec<PhaseArgs>,
    /// What the clients speak
    #[arg(long, value_enum, default_value_t = Speaks::Websocket)]
    client: Speaks,
    /// Measure what this process uses
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// For the choice of users
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON line for each phase instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

/// What is done
#[derive(Debug, Clone, Args)]
struct PhaseArgs {
    /// Who is published to, or what the clients recover from
    #[arg(long, value_enum, default_value_t = Whom::Unicast)]
    mode: Whom,
    /// How messages are published; over HTTP, to the admin listener
    #[arg(long, value_enum, default_value_t = By::Pubsub)]
    publish: By,
    /// With --mode resume or refill: notifications that are stored meanwhile, to one user after the other
    #[arg(long, default_value_t = 0)]
    stored: u32,
    /// Messages a second, whatever comes back
    #[arg(long, default_value_t = 1_000, conflicts_with = "flat_out")]
    rate: u32,
    /// Publish as fast as deliveries come back
    #[arg(long)]
    flat_out: bool,
    /// With --flat-out: most messages outstanding, each until its last copy has come
    #[arg(long, default_value_t = 1_000)]
    window: u64,
    /// Messages that go out together: to one user back to back, or with --mode turn to so many
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// How long is measured
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Published before anything is measured
    #[arg(long, default_value = "2s", value_parser = duration)]
    warm_up: Duration,
    /// Connections are left idle for this long at the end, before their memory is read once more
    #[arg(long, default_value = "0s", value_parser = duration)]
    linger: Duration,
    /// Bytes of each message
    #[arg(long, default_value_t = 128)]
    payload: usize,
}

const THEN: &str = "Publish this next, on the same connections; may be repeated. In quotes, the flags of a phase: --mode, \
    --publish, --stored, --rate, --flat-out, --window, --burst, --duration, --warm-up, --payload, --linger; what is left out has its \
    default. Each phase has a report of its own";

/// A phase alone, as `--then` has it.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Then {
    #[command(flatten)]
    phase: PhaseArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whom {
    /// Users at random
    Unicast,
    /// One user after the other
    Turn,
    /// One user, who has every connection
    Fanout,
    /// Users who are not connected
    Miss,
    /// Nobody: everybody is cut, and connects again after --settle, as if new
    Reconnect,
    /// Everybody is cut, and resumes after --settle
    Resume,
    /// Nobody hears what is stored: every subscription is killed
    Refill,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum By {
    /// PUBLISH; not stored
    Pubsub,
    /// XADD to the outbox; stored
    Outbox,
    /// Batches of POST /v1/notifications; stored
    Http,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Speaks {
    /// WebSocket, with a token
    Websocket,
    /// socket.io v4 over WebSocket
    SocketIo,
}

fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "accepted is a duration such as 500ms, 10s or 1m".to_owned())
}

fn phase(flags: &str) -> Result<PhaseArgs, String> {
    let parsed = Then::try_parse_from(flags.split_whitespace()).map_err(|error| error.to_string());
    // What follows is about the usage of a whole command.
    let first = |error: String| error.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    parsed.map(|then| then.phase).map_err(first)
}

impl From<&PhaseArgs> for Phase {
    fn from(args: &PhaseArgs) -> Self {
        Self {
            mode: match args.mode {
                Whom::Unicast => Mode::Unicast,
                Whom::Turn => Mode::Turn,
                Whom::Fanout => Mode::Fanout,
                Whom::Miss => Mode::Miss,
                Whom::Reconnect => Mode::Reconnect,
                Whom::Resume => Mode::Resume,
                Whom::Refill => Mode::Refill,
            },
            way: match args.publish {
                By::Pubsub => Way::Pubsub,
                By::Outbox => Way::Outbox,
                By::Http => Way::Http,
            },
            stored: args.stored,
            pace: if args.flat_out { Pace::FlatOut(args.window) } else { Pace::OpenLoop(args.rate) },
            burst: args.burst,
            payload: args.payload,
            warm_up: args.warm_up,
            duration: args.duration,
            linger: args.linger,
        }
    }
}

impl Load {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let json = self.json;
        let phases: Vec<&PhaseArgs> = std::iter::once(&self.phase).chain(&self.then).collect();
        if phases.iter().any(|phase| (phase.mode == Whom::Fanout) != (self.phase.mode == Whom::Fanout)) {
            return Err(Usage(
                "--then: either every phase is --mode fanout, or none: its one user has every connection".into(),
            )
            .into());
        }
        let stores = |phase: &&PhaseArgs| matches!(phase.mode, Whom::Resume | Whom::Refill);
        if phases.iter().any(|phase| phase.stored > 0 && !stores(phase)) {
            return Err(Usage("--stored: accepted with --mode resume or refill".into()).into());
        }
        let users = self.users.unwrap_or(self.connections).max(1);
        if users > self.connections && phases.iter().any(|phase| phase.flat_out) {
            return Err(Usage(format!(
                "--users {users}: with --flat-out, accepted is at most one for each of --connections {}: what nobody \
                 hears never comes back",
                self.connections
            ))
            .into());
        }
        let config = self.config.load(false)?;
        let secret = config.require_signing_secret()?.clone();
        let redis_url = config.redis.url.as_ref().map_or(Redis::DEFAULT_URL, |url| url.expose_secret()).to_owned();
        let plan = Plan {
            target: self.target,
            path: self.path,
            redis_url,
            redis_prefix: config.redis.prefix.clone(),
            admin: Admin {
                url: format!("http://{}", config.server.admin_listen),
                key: config.admin_keys.first().map(|(_, key)| key.clone()),
            },
            connections: self.connections,
            users,
            connect_rate: self.connect_rate,
            sources: self.sources,
            tongue: match self.client {
                Speaks::Websocket => Tongue::WebSocket,
                Speaks::SocketIo => Tongue::SocketIo,
            },
            settle: self.settle,
            server_pid: self.server_pid,
            seed: self.seed,
            phases: phases.into_iter().map(Phase::from).collect(),
        };
        let auth = config.auth.clone();
        let token = move |user: &str| {
            // A number is always a user id, and the secret, which has been checked, always signs.
            UserId::new(user).ok().and_then(|user| mint(&auth, &secret, &user, TOKEN_TTL).ok()).unwrap_or_default()
        };
        let reports = block_on(async { Ok(load::run(plan, &config, token, progress()).await?) })?;
        clear_bar();
        for report in &reports {
            say(&if json { serde_json::to_string(report)? } else { report.to_string() })?;
        }
        if !reports.iter().all(load::Report::is_faultless) {
            bail!("deliveries were lost, twice or out of order, or connections closed");
        }
        Ok(())
    }
}

/// A bar on a terminal, nothing elsewhere.
fn progress() -> Progress {
    let terminal = std::io::stderr().is_terminal();
    Arc::new(move |what, share| {
        if terminal {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 30")]
            let done = (share.clamp(0.0, 1.0) * 30.0) as usize;
            // A terminal that is gone shows no bar.
            write!(std::io::stderr(), "\r{what:<12} [{:<30}]", "#".repeat(done)).ok();
        }
    })
}

fn clear_bar() {
    if std::io::stderr().is_terminal() {
        write!(std::io::stderr(), "\r{:<46}\r", "").ok();
    }
}
