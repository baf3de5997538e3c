//! The deployed topology: nginx with its own configuration, two instances, one Redis.

use std::collections::BTreeMap;

use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpSocket;
use tokio_rustls::rustls::version::{TLS12, TLS13};

use crate::support::{
    Authority, Client, Gateway, Nginx, Options, RedisServer, client_config, eventually, handshake, handshake_tls, http,
    sign, token,
};

struct Fleet {
    nginx: Nginx,
    gateways: [Gateway; 2],
    redis: RedisServer,
}

async fn fleet() -> Fleet {
    let redis = RedisServer::start().await;
    let start = || {
        let options = Options::redis(&redis).set("presence.lease", "2s").set("presence.offline_delay", "500ms");
        options.set("auth.query_token", "true").start()
    };
    let (one, other) = tokio::join!(start(), start());
    let nginx = Nginx::start(&[&one, &other]).await;
    Fleet { nginx, gateways: [one, other], redis }
}

/// Connects users through nginx; gives each client with the instance that holds it.
async fn connect(nginx: &Nginx, users: &[String]) -> Vec<(Client, String)> {
    let mut clients = Vec::new();
    for user in users {
        let (client, welcome) = Client::connect_at(nginx.address, user).await;
        clients.push((client, welcome["instance"].as_str().unwrap().to_owned()));
    }
    clients
}

#[tokio::test]
async fn clients_are_spread_over_both_instances_and_hear_what_is_theirs() {
    let Fleet { nginx, gateways, redis } = fleet().await;
    let users: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let mut clients = connect(&nginx, &users).await;
    let mut spread = BTreeMap::new();
    for (_, instance) in &clients {
        *spread.entry(instance.as_str()).or_insert(0) += 1;
    }
    let both = BTreeMap::from([(gateways[0].instance.as_str(), 5), (gateways[1].instance.as_str(), 5)]);
    assert_eq!(spread, both, "the least busy instance takes the next connection");
    for user in &users {
        assert_eq!(redis.publish(user, user).await, 2);
    }
    for (user, (client, _)) in users.iter().zip(&mut clients) {
        assert_eq!(client.event().await.to_string(), *user);
    }
    eventually("all are online", async || redis.online().await == users).await;
}

#[tokio::test]
async fn the_clients_of_a_killed_instance_come_back_through_nginx_and_presence_stays_right() {
    let Fleet { nginx, gateways: [mut doomed, other], redis } = fleet().await;
    let mut events = redis.subscribe("presence").await;
    let users: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let clients = connect(&nginx, &users).await;
    for _ in &users {
        assert_eq!(events.next().await["status"], "online");
    }
    doomed.kill().await;
    let mut back = Vec::new();
    let mut moved = 0;
    for (user, (mut client, instance)) in users.iter().zip(clients) {
        if instance == doomed.instance {
            assert_eq!(client.close_code().await, 1006);
            let (newer, welcome) = Client::connect_at(nginx.address, user).await;
            assert_eq!(welcome["instance"], other.instance);
            client = newer;
            moved += 1;
        }
        back.push(client);
    }
    assert_eq!(moved, 5);
    eventually("the dead one is reaped", async || other.metric("tidings_presence_reaped_total").await == 5.0).await;
    assert_eq!(redis.online().await, users);
    for user in &users {
        assert_eq!(redis.publish(user, user).await, 1);
    }
    for (user, client) in users.iter().zip(&mut back) {
        assert_eq!(client.event().await.to_string(), *user);
    }
    // No offline event was published: the next event is that of the newcomer.
    let _newcomer = Client::connect_at(nginx.address, "newcomer").await;
    assert_eq!(events.next().await["user"], "newcomer");
    // Users who do leave are published as offline.
    join_all(back.into_iter().map(Client::close)).await;
    eventually("only the newcomer is left", async || redis.online().await == ["newcomer"]).await;
}

#[tokio::test]
async fn a_fleet_without_instances_is_answered_for_by_nginx() {
    let Fleet { nginx, gateways: [mut one, mut other], redis: _redis } = fleet().await;
    let ready = format!("http://{}/readyz", nginx.address);
    assert_eq!(http().get(&ready).send().await.unwrap().status(), 200);
    one.kill().await;
    assert_eq!(http().get(&ready).send().await.unwrap().status(), 200, "one is enough");
    other.kill().await;
    let refused = handshake(nginx.address, "/ws", &[]).await.err().expect("refused");
    assert_eq!((refused.status, refused.code.as_str()), (503, "unavailable"));
    assert!(refused.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn admin_paths_are_404_through_nginx() {
    let Fleet { nginx, gateways, redis: _redis } = fleet().await;
    for path in
        ["/metrics", "/v1/info", "/v1/users/42/notifications", "/v1/presence", "/healthz", "//v1/info", "/%761/info"]
    {
        let url = format!("http://{}{path}", nginx.address);
        for request in [http().get(&url), http().post(&url).body(r#"{"data":1}"#)] {
            assert_eq!(request.send().await.unwrap().status(), 404, "{path}");
        }
        if path != "/healthz" {
            assert_eq!(gateways[0].get(gateways[0].public, path).await.0, 404, "{path} of an instance itself");
        }
    }
}

#[tokio::test]
async fn a_token_as_long_as_an_instance_takes_passes_nginx_too() {
    let Fleet { nginx, gateways, redis: _redis } = fleet().await;
    // In a head of 16 KiB, some room for what nginx adds.
    let long = sign(&json!({"sub": "42", "exp": 4_000_000_000_u64, "groups": "x".repeat(11_700)}));
    assert!((15_500..16_000).contains(&long.len()), "{}", long.len());
    let (bearer, protocols) = (format!("Bearer {long}"), format!("tidings.v1, bearer.{long}"));
    let query = format!("/ws?token={long}");
    for address in [gateways[0].public, nginx.address] {
        for (path, headers) in [
            ("/ws", &[("Authorization", bearer.as_str()), ("Sec-WebSocket-Protocol", "tidings.v1")][..]),
            ("/ws", &[("Sec-WebSocket-Protocol", protocols.as_str())]),
            (query.as_str(), &[("Sec-WebSocket-Protocol", "tidings.v1")]),
        ] {
            let mut client = handshake(address, path, headers).await.expect("admitted");
            assert_eq!(client.frame().await["user"], "42");
        }
    }
}

#[tokio::test]
async fn no_token_reaches_the_logs() {
    let Fleet { nginx, gateways: [mut one, mut other], redis: _redis } = fleet().await;
    let token = token("42");
    let signature = token.rsplit('.').next().unwrap();
    let (bearer, protocols) = (format!("Bearer {token}"), format!("tidings.v1, bearer.{token}"));
    let query = format!("/ws?token={token}");
    let ways: [(&str, Vec<(&str, &str)>); 3] = [
        ("/ws", vec![("Authorization", &bearer)]),
        ("/ws", vec![("Sec-WebSocket-Protocol", &protocols)]),
        (&query, vec![("Sec-WebSocket-Protocol", "tidings.v1")]),
    ];
    for (path, headers) in &ways {
        let mut client = handshake(nginx.address, path, headers).await.expect("admitted");
        assert_eq!(client.frame().await["user"], "42");
    }
    // Failures are what servers like to be wordy about.
    let forged = format!("/ws?token={token}x");
    assert_eq!(handshake(nginx.address, &forged, &[]).await.err().expect("refused").status, 401);
    one.kill().await;
    other.kill().await;
    for (path, headers) in &ways {
        assert_eq!(handshake(nginx.address, path, headers).await.err().expect("refused").status, 503);
    }
    eventually("all of it is logged", async || nginx.log().lines().filter(|line| line.contains("/ws")).count() >= 7)
        .await;
    for log in [nginx.log(), one.log(), other.log()] {
        assert!(!log.contains(signature), "{log}");
    }
}

#[tokio::test]
async fn tls_ends_at_nginx_and_events_go_through() {
    let (redis, authority) = (RedisServer::start().await, Authority::new());
    let gateway = Gateway::redis(&redis).await;
    let nginx = Nginx::start_tls(&[&gateway], &authority.certificate(&["127.0.0.1"])).await;
    for version in [&TLS12, &TLS13] {
        let socket = TcpSocket::new_v4().unwrap();
        let tls = handshake_tls(socket, nginx.address, &client_config(&authority, version)).await.unwrap();
        let (mut client, welcome) = Client::connect_over(tls, "42").await;
        assert_eq!(welcome["instance"], gateway.instance);
        redis.publish("42", "1").await;
        assert_eq!(client.event().await, 1);
        client.close().await;
    }
}

#[tokio::test]
async fn a_rolling_deploy_keeps_everybody() {
    let Fleet { nginx, gateways, redis } = fleet().await;
    let users: Vec<String> = (0..10).map(|number| number.to_string()).collect();
    let mut clients = connect(&nginx, &users).await;
    let mut newer = Vec::new();
    for mut gateway in gateways {
        gateway.signal("TERM");
        let held = |(_, instance): &&mut (Client, String)| *instance == gateway.instance;
        let leaving: Vec<_> = users.iter().zip(&mut clients).filter(|(_, client)| held(client)).collect();
        assert!(!leaving.is_empty());
        for (user, (client, instance)) in leaving {
            assert_eq!(client.close_code().await, 4200);
            let (next, welcome) = Client::connect_at(nginx.address, user).await;
            (*client, *instance) = (next, welcome["instance"].as_str().unwrap().to_owned());
        }
        // Its successor takes its place only after a clean exit.
        assert_eq!(gateway.exit().await.code(), Some(0));
        newer.push(Options::redis(&redis).set("server.listen", &gateway.public.to_string()).start().await);
    }
    assert_eq!(redis.online().await, users);
    for (user, (client, _)) in users.iter().zip(&mut clients) {
        assert_eq!(redis.publish(user, user).await, 2);
        assert_eq!(client.event().await.to_string(), *user);
    }
}
