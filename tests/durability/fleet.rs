//! The same where several servers have the data: a Cluster or a Sentinel's fleet, whose masters die, freeze and hand over,
//! and whose slots move. A replica has everything when its master is killed or frozen, so that nothing that was confirmed
//! may be missing afterwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::check::faults;
use super::record::{Notification, User, Way};
use super::world::{Place, Raw, SLOTS, World, notification};
use super::{LEVEL, Outcome, Plan, all, clients, listed, note, number, publishers, seconds, story, summary};
use crate::support::{Cluster, Gateway, Options, RedisServer, Sentinel, eventually, free_port, key_slot, within};

/// Until every publisher has repeated what a master refused or did not answer.
const RETRIED: Duration = Duration::from_secs(5);

/// How much longer a run may take until enough has happened.
const BUSY_MACHINE: Duration = Duration::from_secs(60);

const READ: &str = r"local epoch = redis.call('HGET', KEYS[1], 'epoch')
    return { epoch and string.sub(redis.sha1hex(epoch .. ':' .. ARGV[1]), 1, 16) or '', redis.call('XRANGE', KEYS[2], '-', '+') }";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    /// A replica takes over by order.
    Failover,
    /// SIGKILL of a master, which comes back as a replica.
    Kill,
    /// SIGSTOP of a master for longer than it takes to replace it.
    Freeze,
    /// The slot of some users moves to another master.
    Migrate,
}

enum Servers {
    Cluster(Cluster),
    Sentinel(Sentinel),
}

impl Servers {
    fn url(&self) -> String {
        match self {
            Self::Cluster(cluster) => cluster.url(),
            Self::Sentinel(sentinel) => sentinel.url(),
        }
    }

    fn harms(&self) -> Vec<Harm> {
        match self {
            // A master that returns may still begin a new epoch of a bucket, which this check takes for other ids.
            Self::Cluster(_) if number("DURABILITY_SECONDS").is_none() => {
                vec![Harm::Migrate, Harm::Failover, Harm::Kill]
            }
            Self::Cluster(_) => vec![Harm::Migrate, Harm::Failover, Harm::Kill, Harm::Freeze],
            Self::Sentinel(_) => vec![Harm::Failover, Harm::Kill, Harm::Freeze],
        }
    }

    /// What is stored, past every instance.
    async fn stored(&self, user: &str) -> Vec<Notification> {
        let bucket = key_slot(user) % 256;
        let (epoch, entries): (String, Vec<Raw>) = match self {
            Self::Cluster(cluster) => {
                let (history, stream) =
                    (format!("tidings:{{b{bucket}}}:history"), format!("tidings:{{b{bucket}}}:history:{user}"));
                cluster.command(&["EVAL", READ, "2", &history, &stream, user]).await
            }
            Self::Sentinel(sentinel) => {
                let master = &sentinel.servers()[sentinel.master().await];
                let stream = format!("tidings:history:{{{user}}}");
                master.command(&["EVAL", READ, "2", "tidings:history", &stream, user]).await
            }
        };
        entries.iter().map(|entry| notification(&epoch, entry)).collect()
    }
}

struct Nemesis {
    world: Arc<World>,
    rng: Rng,
    servers: Servers,
    instances: Vec<Gateway>,
    names: Vec<String>,
    done: BTreeMap<Harm, usize>,
}

impl Nemesis {
    async fn strike(&mut self, harm: Harm) {
        *self.done.entry(harm).or_default() += 1;
        match &self.servers {
            Servers::Cluster(_) => self.strike_cluster(harm).await,
            Servers::Sentinel(_) => self.strike_sentinel(harm).await,
        }
        self.world.tell(format!("{harm:?} is over"));
        sleep(Duration::from_millis(self.rng.u64(0..800))).await;
    }

    async fn strike_cluster(&mut self, harm: Harm) {
        let (world, user) = (Arc::clone(&self.world), self.rng.usize(0..self.names.len()));
        let Servers::Cluster(cluster) = &mut self.servers else { return };
        let slot = key_slot(&format!("{{b{}}}", key_slot(&self.names[user]) % 256));
        let master = cluster.owner_of_slot(slot).await;
        world.tell(format!("{harm:?} of node {master}"));
        match harm {
            Harm::Migrate => {
                let other = cluster.owner_of_slot((slot + 16_384 / 2) % 16_384).await;
                for to in [other, master] {
                    cluster.migrate_slot(slot, to).await;
                    sleep(Duration::from_millis(self.rng.u64(0..500))).await;
                }
            }
            Harm::Failover => drop(cluster.failover(master).await),
            Harm::Kill | Harm::Freeze => {
                let heir = cluster.replica_of(master).await;
                let quiet = world.publishing.write().await;
                replicated(cluster.node(master), &format!("{{b{}}}", key_slot(&self.names[user]) % 256), 1).await;
                if harm == Harm::Kill {
                    cluster.kill(master).await;
                } else {
                    cluster.freeze(master);
                }
                drop(quiet);
                cluster.promoted(heir).await;
                // On its return it publishes what it was sent: by then something else must have been stored in its place.
                sleep(RETRIED).await;
                if harm == Harm::Kill {
                    cluster.restart(master).await;
                } else {
                    cluster.thaw(master);
                }
                cluster.settled().await;
            }
        }
    }

    async fn strike_sentinel(&mut self, harm: Harm) {
        let world = Arc::clone(&self.world);
        let Servers::Sentinel(sentinel) = &mut self.servers else { return };
        let master = sentinel.master().await;
        world.tell(format!("{harm:?} of server {master}"));
        let quiet = world.publishing.write().await;
        replicated(&sentinel.servers()[master], "tidings:written", 2).await;
        match harm {
            // What the old master confirms until it is demoted is lost: nothing is published until all are settled.
            Harm::Failover | Harm::Migrate => drop(sentinel.failover().await),
            Harm::Kill => {
                sentinel.kill(master).await;
                drop(quiet);
                sentinel.promoted(master).await;
                all_store(&self.instances).await;
                sentinel.restart(master).await;
            }
            Harm::Freeze => {
                sentinel.freeze(master);
                drop(quiet);
                sentinel.promoted(master).await;
                all_store(&self.instances).await;
                sleep(Duration::from_millis(self.rng.u64(0..1_000))).await;
                sentinel.thaw(master);
            }
        }
        sentinel.settled().await;
    }

    /// Each harm once, then any, until `end`, and on until `enough` has happened.
    async fn reign(&mut self, end: Instant, enough: impl Fn() -> bool) {
        let harms = self.servers.harms();
        let mut first = harms.clone();
        self.rng.shuffle(&mut first);
        let on_until = |now: Instant| now < end || (now < end + BUSY_MACHINE && !enough());
        while !first.is_empty() || on_until(Instant::now()) {
            let harm = first.pop().unwrap_or_else(|| harms[self.rng.usize(0..harms.len())]);
            self.strike(harm).await;
        }
        for gateway in &self.instances {
            gateway.ready().await;
        }
    }
}

/// Waits until every instance stores at the new master: what one that still waited for the old would be told on the
/// return of that one is lost.
async fn all_store(instances: &[Gateway]) {
    for gateway in instances {
        eventually("an instance stores at the new master", async || {
            let body = json!({"users": ["another"], "data": null}).to_string();
            gateway.post(gateway.admin, "/v1/notifications", &body).await.0 < 300
        })
        .await;
    }
}

/// Waits until so many replicas have all that the server has.
async fn replicated(server: &RedisServer, key: &str, replicas: u64) {
    let mut connection = server.connection().await;
    let mut both = redis::pipe();
    // WAIT heeds only the writes of its own connection.
    both.set(key, 1).ignore().cmd("WAIT").arg(replicas).arg(0);
    let (acknowledged,) = within("an answer", both.query_async::<(u64,)>(&mut connection)).await.unwrap();
    assert!(acknowledged >= replicas);
}

async fn instance(url: &str, mode: &str) -> Gateway {
    // Ports that no other process gets after it.
    let at_port = || format!("127.0.0.1:{}", free_port());
    let options = Options::redis_at(url).set("redis.subscribe", mode).set("redis.probe_interval", "500ms");
    let options = options.set("server.listen", &at_port()).set("server.admin_listen", &at_port());
    options.set("history.max_len", "1000000").set("presence.lease", "2s").set("server.heartbeat", "4s").start().await
}

#[allow(clippy::print_stdout, reason = "what repeats a run, and what came of it")]
async fn run(servers: Servers) {
    let seed = number("DURABILITY_SEED").unwrap_or_else(|| fastrand::u64(..));
    let mut rng = Rng::with_seed(seed);
    let mode = if rng.bool() { "exact" } else { "pattern" };
    println!("DURABILITY_SEED={seed} DURABILITY_SECONDS={}: {mode}", seconds());
    let plan = Plan {
        users: 40,
        more_clients: 20,
        group: 10,
        rate: 100.0,
        max_len: 1_000_000,
        takes_back: false,
        stay: 3_000,
        away: 3_000,
        troubles: Vec::new(),
        length: Duration::from_secs(seconds()),
    };
    let names: Vec<_> = (0..plan.users).map(|user| format!("u{user}")).collect();
    // Nothing is asked of a single server.
    let world = Arc::new(World::new("redis://127.0.0.1:1", &names));
    let mut instances = Vec::new();
    for slot in 0..SLOTS {
        instances.push(instance(&servers.url(), mode).await);
        world.slots.lock()[slot] = Some(Place::from(&instances[slot]));
    }
    let mut nemesis = Nemesis {
        world: Arc::clone(&world),
        rng: rng.fork(),
        servers,
        instances,
        names: names.clone(),
        done: BTreeMap::new(),
    };
    // What an old master under sentinels confirms before it is replaced is lost: an entry of the outbox has no replica then.
    let ways: &[Way] = match &nemesis.servers {
        Servers::Cluster(cluster) => {
            world.cluster.get_or_init(|| cluster.client());
            &Way::BACKENDS
        }
        Servers::Sentinel(_) => &[Way::One, Way::Batch],
    };
    let mut publishing = publishers(&world, &plan, ways, &names, &mut rng);
    let mut listening = clients(&world, &plan, &names, &mut rng);
    let enough = || plan.is_enough(&world.tally.lock());
    nemesis.reign(Instant::now() + plan.length, enough).await;
    assert!(enough(), "too little happened: {:?}", world.tally.lock());
    world.silent.cancel();
    let mut users: Vec<_> = names.iter().map(|name| User { name: name.clone(), ..User::default() }).collect();
    for (to, confirmed) in within("everything published is confirmed", all(&mut publishing)).await {
        note(&mut users, &to, confirmed);
    }
    sleep(LEVEL).await;
    world.healed.cancel();
    let mut marking = JoinSet::new();
    marking.spawn(mark(Arc::clone(&world), names));
    for (user, log) in within("every client receives the end", all(&mut listening)).await {
        users[user].clients.push(log);
    }
    for user in &mut users {
        user.stored = nemesis.servers.stored(&user.name).await;
        user.kept.clone_from(&user.stored);
        user.listed = listed(&nemesis.instances[0], &user.name).await;
    }
    let outcome = Outcome { users, tale: world.tale(), done: BTreeMap::new() };
    let found = outcome.users.iter().flat_map(|user| faults(user, plan.max_len).into_iter().map(move |it| (user, it)));
    let found: Vec<_> = found.collect();
    let stories: String = found.iter().take(3).map(|(user, fault)| story(user, fault, &outcome.tale)).collect();
    assert!(found.is_empty(), "{} faults with DURABILITY_SEED={seed}, the first of them:\n{stories}", found.len());
    println!("{} {:?}", summary(&outcome), nemesis.done);
}

/// Publishes the marker to all users through an instance, repeatedly, until dropped.
async fn mark(world: Arc<World>, names: Vec<String>) {
    let place = world.slots.lock()[0].unwrap();
    loop {
        let body = json!({"users": names, "data": "the end"}).to_string();
        let request = world.http.post(format!("http://{}/v1/notifications", place.admin)).body(body);
        request.header("content-type", "application/json").send().await.ok();
        sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stored_is_lost_nor_twice_nor_out_of_order_whatever_fails_in_a_cluster() {
    run(Servers::Cluster(Cluster::start().await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stored_is_lost_nor_twice_nor_out_of_order_whatever_fails_in_a_sentinel_fleet() {
    run(Servers::Sentinel(Sentinel::start().await)).await;
}
