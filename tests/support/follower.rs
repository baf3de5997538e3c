//! A client of a cluster for the tests: it knows no slots, but learns them as it is redirected.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, ServerErrorKind};
use tokio::time::{sleep, timeout};

use super::cluster::key_slot;
use super::within;

/// How long a node may take for one command before another is tried.
const ATTEMPT: Duration = Duration::from_secs(2);

/// See the module; clones share what they have learned.
#[derive(Clone)]
pub struct Follower(Arc<Mutex<Known>>);

struct Known {
    /// The nodes.
    urls: Vec<String>,
    /// The nodes that slots were found at.
    owners: HashMap<u16, String>,
    connections: HashMap<String, MultiplexedConnection>,
}

impl Follower {
    pub(super) fn new(urls: Vec<String>) -> Self {
        Self(Arc::new(Mutex::new(Known { urls, owners: HashMap::new(), connections: HashMap::new() })))
    }

    pub(super) fn add(&self, url: String) {
        self.0.lock().unwrap().urls.push(url);
    }

    /// Runs a command at the owner of its first key, again and again until it succeeds: after an attempt whose answer
    /// was lost it may run twice.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let succeeding = async {
            loop {
                match self.attempt(words).await {
                    Ok(answer) => return answer,
                    Err(error) if passes(&error) => sleep(Duration::from_millis(50)).await,
                    Err(error) => panic!("{words:?}: {error}"),
                }
            }
        };
        within("an answer of the cluster", succeeding).await
    }

    /// As [`Follower::command`], once; redirections are followed.
    pub async fn attempt<T: FromRedisValue>(&self, words: &[&str]) -> RedisResult<T> {
        let slot = key_slot(key(words));
        let mut url = self.owner(slot);
        let mut asking = false;
        // Two nodes may name each other for a moment.
        for _ in 0..5 {
            let error = match self.ask_node(&url, words, asking).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some((address, _)) = error.redirect_node() else {
                self.forget(slot, &url);
                return Err(error);
            };
            asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
            url = self.url_of(address);
            if !asking {
                self.0.lock().unwrap().owners.insert(slot, url.clone());
            }
        }
        Err(RedisError::from((ErrorKind::Server(ServerErrorKind::TryAgain), "redirected too often")))
    }

    /// Where the slot was found; otherwise any node.
    fn owner(&self, slot: u16) -> String {
        let known = self.0.lock().unwrap();
        known.owners.get(&slot).unwrap_or_else(|| &known.urls[fastrand::usize(..known.urls.len())]).clone()
    }

    fn url_of(&self, address: &str) -> String {
        let known = self.0.lock().unwrap();
        known.urls.iter().find(|url| url.ends_with(address)).expect("a node of this cluster").clone()
    }

    fn forget(&self, slot: u16, url: &str) {
        let mut known = self.0.lock().unwrap();
        known.owners.remove(&slot);
        known.connections.remove(url);
    }

    async fn ask_node<T: FromRedisValue>(&self, url: &str, words: &[&str], asking: bool) -> RedisResult<T> {
        let late = || RedisError::from((ErrorKind::Io, "no answer in time"));
        let attempt = async {
            let mut connection = self.connection(url).await?;
            let mut command = Cmd::new();
            command.arg(words);
            if !asking {
                return command.query_async(&mut connection).await;
            }
            let mut pipeline = redis::pipe();
            pipeline.cmd("ASKING").ignore().add_command(command);
            let (answer,) = pipeline.query_async(&mut connection).await?;
            Ok(answer)
        };
        timeout(ATTEMPT, attempt).await.unwrap_or_else(|_| Err(late()))
    }

    async fn connection(&self, url: &str) -> RedisResult<MultiplexedConnection> {
        if let Some(connection) = self.0.lock().unwrap().connections.get(url) {
            return Ok(connection.clone());
        }
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?;
        self.0.lock().unwrap().connections.insert(url.to_owned(), connection.clone());
        Ok(connection)
    }
}

/// The first key of a command, or a word that does for one that has no key.
fn key<'a>(words: &[&'a str]) -> &'a str {
    let place = match words[0].to_ascii_uppercase().as_str() {
        "EVAL" | "EVALSHA" => 3,
        "XGROUP" | "XINFO" | "OBJECT" | "MEMORY" => 2,
        _ => 1,
    };
    words.get(place).copied().unwrap_or_default()
}

/// Whether another attempt may succeed.
fn passes(error: &RedisError) -> bool {
    let code = error.code().unwrap_or_default();
    error.is_io_error()
        || ["MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "LOADING", "READONLY", "MASTERDOWN"].contains(&code)
}
