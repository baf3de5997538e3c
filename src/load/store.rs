//! Stores notifications, for clients that are away or do not hear.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{cmd, pipe};
use secrecy::SecretString;

use super::info::Info;
use super::publisher::Sent;
use super::sender::Message;
use super::{LoadError, Plan};
use crate::backplane::{Backplane, Publication, Redis};
use crate::config::Config;
use crate::protocol::{Cursor, DEFAULT_EVENT, InstanceId, UserId};

/// Users of one publication: the store's own pipelines are no longer.
const STEP: usize = 1_000;

pub(super) struct Store {
    backplane: Backplane,
    redis: redis::Client,
    prefix: String,
    users: Vec<UserId>,
}

impl Store {
    pub(super) fn new(config: &Config, plan: &Plan) -> Result<Self, LoadError> {
        let url = SecretString::from(plan.redis_url.as_str());
        let backplane = Redis::new(config, &url, &InstanceId::random(), Arc::default());
        let backplane = backplane.map_err(|error| LoadError::Store(error.to_string()))?;
        Ok(Self {
            backplane: Backplane::Redis(backplane.into()),
            redis: redis::Client::open(plan.redis_url.as_str())?,
            prefix: plan.redis_prefix.clone(),
            // A number is always a user id.
            users: (0..plan.users).filter_map(|user| UserId::new(&user.to_string()).ok()).collect(),
        })
    }

    /// Stores and publishes so many notifications, to one user after the other; gives the cursor of each.
    pub(super) async fn publish(&self, count: usize, size: usize, sent: &mut Sent) -> Result<Vec<Cursor>, LoadError> {
        let mut cursors = Vec::with_capacity(count);
        while cursors.len() < count {
            let round = self.messages(count - cursors.len(), sent);
            for same in round.chunk_by(|one, next| one.number == next.number).flat_map(|same| same.chunks(STEP)) {
                let Some(first) = same.first() else { continue };
                let users: Vec<_> = same.iter().filter_map(|message| UserId::new(&message.user).ok()).collect();
                let data = &first.text(size);
                let publication = Publication { event: DEFAULT_EVENT, data, durable: true, ttl: None, key: None };
                for published in self.backplane.publish(&users, &publication).await {
                    let stored = published.map_err(|kind| LoadError::Store(kind.to_owned()))?;
                    cursors.push(stored.ok_or_else(|| LoadError::Store("no cursor".to_owned()))?);
                }
            }
        }
        Ok(cursors)
    }

    /// Kills every subscription and stores so many notifications in one transaction: as if their publishing was lost
    /// with the subscriptions. Gives what Redis had used at its end.
    pub(super) async fn store_unheard(&self, count: usize, size: usize, sent: &mut Sent) -> Result<Info, LoadError> {
        let messages = self.messages(count, sent);
        let newest = self.backplane.newest(&self.users).await.map_err(|error| LoadError::Store(error.to_string()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let now = u64::try_from(now).unwrap_or(u64::MAX);
        let mut all = pipe();
        all.atomic().add_command(cmd("CLIENT").arg("KILL").arg("TYPE").arg("pubsub").to_owned()).ignore();
        for (message, newest) in messages.iter().zip(newest) {
            let (stream, text) = (format!("{}history:{{{}}}", self.prefix, message.user), message.text(size));
            let place = format!("{}-{}", newest.ms.max(now), newest.number + 1);
            all.cmd("XADD").arg(stream).arg(place).arg("event").arg("\"notification\"").arg("data").arg(text).ignore();
        }
        all.cmd("HINCRBY").arg(format!("{}history", self.prefix)).arg("count").arg(messages.len()).ignore();
        all.cmd("INFO").arg("all");
        let mut redis = self.redis.get_connection()?;
        let (info,): (String,) = all.query(&mut redis)?;
        Ok(Info::parse(&info))
    }

    /// The next message of each of the first so many users, or of all where there are fewer.
    fn messages(&self, count: usize, sent: &mut Sent) -> Vec<Message> {
        let next = |(user, sent): (&UserId, &mut u64)| {
            *sent += 1;
            Message { user: user.to_string(), number: *sent, due: Duration::ZERO }
        };
        self.users.iter().zip(sent).take(count).map(next).collect()
    }
}
