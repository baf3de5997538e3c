//! Random publishing, taking back, reading and acknowledging against a simple model: one list for each user.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use tidings::internals::{Acked, Cursor, MAX_DEVICES, PageSize, Publication, ReadFrom, Reading, Retracted, UserId};
use tokio::runtime::{Builder, Runtime};

use crate::history_store::{Store, durable as durable_data};
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
        collapse: Option<u8>,
        /// Its own ttl ends at once.
        brief: bool,
    },
    /// So many at once that some are trimmed.
    Burst {
        user: usize,
        count: usize,
    },
    /// All of a user's notifications, in Redis.
    Evict {
        user: usize,
    },
    Retract {
        user: usize,
        of: usize,
        place: Index,
    },
    Erase {
        user: usize,
    },
    /// As a client with a cursor from before an erasure.
    ResumeErased {
        user: usize,
        place: Index,
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
        8 => (user.clone(), any::<bool>(), prop::option::weighted(0.3, 0..4_u8), events,
              prop::option::weighted(0.3, 0..3_u8), prop::bool::weighted(0.2))
            .prop_map(|(user, durable, key, event, collapse, brief)| {
                Step::Publish { user, durable, key, event, collapse, brief }
            }),
        1 => (user.clone(), 1..130_usize).prop_map(|(user, count)| Step::Burst { user, count }),
        1 => user.clone().prop_map(|user| Step::Evict { user }),
        6 => (pair.clone(), any::<Index>()).prop_map(|((user, of), place)| Step::Retract { user, of, place }),
        1 => user.clone().prop_map(|user| Step::Erase { user }),
        1 => (user.clone(), any::<Index>()).prop_map(|(user, place)| Step::ResumeErased { user, place }),
        4 => (pair.clone(), any::<Index>(), 1..12_usize)
            .prop_map(|((user, of), place, entries)| Step::Resume { user, of, place, entries }),
        2 => (user, device.clone()).prop_map(|(user, device)| Step::ResumeAcked { user, device }),
        6 => (pair, any::<Index>(), device, prop::bool::weighted(0.2))
            .prop_map(|((user, of), place, device, exactly)| Step::Ack { user, of, place, device, exactly }),
    ]
}

/// One that was published.
struct Stored {
    event: String,
    data: String,
    collapse: Option<u8>,
    /// Retracted, replaced, or ended by its own ttl.
    taken_out: bool,
    /// Trimmed or evicted before that.
    lost: bool,
}

/// One user's, as they should be.
#[derive(Default)]
struct Model {
    stored: Vec<Stored>,
    /// Those before this one may be trimmed.
    trimmable: usize,
    /// The first is that before all.
    places: Vec<Cursor>,
    /// From before an erasure.
    erased: Vec<Cursor>,
    keys: HashMap<u8, Option<Cursor>>,
    /// How many are read.
    positions: BTreeMap<usize, usize>,
}

impl Model {
    /// The indices of those that are neither taken out nor lost, from one on.
    fn kept_from(&self, place: usize) -> Vec<usize> {
        let is_kept = |index: &usize| !self.stored[*index].taken_out && !self.stored[*index].lost;
        (place..self.stored.len()).filter(is_kept).collect()
    }

    /// Whether a client with the first `place` of them misses nothing that is gone.
    fn is_whole_from(&self, place: usize) -> bool {
        !self.stored[place..].iter().any(|stored| stored.lost)
    }
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
            Step::Publish { user, durable, key, event, collapse, brief } => {
                let data = number.to_string();
                let ttl = brief.then_some(Duration::from_millis(1));
                let collapse = collapse.filter(|_| durable);
                let publication = Publication { event, durable, ttl, ..durable_data(&data) };
                self.publish(user, publication, key, collapse).await;
            }
            Step::Burst { user, count } => {
                for nth in 0..count {
                    self.publish(user, durable_data(&format!("[{number},{nth}]")), None, None).await;
                }
            }
            Step::Evict { user } => {
                if self.store.redis.is_some() {
                    self.store.evict(&user.to_string()).await;
                    self.users[user]
                        .stored
                        .iter_mut()
                        .filter(|stored| !stored.taken_out)
                        .for_each(|stored| stored.lost = true);
                }
            }
            Step::Retract { user, of, ref place } => {
                let place = place.index(self.users[of].places.len());
                self.retract(user, of, place).await;
            }
            Step::Erase { user } => self.erase(user).await,
            Step::ResumeErased { user, ref place } => {
                if !self.users[user].erased.is_empty() {
                    let cursor = self.users[user].erased[place.index(self.users[user].erased.len())];
                    self.resume_erased(user, cursor).await;
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

    async fn publish(&mut self, user: usize, publication: Publication<'_>, key: Option<u8>, collapse: Option<u8>) {
        if collapse.is_some() {
            self.look(user).await;
        }
        let (key_name, collapse_name) = (key.map(|key| key.to_string()), collapse.map(|key| format!("\"{key}")));
        let (key_name, collapse_name) = (key_name.as_deref(), collapse_name.as_deref());
        let publication = Publication { key: key_name, collapse: collapse_name, ..publication };
        let published = self.store.publish(&user.to_string(), publication).await.unwrap();
        let model = &mut self.users[user];
        if let Some(earlier) = key.and_then(|key| model.keys.get(&key)) {
            assert_eq!(published, *earlier, "its key was published before");
            return;
        }
        if let Some(key) = key {
            model.keys.insert(key, published);
        }
        assert_eq!(published.is_some(), publication.durable);
        let Some(place) = published else { return };
        let replaced = |stored: &&mut Stored| collapse.is_some() && stored.collapse == collapse && !stored.lost;
        model.stored.iter_mut().filter(replaced).for_each(|stored| stored.taken_out = true);
        let (event, data) = (publication.event.to_owned(), publication.data.to_owned());
        model.stored.push(Stored { event, data, collapse, taken_out: false, lost: false });
        let before = model.places.last().unwrap();
        assert_eq!((place.epoch, place.number), (before.epoch, model.stored.len() as u64));
        assert!(place.ms >= before.ms);
        model.places.push(place);
        let kept = model.kept_from(0);
        model.trimmable = model.trimmable.max(kept.iter().rev().nth(MAX_LEN).copied().unwrap_or_default());
        if publication.ttl.is_some() {
            while unix_ms() <= place.ms + 1 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            model.stored.last_mut().unwrap().taken_out = true;
            self.look(user).await;
        }
    }

    /// Notes which are lost: the newest must be stored, and about as many as they should be.
    async fn look(&mut self, user: usize) {
        let reading = self.store.read(&user.to_string(), ReadFrom::Oldest).await;
        let model = &mut self.users[user];
        let all = model.kept_from(0);
        let lost = all.len() - reading.entries.len();
        assert!(all[lost..].len() <= MAX_LEN + self.more, "{} of {}", all.len() - lost, all.len());
        for index in &all[..lost] {
            assert!(*index < model.trimmable, "{index} is not stored");
            model.stored[*index].lost = true;
        }
        check_entries(&reading, model, &all[lost..]);
        let newest = model.stored.len() as u64;
        assert_eq!((reading.upto.number, reading.newest.number), (newest, newest));
    }

    async fn retract(&mut self, user: usize, of: usize, place: usize) {
        self.look(user).await;
        let id = UserId::new(&user.to_string()).unwrap();
        let retracted = self.store.history.retract(&id, &self.users[of].places[place]).await.unwrap();
        assert_eq!(retracted, if of == user { Retracted::Gone } else { Retracted::Foreign });
        if let Some(index) = place.checked_sub(1).filter(|_| of == user) {
            let stored = &mut self.users[user].stored[index];
            stored.taken_out |= !stored.lost;
        }
        self.look(user).await;
    }

    async fn erase(&mut self, user: usize) {
        let id = UserId::new(&user.to_string()).unwrap();
        self.store.history.erase(&id).await.unwrap();
        let here = self.store.read(&user.to_string(), ReadFrom::Newest).await.newest;
        let mut earlier = std::mem::take(&mut self.users[user]);
        assert_ne!(here.epoch, earlier.places[0].epoch);
        assert_eq!(here.number, 0);
        earlier.erased.append(&mut earlier.places);
        self.users[user] = Model { places: vec![here], erased: earlier.erased, ..Model::default() };
        self.look(user).await;
    }

    async fn resume_erased(&mut self, user: usize, cursor: Cursor) {
        let (name, id) = (user.to_string(), UserId::new(&user.to_string()).unwrap());
        assert!(!self.store.read(&name, ReadFrom::After(cursor)).await.whole);
        assert_eq!(self.store.ack(&name, "0", cursor).await, Acked::Foreign);
        assert_eq!(self.store.history.retract(&id, &cursor).await.unwrap(), Retracted::Foreign);
    }

    async fn resume(&mut self, user: usize, of: usize, place: usize, entries: usize) {
        self.look(user).await;
        let model = &self.users[user];
        let from = ReadFrom::After(self.users[of].places[place]);
        let page = PageSize { entries, bytes: 1 << 30 };
        let reading = self.store.read_as(&user.to_string(), from, "0", page).await;
        check(&reading, model, place, of == user && model.is_whole_from(place), entries);
    }

    async fn resume_acked(&mut self, user: usize, device: usize) {
        self.look(user).await;
        let (model, name) = (&self.users[user], device.to_string());
        let reading = self.store.read_as(&user.to_string(), ReadFrom::Acked(name.clone()), &name, ALL).await;
        let read = model.positions.get(&device).copied();
        let place = read.unwrap_or_default();
        check(&reading, model, place, model.is_whole_from(place), ALL.entries);
        assert_eq!(reading.unread, model.kept_from(place).len() as u64);
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
        let kept = model.kept_from(place);
        let page = &kept[..kept.len().min(entries)];
        check_entries(reading, model, page);
        // Behind those that were taken out, at the end.
        let last = page.last().map_or(place, |index| index + 1);
        assert_eq!(reading.upto.number, if page.len() == kept.len() { model.stored.len() } else { last } as u64);
    } else {
        assert!(reading.entries.is_empty());
        assert_eq!((reading.from, reading.upto), (reading.newest, reading.newest));
    }
}

fn check_entries(reading: &Reading, model: &Model, expected: &[usize]) {
    let read = reading.entries.iter();
    let read: Vec<_> = read.map(|entry| (&entry.event, &entry.data, entry.collapse.clone(), entry.cursor)).collect();
    let stored = |index: &usize| {
        let Stored { event, data, collapse, .. } = &model.stored[*index];
        (event, data, collapse.map(|key| format!("\"{key}")), model.places[index + 1])
    };
    assert_eq!(read, expected.iter().map(stored).collect::<Vec<_>>());
}

fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

fn compare(cases: u32, runtime: &Runtime, store: impl Fn(&[(&str, &str)]) -> Store, more: usize) {
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let compared = TestRunner::new(config).run(&vec(step(), 1..60), |steps| {
        runtime.block_on(async {
            let store = store(&[("history.max_len", &MAX_LEN.to_string())]);
            let mut run = Run { store: &store, more, users: Default::default() };
            for (user, model) in run.users.iter_mut().enumerate() {
                model.places.push(store.read(&user.to_string(), ReadFrom::Newest).await.newest);
            }
            for (number, step) in steps.iter().enumerate() {
                run.take(step, number).await;
            }
            for user in 0..USERS {
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
    compare(200, &runtime, |settings| Store::new(None, settings), 1);
}

#[test]
fn redis_stores_what_a_list_a_user_would() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Arc::new(runtime.block_on(RedisServer::start()));
    compare(12, &runtime, |settings| Store::new(Some(&redis), settings), 200);
}

#[test]
fn redis_with_the_keys_of_a_cluster_stores_what_a_list_a_user_would() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let redis = Arc::new(runtime.block_on(RedisServer::start()));
    compare(12, &runtime, |settings| Store::in_buckets(&redis, settings), 200);
}
