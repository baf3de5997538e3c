//! Breaks instances, their links and Redis, one after the other, and repairs them at the end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use tidings::internals::Cursor;
use tokio::time::{Instant, sleep, sleep_until};

use super::record::{Publication, Way as PublishedBy};
use super::world::{Loss, Place, SLOTS, World};
use crate::support::{Gateway, Options, Proxy, RedisServer, Store, Way, Whose, eventually, free_port};

/// How much longer a run may take until enough has happened.
const BUSY_MACHINE: Duration = Duration::from_secs(60);

/// One way to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// SIGKILL, and another in its place.
    Kill,
    /// SIGTERM, and another in its place.
    Drain,
    /// SIGSTOP for a while.
    Pause,
    /// An instance's links to Redis, once or for a while.
    Cut,
    /// The subscriptions of all instances, or all of their links.
    CutAll,
    /// Redis stops for a second or two.
    FreezeRedis,
    /// Redis is killed and comes back with what it had.
    RestartRedis,
    /// Redis loses everything.
    Flush,
    /// Redis evicts everything stored, or it expires.
    Evict,
    /// A replica that was behind takes over, and more is stored there than was lost before an instance is connected.
    Fork,
}

/// See the module.
pub struct Nemesis {
    world: Arc<World>,
    rng: Rng,
    pub redis: RedisServer,
    /// The way of everybody else to Redis.
    front: Proxy,
    /// Each instance has its own way to Redis.
    proxies: Vec<Proxy>,
    instances: Vec<Gateway>,
    max_len: usize,
    pub done: BTreeMap<Trouble, usize>,
}

impl Nemesis {
    pub async fn start(world: Arc<World>, redis: RedisServer, front: Proxy, max_len: usize, rng: Rng) -> Self {
        let proxies = (0..SLOTS).map(|_| Proxy::start(redis.port())).collect();
        let mut nemesis =
            Self { world, rng, redis, front, proxies, instances: Vec::new(), max_len, done: BTreeMap::new() };
        for slot in 0..SLOTS {
            let gateway = nemesis.another(slot).await;
            nemesis.world.slots.lock()[slot] = Some(Place::from(&gateway));
            nemesis.instances.push(gateway);
        }
        nemesis
    }

    async fn another(&self, slot: usize) -> Gateway {
        // Ports that no other process gets after it: a request just after its end reaches no other instance.
        let at_port = || format!("127.0.0.1:{}", free_port());
        let gateway = Options::redis_at(&self.proxies[slot].url())
            .set("server.listen", &at_port())
            .set("server.admin_listen", &at_port())
            .set("history.max_len", &self.max_len.to_string())
            .set("presence.lease", "2s")
            // Both modes in one fleet.
            .set("redis.subscribe", if slot.is_multiple_of(2) { "pattern" } else { "exact" })
            .set("server.heartbeat", "4s")
            .start()
            .await;
        self.world.tell(format!("{} is there", gateway.instance));
        gateway
    }

    fn up_to(&mut self, millis: u64) -> Duration {
        Duration::from_millis(self.rng.u64(0..=millis))
    }

    fn tell(&self, slot: usize, what: &str) {
        self.world.tell(format!("{} {what}", self.instances[slot].instance));
    }

    async fn replace(&mut self, slot: usize) -> Gateway {
        let fresh = self.another(slot).await;
        self.world.slots.lock()[slot] = Some(Place::from(&fresh));
        std::mem::replace(&mut self.instances[slot], fresh)
    }

    /// Its clients know at once, the load balancer a little later.
    async fn kill(&mut self, slot: usize) {
        self.tell(slot, "is killed");
        self.instances[slot].kill().await;
        sleep(self.up_to(300)).await;
        self.world.slots.lock()[slot] = None;
        sleep(self.up_to(1_000)).await;
        self.replace(slot).await;
    }

    async fn drain(&mut self, slot: usize) {
        self.tell(slot, "drains");
        self.instances[slot].signal("TERM");
        // Its successor comes before or after its end.
        if self.rng.bool() {
            let mut old = self.replace(slot).await;
            assert!(old.exit().await.success(), "{}", old.log());
        } else {
            assert!(self.instances[slot].exit().await.success(), "{}", self.instances[slot].log());
            drop(self.replace(slot).await);
        }
    }

    /// Others fail meanwhile.
    async fn pause(&mut self, slot: usize) {
        self.tell(slot, "is paused");
        self.instances[slot].signal("STOP");
        let end = Instant::now() + Duration::from_millis(300) + self.up_to(3_000);
        let other = (slot + self.rng.usize(1..SLOTS)) % SLOTS;
        match self.rng.u8(0..4) {
            0 => self.kill(other).await,
            1 => self.cut(other).await,
            _ => {}
        }
        sleep_until(end).await;
        self.instances[slot].signal("CONT");
        self.tell(slot, "goes on");
    }

    async fn cut(&mut self, slot: usize) {
        if self.rng.bool() {
            self.tell(slot, "has its links cut");
            self.proxies[slot].cut();
        } else {
            self.tell(slot, "has no link");
            self.proxies[slot].refuse();
            sleep(self.up_to(2_000)).await;
            self.proxies[slot].heal();
            self.tell(slot, "has links again");
        }
    }

    async fn cut_all(&mut self) {
        let kind = if self.rng.bool() { "pubsub" } else { "normal" };
        self.world.tell(format!("every {kind} link is cut"));
        let _: u64 = self.redis.command(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).await;
    }

    async fn freeze_redis(&mut self) {
        self.world.tell("redis is stopped");
        self.redis.freeze();
        sleep(Duration::from_millis(500) + self.up_to(1_500)).await;
        self.redis.thaw();
        self.world.tell("redis goes on");
    }

    async fn restart_redis(&mut self) {
        self.world.tell("redis is killed");
        self.redis.kill().await;
        sleep(self.up_to(1_500)).await;
        self.redis.restart().await;
        self.world.tell("redis is there again");
    }

    /// When nothing is waiting to be stored; but one instance may not have received all of it.
    async fn flush(&mut self) {
        let world = Arc::clone(&self.world);
        let unsubscribed = if self.rng.bool() { Some(self.cut_off().await) } else { None };
        let _quiet = world.publishing.write().await;
        self.relayed().await;
        world.reader.lock().await.read(&world, Loss::Flush).await;
        world.tell("redis lost everything");
        if let Some(slot) = unsubscribed {
            self.proxies[slot].heal();
            self.tell(slot, "has links again");
        }
    }

    /// When nothing is waiting to be stored.
    async fn evict(&mut self) {
        let world = Arc::clone(&self.world);
        let _quiet = world.publishing.write().await;
        self.relayed().await;
        let at = world.now();
        let mut reader = world.reader.lock().await;
        reader.read(&world, Loss::Evict).await;
        world.evictions.lock().push((at, reader.stored.iter().map(Vec::len).collect()));
        world.tell("redis evicted everything stored");
    }

    /// A replica that is held back from now on, without anything in its outbox.
    async fn replica(&self) -> (RedisServer, Proxy) {
        let replica = RedisServer::start_with(&["--repl-diskless-sync-delay", "0"]).await;
        let link = Proxy::start(self.redis.port());
        let port = link.url().rsplit_once(':').unwrap().1.to_owned();
        let _quiet = self.world.publishing.write().await;
        self.relayed().await;
        let count = ["HGET", "tidings:history", "count"];
        let expected: Option<u64> = self.redis.command(&count).await;
        let () = replica.command(&["REPLICAOF", "127.0.0.1", &port]).await;
        eventually("it is replicated", async || replica.command::<Option<u64>>(&count).await == expected).await;
        link.blackhole(Whose::All, Way::Both);
        (replica, link)
    }

    async fn fork(&mut self) {
        let world = Arc::clone(&self.world);
        let (replica, link) = self.replica().await;
        self.world.tell("the replica is held back");
        sleep(Duration::from_millis(300) + self.up_to(1_000)).await;
        let _quiet = world.publishing.write().await;
        self.relayed().await;
        world.reader.lock().await.read(&world, Loss::None).await;
        self.proxies.iter().chain([&self.front]).for_each(Proxy::refuse);
        self.redis.kill().await;
        drop(link);
        let () = replica.command(&["REPLICAOF", "NO", "ONE"]).await;
        let store = Store::on(&replica);
        let mut forked = world.forked.lock().1.clone();
        let users = world.reader.lock().await.users.clone();
        let (first, lost) = (forked.len() as u64, 20);
        let now: (u64, u64) = replica.command(&["TIME"]).await;
        for number in first..first + lost {
            for user in &users {
                let data = format!(r#"{{"way":"fork","n":{number}}}"#);
                store.publish_json(user, &data).await;
            }
            forked.push(Publication { way: PublishedBy::Fork, number, id: None, escalates: false });
        }
        *world.forked.lock() = (now.0 * 1_000 + now.1 / 1_000, forked);
        for path in self.proxies.iter().chain([&self.front]) {
            path.lead_to(replica.port());
            path.heal();
        }
        self.redis = replica;
        self.world.tell("the replica took over, and more was stored there");
        self.all_ready().await;
        // The first check of the new server has been made by each.
        sleep(Duration::from_secs(1)).await;
        world.reader.lock().await.read(&world, Loss::None).await;
    }

    /// Waits until nothing of the outbox is to be stored.
    pub async fn relayed(&self) {
        eventually("the outbox is empty", async || self.redis.command::<u64>(&["XLEN", "tidings:outbox"]).await == 0)
            .await;
    }

    /// Waits until no escalation is pending; gives what was handed over to backends, and to which user it belongs.
    pub async fn handed_over(&self) -> Vec<(String, Cursor)> {
        eventually("none is pending", async || self.redis.command::<u64>(&["ZCARD", "tidings:escalations"]).await == 0)
            .await;
        let entries: Vec<(String, HashMap<String, String>)> =
            self.redis.command(&["XRANGE", "tidings:unread", "-", "+"]).await;
        entries.into_iter().map(|(_, fields)| (fields["user"].clone(), fields["id"].parse().unwrap())).collect()
    }

    async fn all_ready(&self) {
        for gateway in &self.instances {
            gateway.ready().await;
        }
    }

    async fn strike(&mut self, trouble: Trouble) {
        *self.done.entry(trouble).or_default() += 1;
        let slot = self.rng.usize(0..SLOTS);
        match trouble {
            Trouble::Kill => self.kill(slot).await,
            Trouble::Drain => self.drain(slot).await,
            Trouble::Pause => self.pause(slot).await,
            Trouble::Cut => self.cut(slot).await,
            Trouble::CutAll => self.cut_all().await,
            Trouble::FreezeRedis => self.freeze_redis().await,
            Trouble::RestartRedis => self.restart_redis().await,
            Trouble::Flush => self.flush().await,
            Trouble::Evict => self.evict().await,
            Trouble::Fork => self.fork().await,
        }
        sleep(self.up_to(800)).await;
    }

    /// A running instance.
    pub fn anyone(&self) -> &Gateway {
        &self.instances[0]
    }

    /// Each kind once, then any, until `end`, and on until `enough` has happened, if it does at all.
    pub async fn reign(&mut self, troubles: &[Trouble], end: Instant, enough: impl Fn() -> bool) {
        let mut first = troubles.to_vec();
        self.rng.shuffle(&mut first);
        let on_until = |now: Instant| now < end || (now < end + BUSY_MACHINE && !enough());
        while !first.is_empty() || on_until(Instant::now()) {
            let trouble = first.pop().unwrap_or_else(|| troubles[self.rng.usize(0..troubles.len())]);
            self.strike(trouble).await;
        }
        self.all_ready().await;
    }

    /// Cuts off an instance for long enough that it misses something of every user; returns its slot.
    pub async fn cut_off(&mut self) -> usize {
        let slot = self.rng.usize(0..SLOTS);
        self.tell(slot, "has no link");
        self.proxies[slot].refuse();
        sleep(Duration::from_secs(2)).await;
        slot
    }

    /// Gives it back, for good.
    pub async fn heal(&self, slot: usize) {
        self.proxies[slot].heal();
        self.all_ready().await;
        self.world.tell("nothing fails any more");
    }
}
