//! The lineage: every interleaving of storing, receiving, losing a subscription, failing over to a server that may lack the
//! newest notifications, going back to an earlier server, and checking, in a small model of `fleet.lua` and `publish.lua`.

use std::collections::HashSet;

use super::*;

/// A notification: a number that is never used again, and the server and term in which it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stored {
    id: usize,
    server: usize,
    term: usize,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Store,
    Receive,
    /// The instance loses its subscription with the messages in flight, and subscribes again.
    Resubscribe,
    /// Another server takes over that lacks so many notifications, and the instance connects to it.
    FailOver(usize),
    /// The same, but more is stored there before the instance is connected.
    Fork(usize),
    /// The first server is the one that serves again, as it was.
    Back,
    Check,
}

const STEPS: [Step; 9] = [
    Step::Store,
    Step::Receive,
    Step::Resubscribe,
    Step::FailOver(0),
    Step::FailOver(1),
    Step::Fork(0),
    Step::Fork(1),
    Step::Back,
    Step::Check,
];

#[derive(Debug, Default)]
struct World {
    detector: GapDetector,
    log: Vec<Stored>,
    first: Option<Vec<Stored>>,
    server: usize,
    servers: usize,
    stored: usize,
    terms: usize,
    epoch: usize,
    /// Messages in flight to the instance: the count and the notification.
    flight: Vec<(usize, Stored)>,
    /// The notifications that the instance has received in this epoch.
    received: Vec<usize>,
    /// What was on the servers at the checks of this epoch: known, too.
    counted: Vec<usize>,
}

impl World {
    fn store(&mut self, in_flight: bool) {
        let term = match self.log.last() {
            Some(last) if last.server == self.server => last.term,
            _ => {
                self.terms += 1;
                self.terms
            }
        };
        self.stored += 1;
        let stored = Stored { id: self.stored, server: self.server, term };
        self.log.push(stored);
        if in_flight {
            self.flight.push((self.log.len(), stored));
        }
    }

    fn move_to(&mut self, log: Vec<Stored>, server: usize) {
        self.first.get_or_insert_with(|| self.log.clone());
        (self.log, self.server) = (log, server);
        self.flight.clear();
        self.detector.start_over();
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Store => self.store(true),
            Step::Receive if self.flight.is_empty() => {}
            Step::Receive => {
                let (count, Stored { id, term, .. }) = self.flight.remove(0);
                let epoch = user_epoch(&self.epoch.to_string(), "42").unwrap();
                let message = format!("~{count}@{term} {epoch:016x}-1-1 \"n\" 1");
                self.detector.observe("42", message.as_bytes());
                // Before the first check it does not know the epoch.
                if self.detector.fleet.as_ref().is_some_and(|fleet| fleet.epoch == self.epoch.to_string()) {
                    self.received.push(id);
                }
            }
            Step::Resubscribe => {
                self.flight.clear();
                self.detector.start_over();
            }
            Step::FailOver(lacks) | Step::Fork(lacks) => {
                self.servers += 1;
                let kept = self.log.len().saturating_sub(lacks);
                let log = self.log.get(..kept).unwrap_or_default().to_vec();
                self.move_to(log, self.servers);
                if matches!(step, Step::Fork(_)) {
                    (0..=lacks).for_each(|_| self.store(false));
                }
            }
            Step::Back => {
                if let Some(first) = self.first.clone() {
                    self.move_to(first, 0);
                }
            }
            Step::Check => self.check(),
        }
    }

    /// As fleet.lua does.
    fn extent(&self, term: &str) -> Option<u64> {
        if term == NO_TERM {
            return Some(0);
        }
        let last = self.log.iter().rposition(|stored| stored.term.to_string() == term)?;
        Some(last as u64 + 1)
    }

    fn check(&mut self) {
        let known = self.detector.known.clone();
        let knows_epoch = self.detector.fleet.as_ref().is_some_and(|fleet| fleet.epoch == self.epoch.to_string());
        let lost =
            knows_epoch && known.iter().any(|(term, count)| self.extent(term).is_none_or(|extent| extent < *count));
        let has = |id: &usize| self.log.iter().any(|stored| stored.id == *id);
        let is_whole = self.received.iter().chain(&self.counted).all(has);
        assert_eq!(lost, !is_whole, "{self:?}");
        if lost {
            self.epoch += 1;
            (self.received, self.counted) = (Vec::new(), Vec::new());
        }
        self.counted = self.log.iter().map(|stored| stored.id).collect();
        let term = self.log.last().map_or_else(|| NO_TERM.to_owned(), |last| last.term.to_string());
        let fleet = Fleet { epoch: self.epoch.to_string(), term, count: self.log.len() as u64 };
        let unchecked = self.detector.unchecked;
        let signalled = self.detector.compare(fleet, &known);
        assert!(signalled || !(lost || unchecked), "clients are compared after a loss or a new subscription: {self:?}");
        assert_eq!(self.detector.known.len(), 1, "{self:?}");
    }
}

#[test]
fn a_check_begins_a_new_epoch_exactly_if_something_known_is_lost() {
    let mut runs = HashSet::new();
    // Every sequence of so many steps after the first, and a check at the end.
    let (length, steps) = (5_u32, STEPS.len());
    for number in 0..steps.pow(length) {
        let mut world = World::default();
        for step in [Step::Check, Step::Store, Step::Receive, Step::Store] {
            world.take(step);
        }
        let mut rest = number;
        for _ in 0..length {
            world.take(STEPS[rest % steps]);
            rest /= steps;
        }
        world.take(Step::Check);
        runs.insert((world.epoch, world.log.len()));
    }
    assert!(runs.len() > 10, "{runs:?}");
}

#[test]
fn what_an_earlier_version_counted_belongs_to_the_present_term() {
    let mut detector = GapDetector::default();
    let fleet = |term: &str, count| Fleet { epoch: "e".into(), term: term.into(), count };
    detector.compare(fleet("a", 1), &[]);
    let epoch = user_epoch("e", "42").unwrap();
    assert!(!detector.observe("42", format!("~2 {epoch:016x}-1-1 \"n\" 1").as_bytes()));
    assert_eq!(detector.known, [("a".to_owned(), 2)]);
    assert!(!detector.observe("42", format!("~3@b {epoch:016x}-1-1 \"n\" 1").as_bytes()));
    assert_eq!(detector.known, [("a".to_owned(), 2), ("b".to_owned(), 3)]);
    let confirmed = detector.known.clone();
    assert!(!detector.compare(fleet("b", 3), &confirmed));
    assert_eq!(detector.known, [("b".to_owned(), 3)]);
}

#[test]
fn a_gap_is_signalled_for_the_bucket_of_the_user_whose_notification_was_missed() {
    let gaps = Gaps::new("notify/", Layout::Buckets, false);
    let fleet = || Fleet { epoch: "e".into(), term: "a".into(), count: 0 };
    Layout::Buckets.buckets().for_each(|bucket| gaps.compare(bucket, fleet(), &[]));
    let receive = |channel: &str, count: u32| {
        let user = channel.strip_prefix("notify/").unwrap_or("42");
        let message = format!("~{count}@a {:016x}-1-1 \"n\" 1", user_epoch("e", user).unwrap());
        gaps.observe(&BackplaneEvent::Message { channel: channel.as_bytes(), payload: message.as_bytes() });
        gaps.take_missed()
    };
    assert!(receive("notify/42", 1).is_empty() && receive("notify/43", 1).is_empty(), "each bucket counts for itself");
    let mut expected = BucketSet::default();
    expected.insert(Layout::Buckets.bucket("42"));
    assert_eq!(receive("notify/42", 3), expected);
    assert!(receive("user:42", 9).is_empty(), "not a user's channel");
    assert!(receive("notify/43", 2).is_empty());
}

#[tokio::test]
async fn a_new_subscription_has_all_buckets_checked_at_once_and_a_new_term_its_own() {
    let gaps = Gaps::new("user:", Layout::Buckets, false);
    gaps.observe(&BackplaneEvent::Subscribed { lost_since: None });
    assert_eq!((gaps.check_wanted().await, gaps.unchecked()), (Layout::Buckets.all(), Layout::Buckets.all()));
    for bucket in Layout::Buckets.buckets() {
        gaps.compare(bucket, Fleet { epoch: "e".into(), term: "a".into(), count: 0 }, &[]);
    }
    assert!(gaps.unchecked().is_empty());
    let message = format!("~1@b {:016x}-1-1 \"n\" 1", user_epoch("e", "42").unwrap());
    gaps.observe(&BackplaneEvent::Message { channel: b"user:42", payload: message.as_bytes() });
    let own = BucketSet::from_iter([Layout::Buckets.bucket("42")]);
    assert_eq!(gaps.check_wanted().await, own);
}

#[test]
fn what_a_replaced_server_publishes_is_outdated_from_the_check_that_finds_another_until_one_finds_it_again() {
    let gaps = Gaps::new("user:", Layout::One, false);
    let check = |term: &str, confirmed: &[Known]| {
        gaps.compare(0, Fleet { epoch: "e".into(), term: term.into(), count: 1 }, confirmed);
    };
    let is_outdated = |term: &str| {
        let message = format!("~2{term} {:016x}-1-1 \"n\" 1", user_epoch("e", "42").unwrap());
        gaps.is_outdated(&BackplaneEvent::Message { channel: b"user:42", payload: message.as_bytes() })
    };
    check("a", &[]);
    let received = |term: &str| (term.to_owned(), 1);
    for (term, confirmed, outdated) in [
        ("a", vec![received("a")], ["@x"].as_slice()),
        ("b", vec![received("a")], &["@a"]),
        // A backup was restored.
        ("a", vec![received("b"), received("c")], &["@b", "@c"]),
    ] {
        check(term, &confirmed);
        for other in ["@a", "@b", "@c", ""] {
            assert_eq!(is_outdated(other), outdated.contains(&other), "{other} after {term}");
        }
    }
}
