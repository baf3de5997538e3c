//! Reads only from a server that was checked to continue what this instance knows.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::timeout;

use super::layout::{Bucket, BucketSet, Layout};
use crate::backplane::BackplaneError;

/// Attempts at a read, each on a connection that was checked after the one before.
const READ_TRIES: u32 = 3;

/// How long a task waits for the check of another.
const TURN_DEADLINE: Duration = Duration::from_secs(3);

/// The checks of each bucket's connections: each leads to one server, and has a number of its own, from 1.
#[derive(Debug)]
pub(super) struct Checks(Vec<Check>);

#[derive(Debug, Default)]
struct Check {
    /// The connection on which the last check ran.
    connection: AtomicU64,
    /// Held during a check: all reads that wait for one share it.
    turn: Mutex<()>,
}

impl Checks {
    pub(super) fn new(layout: Layout) -> Self {
        Self(layout.buckets().map(|_| Check::default()).collect())
    }

    /// Checks these buckets with one call of `check`, which returns the connection of each, except those that a read is
    /// having checked: one bucket out of reach must not hold up the others.
    pub(super) async fn run<C>(
        &self,
        buckets: BucketSet,
        check: impl FnOnce(Vec<Bucket>) -> C,
    ) -> Result<(), BackplaneError>
    where
        C: Future<Output = Result<Vec<Result<u64, BackplaneError>>, BackplaneError>>,
    {
        let wanted = (0..=Bucket::MAX).zip(&self.0).filter(|(bucket, _)| buckets.contains(*bucket));
        let free: Vec<_> = wanted.filter_map(|(bucket, its)| Some((bucket, its, its.try_turn()?))).collect();
        let connections = check(free.iter().map(|(bucket, ..)| *bucket).collect()).await?;
        let mut result = Ok(());
        for ((_, its, _turn), connection) in free.into_iter().zip(connections) {
            match connection {
                Ok(connection) => its.connection.store(connection, Ordering::Release),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// Reads until the reply, which comes with the number of its connection, is that of a server checked before.
    pub(super) async fn read<T, R, C>(
        &self,
        bucket: Bucket,
        read: impl Fn() -> R,
        check: impl Fn() -> C,
    ) -> Result<T, BackplaneError>
    where
        R: Future<Output = Result<(T, u64), BackplaneError>>,
        C: Future<Output = Result<u64, BackplaneError>>,
    {
        let its = self.0.get(usize::from(bucket)).ok_or(BackplaneError::Ended)?;
        for _ in 0..READ_TRIES {
            // Not after the reply: a check that ends meanwhile may have begun the new epoch after this read.
            let checked = its.connection.load(Ordering::Acquire);
            let (reply, connection) = read().await?;
            if checked == connection {
                return Ok(reply);
            }
            // Before a client learns that it has missed nothing: this server may lack what the client has.
            let _turn = its.turn().await?;
            // Unless another task has checked since: numbers do not tell, as a bucket may move to a server with an older one.
            if its.connection.load(Ordering::Acquire) == checked {
                its.connection.store(check().await?, Ordering::Release);
            }
        }
        Err(BackplaneError::Ended)
    }
}

impl Check {
    async fn turn(&self) -> Result<MutexGuard<'_, ()>, BackplaneError> {
        timeout(TURN_DEADLINE, self.turn.lock()).await.map_err(|_| BackplaneError::Timeout(TURN_DEADLINE))
    }

    fn try_turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.try_lock().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures::future::join_all;
    use tokio::sync::Barrier;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn a_reply_is_not_accepted_because_of_a_check_that_ended_after_its_read_began() {
        let (checks, reads) = (Checks::new(Layout::One), AtomicU32::new(0));
        // The first read runs before another task's check of the same connection, and its reply arrives after it.
        let read = async || {
            let number = reads.fetch_add(1, Ordering::Relaxed);
            if number == 0 {
                checks.run(Layout::One.all(), async |_| Ok(vec![Ok(1)])).await?;
            }
            Ok((number, 1))
        };
        let check = async || -> Result<u64, BackplaneError> { panic!("the other task's check is enough") };
        assert_eq!(checks.read(0, read, check).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn reads_that_wait_for_a_check_share_one() {
        let (checks, runs, all) = (Checks::new(Layout::One), AtomicU32::new(0), Barrier::new(64));
        let first = AtomicU32::new(0);
        let read = async || {
            if first.fetch_add(1, Ordering::Relaxed) < 64 {
                all.wait().await;
            }
            Ok(((), 1))
        };
        let check = async || {
            runs.fetch_add(1, Ordering::Relaxed);
            yield_now().await;
            Ok(1)
        };
        let read_all = (0..64).map(|_| checks.read(0, read, check));
        assert!(join_all(read_all).await.iter().all(Result::is_ok));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn each_new_connection_is_checked_before_its_reply_is_accepted() {
        let (checks, runs) = (Checks::new(Layout::One), AtomicU64::new(0));
        for connection in 1..=3 {
            let check = async || Ok(runs.fetch_add(1, Ordering::Relaxed) + 1);
            assert!(checks.read(0, async || Ok(((), connection)), check).await.is_ok());
            assert_eq!(runs.load(Ordering::Relaxed), connection);
        }
    }

    #[tokio::test]
    async fn a_bucket_that_moves_to_an_older_connection_is_checked_there() {
        let (checks, at, runs) = (Checks::new(Layout::Buckets), AtomicU64::new(9), AtomicU64::new(0));
        for connection in [9, 4] {
            at.store(connection, Ordering::Relaxed);
            let read = async || Ok(((), at.load(Ordering::Relaxed)));
            let check = async || {
                runs.fetch_add(1, Ordering::Relaxed);
                Ok(at.load(Ordering::Relaxed))
            };
            assert!(checks.read(7, read, check).await.is_ok());
        }
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_bucket_out_of_reach_leaves_no_other_unchecked() {
        let checks = Checks::new(Layout::Buckets);
        // A read has bucket 5 checked, and its server does not answer.
        let _turn = checks.0[5].try_turn().unwrap();
        let check = async |buckets: Vec<Bucket>| {
            assert_eq!(buckets.len(), 255);
            let reply = |bucket| if bucket == 3 { Err(BackplaneError::Ended) } else { Ok(8) };
            Ok(buckets.into_iter().map(reply).collect())
        };
        assert!(checks.run(Layout::Buckets.all(), check).await.is_err());
        let read = async || Ok(((), 8));
        let none = async || -> Result<u64, BackplaneError> { panic!("it is checked") };
        assert!(checks.read(4, read, none).await.is_ok());
        assert!(checks.read(3, read, async || Err(BackplaneError::Ended)).await.is_err());
    }
}
