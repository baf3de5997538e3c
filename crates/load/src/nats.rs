//! The protocol of NATS: lines, of which a message's is followed by its payload.

use std::io::{Error, Result};

const LINE_END: &[u8] = b"\r\n";

pub(crate) const PING: &[u8] = b"PING\r\n";
pub(crate) const PONG: &[u8] = b"PONG\r\n";

/// Introduces a client, without `+OK` after each of its operations.
pub(crate) const CONNECT: &str = "CONNECT {\"verbose\":false}\r\n";

/// Introduces a client and subscribes it to its user's messages. The `PONG` shows that the server has done so.
pub(crate) fn subscription(user: u32) -> String {
    format!("{CONNECT}SUB user.{user} 1\r\nPING\r\n")
}

/// What the server sends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    Message(&'a [u8]),
    Ping,
    Pong,
    /// Information about the server.
    Other,
}

/// Parses the first complete operation; returns it and its total length.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Operation<'_>, usize)>> {
    let Some(line_len) = bytes.windows(2).position(|window| window == LINE_END) else { return Ok(None) };
    let line = bytes.get(..line_len).unwrap_or_default();
    let (operation, start) = (line.split(|byte| *byte == b' ').next().unwrap_or_default(), line_len + LINE_END.len());
    let unexpected = || Error::other(format!("unexpected: {}", String::from_utf8_lossy(line)));
    match operation {
        b"PING" => Ok(Some((Operation::Ping, start))),
        b"PONG" => Ok(Some((Operation::Pong, start))),
        b"INFO" => Ok(Some((Operation::Other, start))),
        b"MSG" => {
            let len = line.rsplit(|byte| *byte == b' ').next().and_then(|len| str::from_utf8(len).ok()?.parse().ok());
            let end = start.saturating_add(len.ok_or_else(unexpected)?);
            let whole = bytes.get(..end.saturating_add(LINE_END.len()));
            Ok(whole.and_then(|whole| Some((Operation::Message(whole.get(start..end)?), whole.len()))))
        }
        _ => Err(unexpected()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_parsed_once_it_is_complete() {
        for (text, operation) in [
            ("PING\r\n", Operation::Ping),
            ("PONG\r\n", Operation::Pong),
            ("INFO {\"proto\":1} \r\n", Operation::Other),
            ("MSG user.7 1 0\r\n\r\n", Operation::Message(b"")),
            ("MSG user.7 1 reply.8 6\r\na\r\nb\r\n\r\n", Operation::Message(b"a\r\nb\r\n")),
        ] {
            for cut in 0..text.len() {
                assert_eq!(parse(&text.as_bytes()[..cut]).unwrap(), None, "{text:?}, {cut}");
            }
            let more = format!("{text}MSG");
            assert_eq!(parse(more.as_bytes()).unwrap(), Some((operation, text.len())));
        }
    }

    #[test]
    fn an_error_of_the_server_and_an_unknown_operation_are_errors() {
        for text in ["-ERR 'Slow Consumer'\r\n", "HMSG a 1 2 3\r\n", "MSG user.7 1 x\r\n", "\r\n"] {
            parse(text.as_bytes()).unwrap_err();
        }
    }
}
