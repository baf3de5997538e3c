//! Instances as separate processes.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tidings::internals::{Metrics, MetricsFormat};
use tokio::process::{Child, Command};

use super::http::{Answer, request};
use super::token::SECRET;
use super::{Authority, RedisServer, eventually, openapi, secrets, within};

/// How an instance is started: `serve` with the suite's secret, on free ports, unless configured otherwise.
pub struct Options {
    args: Vec<String>,
    env: Vec<(String, String)>,
    /// A TLS client configuration that trusts its certificate.
    https: Option<reqwest::Client>,
    ulimit: Option<String>,
}

impl Options {
    /// On this Redis.
    pub fn redis(redis: &RedisServer) -> Self {
        Self::redis_at(&redis.url())
    }

    /// On the Redis at this URL.
    pub fn redis_at(url: &str) -> Self {
        Self::bare().arg("--redis-url").arg(url)
    }

    /// `--dev`, on the memory backplane.
    pub fn dev() -> Self {
        Self::bare().arg("--dev")
    }

    /// Nothing but the secret and free ports.
    pub fn bare() -> Self {
        let args = ["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
        let bare = Self { args: args.map(str::to_owned).to_vec(), env: Vec::new(), https: None, ulimit: None }
            .env("TIDINGS_AUTH__HMAC_SECRET", SECRET)
            .set("drain.window", "200ms");
        // For the whole suite in another mode: see CONTRIBUTING.md.
        match std::env::var("TIDINGS_TEST_SUBSCRIBE") {
            Ok(mode) => bare.set("redis.subscribe", &mode),
            Err(_) => bare,
        }
    }

    /// Without a key to verify tokens, unless `--dev` generates one.
    pub fn without_secret(mut self) -> Self {
        self.env.retain(|(name, _)| name != "TIDINGS_AUTH__HMAC_SECRET");
        self
    }

    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a configuration key; the last value wins.
    pub fn set(self, key: &str, value: &str) -> Self {
        self.arg("--set").arg(&format!("{key}={value}"))
    }

    /// On TLS, with a certificate of this authority and its key.
    pub fn tls(self, authority: &Authority, [certificate, key]: &[PathBuf; 2]) -> Self {
        let path = |path: &PathBuf| path.to_str().unwrap().to_owned();
        self.trust(authority).set("server.tls_cert_file", &path(certificate)).set("server.tls_key_file", &path(key))
    }

    /// Its configuration has a certificate of this authority.
    pub fn trust(mut self, authority: &Authority) -> Self {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(authority.ca_file()).unwrap()).unwrap();
        let client = reqwest::Client::builder().tls_certs_only([ca]).pool_max_idle_per_host(0);
        self.https = Some(client.build().unwrap());
        self
    }

    /// Under a limit of the shell: `-n 80`, `-S -n 80`.
    pub fn ulimit(mut self, limit: &str) -> Self {
        self.ulimit = Some(limit.to_owned());
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Gateway {
        let gateway = self.start_unready().await;
        gateway.ready().await;
        gateway
    }

    /// Starts it and waits until its listeners accept.
    pub async fn start_unready(self) -> Gateway {
        secrets::keep_args(self.args.iter().map(String::as_str));
        self.env.iter().for_each(|(name, value)| secrets::keep_setting(name, value));
        let dir = TempDir::new().unwrap();
        let (ready_file, log) = (dir.path().join("ready.json"), dir.path().join("log"));
        let stdout = std::fs::File::create(dir.path().join("stdout")).unwrap();
        let mut child = command_under(self.ulimit.as_deref())
            .args(&self.args)
            .arg("--ready-file")
            .arg(&ready_file)
            .envs(self.env)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        eventually("the instance listens", async || {
            let ended = child.try_wait().unwrap();
            assert!(ended.is_none(), "the instance ended: {}", std::fs::read_to_string(&log).unwrap());
            ready_file.exists()
        })
        .await;
        let ready: Value = serde_json::from_slice(&std::fs::read(&ready_file).unwrap()).unwrap();
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Gateway {
            public: address("public"),
            admin: address("admin"),
            instance: ready["instance"].as_str().unwrap().to_owned(),
            https: self.https,
            child,
            dir,
        }
    }
}

/// One running instance; killed when dropped.
pub struct Gateway {
    pub public: SocketAddr,
    pub admin: SocketAddr,
    pub instance: String,
    https: Option<reqwest::Client>,
    child: Child,
    dir: TempDir,
}

impl Gateway {
    pub async fn redis(redis: &RedisServer) -> Self {
        Options::redis(redis).start().await
    }

    pub async fn dev() -> Self {
        Options::dev().start().await
    }

    pub async fn ready(&self) {
        eventually("the instance is ready", async || self.get(self.public, "/readyz").await.0 == 200).await;
    }

    pub async fn not_ready(&self) {
        eventually("the instance is not ready", async || self.get(self.public, "/readyz").await.0 == 503).await;
    }

    /// The status and the body of a GET on one of its listeners.
    pub async fn get(&self, listener: SocketAddr, path: &str) -> (u16, String) {
        let asking = match &self.https {
            None => http().get(format!("http://{listener}{path}")),
            Some(https) => https.get(format!("https://{listener}{path}")),
        };
        let answer = within(path, asking.send()).await.unwrap();
        self.text(listener, "GET", path, "", answer).await
    }

    /// A POST of JSON to one of its listeners.
    pub async fn post(&self, listener: SocketAddr, path: &str, body: &str) -> (u16, String) {
        let request = http().post(format!("http://{listener}{path}"));
        let request = request.header("content-type", "application/json").body(body.to_owned());
        let answer = within(path, request.send()).await.unwrap();
        self.text(listener, "POST", path, body, answer).await
    }

    /// Any request to its public listener.
    pub async fn ask_public(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        request(self.public, method, path, headers, body.to_owned()).await
    }

    /// Any request to its admin listener.
    pub async fn ask_admin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let answer = request(self.admin, method, path, headers, body.to_owned()).await;
        openapi::check(method, path, body, &answer);
        answer
    }

    async fn text(
        &self,
        listener: SocketAddr,
        method: &str,
        path: &str,
        sent: &str,
        answer: reqwest::Response,
    ) -> (u16, String) {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let answer = Answer { status, headers, body: answer.text().await.unwrap() };
        if status >= 400 {
            secrets::check(&format!("the {status} of {path}"), &answer.body);
        }
        if listener == self.admin {
            openapi::check(method, path, sent, &answer);
        }
        (status, answer.body)
    }

    /// Waits until this many greeted connections are open: a raw client gets no `welcome` to wait for.
    pub async fn connections(&self, count: u64) {
        eventually("the connections are open", async || {
            let (_, info) = self.get(self.admin, "/v1/info").await;
            serde_json::from_str::<Value>(&info).unwrap()["connections"] == count
        })
        .await;
    }

    /// One metric's value, by its whole name with labels; 0 where it was never counted.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get(self.admin, "/metrics").await;
        check_series(&text);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("still running")
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends a signal by name: `TERM`, `INT`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        signal(self.pid(), name);
    }

    /// Waits for its end.
    pub async fn exit(&mut self) -> ExitStatus {
        within("the instance ends", self.child.wait()).await.unwrap()
    }

    /// The path of its `--ready-file`.
    pub fn ready_file(&self) -> PathBuf {
        self.dir.path().join("ready.json")
    }

    /// Its whole output.
    pub fn stdout(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("stdout")).unwrap()
    }

    /// Its whole log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Gateway {
    /// Its output must not contain a secret.
    fn drop(&mut self) {
        self.child.start_kill().ok();
        secrets::check("the log of an instance", &self.log());
        secrets::check("the output of an instance", &self.stdout());
    }
}

/// Requires that every series was there from the start: Prometheus cannot see the first increase of one that appears.
fn check_series(text: &str) {
    fn series(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.rsplit_once(' ')?.0))
    }
    static KNOWN: LazyLock<BTreeSet<String>> =
        LazyLock::new(|| series(&Metrics::new().render(MetricsFormat::Text)).map(str::to_owned).collect());
    let with_tls = "tidings_certificate_expiry_timestamp_seconds";
    let new = series(text).find(|name| !KNOWN.contains(*name) && *name != with_tls);
    assert_eq!(new, None, "a series that is not there from the start: see src/metrics.rs");
}

/// One client for all tests, because creating one is slow; it keeps no connection, which would belong to one test.
pub fn http() -> &'static reqwest::Client {
    static CLIENT: LazyLock<reqwest::Client> =
        LazyLock::new(|| reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build().unwrap());
    &CLIENT
}

/// The `tidings` binary with arguments, killed when dropped, in an environment without configuration.
pub fn command(args: &[&str]) -> Command {
    let mut command = clean(env!("CARGO_BIN_EXE_tidings"));
    command.args(args);
    command
}

/// A program in an environment without configuration, killed when dropped.
pub fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TIDINGS_")) {
        command.env_remove(name);
    }
    command.kill_on_drop(true);
    command
}

/// As [`command`], under a limit of the shell.
fn command_under(ulimit: Option<&str>) -> Command {
    let Some(ulimit) = ulimit else { return command(&[]) };
    let mut limited = clean("sh");
    limited.args(["-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_tidings")]);
    limited
}

/// Runs a command that ends by itself.
pub async fn output(mut command: Command) -> Output {
    let settings = command.as_std().get_envs();
    settings.for_each(|(name, value)| secrets::keep_setting(utf8(name), value.map_or("", utf8)));
    secrets::keep_args(command.as_std().get_args().map(utf8));
    let output = within("the command ends", command.output()).await.unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    if command.as_std().get_args().any(|arg| arg == "token") {
        secrets::keep_token(&stdout);
    } else {
        secrets::check("what a command prints", &stdout);
    }
    secrets::check("what a command says", &stderr);
    output
}

fn utf8(text: &OsStr) -> &str {
    text.to_str().unwrap_or_default()
}

pub fn signal(pid: u32, name: &str) {
    let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
    // The kernel delivers it before `kill` returns, but a stopped process may still be finishing a system call.
    std::thread::sleep(Duration::from_millis(10));
}
