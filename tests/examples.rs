//! The examples, as separate processes against a real instance.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::support::{
    Gateway, Options, RedisServer, clean, eventually, free_port, http, output, secrets, signal, token, within,
};

/// An example. `cargo test` builds them only if no test is named.
fn example(name: &str, args: &[&str]) -> Command {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_tidings")).with_file_name("examples").join(name);
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name).with_extension("rs");
    let modified = |path: &PathBuf| std::fs::metadata(path).and_then(|file| file.modified()).ok();
    assert!(modified(&path) >= modified(&source), "{} is missing or old: cargo build --examples", path.display());
    let mut command = clean(path.to_str().unwrap());
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running example, and what it prints.
struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that begins so.
    async fn line(&mut self, start: &str) -> String {
        within(start, async {
            loop {
                let line = self.lines.next_line().await.unwrap();
                let line = line.unwrap_or_else(|| panic!("the example ended before it printed {start:?}"));
                secrets::check("the output of an example", &line);
                if line.starts_with(start) {
                    break line;
                }
            }
        })
        .await
    }
}

async fn publish(redis: &RedisServer) {
    let published = output(example("publisher", &[&redis.url(), "42"])).await;
    assert!(published.status.success(), "{published:?}");
}

/// On this port, so that a client finds it there again after a restart.
async fn gateway_at(redis: &RedisServer, port: u16) -> Gateway {
    Options::redis(redis).set("server.listen", &format!("127.0.0.1:{port}")).start().await
}

#[tokio::test]
async fn the_subscriber_prints_what_the_publisher_sent_and_resumes_after_a_crash_of_the_instance() {
    let redis = RedisServer::start().await;
    let port = free_port();
    let mut gateway = gateway_at(&redis, port).await;
    let mut command = example("subscriber", &[&format!("ws://127.0.0.1:{port}/ws")]);
    command.env("TOKEN", token("42"));
    let mut subscriber = Running::start(command);
    subscriber.line("connected as \"42\", recovered: false").await;

    publish(&redis).await;
    subscriber.line("event \"notification\": {\"text\":\"a message came\"}").await;
    subscriber.line("event \"payment\": {").await;

    gateway.kill().await;
    subscriber.line("disconnected").await;
    publish(&redis).await;
    let gateway = gateway_at(&redis, port).await;
    subscriber.line("connected as \"42\", recovered: true").await;
    // The ephemeral one of the second run is lost, the durable one is not.
    let next = within("an event", subscriber.lines.next_line()).await.unwrap().unwrap();
    assert!(next.starts_with("event \"payment\": {"), "{next}");
    eventually("it acknowledges", async || {
        let path = "/v1/users/42/read-position?device=default";
        let (_, position) = gateway.get(gateway.admin, path).await;
        serde_json::from_str::<Value>(&position).unwrap()["unread"] == 0
    })
    .await;
}

#[tokio::test]
async fn the_subscriber_gives_up_on_a_close_code_of_40xx() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut command = example("subscriber", &[&format!("ws://{}/ws", gateway.public)]);
    command.env("TOKEN", token("42"));
    let mut subscriber = Running::start(command);
    subscriber.line("connected as \"42\"").await;
    redis.publish_bytes(b"tidings:control", br#"{"disconnect":{"user":"42"}}"#).await;
    let status = within("the subscriber ends", subscriber.child.wait()).await.unwrap();
    let mut errors = String::new();
    subscriber.child.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
    assert!(!status.success() && errors.contains("closed with 4011"), "{errors}");
}

#[tokio::test]
async fn the_embedded_gateway_takes_a_notification_and_stops_at_ctrl_c() {
    let mut embedded = Running::start(example("embedded", &[]));
    embedded.line("demo page: http://127.0.0.1:").await;
    let publish = embedded.line("publish:").await;
    let (_, url) = publish.rsplit_once(' ').unwrap();
    let request = http().post(url).header("content-type", "application/json").body(r#"{"data":"hello"}"#);
    assert!(within("an answer", request.send()).await.unwrap().status().is_success());
    signal(embedded.child.id().unwrap(), "INT");
    assert!(within("it ends", embedded.child.wait()).await.unwrap().success());
}
