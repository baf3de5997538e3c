//! All clients move to another instance: paced from one that stops, all at once from one that died.

use std::collections::HashMap;
use std::time::Duration;

use futures::future::join_all;
use serde_json::Value;
use tidings::internals::Backoff;
use tokio::time::{sleep, timeout};

use crate::support::{Client, Gateway, Light, Options, RedisServer, eventually};

/// `LEAVING_CLIENTS=10000` is the whole promise, one test at a time (`--test-threads 1`), for the sake of the limit on
/// open files; the default leaves room for the tests beside it.
fn count() -> usize {
    std::env::var("LEAVING_CLIENTS").map_or(2_000, |count| count.parse().expect("a number"))
}

/// Connects users to an instance, some at a time.
async fn connect(gateway: &Gateway, count: usize) -> Vec<(String, Light)> {
    let mut clients = Vec::new();
    while clients.len() < count {
        let users: Vec<String> = (clients.len()..count).take(100).map(|number| format!("user-{number}")).collect();
        let lights = join_all(users.iter().map(|user| Light::connect(gateway.public, user))).await;
        clients.extend(users.into_iter().zip(lights).map(|(user, light)| (user, light.expect("admitted"))));
    }
    clients
}

async fn online(redis: &RedisServer) -> usize {
    redis.command(&["SCARD", "online_users"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_stops_hands_its_clients_over_evenly() {
    // An eighth of the window remains for the last client to move before its close.
    const WINDOW: Duration = Duration::from_millis(10_000 - 1_250);
    const SLOTS: usize = 20;
    let count = count();
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("drain.window", "10s");
    let mut leaving = options.set("log.level", "debug").set("log.format", "json").start().await;
    let staying = Gateway::redis(&redis).await;
    let clients = connect(&leaving, count).await;
    eventually("all users are online", async || online(&redis).await == count).await;

    leaving.signal("TERM");
    let moves = clients.into_iter().map(async |(user, mut light)| {
        let after = light.asked_away().await.expect("a reconnect frame for every client");
        light.live().await;
        let connection = std::mem::take(&mut light.connection);
        drop(light);
        let newer = Light::connect(staying.public, &user).await.expect("admitted by the other");
        (connection, after, newer)
    });
    let mut moved = join_all(moves).await;
    assert_eq!(leaving.exit().await.code(), Some(0));
    staying.connections(count as u64).await;
    assert_eq!(online(&redis).await, count);

    // The announced delays leave no burst above twice the mean, in any slot.
    let mut slots = [0; SLOTS];
    for (_, after, _) in &moved {
        assert!(*after <= WINDOW, "{after:?}");
        let slot = after.as_millis() as usize * SLOTS / WINDOW.as_millis() as usize;
        slots[slot.min(SLOTS - 1)] += 1;
    }
    let mean = count / SLOTS;
    assert!(slots.iter().all(|slot| (mean / 2..=mean * 2).contains(slot)), "{slots:?}");

    // And the instance's own record says that each was closed in its turn.
    let turns: HashMap<String, usize> = closings(&leaving.log()).zip(0..).collect();
    moved.sort_by_key(|(_, after, _)| *after);
    for (turn, (connection, after, _)) in moved.iter().enumerate() {
        let off = turns[connection].abs_diff(turn);
        assert!(off <= mean, "announced {after:?}, the {turn}th, closed as the {}th", turns[connection]);
    }
}

/// The connections whose end a JSON log records, in order.
fn closings(log: &str) -> impl Iterator<Item = String> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter_map(|line| {
        let fields = &line["fields"];
        (fields["message"] == "connection closed").then(|| fields["connection"].as_str().unwrap().to_owned())
    })
}

/// Comes back as the SDK does: at first within half a second, then over a doubling time of up to half a minute, each
/// try within 10 s.
async fn come_back(gateway: &Gateway, user: &str) -> Light {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
    loop {
        sleep(backoff.next_delay()).await;
        if let Ok(Ok(light)) = timeout(Duration::from_secs(10), Light::connect(gateway.public, user)).await {
            return light;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_of_a_killed_instance_are_all_back_within_a_minute() {
    let count = count();
    let redis = RedisServer::start().await;
    let (mut doomed, survivor) = (Gateway::redis(&redis).await, Gateway::redis(&redis).await);
    let clients = connect(&doomed, count).await;
    let mut resident = Client::connect(&survivor, "resident").await;
    eventually("all users are online", async || online(&redis).await == count + 1).await;

    doomed.kill().await;
    let returns = clients.into_iter().map(async |(user, mut light)| {
        light.live().await;
        drop(light);
        come_back(&survivor, &user).await
    });
    let crowd = timeout(Duration::from_secs(60), join_all(returns));
    // A client that stays connected receives everything, in order.
    let undisturbed = async {
        for number in 0.. {
            redis.publish("resident", &number.to_string()).await;
            assert_eq!(resident.event().await, number);
            sleep(Duration::from_millis(50)).await;
        }
    };
    let back = tokio::select! {
        back = crowd => back.expect("all are back within a minute"),
        () = undisturbed => unreachable!("it never ends"),
    };
    assert_eq!(back.len(), count);
    survivor.connections(count as u64 + 1).await;
    eventually("the dead one is reaped", async || survivor.metric("tidings_presence_reaped_total").await > 0.0).await;
    assert_eq!(online(&redis).await, count + 1);
}
