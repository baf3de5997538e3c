//! TLS to the servers of a Sentinel's fleet and of a Cluster, with the configured authority and certificate.

use std::path::PathBuf;

use futures::future::join_all;

use crate::cluster::{ORDERLY, user_at};
use crate::redis_link::{delivered_within, reason};
use crate::sentinel::RESTORED;
use crate::support::{Authority, Client, Cluster, Gateway, Options, RedisServer, Sentinel, eventually};

const DURABLE: &str = r#"{"data":7,"durable":true}"#;

fn trusting(url: &str, authority: &Authority) -> Options {
    assert!(url.starts_with("rediss+"), "{url}");
    Options::redis_at(url).set("redis.ca_file", authority.ca_file().to_str().unwrap())
}

fn presenting(options: Options, [certificate, key]: &[PathBuf; 2]) -> Options {
    let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
    options.set("redis.cert_file", &path(certificate)).set("redis.key_file", &path(key))
}

async fn stores(gateway: &Gateway, user: &str, client: &mut Client) {
    let (status, answer) = gateway.post(gateway.admin, &format!("/v1/users/{user}/notifications"), DURABLE).await;
    assert_eq!(status, 202, "{answer}");
    while client.event().await != 7 {}
}

/// Without a certificate, or without the authority, the keys that correct it are named.
async fn is_refused(url: &str, authority: &Authority) {
    let other = Authority::new();
    for (options, key) in [(trusting(url, authority), "redis.cert_file"), (trusting(url, &other), "redis.ca_file")] {
        let gateway = options.start_unready().await;
        eventually("the key is named", async || reason(&gateway).await.contains(key)).await;
    }
}

#[tokio::test]
async fn an_instance_follows_the_master_of_sentinels_over_tls_with_its_certificate() {
    let authority = Authority::new();
    let fleet = Sentinel::start_tls(&authority).await;
    let certificate = authority.certificate(&["tidings"]);
    let gateway = presenting(trusting(&fleet.url(), &authority), &certificate).start().await;
    let mut client = Client::connect(&gateway, "42").await;
    let master = &fleet.servers()[fleet.master().await];
    eventually("online", async || master.online().await == ["42"]).await;
    stores(&gateway, "42", &mut client).await;
    // A failover does not wait for a replica that is behind: the client would be told what is lost.
    eventually("the replicas have it", async || {
        let has = async |server: &RedisServer| server.command::<u64>(&["EXISTS", "tidings:history:{42}"]).await == 1;
        join_all(fleet.servers().iter().map(has)).await.into_iter().all(|has| has)
    })
    .await;
    let new = &fleet.servers()[fleet.failover().await];
    delivered_within(RESTORED, new, &mut client).await;
    eventually("online there", async || new.online().await == ["42"]).await;
    is_refused(&fleet.url(), &authority).await;
}

#[tokio::test]
async fn an_instance_uses_every_node_of_a_cluster_over_tls_with_its_certificate() {
    let authority = Authority::new();
    let cluster = Cluster::start_tls(&authority).await;
    let certificate = authority.certificate(&["tidings"]);
    let mut gateways = Vec::new();
    for mode in ["pattern", "sharded"] {
        let options = trusting(&cluster.url(), &authority).set("redis.subscribe", mode);
        gateways.push(presenting(options, &certificate).start().await);
    }
    for master in 0..3 {
        let user = user_at(&cluster, master).await;
        for gateway in &gateways {
            let mut client = Client::connect(gateway, &user).await;
            stores(gateway, &user, &mut client).await;
            eventually("online", async || cluster.online().await.contains(&user)).await;
        }
    }
    let mut client = Client::connect(&gateways[0], "42").await;
    let heir = cluster.failover(0).await;
    delivered_within(ORDERLY, cluster.node(heir), &mut client).await;
    is_refused(&cluster.url(), &authority).await;
}
