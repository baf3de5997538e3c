//! HTTP/1.1 on a connection that a polling client keeps for its next requests. Requests are read one at a time.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::{Method, Request, Response, StatusCode, Version, header};
use tokio::time::timeout;

use super::body::{Body, BodyError};
use crate::delivery::HttpSocket;
use crate::server::public::head::parse_received;

/// How long a client may take to read the last response and to close its connection.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Enough for most requests in one read.
const READ_SIZE: usize = 2_048;

#[derive(Debug)]
pub(super) struct Http {
    pub(super) socket: Arc<HttpSocket>,
    /// The bytes that were read, and belong to the next request.
    pub(super) read: Vec<u8>,
}

/// The end of a request that cannot be answered as usual.
#[derive(Debug)]
pub(super) enum RequestError {
    /// The client left, or its connection broke.
    Gone,
    Malformed,
    TooLarge,
}

impl From<io::Error> for RequestError {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl From<BodyError> for RequestError {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Malformed => Self::Malformed,
            BodyError::TooLarge => Self::TooLarge,
        }
    }
}

impl Http {
    /// Waits for bytes; an error at the end of the stream.
    pub(super) async fn read_some(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_read(cx)).await
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut chunk = [0; READ_SIZE];
        let count = ready!(self.socket.poll_read(cx, &mut chunk))?;
        if count == 0 {
            return Poll::Ready(Err(ErrorKind::UnexpectedEof.into()));
        }
        self.read.extend_from_slice(chunk.get(..count).unwrap_or_default());
        Poll::Ready(Ok(()))
    }

    /// Reads the head of a request.
    pub(super) async fn read_head(&mut self) -> Result<Request<()>, RequestError> {
        let mut new = 0;
        loop {
            if let Some(parsed) = parse_received(&self.read, new) {
                let (request, end) = parsed.ok_or(RequestError::Malformed)?;
                self.read.drain(..end);
                return Ok(request);
            }
            new = self.read.len();
            self.read_some().await?;
        }
    }

    /// Reads the body of a request, as text.
    pub(super) async fn read_body(&mut self, request: &Request<()>, most: usize) -> Result<Vec<u8>, RequestError> {
        let mut body = Body::new(request.headers(), most)?;
        body.take(&mut self.read)?;
        let expects = request.headers().get(header::EXPECT).is_some_and(|value| value == "100-continue");
        if expects && !body.is_complete() && request.version() > Version::HTTP_10 {
            self.socket.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        while !body.is_complete() {
            self.read_some().await?;
            body.take(&mut self.read)?;
        }
        Ok(body.into_bytes())
    }

    /// Ends the connection after its last response.
    pub(super) async fn close(&mut self) {
        self.socket.finish_writing();
        // Dropping a socket with unread data may discard the response.
        let ended = async {
            while self.read_some().await.is_ok() {
                self.read.clear();
            }
        };
        timeout(CLOSE_DEADLINE, ended).await.ok();
    }
}

/// Whether a request has a body, or one cannot tell.
pub(super) fn has_body(request: &Request<()>) -> bool {
    !Body::new(request.headers(), usize::MAX).is_ok_and(|body| body.is_complete())
}

/// Whether the client may send another request on its connection. A proxy that speaks HTTP/1.0 opens one for each.
pub(super) fn is_persistent(request: &Request<()>) -> bool {
    let mut values = request.headers().get_all(header::CONNECTION).into_iter();
    let closes = values.any(|value| {
        let mut options = value.as_bytes().split(|byte| *byte == b',');
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
    });
    request.version() > Version::HTTP_10 && !closes
}

/// The head of a response, without its length and the empty line.
pub(super) fn encode_head<T>(response: &Response<T>, persistent: bool) -> Vec<u8> {
    let status = response.status();
    let mut head =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in response.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"cache-control: no-store\r\n");
    if !persistent {
        head.extend_from_slice(b"connection: close\r\n");
    }
    head
}

/// A whole response to a request of this method.
pub(super) fn encode(response: &Response<Vec<u8>>, method: &Method, persistent: bool) -> Vec<u8> {
    let (mut bytes, body) = (encode_head(response, persistent), response.body());
    // A 204 has no length (RFC 9110, section 8.6).
    if response.status() != StatusCode::NO_CONTENT {
        bytes.extend_from_slice(format!("content-length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    if method != Method::HEAD {
        bytes.extend_from_slice(body);
    }
    bytes
}
