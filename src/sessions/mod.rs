//! Authentication by the session cookie of an Express application.
//!
//! A session is read from Redis for its first handshake and cached for some seconds. While it has a connection it is
//! rechecked every few seconds, in batches: when its user has logged out, its connections are closed.

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

/// How long a result is cached, a fifth more or less; a third of that for a refusal.
const CACHE_TTL: Duration = Duration::from_secs(3);

/// Maximum number of cached results.
const MAX_CACHED: usize = 10_000;

/// Every session that has a connection is rechecked once in this time.
const ROUND: Duration = Duration::from_secs(4);

/// Sessions read at once.
const STEP: usize = 200;

/// Maximum number of watched sessions. Beyond it no other session is accepted, because a logout must close every
/// connection.
const MAX_WATCHED: usize = 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Unavailable(#[from] BackplaneError),
    #[error("too many sessions have connections to this instance")]
    TooMany,
}

type Lookup = Result<UserId, SessionError>;

/// A session's id, and its user at the time of the lookup.
type Watched = (Arc<str>, UserId);

#[derive(Debug)]
pub struct Sessions {
    reader: SessionReader,
    store: SessionStore,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// Maximum time from a lookup until the handshake's connection is in the registry.
    handshake_grace: Duration,
    cache: Mutex<HashMap<Arc<str>, (Lookup, Instant)>>,
    /// Sessions that have connections, or a recent handshake, with the end of its grace period.
    watched: Mutex<HashMap<Watched, Instant>>,
    most_watched: usize,
    overflows: LogRate,
}

impl Sessions {
    /// `None` if sessions are not configured.
    pub fn new(config: &Config, backplane: &Backplane, registry: Arc<Registry>, metrics: Arc<Metrics>) -> Option<Self> {
        let sessions = config.auth.sessions.as_ref()?;
        Some(Self {
            reader: SessionReader::new(sessions),
            store: SessionStore::new(&sessions.prefix, backplane),
            registry,
            metrics,
            handshake_grace: config.server.handshake_timeout * 2,
            cache: Mutex::default(),
            watched: Mutex::default(),
            most_watched: MAX_WATCHED,
            overflows: LogRate::new(),
        })
    }

    /// The identity behind a cookie; its session is watched from now on. A bad signature is refused without a request to
    /// Redis.
    pub async fn identify(&self, cookie: &str) -> Result<Identity, Refused> {
        let id = self.reader.id(cookie)?;
        let count = |from| self.metrics.session_lookups.with_label_values(&[from]).inc();
        let cached = self.cache.lock().get(id).filter(|(_, until)| Instant::now() < *until).cloned();
        let (id, lookup) = if let Some((lookup, _)) = cached {
            count("cache");
            (Arc::from(id), lookup)
        } else {
            let ids = [Arc::from(id)];
            let mut lookups = self.read(&ids).await.inspect_err(|_| count("failed"))?;
            count("redis");
            let [id] = ids;
            (id, lookups.pop().unwrap_or(Err(SessionError::Ended)))
        };
        let (user, credential) = (lookup?, Some(CredentialId::of_session(&id)));
        self.watch((id, user.clone()))?;
        Ok(Identity { user, expires: None, credential })
    }

    fn watch(&self, session: Watched) -> Result<(), Refused> {
        let mut watched = self.watched.lock();
        if watched.len() < self.most_watched || watched.contains_key(&session) {
            watched.insert(session, Instant::now() + self.handshake_grace);
            return Ok(());
        }
        drop(watched);
        self.metrics.limited.with_label_values(&["sessions"]).inc();
        if let Some(held_back) = self.overflows.admit() {
            warn!(most = self.most_watched, held_back, "handshake refused: too many sessions have connections");
        }
        Err(Refused::TooMany)
    }

    /// Reads sessions, and caches the results.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Vec<Lookup>, BackplaneError> {
        let found = self.store.read(ids, MAX_SESSION_BYTES).await?;
        let lookups = found.into_iter().map(|stored| {
            let stored = stored.ok_or(SessionError::Ended)?;
            self.reader.user(&stored.bytes, stored.expires)
        });
        let lookups: Vec<Lookup> = lookups.collect();
        let (now, mut cache) = (Instant::now(), self.cache.lock());
        for (id, lookup) in ids.iter().zip(&lookups) {
            let ttl = if lookup.is_ok() { CACHE_TTL } else { CACHE_TTL / 3 };
            let until = now + ttl.mul_f64(0.8 + 0.4 * fastrand::f64());
            if cache.len() < MAX_CACHED || cache.contains_key(id) {
                cache.insert(Arc::clone(id), (lookup.clone(), until));
            }
        }
        Ok(lookups)
    }

    /// Closes the connections of ended sessions. If Redis does not reply, it closes none, and rechecks in the next round.
    /// Never returns.
    pub async fn run_recheck(&self) {
        loop {
            let start = Instant::now();
            self.cache.lock().retain(|_, (_, until)| start < *until);
            let watched = self.still_watched();
            let steps = watched.chunks(STEP);
            let pause = ROUND / u32::try_from(steps.len()).unwrap_or(u32::MAX).max(1);
            for (step, some) in (1..).zip(steps) {
                if self.recheck(some).await.is_err() {
                    self.metrics.session_rechecks_failed.inc_by(some.len() as u64);
                }
                // Independent of how long the reads took: a round takes ROUND.
                sleep_until(start + pause * step).await;
            }
            sleep_until(start + ROUND).await;
        }
    }

    /// Stops watching sessions without a connection and a recent handshake. Handshakes wait for the lock, so connections
    /// are checked without it.
    fn still_watched(&self) -> Vec<Watched> {
        let now = Instant::now();
        let all: Vec<(Watched, Instant)> =
            self.watched.lock().iter().map(|(session, until)| (session.clone(), *until)).collect();
        let (left, over): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(session, grace_until)| now < *grace_until || self.is_held(session));
        for some in over.chunks(STEP) {
            let mut watched = self.watched.lock();
            for (session, _) in some {
                // Unless it had another handshake meanwhile.
                if watched.get(session).is_some_and(|grace_until| *grace_until <= now) {
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

    async fn recheck(&self, watched: &[Watched]) -> Result<(), BackplaneError> {
        let ids: Vec<Arc<str>> = watched.iter().map(|(id, _)| Arc::clone(id)).collect();
        let lookups = self.read(&ids).await?;
        for ((id, user), lookup) in watched.iter().zip(lookups) {
            if lookup.as_ref() != Ok(user) {
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
            debug!(closed, "session ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;
    use crate::protocol::InstanceId;

    #[test]
    fn beyond_the_maximum_a_session_is_refused_until_another_has_ended() {
        let env = vec![("TIDINGS_AUTH__SESSION_SECRET".into(), "keyboard cat".into())];
        let config = Config::load(Layers { env, ..Layers::default() }).unwrap();
        let metrics = Arc::new(Metrics::new());
        let backplane = Backplane::new(&config, &InstanceId::random(), &metrics).unwrap();
        let sessions = Sessions::new(&config, &backplane, Arc::default(), Arc::clone(&metrics)).unwrap();
        let sessions = Sessions { most_watched: 1, handshake_grace: Duration::ZERO, ..sessions };
        let session = |id: &str| (id.into(), UserId::new("42").unwrap());
        assert!(sessions.watch(session("a")).is_ok());
        assert!(sessions.watch(session("a")).is_ok());
        assert!(matches!(sessions.watch(session("b")), Err(Refused::TooMany)));
        assert_eq!(metrics.limited.with_label_values(&["sessions"]).get(), 1);
        // The first has no connection and no recent handshake.
        assert!(sessions.still_watched().is_empty());
        assert!(sessions.watch(session("b")).is_ok());
    }
}
