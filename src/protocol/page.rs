//! Requests of clients for stored notifications, and their answers.

use bytes::Bytes;
use serde_json::Value;

use super::frame::text_frame;
use super::{Cursor, Event};

/// Most notifications in an answer.
pub const MAX_PAGE_ENTRIES: usize = 100;

const DEFAULT_PAGE_ENTRIES: usize = 20;

const MAX_REFERENCE_BYTES: usize = 128;

/// A request for stored notifications, newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// Only older ones than this; `None`: from the newest.
    pub before: Option<Cursor>,
    /// From 1 to [`MAX_PAGE_ENTRIES`].
    pub limit: usize,
    /// The client's text that the answer repeats.
    pub reference: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPageRequest {
    #[error("\"before\" must be an \"id\", or a \"next\", as this gateway sent it")]
    Before,
    #[error("\"limit\" must be a whole number from 1 to {MAX_PAGE_ENTRIES}")]
    Limit,
    #[error("\"ref\" must be a string of at most {MAX_REFERENCE_BYTES} bytes")]
    Reference,
}

impl PageRequest {
    pub(super) fn new(
        before: Option<&Value>,
        limit: Option<&Value>,
        reference: Option<String>,
    ) -> Result<Self, BadPageRequest> {
        let cursor = |value: &Value| value.as_str()?.parse().ok();
        let before = before.map(|value| cursor(value).ok_or(BadPageRequest::Before)).transpose()?;
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
        let limit = limit.map_or(Some(DEFAULT_PAGE_ENTRIES), count);
        let limit = limit.filter(|limit| (1..=MAX_PAGE_ENTRIES).contains(limit)).ok_or(BadPageRequest::Limit)?;
        Ok(Self { before, limit, reference })
    }
}

pub(super) fn reference(value: &Value) -> Result<String, BadPageRequest> {
    let text = value.as_str().filter(|text| text.len() <= MAX_REFERENCE_BYTES);
    text.map(str::to_owned).ok_or(BadPageRequest::Reference)
}

/// The answer of `tidings.v1` to a [`PageRequest`], as a WebSocket frame. The events must be stored.
pub fn encode_page<'a>(
    reference: Option<&str>,
    events: impl Iterator<Item = Event<'a>>,
    next: Option<Cursor>,
) -> Bytes {
    // A string always serialises.
    let quoted = |text| serde_json::to_string(text).unwrap_or_default();
    let reference = reference.map(|text| format!(r#""ref":{},"#, quoted(text))).unwrap_or_default();
    let mut json = format!(r#"{{"type":"history",{reference}"notifications":["#).into_bytes();
    let mut separator = "";
    for event in events {
        let (cursor, ms) = event.cursor.map_or((String::new(), 0), |cursor| (cursor.to_string(), cursor.ms));
        let head = format!(r#"{separator}{{"id":"{cursor}","event":{},"data":"#, quoted(event.name));
        json.extend_from_slice(head.as_bytes());
        json.extend_from_slice(event.data.as_bytes());
        json.extend_from_slice(format!(r#","ts":{ms}}}"#).as_bytes());
        separator = ",";
    }
    let next = next.map_or_else(|| "null".to_owned(), |next| format!("\"{next}\""));
    json.extend_from_slice(format!(r#"],"next":{next}}}"#).as_bytes());
    text_frame(&[&json])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{ClientFrame, FrameError};

    const CURSOR: &str = "0000000000000abc-1795000000123-17";

    #[test]
    fn a_request_is_read_with_its_defaults() {
        let parse = |fields: &str| ClientFrame::parse(&format!(r#"{{"type":"history"{fields}}}"#));
        let request = PageRequest { before: None, limit: 20, reference: None };
        assert_eq!(parse(""), Ok(ClientFrame::History(request.clone())));
        assert_eq!(parse(r#","before":null,"limit":null,"ref":null"#), Ok(ClientFrame::History(request)));
        let request = PageRequest { before: CURSOR.parse().ok(), limit: 100, reference: Some("r".into()) };
        let fields = format!(r#","before":"{CURSOR}","limit":100,"ref":"r""#);
        assert_eq!(parse(&fields), Ok(ClientFrame::History(request)));
    }

    #[test]
    fn a_bad_request_is_refused_with_its_ref() {
        let refused = |fields: &str| {
            let error = ClientFrame::parse(&format!(r#"{{"type":"history",{fields}}}"#)).unwrap_err();
            let FrameError::History { problem, .. } = &error else { panic!("{error}") };
            (*problem, error.reference().map(str::to_owned))
        };
        let reference = Some("r".to_owned());
        for limit in ["0", "101", "-1", "1.5", "\"5\"", "1e300"] {
            let fields = format!(r#""ref":"r","limit":{limit}"#);
            assert_eq!(refused(&fields), (BadPageRequest::Limit, reference.clone()), "{limit}");
        }
        for before in ["5", "\"x\"", "\"\""] {
            let fields = format!(r#""ref":"r","before":{before}"#);
            assert_eq!(refused(&fields), (BadPageRequest::Before, reference.clone()), "{before}");
        }
        let long = format!(r#""ref":"{}""#, "x".repeat(129));
        for fields in [r#""ref":5"#, &long] {
            assert_eq!(refused(fields), (BadPageRequest::Reference, None), "{fields}");
        }
    }

    #[test]
    fn an_answer_has_the_data_byte_for_byte() {
        let cursor: Cursor = CURSOR.parse().unwrap();
        let data = r#"{ "n": 9007199254740993 }"#;
        let event = Event::stored("a\"b", data, cursor);
        let frame = encode_page(Some("r\"1"), [event, event].into_iter(), Some(cursor));
        let one = format!(r#"{{"id":"{CURSOR}","event":"a\"b","data":{data},"ts":1795000000123}}"#);
        let expected = format!(r#"{{"type":"history","ref":"r\"1","notifications":[{one},{one}],"next":"{CURSOR}"}}"#);
        assert_eq!(&frame[4..], expected.as_bytes());
        let empty = encode_page(None, std::iter::empty(), None);
        assert_eq!(&empty[2..], br#"{"type":"history","notifications":[],"next":null}"#);
    }
}
