//! The contract of the history store, tested with both implementations: memory and Redis, the latter with both layouts.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use parking_lot::Mutex;
use tidings::internals::{
    Ack, Acked, Acks, Backplane, BackplaneEvent, ConnectionId, Cursor, Envelope, HistoryStore, InstanceId, Layout,
    MAX_DEVICES, Metrics, Move, PageSize, Publication, Published, ReadFrom, ReadPosition, Reading, Shutdown, UserId,
};
use tidings::{Config, Layers};
use tokio::time::{Instant, sleep};

use crate::support::{RedisServer, eventually, within};

mod taking_back;

const ALL: PageSize = PageSize { entries: 10_000, bytes: 1 << 30 };

/// A backplane with nothing stored, and the Redis that it needs, if it needs one.
pub struct Store {
    pub backplane: Backplane,
    pub history: Arc<HistoryStore>,
    pub redis: Option<Arc<RedisServer>>,
    pub metrics: Arc<Metrics>,
    prefix: String,
    layout: Layout,
}

/// The bucket of a user: CRC16, bit by bit, of which the lower byte counts.
pub fn bucket(user: &str) -> u8 {
    let byte = |crc: u16, byte: u8| {
        let bit = |crc: u16, _| if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        (0..8).fold(crc ^ (u16::from(byte) << 8), bit)
    };
    user.bytes().fold(0, byte).to_be_bytes()[1]
}

impl Store {
    /// In memory, or under its own prefix in this Redis.
    pub fn new(redis: Option<&Arc<RedisServer>>, settings: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prefix = format!("store{}:", NUMBER.fetch_add(1, Ordering::Relaxed));
        Self::under(prefix, redis, settings, Layout::One)
    }

    /// The same in this Redis, with the keys of a cluster.
    pub fn in_buckets(redis: &Arc<RedisServer>, settings: &[(&str, &str)]) -> Self {
        let Self { prefix, .. } = Self::new(None, &[]);
        Self::under(prefix, Some(redis), settings, Layout::Buckets)
    }

    /// Another instance's.
    fn beside(&self, settings: &[(&str, &str)]) -> Self {
        Self::under(self.prefix.clone(), self.redis.as_ref(), settings, self.layout)
    }

    fn under(prefix: String, redis: Option<&Arc<RedisServer>>, settings: &[(&str, &str)], layout: Layout) -> Self {
        let set = |(key, value): &(&str, &str)| ("--set".to_owned(), (*key).to_owned(), (*value).to_owned());
        let mut flags: Vec<_> = settings.iter().map(set).collect();
        flags.push(set(&("redis.prefix", &prefix)));
        if let Some(redis) = redis {
            flags.push(set(&("redis.url", &redis.url())));
        }
        let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
        let metrics = Arc::new(Metrics::new());
        let backplane = Backplane::new(&config, &InstanceId::random(), &metrics).unwrap();
        let history = HistoryStore::with_layout(&config, &backplane, &metrics, layout);
        Self { backplane, history, redis: redis.cloned(), metrics, prefix, layout }
    }

    /// The hash of a user's bucket.
    fn bucket_key(&self, user: &str) -> String {
        match self.layout {
            Layout::One => format!("{}history", self.prefix),
            Layout::Buckets => format!("{}{{b{}}}:history", self.prefix, bucket(user)),
        }
    }

    /// A key of this user alone, such as `read`.
    fn user_key(&self, kind: &str, user: &str) -> String {
        match self.layout {
            Layout::One => format!("{}{kind}:{{{user}}}", self.prefix),
            Layout::Buckets => format!("{}{{b{}}}:{kind}:{user}", self.prefix, bucket(user)),
        }
    }

    pub async fn publish(&self, user: &str, publication: Publication<'_>) -> Published {
        let published = self.history.publish(&[UserId::new(user).unwrap()], &publication).await;
        let [published] = published.try_into().unwrap();
        published
    }

    /// Stores one; gives its place.
    pub async fn store(&self, user: &str, data: &str) -> Cursor {
        self.publish(user, durable(data)).await.unwrap().unwrap()
    }

    pub async fn store_numbers(&self, user: &str, numbers: std::ops::RangeInclusive<u32>) -> Vec<Cursor> {
        let mut places = Vec::new();
        for number in numbers {
            places.push(self.store(user, &number.to_string()).await);
        }
        places
    }

    pub async fn read(&self, user: &str, from: ReadFrom) -> Reading {
        self.read_as(user, from, "default", ALL).await
    }

    pub async fn read_as(&self, user: &str, from: ReadFrom, device: &str, page: PageSize) -> Reading {
        self.history.read(&UserId::new(user).unwrap(), &from, device, page).await.unwrap()
    }

    /// The data behind a place; none where some of it is gone.
    async fn behind(&self, user: &str, place: Cursor) -> Option<Vec<String>> {
        let reading = self.read(user, ReadFrom::After(place)).await;
        assert!(reading.whole || reading.entries.is_empty(), "nothing is returned in part");
        assert_eq!(reading.from, if reading.whole { place } else { reading.newest });
        reading.whole.then(|| reading.entries.into_iter().map(|entry| entry.data).collect())
    }

    async fn is_whole_behind(&self, user: &str, place: Cursor) -> bool {
        self.behind(user, place).await.is_some()
    }

    /// Where a client is that connects now.
    async fn here(&self, user: &str) -> Cursor {
        self.read(user, ReadFrom::Newest).await.upto
    }

    pub async fn ack(&self, user: &str, device: &str, cursor: Cursor) -> Acked {
        let acks = [read_ack(user, device, cursor)];
        let [acked] = self.history.ack(&acks, Move::Forward).await.unwrap().try_into().unwrap();
        acked
    }

    /// As Redis does when its memory is full; a stream that expires is gone in the same way.
    pub async fn evict(&self, user: &str) {
        if let Some(redis) = &self.redis {
            let () = redis.command(&["DEL", &self.user_key("history", user)]).await;
        }
    }

    /// Old places have been looked for in the bucket of this user: one that was old enough at any ttl is removed.
    async fn scanned(&self, user: &str) {
        let redis = self.redis.as_ref().unwrap();
        let (key, field) = (self.bucket_key(user), ":long ago");
        let () = redis.command(&["HSET", &key, field, "1-1"]).await;
        eventually("a scan", async || !redis.command::<bool>(&["HEXISTS", &key, field]).await).await;
    }

    async fn set_position(&self, user: &str, device: &str, cursor: Cursor) -> Acked {
        self.history.set_read_position(&UserId::new(user).unwrap(), device, cursor).await.unwrap()
    }

    pub async fn position(&self, user: &str, device: &str) -> ReadPosition {
        self.history.read_position(&UserId::new(user).unwrap(), device).await.unwrap()
    }

    /// Records the messages on users' channels from now on, each with its user.
    async fn hear(&self, shutdown: &Shutdown) -> Arc<Mutex<Vec<(String, String)>>> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        let sink = move |event: BackplaneEvent<'_>| {
            if let BackplaneEvent::Message { channel, payload } = event {
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                kept.lock().push((text(channel).replace("user:", ""), text(payload)));
            }
        };
        self.backplane.subscribe(Arc::new(sink), shutdown);
        eventually("it is subscribed", async || self.backplane.not_ready().is_none()).await;
        heard
    }
}

fn read_ack(user: &str, device: &str, cursor: Cursor) -> Ack {
    Ack { user: UserId::new(user).unwrap(), device: device.to_owned(), cursor, by: None }
}

pub fn durable(data: &str) -> Publication<'_> {
    Publication { event: "notification", data, durable: true, ..Publication::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn memory_keeps_the_contract_of_the_store() {
    checks(|settings| Store::new(None, settings)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_keeps_the_contract_of_the_store() {
    let redis = Arc::new(RedisServer::start().await);
    checks(|settings| Store::new(Some(&redis), settings)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn redis_with_the_keys_of_a_cluster_keeps_the_contract_of_the_store() {
    let redis = Arc::new(RedisServer::start().await);
    checks(|settings| Store::in_buckets(&redis, settings)).await;
    users_whose_ids_have_braces_are_kept_apart(&Store::in_buckets(&redis, &[])).await;
    every_key_has_the_tag_of_a_bucket(&redis).await;
}

/// Redis Cluster hashes the part between the first brace and the next closing one.
async fn every_key_has_the_tag_of_a_bucket(redis: &RedisServer) {
    let keys: Vec<String> = redis.command(&["KEYS", "*"]).await;
    assert!(keys.len() > 10, "{keys:?}");
    for key in keys {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        let number = tag.and_then(|tag| tag.strip_prefix('b')).and_then(|number| number.parse::<u8>().ok());
        assert!(number.is_some(), "{key}");
    }
}

/// In memory: the tests of the module, with its clock.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_in_redis_end_after_60_days_or_eight_times_ttl() {
    for (ttl, days) in [("1h", 60), ("30d", 240)] {
        let redis = Arc::new(RedisServer::with_stepped_clock().await);
        places_end_after(Store::new(Some(&redis), &[("history.ttl", ttl)]), &redis, days).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn places_end_in_every_bucket() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    places_end_after(Store::in_buckets(&redis, &[("history.ttl", "1h")]), &redis, 60).await;
}

async fn places_end_after(store: Store, redis: &RedisServer, days: i64) {
    let start = store.here("never").await;
    let place = store.store("42", "1").await;
    redis.step_clock((days - 1) * 86_400_000);
    let shutdown = Shutdown::default();
    store.history.watch_gaps(Duration::from_millis(5), &shutdown);
    store.scanned("42").await;
    assert_eq!(store.here("42").await, place);
    assert!(store.is_whole_behind("42", place).await && store.is_whole_behind("never", start).await);
    let other = store.store("43", "1").await;
    redis.step_clock(2 * 86_400_000);
    eventually("the place is removed", async || store.here("42").await.number == 0).await;
    assert!(!store.is_whole_behind("42", place).await && !store.is_whole_behind("never", start).await);
    assert!(store.is_whole_behind("43", other).await, "places of others are kept");
    assert_eq!(store.store("42", "2").await.number, 1);
    assert!(!store.is_whole_behind("42", place).await && !store.is_whole_behind("never", start).await);
    within("the checks end", shutdown.stop(Duration::from_secs(5))).await;
}

/// Every check, each in its own store.
async fn checks(store: impl Fn(&[(&str, &str)]) -> Store) {
    numbers_have_no_hole_and_times_never_go_back(&store(&[])).await;
    what_is_heard_is_what_is_stored_in_one_order(&store(&[])).await;
    data_and_names_are_kept_byte_for_byte(&store(&[])).await;
    at_most_two_hundred_more_than_max_len_are_kept(&store(&[("history.max_len", "10")])).await;
    who_is_max_len_behind_misses_nothing(&store(&[("history.max_len", "10")])).await;
    who_has_the_newest_misses_nothing(&store(&[])).await;
    another_users_cursor_is_nobodys(&store(&[])).await;
    who_never_had_anything_misses_nothing(&store(&[])).await;
    what_is_older_than_ttl_is_gone_and_said_to_be(&store(&[("history.ttl", "2s")])).await;
    the_place_outlives_the_notifications(&store(&[("history.ttl", "2s")])).await;
    what_is_older_than_ttl_is_missed_while_newer_ones_stay(&store(&[("history.ttl", "2s")])).await;
    what_ended_by_its_own_ttl_is_not_missed(&store(&[])).await;
    a_key_publishes_once(&store(&[])).await;
    a_key_publishes_once_however_many_try(&store(&[])).await;
    a_page_ends_by_entries_or_by_bytes(&store(&[])).await;
    the_last_while_is_read_by_its_length(&store(&[])).await;
    the_newest_of_many_are_told_in_their_order(&store(&[])).await;
    where_clients_begin_is_the_newest_with_the_unread_of_their_device(&store(&[])).await;
    a_read_position_never_goes_back_by_an_ack(&store(&[])).await;
    a_foreign_cursor_is_no_read_position(&store(&[])).await;
    a_user_has_so_many_devices(&store(&[])).await;
    a_device_resumes_from_its_read_position(&store(&[])).await;
    read_positions_end_after_ttl(&store(&[("history.ttl", "700ms")])).await;
    acks_are_written_behind(&store(&[])).await;
    users_whose_ids_have_braces_are_kept_apart(&store(&[])).await;
    a_lost_memory_makes_every_cursor_foreign(&store(&[])).await;
    taking_back::checks(store).await;
}

async fn numbers_have_no_hole_and_times_never_go_back(store: &Store) {
    let mut earlier = store.here("42").await;
    assert_eq!(earlier.number, 0);
    for number in 1..=50 {
        let place = store.store("42", "1").await;
        assert_eq!((place.number, place.epoch), (number, earlier.epoch));
        assert!(place.ms >= earlier.ms);
        earlier = place;
    }
    assert_eq!(store.store("43", "1").await.number, 1, "each user has an own history");
    assert_eq!(store.here("42").await, earlier);
    let all = store.read("42", ReadFrom::Oldest).await;
    assert_eq!(all.entries.iter().map(|entry| entry.cursor.number).collect::<Vec<_>>(), (1..=50).collect::<Vec<_>>());
    assert!(all.whole && all.is_complete());
}

async fn what_is_heard_is_what_is_stored_in_one_order(store: &Store) {
    let shutdown = Shutdown::default();
    let heard = store.hear(&shutdown).await;
    let kinds = [
        durable(r#"{"n":1}"#),
        Publication { durable: false, ..durable("2") },
        Publication { durable: false, event: r#"a "b""#, ..durable("3") },
        Publication { durable: false, key: Some("k"), ..durable("4") },
        Publication { event: "é", ttl: Some(Duration::from_secs(60)), key: Some("l"), ..durable("5") },
    ];
    let mut places = Vec::new();
    for publication in kinds.into_iter().chain(kinds) {
        places.push(store.publish("42", publication).await.unwrap());
    }
    eventually("the last is received", async || heard.lock().len() == 8).await;
    let text = |at: usize| places[at].unwrap().to_string();
    let term = match &store.redis {
        None => String::new(),
        Some(redis) => {
            let term: String = redis.command(&["HGET", &store.bucket_key("42"), "term"]).await;
            format!("@{term}")
        }
    };
    let count = |count: u32, at: usize| format!("~{count}{term} {}", text(at));
    let expected = [
        format!(r#"{} "notification" {{"n":1}}"#, count(1, 0)),
        "2".into(),
        r#"~"a \"b\"" 3"#.into(),
        "4".into(),
        format!(r#"{} "é" 5"#, count(2, 4)),
        format!(r#"{} "notification" {{"n":1}}"#, count(3, 5)),
        "2".into(),
        r#"~"a \"b\"" 3"#.into(),
    ];
    assert_eq!(*heard.lock(), expected.map(|text| ("42".to_owned(), text)));
    assert_eq!(places[9], places[4]);

    // Of many at once, the received messages are in the order of the numbers, and the count has no gap either.
    let publishing = (0..50).map(|_| {
        let history = Arc::clone(&store.history);
        let users: Vec<_> = (0..20).map(|user| UserId::new(&format!("many{user}")).unwrap()).collect();
        #[allow(clippy::disallowed_methods, reason = "at the same time, on other threads")]
        tokio::spawn(async move { history.publish(&users, &durable("null")).await })
    });
    join_all(publishing).await;
    eventually("all are received", async || heard.lock().len() == 1_008).await;
    let heard = std::mem::take(&mut *heard.lock());
    let counted_in = |user: &str| if store.layout == Layout::One { 0 } else { bucket(user) };
    let (mut counts, mut newest) = (HashMap::from([(counted_in("42"), 3)]), HashMap::new());
    for (user, text) in &heard[8..] {
        let stored = Envelope::parse(text).unwrap().stored.unwrap();
        let count = counts.entry(counted_in(user)).or_insert(0);
        *count += 1;
        assert_eq!(stored.count, *count, "of user {user}");
        let cursor = stored.cursor;
        let number = newest.insert(cursor.epoch, cursor.number).unwrap_or_default();
        assert_eq!(cursor.number, number + 1);
    }
    assert_eq!(newest.len(), 20);
    within("the subscriber ends", shutdown.stop(Duration::from_secs(5))).await;
}

async fn data_and_names_are_kept_byte_for_byte(store: &Store) {
    let long = format!("\"{}\"", "é".repeat(32 * 1024));
    let data = [r#"{ "n" : 9007199254740993, "n":1.0 }"#, r#""\u00e9é☂\/\u0000""#, "null", "[1E400]", "-0", &long];
    let names = ["notification", "a \"b\" \\ ☂", "chat.message", "'", "{}", "~"];
    for (data, event) in data.into_iter().zip(names) {
        store.publish("☂:a\"b", Publication { event, ..durable(data) }).await.unwrap();
    }
    let read = store.read("☂:a\"b", ReadFrom::Oldest).await.entries;
    let read: Vec<_> = read.iter().map(|entry| (entry.data.as_str(), entry.event.as_str())).collect();
    assert_eq!(read, data.into_iter().zip(names).collect::<Vec<_>>());
}

async fn at_most_two_hundred_more_than_max_len_are_kept(store: &Store) {
    let mut most = 0;
    for number in 1..=600 {
        store.store("42", &number.to_string()).await;
        if number % 20 == 0 {
            let entries = store.read("42", ReadFrom::Oldest).await.entries;
            most = most.max(entries.len());
            let data: Vec<_> = entries.iter().map(|entry| entry.data.parse::<usize>().unwrap()).collect();
            assert_eq!(data, (number + 1 - data.len()..=number).collect::<Vec<_>>(), "the newest are kept");
        }
    }
    assert!((10..=210).contains(&most), "{most}");
}

async fn who_is_max_len_behind_misses_nothing(store: &Store) {
    let mut places = vec![store.here("42").await];
    places.extend(store.store_numbers("42", 1..=400).await);
    let data = |numbers: std::ops::RangeInclusive<u32>| Some(numbers.map(|number| number.to_string()).collect());
    assert_eq!(store.behind("42", places[390]).await, data(391..=400));
    assert_eq!(store.behind("42", places[399]).await, data(400..=400));
    assert_eq!(store.behind("42", places[150]).await, None);
    assert_eq!(store.behind("42", places[1]).await, None);
    assert_eq!(store.behind("42", places[0]).await, None);
}

async fn who_has_the_newest_misses_nothing(store: &Store) {
    let places = store.store_numbers("42", 1..=3).await;
    let reading = store.read("42", ReadFrom::After(places[2])).await;
    assert!(reading.whole && reading.entries.is_empty() && reading.is_complete());
    assert_eq!((reading.from, reading.upto, reading.newest), (places[2], places[2], places[2]));
    let ahead = Cursor { number: 4, ..places[2] };
    assert!(!store.is_whole_behind("42", ahead).await, "a cursor that was never issued");
    assert!(!store.is_whole_behind("42", Cursor { ms: places[2].ms + 1, ..places[2] }).await);
}

async fn another_users_cursor_is_nobodys(store: &Store) {
    let (own, others) = (store.here("43").await, store.store("42", "1").await);
    assert!(!store.is_whole_behind("43", others).await);
    assert!(!store.is_whole_behind("43", Cursor { number: 0, ..others }).await);
    store.store("43", "2").await;
    assert!(!store.is_whole_behind("43", others).await);
    assert!(store.is_whole_behind("43", own).await);
}

async fn who_never_had_anything_misses_nothing(store: &Store) {
    let start = store.here("42").await;
    assert_eq!(store.behind("42", start).await, Some(vec![]));
    assert_eq!(store.position("42", "default").await, ReadPosition { cursor: None, unread: 0 });
    store.store_numbers("42", 1..=3).await;
    assert_eq!(store.behind("42", start).await, Some(vec!["1".into(), "2".into(), "3".into()]));
}

async fn what_is_older_than_ttl_is_gone_and_said_to_be(store: &Store) {
    let (start, first) = (store.here("42").await, store.store("42", "1").await);
    let second = store.store("42", "2").await;
    assert!(store.is_whole_behind("42", first).await);
    eventually("the end", async || !store.is_whole_behind("42", first).await).await;
    eventually("nothing is left", async || store.read("42", ReadFrom::Oldest).await.entries.is_empty()).await;
    assert!(!store.is_whole_behind("42", first).await && !store.is_whole_behind("42", start).await);
    assert!(store.read("42", ReadFrom::Oldest).await.is_complete());
    let never = store.here("43").await;
    assert_eq!((never.number, store.behind("43", never).await), (0, Some(vec![])));
    eventually("longer than ttl", async || store.here("43").await.ms > never.ms + 2_100).await;
    assert_eq!(store.behind("43", never).await, Some(vec![]), "nothing was ever stored");

    // Numbers continue.
    let here = store.here("42").await;
    let third = store.store("42", "3").await;
    assert_eq!((third.number, third.epoch), (3, first.epoch));
    for earlier in [start, first] {
        assert!(!store.is_whole_behind("42", earlier).await);
    }
    for has_all in [here, second] {
        assert_eq!(store.behind("42", has_all).await, Some(vec!["3".into()]));
    }
    store.store("43", "1").await;
    assert_eq!(store.behind("43", never).await, Some(vec!["1".into()]));
}

async fn the_place_outlives_the_notifications(store: &Store) {
    let places = store.store_numbers("42", 1..=2).await;
    store.ack("42", "phone", places[1]).await;
    eventually("nothing is left", async || store.read("42", ReadFrom::Oldest).await.entries.is_empty()).await;
    assert_eq!(store.behind("42", places[1]).await, Some(vec![]), "it has received everything");
    assert_eq!(store.here("42").await, places[1]);
    assert_eq!(store.history.newest(&[UserId::new("42").unwrap()]).await.unwrap(), [places[1]]);
    for wrong in [Cursor { ms: places[1].ms + 1, ..places[1] }, Cursor { number: 3, ..places[1] }] {
        assert!(!store.is_whole_behind("42", wrong).await);
        assert_eq!(store.ack("42", "phone", wrong).await, Acked::Foreign, "after the newest");
    }
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: Some(places[1]), unread: 0 });
    assert!(store.read("42", ReadFrom::Acked("phone".into())).await.whole);
    assert!(!store.read("42", ReadFrom::Acked("other".into())).await.whole, "it never received them");
    let since = async |age| store.read("42", ReadFrom::Since(Duration::from_millis(age))).await.whole;
    assert!(since(1).await && !since(60_000).await);
}

async fn what_is_older_than_ttl_is_missed_while_newer_ones_stay(store: &Store) {
    let places = store.store_numbers("42", 1..=2).await;
    eventually("the first are older by far", async || store.store("42", "3").await.ms > places[1].ms + 2_300).await;
    let oldest = store.read("42", ReadFrom::Oldest).await.entries;
    assert!(oldest.iter().all(|entry| entry.cursor.number > 2));
    assert!(!store.is_whole_behind("42", places[0]).await);
    assert!(!store.read("42", ReadFrom::Acked("phone".into())).await.whole);
    assert!(!store.read("42", ReadFrom::Since(Duration::from_millis(2_100))).await.whole);
}

async fn what_ended_by_its_own_ttl_is_not_missed(store: &Store) {
    let start = store.here("42").await;
    let short = Publication { ttl: Some(Duration::from_secs(2)), ..durable("1") };
    let place = store.publish("42", short).await.unwrap().unwrap();
    let long = Publication { ttl: Some(Duration::from_secs(600)), ..durable("2") };
    let other = store.publish("42", long).await.unwrap().unwrap();
    let last = store.publish("42", Publication { data: "3", ..short }).await.unwrap().unwrap();
    assert_eq!(store.behind("42", start).await.unwrap().len(), 3);
    eventually("two end", async || store.behind("42", start).await.unwrap() == ["2"]).await;
    assert_eq!(store.behind("42", place).await.unwrap(), ["2"]);
    let reading = store.read("42", ReadFrom::After(other)).await;
    assert!(reading.whole && reading.entries.is_empty() && reading.is_complete());
    assert_eq!(reading.upto, last, "one that has ended is passed");
}

async fn a_key_publishes_once(store: &Store) {
    let publish = async |user: &str, data: &str, key: &str, durable: bool| {
        let publication =
            Publication { event: "notification", data, durable, key: Some(key), ..Publication::default() };
        store.publish(user, publication).await.unwrap()
    };
    let place = publish("42", "1", "a", true).await.unwrap();
    assert_eq!(publish("42", "2", "a", true).await, Some(place));
    assert_eq!(publish("42", "3", "a", false).await, Some(place), "whichever kind it is");
    assert_eq!(publish("42", "4", "b", false).await, None);
    assert_eq!(publish("42", "5", "b", true).await, None);
    assert_ne!(publish("43", "6", "a", true).await, None, "of each user");
    assert_ne!(publish("42", "7", "c d ☂", true).await, Some(place));
    let read = store.read("42", ReadFrom::Oldest).await.entries;
    assert_eq!(read.iter().map(|entry| entry.data.as_str()).collect::<Vec<_>>(), ["1", "7"]);
}

async fn a_key_publishes_once_however_many_try(store: &Store) {
    let numbers: Vec<_> = (0..50).map(|number: u32| number.to_string()).collect();
    let publishing = numbers.iter().map(|data| {
        let (data, history) = (data.clone(), Arc::clone(&store.history));
        #[allow(clippy::disallowed_methods, reason = "at the same time, on other threads")]
        tokio::spawn(async move {
            let publication = Publication { key: Some("order-1"), ..durable(&data) };
            history.publish(&[UserId::new("42").unwrap()], &publication).await[0].unwrap().unwrap()
        })
    });
    let places: Vec<_> = join_all(publishing).await.into_iter().map(Result::unwrap).collect();
    assert!(places.iter().all(|place| place == &places[0] && place.number == 1), "{places:?}");
    assert_eq!(store.read("42", ReadFrom::Oldest).await.entries.len(), 1);
}

async fn a_page_ends_by_entries_or_by_bytes(store: &Store) {
    let start = store.here("42").await;
    for number in 0..50 {
        store.store("42", &format!("\"{number:098}\"")).await;
    }
    let page = async |from: Cursor, entries, bytes| {
        let reading = store.read_as("42", ReadFrom::After(from), "default", PageSize { entries, bytes }).await;
        assert!(reading.whole);
        assert_eq!(reading.upto, reading.entries.last().map_or(from, |last| last.cursor));
        assert_eq!(reading.newest.number, 50);
        assert_eq!(reading.is_complete(), reading.upto.number == 50);
        reading
    };
    assert_eq!(page(start, 20, 1 << 20).await.entries.len(), 20);
    assert_eq!(page(start, 20, 500).await.entries.len(), 5);
    assert_eq!(page(start, 20, 501).await.entries.len(), 6, "the one that passes it is the last");
    assert_eq!(page(start, 20, 1).await.entries.len(), 1, "one at least");
    assert_eq!(page(start, 0, 500).await.entries.len(), 0);
    let (mut from, mut read) = (start, Vec::new());
    while read.len() < 50 {
        let reading = page(from, 7, 1 << 20).await;
        assert!(!reading.entries.is_empty());
        from = reading.upto;
        read.extend(reading.entries.into_iter().map(|entry| entry.cursor.number));
    }
    assert_eq!(read, (1..=50).collect::<Vec<_>>());
}

async fn the_last_while_is_read_by_its_length(store: &Store) {
    let since = async |age| store.read("42", ReadFrom::Since(age)).await;
    assert!(since(Duration::from_secs(60)).await.whole);
    store.store_numbers("42", 1..=3).await;
    let reading = since(Duration::from_secs(60)).await;
    assert!(reading.whole);
    assert_eq!(reading.entries.len(), 3);
    assert_eq!(since(Duration::from_secs(1 << 32)).await.entries.len(), 3, "since before 1970");
    eventually("they are older", async || since(Duration::from_millis(50)).await.entries.is_empty()).await;
    assert!(since(Duration::from_millis(50)).await.whole);
}

async fn the_newest_of_many_are_told_in_their_order(store: &Store) {
    let users: Vec<_> = (0..250).map(|number| UserId::new(&number.to_string()).unwrap()).collect();
    let places = store.store_numbers("7", 1..=3).await;
    let other = store.store("201", "1").await;
    let newest = store.history.newest(&users).await.unwrap();
    assert_eq!(newest.len(), 250);
    assert_eq!((newest[7], newest[201]), (places[2], other));
    assert_eq!(newest.iter().filter(|cursor| cursor.number == 0).count(), 248);
    assert_eq!(newest[8].epoch, store.here("8").await.epoch);
}

/// A client that begins at the newest is told the same, whether it is read alone or with others.
async fn where_clients_begin_is_the_newest_with_the_unread_of_their_device(store: &Store) {
    let user = |number: usize| UserId::new(&format!("begin {number}")).unwrap();
    // User 0 has none. Of the others' three, one is read by a device, one is retracted, one has ended.
    for number in 1..120 {
        let places = store.store_numbers(user(number).as_str(), 1..=3).await;
        if number % 2 == 0 {
            store.ack(user(number).as_str(), "phone", places[number % 3]).await;
        }
        if number % 5 == 0 {
            store.history.retract(&user(number), &places[1]).await.unwrap();
        }
    }
    let brief = Publication { ttl: Some(Duration::from_millis(1)), ..durable("4") };
    store.publish(user(3).as_str(), brief).await.unwrap();
    sleep(Duration::from_millis(3)).await;
    let clients: Vec<_> =
        (0..120).flat_map(|number| ["phone", "default"].map(|device| (user(number), device))).collect();
    let begun = join_all(clients.iter().map(|(user, device)| store.history.start(user, device))).await;
    for ((user, device), begun) in clients.iter().zip(begun) {
        let reading = store.read_as(user.as_str(), ReadFrom::Newest, device, ALL).await;
        let begun = begun.unwrap();
        // Of a user with none, the time is that of the reading.
        assert_eq!((begun.newest.epoch, begun.newest.number), (reading.newest.epoch, reading.newest.number), "{user}");
        assert!(begun.newest.number == 0 || begun.newest == reading.newest, "{user}");
        assert_eq!(begun.unread, reading.unread, "{user} {device}");
    }
}

async fn a_read_position_never_goes_back_by_an_ack(store: &Store) {
    let places = store.store_numbers("42", 1..=5).await;
    let at = |index: usize, unread| ReadPosition { cursor: Some(places[index]), unread };
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: None, unread: 5 });
    assert_eq!(store.ack("42", "phone", places[2]).await, Acked::Kept);
    assert_eq!(store.position("42", "phone").await, at(2, 2));
    assert_eq!(store.ack("42", "phone", places[0]).await, Acked::Kept, "it is further");
    assert_eq!(store.position("42", "phone").await, at(2, 2));
    assert_eq!(store.position("42", "default").await, ReadPosition { cursor: None, unread: 5 });
    assert_eq!(store.position("43", "phone").await, ReadPosition { cursor: None, unread: 0 });
    assert_eq!(store.read_as("42", ReadFrom::Newest, "phone", ALL).await.unread, 2);

    // Several at once, of several, in any order.
    let ack = |device: &str, index: usize| read_ack("42", device, places[index]);
    let foreign = read_ack("43", "phone", places[0]);
    let acks = [ack("phone", 4), ack("phone", 3), foreign, ack("default", 1)];
    let acked = store.history.ack(&acks, Move::Forward).await.unwrap();
    assert_eq!(acked, [Acked::Kept, Acked::Kept, Acked::Foreign, Acked::Kept]);
    assert_eq!(store.position("42", "phone").await, at(4, 0));
    assert_eq!(store.position("42", "default").await, at(1, 3));

    // A backend marks as unread.
    assert_eq!(store.set_position("42", "phone", places[1]).await, Acked::Kept);
    assert_eq!(store.position("42", "phone").await, at(1, 3));
    store.store("42", "6").await;
    assert_eq!(store.position("42", "phone").await, at(1, 4));
}

async fn a_foreign_cursor_is_no_read_position(store: &Store) {
    let (start, empty) = (store.here("42").await, store.here("43").await);
    let places = store.store_numbers("42", 1..=3).await;
    let epoch = places[0].epoch.checked_add(1).unwrap();
    let foreign = [
        store.store("44", "1").await,
        Cursor { epoch, ..places[0] },
        Cursor { number: 4, ..places[2] },
        Cursor { ms: places[2].ms + 1, ..places[2] },
    ];
    for cursor in foreign {
        assert_eq!(store.ack("42", "default", cursor).await, Acked::Foreign, "{cursor}");
        assert_eq!(store.set_position("42", "default", cursor).await, Acked::Foreign, "{cursor}");
    }
    let ahead = Cursor { ms: empty.ms + 3_600_000, ..empty };
    assert_eq!(store.ack("43", "default", ahead).await, Acked::Foreign, "ahead of now");
    assert_eq!(store.position("42", "default").await, ReadPosition { cursor: None, unread: 3 });
    assert_eq!(store.ack("43", "default", empty).await, Acked::Kept, "from a welcome");
    assert_eq!(store.ack("42", "default", start).await, Acked::Kept);
    assert_eq!(store.position("42", "default").await, ReadPosition { cursor: Some(start), unread: 3 });
}

async fn a_user_has_so_many_devices(store: &Store) {
    let place = store.store("42", "1").await;
    for device in 0..MAX_DEVICES {
        assert_eq!(store.ack("42", &format!("☂ {device}"), place).await, Acked::Kept);
    }
    assert_eq!(store.ack("42", "one more", place).await, Acked::TooManyDevices);
    assert_eq!(store.set_position("42", "one more", place).await, Acked::TooManyDevices);
    let next = store.store("42", "2").await;
    assert_eq!(store.ack("42", "☂ 0", next).await, Acked::Kept, "a known one may move");
    assert_eq!(store.position("42", "☂ 0").await.cursor, Some(next));
    assert_eq!(store.position("42", "one more").await, ReadPosition { cursor: None, unread: 2 });
}

async fn a_device_resumes_from_its_read_position(store: &Store) {
    let acked = async |device: &str| {
        let reading = store.read_as("42", ReadFrom::Acked(device.into()), device, ALL).await;
        reading.whole.then(|| reading.entries.into_iter().map(|entry| entry.data).collect::<Vec<_>>())
    };
    assert_eq!(acked("phone").await, Some(vec![]));
    let places = store.store_numbers("42", 1..=3).await;
    assert_eq!(acked("phone").await.unwrap(), ["1", "2", "3"], "it never read anything");
    store.ack("42", "phone", places[1]).await;
    assert_eq!(acked("phone").await.unwrap(), ["3"]);
    assert_eq!(acked("other").await.unwrap(), ["1", "2", "3"]);

    let trimming = store.beside(&[("history.max_len", "10")]);
    if store.redis.is_some() {
        trimming.store_numbers("42", 4..=400).await;
        assert_eq!(acked("phone").await, None);
        assert_eq!(acked("other").await, None);
        let unread = store.position("42", "phone").await.unread;
        assert!((10..=210).contains(&unread), "those that are there: {unread}");
    }
}

async fn read_positions_end_after_ttl(store: &Store) {
    let place = store.store("42", "1").await;
    for device in 1..MAX_DEVICES {
        store.ack("42", &format!("old {device}"), place).await;
    }
    assert_eq!(store.ack("42", "phone", place).await, Acked::Kept);
    assert_eq!(store.position("42", "phone").await.cursor, Some(place));
    eventually("it ends", async || store.position("42", "phone").await.cursor.is_none()).await;
    for device in 0..MAX_DEVICES {
        let place = store.store("42", "1").await;
        assert_eq!(store.ack("42", &format!("{device}"), place).await, Acked::Kept, "with room for all again");
    }
}

async fn acks_are_written_behind(store: &Store) {
    let places = store.store_numbers("42", 1..=5).await;
    let foreign = store.store("43", "1").await;
    let shutdown = Shutdown::default();
    let acks = Arc::new(Acks::new(Arc::clone(&store.history), Arc::clone(&store.metrics)));
    let stopping = shutdown.stopping().clone().cancelled_owned();
    shutdown.spawn_service(Arc::clone(&acks).run(stopping, Duration::from_secs(5)));
    let user = UserId::new("42").unwrap();
    for index in [2, 4, 3] {
        acks.note(&user, "phone", places[index], ConnectionId::random());
    }
    acks.note(&user, "other", foreign, ConnectionId::random());
    eventually("the furthest is written", async || store.position("42", "phone").await.cursor == Some(places[4])).await;
    let count = |result: &str| store.metrics.acks.with_label_values(&[result]).get();
    eventually("both are counted", async || (count("kept"), count("foreign")) == (1, 1)).await;

    acks.note(&user, "late", places[1], ConnectionId::random());
    within("the task ends", shutdown.stop(Duration::from_secs(10))).await;
    assert_eq!(store.position("42", "late").await.cursor, Some(places[1]), "written at the stop");
}

async fn users_whose_ids_have_braces_are_kept_apart(store: &Store) {
    let users = ["}x", "{a}b", "{}", "{", "a}:b", "{b1}", "x"];
    for (number, user) in users.iter().enumerate() {
        let place = store.store(user, &number.to_string()).await;
        let publication = Publication { key: Some("{k}"), ..durable("\"with a key\"") };
        let keyed = store.publish(user, publication).await.unwrap().unwrap();
        assert_eq!((place.number, keyed.number, store.publish(user, publication).await.unwrap()), (1, 2, Some(keyed)));
        assert_eq!(store.ack(user, "phone", place).await, Acked::Kept);
    }
    let ids: Vec<_> = users.iter().map(|user| UserId::new(user).unwrap()).collect();
    let newest = store.history.newest(&ids).await.unwrap();
    for (number, user) in users.iter().enumerate() {
        let read = store.read_as(user, ReadFrom::Oldest, "phone", ALL).await;
        assert_eq!((read.entries[0].data.as_str(), read.entries.len()), (number.to_string().as_str(), 2), "{user}");
        assert_eq!((read.unread, read.newest), (1, newest[number]), "{user}");
    }
}

async fn a_lost_memory_makes_every_cursor_foreign(store: &Store) {
    let (start, place) = (store.here("42").await, store.store("42", "1").await);
    store.ack("42", "phone", place).await;
    if let Some(redis) = &store.redis {
        let () = redis.command(&["FLUSHALL"]).await;
    }
    let fresh = store.beside(&[]);
    assert!(!fresh.is_whole_behind("42", place).await && !fresh.is_whole_behind("42", start).await);
    assert_eq!(fresh.ack("42", "phone", place).await, Acked::Foreign);
    assert_eq!(fresh.position("42", "phone").await.cursor, None);
    let renewed = fresh.store("42", "2").await;
    assert_eq!(renewed.number, 1);
    assert_ne!(renewed.epoch, place.epoch);
    assert!(!fresh.is_whole_behind("42", place).await && !fresh.is_whole_behind("42", start).await);
}

#[tokio::test]
async fn when_memory_is_full_the_history_longest_unchanged_goes_and_no_earlier_cursor_is_believed() {
    let store = Store::new(None, &[]);
    let mebibyte = format!("\"{}\"", "x".repeat(1 << 20));
    let (start, never) = (store.here("42").await, store.here("43").await);
    let mut places = store.store_numbers("42", 1..=2).await;
    places.push(store.store("42", &mebibyte).await);
    store.ack("42", "phone", places[2]).await;
    let kept = store.store("45", "1").await;
    for _ in 0..40 {
        store.store("44", &mebibyte).await;
    }
    let kept_too = store.store("45", "2").await;
    assert!(store.is_whole_behind("42", start).await, "there is room yet");
    for _ in 0..23 {
        store.store("44", &mebibyte).await;
    }
    let dropped = |what: &str| store.metrics.history_dropped.with_label_values(&[what]).get();
    assert_eq!((dropped("users"), dropped("notifications")), (1, 3));
    for earlier in [start, places[0], places[1], places[2]] {
        assert!(!store.is_whole_behind("42", earlier).await);
    }
    let acked = |device: &str| store.read_as("42", ReadFrom::Acked(device.into()), "phone", ALL);
    assert!(!acked("phone").await.whole && !store.read("42", ReadFrom::Since(Duration::from_secs(60))).await.whole);
    assert!(!store.is_whole_behind("43", never).await, "it is unknown that nothing was stored");

    let here = store.here("42").await;
    assert!(here.ms > kept.ms && store.is_whole_behind("42", here).await);
    let renewed = store.store("42", "4").await;
    assert!(renewed.number == 1 && renewed.ms > places[2].ms);
    for earlier in [start, places[0], places[1], places[2]] {
        assert!(!store.is_whole_behind("42", earlier).await);
    }
    assert!(!acked("other").await.whole, "it never read what is gone");
    assert_eq!(store.behind("42", here).await.unwrap(), ["4"]);
    assert_eq!(store.behind("45", kept).await.unwrap(), ["2"]);

    // One alone that is too much keeps its newest.
    for _ in 0..70 {
        store.store("44", &mebibyte).await;
    }
    assert_eq!(dropped("users"), 3);
    assert!(!store.is_whole_behind("45", kept_too).await);
    let left = store.read("44", ReadFrom::Oldest).await.entries;
    assert!((60..64).contains(&left.len()) && left.last().unwrap().cursor.number == 133, "{}", left.len());
}

#[tokio::test]
async fn what_was_evicted_is_missed_by_everybody_who_lacks_it_and_by_nobody_else() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let start = store.here("42").await;
    let places = store.store_numbers("42", 1..=3).await;
    store.evict("42").await;
    for lacks in [start, places[0], places[1]] {
        assert!(!store.is_whole_behind("42", lacks).await, "{lacks}");
    }
    assert_eq!(store.behind("42", places[2]).await, Some(vec![]));
    assert!(!store.read("42", ReadFrom::Since(Duration::from_secs(60))).await.whole);
    assert!(!store.read("42", ReadFrom::Acked("phone".into())).await.whole);
    assert_eq!(store.store("42", "4").await.number, 4);
    assert!(!store.is_whole_behind("42", start).await);
    assert_eq!(store.behind("42", places[2]).await, Some(vec!["4".into()]));
}

/// A bucket whose shard does not answer is one whose hash is of the wrong type.
#[tokio::test]
async fn a_bucket_that_cannot_be_read_holds_up_no_other_buckets_users() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::in_buckets(&redis, &[]);
    assert_ne!(bucket("dead"), bucket("42"));
    let shutdown = Shutdown::default();
    let history = Arc::clone(&store.history);
    store.backplane.subscribe(Arc::new(move |event: BackplaneEvent<'_>| history.observe(&event)), &shutdown);
    let (dead, place) = (store.store("dead", "1").await, store.store("42", "1").await);
    let () = redis.command(&["SET", &store.bucket_key("dead"), "x"]).await;
    let mut missed = store.history.missed();
    store.history.watch_gaps(Duration::from_millis(20), &shutdown);

    // All others are checked after a new subscription: their clients can be compared.
    let mut seen = store.history.take_missed();
    while !seen.contains(bucket("42")) {
        within("a signal", missed.changed()).await.unwrap();
        seen |= store.history.take_missed();
    }
    assert!(!seen.contains(bucket("dead")));
    let users = ["dead", "42"].map(|user| UserId::new(user).unwrap());
    assert_eq!(store.history.newest_each(&users).await.unwrap(), [None, Some(place)]);
    assert!(store.is_whole_behind("42", place).await);
    let nothing = PageSize { entries: 0, bytes: 0 };
    store.history.read(&users[0], &ReadFrom::Newest, "phone", nothing).await.unwrap_err();

    // Nor do its acks, which wait until they are allowed.
    let () = redis.command(&["DEL", &store.bucket_key("dead")]).await;
    let allowed = format!("~*{{b{}}}*", bucket("42"));
    let () = redis.command(&["ACL", "SETUSER", "default", "resetkeys", &allowed]).await;
    let acks = Arc::new(Acks::new(Arc::clone(&store.history), Arc::clone(&store.metrics)));
    let stopping = shutdown.stopping().clone().cancelled_owned();
    shutdown.spawn_service(Arc::clone(&acks).run(stopping, Duration::from_secs(5)));
    acks.note(&users[0], "phone", dead, ConnectionId::random());
    acks.note(&users[1], "phone", place, ConnectionId::random());
    eventually("the other is written", async || store.position("42", "phone").await.cursor == Some(place)).await;
    let count = |result: &str| store.metrics.acks.with_label_values(&[result]).get();
    eventually("it is counted", async || (count("kept"), count("foreign")) == (1, 0)).await;
    let () = redis.command(&["ACL", "SETUSER", "default", "allkeys"]).await;
    // Of a bucket that has begun again.
    eventually("it is tried again", async || count("foreign") == 1).await;
    within("the tasks end", shutdown.stop(Duration::from_secs(5))).await;
}

/// One shard alone may go back to an older state.
#[tokio::test]
async fn a_bucket_that_lost_notifications_begins_a_new_epoch_alone() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::in_buckets(&redis, &[]);
    let shutdown = Shutdown::default();
    let history = Arc::clone(&store.history);
    store.backplane.subscribe(Arc::new(move |event: BackplaneEvent<'_>| history.observe(&event)), &shutdown);
    eventually("it is subscribed", async || store.backplane.not_ready().is_none()).await;
    store.history.watch_gaps(Duration::from_millis(20), &shutdown);
    let (lost, kept) = (store.store_numbers("lost", 1..=2).await, store.store("42", "1").await);
    let (key, saved) = (store.bucket_key("lost"), async |count: &str| {
        let () = redis.command(&["HSET", &store.bucket_key("lost"), "count", count]).await;
    });
    eventually("both are counted", async || redis.command::<u64>(&["HGET", &key, "count"]).await == 2).await;
    assert!(store.is_whole_behind("lost", lost[1]).await);
    // Known at the next check.
    let mut missed = store.history.missed();
    store.history.take_missed();
    missed.mark_unchanged();
    eventually("what it received is lost", async || {
        saved("1").await;
        !store.is_whole_behind("lost", lost[1]).await
    })
    .await;
    within("a signal", missed.changed()).await.unwrap();
    let behind = store.history.take_missed();
    assert!(behind.contains(bucket("lost")) && !behind.contains(bucket("42")));
    assert!(store.is_whole_behind("42", kept).await, "the epoch of the other bucket continues");
    within("the tasks end", shutdown.stop(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn old_places_are_removed_in_small_steps_and_the_others_kept() {
    let redis = Arc::new(RedisServer::with_stepped_clock().await);
    let store = Store::new(Some(&redis), &[]);
    let users: Vec<_> = (0..2_000).map(|user| UserId::new(&format!("old{user}")).unwrap()).collect();
    for published in store.history.publish(&users, &durable("1")).await {
        published.unwrap();
    }
    let places = async || {
        let fields: Vec<String> = redis.command(&["HKEYS", &store.bucket_key("old0")]).await;
        fields.into_iter().filter(|field| field.starts_with(':')).collect::<Vec<_>>()
    };
    assert_eq!(places().await.len(), 2_000);
    redis.step_clock(61 * 86_400_000);
    let shutdown = Shutdown::default();
    store.history.watch_gaps(Duration::from_millis(10), &shutdown);
    eventually("only the young one is left", async || {
        store.store("young", "1").await;
        places().await == [":young"]
    })
    .await;
    within("the checks end", shutdown.stop(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn marks_of_relayed_outbox_entries_are_removed_a_week_after_the_last() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::in_buckets(&redis, &[]);
    let now: Vec<u64> = redis.command(&["TIME"]).await;
    let (key, day) = (store.bucket_key("42"), 86_400_000);
    let mark = async |user: &str, age: u64| {
        let value = format!("{} 1-1:x 2-1:y", now[0] * 1_000 - age);
        let () = redis.command(&["HSET", &key, &format!(">{user}"), &value]).await;
    };
    mark("young", 6 * day).await;
    mark("old", 7 * day + 1).await;
    let () = redis.command(&["HSET", &key, "relay", "1 lease"]).await;
    let shutdown = Shutdown::default();
    store.history.watch_gaps(Duration::from_millis(5), &shutdown);
    store.scanned("42").await;
    let fields: Vec<String> = redis.command(&["HKEYS", &key]).await;
    let left: Vec<_> = fields.iter().filter(|field| field.starts_with('>') || *field == "relay").collect();
    assert_eq!(left, [">young", "relay"]);
    within("the checks end", shutdown.stop(Duration::from_secs(5))).await;
}

/// The commands that Redis has run since the last call, those of scripts too.
async fn commands(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        let own = ["info", "config|resetstat", "client|setname", "client|setinfo", "hello"].contains(&name);
        if own { None } else { rest.split(',').next()?.parse::<u64>().ok() }
    };
    let count = stats.lines().filter_map(calls).sum();
    let () = redis.command(&["CONFIG", "RESETSTAT"]).await;
    count
}

#[tokio::test]
async fn clients_that_connect_at_once_share_a_script_and_none_waits_for_one_that_left() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let (first, second) = (UserId::new("first").unwrap(), UserId::new("second").unwrap());
    store.history.start(&first, "default").await.unwrap();
    commands(&redis).await;
    let users: Vec<_> = (0..300).map(|number| UserId::new(&number.to_string()).unwrap()).collect();
    let all = join_all(users.iter().map(|user| store.history.start(user, "default"))).await;
    assert!(all.iter().all(Result::is_ok));
    let calls = commands(&redis).await;
    // One look for the stream of each: an earlier version stored without a place.
    assert!(calls <= 300 + 20, "{calls} commands");

    // The one that goes ahead leaves at once; the next reads for the others after a pause.
    let [mut ahead, mut left] = [0, 1].map(|_| Box::pin(store.history.start(&first, "default")));
    let mut stays = Box::pin(store.history.start(&second, "default"));
    assert!(ahead.as_mut().now_or_never().is_none() && left.as_mut().now_or_never().is_none());
    assert!(stays.as_mut().now_or_never().is_none());
    drop(left);
    within("the other is told", stays).await.unwrap();
}

#[tokio::test]
async fn storing_takes_three_commands_for_a_new_user_and_two_for_a_known_one() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    store.store("first", "1").await;
    let users: Vec<_> = (0..100).map(|number| UserId::new(&number.to_string()).unwrap()).collect();
    for each in [3, 2] {
        commands(&redis).await;
        let published = store.history.publish(&users, &durable("1")).await;
        assert!(published.iter().all(Result::is_ok));
        let calls = commands(&redis).await;
        assert!(calls <= 100 * each + 10, "{calls} commands");
    }
}

/// The scripts that Redis has run since the last call.
async fn scripts(redis: &RedisServer) -> u64 {
    let stats: String = redis.command(&["INFO", "commandstats"]).await;
    let () = redis.command(&["CONFIG", "RESETSTAT"]).await;
    let calls = |line: &str| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse::<u64>().ok();
    stats.lines().find_map(calls).unwrap_or_default()
}

#[tokio::test]
async fn a_script_reads_entries_only_for_who_may_lack_one() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let places = store.store_numbers("42", 1..=40).await;
    store.behind("42", places[0]).await;
    scripts(&redis).await;
    // The first script tells where the user's history ends.
    for place in [0, 30, 39] {
        assert_eq!(store.behind("42", places[place]).await.unwrap().len(), 39 - place);
        assert_eq!(scripts(&redis).await, 1, "behind {place}");
    }
    store.retract("42", places[20]).await;
    scripts(&redis).await;
    for (place, left, expected) in [(0, 38, 2), (20, 19, 1), (25, 14, 1)] {
        assert_eq!(store.behind("42", places[place]).await.unwrap().len(), left);
        assert_eq!(scripts(&redis).await, expected, "behind {place}");
    }
    let page = PageSize { entries: 10, bytes: 1 << 20 };
    let reading = store.read_as("42", ReadFrom::After(places[5]), "default", page).await;
    assert_eq!((reading.entries.len(), reading.upto, scripts(&redis).await), (10, places[15], 1));
}

#[tokio::test]
async fn tombstones_of_an_earlier_version_are_found_by_the_scan() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let before = store.store("42", "1").await;
    store.erase("42").await;
    let erased = store.store("42", "2").await;
    assert_ne!(before.epoch, erased.epoch);
    // It did not record that there are any.
    let key = store.bucket_key("42");
    let () = redis.command(&["HDEL", &key, "erased"]).await;
    let shutdown = Shutdown::default();
    store.history.watch_gaps(Duration::from_millis(5), &shutdown);
    eventually("it is recorded", async || redis.command::<Option<String>>(&["HGET", &key, "erased"]).await.is_some())
        .await;
    assert_eq!(store.store("42", "3").await.epoch, erased.epoch);
    within("the checks end", shutdown.stop(Duration::from_secs(5))).await;
}

#[tokio::test]
async fn a_user_whose_keys_are_of_another_type_fails_alone() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    store.store_numbers("41", 1..=2).await;
    let () = redis.command(&["SET", &store.user_key("read", "41"), "x"]).await;
    let () = redis.command(&["SET", &store.user_key("history", "43"), "x"]).await;
    let users = ["40", "41", "42", "43", "44"].map(|user| UserId::new(user).unwrap());
    let begun = join_all(users.iter().map(|user| store.history.start(user, "default"))).await;
    assert_eq!(begun.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true, false, true]);

    let published = store.history.publish(&users, &durable("1")).await;
    let numbers: Vec<_> = published.iter().map(|one| one.map(|cursor| cursor.unwrap().number)).collect();
    assert_eq!(numbers, [Ok(1), Ok(3), Ok(1), Err("refused"), Ok(1)]);
    for user in ["40", "42", "44"] {
        assert_eq!(store.read(user, ReadFrom::Oldest).await.entries.len(), 1);
    }
    let count: u64 = redis.command(&["HGET", &store.bucket_key("40"), "count"]).await;
    assert_eq!(count, 6, "the failed one is not counted");
}

#[tokio::test]
async fn a_notification_to_many_users_costs_redis_two_commands_each() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let users: Vec<_> = (0..500).map(|number| UserId::new(&number.to_string()).unwrap()).collect();
    store.history.publish(&users, &durable("1")).await;
    commands(&redis).await;
    let mut counts = Vec::new();
    // Of two, one is not the first of a minute, which sets the end of the streams.
    for data in ["2", "3"] {
        assert!(store.history.publish(&users, &durable(data)).await.iter().all(Result::is_ok));
        counts.push(commands(&redis).await);
    }
    assert!(counts.iter().any(|count| *count <= 1_000 + 5 * 10), "{counts:?} commands for 500 users");
}

#[tokio::test]
async fn a_stream_outlives_its_newest_notification_by_the_ttl_and_hardly_more() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[("history.ttl", "8s")]);
    let started = Instant::now();
    let mut least = i64::MAX;
    while started.elapsed() < Duration::from_millis(1_200) {
        store.store("42", "1").await;
        let left: i64 = redis.command(&["PTTL", &store.user_key("history", "42")]).await;
        least = least.min(left);
        assert!(left <= 8_500, "{left} ms");
        sleep(Duration::from_millis(30)).await;
    }
    assert!(least >= 8_000 - 200, "{least} ms");
}

#[tokio::test]
async fn keys_that_somebody_else_wrote_to_hold_up_no_other_users_acks() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let (broken, sound) = (store.store("41", "1").await, store.store("42", "1").await);
    let () = redis.command(&["SET", &store.user_key("read", "41"), "x"]).await;
    let acks = [("41", broken), ("42", sound)];
    let acks = acks.map(|(user, place)| read_ack(user, "phone", place));
    assert_eq!(store.history.ack(&acks, Move::Forward).await.unwrap(), [Acked::Foreign, Acked::Kept]);
    assert_eq!(store.position("42", "phone").await.cursor, Some(sound));
}

#[tokio::test]
async fn acks_that_cannot_be_written_wait_for_redis() {
    let redis = Arc::new(RedisServer::start().await);
    let store = Store::new(Some(&redis), &[]);
    let places = store.store_numbers("42", 1..=3).await;
    redis.config_set("maxmemory", "1").await;

    let acks = [read_ack("42", "phone", places[0])];
    let refused = store.history.ack(&acks, Move::Forward).await.unwrap_err();
    assert_eq!(refused.kind(), "OOM");
    assert_eq!(store.position("42", "phone").await, ReadPosition { cursor: None, unread: 3 }, "nothing half done");

    let shutdown = Shutdown::default();
    let writer = Arc::new(Acks::new(Arc::clone(&store.history), Arc::clone(&store.metrics)));
    let stopping = shutdown.stopping().clone().cancelled_owned();
    shutdown.spawn_service(Arc::clone(&writer).run(stopping, Duration::from_secs(5)));
    writer.note(&UserId::new("42").unwrap(), "phone", places[1], ConnectionId::random());
    let refusals = || store.metrics.backplane_errors.with_label_values(&["OOM"]).get();
    eventually("it is tried again and again", async || refusals() >= 3).await;
    redis.config_set("maxmemory", "0").await;
    eventually("it is written", async || store.position("42", "phone").await.cursor == Some(places[1])).await;
    within("the task ends", shutdown.stop(Duration::from_secs(10))).await;
}

#[tokio::test]
async fn acks_that_find_no_room_are_counted_and_known_devices_still_move() {
    let store = Store::new(None, &[]);
    let places = store.store_numbers("42", 1..=2).await;
    let acks = Arc::new(Acks::new(Arc::clone(&store.history), Arc::clone(&store.metrics)));
    let user = UserId::new("42").unwrap();
    acks.note(&user, "phone", places[0], ConnectionId::random());
    for number in 1..=100_005 {
        acks.note(&UserId::new(&format!("user {number}")).unwrap(), "default", places[0], ConnectionId::random());
    }
    acks.note(&user, "phone", places[1], ConnectionId::random());
    let count = |result: &str| store.metrics.acks.with_label_values(&[result]).get();
    assert_eq!(count("dropped"), 6);
    Arc::clone(&acks).run(async {}, Duration::from_secs(20)).await;
    assert_eq!(store.position("42", "phone").await.cursor, Some(places[1]));
    assert_eq!((count("kept"), count("foreign")), (1, 99_999));
}
