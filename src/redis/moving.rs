//! A slot on its way from one node to another, one key after the other (`CLUSTER SETSLOT`): neither node executes a script
//! whose keys are at both. Its keys that are still at the source are moved first, as the tool that moves the slot would do later.

use std::collections::BTreeSet;
use std::time::Duration;

use redis::{Cmd, RedisError, RedisResult, Value, cmd};
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::Error;
use super::call::{Asking, Call};
use super::cluster::Cluster;
use super::error::is_unserved;
use super::node::Access;
use super::slot_map::redirection;
use super::topology::{Lane, Server};
use crate::config::NodeAddress;
use crate::protocol::millis;

/// Keys in one `MIGRATE`: the source executes nothing else meanwhile.
const KEYS_AT_ONCE: usize = 32;

/// For the keys of the calls of one attempt.
const DEADLINE: Duration = Duration::from_millis(1500);

/// How long the source waits for a target that makes no progress.
const TARGET_DEADLINE: Duration = Duration::from_secs(1);

/// No key is moved for so long after a failure: the source may have waited in vain, or refuse it to this user.
const PAUSE: Duration = Duration::from_secs(5);

impl Cluster {
    /// Moves those keys of the calls, which are in one slot, that the source still has. Returns the target of the slot once it
    /// has all of them that exist; `None` if they cannot be moved now.
    pub(super) async fn move_keys(&self, source: &NodeAddress, calls: &[Call<'_>]) -> Option<NodeAddress> {
        let is_paused = |failed: Option<Instant>| failed.is_some_and(|at| at.elapsed() < PAUSE);
        if is_paused(*self.move_failed.lock()) {
            return None;
        }
        let moved = timeout(DEADLINE, self.try_to_move(source, calls)).await;
        match moved.unwrap_or(Err(Error::Timeout(DEADLINE))) {
            Ok(target) => Some(target),
            // The slot has arrived, or has no master.
            Err(error) if is_unserved(error.kind()) => None,
            Err(error) => {
                if !is_paused(self.move_failed.lock().replace(Instant::now())) {
                    warn!(%error, kind = error.kind(), "cannot move keys of a slot that is on its way to another node");
                }
                None
            }
        }
    }

    async fn try_to_move(&self, source: &NodeAddress, calls: &[Call<'_>]) -> Result<NodeAddress, Error> {
        let keys: Vec<_> = calls.iter().flat_map(Call::keys).collect::<BTreeSet<_>>().into_iter().collect();
        let exists = |key| cmd("EXISTS").arg(key).to_owned();
        let server = self.server(source)?;
        let of_first = calls.first().map(Call::keys).unwrap_or_default();
        let looks: Vec<Cmd> = of_first.into_iter().map(exists).collect();
        let looked = run(&server, &looks, Asking::Owner).await?;
        // The source redirects a command for a key that it does not have to the target.
        let asks = |error: &RedisError| error.code() == Some("ASK");
        let redirected = looked.into_iter().filter_map(Result::err).find(asks);
        let detail = redirected.as_ref().and_then(RedisError::detail);
        let target = detail.and_then(|detail| redirection(detail, &source.host)).ok_or_else(not_now)?;
        // The source would wait for one that is dead.
        let heir = self.server(&target)?;
        let answers = run(&heir, looks.get(..1).unwrap_or_default(), Asking::Target).await?;
        answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let begun = Instant::now();
        for some in keys.chunks(KEYS_AT_ONCE) {
            if begun.elapsed() > DEADLINE / 2 {
                // Those of other calls are moved at the next attempt.
                return Err(not_now());
            }
            let migrate = migrate(&self.access, &target, some);
            run(&server, &[migrate], Asking::Owner).await?.into_iter().collect::<Result<Vec<_>, _>>()?;
        }
        Ok(target)
    }
}

async fn run(server: &Server, commands: &[Cmd], asking: Asking) -> Result<Vec<RedisResult<Value>>, Error> {
    let calls: Vec<_> = commands.iter().map(Call::Command).collect();
    Ok(server.run(Lane::Commands, &calls, asking).await?.into_iter().map(|(reply, _)| reply).collect())
}

/// `REPLACE`: while the source has a key, no client uses a copy at the target, which an interrupted `MIGRATE` left.
fn migrate(access: &Access, target: &NodeAddress, keys: &[&[u8]]) -> Cmd {
    let mut migrate = cmd("MIGRATE");
    migrate.arg(&target.host).arg(target.port).arg("").arg(0).arg(millis(TARGET_DEADLINE)).arg("REPLACE");
    match (access.login.username(), access.login.password()) {
        (Some(user), Some(password)) => migrate.arg("AUTH2").arg(user).arg(password),
        (None, Some(password)) => migrate.arg("AUTH").arg(password),
        (_, None) => &mut migrate,
    };
    migrate.arg("KEYS").arg(keys).to_owned()
}

fn not_now() -> Error {
    Error::Unreachable { kind: "TRYAGAIN", why: "redis: the keys cannot be moved now".into() }
}
