//! The head of a connection's first request, read before the request is routed.

use std::io::{self, ErrorKind};
use std::mem::MaybeUninit;

use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use crate::server::listener::Stream;

/// Maximum size of a request's head.
pub(in crate::server) const MAX_HEAD: usize = 16 * 1024;

/// Maximum number of headers, the same as hyper's.
const MAX_HEADERS: usize = 100;

/// Enough for the handshake of a browser with its token.
const USUAL_HEAD: usize = 1_024;

/// The bytes read, with the request and the end of its head. `None` if that is too long or malformed: hyper then responds.
pub(in crate::server) struct First {
    pub(in crate::server) bytes: Vec<u8>,
    pub(in crate::server) request: Option<(Request<()>, usize)>,
}

/// Reads until the head is complete.
pub(in crate::server) async fn read(stream: &mut Stream) -> io::Result<First> {
    let mut bytes = Vec::with_capacity(USUAL_HEAD);
    loop {
        let new = bytes.len();
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(request) = parse_received(&bytes, new) {
            return Ok(First { bytes, request });
        }
    }
}

/// A request and the end of its head; `None` while that may be incomplete, `Some(None)` if it is too long or malformed. The
/// bytes from `new` on were not there at the previous call.
pub(super) fn parse_received(bytes: &[u8], new: usize) -> Option<Option<(Request<()>, usize)>> {
    // Parsed only if the head may have ended, so that a client that sends single bytes costs little.
    let new = bytes.get(new.saturating_sub(3)..).unwrap_or_default();
    let may_end = bytes.ends_with(b"\n\r\n") || new.windows(2).any(|two| two == b"\n\r" || two == b"\n\n");
    if !may_end && bytes.len() <= MAX_HEAD {
        return None;
    }
    match parse(bytes) {
        Ok(None) if bytes.len() <= MAX_HEAD => None,
        parsed => Some(parsed.ok().flatten().filter(|(_, end)| *end <= MAX_HEAD)),
    }
}

/// A request and the end of its head; `None` while incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Request<()>, usize)>, Malformed> {
    // One copy, of which the headers are slices: a copy of each would cost as much as the rest of parsing.
    let bytes = Bytes::copy_from_slice(bytes);
    let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut []);
    match head.parse_with_uninit_headers(&bytes, &mut headers) {
        Ok(httparse::Status::Complete(end)) => {
            request(&head, &bytes).map(|request| Some((request, end))).ok_or(Malformed)
        }
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed),
    }
}

struct Malformed;

/// `bytes` are those that `head` was parsed from.
fn request(head: &httparse::Request<'_, '_>, bytes: &Bytes) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::from_maybe_shared(bytes.slice_ref(head.path?.as_bytes())).ok()?;
    *request.version_mut() = if head.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    request.headers_mut().reserve(head.headers.len());
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(bytes.slice_ref(header.value)).ok()?;
        request.headers_mut().append(name, value);
    }
    Some(request)
}
