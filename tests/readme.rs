//! Snippets of README.md, run as they stand.

use std::path::Path;
use std::process::Stdio;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::support::{RedisServer, within};

#[tokio::test]
async fn the_node_snippet_publishes_and_its_process_ends() {
    let redis = RedisServer::start().await;
    let mut published = redis.subscribe("user:42").await;
    let mut blocks =
        include_str!("../README.md").split("```js\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let snippet = blocks.find(|block| block.contains("from 'redis'")).expect("a snippet for Node");
    let script = snippet.replace("redis://127.0.0.1:6379", &redis.url());
    assert_ne!(script, snippet, "the snippet names Redis's default port");

    // Standard input is a module of the current directory, whose packages it imports.
    let mut child = Command::new("node")
        .arg("--input-type=module")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/express"))
        .stdin(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("node is installed (scripts/setup)");
    let mut input = child.stdin.take().unwrap();
    input.write_all(script.as_bytes()).await.unwrap();
    drop(input);
    assert_eq!(published.next().await, json!({"text": "hello from Node"}));
    assert!(within("the process ends", child.wait()).await.unwrap().success());
}
