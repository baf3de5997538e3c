//! Durable notifications, published by the scripts directly, without an instance.

use std::sync::Arc;

use tidings::internals::{Backplane, HistoryStore, InstanceId, Publication, UserId};
use tidings::{Config, Layers};

use super::RedisServer;

/// See the module.
pub struct Store(Arc<HistoryStore>);

impl Store {
    pub fn on(redis: &RedisServer) -> Self {
        Self::with(redis, &[])
    }

    /// With these keys set.
    pub fn with(redis: &RedisServer, keys: &[(&str, &str)]) -> Self {
        let set = |key: &str, value: &str| (format!("--set {key}"), key.to_owned(), value.to_owned());
        let flags = keys.iter().map(|(key, value)| set(key, value)).chain([set("redis.url", &redis.url())]).collect();
        let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
        let metrics = Arc::default();
        let backplane = Backplane::new(&config, &InstanceId::random(), &metrics).unwrap();
        Self(HistoryStore::new(&config, &backplane, &metrics))
    }

    /// Stores and publishes one for each; gives the cursors.
    pub async fn publish(&self, user: &str, payloads: impl IntoIterator<Item = u32>) -> Vec<String> {
        let mut cursors = Vec::new();
        for data in payloads {
            cursors.push(self.publish_json(user, &data.to_string()).await);
        }
        cursors
    }

    /// As [`Store::publish`], with any data.
    pub async fn publish_json(&self, user: &str, data: &str) -> String {
        let user = [UserId::new(user).unwrap()];
        let publication = Publication { event: "notification", data, durable: true, ..Publication::default() };
        let published = self.0.publish(&user, &publication).await;
        published[0].expect("stored").expect("a cursor").to_string()
    }
}
