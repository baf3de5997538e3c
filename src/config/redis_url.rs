//! `redis.url`: one server, the sentinels that know the master, or nodes of a cluster.
//!
//! No error quotes the URL: where it does not parse, a password may be anywhere in it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use redis::{ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use secrecy::SecretString;

use super::sections::Redis;
use super::url::{check_host, harmless_parts, is_host};

const SINGLE: &str = "redis://, rediss:// or unix://, such as redis://user:password@127.0.0.1:6379/0";
const SENTINEL: &str =
    "redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT,…/MASTER[/DB] (rediss+sentinel:// with TLS)";
const CLUSTER: &str = "redis+cluster://[USER:PASSWORD@]HOST:PORT,HOST:PORT,… (rediss+cluster:// with TLS)";

const MAX_HOSTS: usize = 100;
const SENTINEL_PORT: u16 = 26_379;
const CLUSTER_PORT: u16 = 6_379;

/// A URL of Redis in which everything has a meaning. `Debug` and `Display` show only scheme, hosts, ports and path.
#[derive(Clone)]
pub struct RedisUrl {
    text: SecretString,
    shown: String,
    is_tls: bool,
    topology: RedisTopology,
    login: RedisConnectionInfo,
}

/// The servers that a URL leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RedisTopology {
    /// One server, at an address that may move.
    Single,
    /// The master that the sentinels name.
    Sentinel {
        /// At least one, each once.
        sentinels: Vec<NodeAddress>,
        /// The name under which they watch it.
        master: String,
    },
    /// A cluster.
    Cluster {
        /// Nodes to ask for the others: at least one, each once.
        nodes: Vec<NodeAddress>,
    },
}

/// The address of a sentinel or of a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeAddress {
    /// A name, or an IP address without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl RedisUrl {
    /// As given, if it leads to one server: for the client library.
    #[must_use]
    pub fn single(&self) -> Option<&SecretString> {
        (self.topology == RedisTopology::Single).then_some(&self.text)
    }

    /// The servers that it leads to.
    #[must_use]
    pub fn topology(&self) -> &RedisTopology {
        &self.topology
    }

    /// Whether every connection uses TLS, those to sentinels too.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// User, password and database on each server; not on sentinels, which have a login of their own.
    #[must_use]
    pub fn login(&self) -> &RedisConnectionInfo {
        &self.login
    }
}

/// The server of `tidings serve` if none is configured.
impl Default for RedisUrl {
    fn default() -> Self {
        let shown = Redis::DEFAULT_URL.to_owned();
        let text = SecretString::from(shown.clone());
        Self { text, shown, is_tls: false, topology: RedisTopology::Single, login: RedisConnectionInfo::default() }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl FromStr for RedisUrl {
    /// Why it is refused, and the accepted URLs.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let (scheme, rest) = text.split_once(':').unwrap_or_default();
        let (scheme, rest) = (scheme.to_ascii_lowercase(), rest.strip_prefix("//"));
        let refused = |why: String, accepted: &str| format!("{why}: expected {accepted}");
        match (&*scheme, rest) {
            ("redis" | "rediss" | "unix", _) => single(text).map_err(|why| refused(why, SINGLE)),
            ("redis+sentinel" | "rediss+sentinel", Some(rest)) => {
                several(text, &scheme, rest, SENTINEL_PORT, with_master).map_err(|why| refused(why, SENTINEL))
            }
            ("redis+cluster" | "rediss+cluster", Some(rest)) => {
                several(text, &scheme, rest, CLUSTER_PORT, of_cluster).map_err(|why| refused(why, CLUSTER))
            }
            _ => {
                let hint = meant(&scheme).map(|scheme| format!(" (did you mean {scheme}://?)")).unwrap_or_default();
                let why = format!("it is not such a URL{hint}");
                Err(refused(why, &format!("{SINGLE}; {SENTINEL}; or {CLUSTER}")))
            }
        }
    }
}

/// The known scheme that an unknown one resembles.
fn meant(scheme: &str) -> Option<&'static str> {
    let has = |part: &str| scheme.contains(part);
    let tls = ["rediss", "valkeys", "sentinels", "clusters", "tls", "ssl"].into_iter().any(has);
    let [plain, with_tls] = if has("sentinel") {
        ["redis+sentinel", "rediss+sentinel"]
    } else if has("cluster") {
        ["redis+cluster", "rediss+cluster"]
    } else if has("unix") || has("socket") {
        ["unix", "unix"]
    } else if has("redis") || has("valkey") {
        ["redis", "rediss"]
    } else {
        return None;
    };
    Some(if tls { with_tls } else { plain })
}

fn single(text: &str) -> Result<RedisUrl, String> {
    let after_login = text.rsplit('@').next().unwrap_or_default();
    let authority = after_login.rsplit("//").next().and_then(|rest| rest.split('/').next());
    let several = authority.is_some_and(|hosts| hosts.contains(','));
    let hint = if several { " (several hosts require redis+sentinel:// or redis+cluster://)" } else { "" };
    let encode = " (in a password, characters such as / ? # and @ must be percent-encoded)";
    let why = if several || !text.contains('@') { hint } else { encode };
    let url = redis::parse_redis_url(text).ok_or_else(|| format!("it is not such a URL{why}"))?;
    if url.fragment().is_some() {
        return Err("its fragment (#…) has no meaning (in a password, write # as %23)".into());
    }
    if url.scheme() == "unix" {
        let known = |name: &str| ["db", "user", "pass"].contains(&name);
        if url.query_pairs().any(|(name, _)| !known(&name)) {
            return Err("of its query (?…), only db, user and pass have a meaning".into());
        }
        if url.has_host() {
            return Err("it has a host".into());
        }
    } else {
        if url.query().is_some() {
            return Err("its query (?…) has no meaning (in a password, write ? as %3F)".into());
        }
        check_host(&url).map_err(|why| format!("{why}{hint}"))?;
        if url.host_str().is_some_and(is_wildcard) {
            return Err("its host is a wildcard address".into());
        }
        let database = url.path().trim_matches('/');
        if !database.is_empty() && database.parse::<u32>().is_err() {
            return Err("its path is not the number of a database (in a password, write / as %2F)".into());
        }
    }
    let (shown, is_tls) = (harmless_parts(&url), url.scheme() == "rediss");
    // The library's errors quote nothing.
    let info: ConnectionInfo = url.into_connection_info().map_err(|error| error.to_string())?;
    let login = info.redis_settings().clone();
    // The library would ignore such a user.
    if login.username().is_some() && login.password().is_none() {
        return Err("its user has no password (a password without a user is :PASSWORD@)".into());
    }
    Ok(RedisUrl { text: text.into(), shown, is_tls, topology: RedisTopology::Single, login })
}

/// A topology of these hosts with the rest of the path, the path as shown, and the number of the database.
type Topology = fn(Vec<NodeAddress>, &str) -> Result<(RedisTopology, String, i64), String>;

fn several(text: &str, scheme: &str, rest: &str, port: u16, topology: Topology) -> Result<RedisUrl, String> {
    for (part, why) in [
        ("#", "its fragment (#…) has no meaning (in a password, write # as %23)"),
        ("?", "its query (?…) has no meaning (in a password, write ? as %3F)"),
    ] {
        if rest.contains(part) {
            return Err(why.into());
        }
    }
    if rest.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("it contains white space or a control character (in a password, use percent-encoding)".into());
    }
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if path.contains('@') {
        return Err("there is an @ in its path (in a password, write / as %2F)".into());
    }
    let (login, hosts) = match authority.rsplit_once('@') {
        Some((login, hosts)) => (self::login(login)?, hosts),
        None => (RedisConnectionInfo::default(), authority),
    };
    let hosts = addresses(hosts, port)?;
    let listed = hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let (topology, path, database) = topology(hosts, path.strip_prefix('/').unwrap_or_default())?;
    let shown = format!("{scheme}://{listed}{path}");
    let (text, is_tls) = (text.into(), scheme.starts_with("rediss"));
    Ok(RedisUrl { text, shown, is_tls, topology, login: login.set_db(database) })
}

fn login(text: &str) -> Result<RedisConnectionInfo, String> {
    if text.contains('@') {
        let once = "user and password are given once, before the first host (in a password, write @ as %40)";
        return Err(format!("it has more than one @: {once}"));
    }
    if text.split_once(':').is_none_or(|(_, password)| password.is_empty()) {
        return Err("it has no password before the @ (a password without a user is :PASSWORD@)".into());
    }
    // Decoded as in the URL of a single server.
    let info = format!("redis://{text}@localhost").into_connection_info();
    let info = info.map_err(|_| "its user or password is not UTF-8")?;
    Ok(info.redis_settings().clone())
}

fn addresses(hosts: &str, port: u16) -> Result<Vec<NodeAddress>, String> {
    let count = hosts.split(',').count();
    if hosts.is_empty() {
        return Err("it has no host".into());
    }
    if count > MAX_HOSTS {
        return Err(format!("it has {count} hosts, more than {MAX_HOSTS}"));
    }
    let mut found = BTreeSet::new();
    let numbered = hosts.split(',').zip(1..).map(|(text, number)| {
        let address = address(text, port).map_err(|why| format!("host {number} of {count} {why}"))?;
        if !found.insert(address.clone()) {
            return Err(format!("host {number} of {count} is listed twice"));
        }
        Ok(address)
    });
    numbered.collect()
}

fn address(text: &str, default_port: u16) -> Result<NodeAddress, &'static str> {
    let end = if text.starts_with('[') { text.find(']').map_or(text.len(), |at| at + 1) } else { 0 };
    let colon = text.get(end..).and_then(|rest| rest.find(':')).map_or(text.len(), |at| at + end);
    let (host, port) = text.split_at(colon);
    if end == 0 && text.matches(':').count() > 1 {
        return Err("has more than one colon: an IPv6 address must be in brackets");
    }
    if host.is_empty() {
        return Err("is empty");
    }
    if !is_host(host) {
        return Err("is neither a name nor an IP address");
    }
    let port = match port.strip_prefix(':') {
        None => Some(default_port),
        Some(digits) => digits.parse().ok().filter(|port| *port > 0 && !digits.starts_with('+')),
    };
    let port = port.ok_or("has a port that is not a number from 1 to 65535")?;
    if is_wildcard(host) {
        return Err("is a wildcard address");
    }
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let host = host.parse().map_or(host, |address: IpAddr| address.to_string());
    Ok(NodeAddress { host, port })
}

fn is_wildcard(host: &str) -> bool {
    host.trim_matches(['[', ']']).parse().is_ok_and(|address: IpAddr| address.is_unspecified())
}

fn with_master(sentinels: Vec<NodeAddress>, path: &str) -> Result<(RedisTopology, String, i64), String> {
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (master, database) = path.split_once('/').unwrap_or((path, ""));
    let database = database.strip_suffix('/').unwrap_or(database);
    if master.is_empty() {
        return Err("its path does not name a master".into());
    }
    if is_number(master) && database.is_empty() {
        return Err("its path has the number of a database, but does not name a master".into());
    }
    if !master.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) || master.len() > 128 {
        return Err("the name of its master is not 1 to 128 letters, digits, '.', '-' and '_'".into());
    }
    let number = if database.is_empty() { Some(0) } else { database.parse::<u32>().ok() };
    let number = number.filter(|_| is_number(database));
    let number = number.ok_or("its path does not end with the number of a database")?;
    let shown = if number == 0 { format!("/{master}") } else { format!("/{master}/{number}") };
    Ok((RedisTopology::Sentinel { sentinels, master: master.into() }, shown, number.into()))
}

fn of_cluster(nodes: Vec<NodeAddress>, path: &str) -> Result<(RedisTopology, String, i64), String> {
    match path.strip_suffix('/').unwrap_or(path) {
        "" | "0" => Ok((RedisTopology::Cluster { nodes }, String::new(), 0)),
        _ => Err("its path has no meaning (a cluster has only database 0, and no name)".into()),
    }
}

#[cfg(test)]
mod tests;
