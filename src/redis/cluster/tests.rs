use std::time::Duration;

use redis::RedisConnectionInfo;
use tokio::time::advance;

use super::super::generation::Generation;
use super::super::replicated::Wait;
use super::super::tls::Tls;
use super::*;

fn at(port: u16) -> NodeAddress {
    NodeAddress { host: "h".into(), port }
}

fn cluster() -> Cluster {
    let wait = Wait { replicas: 0, timeout: Duration::from_secs(1) };
    let login = RedisConnectionInfo::default();
    let access = Access { login, uses_tls: false, tls: Tls::default(), name: "test".into(), wait };
    Cluster::new(access, vec![at(1)])
}

/// One master with all slots.
fn slots(epoch: u64, master: u16, replicas: &[u16]) -> Known {
    let node = |port: u16| Value::Array(vec![Value::BulkString(b"h".to_vec()), Value::Int(port.into())]);
    let nodes = std::iter::once(&master).chain(replicas).map(|port| node(*port));
    let range = [Value::Int(0), Value::Int(16_383)].into_iter().chain(nodes).collect();
    Known { epoch, slots: SlotMap::parse(&Value::Array(vec![Value::Array(range)]), "h").unwrap() }
}

fn connected(cluster: &Cluster, port: u16) -> Generation {
    cluster.server(&at(port)).unwrap().node.generations.current()
}

#[test]
fn the_connections_to_a_server_end_the_second_time_that_it_is_absent() {
    let cluster = cluster();
    assert!(cluster.learn(&slots(1, 1, &[2, 3]), true));
    let [master, second, third] = [1, 2, 3].map(|port| connected(&cluster, port));
    assert!(cluster.learn(&slots(2, 2, &[]), true));
    assert_eq!([&master, &second, &third].map(Generation::has_ended), [false; 3]);
    assert!(cluster.learn(&slots(2, 2, &[1, 3]), true));
    assert!(cluster.learn(&slots(2, 2, &[1]), true));
    assert!(!third.has_ended(), "it was present in between");
    assert!(cluster.learn(&slots(2, 2, &[1]), true));
    assert_eq!([&master, &second, &third].map(Generation::has_ended), [false, false, true]);
    assert!(!connected(&cluster, 3).has_ended(), "it may come again");
}

#[tokio::test]
async fn the_connections_to_an_absent_master_end_at_once_if_it_does_not_reply() {
    let cluster = cluster();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let failed = NodeAddress { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    drop(listener);
    let connection = cluster.server(&failed).unwrap().node.generations.current();
    cluster.leave_failed(&failed).await;
    assert!(connection.has_ended());
}

#[tokio::test(start_paused = true)]
async fn slots_with_a_lower_epoch_are_learnt_once_no_node_has_known_the_latest_for_a_while() {
    let cluster = cluster();
    assert!(cluster.learn(&slots(9, 1, &[]), true));
    let (master, created_again) = (connected(&cluster, 1), slots(3, 2, &[]));
    assert!(!cluster.learn(&created_again, true), "it was away");
    assert!(!cluster.learn_again(Some(created_again.clone())));
    advance(FORGOTTEN_AFTER - Duration::from_secs(1)).await;
    assert!(!cluster.learn_again(Some(created_again.clone())));
    assert_eq!(cluster.slots().owner(0), Some(&at(1)));
    advance(Duration::from_secs(1)).await;
    assert!(!cluster.learn_again(None));
    assert!(cluster.learn_again(Some(created_again)));
    assert_eq!(cluster.slots().owner(0), Some(&at(2)));
    assert!(cluster.learn(&slots(4, 2, &[]), true), "its epochs count from now on");
    // Of the earlier cluster.
    assert!(cluster.learn(&slots(4, 2, &[]), true) && master.has_ended());
}
