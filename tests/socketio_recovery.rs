//! A socket.io client that returns with its `pid` and `offset` receives the stored events that it missed, on any instance.

use serde_json::{Value, json};

use crate::support::{Gateway, Options, RedisServer, SocketIo, Store, text, token};

/// The numbers of the next stored events.
async fn numbers(client: &mut SocketIo, count: usize) -> Vec<u64> {
    client.stored(count).await.into_iter().map(|(number, _)| number).collect()
}

/// Connects user 42 with these fields: whether it has recovered, as the client judges, and its new pid.
async fn returns(gateway: &Gateway, auth: Value) -> (SocketIo, bool, String) {
    let (client, answer) = SocketIo::connect_with(gateway, "42", auth.clone()).await;
    (client, auth["pid"].is_string() && auth["pid"] == answer["pid"], text(&answer["pid"]).to_owned())
}

#[tokio::test]
async fn missed_stored_events_follow_in_order_each_once_on_any_instance_also_after_a_restart() {
    let redis = RedisServer::start().await;
    let (mut one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let store = Store::on(&redis);
    let (mut client, answer) = SocketIo::connect(&one, "42").await;
    store.publish("42", 1..=3).await;
    let received = client.stored(3).await;
    let (pid, offset) = (text(&answer["pid"]), received[2].1.as_str());
    one.kill().await;
    store.publish("42", 4..=200).await;
    let restarted = Gateway::redis(&redis).await;
    for gateway in [&two, &restarted] {
        let (mut client, again) = SocketIo::connect_with(gateway, "42", json!({"pid": pid, "offset": offset})).await;
        assert_eq!(text(&again["pid"]), pid, "the client has recovered");
        assert_ne!(again["sid"], answer["sid"], "the sid is always new");
        assert_eq!(numbers(&mut client, 197).await, (4..=200).collect::<Vec<_>>());
        // Before anything newer, which is not stored here.
        redis.publish("42", "true").await;
        assert_eq!(client.packet().await, r#"42["notification",true]"#);
    }
}

#[tokio::test]
async fn a_client_that_missed_nothing_has_recovered() {
    let gateway = Gateway::dev().await;
    let (client, _, pid) = returns(&gateway, json!({})).await;
    client.leave().await;
    let (_, recovered, again) = returns(&gateway, json!({"pid": pid})).await;
    assert!(recovered && again == pid);
}

#[tokio::test]
async fn the_later_of_pid_and_offset_that_is_a_cursor_of_the_user_counts() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let cursors = store.publish("42", 1..=4).await;
    let foreign = store.publish("43", 1..=9).await;
    let other_epoch = "0123456789abcdef-9000000000000-99";
    for (pid, offset, missed) in [
        (cursors[1].as_str(), Some(cursors[2].as_str()), vec![4]),
        (&cursors[2], Some(&cursors[1]), vec![4]),
        (&cursors[1], None, vec![3, 4]),
        (&cursors[1], Some("just text"), vec![3, 4]),
        (&cursors[1], Some(""), vec![3, 4]),
        ("P1", Some(&cursors[1]), vec![3, 4]),
        (&cursors[1], Some(&foreign[8]), vec![3, 4]),
        (&foreign[8], Some(&cursors[1]), vec![3, 4]),
        (&cursors[1], Some(other_epoch), vec![3, 4]),
        (other_epoch, Some(&cursors[1]), vec![3, 4]),
    ] {
        let auth = match offset {
            None => json!({"pid": pid}),
            Some(offset) => json!({"pid": pid, "offset": offset, "resume": cursors[0]}),
        };
        let (mut client, recovered, _) = returns(&gateway, auth.clone()).await;
        assert!(recovered, "{auth}");
        assert_eq!(numbers(&mut client, missed.len()).await, missed, "{auth}");
    }
    assert_eq!(gateway.metric(r#"tidings_resumes_total{result="recovered"}"#).await, 10.0);
}

#[tokio::test]
async fn otherwise_the_client_gets_a_new_pid_and_nothing_is_replayed() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("history.max_len", "10").start().await;
    let store = Store::with(&redis, &[("history.max_len", "10")]);
    let first = store.publish("42", [1]).await.remove(0);
    let foreign = store.publish("43", [1]).await.remove(0);
    let last = store.publish("42", 2..=300).await.pop().unwrap();
    for auth in [
        json!({"pid": first}),
        json!({"pid": first, "offset": first}),
        json!({"pid": foreign}),
        json!({"pid": "P1", "offset": "just text"}),
        json!({"pid": ""}),
        json!({"offset": first}),
        json!({"resume": first}),
        json!({"pid": "P1", "resume": last}),
        json!({}),
    ] {
        let (mut client, recovered, pid) = returns(&gateway, auth.clone()).await;
        assert!(!recovered && pid == last, "{auth}: {pid}");
        redis.publish("42", "true").await;
        assert_eq!(client.packet().await, r#"42["notification",true]"#, "{auth}");
        let (_, recovered, _) = returns(&gateway, json!({"pid": pid, "offset": auth["offset"]})).await;
        assert!(recovered, "with the new pid: {auth}");
    }
    assert_eq!(gateway.metric(r#"tidings_resumes_total{result="lost"}"#).await, 6.0);
}

#[tokio::test]
async fn a_new_pid_recovers_beside_a_stale_offset_of_another_epoch() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let stale = store.publish("42", 1..=5).await.pop().unwrap();
    redis.command::<()>(&["FLUSHALL"]).await;
    store.publish("42", [1]).await;
    let (client, recovered, pid) = returns(&gateway, json!({"pid": stale, "offset": stale})).await;
    assert!(!recovered && pid != stale);
    client.leave().await;
    store.publish("42", [2, 3]).await;
    let (mut client, recovered, _) = returns(&gateway, json!({"pid": pid, "offset": stale})).await;
    assert!(recovered);
    assert_eq!(numbers(&mut client, 2).await, [2, 3]);
}

#[tokio::test]
async fn a_page_resumes_from_a_cursor_that_it_kept_and_from_there_again_if_it_received_nothing() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let cursors = store.publish("42", 1..=4).await;
    let (mut client, _, pid) = returns(&gateway, json!({"resume": cursors[1]})).await;
    assert_eq!(numbers(&mut client, 2).await, [3, 4]);
    assert_eq!(pid, cursors[1], "what follows it is not received yet");
    let (mut client, recovered, _) = returns(&gateway, json!({"pid": pid, "resume": cursors[0]})).await;
    assert!(recovered);
    assert_eq!(numbers(&mut client, 2).await, [3, 4]);
}

#[tokio::test]
async fn a_client_without_pid_starts_at_the_present() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    store.publish("42", 1..=4).await;
    let mut client = SocketIo::open(&gateway).await;
    client.join(&json!({"token": token("42")})).await;
    store.publish("42", [5]).await;
    assert_eq!(numbers(&mut client, 1).await, [5]);
}

#[tokio::test]
async fn a_lost_subscription_is_filled_without_the_client_noticing() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let (mut client, _) = SocketIo::connect(&gateway, "42").await;
    store.publish("42", [1]).await;
    for round in 1..=10 {
        redis.command::<i64>(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
        store.publish("42", [2 * round, 2 * round + 1]).await;
    }
    assert_eq!(numbers(&mut client, 21).await, (1..=21).collect::<Vec<_>>());
}

#[tokio::test]
async fn without_the_history_a_client_that_does_not_resume_is_served_without_a_pid() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    redis.kill().await;
    gateway.not_ready().await;
    let (mut client, answer) = SocketIo::connect(&gateway, "42").await;
    assert!(answer["sid"].is_string() && answer.get("pid").is_none(), "{answer}");
    redis.restart().await;
    gateway.ready().await;
    redis.publish("42", "7").await;
    assert_eq!(client.packet().await, r#"42["notification",7]"#);
}
