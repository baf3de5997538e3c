//! Checks what was handed over as unread: a pure function, as `check`.

use tidings::internals::Cursor;

use super::check::{Breach, Fault, is_of};
use super::record::{Notification, Publication, User};

/// The time of each escalation.
pub const ESCALATE_S: u64 = 2;

/// Between an answer and the time that Redis has read, on a busy machine.
const SLACK_MS: u64 = 100;

/// Whether each that no device read is handed over once, and none that was read or taken back in time. What was read or taken
/// back when its time was up may be either.
pub fn not_handed_over_once(user: &User) -> Vec<Fault> {
    let escalated: Vec<_> = user.published.iter().filter(|publication| publication.escalates).collect();
    let mut breaches: Vec<_> = escalated.iter().filter_map(|publication| breach(user, publication)).collect();
    let is_escalated = |id: &Cursor| {
        let stored = user.stored.iter().find(|stored| stored.id == *id);
        stored.is_some_and(|stored| escalated.iter().any(|publication| is_of(stored, publication)))
    };
    let unasked = user.handed_over.iter().filter(|id| !is_escalated(id));
    breaches.extend(unasked.map(|id| Breach::HandedOverUnasked(*id)));
    breaches.into_iter().map(|breach| Fault { client: None, breach }).collect()
}

fn breach(user: &User, publication: &Publication) -> Option<Breach> {
    // Another check finds what was not stored.
    let Notification { id, .. } = user.stored.iter().find(|stored| is_of(stored, publication))?;
    let count = user.handed_over.iter().filter(|other| *other == id).count();
    let taken = user.changes.taken.iter().filter(|taken| taken.what.id == *id).map(|taken| taken.done);
    let covers = |read: &Cursor| read.ms >= id.ms && read.number >= id.number;
    let read = user.changes.read.iter().filter(|read| covers(&read.what)).map(|read| read.done);
    let done = taken.chain(read).min();
    let due = (id.ms + ESCALATE_S * 1_000).saturating_sub(user.begun_ms);
    match (count, done) {
        (0, None) => Some(Breach::NotHandedOver(*id)),
        (1, Some(done)) if done + SLACK_MS < due => Some(Breach::HandedOverInVain(*id)),
        (0 | 1, _) => None,
        _ => Some(Breach::HandedOverAgain(*id)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::tests::user;
    use super::super::record::Done;
    use super::*;

    fn read_at(user: &mut User, place: usize, done: u64) {
        user.changes.read.push(Done { what: user.stored[place].id, asked: 0, done });
    }

    #[test]
    fn each_unread_one_must_be_handed_over_once_and_none_that_was_read_or_taken_back_in_time() {
        let breaches = |change: fn(&mut User)| {
            let mut user = user(Vec::new());
            user.published[3].escalates = true;
            user.handed_over = vec![user.stored[3].id];
            change(&mut user);
            let found = not_handed_over_once(&user).into_iter().map(|fault| fault.breach).collect::<Vec<_>>();
            (found, user.stored[3].id)
        };
        let (found, id) = breaches(|_| {});
        assert_eq!(found, []);
        assert_eq!(breaches(|user| user.handed_over.clear()).0, [Breach::NotHandedOver(id)]);
        assert_eq!(breaches(|user| user.handed_over.push(user.handed_over[0])).0, [Breach::HandedOverAgain(id)]);
        let (found, _) = breaches(|user| user.handed_over.push(user.stored[4].id));
        assert!(matches!(found[..], [Breach::HandedOverUnasked(_)]), "{found:?}");
        let due = id.ms + ESCALATE_S * 1_000;
        assert_eq!(due, 3_004);
        assert_eq!(breaches(|user| read_at(user, 4, 2_000)).0, [Breach::HandedOverInVain(id)]);
        assert_eq!(breaches(|user| read_at(user, 2, 2_000)).0, [], "an earlier one was read");
        assert_eq!(breaches(|user| read_at(user, 4, 3_500)).0, [], "it was read too late");
        let taken =
            |user: &mut User| user.changes.taken.push(Done { what: user.stored[3].clone(), asked: 0, done: 2_000 });
        assert_eq!(breaches(taken).0, [Breach::HandedOverInVain(id)]);
    }
}
