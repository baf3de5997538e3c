//! One sentinel: what it is asked, and which others it knows.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::{FromRedisValue, RedisResult, Value, cmd};
use tokio::time::Instant;

use super::Error;
use super::call::{Asking, Call};
use super::link::Link;
use super::links::converted;
use super::named::{Answer, Named};
use super::node::{Access, Node, NodeMode};
use crate::config::NodeAddress;

/// A sentinel that fails and that no other has listed for so long is left.
const LISTED_FOR: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Sentinel {
    pub(super) address: NodeAddress,
    pub(super) node: Arc<Node>,
    link: Link,
    /// When another one last listed it; `None` for one that `redis.url` names.
    listed: Option<Mutex<Instant>>,
    id: Mutex<Option<String>>,
}

/// A sentinel that another one lists.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) address: NodeAddress,
    pub(super) id: String,
}

impl Sentinel {
    /// That `redis.url` names.
    pub(super) fn new(address: &NodeAddress, access: &Access) -> Result<Self, Error> {
        let node = Node::new(Some(access.info(&address.host, address.port)?), access, NodeMode::Sentinel);
        let link = Link::new(Arc::clone(&node), "sentinel-commands");
        Ok(Self { address: address.clone(), node, link, listed: None, id: Mutex::default() })
    }

    /// That another one lists.
    pub(super) fn listed(listed: &Listed, access: &Access) -> Result<Self, Error> {
        let sentinel = Self::new(&listed.address, access)?;
        Ok(Self { listed: Some(Mutex::new(Instant::now())), id: Mutex::new(Some(listed.id.clone())), ..sentinel })
    }

    /// Whether this is the one listed: `redis.url` may have a name instead of its address. If so, it is still listed.
    pub(super) fn is(&self, listed: &Listed) -> bool {
        let is_same = self.address == listed.address || self.id.lock().as_ref() == Some(&listed.id);
        if let Some(last) = self.listed.as_ref().filter(|_| is_same) {
            *last.lock() = Instant::now();
        }
        is_same
    }

    /// Whether it should no longer be asked if it does not answer.
    pub(super) fn is_forgotten(&self) -> bool {
        self.listed.as_ref().is_some_and(|listed| listed.lock().elapsed() > LISTED_FOR)
    }

    /// The answer about the master of this name, and the other sentinels that watch it.
    pub(super) async fn ask(&self, name: &str) -> (Answer, Vec<Listed>) {
        self.master(name).await.unwrap_or_else(|error| (Answer::failed(&self.address, &error), Vec::new()))
    }

    async fn master(&self, name: &str) -> Result<(Answer, Vec<Listed>), Error> {
        let asked = |about: &str| cmd("SENTINEL").arg(about).arg(name).to_owned();
        // In this order: an address that is read later is never older than its epoch.
        let [master, address] = ["MASTER", "GET-MASTER-ADDR-BY-NAME"].map(asked);
        let commands = [master, address, cmd("SENTINEL").arg("MYID").to_owned(), asked("SENTINELS")];
        let [master, address, id, others] = self.replies(&commands).await?;
        let Some((host, port)) = parsed::<Option<(String, u16)>>(address)? else {
            return Ok((Answer::Unknown(self.unknown(name).await), Vec::new()));
        };
        let master: HashMap<String, String> = parsed(master)?;
        let epoch = master.get("config-epoch").and_then(|epoch| epoch.parse().ok());
        let epoch = epoch.ok_or_else(|| Error::unexpected("SENTINEL MASTER: no config-epoch"))?;
        let named = Named { address: NodeAddress { host, port }, epoch };
        // It may refuse these to this user.
        let others = match parsed(id) {
            Ok(id) => {
                *self.id.lock() = Some(id);
                parsed(others).map(listed).unwrap_or_default()
            }
            Err(_) => Vec::new(),
        };
        Ok((Answer::Named(named), others))
    }

    /// Says which masters it knows instead.
    async fn unknown(&self, name: &str) -> String {
        let known = match self.known().await.as_deref() {
            Ok([]) => "it knows none".to_owned(),
            Ok(names) => format!("it knows {}", names.join(", ")),
            // It may refuse this question to this user.
            Err(error) => format!("which it knows is unknown: {error}"),
        };
        format!("the sentinel {} does not know the master {name:?} (the path of redis.url): {known}", self.address)
    }

    async fn known(&self) -> Result<Vec<String>, Error> {
        let [masters] = self.replies(&[cmd("SENTINEL").arg("MASTERS").to_owned()]).await?;
        let masters: Vec<HashMap<String, String>> = parsed(masters)?;
        Ok(masters.into_iter().filter_map(|mut master| master.remove("name")).take(10).collect())
    }

    async fn replies<const N: usize>(&self, commands: &[redis::Cmd; N]) -> Result<[RedisResult<Value>; N], Error> {
        let calls = commands.each_ref().map(Call::Command);
        let replies = self.link.run(&calls, Asking::Owner).await?.replies;
        replies.try_into().map_err(|_| Error::unexpected("none"))
    }
}

/// Without one that its lister has not reached yet, which has no id.
fn listed(sentinels: Vec<HashMap<String, String>>) -> Vec<Listed> {
    let one = |mut fields: HashMap<String, String>| {
        let (host, port) = (fields.remove("ip")?, fields.get("port")?.parse().ok()?);
        let id = fields.remove("runid").filter(|id| !id.is_empty())?;
        Some(Listed { address: NodeAddress { host, port }, id })
    };
    sentinels.into_iter().filter_map(one).collect()
}

fn parsed<T: FromRedisValue>(reply: RedisResult<Value>) -> Result<T, Error> {
    Ok(converted(reply?)?)
}
