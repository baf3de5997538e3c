//! The commands of operators, and the texts that clap's crates generate.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::AsyncWriteExt as _;

use crate::cli::run;
use crate::support::{Client, Gateway, Options, RedisServer, command, output, within};

const KEY: (&str, &str) = ("TIDINGS_ADMIN__API_KEY", "key");

/// Runs a command that succeeds; its standard output.
async fn done(args: &[&str], env: &[(&str, &str)]) -> String {
    let done = run(args, env).await;
    assert_eq!(done.code, 0, "{args:?}: {}", done.stderr);
    done.stdout
}

#[tokio::test]
async fn who_shows_presence_and_connections_on_every_instance_and_disconnect_closes_them() {
    let redis = RedisServer::start().await;
    let one = Options::redis(&redis).set("admin.api_key", "key").start().await;
    let other = Gateway::redis(&redis).await;
    let mut clients =
        [Client::connect(&one, "42").await, Client::connect(&other, "42").await, Client::connect(&one, "Zoë ☂").await];
    let address = one.admin.to_string();
    let admin = ["--admin-listen", &*address];
    crate::support::eventually("everyone is listed", async || {
        let all: Value = serde_json::from_str(&done(&[&["who", "--json"][..], &admin].concat(), &[KEY]).await).unwrap();
        all["online"] == 2 && all["users"][0]["connections"] == 2 && all["users"][1]["user"] == "Zoë ☂"
    })
    .await;
    let table = done(&[&["who"][..], &admin].concat(), &[KEY]).await;
    assert_eq!(table, "users online: 2\nUSER   CONNECTIONS\n42     2\nZoë ☂  1\n");

    let url = format!("http://{address}");
    let table = done(&["who", "42", "--admin", &url], &[KEY]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!((lines[0], lines.len()), ("user 42 is online; connections: 2", 4), "{table}");
    assert!(lines[1].starts_with("CONNECTION ") && lines[1].ends_with(" SINCE"), "{table}");
    assert!(table.contains(&one.instance) && table.contains(&other.instance) && table.contains("127.0.0.1"), "{table}");
    let json: Value = serde_json::from_str(&done(&["who", "42", "--json", "--admin", &url], &[KEY]).await).unwrap();
    assert_eq!((&json["total"], &json["presence"]["online"]), (&2.into(), &true.into()), "{json}");

    done(&["disconnect", "42", "--admin", &url], &[KEY]).await;
    for client in &mut clients[..2] {
        assert_eq!(client.close_code().await, 4011);
    }
    let absent = done(&["who", "absent", "--admin", &url], &[KEY]).await;
    assert_eq!(absent, "user absent is offline; connections: 0\n");
    for command in ["who", "disconnect"] {
        let refused = run(&[command, "42", "--admin", &url], &[]).await;
        assert!(refused.code == 1 && refused.stderr.contains("401"), "{command}: {}", refused.stderr);
        for (user, url) in [("a\nb", &*url), ("..", &url), ("42", "nonsense"), ("42", "ftp://ops:hunter2@h")] {
            let wrong = run(&[command, user, "--admin", url], &[]).await;
            assert!(wrong.code == 2 && !wrong.stderr.contains("hunter2"), "{command} {user:?}: {}", wrong.stderr);
        }
    }
}

#[tokio::test]
async fn publish_takes_an_event_a_ttl_and_a_key_and_reads_standard_input() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let [url, admin] = [redis.url(), format!("http://{}", gateway.admin)];
    for (way, to) in [("--redis-url", &url), ("--admin", &admin)] {
        let user = way.trim_start_matches('-');
        let mut client = Client::connect(&gateway, user).await;
        let key = format!("key-{user}");
        for _ in 0..2 {
            done(&["publish", user, "1", "--event", "paid", "--key", &key, way, to], &[]).await;
        }
        let shell = format!(
            "printf '%s\\n' '{{ \"a\": 2 }}' | '{}' publish {user} - --durable --ttl 60 {way} '{to}'",
            env!("CARGO_BIN_EXE_tidings")
        );
        let mut piped = crate::support::clean("sh");
        piped.args(["-c", &shell]);
        assert!(output(piped).await.status.success(), "{way}");
        assert_eq!(client.text().await, r#"{"type":"event","event":"paid","data":1}"#);
        let text = client.text().await;
        assert!(text.contains(r#""data":{ "a": 2 }"#), "once, then from standard input: {text}");
        let expiring: u64 = redis.command(&["EXISTS", &format!("tidings:expiring:{{{user}}}")]).await;
        assert_eq!(expiring, 1, "its own ttl is stored");
    }
    for wrong in
        [&["--event", ""][..], &["--ttl", "60"], &["--durable", "--ttl", "0"], &["--key", ""], &["--key", "a b"]]
    {
        let refused = run(&[&["publish", "42", "1", "--redis-url", &url], wrong].concat(), &[]).await;
        assert_eq!(refused.code, 2, "{wrong:?}: {}", refused.stderr);
    }
    // Standard input is empty.
    assert_eq!(run(&["publish", "42", "-", "--redis-url", &url], &[]).await.code, 2);
}

/// Runs `publish 42 -` with this standard input.
async fn published_from(input: &str, args: &[&str]) -> Option<i32> {
    let mut command = command(&[&["publish", "42", "-"], args].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that refuses what is too large does not read all of it.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    within("the command ends", child.wait()).await.unwrap().code()
}

#[tokio::test]
async fn white_space_around_the_json_does_not_count_towards_its_size() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    let args = ["--redis-url", &*url, "--set", "limits.max_payload_bytes=10"];
    assert_eq!(published_from("\"12345678\"\n", &args).await, Some(0));
    assert_eq!(published_from(" \n\"12345678\"\r\n", &args).await, Some(0));
    assert_eq!(published_from("\"123456789\"", &args).await, Some(2));
    assert_eq!(published_from(&"1".repeat(100_000), &args).await, Some(2));
}

#[tokio::test]
async fn completions_and_the_man_page_name_every_command() {
    let help = done(&["--help"], &[]).await;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    assert!(commands.len() > 10, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = done(&["completions", shell], &[]).await;
        assert!(commands.iter().all(|command| script.contains(command)), "{shell}");
        assert!(script.contains("admin-listen"), "{shell}: flags are completed, too");
    }
    let page = done(&["man"], &[]).await;
    assert!(page.contains(".TH tidings 1"), "{page}");
    for command in commands.iter().filter(|command| **command != "help") {
        assert!(page.contains(&command.replace('-', "\\-")), "{command}: {page}");
        let own = done(&["man", command], &[]).await;
        assert!(own.contains(&format!(".TH tidings-{command} 1")), "{own}");
    }
    for wrong in [&["completions", "dos"][..], &["man", "nonsense"], &["completions"]] {
        assert_eq!(run(wrong, &[]).await.code, 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn completions_offer_the_values_of_a_flag_and_a_file_only_where_one_is_named() {
    let script = done(&["completions", "bash"], &[]).await;
    let (_, serve) = script.split_once("tidings__subcmd__serve)").unwrap();
    let offered = |flag: &str| {
        let (_, rest) = serve.split_once(&format!("--{flag})\n")).unwrap_or_else(|| panic!("{flag}: {serve}"));
        rest.split("return 0").next().unwrap().to_owned()
    };
    assert!(offered("log-level").contains("-W \"info trace debug warn error\""), "{}", offered("log-level"));
    assert!(offered("log-format").contains("-W \"text json\""), "{}", offered("log-format"));
    for flag in ["log-level", "log-format", "listen", "admin-listen", "redis-url", "set"] {
        assert!(!offered(flag).contains("compgen -f"), "{}", offered(flag));
    }
    assert!(offered("config").contains("compgen -f"), "{}", offered("config"));
}

#[tokio::test]
async fn help_has_colours_on_a_terminal_and_none_with_no_color() {
    for (no_color, coloured) in [(None, true), (Some("1"), false)] {
        let mut command = command(&["--help"]);
        // As on a terminal.
        command.env("CLICOLOR_FORCE", "1").envs(no_color.map(|value| ("NO_COLOR", value)));
        let help = String::from_utf8(output(command).await.stdout).unwrap();
        assert_eq!(help.contains('\u{1b}'), coloured, "{help:?}");
    }
}

/// The long flags that a help text lists.
fn flags(help: &str) -> Vec<&str> {
    let words = help.lines().filter_map(|line| {
        let line = line.trim_start();
        line.starts_with('-').then(|| line.split([' ', ',']).find(|word| word.starts_with("--")))
    });
    words.flatten().filter(|flag| !["--help", "--version"].contains(flag)).collect()
}

#[tokio::test]
async fn every_command_and_flag_is_documented() {
    let page = include_str!("../docs/cli.md");
    let help = done(&["--help"], &[]).await;
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    for command in
        commands.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split_whitespace().next())
    {
        assert!(command == "help" || page.contains(&format!("`tidings {command}")), "{command} is not documented");
        // The load generator's flags are in its help only.
        if !["help", "load"].contains(&command) {
            let help = done(&[command, "--help"], &[]).await;
            for flag in flags(&help) {
                assert!(page.contains(&format!("`{flag}")), "{flag} of {command} is not documented");
            }
        }
    }
}
