//! The body of a request (RFC 9112, sections 6 and 7), decoded as it arrives, up to a maximum size.

use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::{HeaderMap, HeaderValue};

/// Maximum size of a chunk's size with its extensions, and of all trailers.
const MAX_LINES: usize = 1_024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyError {
    Malformed,
    TooLarge,
}

#[derive(Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    most: usize,
    chunked: bool,
    part: Part,
}

/// The next part of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    ChunkSize,
    /// This many bytes are left of the body or of its chunk.
    Data(usize),
    ChunkEnd,
    /// This many bytes of trailers were read.
    Trailers(usize),
    End,
}

impl Body {
    /// The body that a head announces, of at most this size.
    pub(super) fn new(headers: &HeaderMap, most: usize) -> Result<Self, BodyError> {
        let mut lengths = headers.get_all(CONTENT_LENGTH).into_iter();
        let mut encodings = headers.get_all(TRANSFER_ENCODING).into_iter();
        let part = match (lengths.next(), encodings.next()) {
            (None, None) => Part::End,
            (Some(length), None) => exact(length, most)?,
            (None, Some(encoding)) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => Part::ChunkSize,
            // Two readers of both, such as a proxy and this server, could see two different requests.
            _ => return Err(BodyError::Malformed),
        };
        if lengths.next().is_some() || encodings.next().is_some() {
            return Err(BodyError::Malformed);
        }
        Ok(Self { bytes: Vec::new(), most, chunked: part == Part::ChunkSize, part })
    }

    pub(super) fn is_complete(&self) -> bool {
        self.part == Part::End
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Moves the bytes of the body out of those that were read.
    pub(super) fn take(&mut self, read: &mut Vec<u8>) -> Result<(), BodyError> {
        let mut taken = 0;
        while let Some(count) = self.step(read.get(taken..).unwrap_or_default())? {
            taken += count;
        }
        read.drain(..taken);
        Ok(())
    }

    /// The number of bytes of the next part; `None` if it is incomplete, or the body has ended.
    fn step(&mut self, rest: &[u8]) -> Result<Option<usize>, BodyError> {
        let count = match self.part {
            Part::End => return Ok(None),
            Part::ChunkSize => match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete((count, size))) => {
                    self.part = self.chunk(size)?;
                    count
                }
                Ok(httparse::Status::Partial) if rest.len() <= MAX_LINES => return Ok(None),
                _ => return Err(BodyError::Malformed),
            },
            Part::Data(left) => {
                let data = rest.get(..left).unwrap_or(rest);
                self.bytes.extend_from_slice(data);
                self.part = match left - data.len() {
                    0 if self.chunked => Part::ChunkEnd,
                    0 => Part::End,
                    left => Part::Data(left),
                };
                if data.is_empty() {
                    return Ok(None);
                }
                data.len()
            }
            Part::ChunkEnd => match rest {
                [b'\r', b'\n', ..] => {
                    self.part = Part::ChunkSize;
                    2
                }
                [] | [b'\r'] => return Ok(None),
                _ => return Err(BodyError::Malformed),
            },
            Part::Trailers(before) => {
                let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                    return if before + rest.len() <= MAX_LINES { Ok(None) } else { Err(BodyError::Malformed) };
                };
                let is_last = matches!(rest.get(..end), Some(b"" | b"\r"));
                self.part = if is_last { Part::End } else { Part::Trailers(before + end) };
                if before + end > MAX_LINES {
                    return Err(BodyError::Malformed);
                }
                end + 1
            }
        };
        Ok(Some(count))
    }

    fn chunk(&self, size: u64) -> Result<Part, BodyError> {
        if size == 0 {
            return Ok(Part::Trailers(0));
        }
        let room = self.most.saturating_sub(self.bytes.len());
        usize::try_from(size).ok().filter(|size| *size <= room).map(Part::Data).ok_or(BodyError::TooLarge)
    }
}

fn exact(length: &HeaderValue, most: usize) -> Result<Part, BodyError> {
    let digits = length.to_str().unwrap_or_default();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(BodyError::Malformed);
    }
    // A number that overflows is too large.
    match digits.parse() {
        Ok(0) => Ok(Part::End),
        Ok(length) if length <= most => Ok(Part::Data(length)),
        _ => Err(BodyError::TooLarge),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    const CHUNKED: (&str, &str) = ("transfer-encoding", "Chunked");

    /// The body and the bytes behind it, however the bytes are cut.
    fn decode(lines: &[(&'static str, &str)], bytes: &[u8], cut: usize) -> Result<(Vec<u8>, Vec<u8>), BodyError> {
        let (mut body, mut read) = (Body::new(&headers(lines), 20)?, Vec::new());
        for piece in bytes.chunks(cut) {
            read.extend_from_slice(piece);
            body.take(&mut read)?;
        }
        assert!(body.is_complete(), "{:?}", body.part);
        Ok((body.into_bytes(), read))
    }

    #[test]
    fn a_body_ends_where_its_length_or_its_chunks_end() {
        type Lines<'a> = &'a [(&'static str, &'a str)];
        let cases: [(Lines<'_>, &[u8], &[u8]); 6] = [
            (&[], b"", b"GET"),
            (&[("content-length", "0")], b"", b"GET"),
            (&[("content-length", "5")], b"3\x1e3\x1e3", b"GET"),
            (&[CHUNKED], b"", b"GET"),
            (&[CHUNKED], b"42[\"a\"]", b"GET"),
            (&[("content-length", "0020")], b"01234567890123456789", b""),
        ];
        let encoded: [&[u8]; 6] = [
            b"GET",
            b"GET",
            b"3\x1e3\x1e3GET",
            b"0\r\n\r\nGET",
            b"4;x=\"y\"\r\n42[\"\r\n0003\r\na\"]\r\n0\r\ntrailer: x\r\n\r\nGET",
            b"01234567890123456789",
        ];
        for ((lines, body, rest), bytes) in cases.into_iter().zip(encoded) {
            for cut in 1..=bytes.len() {
                assert_eq!(decode(lines, bytes, cut), Ok((body.to_vec(), rest.to_vec())), "{lines:?}, {cut}");
            }
        }
    }

    #[test]
    fn a_body_over_the_maximum_is_refused_before_it_is_read() {
        for lines in [("content-length", "21"), ("content-length", "99999999999999999999999")] {
            assert_eq!(Body::new(&headers(&[lines]), 20).unwrap_err(), BodyError::TooLarge);
        }
        assert_eq!(decode(&[CHUNKED], b"15\r\n", 4), Err(BodyError::TooLarge));
        assert_eq!(decode(&[CHUNKED], b"14\r\n01234567890123456789\r\n1\r\n", 100), Err(BodyError::TooLarge));
        assert_eq!(decode(&[CHUNKED], b"ffffffffffffffff\r\n", 100), Err(BodyError::TooLarge));
    }

    #[test]
    fn an_ambiguous_or_malformed_body_is_refused() {
        let length = |value| ("content-length", value);
        for lines in [
            &[length("-1")][..],
            &[length("+1")],
            &[length("")],
            &[length("1, 1")],
            &[length("1"), length("1")],
            &[length("1"), CHUNKED],
            &[CHUNKED, CHUNKED],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "identity")],
        ] {
            assert_eq!(Body::new(&headers(lines), 20).unwrap_err(), BodyError::Malformed, "{lines:?}");
        }
        let endless = [&b"0\r\n"[..], &[b'x'; MAX_LINES + 1]].concat();
        for bytes in [&b"x\r\n"[..], b"1\r\naa", b"1\r\na\n", b"-1\r\n", &[b'1'; MAX_LINES + 1], &endless] {
            assert_eq!(decode(&[CHUNKED], bytes, bytes.len()), Err(BodyError::Malformed), "{bytes:?}");
        }
    }

    proptest! {
        /// Against an encoder: however body and reads are cut.
        #[test]
        fn chunks_are_joined(chunks in prop::collection::vec("[ -~]{1,9}", 0..4), cut in 1..30_usize) {
            let whole = chunks.concat();
            prop_assume!(whole.len() <= 20);
            let encode = |chunk: &String| format!("{:x}\r\n{chunk}\r\n", chunk.len());
            let encoded: String = chunks.iter().map(encode).chain(["0\r\n\r\n".to_owned()]).collect();
            prop_assert_eq!(decode(&[CHUNKED], encoded.as_bytes(), cut), Ok((whole.into_bytes(), Vec::new())));
        }

        #[test]
        fn any_bytes_end_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 1..30_usize) {
            let (mut body, mut read) = (Body::new(&headers(&[CHUNKED]), 20).unwrap(), Vec::new());
            for piece in bytes.chunks(cut) {
                read.extend_from_slice(piece);
                if body.take(&mut read).is_err() {
                    break;
                }
            }
            prop_assert!(body.into_bytes().len() <= 20);
        }
    }
}
