//! Newtypes for who and what is addressed.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroU64;
use std::sync::{Arc, LazyLock};

use compact_str::CompactString;

/// Who a notification is for: 1 to 256 bytes of UTF-8 without control characters.
///
/// Up to 24 bytes are kept in place: a lookup by user then meets no other memory than the map's.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(CompactString);

/// Why a text is no user id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserIdError {
    /// No bytes at all.
    #[error("a user id must not be empty")]
    Empty,
    /// Over [`UserId::MAX_BYTES`].
    #[error("a user id has at most {} bytes", UserId::MAX_BYTES)]
    TooLong,
    /// C0, DEL or C1.
    #[error("a user id must not contain control characters")]
    Control,
    /// Bytes that are not UTF-8.
    #[error("a user id must be UTF-8")]
    NotUtf8,
}

impl UserId {
    /// The longest id, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 256;

    /// Takes a text as a user id.
    ///
    /// # Errors
    /// [`UserIdError`] when the text is empty, too long or has control characters.
    pub fn new(text: &str) -> Result<Self, UserIdError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    /// Checks a text without keeping it.
    ///
    /// # Errors
    /// As [`UserId::new`].
    pub fn check(text: &str) -> Result<(), UserIdError> {
        match text.len() {
            0 => Err(UserIdError::Empty),
            len if len > Self::MAX_BYTES => Err(UserIdError::TooLong),
            _ if text.chars().any(char::is_control) => Err(UserIdError::Control),
            _ => Ok(()),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text may name something: 1 to `most` bytes without control characters.
pub(super) fn is_name(text: &str, most: usize) -> bool {
    (1..=most).contains(&text.len()) && !text.chars().any(char::is_control)
}

// The registry looks users up by the text in a channel's name, without making an id of it first.
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

/// One client socket, named uniquely across instances and restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(u64);

impl ConnectionId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Which token or session somebody came with: a hash under a key of this process's own, so that a connection keeps 8
/// bytes of it, and nobody can choose two alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CredentialId(NonZeroU64);

impl CredentialId {
    /// Of the token with this `jti`.
    pub fn of_token(jti: &str) -> Self {
        Self::hash(("jti", jti))
    }

    /// Of the session with this id.
    pub fn of_session(id: &str) -> Self {
        Self::hash(("session", id))
    }

    fn hash(what: (&str, &str)) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        Self(NonZeroU64::new(KEY.hash_one(what)).unwrap_or(NonZeroU64::MIN))
    }

    /// For an atomic: 0 is none.
    pub fn to_bits(credential: Option<Self>) -> u64 {
        credential.map_or(0, |id| id.0.get())
    }

    /// Back from [`CredentialId::to_bits`].
    pub fn from_bits(bits: u64) -> Option<Self> {
        NonZeroU64::new(bits).map(Self)
    }
}

/// One running gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct InstanceId(Arc<str>);

impl InstanceId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(format!("{:012x}", fastrand::u64(..) >> 16).into())
    }

    /// The id as text: 12 hexadecimal digits.
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
