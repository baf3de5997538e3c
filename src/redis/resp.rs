//! A zero-copy reader of the RESP2 that Redis sends on a subscribing connection.
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>
//!
//! Hand-written: redis-rs' pub/sub stream is an unbounded channel and costs 0.7–1.5 µs and 5 allocations per message,
//! against 50 ns for this reader, which slices the read buffer. Tests and fuzzers compare it with redis-rs' parser.

/// The parts of a pushed message: its kind, the pattern, the channel, the payload.
const MAX_PARTS: usize = 4;

/// Any part but the payload may have this many bytes, whatever `max_part` is.
const NAME_BYTES: usize = 4_096;

/// Maximum length of a bulk reply.
const MAX_BULK: usize = 1 << 20;

/// Maximum length of a line: a status, an error or a length.
const MAX_LINE: usize = 1_024;

/// One reply, borrowed from the read buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`
    Status(&'a [u8]),
    /// `-ERR …`
    Error(&'a [u8]),
    /// A pushed message or a confirmation; an integer is kept as its digits.
    Push(Parts<'a>),
    /// A push with a part over `max_part`: the parts before that one, and the number of parts after it.
    Oversize(Parts<'a>, usize),
}

#[derive(Debug, Default, PartialEq, Eq, Clone, Copy)]
pub struct Parts<'a> {
    parts: [&'a [u8]; MAX_PARTS],
    len: usize,
}

impl<'a> Parts<'a> {
    fn push(&mut self, part: &'a [u8]) -> Result<(), Malformed> {
        *self.parts.get_mut(self.len).ok_or(Malformed("too many parts in an array"))? = part;
        self.len += 1;
        Ok(())
    }

    pub fn as_slice(&self) -> &[&'a [u8]] {
        self.parts.get(..self.len).unwrap_or_default()
    }
}

/// A protocol error: the connection must be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the RESP2 of a subscription: {0}")]
pub struct Malformed(&'static str);

/// Reads one reply from the front of the buffer, and returns it with the number of bytes consumed, which exceeds the
/// buffer for an oversize payload. Returns `None` if more bytes are needed.
pub fn read(buffer: &[u8], max_part: usize) -> Result<Option<(Reply<'_>, usize)>, Malformed> {
    let Some((line, rest)) = take_line(buffer)? else { return Ok(None) };
    let consumed = |rest: &[u8]| buffer.len() - rest.len();
    let reply = match line {
        [b'+', status @ ..] => (Reply::Status(status), consumed(rest)),
        [b'-', error @ ..] => (Reply::Error(error), consumed(rest)),
        // `>`: a push in RESP3.
        [b'*' | b'>', count @ ..] => match read_parts(number(count)?, rest, max_part)? {
            Array::Whole(parts, rest) => (Reply::Push(parts), consumed(rest)),
            Array::Oversize { parts, more, rest, missing } => (Reply::Oversize(parts, more), consumed(rest) + missing),
            Array::Incomplete => return Ok(None),
        },
        _ => return Err(Malformed("unexpected reply type")),
    };
    Ok(Some(reply))
}

enum Array<'a> {
    Whole(Parts<'a>, &'a [u8]),
    /// One part is too large: the parts before it, the number after it, the bytes after its header, and its size.
    Oversize {
        parts: Parts<'a>,
        more: usize,
        rest: &'a [u8],
        missing: usize,
    },
    Incomplete,
}

fn read_parts(count: usize, mut rest: &[u8], max_part: usize) -> Result<Array<'_>, Malformed> {
    let mut parts = Parts::default();
    for index in 0..count {
        let Some((line, after)) = take_line(rest)? else { return Ok(Array::Incomplete) };
        match line {
            [b':', digits @ ..] => {
                check_integer(digits)?;
                parts.push(digits)?;
                rest = after;
            }
            b"$-1" => {
                parts.push(b"")?;
                rest = after;
            }
            [b'$', digits @ ..] => {
                let len = number(digits)?;
                if len > max_part.max(NAME_BYTES) || (len > max_part && index + 1 == count) {
                    return Ok(Array::Oversize { parts, more: count - index - 1, rest: after, missing: len + 2 });
                }
                let Some((part, end)) = after.split_at_checked(len) else { return Ok(Array::Incomplete) };
                match end {
                    [b'\r', b'\n', end @ ..] => rest = end,
                    [] | [b'\r'] => return Ok(Array::Incomplete),
                    _ => return Err(Malformed("part longer than its declared length")),
                }
                parts.push(part)?;
            }
            _ => return Err(Malformed("unexpected part type")),
        }
    }
    Ok(Array::Whole(parts, rest))
}

/// The text of a bulk reply, or the line of an error reply.
pub type Bulk<'a> = Result<&'a [u8], &'a [u8]>;

/// Reads one bulk reply, or an error reply, from the front of the buffer, and returns it with the number of bytes
/// consumed. Returns `None` if more bytes are needed.
pub fn read_bulk(buffer: &[u8]) -> Result<Option<(Bulk<'_>, usize)>, Malformed> {
    let Some((line, rest)) = take_line(buffer)? else { return Ok(None) };
    let head = buffer.len() - rest.len();
    match line {
        [b'-', error @ ..] => Ok(Some((Err(error), head))),
        [b'$', digits @ ..] => {
            let len = number(digits)?;
            if len > MAX_BULK {
                return Err(Malformed("bulk reply too large"));
            }
            Ok(rest.get(..len).filter(|_| rest.len() >= len + 2).map(|text| (Ok(text), head + len + 2)))
        }
        _ => Err(Malformed("unexpected reply type")),
    }
}

/// Reads the header of one unwanted part; returns the number of bytes to skip, header and line end included.
pub fn read_unwanted(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let Some((line, rest)) = take_line(buffer)? else { return Ok(None) };
    let head = buffer.len() - rest.len();
    match line {
        [b':', ..] | b"$-1" => Ok(Some(head)),
        [b'$', digits @ ..] => Ok(Some(head + number(digits)? + 2)),
        _ => Err(Malformed("unexpected part type")),
    }
}

/// The length of the first reply, of any shape. Returns `None` if it has not arrived completely.
pub fn whole_reply(buffer: &[u8]) -> Result<Option<usize>, Malformed> {
    let (mut len, mut parts) = (0, 1);
    while parts > 0 {
        let Some(rest) = buffer.get(len..) else { return Ok(None) };
        let read = match rest {
            [b'+' | b'-', ..] => take_line(rest)?.map(|(_, after)| (rest.len() - after.len(), 0)),
            _ => read_unwanted_reply(rest)?,
        };
        let Some((bytes, more)) = read else { return Ok(None) };
        (len, parts) = (len + bytes, parts - 1 + more);
    }
    Ok(Some(len).filter(|len| *len <= buffer.len()))
}

/// Reads the parts of a whole reply, front to back. Each is `None` if the next part is another.
#[derive(Debug)]
pub struct ReplyParts<'a>(pub &'a [u8]);

impl<'a> ReplyParts<'a> {
    /// The number of parts in an array.
    pub fn array(&mut self) -> Option<usize> {
        let (line, rest) = take_line(self.0).ok()??;
        self.0 = rest;
        number(line.strip_prefix(b"*")?).ok()
    }

    pub fn bulk(&mut self) -> Option<&'a [u8]> {
        let (line, rest) = take_line(self.0).ok()??;
        let (bulk, rest) = rest.split_at_checked(number(line.strip_prefix(b"$")?).ok()?)?;
        self.0 = rest.strip_prefix(b"\r\n")?;
        Some(bulk)
    }
}

/// Reads the header of one unwanted reply of any shape; returns the number of bytes to skip, and of parts that follow.
pub fn read_unwanted_reply(buffer: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let Some((line, rest)) = take_line(buffer)? else { return Ok(None) };
    let head = buffer.len() - rest.len();
    match line {
        b"*-1" => Ok(Some((head, 0))),
        [b'*', digits @ ..] => Ok(Some((head, number(digits)?))),
        // A map of RESP3: a key and a value for each entry.
        [b'%', digits @ ..] => Ok(Some((head, number(digits)? * 2))),
        _ => Ok(read_unwanted(buffer)?.map(|bytes| (bytes, 0))),
    }
}

/// A line without its end, and the bytes after it.
type Line<'a> = (&'a [u8], &'a [u8]);

fn take_line(buffer: &[u8]) -> Result<Option<Line<'_>>, Malformed> {
    let window = buffer.get(..MAX_LINE).unwrap_or(buffer);
    match window.iter().position(|byte| *byte == b'\r') {
        None if window.len() == MAX_LINE => Err(Malformed("line too long")),
        None => Ok(None),
        Some(end) => match buffer.get(end + 1) {
            None => Ok(None),
            Some(b'\n') => Ok(Some((buffer.get(..end).unwrap_or_default(), buffer.get(end + 2..).unwrap_or_default()))),
            Some(_) => Err(Malformed("carriage return within a line")),
        },
    }
}

/// A length, bounded far above any that Redis sends (`proto-max-bulk-len` is 512 MiB by default).
fn number(digits: &[u8]) -> Result<usize, Malformed> {
    const MAX: usize = 1 << 32;
    let add = |number: usize, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| usize::from(byte - b'0'))?;
        Some(number * 10 + digit).filter(|number| *number <= MAX)
    };
    let digits = Some(digits).filter(|digits| !digits.is_empty());
    // Five times for each message: parsing it as text costs four times as much.
    digits.and_then(|digits| digits.iter().try_fold(0, add)).ok_or(Malformed("invalid length"))
}

fn check_integer(text: &[u8]) -> Result<(), Malformed> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_integer = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    is_integer.then_some(()).ok_or(Malformed("invalid integer"))
}

/// Encodes a command.
pub(super) fn write(command: &[&[u8]]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &[u8] = b"*4\r\n$8\r\npmessage\r\n$6\r\nuser:*\r\n$7\r\nuser:42\r\n$5\r\n{\r\n1}\r\n+OK\r\n";

    #[test]
    fn a_message_is_read_whole_and_no_further() {
        let (reply, consumed) = read(MESSAGE, 100).unwrap().unwrap();
        let Reply::Push(parts) = reply else { panic!("{reply:?}") };
        assert_eq!(parts.as_slice(), [&b"pmessage"[..], b"user:*", b"user:42", b"{\r\n1}"]);
        assert_eq!(read(&MESSAGE[consumed..], 100), Ok(Some((Reply::Status(b"OK"), 5))));
    }

    #[test]
    fn every_cut_of_a_message_asks_for_more() {
        let whole = MESSAGE.len() - b"+OK\r\n".len();
        for cut in 0..whole {
            assert_eq!(read(&MESSAGE[..cut], 100), Ok(None), "{cut}");
        }
    }

    #[test]
    fn an_oversize_payload_is_passed_over_without_being_held() {
        for held in [0, 3, 7, 100] {
            let header = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$11\r\n";
            let mut buffer = header.to_vec();
            buffer.extend_from_slice(&b"12345678901\r\n+OK\r\n"[..held.min(18)]);
            let (reply, consumed) = read(&buffer, 10).unwrap().unwrap();
            let Reply::Oversize(parts, 0) = reply else { panic!("{reply:?}") };
            assert_eq!(parts.as_slice(), [&b"message"[..], b"c"]);
            assert_eq!(consumed, header.len() + 13);
        }
    }

    #[test]
    fn an_oversize_channel_leaves_the_payload_to_be_passed_over() {
        let channel = "c".repeat(5_000);
        let buffer = format!("*3\r\n$7\r\nmessage\r\n$5000\r\n{channel}\r\n$2\r\nhi\r\n+OK\r\n");
        let (reply, consumed) = read(buffer.as_bytes(), 10).unwrap().unwrap();
        assert!(matches!(reply, Reply::Oversize(parts, 1) if parts.as_slice() == [b"message"]));
        let rest = &buffer.as_bytes()[consumed..];
        assert_eq!(read_unwanted(rest), Ok(Some(b"$2\r\nhi\r\n".len())));
        assert_eq!(read_unwanted(&rest[..2]), Ok(None));
    }

    #[test]
    fn an_unwanted_reply_of_any_shape_is_passed_over_head_by_head() {
        for (reply, parts) in [
            (&b"*2\r\n*-1\r\n*3\r\n:1\r\n$-1\r\n$4\r\na\r\nb\r\n"[..], 6),
            (b"*-1\r\n", 1),
            (b"*0\r\n", 1),
            (b"$3\r\nabc\r\n", 1),
        ] {
            let (mut position, mut awaited, mut read) = (0, 1, 0);
            while awaited > 0 {
                let (bytes, more) = read_unwanted_reply(&reply[position..]).unwrap().unwrap();
                (position, awaited, read) = (position + bytes, awaited - 1 + more, read + 1);
            }
            assert_eq!((position, read), (reply.len(), parts));
        }
        assert_eq!(read_unwanted_reply(b"*2\r"), Ok(None));
        assert!(read_unwanted_reply(b"*-2\r\n").is_err() && read_unwanted_reply(b"-ERR\r\n").is_err());
    }

    #[test]
    fn a_reply_of_any_shape_is_found_whole_or_not_at_all() {
        for reply in [
            &b"*2\r\n*-1\r\n*3\r\n:1\r\n$-1\r\n$4\r\na\r\nb\r\n"[..],
            b"*2\r\n+OK\r\n-ERR no\r\n",
            b"*0\r\n",
            b"$3\r\nabc\r\n",
            b"+OK\r\n",
            b"-ERR no\r\n",
            b":-1\r\n",
        ] {
            assert_eq!(whole_reply(&[reply, b"+OK\r\n"].concat()), Ok(Some(reply.len())));
            assert!((0..reply.len()).all(|end| whole_reply(&reply[..end]) == Ok(None)));
        }
        assert!(whole_reply(b"*2\r\n$3\r\nabc\r\nx\r\n").is_err());
    }

    #[test]
    fn the_parts_of_a_reply_are_read_in_turn_and_only_as_what_they_are() {
        let mut parts = ReplyParts(b"*2\r\n$3\r\na\r\n\r\n*1\r\n$0\r\n\r\n");
        assert_eq!((parts.array(), parts.bulk()), (Some(2), Some(&b"a\r\n"[..])));
        assert_eq!((parts.array(), parts.bulk(), parts.bulk()), (Some(1), Some(&b""[..]), None));
        assert_eq!((ReplyParts(b"*1\r\n").bulk(), ReplyParts(b"$1\r\na\r\n").array()), (None, None));
        assert_eq!(ReplyParts(b"$1\r\nab\r\n").bulk(), None, "longer than its declared length");
    }

    #[test]
    fn confirmations_have_integers() {
        let (reply, _) = read(b"*3\r\n$9\r\nsubscribe\r\n$1\r\nc\r\n:1\r\n", 10).unwrap().unwrap();
        let Reply::Push(parts) = reply else { panic!("{reply:?}") };
        assert_eq!(parts.as_slice(), [&b"subscribe"[..], b"c", b"1"]);
    }

    #[test]
    fn what_is_not_the_protocol_is_refused() {
        let line = [b'+'; 2_000];
        for bytes in [
            &b"HTTP/1.1 400\r\n"[..],
            b"*5\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n$1\r\na\r\n",
            b"*1\r\n*1\r\n",
            b"*x\r\n",
            b"*1\r\n:x\r\n",
            b"*1\r\n:-\r\n",
            b"*1\r\n$99999999999\r\n",
            b"*1\r\n$1\r\nab\r\n",
            b"+a\rb",
            &line,
        ] {
            assert!(read(bytes, 1 << 40).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn a_command_is_an_array_of_its_words() {
        assert_eq!(write(&[b"AUTH", b"p w"]), b"*2\r\n$4\r\nAUTH\r\n$3\r\np w\r\n");
    }

    #[test]
    fn a_bulk_reply_is_read_whole_or_not_at_all() {
        let reply = b"$6\r\nrole:m\r\n+OK\r\n";
        assert_eq!(read_bulk(reply), Ok(Some((Ok(&b"role:m"[..]), 12))));
        assert!((0..12).all(|end| read_bulk(&reply[..end]) == Ok(None)));
        assert_eq!(read_bulk(b"-NOPERM no\r\n"), Ok(Some((Err(&b"NOPERM no"[..]), 12))));
        assert!(read_bulk(b"$9999999\r\n").is_err() && read_bulk(b"*1\r\n").is_err());
    }
}
