//! While a slot is on its way to another node, key by key, its users are served: a command with several keys would be refused
//! (TRYAGAIN) while some of them are at either node, or do not exist yet.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{bucket_key, options, user_at, users_at};
use crate::rights::documented_rules;
use crate::support::{Client, Cluster, Gateway, Migration, eventually, key_slot, text};

/// A cluster with a user `app` under the documented rules and these, and an instance as that user.
async fn served_under(rules: &[&str]) -> (Cluster, Gateway) {
    let cluster = Cluster::start().await;
    let documented = documented_rules();
    let documented = documented.iter().map(String::as_str);
    let rules: Vec<&str> = ["ACL", "SETUSER", "app", "on", ">hunter2"]
        .into_iter()
        .chain(documented)
        .collect::<Vec<_>>()
        .into_iter()
        .chain(rules.iter().copied())
        .collect();
    for node in 0..6 {
        let () = cluster.node(node).command(&rules).await;
    }
    let gateway = options(&cluster).set("redis.url", &cluster.url().replace("//", "//app:hunter2@")).start().await;
    (cluster, gateway)
}

/// The rights that docs/scale.md names for a purpose.
fn rights_for(purpose: &str) -> Vec<String> {
    let start = format!("| {purpose} | `");
    let row = include_str!("../docs/scale.md").lines().find_map(|line| line.strip_prefix(&start)).expect(purpose);
    row.split('`').next().unwrap().split_whitespace().map(|right| right.replace("\\|", "|")).collect()
}

async fn served() -> (Cluster, Gateway) {
    let rights = [rights_for("a cluster"), rights_for("a cluster whose slots move")].concat();
    served_under(&rights.iter().map(String::as_str).collect::<Vec<_>>()).await
}

fn others_of_its_bucket<const N: usize>(user: &str) -> [String; N] {
    let is_other = |other: &String| other != user && bucket_key(other) == bucket_key(user);
    let others: Vec<_> = (0..10_000).map(|other| format!("u{other}")).filter(is_other).take(N).collect();
    others.try_into().unwrap()
}

fn key_of(user: &str, kind: &str) -> String {
    bucket_key(user).replace("history", &format!("{kind}:{user}"))
}

/// Stores one over HTTP under an idempotency key; gives its id.
async fn store_once(gateway: &Gateway, user: &str, data: &str, key: &str) -> String {
    let (path, body) = (format!("/v1/users/{user}/notifications"), json!({"data": data, "durable": true}).to_string());
    let answer = gateway.ask_admin("POST", &path, &[("idempotency-key", key)], &body).await;
    assert_eq!(answer.status, 202, "{user}: {answer:?}");
    text(&answer.json()["id"]).to_owned()
}

async fn relay(cluster: &Cluster, user: &str, data: &str, key: Option<&str>) {
    let data = json!(data).to_string();
    let mut words = vec!["XADD", "tidings:outbox", "*", "user", user, "data", &data];
    words.extend(key.into_iter().flat_map(|key| ["key", key]));
    let _: String = cluster.command(&words).await;
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Http,
    HttpWithKey,
    Outbox,
    OutboxWithKey,
}

const WAYS: [Way; 4] = [Way::Http, Way::HttpWithKey, Way::Outbox, Way::OutboxWithKey];

/// Publishes "one" this way, which arrives; then again under the same key, if it has one, by either way.
async fn publish(cluster: &Cluster, gateway: &Gateway, user: &str, client: &mut Client, way: Way) -> String {
    match way {
        Way::Http => drop(gateway.store(user, "one").await),
        Way::HttpWithKey => drop(store_once(gateway, user, "one", "fresh").await),
        Way::Outbox => relay(cluster, user, "one", None).await,
        Way::OutboxWithKey => relay(cluster, user, "one", Some("fresh")).await,
    }
    let (id, data) = client.stored_event().await;
    assert_eq!(data, "one", "{user} {way:?}");
    if matches!(way, Way::HttpWithKey | Way::OutboxWithKey) {
        assert_eq!(store_once(gateway, user, "again", "fresh").await, id, "{user} {way:?}");
        relay(cluster, user, "again", Some("fresh")).await;
    }
    id
}

/// Acknowledges this one, and is told so.
async fn acknowledge(cluster: &Cluster, user: &str, client: &mut Client, id: &str) {
    client.send(&json!({"type": "ack", "id": id}).to_string()).await;
    let positions = key_of(user, "read");
    eventually("it is read", async || {
        cluster.command::<Option<String>>(&["HGET", &positions, "default"]).await.as_deref() == Some(id)
    })
    .await;
}

/// Resumes after this one, and receives those; none of them is read.
async fn resume(gateway: &Gateway, user: &str, id: &str, missed: &[&str]) {
    let (mut client, welcome) = Client::resume(gateway, user, id).await;
    assert_eq!(welcome["recovered"], true, "{user}: {welcome}");
    for data in missed {
        assert_eq!(client.stored_event().await.1, *data, "{user}");
    }
}

/// Ends the move; then exactly these are stored for each user, in their order.
async fn nothing_is_lost_or_doubled(
    cluster: &Cluster,
    gateway: &Gateway,
    migration: Migration,
    expected: &[(&str, &[&str])],
) {
    cluster.move_keys(migration).await;
    cluster.end_migration(migration).await;
    for (user, expected) in expected {
        let listed = gateway.listed(user, 100).await.into_iter().map(|listed| listed.data.replace('"', ""));
        assert_eq!(listed.collect::<Vec<_>>(), *expected, "{user}");
    }
    assert_eq!(gateway.metric("tidings_backplane_gaps_total").await, 0.0, "the subscription was not touched");
}

#[tokio::test]
async fn users_whose_keys_are_at_both_nodes_of_a_moving_slot_are_served() {
    let (cluster, gateway) = served().await;
    let users: [String; 14] = others_of_its_bucket(&user_at(&cluster, 0).await);
    let (known, new) = users.split_at(10);
    let (mut clients, mut firsts) = (Vec::new(), Vec::new());
    for user in &users {
        clients.push(Client::connect(&gateway, user).await);
    }
    for (user, client) in known.iter().zip(&mut clients) {
        firsts.push(gateway.store(user, "first").await);
        assert_eq!(client.stored_event().await.1, "first");
    }
    let migration = cluster.begin_migration(key_slot(&bucket_key(&users[0])), 1).await;
    // Every other user's notifications, but not yet the hash of their bucket.
    for user in known.iter().step_by(2) {
        cluster.move_key(migration, &key_of(user, "history")).await;
    }
    // Two of them only read first.
    for (user, first) in known.iter().zip(&firsts).skip(8) {
        resume(&gateway, user, first, &[]).await;
    }
    for (place, (user, client)) in users.iter().zip(&mut clients).enumerate() {
        let is_known = place < known.len();
        let way = if is_known { WAYS[place / 2 % 4] } else { WAYS[place - known.len()] };
        let id = publish(&cluster, &gateway, user, client, way).await;
        acknowledge(&cluster, user, client, &id).await;
        relay(&cluster, user, "last", Some("last")).await;
        assert_eq!(client.stored_event().await.1, "last", "{user}");
        let missed = if is_known { &["one", "last"][..] } else { &["last"] };
        resume(&gateway, user, firsts.get(place).unwrap_or(&id), missed).await;
    }
    let known = known.iter().map(|user| (user.as_str(), &["first", "one", "last"][..]));
    let new = new.iter().map(|user| (user.as_str(), &["one", "last"][..]));
    nothing_is_lost_or_doubled(&cluster, &gateway, migration, &known.chain(new).collect::<Vec<_>>()).await;
    assert!(!gateway.log().contains("cannot move keys"), "{}", gateway.log());
}

#[tokio::test]
async fn what_a_user_of_a_moving_slot_does_not_have_yet_is_created() {
    let (cluster, gateway) = served().await;
    let cases = WAYS.into_iter().flat_map(|way| [(way, false), (way, true)]);
    // Each in a slot of its own, of which no key has moved.
    for (user, (way, is_known)) in users_at(&cluster, 0).await.iter().zip(cases) {
        let [other] = others_of_its_bucket(user);
        gateway.store(&other, "other").await;
        let mut client = Client::connect(&gateway, user).await;
        let mut stored = Vec::new();
        if is_known {
            gateway.store(user, "first").await;
            stored.push(client.stored_event().await.1.as_str().unwrap().to_owned());
        }
        let migration = cluster.begin_migration(key_slot(&bucket_key(user)), 1).await;
        let id = publish(&cluster, &gateway, user, &mut client, way).await;
        acknowledge(&cluster, user, &mut client, &id).await;
        stored.push("one".to_owned());
        let stored: Vec<&str> = stored.iter().map(String::as_str).collect();
        nothing_is_lost_or_doubled(&cluster, &gateway, migration, &[(user, &stored), (&other, &["other"])]).await;
    }
}

#[tokio::test]
async fn a_user_whose_keys_are_at_either_node_of_a_moving_slot_is_erased() {
    const KINDS: [&str; 7] = ["history", "read", "retracted", "expiring", "collapse", "escalations", "keys"];
    let keys_of = |user: &str| {
        let once = ["once", "twice"].map(|key| format!("{}:{key}", key_of(user, &format!("key:{}", user.len()))));
        KINDS.iter().map(|kind| key_of(user, kind)).chain(once).collect::<Vec<_>>()
    };
    let (cluster, gateway) = served().await;
    let users: [String; 4] = others_of_its_bucket(&user_at(&cluster, 0).await);
    let (mut clients, mut firsts) = (Vec::new(), Vec::new());
    for user in &users {
        let mut client = Client::connect(&gateway, user).await;
        firsts.push(store_once(&gateway, user, "first", "once").await);
        store_once(&gateway, user, "other", "twice").await;
        let fields = json!({"data": "second", "ttl_s": 3600, "collapse": "a", "escalate_s": 3600});
        let second = gateway.store_as(user, fields.clone()).await;
        gateway.store_as(user, fields).await;
        while client.stored_event().await.0 != second {}
        acknowledge(&cluster, user, &mut client, &second).await;
        // As if this one had expired.
        let _: u64 = cluster.command(&["DEL", &keys_of(user)[KINDS.len()]]).await;
        clients.push(client);
    }
    let migration = cluster.begin_migration(key_slot(&bucket_key(&users[0])), 1).await;
    // Of the first all keys, of the second some, of the third none; the fourth stays.
    for key in keys_of(&users[0]).iter().chain(keys_of(&users[1]).iter().step_by(2)) {
        cluster.move_key(migration, key).await;
    }
    for user in &users[..3] {
        let answer = gateway.ask_admin("DELETE", &format!("/v1/users/{user}"), &[], "").await;
        assert_eq!(answer.status, 204, "{user}: {answer:?}");
    }
    gateway.store(&users[0], "after").await;
    let none: &[&str] = &[];
    let expected: [(&str, &[&str]); 4] =
        [(&users[0], &["after"]), (&users[1], none), (&users[2], none), (&users[3], &["first", "other", "second"])];
    nothing_is_lost_or_doubled(&cluster, &gateway, migration, &expected).await;
    for (user, first) in users[1..3].iter().zip(&firsts[1..]) {
        for key in keys_of(user) {
            assert_eq!(cluster.command::<u64>(&["EXISTS", &key]).await, 0, "{key}");
        }
        let (_, welcome) = Client::resume(&gateway, user, first).await;
        assert_eq!(welcome["recovered"], false, "{user}: {welcome}");
    }
}

#[tokio::test]
async fn a_user_who_never_acknowledged_resumes_while_the_slot_moves() {
    let (cluster, gateway) = served().await;
    let user = user_at(&cluster, 0).await;
    let first = gateway.store(&user, "first").await;
    gateway.store(&user, "missed").await;
    let migration = cluster.begin_migration(key_slot(&bucket_key(&user)), 1).await;
    resume(&gateway, &user, &first, &["missed"]).await;
    nothing_is_lost_or_doubled(&cluster, &gateway, migration, &[(&user, &["first", "missed"])]).await;
}

#[tokio::test]
async fn without_the_right_to_move_keys_only_users_whose_keys_are_at_both_nodes_wait_for_the_end_of_the_move() {
    let rights = rights_for("a cluster");
    let (cluster, gateway) = served_under(&rights.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let moved = user_at(&cluster, 0).await;
    let [new, kept] = others_of_its_bucket(&moved);
    let mut client = Client::connect(&gateway, &moved).await;
    let mut of_new = Client::connect(&gateway, &new).await;
    let first = gateway.store(&moved, "first").await;
    assert_eq!(client.stored_event().await.1, "first");
    gateway.store(&kept, "first").await;
    let migration = cluster.begin_migration(key_slot(&bucket_key(&moved)), 1).await;
    for key in [bucket_key(&moved), key_of(&moved, "history")] {
        cluster.move_key(migration, &key).await;
    }
    resume(&gateway, &moved, &first, &[]).await;
    let id = publish(&cluster, &gateway, &moved, &mut client, Way::HttpWithKey).await;
    acknowledge(&cluster, &moved, &mut client, &id).await;
    publish(&cluster, &gateway, &new, &mut of_new, Way::OutboxWithKey).await;
    let path = format!("/v1/users/{kept}/notifications");
    let (status, body) = gateway.post(gateway.admin, &path, r#"{"data":-1,"durable":true}"#).await;
    assert_eq!(status, 503, "{body}");
    assert!(gateway.log().contains("cannot move keys"), "{}", gateway.log());
    gateway.ready().await;
    // If they are together again within its deadline, it is not even refused.
    let rejoining = async {
        sleep(Duration::from_millis(500)).await;
        cluster.move_keys(migration).await;
        cluster.end_migration(migration).await;
    };
    tokio::join!(gateway.store(&kept, "waits"), rejoining);
    let expected: [(&str, &[&str]); 3] = [(&moved, &["first", "one"]), (&new, &["one"]), (&kept, &["first", "waits"])];
    nothing_is_lost_or_doubled(&cluster, &gateway, migration, &expected).await;
}
