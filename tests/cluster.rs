//! What holds on one Redis holds in a Cluster, while its nodes die and are promoted and its slots move.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{
    Client, Cluster, Gateway, Migration, Options, eventually, eventually_within, handshake, key_slot, now, refused,
    sign, text,
};

/// From an orderly failover or a slot's move, and from a promotion after a crash, until delivery is restored.
pub const ORDERLY: Duration = Duration::from_secs(5);
const CRASH: Duration = Duration::from_secs(10);

/// A command is answered or refused within its deadline, and a call over HTTP a little later.
const ANSWERED: Duration = Duration::from_secs(5);

pub fn options(cluster: &Cluster) -> Options {
    Options::redis_at(&cluster.url()).set("presence.lease", "2s").set("presence.offline_delay", "300ms")
}

/// The key of a user's bucket: all of the user's keys are in its slot.
pub fn bucket_key(user: &str) -> String {
    let tag = user.replace(['{', '}'], "");
    assert_eq!(tag, user, "the slot of the id would not be that of its bucket");
    format!("tidings:{{b{}}}:history", key_slot(user) % 256)
}

/// A user whose keys this node has.
pub async fn user_at(cluster: &Cluster, node: usize) -> String {
    users_at(cluster, node).await.remove(0)
}

/// Users whose keys this node has, each in a slot of its own.
pub async fn users_at(cluster: &Cluster, node: usize) -> Vec<String> {
    let slots = cluster.slots_of(node).await;
    let mut seen = HashSet::new();
    let users = (0..1_000).map(|user| format!("u{user}"));
    let is_new = |user: &String| {
        Some(key_slot(&bucket_key(user))).is_some_and(|slot| slots.contains(&slot) && seen.insert(slot))
    };
    users.filter(is_new).collect()
}

pub async fn users_of_each(cluster: &Cluster, masters: &[usize]) -> Vec<String> {
    let mut users = Vec::new();
    for master in masters {
        users.push(user_at(cluster, *master).await);
    }
    users
}

/// The node that an instance, the only one, has its subscription at.
async fn subscribed_at(cluster: &Cluster, nodes: &[usize]) -> Option<usize> {
    for node in nodes {
        let count: (String, u64) = cluster.node(*node).command(&["PUBSUB", "NUMSUB", "tidings:control"]).await;
        if count.1 > 0 {
            return Some(*node);
        }
    }
    None
}

/// Waits until an instance, the only one, has its subscription at one of these nodes, closing it elsewhere; gives the node.
pub async fn subscribe_at(cluster: &Cluster, nodes: &[usize]) -> usize {
    let mut found = None;
    eventually("the subscription is at such a node", async || {
        found = subscribed_at(cluster, nodes).await;
        if found.is_none() {
            for other in (0..6).filter(|other| !nodes.contains(other)) {
                let _: u64 = cluster.node(other).command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
            }
            sleep(Duration::from_millis(500)).await;
        }
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Publishes for a user at any node, once.
async fn publish(cluster: &Cluster, user: &str, payload: &str) {
    cluster.client().attempt::<u64>(&["PUBLISH", &format!("user:{user}"), payload]).await.ok();
}

/// Publishes numbers until one arrives: what was stored before has arrived by then.
async fn delivered_within(limit: Duration, cluster: &Cluster, client: &mut Client, user: &str) {
    let publishing = async {
        loop {
            publish(cluster, user, "\"now\"").await;
            sleep(Duration::from_millis(100)).await;
        }
    };
    let arrival = async {
        tokio::select! {
            () = publishing => {}
            () = async { while client.event().await != "now" {} } => {}
        }
    };
    timeout(limit, arrival).await.expect("delivery is back in time");
}

/// Stores one over HTTP, again and again until it is accepted; gives its id.
async fn stored_within(limit: Duration, gateway: &Gateway, user: &str, data: &Value) -> String {
    let (path, body) = (format!("/v1/users/{user}/notifications"), json!({"data": data, "durable": true}).to_string());
    // A retry may not store it twice.
    let key = format!("{user}:{data}").replace([' ', '"'], "");
    let deadline = Instant::now() + limit;
    loop {
        let asked = Instant::now();
        let answer = gateway.ask_admin("POST", &path, &[("idempotency-key", &key)], &body).await;
        assert!(asked.elapsed() < ANSWERED, "{answer:?} after {:?}", asked.elapsed());
        if answer.status == 202 {
            return text(&answer.json()["id"]).to_owned();
        }
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(Instant::now() < deadline, "it is not stored within {limit:?}: {answer:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// The next stored one, past those that are not.
async fn next_stored(client: &mut Client) -> (String, Value) {
    loop {
        let mut frame = client.frame().await;
        if frame["type"] == "event" && frame["id"].is_string() {
            return (text(&frame["id"]).to_owned(), frame["data"].take());
        }
        assert!(frame["type"] == "gap" || frame["data"] == "now", "{frame}");
    }
}

async fn online_within(limit: Duration, cluster: &Cluster, users: &[&str]) {
    eventually_within(limit, &format!("online are {users:?}"), async || cluster.online().await == users).await;
}

#[tokio::test]
async fn users_of_every_shard_are_served_in_a_cluster() {
    let cluster = Cluster::start().await;
    let (one, two) = tokio::join!(options(&cluster).start(), options(&cluster).start());
    let mut users = users_of_each(&cluster, &[0, 1, 2]).await;
    // Neither of them is a hash tag.
    users.extend(["}x".to_owned(), "{a}b".to_owned()]);
    for user in &users {
        let mut both = [Client::connect(&one, user).await, Client::connect(&two, user).await];
        for node in 0..6_usize {
            cluster.publish_at(node, user, &node.to_string()).await;
            for client in &mut both {
                assert_eq!(client.event().await, node);
            }
        }
        let mut ids = Vec::new();
        for number in 1..=3 {
            ids.push(one.store(user, number).await);
            for client in &mut both {
                assert_eq!(client.stored_event().await, (ids[number - 1].clone(), json!(number)));
            }
        }
        both[0].send(&json!({"type": "ack", "id": ids[1]}).to_string()).await;
        eventually("it is read", async || Client::connect_with_welcome(&two, user).await.1["unread"] == 1).await;
        let (mut resumed, welcome) = Client::resume(&two, user, &ids[0]).await;
        assert_eq!((&welcome["recovered"], &welcome["unread"]), (&json!(true), &json!(1)), "{welcome}");
        assert_eq!((resumed.stored_event().await.1, resumed.stored_event().await.1), (json!(2), json!(3)));
        let listed: Vec<_> = two.listed(user, 2).await.into_iter().map(|listed| listed.id).collect();
        assert_eq!(listed, ids);
        // The same key is the same notification, through either instance.
        let path = format!("/v1/users/{user}/notifications");
        for gateway in [&one, &two] {
            let body = r#"{"data":4,"durable":true}"#;
            assert_eq!(gateway.ask_admin("POST", &path, &[("idempotency-key", "k")], body).await.status, 202);
        }
        assert_eq!(one.listed(user, 10).await.len(), 4);
    }
    let mut clients = Vec::new();
    for user in &users {
        clients.push(Client::connect(&two, user).await);
    }
    let batch = json!({"users": users, "data": 5, "durable": true}).to_string();
    let (status, body) = one.post(one.admin, "/v1/notifications", &batch).await;
    assert_eq!((status, &serde_json::from_str::<Value>(&body).unwrap()["accepted"]), (202, &json!(5)), "{body}");
    for client in &mut clients {
        assert_eq!(client.stored_event().await.1, 5);
    }
}

#[tokio::test]
async fn presence_revocations_limits_and_rates_hold_in_a_cluster() {
    let cluster = Cluster::start().await;
    let start = || {
        let options = options(&cluster).set("limits.max_connections_per_user", "2");
        options.set("limits.connects_per_second_per_user", "1000").start()
    };
    let (mut one, two) = tokio::join!(start(), start());
    let mut events = cluster.subscribe("presence").await;
    let users = users_of_each(&cluster, &[0, 1, 2]).await;
    let mut held = Vec::new();
    for user in &users {
        held.push(Client::connect(&one, user).await.answering());
        let event = events.next().await;
        assert_eq!((&event["user"], &event["status"]), (&json!(user), &json!("online")));
    }
    let mut sorted: Vec<_> = users.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    assert_eq!(cluster.online().await, sorted);
    let also = Client::connect(&two, &users[0]).await.answering();
    let bearer = format!("Bearer {}", crate::support::token(&users[0]));
    let limited = refused(two.public, "/ws", &[("Authorization", &bearer)]).await;
    assert_eq!((limited.status, limited.code.as_str()), (429, "max_connections_per_user"));

    let token = sign(&json!({"sub": "9", "exp": now() + 3_600, "jti": "stolen"}));
    let (mut revoked, _) = Client::connect_with_token(&two, &token).await;
    let revoke = json!({"revoke": {"jti": "stolen", "until": now() + 600}}).to_string();
    let _: u64 = cluster.node(4).command(&["PUBLISH", "tidings:control", &revoke]).await;
    assert_eq!(revoked.close_code().await, 4009);
    let bearer = format!("Bearer {token}");
    eventually("it is kept for later instances", async || {
        cluster.command::<Option<f64>>(&["ZSCORE", "tidings:revoked", "stolen"]).await.is_some()
    })
    .await;
    let late = start().await;
    for gateway in [&one, &two, &late] {
        let refused = refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await;
        assert_eq!((refused.status, refused.code.as_str()), (401, "token_revoked"));
    }

    one.kill().await;
    online_within(Duration::from_secs(10), &cluster, &[users[0].as_str()]).await;
    drop(also);
    online_within(Duration::from_secs(5), &cluster, &[]).await;
    eventually("the permits are free", async || {
        let bearer = format!("Bearer {}", crate::support::token(&users[0]));
        handshake(two.public, "/ws", &[("Authorization", &bearer)]).await.is_ok()
    })
    .await;
}

/// Moves the keys that the source has, except those of this user.
async fn move_all_but(cluster: &Cluster, migration: Migration, user: &str) {
    let slot = migration.slot.to_string();
    let keys: Vec<String> = cluster.node(migration.from).command(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
    for key in keys.iter().filter(|key| !key.ends_with(&format!(":{user}"))) {
        cluster.move_key(migration, key).await;
    }
}

/// Stores and acknowledges one for this user, so that all keys of the user exist; gives its id.
async fn acked(cluster: &Cluster, gateway: &Gateway, user: &str, client: &mut Client) -> String {
    let id = gateway.store(user, 0).await;
    client.send(&json!({"type": "ack", "id": id}).to_string()).await;
    assert_eq!(client.stored_event().await.1, 0);
    let position = format!("tidings:{{b{}}}:read:{user}", key_slot(user) % 256);
    eventually("it is read", async || cluster.command::<u64>(&["EXISTS", &position]).await == 1).await;
    id
}

#[tokio::test]
async fn users_of_a_slot_that_is_half_way_to_another_node_lose_nothing_and_get_nothing_twice() {
    let cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let moved = user_at(&cluster, 0).await;
    let slot = key_slot(&bucket_key(&moved));
    // Another of the same bucket.
    let same = |user: &String| *user != moved && bucket_key(user) == bucket_key(&moved);
    let kept = (0..10_000).map(|user| format!("u{user}")).find(same).unwrap();
    let mut clients = [Client::connect(&gateway, &moved).await, Client::connect(&gateway, &kept).await];
    let mut first = Vec::new();
    for (user, client) in [&moved, &kept].into_iter().zip(&mut clients) {
        first.push(acked(&cluster, &gateway, user, client).await);
    }
    let mut number = 0;
    for to in [1, 0] {
        let migration = cluster.begin_migration(slot, to).await;
        move_all_but(&cluster, migration, &kept).await;
        for _ in 0..3 {
            number += 1;
            let asked = Instant::now();
            gateway.store(&moved, number).await;
            assert_eq!(next_stored(&mut clients[0]).await.1, number);
            assert!(asked.elapsed() < ORDERLY, "{:?}", asked.elapsed());
        }
        let (mut resumed, welcome) = Client::resume(&gateway, &moved, &first[0]).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        for expected in 1..=number {
            assert_eq!(next_stored(&mut resumed).await.1, expected);
        }
        // Keys at two nodes: those that have not moved yet are moved first.
        let parted = format!("parted at {to}");
        let asked = Instant::now();
        gateway.store(&kept, parted.as_str()).await;
        assert_eq!(next_stored(&mut clients[1]).await.1, parted);
        assert!(asked.elapsed() < ORDERLY, "{:?}", asked.elapsed());
        cluster.publish_at(5, &kept, "\"now\"").await;
        assert_eq!(clients[1].event().await, "now");
        cluster.move_keys(migration).await;
        cluster.end_migration(migration).await;
        for (user, client) in [&moved, &kept].into_iter().zip(&mut clients) {
            let data = json!(format!("at {to}"));
            stored_within(ORDERLY, &gateway, user, &data).await;
            assert_eq!(next_stored(client).await.1, data);
        }
        let (mut resumed, welcome) = Client::resume(&gateway, &kept, &first[1]).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        assert_eq!(next_stored(&mut resumed).await.1, "parted at 1");
        let (id, _) = (gateway.store(&moved, "mark").await, next_stored(&mut clients[0]).await);
        first[0].clone_from(&id);
        number = 0;
        clients[0].send(&json!({"type": "ack", "id": id}).to_string()).await;
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0, "the subscription was not touched");
}

#[tokio::test]
async fn an_orderly_failover_of_every_master_costs_no_stored_event_and_leaves_the_subscription() {
    let cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let users = users_of_each(&cluster, &[0, 1, 2]).await;
    for (master, user) in users.iter().enumerate() {
        let mut client = Client::connect(&gateway, user).await;
        let before = gateway.store(user, 1).await;
        assert_eq!(client.stored_event().await.1, 1);
        cluster.failover(master).await;
        stored_within(ORDERLY, &gateway, user, &json!(2)).await;
        assert_eq!(next_stored(&mut client).await.1, 2);
        let (mut resumed, welcome) = Client::resume(&gateway, user, &before).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        assert_eq!(next_stored(&mut resumed).await.1, 2);
        online_within(ORDERLY, &cluster, &[user]).await;
        drop((client, resumed));
        online_within(ORDERLY, &cluster, &[]).await;
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0, "{}", gateway.log());
}

#[tokio::test]
async fn each_killed_master_is_replaced_and_the_node_of_the_subscription_too() {
    let mut cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let users = users_of_each(&cluster, &[0, 1, 2]).await;
    let mut clients = Vec::new();
    for user in &users {
        clients.push(Client::connect(&gateway, user).await);
    }
    let mut sorted: Vec<_> = users.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    online_within(ORDERLY, &cluster, &sorted).await;
    let of_presence = cluster.owner_of("online_users").await;
    for (round, master) in [of_presence, (of_presence + 1) % 3].into_iter().enumerate() {
        let mut ids = Vec::new();
        for (user, client) in users.iter().zip(&mut clients) {
            ids.push(gateway.store(user, format!("before {round}")).await);
            assert_eq!(next_stored(client).await.1, format!("before {round}"));
        }
        let heir = cluster.replica_of(master).await;
        // What is stored is at the replica, too.
        cluster.settled().await;
        cluster.kill(master).await;
        cluster.promoted(heir).await;
        let promoted = Instant::now();
        for (user, client) in users.iter().zip(&mut clients) {
            stored_within(CRASH.saturating_sub(promoted.elapsed()), &gateway, user, &json!(round)).await;
            assert_eq!(next_stored(client).await.1, round);
        }
        assert!(promoted.elapsed() < CRASH, "{:?}", promoted.elapsed());
        for (user, id) in users.iter().zip(&ids) {
            let (mut resumed, welcome) = Client::resume(&gateway, user, id).await;
            assert_eq!(welcome["recovered"], true, "{welcome}");
            assert_eq!(next_stored(&mut resumed).await.1, round);
        }
        online_within(CRASH, &cluster, &sorted).await;
        cluster.restart(master).await;
        cluster.settled().await;
    }

    // Whichever node it is at.
    let node = subscribed_at(&cluster, &[0, 1, 2, 3, 4, 5]).await.unwrap();
    let gaps = gateway.metric("tidings_backplane_gaps_total").await;
    let is_master = !cluster.slots_of(node).await.is_empty();
    let heir = if is_master { Some(cluster.replica_of(node).await) } else { None };
    cluster.kill(node).await;
    if let Some(heir) = heir {
        cluster.promoted(heir).await;
    }
    let restored = Instant::now();
    for (user, client) in users.iter().zip(&mut clients) {
        stored_within(CRASH, &gateway, user, &json!("last")).await;
        let (mut is_told, mut is_delivered) = (false, false);
        // That ephemeral events may be missing, and what was stored.
        while !(is_told && is_delivered) {
            let frame = client.frame().await;
            is_told |= frame["type"] == "gap";
            is_delivered |= frame["data"] == "last";
        }
        delivered_within(CRASH.saturating_sub(restored.elapsed()), &cluster, client, user).await;
    }
    assert!(gateway.metric("tidings_backplane_gaps_total").await > gaps);
}

#[tokio::test]
async fn what_a_master_publishes_that_returns_after_its_replica_was_promoted_is_not_believed() {
    let cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let busy = user_at(&cluster, 0).await;
    let same = |user: &String| *user != busy && bucket_key(user) == bucket_key(&busy);
    let idle = (0..10_000).map(|user| format!("u{user}")).find(same).unwrap();
    let mut clients = [Client::connect(&gateway, &busy).await, Client::connect(&gateway, &idle).await];
    let mut firsts = Vec::new();
    for (user, client) in [&busy, &idle].into_iter().zip(&mut clients) {
        firsts.push(gateway.store(user, 0).await);
        assert_eq!(client.stored_event().await.1, 0);
    }
    let heir = cluster.replica_of(0).await;
    cluster.settled().await;
    cluster.freeze(0);
    // It reads this when it is back, and publishes it.
    for user in [&busy, &idle] {
        let path = format!("/v1/users/{user}/notifications");
        let (status, body) = gateway.post(gateway.admin, &path, r#"{"data":"refused","durable":true}"#).await;
        assert_eq!(status, 503, "{body}");
    }
    cluster.promoted(heir).await;
    stored_within(CRASH, &gateway, &busy, &json!(1)).await;
    // The instance checks each server that is new to it; a check that fails at the frozen node is repeated within a second.
    sleep(Duration::from_secs(3)).await;
    cluster.thaw(0);
    cluster.settled().await;
    for user in [&busy, &idle] {
        stored_within(CRASH, &gateway, user, &json!("last")).await;
    }
    let expected = [vec![json!(1), json!("last")], vec![json!("last")]];
    for ((user, client), (first, expected)) in
        [&busy, &idle].into_iter().zip(&mut clients).zip(firsts.iter().zip(&expected))
    {
        for data in expected {
            assert_eq!(next_stored(client).await.1, *data);
        }
        let (mut resumed, welcome) = Client::resume(&gateway, user, first).await;
        assert_eq!(welcome["recovered"], true, "{welcome}");
        for data in expected {
            assert_eq!(next_stored(&mut resumed).await.1, *data);
        }
    }
    gateway.ready().await;
}

#[tokio::test]
async fn a_node_may_join_with_a_slot_and_leave_again() {
    let mut cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let user = user_at(&cluster, 1).await;
    let slot = key_slot(&bucket_key(&user));
    let mut client = Client::connect(&gateway, &user).await;
    let first = gateway.store(&user, 0).await;
    assert_eq!(client.stored_event().await.1, 0);
    let added = cluster.add_node().await;
    for (to, number) in [(added, 1), (1, 2)] {
        cluster.migrate_slot(slot, to).await;
        // The first attempt goes to the node that had the slot, and is sent on.
        gateway.store(&user, number).await;
        assert_eq!(next_stored(&mut client).await.1, number);
    }
    cluster.remove_node(added).await;
    delivered_within(CRASH, &cluster, &mut client, &user).await;
    let (mut resumed, welcome) = Client::resume(&gateway, &user, &first).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    assert_eq!((next_stored(&mut resumed).await.1, next_stored(&mut resumed).await.1), (json!(1), json!(2)));
    gateway.ready().await;
}

#[tokio::test]
async fn seeds_may_be_dead_as_long_as_one_answers() {
    let cluster = Cluster::start().await;
    let dead = crate::support::free_port();
    let live = cluster.node(4).port();
    let url = format!("redis+cluster://127.0.0.1:{dead},127.0.0.1:{live}");
    let gateway = Options::redis_at(&url).start().await;
    for user in users_of_each(&cluster, &[0, 1, 2]).await {
        let mut client = Client::connect(&gateway, &user).await;
        gateway.store(&user, 1).await;
        assert_eq!(client.stored_event().await.1, 1);
    }
}

#[tokio::test]
async fn a_subscription_at_a_node_that_the_others_do_not_reach_is_left_for_another() {
    let cluster = Cluster::start().await;
    let gateway = options(&cluster).set("redis.probe_interval", "300ms").start().await;
    // The others may forget a replica without losing slots.
    let node = subscribe_at(&cluster, &[3, 4, 5]).await;
    gateway.ready().await;
    let mut client = Client::connect(&gateway, "42").await;
    let id: String = cluster.node(node).command(&["CLUSTER", "MYID"]).await;
    for other in (0..6).filter(|other| *other != node) {
        let () = cluster.node(other).command(&["CLUSTER", "FORGET", &id]).await;
    }
    // It does not know that it is alone, and answers.
    delivered_within(Duration::from_secs(15), &cluster, &mut client, "42").await;
    assert!(gateway.metric("tidings_backplane_gaps_total").await > 0.0);
}

#[tokio::test]
async fn a_script_that_a_node_lost_is_sent_again_though_the_call_that_carried_it_was_sent_on() {
    let cluster = Cluster::start().await;
    let gateway = options(&cluster).start().await;
    let users = users_at(&cluster, 0).await;
    let [moved, stays, ..] = users.as_slice() else { panic!("{users:?}") };
    gateway.store(moved, 0).await;
    cluster.migrate_slot(key_slot(&bucket_key(moved)), 1).await;
    for node in [0, 1] {
        let _: String = cluster.node(node).command(&["SCRIPT", "FLUSH"]).await;
    }
    let body = json!({ "users": [moved, stays], "data": 1, "durable": true }).to_string();
    let (status, answer) = gateway.post(gateway.admin, "/v1/notifications", &body).await;
    assert_eq!((status, answer.as_str()), (202, r#"{"accepted":2,"failed":[]}"#));
}
