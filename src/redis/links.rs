//! How the domains send commands and scripts.

use prometheus::Histogram;
use redis::{Cmd, FromRedisValue, Pipeline, RedisResult, Value, from_redis_value};
use tokio::time::Instant;

use super::call::Call;
use super::script::{Pipelined, ScriptInvocation};
use super::stream::Stream;
use super::topology::{Lane, Topology};
use super::{Error, Reply};

/// The links of one lane to every server of the topology. In a cluster each call goes to the node that has its first key;
/// one without a key goes with the first call that has one.
#[derive(Debug, Clone, Copy)]
pub struct Links<'a> {
    pub(super) topology: &'a Topology,
    pub(super) lane: Lane,
    /// Measures the requests that have a reply.
    pub(super) roundtrip: &'a Histogram,
}

impl Links<'_> {
    pub async fn command<T: FromRedisValue>(self, command: &Cmd) -> Result<T, Error> {
        Ok(self.one(Call::Command(command)).await?.0)
    }

    /// Returns the bytes of the reply, and the number of the connection: each leads to one server. Only for [`Lane::Bulk`].
    pub async fn numbered_raw(self, command: &Cmd) -> Result<(Vec<u8>, u64), Error> {
        self.one(Call::Raw(command)).await
    }

    /// Fails with the first error of a command.
    pub async fn pipeline<T: FromRedisValue>(self, commands: &Pipeline) -> Result<T, Error> {
        let calls: Vec<_> = commands.cmd_iter().map(Call::Command).collect();
        let replies = self.run(&calls).await?;
        let replies: Vec<Value> = replies.into_iter().map(|(reply, _)| reply).collect::<Result<_, _>>()?;
        Ok(converted(Value::Array(replies))?)
    }

    /// Pipelines commands; each may fail separately.
    pub async fn each_reply<T: FromRedisValue>(self, commands: &Pipeline) -> Result<Vec<RedisResult<T>>, Error> {
        let calls: Vec<_> = commands.cmd_iter().map(Call::Command).collect();
        self.each(&calls).await
    }

    /// Runs one script.
    pub async fn script<T: FromRedisValue>(self, script: &ScriptInvocation<'_>) -> Result<T, Error> {
        Ok(self.one(Call::Script(script)).await?.0)
    }

    /// As [`Links::script`]; returns the number of the connection, too: each leads to one server.
    pub async fn numbered_script<T: FromRedisValue>(self, script: &ScriptInvocation<'_>) -> Result<(T, u64), Error> {
        self.one(Call::Script(script)).await
    }

    /// Pipelines calls of one script; returns their replies in the same order. Each call may fail separately.
    pub async fn scripts<T: FromRedisValue>(
        self,
        script: &Pipelined,
        calls: &[Cmd],
    ) -> Result<Vec<RedisResult<T>>, Error> {
        Ok(self.numbered_scripts(script, calls).await?.into_iter().map(|(reply, _)| reply).collect())
    }

    /// As [`Links::scripts`]; returns the number of the connection with each reply, too.
    pub async fn numbered_scripts<T: FromRedisValue>(
        self,
        script: &Pipelined,
        calls: &[Cmd],
    ) -> Result<Vec<(RedisResult<T>, u64)>, Error> {
        let calls: Vec<_> = calls.iter().map(|call| Call::Pipelined(script, call)).collect();
        self.numbered(&calls).await
    }

    /// Opens a separate connection for a blocking read of this key.
    pub async fn blocking_stream(self, key: &str, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        self.topology.stream(Some(key), purpose, max_part).await
    }

    pub(super) async fn each<T: FromRedisValue>(self, calls: &[Call<'_>]) -> Result<Vec<RedisResult<T>>, Error> {
        Ok(self.numbered(calls).await?.into_iter().map(|(reply, _)| reply).collect())
    }

    async fn one<T: FromRedisValue>(self, call: Call<'_>) -> Result<(T, u64), Error> {
        let replies = self.numbered(&[call]).await?;
        let (reply, connection) = replies.into_iter().next().ok_or_else(|| Error::unexpected("none"))?;
        Ok((reply?, connection))
    }

    async fn run(self, calls: &[Call<'_>]) -> Result<Vec<Reply>, Error> {
        let begun = Instant::now();
        let replies = self.topology.run(self.lane, calls).await?;
        self.roundtrip.observe(begun.elapsed().as_secs_f64());
        Ok(replies)
    }

    async fn numbered<T: FromRedisValue>(self, calls: &[Call<'_>]) -> Result<Vec<(RedisResult<T>, u64)>, Error> {
        let replies = self.run(calls).await?;
        Ok(replies.into_iter().map(|(reply, connection)| (reply.and_then(converted), connection)).collect())
    }
}

pub(super) fn converted<T: FromRedisValue>(reply: Value) -> RedisResult<T> {
    Ok(from_redis_value(reply)?)
}
