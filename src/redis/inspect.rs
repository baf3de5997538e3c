//! What every server of `redis.url` says of itself, whatever its role: for the operator, not for the instance's own work.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Value, cmd};
use tokio::time::timeout;

use super::cluster::Cluster;
use super::named::Answer;
use super::node::{Access, Node, NodeMode};
use super::resp::Reply;
use super::sentinel::Sentinels;
use super::slot::slot;
use super::topology::{Server, Topology};
use super::{Error, Redis, ServerInfo};
use crate::config::NodeAddress;
use crate::protocol::unix_ms;

/// For everything that one server is asked.
const DEADLINE: Duration = Duration::from_secs(5);

/// Stands for the key in the words of a command.
const KEY: &str = "KEY";

const TRY_COMMANDS: &str = include_str!("scripts/try_commands.lua");

/// Larger messages on a channel are not buffered.
const MAX_PART: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// The one server of the URL, or the master that the sentinels name.
    Only,
    /// A master of a cluster.
    Master,
    Replica,
    Sentinel,
}

#[derive(Debug)]
pub struct Inspection {
    pub address: String,
    pub role: ServerRole,
    /// `None` of a sentinel that names the master.
    pub facts: Result<Option<Facts>, Error>,
}

#[derive(Debug)]
pub struct Facts {
    pub server: ServerInfo,
    /// Whether it can be used as what `redis.url` makes of it.
    pub usable: Result<(), Error>,
    /// The reply to `INFO`; empty if this user may not ask.
    info: String,
    /// When it writes snapshots; `None` if this user may not ask.
    pub save: Option<String>,
    /// How far its clock is ahead of this machine's, in milliseconds; `None` if this user may not ask.
    pub clock_ahead_ms: Option<i64>,
    /// The commands and channels that are refused to this user.
    pub refused: Vec<String>,
}

/// What a user must be allowed to do.
#[derive(Debug, Default)]
pub struct Rights {
    /// Starts the name of the key that [`Rights::commands`] are tried on; no key has this name and more.
    pub prefix: String,
    /// Commands of scripts, in words, the key as `KEY`: with any effect on it.
    pub commands: Vec<&'static str>,
    /// Commands outside of scripts, in the same form: without any effect.
    pub others: Vec<&'static str>,
    /// Other keys, and a command for each that has no effect on it.
    pub keys: Vec<(String, &'static str)>,
    /// Commands of a subscription, and their channel.
    pub channels: Vec<(&'static str, String)>,
}

impl Facts {
    /// A field of `INFO`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim_end)
    }
}

impl Redis {
    /// Asks every server; tries the rights on masters only. Fails if no node of a cluster knows the others.
    pub async fn inspect(&self, rights: Option<&Rights>) -> Result<Vec<Inspection>, Error> {
        let only = async |server: &Server| {
            inspect(Arc::clone(&server.node), ServerRole::Only, NodeMode::Standalone, rights, None).await
        };
        match &self.topology {
            Topology::Single(server) => Ok(vec![only(server).await]),
            Topology::Sentinel(server, sentinels) => {
                let mut inspected = sentinels.inspect().await;
                match sentinels.find(server).await {
                    Ok(()) => {
                        let master = only(server).await;
                        let replicas = inspect_replicas(replicas_of(&master), sentinels.access()).await;
                        inspected.push(master);
                        inspected.extend(replicas);
                    }
                    Err(error) => {
                        let (address, role) = (self.url.clone(), ServerRole::Only);
                        inspected.push(Inspection { address, role, facts: Err(error) });
                    }
                }
                Ok(inspected)
            }
            Topology::Cluster(cluster) => cluster.inspect(rights).await,
        }
    }
}

/// As the master lists them.
fn replicas_of(master: &Inspection) -> Vec<NodeAddress> {
    let Ok(Some(facts)) = &master.facts else { return Vec::new() };
    let listed = |number: u32| {
        let fields = facts.field(&format!("slave{number}"))?;
        let field = |name: &str| fields.split(',').find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        Some(NodeAddress { host: field("ip")?.to_owned(), port: field("port")?.parse().ok()? })
    };
    (0..).map_while(listed).collect()
}

async fn inspect_replicas(addresses: Vec<NodeAddress>, access: &Access) -> Vec<Inspection> {
    // Neither role nor mode is a condition.
    let mode = NodeMode::Sentinel;
    let node = |address: NodeAddress| Node::new(access.info(&address.host, address.port).ok(), access, mode);
    let nodes = addresses.into_iter().map(node);
    join_all(nodes.map(|node| inspect(node, ServerRole::Replica, mode, None, None))).await
}

impl Cluster {
    /// The masters, their replicas, and the nodes that `redis.url` names beside them, which may be the same.
    async fn inspect(&self, rights: Option<&Rights>) -> Result<Vec<Inspection>, Error> {
        let slots = self.known_slots().await?;
        let asked = slots.masters.iter().map(async |address| {
            let prefix = rights.map(|rights| rights.prefix.as_str()).unwrap_or_default();
            let mut keys = (0..=u16::MAX).map(|number| format!("{prefix}{{check{number}}}"));
            let own = keys.find(|key| slots.owner(slot(key.as_bytes())) == Some(address));
            let node = Arc::clone(&self.server(address)?.node);
            // A master without slots has no key that rights could be tried on.
            let rights = rights.filter(|_| own.is_some());
            Ok(inspect(node, ServerRole::Master, NodeMode::Cluster, rights, own).await)
        });
        let mut inspected: Vec<Inspection> = join_all(asked).await.into_iter().collect::<Result<_, Error>>()?;
        let mut others = slots.replicas.clone();
        // The slots lack a replica that has received nothing yet.
        for address in inspected.iter().flat_map(replicas_of).chain(self.seeds().iter().cloned()) {
            if !slots.masters.contains(&address) && !others.contains(&address) {
                others.push(address);
            }
        }
        inspected.extend(inspect_replicas(others, &self.access).await);
        Ok(inspected)
    }
}

impl Sentinels {
    /// Whether each sentinel names the master.
    async fn inspect(&self) -> Vec<Inspection> {
        let all = self.all();
        let asked = all.iter().map(async |sentinel| {
            let asking = timeout(DEADLINE, sentinel.ask(self.name()));
            let facts = match asking.await.map(|(answer, _)| answer) {
                Ok(Answer::Named(_) | Answer::Awaited) => Ok(None),
                Ok(Answer::Failed { kind, why, .. }) => Err(Error::Unreachable { kind, why }),
                Ok(Answer::Unknown(why)) => Err(Error::Unreachable { kind: "sentinel", why }),
                Err(_) => Err(Error::Timeout(DEADLINE)),
            };
            Inspection { address: sentinel.address.to_string(), role: ServerRole::Sentinel, facts }
        });
        join_all(asked).await
    }
}

/// As [`Redis::inspect`]; in a cluster with a key that the server has.
fn inspect(
    node: Arc<Node>,
    role: ServerRole,
    mode: NodeMode,
    rights: Option<&Rights>,
    key: Option<String>,
) -> impl Future<Output = Inspection> {
    let rights = rights.filter(|_| role != ServerRole::Replica);
    async move {
        let asking = timeout(DEADLINE, facts(&node, mode, rights, key));
        let facts = asking.await.unwrap_or(Err(Error::Timeout(DEADLINE)));
        Inspection { address: node.address(), role, facts: facts.map(Some) }
    }
}

async fn facts(node: &Node, mode: NodeMode, rights: Option<&Rights>, key: Option<String>) -> Result<Facts, Error> {
    let config =
        AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(DEADLINE));
    let (client, _) = node.client()?;
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    let connection = &mut connection;
    let info = run::<Vec<u8>>(connection, &cmd("INFO")).await.map(|info| String::from_utf8_lossy(&info).into_owned());
    let server = ServerInfo::of_reply(info.as_ref().map_err(Error::again))?;
    let usable = server.clone().usable(mode).map(drop);
    let clock_ahead_ms = clock_ahead(connection).await?;
    let save = run::<(String, String)>(connection, cmd("CONFIG").arg("GET").arg("save")).await;
    let mut refused = Vec::new();
    if let Some(rights) = rights.filter(|_| usable.is_ok()) {
        let key = key.unwrap_or_else(|| format!("{}check", rights.prefix));
        try_commands(connection, &key, &rights.commands, &mut refused).await?;
        for command in &rights.others {
            refused.extend(is_refused(connection, command, &key).await.then(|| name_of(command)));
        }
        for (key, command) in &rights.keys {
            refused.extend(is_refused(connection, command, key).await.then(|| format!("key {key}")));
        }
        try_channels(node, &rights.channels, &mut refused).await?;
    }
    Ok(Facts {
        server,
        usable,
        info: info.unwrap_or_default(),
        save: save.ok().map(|(_, save)| save),
        clock_ahead_ms,
        refused,
    })
}

async fn run<T: FromRedisValue>(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<T, Error> {
    Ok(command.query_async(connection).await?)
}

/// `None` if this user may not ask for the time.
async fn clock_ahead(connection: &mut MultiplexedConnection) -> Result<Option<i64>, Error> {
    let sent = unix_ms();
    let (seconds, micros) = match run::<(i64, i64)>(connection, &cmd("TIME")).await {
        Ok(time) => time,
        Err(error) if error.is_lasting_refusal() => return Ok(None),
        Err(error) => return Err(error),
    };
    let own = i64::try_from(sent.midpoint(unix_ms())).unwrap_or(i64::MAX);
    Ok(Some(seconds.saturating_mul(1_000).saturating_add(micros / 1_000).saturating_sub(own)))
}

/// Whether the right to this command, or to this key, is missing. Any other error says that it is there: in a cluster, the
/// key may be of another node.
async fn is_refused(connection: &mut MultiplexedConnection, command: &str, key: &str) -> bool {
    let mut call = Cmd::new();
    call.arg(command.split(' ').map(|word| if word == KEY { key } else { word }).collect::<Vec<_>>());
    run::<Value>(connection, &call).await.is_err_and(|error| error.is_lasting_refusal())
}

/// The command and its subcommand, without arguments.
fn name_of(command: &str) -> String {
    let is_name = |word: &&str| *word != KEY && word.starts_with(|first: char| first.is_ascii_uppercase());
    command.split(' ').take_while(is_name).collect::<Vec<_>>().join(" ")
}

async fn try_commands(
    connection: &mut MultiplexedConnection,
    key: &str,
    commands: &[&str],
    refused: &mut Vec<String>,
) -> Result<(), Error> {
    let mut eval = cmd("EVAL");
    eval.arg(TRY_COMMANDS).arg(1).arg(key);
    for command in commands {
        let words: Vec<&str> = command.split(' ').map(|word| if word == KEY { key } else { word }).collect();
        eval.arg(words.len()).arg(words);
    }
    let failed = match run::<Vec<(String, String)>>(connection, &eval).await {
        Ok(failed) => failed,
        Err(error) if error.is_lasting_refusal() => {
            // The key of a script is judged before its commands are.
            let of_key = error.to_string().contains(" access ");
            refused.push(if of_key { format!("key {key}") } else { "EVAL".to_owned() });
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let is_refused = |line: &str| Error::refused(line).is_lasting_refusal();
    let failed = failed.into_iter().filter(|(_, line)| is_refused(line));
    refused.extend(failed.map(|(name, _)| format!("{name} on {key}")));
    Ok(())
}

/// On a connection of its own, which is then closed.
async fn try_channels(node: &Node, channels: &[(&str, String)], refused: &mut Vec<String>) -> Result<(), Error> {
    let mut stream = node.stream("check", MAX_PART).await?;
    for (command, channel) in channels {
        stream.send(&[command.as_bytes(), channel.as_bytes()]).await?;
        let mut is_answered = false;
        while !is_answered {
            stream.fill().await?;
            match stream.each(|reply| is_answered |= is_confirmation(&reply)) {
                Ok(()) => {}
                Err(error) if error.is_lasting_refusal() => {
                    refused.push(format!("{command} {channel}"));
                    is_answered = true;
                }
                // The slot of a sharded channel is another node's: the rights come first.
                Err(error) if error.is_unserved() => is_answered = true,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

fn is_confirmation(reply: &Reply<'_>) -> bool {
    let Reply::Push(parts) = reply else { return false };
    matches!(parts.as_slice(), [kind, ..] if kind.ends_with(b"subscribe"))
}
