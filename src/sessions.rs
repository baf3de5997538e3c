//! Who comes with the session cookie of an Express application, and whether they are logged in still.
//!
//! A session is read from Redis for its first handshake and answered from memory for some seconds. As long as it has a
//! connection it is read again every few seconds, many at a time: once its user is gone from it, its connections close.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::auth::{Identity, MAX_SESSION_BYTES, SessionError, SessionReader};
use crate::backplane::{Backplane, BackplaneError};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::protocol::{Close, CredentialId, UserId};
use crate::registry::{Member, Registry};

/// How long an answer is good for, a fifth more or less; one that lets nobody in, a third of that.
const FRESH: Duration = Duration::from_secs(3);

/// Most answers kept. One that finds no room is asked for again.
const MAX_ANSWERS: usize = 10_000;

/// In this time every session that has a connection is read once.
const ROUND: Duration = Duration::from_secs(4);

/// Sessions read at once.
const STEP: usize = 200;

/// After a failed read.
const PAUSE: Duration = Duration::from_secs(1);

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The cookie or the session.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It could not be read.
    #[error(transparent)]
    Unavailable(#[from] BackplaneError),
}

type Answer = Result<UserId, SessionError>;

/// See the module.
#[derive(Debug)]
pub struct Sessions {
    reader: SessionReader,
    prefix: String,
    backplane: Arc<Backplane>,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// How long a handshake may be under way before its connection is in the registry.
    on_the_way: Duration,
    answers: Mutex<HashMap<Arc<str>, (Answer, Instant)>>,
    /// Sessions that have connections, or had a handshake until a moment ago, and whose they were then.
    watched: Mutex<HashMap<(Arc<str>, UserId), Instant>>,
}

impl Sessions {
    /// `None` where no secret for them is configured.
    #[must_use]
    pub fn new(
        config: &Config,
        backplane: Arc<Backplane>,
        registry: Arc<Registry>,
        metrics: Arc<Metrics>,
    ) -> Option<Self> {
        let sessions = config.auth.sessions.as_ref()?;
        Some(Self {
            reader: SessionReader::new(sessions),
            prefix: sessions.prefix.clone(),
            backplane,
            registry,
            metrics,
            on_the_way: config.server.handshake_timeout * 2,
            answers: Mutex::default(),
            watched: Mutex::default(),
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
        self.watched.lock().insert((id, user.clone()), Instant::now() + self.on_the_way);
        Ok(Identity { user, expires: None, credential })
    }

    /// Reads sessions, and keeps the answers.
    async fn read(&self, ids: &[Arc<str>]) -> Result<Vec<Answer>, BackplaneError> {
        let keys: Vec<String> = ids.iter().map(|id| format!("{}{id}", self.prefix)).collect();
        let found = self.backplane.read(&keys, MAX_SESSION_BYTES).await?;
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

    /// Closes what has no session any more, for ever; ends by being dropped. While Redis does not answer, nothing is
    /// closed.
    pub async fn keep_true(&self) {
        loop {
            self.answers.lock().retain(|_, (_, until)| Instant::now() < *until);
            let watched = self.still_watched();
            let steps = watched.chunks(STEP);
            let pause = ROUND / u32::try_from(steps.len()).unwrap_or(u32::MAX).max(1);
            for some in steps {
                if self.check(some).await.is_err() {
                    sleep(PAUSE).await;
                    break;
                }
                sleep(pause).await;
            }
            if watched.is_empty() {
                sleep(ROUND).await;
            }
        }
    }

    /// Forgets those that have no connection, nor one on its way.
    fn still_watched(&self) -> Vec<(Arc<str>, UserId)> {
        let (now, mut watched) = (Instant::now(), self.watched.lock());
        watched.retain(|(id, user), on_the_way_until| {
            now < *on_the_way_until || {
                let session = Some(CredentialId::of_session(id));
                let holds = |members: &[Arc<Member>]| members.iter().any(|member| member.credential.get() == session);
                self.registry.with(user.as_str(), holds).unwrap_or_default()
            }
        });
        let left = watched.len();
        watched.shrink_to(left * 2);
        watched.keys().cloned().collect()
    }

    async fn check(&self, watched: &[(Arc<str>, UserId)]) -> Result<(), BackplaneError> {
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
        let closed = self.registry.with(user.as_str(), |members| {
            let under_it = members.iter().filter(|member| member.credential.get() == session);
            under_it.map(|member| member.outbox.close(Close::LoggedOut)).count()
        });
        let closed = closed.unwrap_or_default();
        if closed > 0 {
            self.metrics.sessions_ended.inc_by(closed as u64);
            debug!(closed, "a session has ended");
        }
    }
}
