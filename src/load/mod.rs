//! The load generator: many clients, one publisher, every delivery checked.
//!
//! The publisher keeps to its schedule whatever the server does, and latency is counted from when a message was due:
//! a server that stalls is charged for all that it held up (no coordinated omission).

mod clients;
mod process;
mod publisher;
mod report;
mod tally;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use clients::Fleet;
use process::Usage;
use publisher::Publisher;
pub use report::Report;
use tally::Tally;

/// Who is published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Users at random.
    Unicast,
    /// The first user, who has every connection.
    Fanout,
    /// Users who are not connected.
    Miss,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// This many messages a second, whatever comes back.
    OpenLoop(u32),
    /// As fast as deliveries come back, with at most this many outstanding.
    FlatOut(u64),
}

/// What the clients speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tongue {
    /// WebSocket with a token in the handshake; answers pings of `tidings.v1` and of WebSocket.
    WebSocket,
    /// socket.io v4 over WebSocket, for comparison.
    SocketIo,
}

/// One run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where to connect.
    pub target: SocketAddr,
    /// The path and query of the handshake.
    pub path: String,
    /// The URL of the Redis that is published to.
    pub redis_url: String,
    /// How many connections.
    pub connections: u32,
    /// Over how many users, one after the other.
    pub users: u32,
    /// Connects a second, at most.
    pub connect_rate: u32,
    /// Over how many loopback source addresses: each has some 28,000 ports.
    pub sources: u8,
    /// Who is published to.
    pub mode: Mode,
    /// How fast.
    pub pace: Pace,
    /// Messages to one user back to back.
    pub burst: u32,
    /// What the clients speak.
    pub tongue: Tongue,
    /// Published before anything is counted.
    pub warm_up: Duration,
    /// How long is counted.
    pub duration: Duration,
    /// Bytes of each message.
    pub payload: usize,
    /// How long the connections are left idle before their memory is read.
    pub settle: Duration,
    /// How long the connections are left idle at the end, before their memory is read once more.
    pub linger: Duration,
    /// The server's process, if its cost is wanted.
    pub server_pid: Option<u32>,
    /// For the choice of users.
    pub seed: u64,
}

impl Plan {
    /// How many connections get each message.
    fn copies(&self) -> u32 {
        if self.mode == Mode::Fanout { self.connections } else { 1 }
    }
}

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A client could not connect.
    #[error("connection {number}: {why}")]
    Connect {
        /// Which one, counted from 0.
        number: u32,
        /// What went wrong.
        why: String,
    },
    /// The publisher's Redis.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// `/proc` of the server.
    #[error("--server-pid {0}: {1}")]
    Process(u32, std::io::Error),
    /// The publisher's thread.
    #[error("the publisher ended early")]
    Publisher,
}

/// Tells how far a run is: what is going on, and how much of it is done (0 to 1).
pub type Progress = Arc<dyn Fn(&str, f64) + Send + Sync>;

/// Runs a plan; `token` makes a user's token.
///
/// # Errors
/// [`LoadError`]: deliveries that are lost, twice or out of order are no error but in the report.
pub async fn run(
    plan: Plan,
    token: impl Fn(&str) -> String + Send + Sync + 'static,
    progress: Progress,
) -> Result<Report, LoadError> {
    let plan = Arc::new(plan);
    let usage = || plan.server_pid.map(|pid| Usage::read(pid).map_err(|error| LoadError::Process(pid, error)));
    let before = usage().transpose()?;
    let tally = Arc::new(Tally::new(plan.copies()));
    let connecting = Instant::now();
    let fleet = Fleet::connect(&plan, &tally, token, &progress).await?;
    let connected_in = connecting.elapsed();
    sleep(plan.settle).await;
    let idle = usage().transpose()?;

    let publisher = Publisher::start(&plan, &tally)?;
    sleep(plan.warm_up).await;
    tally.start_counting();
    let (started, first) = (Instant::now(), usage().transpose()?);
    let (published_before, delivered_before) = (publisher.published(), tally.delivered());
    while started.elapsed() < plan.duration {
        progress("publishing", started.elapsed().as_secs_f64() / plan.duration.as_secs_f64());
        sleep(Duration::from_millis(100)).await;
        publisher.check()?;
    }
    let (measured, last) = (started.elapsed(), usage().transpose()?);
    let (published, delivered) = (publisher.published() - published_before, tally.delivered() - delivered_before);
    let sent = publisher.stop().await?;
    let expected = fleet.expected(&plan, &sent);
    tally.settled(expected).await;
    sleep(plan.linger).await;
    let end = usage().transpose()?;
    Ok(Report::new(&report::Measured {
        plan: &plan,
        connected_in,
        measured,
        published,
        delivered,
        expected,
        usage: report::Phases { before, idle, first, last, end },
        tally: &tally,
    }))
}
