//! Taking notifications back: one, through a collapse key, and all of a user.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidings::internals::{Acked, Cursor, Publication, ReadFrom, ReadPosition, Retracted, Shutdown, UserId};

use super::{Store, durable};
use crate::support::{RedisServer, eventually, within};

#[tokio::test]
async fn after_an_erasure_no_key_or_value_in_redis_has_the_users_id_or_data() {
    let redis = Arc::new(RedisServer::start().await);
    for store in [Store::new(Some(&redis), &[]), Store::in_buckets(&redis, &[])] {
        let user = "the erased one";
        for number in 0..1_200 {
            let key = format!("the key {number}");
            let publication = Publication { key: Some(&key), durable: number % 100 == 0, ..durable("\"the data\"") };
            store.publish(user, publication).await.unwrap();
        }
        let replaced = store.replace(user, "the collapse", "\"the data\"").await;
        store.replace(user, "the collapse", "\"the data\"").await;
        let ttl = Some(Duration::from_secs(3_600));
        store.publish(user, Publication { ttl, ..durable("\"the data\"") }).await.unwrap();
        store.ack(user, "the device", replaced).await;
        let other = store.store("another", "1").await;
        let before = redis.contents().await;
        for what in [user, "the data", "the key 7", "the collapse", "the device", "retracted", "expiring"] {
            assert!(before.contains(what), "{what}: {before}");
        }
        store.erase(user).await;
        let after = redis.contents().await;
        for what in [user, "the data", "the key", "the collapse", "the device", "retracted", "expiring"] {
            assert!(!after.contains(what), "{what}: {after}");
        }
        assert_eq!(store.behind("another", other).await, Some(vec![]));
        store.erase("another").await;
    }
}

#[tokio::test]
async fn the_epoch_of_an_erased_user_ends_with_the_place_that_it_would_have() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[("history.ttl", "1h")]);
    let first = store.store("42", "1").await;
    store.erase("42").await;
    redis.step_clock(40 * 86_400_000);
    let second = store.store("42", "2").await;
    let shutdown = Shutdown::default();
    store.history.watch_gaps(Duration::from_millis(5), &shutdown);
    redis.step_clock(40 * 86_400_000);
    store.scanned("42").await;
    assert_eq!(store.here("42").await, second, "kept since the last that was stored");
    assert!(!store.is_whole_behind("42", first).await);
    redis.step_clock(21 * 86_400_000);
    eventually("it ends", async || store.here("42").await.epoch == first.epoch).await;
    for cursor in [first, second] {
        assert!(!store.is_whole_behind("42", cursor).await);
    }
    within("the checks end", shutdown.stop(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn what_is_recorded_of_an_earlier_count_of_the_numbers_is_forgotten() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[]);
    store.replace("42", "chat 7", "1").await;
    store.publish("42", Publication { ttl: Some(Duration::from_secs(60)), ..durable("2") }).await.unwrap();
    let third = store.store("42", "3").await;
    store.retract("42", third).await;
    let () = redis.command(&["DEL", &store.user_key("history", "42")]).await;
    let () = redis.command(&["HDEL", &store.bucket_key("42"), ":42"]).await;
    let start = store.here("42").await;
    store.store_numbers("42", 1..=3).await;
    for kind in ["retracted", "expiring", "collapse"] {
        assert_eq!(redis.command::<u64>(&["EXISTS", &store.user_key(kind, "42")]).await, 0, "{kind}");
    }
    redis.step_clock(61_000);
    assert_eq!(store.position("42", "phone").await.unread, 3);
    assert_eq!(store.behind("42", start).await.unwrap(), ["1", "2", "3"]);
}

#[tokio::test]
async fn of_a_retracted_notification_its_number_alone_is_recorded_and_that_not_forever() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[]);
    store.store("42", "1").await;
    let both = Publication { ttl: Some(Duration::from_secs(60)), collapse: Some("chat 7"), ..durable("2") };
    let second = store.publish("42", both).await.unwrap().unwrap();
    store.store("42", "3").await;
    store.retract("42", second).await;
    for kind in ["expiring", "collapse"] {
        assert_eq!(redis.command::<u64>(&["EXISTS", &store.user_key(kind, "42")]).await, 0, "{kind}");
    }
    assert!(redis.command::<i64>(&["PTTL", &store.user_key("retracted", "42")]).await > 0);
    redis.step_clock(61_000);
    assert_eq!(store.position("42", "phone").await.unread, 2);
}

#[tokio::test]
async fn times_do_not_go_back_behind_an_erasure() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[]);
    let before = store.store("42", "1").await;
    store.erase("42").await;
    redis.step_clock(-3_600_000);
    let after = store.store("42", "2").await;
    assert!(after.ms > before.ms, "{after} after {before}");
}

#[tokio::test]
async fn a_collapse_key_whose_record_was_evicted_replaces_the_newest_that_has_it() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let first = store.replace("42", "chat 7", "1").await;
    let () = redis.command(&["DEL", &store.user_key("collapse", "42")]).await;
    store.replace("42", "chat 7", "2").await;
    store.retract("42", first).await;
    store.replace("42", "chat 7", "3").await;
    assert_eq!(store.all("42").await, ["3"]);
}

/// As versions before runs stored: `until` alone ends an entry.
#[tokio::test]
async fn what_an_earlier_version_stored_is_read_and_retracted() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let first = store.store("42", "1").await;
    let stream = store.user_key("history", "42");
    let entries = [("2", "1"), ("3", "9000000000000"), ("4", "9000000000000")];
    for (number, until) in entries {
        let position = format!("{}-{number}", first.ms);
        let event = ["event", "\"notification\"", "data", number, "until", until];
        let _: String = redis.command(&[&["XADD", &stream, &position], &event[..]].concat()).await;
        let () = redis.command(&["HSET", &store.bucket_key("42"), ":42", &position]).await;
    }
    assert_eq!(store.behind("42", first).await.unwrap(), ["3", "4"]);
    let at = |number| Cursor { number, ..first };
    assert_eq!(store.behind("42", at(2)).await.unwrap(), ["3", "4"]);
    // Before places, too.
    let () = redis.command(&["HDEL", &store.bucket_key("42"), ":42"]).await;
    assert_eq!(store.retract("42", at(4)).await, Retracted::Gone);
    assert_eq!(store.behind("42", first).await.unwrap(), ["3"]);
    assert_eq!(store.store("42", "5").await.number, 5);
}

#[tokio::test]
async fn a_redis_that_is_out_of_memory_takes_back_all_the_same() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let places = store.store_numbers("42", 1..=3).await;
    let brief = Publication { ttl: Some(Duration::from_millis(1)), ..durable("4") };
    store.publish("42", brief).await.unwrap();
    redis.config_set("maxmemory", "1").await;
    assert_eq!(store.publish("42", durable("5")).await, Err("OOM"));
    eventually("it has ended", async || store.position("42", "phone").await.unread == 3).await;
    store.retract("42", places[1]).await;
    assert_eq!(store.all("42").await, ["1", "3"]);
    store.erase("42").await;
    assert!(store.all("42").await.is_empty() && !store.is_whole_behind("42", places[0]).await);
}

/// Every key and value in Redis, in one order.
async fn contents(redis: &RedisServer) -> Vec<String> {
    let mut lines: Vec<_> = redis.contents().await.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn what_a_key_of_another_type_refuses_changes_nothing() {
    let redis = Arc::new(RedisServer::start().await);
    for store in [Store::new(Some(&redis), &[]), Store::in_buckets(&redis, &[])] {
        for kind in ["retracted", "expiring", "escalations", "keys", "collapse"] {
            let (user, start) = (UserId::new(kind).unwrap(), store.here(kind).await);
            let first = store.replace(kind, "c", "1").await;
            let key = store.user_key(kind, kind);
            let () = redis.command(&["SET", &key, "x"]).await;
            let before = contents(&redis).await;
            let (ttl, escalate) = (Some(Duration::from_secs(3_600)), Some(Duration::from_secs(60)));
            let all = Publication { key: Some("k"), collapse: Some("c"), ttl, escalate, ..durable("2") };
            // One that retracts nothing adds no run.
            let others = (kind != "retracted").then_some(Publication { collapse: Some("another"), ..all });
            for publication in std::iter::once(all).chain(others) {
                assert_eq!(store.publish(kind, publication).await, Err("refused"), "{kind}");
                assert_eq!(contents(&redis).await, before, "{kind}");
            }
            if kind == "keys" {
                let brief = Publication { key: Some("l"), ..durable("3") };
                assert_eq!(store.publish(kind, Publication { durable: false, ..brief }).await, Err("refused"));
            } else {
                assert_eq!(store.history.retract(&user, &first).await.unwrap_err().kind(), "refused", "{kind}");
            }
            assert_eq!(contents(&redis).await, before, "{kind}");

            let () = redis.command(&["DEL", &key]).await;
            assert_eq!(store.behind(kind, start).await.unwrap(), ["1"]);
            store.publish(kind, all).await.unwrap();
            // Without its record, the earlier one stays.
            let expected: &[&str] = if kind == "collapse" { &["1", "2"] } else { &["2"] };
            assert_eq!(store.behind(kind, start).await.unwrap(), expected, "{kind}");
        }
    }
}

#[tokio::test]
async fn an_end_an_ack_or_an_erasure_that_a_key_of_another_type_refuses_changes_nothing() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[]);
    let refused = async |key: &str, action: &str| {
        let () = redis.command(&["SET", key, "x"]).await;
        let (user, before) = (UserId::new("42").unwrap(), contents(&redis).await);
        let place = Cursor { number: 1, ..store.history.newest(std::slice::from_ref(&user)).await.unwrap()[0] };
        match action {
            "ack" => assert_eq!(store.ack("42", "phone", place).await, Acked::Foreign),
            "erase" => assert_eq!(store.history.erase(&user).await.unwrap_err().kind(), "refused"),
            _ => assert_eq!(store.history.read_position(&user, "phone").await.unwrap_err().kind(), "refused"),
        }
        assert_eq!(contents(&redis).await, before, "{action}");
        let () = redis.command(&["DEL", key]).await;
    };
    store.publish("42", Publication { ttl: Some(Duration::from_secs(60)), ..durable("1") }).await.unwrap();
    store.store("42", "2").await;
    redis.step_clock(61_000);
    for kind in ["retracted", "escalations"] {
        refused(&store.user_key(kind, "42"), "end").await;
    }
    assert_eq!(store.position("42", "phone").await.unread, 1);
    refused(&store.bucket_key("42").replace("history", "escalations"), "erase").await;
    refused(&store.user_key("history", "42"), "ack").await;
    store.erase("42").await;
}

/// Each costs Redis time: those that take back nothing must not pay for it.
#[tokio::test]
async fn a_publication_without_a_collapse_key_runs_no_command_for_it() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let commands = async |publication: Publication<'_>| {
        store.store_numbers("42", 1..=16).await;
        let () = redis.command(&["CONFIG", "RESETSTAT"]).await;
        store.publish("42", publication).await.unwrap();
        let info: String = redis.command(&["INFO", "commandstats"]).await;
        let run = |line: &str| {
            let (name, calls) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
            let is_own = !["config", "eval", "info", "hello", "client", "auth", "select"]
                .iter()
                .any(|other| name.starts_with(other));
            is_own.then(|| calls.split(',').next().unwrap().parse::<u32>().unwrap())
        };
        info.lines().filter_map(run).sum::<u32>()
    };
    assert_eq!(commands(durable("1")).await, 6);
    assert_eq!(commands(Publication { key: Some("k"), ..durable("1") }).await, 12);
}

pub(super) async fn checks(store: impl Fn(&[(&str, &str)]) -> Store) {
    a_retracted_notification_is_in_no_reading_or_count(&store(&[])).await;
    retracted_ones_at_either_end_are_no_gap(&store(&[])).await;
    a_cursor_of_another_user_or_of_none_retracts_nothing(&store(&[])).await;
    the_newest_with_a_collapse_key_replaces_the_earlier_one(&store(&[])).await;
    notices_are_heard_in_the_order_of_the_events(&store(&[])).await;
    one_that_ended_by_its_own_ttl_is_not_unread(&store(&[])).await;
    an_erased_user_begins_again(&store(&[])).await;
    an_erased_users_cursors_stay_invalid_as_long_as_they_could_be_believed(&store(&[])).await;
    what_is_recorded_is_bounded(&store(&[("history.max_len", "10")])).await;
}

impl Store {
    pub(super) async fn retract(&self, user: &str, cursor: Cursor) -> Retracted {
        self.history.retract(&UserId::new(user).unwrap(), &cursor).await.unwrap()
    }

    pub(super) async fn erase(&self, user: &str) {
        self.history.erase(&UserId::new(user).unwrap()).await.unwrap();
    }

    async fn replace(&self, user: &str, key: &str, data: &str) -> Cursor {
        let publication = Publication { collapse: Some(key), ..durable(data) };
        self.publish(user, publication).await.unwrap().unwrap()
    }

    async fn all(&self, user: &str) -> Vec<String> {
        self.read(user, ReadFrom::Oldest).await.entries.into_iter().map(|entry| entry.data).collect()
    }
}

async fn a_retracted_notification_is_in_no_reading_or_count(store: &Store) {
    let start = store.here("42").await;
    let places = store.store_numbers("42", 1..=5).await;
    store.ack("42", "phone", places[0]).await;
    for index in [2, 1] {
        assert_eq!(store.retract("42", places[index]).await, Retracted::Gone);
    }
    assert_eq!(store.retract("42", places[1]).await, Retracted::Gone, "it may be repeated");
    assert_eq!(store.all("42").await, ["1", "4", "5"]);
    assert_eq!(store.behind("42", start).await.unwrap(), ["1", "4", "5"]);
    for place in &places[..3] {
        assert_eq!(store.behind("42", *place).await.unwrap(), ["4", "5"]);
    }
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: Some(places[0]), unread: 2 });
    assert_eq!(store.position("42", "default").await.unread, 3);
    assert_eq!(store.ack("42", "phone", places[2]).await, Acked::Kept, "its cursor stays good");
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: Some(places[2]), unread: 2 });
    assert_eq!(store.store("42", "6").await.number, 6);
    let acked = store.read("42", ReadFrom::Acked("phone".into())).await;
    assert!(acked.whole && acked.entries.len() == 3);
}

async fn retracted_ones_at_either_end_are_no_gap(store: &Store) {
    let start = store.here("42").await;
    let places = store.store_numbers("42", 1..=4).await;
    for index in [3, 0] {
        store.retract("42", places[index]).await;
    }
    let reading = store.read("42", ReadFrom::After(places[2])).await;
    assert!(reading.whole && reading.entries.is_empty() && reading.is_complete());
    assert_eq!((reading.upto, reading.newest), (places[3], places[3]));
    assert_eq!(store.here("42").await, places[3], "the newest keeps its place");
    assert!(store.read("42", ReadFrom::Acked("never".into())).await.whole);
    for index in [1, 2] {
        store.retract("42", places[index]).await;
    }
    for place in std::iter::once(start).chain(places.iter().copied()) {
        assert_eq!(store.behind("42", place).await, Some(vec![]), "all of them are gone");
        assert_eq!(store.position("42", "phone").await.unread, 0);
    }
    assert!(store.read("42", ReadFrom::Acked("never".into())).await.whole);
    let next = store.store("42", "5").await;
    assert_eq!((next.number, store.behind("42", start).await), (5, Some(vec!["5".into()])));
    let newest = store.history.newest(&[UserId::new("42").unwrap()]).await.unwrap();
    assert_eq!(newest, [next]);
}

async fn a_cursor_of_another_user_or_of_none_retracts_nothing(store: &Store) {
    let (start, places) = (store.here("42").await, store.store_numbers("42", 1..=2).await);
    let other = store.store("43", "1").await;
    let epoch = places[0].epoch.checked_add(1).unwrap();
    for wrong in [other, Cursor { epoch, ..places[0] }, Cursor { number: 3, ..places[1] }] {
        assert_eq!(store.retract("42", wrong).await, Retracted::Foreign);
    }
    assert_eq!(store.retract("42", start).await, Retracted::Gone, "before the first: nothing is there");
    assert_eq!((store.all("42").await, store.all("43").await), (vec!["1".into(), "2".into()], vec!["1".into()]));
}

async fn the_newest_with_a_collapse_key_replaces_the_earlier_one(store: &Store) {
    let start = store.here("42").await;
    let first = store.replace("42", "chat \"7\"", "1").await;
    store.replace("42", "chat 8", "2").await;
    store.store("42", "3").await;
    store.ack("42", "phone", first).await;
    let last = store.replace("42", "chat \"7\"", "4").await;
    assert_eq!(last.number, 4);
    assert_eq!(store.all("42").await, ["2", "3", "4"]);
    assert_eq!(store.behind("42", start).await.unwrap(), ["2", "3", "4"]);
    assert_eq!(store.behind("42", first).await.unwrap(), ["2", "3", "4"]);
    assert_eq!(store.position("42", "phone").await.unread, 3);
    let entries = store.read("42", ReadFrom::Oldest).await.entries;
    let keys: Vec<_> = entries.iter().map(|entry| entry.collapse.as_deref()).collect();
    assert_eq!(keys, [Some("chat 8"), None, Some("chat \"7\"")]);

    store.replace("43", "chat 8", "1").await;
    assert_eq!(store.all("42").await.len(), 3, "each user has own keys");
    store.retract("42", last).await;
    store.replace("42", "chat \"7\"", "5").await;
    assert_eq!(store.all("42").await, ["2", "3", "5"]);

    // Under an idempotency key it is published, and replaces, once.
    let keyed = Publication { key: Some("k"), collapse: Some("chat 8"), ..durable("6") };
    let place = store.publish("42", keyed).await.unwrap().unwrap();
    assert_eq!(store.publish("42", keyed).await.unwrap(), Some(place));
    assert_eq!(store.all("42").await, ["3", "5", "6"]);
}

async fn notices_are_heard_in_the_order_of_the_events(store: &Store) {
    let shutdown = Shutdown::default();
    let heard = store.hear(&shutdown).await;
    let first = store.replace("42", "a\"b", "1").await;
    let second = store.replace("42", "a\"b", "2").await;
    store.retract("42", second).await;
    store.retract("42", second).await;
    store.erase("42").await;
    let here = store.here("42").await;
    eventually("the last is received", async || heard.lock().len() == 5).await;
    let heard: Vec<_> = heard.lock().iter().map(|(_, text)| text.clone()).collect();
    let event = |text: &str, cursor: Cursor, data: u8| {
        assert!(
            text.starts_with('~') && text.ends_with(&format!(" {cursor} =\"a\\\"b\" \"notification\" {data}")),
            "{text}"
        );
    };
    event(&heard[0], first, 1);
    assert_eq!(heard[1], format!("~!{{\"retracted\":\"{first}\"}}"));
    event(&heard[2], second, 2);
    assert_eq!(heard[3], format!("~!{{\"retracted\":\"{second}\"}}"));
    let erased: Cursor = heard[4].replace("~!{\"erased\":\"", "").replace("\"}", "").parse().unwrap();
    assert_eq!((erased.epoch, erased.number), (here.epoch, 0));
    assert!(store.is_whole_behind("42", erased).await);
    store.store("42", "3").await;
    assert_eq!(store.behind("42", erased).await.unwrap(), ["3"]);
    within("the subscriber ends", shutdown.stop(Duration::from_secs(5))).await;
}

async fn one_that_ended_by_its_own_ttl_is_not_unread(store: &Store) {
    let first = store.store("42", "1").await;
    let brief = Publication { ttl: Some(Duration::from_secs(2)), ..durable("2") };
    store.publish("42", brief).await.unwrap();
    let third = store.store("42", "3").await;
    store.publish("42", brief).await.unwrap();
    store.ack("42", "phone", first).await;
    assert_eq!(store.position("42", "phone").await.unread, 3);
    eventually("both have ended", async || store.position("42", "phone").await.unread == 1).await;
    assert_eq!(store.position("42", "default").await.unread, 2);
    assert_eq!(store.all("42").await, ["1", "3"]);
    store.ack("42", "phone", third).await;
    assert_eq!(store.position("42", "phone").await.unread, 0);
}

async fn an_erased_user_begins_again(store: &Store) {
    let places = store.store_numbers("42", 1..=3).await;
    let other = store.store("43", "1").await;
    store.retract("42", places[1]).await;
    let keyed = Publication { key: Some("k"), collapse: Some("c"), ..durable("4") };
    let once = Publication { durable: false, key: Some("l"), ..durable("5") };
    let earlier = store.publish("42", keyed).await.unwrap().unwrap();
    store.publish("42", once).await.unwrap();
    store.ack("42", "phone", places[0]).await;

    store.erase("42").await;
    let here = store.here("42").await;
    assert_eq!(here.number, 0);
    assert_ne!(here.epoch, earlier.epoch);
    for cursor in places.iter().chain([&earlier]) {
        assert!(!store.is_whole_behind("42", *cursor).await);
        assert_eq!(store.ack("42", "phone", *cursor).await, Acked::Foreign);
        assert_eq!(store.retract("42", *cursor).await, Retracted::Foreign);
    }
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: None, unread: 0 });
    assert_eq!(store.behind("42", here).await, Some(vec![]));
    assert!(store.all("42").await.is_empty());
    assert_eq!(store.behind("43", other).await, Some(vec![]), "others keep everything");

    let renewed = store.publish("42", keyed).await.unwrap().unwrap();
    assert_eq!((renewed.number, renewed.epoch), (1, here.epoch), "its idempotency key is forgotten");
    assert_eq!(store.behind("42", here).await.unwrap(), ["4"]);
    assert!(!store.is_whole_behind("42", places[0]).await, "though the number is the same");
    assert_eq!(store.position("42", "default").await.unread, 1);

    store.erase("42").await;
    assert!(!store.is_whole_behind("42", renewed).await && !store.is_whole_behind("42", here).await);
    assert!(!store.is_whole_behind("42", places[0]).await);
    store.erase("stranger").await;
}

/// Its place is gone with the user; another begins.
async fn an_erased_users_cursors_stay_invalid_as_long_as_they_could_be_believed(store: &Store) {
    let start = store.here("42").await;
    let mut epochs = HashSet::from([start.epoch]);
    for _ in 0..5 {
        let place = store.store("42", "1").await;
        store.erase("42").await;
        assert!(epochs.insert(store.here("42").await.epoch));
        for cursor in [start, place] {
            assert!(!store.is_whole_behind("42", cursor).await);
        }
    }
}

/// Retracting every other one of very many, each with a key and a ttl of its own.
async fn what_is_recorded_is_bounded(store: &Store) {
    for number in 0..700 {
        let (key, ttl) = (number.to_string(), Some(Duration::from_secs(3_600)));
        let publication = Publication { collapse: Some(&key), ttl, ..durable("1") };
        let place = store.publish("42", publication).await.unwrap().unwrap();
        if number % 2 == 0 {
            store.retract("42", place).await;
        }
    }
    let Some(redis) = &store.redis else { return };
    let size = async |command: &str, kind: &str| redis.command::<usize>(&[command, &store.user_key(kind, "42")]).await;
    let stored = size("XLEN", "history").await;
    assert!(size("ZCARD", "retracted").await <= stored + 1);
    for (command, kind) in [("HLEN", "collapse"), ("ZCARD", "expiring")] {
        let size = size(command, kind).await;
        assert!(size <= 2 * 11 + 200 + 1, "{kind}: {size}");
    }
    assert_eq!(store.all("42").await.len(), stored);
}
