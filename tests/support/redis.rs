//! A redis-server of the test's own.

use std::process::Stdio;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, FromRedisValue};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::{eventually, within};

/// A real redis-server on a free port of loopback; killed when dropped.
pub struct RedisServer {
    port: u16,
    dir: TempDir,
    extra: Vec<String>,
    child: Child,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With more arguments, such as `["--requirepass", "x"]`.
    pub async fn start_with(extra: &[&str]) -> Self {
        let port = free_port();
        let dir = TempDir::new().unwrap();
        let extra: Vec<String> = extra.iter().map(|arg| (*arg).to_owned()).collect();
        let child = spawn(port, &dir, &extra);
        let server = Self { port, dir, extra, child };
        server.answering().await;
        server
    }

    async fn answering(&self) {
        eventually("redis-server answers", async || {
            tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()
        })
        .await;
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it. What it held is gone, since it saves nothing.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Starts it again on the same port, empty.
    pub async fn restart(&mut self) {
        self.kill().await;
        self.child = spawn(self.port, &self.dir, &self.extra);
        self.answering().await;
    }

    /// SIGSTOP: it keeps its connections and answers nothing.
    pub fn freeze(&self) {
        super::gateway::signal(self.child.id().unwrap(), "STOP");
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        super::gateway::signal(self.child.id().unwrap(), "CONT");
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        let client = redis::Client::open(self.url()).unwrap();
        within("a connection to redis", client.get_multiplexed_async_connection()).await.unwrap()
    }

    /// Runs one command, such as `["SMEMBERS", "online_users"]`.
    pub async fn command<T: FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = Cmd::new();
        for word in words {
            command.arg(word);
        }
        let mut connection = self.connection().await;
        within("an answer of redis", command.query_async(&mut connection)).await.unwrap()
    }

    /// Publishes for a user; gives how many subscribers heard it.
    pub async fn publish(&self, user: &str, payload: &str) -> u64 {
        self.command(&["PUBLISH", &format!("user:{user}"), payload]).await
    }

    /// The plain set that backends ask, sorted.
    pub async fn online(&self) -> Vec<String> {
        let mut users: Vec<String> = self.command(&["SMEMBERS", "online_users"]).await;
        users.sort();
        users
    }
}

fn spawn(port: u16, dir: &TempDir, extra: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(dir.path())
        .args(extra)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is installed (scripts/setup)")
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
