//! The rules that keys under `redis.` must keep together.

use super::redis_url::{RedisTopology, RedisUrl};
use super::sections::{Redis, Subscribe};
use super::settings::Settings;

const TLS: &str = "but redis.url does not use TLS: expected rediss://, rediss+sentinel:// or rediss+cluster://";
const NO_CLUSTER: &str = "but redis.url does not lead to a cluster: expected redis+cluster:// or rediss+cluster://, or \
                          redis.subscribe = pattern or exact";
const NO_REDIS: &str = "but redis.url is not: all data is in memory, so set both or neither";
const NO_SENTINELS: &str = "but redis.url does not name sentinels: expected redis+sentinel:// or rediss+sentinel://";

impl Redis {
    /// Requires that each key has a meaning beside `redis.url`, and that no channel has two.
    pub(super) fn check(&self, settings: &mut Settings, presence_channel: &str, in_memory: bool) {
        let topology = self.url.as_ref().map(RedisUrl::topology);
        let has_sentinels = matches!(topology, Some(RedisTopology::Sentinel { .. }));
        let is_plain = self.url.as_ref().is_some_and(|url| !url.is_tls());
        let is_classic = self.subscribe != Subscribe::Sharded;
        let has_cluster = matches!(topology, Some(RedisTopology::Cluster { .. }));
        let (user, password) = (self.sentinel_username.is_some(), self.sentinel_password.is_some());
        let rules = [
            (self.certificate.is_some() && is_plain, "redis.cert_file and redis.key_file are set, ", TLS),
            (self.ca_file.is_some() && is_plain, "redis.ca_file is set, ", TLS),
            (!is_classic && !has_cluster, "redis.subscribe = sharded is set, ", NO_CLUSTER),
            (in_memory && self.subscribe == Subscribe::Exact, "redis.subscribe = exact is set, ", NO_REDIS),
            (in_memory && self.wait_replicas > 0, "redis.wait_replicas is set, ", NO_REDIS),
            (user && !has_sentinels, "redis.sentinel_username is set, ", NO_SENTINELS),
            (password && !has_sentinels, "redis.sentinel_password is set, ", NO_SENTINELS),
            (user && !password, "redis.sentinel_username is set, ", "but redis.sentinel_password is not: set both"),
        ];
        for (_, given, why) in rules.into_iter().filter(|(broken, ..)| *broken) {
            settings.problem(format!("{given}{why}"));
        }
        self.check_channels(settings, presence_channel);
    }

    /// Every channel that begins with `redis.user_channel` is a user's.
    fn check_channels(&self, settings: &mut Settings, presence_channel: &str) {
        let Self { prefix, user_channel, .. } = self;
        let own =
            ["control", "broadcast", "answers:", "probe:"].map(|name| (format!("{prefix}{name}"), "redis.prefix"));
        let presence = (presence_channel.to_owned(), "presence.channel");
        let is_users = |(channel, key): &(String, &str)| {
            let is_within_probes =
                *key == "redis.prefix" && channel.ends_with(':') && user_channel.starts_with(channel);
            channel.starts_with(user_channel) || is_within_probes
        };
        if let Some((channel, key)) = own.into_iter().chain([presence]).find(is_users) {
            settings.problem(format!(
                "redis.user_channel = {user_channel}: the channel {channel} ({key}) would be a user's: expected a \
                 prefix that no other channel begins with"
            ));
        }
    }
}
