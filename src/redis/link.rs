//! Connections to Redis, and the one that carries commands.
//!
//! Hand-written: redis-rs' `ConnectionManager` gives up after 6 retries by default and then stays unsubscribed
//! silently, and each command here needs its own deadline, retry pause and error kind.

use std::path::PathBuf;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, FromRedisValue, IntoConnectionInfo, Pipeline, Script,
    ScriptInvocation, TlsCertificates, cmd, pipe,
};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Error;
use super::stream::{CONNECT_DEADLINE, Stream, keepalive};
use crate::config;

const COMMAND_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a failed connection attempt: until then, every command fails at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// A script for many calls in one pipeline.
pub struct Pipelined {
    source: &'static str,
    hash: String,
}

impl Pipelined {
    pub fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }

    /// The caller adds the arguments.
    pub fn call(&self, keys: &[String]) -> Cmd {
        cmd("EVALSHA").arg(&self.hash).arg(keys.len()).arg(keys).to_owned()
    }
}

/// Opens connections, and keeps the one for commands: it connects on first use, and again after a failure.
pub struct Link {
    client: Client,
    ca_file: Option<PathBuf>,
    /// The start of each connection's name in `CLIENT LIST`.
    name: String,
    commands: Mutex<Commands>,
}

#[derive(Default)]
struct Commands {
    current: Option<MultiplexedConnection>,
    /// Counts the connections so far, to tell a failure of an older one apart.
    number: u64,
    failed: Option<(Instant, &'static str, String)>,
}

impl Link {
    pub fn new(config: &config::Redis, url: &SecretString, name: String) -> Result<Self, Error> {
        let bad_url = |error: redis::RedisError| Error::Config(format!("redis.url: {error}"));
        let info: ConnectionInfo = url.expose_secret().into_connection_info().map_err(bad_url)?;
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive());
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(super::stream::KEEPALIVE * 2);
        let info = info.set_tcp_settings(tcp);
        let client = match &config.ca_file {
            None => Client::open(info).map_err(bad_url)?,
            Some(path) => {
                let fail = |error: String| Error::Config(format!("redis.ca_file = {path:?}: {error}"));
                let root_cert = std::fs::read(path).map_err(|error| fail(error.to_string()))?;
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(root_cert) };
                Client::build_with_tls(info, certificates).map_err(|error| fail(error.to_string()))?
            }
        };
        Ok(Self { client, ca_file: config.ca_file.clone(), name, commands: Mutex::default() })
    }

    /// Opens a separate connection, for a subscription or a blocking read.
    pub async fn stream(&self, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        let name = format!("{}-{purpose}", self.name);
        Stream::connect(self.client.get_connection_info(), self.ca_file.as_deref(), &name, max_part).await
    }

    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let reply = deadline(COMMAND_DEADLINE, command.query_async(&mut connection)).await;
        self.forget_if_broken(number, reply)
    }

    pub async fn pipeline<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let reply = deadline(COMMAND_DEADLINE, commands.query_async(&mut connection)).await;
        self.forget_if_broken(number, reply)
    }

    /// Runs one script, and loads it first if Redis does not have it.
    pub async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let reply = deadline(COMMAND_DEADLINE, script.invoke_async(&mut connection)).await;
        self.forget_if_broken(number, reply)
    }

    /// Pipelines calls of one script; returns their replies in the same order. Each call may fail separately.
    pub async fn scripts<T: FromRedisValue>(
        &self,
        script: &Pipelined,
        calls: &[Cmd],
    ) -> Result<Vec<redis::RedisResult<T>>, Error> {
        let mut commands = pipe();
        commands.ignore_errors();
        // It costs little beside many calls, and retrying only those that miss the script would break their order.
        if calls.len() > 1 {
            commands.cmd("SCRIPT").arg("LOAD").arg(script.source).ignore();
        }
        for call in calls {
            commands.add_command(call.clone());
        }
        let replies = self.each_reply(&commands).await?;
        if let [Err(missing)] = replies.as_slice()
            && missing.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
        {
            let mut commands = pipe();
            commands.ignore_errors().cmd("SCRIPT").arg("LOAD").arg(script.source).ignore();
            for call in calls {
                commands.add_command(call.clone());
            }
            return self.each_reply(&commands).await;
        }
        Ok(replies)
    }

    /// Pipelines commands; each may fail separately.
    async fn each_reply<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<Vec<redis::RedisResult<T>>, Error> {
        let (mut connection, number) = self.connection().await?;
        let replies = deadline(COMMAND_DEADLINE, commands.query_async(&mut connection)).await;
        let replies: Vec<redis::RedisResult<T>> = self.forget_if_broken(number, replies)?;
        let mut errors = replies.iter().filter_map(|reply| reply.as_ref().err());
        if let Some(error) = errors.find(|error| is_broken(error)) {
            self.forget_if_broken::<()>(number, Err(error.clone().into())).ok();
        }
        Ok(replies)
    }

    /// The connection and its number. Callers wait while it is being established, and share its failure.
    async fn connection(&self) -> Result<(MultiplexedConnection, u64), Error> {
        let locked = timeout(CONNECT_DEADLINE, self.commands.lock()).await;
        let mut commands = locked.map_err(|_| Error::Timeout(CONNECT_DEADLINE))?;
        if let Some(connection) = &commands.current {
            return Ok((connection.clone(), commands.number));
        }
        if let Some((at, kind, why)) = &commands.failed
            && at.elapsed() < RETRY_AFTER
        {
            return Err(Error::Unreachable { kind, why: why.clone() });
        }
        match self.connect().await {
            Ok(connection) => {
                commands.number += 1;
                commands.current = Some(connection.clone());
                Ok((connection, commands.number))
            }
            Err(error) => {
                commands.failed = Some((Instant::now(), error.kind(), error.to_string()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(COMMAND_DEADLINE));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = deadline(CONNECT_DEADLINE, connecting).await?;
        let name = cmd("CLIENT").arg("SETNAME").arg(format!("{}-commands", self.name)).to_owned();
        deadline(COMMAND_DEADLINE, name.query_async::<()>(&mut connection)).await?;
        Ok(connection)
    }

    /// Drops a failed connection, unless a newer one has replaced it.
    fn forget_if_broken<T>(&self, number: u64, reply: Result<T, Error>) -> Result<T, Error> {
        let broken = match &reply {
            Err(Error::Timeout(_)) => true,
            Err(Error::Redis(error)) => is_broken(error),
            _ => false,
        };
        // If the lock is taken, a newer connection is being established, or the next failure drops this one.
        if broken
            && let Ok(mut commands) = self.commands.try_lock()
            && commands.number == number
        {
            commands.current = None;
        }
        reply
    }
}

/// Whether the connection must be replaced after this error.
fn is_broken(error: &redis::RedisError) -> bool {
    // The server has become a replica: resolve the host name again to find the master.
    let replica = error.code() == Some("READONLY");
    error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() || replica
}

pub(super) async fn deadline<T>(
    limit: Duration,
    reply: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, Error> {
    match timeout(limit, reply).await {
        Ok(reply) => Ok(reply?),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
