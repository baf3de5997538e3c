//! `/readyz` is 200 only while users of every shard are served and presence is written, through the faults of a Cluster and
//! of a Sentinel's fleet. A fault may take a while to be detected; from then on, 200 is true.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::cluster::{options, subscribe_at, users_of_each};
use crate::redis_link::reason;
use crate::support::{Client, Cluster, Gateway, Options, RedisServer, Sentinel, eventually, token};

/// Until a node that refuses connections is noticed, and one that is silent.
const REFUSED: Duration = Duration::from_secs(1);
const SILENT: Duration = Duration::from_secs(15);

/// What is accepted while all works arrives within this time on a busy machine.
const WORKS: Duration = Duration::from_secs(3);

/// From the repair until all works again.
const REPAIRED: Duration = Duration::from_secs(30);

struct Sampler<'a> {
    gateway: &'a Gateway,
    users: Vec<(String, Client)>,
    /// Everything that has presence, replicas too.
    servers: Vec<String>,
    number: u64,
}

impl<'a> Sampler<'a> {
    async fn new(gateway: &'a Gateway, users: Vec<String>, servers: impl Iterator<Item = &RedisServer>) -> Self {
        let servers = servers.map(RedisServer::url).collect();
        let connect = async |user: String| {
            let client = Client::connect(gateway, &user).await;
            (user, client)
        };
        Self { gateway, users: join_all(users.into_iter().map(connect)).await, servers, number: 0 }
    }

    /// What does not work now.
    async fn broken(&mut self) -> Option<String> {
        self.number += 1;
        let (gateway, number) = (self.gateway, self.number);
        let delivered = join_all(self.users.iter_mut().map(async |(user, client)| {
            let works = timeout(WORKS, is_delivered(gateway, user, client, number)).await;
            (!works.unwrap_or(false)).then(|| format!("{user} received no {number}"))
        }));
        let newcomer = format!("newcomer {number}");
        let present = async {
            let works = timeout(WORKS, is_present(gateway, &self.servers, &newcomer)).await;
            (!works.unwrap_or(false)).then(|| format!("{newcomer} is not online"))
        };
        let (delivered, present) = tokio::join!(delivered, present);
        delivered.into_iter().flatten().chain(present).next()
    }

    /// Looks again and again while the fault happens, and until all works again.
    async fn watch(&mut self, what: &str, allowed: Duration, fault: impl Future<Output = ()>) {
        let (begun, over) = (Instant::now(), AtomicBool::new(false));
        let watching = async {
            let (mut is_told, mut good, mut repaired) = (false, 0, None);
            while good < 3 {
                let asked = begun.elapsed();
                let (status, body) = self.gateway.get(self.gateway.public, "/readyz").await;
                let broken = self.broken().await;
                is_told |= status != 200;
                let told_wrong = status == 200 && (is_told || asked > allowed);
                if let Some(broken) = broken.as_ref().filter(|_| told_wrong) {
                    panic!("{what}: ready {asked:?} after it, though {broken}: {}", self.gateway.log());
                }
                if over.load(Ordering::Relaxed) {
                    good = if status == 200 && broken.is_none() { good + 1 } else { 0 };
                    let repaired = repaired.get_or_insert_with(Instant::now).elapsed();
                    assert!(repaired < REPAIRED, "{what}: {status} {body}, {broken:?}");
                }
                sleep(Duration::from_millis(100)).await;
            }
        };
        let happening = async {
            fault.await;
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(watching, happening);
    }
}

async fn is_delivered(gateway: &Gateway, user: &str, client: &mut Client, number: u64) -> bool {
    let body = json!({"data": number, "durable": true}).to_string();
    let (status, _) = gateway.post(gateway.admin, &format!("/v1/users/{user}/notifications"), &body).await;
    if status != 202 {
        return false;
    }
    loop {
        match client.message().await {
            Some(Message::Text(text)) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["data"] == number {
                    return true;
                }
            }
            Some(Message::Ping(_) | Message::Pong(_)) => {}
            // The master that is gone had stored what its heir had not: the client is told so.
            _ => {
                *client = Client::connect(gateway, user).await;
                return Box::pin(is_delivered(gateway, user, client, number)).await;
            }
        }
    }
}

/// Whether a user who connects comes to be online.
async fn is_present(gateway: &Gateway, servers: &[String], user: &str) -> bool {
    let _client = Client::connect_with_token(gateway, &token(user)).await;
    loop {
        let seen = servers.iter().map(|url| timeout(Duration::from_millis(500), is_member(url, user)));
        if join_all(seen).await.into_iter().any(|seen| matches!(seen, Ok(Ok(true)))) {
            return true;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

async fn is_member(url: &str, user: &str) -> redis::RedisResult<bool> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    // A replica of a cluster answers as well.
    let _: redis::RedisResult<()> = redis::cmd("READONLY").query_async(&mut connection).await;
    redis::cmd("SISMEMBER").arg("online_users").arg(user).query_async(&mut connection).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_instance_of_a_cluster_serves_every_shard_and_writes_presence() {
    let mut cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let users = users_of_each(&cluster, &[0, 1, 2]).await;
    let mut sampler = Sampler::new(&gateway, users, (0..6).map(|node| cluster.node(node))).await;
    Box::pin(sampler.watch("nothing", Duration::ZERO, async {})).await;
    let of_presence = cluster.owner_of("online_users").await;
    let frozen = (of_presence + 1) % 3;
    for master in [of_presence, (of_presence + 2) % 3] {
        let heir = cluster.replica_of(master).await;
        if master != of_presence {
            subscribe_at(&cluster, &[master]).await;
            gateway.ready().await;
        }
        let killing = async {
            cluster.kill(master).await;
            cluster.promoted(heir).await;
            cluster.restart(master).await;
            cluster.settled().await;
        };
        Box::pin(sampler.watch(&format!("node {master} is killed"), REFUSED, killing)).await;
    }
    let heir = cluster.replica_of(frozen).await;
    let freezing = async {
        cluster.freeze(frozen);
        sleep(Duration::from_secs(4)).await;
        cluster.thaw(frozen);
        cluster.promoted(heir).await;
        cluster.settled().await;
    };
    Box::pin(sampler.watch(&format!("node {frozen} is frozen"), SILENT, freezing)).await;
    let failing_over = async {
        cluster.failover(heir).await;
    };
    Box::pin(sampler.watch("an orderly failover", REFUSED, failing_over)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_instance_of_a_sentinel_fleet_serves_its_users_and_writes_presence() {
    let mut sentinel = Sentinel::start().await;
    let options = Options::redis_at(&sentinel.url()).set("presence.lease", "2s");
    let gateway = options.start().await;
    let mut sampler = Sampler::new(&gateway, vec!["42".into()], sentinel.servers().iter()).await;
    let master = sentinel.master().await;
    let killing = async {
        sentinel.kill(master).await;
        sentinel.promoted(master).await;
        sentinel.restart(master).await;
        sentinel.settled().await;
    };
    Box::pin(sampler.watch("the master is killed", REFUSED, killing)).await;
    let master = sentinel.master().await;
    let freezing = async {
        sentinel.freeze(master);
        sentinel.promoted(master).await;
        sentinel.thaw(master);
        sentinel.settled().await;
    };
    Box::pin(sampler.watch("the master is frozen", SILENT, freezing)).await;
}

#[tokio::test]
async fn the_state_of_a_cluster_that_is_down_is_the_reason_and_not_what_could_not_be_read_there() {
    let mut cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    subscribe_at(&cluster, &[2, 3, 4, 5]).await;
    gateway.ready().await;
    // Most masters, so that no replica is promoted.
    cluster.kill(0).await;
    cluster.kill(1).await;
    eventually("the cluster is down", async || {
        let info: String = cluster.node(2).command(&["CLUSTER", "INFO"]).await;
        info.contains("cluster_state:fail")
    })
    .await;
    for survivor in 2..6 {
        let _: u64 = cluster.node(survivor).command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    let subscribed = async || gateway.metric("tidings_backplane_up").await > 0.0;
    let gaps = async || gateway.metric("tidings_backplane_gaps_total").await;
    eventually("it is subscribed again", async || gaps().await > 0.0 && subscribed().await).await;
    let mut why = String::new();
    eventually("the state is the reason", async || {
        why = reason(&gateway).await;
        why.contains("the redis cluster is down") && why.contains("cluster_state:fail")
    })
    .await;
    assert!(!why.contains("revoked"), "{why}");
}
