//! The load generator: many clients, one publisher, every delivery checked.
//!
//! The publisher keeps to its schedule whatever the server does, and latency is counted from when a message was due:
//! a server that stalls is charged for all that it held up (no coordinated omission).

mod clients;
mod process;
mod publisher;
mod receiver;
mod report;
mod tally;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use process::Usage;
use publisher::{Publisher, Sent};
use receiver::Receiver;
pub use report::Report;
use tally::Tally;

/// Who is published to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Users at random.
    Unicast,
    /// The first user, who has every connection.
    Fanout,
    /// Users who are not connected; now and then one who is, whose delivery tells how far the server is.
    Miss,
}

/// How fast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// This many messages a second, whatever comes back.
    OpenLoop(u32),
    /// As fast as deliveries come back, with at most this many messages outstanding: ones of which not all copies have
    /// come. Every user must have a connection.
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

/// One run: clients that connect, and what is then published to them.
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
    /// What the clients speak.
    pub tongue: Tongue,
    /// How long the connections are left idle before their memory is read.
    pub settle: Duration,
    /// The server's process, if its cost is wanted.
    pub server_pid: Option<u32>,
    /// For the choice of users.
    pub seed: u64,
    /// What is published, one after the other. All of them are [`Mode::Fanout`], or none.
    pub phases: Vec<Phase>,
}

/// Messages of one kind, for a while.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    /// Who is published to.
    pub mode: Mode,
    /// How fast.
    pub pace: Pace,
    /// Messages to one user back to back.
    pub burst: u32,
    /// Bytes of each message.
    pub payload: usize,
    /// Published before anything is counted.
    pub warm_up: Duration,
    /// How long is counted.
    pub duration: Duration,
    /// How long the connections are left idle at the end, before their memory is read once more.
    pub linger: Duration,
}

impl Plan {
    fn is_fanout(&self) -> bool {
        self.phases.iter().any(|phase| phase.mode == Mode::Fanout)
    }

    /// How many connections get each message.
    fn copies(&self) -> u32 {
        if self.is_fanout() { self.connections } else { 1 }
    }

    fn user_of(&self, connection: u32) -> u32 {
        if self.is_fanout() { 0 } else { connection % self.users.max(1) }
    }

    /// How many connections each user has.
    fn connections_of_users(&self) -> impl Iterator<Item = u64> {
        let (connections, users) = (u64::from(self.connections), u64::from(self.users.max(1)));
        let is_fanout = self.is_fanout();
        (0..users).map(move |user| match user {
            0 if is_fanout => connections,
            _ if is_fanout => 0,
            _ => connections / users + u64::from(user < connections % users),
        })
    }

    /// How many deliveries these messages should make.
    fn expected(&self, sent: &Sent) -> u64 {
        self.connections_of_users().zip(sent).map(|(connections, sent)| sent * connections).sum()
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
    /// The receiver's thread.
    #[error("receiving: {0}")]
    Receiver(std::io::Error),
}

/// Tells how far a run is: what is going on, and how much of it is done (0 to 1).
pub type Progress = Arc<dyn Fn(&str, f64) + Send + Sync>;

/// Runs a plan and reports of each phase; `token` makes a user's token.
///
/// # Errors
/// [`LoadError`]: deliveries that are lost, twice or out of order are no error but in the reports.
pub async fn run(
    plan: Plan,
    token: impl Fn(&str) -> String + Send + Sync + 'static,
    progress: Progress,
) -> Result<Vec<Report>, LoadError> {
    let plan = Arc::new(plan);
    let before = usage(&plan)?;
    let tally = Arc::new(Tally::new(plan.copies()));
    let connecting = Instant::now();
    let receiver = Receiver::start(&plan, &tally)?;
    clients::connect(&plan, &receiver, token, &progress).await?;
    let connected_in = connecting.elapsed();
    sleep(plan.settle).await;
    let idle = usage(&plan)?;

    let mut sent: Sent = vec![0; plan.users as usize];
    let mut reports = Vec::new();
    for phase in &plan.phases {
        let publisher = Publisher::start(&plan, *phase, &tally, sent)?;
        sleep(phase.warm_up).await;
        tally.start_counting();
        let (started, first, own) = (Instant::now(), usage(&plan)?, own_cpu());
        let (published_before, delivered_before) = (publisher.published(), tally.delivered());
        while started.elapsed() < phase.duration {
            progress("publishing", started.elapsed().as_secs_f64() / phase.duration.as_secs_f64());
            sleep(Duration::from_millis(100)).await;
            publisher.check()?;
        }
        let (measured, last, spent) = (started.elapsed(), usage(&plan)?, own_cpu().saturating_sub(own));
        let (published, delivered) = (publisher.published() - published_before, tally.delivered() - delivered_before);
        sent = publisher.stop().await?;
        let expected = plan.expected(&sent);
        tally.settled(expected).await;
        let latencies = tally.stop_counting();
        sleep(phase.linger).await;
        reports.push(Report::new(&report::Measured {
            plan: &plan,
            phase,
            connected_in,
            measured,
            published,
            delivered,
            expected,
            usage: report::Readings { before, idle, first, last, end: usage(&plan)? },
            own_cpu: spent,
            latencies: &latencies,
            tally: &tally,
        }));
    }
    Ok(reports)
}

/// What the server has used so far, if that is wanted.
fn usage(plan: &Plan) -> Result<Option<Usage>, LoadError> {
    plan.server_pid.map(|pid| Usage::read(pid).map_err(|error| LoadError::Process(pid, error))).transpose()
}

/// What the load generator itself has used, where the system tells.
fn own_cpu() -> Duration {
    Usage::read(std::process::id()).map_or(Duration::ZERO, |usage| usage.cpu)
}
