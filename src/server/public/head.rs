//! The head of a connection's first request, read before the request is routed.

use std::io::{self, ErrorKind};

use axum::http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
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
        let new = bytes.len().saturating_sub(3);
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        // Parsed only if the head may have ended, so that a client that sends single bytes costs little.
        let may_end = bytes.get(new..).is_some_and(|new| new.windows(2).any(|two| two == b"\n\r" || two == b"\n\n"));
        if may_end || bytes.len() > MAX_HEAD {
            let request = match parse(&bytes) {
                Ok(None) if bytes.len() <= MAX_HEAD => continue,
                parsed => parsed.ok().flatten().filter(|(_, end)| *end <= MAX_HEAD),
            };
            return Ok(First { bytes, request });
        }
    }
}

/// A request and the end of its head; `None` while incomplete.
fn parse(bytes: &[u8]) -> Result<Option<(Request<()>, usize)>, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => request(&head).map(|request| Some((request, end))).ok_or(Malformed),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed),
    }
}

struct Malformed;

fn request(head: &httparse::Request<'_, '_>) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method?.as_bytes()).ok()?;
    *request.uri_mut() = Uri::try_from(head.path?).ok()?;
    *request.version_mut() = if head.version? == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    request.headers_mut().reserve(head.headers.len());
    for header in head.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(request)
}
