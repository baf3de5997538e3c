//! What separates the server's messages in each protocol, and the message header in their payload.

/// Parses the server's first complete frame: its opcode, its payload, and its total length (RFC 6455, section 5.2).
pub(crate) fn parse_frame(buffer: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [first, second, rest @ ..] = buffer else { return None };
    let (len, start) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let end = start + len;
    Some((first & 0x0f, buffer.get(start..end)?, end))
}

/// Separates the packets in the body of a polling response.
pub(crate) const PACKET_SEPARATOR: u8 = 0x1e;

/// Finds the first complete block of a stream of Server-Sent Events; returns it and its total length.
pub(crate) fn parse_block(buffer: &[u8]) -> Option<(&[u8], usize)> {
    let len = buffer.windows(2).position(|window| window == b"\n\n")?;
    Some((buffer.get(..len)?, len + 2))
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
    /// The length of the whole response.
    pub(crate) len: usize,
}

/// Parses the first complete HTTP response, which must have a `Content-Length`.
pub(crate) fn parse_response(buffer: &[u8]) -> Result<Option<Response<'_>>, String> {
    let Some(start) = buffer.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4) else {
        return Ok(None);
    };
    let head = str::from_utf8(buffer.get(..start).unwrap_or_default()).unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut headers = head.lines().filter_map(|line| line.split_once(':'));
    let len = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let len = len.and_then(|(_, len)| len.trim().parse::<usize>().ok());
    let Some((status, len)) = status.zip(len) else { return Err(format!("unexpected response: {head}")) };
    let end = start.saturating_add(len);
    Ok(buffer.get(start..end).map(|body| Response { status, body, len: end }))
}

/// Finds the number and the due time of a message in a payload of any protocol.
pub(crate) fn message_header(payload: &[u8]) -> Option<(u64, u64)> {
    const START: &[u8] = br#"{"n":"#;
    let at = payload.windows(START.len()).position(|window| window == START)?;
    let (number, rest) = parse_number(payload.get(at + START.len()..)?)?;
    let (due, rest) = parse_number(rest.strip_prefix(br#","t":"#)?)?;
    rest.starts_with(b",").then_some((number, due))
}

/// Parses a number of at least one digit; returns it with the remaining text.
fn parse_number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = text.split_at_checked(end)?;
    Some((str::from_utf8(digits).ok()?.parse().ok()?, rest))
}

/// The opcodes of frames that clients send.
pub(crate) const TEXT: u8 = 1;
pub(crate) const BINARY: u8 = 2;
pub(crate) const PONG: u8 = 10;

/// Encodes a client's masked frame. A mask of zeros leaves the payload unchanged.
pub(crate) fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match u8::try_from(payload.len()) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A server's unmasked text frame.
    pub(crate) fn server_frame(text: &str) -> Vec<u8> {
        let len = u16::try_from(text.len()).unwrap();
        let head = match u8::try_from(len) {
            Ok(short) if short < 126 => vec![0x81, short],
            _ => [&[0x81, 126][..], &len.to_be_bytes()].concat(),
        };
        [&head, text.as_bytes()].concat()
    }

    #[test]
    fn the_message_header_is_found_in_the_envelope_of_every_protocol() {
        for payload in [
            r#"{"n":7,"t":12,"p":"x"}"#,
            r#"{"type":"event","event":"notification","data":{"n":7,"t":12,"p":"x"}}"#,
            r#"42["notification",{"n":7,"t":12,"p":"x"}]"#,
        ] {
            let bytes = server_frame(payload);
            let (opcode, payload, end) = parse_frame(&bytes).unwrap();
            assert_eq!((opcode, end, message_header(payload)), (1, bytes.len(), Some((7, 12))));
        }
    }

    #[test]
    fn a_frame_of_any_length_is_parsed_once_it_is_complete() {
        for len in [0, 125, 126, 300, 65_535, 65_536] {
            let mut bytes = match len {
                0..126 => vec![0x82, u8::try_from(len).unwrap()],
                126..65_536 => [&[0x82, 126][..], &u16::try_from(len).unwrap().to_be_bytes()].concat(),
                _ => [&[0x82, 127][..], &(len as u64).to_be_bytes()].concat(),
            };
            bytes.resize(bytes.len() + len, 7);
            assert_eq!(parse_frame(&bytes), Some((2, &vec![7; len][..], bytes.len())));
            bytes.pop();
            assert_eq!(parse_frame(&bytes), None);
        }
    }

    #[test]
    fn a_block_or_a_response_is_parsed_once_it_is_complete() {
        let response = "HTTP/1.1 200 OK\r\ncontent-LENGTH: 4\r\n\r\n2\u{1e}6x";
        for cut in 0..response.len() {
            assert_eq!(parse_response(&response.as_bytes()[..cut]), Ok(None), "{cut}");
        }
        let next = format!("{response}HTTP/1.1 400");
        assert_eq!(
            parse_response(next.as_bytes()),
            Ok(Some(Response { status: 200, body: b"2\x1e6x", len: response.len() }))
        );
        parse_response(b"HTTP/1.1 200 OK\r\n\r\n").unwrap_err();
        assert_eq!(parse_block(b"id: 1\ndata: 2\n"), None);
        assert_eq!(parse_block(b"id: 1\ndata: 2\n\n:"), Some((&b"id: 1\ndata: 2"[..], 15)));
    }

    #[test]
    fn other_payloads_have_no_message_header() {
        for payload in [
            r#"{"type":"welcome"}"#,
            r#"{"n":,"t":1,"#,
            r#"{"n":1,"t":"#,
            r#"{"n":1,"t":2"#,
            r#"{"n":99999999999999999999,"t":1,"#,
        ] {
            assert_eq!(message_header(payload.as_bytes()), None, "{payload}");
        }
    }
}
