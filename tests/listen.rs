//! `tidings listen`: what it prints, how it ends, and that it reconnects as a client does.

use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout};

use crate::cli::run;
use crate::support::{
    Gateway, Options, Proxy, RedisServer, SECRET, clean, eventually, sign_with, signal, token, within,
};

const SECRET_VARIABLE: (&str, &str) = ("TIDINGS_AUTH__HMAC_SECRET", SECRET);

/// A command that is running.
struct Listening {
    child: Child,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl Listening {
    /// Returns once it is connected.
    async fn start(args: &[&str]) -> Self {
        // A process inherits that the signal of a closed terminal is ignored, as by nohup.
        let mut command = clean("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_tidings"), "listen"]).args(args);
        command.envs([SECRET_VARIABLE]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        let stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut listening = Self { child, stdout, stderr };
        listening.says("connected to ws://").await;
        listening
    }

    /// Waits for this part of a line on standard error, and returns the line.
    async fn says(&mut self, part: &str) -> String {
        let mut before = Vec::new();
        loop {
            let line = within(part, self.stderr.next_line()).await.unwrap();
            let line = line.unwrap_or_else(|| panic!("{part:?} is not said: {before:?}"));
            if line.contains(part) {
                return line;
            }
            before.push(line);
        }
    }

    async fn line(&mut self) -> String {
        within("a line", self.stdout.next_line()).await.unwrap().expect("still printing")
    }

    async fn code(mut self) -> i32 {
        within("the command ends", self.child.wait()).await.unwrap().code().expect("not killed")
    }
}

#[tokio::test]
async fn listen_prints_each_event_as_one_line_of_json_and_ends_after_so_many() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let (url, address) = (format!("http://{}", gateway.public), gateway.public.to_string());
    let mut whole = Listening::start(&["42", "--count", "4", "--listen", &address]).await;
    let mut raw = Listening::start(&["42", "--count", "4", "--raw", "--url", &url]).await;
    for data in ["{\"a\":\n 1}", "null", "12345678901234567890"] {
        redis.publish_bytes(b"user:42", data.as_bytes()).await;
    }
    let path = "/v1/users/42/notifications";
    let stored = gateway.post(gateway.admin, path, r#"{"data":"é","event":"paid","durable":true}"#).await;
    let id: Value = serde_json::from_str(&stored.1).unwrap();
    for data in ["{\"a\":  1}", "null", "12345678901234567890"] {
        assert_eq!(whole.line().await, format!(r#"{{"type":"event","event":"notification","data":{data}}}"#));
        assert_eq!(raw.line().await, data);
    }
    let last: Value = serde_json::from_str(&whole.line().await).unwrap();
    assert_eq!((&last["id"], &last["event"], &last["data"]), (&id["id"], &"paid".into(), &"é".into()));
    assert_eq!(raw.line().await, "\"é\"");
    assert_eq!((whole.code().await, raw.code().await), (0, 0));
}

#[tokio::test]
async fn listen_ends_cleanly_on_a_signal_and_leaves_nobody_online() {
    let gateway = Options::dev().set("presence.offline_delay", "10ms").start().await;
    for name in ["INT", "TERM"] {
        let listening = Listening::start(&["42", "--url", &format!("ws://{}", gateway.public)]).await;
        signal(listening.child.id().unwrap(), name);
        assert_eq!(listening.code().await, 0, "SIG{name}");
        eventually("the user is offline", async || {
            gateway.get(gateway.admin, "/v1/presence/count").await.1 == r#"{"online":0}"#
        })
        .await;
    }
}

#[tokio::test]
async fn listen_says_goodbye_on_a_signal() {
    let gateway = Options::dev().set("log.level", "debug").start().await;
    let listening = Listening::start(&["42", "--url", &format!("ws://{}", gateway.public)]).await;
    signal(listening.child.id().unwrap(), "INT");
    assert_eq!(listening.code().await, 0);
    eventually("its end is logged", async || gateway.log().contains("connection closed")).await;
    assert!(!gateway.log().contains("code=1006"), "{}", gateway.log());
}

#[tokio::test]
async fn listen_ends_with_its_terminal() {
    let gateway = Gateway::dev().await;
    let mut listening = Listening::start(&["42", "--url", &format!("ws://{}", gateway.public)]).await;
    signal(listening.child.id().unwrap(), "HUP");
    let status = within("the command ends", listening.child.wait()).await.unwrap();
    assert_eq!(status.signal(), Some(1), "{status}");
}

#[tokio::test]
async fn listen_reconnects_and_resumes_after_its_last_stored_event() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let proxy = Proxy::start(gateway.public.port());
    let url = proxy.url().replace("redis", "ws");
    let store = async |data: u32| {
        let body = format!(r#"{{"data":{data},"durable":true}}"#);
        gateway.post(gateway.admin, "/v1/users/42/notifications", &body).await;
    };
    let address = url.trim_start_matches("ws://");
    eventually("the proxy listens", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
    let mut listening = Listening::start(&["42", "--count", "2", "--raw", "--url", &url]).await;
    store(1).await;
    assert_eq!(listening.line().await, "1");
    proxy.refuse();
    listening.says("connecting again").await;
    store(2).await;
    proxy.heal();
    let again = listening.says("connected to").await;
    assert!(again.contains("stored events that were missed follow"), "{again}");
    assert_eq!(listening.line().await, "2");
    assert_eq!(listening.code().await, 0);
}

#[tokio::test]
async fn listen_says_why_it_was_refused_or_closed_and_exits_with_1() {
    let gateway = Options::dev().set("auth.audience", "shop").start().await;
    let url = format!("ws://{}", gateway.public);
    let dir = TempDir::new().unwrap();
    let expired = sign_with(jsonwebtoken::Algorithm::HS256, SECRET, &serde_json::json!({"sub": "42", "exp": 1}));
    let file = dir.path().join("token");
    std::fs::write(&file, &expired).unwrap();
    let file = file.to_str().unwrap();
    for (args, said) in [
        (&["--url", &*url][..], "401: bad_token"),
        (&["--url", &url, "--token", &expired], "401"),
        (&["--url", &url, "--token-file", file], "401"),
        (&["--url", "ws://127.0.0.1:1"], "ws://127.0.0.1:1/ws"),
        (&["--url", &format!("{url}/nowhere?key=hunter2")], "404"),
    ] {
        let done = run(&[&["listen", "42"], args].concat(), &[SECRET_VARIABLE]).await;
        assert_eq!((done.code, &*done.stdout), (1, ""), "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(said) && !done.stderr.contains("hunter2"), "{args:?}: {}", done.stderr);
    }
    let mut listening = Listening::start(&["42", "--url", &url, "--set", "auth.audience=shop"]).await;
    gateway.ask_admin("DELETE", "/v1/users/42/connections", &[], "").await;
    listening.says("closed with 4011: disconnected").await;
    assert_eq!(listening.code().await, 1);
}

#[tokio::test]
async fn listen_refuses_wrong_arguments_with_2() {
    let gateway = Gateway::dev().await;
    let (url, others) = (format!("ws://{}", gateway.public), token("43"));
    for (args, said) in [
        (&["42", "--token", &*others, "--url", &*url][..], "\"43\""),
        (&["42", "--url", &url], "--token"),
        (&["42", "--url", "redis://127.0.0.1:1", "--token", &others], "--url ***"),
        (&["42", "--token", &others, "--token-file", "x"], "--token-file"),
        (&["42", "--token-file", "/does/not/exist"], "--token-file"),
        (&["42", "--count", "0", "--token", &others], "--count"),
        (&["42", "--listen", "127.0.0.1:0", "--token", &others], "--url"),
        (&["", "--token", &others], "USER"),
        (&["42", &others], "unexpected argument"),
    ] {
        let done = run(&[&["listen"], args].concat(), &[]).await;
        assert_eq!((done.code, &*done.stdout), (2, ""), "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(said), "{args:?}: {}", done.stderr);
    }
}
