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
    assert_eq!(config.limits.get().max_inbound_bytes, 16_384);
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
    assert_eq!(config.limits.get().max_inbound_bytes, 5);
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
    assert!(config.to_toml().contains("\"redis://127.0.0.1:6379/0\""));
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
fn of_a_url_only_scheme_host_port_and_path_are_shown() {
    let jwks = "https://issuer.example:8443/keys?key=hunter2";
    let url = "rediss://app:hunter2@redis.example:6380/3";
    let config = load(&[("TIDINGS_AUTH__JWKS_URL", jwks), ("TIDINGS_REDIS__URL", url)]).unwrap();
    assert_eq!(config.auth.jwks_url.as_ref().unwrap().expose().as_str(), jwks);
    for text in [config.to_toml().to_owned(), format!("{config:?}")] {
        assert!(text.contains("https://issuer.example:8443/keys"), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
    assert!(config.to_toml().contains("rediss://redis.example:6380/3") && !config.to_toml().contains("app"));
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
    assert!(missing.contains("auth.hmac_secret_file = ***") && missing.contains("No such file"), "{missing}");
    let given = problem(&[("TIDINGS_AUTH__HMAC_SECRET_FILE", "hunter2")]);
    assert!(!given.contains("hunter2"), "{given}");
}

#[test]
fn a_secret_of_a_later_layer_overrides_its_other_form_in_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let [toml, path] = ["tidings.toml", "secret"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    std::fs::write(&path, "redis://of-the-file\n").unwrap();
    let in_toml = |text: String| {
        std::fs::write(&toml, text).unwrap();
        Layers { file: Some(PathBuf::from(&toml)), ..Layers::default() }
    };
    for (section, key) in [("redis", "url"), ("auth", "hmac_secret"), ("auth", "session_secret"), ("admin", "api_key")]
    {
        let [plain, of_file] = [(key.to_owned(), "redis://itself"), (format!("{key}_file"), &*path)];
        let variable = |(name, value): &(String, &str)| {
            let name = format!("TIDINGS_{section}__{name}").to_uppercase();
            vec![(name, (*value).to_owned())]
        };
        let flag =
            |(name, value): &(String, &str)| vec![("--set".into(), format!("{section}.{name}"), (*value).into())];
        for (earlier, later) in [(&plain, &of_file), (&of_file, &plain)] {
            let file = || in_toml(format!("[{section}]\n{} = {:?}\n", earlier.0, earlier.1));
            for layers in [
                Layers { env: variable(later), ..file() },
                Layers { flags: flag(later), ..file() },
                Layers { env: variable(earlier), flags: flag(later), ..Layers::default() },
            ] {
                let shown = Config::load(layers).unwrap().to_toml().to_owned();
                assert_eq!(shown.contains(&of_file.0), later == &of_file, "{} is the later one: {shown}", later.0);
            }
        }
        let both = in_toml(format!("[{section}]\n{key} = \"x\"\n{key}_file = {path:?}\n"));
        let refused = Config::load(both).unwrap_err().to_string();
        assert!(refused.contains(&format!("{section}.{key} and {section}.{key}_file are both set")), "{refused}");
    }
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
    assert_eq!(config.limits.get().max_connections_per_user, Some(5));
    assert_eq!(config.limits.get().max_connections, None);
    assert_eq!(config.limits.get().over_user, OverUser::Refuse);
    let replaces = load(&[("TIDINGS_LIMITS__OVER_USER", "replace_oldest")]).unwrap();
    assert_eq!(replaces.limits.get().over_user, OverUser::ReplaceOldest);
    let networks: Vec<String> = config.limits.get().trusted_proxies.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/8", "2001:db8::/32", "192.0.2.7/32"]);
    for (key, wrong) in [
        ("MAX_CONNECTIONS", "0"),
        ("MAX_CONNECTIONS_PER_IP", "-1"),
        ("CONNECTS_PER_SECOND_PER_IP", "many"),
        ("CONNECTS_PER_SECOND_PER_USER", "1.5"),
        ("INBOUND_FRAMES_PER_SECOND", "0"),
        ("OVER_USER", "replace"),
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
fn a_ticket_secret_that_is_guessable_or_has_no_use_is_refused() {
    let [short, long] = ["hunter2", "hunter2-hunter2-hunter2-hunter2-hunter2-hunter2"]
        .map(|secret| problem(&[("TIDINGS_SERVER__TLS_TICKET_SECRET", secret)]));
    assert!(short.contains("server.tls_ticket_secret is shorter than 43 characters"), "{short}");
    assert!(long.contains("but server.tls_cert_file is not") && !long.contains("shorter"), "{long}");
    assert!(!short.contains("hunter2") && !long.contains("hunter2"));
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

const CLUSTER: (&str, &str) = ("TIDINGS_REDIS__URL", "redis+cluster://h1,h2");
const SENTINELS: (&str, &str) = ("TIDINGS_REDIS__URL", "redis+sentinel://h1,h2/mymaster");
const SINGLE: (&str, &str) = ("TIDINGS_REDIS__URL", "redis://h");

#[test]
fn sharded_channels_require_the_url_of_a_cluster() {
    let sharded = ("TIDINGS_REDIS__SUBSCRIBE", "sharded");
    assert_eq!(load(&[sharded, CLUSTER]).unwrap().redis.subscribe, Subscribe::Sharded);
    for wrong in [&[sharded][..], &[sharded, SINGLE], &[sharded, SENTINELS]] {
        let text = problem(wrong);
        for part in ["redis.subscribe = sharded", "redis.url", "redis+cluster://", "pattern or exact"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
    for url in [SINGLE, SENTINELS, CLUSTER] {
        assert_eq!(load(&[("TIDINGS_REDIS__SUBSCRIBE", "exact"), url]).unwrap().redis.subscribe, Subscribe::Exact);
    }
    let text = problem(&[("TIDINGS_REDIS__SUBSCRIBE", "all"), SINGLE]);
    assert!(text.contains("\"all\"") && text.contains("pattern, exact, sharded"), "{text}");
}

#[test]
fn keys_that_need_redis_are_refused_in_memory() {
    let layers = |flag: &str, value: &str, dev: bool| Layers {
        flags: vec![("--set".into(), flag.into(), value.into())],
        dev,
        ..Layers::default()
    };
    for (key, value) in [("redis.subscribe", "exact"), ("redis.wait_replicas", "1")] {
        let text = Config::load(layers(key, value, true)).unwrap_err().to_string();
        assert!(text.contains(key) && text.contains("redis.url is not"), "{text}");
        // Without --dev, an instance uses the default URL.
        assert!(Config::load(layers(key, value, false)).is_ok());
    }
}

#[test]
fn a_login_on_the_sentinels_requires_sentinels_and_a_password() {
    let user = ("TIDINGS_REDIS__SENTINEL_USERNAME", "watcher");
    let password = ("TIDINGS_REDIS__SENTINEL_PASSWORD", "hunter2");
    let config = load(&[user, password, SENTINELS]).unwrap();
    assert_eq!(config.redis.sentinel_username.as_deref(), Some("watcher"));
    assert_eq!(config.redis.sentinel_password.as_ref().unwrap().expose_secret(), "hunter2");
    assert!(!config.to_toml().contains("hunter2") && !format!("{config:?}").contains("hunter2"));
    assert!(load(&[password, SENTINELS]).is_ok(), "the default user has a password only");
    for url in [SINGLE, CLUSTER] {
        let text = problem(&[user, password, url]);
        for part in ["redis.sentinel_username", "redis.sentinel_password", "redis+sentinel://"] {
            assert!(text.contains(part) && !text.contains("hunter2"), "{part} is not in: {text}");
        }
    }
    let text = problem(&[user, SENTINELS]);
    assert!(text.contains("redis.sentinel_username") && text.contains("set both"), "{text}");

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter3\n").unwrap();
    let file = ("TIDINGS_REDIS__SENTINEL_PASSWORD_FILE", file.path().to_str().unwrap());
    let config = load(&[file, SENTINELS]).unwrap();
    assert_eq!(config.redis.sentinel_password.as_ref().unwrap().expose_secret(), "hunter3");
}

#[test]
fn a_url_that_is_empty_is_shown_as_such() {
    for (variable, key) in [("TIDINGS_REDIS__URL", "redis.url"), ("TIDINGS_AUTH__JWKS_URL", "auth.jwks_url")] {
        assert!(problem(&[(variable, "")]).contains(&format!("{key} = \"\" (in the environment variable")));
    }
}

#[test]
fn a_duration_that_is_too_long_is_refused_with_the_longest() {
    assert!(load(&[("TIDINGS_SERVER__HEARTBEAT", "3650d")]).is_ok());
    let text = problem(&[("TIDINGS_SERVER__HEARTBEAT", "3651d")]);
    assert!(text.contains("server.heartbeat = \"3651d\"") && text.contains("at most 3650d"), "{text}");
}

#[test]
fn a_wait_for_replicas_is_at_most_10_s() {
    let wait = |timeout: &str| load(&[("TIDINGS_REDIS__WAIT_TIMEOUT", timeout), ("TIDINGS_REDIS__WAIT_REPLICAS", "2")]);
    let config = wait("10s").unwrap().redis;
    assert_eq!((config.wait_timeout, config.wait_replicas), (Duration::from_secs(10), 2));
    for wrong in ["10001ms", "1h"] {
        let text = wait(wrong).unwrap_err().to_string();
        assert!(text.contains("redis.wait_timeout") && text.contains("at most 10s"), "{text}");
    }
    assert!(wait("9ms").unwrap_err().to_string().contains("at least 10ms"));
    assert!(problem(&[("TIDINGS_REDIS__WAIT_REPLICAS", "-1")]).contains("redis.wait_replicas"));
}

#[test]
fn the_prefix_of_user_channels_is_no_pattern_and_no_other_channel_begins_with_it() {
    let channel =
        |prefix: &str| load(&[("TIDINGS_REDIS__USER_CHANNEL", prefix)]).map(|config| config.redis.user_channel);
    for good in ["user:", "u", "tidings:user:", "app.notify.", "presence:", "tidings:control:"] {
        assert_eq!(channel(good).unwrap(), good);
    }
    for wrong in ["user:*", "user?", "[user]", "user]", r"user\:", "a b", "{user}", ""] {
        let text = channel(wrong).unwrap_err().to_string();
        assert!(text.contains("redis.user_channel") && text.contains(r"* ? [ ] \"), "{wrong}: {text}");
    }
    for (wrong, other) in [
        ("presence", "presence.channel"),
        ("pre", "presence.channel"),
        ("t", "tidings:control"),
        ("tidings:b", "tidings:broadcast"),
        ("tidings:control", "tidings:control"),
        ("tidings:probe:", "tidings:probe:"),
        ("tidings:probe:x", "tidings:probe:"),
    ] {
        let text = channel(wrong).unwrap_err().to_string();
        assert!(text.contains("redis.user_channel") && text.contains(other), "{wrong}: {text}");
    }
    let text = problem(&[("TIDINGS_PRESENCE__CHANNEL", "user:presence")]);
    assert!(text.contains("user:presence (presence.channel)"), "{text}");
    let text = problem(&[("TIDINGS_REDIS__PREFIX", "user:")]);
    assert!(text.contains("user:control (redis.prefix)"), "{text}");
}

#[test]
fn certificates_require_tls_in_every_form_of_the_url() {
    let authority = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["h".into()]).unwrap().self_signed(&authority).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let [cert, key] = [("cert", certificate.pem()), ("key", authority.serialize_pem())].map(|(name, text)| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    });
    let files = [("TIDINGS_REDIS__CERT_FILE", &*cert), ("TIDINGS_REDIS__KEY_FILE", &key)];
    let authorities = ("TIDINGS_REDIS__CA_FILE", &*cert);
    for url in [SINGLE, SENTINELS, CLUSTER] {
        let over_tls = url.1.replace("redis", "rediss");
        for (given, named) in [(&files[..], "redis.cert_file"), (&[authorities], "redis.ca_file")] {
            let text = problem(&[given, &[url]].concat());
            assert!(text.contains(named) && text.contains("rediss://"), "{text}");
            assert!(load(&[given, &[(url.0, &over_tls)]].concat()).is_ok(), "{over_tls}");
        }
    }
}
