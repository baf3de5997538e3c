//! Authentication by the session cookie of an Express application.
//!
//! A session is read from Redis for its first handshake and cached for some seconds. While it has a connection it is
//! rechecked every few seconds, many sessions with one command: one whose value has changed since it was read is read again,
//! and when its user has logged out, its connections are closed.

mod store;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use crate::auth::{Identity, MAX_SESSION_BYTES, SessionError, SessionReader};
use crate::backplane::{Backplane, BackplaneError};
use crate::config::{self, Config};
use crate::delivery::{ConnectionHandle, Registry};
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{Close, CredentialId, UserId};
use store::{Reply, SessionStore, Stored};

/// How long a result is cached, a fifth more or less; a third of that for a refusal.
const CACHE_TTL: Duration = Duration::from_secs(3);

/// Maximum number of cached results.
const MAX_CACHED: usize = 10_000;

/// Every session that has a connection is rechecked once in this time.
const ROUND: Duration = Duration::from_secs(4);

/// Minimum time after which a session is read whole, though its value has not changed.
const REREAD: Duration = Duration::from_secs(120);

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

/// What a session was when it was read whole.
#[derive(Debug, Clone)]
struct Reading {
    lookup: Lookup,
    /// Only with a user.
    unchanged: Option<Unchanged>,
}

/// Until when a session with this value has the same user.
#[derive(Debug, Clone, Copy)]
struct Unchanged {
    digest: u64,
    until: Instant,
}

impl Unchanged {
    /// Without an expiry of its key, a session ends at the one in its JSON. The key may lose its expiry, which does not
    /// show in the value: therefore at most [`REREAD`] and a half.
    fn new(stored: &Stored, digest: u64) -> Self {
        let most = REREAD.mul_f64(1.0 + fastrand::f64() / 2.0);
        let end = if stored.expires { None } else { SessionReader::remaining(&stored.bytes) };
        Self { digest, until: Instant::now() + end.map_or(most, |end| end.min(most)) }
    }
}

/// A session that has connections, or a recent handshake.
#[derive(Debug)]
struct Watch {
    grace_until: Instant,
    /// As of the last time it was read whole.
    unchanged: Option<Unchanged>,
}

/// A session's id, and its user at the time of the lookup.
type Watched = (Arc<str>, UserId);

#[derive(Debug)]
pub struct Sessions {
    reader: ArcSwap<SessionReader>,
    store: SessionStore,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// Maximum time from a lookup until the handshake's connection is in the registry.
    handshake_grace: Duration,
    cache: Mutex<HashMap<Arc<str>, (Reading, Instant)>>,
    watched: Mutex<HashMap<Watched, Watch>>,
    /// Of the values: with a secret key, so that no application's user can construct a collision.
    digests: RandomState,
    most_watched: usize,
    overflows: LogRate,
}

impl Sessions {
    /// `None` if sessions are not configured.
    pub fn new(config: &Config, backplane: &Backplane, registry: Arc<Registry>, metrics: Arc<Metrics>) -> Option<Self> {
        let sessions = config.auth.sessions.as_ref()?;
        Some(Self {
            reader: ArcSwap::from_pointee(SessionReader::new(sessions)),
            store: SessionStore::new(&sessions.prefix, backplane),
            registry,
            metrics,
            handshake_grace: config.server.handshake_timeout * 2,
            cache: Mutex::default(),
            watched: Mutex::default(),
            digests: RandomState::new(),
            most_watched: MAX_WATCHED,
            overflows: LogRate::new(),
        })
    }

    /// Replaces the secrets, and the path of the user, by those of another configuration.
    pub fn replace(&self, sessions: &config::Sessions) {
        self.reader.store(Arc::new(SessionReader::new(sessions)));
    }

    /// The identity behind a cookie; its session is watched from now on. A bad signature is refused without a request to
    /// Redis.
    pub async fn identify(&self, cookie: &str) -> Result<Identity, Refused> {
        let id = self.reader.load().id(cookie)?;
        let count = |from| self.metrics.session_lookups.with_label_values(&[from]).inc();
        let cached = self.cache.lock().get(id).filter(|(_, until)| Instant::now() < *until).cloned();
        let (id, Reading { lookup, unchanged }) = if let Some((reading, _)) = cached {
            count("cache");
            (Arc::from(id), reading)
        } else {
            let ids = [Arc::from(id)];
            let reading = self.read(&ids).await.and_then(|mut readings| readings.pop().transpose());
            let reading = reading.inspect_err(|_| count("failed"))?;
            count("redis");
            let [id] = ids;
            (id, reading.unwrap_or(Reading { lookup: Err(SessionError::Ended), unchanged: None }))
        };
        let (user, credential) = (lookup?, Some(CredentialId::of_session(&id)));
        self.watch((id, user.clone()), unchanged)?;
        Ok(Identity { user, expires: None, credential })
    }

    fn watch(&self, session: Watched, unchanged: Option<Unchanged>) -> Result<(), Refused> {
        let mut watched = self.watched.lock();
        if watched.len() < self.most_watched || watched.contains_key(&session) {
            watched.insert(session, Watch { grace_until: Instant::now() + self.handshake_grace, unchanged });
            return Ok(());
        }
        drop(watched);
        self.metrics.limited.with_label_values(&["sessions"]).inc();
        if let Some(held_back) = self.overflows.admit() {
            warn!(most = self.most_watched, held_back, "handshake refused: too many sessions have connections");
        }
        Err(Refused::TooMany)
    }

    /// Reads sessions whole, and caches the results.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Vec<Result<Reading, BackplaneError>>, BackplaneError> {
        let found = self.store.read(ids, MAX_SESSION_BYTES).await?;
        let readings: Vec<_> = found.into_iter().map(|stored| Ok(self.reading(stored?))).collect();
        let (now, mut cache) = (Instant::now(), self.cache.lock());
        for (id, reading) in ids.iter().zip(&readings) {
            let Ok(reading) = reading else { continue };
            let ttl = if reading.lookup.is_ok() { CACHE_TTL } else { CACHE_TTL / 3 };
            let until = now + ttl.mul_f64(0.8 + 0.4 * fastrand::f64());
            if cache.len() < MAX_CACHED || cache.contains_key(id) {
                cache.insert(Arc::clone(id), (reading.clone(), until));
            }
        }
        Ok(readings)
    }

    fn reading(&self, stored: Option<Stored>) -> Reading {
        let Some(stored) = stored else { return Reading { lookup: Err(SessionError::Ended), unchanged: None } };
        let lookup = self.reader.load().user(&stored.bytes, stored.expires);
        let unchanged = lookup.is_ok().then(|| Unchanged::new(&stored, self.digests.hash_one(&stored.bytes)));
        Reading { lookup, unchanged }
    }

    /// Closes the connections of ended sessions. If Redis does not reply, it closes none, and rechecks in the next round.
    /// Never returns.
    pub async fn run_recheck(&self) {
        loop {
            let start = Instant::now();
            self.cache.lock().retain(|_, (_, until)| start < *until);
            let watched = self.still_watched();
            self.store.check().await;
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
            self.watched.lock().iter().map(|(session, watch)| (session.clone(), watch.grace_until)).collect();
        let (left, over): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(session, grace_until)| now < *grace_until || self.is_held(session));
        for some in over.chunks(STEP) {
            let mut watched = self.watched.lock();
            for (session, _) in some {
                // Unless it had another handshake meanwhile.
                if watched.get(session).is_some_and(|watch| watch.grace_until <= now) {
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
        let changed = self.changed(watched).await?;
        let ids: Vec<Arc<str>> = changed.iter().map(|(id, _)| Arc::clone(id)).collect();
        let readings = if ids.is_empty() { Vec::new() } else { self.read(&ids).await? };
        for (session, reading) in changed.iter().zip(readings) {
            let (id, user) = session;
            let Ok(reading) = reading else {
                self.metrics.session_rechecks_failed.inc();
                continue;
            };
            if reading.lookup.as_ref() != Ok(user) {
                self.log_out(id, user);
            } else if let Some(watch) = self.watched.lock().get_mut(session) {
                watch.unchanged = reading.unchanged;
            }
        }
        Ok(())
    }

    /// The sessions to be read whole: those with another value than when they were last read, or read too long ago.
    async fn changed(&self, watched: &[Watched]) -> Result<Vec<Watched>, BackplaneError> {
        let ids: Vec<Arc<str>> = watched.iter().map(|(id, _)| Arc::clone(id)).collect();
        let values = match self.store.values(&ids).await {
            // One that Redis refuses to read keeps no other from being read.
            Err(error) if error.is_refusal() => return Ok(watched.to_vec()),
            values => values?,
        };
        // One that could not be read is read again, by itself.
        let digest = |value: &Reply<Vec<u8>>| Some(self.digests.hash_one(value.as_ref().ok()?.as_ref()?));
        let digests: Vec<Option<u64>> = values.iter().map(digest).collect();
        let (now, all) = (Instant::now(), self.watched.lock());
        let same = |session, digest| {
            let unchanged =
                all.get(session).and_then(|watch| watch.unchanged).filter(|unchanged| now < unchanged.until);
            unchanged.is_some_and(|unchanged| Some(unchanged.digest) == digest)
        };
        let changed = watched.iter().zip(digests).filter(|(session, digest)| !same(session, *digest));
        Ok(changed.map(|(session, _)| session.clone()).collect())
    }

    fn log_out(&self, id: &str, user: &UserId) {
        let session = Some(CredentialId::of_session(id));
        let closed = self.registry.with(user.as_str(), |handles| {
            let under_it = handles.iter().filter(|handle| handle.credential.get() == session);
            under_it.map(|handle| handle.queue.close(Close::SessionEnded)).count()
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
        assert!(sessions.watch(session("a"), None).is_ok());
        assert!(sessions.watch(session("a"), None).is_ok());
        assert!(matches!(sessions.watch(session("b"), None), Err(Refused::TooMany)));
        assert_eq!(metrics.limited.with_label_values(&["sessions"]).get(), 1);
        // The first has no connection and no recent handshake.
        assert!(sessions.still_watched().is_empty());
        assert!(sessions.watch(session("b"), None).is_ok());
    }
}
