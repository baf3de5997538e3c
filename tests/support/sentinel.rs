//! A master with two replicas, watched by three sentinels.

use std::fmt::Write;

use futures::future::join_all;
use redis::{RedisResult, Value};
use tempfile::TempDir;
use tokio::time::{Duration, timeout};

use super::redis::{RedisServer, free_port};
use super::{Authority, PATIENCE, eventually, eventually_within, within};

/// The master's name at the sentinels.
pub const MASTER: &str = "mymaster";

const SERVERS: usize = 3;
const QUORUM: usize = 2;

/// See the module; servers and sentinels go by their places. All of it is killed when dropped.
pub struct Sentinel {
    servers: Vec<RedisServer>,
    sentinels: Vec<RedisServer>,
}

impl Sentinel {
    /// The first server is the master.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for the servers, such as `["--requirepass", "x", "--masterauth", "x"]`.
    pub async fn start_with(extra: &[&str]) -> Self {
        Self::start_between(extra, &[]).await
    }

    /// With TLS between all of them and to instances, who need a certificate, too.
    pub async fn start_tls(authority: &Authority) -> Self {
        Self::start_between(&[], &authority.redis_args(&["127.0.0.1"], "yes")).await
    }

    async fn start_between(extra: &[&str], tls: &[String]) -> Self {
        let servers = start_servers(extra, tls).await;
        let sentinels = start_sentinels(&servers, tls).await;
        let fleet = Self { servers, sentinels };
        fleet.settled().await;
        fleet
    }

    /// As `redis.url`: every sentinel, then the master's name.
    pub fn url(&self) -> String {
        let addresses: Vec<_> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.known_port())).collect();
        let scheme = if self.servers[0].known_port() == self.servers[0].port() { "redis" } else { "rediss" };
        format!("{scheme}+sentinel://{}{}/{MASTER}", self.servers[0].credentials(), addresses.join(","))
    }

    pub fn servers(&self) -> &[RedisServer] {
        &self.servers
    }

    pub fn sentinels(&self) -> &[RedisServer] {
        &self.sentinels
    }

    /// The server that all sentinels in service name, once they agree.
    pub async fn master(&self) -> usize {
        let mut master = None;
        eventually("the sentinels agree on the master", async || {
            master = self.named().await;
            master.is_some()
        })
        .await;
        master.unwrap()
    }

    /// As [`Sentinel::master`], now; none while they disagree.
    async fn named(&self) -> Option<usize> {
        let mut ports = Vec::new();
        for sentinel in self.sentinels.iter().filter(|sentinel| sentinel.is_up()) {
            let (_, port): (String, u16) = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER]).await;
            ports.push(port);
        }
        let first = *ports.first().expect("a sentinel is in service");
        let agreed = ports.iter().all(|port| *port == first);
        agreed.then(|| self.servers.iter().position(|server| server.known_port() == first).unwrap())
    }

    /// Waits until the sentinels name another master than this one, and it is a master; gives it.
    pub async fn promoted(&self, instead_of: usize) -> usize {
        let mut promoted = instead_of;
        eventually("the sentinels name another master", async || {
            promoted = self.named().await.unwrap_or(instead_of);
            promoted != instead_of && self.servers[promoted].is_up() && role(&self.servers[promoted]).await == "master"
        })
        .await;
        promoted
    }

    /// An orderly failover; gives the new master. The old one remains writable until it is demoted, seconds later.
    pub async fn failover(&self) -> usize {
        let old = self.master().await;
        let sentinel = self.sentinels.iter().find(|sentinel| sentinel.is_up()).expect("a sentinel is in service");
        eventually("a sentinel accepts the failover", async || {
            let mut connection = sentinel.connection().await;
            let order = redis::cmd("SENTINEL").arg("FAILOVER").arg(MASTER).to_owned();
            let accepted: RedisResult<()> = within("an answer", order.query_async(&mut connection)).await;
            accepted.is_ok()
        })
        .await;
        self.promoted(old).await
    }

    /// Waits until every server in service is either the master or a replica linked to it, and the sentinels in service
    /// could replace the master.
    pub async fn settled(&self) {
        // Sentinels ask for roles every 10 s, and correct one only after 8 s. Meanwhile they may replace the master again.
        eventually_within(3 * PATIENCE, "the replicas follow the master", async || {
            let Some(master) = self.named().await else { return false };
            let up: Vec<_> = self.servers.iter().filter(|server| server.is_up()).collect();
            let linked =
                join_all(up.iter().map(async |server| follows(server, self.servers[master].known_port()).await)).await;
            linked.into_iter().filter(|linked| *linked).count() == up.len() - 1
        })
        .await;
        eventually("the sentinels could replace the master", async || {
            join_all(self.sentinels.iter().filter(|sentinel| sentinel.is_up()).map(has_quorum))
                .await
                .into_iter()
                .all(|all| all)
        })
        .await;
    }

    /// SIGKILL of a server; what it held is gone.
    pub async fn kill(&mut self, server: usize) {
        self.servers[server].kill().await;
    }

    /// Starts a killed server again, empty, in the role that it was first started in: the sentinels correct it.
    pub async fn restart(&mut self, server: usize) {
        self.servers[server].restart().await;
    }

    /// SIGSTOP of a server: it keeps its connections and answers nothing.
    pub fn freeze(&self, server: usize) {
        self.servers[server].freeze();
    }

    pub fn thaw(&self, server: usize) {
        self.servers[server].thaw();
    }

    pub async fn kill_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].kill().await;
    }

    pub async fn restart_sentinel(&mut self, sentinel: usize) {
        self.sentinels[sentinel].restart().await;
    }

    pub fn freeze_sentinel(&self, sentinel: usize) {
        self.sentinels[sentinel].freeze();
    }

    pub fn thaw_sentinel(&self, sentinel: usize) {
        self.sentinels[sentinel].thaw();
    }
}

async fn start_servers(extra: &[&str], tls: &[String]) -> Vec<RedisServer> {
    let ports: [u16; SERVERS] = std::array::from_fn(|_| free_port());
    let secured = ports.map(|_| with_port(tls));
    let master = secured[0].get(1).cloned().unwrap_or_else(|| ports[0].to_string());
    let start = async |place: usize| {
        let mut args = vec!["--repl-diskless-sync-delay", "0"];
        args.extend(extra);
        args.extend(secured[place].iter().map(String::as_str));
        if place > 0 {
            args.extend(["--replicaof", "127.0.0.1", &master]);
        }
        RedisServer::start_in(TempDir::new().unwrap(), ports[place], &args).await
    };
    join_all((0..SERVERS).map(start)).await
}

/// Each is told of the replicas and of the other sentinels, which it would otherwise learn within seconds.
async fn start_sentinels(servers: &[RedisServer], tls: &[String]) -> Vec<RedisServer> {
    let ports: [u16; SERVERS] = std::array::from_fn(|_| free_port());
    let secured = ports.map(|_| with_port(tls));
    let known = |place: usize| secured[place].get(1).map_or(ports[place], |port| port.parse().unwrap());
    let others: Vec<_> = (0..SERVERS).map(|place| (known(place), format!("{:040x}", place + 1))).collect();
    let start = async |place: usize| {
        let dir = TempDir::new().unwrap();
        let (port, (known, id)) = (ports[place], &others[place]);
        let mut conf = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nlogfile redis.log\nsentinel myid {id}\n\
             sentinel monitor {MASTER} 127.0.0.1 {} {QUORUM}\nsentinel down-after-milliseconds {MASTER} 1000\n\
             sentinel failover-timeout {MASTER} 3000\nsentinel parallel-syncs {MASTER} 1\n",
            dir.path().display(),
            servers[0].known_port(),
        );
        if let Some(password) = servers[0].password() {
            writeln!(conf, "sentinel auth-pass {MASTER} {password}").unwrap();
        }
        for replica in &servers[1..] {
            writeln!(conf, "sentinel known-replica {MASTER} 127.0.0.1 {}", replica.known_port()).unwrap();
        }
        for (port, id) in others.iter().filter(|(other, _)| other != known) {
            writeln!(conf, "sentinel known-sentinel {MASTER} 127.0.0.1 {port} {id}").unwrap();
        }
        std::fs::write(dir.path().join("sentinel.conf"), conf).unwrap();
        RedisServer::start_sentinel(dir, port, &secured[place].iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    join_all((0..SERVERS).map(start)).await
}

/// One sentinel that watches one server under the name of [`MASTER`].
pub async fn lone_sentinel(watched: &RedisServer) -> RedisServer {
    let (dir, port) = (TempDir::new().unwrap(), free_port());
    let conf = format!(
        "port {port}\nbind 127.0.0.1\ndir {}\nlogfile redis.log\nsentinel monitor {MASTER} 127.0.0.1 {} 1\n",
        dir.path().display(),
        watched.port(),
    );
    std::fs::write(dir.path().join("sentinel.conf"), conf).unwrap();
    RedisServer::start_sentinel(dir, port, &[]).await
}

/// Arguments for TLS with a port of its own, first; none without TLS.
pub(super) fn with_port(tls: &[String]) -> Vec<String> {
    let port = ["--tls-port".into(), free_port().to_string(), "--tls-replication".into(), "yes".into()];
    if tls.is_empty() { Vec::new() } else { [&port, tls].concat() }
}

/// `master` or `slave`; empty if it is loading.
pub(super) async fn role(server: &RedisServer) -> String {
    let mut connection = server.connection().await;
    let asking = redis::cmd("ROLE").to_owned();
    let answer: RedisResult<Vec<Value>> = within("an answer", asking.query_async(&mut connection)).await;
    let role = answer.ok().and_then(|answer| answer.into_iter().next());
    role.and_then(|role| redis::from_redis_value(role).ok()).unwrap_or_default()
}

/// Whether it is a replica, linked to the master at this port.
pub(super) async fn follows(server: &RedisServer, master: u16) -> bool {
    let mut connection = server.connection().await;
    let asking = redis::cmd("ROLE").to_owned();
    let answer: RedisResult<(String, String, u16, String, i64)> =
        timeout(Duration::from_secs(1), asking.query_async(&mut connection)).await.unwrap_or(Ok(Default::default()));
    answer.is_ok_and(|(role, _, port, state, _)| role == "slave" && port == master && state == "connected")
}

/// Whether this sentinel reaches a quorum.
async fn has_quorum(sentinel: &RedisServer) -> bool {
    let mut connection = sentinel.connection().await;
    let quorum = redis::cmd("SENTINEL").arg("CKQUORUM").arg(MASTER).to_owned();
    let quorum: RedisResult<String> = within("an answer", quorum.query_async(&mut connection)).await;
    quorum.is_ok_and(|answer| answer.starts_with("OK"))
}
