//! Random publishing, reading and acknowledging against a simple model: one list for each user.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use tidings::internals::{Acked, Cursor, MAX_DEVICES, PageSize, Publication, ReadFrom, Reading, UserId};
use tokio::runtime::{Builder, Runtime};

use crate::history_store::{Store, durable};
use crate::support::RedisServer;

const USERS: usize = 3;
const MAX_LEN: usize = 5;
const ALL: PageSize = PageSize { entries: 10_000, bytes: 1 << 30 };

#[derive(Debug, Clone)]
enum Step {
    Publish {
        user: usize,
        durable: bool,
        key: Option<u8>,
        event: &'static str,
    },
    /// So many at once that some are trimmed.
    Burst {
        user: usize,
        count: usize,
    },
    /// As a client with a cursor of `of`.
    Resume {
        user: usize,
        of: usize,
        place: Index,
        entries: usize,
    },
    /// As this device, from its read position.
    ResumeAcked {
        user: usize,
        device: usize,
    },
    Ack {
        user: usize,
        of: usize,
        place: Index,
        device: usize,
        exactly: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let user = 0..USERS;
    // Mostly its own.
    let pair = (0..USERS, 0..USERS, prop::bool::weighted(0.1))
        .prop_map(|(user, of, other)| (user, if other { of } else { user }));
    let device = prop_oneof![4 => 0..3_usize, 1 => 0..MAX_DEVICES + 4];
    let events = prop::sample::select(vec!["notification", "chat \"x\"", "é"]);
    prop_oneof![
        6 => (user.clone(), any::<bool>(), prop::option::weighted(0.3, 0..4_u8), events)
            .prop_map(|(user, durable, key, event)| Step::Publish { user, durable, key, event }),
        1 => (user.clone(), 1..130_usize).prop_map(|(user, count)| Step::Burst { user, count }),
        4 => (pair.clone(), any::<Index>(), 1..12_usize)
            .prop_map(|((user, of), place, entries)| Step::Resume { user, of, place, entries }),
        2 => (user, device.clone()).prop_map(|(user, device)| Step::ResumeAcked { user, device }),
        6 => (pair, any::<Index>(), device, prop::bool::weighted(0.2))
            .prop_map(|((user, of), place, device, exactly)| Step::Ack { user, of, place, device, exactly }),
    ]
}

/// One user's, as they should be.
#[derive(Default)]
struct Model {
    /// Event and data.
    stored: Vec<(String, String)>,
    /// The first is that before all.
    places: Vec<Cursor>,
    keys: HashMap<u8, Option<Cursor>>,
    /// How many are read.
    positions: BTreeMap<usize, usize>,
}

struct Run<'a> {
    store: &'a Store,
    /// How many more than `history.max_len` may be kept.
    more: usize,
    users: [Model; USERS],
}

impl Run<'_> {
    async fn take(&mut self, step: &Step, number: usize) {
        match *step {
            Step::Publish { user, durable, key, event } => self.publish(user, durable, key, event, number).await,
            Step::Burst { user, count } => {
                for nth in 0..count {
                    self.publish(user, true, None, "notification", number * 1_000 + nth).await;
                }
            }
            Step::Resume { user, of, ref place, entries } => {
                let place = place.index(self.users[of].places.len());
                self.resume(user, of, place, entries).await;
            }
            Step::ResumeAcked { user, device } => self.resume_acked(user, device).await,
            Step::Ack { user, of, ref place, device, exactly } => {
                let place = place.index(self.users[of].places.len());
                self.ack(user, of, place, device, exactly).await;
            }
        }
    }

    async fn publish(&mut self, user: usize, durable: bool, key: Option<u8>, event: &str, number: usize) {
        let (data, name) = (format!("{{\"n\": {number}}}"), key.map(|key| key.to_string()));
        let publication = Publication { event, durable, key: name.as_deref(), ..self::durable(&data) };
        let published = self.store.publish(&user.to_string(), publication).await.unwrap();
        let model = &mut self.users[user];
        if let Some(earlier) = key.and_then(|key| model.keys.get(&key)) {
            assert_eq!(published, *earlier, "its key was published before");
            return;
        }
        if let Some(key) = key {
            model.keys.insert(key, published);
        }
        assert_eq!(published.is_some(), durable);
        if let Some(place) = published {
            model.stored.push((event.to_owned(), data));
            let before = model.places.last().unwrap();
            assert_eq!((place.epoch, place.number), (before.epoch, model.stored.len() as u64));
            assert!(place.ms >= before.ms);
            model.places.push(place);
        }
    }

    /// How many are still stored: the newest, and about as many as they should be.
    async fn kept(&self, user: usize) -> usize {
        let model = &self.users[user];
        let reading = self.store.read(&user.to_string(), ReadFrom::Oldest).await;
        let (kept, all) = (reading.entries.len(), model.stored.len());
        assert!((all.min(MAX_LEN)..=all.min(MAX_LEN + self.more)).contains(&kept), "{kept} of {all}");
        check_entries(&reading, model, all - kept, kept);
        kept
    }

    async fn resume(&self, user: usize, of: usize, place: usize, entries: usize) {
        let (model, kept) = (&self.users[user], self.kept(user).await);
        let from = ReadFrom::After(self.users[of].places[place]);
        let page = PageSize { entries, bytes: 1 << 30 };
        let reading = self.store.read_as(&user.to_string(), from, "0", page).await;
        let behind = model.stored.len().saturating_sub(place);
        check(&reading, model, place, of == user && behind <= kept, behind.min(entries));
    }

    async fn resume_acked(&self, user: usize, device: usize) {
        let (model, kept) = (&self.users[user], self.kept(user).await);
        let name = device.to_string();
        let reading = self.store.read_as(&user.to_string(), ReadFrom::Acked(name.clone()), &name, ALL).await;
        let read = model.positions.get(&device).copied();
        let behind = model.stored.len() - read.unwrap_or_default();
        check(&reading, model, read.unwrap_or_default(), behind <= kept, behind);
        assert_eq!(reading.unread, behind.min(kept) as u64);
        let position = self.store.position(&user.to_string(), &name).await;
        assert_eq!(position.cursor, read.map(|read| model.places[read]));
        assert_eq!(position.unread, reading.unread);
    }

    async fn ack(&mut self, user: usize, of: usize, place: usize, device: usize, exactly: bool) {
        let (cursor, name) = (self.users[of].places[place], device.to_string());
        let id = UserId::new(&user.to_string()).unwrap();
        let acked = if exactly {
            self.store.history.set_read_position(&id, &name, cursor).await.unwrap()
        } else {
            self.store.ack(id.as_str(), &name, cursor).await
        };
        let positions = &mut self.users[user].positions;
        let known = positions.get(&device).copied();
        let expected = if of != user {
            Acked::Foreign
        } else if known.is_none() && positions.len() == MAX_DEVICES {
            Acked::TooManyDevices
        } else {
            positions.insert(device, if exactly { place } else { place.max(known.unwrap_or_default()) });
            Acked::Kept
        };
        assert_eq!(acked, expected);
    }
}

/// Whether a reading behind a place is what the model says.
fn check(reading: &Reading, model: &Model, place: usize, whole: bool, entries: usize) {
    assert_eq!(reading.whole, whole);
    assert_eq!(reading.newest.number, model.stored.len() as u64);
    if whole {
        check_entries(reading, model, place, entries);
        assert_eq!(reading.upto.number, (place + entries) as u64);
    } else {
        assert!(reading.entries.is_empty());
        assert_eq!((reading.from, reading.upto), (reading.newest, reading.newest));
    }
}

fn check_entries(reading: &Reading, model: &Model, from: usize, count: usize) {
    let read: Vec<_> = reading.entries.iter().map(|entry| (&entry.event, &entry.data, entry.cursor)).collect();
    let stored = model.stored.iter().zip(&model.places[1..]).skip(from).take(count);
    assert_eq!(read, stored.map(|((event, data), place)| (event, data, *place)).collect::<Vec<_>>());
}

fn compare(cases: u32, runtime: &Runtime, redis: Option<&Arc<RedisServer>>, more: usize) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let compared = TestRunner::new(config).run(&vec(step(), 1..60), |steps| {
        runtime.block_on(async {
            let store = Store::new(redis, &[("history.max_len", &MAX_LEN.to_string())]);
            let mut run = Run { store: &store, more, users: Default::default() };
            for (user, model) in run.users.iter_mut().enumerate() {
                model.places.push(store.read(&user.to_string(), ReadFrom::Newest).await.newest);
            }
            for (number, step) in steps.iter().enumerate() {
                run.take(step, number).await;
            }
            for user in 0..USERS {
                run.kept(user).await;
                run.resume_acked(user, 0).await;
            }
        });
        Ok(())
    });
    compared.unwrap();
}

#[test]
fn memory_stores_what_a_list_a_user_would() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    compare(200, &runtime, None, 1);
}

#[test]
fn redis_stores_what_a_list_a_user_would() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Arc::new(runtime.block_on(RedisServer::start()));
    compare(12, &runtime, Some(&redis), 200);
}
