//! Stored notifications, published past every instance, as a backend with our script would.

use std::sync::Arc;

use tidings::backplane::{Publication, Redis};
use tidings::config::{Config, Layers};
use tidings::protocol::{InstanceId, UserId};

use super::RedisServer;

/// See the module.
pub struct Store(Redis);

impl Store {
    pub fn on(redis: &RedisServer) -> Self {
        Self::with(redis, &[])
    }

    /// With these keys set.
    pub fn with(redis: &RedisServer, keys: &[(&str, &str)]) -> Self {
        let set = |key: &str, value: &str| (format!("--set {key}"), key.to_owned(), value.to_owned());
        let flags = keys.iter().map(|(key, value)| set(key, value)).chain([set("redis.url", &redis.url())]).collect();
        let config = Config::load(Layers { flags, ..Layers::default() }).unwrap();
        let url = config.redis.url.clone().unwrap();
        Self(Redis::new(&config, &url, &InstanceId::random(), Arc::default()).unwrap())
    }

    /// Stores and publishes one for each; gives the cursors.
    pub async fn publish(&self, user: &str, payloads: impl IntoIterator<Item = u32>) -> Vec<String> {
        let user = [UserId::new(user).unwrap()];
        let mut cursors = Vec::new();
        for data in payloads {
            let data = &data.to_string();
            let publication = Publication { event: "notification", data, durable: true, ttl: None, key: None };
            let published = self.0.publish_to_many(&user, &publication).await;
            cursors.push(published[0].expect("stored").expect("a cursor").to_string());
        }
        cursors
    }
}
