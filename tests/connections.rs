//! `GET /v1/users/{id}/connections`: a user's connections across the fleet, asked of the instances at that moment.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    Client, Cluster, Gateway, Light, Options, Polling, RedisServer, Sentinel, SocketIo, SseClient, eventually,
    handshake, now, text, token,
};

/// The instances have two seconds to answer; the rest is for a busy machine.
const ANSWERED: Duration = Duration::from_secs(8);

async fn list(gateway: &Gateway, user: &str) -> Value {
    let begun = Instant::now();
    let (status, body) = gateway.get(gateway.admin, &format!("/v1/users/{user}/connections")).await;
    assert_eq!(status, 200, "{body}");
    assert!(begun.elapsed() < ANSWERED, "{:?}", begun.elapsed());
    serde_json::from_str(&body).unwrap()
}

/// Of a complete list, a field of each connection, sorted.
async fn listed(gateway: &Gateway, user: &str, field: &str) -> Vec<String> {
    let list = list(gateway, user).await;
    assert_eq!(list["unanswered"], json!([]), "{list}");
    let connections = list["connections"].as_array().unwrap();
    assert_eq!(list["total"], connections.len(), "{list}");
    let mut values: Vec<String> = connections.iter().map(|connection| text(&connection[field]).to_owned()).collect();
    values.sort();
    values
}

/// Waits until each of these instances knows that the others are live.
async fn know_each_other(gateways: &[Gateway]) {
    for gateway in gateways {
        eventually("all instances are live", async || {
            let (_, info) = gateway.get(gateway.admin, "/v1/info").await;
            let info: Value = serde_json::from_str(&info).unwrap();
            info["instances"].as_array().is_some_and(|others| others.len() + 1 == gateways.len())
        })
        .await;
    }
}

async fn fleet<const N: usize>(options: impl Fn(usize) -> Options) -> Vec<Gateway> {
    let gateways = join_all((0..N).map(|index| options(index).start())).await;
    know_each_other(&gateways).await;
    gateways
}

#[tokio::test]
async fn every_connection_of_a_user_is_listed_by_every_instance_with_what_it_is() {
    let redis = RedisServer::start().await;
    let [one, two] = &fleet::<2>(|_| Options::redis(&redis)).await[..] else { unreachable!() };
    let begun = now() * 1_000;
    let (framed, welcome) = Client::with_query(one, "42", "?device=phone").await;
    let bearer = format!("Bearer {}", token("42"));
    let _plain = handshake(two.public, "/ws", &[("Authorization", &bearer)]).await.expect("admitted");
    let _raw = Client::raw(two, "42").await;
    let _stream = SseClient::with(two, "42", "?device=tv", &[]).await;
    let _raw_stream = SseClient::ungreeted(one, "42", "?format=raw", &[]).await;
    let _socketio = SocketIo::connect(one, "42").await;
    let _polling = Polling::connect(two, "42").await;
    let _other = Client::connect(two, "43").await;
    one.connections(3).await;
    two.connections(5).await;
    for gateway in [one, two] {
        let dialects = listed(gateway, "42", "dialect").await;
        assert_eq!(dialects, ["raw", "socketio", "socketio", "sse", "sse", "tidings.v1", "tidings.v1"]);
        let devices = listed(gateway, "42", "device").await;
        assert_eq!(devices, ["default", "default", "default", "default", "default", "phone", "tv"]);
        let instances = listed(gateway, "42", "instance").await;
        assert_eq!(instances.iter().filter(|instance| **instance == one.instance).count(), 3);
        assert_eq!(instances.iter().filter(|instance| **instance == two.instance).count(), 4);
        assert_eq!(listed(gateway, "42", "address").await, vec!["127.0.0.1"; 7]);
        let list = list(gateway, "42").await;
        let first = &list["connections"][0];
        let expected = json!({
            "id": welcome["connection"], "instance": one.instance, "device": "phone", "address": "127.0.0.1",
            "connected_at": first["connected_at"], "dialect": "tidings.v1",
        });
        assert_eq!(*first, expected, "the oldest is the first");
        let times: Vec<u64> =
            list["connections"].as_array().unwrap().iter().map(|one| one["connected_at"].as_u64().unwrap()).collect();
        assert!(times.is_sorted() && times[0] >= begun && times[6] <= (now() + 1) * 1_000, "{times:?}");
        assert_eq!(listed(gateway, "absent", "id").await, Vec::<String>::new());
    }
    framed.close().await;
    eventually("the closed one is gone", async || listed(two, "42", "id").await.len() == 6).await;
}

#[tokio::test]
async fn the_address_is_that_of_the_client_as_trusted_proxies_name_it() {
    let gateway = Options::dev().set("limits.trusted_proxies", "127.0.0.1/32").start().await;
    let bearer = format!("Bearer {}", token("42"));
    let mut clients = Vec::new();
    for address in ["192.0.2.7", "192.0.2.8:4711", "2001:db8::7", "::ffff:192.0.2.9"] {
        let headers = [("Authorization", bearer.as_str()), ("X-Forwarded-For", address)];
        clients.push(handshake(gateway.public, "/ws", &headers).await.expect("admitted"));
    }
    gateway.connections(4).await;
    assert_eq!(listed(&gateway, "42", "address").await, ["192.0.2.7", "192.0.2.8", "192.0.2.9", "2001:db8::7"]);
}

#[tokio::test]
async fn an_instance_that_does_not_answer_in_time_is_named_and_the_others_are_listed() {
    let redis = RedisServer::start().await;
    let mut gateways = fleet::<3>(|_| Options::redis(&redis).set("presence.lease", "8s")).await;
    let clients = join_all(gateways.iter().map(|gateway| Client::connect(gateway, "42"))).await;
    assert_eq!(listed(&gateways[0], "42", "id").await.len(), 3);
    gateways[1].signal("STOP");
    let begun = Instant::now();
    // Of those that wait for it, 64 at most at a time.
    let asking = (0..80).map(|_| gateways[0].ask_admin("GET", "/v1/users/42/connections", &[], ""));
    let answers = join_all(asking).await;
    assert!(begun.elapsed() < ANSWERED, "{:?}", begun.elapsed());
    let (answered, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert!(refused.iter().all(|answer| answer.error() == (503, "busy".into())));
    assert!(answered.len() >= 64 && !refused.is_empty(), "{} of 80 were refused", refused.len());
    let found = answered[0].json();
    assert_eq!(found["unanswered"], json!([gateways[1].instance]));
    let instances = found["connections"].as_array().unwrap().iter().map(|one| text(&one["instance"]));
    let expected = [gateways[0].instance.as_str(), gateways[2].instance.as_str()];
    assert_eq!((instances.collect::<BTreeSet<_>>(), &found["total"]), (expected.into(), &json!(2)));
    gateways[1].signal("CONT");
    eventually("it answers again", async || list(&gateways[0], "42").await["unanswered"] == json!([])).await;
    // One that is dead is named until its lease ends.
    gateways[2].kill().await;
    assert_eq!(list(&gateways[0], "42").await["unanswered"], json!([gateways[2].instance]));
    eventually("the dead one is forgotten", async || list(&gateways[0], "42").await["unanswered"] == json!([])).await;
    assert_eq!(listed(&gateways[0], "42", "id").await.len(), 2);
    drop(clients);
}

#[tokio::test]
async fn of_a_user_with_more_than_1_000_connections_the_oldest_are_listed_and_all_are_counted() {
    let redis = RedisServer::start().await;
    // Answers come in parts that fit, however small payloads are.
    let gateways = fleet::<2>(|_| Options::redis(&redis).set("limits.max_payload_bytes", "10")).await;
    let mut clients: Vec<Light> = Vec::new();
    while clients.len() < 1_010 {
        let gateway = &gateways[clients.len() / 505];
        let connecting = (0..101).map(|_| Light::connect(gateway.public, "42"));
        clients.extend(join_all(connecting).await.into_iter().map(Result::unwrap));
    }
    for gateway in &gateways {
        let found = list(gateway, "42").await;
        let connections = found["connections"].as_array().unwrap();
        assert_eq!((connections.len(), &found["total"], &found["unanswered"]), (1_000, &json!(1_010), &json!([])));
        let count = |instance: &str| connections.iter().filter(|one| one["instance"] == instance).count();
        assert_eq!((count(&gateways[0].instance), count(&gateways[1].instance)), (505, 495), "the newest are left out");
        let ids: BTreeSet<&str> = connections.iter().map(|one| text(&one["id"])).collect();
        assert_eq!(ids.len(), 1_000);
    }
}

#[tokio::test]
async fn many_questions_at_once_are_answered_or_refused_and_none_is_answered_with_the_connections_of_another() {
    let redis = RedisServer::start().await;
    let gateways = fleet::<2>(|_| Options::redis(&redis)).await;
    let users: Vec<String> = (0..20).map(|user| format!("u{user}")).collect();
    let mut clients = Vec::new();
    for (number, user) in users.iter().enumerate() {
        for _ in 0..=number % 3 {
            clients.push(Client::connect(&gateways[1], user).await);
        }
    }
    let asking = (0..300).map(async |number: usize| {
        let path = format!("/v1/users/u{}/connections", number % 20);
        let answer = gateways[0].ask_admin("GET", &path, &[], "").await;
        if answer.status == 503 {
            assert_eq!(answer.error().1, "busy");
            return false;
        }
        let list = answer.json();
        assert_eq!((&list["total"], &list["unanswered"]), (&json!(number % 20 % 3 + 1), &json!([])), "{path}: {list}");
        true
    });
    let answered = join_all(asking).await.into_iter().filter(|answered| *answered).count();
    assert!(answered >= 64, "only {answered} of 300");
    let count = gateways[1].metric("tidings_connection_questions_total{result=\"answered\"}").await;
    assert!(count >= 64.0, "{count}");
}

#[tokio::test]
async fn what_others_publish_on_the_channels_of_instances_harms_nobody() {
    let redis = RedisServer::start().await;
    let gateways = fleet::<2>(|_| Options::redis(&redis)).await;
    let _client = Client::connect(&gateways[1], "42").await;
    let answers = format!("tidings:answers:{}", gateways[0].instance);
    for payload in ["", "{", "[]", r#"{"question":"x"}"#, &"x".repeat(100_000)] {
        redis.publish_bytes(answers.as_bytes(), payload.as_bytes()).await;
    }
    // An answer to no question.
    let foreign = json!({"question": "x", "instance": "y", "parts": 1, "total": 9, "connections": []}).to_string();
    redis.publish_bytes(answers.as_bytes(), foreign.as_bytes()).await;
    for question in [
        r#"{"connections":{}}"#.to_owned(),
        json!({"connections": {"user": "42", "question": "x", "instance": "y".repeat(65)}}).to_string(),
        json!({"connections": {"user": "", "question": "x", "instance": "y"}}).to_string(),
    ] {
        redis.publish_bytes(b"tidings:control", question.as_bytes()).await;
    }
    assert_eq!(listed(&gateways[0], "42", "instance").await, [gateways[1].instance.as_str()]);
    assert_eq!(gateways[0].metric("tidings_control_messages_total{command=\"bad\"}").await, 1.0);
}

#[tokio::test]
async fn nothing_of_it_is_kept_in_redis() {
    let redis = RedisServer::start().await;
    let gateways = fleet::<2>(|_| Options::redis(&redis)).await;
    let _clients = join_all(gateways.iter().map(|gateway| Client::connect(gateway, "42"))).await;
    assert_eq!(listed(&gateways[0], "42", "id").await.len(), 2);
    let keys: Vec<String> = redis.command(&["KEYS", "*"]).await;
    assert!(keys.iter().all(|key| !key.contains("answers") && !key.contains("connections")), "{keys:?}");
}

#[tokio::test]
async fn without_redis_the_list_is_503_and_a_development_instance_lists_its_own() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    redis.kill().await;
    let answer = gateway.ask_admin("GET", "/v1/users/42/connections", &[], "").await;
    assert_eq!(answer.error(), (503, "backplane_down".into()));
    let gateway = Gateway::dev().await;
    let (_client, welcome) = Client::connect_with_welcome(&gateway, "tenant:42").await;
    assert_eq!(listed(&gateway, "tenant:42", "id").await, [text(&welcome["connection"])]);
    let answer = gateway.ask_admin("GET", "/v1/users/a%0Ab/connections", &[], "").await;
    assert_eq!(answer.error(), (400, "bad_user".into()));
}

#[tokio::test]
async fn the_instances_of_a_cluster_and_behind_sentinels_list_the_connections_of_each_other() {
    let (cluster, sentinel) = tokio::join!(Cluster::start(), Sentinel::start());
    const MODES: [&str; 3] = ["pattern", "exact", "sharded"];
    let in_cluster = fleet::<3>(|index| Options::redis_at(&cluster.url()).set("redis.subscribe", MODES[index])).await;
    let behind_sentinels =
        fleet::<2>(|index| Options::redis_at(&sentinel.url()).set("redis.subscribe", MODES[index])).await;
    for gateways in [in_cluster, behind_sentinels] {
        let _clients = join_all(gateways.iter().map(|gateway| Client::connect(gateway, "42"))).await;
        let mut instances: Vec<String> = gateways.iter().map(|gateway| gateway.instance.clone()).collect();
        instances.sort();
        for gateway in &gateways {
            assert_eq!(listed(gateway, "42", "instance").await, instances);
        }
    }
}
