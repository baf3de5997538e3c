//! The frames of a server, and ours in them.

/// The first whole frame of a server: its opcode, its payload, and where it ends (RFC 6455, section 5.2).
pub(super) fn frame(buffer: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [first, second, rest @ ..] = buffer else { return None };
    let (len, start) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let end = start + len;
    Some((first & 0x0f, buffer.get(start..end)?, end))
}

/// The number and the due time of one of our messages, whatever it is wrapped in.
pub(super) fn numbers(payload: &[u8]) -> Option<(u64, u64)> {
    const MARK: &[u8] = br#"{"n":"#;
    let at = payload.windows(MARK.len()).position(|window| window == MARK)?;
    let (number, rest) = digits(payload.get(at + MARK.len()..)?)?;
    let (due, rest) = digits(rest.strip_prefix(br#","t":"#)?)?;
    rest.starts_with(b",").then_some((number, due))
}

/// A number of at least one digit, and what follows it.
fn digits(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits, rest) = text.split_at_checked(end).filter(|(digits, _)| !digits.is_empty())?;
    let number =
        digits.iter().try_fold(0_u64, |number, digit| number.checked_mul(10)?.checked_add(u64::from(digit - b'0')))?;
    Some((number, rest))
}

/// A masked text frame of a client, or a pong where it is empty (a mask of zeros changes nothing).
pub(super) fn from_client(text: &[u8]) -> Vec<u8> {
    let mut frame = vec![if text.is_empty() { 0x8a } else { 0x81 }];
    match u8::try_from(text.len()) {
        Ok(short) if short < 126 => frame.push(0x80 | short),
        _ => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(text);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::text_frame;

    #[test]
    fn a_message_is_found_in_whatever_it_is_wrapped_in() {
        for wrapped in [
            r#"{"n":7,"t":12,"p":"x"}"#,
            r#"{"type":"event","event":"notification","data":{"n":7,"t":12,"p":"x"}}"#,
            r#"42["notification",{"n":7,"t":12,"p":"x"}]"#,
        ] {
            let bytes = text_frame(&[wrapped.as_bytes()]);
            let (opcode, payload, end) = frame(&bytes).unwrap();
            assert_eq!((opcode, end, numbers(payload)), (1, bytes.len(), Some((7, 12))));
        }
    }

    #[test]
    fn what_is_not_ours_has_no_numbers() {
        for other in [
            r#"{"type":"welcome"}"#,
            r#"{"n":,"t":1,"#,
            r#"{"n":1,"t":"#,
            r#"{"n":1,"t":2"#,
            r#"{"n":99999999999999999999,"t":1,"#,
        ] {
            assert_eq!(numbers(other.as_bytes()), None, "{other}");
        }
    }
}
