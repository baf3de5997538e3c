//! The configurations of docs/proxies.md, on the servers of Debian: what each table says is so.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::json;

use crate::sse::next_block;
use crate::support::{
    Client, Edge, Gateway, Options, RedisServer, Server, eventually, handshake_from, http, now, refused, sign, token,
    within,
};

/// The address of a client, which is not the one of the proxy.
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

struct Fleet {
    redis: RedisServer,
    gateways: [Gateway; 2],
    edge: Edge,
}

async fn behind(server: Server) -> Fleet {
    let redis = RedisServer::start().await;
    let start =
        || Options::redis(&redis).set("limits.trusted_proxies", "127.0.0.1/32").set("drain.window", "2s").start();
    let (one, other) = tokio::join!(start(), start());
    let edge = Edge::start(server, [&one, &other]).await;
    Fleet { redis, gateways: [one, other], edge }
}

impl Fleet {
    /// Both dialects work, refusals arrive as they are, and a token may be as long as tidings accepts.
    async fn serves_clients(&self) {
        let (mut client, _) = Client::connect_at(self.edge.address, "42").await;
        let mut stream = self.open_stream("42").await;
        assert!(next_block(&mut stream).await.contains("\"welcome\""));
        for number in 0..3 {
            self.redis.publish("42", &number.to_string()).await;
            assert_eq!(client.event().await, number);
            // At once, although the stream goes on.
            assert!(next_block(&mut stream).await.contains(&format!("\"data\":{number}}}")));
        }
        let refusal = refused(self.edge.address, "/ws", &[("Authorization", "Bearer bad")]).await;
        assert_eq!((refusal.status, &*refusal.code), (401, "bad_token"));
        assert_eq!(refusal.headers["www-authenticate"], "Bearer");
        let long = sign(&json!({"sub": "43", "exp": now() + 60, "groups": "x".repeat(10_000)}));
        assert!(long.len() > 13_000, "{}", long.len());
        let (mut client, _) = Client::connect_at_with_token(self.edge.address, &long).await;
        self.redis.publish("43", "1").await;
        assert_eq!(client.event().await, 1);
    }

    /// The address is the client's, whatever the client claims.
    async fn names_the_client(&self) {
        let bearer = format!("Bearer {}", token("44"));
        let forged = [("Authorization", &*bearer), ("X-Forwarded-For", "192.0.2.7"), ("Forwarded", "for=192.0.2.8")];
        let _client = handshake_from(CLIENT, self.edge.address, "/ws", &forged).await.expect("admitted");
        let listed = self.gateways[0].ask_admin("GET", "/v1/users/44/connections", &[], "").await.json();
        assert_eq!(listed["connections"][0]["address"], CLIENT.to_string(), "{listed}");
    }

    /// Four clients in a row reach the other instance while one drains.
    async fn leaves_a_draining_instance(&self) {
        let [one, _other] = &self.gateways;
        // The drain takes as long as there are clients.
        let _clients = [Client::connect(one, "45").await, Client::connect(one, "45").await];
        one.signal("TERM");
        one.not_ready().await;
        eventually("new clients reach the other instance", async || {
            for _ in 0..4 {
                if self.open_stream("46").await.status() != 200 {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn open_stream(&self, user: &str) -> reqwest::Response {
        let request = http().get(format!("http://{}/events", self.edge.address)).bearer_auth(token(user));
        within("a response", request.send()).await.unwrap()
    }
}

#[tokio::test]
async fn haproxy_serves_clients_as_its_page_says() {
    let fleet = behind(Server::HaProxy).await;
    fleet.serves_clients().await;
    fleet.names_the_client().await;
    fleet.leaves_a_draining_instance().await;
}

#[tokio::test]
async fn caddy_serves_clients_as_its_page_says() {
    let fleet = behind(Server::Caddy).await;
    fleet.serves_clients().await;
    fleet.names_the_client().await;
    fleet.leaves_a_draining_instance().await;
}

#[tokio::test]
async fn apache_serves_clients_as_its_page_says() {
    let fleet = behind(Server::Apache).await;
    fleet.serves_clients().await;
    fleet.names_the_client().await;
    fleet.leaves_a_draining_instance().await;
}

#[tokio::test]
async fn varnish_serves_clients_as_its_page_says() {
    let fleet = behind(Server::Varnish).await;
    fleet.serves_clients().await;
    fleet.names_the_client().await;
    fleet.leaves_a_draining_instance().await;
}

/// It tries no other instance.
#[tokio::test]
async fn lighttpd_serves_clients_as_its_page_says() {
    let fleet = behind(Server::Lighttpd).await;
    fleet.serves_clients().await;
    fleet.names_the_client().await;
}
