//! Events, as WebSocket frames: they are the packets that are sent often.

use bytes::Bytes;

use super::RESERVED_EVENTS;
use crate::protocol::{Cursor, text_frame};

/// An EVENT packet; empty for a reserved name. `quotable` is the name as it stands in JSON, without its quotes.
pub fn event(name: &str, quotable: &str, data: &str, cursor: Option<Cursor>) -> Bytes {
    if RESERVED_EVENTS.contains(&name) {
        return Bytes::new();
    }
    let end = match cursor {
        Some(cursor) => &format!(r#","{cursor}"]"#),
        // A client takes a string in the last place for its position.
        None if data.starts_with('"') => ",null]",
        None => "]",
    };
    text_frame(&[br#"42[""#, quotable.as_bytes(), br#"","#, data.as_bytes(), end.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str, data: &str, cursor: Option<Cursor>) -> String {
        let frame = event(name, name, data, cursor);
        String::from_utf8(frame.get(2..).unwrap_or_default().to_vec()).unwrap()
    }

    #[test]
    fn the_last_element_of_an_event_is_a_string_only_if_it_is_a_position() {
        let cursor = "0000000000000abc-1795000000123-17".parse().ok();
        assert_eq!(text("paid", r#"{"n":1}"#, None), r#"42["paid",{"n":1}]"#);
        assert_eq!(text("paid", r#""text""#, None), r#"42["paid","text",null]"#);
        assert_eq!(text("paid", r#""text""#, cursor), r#"42["paid","text","0000000000000abc-1795000000123-17"]"#);
    }

    #[test]
    fn an_event_with_a_reserved_name_is_not_sent() {
        for name in RESERVED_EVENTS {
            assert_eq!(event(name, name, "1", None), Bytes::new());
        }
    }
}
