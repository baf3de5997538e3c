//! Thousands of connections on three instances and one Redis, all of which fail in every known way. Afterwards, within
//! the delays of the contract, presence contains exactly the connected users.
//!
//! The same holds where a Cluster has the presence, whose node is replaced by its replica.
//!
//! `CHAOS_SEED` repeats a run (as far as a real network allows), `CHAOS_SECONDS` sets its length.
//!
//! The subscriber to `presence` in this test does what docs/presence.md requires: it applies every event. After it lost
//! its own subscription, it subscribes again, waits the 5 s within which the set becomes exact again, reads SMEMBERS, and
//! applies all events since the new subscription. Instances add their users back without events, so a set that is read
//! earlier may lack some.
//!
//! The test avoids what no instance can know: if Redis loses all data within `presence.lease` + 2 s of an instance's death
//! or pause, the events of that instance's users are lost with it; likewise if an instance dies in the 5 s after, before it
//! has added its users back. In those 5 s, an online event may be published twice.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::{Cluster, Gateway, Light, Options, RedisServer, eventually, eventually_within};

const SLOTS: usize = 3;
const USERS: usize = 2_000;
const CONNECTIONS: usize = 2_600;
const MOST_CONNECTIONS: usize = 3_300;

const LEASE: Duration = Duration::from_secs(2);
const OFFLINE_DELAY: Duration = Duration::from_millis(300);

/// Until the users of a dead instance are offline.
const REAPED: Duration = Duration::from_secs(4);

/// Until the set is exact after Redis lost its data.
const RETURNED: Duration = Duration::from_secs(5);

/// How long after such a loss an online event may be published twice: as long, and a second to notice.
const REPEATS_FOR_MS: u64 = 6_000;

/// Everybody who plays.
#[derive(Default)]
struct World {
    /// Where the instances listen, while they can be hoped to answer.
    instances: Mutex<[Option<SocketAddr>; SLOTS]>,
    /// The truth: the user of each open connection, as its client knows it.
    open: Mutex<HashMap<usize, String>>,
    connecting: AtomicUsize,
    fold: Mutex<Fold>,
    /// When Redis lost everything, in milliseconds since 1970.
    losses: Mutex<Vec<u64>>,
    over: AtomicBool,
}

/// What a subscriber knows.
#[derive(Default)]
struct Fold {
    /// The set to begin from; none while it is waited for.
    base: Option<BTreeSet<String>>,
    /// The last event of each user since the subscription.
    last: HashMap<String, bool>,
    events: usize,
    /// Told twice, for no reason.
    repeated: Vec<Value>,
    /// Told twice after Redis lost everything.
    repeated_in_return: usize,
}

impl Fold {
    fn online(&self) -> Option<BTreeSet<String>> {
        let mut online = self.base.clone()?;
        for (user, is_online) in &self.last {
            if *is_online {
                online.insert(user.clone())
            } else {
                online.remove(user)
            };
        }
        Some(online)
    }

    fn begin_again(&mut self, base: Option<BTreeSet<String>>) {
        self.base = base;
        self.last.clear();
    }

    fn hear(&mut self, event: &Value, repeats_allowed: bool) {
        let user = event["user"].as_str().unwrap();
        let online = event["status"] == "online";
        assert!(online || event["status"] == "offline", "{event}");
        let before = self.last.insert(user.to_owned(), online);
        let before = before.or_else(|| Some(self.base.as_ref()?.contains(user)));
        self.events += 1;
        match before == Some(online) {
            true if repeats_allowed => self.repeated_in_return += 1,
            true => self.repeated.push(event.clone()),
            false => {}
        }
    }
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

fn up_to(rng: &mut Rng, millis: u64) -> Duration {
    Duration::from_millis(rng.u64(0..=millis))
}

/// One tab of a browser: connects, somewhere else again where the connection ends, until it leaves.
async fn tab(world: Arc<World>, id: usize, user: String, leave: CancellationToken, mut rng: Rng) {
    while !leave.is_cancelled() {
        world.connecting.fetch_add(1, Ordering::SeqCst);
        let connected = leave.run_until_cancelled(connect(&world, &user, &mut rng)).await;
        if connected.is_some() {
            world.open.lock().insert(id, user.clone());
        }
        world.connecting.fetch_sub(1, Ordering::SeqCst);
        let Some(mut light) = connected else { break };
        let lost = leave.run_until_cancelled(light.live()).await.is_some();
        world.open.lock().remove(&id);
        if !lost {
            match rng.bool() {
                true => light.close().await,
                false => light.vanish(),
            }
            break;
        }
        if rng.u8(0..4) == 0 {
            break;
        }
        sleep(up_to(&mut rng, 500)).await;
    }
    leave.cancel();
}

async fn connect(world: &World, user: &str, rng: &mut Rng) -> Light {
    loop {
        let address = world.instances.lock()[rng.usize(0..SLOTS)];
        if let Some(address) = address {
            let connecting = async {
                // Clients of each dialect.
                match rng.u8(0..4) {
                    0 => Light::socketio(address, user).await,
                    1 => Light::connect_stream(address, user).await,
                    _ => Light::connect(address, user).await,
                }
            };
            // One that is stopped takes connections, but does not answer.
            if let Ok(Ok(light)) = timeout(Duration::from_secs(3), connecting).await {
                return light;
            }
        }
        sleep(Duration::from_millis(20) + up_to(rng, 100)).await;
    }
}

/// Users connect, move and leave at random.
struct Crowd {
    world: Arc<World>,
    rng: Rng,
    tabs: Vec<(String, CancellationToken)>,
    tasks: JoinSet<()>,
    opened: usize,
}

impl Crowd {
    fn open(&mut self, user: String) {
        let leave = CancellationToken::new();
        let rng = self.rng.fork();
        self.tasks.spawn(tab(Arc::clone(&self.world), self.opened, user.clone(), leave.clone(), rng));
        self.tabs.push((user, leave));
        self.opened += 1;
    }

    fn any_user(&mut self) -> String {
        format!("u{}", self.rng.usize(0..USERS))
    }

    async fn live(&mut self) {
        while !self.world.over.load(Ordering::SeqCst) {
            self.tabs.retain(|(_, leave)| !leave.is_cancelled());
            for _ in 0..self.rng.usize(1..8) {
                let user = self.any_user();
                let many = self.tabs.len();
                if many < MOST_CONNECTIONS && self.rng.usize(0..2 * CONNECTIONS) > many {
                    self.open(user);
                } else if many > 0 {
                    let (user, leave) = self.tabs.swap_remove(self.rng.usize(0..many));
                    leave.cancel();
                    if self.rng.u8(0..3) == 0 {
                        self.open(user);
                    }
                }
            }
            while self.tasks.try_join_next().is_some() {}
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Receives every event, and subscribes again whenever its subscription is lost.
async fn subscriber(world: Arc<World>, redis_url: String, members: impl AsyncFn() -> Option<BTreeSet<String>>) {
    let client = redis::Client::open(redis_url).unwrap();
    let mut first = true;
    loop {
        let Ok(mut subscription) = client.get_async_pubsub().await else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        if subscription.subscribe("presence").await.is_err() {
            continue;
        }
        // At the beginning no user is online.
        let base = std::mem::take(&mut first).then(BTreeSet::new);
        world.fold.lock().begin_again(base);
        let exact_at = Instant::now() + RETURNED;
        let mut messages = subscription.into_on_message();
        loop {
            let unsure = world.fold.lock().base.is_none();
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { break };
                    let event: Value = serde_json::from_slice(message.get_payload_bytes()).unwrap();
                    let at = event["at"].as_u64().unwrap();
                    let after = |loss: &u64| (*loss..loss + REPEATS_FOR_MS).contains(&at);
                    let repeats_allowed = world.losses.lock().iter().any(after);
                    world.fold.lock().hear(&event, repeats_allowed);
                }
                () = sleep_until(exact_at), if unsure => {
                    let Some(members) = members().await else { break };
                    world.fold.lock().base = Some(members);
                }
            }
        }
    }
}

/// What has the presence.
enum Servers {
    One(Box<RedisServer>),
    Cluster {
        cluster: Cluster,
        /// The master that has it.
        owner: usize,
    },
}

impl Servers {
    async fn cluster() -> Self {
        let cluster = Cluster::start().await;
        let owner = cluster.owner_of("online_users").await;
        Self::Cluster { cluster, owner }
    }

    fn url(&self) -> String {
        match self {
            Self::One(redis) => redis.url(),
            Self::Cluster { cluster, .. } => cluster.url(),
        }
    }

    /// The server that has the presence now.
    fn node(&self) -> &RedisServer {
        match self {
            Self::One(redis) => redis,
            Self::Cluster { cluster, owner } => cluster.node(*owner),
        }
    }

    /// Where all events are received: in a cluster, at a node that is never killed.
    async fn heard_at(&self) -> String {
        match self {
            Self::One(redis) => redis.url(),
            Self::Cluster { cluster, owner } => cluster.node(cluster.replica_of((owner + 1) % 3).await).url(),
        }
    }

    /// Killed, and back after a while: with nothing, or in a cluster as a replica of the one that has taken over.
    async fn restart(&mut self, pause: Duration) {
        match self {
            Self::One(redis) => {
                redis.kill().await;
                sleep(pause).await;
                redis.restart().await;
            }
            Self::Cluster { cluster, owner } => {
                let heir = cluster.replica_of(*owner).await;
                cluster.kill(*owner).await;
                cluster.promoted(heir).await;
                sleep(pause).await;
                cluster.restart(*owner).await;
                cluster.settled().await;
                *owner = heir;
            }
        }
    }
}

/// What breaks things.
struct Chaos {
    world: Arc<World>,
    rng: Rng,
    redis: Servers,
    instances: Vec<Gateway>,
    done: BTreeMap<&'static str, usize>,
}

impl Chaos {
    async fn start(world: Arc<World>, redis: Servers, rng: Rng) -> Self {
        let mut chaos = Self { world, rng, redis, instances: Vec::new(), done: BTreeMap::new() };
        for slot in 0..SLOTS {
            let gateway = chaos.another().await;
            chaos.world.instances.lock()[slot] = Some(gateway.public);
            chaos.instances.push(gateway);
        }
        chaos
    }

    async fn another(&self) -> Gateway {
        let options =
            Options::redis_at(&self.redis.url()).set("presence.lease", "2s").set("presence.offline_delay", "300ms");
        options.set("server.heartbeat", "4s").start().await
    }

    fn did(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    async fn replace(&mut self, slot: usize) -> Gateway {
        let fresh = self.another().await;
        self.world.instances.lock()[slot] = Some(fresh.public);
        std::mem::replace(&mut self.instances[slot], fresh)
    }

    /// SIGKILL; its clients know at once, the load balancer a little later.
    async fn kill(&mut self, slot: usize) {
        self.did("killed");
        self.instances[slot].kill().await;
        sleep(up_to(&mut self.rng, 300)).await;
        self.world.instances.lock()[slot] = None;
        sleep(up_to(&mut self.rng, 1_500)).await;
        self.replace(slot).await;
    }

    /// SIGTERM, with its successor before or after its end.
    async fn drain(&mut self, slot: usize) {
        self.did("drained");
        self.instances[slot].signal("TERM");
        let mut old = if self.rng.bool() {
            self.replace(slot).await
        } else {
            assert!(self.instances[slot].exit().await.success(), "{}", self.instances[slot].log());
            self.did("drained to the end");
            drop(self.replace(slot).await);
            return;
        };
        assert!(old.exit().await.success(), "{}", old.log());
    }

    /// SIGSTOP past the lease, while others fail too.
    async fn pause(&mut self, slot: usize) {
        self.did("paused");
        self.instances[slot].signal("STOP");
        let past_lease = Instant::now() + LEASE + Duration::from_millis(1_200) + up_to(&mut self.rng, 1_500);
        let other = (slot + self.rng.usize(1..SLOTS)) % SLOTS;
        match self.rng.u8(0..3) {
            0 => self.kill(other).await,
            1 => self.drain(other).await,
            _ => {}
        }
        sleep_until(past_lease).await;
        self.instances[slot].signal("CONT");
    }

    async fn trouble(&mut self, until: Instant) {
        while Instant::now() < until {
            let slot = self.rng.usize(0..SLOTS);
            match self.rng.u8(0..3) {
                0 => self.kill(slot).await,
                1 => self.drain(slot).await,
                _ => self.pause(slot).await,
            }
            sleep(up_to(&mut self.rng, 800)).await;
        }
    }

    async fn all_dead_reaped(&self) {
        eventually("the dead are reaped", async || {
            let listed: u64 = self.redis.node().command(&["ZCARD", "{online_users}:instances"]).await;
            listed == SLOTS as u64
        })
        .await;
    }

    async fn loss(&mut self, restart: bool) {
        self.world.losses.lock().push(now_ms());
        if restart {
            self.did("redis restarted");
            let pause = up_to(&mut self.rng, 2_000);
            self.redis.restart(pause).await;
            self.world.losses.lock().push(now_ms());
        } else {
            self.did("redis flushed");
            self.redis.node().command::<()>(&["FLUSHALL"]).await;
        }
    }

    /// Instances fail, then Redis does, and so on, but not both together: see the top.
    async fn reign(&mut self, length: Duration, rounds: u32) {
        let end = Instant::now() + length;
        // In a cluster, another takes over first.
        let mut restart = matches!(self.redis, Servers::Cluster { .. }) || self.rng.bool();
        for round in 0.. {
            if round >= rounds && Instant::now() >= end {
                break;
            }
            self.trouble(Instant::now() + Duration::from_secs(6)).await;
            self.all_dead_reaped().await;
            self.loss(restart).await;
            sleep(RETURNED + Duration::from_secs(1)).await;
            restart = !restart;
        }
        self.trouble(Instant::now() + Duration::from_secs(3)).await;
        self.world.over.store(true, Ordering::SeqCst);
    }
}

/// How many connections each user has.
fn truth(world: &World) -> BTreeMap<String, u64> {
    let mut truth = BTreeMap::new();
    for user in world.open.lock().values() {
        *truth.entry(user.clone()).or_default() += 1;
    }
    truth
}

async fn connections(gateway: &Gateway) -> BTreeMap<String, u64> {
    let users: Vec<String> = (0..USERS).map(|user| format!("u{user}")).collect();
    let (status, body) = gateway.post(gateway.admin, "/v1/presence", &json!({ "users": users }).to_string()).await;
    assert_eq!(status, 200, "{body}");
    let body: Value = serde_json::from_str(&body).unwrap();
    let found = body["users"].as_array().unwrap().iter();
    let found = found.map(|user| {
        let connections = user["connections"].as_u64().unwrap();
        // While some have not been counted yet, these may differ.
        let told = user["online"].as_bool().unwrap() == (connections > 0);
        (user["user"].as_str().unwrap().to_owned(), if told { connections } else { u64::MAX })
    });
    found.filter(|(_, connections)| *connections > 0).collect()
}

async fn keys_agree(redis: &RedisServer) -> bool {
    let instances: Vec<String> = redis.command(&["ZRANGE", "{online_users}:instances", "0", "-1"]).await;
    let mut counted: BTreeMap<String, u64> = BTreeMap::new();
    for incarnation in &instances {
        let held: Vec<String> = redis.command(&["HKEYS", &format!("{{online_users}}:held:{incarnation}")]).await;
        held.into_iter().for_each(|user| *counted.entry(user).or_default() += 1);
    }
    let count: BTreeMap<String, u64> = redis.command(&["HGETALL", "{online_users}:count"]).await;
    let total: Option<u64> = redis.command(&["GET", "{online_users}:total"]).await;
    instances.len() == SLOTS && count == counted && total.unwrap_or(0) == counted.values().sum::<u64>()
}

/// Gives how many users are on how many connections.
async fn all_is_true(world: &World, chaos: &Chaos) -> (usize, u64) {
    let limit = REAPED.max(OFFLINE_DELAY + Duration::from_secs(1)) + RETURNED;
    eventually_within(Duration::from_secs(60), "clients are connected or gone", async || {
        world.connecting.load(Ordering::SeqCst) == 0
    })
    .await;
    let truth = truth(world);
    let online: BTreeSet<String> = truth.keys().cloned().collect();
    assert!(online.len() > USERS / 4, "too few to mean anything");
    let deadline = Instant::now() + limit;
    let left = || deadline.saturating_duration_since(Instant::now());
    eventually_within(left(), "SMEMBERS is who is connected", async || {
        chaos.redis.node().online().await.into_iter().collect::<BTreeSet<_>>() == online
    })
    .await;
    eventually_within(left(), "the events give the connected users", async || {
        world.fold.lock().online().as_ref() == Some(&online)
    })
    .await;
    eventually_within(left(), "the keys are consistent", async || keys_agree(chaos.redis.node()).await).await;
    for gateway in &chaos.instances {
        eventually_within(left(), "the numbers of connections are those of the clients", async || {
            connections(gateway).await == truth
        })
        .await;
        let (_, count) = gateway.get(gateway.admin, "/v1/presence/count").await;
        assert_eq!(serde_json::from_str::<Value>(&count).unwrap()["online"], online.len());
    }
    assert_eq!(self::truth(world), truth, "no client lost its connection meanwhile");
    (online.len(), truth.values().sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_exact_again_after_chaos() {
    run(Servers::One(Box::new(RedisServer::start().await)), 30, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_is_exact_again_after_chaos_in_a_cluster() {
    run(Servers::cluster().await, 0, 1).await;
}

/// For so many seconds and so many rounds at least.
#[allow(clippy::print_stdout, reason = "what repeats a run, and what came of it")]
async fn run(redis: Servers, seconds: u64, rounds: u32) {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let seed = number("CHAOS_SEED").unwrap_or_else(|| fastrand::u64(..));
    let length = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(seconds));
    println!("CHAOS_SEED={seed} CHAOS_SECONDS={}", length.as_secs());
    let mut rng = Rng::with_seed(seed);
    let world = Arc::new(World::default());
    let mut chaos = Chaos::start(Arc::clone(&world), redis, rng.fork()).await;
    let mut listening = JoinSet::new();
    let heard_at = chaos.redis.heard_at().await;
    if let Servers::Cluster { cluster, .. } = &chaos.redis {
        let follower = cluster.client();
        let members = async move || follower.attempt(&["SMEMBERS", "online_users"]).await.ok();
        listening.spawn(subscriber(Arc::clone(&world), heard_at, members));
    } else {
        let client = redis::Client::open(heard_at.as_str()).unwrap();
        let members = async move || {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            redis::cmd("SMEMBERS").arg("online_users").query_async(&mut connection).await.ok()
        };
        listening.spawn(subscriber(Arc::clone(&world), heard_at, members));
    }
    let subscribed = async || world.fold.lock().base.is_some();
    eventually_within(Duration::from_secs(20), "a subscription", subscribed).await;

    let mut crowd =
        Crowd { world: Arc::clone(&world), rng: rng.fork(), tabs: Vec::new(), tasks: JoinSet::new(), opened: 0 };
    for user in 0..CONNECTIONS {
        crowd.open(format!("u{}", user % USERS));
    }
    tokio::join!(crowd.live(), chaos.reign(length, rounds));
    println!("{:?}, {} tabs opened", chaos.done, crowd.opened);

    let (users, connections) = all_is_true(&world, &chaos).await;
    let fold = world.fold.lock();
    println!("{users} users on {connections} connections, {} events", fold.events);
    assert!(fold.repeated.is_empty(), "published twice: {:?}", fold.repeated);
    // Only who came to a second instance before the first had returned them: not everybody.
    let repeated = fold.repeated_in_return;
    assert!(repeated < USERS / 10, "{repeated} users told twice after Redis lost everything");
}
