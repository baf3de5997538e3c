//! `/socket.io/` over a WebSocket: handshake, token, namespaces, events, heartbeat, and the packets of clients.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{
    Client, Gateway, Options, PATIENCE, RedisServer, SocketIo, Store, UPGRADE, WEBSOCKET, engine_refusal, eventually,
    handshake, token, token_for,
};

/// Publishes over HTTP.
async fn publish(gateway: &Gateway, user: &str, notification: &Value) {
    let path = format!("/v1/users/{user}/notifications");
    let (status, body) = gateway.post(gateway.admin, &path, &notification.to_string()).await;
    assert_eq!(status, 202, "{body}");
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[tokio::test]
async fn the_open_packet_contains_the_configured_heartbeat_and_maximum_and_nothing_is_compressed() {
    let options = Options::dev().set("server.heartbeat", "300ms").set("server.pong_timeout", "200ms");
    let gateway = options.set("limits.max_inbound_bytes", "1000000").start().await;
    let offer = [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits")];
    let mut client = SocketIo::open_with(gateway.public, "&t=abc&b64=1", &offer).await;
    let sid = client.open["sid"].as_str().unwrap().to_owned();
    let expected = json!({
        "sid": sid, "upgrades": [], "pingInterval": 300, "pingTimeout": 200, "maxPayload": 1_000_000,
    });
    assert_eq!(client.open, expected);
    assert!(sid.len() >= 20);
    assert!(!client.client().response.headers().contains_key("sec-websocket-extensions"));
}

#[tokio::test]
async fn only_the_default_path_is_served_and_only_where_it_is_configured() {
    let gateway = Gateway::dev().await;
    for path in ["/socket.io?EIO=4&transport=websocket", "/socket.io/x?EIO=4&transport=websocket"] {
        assert_eq!(gateway.ask_public("GET", path, &UPGRADE, "").await.status, 404, "{path}");
    }
    let gateway = Options::dev().set("server.socketio", "false").start().await;
    assert_eq!(gateway.ask_public("GET", WEBSOCKET, &UPGRADE, "").await.status, 404);
}

#[tokio::test]
async fn a_refused_handshake_has_the_code_of_engine_io() {
    let gateway = Options::dev().set("server.socketio_polling", "false").start().await;
    let upgrade = &UPGRADE[..];
    for (method, query, headers, code) in [
        ("GET", "transport=websocket", upgrade, 5),
        ("GET", "EIO=3&transport=websocket", upgrade, 5),
        ("GET", "EIO=abc&transport=websocket", upgrade, 5),
        ("GET", "EIO=3&transport=polling", &[], 5),
        ("GET", "EIO=4", upgrade, 0),
        ("GET", "EIO=4&transport=webtransport", upgrade, 0),
        ("GET", "EIO=4&transport=polling", &[], 0),
        ("POST", "EIO=4&transport=websocket", &[], 2),
        ("GET", "EIO=4&transport=websocket&sid=0123456789abcdef0123456789abcdef", upgrade, 1),
        ("GET", "EIO=4&transport=websocket", &[], 3),
        ("GET", "EIO=4&transport=websocket&device=%00", upgrade, 3),
        ("GET", "EIO=4&EIO=4&transport=websocket", upgrade, 3),
    ] {
        let (answer, found) = engine_refusal(&gateway, method, &format!("/socket.io/?{query}"), headers).await;
        assert_eq!((answer.status, found), (400, code), "{method} {query}: {answer:?}");
    }
    assert_eq!(gateway.metric(r#"tidings_refusals_total{code="protocol_unsupported"}"#).await, 4.0);
}

#[tokio::test]
async fn a_foreign_origin_is_forbidden_with_code_4() {
    let gateway = Options::dev().set("server.allowed_origins", "https://a.example").start().await;
    let foreign = [UPGRADE.as_slice(), &[("Origin", "https://b.example")]].concat();
    let (answer, code) = engine_refusal(&gateway, "GET", WEBSOCKET, &foreign).await;
    assert_eq!((answer.status, code, &answer.json()["message"]), (403, 4, &json!("Forbidden")));
    assert_eq!(gateway.metric(r#"tidings_refusals_total{code="origin_forbidden"}"#).await, 1.0);
    SocketIo::open_with(gateway.public, "", &[("Origin", "https://a.example")]).await;
}

#[tokio::test]
async fn limits_capacity_and_a_drain_refuse_the_handshake_with_a_retry_after() {
    let refused = async |gateway: &Gateway, status: u16, label: &str| {
        let (answer, _) = engine_refusal(gateway, "GET", WEBSOCKET, &UPGRADE).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, "1"), "{answer:?}");
        assert_eq!(gateway.metric(&format!("tidings_refusals_total{{code=\"{label}\"}}")).await, 1.0);
    };
    for (key, status) in [("max_connections", 503), ("max_connections_per_ip", 429)] {
        let gateway = Options::dev().set(&format!("limits.{key}"), "1").start().await;
        let _first = SocketIo::open(&gateway).await;
        refused(&gateway, status, key).await;
    }
    let gateway = Options::dev().set("limits.connects_per_second_per_ip", "1").start().await;
    eventually("the rate is exceeded", async || gateway.ask_public("GET", WEBSOCKET, &UPGRADE, "").await.status == 429)
        .await;
    let gateway = Options::dev().set("drain.window", "5s").start().await;
    let _open = [SocketIo::connect(&gateway, "42").await, SocketIo::connect(&gateway, "42").await];
    gateway.signal("TERM");
    gateway.not_ready().await;
    refused(&gateway, 503, "draining").await;
}

#[tokio::test]
async fn a_bad_token_never_gets_an_http_status() {
    let gateway = Gateway::dev().await;
    for (headers, query, code) in [
        (vec![("Authorization", "Bearer rubbish".to_owned())], String::new(), 4009),
        (vec![("Authorization", bearer(&token_for("42", -100)))], String::new(), 4010),
        (vec![], "&token=rubbish".to_owned(), 4009),
        (vec![], String::new(), 4009),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let mut client = SocketIo::open_with(gateway.public, &query, &headers).await;
        assert_eq!(client.refused("").await, code, "{headers:?}");
    }
    let gateway = Options::dev().set("auth.query_token", "false").start().await;
    let mut client = SocketIo::open_with(gateway.public, &format!("&token={}", token("42")), &[]).await;
    assert_eq!(client.refused("{}").await, 4009, "auth.query_token is off");
}

#[tokio::test]
async fn the_token_of_the_connect_takes_precedence_over_that_of_the_handshake() {
    let gateway = Gateway::dev().await;
    let authorization = bearer(&token("43"));
    let headers = [("Authorization", authorization.as_str())];
    let mut client = SocketIo::open_with(gateway.public, "", &headers).await;
    client.join(&json!({"token": token("42")})).await;
    publish(&gateway, "42", &json!({"data": 1})).await;
    assert_eq!(client.event().await, [json!("notification"), json!(1)]);
    let mut client = SocketIo::open_with(gateway.public, "", &headers).await;
    assert_eq!(client.refused(r#"{"token":"rubbish"}"#).await, 4009);
    assert_eq!(client.refused(r#"{"token":""}"#).await, 4009);
}

#[tokio::test]
async fn without_a_token_in_the_connect_that_of_the_handshake_counts() {
    let options = Options::dev().set("auth.token_cookie", "session").set("server.allowed_origins", "https://a.example");
    let gateway = options.start().await;
    let (token, origin) = (token("42"), ("Origin", "https://a.example"));
    let (authorization, cookie) = (bearer(&token), format!("session={token}"));
    let places: [(String, Vec<(&str, &str)>); 3] = [
        (String::new(), vec![("Authorization", &authorization)]),
        (String::new(), vec![("Cookie", &cookie), origin]),
        (format!("&token={token}"), vec![]),
    ];
    for (number, (query, headers)) in places.iter().enumerate() {
        let mut client = SocketIo::open_with(gateway.public, query, headers).await;
        client.join(&json!({"token": null, "name": "ignored"})).await;
        publish(&gateway, "42", &json!({"data": number})).await;
        assert_eq!(client.event().await, [json!("notification"), json!(number)]);
    }
    // A page of no known Origin has no cookies, but may have a token.
    let mut client = SocketIo::open_with(gateway.public, "", &[("Cookie", &cookie)]).await;
    assert_eq!(client.refused("").await, 4009);
    client.join(&json!({"token": token})).await;
}

#[tokio::test]
async fn a_leading_bearer_is_removed_from_the_token() {
    let gateway = Gateway::dev().await;
    SocketIo::open(&gateway).await.join(&json!({"token": bearer(&token("42"))})).await;
}

#[tokio::test]
async fn without_a_connect_in_time_the_session_is_closed() {
    let gateway = Options::dev().set("server.hello_timeout", "300ms").start().await;
    let (mut silent, mut elsewhere) = (SocketIo::open(&gateway).await, SocketIo::open(&gateway).await);
    elsewhere.send("40/admin,").await;
    assert_eq!(silent.closed().await, 4012);
    assert_eq!(elsewhere.end().await, (vec![r#"44/admin,{"message":"Invalid namespace"}"#.to_owned()], 4012));
    assert_eq!(gateway.metric(r#"tidings_refusals_total{code="4012"}"#).await, 2.0);
}

#[tokio::test]
async fn another_namespace_is_refused_and_the_connection_stays_open() {
    let gateway = Gateway::dev().await;
    let mut client = SocketIo::open(&gateway).await;
    client.send(r#"40/admin,{"token":"x"}"#).await;
    assert_eq!(client.packet().await, r#"44/admin,{"message":"Invalid namespace"}"#);
    client.join(&json!({"token": token("42")})).await;
    client.send("40/other?a=b").await;
    assert_eq!(client.packet().await, r#"44/other?a=b,{"message":"Invalid namespace"}"#);
    publish(&gateway, "42", &json!({"data": 1})).await;
    assert_eq!(client.event().await, [json!("notification"), json!(1)]);
}

#[tokio::test]
async fn the_connect_response_has_a_sid_and_a_pid_and_everything_published_after_it_arrives() {
    for subscribe in ["pattern", "exact"] {
        let redis = RedisServer::start().await;
        let gateway = Options::redis(&redis).set("redis.subscribe", subscribe).start().await;
        let mut sids = Vec::new();
        for number in 0..20 {
            let (mut client, answer) = SocketIo::connect(&gateway, "42").await;
            redis.publish("42", &number.to_string()).await;
            assert_eq!(client.event().await, [json!("notification"), json!(number)], "{subscribe}");
            assert_eq!(answer.as_object().unwrap().keys().collect::<Vec<_>>(), ["pid", "sid"]);
            sids.push(answer["sid"].clone());
            client.leave().await;
        }
        sids.sort_by_key(Value::to_string);
        sids.dedup();
        assert_eq!(sids.len(), 20);
    }
}

#[tokio::test]
async fn an_event_carries_its_name_its_data_byte_for_byte_and_a_string_last_only_if_it_is_a_cursor() {
    let redis = RedisServer::start().await;
    let (gateway, store) = (Gateway::redis(&redis).await, Store::on(&redis));
    let (mut client, _) = SocketIo::connect(&gateway, "42").await;
    for (published, received) in [
        (
            r#"{ "n" : 123456789012345678901234567890, "é":"\u00e9" }"#,
            r#"42["notification",{ "n" : 123456789012345678901234567890, "é":"\u00e9" }]"#,
        ),
        (r#"{"a":1,"a":2}"#, r#"42["notification",{"a":1,"a":2}]"#),
        ("null", r#"42["notification",null]"#),
        (" \r\n[1, 2]\n", r#"42["notification",[1, 2]]"#),
        (r#""just text""#, r#"42["notification","just text",null]"#),
        (r#"{"_placeholder":true,"num":0}"#, r#"42["notification",{"_placeholder":true,"num":0}]"#),
    ] {
        redis.publish("42", published).await;
        assert_eq!(client.packet().await, received);
    }
    let cursor = store.publish_json("42", r#""just text""#).await;
    assert_eq!(client.packet().await, format!(r#"42["notification","just text","{cursor}"]"#));
    publish(&gateway, "42", &json!({"data": {"id": 7}, "event": "paid \"now\""})).await;
    assert_eq!(client.packet().await, r#"42["paid \"now\"",{"id":7}]"#);
    let cursor = gateway.store_as("42", json!({"data": [1], "event": "paid"})).await;
    assert_eq!(client.packet().await, format!(r#"42["paid",[1],"{cursor}"]"#));
}

#[tokio::test]
async fn an_event_with_a_reserved_name_is_dropped_counted_and_passed_by() {
    const DROPPED: &str = r#"tidings_messages_dropped_total{reason="reserved_event"}"#;
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut client, before) = SocketIo::connect(&gateway, "42").await;
    let mut other = Client::connect(&gateway, "42").await;
    for name in ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"] {
        publish(&gateway, "42", &json!({"data": 1, "event": name})).await;
        assert_eq!(other.frame().await["event"], name);
    }
    assert_eq!(gateway.metric(DROPPED).await, 6.0);
    assert!(gateway.log().contains("reserved_event"), "{}", gateway.log());
    gateway.store_as("42", json!({"data": 2, "event": "disconnect"})).await;
    let paid = gateway.store("42", 3).await;
    // The position has moved past it: otherwise the next event would not follow, and the history would be read.
    assert_eq!(client.stored(1).await, [(3, paid.clone())]);
    assert_eq!(gateway.metric("tidings_gaps_found_total").await, 0.0);
    assert_eq!(gateway.metric("tidings_replayed_total").await, 0.0);
    assert_eq!(gateway.metric(DROPPED).await, 7.0);
    // In a replay, too.
    let (mut again, answer) = SocketIo::connect_with(&gateway, "42", json!({"pid": before["pid"]})).await;
    assert_eq!(answer["pid"], before["pid"]);
    assert_eq!(again.stored(1).await, [(3, paid)]);
    assert_eq!(gateway.metric(DROPPED).await, 8.0);
    redis.publish("42", "4").await;
    assert_eq!((again.event().await[1].clone(), client.event().await[1].clone()), (json!(4), json!(4)));
}

#[tokio::test]
async fn a_ping_comes_at_each_interval_whatever_else_the_client_sends() {
    let gateway = Options::dev().set("server.heartbeat", "300ms").set("server.pong_timeout", "5s").start().await;
    let (mut client, _) = SocketIo::connect(&gateway, "42").await;
    let begun = Instant::now();
    let mut pings = 0;
    while pings < 4 {
        // An event in each third of an interval would put off the ping of another dialect.
        match timeout(Duration::from_millis(100), client.any_packet()).await {
            Ok(packet) => {
                assert_eq!(packet, "2");
                client.send("3").await;
                pings += 1;
            }
            Err(_) => client.send(r#"42["hello"]"#).await,
        }
        assert!(begun.elapsed() < PATIENCE, "{pings} pings");
    }
    // A client waits for a ping before it has joined, too.
    let mut waiting = SocketIo::open(&gateway).await;
    assert_eq!(waiting.any_packet().await, "2");
}

#[tokio::test]
async fn without_the_client_s_3_the_session_is_closed_with_4201() {
    let gateway = Options::dev().set("server.heartbeat", "200ms").set("server.pong_timeout", "300ms").start().await;
    let (mut talking, _) = SocketIo::connect(&gateway, "42").await;
    assert_eq!(talking.any_packet().await, "2");
    let begun = Instant::now();
    let end = loop {
        // Nothing else counts as the answer, however much of it arrives.
        match timeout(Duration::from_millis(50), talking.packet_or_close()).await {
            Ok(end) => break end,
            Err(_) => talking.try_send(r#"42["hello"]"#).await,
        }
        assert!(begun.elapsed() < PATIENCE, "it stays without a 3");
    };
    assert_eq!(end, Err(4201), "and no second ping");
    let mut waiting = SocketIo::open(&gateway).await;
    assert_eq!(waiting.closed().await, 4201, "before a CONNECT, too");
}

#[tokio::test]
async fn what_a_client_emits_is_counted_and_ignored() {
    let gateway = Gateway::dev().await;
    let (mut client, _) = SocketIo::connect(&gateway, "42").await;
    for packet in [
        r#"42["hello",{"a":1}]"#,
        r#"427["with an ack id"]"#,
        r#"42["auth",{"token":"bad"}]"#,
        r#"42["ack","not a cursor"]"#,
        r#"42["",1]"#,
        "42[7]",
        "433[]",
    ] {
        client.send(packet).await;
    }
    client.send(r#"452-["binary",{"_placeholder":true,"num":0},{"_placeholder":true,"num":1}]"#).await;
    client.send_binary(&[1, 2, 3]).await;
    client.send_binary(&[]).await;
    client.send(r#"461-9[{"_placeholder":true,"num":0}]"#).await;
    client.send_binary(&[1]).await;
    eventually("all are counted", async || gateway.metric("tidings_socketio_ignored_total").await == 9.0).await;
    publish(&gateway, "42", &json!({"data": 1})).await;
    assert_eq!(client.packet().await, r#"42["notification",1]"#, "nothing was answered");
}

#[tokio::test]
async fn an_ack_event_sets_the_read_position_of_the_device() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for (query, device, ack) in [("", "default", ""), ("&device=tv", "tv", "12")] {
        let mut client = SocketIo::open_with(gateway.public, query, &[]).await;
        client.join(&json!({"token": token("42")})).await;
        gateway.store("42", 1).await;
        let cursor = client.stored(1).await.remove(0).1;
        client.send(&format!(r#"42{ack}["ack","{cursor}"]"#)).await;
        let path = format!("/v1/users/42/read-position?device={device}");
        eventually("the position is set", async || gateway.get(gateway.admin, &path).await.1.contains(&cursor)).await;
        client.leave().await;
    }
    assert_eq!(gateway.metric("tidings_socketio_ignored_total").await, 0.0);
}

#[tokio::test]
async fn the_limits_on_input_apply() {
    let options = Options::dev().set("limits.max_inbound_bytes", "1000").set("limits.inbound_frames_per_second", "1");
    let gateway = options.start().await;
    let (mut large, _) = SocketIo::connect(&gateway, "42").await;
    large.send(&format!(r#"42["{}"]"#, "x".repeat(1_000))).await;
    assert_eq!(large.closed().await, 1009);
    let (mut many, _) = SocketIo::connect(&gateway, "42").await;
    for _ in 0..120 {
        many.send("3").await;
    }
    assert_eq!(many.closed().await, 4101);
    let (mut torn, _) = SocketIo::connect(&gateway, "42").await;
    torn.client().write(&crate::support::masked(0x81, &[b'4', b'2', 0xff])).await;
    assert_eq!(torn.closed().await, 1007);
}

#[tokio::test]
async fn a_session_is_one_connection_of_its_user_in_presence_and_metrics() {
    const OPEN: &str = r#"tidings_transport_connections{transport="socketio"}"#;
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("presence.offline_delay", "50ms").start().await;
    let (client, _) = SocketIo::connect(&gateway, "42").await;
    eventually("online", async || redis.online().await == ["42"]).await;
    let (_, body) = gateway.get(gateway.admin, "/v1/users/42/presence").await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["connections"], 1, "{body}");
    assert_eq!((gateway.metric("tidings_connections").await, gateway.metric(OPEN).await), (1.0, 1.0));
    client.leave().await;
    eventually("offline", async || redis.online().await.is_empty()).await;
    eventually("closed", async || gateway.metric(OPEN).await == 0.0).await;
    assert_eq!(gateway.metric(r#"tidings_connections_closed_total{code="1000"}"#).await, 1.0);
}

#[tokio::test]
async fn a_socket_io_client_and_one_of_tidings_v1_receive_the_same_events_beside_each_other() {
    let gateway = Gateway::dev().await;
    let (mut one, _) = SocketIo::connect(&gateway, "42").await;
    let mut other = Client::connect(&gateway, "42").await;
    let mut raw =
        handshake(gateway.public, "/ws?format=raw", &[("Authorization", &bearer(&token("42")))]).await.unwrap();
    gateway.connections(3).await;
    for number in 0..50 {
        publish(&gateway, "42", &json!({"data": number})).await;
        assert_eq!(one.event().await, [json!("notification"), json!(number)]);
        assert_eq!((other.event().await, raw.text().await), (json!(number), number.to_string()));
    }
}
