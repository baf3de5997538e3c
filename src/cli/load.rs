//! `tidings load`: what a server bears.

use std::io::{IsTerminal, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, ValueEnum};
use secrecy::ExposeSecret;

use super::{ConfigArgs, block_on, say};
use crate::auth::mint;
use crate::config::{Redis, parse_duration};
use crate::load::{self, Mode, Pace, Plan, Progress, Tongue};
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
    /// Who is published to
    #[arg(long, value_enum, default_value_t = Whom::Unicast)]
    mode: Whom,
    /// Messages a second, whatever comes back
    #[arg(long, default_value_t = 1_000, conflicts_with = "flat_out")]
    rate: u32,
    /// Publish as fast as deliveries come back
    #[arg(long)]
    flat_out: bool,
    /// With --flat-out: most messages outstanding
    #[arg(long, default_value_t = 1_000)]
    window: u64,
    /// Messages to one user back to back
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// How long is measured
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Published before anything is measured
    #[arg(long, default_value = "2s", value_parser = duration)]
    warm_up: Duration,
    /// Connections are left idle for this long before their memory is read
    #[arg(long, default_value = "2s", value_parser = duration)]
    settle: Duration,
    /// Connections are left idle for this long at the end, before their memory is read once more
    #[arg(long, default_value = "0s", value_parser = duration)]
    linger: Duration,
    /// Bytes of each message
    #[arg(long, default_value_t = 128)]
    payload: usize,
    /// What the clients speak
    #[arg(long, value_enum, default_value_t = Speaks::Websocket)]
    client: Speaks,
    /// Measure what this process uses
    #[arg(long, value_name = "PID")]
    server_pid: Option<u32>,
    /// For the choice of users
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// One JSON line instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Whom {
    /// Users at random
    Unicast,
    /// One user, who has every connection
    Fanout,
    /// Users who are not connected
    Miss,
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

impl Load {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let json = self.json;
        let config = self.config.load(false)?;
        let secret = config.require_signing_secret()?.clone();
        let redis_url = config.redis.url.as_ref().map_or(Redis::DEFAULT_URL, |url| url.expose_secret()).to_owned();
        let plan = Plan {
            target: self.target,
            path: self.path,
            redis_url,
            connections: self.connections,
            users: self.users.unwrap_or(self.connections).max(1),
            connect_rate: self.connect_rate,
            sources: self.sources,
            mode: match self.mode {
                Whom::Unicast => Mode::Unicast,
                Whom::Fanout => Mode::Fanout,
                Whom::Miss => Mode::Miss,
            },
            pace: if self.flat_out { Pace::FlatOut(self.window) } else { Pace::OpenLoop(self.rate) },
            burst: self.burst,
            tongue: match self.client {
                Speaks::Websocket => Tongue::WebSocket,
                Speaks::SocketIo => Tongue::SocketIo,
            },
            warm_up: self.warm_up,
            duration: self.duration,
            payload: self.payload,
            settle: self.settle,
            linger: self.linger,
            server_pid: self.server_pid,
            seed: self.seed,
        };
        let auth = config.auth.clone();
        let token = move |user: &str| {
            // A number is always a user id, and the secret has been checked.
            UserId::new(user).map(|user| mint(&auth, &secret, &user, TOKEN_TTL)).unwrap_or_default()
        };
        let report = block_on(async { Ok(load::run(plan, token, progress()).await?) })?;
        clear_bar();
        say(&if json { serde_json::to_string(&report)? } else { report.to_string() })?;
        if !report.is_faultless() {
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
