//! Connections to Redis: how they are made, and the one that carries commands.

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
use super::stream::{Stream, keepalive};
use crate::config;

/// From nothing to a connection that has said hello.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// From a command to its answer.
const COMMAND_DEADLINE: Duration = Duration::from_secs(2);

/// After a failed connect, how long the next is put off.
const LEFT_ALONE: Duration = Duration::from_millis(500);

/// A script that is called many times in one go.
pub struct Pipelined {
    source: &'static str,
    hash: String,
}

impl Pipelined {
    pub fn new(source: &'static str) -> Self {
        Self { source, hash: Script::new(source).get_hash().to_owned() }
    }

    /// A call with these keys; its arguments may be added.
    pub fn call(&self, keys: &[String]) -> Cmd {
        cmd("EVALSHA").arg(&self.hash).arg(keys.len()).arg(keys).to_owned()
    }
}

/// Makes connections, and keeps the one for commands; it is made when first needed and again after it failed.
pub struct Link {
    client: Client,
    ca_file: Option<PathBuf>,
    /// What `CLIENT LIST` shows, before what a connection is for.
    name: String,
    commands: Mutex<Commands>,
}

/// The connection for commands, as it is now.
#[derive(Default)]
struct Commands {
    current: Option<MultiplexedConnection>,
    /// How many there have been.
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

    /// A connection of its own for a subscription.
    pub async fn stream(&self, purpose: &str, max_part: usize) -> Result<Stream, Error> {
        let name = format!("{}-{purpose}", self.name);
        Stream::connect(self.client.get_connection_info(), self.ca_file.as_deref(), &name, max_part).await
    }

    /// Sends one command.
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let answer = deadline(COMMAND_DEADLINE, command.query_async(&mut connection)).await;
        self.forget_if_broken(number, answer)
    }

    /// Sends several commands at once.
    pub async fn pipeline<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let answer = deadline(COMMAND_DEADLINE, commands.query_async(&mut connection)).await;
        self.forget_if_broken(number, answer)
    }

    /// Runs one script, loading it where Redis does not know it.
    pub async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Result<T, Error> {
        let (mut connection, number) = self.connection().await?;
        let answer = deadline(COMMAND_DEADLINE, script.invoke_async(&mut connection)).await;
        self.forget_if_broken(number, answer)
    }

    /// Runs one script for each of these calls, in their order and at once; gives what each answered.
    pub async fn scripts<T: FromRedisValue>(
        &self,
        script: &Pipelined,
        calls: &[Cmd],
    ) -> Result<Vec<redis::RedisResult<T>>, Error> {
        let mut commands = pipe();
        commands.ignore_errors();
        // It is small beside many calls, and those that find the script missing would not keep their order.
        if calls.len() > 1 {
            commands.cmd("SCRIPT").arg("LOAD").arg(script.source).ignore();
        }
        for call in calls {
            commands.add_command(call.clone());
        }
        let answers = self.each_answer(&commands).await?;
        if let [Err(missing)] = answers.as_slice()
            && missing.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::NoScript)
        {
            let mut commands = pipe();
            commands.ignore_errors().cmd("SCRIPT").arg("LOAD").arg(script.source).ignore();
            for call in calls {
                commands.add_command(call.clone());
            }
            return self.each_answer(&commands).await;
        }
        Ok(answers)
    }

    /// Sends several commands at once, of which each may fail for itself.
    async fn each_answer<T: FromRedisValue>(&self, commands: &Pipeline) -> Result<Vec<redis::RedisResult<T>>, Error> {
        let (mut connection, number) = self.connection().await?;
        let answers = deadline(COMMAND_DEADLINE, commands.query_async(&mut connection)).await;
        let answers: Vec<redis::RedisResult<T>> = self.forget_if_broken(number, answers)?;
        let mut errors = answers.iter().filter_map(|answer| answer.as_ref().err());
        if let Some(error) = errors.find(|error| is_broken(error)) {
            self.forget_if_broken::<()>(number, Err(error.clone().into())).ok();
        }
        Ok(answers)
    }

    /// The connection and its number. Whoever comes while it is being made waits for that, and shares its failure.
    async fn connection(&self) -> Result<(MultiplexedConnection, u64), Error> {
        let locked = timeout(CONNECT_DEADLINE, self.commands.lock()).await;
        let mut commands = locked.map_err(|_| Error::Timeout(CONNECT_DEADLINE))?;
        if let Some(connection) = &commands.current {
            return Ok((connection.clone(), commands.number));
        }
        if let Some((at, kind, why)) = &commands.failed
            && at.elapsed() < LEFT_ALONE
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

    /// Lets go of a connection that failed, unless a newer one has taken its place.
    fn forget_if_broken<T>(&self, number: u64, answer: Result<T, Error>) -> Result<T, Error> {
        let broken = match &answer {
            Err(Error::Timeout(_)) => true,
            Err(Error::Redis(error)) => is_broken(error),
            _ => false,
        };
        // Somebody else at the lock is making a newer one, or takes this one: then the next failure lets go of it.
        if broken
            && let Ok(mut commands) = self.commands.try_lock()
            && commands.number == number
        {
            commands.current = None;
        }
        answer
    }
}

/// Whether a connection with this error is not the one to talk to any more.
fn is_broken(error: &redis::RedisError) -> bool {
    // A server that has become a replica is another's by now: look the name up again.
    let replica = error.code() == Some("READONLY");
    error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() || replica
}

/// Waits for Redis, but not for ever.
pub(super) async fn deadline<T>(
    limit: Duration,
    answer: impl Future<Output = redis::RedisResult<T>>,
) -> Result<T, Error> {
    match timeout(limit, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
