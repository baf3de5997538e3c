//! A cluster of three masters with a replica each, which nodes leave and join and in which slots move.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures::future::join_all;
use redis::{FromRedisValue, RedisResult};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::follower::Follower;
use super::redis::{RedisServer, Subscription, free_port};
use super::sentinel::{follows, with_port};
use super::{Authority, PATIENCE, eventually, within};

const MASTERS: usize = 3;
const SLOTS: u16 = 16_384;

/// See the module. Nodes go by their places: 0 to 2 begin as masters, 3 to 5 as their replicas, and later ones are added.
/// All of it is killed when dropped.
pub struct Cluster {
    nodes: Vec<Node>,
    extra: Vec<String>,
    /// Arguments for TLS; empty without it.
    tls: Vec<String>,
    follower: Follower,
}

struct Node {
    id: String,
    server: RedisServer,
    /// Removed from the cluster; its place remains.
    removed: bool,
}

/// A slot on its way from one node to another.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    pub slot: u16,
    pub from: usize,
    pub to: usize,
}

/// One line of `CLUSTER NODES`.
#[derive(PartialEq)]
struct Seen {
    id: String,
    is_master: bool,
    /// Of a replica.
    master: String,
    slots: Vec<RangeInclusive<u16>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments for the nodes, such as `["--requirepass", "x", "--masterauth", "x"]`.
    pub async fn start_with(extra: &[&str]) -> Self {
        Self::start_between(extra, &[]).await
    }

    /// With TLS between the nodes and to instances, who need a certificate, too.
    pub async fn start_tls(authority: &Authority) -> Self {
        Self::start_between(&[], &authority.redis_args(&["127.0.0.1"], "yes")).await
    }

    async fn start_between(extra: &[&str], tls: &[String]) -> Self {
        let ports: Vec<[u16; 2]> = (0..2 * MASTERS).map(|_| [free_port(), free_port()]).collect();
        let secured: Vec<_> = ports.iter().map(|_| with_port(tls)).collect();
        let known = |place: usize| secured[place].get(1).map_or(ports[place][0], |port| port.parse().unwrap());
        let known: Vec<_> = (0..ports.len()).map(|place| [known(place), ports[place][1]]).collect();
        let servers = join_all((0..ports.len()).map(async |place| {
            let dir = TempDir::new().unwrap();
            std::fs::write(dir.path().join("nodes.conf"), written_down(&known, place)).unwrap();
            let mut extra = extra.to_vec();
            extra.extend(secured[place].iter().map(String::as_str));
            if !tls.is_empty() {
                extra.extend(["--tls-cluster", "yes"]);
            }
            start_node(dir, ports[place], &extra).await
        }));
        let servers = servers.await.into_iter().enumerate();
        let nodes: Vec<_> = servers.map(|(place, server)| Node { id: id(place), server, removed: false }).collect();
        let follower = Follower::new(nodes.iter().map(|node| node.server.url()).collect());
        let extra = extra.iter().map(|arg| (*arg).to_owned()).collect();
        let cluster = Self { nodes, extra, tls: tls.to_vec(), follower };
        cluster.settled().await;
        cluster
    }

    /// As `redis.url`: the first three nodes.
    pub fn url(&self) -> String {
        let seeds: Vec<_> =
            self.nodes.iter().take(MASTERS).map(|node| format!("127.0.0.1:{}", node.server.known_port())).collect();
        let scheme = if self.tls.is_empty() { "redis" } else { "rediss" };
        format!("{scheme}+cluster://{}{}", self.nodes[0].server.credentials(), seeds.join(","))
    }

    pub fn node(&self, node: usize) -> &RedisServer {
        &self.nodes[node].server
    }

    /// A client for tasks that run while nodes are killed: it follows redirections.
    pub fn client(&self) -> Follower {
        self.follower.clone()
    }

    /// One command at the owner of its key, tried again until it succeeds.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        self.follower.command(words).await
    }

    /// The plain set that backends ask, sorted.
    pub async fn online(&self) -> Vec<String> {
        let mut users: Vec<String> = self.command(&["SMEMBERS", "online_users"]).await;
        users.sort();
        users
    }

    /// Publishes for a user at this node; returns how many subscribers of the same node received it.
    pub async fn publish_at(&self, node: usize, user: &str, payload: &str) -> u64 {
        self.node(node).publish(user, payload).await
    }

    /// Subscribes to a channel at any node.
    pub async fn subscribe(&self, channel: &str) -> Subscription {
        self.node(self.up()[0]).subscribe(channel).await
    }

    /// The master that owns a key, once all nodes in service agree.
    pub async fn owner_of(&self, key: &str) -> usize {
        self.owner_of_slot(key_slot(key)).await
    }

    pub async fn owner_of_slot(&self, slot: u16) -> usize {
        let mut owner = None;
        eventually("the nodes agree on the owner of a slot", async || {
            let owners: BTreeSet<_> = self.views().await.iter().map(|view| self.owner_in(view, slot)).collect();
            owner = owners.first().copied().flatten().filter(|_| owners.len() == 1);
            owner.is_some()
        })
        .await;
        owner.unwrap()
    }

    fn owner_in(&self, view: &[Seen], slot: u16) -> Option<usize> {
        let owner = view.iter().find(|seen| seen.slots.iter().any(|range| range.contains(&slot)))?;
        self.place(&owner.id)
    }

    /// The slots that a node owns, as it says itself.
    pub async fn slots_of(&self, node: usize) -> Vec<u16> {
        let view = self.view(node).await;
        let own = view.into_iter().filter(|seen| seen.id == self.nodes[node].id);
        own.flat_map(|seen| seen.slots).flatten().collect()
    }

    /// The replica of a master.
    pub async fn replica_of(&self, master: usize) -> usize {
        let id = &self.nodes[master].id;
        let view = self.view(self.up()[0]).await;
        let replica = view.iter().find(|seen| !seen.is_master && seen.master == *id).expect("the master has a replica");
        self.place(&replica.id).unwrap()
    }

    /// Waits until all nodes in service say that this one is a master with slots, and the cluster works.
    pub async fn promoted(&self, node: usize) {
        eventually("the replica is promoted", async || {
            let is_master = |seen: &Seen| seen.id == self.nodes[node].id && seen.is_master && !seen.slots.is_empty();
            self.views().await.iter().all(|view| view.iter().any(is_master)) && self.works().await
        })
        .await;
    }

    /// An orderly failover of a master to its replica, which it gives.
    pub async fn failover(&self, master: usize) -> usize {
        let heir = self.replica_of(master).await;
        let deadline = Instant::now() + PATIENCE;
        // An order may come to nothing after 5 s without a word.
        while !self.is_promoted_by_order(heir).await {
            assert!(Instant::now() < deadline, "the failover of node {master}: not within {PATIENCE:?}");
        }
        self.promoted(heir).await;
        self.settled().await;
        heir
    }

    async fn is_promoted_by_order(&self, heir: usize) -> bool {
        let ordered = self.ask::<()>(heir, &["CLUSTER", "FAILOVER"]).await;
        for _ in 0..60 {
            if !self.slots_of(heir).await.is_empty() {
                return true;
            }
            sleep(Duration::from_millis(if ordered.is_ok() { 100 } else { 5 })).await;
        }
        false
    }

    /// SIGKILL. What it held is gone, unless a replica has it.
    pub async fn kill(&mut self, node: usize) {
        self.nodes[node].server.kill().await;
    }

    /// Starts a killed node again: empty, but it remembers the cluster.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node].server.restart().await;
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self, node: usize) {
        self.nodes[node].server.freeze();
    }

    pub fn thaw(&self, node: usize) {
        self.nodes[node].server.thaw();
    }

    /// Moves a slot with its keys to another master.
    pub async fn migrate_slot(&self, slot: u16, to: usize) {
        if self.owner_of_slot(slot).await == to {
            return;
        }
        let migration = self.begin_migration(slot, to).await;
        self.move_keys(migration).await;
        self.end_migration(migration).await;
    }

    /// From here on new keys of the slot are created at the target (ASK).
    pub async fn begin_migration(&self, slot: u16, to: usize) -> Migration {
        let (from, number) = (self.owner_of_slot(slot).await, slot.to_string());
        self.order(to, &["CLUSTER", "SETSLOT", &number, "IMPORTING", &self.nodes[from].id]).await;
        self.order(from, &["CLUSTER", "SETSLOT", &number, "MIGRATING", &self.nodes[to].id]).await;
        Migration { slot, from, to }
    }

    /// Moves the keys that the source still has.
    pub async fn move_keys(&self, migration: Migration) {
        loop {
            let slot = migration.slot.to_string();
            let keys: Vec<String> =
                self.node(migration.from).command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
            if keys.is_empty() {
                return;
            }
            for key in &keys {
                self.move_key(migration, key).await;
            }
        }
    }

    /// Moves one key.
    pub async fn move_key(&self, Migration { from, to, .. }: Migration, key: &str) {
        let (port, target) = (self.node(to).port().to_string(), self.node(to));
        let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "10000"];
        if let Some(password) = target.password() {
            words.extend(["AUTH", password]);
        }
        words.extend(["KEYS", key]);
        let _: String = self.node(from).command(&words).await;
    }

    /// Hands the slot over, the target first; returns when all nodes know.
    pub async fn end_migration(&self, Migration { slot, from, to }: Migration) {
        let (slot_text, id) = (slot.to_string(), &self.nodes[to].id);
        for node in [to, from] {
            self.order(node, &["CLUSTER", "SETSLOT", &slot_text, "NODE", id]).await;
        }
        eventually("all nodes know the slot's new owner", async || {
            self.views().await.iter().all(|view| self.owner_in(view, slot) == Some(to))
        })
        .await;
    }

    /// Adds a master without slots; gives its place.
    pub async fn add_node(&mut self) -> usize {
        let extra: Vec<&str> = self.extra.iter().map(String::as_str).collect();
        let server = start_node(TempDir::new().unwrap(), [free_port(), free_port()], &extra).await;
        let id: String = server.command(&["CLUSTER", "MYID"]).await;
        let known = self.up()[0];
        let bus = self.bus_port(known).await;
        let () = server.command(&["CLUSTER", "MEET", "127.0.0.1", &self.node(known).port().to_string(), &bus]).await;
        self.follower.add(server.url());
        self.nodes.push(Node { id, server, removed: false });
        self.settled().await;
        self.nodes.len() - 1
    }

    /// The bus port of a node, as it says itself.
    async fn bus_port(&self, node: usize) -> String {
        let text: String = self.node(node).command(&["CLUSTER", "NODES"]).await;
        let own = text.lines().find(|line| line.contains("myself")).unwrap();
        own.split(['@', ' ', ',']).nth(2).unwrap().to_owned()
    }

    /// Takes a node without slots out of the cluster, and kills it.
    pub async fn remove_node(&mut self, node: usize) {
        assert!(self.slots_of(node).await.is_empty(), "node {node} still owns slots");
        self.nodes[node].removed = true;
        let id = self.nodes[node].id.clone();
        for other in self.up() {
            self.order(other, &["CLUSTER", "FORGET", &id]).await;
        }
        self.nodes[node].server.kill().await;
        self.settled().await;
    }

    /// Waits until every node in service sees the same members and owners and says that the cluster works, and every replica is linked.
    pub async fn settled(&self) {
        let members = self.nodes.iter().filter(|node| !node.removed).count();
        eventually("the cluster works at every node", async || {
            let views = self.views().await;
            let agree = views.iter().all(|view| view.len() == members && *view == views[0]);
            agree && self.works().await && self.replicas_are_linked(&views[0]).await
        })
        .await;
    }

    async fn replicas_are_linked(&self, view: &[Seen]) -> bool {
        let replicas = view
            .iter()
            .filter(|seen| !seen.is_master)
            .filter_map(|seen| Some((self.place(&seen.id)?, self.place(&seen.master)?)));
        let linked = replicas.filter(|(replica, _)| self.node(*replica).is_up());
        let linked =
            linked.map(async |(replica, master)| follows(self.node(replica), self.node(master).known_port()).await);
        join_all(linked).await.into_iter().all(|linked| linked)
    }

    /// Whether every node in service says that the cluster works.
    async fn works(&self) -> bool {
        let infos = self.up().into_iter().map(async |node| self.ask::<String>(node, &["CLUSTER", "INFO"]).await);
        join_all(infos).await.into_iter().all(|info| info.is_ok_and(|info| info.contains("cluster_state:ok")))
    }

    /// The members in service.
    fn up(&self) -> Vec<usize> {
        let up = |node: &usize| !self.nodes[*node].removed && self.node(*node).is_up();
        (0..self.nodes.len()).filter(up).collect()
    }

    fn place(&self, id: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == id)
    }

    async fn views(&self) -> Vec<Vec<Seen>> {
        join_all(self.up().into_iter().map(|node| self.view(node))).await
    }

    /// The cluster as one node sees it.
    async fn view(&self, node: usize) -> Vec<Seen> {
        let text: String = self.node(node).command(&["CLUSTER", "NODES"]).await;
        let mut view: Vec<_> = text.lines().map(seen).collect();
        view.sort_by(|a, b| a.id.cmp(&b.id));
        view
    }

    async fn order(&self, node: usize, words: &[&str]) {
        let _: String = self.node(node).command(words).await;
    }

    /// A command that may be refused.
    async fn ask<T: FromRedisValue>(&self, node: usize, words: &[&str]) -> RedisResult<T> {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        let mut connection = self.node(node).connection().await;
        within("an answer", command.query_async(&mut connection)).await
    }
}

/// A node that knows no other and has no slots.
pub async fn lone_node() -> RedisServer {
    start_node(TempDir::new().unwrap(), [free_port(), free_port()], &[]).await
}

async fn start_node(dir: TempDir, [port, bus]: [u16; 2], extra: &[&str]) -> RedisServer {
    let bus = bus.to_string();
    // By default, the bus has a port that may be taken: 10,000 above.
    let mut args = vec!["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", "1500"];
    // Otherwise a master that gives its last slot away becomes a replica.
    args.extend(["--cluster-allow-replica-migration", "no", "--repl-diskless-sync-delay", "0"]);
    args.extend(extra);
    RedisServer::start_in(dir, port, &args).await
}

fn id(place: usize) -> String {
    format!("{:040x}", place + 1)
}

/// The cluster as each node would have saved it: they need not meet, which takes seconds.
fn written_down(ports: &[[u16; 2]], myself: usize) -> String {
    let mut text = String::new();
    for (place, [port, bus]) in ports.iter().enumerate() {
        let flags = if place == myself { "myself," } else { "" };
        write!(text, "{} 127.0.0.1:{port}@{bus} {flags}", id(place)).unwrap();
        if place < MASTERS {
            let (part, place) = (SLOTS / 3, u16::try_from(place).unwrap());
            let last = if place == 2 { SLOTS - 1 } else { (place + 1) * part - 1 };
            writeln!(text, "master - 0 0 {} connected {}-{last}", place + 1, place * part).unwrap();
        } else {
            let master = place - MASTERS;
            writeln!(text, "slave {} 0 0 {} connected", id(master), master + 1).unwrap();
        }
    }
    text + "vars currentEpoch 3 lastVoteEpoch 0\n"
}

fn seen(line: &str) -> Seen {
    let fields: Vec<&str> = line.split(' ').collect();
    // A slot on its way is listed in brackets besides.
    let slots = fields[8..].iter().filter(|range| !range.starts_with('[')).map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse().unwrap()
    });
    Seen {
        id: fields[0].to_owned(),
        is_master: fields[2].split(',').any(|flag| flag == "master"),
        master: fields[3].to_owned(),
        slots: slots.collect(),
    }
}

/// The slot of a key: of what stands between its first `{` and the next `}`, if that is anything.
pub fn key_slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let tag = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = tag.bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    });
    crc % SLOTS
}
