//! The types of configuration values: how each is parsed, described in errors, and printed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use toml::Value;

use super::settings::{Settings, mask_url, text};
use super::value::{DURATION, boolean, format_duration, integer, list, parse_duration};

const COUNT: &str = "a whole number from 1 to 4294967295";

fn count(value: &Value) -> Option<u32> {
    integer(value).and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0)
}

impl Settings {
    pub(super) fn boolean(&mut self, key: &str, default: bool) -> bool {
        self.read_or(key, "true or false", default, boolean, |value| (*value).into())
    }

    pub(super) fn duration(&mut self, key: &str, default: &str, least: Duration) -> Duration {
        let accepted = format!("{DURATION}, at least {}", format_duration(least));
        let default = parse_duration(default).unwrap_or(least);
        let parse = |value: &Value| parse_duration(value.as_str()?).filter(|given| *given >= least);
        self.read_or(key, &accepted, default, parse, |value| format_duration(*value).into())
    }

    pub(super) fn count(&mut self, key: &str, default: u32) -> u32 {
        self.read_or(key, COUNT, default, count, |n| i64::from(*n).into())
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
        if let Err(error) = std::fs::read(&path) {
            self.problem(format!("{key} = {path:?}: {error}: expected a readable file"));
        }
        Some(path)
    }

    /// A URL whose response cannot be altered in transit.
    pub(super) fn issuer_url(&mut self, key: &str) -> Option<Url> {
        let accepted = "an https:// URL, or an http:// URL on this machine, without user or password";
        let parse = |value: &Value| Url::parse(&text(value)?).ok().filter(is_safe);
        self.read(key, accepted, parse, |url| mask_url(url.as_str()).into())
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

    pub(super) fn origins(&mut self, key: &str) -> Vec<String> {
        let accepted = "a list of origins such as https://app.example.com or https://*.example.com, as browsers send \
                        them: without a path, and without the default port (443 for https, 80 for http)";
        let parse = |value: &Value| list(value).filter(|origins| origins.iter().all(|origin| is_origin(origin)));
        self.read_or(key, accepted, Vec::new(), parse, |origins| {
            Value::Array(origins.iter().cloned().map(Value::String).collect())
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

fn is_safe(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    let encrypted = url.scheme() == "https" || (url.scheme() == "http" && loopback);
    encrypted && url.username().is_empty() && url.password().is_none()
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let host = host.strip_prefix("*.").unwrap_or(host);
    let default_port = match scheme.to_ascii_lowercase().as_str() {
        "https" => ":443",
        "http" => ":80",
        _ => "/",
    };
    let scheme_ok = !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    scheme_ok
        && !host.is_empty()
        && !host.ends_with(default_port)
        && !host.contains(|c: char| "/*?#@".contains(c) || c.is_whitespace())
}
