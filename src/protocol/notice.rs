//! Notices to a user's connections about its stored notifications, on the same channel as these, to keep the order:
//! `~!` and a JSON object. See [`super::Envelope`] for the other messages.

use serde::{Deserialize, Serialize};

use super::{ConnectionId, Cursor};

/// The first bytes of a notice.
pub const NOTICE_START: &str = "~!";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Notice {
    Retracted {
        retracted: Cursor,
    },
    /// All of the user's notifications were erased: open connections continue from this position, in a new epoch.
    Erased {
        erased: Cursor,
    },
    /// The read position of a device was moved.
    Read {
        read: Cursor,
        device: String,
        unread: u64,
        /// The connection whose client moved it; `None`: it was moved over HTTP.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<ConnectionId>,
    },
}

impl Notice {
    /// Parses a message that begins with [`NOTICE_START`]; `None` if it is malformed.
    pub fn parse(text: &str) -> Option<Self> {
        let json = text.strip_prefix(NOTICE_START).filter(|json| json.starts_with('{'))?;
        serde_json::from_str(json).ok()
    }

    pub fn write(&self) -> String {
        // It always serialises: it has no map or float.
        format!("{NOTICE_START}{}", serde_json::to_string(self).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "0000000000000abc-1795000000123-17";

    #[test]
    fn a_notice_round_trips() {
        let (cursor, device) = (CURSOR.parse().unwrap(), "a\"b/é".to_owned());
        for notice in [
            Notice::Retracted { retracted: cursor },
            Notice::Erased { erased: cursor },
            Notice::Read { read: cursor, device: device.clone(), unread: 3, by: None },
            Notice::Read { read: cursor, device, unread: 0, by: Some(ConnectionId::random()) },
        ] {
            assert_eq!(Notice::parse(&notice.write()), Some(notice));
        }
    }

    #[test]
    fn a_notice_is_read_as_lua_writes_it() {
        let text = format!(r#"~!{{"read":"{CURSOR}","device":"a\/b","unread":3,"by":"00000000000000ff"}}"#);
        let by = "00000000000000ff".parse().ok();
        let read = Notice::Read { read: CURSOR.parse().unwrap(), device: "a/b".into(), unread: 3, by };
        assert_eq!(Notice::parse(&text), Some(read));
    }

    #[test]
    fn a_malformed_notice_is_not_parsed() {
        for json in [
            "",
            "1",
            "[]",
            "{}",
            r#"{"retracted":5}"#,
            r#"{"retracted":"x"}"#,
            &format!(r#"{{"read":"{CURSOR}","device":"a"}}"#),
            &format!(r#"{{"read":"{CURSOR}","device":"a","unread":-1}}"#),
            &format!(r#"{{"read":"{CURSOR}","device":"a","unread":1,"by":"ff"}}"#),
            &format!(r#"{{"retracted":"{CURSOR}"}} 1"#),
        ] {
            assert_eq!(Notice::parse(&format!("~!{json}")), None, "{json}");
        }
    }
}
