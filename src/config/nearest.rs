//! The known name that an unknown one was probably meant to be.

use strsim::levenshtein;

/// More changes than these make another word.
const MOST_CHANGES: usize = 3;

/// The name that differs least, or the one of which only the section is missing.
pub(super) fn nearest<'a>(given: &str, known: &'a [String]) -> Option<&'a str> {
    let without_section = |name: &&String| name.rsplit_once('.').is_some_and(|(_, last)| last == given);
    let changes = known.iter().map(|name| (levenshtein(given, name), name));
    let near = changes.filter(|(changes, _)| *changes <= MOST_CHANGES && changes * 3 <= given.len());
    let least = near.min().map(|(_, name)| name);
    known.iter().find(without_section).or(least).map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_the_one_that_differs_least() {
        let known = ["server.listen", "server.admin_listen", "redis.url", "log.level"].map(str::to_owned);
        for (given, meant) in [
            ("server.listn", Some("server.listen")),
            ("sever.listen", Some("server.listen")),
            ("server.lisetn", Some("server.listen")),
            ("redis_url", Some("redis.url")),
            ("listen", Some("server.listen")),
            ("admin_listen", Some("server.admin_listen")),
            ("log.format", None),
            ("nonsense", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &known), meant, "{given}");
        }
    }
}
