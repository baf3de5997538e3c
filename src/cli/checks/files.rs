//! Certificates, and the limit of file descriptors.

use std::path::Path;

use super::{Finding, counted};
use crate::config::{Config, TlsFiles, Validity};
use crate::protocol::unix_seconds;
use crate::server::browsers_allowed;

const DAY: i64 = 86_400;

/// Certificates that are renewed automatically are renewed earlier.
const SOON: i64 = 14 * DAY;

/// Fewer is the default of a system, not a choice.
const FEW_BROWSERS: u64 = 4_096;

/// When each certificate that the configuration names expires.
pub(super) fn certificates(config: &Config) -> Vec<Finding> {
    let pairs = [&config.server.tls, &config.redis.certificate].into_iter().flatten();
    let pairs = pairs.filter_map(own);
    let authorities =
        [("redis.ca_file", &config.redis.ca_file), ("auth.jwks_ca_file", &config.auth.jwks_ca_file)].into_iter();
    let authorities = authorities.filter_map(|(key, path)| Some((key, last(path.as_ref()?)?)));
    let now = i64::try_from(unix_seconds()).unwrap_or(i64::MAX);
    pairs.chain(authorities).map(|(key, validity)| judge(key, validity, now)).collect()
}

/// The certificate itself, which comes first.
fn own(files: &TlsFiles) -> Option<(&'static str, Validity)> {
    let pem = files.read().ok()?;
    Some((files.certificate_key(), Validity::of_each(pem.certificate()).into_iter().next()?))
}

/// The authority that expires last: the others may be of an earlier time.
fn last(path: &Path) -> Option<Validity> {
    Validity::of_each(&std::fs::read(path).ok()?).into_iter().max_by_key(|validity| validity.until)
}

fn judge(key: &'static str, Validity { from, until }: Validity, now: i64) -> Finding {
    let refused = "connections with it are refused";
    let days = |seconds: i64| counted(seconds.unsigned_abs() / DAY.unsigned_abs(), "day");
    match (now.saturating_sub(from), until.saturating_sub(now)) {
        (early, _) if early < 0 => {
            let left = days(DAY - early);
            let text = format!("is not valid yet, but in {left}: {refused}: correct the clock, or the file");
            Finding::error(key, text)
        }
        (_, left) if left < 0 => Finding::error(key, format!("expired {} ago: {refused}: renew it", days(-left))),
        (_, left) if left < SOON => {
            let text = format!("expires in {}, and then {refused}: renew it", days(left));
            Finding::warning(key, text)
        }
        (_, left) => Finding::ok(key, format!("expires in {}", days(left))),
    }
}

/// How many browsers it allows.
pub(super) fn file_limit(config: &Config) -> Finding {
    const ABOUT: &str = "file limit:";
    const RAISE: &str = "raise the hard limit of file descriptors (LimitNOFILE= of systemd, ulimits of Docker)";
    let allowed = browsers_allowed();
    let few =
        format!("{allowed} connections of browsers at most, each needs a file descriptor: further ones are refused");
    match config.limits.get().max_connections {
        Some(most) if u64::from(most) > allowed => {
            Finding::warning(ABOUT, format!("{few} before limits.max_connections = {most} is reached: {RAISE}"))
        }
        None if allowed < FEW_BROWSERS => Finding::warning(ABOUT, format!("{few}: {RAISE}")),
        _ => Finding::ok(ABOUT, format!("{allowed} connections of browsers at most")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_certificate_is_judged_by_the_time_that_is_left() {
        let validity = Validity { from: 10 * DAY, until: 100 * DAY };
        for (day, level, part) in [
            (9, Level::Error, "not valid yet, but in 2 days"),
            (50, Level::Ok, "expires in 50 days"),
            (90, Level::Warning, "expires in 10 days"),
            (101, Level::Error, "expired 1 day ago"),
        ] {
            let finding = judge("server.tls_cert_file", validity, day * DAY);
            assert!(finding.level == level && finding.to_string().contains(part), "{finding}");
        }
    }
}
