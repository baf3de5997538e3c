//! A redis-server for one test.

use std::ffi::OsString;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::Duration;

use futures::StreamExt;
use redis::aio::{MultiplexedConnection, PubSubStream};
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Msg, Pipeline};
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::sleep;

use super::clock::SteppedClock;
use super::{eventually, within};

/// The program that every test starts as Redis: another engine's if `scripts/engines` says so.
static BINARY: LazyLock<OsString> =
    LazyLock::new(|| std::env::var_os("TIDINGS_TEST_REDIS").unwrap_or_else(|| "redis-server".into()));

/// A real redis-server on a free port of loopback; killed when dropped.
pub struct RedisServer {
    port: u16,
    dir: TempDir,
    extra: Vec<String>,
    clock: Option<SteppedClock>,
    /// Its log line that it is ready.
    ready: &'static str,
    frozen: AtomicBool,
    child: Child,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments, such as `["--requirepass", "x"]`.
    pub async fn start_with(extra: &[&str]) -> Self {
        Self::start_in(TempDir::new().unwrap(), free_port(), extra).await
    }

    /// In a folder that may hold files of its own, on a port that others have been told.
    pub(super) async fn start_in(dir: TempDir, port: u16, extra: &[&str]) -> Self {
        Self::launch(dir, port, extra, None).await
    }

    /// As a sentinel, configured by `sentinel.conf` in its folder.
    pub(super) async fn start_sentinel(dir: TempDir, port: u16, extra: &[&str]) -> Self {
        Self::launch_as("+monitor master", dir, port, &[&["--sentinel"], extra].concat(), None).await
    }

    /// With a clock that [`RedisServer::step_clock`] steps.
    pub async fn with_stepped_clock() -> Self {
        let dir = TempDir::new().unwrap();
        let clock = SteppedClock::new(dir.path());
        Self::launch(dir, free_port(), &[], Some(clock)).await
    }

    async fn launch(dir: TempDir, port: u16, extra: &[&str], clock: Option<SteppedClock>) -> Self {
        Self::launch_as("eady to accept connections", dir, port, extra, clock).await
    }

    async fn launch_as(
        ready: &'static str,
        dir: TempDir,
        port: u16,
        extra: &[&str],
        clock: Option<SteppedClock>,
    ) -> Self {
        let extra: Vec<String> = extra.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(port, &dir, &extra, clock.as_ref());
        let mut server = Self { port, dir, extra, clock, ready, frozen: AtomicBool::new(false), child };
        server.answering().await;
        server
    }

    /// Kills it and starts it with other arguments and what it had saved; it may still be loading that.
    pub async fn relaunch_with(&mut self, extra: &[&str]) {
        self.kill().await;
        self.extra = extra.iter().map(|arg| (*arg).to_owned()).collect();
        self.child = spawn(self.port, &self.dir, &self.extra, self.clock.as_ref());
    }

    /// Its own log line that it is ready: another server could answer at the port.
    pub async fn answering(&mut self) {
        let log = self.dir.path().join("redis.log");
        eventually("redis-server answers", async || {
            assert!(self.child.try_wait().unwrap().is_none(), "redis-server ended: {}", read(&log));
            read(&log).contains(self.ready)
        })
        .await;
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://{}127.0.0.1:{}", self.credentials(), self.port)
    }

    /// The port that other servers and instances use: that of TLS, if it has one.
    pub(super) fn known_port(&self) -> u16 {
        self.argument("--tls-port").map_or(self.port, |port| port.parse().unwrap())
    }

    pub(super) fn password(&self) -> Option<&str> {
        self.argument("--requirepass")
    }

    fn argument(&self, name: &str) -> Option<&str> {
        self.extra.iter().skip_while(|word| *word != name).nth(1).map(String::as_str)
    }

    /// As they stand in a URL: with an `@` behind them, or empty.
    pub(super) fn credentials(&self) -> String {
        let encoded = |password: &str| format!(":{}@", password.replace('/', "%2F").replace(' ', "%20"));
        self.password().map(encoded).unwrap_or_default()
    }

    /// Where it saves.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub async fn config_set(&self, key: &str, value: &str) {
        let () = self.command(&["CONFIG", "SET", key, value]).await;
    }

    /// The connections of one instance, as `CLIENT LIST` shows them: by purpose.
    pub async fn links_of(&self, instance: &str, purpose: &str) -> Vec<String> {
        let list: String = self.command(&["CLIENT", "LIST"]).await;
        let name = format!(" name=tidings-{instance}-{purpose} ");
        list.lines().filter(|line| line.contains(&name)).map(str::to_owned).collect()
    }

    /// Kills it. What it held is gone, since it saves nothing.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again on the same port, empty.
    pub async fn restart(&mut self) {
        self.kill().await;
        self.frozen.store(false, Ordering::Relaxed);
        self.child = spawn(self.port, &self.dir, &self.extra, self.clock.as_ref());
        self.answering().await;
    }

    /// Steps its real time by so many milliseconds, as NTP does; a negative number turns it back.
    pub fn step_clock(&self, by_ms: i64) {
        self.clock.as_ref().expect("started with a stepped clock").step_ms(by_ms);
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::Relaxed);
        super::gateway::signal(self.child.id().unwrap(), "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        super::gateway::signal(self.child.id().unwrap(), "CONT");
        self.frozen.store(false, Ordering::Relaxed);
    }

    /// Whether it answers: neither killed nor frozen.
    pub fn is_up(&self) -> bool {
        self.child.id().is_some() && !self.frozen.load(Ordering::Relaxed)
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        // The library's own deadlines are shorter than a busy machine's pauses; `within` has ours.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = async {
            loop {
                match client.get_multiplexed_async_connection_with_config(&config).await {
                    // A sentinel that demotes a server closes its connections.
                    Err(error) if error.is_connection_dropped() => sleep(Duration::from_millis(20)).await,
                    connected => return connected.unwrap(),
                }
            }
        };
        within("a connection to redis", connecting).await
    }

    /// Runs one command, such as `["SMEMBERS", "online_users"]`.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = Cmd::new();
        for word in words {
            command.arg(word);
        }
        let mut connection = self.connection().await;
        within("an answer of redis", command.query_async(&mut connection)).await.unwrap()
    }

    /// All keys and everything in them, one key in a line.
    pub async fn contents(&self) -> String {
        let keys: Vec<String> = self.command(&["KEYS", "*"]).await;
        let mut all = String::new();
        for key in keys {
            let kind: String = self.command(&["TYPE", &key]).await;
            let read: &[&str] = match kind.as_str() {
                "string" => &["GET", &key],
                "hash" => &["HGETALL", &key],
                "zset" => &["ZRANGE", &key, "0", "-1"],
                "set" => &["SMEMBERS", &key],
                "stream" => &["XRANGE", &key, "-", "+"],
                // It has just expired.
                "none" => continue,
                other => panic!("a key of type {other}"),
            };
            let value: redis::Value = self.command(read).await;
            all += &format!("{key} {kind} {value:?}\n");
        }
        all
    }

    /// Publishes for a user; returns how many subscribers received it.
    pub async fn publish(&self, user: &str, payload: &str) -> u64 {
        self.command(&["PUBLISH", &format!("user:{user}"), payload]).await
    }

    /// Publishes any bytes on any channel.
    pub async fn publish_bytes(&self, channel: &[u8], payload: &[u8]) {
        let mut connection = self.connection().await;
        let publish = redis::cmd("PUBLISH").arg(channel).arg(payload).to_owned();
        let _: u64 = within("an answer of redis", publish.query_async(&mut connection)).await.unwrap();
    }

    /// Publishes for a user, all in one pipeline.
    pub async fn publish_all(&self, user: &str, payloads: impl IntoIterator<Item = String>) {
        let mut pipeline = Pipeline::new();
        for payload in payloads {
            pipeline.publish(format!("user:{user}"), payload).ignore();
        }
        let mut connection = self.connection().await;
        let _: () = within("an answer of redis", pipeline.query_async(&mut connection)).await.unwrap();
    }

    /// Subscribes to a channel.
    pub async fn subscribe(&self, channel: &str) -> Subscription {
        let client = redis::Client::open(self.url()).unwrap();
        let mut pubsub = within("a connection to redis", client.get_async_pubsub()).await.unwrap();
        pubsub.subscribe(channel).await.unwrap();
        Subscription(pubsub.into_on_message())
    }

    /// Subscribes to the channels of all users.
    pub async fn subscribe_all(&self) -> Subscription {
        let client = redis::Client::open(self.url()).unwrap();
        let mut pubsub = within("a connection to redis", client.get_async_pubsub()).await.unwrap();
        pubsub.psubscribe("user:*").await.unwrap();
        Subscription(pubsub.into_on_message())
    }

    /// The plain set that backends ask, sorted.
    pub async fn online(&self) -> Vec<String> {
        self.online_in(0).await
    }

    /// As [`RedisServer::online`], in another database.
    pub async fn online_in(&self, database: u8) -> Vec<String> {
        let mut connection = self.connection().await;
        let mut both = Pipeline::new();
        both.cmd("SELECT").arg(database).ignore().cmd("SMEMBERS").arg("online_users");
        let (mut users,): (Vec<String>,) = within("an answer", both.query_async(&mut connection)).await.unwrap();
        users.sort();
        users
    }
}

/// A log; empty if it is missing.
fn read(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

fn spawn(port: u16, dir: &TempDir, extra: &[String], clock: Option<&SteppedClock>) -> Child {
    std::fs::remove_file(dir.path().join("redis.log")).ok();
    let mut command = Command::new(&*BINARY);
    if extra.iter().any(|arg| arg == "--sentinel") {
        command.arg(dir.path().join("sentinel.conf"));
    } else {
        let common = ["--bind", "127.0.0.1", "--save", "", "--logfile", "redis.log", "--dir"];
        command.args(["--port", &port.to_string()]).args(common).arg(dir.path());
    }
    command
        .args(extra)
        .envs(clock.into_iter().flat_map(SteppedClock::env))
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is installed (scripts/setup), or $TIDINGS_TEST_REDIS is one")
}

/// What is published on a channel, from the subscription on.
pub struct Subscription(PubSubStream);

impl Subscription {
    /// The next message, as JSON.
    pub async fn next(&mut self) -> Value {
        serde_json::from_slice(&self.next_bytes().await).unwrap()
    }

    /// The next message, whatever it is.
    pub async fn next_bytes(&mut self) -> Vec<u8> {
        within("a message on the channel", self.next_message()).await.get_payload_bytes().to_vec()
    }

    /// The next message with its channel, whenever it comes.
    pub async fn next_message(&mut self) -> Msg {
        self.0.next().await.expect("subscribed")
    }
}

/// A port that is free, and that nothing else takes meanwhile: below those that the system gives to outgoing
/// connections, each only once, and beginning anywhere, since other suites may be running.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(fastrand::u16(..)));
    loop {
        let port = 10_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
