//! The command line: each command's effect, output and exit code; and that no command prints a secret.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{
    Authority, Client, Gateway, Options, RedisServer, SECRET, command, eventually, handshake, lone_node, now, output,
    refused, sign_with, token, within,
};

const SECRET_VARIABLE: (&str, &str) = ("TIDINGS_AUTH__HMAC_SECRET", SECRET);

/// A secret that must never be printed, wherever it is given.
const HIDDEN: &str = "hunter2";

pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command that ends by itself.
pub async fn run(args: &[&str], env: &[(&str, &str)]) -> Done {
    let mut command = command(args);
    command.envs(env.iter().copied()).stdin(Stdio::null());
    let Output { status, stdout, stderr } = output(command).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Done { code: status.code().expect("not killed"), stdout: text(stdout), stderr: text(stderr) }
}

/// A port that refuses connections for as long as the socket lives: bound, and not listening.
pub fn closed_port() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

fn write(dir: &TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Runs an invalid command: it exits 2, names each of these on standard error, prints nothing else and no secret.
async fn is_refused(args: &[&str], env: &[(&str, &str)], named: &[&str]) {
    let done = run(args, env).await;
    assert_eq!(done.code, 2, "{args:?} {env:?}: {}{}", done.stdout, done.stderr);
    for part in named {
        assert!(done.stderr.contains(part), "{part:?} is not named: {args:?} {env:?}: {}", done.stderr);
    }
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    assert!(!(done.stdout + &done.stderr).contains(HIDDEN), "a secret was printed: {args:?} {env:?}: {}", done.stderr);
}

#[tokio::test]
async fn a_wrong_command_line_exits_with_2() {
    for args in [
        &[][..],
        &["nonsense"],
        &["serve", "--nonsense"],
        &["serve", "surplus"],
        &["serve", "--listen"],
        &["serve", "--set", "presence.lease"],
        &["serve", "--config", "/does/not/exist.toml"],
        &["token"],
        &["token", ""],
        &["token", "a\nb"],
        &["token", "42", "--ttl", "soon"],
        &["publish", "42"],
        &["publish", "42", "{no json}"],
        &["publish", "42", ""],
        &["publish", "42", "1 2"],
        &["publish", "", "{}"],
        &["publish", "a\nb", "{}"],
        &["publish", "42", "{}", "--admin", "nonsense"],
        &["check-config", "--set", "no.such=key"],
    ] {
        is_refused(args, &[SECRET_VARIABLE], &[]).await;
    }
}

#[tokio::test]
async fn the_version_names_the_commit_that_was_built() {
    let done = run(&["--version"], &[]).await;
    let expected = format!("tidings {} ({})\n", env!("CARGO_PKG_VERSION"), tidings::COMMIT);
    assert_eq!((done.code, done.stdout), (0, expected));
    if std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists() {
        let mut git = tokio::process::Command::new("git");
        git.args(["rev-parse", "--verify", "--quiet", &format!("{}^{{commit}}", tidings::COMMIT)]);
        assert!(output(git).await.status.success(), "{} is not a commit", tidings::COMMIT);
    }
}

#[tokio::test]
async fn without_a_way_to_verify_a_token_nothing_starts_and_the_keys_that_would_do_are_named() {
    for args in [&["serve"][..], &["check-config"], &["token", "42"]] {
        is_refused(args, &[], &["auth.hmac_secret", "auth.hmac_secret_file"]).await;
    }
}

#[tokio::test]
async fn what_is_unknown_or_wrong_is_refused_by_name_before_any_socket_is_opened() {
    let dir = TempDir::new().unwrap();
    // If it tried to listen, the exit status would be 1.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let unknown = write(&dir, "unknown.toml", "[server]\nlistn = \"127.0.0.1:1\"\n");
    let section = write(&dir, "section.toml", "[sever]\nlisten = \"127.0.0.1:1\"\n");
    let renamed = write(&dir, "renamed.toml", "[outbox]\nmax_messages = 256\n");
    let wrong = write(&dir, "wrong.toml", "[presence]\nlease = \"soon\"\n");
    for (args, env, named) in [
        (&["--config", &*unknown][..], ("", ""), &["server.listn", "server.listen", "unknown.toml"][..]),
        (&["--config", &*section], ("", ""), &["sever.listen"]),
        (&["--config", &*wrong], ("", ""), &["presence.lease", "soon", "12s"]),
        (&[], ("TIDINGS_SERVER__LISTN", "127.0.0.1:1"), &["TIDINGS_SERVER__LISTN"]),
        (&[], ("TIDINGS_NONSENSE", ""), &["TIDINGS_NONSENSE"]),
        (&[], ("TIDINGS_", "x"), &["TIDINGS_"]),
        (&[], ("TIDINGS_SERVER__HEARTBEAT", "5"), &["server.heartbeat", "\"5\"", "12s"]),
        (&[], ("TIDINGS_AUTH__QUERY_TOKEN", "yes"), &["auth.query_token", "yes", "true or false"]),
        (&[], ("TIDINGS_REDIS__URL", "http://127.0.0.1"), &["redis.url", "not such a URL", "redis://"]),
        (&["--set", "send_queue.slow_client=wait"], ("", ""), &["send_queue.slow_client", "wait", "drop_oldest"]),
        (&["--set", "outbox.max_bytes=1"], ("", ""), &["--set", "did you mean send_queue.max_bytes"]),
        (&[], ("TIDINGS_OUTBOX__MAX_BYTES", "1"), &["TIDINGS_OUTBOX__MAX_BYTES", "did you mean send_queue.max_bytes"]),
        (&["--config", &*renamed], ("", ""), &["renamed.toml", "did you mean send_queue.max_messages"]),
        (&["--set", "send_queue.max_bytes=-1"], ("", ""), &["send_queue.max_bytes", "-1"]),
        (&["--admin-listen", "localhost"], ("", ""), &["server.admin_listen", "localhost", "127.0.0.1:8080"]),
        (&["--log-level", "loud"], ("", ""), &["log.level", "loud", "trace"]),
        (&["--log-format", "xml"], ("", ""), &["log.format", "xml", "text", "json"]),
        (
            &["--set", "server.allowed_origins=https://a.example/x"],
            ("", ""),
            &["server.allowed_origins", "a.example/x"],
        ),
        (
            &["--set", "server.allowed_origins=https://a.example:443"],
            ("", ""),
            &["server.allowed_origins", "a.example:443", "without the default port"],
        ),
        (&["--set", "presence.no_such=1"], ("", ""), &["presence.no_such", "presence.lease"]),
    ] {
        for command in ["serve", "check-config"] {
            let args = [&[command, "--listen", &taken], args].concat();
            let env: Vec<_> = [SECRET_VARIABLE, env].into_iter().filter(|(name, _)| !name.is_empty()).collect();
            is_refused(&args, &env, named).await;
        }
    }
}

#[tokio::test]
async fn a_refusal_says_what_was_given_whatever_the_rule() {
    for (flags, named) in [
        (["--set", "auth.leeway=2d", "--set", "log.level=info"], ["auth.leeway", "2d", "1d"]),
        (
            ["--listen", "127.0.0.1:5", "--admin-listen", "127.0.0.1:5"],
            ["server.listen", "admin_listen", "127.0.0.1:5"],
        ),
    ] {
        is_refused(&[&["check-config"][..], &flags].concat(), &[SECRET_VARIABLE], &named).await;
    }
}

#[tokio::test]
async fn a_file_that_a_key_names_is_looked_for_before_any_socket_is_opened() {
    for key in ["redis.ca_file", "auth.hmac_secret_file", "admin.api_key_file"] {
        let setting = format!("{key}=/does/not/exist");
        let flags = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--redis-url", "rediss://127.0.0.1:1"];
        for command in ["check-config", "serve"] {
            let args = [&[command, "--set", &setting][..], &flags].concat();
            let env = [SECRET_VARIABLE];
            let env = if key.starts_with("auth") { &[][..] } else { &env };
            // Of the file of a secret, only the key: the secret itself may have been given instead.
            let shown = if key == "redis.ca_file" { "/does/not/exist" } else { "No such file" };
            is_refused(&args, env, &[key, shown, "--set"][..if key == "redis.ca_file" { 2 } else { 3 }]).await;
        }
    }
}

#[tokio::test]
async fn authorities_that_cannot_be_used_are_refused_before_any_socket_is_opened() {
    let (dir, authority) = (TempDir::new().unwrap(), Authority::new());
    // If it tried to listen, the exit status would be 1.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let [_, key] = authority.certificate(&["127.0.0.1"]);
    let key = std::fs::read_to_string(key).unwrap();
    let around = |text: &str| format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n");
    for (text, why) in [
        (String::new(), "no certificate"),
        (HIDDEN.to_owned(), "no certificate"),
        (key, "no certificate"),
        (around("AAAA"), "cannot be read"),
        (around(&format!("{HIDDEN}!")), "not a PEM"),
        (format!("-----BEGIN CERTIFICATE-----\n{HIDDEN}\n"), "not a PEM"),
        (format!("-----BEGIN {HIDDEN}\n"), "not a PEM"),
    ] {
        let file = write(&dir, "authorities.pem", &text);
        let setting = format!("redis.ca_file={file}");
        for command in ["check-config", "serve"] {
            let args = [command, "--listen", &taken, "--redis-url", "rediss://127.0.0.1:1", "--set", &setting];
            is_refused(&args, &[SECRET_VARIABLE], &["redis.ca_file", &file, why, "expected a PEM file"]).await;
        }
    }
    // A value that is found invalid only where it is used is an invalid configuration too.
    let setting = format!("redis.ca_file={}", authority.ca_file().display());
    let plain = ["--redis-url", "redis://127.0.0.1:1", "--set", &setting];
    for command in [&["serve", "--listen", &taken][..], &["publish", "42", "{}"]] {
        is_refused(&[command, &plain].concat(), &[SECRET_VARIABLE], &["redis.ca_file", "rediss://"]).await;
    }
}

#[tokio::test]
async fn a_refusal_shows_no_secret() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str, text: &str| write(&dir, name, text);
    let files = [
        file("integer.toml", "[auth]\nhmac_secret = [\"hunter2\"]\n"),
        file("unquoted.toml", "[auth]\nhmac_secret = hunter2\n"),
        file("open.toml", "[auth]\nhmac_secret = \"hunter2\n"),
        file("twice.toml", "[auth]\nhmac_secret = \"hunter2\"\nhmac_secret = \"hunter2\"\n"),
        file("misspelt.toml", "[auth]\nhmac_sekret = \"hunter2\"\n"),
        file("keys.toml", "[admin]\napi_keys = \"hunter2\"\n"),
        file("list.toml", "[redis]\nurl = [\"redis://app:hunter2@127.0.0.1\"]\n"),
    ];
    for path in &files {
        is_refused(&["check-config", "--config", path], &[], &[path]).await;
    }
    is_refused(&["check-config", "--set", "hunter2"], &[SECRET_VARIABLE], &["--set"]).await;
    let empty = file("empty", "");
    let both = [SECRET_VARIABLE, ("TIDINGS_AUTH__HMAC_SECRET_FILE", &empty)];
    is_refused(&["check-config"], &both, &["auth.hmac_secret_file"]).await;
    for url in ["ftp://app:hunter2@127.0.0.1", "redis://app:hunter2@127.0.0.1:port", "redis://:hun/hunter2@127.0.0.1:x"]
    {
        is_refused(&["check-config", "--redis-url", url], &[SECRET_VARIABLE], &["redis.url"]).await;
    }
}

#[tokio::test]
async fn the_password_of_an_admin_listener_does_not_show() {
    for url in [
        "ftp://ops:hunter2@127.0.0.1",
        "ops:hunter2@127.0.0.1",
        "https://ops:hunter2@127.0.0.1:port",
        "ftp://127.0.0.1/hunter2",
        "http://h,password=hunter2",
    ] {
        is_refused(&["publish", "42", "{}", "--admin", url], &[SECRET_VARIABLE], &["--admin", "http://127.0.0.1:9090"])
            .await;
    }
    let gateway = Gateway::dev().await;
    let url = format!("http://ops:{HIDDEN}@{}", gateway.admin);
    let done = run(&["publish", "42", "{}", "--admin", &url], &[]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.contains(&format!("http://{}/", gateway.admin)), "{}", done.stdout);
}

#[tokio::test]
async fn the_password_of_a_url_without_a_scheme_does_not_show_either() {
    for url in ["app:hunter2@127.0.0.1:6379", "redis:/app:hunter2@127.0.0.1:6379", "redis:app:hunter2@127.0.0.1"] {
        is_refused(&["check-config", "--redis-url", url], &[SECRET_VARIABLE], &["redis.url"]).await;
    }
}

#[tokio::test]
async fn of_a_url_that_cannot_be_used_nothing_shows_that_may_be_a_secret_wherever_it_is_given() {
    let dir = TempDir::new().unwrap();
    let redis = [
        "h:6380,password=hunter2,ssl=True",
        "redis://h/0?password=hunter2",
        "redis://h/0#hunter2",
        "rediss://h/0#insecure-hunter2",
        "redis://app:63/hunter2@127.0.0.1",
        "redis://app:63?hunter2@127.0.0.1",
        "redis://app:63#hunter2@127.0.0.1",
        "unix:///run/redis.sock?password=hunter2",
        "redis+hunter2://127.0.0.1?",
        "redis://h:6379/0,password=hunter2",
        "redis://h:6379/password=hunter2",
        "redis://h:6379/0;hunter2",
        "redis://h,password=hunter2",
        "redis://h&password=hunter2",
        "redis://password=hunter2",
        "redis://h%2Chunter2:6379",
        "rediss://[::1,hunter2]",
        "foo://h/hunter2",
        "redis+sentinel://app:hunter2@h1:26379,h2:26379",
        "redis+sentinel://app:hunter2@h1,app:hunter2@h2/mymaster",
        "rediss+sentinel://app:hunter2@h1,,h2/mymaster",
        "redis+sentinel://h1/mymaster,password=hunter2",
        "redis+sentinel://app:63/hunter2@h1/mymaster",
        "redis+cluster://hunter2@h1:6379",
        "redis+cluster://app:hunter2@h1:6379,h2:6379/1",
        "rediss+cluster://h1:6379?password=hunter2",
        "redis-cluster://app:hunter2@h1:6379",
        "hunter2",
    ];
    let jwks = [
        "issuer.example/keys?key=hunter2",
        "http://issuer.example/keys?key=hunter2",
        "https://issuer.example/keys?key=k#hunter2",
        "https://issuer.example:port/?key=hunter2",
        "ftp://issuer.example/keys?key=hunter2",
        "ftp://issuer.example/hunter2",
        "https://issuer.example,key=hunter2",
        "https://key=hunter2/keys",
        "https://issuer.example&hunter2/keys",
        "hunter2",
    ];
    let cases = redis.map(|url| ("redis.url", url)).into_iter().chain(jwks.map(|url| ("auth.jwks_url", url)));
    for (key, url) in cases {
        let (section, name) = key.split_once('.').unwrap();
        let file = write(&dir, "tidings.toml", &format!("[{section}]\n{name} = {url:?}\n"));
        let (setting, variable) =
            (format!("{key}={url}"), format!("TIDINGS_{}", key.replace('.', "__").to_uppercase()));
        is_refused(&["check-config", "--config", &file], &[SECRET_VARIABLE], &[key, "tidings.toml"]).await;
        is_refused(&["serve", "--set", &setting], &[SECRET_VARIABLE], &[key, "--set"]).await;
        is_refused(&["check-config"], &[SECRET_VARIABLE, (&variable, url)], &[key, &variable]).await;
        if key == "redis.url" {
            let file = write(&dir, "url", url);
            is_refused(&["publish", "42", "{}", "--redis-url", url], &[SECRET_VARIABLE], &[key]).await;
            is_refused(&["check-config"], &[SECRET_VARIABLE, ("TIDINGS_REDIS__URL_FILE", &file)], &[key, &file]).await;
        }
    }
    for (url, part) in [("redis://h/0?password=hunter2", "query"), ("rediss://h/0#insecure", "fragment")] {
        is_refused(&["check-config", "--redis-url", url], &[SECRET_VARIABLE], &["redis.url", part]).await;
    }
    let keys = ("TIDINGS_AUTH__JWKS_URL", "https://issuer.example/keys?key=hunter2");
    let (config, text) = checked(&[], &[keys]).await;
    assert_eq!(config["auth"]["jwks_url"].as_str(), Some("https://issuer.example/keys"));
    assert!(!text.contains(HIDDEN), "{text}");
}

#[tokio::test]
async fn of_the_url_of_sentinels_or_of_a_cluster_only_scheme_hosts_ports_and_path_show() {
    for (given, shown) in [
        ("redis+sentinel://app:hunter2@h1,h2:5000/mymaster/1", "redis+sentinel://h1:26379,h2:5000/mymaster/1"),
        ("rediss+cluster://:hunter2@h1,[::1]:7000", "rediss+cluster://h1:6379,[::1]:7000"),
    ] {
        let (config, text) = checked(&["--redis-url", given], &[SECRET_VARIABLE]).await;
        assert_eq!(config["redis"]["url"].as_str(), Some(shown));
        assert!(!text.contains(HIDDEN), "{text}");
    }
}

#[tokio::test]
async fn the_password_in_the_path_of_a_usable_url_does_not_show() {
    let socket = ("TIDINGS_REDIS__URL", "unix:///run/redis.sock,password=hunter2");
    let keys = ("TIDINGS_AUTH__JWKS_URL", "https://issuer.example/keys;key=hunter2");
    let (_, text) = checked(&[], &[SECRET_VARIABLE, socket, keys]).await;
    assert!(text.contains("https://issuer.example/***") && !text.contains(HIDDEN), "{text}");
}

#[tokio::test]
async fn a_secret_given_for_another_key_does_not_show() {
    let pem = "-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n";
    let (url, options) = ("redis://:hunter2@h", "h:6380,password=hunter2,ssl=True");
    for (key, given) in [
        ("server.tls_key_file", pem),
        ("server.tls_key_file", "-----BEGIN PRIVATE KEY----- hunter2"),
        ("server.tls_cert_file", pem),
        ("redis.key_file", pem),
        ("redis.cert_file", url),
        ("redis.ca_file", url),
        ("redis.ca_file", pem),
        ("auth.public_key_file", pem),
        ("auth.jwks_ca_file", url),
        ("auth.hmac_secret_file", HIDDEN),
        ("auth.hmac_secret_file", pem),
        ("auth.session_secret_file", HIDDEN),
        ("admin.api_key_file", HIDDEN),
        ("admin.api_keys.billing_file", HIDDEN),
        ("redis.url_file", url),
        ("redis.url_file", "redis://hunter2"),
        ("server.listen", options),
        ("server.listen", pem),
        ("server.listen", "redis://app:hunter2"),
        ("presence.lease", url),
        ("log.level", options),
        ("server.allowed_origins", "https://app:hunter2/x"),
    ] {
        let other = match key {
            "server.tls_key_file" => "server.tls_cert_file=/dev/null",
            "server.tls_cert_file" => "server.tls_key_file=/dev/null",
            "redis.key_file" => "redis.cert_file=/dev/null",
            "redis.cert_file" => "redis.key_file=/dev/null",
            _ => "log.format=text",
        };
        let variable = format!("TIDINGS_{}", key.replace('.', "__").to_uppercase());
        let env = [SECRET_VARIABLE, (&variable, given)];
        let env = if key.starts_with("auth.hmac") { &env[1..] } else { &env[..] };
        is_refused(&["check-config", "--set", other], env, &[key]).await;
    }
    for flag in ["--config", "--ready-file"] {
        let path = format!("/does/not/exist/{url}");
        let done =
            run(&["serve", "--dev", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", flag, &path], &[]).await;
        assert!(done.code != 0 && done.stderr.contains(flag) && !done.stderr.contains(HIDDEN), "{}", done.stderr);
    }
}

#[tokio::test]
async fn a_secret_among_the_arguments_or_in_place_of_a_key_does_not_show() {
    let url = "redis://:hunter2@h";
    let (set, assigned, misspelt) = (format!("{url}?x=1"), format!("--redis-ulr={url}"), format!("--{url}"));
    for (args, named) in [
        (&["serve", url][..], "unexpected argument"),
        (&["check-config", "--set", "redis.url", url], "unexpected argument"),
        (&["check-config", "--set", "auth.hmac_secret", HIDDEN], "unexpected argument"),
        (&["check-config", &assigned], "--redis-ulr"),
        (&["check-config", &misspelt], "unexpected argument"),
        (&["publish", "42", "{}", url], "unexpected argument"),
        (&["token", "42", "--ttl", url], "--ttl"),
        (&["load", "--users", url], "--users"),
        (&[url], "unrecognized subcommand"),
        (&["check-config", "--set", &set], "--set"),
    ] {
        is_refused(args, &[], &[named]).await;
    }
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "tidings.toml", &format!("[redis]\n\"{url}\" = 1\n"));
    is_refused(&["check-config", "--config", &file], &[SECRET_VARIABLE], &["unknown key ***", "tidings.toml"]).await;
    let variable = format!("TIDINGS_{url}");
    is_refused(&["check-config"], &[SECRET_VARIABLE, (&variable, "1")], &["unknown key ***"]).await;
    // What cannot be a secret is named.
    is_refused(&["serve", "surplus"], &[], &["surplus"]).await;
    is_refused(&["serve", "--nonsense"], &[], &["--nonsense"]).await;
}

#[tokio::test]
async fn a_variable_names_the_configuration_file_unless_a_flag_does() {
    let dir = TempDir::new().unwrap();
    let [first, second] = ["20s", "30s"].map(|lease| {
        let text = format!("[presence]\nlease = \"{lease}\"\n");
        write(&dir, lease, &text)
    });
    let named = ("TIDINGS_CONFIG", &*first);
    for (args, lease) in [(&[][..], "20s"), (&["--config", &second], "30s")] {
        let (config, _) = checked(args, &[SECRET_VARIABLE, named]).await;
        assert_eq!(config["presence"]["lease"].as_str(), Some(lease));
    }
    for missing in ["/does/not/exist.toml", ""] {
        is_refused(&["serve"], &[SECRET_VARIABLE, ("TIDINGS_CONFIG", missing)], &["TIDINGS_CONFIG", missing]).await;
    }
}

#[tokio::test]
async fn an_unknown_key_or_variable_is_refused_with_the_nearest_known_name() {
    for (name, meant) in [
        ("TIDINGS_SERVER__LISTN", "did you mean server.listen (TIDINGS_SERVER__LISTEN)"),
        ("TIDINGS_REDIS_URL", "did you mean redis.url (TIDINGS_REDIS__URL)"),
        ("TIDINGS_LOG_LEVEL", "did you mean log.level (TIDINGS_LOG__LEVEL)"),
        ("TIDINGS_HMAC_SECRET_FILE", "did you mean auth.hmac_secret_file (TIDINGS_AUTH__HMAC_SECRET_FILE)"),
        ("TIDINGS_CONFIGS", "did you mean TIDINGS_CONFIG"),
        ("TIDINGS_CONFIGURATION", "known keys are"),
    ] {
        is_refused(&["check-config"], &[SECRET_VARIABLE, (name, "x")], &[name, meant]).await;
    }
    is_refused(&["check-config", "--set", "presence.laese=1s"], &[SECRET_VARIABLE], &["did you mean presence.lease"])
        .await;
    is_refused(&["check-config", "--set", "hunter2@redis.url=x"], &[SECRET_VARIABLE], &["unknown key ***"]).await;
}

#[tokio::test]
async fn a_variable_that_is_not_utf8_is_refused_by_name_and_its_value_does_not_show() {
    let latin1 = |text: &str| OsString::from_vec([text.as_bytes(), b"\xe9"].concat());
    for (name, value) in [
        ("TIDINGS_AUTH__HMAC_SECRET".into(), latin1(HIDDEN)),
        ("TIDINGS_LOG__FORMAT".into(), latin1("text")),
        (latin1("TIDINGS_LOG__FORMAT"), "text".into()),
    ] {
        let mut command = command(&["check-config"]);
        command.envs([SECRET_VARIABLE]).env(&name, &value).stdin(Stdio::null());
        let Output { status, stderr, .. } = output(command).await;
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(2), "{name:?}: {stderr}");
        assert!(stderr.contains(&*name.to_string_lossy()) && stderr.contains("UTF-8"), "{stderr}");
        assert!(!stderr.contains(HIDDEN), "{stderr}");
    }
    // A variable of another program is ignored.
    let mut command = command(&["check-config"]);
    command.envs([SECRET_VARIABLE]).env("OTHER", latin1("x")).stdin(Stdio::null());
    assert!(output(command).await.status.success());
}

#[tokio::test]
async fn a_host_may_be_any_name_or_address() {
    for host in ["redis", "redis_1", "Redis-0.redis.svc.cluster.local.", "127.0.0.1", "[2001:db8::1]"] {
        let url = format!("redis://app:hunter2@{host}:6379/1");
        let (config, _) = checked(&[], &[SECRET_VARIABLE, ("TIDINGS_REDIS__URL", &url)]).await;
        assert_eq!(config["redis"]["url"].as_str(), Some(&*format!("redis://{host}:6379/1")));
    }
}

#[tokio::test]
async fn an_admin_listener_off_loopback_needs_a_key() {
    let off_loopback = ["check-config", "--admin-listen", "0.0.0.0:0"];
    is_refused(&off_loopback, &[SECRET_VARIABLE], &["server.admin_listen", "0.0.0.0:0", "admin.api_key"]).await;
    is_refused(&["serve", "--admin-listen", "[::]:0"], &[SECRET_VARIABLE], &["admin.api_key"]).await;
    assert_eq!(run(&off_loopback, &[SECRET_VARIABLE, ("TIDINGS_ADMIN__API_KEY", "key")]).await.code, 0);
}

#[tokio::test]
async fn a_development_instance_listens_on_loopback_only() {
    let key = ("TIDINGS_ADMIN__API_KEY", "key");
    for (flag, name) in [("--listen", "server.listen"), ("--admin-listen", "server.admin_listen")] {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            is_refused(&["serve", "--dev", flag, address], &[key], &[name, address, "loopback"]).await;
        }
    }
}

#[tokio::test]
async fn what_cannot_be_done_exits_with_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let (_socket, closed) = closed_port();
    let (admin, redis) = (format!("http://{closed}"), format!("redis://app:{HIDDEN}@{closed}"));
    let admin_with_password = format!("http://ops:{HIDDEN}@{closed}");
    let guarded = Options::dev().set("admin.api_key", "key").start().await;
    let guarded = format!("http://{}", guarded.admin);
    for (args, named) in [
        (&["serve", "--dev", "--listen", &*taken, "--admin-listen", "127.0.0.1:0"][..], &*taken),
        (&["serve", "--dev", "--listen", "127.0.0.1:0", "--admin-listen", &taken], &taken),
        (&["publish", "42", "{}", "--redis-url", &redis], &closed),
        (&["publish", "42", "{}", "--durable", "--redis-url", &redis], &closed),
        (&["publish", "42", "{}", "--admin", &admin], &admin),
        (&["publish", "42", "{}", "--admin", &admin_with_password], &closed),
        (&["publish", "42", "{}", "--admin", &guarded], "401"),
    ] {
        let done = run(args, &[]).await;
        assert_eq!(done.code, 1, "{args:?}: {}", done.stderr);
        assert!(done.stderr.contains(named), "{args:?}: {}", done.stderr);
        assert!(!done.stderr.contains(HIDDEN), "{args:?}: {}", done.stderr);
        assert_eq!(done.stdout, "", "nothing was done, so nothing is printed");
    }
}

#[tokio::test]
async fn an_answer_that_nobody_can_read_exits_with_1() {
    let redis = RedisServer::start().await;
    for args in [&["token", "42"][..], &["check-config"], &["publish", "42", "{}", "--redis-url", &redis.url()]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = command(args);
        command.envs([SECRET_VARIABLE]).stdout(full).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let Output { status, stderr, .. } = within("the command ends", child.wait_with_output()).await.unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}: {}", String::from_utf8_lossy(&stderr));
    }
}

/// The configuration as `check-config` prints it, which is TOML.
async fn checked(args: &[&str], env: &[(&str, &str)]) -> (toml::Table, String) {
    let done = run(&[&["check-config"], args].concat(), env).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    (done.stdout.parse().unwrap_or_else(|error| panic!("{error}: {}", done.stdout)), done.stdout)
}

#[tokio::test]
async fn flags_win_over_the_environment_and_that_over_the_file() {
    let dir = TempDir::new().unwrap();
    let text = "[server]\nheartbeat = \"1s\"\npong_timeout = \"1s\"\nhello_timeout = \"1s\"\n\
                allowed_origins = [\"https://a.example\"]\n[limits]\nmax_inbound_bytes = 5\n\
                [auth]\nquery_token = true\n";
    let file = write(&dir, "tidings.toml", text);
    let env = [
        SECRET_VARIABLE,
        ("TIDINGS_SERVER__PONG_TIMEOUT", "2s"),
        ("TIDINGS_SERVER__HELLO_TIMEOUT", "2s"),
        ("TIDINGS_SERVER__LISTEN", "127.0.0.1:2"),
    ];
    let flags = ["--set", "server.hello_timeout=3s", "--listen", "127.0.0.1:3", "--config", &file];
    let (config, _) = checked(&flags, &env).await;
    let server = config["server"].as_table().unwrap();
    for (key, value) in [
        ("heartbeat", "1s"),
        ("pong_timeout", "2s"),
        ("hello_timeout", "3s"),
        ("listen", "127.0.0.1:3"),
        ("handshake_timeout", "10s"),
    ] {
        assert_eq!(server[key].as_str(), Some(value), "{key}");
    }
    assert_eq!(server["allowed_origins"].as_array().map(Vec::len), Some(1));
    assert_eq!(config["limits"]["max_inbound_bytes"].as_integer(), Some(5));
    assert_eq!(config["auth"]["query_token"].as_bool(), Some(true));
}

#[tokio::test]
async fn check_config_prints_everything_with_secrets_masked() {
    let env = [
        ("TIDINGS_AUTH__HMAC_SECRET", "hunter2 hmac"),
        ("TIDINGS_AUTH__PREVIOUS_HMAC_SECRET", "hunter2 previous"),
        ("TIDINGS_ADMIN__API_KEY", "hunter2 key"),
        ("TIDINGS_ADMIN__API_KEYS__BILLING", "hunter2 billing"),
        ("TIDINGS_REDIS__URL", "rediss://app:hunter2@redis.example:6380/3"),
    ];
    let (config, text) = checked(&[], &env).await;
    assert!(!text.contains(HIDDEN), "{text}");
    let url = config["redis"]["url"].as_str().unwrap();
    assert_eq!(url, "rediss://redis.example:6380/3");
    for (section, key) in [("auth", "hmac_secret"), ("auth", "previous_hmac_secret"), ("admin", "api_key")] {
        assert!(config[section].as_table().unwrap().contains_key(key), "{section}.{key} is shown as given: {text}");
    }
    assert!(text.contains("billing"), "{text}");
    let defaults = [("presence", "lease", "10s"), ("drain", "window", "8s"), ("redis", "prefix", "tidings:")];
    for (section, key, value) in defaults {
        assert_eq!(config[section][key].as_str(), Some(value), "{section}.{key}");
    }
}

#[tokio::test]
async fn the_password_of_a_unix_socket_is_masked_too() {
    let url = ("TIDINGS_REDIS__URL", "unix:///run/redis.sock?db=1&user=app&pass=hunter2");
    let (_, text) = checked(&[], &[SECRET_VARIABLE, url]).await;
    assert!(text.contains("/run/redis.sock") && !text.contains(HIDDEN), "{text}");
}

#[tokio::test]
async fn a_secret_may_come_from_a_file_beside_its_key() {
    let dir = TempDir::new().unwrap();
    let secret = write(&dir, "secret", "a secret of the file, long enough\n");
    let previous = write(&dir, "previous", "the one before it, also long enough\n");
    let key = write(&dir, "key", "the key of the file\n");
    let gateway = Options::dev()
        .without_secret()
        .env("TIDINGS_AUTH__HMAC_SECRET_FILE", &secret)
        .set("auth.previous_hmac_secret_file", &previous)
        .set("admin.api_key_file", &key)
        .start()
        .await;
    for secret in ["a secret of the file, long enough", "the one before it, also long enough"] {
        let token = sign_with(Algorithm::HS256, secret, &json!({"sub": "42", "exp": now() + 60}));
        Client::connect_with_token(&gateway, &token).await;
    }
    let bearer = [("Authorization", "Bearer the key of the file")];
    assert_eq!(gateway.ask_admin("GET", "/v1/info", &bearer, "").await.status, 200);
    assert_eq!(gateway.ask_admin("GET", "/v1/info", &[], "").await.status, 401);
    is_refused(
        &["check-config", "--set", "auth.hmac_secret_file=/does/not/exist"],
        &[],
        &["auth.hmac_secret_file", "--set"],
    )
    .await;
}

#[tokio::test]
async fn a_short_secret_is_warned_of_while_it_verifies() {
    let gateway = Options::dev().env("TIDINGS_AUTH__PREVIOUS_HMAC_SECRET", "too short a secret").start().await;
    let log = gateway.log();
    assert!(log.contains("auth.previous_hmac_secret is shorter than 32 bytes"), "{log}");
    assert!(!log.contains("auth.hmac_secret is shorter"), "{log}");
}

#[tokio::test]
async fn a_named_api_key_may_come_from_a_file_and_the_path_is_no_key() {
    let dir = TempDir::new().unwrap();
    let key = write(&dir, "key", "the key of the file\n");
    let gateway = Options::dev().env("TIDINGS_ADMIN__API_KEYS__BILLING_FILE", &key).start().await;
    let ask = async |key: &str| {
        let bearer = format!("Bearer {key}");
        gateway.ask_admin("GET", "/v1/info", &[("Authorization", &bearer)], "").await.status
    };
    assert_eq!(ask(&key).await, 401, "the name of a file is no secret");
    assert_eq!(ask("the key of the file").await, 200);
}

#[tokio::test]
async fn token_prints_a_token_that_works_and_lives_as_long_as_asked_for_and_nothing_else() {
    let flags = ["--set", "auth.issuer=us", "--set", "auth.audience=gateway"];
    let gateway = Options::dev().set("auth.issuer", "us").set("auth.audience", "gateway").start().await;
    for (user, ttl, seconds) in
        [("42", &[][..], 3_600), ("Zoë ☂", &["--ttl", "90s"], 90), ("a:b", &["--ttl", "7d"], 604_800)]
    {
        let before = now();
        let done = run(&[&["token", user], ttl, &flags].concat(), &[SECRET_VARIABLE]).await;
        assert_eq!(done.code, 0, "{}", done.stderr);
        let token = done.stdout.strip_suffix('\n').expect("one line");
        assert!(token.split('.').count() == 3 && !token.contains(char::is_whitespace), "{token}");
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_audience(&["gateway"]);
        let claims =
            decode::<Value>(token, &DecodingKey::from_secret(SECRET.as_bytes()).unwrap(), &validation).unwrap().claims;
        let exp = claims["exp"].as_u64().unwrap();
        assert!((before + seconds..=now() + seconds).contains(&exp), "{claims}");
        assert_eq!(Client::connect_with_token(&gateway, token).await.1["user"], user);
    }
}

/// Users whose id must be encoded in a path, and their payloads, which must arrive unchanged.
const AWKWARD: [(&str, &str); 9] = [
    ("42", "{}"),
    ("a/b?c", r#"{"n":1}"#),
    ("a#b&c=d", "null"),
    ("100%", "1"),
    ("%2F", "\"text\""),
    ("a b+c", "[1,2]"),
    ("Zoë ☂ 𝄞", r#"{"s":"é"}"#),
    ("user:42", "true"),
    ("*", "1.5"),
];

#[tokio::test]
async fn publish_reaches_the_user_through_redis() {
    let redis = RedisServer::start_with(&["--requirepass", HIDDEN]).await;
    let url = redis.url();
    let gateway = Options::bare().arg("--redis-url").arg(&url).start().await;
    let spaced = ("7", r#"{ "n" : 123456789012345678901234567890, "b":1, "a":2 }"#);
    for (user, data) in AWKWARD.into_iter().chain([spaced]) {
        let mut client = Client::connect(&gateway, user).await;
        let done = run(&["publish", user, data], &[("TIDINGS_REDIS__URL", &url)]).await;
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(!(done.stdout + &done.stderr).contains(HIDDEN));
        assert_eq!(
            client.text().await,
            format!(r#"{{"type":"event","event":"notification","data":{data}}}"#),
            "{user}"
        );
    }
}

#[tokio::test]
async fn publish_reaches_the_user_through_an_admin_listener_with_and_without_a_key() {
    let open = Gateway::dev().await;
    let guarded = Options::dev().set("admin.api_key", "key").start().await;
    let named = Options::dev().env("TIDINGS_ADMIN__API_KEYS__SHOP", "shop's").start().await;
    for (gateway, env) in [
        (&open, &[][..]),
        (&guarded, &[("TIDINGS_ADMIN__API_KEY", "key")]),
        (&named, &[("TIDINGS_ADMIN__API_KEYS__SHOP", "shop's")]),
    ] {
        // A Redis that is configured but must not be used.
        let env = [env, &[("TIDINGS_REDIS__URL", "redis://127.0.0.1:1")]].concat();
        for (user, data) in AWKWARD {
            let mut client = Client::connect(gateway, user).await;
            let done = run(&["publish", user, data, "--admin", &format!("http://{}/", gateway.admin)], &env).await;
            assert_eq!(done.code, 0, "{user}: {}", done.stderr);
            assert_eq!(client.frame().await["data"], serde_json::from_str::<Value>(data).unwrap(), "{user}");
        }
    }
}

#[tokio::test]
async fn publish_durable_stores_byte_for_byte_and_prints_the_id() {
    let redis = RedisServer::start().await;
    let gateway = Options::redis(&redis).set("admin.api_key", "key").start().await;
    let [url, admin] = [redis.url(), format!("http://{}", gateway.admin)];
    let data = r#"{ "n" : 123456789012345678901234567890, "b":1, "a":2 }"#;
    for (way, to) in [("--redis-url", &url), ("--admin", &admin)] {
        for (user, path) in [("42", "42"), ("a/b?c é%2e", "a%2Fb%3Fc%20%C3%A9%252e")] {
            let args = ["publish", user, data, "--durable", way, to];
            let done = run(&args, &[("TIDINGS_ADMIN__API_KEY", "key")]).await;
            assert_eq!(done.code, 0, "{args:?}: {}", done.stderr);
            let path = format!("/v1/users/{path}/notifications");
            let listed = gateway.ask_admin("GET", &path, &[("Authorization", "Bearer key")], "").await;
            assert!(listed.body.contains(&format!(r#""data":{data},"#)), "{args:?}: {listed:?}");
            let id = listed.json()["notifications"].as_array().unwrap().last().unwrap()["id"].clone();
            assert!(done.stdout.trim_end().ends_with(id.as_str().unwrap()), "{id} in {}", done.stdout);
        }
    }
    let dots = run(&["publish", "..", "1", "--durable", "--admin", &admin], &[]).await;
    assert_eq!(dots.code, 2, "no path names it: {}", dots.stderr);
    redis.config_set("maxmemory", "1").await;
    for (way, to) in [("--redis-url", &url), ("--admin", &admin)] {
        let done = run(&["publish", "42", "1", "--durable", way, to], &[("TIDINGS_ADMIN__API_KEY", "key")]).await;
        assert_eq!(done.code, 1, "{way}: {}", done.stdout);
        assert!(done.stderr.contains("OOM"), "{way}: {}", done.stderr);
    }
}

#[tokio::test]
async fn publish_with_a_collapse_key_replaces_the_earlier_notification() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let [url, admin] = [redis.url(), format!("http://{}", gateway.admin)];
    for (data, way, to) in [("1", "--redis-url", &url), ("2", "--admin", &admin), ("3", "--redis-url", &url)] {
        let done = run(&["publish", "42", data, "--durable", "--collapse", "chat \"7\"", way, to], &[]).await;
        assert_eq!(done.code, 0, "{}", done.stderr);
        let listed = gateway.listed("42", 10).await;
        assert_eq!(listed.iter().map(|listed| listed.data.as_str()).collect::<Vec<_>>(), [data]);
    }
    let long = "k".repeat(129);
    for wrong in [&["--collapse", "k"][..], &["--durable", "--collapse", ""], &["--durable", "--collapse", &long]] {
        let done = run(&[&["publish", "42", "1", "--redis-url", &url], wrong].concat(), &[]).await;
        assert_eq!(done.code, 2, "{wrong:?}: {}", done.stderr);
    }
}

#[tokio::test]
async fn publish_without_redis_finds_the_configured_admin_listener() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let done = run(&["publish", "42", "1", "--admin-listen", &gateway.admin.to_string()], &[]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn a_number_below_zero_is_an_argument_as_good_as_any() {
    let gateway = Gateway::dev().await;
    let admin = format!("http://{}", gateway.admin);
    let mut client = Client::connect(&gateway, "-7").await;
    for dashes in [&["--"][..], &[]] {
        let done = run(&[&["publish", "--admin", &admin], dashes, &["-7", "-1.5"]].concat(), &[]).await;
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(client.event().await, -1.5);
        assert_eq!(run(&[&["token"], dashes, &["-7"]].concat(), &[SECRET_VARIABLE]).await.code, 0);
    }
}

#[tokio::test]
async fn publish_over_an_admin_listener_keeps_the_json_byte_for_byte() {
    let gateway = Gateway::dev().await;
    let mut client = Client::connect(&gateway, "42").await;
    let data = r#"{ "n" : 123456789012345678901234567890, "b":1, "a":2 }"#;
    let done = run(&["publish", "42", data, "--admin", &format!("http://{}", gateway.admin)], &[]).await;
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(client.text().await, format!(r#"{{"type":"event","event":"notification","data":{data}}}"#));
}

#[tokio::test]
async fn publish_over_an_admin_listener_reaches_users_named_by_dots() {
    let gateway = Gateway::dev().await;
    for user in [".", ".."] {
        let mut client = Client::connect(&gateway, user).await;
        let done = run(&["publish", user, "1", "--admin", &format!("http://{}", gateway.admin)], &[]).await;
        assert_eq!(done.code, 0, "{user}: {}", done.stderr);
        assert_eq!(client.event().await, 1);
    }
}

#[tokio::test]
async fn the_ready_file_appears_whole_once_both_listeners_accept_even_with_redis_down() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("ready.json").to_str().unwrap().to_owned();
    let (_socket, closed) = closed_port();
    let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    serve
        .args(["--redis-url", &format!("redis://{closed}"), "--ready-file", &path])
        .envs([SECRET_VARIABLE])
        .stderr(Stdio::null());
    let mut child = serve.spawn().unwrap();

    let mut text = String::new();
    eventually("the ready file is there", async || {
        let read = std::fs::read_to_string(&path).ok();
        read.map(|read| text = read).is_some()
    })
    .await;
    let ready: Value = serde_json::from_str(&text).expect("all of it or none");
    assert_eq!(ready["pid"].as_u64(), child.id().map(u64::from));
    assert!(ready["instance"].as_str().is_some_and(|id| !id.is_empty()), "{ready}");
    assert_eq!(ready.as_object().unwrap().len(), 4, "{ready}");
    for name in ["public", "admin"] {
        TcpStream::connect(ready[name].as_str().unwrap()).await.unwrap();
        let answer = reqwest::get(format!("http://{}/readyz", ready[name].as_str().unwrap())).await.unwrap();
        assert_eq!(answer.status(), 503, "accepting, but not ready");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    child.kill().await.unwrap();
}

#[tokio::test]
async fn the_ready_file_of_an_earlier_process_is_removed_before_anything_can_fail() {
    let dir = TempDir::new().unwrap();
    let path = write(&dir, "ready.json", "of an earlier run");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (listen, code) in [("nowhere", 2), (&*taken, 1)] {
        std::fs::write(&path, "of an earlier run").unwrap();
        let serve = ["serve", "--dev", "--admin-listen=127.0.0.1:0", "--listen", listen, "--ready-file", &path];
        assert_eq!(run(&serve, &[]).await.code, code, "{listen}");
        assert!(!Path::new(&path).exists(), "{listen}");
    }
    let folder = dir.path().to_str().unwrap();
    let done = run(&["serve", "--dev", "--listen=127.0.0.1:0", "--ready-file", folder], &[]).await;
    assert!(done.code == 1 && done.stderr.contains("--ready-file") && done.stderr.contains(folder), "{}", done.stderr);
}

#[tokio::test]
async fn the_ready_file_is_removed_after_a_clean_stop_unless_another_process_has_written_it() {
    for written in [None, Some("of a successor")] {
        let mut gateway = Options::dev().start().await;
        let path = gateway.ready_file();
        if let Some(text) = written {
            std::fs::write(&path, text).unwrap();
        }
        gateway.signal("TERM");
        assert_eq!(gateway.exit().await.code(), Some(0));
        assert_eq!(std::fs::read_to_string(&path).ok().as_deref(), written);
    }
}

#[tokio::test]
async fn a_development_instance_says_where_its_page_is_and_signs_anybody_in() {
    let gateway = Options::dev().without_secret().start().await;
    let url = format!("http://{}/", gateway.public);
    eventually("the page's URL is printed", async || gateway.stdout().contains(&url)).await;
    let page = gateway.ask_public("GET", "/", &[], "").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"), "{page:?}");

    let signed_in = gateway.ask_public("POST", "/demo/token", &[], r#"{"user":"42"}"#).await;
    let token = signed_in.json()["token"].as_str().expect("a token").to_owned();
    let (_, welcome) = Client::connect_with_token(&gateway, &token).await;
    assert_eq!(welcome["user"], "42");
    let mut query = handshake(gateway.public, &format!("/ws?token={token}"), &[]).await.expect("?token= is allowed");
    assert_eq!(query.frame().await["user"], "42");

    let other = Options::dev().without_secret().start().await;
    let foreign = refused(other.public, &format!("/ws?token={token}"), &[]).await;
    assert_eq!(foreign.status, 401, "each has a secret of its own");
}

#[tokio::test]
async fn the_demo_page_publishes_on_the_configured_channel() {
    for channel in ["user:", "notify/"] {
        let gateway = Options::dev().set("redis.user_channel", channel).start().await;
        let terminal = gateway.ask_public("GET", "/demo/terminal", &[], "").await.json();
        assert_eq!(terminal["channel"], channel);
    }
}

#[tokio::test]
async fn the_json_log_is_one_object_a_line() {
    let redis = RedisServer::start().await;
    let mut gateway = Options::redis(&redis).arg("--log-format").arg("json").set("log.level", "trace").start().await;
    Client::connect(&gateway, "42").await;
    refused(gateway.public, "/ws", &[("Authorization", "Bearer bad")]).await;
    redis.publish("42", "no\njson").await;
    gateway.signal("INT");
    assert!(gateway.exit().await.success());
    let log = gateway.log();
    assert!(log.lines().count() > 3, "{log}");
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn one_signal_stops_cleanly_and_a_second_at_once() {
    for signal in ["TERM", "INT"] {
        let mut gateway = Gateway::dev().await;
        gateway.signal(signal);
        assert_eq!(gateway.exit().await.code(), Some(0), "SIG{signal}");
    }
    // Two connections: the window lies between their closes.
    let mut gateway = Options::dev().set("drain.window", "10m").start().await;
    let mut clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    gateway.signal("TERM");
    for client in &mut clients {
        assert_eq!(client.frame().await["type"], "reconnect");
    }
    gateway.signal("TERM");
    let ended = tokio::time::timeout(Duration::from_secs(5), gateway.exit()).await.expect("at once");
    assert_eq!(ended.code(), Some(1), "a forced stop is not a clean one");
}

/// Sends valid and invalid tokens to every place that accepts one, and returns them.
async fn use_tokens(gateway: &Gateway) -> Vec<String> {
    let bad = |place: &str| format!("{place}.of.hunter2");
    let hello = |token: &str| json!({"type": "hello", "token": token}).to_string();
    let (good, fresh) = (token("42"), token("42"));
    let mut client = Client::connect_with_token(gateway, &good).await.0;
    for token in [&fresh, &bad("auth"), &token("43")] {
        client.send(&json!({"type": "auth", "token": token}).to_string()).await;
        client.frame().await;
    }
    client.send("a frame of hunter2").await;
    client.frame().await;
    client.close().await;
    let mut greeted = Client::anonymous(gateway).await;
    greeted.send(&hello(&good)).await;
    greeted.frame().await;
    handshake(gateway.public, &format!("/ws?token={good}"), &[]).await.expect("admitted");
    let bearer = format!("Bearer {}", bad("header"));
    refused(gateway.public, "/ws", &[("Authorization", &bearer)]).await;
    refused(gateway.public, "/ws", &[("Sec-WebSocket-Protocol", "tidings.v1, bearer.protocol.of.hunter2")]).await;
    refused(gateway.public, "/ws?token=query.of.hunter2", &[]).await;
    let mut refused = Client::anonymous(gateway).await;
    refused.send(&hello(&bad("hello"))).await;
    refused.close_code().await;
    vec![good, fresh]
}

#[tokio::test]
async fn no_token_secret_or_payload_is_ever_logged() {
    let redis = RedisServer::start_with(&["--requirepass", HIDDEN]).await;
    let url = redis.url();
    let secret = "hunter2 signs, and is long enough for that";
    let mut gateway = Options::bare()
        .env("TIDINGS_REDIS__URL", &url)
        .env("TIDINGS_AUTH__PREVIOUS_HMAC_SECRET", secret)
        .env("TIDINGS_ADMIN__API_KEY", "hunter2 opens")
        .set("auth.query_token", "true")
        .set("limits.max_payload_bytes", "30")
        .set("log.level", "trace")
        .start()
        .await;
    let tokens = use_tokens(&gateway).await;

    let mut client = Client::connect(&gateway, "42").await;
    for payload in [r#""published hunter2""#, "no json: hunter2", r#""too large to pass: hunter2 hunter2""#] {
        // The command does not publish a payload that is not JSON.
        let mut connection = redis::Client::open(&*url).unwrap().get_multiplexed_async_connection().await.unwrap();
        redis::cmd("PUBLISH").arg("user:42").arg(payload).exec_async(&mut connection).await.unwrap();
    }
    for key in ["Bearer hunter2 opens", "Bearer hunter2 does not"] {
        for body in [r#"{"data":"posted hunter2"}"#, r#"{"hunter2":1}"#] {
            let path = "/v1/users/42/notifications";
            gateway.ask_admin("POST", path, &[("Authorization", key)], body).await;
        }
    }
    assert_eq!(client.event().await, "published hunter2");
    assert_eq!(client.event().await, "posted hunter2");
    gateway.signal("TERM");
    gateway.exit().await;
    let shown = gateway.log() + &gateway.stdout();
    for line in shown.lines() {
        assert!(!line.contains(HIDDEN) && !line.contains(SECRET) && !line.contains(secret), "{line}");
        for token in &tokens {
            assert!(token.split('.').all(|part| !line.contains(part)), "a part of a token: {line}");
        }
    }
    assert!(shown.contains("DEBUG"), "the log is less verbose than configured: {shown}");
}

#[tokio::test]
async fn every_key_is_in_the_documentation_with_the_default_it_has() {
    let page = include_str!("../docs/configuration.md");
    let refused = run(&["check-config"], &[("TIDINGS_NONSENSE", "1")]).await;
    let (_, keys) = refused.stderr.split_once("known keys are ").unwrap();
    let known: Vec<&str> = keys.trim().split(", ").collect();
    // The page says once that each secret may be in a file.
    let is_in_file = |key: &str| key.strip_suffix("_file").is_some_and(|secret| known.contains(&secret));
    let keys: Vec<&str> = known.iter().copied().filter(|key| !is_in_file(key)).collect();
    assert!(keys.len() > 25, "{keys:?}");
    for key in &keys {
        assert!(page.contains(&format!("`{key}`")), "{key} is not documented");
    }

    let shown = run(&["check-config"], &[("TIDINGS_AUTH__HMAC_SECRET", SECRET)]).await.stdout;
    let defaults: toml::Table = shown.parse().unwrap();
    for (section, table) in &defaults {
        for (name, value) in table.as_table().unwrap() {
            let key = format!("{section}.{name}");
            let row = format!("`{key}`");
            let line = page.lines().find(|line| line.starts_with('|') && line.contains(&row)).unwrap();
            let default = value.to_string().trim_matches('"').replace("***", "none").replace("[]", "empty");
            assert!(line.contains(&default), "{key} is {default}: {line}");
        }
    }
}

#[tokio::test]
async fn a_server_whose_mode_is_not_that_of_the_url_is_refused_before_a_listener_is_bound() {
    let node = lone_node().await;
    let server = RedisServer::start().await;
    let cluster = format!("redis+cluster://127.0.0.1:{}", server.port());
    // The listeners' ports are taken: binding them would exit 1.
    let (_taken, address) = closed_port();
    for (url, named) in [(node.url(), "is a node of a cluster"), (cluster, "is no node of a cluster")] {
        let args = ["serve", "--listen", &address, "--admin-listen", "127.0.0.1:0", "--redis-url", &url];
        is_refused(&args, &[SECRET_VARIABLE], &["redis.url", named, "redis+cluster://"]).await;
    }
}
