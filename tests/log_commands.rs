//! The commands with which the pages search the log find lines in the log of an instance.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;

use crate::support::{Client, Gateway, Options, RedisServer, clean, eventually, handshake, token, within};

const PAGES: [&str; 3] =
    [include_str!("../docs/operations.md"), include_str!("../docs/runbook.md"), include_str!("../docs/deploy.md")];

/// The commands of the pages that read the log from this program: each with its options, and what follows the first `|`.
fn commands(program: &str) -> Vec<(&'static str, &'static str)> {
    let lines = PAGES.iter().flat_map(|page| page.lines()).filter(|line| line.starts_with(program));
    lines.map(|line| line.split_once(" | ").unwrap_or_else(|| panic!("searches for nothing: {line}"))).collect()
}

/// An instance whose log has what the pages look for: user 42 was refused, disconnected and sent a message that was dropped,
/// and the configuration was reloaded.
async fn eventful(redis: &RedisServer, format: &str) -> Gateway {
    let options = Options::redis(redis).set("log.format", format).set("log.level", "debug");
    let gateway = options.set("limits.max_connections_per_user", "1").start().await;
    let _only = Client::connect(&gateway, "42").await.answering();
    let bearer = format!("Bearer {}", token("42"));
    let second = handshake(gateway.public, "/ws", &[("Authorization", &bearer)]).await;
    assert_eq!(second.err().map(|refused| refused.status), Some(429));
    redis.publish("42", "no JSON").await;
    eventually("it is dropped", async || gateway.log().contains("message dropped")).await;
    gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await;
    gateway.signal("HUP");
    for message in ["connection closed", "configuration reloaded"] {
        eventually(message, async || gateway.log().contains(message)).await;
    }
    gateway
}

/// Each line of the log that the rest of a command prints.
async fn found(log: &str, rest: &str) -> String {
    let mut shell = clean("sh");
    shell.args(["-c", rest]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = shell.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(log.as_bytes()).await.unwrap();
    drop(stdin);
    String::from_utf8(within("the search ends", child.wait_with_output()).await.unwrap().stdout).unwrap()
}

#[tokio::test]
async fn the_commands_of_the_pages_find_lines_in_a_log_of_text_and_of_json() {
    let redis = RedisServer::start().await;
    for (program, format, before) in [
        ("journalctl ", "text", "Jan 02 15:04:05 gateway1 tidings[123]: "),
        ("kubectl logs ", "json", "[pod/tidings-7d4b9c-x2x7q/tidings] "),
    ] {
        let log = eventful(&redis, format).await.log();
        let log: String = log.lines().map(|line| format!("{before}{line}\n")).collect();
        let commands = commands(program);
        assert!(commands.len() >= 4, "{commands:?}");
        for (options, rest) in commands {
            // Without it, the last ten lines of each pod.
            assert!(format == "text" || options.contains("--tail=-1"), "{options}");
            assert!(!found(&log, rest).await.is_empty(), "{options} | {rest} finds nothing in:\n{log}");
        }
    }
}
