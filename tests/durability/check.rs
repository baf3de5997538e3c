//! Checks the record of a run against the contract: a pure function, tested here with records that violate it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use tidings::internals::Cursor;

use super::record::{Entry, Notification, Seen, User, Way};

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
    /// `recovered:true` without a resume.
    RecoveredUnasked,
    /// `recovered:false` without a cursor to go on from.
    NoCursor,
    /// `recovered:false`, though all of it is kept: this many.
    Unexplained(usize),
    /// The run ended before the client received the end.
    NoEnd,
}

/// Every breach of a promise to this user. Of a connection, the first alone: what follows it follows from it.
pub fn faults(user: &User, max_len: usize) -> Vec<Fault> {
    let mut faults: Vec<_> = stored_as_published(user).into_iter().chain(kept_as_stored(user, max_len)).collect();
    let history = History::of(&user.stored);
    for (number, log) in user.clients.iter().enumerate() {
        let mut follower = Follower { history: &history, max_len, next: None, level: None, heard: HashSet::new() };
        let mut excused = false;
        for (at, Entry { seen, .. }) in log.iter().enumerate() {
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

/// Whether each publication is stored once, under its id, and in the order of its way.
fn stored_as_published(user: &User) -> Vec<Fault> {
    let mut breaches = Vec::new();
    let mut copies: HashMap<(&str, u64), Vec<Cursor>> = HashMap::new();
    let mut last: HashMap<&str, u64> = HashMap::new();
    for Notification { id, data, .. } in &user.stored {
        let content: Value = serde_json::from_str(data).unwrap_or_default();
        let way = Way::ALL.iter().map(|way| way.name()).find(|way| content["way"] == **way);
        let (Some(way), Some(number)) = (way, content["n"].as_u64()) else {
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

/// Whether the newest are kept, as many as are promised, and listed as they are.
fn kept_as_stored(user: &User, max_len: usize) -> Vec<Fault> {
    let epoch = user.stored.last().map(|newest| newest.id.epoch);
    let since_loss = user.stored.iter().filter(|stored| Some(stored.id.epoch) == epoch).count();
    let kept = user.kept.len();
    let mut breaches = Vec::new();
    if kept < since_loss.min(max_len) || kept > max_len + BEYOND {
        breaches.push(Breach::KeptTooManyOrFew(kept));
    }
    if !user.stored.ends_with(&user.kept) {
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
}

impl<'a> History<'a> {
    fn of(stored: &'a [Notification]) -> Self {
        let by_id = stored.iter().enumerate().map(|(index, stored)| (stored.id.to_string(), index)).collect();
        Self { stored, by_id }
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
    heard: HashSet<usize>,
}

impl Follower<'_> {
    fn follow(&mut self, seen: &Seen) -> Option<Breach> {
        match seen {
            Seen::Welcome { asked, recovered, cursor, .. } => {
                self.heard.clear();
                self.next = None;
                self.greet(*asked, *recovered, *cursor)
            }
            Seen::Event(event) => self.hear(event),
            Seen::Marker => {
                let missing = self.history.stored.len() - self.level.unwrap_or(self.history.stored.len());
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
                let skipped = from.max(given).saturating_sub(level);
                if skipped > 0 { Err(Breach::Lost(skipped)) } else { Ok(Some(from)) }
            }
            (Some(asked), false) => {
                let cursor = cursor.ok_or(Breach::NoCursor)?;
                let (from, now) = (place(asked)?, place(cursor)?);
                let missed = now.saturating_sub(from);
                let all_kept = asked.epoch == cursor.epoch && missed <= self.max_len;
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
        let again = !self.heard.insert(index);
        self.next = Some(next.max(index + 1));
        self.level = self.level.max(self.next);
        if self.history.stored[index] != *event {
            Some(Breach::Altered(event.id))
        } else if again {
            Some(Breach::Twice(event.id))
        } else if index < next {
            Some(Breach::Late(event.id))
        } else if index > next {
            Some(Breach::Lost(index - next))
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::super::record::Publication;
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
        Seen::Welcome { instance: "a".into(), asked, recovered, cursor: Some(cursor) }
    }

    fn event(number: u64) -> Seen {
        Seen::Event(stored(1, number))
    }

    /// A user with ten stored ones, whose client saw this.
    fn user(seen: Vec<Seen>) -> User {
        let stored: Vec<_> = (1..=10).map(|number| stored(1, number)).collect();
        let published =
            |stored: &Notification| Publication { way: Way::One, number: 100 + stored.id.number, id: Some(stored.id) };
        User {
            name: "u".into(),
            published: stored.iter().map(published).collect(),
            kept: stored.clone(),
            listed: stored.clone(),
            stored,
            clients: vec![seen.into_iter().map(|seen| Entry { at: 0, seen }).collect()],
        }
    }

    /// Another life of the same user, after Redis lost everything: five more.
    fn reborn(seen: Vec<Seen>) -> User {
        let mut user = user(seen);
        let second: Vec<_> = (1..=5).map(|number| stored(2, number)).collect();
        let published = |stored: &Notification| Publication { way: Way::One, number: 200 + stored.id.number, id: None };
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
        let history = History::of(&user.stored);
        let mut follower = Follower { history: &history, max_len: 5, next: None, level: None, heard: HashSet::new() };
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
        seen.push(Seen::Welcome { instance: "a".into(), asked, recovered: false, cursor: None });
        seen.push(Seen::Marker);
        assert_eq!(breaches(&user(seen)), [Breach::NoCursor]);
        let mut seen = whole();
        seen[0] = welcome(None, true, cursor(1, 0));
        assert_eq!(breaches(&user(seen)), [Breach::RecoveredUnasked]);
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
        lacking.published.push(Publication { way: Way::Outbox, number: 0, id: None });
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
