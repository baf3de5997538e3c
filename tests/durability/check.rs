//! Checks the record of a run against the contract: a pure function, tested here with records that violate it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde_json::Value;
use tidings::internals::Cursor;

use super::record::{Done, Entry, Notification, Publication, Seen, User, Way};

/// Stored beyond `history.max_len` at most.
const BEYOND: usize = 200;

/// One breach of a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The client, and the place in its log; none where it is about what is stored.
    pub client: Option<(usize, usize)>,
    pub breach: Breach,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Breach {
    /// Confirmed, and never stored.
    NotStored { way: &'static str, number: u64 },
    /// Stored more than once.
    StoredAgain { way: &'static str, number: u64 },
    /// Stored behind a later one of its way.
    StoredLate { way: &'static str, number: u64 },
    /// Stored, and never confirmed to a publisher.
    NobodyPublished { data: String },
    /// Confirmed under another id than it is stored.
    OtherId { way: &'static str, number: u64 },
    /// The notifications kept at the end are not the newest.
    KeptOthers,
    /// More or fewer are counted as unread than are listed.
    Counted(u64),
    /// Fewer or more are kept than promised.
    KeptTooManyOrFew(usize),
    /// HTTP lists something else than XRANGE.
    ListedOthers,
    /// A `cursor` or `id` that stands for no place in the history.
    NoSuchPlace(Cursor),
    /// An event that differs from the stored one.
    Altered(Cursor),
    /// This many stored ones before it never came.
    Lost(usize),
    /// A second time on the same connection.
    Twice(Cursor),
    /// Behind a later one.
    Late(Cursor),
    /// It was taken back before the connection began.
    TakenBack(Cursor),
    /// `recovered:true` without a resume.
    RecoveredUnasked,
    /// `recovered:false` without a cursor to go on from.
    NoCursor,
    /// `recovered:false`, though all of it is kept: this many.
    Unexplained(usize),
    /// The run ended before the client received the end.
    NoEnd,
    /// Unread, and not handed over.
    NotHandedOver(Cursor),
    /// Handed over more than once.
    HandedOverAgain(Cursor),
    /// Handed over, though it was read or taken back before its time.
    HandedOverInVain(Cursor),
    /// Handed over, and not published to be.
    HandedOverUnasked(Cursor),
}

/// Every breach of a promise to this user. Of a connection, the first alone: what follows it follows from it.
pub fn faults(user: &User, max_len: usize) -> Vec<Fault> {
    let mut faults: Vec<_> = stored_as_published(user).into_iter().chain(kept_as_stored(user, max_len)).collect();
    let history = History::of(user);
    for (number, log) in user.clients.iter().enumerate() {
        let mut follower = Follower::new(&history, max_len);
        let mut excused = false;
        for (at, Entry { seen, at: time }) in log.iter().enumerate() {
            (follower.now, follower.evicted) = (*time, evicted(user, *time));
            excused &= !matches!(seen, Seen::Welcome { .. });
            let breach = follower.follow(seen);
            if let (Some(breach), false) = (breach, excused) {
                faults.push(Fault { client: Some((number, at)), breach });
                excused = true;
            }
        }
        let end = Some((number, log.len().saturating_sub(1)));
        match log.last() {
            Some(Entry { seen: Seen::Marker, .. }) => {}
            _ => faults.push(Fault { client: end, breach: Breach::NoEnd }),
        }
    }
    faults
}

/// How many of the user's notifications had been evicted at this time.
fn evicted(user: &User, time: u64) -> usize {
    user.evicted.iter().filter(|(at, _)| *at <= time).map(|(_, count)| *count).max().unwrap_or_default()
}

/// Whether each publication is stored once, under its id, and in the order of its way.
fn stored_as_published(user: &User) -> Vec<Fault> {
    let mut breaches = Vec::new();
    let mut copies: HashMap<(&str, u64), Vec<Cursor>> = HashMap::new();
    let mut last: HashMap<&str, u64> = HashMap::new();
    for Notification { id, data, .. } in &user.stored {
        let Some((way, number)) = content(data) else {
            breaches.push(Breach::NobodyPublished { data: data.clone() });
            continue;
        };
        let again = copies.entry((way, number)).or_default();
        again.push(*id);
        if again.len() == 1 {
            let last = last.entry(way).or_insert(number);
            if *last > number {
                breaches.push(Breach::StoredLate { way, number });
            }
            *last = number.max(*last);
        }
    }
    for publication in &user.published {
        let (way, number) = (publication.way.name(), publication.number);
        match copies.remove(&(way, number)).as_deref() {
            None => breaches.push(Breach::NotStored { way, number }),
            Some([id]) if publication.id.is_none_or(|told| told == *id) => {}
            Some([_]) => breaches.push(Breach::OtherId { way, number }),
            Some(_) => breaches.push(Breach::StoredAgain { way, number }),
        }
    }
    let unknown = copies.into_keys().map(|(way, number)| Breach::NobodyPublished { data: format!("{way} {number}") });
    breaches.extend(unknown);
    breaches.into_iter().map(|breach| Fault { client: None, breach }).collect()
}

/// The way and the number of a publication, from its data.
fn content(data: &str) -> Option<(&'static str, u64)> {
    let content: Value = serde_json::from_str(data).ok()?;
    let way = Way::ALL.iter().map(|way| way.name()).find(|way| content["way"] == **way)?;
    Some((way, content["n"].as_u64()?))
}

/// Whether this notification is what was published so.
pub fn is_of(stored: &Notification, publication: &Publication) -> bool {
    content(&stored.data) == Some((publication.way.name(), publication.number))
}

/// Whether the newest are kept, as many as are promised, and listed as they are.
fn kept_as_stored(user: &User, max_len: usize) -> Vec<Fault> {
    let epoch = user.stored.last().map(|newest| newest.id.epoch);
    let is_taken = |stored: &Notification| user.changes.taken.iter().any(|taken| taken.what.id == stored.id);
    let stored: Vec<_> = user.stored.iter().filter(|stored| !is_taken(stored)).cloned().collect();
    let remaining = stored.iter().skip(evicted(user, u64::MAX));
    let since_loss = remaining.filter(|stored| Some(stored.id.epoch) == epoch).count();
    let kept = user.kept.len();
    let mut breaches = Vec::new();
    if kept < since_loss.min(max_len) || kept > max_len + BEYOND {
        breaches.push(Breach::KeptTooManyOrFew(kept));
    }
    if let Some(unread) = user.unread.filter(|unread| *unread != kept as u64) {
        breaches.push(Breach::Counted(unread));
    }
    if !stored.ends_with(&user.kept) {
        breaches.push(Breach::KeptOthers);
    }
    if user.listed != user.kept {
        breaches.push(Breach::ListedOthers);
    }
    breaches.into_iter().map(|breach| Fault { client: None, breach }).collect()
}

/// Everything that was ever stored, by place.
struct History<'a> {
    stored: &'a [Notification],
    by_id: HashMap<String, usize>,
    /// When some were taken back.
    taken: HashMap<usize, &'a Done<Notification>>,
}

impl<'a> History<'a> {
    fn of(user: &'a User) -> Self {
        let by_id = |(index, stored): (usize, &Notification)| (stored.id.to_string(), index);
        let by_id: HashMap<_, _> = user.stored.iter().enumerate().map(by_id).collect();
        let taken = user.changes.taken.iter().map(|taken| (by_id[&taken.what.id.to_string()], taken)).collect();
        Self { stored: &user.stored, by_id, taken }
    }

    /// How many of these cannot have been taken back by then.
    fn there(&self, places: Range<usize>, by: u64) -> usize {
        places.filter(|place| self.taken.get(place).is_none_or(|taken| taken.asked > by)).count()
    }

    fn index(&self, id: Cursor) -> Option<usize> {
        self.by_id.get(&id.to_string()).copied()
    }

    /// How many of all lie before a place.
    fn before(&self, cursor: Cursor) -> Option<usize> {
        if cursor.number == 0 {
            // Of an epoch in which nothing came to be stored, the time tells.
            let first = self.stored.iter().position(|stored| stored.id.epoch == cursor.epoch);
            return Some(first.unwrap_or_else(|| self.stored.partition_point(|stored| stored.id.ms < cursor.ms)));
        }
        Some(self.index(cursor)? + 1)
    }
}

/// A client's log, read in order.
struct Follower<'a> {
    history: &'a History<'a>,
    max_len: usize,
    /// What must come next on this connection; none where anything may.
    next: Option<usize>,
    /// How far its log goes without a hole, told gaps aside.
    level: Option<usize>,
    /// On this connection.
    received: HashSet<usize>,
    /// How many of all Redis has evicted by now.
    evicted: usize,
    /// When this connection began.
    begun: u64,
    now: u64,
}

impl<'a> Follower<'a> {
    fn new(history: &'a History<'a>, max_len: usize) -> Self {
        Self { history, max_len, next: None, level: None, received: HashSet::new(), evicted: 0, begun: 0, now: 0 }
    }

    fn follow(&mut self, seen: &Seen) -> Option<Breach> {
        match seen {
            Seen::Welcome { begun, asked, recovered, cursor, .. } => {
                self.received.clear();
                (self.next, self.begun) = (None, *begun);
                self.greet(*asked, *recovered, *cursor)
            }
            Seen::Event(event) => self.hear(event),
            Seen::Marker => {
                let all = self.history.stored.len();
                let missing = self.history.there(self.level.unwrap_or(all)..all, self.now);
                (missing > 0).then_some(Breach::Lost(missing))
            }
            Seen::End(_) => None,
        }
    }

    fn greet(&mut self, asked: Option<Cursor>, recovered: bool, cursor: Option<Cursor>) -> Option<Breach> {
        let place = |cursor: Cursor| self.history.before(cursor).ok_or(Breach::NoSuchPlace(cursor));
        let begun = (|| match (asked, recovered) {
            (None, true) => Err(Breach::RecoveredUnasked),
            (None, false) => cursor.map(place).transpose(),
            (Some(asked), true) => {
                // Whatever the welcome gives must do to resume from, too.
                let from = place(asked)?;
                let given = cursor.map(place).transpose()?.unwrap_or(from);
                let level = self.level.unwrap_or(from);
                let skipped = self.history.there(level..from.max(given), self.now);
                if skipped > 0 { Err(Breach::Lost(skipped)) } else { Ok(Some(from)) }
            }
            (Some(asked), false) => {
                let cursor = cursor.ok_or(Breach::NoCursor)?;
                let (from, now) = (place(asked)?, place(cursor)?);
                let missed = now.saturating_sub(from);
                let evicted = missed > 0 && from < self.evicted;
                let all_kept = asked.epoch == cursor.epoch && missed <= self.max_len && !evicted;
                if all_kept { Err(Breach::Unexplained(missed)) } else { Ok(Some(now)) }
            }
        })();
        match begun {
            Ok(place) => {
                self.next = place;
                // Received before, as far as it asked from an earlier place than it had.
                self.level = if recovered { self.level.max(place) } else { place };
                None
            }
            Err(breach) => Some(breach),
        }
    }

    fn hear(&mut self, event: &Notification) -> Option<Breach> {
        let Some(index) = self.history.index(event.id) else { return Some(Breach::NoSuchPlace(event.id)) };
        let next = self.next.unwrap_or(index);
        let missing = self.history.there(next..index, self.now);
        let again = !self.received.insert(index);
        self.next = Some(next.max(index + 1));
        self.level = self.level.max(self.next);
        if self.history.stored[index] != *event {
            Some(Breach::Altered(event.id))
        } else if again {
            Some(Breach::Twice(event.id))
        } else if index < next {
            Some(Breach::Late(event.id))
        } else if missing > 0 {
            Some(Breach::Lost(missing))
        } else if self.history.taken.get(&index).is_some_and(|taken| taken.done < self.begun) {
            Some(Breach::TakenBack(event.id))
        } else {
            None
        }
    }
}

#[cfg(test)]
pub mod tests {
    use std::num::NonZeroU64;

    use super::*;

    fn cursor(epoch: u64, number: u64) -> Cursor {
        Cursor { epoch: NonZeroU64::new(epoch).unwrap(), ms: 1_000 * epoch + number, number }
    }

    fn stored(epoch: u64, number: u64) -> Notification {
        let id = cursor(epoch, number);
        let data = format!(r#"{{"to":"u","way":"one","n":{}}}"#, 100 * epoch + number);
        Notification { id, ts: id.ms, event: "notification".into(), data }
    }

    fn welcome(asked: Option<Cursor>, recovered: bool, cursor: Cursor) -> Seen {
        Seen::Welcome { instance: "a".into(), begun: 100, asked, recovered, cursor: Some(cursor) }
    }

    fn event(number: u64) -> Seen {
        Seen::Event(stored(1, number))
    }

    fn publication(way: Way, number: u64, id: Option<Cursor>) -> Publication {
        Publication { way, number, id, escalates: false }
    }

    /// A user with ten stored ones, whose client saw this.
    pub fn user(seen: Vec<Seen>) -> User {
        let stored: Vec<_> = (1..=10).map(|number| stored(1, number)).collect();
        let published = |stored: &Notification| publication(Way::One, 100 + stored.id.number, Some(stored.id));
        User {
            name: "u".into(),
            published: stored.iter().map(published).collect(),
            kept: stored.clone(),
            listed: stored.clone(),
            stored,
            clients: vec![seen.into_iter().map(|seen| Entry { at: 200, seen }).collect()],
            ..User::default()
        }
    }

    /// Another life of the same user, after Redis lost everything: five more.
    fn reborn(seen: Vec<Seen>) -> User {
        let mut user = user(seen);
        let second: Vec<_> = (1..=5).map(|number| stored(2, number)).collect();
        let published = |stored: &Notification| publication(Way::One, 200 + stored.id.number, None);
        user.published.extend(second.iter().map(published));
        (user.kept, user.listed) = (second.clone(), second.clone());
        user.stored.extend(second);
        user
    }

    fn breaches(user: &User) -> Vec<Breach> {
        faults(user, 5).into_iter().map(|fault| fault.breach).collect()
    }

    /// Receives 1 to 4, and resumes from there.
    fn half() -> Vec<Seen> {
        let mut seen = vec![welcome(None, false, cursor(1, 0))];
        seen.extend((1..=4).map(event));
        seen.push(Seen::End(None));
        seen
    }

    fn whole() -> Vec<Seen> {
        let mut seen = half();
        seen.push(welcome(Some(cursor(1, 4)), true, cursor(1, 4)));
        seen.extend((5..=10).map(event));
        seen.push(Seen::Marker);
        seen
    }

    #[test]
    fn a_run_without_a_fault_has_none() {
        assert_eq!(breaches(&user(whole())), []);
        let late = [welcome(None, false, cursor(1, 8)), event(9), event(10), Seen::Marker];
        assert_eq!(breaches(&user(late.to_vec())), []);
        // From further back than it had got, and sent away before anything came.
        let mut seen = half();
        seen.extend([welcome(Some(cursor(1, 2)), true, cursor(1, 2)), Seen::End(Some(4200))]);
        seen.push(welcome(Some(cursor(1, 2)), true, cursor(1, 2)));
        seen.extend((3..=10).map(event));
        seen.push(Seen::Marker);
        assert_eq!(breaches(&user(seen)), []);
    }

    #[test]
    fn a_lost_one_is_found_wherever_it_is() {
        for missing in [2, 4, 5, 7] {
            let mut seen = whole();
            seen.retain(|seen| !matches!(seen, Seen::Event(event) if event.id.number == missing));
            assert_eq!(breaches(&user(seen)), [Breach::Lost(1)], "{missing}");
        }
        let mut seen = whole();
        seen.remove(seen.len() - 2);
        assert_eq!(breaches(&user(seen)), [Breach::Lost(1)], "the last");
        let mut seen = half();
        seen.extend([welcome(Some(cursor(1, 4)), true, cursor(1, 10)), Seen::Marker]);
        assert_eq!(breaches(&user(seen)), [Breach::Lost(6)], "a cursor ahead of what was sent");
        let mut seen = whole();
        seen.pop();
        assert_eq!(breaches(&user(seen)), [Breach::NoEnd]);
    }

    #[test]
    fn a_swapped_pair_is_found() {
        let mut seen = whole();
        let second = seen.len() - 3;
        seen.swap(second, second - 1);
        assert_eq!(breaches(&user(seen.clone())), [Breach::Lost(1)], "all later breaches follow from it");
        // Without the check for holes, a hole that is filled later is a late event.
        let user = user(seen);
        let history = History::of(&user);
        let mut follower = Follower::new(&history, 5);
        follower.next = Some(7);
        assert_eq!(follower.follow(&event(7)), Some(Breach::Late(cursor(1, 7))));
    }

    #[test]
    fn one_that_comes_twice_is_found() {
        let mut seen = whole();
        seen.insert(3, event(2));
        assert_eq!(breaches(&user(seen)), [Breach::Twice(cursor(1, 2))]);
        // Again after a resume from behind it.
        let mut seen = whole();
        seen.insert(7, event(4));
        assert_eq!(breaches(&user(seen)), [Breach::Late(cursor(1, 4))]);
    }

    #[test]
    fn what_is_not_as_it_is_stored_is_found() {
        for change in [
            (|event: &mut Notification| event.data.push(' ')) as fn(&mut Notification),
            |event| event.event.push('s'),
            |event| event.ts += 1,
        ] {
            let mut seen = whole();
            let Seen::Event(changed) = &mut seen[2] else { panic!() };
            change(changed);
            assert_eq!(breaches(&user(seen)), [Breach::Altered(cursor(1, 2))]);
        }
        let mut seen = whole();
        seen.insert(2, Seen::Event(stored(1, 77)));
        assert_eq!(breaches(&user(seen)), [Breach::NoSuchPlace(cursor(1, 77))]);
    }

    #[test]
    fn a_resume_that_failed_for_no_reason_is_found() {
        let refused = |from: u64, to: u64| {
            let mut seen = vec![welcome(None, false, cursor(1, 0))];
            seen.extend((1..=from).map(event));
            seen.push(welcome(Some(cursor(1, from)), false, cursor(1, to)));
            seen.extend((to + 1..=10).map(event));
            seen.push(Seen::Marker);
            breaches(&user(seen))
        };
        assert_eq!(refused(2, 8), [], "six of five");
        assert_eq!(refused(3, 8), [Breach::Unexplained(5)]);
        assert_eq!(refused(4, 4), [Breach::Unexplained(0)]);
        let mut seen = half();
        let asked = Some(cursor(1, 4));
        seen.push(Seen::Welcome { instance: "a".into(), begun: 100, asked, recovered: false, cursor: None });
        seen.push(Seen::Marker);
        assert_eq!(breaches(&user(seen)), [Breach::NoCursor]);
        let mut seen = whole();
        seen[0] = welcome(None, true, cursor(1, 0));
        assert_eq!(breaches(&user(seen)), [Breach::RecoveredUnasked]);
    }

    #[test]
    fn an_eviction_explains_a_resume_that_failed_only_for_a_client_that_lacked_some_of_it() {
        let refused = |from: u64, recovered: bool| {
            let mut seen = vec![welcome(None, false, cursor(1, 0))];
            seen.extend((1..=from).map(event));
            seen.push(welcome(Some(cursor(1, from)), recovered, cursor(1, 8)));
            seen.extend((9..=10).map(event));
            seen.push(Seen::Marker);
            let mut user = user(seen);
            user.evicted = vec![(0, 8)];
            (user.kept, user.listed) = (user.stored[8..].to_vec(), user.stored[8..].to_vec());
            breaches(&user)
        };
        assert_eq!(refused(7, false), []);
        assert_eq!(refused(8, false), [Breach::Unexplained(0)], "it had received everything");
        assert_eq!(refused(8, true), []);
        assert_eq!(refused(7, true), [Breach::Lost(1)], "nothing looks like everything gone");
        let mut kept = user(whole());
        kept.evicted = vec![(0, 8)];
        kept.kept.drain(..9);
        kept.listed.drain(..9);
        assert_eq!(breaches(&kept), [Breach::KeptTooManyOrFew(1)]);
    }

    #[test]
    fn a_fork_that_continues_the_numbers_is_found() {
        // The second server has 1 to 4 of the first, and other notifications in the place of 5 to 10.
        let forked = |epoch: u64, resumed: Seen| {
            let mut seen = vec![welcome(None, false, cursor(1, 0))];
            seen.extend((1..=10).map(event));
            seen.push(resumed);
            let mut user = user(Vec::new());
            let epoch = NonZeroU64::new(epoch).unwrap();
            let second = (5..=12).map(|number| stored(2, number));
            let second: Vec<_> = second.map(|one| Notification { id: Cursor { epoch, ..one.id }, ..one }).collect();
            seen.extend(second.iter().filter(|stored| stored.id.number > 10).cloned().map(Seen::Event));
            seen.push(Seen::Marker);
            let published = |stored: &Notification| publication(Way::One, 200 + stored.id.number, None);
            user.published.extend(second.iter().map(published));
            (user.kept, user.listed) = (second.clone(), second.clone());
            user.stored.extend(second);
            user.clients = vec![seen.into_iter().map(|seen| Entry { at: 0, seen }).collect()];
            faults(&user, 8).into_iter().map(|fault| fault.breach).filter(|breach| !is_kept(breach)).collect::<Vec<_>>()
        };
        let is_lost = [Breach::Lost(6)];
        assert_eq!(forked(1, welcome(Some(cursor(1, 10)), true, cursor(1, 10))), is_lost, "as if nothing had happened");
        let newest = Cursor { epoch: NonZeroU64::new(2).unwrap(), ms: 2_010, number: 10 };
        assert_eq!(forked(2, welcome(Some(cursor(1, 10)), false, newest)), []);
    }

    fn is_kept(breach: &Breach) -> bool {
        matches!(breach, Breach::KeptTooManyOrFew(_) | Breach::KeptOthers | Breach::ListedOthers)
    }

    #[test]
    fn another_epoch_explains_a_resume_that_failed_and_nothing_else() {
        let mut seen = half();
        seen.push(welcome(Some(cursor(1, 4)), false, cursor(2, 3)));
        seen.extend((4..=5).map(|number| Seen::Event(stored(2, number))));
        seen.push(Seen::Marker);
        assert_eq!(breaches(&reborn(seen.clone())), []);
        seen.remove(seen.len() - 2);
        assert_eq!(breaches(&reborn(seen)), [Breach::Lost(1)]);
        let mut seen = half();
        seen.extend((1..=5).map(|number| Seen::Event(stored(2, number))));
        seen.push(Seen::Marker);
        // The client stayed, and was never informed that it lacks the end of the first epoch.
        assert_eq!(breaches(&reborn(seen)), [Breach::Lost(6)]);
    }

    #[test]
    fn what_is_stored_otherwise_than_it_was_published_is_found() {
        let mut lacking = user(whole());
        lacking.published.push(publication(Way::Outbox, 0, None));
        assert_eq!(breaches(&lacking), [Breach::NotStored { way: "outbox", number: 0 }]);
        let mut unasked = user(whole());
        unasked.published.pop();
        assert_eq!(breaches(&unasked), [Breach::NobodyPublished { data: "one 110".into() }]);
        let mut elsewhere = user(whole());
        elsewhere.published[0].id = Some(cursor(1, 2));
        assert_eq!(breaches(&elsewhere), [Breach::OtherId { way: "one", number: 101 }]);
        let twice = |at: usize| {
            let mut user = user(whole());
            user.clients.clear();
            user.stored[at].data = user.stored[3].data.clone();
            user.published.remove(at);
            (user.kept, user.listed) = (user.stored.clone(), user.stored.clone());
            breaches(&user)
        };
        assert_eq!(twice(5), [Breach::StoredAgain { way: "one", number: 104 }]);
        let mut swapped = user(Vec::new());
        swapped.clients.clear();
        swapped.published.iter_mut().for_each(|publication| publication.id = None);
        let (one, other) = (swapped.stored[2].data.clone(), swapped.stored[3].data.clone());
        (swapped.stored[2].data, swapped.stored[3].data) = (other, one);
        (swapped.kept, swapped.listed) = (swapped.stored.clone(), swapped.stored.clone());
        assert_eq!(breaches(&swapped), [Breach::StoredLate { way: "one", number: 103 }]);
    }

    #[test]
    fn one_that_was_taken_back_may_be_missing_from_then_on_and_must_be_from_the_next_connection_on() {
        let taken = |mut seen: Vec<Seen>, missing: bool, asked: u64, done: u64| {
            if missing {
                seen.retain(|seen| !matches!(seen, Seen::Event(event) if event.id.number == 7));
            }
            let mut user = user(seen);
            user.changes.taken.push(Done { what: user.stored[6].clone(), asked, done });
            user.kept.remove(6);
            user.listed.remove(6);
            user.unread = Some(9);
            breaches(&user)
        };
        assert_eq!(taken(whole(), true, 150, 250), []);
        assert_eq!(taken(whole(), false, 50, 150), []);
        assert_eq!(taken(whole(), true, 300, 350), [Breach::Lost(1)], "it was still there");
        assert_eq!(taken(whole(), false, 50, 90), [Breach::TakenBack(cursor(1, 7))]);
        let mut kept = user(whole());
        kept.changes.taken.push(Done { what: kept.stored[9].clone(), asked: 150, done: 160 });
        kept.unread = Some(10);
        assert_eq!(breaches(&kept), [Breach::KeptOthers]);
        kept.kept.pop();
        kept.listed.pop();
        assert_eq!(breaches(&kept), [Breach::Counted(10)]);
    }

    #[test]
    fn what_is_kept_or_listed_otherwise_is_found() {
        let mut few = user(whole());
        few.kept.drain(..6);
        few.listed.drain(..6);
        assert_eq!(breaches(&few), [Breach::KeptTooManyOrFew(4)]);
        let mut others = user(whole());
        others.kept.remove(3);
        others.listed.remove(3);
        assert_eq!(breaches(&others), [Breach::KeptOthers]);
        let mut listed = user(whole());
        listed.listed.pop();
        assert_eq!(breaches(&listed), [Breach::ListedOthers]);
    }
}
