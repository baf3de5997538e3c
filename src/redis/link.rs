//! The connection that carries commands to one server: it is made on first use, and again after a failure.
//!
//! Hand-written: redis-rs' `ConnectionManager` gives up after 6 retries by default and then stays unsubscribed
//! silently, and each command here needs its own deadline, retry pause and error kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Pipeline, RedisResult, Value, cmd, parse_redis_value, pipe};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Error;
use super::call::{Asking, Call};
use super::error::{is_missing_script, refuses_hashes};
use super::generation::Generation;
use super::node::Node;
use super::pipe::Pipe;
use super::server_info::ServerInfo;
use super::stream::CONNECT_DEADLINE;

pub(super) const COMMAND_DEADLINE: Duration = Duration::from_secs(2);

/// Pause after a failed connection attempt: until then, every command fails at once.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// The hash of no script.
const NO_SCRIPT: &str = "0000000000000000000000000000000000000000";

/// Numbers the connections of this process, from 1: each leads to one server.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
pub(super) struct Link {
    node: Arc<Node>,
    purpose: &'static str,
    deadline: Duration,
    is_piped: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Connection>,
    /// The last failure to connect, and the generation that it belongs to.
    failed: Option<(Instant, Generation, &'static str, String)>,
}

#[derive(Debug, Clone)]
struct Connection {
    carrier: Carrier,
    number: u64,
    /// Whether Redis accepts `EVALSHA`.
    by_hash: bool,
    /// The identity of the server that it leads to.
    server: Arc<str>,
    generation: Generation,
}

#[derive(Debug, Clone)]
enum Carrier {
    Library(MultiplexedConnection),
    /// For large replies, which the library parses slowly.
    Pipe(Pipe),
}

/// The replies to calls, in their order, and the number of the connection that carried them.
pub(super) struct Replies {
    pub(super) replies: Vec<RedisResult<Value>>,
    pub(super) connection: u64,
}

impl Link {
    pub(super) fn new(node: Arc<Node>, purpose: &'static str) -> Self {
        Self::with_deadline(node, purpose, COMMAND_DEADLINE)
    }

    /// With another deadline than [`COMMAND_DEADLINE`].
    pub(super) fn with_deadline(node: Arc<Node>, purpose: &'static str, deadline: Duration) -> Self {
        Self { node, purpose, deadline, is_piped: false, state: Mutex::default() }
    }

    /// For calls with large replies.
    pub(super) fn piped(node: Arc<Node>, purpose: &'static str) -> Self {
        Self { is_piped: true, ..Self::new(node, purpose) }
    }

    /// Runs calls in one pipeline; each may fail separately.
    pub(super) async fn run(&self, calls: &[Call<'_>], asking: Asking) -> Result<Replies, Error> {
        let mut connection = self.connection().await?;
        let number = connection.number;
        let mut generation = connection.generation.clone();
        let running = async move {
            match calls {
                [call] if asking == Asking::Owner => Ok(vec![connection.run_one(call).await]),
                _ => connection.run_all(calls, asking).await,
            }
        };
        let replies = generation.run(Box::pin(deadline(self.deadline, running))).await;
        self.forget_if_broken(number, &replies);
        Ok(Replies { replies: replies?, connection: number })
    }

    /// Callers wait while it is being established, and share its failure.
    async fn connection(&self) -> Result<Connection, Error> {
        let locked = timeout(CONNECT_DEADLINE, self.state.lock()).await;
        let mut state = locked.map_err(|_| Error::Timeout(CONNECT_DEADLINE))?;
        state.current.take_if(|connection| connection.generation.has_ended());
        if let Some(connection) = &state.current {
            return Ok(connection.clone());
        }
        if let Some((at, generation, kind, why)) = &state.failed
            && at.elapsed() < RETRY_AFTER
            && !generation.has_ended()
        {
            return Err(Error::Unreachable { kind, why: why.clone() });
        }
        let generation = self.node.generations.current();
        let connected = if self.is_piped { self.open_pipe().await } else { self.connect().await };
        match connected {
            Ok(connection) => {
                state.current = Some(connection.clone());
                Ok(connection)
            }
            Err(Error::Moved) => Err(Error::Moved),
            Err(error) => {
                state.failed = Some((Instant::now(), generation, error.kind(), error.to_string()));
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(self.deadline));
        let (client, mut generation) = self.node.client()?;
        let connecting = async {
            let connecting = client.get_multiplexed_async_connection_with_config(&config);
            let mut connection = deadline(CONNECT_DEADLINE, connecting).await?;
            let mut greeting = pipe();
            greeting.ignore_errors().cmd("CLIENT").arg("SETNAME").arg(self.node.connection_name(self.purpose));
            greeting.cmd("EVALSHA").arg(NO_SCRIPT).arg(0).cmd("INFO");
            let replies = deadline(COMMAND_DEADLINE, greeting.query_async(&mut connection)).await?;
            Ok((connection, replies))
        };
        let (redis, replies) = generation.run(Box::pin(connecting)).await?;
        let [name, hash, info]: [RedisResult<Value>; 3] = replies;
        match name {
            Err(error) if error.code() == Some("NOAUTH") => return Err(error.into()),
            // The name is a convenience: Redis may refuse it.
            _ => {}
        }
        let by_hash = !hash.is_err_and(|error| refuses_hashes(&error));
        let info = info.and_then(|info| Ok(Vec::<u8>::from_redis_value(info)?)).map_err(Error::from);
        let server = self.node.accept(ServerInfo::of_reply(info)?)?.identity;
        Ok(Connection::new(Carrier::Library(redis), by_hash, server, generation))
    }

    async fn open_pipe(&self) -> Result<Connection, Error> {
        let mut generation = self.node.generations.current();
        let connecting = async {
            let stream = timeout(CONNECT_DEADLINE, self.node.stream(self.purpose, 0)).await;
            let stream = stream.map_err(|_| Error::Timeout(CONNECT_DEADLINE))??;
            let server = Arc::clone(&stream.server().identity);
            let mut carrier = Carrier::Pipe(Pipe::new(stream));
            let mut probe = cmd("EVALSHA");
            probe.arg(NO_SCRIPT).arg(0);
            let hash = timeout(COMMAND_DEADLINE, carrier.ask(&probe, false)).await;
            match hash.map_err(|_| Error::Timeout(COMMAND_DEADLINE))? {
                Err(error) if error.code() == Some("NOAUTH") || error.is_io_error() => Err(error.into()),
                hash => Ok((carrier, !hash.is_err_and(|error| refuses_hashes(&error)), server)),
            }
        };
        let (carrier, by_hash, server) = generation.run(Box::pin(connecting)).await?;
        Ok(Connection::new(carrier, by_hash, server, generation))
    }

    /// Drops a failed connection, unless a newer one has replaced it.
    fn forget_if_broken(&self, number: u64, replies: &Result<Vec<RedisResult<Value>>, Error>) {
        let mut errors = replies.iter().flatten().filter_map(|reply| reply.as_ref().err());
        let broken = match &replies {
            Err(Error::Timeout(_)) => true,
            Err(Error::Redis(error)) => is_broken(error),
            Err(_) => false,
            Ok(_) => errors.clone().any(is_broken),
        };
        if errors.any(|error| error.code() == Some("READONLY")) {
            // It has become a replica: other connections may not notice.
            self.node.generations.end_if_used();
        }
        // If the lock is taken, a newer connection is being established, or the next failure drops this one.
        if broken && let Ok(mut state) = self.state.try_lock() {
            state.current.take_if(|connection| connection.number == number);
        }
    }
}

impl Carrier {
    /// `is_raw`: as [`Call::Raw`]; so below.
    async fn ask(&mut self, command: &Cmd, is_raw: bool) -> RedisResult<Value> {
        match self {
            Self::Library(redis) => redis.req_packed_command(command).await.and_then(Value::extract_error),
            Self::Pipe(pipe) => {
                let replies = pipe.ask(command.get_packed_command(), 1).await?;
                replies.into_iter().next().map_or(Ok(Value::Nil), |reply| value(reply, is_raw))
            }
        }
    }

    async fn ask_all(&mut self, commands: &Pipeline, is_raw: bool) -> RedisResult<Vec<RedisResult<Value>>> {
        match self {
            Self::Library(redis) => commands.query_async(redis).await,
            Self::Pipe(pipe) => {
                let replies = pipe.ask(commands.get_packed_pipeline(), commands.len()).await?;
                Ok(replies.into_iter().map(|reply| value(reply, is_raw)).collect())
            }
        }
    }
}

fn value(reply: Vec<u8>, is_raw: bool) -> RedisResult<Value> {
    if is_raw && !reply.starts_with(b"-") {
        return Ok(Value::BulkString(reply));
    }
    parse_redis_value(&reply)?.extract_error()
}

impl Connection {
    fn new(carrier: Carrier, by_hash: bool, server: Arc<str>, generation: Generation) -> Self {
        let number = CONNECTIONS.fetch_add(1, Ordering::Relaxed) + 1;
        Self { carrier, number, by_hash, server, generation }
    }

    async fn run_one(&mut self, call: &Call<'_>) -> RedisResult<Value> {
        if self.by_hash && call.script().is_some() {
            match self.carrier.ask(&call.command(true, &self.server), false).await {
                Err(error) if is_missing_script(&error) => {}
                reply => return reply,
            }
        }
        self.carrier.ask(&call.command(false, &self.server), call.is_raw()).await
    }

    /// The first call of each script carries its source, which costs little beside many calls: retrying only those that
    /// miss the script would break their order.
    async fn run_all(&mut self, calls: &[Call<'_>], asking: Asking) -> RedisResult<Vec<RedisResult<Value>>> {
        let mut replies = self.run_pipeline(calls, asking, self.by_hash).await?;
        let misses = |reply: &RedisResult<Value>| reply.as_ref().is_err_and(is_missing_script);
        if let Some(first) = replies.iter().position(misses)
            && replies.iter().skip(first).all(misses)
            && let Some(missed) = calls.get(first..)
        {
            // The call with the source was refused for its keys, so none of those after it has run.
            replies.truncate(first);
            replies.extend(self.run_pipeline(missed, asking, false).await?);
        }
        Ok(replies)
    }

    async fn run_pipeline(
        &mut self,
        calls: &[Call<'_>],
        asking: Asking,
        by_hash: bool,
    ) -> RedisResult<Vec<RedisResult<Value>>> {
        let (mut commands, mut sent) = (Pipeline::with_capacity(calls.len()), Vec::new());
        commands.ignore_errors();
        for call in calls {
            let by_hash = by_hash && call.script().is_some_and(|script| sent.contains(&script.hash()));
            sent.extend(call.script().filter(|_| !by_hash).map(|script| script.hash()));
            if asking != Asking::Owner {
                commands.cmd("ASKING");
            }
            let command = match asking {
                Asking::Alone => call.alone(&self.server),
                Asking::Owner | Asking::Target => call.command(by_hash, &self.server),
            };
            commands.add_command(command.into_owned());
        }
        let replies = self.carrier.ask_all(&commands, calls.iter().all(Call::is_raw)).await?;
        let step = if asking == Asking::Owner { 1 } else { 2 };
        Ok(replies.into_iter().skip(step - 1).step_by(step).collect())
    }
}

/// Whether the connection must be replaced after this error.
fn is_broken(error: &redis::RedisError) -> bool {
    // The server has become a replica: resolve the host name again to find the master. Or it has begun to refuse
    // `EVALSHA`: find out at the next connection.
    let replica = error.code() == Some("READONLY");
    let other_calls = refuses_hashes(error);
    error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() || replica || other_calls
}

async fn deadline<T>(limit: Duration, reply: impl Future<Output = redis::RedisResult<T>>) -> Result<T, Error> {
    match timeout(limit, reply).await {
        Ok(reply) => Ok(reply?),
        Err(_) => Err(Error::Timeout(limit)),
    }
}
