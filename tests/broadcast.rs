//! A broadcast reaches every connection of every user once, and delays no message of a user.

use futures::future::join_all;
use redis::Pipeline;
use serde_json::{Value, json};

use crate::support::{
    Client, Cluster, Gateway, Light, Options, Polling, RedisServer, Sentinel, SocketIo, SseClient, eventually,
    handshake, token, within,
};

const CHANNEL: &str = "tidings:broadcast";

/// More connections than are written to at once.
const MANY: usize = 600;

async fn publish(redis: &RedisServer, payload: &str) -> u64 {
    redis.command(&["PUBLISH", CHANNEL, payload]).await
}

/// Publishes messages on these channels, all in one pipeline.
async fn publish_together(redis: &RedisServer, messages: &[(String, String)]) {
    let mut pipeline = Pipeline::new();
    for (channel, payload) in messages {
        pipeline.publish(channel, payload).ignore();
    }
    let mut connection = redis.connection().await;
    let _: () = within("an answer of redis", pipeline.query_async(&mut connection)).await.unwrap();
}

async fn post(gateway: &Gateway, body: &str) -> (u16, Value) {
    let answer = gateway.ask_admin("POST", "/v1/broadcast", &[], body).await;
    (answer.status, answer.json())
}

async fn dropped(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metric(&format!("tidings_messages_dropped_total{{reason=\"{reason}\"}}")).await
}

/// As many users as [`MANY`], each with one connection.
async fn many(gateway: &Gateway) -> Vec<Light> {
    let mut clients = Vec::new();
    while clients.len() < MANY {
        let some = (0..50).map(|number| format!("u{}", clients.len() + number));
        let some: Vec<String> = some.collect();
        let connecting = some.iter().map(|user| Light::connect(gateway.public, user));
        clients.extend(join_all(connecting).await.into_iter().map(Result::unwrap));
    }
    clients
}

async fn next(client: &mut Light) -> Value {
    within("an event", client.event()).await.unwrap()
}

/// A client of each dialect, and how it receives the data of an event.
struct Everyone {
    framed: Client,
    plain: Client,
    raw: Client,
    stream: SseClient,
    raw_stream: SseClient,
    socketio: SocketIo,
    polling: Polling,
}

impl Everyone {
    async fn connect(gateway: &Gateway) -> Self {
        let bearer = format!("Bearer {}", token("plain"));
        let mut plain = handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await.expect("admitted");
        assert_eq!(plain.frame().await["type"], "welcome");
        let everyone = Self {
            framed: Client::connect(gateway, "framed").await,
            plain,
            raw: Client::raw(gateway, "raw").await,
            stream: SseClient::connect(gateway, "stream").await.0,
            raw_stream: SseClient::ungreeted(gateway, "raw stream", "?format=raw", &[]).await,
            socketio: SocketIo::connect(gateway, "socketio").await.0,
            polling: Polling::connect(gateway, "polling").await.0,
        };
        gateway.connections(7).await;
        everyone
    }

    /// The next event of each must be this one.
    async fn receive(&mut self, event: &str, data: &str) {
        let frame = format!(r#"{{"type":"event","event":"{event}","data":{data}}}"#);
        assert_eq!(self.framed.text().await, frame);
        assert_eq!(self.plain.text().await, frame);
        assert_eq!(self.raw.text().await, data);
        assert_eq!(self.stream.message().await.text, format!("data: {frame}\n\n"));
        assert_eq!(self.raw_stream.message().await.text, format!("data: {data}\n\n"));
        let packet = format!(r#"42["{event}",{data}]"#);
        assert_eq!(self.socketio.packet().await, packet);
        assert_eq!(self.polling.packet().await, packet);
    }
}

#[tokio::test]
async fn a_broadcast_reaches_every_connection_on_every_instance_once_in_each_dialect() {
    let redis = RedisServer::start().await;
    let (one, two) = tokio::join!(Gateway::redis(&redis), Gateway::redis(&redis));
    let (mut here, mut there) = tokio::join!(Everyone::connect(&one), Everyone::connect(&two));
    assert_eq!(publish(&redis, r#" { "n": 1.0 } "#).await, 2, "the reply counts the instances");
    publish(&redis, r#"~"sale" [2]"#).await;
    assert_eq!(post(&two, r#"{"data":{"n":3}}"#).await, (202, json!({})));
    assert_eq!(post(&one, r#"{"data": "4" ,"event":"maintenance"}"#).await, (202, json!({})));
    for everyone in [&mut here, &mut there] {
        everyone.receive("notification", r#"{ "n": 1.0 }"#).await;
        everyone.receive("sale", "[2]").await;
        everyone.receive("notification", r#"{"n":3}"#).await;
    }
    // A string in the last place would be a position for a socket.io client.
    for everyone in [&mut here, &mut there] {
        assert_eq!(everyone.raw.text().await, "\"4\"");
        assert_eq!(everyone.polling.packet().await, r#"42["maintenance","4",null]"#);
    }
    for gateway in [&one, &two] {
        assert_eq!(gateway.metric("tidings_broadcasts_total").await, 4.0);
        assert_eq!(gateway.metric("tidings_deliveries_total").await, 28.0);
    }
    assert_eq!(two.metric("tidings_published_total").await, 1.0);
    let (_, page) = one.get(one.admin, "/v1/users/framed/notifications").await;
    assert_eq!(page, r#"{"notifications":[],"next":null}"#, "nothing is stored");
}

#[tokio::test]
async fn a_user_with_several_connections_gets_a_broadcast_on_each_in_the_order_of_its_messages() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    let message = |channel: &str, number: u64| (channel.to_owned(), number.to_string());
    let messages = [("user:42", 1), (CHANNEL, 2), ("user:42", 3), (CHANNEL, 4), (CHANNEL, 5), ("user:42", 6)];
    publish_together(&redis, &messages.map(|(channel, number)| message(channel, number))).await;
    for client in &mut clients {
        for number in 1..=6 {
            assert_eq!(client.event().await, number, "few connections are written to at once");
        }
    }
}

#[tokio::test]
async fn a_development_instance_without_redis_broadcasts_too() {
    let gateway = Gateway::dev().await;
    let mut everyone = Everyone::connect(&gateway).await;
    assert_eq!(post(&gateway, r#"{"data":{"n":1},"event":"sale"}"#).await.0, 202);
    everyone.receive("sale", r#"{"n":1}"#).await;
}

#[tokio::test]
async fn a_broadcast_over_http_is_refused_like_a_notification() {
    let gateway = Options::dev().set("limits.max_payload_bytes", "1000").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let long = format!(r#"{{"data":1,"event":"{}"}}"#, "x".repeat(129));
    for body in [
        "",
        "[]",
        "{}",
        r#"{"event":"a"}"#,
        r#"{"data":1,"event":""}"#,
        &long,
        r#"{"data":1,"durable":true}"#,
        "{\"data\":",
    ] {
        let answer = gateway.ask_admin("POST", "/v1/broadcast", &[], body).await;
        assert_eq!(answer.error(), (400, "bad_request".into()), "{body}");
    }
    for bytes in [1_000, 70_000] {
        let body = json!({"data": "x".repeat(bytes)}).to_string();
        let answer = gateway.ask_admin("POST", "/v1/broadcast", &[], &body).await;
        assert_eq!(answer.error(), (413, "too_large".into()), "{bytes}");
    }
    assert_eq!(gateway.ask_public("POST", "/v1/broadcast", &[], r#"{"data":1}"#).await.status, 404);
    // It could not be kept: nothing is stored.
    let key = [("Idempotency-Key", "1")];
    let answer = gateway.ask_admin("POST", "/v1/broadcast", &key, r#"{"data":1}"#).await;
    assert_eq!(answer.error(), (400, "bad_request".into()));
    assert_eq!(post(&gateway, r#"{"data":"last"}"#).await.0, 202);
    assert_eq!(client.event().await, "last", "none of the others was sent");
}

#[tokio::test]
async fn without_redis_a_broadcast_over_http_is_503() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    redis.kill().await;
    let answer = gateway.ask_admin("POST", "/v1/broadcast", &[], r#"{"data":1}"#).await;
    assert_eq!(answer.error(), (503, "backplane_down".into()));
}

#[tokio::test]
async fn payloads_that_are_no_broadcast_are_counted_and_harm_nobody() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("limits.max_payload_bytes", "1000").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let (mut socketio, _) = SocketIo::connect(&gateway, "43").await;
    let cursor = "0000000000000abc-1795000000123-17";
    let large = format!("\"{}\"", "x".repeat(1_000));
    let huge = format!("\"{}\"", "x".repeat(10_000));
    let payloads: [(&[u8], &str); 9] = [
        (b"", "json"),
        (b"{\"a\":", "json"),
        (b"~\"named\" {", "json"),
        (b"\"\xff\"", "utf8"),
        (b"~", "stamp"),
        (b"~!{\"retracted\":\"x\"}", "stamp"),
        (&format!("~12@term {cursor} \"stored\" 1").into_bytes(), "stamp"),
        (large.as_bytes(), "size"),
        (huge.as_bytes(), "size"),
    ];
    for (payload, _) in payloads {
        redis.publish_bytes(CHANNEL.as_bytes(), payload).await;
    }
    // A name that socket.io clients keep for themselves reaches the others.
    publish(&redis, r#"~"connect" 1"#).await;
    publish(&redis, "2").await;
    assert_eq!([client.event().await, client.event().await], [1, 2]);
    assert_eq!(socketio.packet().await, r#"42["notification",2]"#);
    for (reason, count) in [("json", 3.0), ("utf8", 1.0), ("stamp", 3.0), ("size", 2.0), ("reserved_event", 1.0)] {
        assert_eq!(dropped(&gateway, reason).await, count, "{reason}");
    }
    assert!(gateway.log().contains("message dropped"), "{}", gateway.log());
}

#[tokio::test]
async fn beyond_512_connections_other_messages_overtake_a_broadcast_that_each_connection_gets_once() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut clients = many(&gateway).await;
    let own = (0..MANY).map(|user| (format!("user:u{user}"), "\"own\"".to_owned()));
    let broadcast = |data: &str| (CHANNEL.to_owned(), data.to_owned());
    let messages: Vec<_> = [broadcast("\"first\""), broadcast("\"second\"")].into_iter().chain(own).collect();
    publish_together(&redis, &messages).await;
    publish(&redis, "\"last\"").await;
    let mut overtaken = 0;
    for client in &mut clients {
        let mut received = Vec::new();
        while received.last() != Some(&json!("last")) {
            received.push(next(client).await);
        }
        overtaken += usize::from(received[0] == "own");
        received.retain(|data| data != "own");
        assert_eq!(received, ["first", "second", "last"], "each once, in the order of publishing");
    }
    assert!(overtaken > 0, "the messages of all users waited for the broadcast");
    assert_eq!(gateway.metric("tidings_broadcasts_total").await, 3.0);
    assert_eq!(gateway.metric("tidings_deliveries_total").await, 4.0 * 600.0);
}

#[tokio::test]
async fn connections_that_come_and_go_get_a_broadcast_at_most_once_and_those_that_stay_exactly_once() {
    const BROADCASTS: u64 = 40;
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut clients = many(&gateway).await;
    let address = gateway.public;
    // Others come, some of them users who are there already, receive a few events and leave.
    let passing = |number: u64| async move {
        let mut seen = 0;
        loop {
            let user = if number.is_multiple_of(2) { format!("u{number}") } else { format!("passing{number}") };
            let mut client = Light::connect(address, &user).await.unwrap();
            let mut previous = None;
            for _ in 0..3 {
                let number = next(&mut client).await.as_u64().unwrap();
                assert!(previous.is_none_or(|previous| number == previous + 1), "{number} after {previous:?}");
                previous = Some(number);
                seen += 1;
            }
            if previous >= Some(BROADCASTS) {
                return seen;
            }
            client.close().await;
        }
    };
    #[allow(clippy::disallowed_methods, reason = "they are awaited below")]
    let passers: Vec<_> = (0..20).map(|number| tokio::spawn(passing(number))).collect();
    let publishing = async {
        for number in 0_u32.. {
            publish(&redis, &number.to_string()).await;
            let is_written = async || gateway.metric("tidings_broadcasts_total").await > f64::from(number);
            eventually("it is written", is_written).await;
            // The last ones are for those who have connected late.
            if u64::from(number) > BROADCASTS && passers.iter().all(tokio::task::JoinHandle::is_finished) {
                return;
            }
        }
    };
    let receiving = async {
        for client in &mut clients {
            for number in 0..=BROADCASTS {
                assert_eq!(next(client).await, number);
            }
        }
    };
    tokio::join!(publishing, receiving);
    for passer in passers {
        assert!(passer.await.unwrap() > 0);
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_is_closed_at_a_broadcast_and_delays_nobody() {
    let redis = RedisServer::start().await;
    // Only its queue ends it; a slow machine sends no pings meanwhile.
    let options = Options::redis(&redis).set("send_queue.write_timeout", "1h").set("server.heartbeat", "1h");
    let gateway = options.set("send_queue.max_messages", "20").start().await;
    let mut clients = many(&gateway).await;
    let mut slow = Client::connect_narrow(&gateway, "slow").await;
    let mut filling = 0.0;
    while gateway.metric("tidings_backlog_bytes").await == 0.0 {
        redis.publish("slow", &json!("x".repeat(20_000)).to_string()).await;
        filling += 1.0;
        let is_received = async || gateway.metric("tidings_messages_received_total").await == filling;
        eventually("the instance receives it", is_received).await;
    }
    let mut rounds = 0;
    while gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await == 0.0 {
        publish(&redis, &json!(rounds).to_string()).await;
        for client in &mut clients {
            assert_eq!(next(client).await, rounds);
        }
        rounds += 1;
        assert!(rounds < 100, "it is still connected");
    }
    assert!([4203, 1006].contains(&slow.close_code().await));
    assert!(gateway.metric("tidings_deliveries_dropped_total").await > 0.0);
    assert_eq!(gateway.metric("tidings_connections_closed_total{code=\"4203\"}").await, 1.0);
}

#[tokio::test]
async fn broadcasts_beyond_the_bound_are_dropped_counted_and_logged() {
    const PUBLISHED: u64 = 3_000;
    let redis = RedisServer::start().await;
    let options = Options::redis(&redis).set("send_queue.max_messages", "10000").set("server.heartbeat", "1h");
    let gateway = options.start().await;
    let mut clients = many(&gateway).await;
    let messages: Vec<_> = (0..PUBLISHED).map(|number| (CHANNEL.to_owned(), number.to_string())).collect();
    let reading = async {
        let mut received: Vec<Vec<u64>> = Vec::new();
        for client in &mut clients {
            let mut numbers = Vec::new();
            while numbers.last() != Some(&PUBLISHED) {
                numbers.push(next(client).await.as_u64().unwrap());
            }
            received.push(numbers);
        }
        received
    };
    let publishing = async {
        publish_together(&redis, &messages).await;
        let written = async || gateway.metric("tidings_broadcasts_total").await;
        let is_settled = async || written().await + dropped(&gateway, "overflow").await == 3_000.0;
        while !is_settled().await {
            let before = written().await;
            eventually("another is written", async || written().await > before || is_settled().await).await;
        }
        publish(&redis, &PUBLISHED.to_string()).await;
    };
    let ((), received) = tokio::join!(publishing, reading);
    let overflow = dropped(&gateway, "overflow").await;
    assert!(overflow > 0.0, "none was dropped");
    assert!(received.iter().all(|numbers| *numbers == received[0]), "every connection gets the same ones");
    assert!(received[0].is_sorted_by(|a, b| a < b) && received[0][0] == 0, "in the order of publishing");
    assert_eq!(gateway.metric("tidings_broadcasts_total").await, 3_001.0 - overflow);
    assert!(gateway.log().contains("reason=\"overflow\""), "{}", gateway.log());
}

#[tokio::test]
async fn a_running_broadcast_ends_with_the_instance() {
    let redis = RedisServer::start().await;
    let mut gateway = Gateway::redis(&redis).await;
    let _clients = many(&gateway).await;
    let payload = json!("x".repeat(1_000)).to_string();
    publish_together(&redis, &vec![(CHANNEL.to_owned(), payload); 250]).await;
    gateway.signal("TERM");
    assert!(gateway.exit().await.success());
    let log = gateway.log();
    assert!(log.contains("presence released") && !log.contains("services were still running"), "{log}");
}

/// Publishes at a node, until each of these clients has received it.
async fn reaches(clients: &mut [Client], publish: impl Future<Output = ()>) {
    publish.await;
    for client in clients {
        assert_eq!(client.event().await, "all");
    }
}

#[tokio::test]
async fn a_broadcast_reaches_every_instance_of_a_cluster_in_each_mode_from_any_node() {
    let cluster = Cluster::start().await;
    let start = |mode| Options::redis_at(&cluster.url()).set("redis.subscribe", mode).start();
    let gateways = join_all(["pattern", "exact", "sharded"].map(start)).await;
    let mut clients = join_all(gateways.iter().map(|gateway| Client::connect(gateway, "42"))).await;
    for node in 0..3 {
        let publish = async {
            let _: u64 = cluster.node(node).command(&["PUBLISH", CHANNEL, "\"all\""]).await;
        };
        reaches(&mut clients, publish).await;
    }
    for gateway in &gateways {
        let publish = async { assert_eq!(post(gateway, r#"{"data":"all"}"#).await.0, 202) };
        reaches(&mut clients, publish).await;
    }
}

#[tokio::test]
async fn a_broadcast_reaches_every_instance_behind_sentinels_before_and_after_a_failover() {
    let sentinel = Sentinel::start().await;
    let start = |mode| Options::redis_at(&sentinel.url()).set("redis.subscribe", mode).start();
    let gateways = join_all(["pattern", "exact"].map(start)).await;
    let mut clients = join_all(gateways.iter().map(|gateway| Client::connect(gateway, "42"))).await;
    let publish = async { assert_eq!(post(&gateways[0], r#"{"data":"all"}"#).await.0, 202) };
    reaches(&mut clients, publish).await;
    sentinel.failover().await;
    for gateway in &gateways {
        gateway.ready().await;
    }
    let publish = async { assert_eq!(post(&gateways[1], r#"{"data":"all"}"#).await.0, 202) };
    reaches(&mut clients, publish).await;
}

#[tokio::test]
async fn with_another_prefix_the_channel_has_that_prefix() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("redis.prefix", "app:").start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let mut published = redis.subscribe("app:broadcast").await;
    publish(&redis, "\"not ours\"").await;
    assert_eq!(post(&gateway, r#"{"data":"ours"}"#).await.0, 202);
    assert_eq!(client.event().await, "ours");
    assert_eq!(published.next().await, "ours");
}

#[tokio::test]
async fn a_socketio_client_that_is_not_joined_and_a_client_before_its_hello_get_no_broadcast() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (mut joining, mut anonymous) = (SocketIo::open(&gateway).await, Client::anonymous(&gateway).await);
    publish(&redis, "1").await;
    eventually("it is written", async || gateway.metric("tidings_broadcasts_total").await == 1.0).await;
    joining.join(&json!({"token": token("42")})).await;
    anonymous.send(&json!({"type": "hello", "token": token("43")}).to_string()).await;
    assert_eq!(anonymous.frame().await["type"], "welcome");
    publish(&redis, "2").await;
    assert_eq!(joining.packet().await, r#"42["notification",2]"#);
    assert_eq!(anonymous.event().await, 2);
}
