//! The types of configuration values: how each is parsed, described in errors, and printed.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use toml::Value;

use super::mask::shown_path;
use super::origin::OriginPattern;
use super::settings::{Settings, text};
use super::url::{KeySetUrl, check_host};
use super::value::{DURATION, LONGEST, boolean, format_duration, integer, list, parse_duration};

const COUNT: &str = "a whole number from 1 to 4294967295";

fn count(value: &Value) -> Option<u32> {
    integer(value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

impl Settings {
    pub(super) fn boolean(&mut self, key: &str, default: bool) -> bool {
        self.read_or(key, "true or false", default, boolean, |value| (*value).into())
    }

    pub(super) fn duration(&mut self, key: &str, default: &str, least: Duration) -> Duration {
        self.duration_within(key, default, least..=LONGEST)
    }

    pub(super) fn duration_within(&mut self, key: &str, default: &str, range: RangeInclusive<Duration>) -> Duration {
        let [least, most] = [range.start(), range.end()].map(|bound| format_duration(*bound));
        let accepted = format!("{DURATION}, at least {least} and at most {most}");
        let default = parse_duration(default).unwrap_or(*range.start());
        let parse = |value: &Value| parse_duration(value.as_str()?).filter(|given| range.contains(given));
        self.read_or(key, &accepted, default, parse, |value| format_duration(*value).into())
    }

    pub(super) fn count(&mut self, key: &str, default: u32) -> u32 {
        self.read_or(key, COUNT, default, count, |n| i64::from(*n).into())
    }

    /// 0 by default.
    pub(super) fn count_or_zero(&mut self, key: &str) -> u32 {
        let parse = |value: &Value| integer(value).and_then(|n| u32::try_from(n).ok());
        self.read_or(key, "a whole number from 0 to 4294967295", 0, parse, |n| i64::from(*n).into())
    }

    pub(super) fn optional_count(&mut self, key: &str) -> Option<u32> {
        self.read(key, COUNT, count, |n| i64::from(*n).into())
    }

    pub(super) fn size(&mut self, key: &str, default: u32) -> usize {
        usize::try_from(self.count(key, default)).unwrap_or(usize::MAX)
    }

    pub(super) fn address(&mut self, key: &str, default: &str) -> SocketAddr {
        let default = default.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)));
        let parse = |value: &Value| value.as_str()?.parse().ok();
        let accepted = "an address with a port, such as 127.0.0.1:8080 or [::]:8080";
        self.read_or(key, accepted, default, parse, |address| address.to_string().into())
    }

    /// Part of a Redis key; without braces, which would mark a hash tag.
    pub(super) fn name(&mut self, key: &str, default: &str) -> String {
        self.read_or(key, NAME, default.to_owned(), name, |name| name.clone().into())
    }

    /// As [`Settings::name`], for a prefix of channels that is a part of a pattern too.
    pub(super) fn channel_prefix(&mut self, key: &str, default: &str) -> String {
        let accepted = format!(r"{NAME}, and without * ? [ ] \");
        let parse = |value: &Value| name(value).filter(|name| !name.contains(['*', '?', '[', ']', '\\']));
        self.read_or(key, &accepted, default.to_owned(), parse, |name| name.clone().into())
    }

    /// The claim that names the user: not one with a standard meaning.
    pub(super) fn user_claim(&mut self, key: &str) -> String {
        const TAKEN: [&str; 6] = ["exp", "nbf", "iat", "iss", "aud", "jti"];
        let accepted = format!("a claim other than {}: {NAME}", TAKEN.join(", "));
        let parse = |value: &Value| name(value).filter(|name| !TAKEN.contains(&name.as_str()));
        self.read_or(key, &accepted, "sub".to_owned(), parse, |name| name.clone().into())
    }

    pub(super) fn optional_text(&mut self, key: &str) -> Option<String> {
        self.read(key, "a non-empty string", text, |value| value.clone().into())
    }

    /// A cookie's name: a token as in RFC 9110.
    pub(super) fn cookie(&mut self, key: &str, default: &str) -> String {
        self.read_or(key, COOKIE_NAME, default.to_owned(), cookie_name, |name| name.clone().into())
    }

    pub(super) fn optional_cookie(&mut self, key: &str) -> Option<String> {
        self.read(key, COOKIE_NAME, cookie_name, |name| name.clone().into())
    }

    /// The prefix of Redis keys, possibly empty.
    pub(super) fn key_prefix(&mut self, key: &str, default: &str) -> String {
        let parse = |value: &Value| value.as_str().filter(|prefix| prefix.len() <= 128).map(str::to_owned);
        self.read_or(key, "at most 128 characters", default.to_owned(), parse, |prefix| prefix.clone().into())
    }

    pub(super) fn path(&mut self, key: &str, default: &str) -> String {
        let parse = |value: &Value| text(value).filter(|path| path.split('.').all(|name| !name.is_empty()));
        let accepted = "a name, or names separated by dots, such as passport.user";
        self.read_or(key, accepted, default.to_owned(), parse, |path| path.clone().into())
    }

    pub(super) fn readable_file(&mut self, key: &str) -> Option<PathBuf> {
        let path = PathBuf::from(self.optional_text(key)?);
        match std::fs::read(&path) {
            Ok(contents) => self.note_hidden(key, contents),
            Err(error) => {
                self.problem(format!("{key} = {:?}: {error}: expected a readable file", shown_path(&path)));
            }
        }
        Some(path)
    }

    /// A URL whose response cannot be altered in transit, unless `allow_http`.
    pub(super) fn key_set_url(&mut self, key: &str, allow_http: bool) -> Option<KeySetUrl> {
        let accepted = "an https:// URL, or an http:// URL on this machine (on any with auth.jwks_allow_http)";
        let parse = |text: &str| {
            let url = Url::parse(text).map_err(|_| "it is not such a URL");
            let checked = url.and_then(|url| check_key_set_url(&url, allow_http).map(|()| KeySetUrl::new(url)));
            checked.map_err(|why| format!("{why}: expected {accepted}"))
        };
        self.read_url(key, parse)
    }

    /// One of several words; the first is the default.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let find = |word: &str| choices.iter().find(|(name, _)| *name == word).copied();
        let default = choices.first().copied();
        let parse = |value: &Value| value.as_str().and_then(find).map(Some);
        let render = |choice: &Option<(&str, T)>| choice.map_or("", |(word, _)| word).into();
        let chosen = self.read_or(key, &words.join(", "), default, parse, render);
        #[allow(clippy::expect_used, reason = "every caller passes at least one choice")]
        let (_, value) = chosen.expect("a choice");
        value
    }

    /// Networks; an address is a network of its own.
    pub(super) fn networks(&mut self, key: &str) -> Vec<IpNet> {
        let accepted = "a list of networks or addresses such as 10.0.0.0/8, 2001:db8::/32 or 192.0.2.7";
        let network = |text: &String| text.parse().ok().or_else(|| Some(text.parse::<IpAddr>().ok()?.into()));
        let parse = |value: &Value| list(value)?.iter().map(network).collect();
        self.read_or(key, accepted, Vec::new(), parse, |networks| {
            Value::Array(networks.iter().map(|network: &IpNet| network.to_string().into()).collect())
        })
    }

    pub(super) fn origins(&mut self, key: &str) -> Vec<OriginPattern> {
        let parse = |value: &Value| list(value)?.iter().map(|pattern| OriginPattern::parse(pattern)).collect();
        self.read_or(key, OriginPattern::ACCEPTED, Vec::new(), parse, |patterns| {
            Value::Array(patterns.iter().map(|pattern: &OriginPattern| pattern.to_string().into()).collect())
        })
    }
}

const NAME: &str = "1 to 128 characters without whitespace, braces or control characters";

fn name(value: &Value) -> Option<String> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '{' || c == '}';
    text(value).filter(|name| name.len() <= 128 && !name.contains(bad))
}

const COOKIE_NAME: &str = "a cookie's name, such as connect.sid";

fn cookie_name(value: &Value) -> Option<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    text(value).filter(|name| name.chars().all(good))
}

fn check_key_set_url(url: &Url, allow_http: bool) -> Result<(), &'static str> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if loopback || allow_http => {}
        "http" => return Err("its response could be altered on the way"),
        _ => return Err("it is not such a URL"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it has a user or a password");
    }
    check_host(url)?;
    if url.fragment().is_some() { Err("its fragment (#…) has no meaning") } else { Ok(()) }
}
