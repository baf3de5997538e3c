//! A real Express (or Fastify) application with sessions in Redis, in Node.

use std::path::Path;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::http::{Answer, request};
use super::{RedisServer, within};

/// The running application; killed when dropped.
pub struct Express {
    port: u16,
    _child: Child,
}

/// A browser's session with it.
#[derive(Debug, Clone)]
pub struct Session {
    /// As the application knows it.
    pub id: String,
    /// `name=value`, as the browser sends it.
    pub cookie: String,
}

impl Express {
    /// With these secrets, separated by commas, and more of its environment.
    pub async fn start(redis: &RedisServer, secrets: &str, env: &[(&str, &str)]) -> Self {
        Self::run("app.mjs", redis, secrets, env).await
    }

    /// Fastify instead, with `@fastify/session` and the two options of docs/sessions.md.
    pub async fn fastify(redis: &RedisServer, secrets: &str) -> Self {
        Self::run("fastify.mjs", redis, secrets, &[]).await
    }

    async fn run(script: &str, redis: &RedisServer, secrets: &str, env: &[(&str, &str)]) -> Self {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/express");
        assert!(dir.join("node_modules").exists(), "tests/express is installed (scripts/setup)");
        let mut child = Command::new("node")
            .arg(script)
            .current_dir(dir)
            .env("REDIS_URL", redis.url())
            .env("SECRETS", secrets)
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node is installed (scripts/setup)");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = within("the application listens", lines.next_line()).await.unwrap().expect("its port");
        Self { port: line.parse().unwrap(), _child: child }
    }

    /// Begins a session, such as with `/login/42`.
    pub async fn begin(&self, path: &str) -> Session {
        Self::session_in(&self.ask("POST", path, "").await)
    }

    fn session_in(answer: &Answer) -> Session {
        let id = answer.json()["id"].as_str().unwrap().to_owned();
        Session { id, cookie: answer.header("set-cookie").split(';').next().unwrap().to_owned() }
    }

    /// As [`Express::begin`], with the cookie of an earlier session, for a request that replaces it.
    pub async fn follow(&self, session: &Session, path: &str) -> Session {
        Self::session_in(&self.ask("POST", path, &session.cookie).await)
    }

    /// Goes on with a session.
    pub async fn go_on(&self, session: &Session, method: &str, path: &str) -> Answer {
        self.ask(method, path, &session.cookie).await
    }

    async fn ask(&self, method: &str, path: &str, cookie: &str) -> Answer {
        let answer = request(([127, 0, 0, 1], self.port).into(), method, path, &[("Cookie", cookie)], "").await;
        assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
        answer
    }
}

impl Session {
    /// Its key in Redis.
    pub fn key(&self) -> String {
        format!("sess:{}", self.id)
    }
}
