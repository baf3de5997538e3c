//! The id of an Engine.IO session.

use std::fmt;
use std::str::FromStr;

use super::BadPacket;

/// Names a session in each request of a polling client. It is a secret: any client that knows it can act for the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(u128);

impl SessionId {
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(u128::from_ne_bytes(bytes)))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(…)")
    }
}

impl FromStr for SessionId {
    type Err = BadPacket;

    fn from_str(text: &str) -> Result<Self, BadPacket> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        is_hex.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(Self).ok_or(BadPacket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_round_trips_and_is_not_shown_by_accident() {
        let id = SessionId::random().unwrap();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(!format!("{id:?}").contains(&id.to_string()));
        for text in ["", "0", &"0".repeat(33), &"A".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert_eq!(text.parse::<SessionId>(), Err(BadPacket), "{text}");
        }
    }
}
