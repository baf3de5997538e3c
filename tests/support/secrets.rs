//! Every secret that the suite creates, and a search for them in the whole output of an instance, the output of commands,
//! and the bodies and frames of errors.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{LazyLock, Mutex};

use super::SECRET;

/// Shorter ones are words of the tests that may stand anywhere.
const LEAST: usize = 8;

/// So much of a token is recognised, wherever it is cut off.
const PIECE: usize = 16;

struct Known {
    /// Searched for as they are: few.
    secrets: Vec<(&'static str, String)>,
    /// The beginning of each part of each token and cookie: many.
    pieces: HashSet<Vec<u8>>,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(|| {
    let secrets = vec![("the suite's own secret", SECRET.to_owned())];
    Mutex::new(Known { secrets, pieces: HashSet::new() })
});

/// A test that fails while it holds the lock has found something: the others go on.
fn known() -> std::sync::MutexGuard<'static, Known> {
    KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn runs(text: &str) -> impl Iterator<Item = &[u8]> {
    let of_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || [b'-', b'_'].contains(byte);
    text.as_bytes().split(move |byte| !of_base64url(byte)).filter(|run| run.len() >= PIECE)
}

/// A token or a cookie: no part of it may show.
pub fn keep_token(token: &str) {
    let mut known = known();
    for run in runs(token) {
        known.pieces.extend(run.get(..PIECE).map(<[u8]>::to_vec));
    }
}

/// A cookie's value, and the session id in it as the application knows it: a `%3A` in front hides its beginning.
fn keep_cookie(value: &str) {
    keep_token(value);
    keep_token(&percent_decoded(value));
}

fn percent_decoded(value: &str) -> String {
    let mut parts = value.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.split_at_checked(2).and_then(|(hex, rest)| Some((u8::from_str_radix(hex, 16).ok()?, rest)));
        match byte {
            Some((byte, rest)) => decoded.extend([char::from(byte)].into_iter().chain(rest.chars())),
            None => decoded.extend(['%'].into_iter().chain(part.chars())),
        }
    }
    decoded
}

/// A secret, a password, a key.
pub fn keep(kind: &'static str, secret: &str) {
    let mut known = known();
    if secret.len() >= LEAST && !known.secrets.iter().any(|(_, other)| other == secret) {
        known.secrets.push((kind, secret.to_owned()));
    }
}

/// What a request says about who asks.
pub fn keep_headers(headers: &[(&str, &str)]) {
    for (name, value) in headers {
        match name.to_ascii_lowercase().as_str() {
            "authorization" => {
                let credential = value.split_once(' ').map_or(*value, |(_, credential)| credential);
                if credential.split('.').count() == 3 { keep_token(credential) } else { keep("credential", credential) }
            }
            "cookie" => {
                value.split(';').filter_map(|pair| pair.split_once('=')).for_each(|(_, value)| keep_cookie(value))
            }
            _ => {}
        }
    }
}

/// What the configuration of an instance holds: a key's name, or a variable's, and its value.
pub fn keep_setting(name: &str, value: &str) {
    let name = name.to_ascii_lowercase();
    if let Some((_, rest)) = value.split_once("://") {
        let password = rest.rsplit_once('@').and_then(|(user, _)| user.split_once(':')).map(|(_, password)| password);
        keep("password in a URL", password.unwrap_or_default());
    } else if ["secret", "api_key", "password"].iter().any(|word| name.contains(word)) {
        // There may be several session secrets.
        if name.ends_with("_file") {
            let text = std::fs::read_to_string(Path::new(value)).unwrap_or_default();
            text.lines().for_each(|secret| keep("secret in a file", secret.trim()));
        } else if name.ends_with("session_secret") {
            value.split(',').for_each(|secret| keep("configured secret", secret.trim()));
        } else {
            keep("configured secret", value);
        }
    }
}

/// As [`keep_setting`], for a whole command line.
pub fn keep_args<'a>(args: impl IntoIterator<Item = &'a str>) {
    let mut flag = "";
    for arg in args {
        match (flag, arg.split_once('=')) {
            ("--set", Some((key, value))) => keep_setting(key, value),
            _ if flag.starts_with("--") => keep_setting(flag, arg),
            _ => {}
        }
        flag = arg;
    }
}

/// What of the suite's secrets a text shows: its kind.
fn shown(text: &str) -> Option<&'static str> {
    let known = known();
    if let Some((kind, _)) = known.secrets.iter().find(|(_, secret)| text.contains(secret)) {
        return Some(kind);
    }
    let shows = runs(text).any(|run| run.windows(PIECE).any(|window| known.pieces.contains(window)));
    shows.then_some("token or cookie")
}

/// Fails where a text shows one.
#[track_caller]
#[allow(clippy::print_stderr, reason = "where panicking is no longer possible")]
pub fn check(place: &str, text: &str) {
    let Some(line) = text.lines().find(|line| shown(line).is_some()) else { return };
    let kind = shown(line).unwrap_or_default();
    if std::thread::panicking() {
        // The test has failed already; a second panic would end all of them.
        eprintln!("{place} shows a secret of the suite ({kind}): {line}");
    } else {
        panic!("{place} shows a secret of the suite ({kind}): {line}");
    }
}

#[test]
fn a_secret_is_found_wherever_it_stands() {
    let token = "aGVhZGVyIG9mIHRoaXMgdGVzdA.cGF5bG9hZCBvZiB0aGlzIHRlc3Q.c2lnbmF0dXJlIG9mIHRoaXMgdGVzdA";
    keep_token(token);
    keep_args([
        "serve",
        "--redis-url",
        "redis://:secrets-test-password@127.0.0.1",
        "--set",
        "auth.hmac_secret=secrets-test-key",
    ]);
    keep_setting("TIDINGS_AUTH__SESSION_SECRET", "secrets-test-new, secrets-test-old");
    keep_headers(&[
        ("Authorization", "Bearer secrets-test-api-key"),
        ("Cookie", "lang=en; connect.sid=s%3AsecretsTestSession.c2lnbmF0dXJlIG9m%2BaGUgY29va2ll"),
    ]);
    for (kind, text) in [
        ("token or cookie", token),
        ("token or cookie", "token=xc2lnbmF0dXJlIG9mIHRoaX…"),
        ("password in a URL", "connecting to redis://:secrets-test-password@127.0.0.1"),
        ("configured secret", "secrets-test-key"),
        ("configured secret", "signed with secrets-test-new"),
        ("configured secret", "signed with secrets-test-old"),
        ("token or cookie", "no right to sess:secretsTestSession"),
        ("token or cookie", "s%3AsecretsTestSession"),
        ("credential", r#"{"error":"no secrets-test-api-key"}"#),
    ] {
        assert_eq!(shown(text), Some(kind), "{text}");
    }
    assert_eq!(shown("secrets-test, aGVhZGVyIG9mIHR"), None);
}
