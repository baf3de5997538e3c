//! Validates the outbox entries that backends write.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use redis::{Value, from_redis_value};

use crate::history::{MAX_COLLAPSE_BYTES, MAX_ESCALATE, MAX_KEY_BYTES, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name, is_json, traceparent};

/// Fields read of an entry. There are 8 valid names, so more fields contain an unknown or repeated one.
pub(super) const MAX_FIELDS: usize = 9;

/// Bytes read of field names, oversize data and all other values. It exceeds the limit of each.
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
    BadCollapse,
    BadEscalate,
    UnknownField,
    RepeatedField,
    /// Another program has written to the user's keys.
    Unstorable,
}

impl Reason {
    /// The label in metrics, logs and the stream of rejected entries.
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
            Self::BadCollapse => "bad_collapse",
            Self::BadEscalate => "bad_escalate",
            Self::UnknownField => "unknown_field",
            Self::RepeatedField => "repeated_field",
            Self::Unstorable => "unstorable",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: String,
    /// The data exceeds `limits.max_payload_bytes`, and is truncated here.
    pub(super) too_large: bool,
    pub(super) fields: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Parses what `read.lua` returns: id; names and values; and `1` if its data was too large.
    pub(super) fn new(reply: Vec<Value>) -> Option<Self> {
        let mut reply = reply.into_iter();
        let id = from_redis_value(reply.next()?).ok()?;
        let mut words = from_redis_value::<Vec<Vec<u8>>>(reply.next()?).ok()?.into_iter();
        let too_large = reply.next().is_some();
        let mut fields = Vec::new();
        while let Some(name) = words.next() {
            fields.push((name, words.next()?));
        }
        Some(Self { id, too_large, fields })
    }

    /// Its id and a fingerprint of its content: the id may be used again once the outbox was deleted.
    pub(super) fn mark(&self) -> String {
        let mut content = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
        for part in self.fields.iter().flat_map(|(name, value)| [name, value]) {
            content.update(&part.len().to_be_bytes());
            content.update(part);
        }
        let digest = content.finish();
        let start = digest.as_ref().first_chunk().map_or(0, |start| u64::from_be_bytes(*start));
        format!("{}:{start:016x}", self.id)
    }

    pub(super) fn validate(&self) -> Result<(UserId, Publication<'_>), Reason> {
        let [mut user, mut event, mut data, mut ttl, mut key, mut collapse, mut escalate, mut trace] = [None; 8];
        for (name, value) in &self.fields {
            let field = match name.as_slice() {
                b"user" => &mut user,
                b"event" => &mut event,
                b"data" => &mut data,
                b"ttl" => &mut ttl,
                b"key" => &mut key,
                b"collapse" => &mut collapse,
                b"escalate" => &mut escalate,
                b"traceparent" => &mut trace,
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
        let collapse = collapse.map(|key| text(key, Reason::BadCollapse)).transpose()?;
        if collapse.is_some_and(|key| !(1..=MAX_COLLAPSE_BYTES).contains(&key.len())) {
            return Err(Reason::BadCollapse);
        }
        let escalate = escalate.map(|after| escalation(after).ok_or(Reason::BadEscalate)).transpose()?;
        // As the header of a request: a bad one is no reason to reject a notification.
        let trace = trace.and_then(|trace| traceparent(str::from_utf8(trace).ok()?));
        let publication = Publication { event, data, durable: true, ttl, key, collapse, escalate, trace };
        Ok((user, publication))
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

pub(super) type Valid<'a> = (&'a Entry, UserId, Publication<'a>);

pub(super) type Invalid<'a> = (&'a Entry, Reason);

/// Consecutive entries that are all valid, or all invalid.
pub(super) enum Run<'a> {
    Valid(Vec<Valid<'a>>),
    Invalid(Vec<Invalid<'a>>),
}

/// Groups entries into as few runs as possible, in order.
pub(super) fn runs(entries: &[Entry]) -> Vec<Run<'_>> {
    let mut runs = Vec::new();
    for entry in entries {
        match (entry.validate(), runs.last_mut()) {
            (Ok((user, publication)), Some(Run::Valid(run))) => run.push((entry, user, publication)),
            (Ok((user, publication)), _) => runs.push(Run::Valid(vec![(entry, user, publication)])),
            (Err(reason), Some(Run::Invalid(run))) => run.push((entry, reason)),
            (Err(reason), _) => runs.push(Run::Invalid(vec![(entry, reason)])),
        }
    }
    runs
}

fn text(bytes: &[u8], reason: Reason) -> Result<&str, Reason> {
    str::from_utf8(bytes).map_err(|_| reason)
}

/// Parses whole seconds, at least one, digits only. A number over `u64::MAX` saturates.
fn seconds(text: &[u8]) -> Option<Duration> {
    let digits = str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let positive = digits.bytes().any(|byte| byte != b'0');
    positive.then(|| Duration::from_secs(digits.parse().unwrap_or(u64::MAX)))
}

fn escalation(text: &[u8]) -> Option<Duration> {
    seconds(text).filter(|after| *after <= MAX_ESCALATE)
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
    fn an_entry_names_a_user_and_data_and_may_name_more() {
        let least = entry(&[("user", "tenant:42"), ("data", " {\"n\": 1.0}\n")]);
        let (user, publication) = least.validate().unwrap();
        assert_eq!((user.as_str(), publication.event, publication.data), ("tenant:42", "notification", "{\"n\": 1.0}"));
        assert!(publication.durable && publication.ttl.is_none() && publication.key.is_none());
        assert_eq!(publication.escalate, None);

        let all = [("key", "k"), ("ttl", "60"), ("event", "a b"), ("data", "1"), ("user", "42"), ("collapse", "c")];
        let all: Vec<_> = all.into_iter().chain([("escalate", "3600")]).collect();
        let all = entry(&all);
        let (_, publication) = all.validate().unwrap();
        assert_eq!((publication.event, publication.key, publication.collapse), ("a b", Some("k"), Some("c")));
        assert_eq!(publication.ttl, Some(Duration::from_secs(60)));
        assert_eq!(publication.escalate, Some(Duration::from_secs(3_600)));
        assert_eq!((escalation(b"2592000"), escalation(b"2592001")), (Some(MAX_ESCALATE), None));
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
    fn a_mark_differs_with_the_id_and_with_any_content() {
        let mark = |id: &str, fields: &[(&str, &str)]| Entry { id: id.into(), ..entry(fields) }.mark();
        let marks = [
            mark("1-1", &[("user", "42"), ("data", "1")]),
            mark("1-2", &[("user", "42"), ("data", "1")]),
            mark("1-1", &[("user", "42"), ("data", "2")]),
            mark("1-1", &[("user", "4"), ("data", "21")]),
            mark("1-1", &[("user", "42")]),
        ];
        assert_eq!(marks.iter().collect::<std::collections::HashSet<_>>().len(), marks.len(), "{marks:?}");
        assert_eq!(marks[0], mark("1-1", &[("user", "42"), ("data", "1")]));
        assert!(marks.iter().all(|mark| mark.len() == "1-1:".len() + 16 && mark.starts_with("1-")));
    }

    #[test]
    fn what_the_script_reads_is_an_entry() {
        let word = |word: &str| Value::BulkString(word.into());
        let words = |all: &[&str]| Value::Array(all.iter().map(|one| word(one)).collect());
        let read = Entry::new(vec![word("5-0"), words(&["user", "42"]), word("1")]).unwrap();
        assert_eq!(read, Entry { too_large: true, id: "5-0".into(), ..entry(&[("user", "42")]) });
        assert!(!Entry::new(vec![word("5-0"), words(&["user", "42"])]).unwrap().too_large);
        for wrong in [vec![], vec![word("5-0")], vec![word("5-0"), words(&["user"])]] {
            assert_eq!(Entry::new(wrong), None);
        }
    }
}
