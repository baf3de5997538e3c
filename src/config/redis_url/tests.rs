use super::*;

fn parse(text: &str) -> RedisUrl {
    text.parse().unwrap_or_else(|why| panic!("{text}: {why}"))
}

fn refused(text: &str) -> String {
    text.parse::<RedisUrl>().expect_err(text)
}

fn node(host: &str, port: u16) -> NodeAddress {
    NodeAddress { host: host.to_owned(), port }
}

#[test]
fn a_url_names_the_sentinels_the_master_and_the_database() {
    let url = parse("redis+sentinel://app:p%2Fw@One.example,10.0.0.2:5000,[2001:DB8::1]:26380/my-master.1_a/3");
    let sentinels = vec![node("one.example", 26379), node("10.0.0.2", 5000), node("2001:db8::1", 26380)];
    assert_eq!(*url.topology(), RedisTopology::Sentinel { sentinels, master: "my-master.1_a".into() });
    let login = url.login();
    assert_eq!((login.username(), login.password(), login.db()), (Some("app"), Some("p/w"), 3));
    assert!(!url.is_tls() && url.single().is_none());
    let shown = "redis+sentinel://one.example:26379,10.0.0.2:5000,[2001:db8::1]:26380/my-master.1_a/3";
    assert_eq!([url.to_string(), format!("{url:?}")], [shown, shown]);

    for (text, database) in [("h/m", 0), ("h/m/", 0), ("h/m/0", 0), ("h/m/7/", 7), ("h/0/1", 1)] {
        assert_eq!(parse(&format!("rediss+sentinel://{text}")).login().db(), database, "{text}");
    }
    assert!(parse("rediss+sentinel://h/m").is_tls());
}

#[test]
fn a_url_names_nodes_of_the_cluster() {
    for end in ["", "/", "/0"] {
        let url = parse(&format!("rediss+cluster://:a:b,c@h1,h2:7000{end}"));
        assert_eq!(*url.topology(), RedisTopology::Cluster { nodes: vec![node("h1", 6379), node("h2", 7000)] });
        assert_eq!((url.login().username(), url.login().password()), (None, Some("a:b,c")));
        assert_eq!(url.to_string(), "rediss+cluster://h1:6379,h2:7000");
        assert!(url.is_tls() && url.single().is_none());
    }
    assert!(!parse("REDIS+Cluster://h").is_tls());
}

#[test]
fn a_url_of_one_server_is_given_to_the_client_library_as_it_is() {
    use secrecy::ExposeSecret;
    for text in ["redis://app:p%2Fw@h:6380/2", "rediss://h", "unix:///run/redis.sock?db=1&pass=x", "REDIS://h/"] {
        let url = parse(text);
        assert_eq!(url.single().unwrap().expose_secret(), text);
        assert_eq!(*url.topology(), RedisTopology::Single);
        assert_eq!(url.is_tls(), text.starts_with("rediss"));
    }
    assert_eq!(parse("redis://app:p%2Fw@h:6380/2").login().password(), Some("p/w"));
    let default = RedisUrl::default();
    assert_eq!(default.to_string(), parse(default.single().unwrap().expose_secret()).to_string());
}

#[test]
fn user_and_password_are_decoded_as_in_the_url_of_one_server() {
    for login in ["app:pw", ":pw", "a%3Ab:p%40w", "app:%zz%", "app:pw:pw", "%C3%A9:é", "app:p+w", "a,b:[c]"] {
        let single = parse(&format!("redis://{login}@h"));
        for url in [format!("redis+sentinel://{login}@h/m"), format!("redis+cluster://{login}@h")] {
            let url = parse(&url);
            let credentials = |url: &RedisUrl| {
                let login = url.login();
                (login.username().map(str::to_owned), login.password().map(str::to_owned))
            };
            assert_eq!(credentials(&url), credentials(&single), "{login}");
        }
    }
}

/// Only the accepted form of the topology that was meant is named.
fn are_refused(scheme: &str, accepted: &str, cases: &[(&str, &str)]) {
    for (rest, why) in cases {
        let text = refused(&format!("{scheme}://{rest}"));
        assert!(text.contains(why), "{rest}: {text}");
        assert_eq!(text.split_once("expected ").map(|(_, form)| form), Some(accepted), "{rest}");
    }
}

#[test]
fn a_host_that_cannot_be_used_is_refused_by_its_number() {
    let many = |count: usize| (0..count).map(|number| format!("h{number}")).collect::<Vec<_>>().join(",");
    let cases = [
        ("/m", "it has no host"),
        ("h1,,h3/m", "host 2 of 3 is empty"),
        ("h1,h2,/m", "host 3 of 3 is empty"),
        ("h1,:26379/m", "host 2 of 2 is empty"),
        ("h1,h2:port/m", "host 2 of 2 has a port that is not a number"),
        ("h1:/m", "host 1 of 1 has a port"),
        ("h1:0/m", "host 1 of 1 has a port"),
        ("h1:65536/m", "from 1 to 65535"),
        ("h1:+1/m", "from 1 to 65535"),
        ("2001:db8::1/m", "an IPv6 address must be in brackets"),
        ("::1/m", "an IPv6 address must be in brackets"),
        ("[2001:db8::x]/m", "host 1 of 1 is neither a name nor an IP address"),
        ("[::1/m", "neither a name nor an IP address"),
        ("[::1]x/m", "neither a name nor an IP address"),
        ("h1,h!/m", "host 2 of 2 is neither"),
        ("h1,h%2C2/m", "host 2 of 2 is neither"),
        ("0.0.0.0/m", "wildcard"),
        ("[::]/m", "wildcard"),
        ("h1,h2,H1:26379/m", "host 3 of 3 is listed twice"),
        ("[::1],[0:0::1]/m", "host 2 of 2 is listed twice"),
        (&format!("{}/m", many(101)), "it has 101 hosts, more than 100"),
    ];
    are_refused("redis+sentinel", SENTINEL, &cases);
    assert!(parse(&format!("redis+sentinel://{}/m", many(100))).to_string().contains("h99:26379"));
    are_refused("redis+cluster", CLUSTER, &[("", "it has no host"), ("h1,h1:6379", "host 2 of 2 is listed twice")]);
    for (text, why) in [
        ("redis://0.0.0.0", "its host is a wildcard address"),
        ("redis://[::]:6379", "its host is a wildcard address"),
        ("redis://h1,h2/mymaster", "several hosts require redis+sentinel:// or redis+cluster://"),
        ("rediss://app:pw@h1:7000,h2:7000", "several hosts require redis+sentinel:// or redis+cluster://"),
    ] {
        assert!(refused(text).contains(why), "{text}: {}", refused(text));
    }
}

#[test]
fn a_path_without_a_meaning_is_refused_with_the_reason() {
    let cases = [
        ("h1,h2", "does not name a master"),
        ("h1,h2/", "does not name a master"),
        ("h1,h2//m", "does not name a master"),
        ("h1/0", "the number of a database, but does not name a master"),
        ("h1/m/x", "does not end with the number of a database"),
        ("h1/m/+1", "does not end with the number of a database"),
        ("h1/m/1/2", "does not end with the number of a database"),
        ("h1/m/4294967296", "does not end with the number of a database"),
        ("h1/a b", "white space"),
        ("h1/a%20b", "the name of its master"),
        ("h1/m;x", "the name of its master"),
    ];
    are_refused("redis+sentinel", SENTINEL, &cases);
    let cases = [
        ("h1/1", "a cluster has only database 0"),
        ("h1/mymaster", "a cluster has only database 0, and no name"),
        ("h1/0/0", "its path has no meaning"),
    ];
    are_refused("redis+cluster", CLUSTER, &cases);
}

#[test]
fn a_character_that_must_be_encoded_is_refused_with_its_code() {
    let cases = [
        ("h1/m?x=1", "its query (?…) has no meaning"),
        ("h1/m#x", "its fragment (#…) has no meaning"),
        ("app:p?w@h1/m", "write ? as %3F"),
        ("app:p#w@h1/m", "write # as %23"),
        ("app:p/w@h1/m", "write / as %2F"),
        ("app:p@w@h1/m", "write @ as %40"),
        ("app:pw@h1,app:pw@h2/m", "given once, before the first host"),
        ("app:p w@h1/m", "percent-encoding"),
        ("app@h1/m", "no password before the @"),
        ("app:@h1/m", "no password before the @"),
        ("@h1/m", "no password before the @"),
        ("app:%FF@h1/m", "not UTF-8"),
    ];
    are_refused("redis+sentinel", SENTINEL, &cases);
    are_refused("redis+cluster", CLUSTER, &[("h1?x", "its query")]);
    let cases = [
        ("app:p#w@h", "such as / ? # and @ must be percent-encoded"),
        ("app@h#w", "write # as %23"),
        ("app@h", "its user has no password"),
        ("app:@h/1", "its user has no password"),
    ];
    are_refused("redis", SINGLE, &cases);
    are_refused("unix", SINGLE, &[("/run/redis.sock?user=app", "its user has no password")]);
}

#[test]
fn a_scheme_that_resembles_a_known_one_is_answered_with_that_one() {
    for (scheme, meant) in [
        ("sentinel", "redis+sentinel://"),
        ("redis-sentinel", "redis+sentinel://"),
        ("redis_sentinel", "redis+sentinel://"),
        ("sentinel+redis", "redis+sentinel://"),
        ("rediss-sentinel", "rediss+sentinel://"),
        ("redis+sentinels", "rediss+sentinel://"),
        ("redis-cluster", "redis+cluster://"),
        ("cluster", "redis+cluster://"),
        ("rediss_cluster", "rediss+cluster://"),
        ("valkey+cluster", "redis+cluster://"),
        ("valkey", "redis://"),
        ("valkeys", "rediss://"),
        ("redis+tls", "rediss://"),
        ("redis+unix", "unix://"),
        ("redis-socket", "unix://"),
    ] {
        let text = refused(&format!("{scheme}://h1,h2/m"));
        assert!(text.contains(&format!("(did you mean {meant}?)")), "{scheme}: {text}");
    }
    for other in ["http://h", "redis+sentinel:/h/m", "h:6379", "", "://", "hunter2"] {
        let text = refused(other);
        for accepted in [SINGLE, SENTINEL, CLUSTER] {
            assert!(text.contains(accepted), "{other}: {text}");
        }
    }
}

/// Each with one character removed, or one inserted, at each position.
fn mistyped(url: &str) -> impl Iterator<Item = String> {
    let removed = (0..url.len()).map(|at| format!("{}{}", &url[..at], &url[at + 1..]));
    let characters = "/?#@:,;[]%=&+ \\\n'\"x1";
    let inserted =
        (0..=url.len()).flat_map(move |at| characters.chars().map(move |c| format!("{}{c}{}", &url[..at], &url[at..])));
    removed.chain(inserted)
}

#[test]
fn a_password_does_not_show_wherever_a_url_is_mistyped() {
    let mut usable = 0;
    for url in [
        "redis://app:hunter2@h1:6379/0",
        "rediss://:hunter2@h1",
        "unix:///run/redis.sock?db=1&user=app&pass=hunter2",
        "redis+sentinel://app:hunter2@h1:26379,h2:26379,[::1]:5000/mymaster/0",
        "rediss+sentinel://:hunter2@h1,h2/mymaster",
        "redis+cluster://app:hunter2@h1:6379,h2:6379",
        "rediss+cluster://:hunter2@h1,[::1]:5000/0",
    ] {
        // Removing the `?` or `&` of a socket makes the password a part of its path, which is masked.
        for text in mistyped(url) {
            let shown = match text.parse::<RedisUrl>() {
                Ok(url) => format!("{url} {url:?}"),
                Err(why) => why,
            };
            usable += usize::from(text.parse::<RedisUrl>().is_ok());
            let password =
                text.contains("hunter2").then_some("hunter2").or_else(|| text.contains("ter2").then_some("ter2"));
            for part in password.into_iter().chain(["hunter"]) {
                assert!(!shown.contains(part), "{text:?}: {shown}");
            }
        }
    }
    assert!(usable > 100, "only {usable} of them can be used: the test no longer covers their output");
}

proptest::proptest! {
    #[test]
    fn a_refusal_does_not_quote_the_url(rest in "[hunter2@:/,?#%\\[\\]. ]{0,40}", scheme in 0..7_usize) {
        let schemes = ["redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "sentinel"];
        if let Err(why) = format!("{}://{rest}hunter2", schemes[scheme]).parse::<RedisUrl>() {
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
