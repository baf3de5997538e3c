//! The servers of `redis.url`: what each lacks, and what goes wrong without it.

use super::{Finding, counted};
use crate::config::{Config, Redis, RedisTopology, Subscribe};
use crate::redis::{self, Error, Facts, Inspection, Rights, ServerRole};

/// A larger difference is more than a slow reply.
const MAX_CLOCK_MS: u64 = 2_000;

/// Each command that an instance sends, or that its scripts run, with some effect on its key.
const COMMANDS: [&str; 51] = [
    "DECRBY KEY 1",
    "DEL KEY",
    "EXISTS KEY",
    "EXPIRE KEY 1",
    "EXPIREAT KEY 1",
    "GET KEY",
    "HDEL KEY f",
    "HEXISTS KEY f",
    "HGET KEY f",
    "HGETALL KEY",
    "HINCRBY KEY f 1",
    "HKEYS KEY",
    "HLEN KEY",
    "HMGET KEY f",
    "HRANDFIELD KEY",
    "HSCAN KEY 0",
    "HSET KEY f v",
    "HVALS KEY",
    "INCR KEY",
    "INCRBY KEY 1",
    "MGET KEY",
    "PEXPIRE KEY 1",
    "PTTL KEY",
    "PUBLISH KEY v",
    "SADD KEY m",
    "SCARD KEY",
    "SET KEY v",
    "SMISMEMBER KEY m",
    "SRANDMEMBER KEY",
    "SREM KEY m",
    "SSCAN KEY 0",
    "TIME",
    "TYPE KEY",
    "UNLINK KEY",
    "XADD KEY * f v",
    "XDEL KEY 1-1",
    "XLEN KEY",
    "XRANGE KEY - +",
    "XREAD COUNT 1 STREAMS KEY 0-0",
    "XREVRANGE KEY + -",
    "XTRIM KEY MAXLEN 1",
    "ZADD KEY 1 m",
    "ZCARD KEY",
    "ZCOUNT KEY 0 1",
    "ZRANGE KEY 0 1",
    "ZRANGEBYSCORE KEY 0 1",
    "ZREM KEY m",
    "ZREMRANGEBYRANK KEY 0 1",
    "ZREMRANGEBYSCORE KEY 0 1",
    "ZREVRANGE KEY 0 1",
    "ZSCORE KEY m",
];

/// What an instance sends to a node of a cluster besides: the key does not exist, so that nothing moves.
const CLUSTER_COMMANDS: [&str; 5] =
    ["CLUSTER INFO", "CLUSTER SLOTS", "ASKING", "MIGRATE 127.0.0.1 1 KEY 0 1", "RESTORE-ASKING KEY 0 none"];

/// Those of them that are needed only while a slot moves.
const MOVES: [&str; 2] = ["MIGRATE", "RESTORE-ASKING"];

/// What sharded subscriptions need besides.
const SHARDED_COMMANDS: [&str; 3] = ["CLUSTER NODES", "HELLO", "PING"];

/// The action where rights are missing.
const GRANT: &str = "grant the rights in docs/operations.md, and in docs/scale.md (ACL SETUSER)";

/// Removes nothing: no user has this id.
const NO_MEMBER: &str = "SREM KEY \u{1}";

/// Of every server. With `rights`, also whether the configured user has those that an instance needs.
pub(in crate::cli) async fn of_redis(redis: &redis::Redis, config: &Config, rights: bool) -> Vec<Finding> {
    let rights = rights.then(|| needed(config));
    match redis.inspect(rights.as_ref()).await {
        Ok(inspected) => inspected.iter().flat_map(|one| judge(config, one, rights.is_some())).collect(),
        Err(error) => {
            let url = config.redis.url.as_ref().map(ToString::to_string).unwrap_or_default();
            vec![Finding::error(format!("redis.url {url}:"), unreachable(&error)).logged()]
        }
    }
}

/// The rights of `docs/operations.md`, and those of `docs/scale.md` that the configuration needs.
fn needed(config: &Config) -> Rights {
    let prefix = &config.redis.prefix;
    let set = &config.presence.set;
    let mut keys = vec![
        (format!("{{{prefix}check}}"), "DEL KEY"),
        (set.clone(), NO_MEMBER),
        (format!("{{{set}}}:check"), "DEL KEY"),
    ];
    if let Some(sessions) = &config.auth.sessions {
        keys.push((format!("{}check", sessions.prefix), "GETRANGE KEY 0 0"));
    }
    let mut others = Vec::new();
    if config.redis.wait_replicas > 0 {
        others.push("WAIT 0 1");
    }
    if config.redis.url.as_ref().is_some_and(|url| matches!(url.topology(), RedisTopology::Cluster { .. })) {
        others.extend(CLUSTER_COMMANDS);
    }
    if config.redis.subscribe == Subscribe::Sharded {
        others.extend(SHARDED_COMMANDS);
    }
    Rights { prefix: prefix.clone(), commands: COMMANDS.to_vec(), others, keys, channels: channels(config) }
}

/// Every channel of an instance, and the commands of its subscription.
fn channels(config: &Config) -> Vec<(&'static str, String)> {
    let Redis { prefix, user_channel, subscribe, .. } = &config.redis;
    let own = ["control", "broadcast", "answers:check", "probe:check"].map(|name| format!("{prefix}{name}"));
    let mut channels: Vec<_> = own.into_iter().map(|channel| ("SUBSCRIBE", channel)).collect();
    channels.push(("SUBSCRIBE", config.presence.channel.clone()));
    let of_users: &[&str] = match subscribe {
        Subscribe::Pattern => &["PSUBSCRIBE"],
        Subscribe::Exact => &["SUBSCRIBE", "UNSUBSCRIBE"],
        Subscribe::Sharded => &["SUBSCRIBE", "UNSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE"],
    };
    let which = if *subscribe == Subscribe::Pattern { "*" } else { "check" };
    channels.extend(of_users.iter().map(|command| (*command, format!("{user_channel}{which}"))));
    channels
}

fn unreachable(error: &Error) -> String {
    let action = match error.kind() {
        "WRONGPASS" | "NOAUTH" => "correct user and password in redis.url",
        "NOPERM" | "unknown_command" => GRANT,
        _ => "correct redis.url, or start the server",
    };
    format!("{error}: without it no message is delivered, and no instance is ready: {action}")
}

fn judge(config: &Config, Inspection { address, role, facts }: &Inspection, with_rights: bool) -> Vec<Finding> {
    let about = |aspect: &str| format!("redis {address} {aspect}:");
    let facts = match (facts, role) {
        (Ok(Some(facts)), _) => facts,
        (Ok(None), _) => return vec![Finding::ok(format!("sentinel {address}:"), "names the master")],
        (Err(error), ServerRole::Sentinel) => {
            let text =
                format!("{error}: a failover may be noticed late, or not at all: start it, or correct redis.url");
            return vec![Finding::warning(format!("sentinel {address}:"), text).logged()];
        }
        (Err(error), ServerRole::Replica) => {
            let text = format!("{error}: after a failover it may be the master: start it, or remove it");
            return vec![Finding::warning(about("connection"), text)];
        }
        (Err(error), ServerRole::Only | ServerRole::Master) => {
            return vec![Finding::error(about("connection"), unreachable(error)).logged()];
        }
    };
    let is_replica = *role == ServerRole::Replica;
    if let Err(error @ Error::Unsupported(_)) = &facts.usable {
        return vec![Finding::error(about("version"), format!("{error}: upgrade it")).logged()];
    }
    let mut findings = vec![version(about("version"), facts)];
    if let Err(error) = &facts.usable {
        findings.push(Finding::error(about("role"), error.to_string()).logged());
        return findings;
    }
    findings.push(server_role(about("role"), config, facts, is_replica));
    if with_rights && !is_replica {
        findings.push(permissions(about("permissions"), facts));
    }
    let eviction = eviction(about("eviction"), facts);
    // The subscription's server is reported at each connection; in a cluster it is one of several.
    findings.push(if *role == ServerRole::Only { eviction.logged() } else { eviction });
    findings.push(persistence(about("persistence"), facts));
    findings.push(clock(about("clock"), facts.clock_ahead_ms));
    findings
}

fn version(about: String, facts: &Facts) -> Finding {
    match &facts.server.version {
        Some(version) => Finding::ok(about, version.clone()),
        None => Finding::warning(
            about,
            "unknown: without the right to INFO, neither a replica nor a server that evicts keys is detected: grant +info",
        ),
    }
}

fn server_role(about: String, config: &Config, facts: &Facts, is_replica: bool) -> Finding {
    let replicas: u32 = facts.field("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or_default();
    let (connected, needed) = (counted(replicas.into(), "replica"), config.redis.wait_replicas);
    if facts.server.is_loading {
        return Finding::warning(
            about,
            "it is still loading its data, and refuses most commands until it has: wait for it",
        );
    }
    if !is_replica && replicas < needed && facts.server.version.is_some() {
        let text = format!(
            "{connected}, but redis.wait_replicas = {needed}: no durable notification is confirmed: start the others, \
             or lower redis.wait_replicas"
        );
        return Finding::error(about, text);
    }
    Finding::ok(about, if facts.server.is_replica { "replica".to_owned() } else { format!("master, {connected}") })
}

fn permissions(about: String, facts: &Facts) -> Finding {
    if facts.refused.is_empty() {
        return Finding::ok(about, "every command, key and channel that an instance needs");
    }
    let refused = facts.refused.join(", ");
    if facts.refused.iter().all(|name| MOVES.contains(&name.as_str())) {
        let text = format!(
            "refused: {refused}: while a slot moves, some of its users are neither read nor written: grant +migrate and \
             +restore-asking"
        );
        return Finding::warning(about, text);
    }
    Finding::error(about, format!("refused: {refused}: what needs them does not work: {GRANT}"))
}

fn eviction(about: String, facts: &Facts) -> Finding {
    match (facts.server.evicts(), &facts.server.maxmemory_policy) {
        (Some(policy), _) => Finding::warning(
            about,
            format!(
                "maxmemory-policy is {policy}: redis may evict stored notifications, presence and idempotency keys when its \
                 memory is full: set maxmemory-policy noeviction"
            ),
        ),
        (None, Some(_)) => Finding::ok(about, "noeviction"),
        (None, None) => Finding::warning(about, "unknown: grant +info, and set maxmemory-policy noeviction"),
    }
}

fn persistence(about: String, facts: &Facts) -> Finding {
    let is = |name: &str, value: &str| facts.field(name) == Some(value);
    if is("aof_last_write_status", "err") || is("rdb_last_bgsave_status", "err") {
        let text = "its last write to disk failed: it may refuse every write (MISCONF): see its log";
        return Finding::warning(about, text);
    }
    if is("aof_enabled", "1") {
        return Finding::ok(about, "append-only file");
    }
    let lost = "a restart of redis loses every stored notification";
    let text = match facts.save.as_deref() {
        _ if facts.field("aof_enabled").is_none() => "unknown: grant +info, and set appendonly yes".to_owned(),
        Some("") => format!("none: {lost}: set appendonly yes"),
        Some(_) => {
            "snapshots only: a crash of redis loses what was stored since the last: set appendonly yes".to_owned()
        }
        None => format!("appendonly is off: {lost}, or those since its last snapshot: set appendonly yes"),
    };
    Finding::warning(about, text)
}

fn clock(about: String, ahead_ms: Option<i64>) -> Finding {
    let Some(ahead_ms) = ahead_ms else { return Finding::warning(about, "unknown: grant +time") };
    if ahead_ms.unsigned_abs() <= MAX_CLOCK_MS {
        return Finding::ok(about, format!("differs by {} ms from this machine's", ahead_ms.unsigned_abs()));
    }
    let (by, way) = (ahead_ms.unsigned_abs() / 1_000, if ahead_ms > 0 { "ahead of" } else { "behind" });
    let text = format!(
        "{by} s {way} this machine's: tokens are accepted too long or expire too early, and revocations end at another \
         time: synchronise both (NTP)"
    );
    Finding::warning(about, text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The names after each occurrence of a text, in every file below a folder.
    fn named(folder: &Path, before: &str, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                named(&path, before, found);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text.split(before).skip(1).map(|rest| rest.split(['\'', '"']).next().unwrap_or_default());
            found.extend(
                names
                    .filter(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase()))
                    .map(str::to_owned),
            );
        }
    }

    #[test]
    fn every_command_of_a_script_is_tried() {
        let mut found = BTreeSet::new();
        named(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "redis.call('", &mut found);
        assert!(found.len() > 30, "only {found:?}");
        let tried: BTreeSet<&str> = COMMANDS.iter().filter_map(|command| command.split(' ').next()).collect();
        let missing: Vec<_> = found.iter().filter(|name| !tried.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn one_replica_is_not_called_replicas() {
        assert_eq!([0, 1, 2].map(|count| counted(count, "replica")), ["0 replicas", "1 replica", "2 replicas"]);
    }

    #[test]
    fn a_clock_that_differs_is_reported_with_its_direction() {
        for (ahead, part) in [(1_500, "ok"), (61_000, "61 s ahead of"), (-61_000, "61 s behind")] {
            let finding = clock("redis h:1 clock:".into(), Some(ahead)).to_string();
            assert!(finding.contains(part), "{finding}");
        }
    }
}
