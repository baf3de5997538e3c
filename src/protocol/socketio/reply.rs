//! The packets of the server, except events (see [`crate::protocol::Event`]).

use serde::Serialize;

use crate::protocol::Close;

/// Separates the packets of a polling body.
pub const SEPARATOR: char = '\u{1e}';

/// Ends a polling session.
pub const CLOSE: &str = "1";
/// Requests a `3`.
pub const PING: &str = "2";
/// Answers a `2probe`.
pub const PROBED: &str = "3probe";
/// Ends a held request without a message.
pub const NOOP: &str = "6";
/// Disconnects the client from `/`: it does not return by itself.
pub const DISCONNECT: &str = "41";

/// The transports that a polling session may be upgraded to.
pub const UPGRADES: &[&str] = &["websocket"];

/// The first packet of a session.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Open<'a> {
    pub sid: &'a str,
    pub upgrades: &'a [&'a str],
    /// In ms, as the next.
    pub ping_interval: u64,
    pub ping_timeout: u64,
    pub max_payload: usize,
}

impl Open<'_> {
    pub fn encode(&self) -> String {
        packet("0", self)
    }
}

/// Answers a CONNECT. Without a `pid`, the client does not ask to resume later.
pub fn connected(sid: &str, pid: Option<&str>) -> String {
    #[derive(Serialize)]
    struct Connected<'a> {
        sid: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<&'a str>,
    }
    packet("40", &Connected { sid, pid })
}

/// Refuses a CONNECT to `/`: the client does not retry by itself.
pub fn refused(close: Close, message: &str) -> String {
    #[derive(Serialize)]
    struct Refused<'a> {
        message: &'a str,
        data: Data,
    }
    #[derive(Serialize)]
    struct Data {
        code: u16,
    }
    packet("44", &Refused { message, data: Data { code: close.code() } })
}

/// Refuses a CONNECT to another namespace.
pub fn invalid_namespace(namespace: &str) -> String {
    format!(r#"44{namespace},{{"message":"Invalid namespace"}}"#)
}

fn packet(kind: &str, data: &impl Serialize) -> String {
    // These packets always serialise: they have no map, float or foreign type.
    kind.to_owned() + &serde_json::to_string(data).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packets_are_those_of_the_protocol() {
        let open = Open { sid: "s", upgrades: UPGRADES, ping_interval: 25_000, ping_timeout: 10_000, max_payload: 7 };
        let text = r#"0{"sid":"s","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":10000,"maxPayload":7}"#;
        assert_eq!(open.encode(), text);
        assert_eq!(connected("s", Some("a\"b")), r#"40{"sid":"s","pid":"a\"b"}"#);
        assert_eq!(connected("s", None), r#"40{"sid":"s"}"#);
        assert_eq!(refused(Close::TokenExpired, "over"), r#"44{"message":"over","data":{"code":4010}}"#);
        assert_eq!(invalid_namespace("/admin"), r#"44/admin,{"message":"Invalid namespace"}"#);
    }
}
