//! The load generator: many clients, one publisher, every delivery checked.
//!
//! The publisher keeps to its schedule whatever the server does, and latency is counted from when a message was due:
//! a server that stalls is charged for all that it held up (no coordinated omission).

mod clients;
mod info;
mod process;
mod publisher;
mod receiver;
mod recovery;
mod report;
mod sender;
mod store;
mod tally;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::config::Config;
use crate::protocol::Cursor;
use info::Info;
use process::Usage;
use publisher::{Publisher, Sent};
use receiver::Receiver;
use report::Measured;
pub use report::Report;
pub use sender::Admin;
use store::Store;
use tally::Tally;

/// For Redis, where it is asked what it has used.
const DEADLINE: Duration = Duration::from_secs(10);

/// What is done: who is published to, or what the clients recover from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Users at random.
    Unicast,
    /// One user after the other.
    Turn,
    /// The first user, who has every connection.
    Fanout,
    /// Users who are not connected; now and then one who is, whose delivery tells how far the server is.
    Miss,
    /// Nothing is published: everybody is cut and connects again, as if new.
    Reconnect,
    /// Everybody is cut, notifications are stored, and all connect again and get them: each resumes from its last one.
    Resume,
    /// Every subscription is killed, and notifications are stored that none could hear; the clients stay connected.
    Refill,
}

/// How messages reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `PUBLISH`, pipelined; nothing is stored.
    Pubsub,
    /// `XADD` to the outbox, pipelined: stored.
    Outbox,
    /// Batches over HTTP, one after the other: stored.
    Http,
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
    /// What the names of keys start with.
    pub redis_prefix: String,
    /// Where is published over HTTP.
    pub admin: Admin,
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
    /// What is done.
    pub mode: Mode,
    /// How messages are published.
    pub way: Way,
    /// Notifications that clients who were away or did not hear have to get, in all.
    pub stored: u32,
    /// How fast.
    pub pace: Pace,
    /// Messages that go out together: to one user, or with [`Mode::Turn`] to so many.
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
    /// Publishing over HTTP.
    #[error("publishing over HTTP: {0}")]
    Http(String),
    /// Storing what clients are to recover.
    #[error("storing: {0}")]
    Store(String),
    /// The publisher's thread.
    #[error("the publisher ended early")]
    Publisher,
    /// The receiver's thread.
    #[error("receiving: {0}")]
    Receiver(std::io::Error),
}

/// Tells how far a run is: what is going on, and how much of it is done (0 to 1).
pub type Progress = Arc<dyn Fn(&str, f64) + Send + Sync>;

/// Makes a user's token.
type Token = Arc<dyn Fn(&str) -> String + Send + Sync>;

/// What server and Redis had used at some time.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    server: Option<Usage>,
    redis: Info,
}

/// A run that is under way.
struct Run {
    plan: Arc<Plan>,
    token: Token,
    progress: Progress,
    tally: Arc<Tally>,
    /// For its `INFO`.
    redis: redis::Connection,
    receiver: Option<Receiver>,
    sent: Sent,
    connected_in: Duration,
    before: Reading,
    idle: Reading,
}

/// Runs a plan and reports of each phase; `token` makes a user's token.
///
/// # Errors
/// [`LoadError`]: deliveries that are lost, twice or out of order are no error but in the reports.
pub async fn run(
    plan: Plan,
    config: &Config,
    token: impl Fn(&str) -> String + Send + Sync + 'static,
    progress: Progress,
) -> Result<Vec<Report>, LoadError> {
    let plan = Arc::new(plan);
    let redis = redis::Client::open(plan.redis_url.as_str())?.get_connection_with_timeout(DEADLINE)?;
    redis.set_read_timeout(Some(DEADLINE))?;
    let mut run = Run {
        token: Arc::new(token),
        progress,
        tally: Arc::new(Tally::new(plan.copies())),
        redis,
        receiver: None,
        sent: vec![0; plan.users as usize],
        connected_in: Duration::ZERO,
        before: Reading::default(),
        idle: Reading::default(),
        plan,
    };
    run.before = run.read()?;
    let nothing = run.sent.clone();
    run.connect(&nothing, &[]).await?;
    sleep(run.plan.settle).await;
    run.idle = run.read()?;

    let store = Store::new(config, &run.plan)?;
    let mut reports = Vec::new();
    for phase in &Arc::clone(&run.plan).phases {
        let measured = match phase.mode {
            Mode::Reconnect | Mode::Resume => run.come_back(phase, &store).await?,
            Mode::Refill => run.refill(phase, &store).await?,
            Mode::Unicast | Mode::Turn | Mode::Fanout | Mode::Miss => run.publish(phase).await?,
        };
        sleep(phase.linger).await;
        let end = run.read()?;
        reports.push(Report::new(&run, phase, &measured, &end));
    }
    Ok(reports)
}

impl Run {
    /// Connects everybody, whose user has received so many messages, and resumes from the user's cursor where there is
    /// one.
    async fn connect(&mut self, received: &Sent, cursors: &[Cursor]) -> Result<(), LoadError> {
        let started = Instant::now();
        let receiver = Receiver::start(&self.plan, &self.tally)?;
        let users = clients::Users { received, cursors, token: &self.token };
        clients::connect(&self.plan, &receiver, &users, &self.progress).await?;
        (self.receiver, self.connected_in) = (Some(receiver), started.elapsed());
        Ok(())
    }

    async fn publish(&mut self, phase: &Phase) -> Result<Measured, LoadError> {
        let publisher = Publisher::start(&self.plan, *phase, &self.tally, self.sent.clone())?;
        sleep(phase.warm_up).await;
        self.tally.start_counting();
        let (started, first, own) = (Instant::now(), self.read()?, own_cpu());
        let (published_before, delivered_before) = (publisher.published(), self.tally.delivered());
        while started.elapsed() < phase.duration && publisher.is_running() {
            (self.progress)("publishing", started.elapsed().as_secs_f64() / phase.duration.as_secs_f64());
            sleep(Duration::from_millis(100)).await;
        }
        let (took, last, own_cpu) = (started.elapsed(), self.read()?, own_cpu().saturating_sub(own));
        let (published, delivered) =
            (publisher.published() - published_before, self.tally.delivered() - delivered_before);
        self.sent = publisher.stop().await?;
        self.settled().await;
        let latencies = self.tally.stop_counting();
        Ok(Measured { took, published, delivered, first, last, own_cpu, latencies })
    }

    /// Waits until everybody has everything, or nothing more comes.
    async fn settled(&self) {
        self.tally.settled(self.plan.expected(&self.sent)).await;
    }

    fn read(&mut self) -> Result<Reading, LoadError> {
        Ok(Reading { server: self.read_server()?, redis: Info::read(&mut self.redis)? })
    }

    /// What the server has used so far, if that is wanted.
    fn read_server(&self) -> Result<Option<Usage>, LoadError> {
        let read = |pid| Usage::read(pid).map_err(|error| LoadError::Process(pid, error));
        self.plan.server_pid.map(read).transpose()
    }
}

/// What the load generator itself has used, where the system tells.
fn own_cpu() -> Duration {
    Usage::read(std::process::id()).map_or(Duration::ZERO, |usage| usage.cpu)
}
