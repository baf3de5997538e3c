//! Entries of the outbox, as backends write them.

use std::time::Duration;

use crate::history::{MAX_KEY_BYTES, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name, is_json};

/// Fields of an entry that are read: an entry of more has one that is unknown or there twice among these.
pub(super) const MAX_FIELDS: usize = 8;

/// Bytes read of a field's name, of data that is too large, and of every other value: each is too long long before.
pub(super) const MAX_FIELD_BYTES: usize = 2_048;

/// Why an entry is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    NoUser,
    BadUser,
    NoData,
    BadJson,
    TooLarge,
    BadEvent,
    BadTtl,
    BadKey,
    UnknownField,
    RepeatedField,
    /// The user's own keys hold something that is none of ours.
    Unstorable,
}

impl Reason {
    /// As operators read it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::NoUser => "no_user",
            Self::BadUser => "bad_user",
            Self::NoData => "no_data",
            Self::BadJson => "bad_json",
            Self::TooLarge => "too_large",
            Self::BadEvent => "bad_event",
            Self::BadTtl => "bad_ttl",
            Self::BadKey => "bad_key",
            Self::UnknownField => "unknown_field",
            Self::RepeatedField => "repeated_field",
            Self::Unstorable => "unstorable",
        }
    }
}

/// An entry as it was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    /// Whether there was more data than may be published, and so only its beginning was read.
    pub(super) too_large: bool,
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// From what a script read: id, whether it is too large, names and values.
    pub(super) fn new(words: Vec<Vec<u8>>) -> Option<Self> {
        let mut words = words.into_iter();
        let id = String::from_utf8(words.next()?).ok()?;
        let too_large = words.next()? == b"1";
        let mut fields = Vec::new();
        while let Some(name) = words.next() {
            fields.push((name, words.next()?));
        }
        Some(Self { id, too_large, fields })
    }

    /// Who is to get what; or why nobody gets anything.
    pub(super) fn judge(&self) -> Result<(UserId, Publication<'_>), Reason> {
        let [mut user, mut event, mut data, mut ttl, mut key] = [None; 5];
        for (name, value) in &self.fields {
            let field = match name.as_slice() {
                b"user" => &mut user,
                b"event" => &mut event,
                b"data" => &mut data,
                b"ttl" => &mut ttl,
                b"key" => &mut key,
                _ => return Err(Reason::UnknownField),
            };
            if field.replace(value.as_slice()).is_some() {
                return Err(Reason::RepeatedField);
            }
        }
        let user = text(user.ok_or(Reason::NoUser)?, Reason::BadUser)?;
        let user = UserId::new(user).map_err(|_| Reason::BadUser)?;
        let data = self.json(data.ok_or(Reason::NoData)?)?;
        let event = event.map_or(Ok(DEFAULT_EVENT), |event| text(event, Reason::BadEvent))?;
        check_event_name(event).map_err(|_| Reason::BadEvent)?;
        let ttl = ttl.map(|ttl| seconds(ttl).ok_or(Reason::BadTtl)).transpose()?;
        let key = key.map(|key| text(key, Reason::BadKey)).transpose()?;
        if key.is_some_and(|key| !(1..=MAX_KEY_BYTES).contains(&key.len())) {
            return Err(Reason::BadKey);
        }
        Ok((user, Publication { event, data, durable: true, ttl, key }))
    }

    /// The data without the white space around it.
    fn json<'a>(&self, data: &'a [u8]) -> Result<&'a str, Reason> {
        if self.too_large {
            return Err(Reason::TooLarge);
        }
        let data = text(data, Reason::BadJson)?.trim_matches([' ', '\t', '\r', '\n']);
        if is_json(data) { Ok(data) } else { Err(Reason::BadJson) }
    }
}

/// An entry, and who is to get what.
pub(super) type Good<'a> = (&'a Entry, UserId, Publication<'a>);

/// An entry, and why nobody gets anything.
pub(super) type Bad<'a> = (&'a Entry, Reason);

/// Entries in their order that are all of one kind.
pub(super) enum Run<'a> {
    Good(Vec<Good<'a>>),
    Bad(Vec<Bad<'a>>),
}

/// These entries, as few runs.
pub(super) fn runs(entries: &[Entry]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    for entry in entries {
        match (entry.judge(), runs.last_mut()) {
            (Ok((user, publication)), Some(Run::Good(run))) => run.push((entry, user, publication)),
            (Ok((user, publication)), _) => runs.push(Run::Good(vec![(entry, user, publication)])),
            (Err(reason), Some(Run::Bad(run))) => run.push((entry, reason)),
            (Err(reason), _) => runs.push(Run::Bad(vec![(entry, reason)])),
        }
    }
    runs
}

fn text(bytes: &[u8], reason: Reason) -> Result<&str, Reason> {
    str::from_utf8(bytes).map_err(|_| reason)
}

/// Whole seconds, at least one, in digits alone; so many that nobody can count them are simply very many.
fn seconds(text: &[u8]) -> Option<Duration> {
    let digits = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let positive = digits.bytes().any(|byte| byte != b'0');
    positive.then(|| Duration::from_secs(digits.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(fields: &[(&str, &str)]) -> Entry {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let fields = fields.iter().map(|(name, value)| (bytes(name), bytes(value))).collect();
        Entry { id: "1-1".into(), too_large: false, fields }
    }

    #[test]
    fn an_entry_names_a_user_and_data_and_may_name_event_ttl_and_key() {
        let least = entry(&[("user", "tenant:42"), ("data", " {\"n\": 1.0}\n")]);
        let (user, publication) = least.judge().unwrap();
        assert_eq!((user.as_str(), publication.event, publication.data), ("tenant:42", "notification", "{\"n\": 1.0}"));
        assert!(publication.durable && publication.ttl.is_none() && publication.key.is_none());

        let all = [("key", "k"), ("ttl", "60"), ("event", "a b"), ("data", "1"), ("user", "42")];
        let all = entry(&all);
        let (_, publication) = all.judge().unwrap();
        assert_eq!((publication.event, publication.key), ("a b", Some("k")));
        assert_eq!(publication.ttl, Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_ttl_is_whole_seconds_in_digits() {
        assert_eq!(seconds(b"007"), Some(Duration::from_secs(7)));
        assert_eq!(seconds(b"99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for wrong in [&b""[..], b"0", b"00", b"-1", b"+1", b"1.5", b"1e3", b" 1", b"5s", b"\xff"] {
            assert_eq!(seconds(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn what_a_script_read_is_an_entry() {
        let words = |words: &[&str]| words.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>();
        let read = Entry::new(words(&["5-0", "1", "user", "42"])).unwrap();
        assert_eq!(read, Entry { too_large: true, id: "5-0".into(), ..entry(&[("user", "42")]) });
        for wrong in [&[][..], &["5-0"], &["5-0", "0", "user"]] {
            assert_eq!(Entry::new(words(wrong)), None);
        }
    }
}
