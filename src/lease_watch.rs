//! Which holders of leases are dead, judged by what this process saw itself.
//!
//! The script that renews a lease gives it a number greater than all numbers before, until the last number is lost with
//! Redis's data: another era begins. Each read returns the last number
//! given: a holder whose number is not above that of a read a whole lease ago has not renewed since, and is dead. So a
//! read costs the same however many holders there are, and each process watches all of them: no watcher is elected, so
//! none has to be replaced when it dies or stands still together with others. The delays add up to less than the promised
//! two seconds: a renewal is seen at most one [`interval`](LeaseWatch::interval) late, that is one second, and the read
//! that proves a death is due at the very moment when the oldest lease seen is over ([`LeaseWatch::remaining`]).
//!
//! Only this process's monotonic clock is used: a step of Redis's clock ends no lease. What could not be read proves nothing: a time
//! without a successful read (Redis or this process stood still) counts for no holder. What was seen before it still does:
//! a Redis that stalls again and again delays the verdict, but does not prevent it.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The others may still be reconnecting when this process reads again: after a time without a read, and at the start, this
/// long does not count, either.
const RECONNECTING: Duration = Duration::from_secs(3);

/// In a larger fleet each process reads less often, down to half as often in one of twice the size.
const LARGE_FLEET: u32 = 50;

#[derive(Debug)]
pub struct LeaseWatch {
    lease: Duration,
    read_at: Option<Instant>,
    era: String,
    /// Oldest first; at most one for each read in a lease, and one older.
    marks: VecDeque<Mark>,
}

/// The last number given, as it was first read.
#[derive(Debug)]
struct Mark {
    number: f64,
    since: Instant,
}

impl LeaseWatch {
    pub fn new(lease: Duration) -> Self {
        Self { lease, read_at: None, era: String::new(), marks: VecDeque::new() }
    }

    /// The longest time between two reads: short enough that a slow read is no gap.
    pub fn interval(lease: Duration, holders: usize) -> Duration {
        let holders = u32::try_from(holders).unwrap_or(u32::MAX);
        (lease / 8).min(Duration::from_millis(500)) * holders.clamp(LARGE_FLEET, 2 * LARGE_FLEET) / LARGE_FLEET
    }

    /// The longest time without a read in which no live holder can seem dead: a renewal is due each third of the lease.
    fn longest_gap(&self) -> Duration {
        (self.lease / 2).min(Duration::from_secs(2))
    }

    /// Takes in the last number given in this era, as just read.
    pub fn observe(&mut self, now: Instant, era: String, last: f64) {
        let unread = self.read_at.replace(now).map(|at| now.duration_since(at));
        // A replica that was behind goes on with the same era.
        let lost = self.era != era || self.marks.back().is_some_and(|mark| mark.number > last);
        self.era = era;
        if lost {
            self.marks.clear();
        }
        let is_gap = lost || unread.is_none_or(|unread| unread > self.longest_gap());
        let start = if is_gap { now + RECONNECTING.saturating_sub(self.lease) } else { now };
        if is_gap {
            let uncounted = unread.unwrap_or_default() + RECONNECTING;
            self.marks.iter_mut().for_each(|mark| mark.since = start.min(mark.since + uncounted));
        }
        // After a gap, the time of an earlier mark may still be to come.
        match self.marks.back() {
            Some(mark) if mark.number >= last => {}
            newest => {
                let since = newest.map_or(start, |mark| mark.since.max(start));
                self.marks.push_back(Mark { number: last, since });
            }
        }
        while self.marks.get(1).is_some_and(|mark| self.is_over(mark, now)) {
            self.marks.pop_front();
        }
    }

    /// The holders with numbers up to this one are dead; no number is as low as 0.
    pub fn dead_up_to(&self, now: Instant) -> f64 {
        let over = self.marks.iter().take_while(|mark| self.is_over(mark, now));
        over.last().map_or(0.0, |mark| mark.number)
    }

    fn is_over(&self, mark: &Mark, now: Instant) -> bool {
        now.saturating_duration_since(mark.since) >= self.lease
    }

    /// How long a holder with this number has not been renewed, as far as is known.
    fn unchanged_for(&self, number: f64, now: Instant) -> Duration {
        let seen = self.marks.get(self.marks.partition_point(|mark| mark.number < number));
        seen.map_or(Duration::ZERO, |mark| now.saturating_duration_since(mark.since))
    }

    /// Whether the holder with this number has missed renewals, and may be dead.
    pub fn is_overdue(&self, number: f64, now: Instant) -> bool {
        self.unchanged_for(number, now) >= Self::interval(self.lease, 0) * 3
    }

    /// How long until the holder with this number is dead if it is not renewed again.
    pub fn remaining(&self, number: f64, now: Instant) -> Duration {
        self.lease.saturating_sub(self.unchanged_for(number, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(10);
    const ROUND: Duration = Duration::from_millis(500);

    /// The number of a holder that is not renewed.
    const SILENT: f64 = 1.0;

    struct Rounds {
        watch: LeaseWatch,
        now: Instant,
        /// The number of the others' last renewal.
        last: f64,
        era: &'static str,
    }

    impl Rounds {
        /// A watch that has just begun.
        fn new(lease: Duration) -> Self {
            let mut rounds = Self { watch: LeaseWatch::new(lease), now: Instant::now(), last: SILENT, era: "first" };
            assert!(!rounds.next(Duration::ZERO));
            rounds
        }

        /// The next read, since which another has been renewed; returns whether the silent one is dead.
        fn next(&mut self, after: Duration) -> bool {
            self.now += after;
            self.last += 1.0;
            self.watch.observe(self.now, self.era.to_owned(), self.last);
            let dead_up_to = self.watch.dead_up_to(self.now);
            assert!(dead_up_to < self.last, "who was just renewed is alive");
            dead_up_to >= SILENT
        }

        /// The time until the silent one is dead.
        fn until_dead(&mut self, round: Duration) -> Duration {
            let begun = self.now;
            while !self.next(round) {}
            self.now - begun
        }
    }

    #[test]
    fn a_holder_without_a_renewal_is_dead_after_the_lease_and_others_live() {
        let mut rounds = Rounds::new(LEASE);
        assert_eq!(rounds.watch.remaining(SILENT, rounds.now + ROUND), LEASE - ROUND);
        assert_eq!(rounds.watch.remaining(f64::MAX, rounds.now), LEASE);
        assert_eq!(rounds.until_dead(ROUND), LEASE);
        assert!(rounds.next(ROUND), "until it is gone");
        assert_eq!(rounds.watch.remaining(SILENT, rounds.now), Duration::ZERO);
        assert_eq!(rounds.watch.remaining(rounds.last, rounds.now), LEASE);
    }

    #[test]
    fn a_holder_that_was_renewed_before_it_fell_silent_is_dead_a_lease_after_that_was_read() {
        let mut rounds = Rounds::new(LEASE);
        for _ in 0..7 {
            assert!(!rounds.next(ROUND));
        }
        let (fell_silent, number) = (rounds.now, rounds.last);
        while rounds.watch.dead_up_to(rounds.now) < number {
            rounds.next(ROUND);
        }
        assert_eq!(rounds.now - fell_silent, LEASE);
    }

    #[test]
    fn a_holder_is_overdue_once_it_has_missed_renewals() {
        let mut rounds = Rounds::new(LEASE);
        assert!(!rounds.next(ROUND * 2) && !rounds.watch.is_overdue(SILENT, rounds.now));
        assert!(!rounds.next(ROUND) && rounds.watch.is_overdue(SILENT, rounds.now));
        assert!(!rounds.watch.is_overdue(rounds.last, rounds.now));
    }

    #[test]
    fn a_time_without_reads_proves_nothing() {
        let mut rounds = Rounds::new(LEASE);
        for _ in 0..19 {
            assert!(!rounds.next(ROUND));
        }
        assert!(!rounds.next(LEASE * 2), "both stood still, as far as is known");
        assert_eq!(rounds.until_dead(ROUND), ROUND + RECONNECTING, "what was seen before counts");
    }

    #[test]
    fn stalls_that_come_again_and_again_delay_the_verdict_by_no_more_than_themselves_and_reconnecting() {
        let mut rounds = Rounds::new(LEASE);
        let (stall, mut stalls) = (Duration::from_millis(2_300), 0);
        let begun = rounds.now;
        let mut dead = false;
        while !dead && stalls < 100 {
            // 6.5 s of reads, then a stall: 8.8 s.
            dead = (0..13).any(|_| rounds.next(ROUND));
            if !dead {
                dead = rounds.next(stall);
                stalls += 1;
            }
        }
        assert!(dead && rounds.now - begun <= LEASE + stalls * (stall + RECONNECTING), "{stalls} stalls");
    }

    #[test]
    fn a_holder_that_was_not_due_before_a_stall_has_a_whole_lease_after_it() {
        let mut rounds = Rounds::new(LEASE);
        assert!(!rounds.next(ROUND) && !rounds.next(LEASE * 3));
        assert_eq!(rounds.watch.remaining(SILENT, rounds.now), LEASE);
        assert_eq!(rounds.until_dead(ROUND), LEASE);
    }

    #[test]
    fn slow_reads_count_as_long_as_no_live_holder_can_seem_dead() {
        let mut rounds = Rounds::new(LEASE);
        assert_eq!(rounds.until_dead(Duration::from_secs(2)), LEASE);
        let mut rounds = Rounds::new(LEASE);
        assert!((0..100).all(|_| !rounds.next(Duration::from_millis(2_001))));
    }

    #[test]
    fn a_watch_with_a_short_lease_allows_for_reconnecting_when_it_begins_again() {
        let lease = Duration::from_secs(1);
        let round = LeaseWatch::interval(lease, 1);
        let mut rounds = Rounds::new(lease);
        assert_eq!(rounds.until_dead(round), RECONNECTING);
        let (renewed_at, renewed) = (rounds.now, rounds.last);
        while rounds.watch.dead_up_to(rounds.now) < renewed {
            rounds.next(round);
        }
        assert_eq!(rounds.now - renewed_at, lease, "without a gap, the lease");
    }

    #[test]
    fn when_the_numbers_begin_again_the_watch_does_too() {
        let mut rounds = Rounds::new(LEASE);
        assert_eq!(rounds.until_dead(ROUND), LEASE);
        // A number that was given before, but not in this era.
        rounds.era = "second";
        assert!(!rounds.next(ROUND));
        assert_eq!(rounds.until_dead(ROUND), LEASE);
        // The latest numbers are missing.
        rounds.last = SILENT;
        assert!(!rounds.next(ROUND));
        assert_eq!(rounds.until_dead(ROUND), LEASE);
    }

    #[test]
    fn a_large_fleet_reads_less_often_and_no_process_so_seldom_that_its_reads_are_gaps() {
        for lease in [500, 2_000, 3_000, 10_000, 3_600_000].map(Duration::from_millis) {
            let intervals = [1, 50, 100, 100_000].map(|holders| LeaseWatch::interval(lease, holders));
            assert_eq!(intervals[1] * 2, intervals[2], "as many reads in all");
            assert_eq!((intervals[0], intervals[3]), (intervals[1], intervals[2]));
            assert!(intervals[2] <= Duration::from_secs(1) && intervals[2] * 2 <= LeaseWatch::new(lease).longest_gap());
        }
    }

    #[test]
    fn a_watch_remembers_no_more_than_the_reads_of_a_lease() {
        let mut rounds = Rounds::new(LEASE);
        for _ in 0..1_000 {
            rounds.next(ROUND);
        }
        assert!(rounds.watch.marks.len() <= 21, "{} marks", rounds.watch.marks.len());
    }
}
