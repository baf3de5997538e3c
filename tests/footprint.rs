//! The memory of an idle connection.

use futures::future::join_all;

use crate::support::{Client, Gateway, RedisServer, eventually};

const WARM_UP: usize = 500;
const COUNT: usize = 3_000;
const MOST_BYTES: u64 = 10_000;

/// Connects this many users more, some at a time.
async fn connect(gateway: &Gateway, clients: &mut Vec<Client>, count: usize) {
    let wanted = clients.len() + count;
    while clients.len() < wanted {
        let names: Vec<String> = (0..50).map(|number| format!("user-{}", clients.len() + number)).collect();
        clients.extend(join_all(names.iter().map(|name| Client::connect(gateway, name))).await);
    }
}

#[tokio::test]
async fn an_idle_connection_costs_less_than_10_kb_of_resident_memory() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let everybody_is_online = async |count: usize| {
        eventually("everybody is online", async || redis.command::<usize>(&["SCARD", "online_users"]).await == count)
            .await;
    };
    let mut clients = Vec::new();
    connect(&gateway, &mut clients, WARM_UP).await;
    everybody_is_online(WARM_UP).await;
    let before = gateway.resident_bytes();
    connect(&gateway, &mut clients, COUNT).await;
    everybody_is_online(WARM_UP + COUNT).await;
    let each = gateway.resident_bytes().saturating_sub(before) / COUNT as u64;
    assert!(each < MOST_BYTES, "{each} bytes each");

    // They are connections, not corpses.
    let last = clients.last_mut().unwrap();
    redis.publish(&format!("user-{}", WARM_UP + COUNT - 1), "1").await;
    assert_eq!(last.event().await, 1);
}
