//! The reply to `INFO`: which server a connection leads to, and how it is configured.

use std::sync::Arc;

use super::Error;
use super::node::NodeMode;

/// The first with `ZADD GT`, `HRANDFIELD`, `SMISMEMBER` and `ZMSCORE`.
const MIN_VERSION: [u32; 2] = [6, 2];

/// As far as it is known: `INFO` may be refused to this user, and another server may lack fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerInfo {
    /// Identifies the server process: its run id, or, if that is unknown, `?` and a random text for each connection.
    pub identity: Arc<str>,
    pub version: Option<String>,
    /// The version of Redis that it is compatible with.
    redis_version: Option<String>,
    pub is_replica: bool,
    pub is_cluster: bool,
    /// Whether it still loads what it had saved, and refuses most commands.
    pub is_loading: bool,
    pub maxmemory_policy: Option<String>,
}

impl ServerInfo {
    pub(super) fn parse(info: &str) -> Self {
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.map(|value| value.trim_end().to_owned()).filter(|value| !value.is_empty())
        };
        let run_id = field("run_id").filter(|id| id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        Self {
            identity: run_id.unwrap_or_else(|| format!("?{:016x}", fastrand::u64(..))).into(),
            version: field("valkey_version").or_else(|| field("redis_version")),
            redis_version: field("redis_version"),
            is_replica: field("role").is_some_and(|role| role == "slave" || role == "replica"),
            is_cluster: field("redis_mode").or_else(|| field("server_mode")).is_some_and(|mode| mode == "cluster"),
            is_loading: field("loading").is_some_and(|loading| loading == "1"),
            maxmemory_policy: field("maxmemory_policy"),
        }
    }

    /// Of the reply to `INFO`. A refused one is no condition: this user may lack the permission.
    pub(super) fn of_reply(reply: Result<impl AsRef<[u8]>, Error>) -> Result<Self, Error> {
        match reply {
            Ok(info) => Ok(Self::parse(&String::from_utf8_lossy(info.as_ref()))),
            Err(error) if error.is_refusal() && error.kind() != "NOAUTH" => Ok(Self::unknown()),
            Err(error) => Err(error),
        }
    }

    /// A server that did not reply to `INFO`.
    pub(super) fn unknown() -> Self {
        Self::parse("")
    }

    /// Whether its run id is known.
    pub(super) fn is_identified(&self) -> bool {
        !self.identity.starts_with('?')
    }

    /// Outside a cluster, a replica executes `PUBLISH` and delivers it to no other server's subscribers, and a node of a
    /// cluster lacks most keys.
    pub(super) fn usable(self, mode: NodeMode) -> Result<Self, Error> {
        if let Some(version) = self.redis_version.as_ref().filter(|version| is_before(version, MIN_VERSION)) {
            return Err(Error::Unsupported(version.clone()));
        }
        match (mode, &self) {
            (NodeMode::Standalone, Self { is_cluster: true, .. }) => Err(Error::Cluster),
            (NodeMode::Standalone, Self { is_replica: true, .. }) => Err(Error::Replica),
            (NodeMode::Cluster, Self { is_cluster: false, .. }) if self.is_identified() => Err(Error::NoCluster),
            _ => Ok(self),
        }
    }

    /// The eviction policy, if the server may evict keys before they expire.
    pub fn evicts(&self) -> Option<&str> {
        self.maxmemory_policy.as_deref().filter(|policy| *policy != "noeviction")
    }
}

/// Whether a version such as `7.0.15` is before this one; not if it cannot be read.
fn is_before(version: &str, least: [u32; 2]) -> bool {
    let mut parts = version.split('.').map(str::parse::<u32>);
    matches!((parts.next(), parts.next()), (Some(Ok(major)), Some(Ok(minor))) if [major, minor] < least)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_found_wherever_they_are() {
        let info = "# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.1.1\r\nserver_mode:standalone\r\nrun_id:0a1b\r\n\
                    # Memory\r\nmaxmemory_policy:volatile-lru\r\n# Replication\r\nrole:master\r\n";
        let parsed = ServerInfo::parse(info).usable(NodeMode::Standalone).unwrap();
        assert_eq!((&*parsed.identity, parsed.version.as_deref()), ("0a1b", Some("8.1.1")));
        assert_eq!(parsed.evicts(), Some("volatile-lru"));
        assert_eq!(ServerInfo::parse("maxmemory_policy:noeviction\r\n").evicts(), None);
    }

    #[test]
    fn a_server_that_does_not_suit_the_url_is_refused() {
        let usable = |info: &str, mode| ServerInfo::parse(info).usable(mode).map_err(|error| error.kind());
        assert_eq!(usable("role:slave\r\n", NodeMode::Standalone), Err("replica"));
        assert_eq!(usable("redis_mode:cluster\r\n", NodeMode::Standalone), Err("cluster"));
        assert_eq!(usable("redis_mode:standalone\r\nrun_id:a\r\n", NodeMode::Cluster), Err("cluster"));
        assert!(usable("redis_mode:cluster\r\nrole:slave\r\nrun_id:a\r\n", NodeMode::Cluster).is_ok());
    }

    #[test]
    fn a_server_before_the_first_supported_version_is_refused_by_its_version() {
        let usable =
            |version: &str| ServerInfo::parse(&format!("redis_version:{version}\r\n")).usable(NodeMode::Standalone);
        assert!(usable("6.0.16").unwrap_err().to_string().contains("6.0.16"));
        assert_eq!(usable("5.0.7").unwrap_err().kind(), "unsupported");
        assert!(["6.2.5", "7.0.15", "10.0.0", "255.255.255", "unstable"].iter().all(|version| usable(version).is_ok()));
    }

    #[test]
    fn an_unknown_server_differs_with_each_connection() {
        let (one, other) =
            (ServerInfo::unknown().usable(NodeMode::Standalone).unwrap(), ServerInfo::parse("run_id:a b\r\n"));
        assert!(one.identity.starts_with('?') && other.identity.starts_with('?') && one.identity != other.identity);
        assert_eq!((one.evicts(), one.version.as_deref()), (None, None));
    }
}
