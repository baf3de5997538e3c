//! Newtypes for the ids of users, connections, credentials and instances.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use compact_str::CompactString;

/// A user: 1 to 256 bytes of UTF-8 without control characters.
///
/// Up to 24 bytes are stored inline, so that a lookup by user reads no memory but the map's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(CompactString);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    #[error("a user id must not be empty")]
    Empty,
    #[error("a user id has at most {} bytes", UserId::MAX_BYTES)]
    TooLong,
    /// C0, DEL or C1.
    #[error("a user id must not contain control characters")]
    Control,
    #[error("a user id must be UTF-8")]
    NotUtf8,
}

impl UserId {
    pub const MAX_BYTES: usize = 256;

    pub fn new(text: &str) -> Result<Self, UserIdError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Checks a text without allocating.
    pub fn check(text: &str) -> Result<(), UserIdError> {
        match text.len() {
            0 => Err(UserIdError::Empty),
            len if len > Self::MAX_BYTES => Err(UserIdError::TooLong),
            _ if text.chars().any(char::is_control) => Err(UserIdError::Control),
            _ => Ok(()),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text has 1 to `most` bytes and no control characters.
pub(super) fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && !text.chars().any(char::is_control)
}

// The registry looks up users by the text in a channel name, without constructing an id.
impl Borrow<str> for UserId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &self.0)
    }
}

/// One client socket, unique across instances and restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    pub fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a connection id has 16 hexadecimal digits")]
pub struct BadConnectionId;

impl FromStr for ConnectionId {
    type Err = BadConnectionId;

    fn from_str(text: &str) -> Result<Self, BadConnectionId> {
        let is_hex = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let id = is_hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or(BadConnectionId)
    }
}

/// As its text.
impl serde::Serialize for ConnectionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// From its text.
impl<'de> serde::Deserialize<'de> for ConnectionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The token or session of a connection, as a hash with a secret key of this process: it takes 8 bytes per connection,
/// and no client can construct a collision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(NonZeroU64);

impl CredentialId {
    pub fn of_token(jti: &str) -> Self {
        Self::hash(("jti", jti))
    }

    pub fn of_session(id: &str) -> Self {
        Self::hash(("session", id))
    }

    fn hash(tagged: (&str, &str)) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(NonZeroU64::new(KEY.hash_one(tagged)).unwrap_or(NonZeroU64::MIN))
    }

    /// Encodes an optional id for an atomic; 0 is `None`.
    pub fn to_bits(credential: Option<Self>) -> u64 {
        credential.map_or(0, |id| id.0.get())
    }

    /// The inverse of [`CredentialId::to_bits`].
    pub fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }
}

/// One running gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    pub fn random() -> Self {
        Self(format!("{:012x}", fastrand::u64(..) >> 16).into())
    }

    /// 12 hexadecimal digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_without_control_characters_is_a_user_id() {
        for text in ["42", "tenant:42", "*", "a b", "Zoë ☂", "user:", &"x".repeat(256)] {
            assert_eq!(UserId::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn empty_oversized_and_control_characters_are_refused() {
        assert_eq!(UserId::new(""), Err(UserIdError::Empty));
        assert_eq!(UserId::new(&"é".repeat(129)), Err(UserIdError::TooLong));
        for text in ["a\nb", "\0", "\u{7f}", "\u{85}"] {
            assert_eq!(UserId::new(text), Err(UserIdError::Control), "{text:?}");
        }
    }
}
