//! The support for Redis topologies does what its users rely on.

use futures::future::join_all;

use crate::support::{Cluster, RedisServer, Sentinel, key_slot, text, within};

/// Sets a key to 1; gives how many of so many replicas have it.
async fn set_everywhere(server: &RedisServer, key: &str, replicas: u64) -> u64 {
    let mut connection = server.connection().await;
    let mut both = redis::pipe();
    // WAIT heeds only the writes of its own connection.
    both.set(key, 1).ignore().cmd("WAIT").arg(replicas).arg(0);
    let (acknowledged,) = within("an answer", both.query_async::<(u64,)>(&mut connection)).await.unwrap();
    acknowledged
}

#[tokio::test]
async fn a_sentinel_failover_promotes_another_server_which_has_what_was_written() {
    let sentinel = Sentinel::start().await;
    let old = sentinel.master().await;
    assert_eq!(old, 0);
    assert_eq!(set_everywhere(&sentinel.servers()[old], "written", 2).await, 2);
    let new = sentinel.failover().await;
    assert_ne!(new, old);
    let written: String = sentinel.servers()[new].command(&["GET", "written"]).await;
    assert_eq!(written, "1");
    assert_eq!(sentinel.master().await, new);
}

#[tokio::test]
async fn sentinels_replace_a_killed_master_while_one_of_them_is_frozen() {
    let mut sentinel = Sentinel::start_with(&["--requirepass", "secret", "--masterauth", "secret"]).await;
    assert!(sentinel.url().starts_with("redis+sentinel://:secret@127.0.0.1:") && sentinel.url().ends_with("/mymaster"));
    sentinel.freeze_sentinel(0);
    sentinel.kill(0).await;
    let new = sentinel.promoted(0).await;
    sentinel.thaw_sentinel(0);
    assert_eq!(sentinel.master().await, new, "the frozen one has learned it");
    sentinel.restart(0).await;
    sentinel.settled().await;
}

#[tokio::test]
async fn a_frozen_master_is_replaced_and_follows_when_it_is_back() {
    let mut sentinel = Sentinel::start().await;
    sentinel.kill_sentinel(2).await;
    sentinel.freeze(0);
    let new = sentinel.promoted(0).await;
    sentinel.thaw(0);
    sentinel.restart_sentinel(2).await;
    sentinel.settled().await;
    assert_eq!((sentinel.master().await, sentinel.sentinels().len()), (new, 3));
}

#[tokio::test]
async fn a_killed_node_of_a_cluster_is_replaced_by_its_replica() {
    let mut cluster = Cluster::start().await;
    let owner = cluster.owner_of("online_users").await;
    let () = cluster.command(&["SADD", "online_users", "42"]).await;
    assert_eq!(set_everywhere(cluster.node(owner), "{online_users}x", 1).await, 1);
    let replica = cluster.replica_of(owner).await;
    let client = cluster.client();
    cluster.kill(owner).await;
    cluster.promoted(replica).await;
    assert_eq!(cluster.owner_of("online_users").await, replica);
    assert_eq!(cluster.online().await, ["42"]);
    let found: u64 = client.command(&["SCARD", "online_users"]).await;
    assert_eq!(found, 1);
    cluster.restart(owner).await;
    cluster.settled().await;
    assert_eq!(cluster.replica_of(replica).await, owner, "the former master follows");
}

#[tokio::test]
async fn a_frozen_node_of_a_cluster_is_replaced_and_an_orderly_failover_gives_its_place_back() {
    let cluster = Cluster::start_with(&["--requirepass", "secret", "--masterauth", "secret"]).await;
    let replica = cluster.replica_of(1).await;
    cluster.freeze(1);
    cluster.promoted(replica).await;
    cluster.thaw(1);
    cluster.settled().await;
    assert_eq!(cluster.failover(replica).await, 1);
    assert_eq!(cluster.replica_of(1).await, replica);
}

#[tokio::test]
async fn a_slot_of_a_cluster_migrates_with_its_keys_and_back() {
    let cluster = Cluster::start().await;
    let (slot, keys) = (key_slot("{tag}"), ["{tag}a", "{tag}b", "{tag}c"]);
    let from = cluster.owner_of("tag").await;
    let to = (from + 1) % 3;
    join_all(keys.map(async |key| cluster.command::<()>(&["SET", key, key]).await)).await;
    let migration = cluster.begin_migration(slot, to).await;
    cluster.move_key(migration, keys[0]).await;
    assert_eq!(cluster.owner_of("tag").await, from, "half-way it is still the source's");
    for key in keys {
        assert_eq!(cluster.command::<String>(&["GET", key]).await, key);
    }
    let asked = cluster.node(from).connection().await;
    let error = redis::cmd("GET").arg(keys[0]).query_async::<()>(&mut asked.clone()).await.unwrap_err();
    assert_eq!(error.code(), Some("ASK"));
    cluster.move_keys(migration).await;
    cluster.end_migration(migration).await;
    assert_eq!(cluster.owner_of("tag").await, to);
    cluster.migrate_slot(slot, from).await;
    assert_eq!(cluster.owner_of("tag").await, from);
    for key in keys {
        assert_eq!(cluster.node(from).command::<String>(&["GET", key]).await, key);
    }
}

#[tokio::test]
async fn a_node_of_a_cluster_is_added_takes_a_slot_and_is_removed() {
    let mut cluster = Cluster::start().await;
    let (slot, first) = (key_slot("tag"), cluster.owner_of("tag").await);
    let () = cluster.command(&["SET", "tag", "1"]).await;
    let added = cluster.add_node().await;
    cluster.migrate_slot(slot, added).await;
    assert_eq!(cluster.slots_of(added).await, [slot]);
    assert_eq!(cluster.command::<u64>(&["GET", "tag"]).await, 1);
    cluster.migrate_slot(slot, first).await;
    cluster.remove_node(added).await;
    assert_eq!(cluster.command::<u64>(&["GET", "tag"]).await, 1);
}

#[tokio::test]
async fn a_publish_at_any_node_of_a_cluster_is_heard_at_any_other() {
    let cluster = Cluster::start().await;
    let mut heard = cluster.subscribe("user:42").await;
    for node in [0, 2, 5] {
        cluster.publish_at(node, "42", "\"hello\"").await;
        assert_eq!(text(&heard.next().await), "hello");
    }
    assert!(cluster.url().starts_with("redis+cluster://127.0.0.1:"));
}

#[test]
fn the_slot_of_a_key_is_that_of_its_tag() {
    assert_eq!([key_slot("123456789"), key_slot("foo")], [12739, 12182]);
    assert_eq!(key_slot("a{foo}b{bar}"), key_slot("foo"));
    assert_eq!(key_slot("{}x"), key_slot("{}x"));
    assert_ne!(key_slot("{}x"), key_slot("x"));
}
