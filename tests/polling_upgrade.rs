//! The upgrade of a polling session to a WebSocket: it neither loses nor repeats an event, and presence does not flap.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{Client, Gateway, Options, Polling, RedisServer, eventually, text, token};

/// The elements of an event.
fn event(packet: &str) -> Vec<Value> {
    let array = packet.strip_prefix("42").unwrap_or_else(|| panic!("an event was expected, not {packet}"));
    serde_json::from_str(array).unwrap()
}

#[tokio::test]
async fn a_probe_is_answered_a_held_get_ends_with_6_and_5_moves_the_session() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut presence = redis.subscribe("presence").await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    assert_eq!(presence.next().await["status"], "online");
    client.poll().await;
    client.get.silent().await;
    let mut websocket = client.websocket().await;
    websocket.send("2probe").await;
    assert_eq!(websocket.text().await, "3probe");
    assert_eq!(client.body().await, "6");
    // Between the probe and the upgrade, requests are not held, and events wait for a request or the upgrade.
    client.poll().await;
    assert_eq!(client.body().await, "6");
    redis.publish("42", "1").await;
    client.poll().await;
    assert!(["6", r#"42["notification",1]"#].contains(&client.body().await.as_str()));
    websocket.send("5").await;
    redis.publish("42", "2").await;
    while event(&websocket.text().await)[1] != 2 {}
    websocket.send("42[\"hey\"]").await;
    eventually("what it sends is handled", async || gateway.metric("tidings_socketio_ignored_total").await == 1.0)
        .await;
    assert_eq!(client.refused("GET").await.0, 400);
    assert_eq!(client.refused("POST").await.0, 400);
    assert_eq!(client.websocket_status().await, 400, "a second WebSocket");
    eventually("it is still one connection", async || {
        let (_, of_42) = gateway.get(gateway.admin, "/v1/users/42/presence").await;
        of_42.contains(r#""connections":1"#)
    })
    .await;
    websocket.close().await;
    assert_eq!(presence.next().await["status"], "offline", "and nothing in between");
}

#[tokio::test]
async fn an_upgrade_under_load_loses_no_event_and_repeats_none() {
    const COUNT: u64 = 400;
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for _ in 0..4 {
        let (client, _) = Polling::connect(&gateway, "42").await;
        let publishing = async {
            for number in 0..COUNT {
                redis.publish("42", &json!({"plain": number}).to_string()).await;
                if number % 4 == 0 {
                    gateway.store("42", json!({"stored": number})).await;
                }
            }
        };
        let following = follow_through_upgrade(client, "stored", COUNT - 4, "plain", COUNT - 1);
        let (received, ()) = tokio::join!(following, publishing);
        let of = |kind: &str| received.iter().filter_map(|data| data[kind].as_u64()).collect::<Vec<_>>();
        assert_eq!(of("plain"), (0..COUNT).collect::<Vec<_>>());
        assert_eq!(of("stored"), (0..COUNT).step_by(4).collect::<Vec<_>>());
    }
}

/// Polls for a while, upgrades, and reads until the last event of both kinds has come.
async fn follow_through_upgrade(mut client: Polling, a: &str, last_a: u64, b: &str, last_b: u64) -> Vec<Value> {
    let mut received: Vec<Value> = Vec::new();
    while received.len() < 100 {
        received.push(client.event().await[1].clone());
    }
    client.poll().await;
    let (mut websocket, packets) = client.upgrade().await;
    received.extend(packets.iter().map(|packet| event(packet)[1].clone()));
    let (mut seen_a, mut seen_b) = (false, false);
    let mut ended = |data: &Value| {
        seen_a |= data[a] == last_a;
        seen_b |= data[b] == last_b;
        seen_a && seen_b
    };
    let mut done = received.iter().fold(false, |_, data| ended(data));
    while !done {
        let data = event(&websocket.text().await)[1].clone();
        done = ended(&data);
        received.push(data);
    }
    received
}

#[tokio::test]
async fn what_a_client_sends_directly_after_its_upgrade_packet_is_handled() {
    let gateway = Gateway::dev().await;
    let (client, _) = Polling::connect(&gateway, "42").await;
    let mut websocket = client.websocket().await;
    websocket.send("2probe").await;
    assert_eq!(websocket.text().await, "3probe");
    let frames = ["5", "42[\"a\"]", "42[\"b\"]"].map(|packet| crate::support::masked(0x81, packet.as_bytes()));
    websocket.write(&frames.concat()).await;
    eventually("both are handled", async || gateway.metric("tidings_socketio_ignored_total").await == 2.0).await;
}

#[tokio::test]
async fn a_session_may_upgrade_before_its_connect() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let client = Polling::open(&gateway).await;
    let (mut websocket, packets) = client.upgrade().await;
    assert!(packets.is_empty(), "{packets:?}");
    websocket.send(&format!("40{}", json!({"token": token("42")}))).await;
    assert!(websocket.text().await.starts_with("40"));
    redis.publish("42", "1").await;
    assert_eq!(websocket.text().await, r#"42["notification",1]"#);
}

#[tokio::test]
async fn a_client_that_is_moving_to_a_websocket_learns_there_of_the_end() {
    let gateway = Gateway::dev().await;
    for has_upgraded in [false, true] {
        let (client, _) = Polling::connect(&gateway, "42").await;
        let mut websocket = client.websocket().await;
        websocket.send("2probe").await;
        assert_eq!(websocket.text().await, "3probe");
        if has_upgraded {
            websocket.send("5").await;
        }
        let disconnected = gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await;
        assert_eq!(disconnected.status, 202);
        if !has_upgraded {
            let closed = r#"tidings_connections_closed_total{code="4011"}"#;
            eventually("the session is ended", async || gateway.metric(closed).await == 1.0).await;
            websocket.send("5").await;
        }
        assert_eq!(websocket.text().await, "41");
        assert_eq!(websocket.close_frame().await, 4011);
    }
}

/// Sends these texts on a new WebSocket of the session, and waits for its end.
async fn fail_probe(client: &Polling, texts: &[&str]) {
    let mut websocket: Client = client.websocket().await;
    for text in texts {
        websocket.try_send(text).await;
    }
    while let Some(Message::Text(answer)) = websocket.message().await {
        assert_eq!(text(&json!(*answer)), "3probe");
    }
}

#[tokio::test]
async fn a_probe_that_fails_leaves_polling_alone() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut client, _) = Polling::connect(&gateway, "42").await;
    for texts in [&["3"][..], &["2probe", "2probe"], &["2probe", "42[\"a\"]"], &["5"]] {
        fail_probe(&client, texts).await;
    }
    // One that closes after its answer.
    let mut websocket = client.websocket().await;
    websocket.send("2probe").await;
    assert_eq!(websocket.text().await, "3probe");
    websocket.close().await;
    eventually("requests are held again", async || {
        client.poll().await;
        let held = tokio::time::timeout(std::time::Duration::from_millis(200), client.get.answer()).await;
        held.is_err()
    })
    .await;
    redis.publish("42", "1").await;
    assert_eq!(client.body().await, r#"42["notification",1]"#);
    let (mut websocket, _) = client.upgrade().await;
    redis.publish("42", "2").await;
    assert_eq!(websocket.text().await, r#"42["notification",2]"#);
}

#[tokio::test]
async fn one_probe_runs_at_a_time() {
    let gateway = Gateway::dev().await;
    let (client, _) = Polling::connect(&gateway, "42").await;
    let websocket = client.websocket().await;
    assert_eq!(client.websocket_status().await, 400);
    websocket.close().await;
    eventually("another may begin", async || client.websocket_status().await == 101).await;
}

#[tokio::test]
async fn an_upgraded_session_is_pinged_drained_and_counted_as_before() {
    let gateway = Options::dev().set("server.heartbeat", "300ms").set("drain.window", "500ms").start().await;
    let mut gateway = gateway;
    let (client, _) = Polling::connect(&gateway, "42").await;
    let (mut websocket, _) = client.upgrade().await;
    assert_eq!(websocket.text().await, "2");
    websocket.send("3").await;
    assert_eq!(websocket.text().await, "2");
    websocket.send("3").await;
    gateway.signal("TERM");
    let code = loop {
        match websocket.message().await {
            Some(Message::Close(Some(frame))) => break u16::from(frame.code),
            Some(_) => {}
            None => panic!("no close frame"),
        }
    };
    assert_eq!(code, 4200);
    assert!(gateway.exit().await.success());
}
