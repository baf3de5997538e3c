//! Who comes with the session cookie of an Express application, and whether they are logged in still.
//!
//! A session is read from Redis for its first handshake and answered from memory for some seconds. As long as it has a
//! connection it is read again every few seconds, many at a time: once its user is gone from it, its connections close.

mod store;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::auth::{Identity, MAX_SESSION_BYTES, SessionError, SessionReader};
use crate::backplane::{Backplane, BackplaneError};
use crate::config::Config;
use crate::delivery::{ConnectionHandle, Registry};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, CredentialId, UserId};
use store::SessionStore;

/// How long an answer is good for, a fifth more or less; one that lets nobody in, a third of that.
const FRESH: Duration = Duration::from_secs(3);

/// Most answers kept. One that finds no room is asked for again.
const MAX_ANSWERS: usize = 10_000;

/// In this time every session that has a connection is read once.
const ROUND: Duration = Duration::from_secs(4);

/// Sessions read at once.
const STEP: usize = 200;

/// Most sessions that are watched; a logout must close every connection, so beyond them no session lets anybody in.
const MAX_WATCHED: usize = 1_000_000;

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The cookie or the session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It could not be read.
    #[error(transparent)]
    Unavailable(#[from] BackplaneError),
    /// There are a million already.
    #[error("too many sessions have connections to this instance")]
    TooMany,
}

type Answer = Result<UserId, SessionError>;

/// A session, and whose it was when it was looked up.
type Watched = (Arc<str>, UserId);

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    reader: SessionReader,
    store: SessionStore,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// How long a handshake may be under way before its connection is in the registry.
    on_the_way: Duration,
    answers: Mutex<HashMap<Arc<str>, (Answer, Instant)>>,
    /// Sessions that have connections, or had a handshake until a moment ago, and whose they were then.
    watched: Mutex<HashMap<Watched, Instant>>,
    most_watched: usize,
    overflows: LogRate,
}

impl Sessions {
    /// `None` where no secret for them is configured.
    pub fn new(config: &Config, backplane: &Backplane, registry: Arc<Registry>, metrics: Arc<Metrics>) -> Option<Self> {
        let sessions = config.auth.sessions.as_ref()?;
        Some(Self {
            reader: SessionReader::new(sessions),
            store: SessionStore::new(&sessions.prefix, backplane),
            registry,
            metrics,
            on_the_way: config.server.handshake_timeout * 2,
            answers: Mutex::default(),
            watched: Mutex::default(),
            most_watched: MAX_WATCHED,
            overflows: LogRate::new(),
        })
    }

    /// Whose cookie this is; a good one is watched from here on.
    ///
    /// # Errors
    /// [`Refused`]; a bad signature never gets as far as Redis.
    pub async fn identify(&self, cookie: &str) -> Result<Identity, Refused> {
        let id = self.reader.id(cookie)?;
        let count = |from| self.metrics.session_lookups.with_label_values(&[from]).inc();
        let known = self.answers.lock().get(id).filter(|(_, until)| Instant::now() < *until).cloned();
        let (id, answer) = if let Some((answer, _)) = known {
            count("cache");
            (Arc::from(id), answer)
        } else {
            let asked = [Arc::from(id)];
            let mut answers = self.read(&asked).await.inspect_err(|_| count("failed"))?;
            count("redis");
            let [id] = asked;
            (id, answers.pop().unwrap_or(Err(SessionError::Ended)))
        };
        let (user, credential) = (answer?, Some(CredentialId::of_session(&id)));
        self.watch((id, user.clone()))?;
        Ok(Identity { user, expires: None, credential })
    }

    fn watch(&self, session: Watched) -> Result<(), Refused> {
        let mut watched = self.watched.lock();
        if watched.len() < self.most_watched || watched.contains_key(&session) {
            watched.insert(session, Instant::now() + self.on_the_way);
            return Ok(());
        }
        drop(watched);
        self.metrics.limited.with_label_values(&["sessions"]).inc();
        if let Some(held_back) = self.overflows.admit() {
            warn!(most = self.most_watched, held_back, "a handshake was refused: too many sessions have connections");
        }
        Err(Refused::TooMany)
    }

    /// Reads sessions, and keeps the answers.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Vec<Answer>, BackplaneError> {
        let found = self.store.read(ids, MAX_SESSION_BYTES).await?;
        let answers = found.into_iter().map(|stored| {
            let stored = stored.ok_or(SessionError::Ended)?;
            self.reader.user(&stored.bytes, stored.expires)
        });
        let answers: Vec<Answer> = answers.collect();
        let (now, mut kept) = (Instant::now(), self.answers.lock());
        for (id, answer) in ids.iter().zip(&answers) {
            let fresh = if answer.is_ok() { FRESH } else { FRESH / 3 };
            let until = now + fresh.mul_f64(0.8 + 0.4 * fastrand::f64());
            if kept.len() < MAX_ANSWERS || kept.contains_key(id) {
                kept.insert(Arc::clone(id), (answer.clone(), until));
            }
        }
        Ok(answers)
    }

    /// Closes what has no session any more, for ever; ends by being dropped. What Redis does not tell is not closed, and
    /// asked for again in the next round.
    pub async fn run_recheck(&self) {
        loop {
            let start = Instant::now();
            self.answers.lock().retain(|_, (_, until)| start < *until);
            let watched = self.still_watched();
            let steps = watched.chunks(STEP);
            let pause = ROUND / u32::try_from(steps.len()).unwrap_or(u32::MAX).max(1);
            for (step, some) in (1..).zip(steps) {
                if self.check(some).await.is_err() {
                    self.metrics.session_rechecks_failed.inc_by(some.len() as u64);
                }
                // However long the reading took: a round has its time.
                sleep_until(start + pause * step).await;
            }
            sleep_until(start + ROUND).await;
        }
    }

    /// Forgets those that have no connection, nor one on its way. Handshakes wait for the lock, so connections are looked
    /// at without it.
    fn still_watched(&self) -> Vec<Watched> {
        let now = Instant::now();
        let all: Vec<(Watched, Instant)> =
            self.watched.lock().iter().map(|(session, until)| (session.clone(), *until)).collect();
        let (left, over): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(session, on_the_way_until)| now < *on_the_way_until || self.is_held(session));
        for some in over.chunks(STEP) {
            let mut watched = self.watched.lock();
            for (session, _) in some {
                // Unless it came again meanwhile.
                if watched.get(session).is_some_and(|on_the_way_until| *on_the_way_until <= now) {
                    watched.remove(session);
                }
            }
        }
        self.watched.lock().shrink_to(left.len() * 2);
        left.into_iter().map(|(session, _)| session).collect()
    }

    fn is_held(&self, (id, user): &Watched) -> bool {
        let session = Some(CredentialId::of_session(id));
        let holds = |handles: &[Arc<ConnectionHandle>]| handles.iter().any(|handle| handle.credential.get() == session);
        self.registry.with(user.as_str(), holds).unwrap_or_default()
    }

    async fn check(&self, watched: &[Watched]) -> Result<(), BackplaneError> {
        let ids: Vec<Arc<str>> = watched.iter().map(|(id, _)| Arc::clone(id)).collect();
        let answers = self.read(&ids).await?;
        for ((id, user), answer) in watched.iter().zip(answers) {
            if answer.as_ref() != Ok(user) {
                self.log_out(id, user);
            }
        }
        Ok(())
    }

    fn log_out(&self, id: &str, user: &UserId) {
        let session = Some(CredentialId::of_session(id));
        let closed = self.registry.with(user.as_str(), |handles| {
            let under_it = handles.iter().filter(|handle| handle.credential.get() == session);
            under_it.map(|handle| handle.queue.close(Close::LoggedOut)).count()
        });
        let closed = closed.unwrap_or_default();
        if closed > 0 {
            self.metrics.sessions_ended.inc_by(closed as u64);
            debug!(closed, "a session has ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::protocol::InstanceId;

    #[test]
    fn beyond_so_many_sessions_no_other_lets_anybody_in_until_one_is_over() {
        let env = vec![("TIDINGS_AUTH__SESSION_SECRET".into(), "keyboard cat".into())];
        let config = Config::load(Layers { env, ..Layers::default() }).unwrap();
        let metrics = Arc::new(Metrics::new());
        let backplane = Backplane::new(&config, &InstanceId::random(), &metrics).unwrap();
        let sessions = Sessions::new(&config, &backplane, Arc::default(), Arc::clone(&metrics)).unwrap();
        let sessions = Sessions { most_watched: 1, on_the_way: Duration::ZERO, ..sessions };
        let session = |id: &str| (id.into(), UserId::new("42").unwrap());
        assert!(sessions.watch(session("a")).is_ok());
        assert!(sessions.watch(session("a")).is_ok());
        assert!(matches!(sessions.watch(session("b")), Err(Refused::TooMany)));
        assert_eq!(metrics.limited.with_label_values(&["sessions"]).get(), 1);
        // The first has no connection, and none on its way any more.
        assert!(sessions.still_watched().is_empty());
        assert!(sessions.watch(session("b")).is_ok());
    }
}
