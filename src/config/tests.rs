use super::*;

fn load(env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    Config::load(Layers { env, ..Layers::default() })
}

fn problem(env: &[(&str, &str)]) -> String {
    load(env).unwrap_err().to_string()
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = load(&[]).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:8080");
    assert_eq!(config.server.heartbeat, Duration::from_secs(25));
    assert_eq!(config.presence.lease, Duration::from_secs(10));
    assert_eq!(config.send_queue.max_messages, 256);
    assert_eq!(config.limits.max_inbound_bytes, 16_384);
    assert!(config.require_token_key().unwrap_err().to_string().contains("auth.hmac_secret"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[presence]\nlease = \"20s\"\noffline_delay = \"1s\"\n[limits]\nmax_inbound_bytes = 5\n";
    std::fs::write(file.path(), text).unwrap();
    let config = Config::load(Layers {
        file: Some(file.path().into()),
        env: vec![
            ("TIDINGS_PRESENCE__LEASE".into(), "30s".into()),
            ("TIDINGS_PRESENCE__OFFLINE_DELAY".into(), "2s".into()),
        ],
        flags: vec![("--set".into(), "presence.lease".into(), "40s".into())],
        dev: false,
    })
    .unwrap();
    assert_eq!(config.presence.lease, Duration::from_secs(40));
    assert_eq!(config.presence.offline_delay, Duration::from_secs(2));
    assert_eq!(config.limits.max_inbound_bytes, 5);
}

#[test]
fn a_wrong_value_names_its_key_what_was_given_and_what_is_accepted() {
    let text = problem(&[("TIDINGS_SERVER__HEARTBEAT", "soon")]);
    for part in ["server.heartbeat", "soon", "TIDINGS_SERVER__HEARTBEAT", "12s"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn every_problem_is_reported_at_once() {
    let text = problem(&[("TIDINGS_LOG__LEVEL", "loud"), ("TIDINGS_SEND_QUEUE__MAX_BYTES", "-1")]);
    assert!(text.contains("log.level") && text.contains("send_queue.max_bytes"), "{text}");
}

#[test]
fn unknown_keys_and_variables_are_refused_by_name() {
    let text = problem(&[("TIDINGS_SERVER__LISTN", "127.0.0.1:1")]);
    assert!(text.contains("TIDINGS_SERVER__LISTN") && text.contains("server.listen"), "{text}");
    assert!(problem(&[("TIDINGS_NONSENSE", "1")]).contains("TIDINGS_NONSENSE"));
}

#[test]
fn a_key_that_was_renamed_is_refused_with_its_new_name_from_every_source() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for key in ["max_messages", "max_bytes", "max_total_bytes", "slow_client", "write_timeout"] {
        let (old, new) = (format!("outbox.{key}"), format!("did you mean send_queue.{key}"));
        std::fs::write(file.path(), format!("[outbox]\n{key} = 7\n")).unwrap();
        let variable = format!("TIDINGS_OUTBOX__{}", key.to_uppercase());
        let sources = [
            Layers { file: Some(file.path().into()), ..Layers::default() },
            Layers { env: vec![(variable, "7".into())], ..Layers::default() },
            Layers { flags: vec![("--set".into(), old.clone(), "7".into())], ..Layers::default() },
        ];
        for layers in sources {
            let text = Config::load(layers).unwrap_err().to_string();
            assert!(text.contains(&old) && text.contains(&new) && text.lines().count() == 1, "{text}");
        }
    }
    let text = problem(&[("TIDINGS_OUTBOX__NO_SUCH", "1")]);
    assert!(text.contains("outbox.no_such") && text.contains("known keys are send_queue.max_bytes"), "{text}");
}

#[test]
fn no_secret_appears_in_an_error_or_in_the_printed_configuration() {
    let url = "redis://app:hunter2@127.0.0.1:6379/0";
    let config = load(&[
        ("TIDINGS_REDIS__URL", url),
        ("TIDINGS_AUTH__HMAC_SECRET", "hunter2"),
        ("TIDINGS_ADMIN__API_KEYS__BILLING", "hunter2"),
    ])
    .unwrap();
    assert!(!config.to_toml().contains("hunter2"), "{}", config.to_toml());
    assert!(config.to_toml().contains("redis://app:***@127.0.0.1:6379/0"));
    assert!(config.to_toml().contains("BILLING") || config.to_toml().contains("billing"));
    assert!(!format!("{config:?}").contains("hunter2"));
    for url in [
        "ftp://a:hunter2@b",
        "redis://a:hunter2@b:port",
        "redis://a:hun/hunter2@b:port",
        "app:hunter2@b",
        "redis://hunter2@b:port",
        "tcp:///socket?db=1&pass=hunter2",
    ] {
        let text = problem(&[("TIDINGS_REDIS__URL", url)]);
        assert!(text.contains("redis.url") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_secret_may_be_given_as_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = load(&[("TIDINGS_AUTH__HMAC_SECRET_FILE", path)]).unwrap();
    assert_eq!(secret_bytes(config.require_signing_secret().unwrap()), b"s3cret");

    let both = [("TIDINGS_AUTH__HMAC_SECRET_FILE", path), ("TIDINGS_AUTH__HMAC_SECRET", "x")];
    assert!(problem(&both).contains("both"));
    let missing = problem(&[("TIDINGS_AUTH__HMAC_SECRET_FILE", "/does/not/exist")]);
    assert!(missing.contains("auth.hmac_secret_file") && missing.contains("/does/not/exist"), "{missing}");
}

#[test]
fn an_admin_listener_off_loopback_needs_a_key() {
    let address = ("TIDINGS_SERVER__ADMIN_LISTEN", "0.0.0.0:9090");
    assert!(problem(&[address]).contains("admin.api_key"));
    assert!(load(&[address, ("TIDINGS_ADMIN__API_KEY", "k")]).is_ok());
}

#[test]
fn dev_stays_on_loopback() {
    let listen = |key: &str| Layers {
        flags: vec![("--set".into(), key.into(), "0.0.0.0:0".into())],
        env: vec![("TIDINGS_ADMIN__API_KEY".into(), "k".into())],
        dev: true,
        ..Layers::default()
    };
    for key in ["server.listen", "server.admin_listen"] {
        let text = Config::load(listen(key)).unwrap_err().to_string();
        assert!(text.contains(key) && text.contains("loopback"), "{text}");
    }
}

#[test]
fn origins_are_checked_when_they_are_read() {
    let key = "TIDINGS_SERVER__ALLOWED_ORIGINS";
    let config = load(&[(key, "https://a.example, https://*.b.example:8443, http://c.example:443")]).unwrap();
    assert_eq!(config.server.allowed_origins.len(), 3);
    let with_default_ports = ["https://a.example:443", "https://*.a.example:443", "HTTP://a.example:80"];
    for wrong in
        ["a.example", "https://a.example/", "https://a.*.example", "https://"].iter().chain(&with_default_ports)
    {
        assert!(problem(&[(key, wrong)]).contains("server.allowed_origins"), "{wrong}");
    }
}

#[test]
fn limits_are_positive_counts_and_networks() {
    let config = load(&[
        ("TIDINGS_LIMITS__MAX_CONNECTIONS_PER_USER", "5"),
        ("TIDINGS_LIMITS__TRUSTED_PROXIES", "10.0.0.0/8, 2001:db8::/32, 192.0.2.7"),
    ])
    .unwrap();
    assert_eq!(config.limits.max_connections_per_user, Some(5));
    assert_eq!(config.limits.max_connections, None);
    let networks: Vec<String> = config.limits.trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"]);
    for (key, wrong) in [
        ("MAX_CONNECTIONS", "0"),
        ("MAX_CONNECTIONS_PER_IP", "-1"),
        ("CONNECTS_PER_SECOND_PER_IP", "many"),
        ("CONNECTS_PER_SECOND_PER_USER", "1.5"),
        ("INBOUND_FRAMES_PER_SECOND", "0"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("TRUSTED_PROXIES", "10.0.0.0/8, proxy.example"),
    ] {
        let text = problem(&[(&format!("TIDINGS_LIMITS__{key}"), wrong)]);
        assert!(text.contains(&format!("limits.{}", key.to_lowercase())) && text.contains(wrong), "{text}");
    }
}

#[test]
fn session_secrets_are_one_or_several_wherever_they_are_given() {
    let secrets = |config: &Config| {
        let sessions = config.auth.sessions.as_ref().unwrap();
        sessions.secrets.iter().map(|secret| secret.expose_secret().to_owned()).collect::<Vec<_>>()
    };
    let env = "TIDINGS_AUTH__SESSION_SECRET";
    assert_eq!(secrets(&load(&[(env, "new, old")]).unwrap()), ["new", "old"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "new,er\nold\n").unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(secrets(&load(&[("TIDINGS_AUTH__SESSION_SECRET_FILE", path)]).unwrap()), ["new,er", "old"]);
    let in_file = |text: &str| {
        std::fs::write(file.path(), format!("[auth]\nsession_secret = {text}\n")).unwrap();
        Config::load(Layers { file: Some(file.path().into()), ..Layers::default() })
    };
    assert_eq!(secrets(&in_file(r#"["new,er", "old"]"#).unwrap()), ["new,er", "old"]);
    assert_eq!(secrets(&in_file(r#""a,b""#).unwrap()), ["a,b"], "one string in the file is one secret");
    for wrong in ["[]", r#"["hunter2", ""]"#, r#"["hunter2", 7]"#, "\"\"", "7"] {
        let text = in_file(wrong).unwrap_err().to_string();
        assert!(text.contains("auth.session_secret") && !text.contains("hunter2"), "{wrong}: {text}");
    }
    assert!(problem(&[(env, "hunter2,,old")]).contains("auth.session_secret"));
    assert!(load(&[]).unwrap().auth.sessions.is_none());
}

#[test]
fn names_and_paths_of_sessions_are_checked_when_they_are_read() {
    for (key, wrong) in [
        ("SESSION_COOKIE", "a b"),
        ("SESSION_COOKIE", "a=b"),
        ("TOKEN_COOKIE", ""),
        ("TOKEN_COOKIE", "a;b"),
        ("SESSION_USER", "passport..user"),
        ("SESSION_USER", ""),
        ("SESSION_PREFIX", &"x".repeat(129)),
    ] {
        let text = problem(&[(&format!("TIDINGS_AUTH__{key}"), wrong)]);
        assert!(text.contains(&format!("auth.{}", key.to_lowercase())), "{text}");
    }
    let good = [("TIDINGS_AUTH__SESSION_SECRET", "x"), ("TIDINGS_AUTH__SESSION_PREFIX", "")];
    assert_eq!(load(&good).unwrap().auth.sessions.unwrap().prefix, "");
}

#[test]
fn a_claim_that_means_something_else_cannot_name_the_user() {
    let claim = |name: &str| load(&[("TIDINGS_AUTH__USER_CLAIM", name)]).map(|config| config.auth.user_claim);
    for name in ["exp", "nbf", "iat", "iss", "aud", "jti", ""] {
        let text = claim(name).unwrap_err().to_string();
        assert!(text.contains("auth.user_claim") && text.contains("exp, nbf, iat, iss, aud, jti"), "{text}");
    }
    for name in ["sub", "uid", "https://app.example/uid"] {
        assert_eq!(claim(name).unwrap(), name);
    }
}
