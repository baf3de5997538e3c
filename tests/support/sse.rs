//! Server-Sent Events over a bare socket: every block as it was sent.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::{Gateway, secrets, text, token, within};

/// Plain TCP, or TLS.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// One block of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Every byte of it, with the blank line at its end.
    pub text: String,
    pub retry: Option<u64>,
    pub id: Option<String>,
    /// Joined as a browser does; `None` in a comment.
    pub data: Option<String>,
}

impl Block {
    /// Takes the first block of what was received, once it is complete.
    pub fn take(received: &mut Vec<u8>) -> Option<Self> {
        let end = received.windows(2).position(|pair| pair == b"\n\n")? + 2;
        Some(Self::parse(String::from_utf8(received.drain(..end).collect()).expect("UTF-8")))
    }

    fn parse(text: String) -> Self {
        let mut block = Self { text, retry: None, id: None, data: None };
        let text = block.text.clone();
        assert!(!text.contains('\r'), "a browser takes a CR for the end of a line: {text:?}");
        for line in text.trim_end_matches('\n').split('\n') {
            match line.split_once(": ") {
                Some(("retry", value)) => block.retry = Some(value.parse().expect(&text)),
                Some(("id", value)) => block.id = Some(value.to_owned()),
                Some(("data", value)) => match &mut block.data {
                    Some(data) => data.extend(["\n", value]),
                    None => block.data = Some(value.to_owned()),
                },
                _ => assert_eq!(line, ":", "neither a known field nor a comment: {text:?}"),
            }
        }
        block
    }

    /// Its `data` as JSON.
    pub fn json(&self) -> Value {
        let data = self.data.as_ref().unwrap_or_else(|| panic!("no data: {self:?}"));
        serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// The response to a request for a stream.
pub struct SseClient {
    socket: Stream,
    received: Vec<u8>,
    pub status: u16,
    /// The lines of the head after the status, in lower case.
    pub headers: Vec<String>,
}

impl SseClient {
    /// Connects a user, and reads the `welcome`.
    pub async fn connect(gateway: &Gateway, user: &str) -> (Self, Value) {
        Self::with(gateway, user, "", &[]).await
    }

    /// As [`SseClient::connect`], with a query and more headers.
    pub async fn with(gateway: &Gateway, user: &str, query: &str, headers: &[(&str, &str)]) -> (Self, Value) {
        let mut client = Self::ungreeted(gateway, user, query, headers).await;
        let welcome = client.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (client, welcome)
    }

    /// As [`SseClient::with`], for a client that gets no welcome.
    pub async fn ungreeted(gateway: &Gateway, user: &str, query: &str, headers: &[(&str, &str)]) -> Self {
        let bearer = format!("Bearer {}", token(user));
        let headers = [&[("Authorization", bearer.as_str())], headers].concat();
        let client = Self::request(gateway.public, &format!("/events{query}"), &headers).await;
        assert_eq!(client.status, 200, "{:?}", client.headers);
        client
    }

    /// As [`SseClient::connect`], with so little room for what it does not read that the server soon notices.
    pub async fn narrow(gateway: &Gateway, user: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let tcp = within("a TCP connection", socket.connect(gateway.public)).await.unwrap();
        let bearer = format!("Bearer {}", token(user));
        let mut client = Self::over(Either::Left(tcp), "/events", &[("Authorization", &bearer)]).await;
        assert_eq!(client.frame().await["type"], "welcome");
        client
    }

    /// Any request for a stream, as a browser sends it: whatever the response, it is read as one.
    pub async fn request(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Self {
        let tcp = within("a TCP connection", TcpStream::connect(address)).await.unwrap();
        Self::over(Either::Left(tcp), path, headers).await
    }

    /// As [`SseClient::request`], over a given connection.
    pub async fn over(socket: Stream, path: &str, headers: &[(&str, &str)]) -> Self {
        secrets::keep_headers(headers);
        let mut head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n");
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        Self::send(socket, &head).await
    }

    /// Sends this text, and reads the head of the response.
    pub async fn send(socket: Stream, request: &str) -> Self {
        let mut client = Self { socket, received: Vec::with_capacity(4_096), status: 0, headers: Vec::new() };
        within("the request is sent", client.socket.write_all(request.as_bytes())).await.unwrap();
        let end = loop {
            if let Some(end) = client.received.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            assert!(client.receive().await, "the connection ended before the response");
        };
        let head = String::from_utf8(client.received.drain(..end).collect()).unwrap();
        let mut lines = head.trim_end().lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status");
        client.status = status.parse().unwrap();
        client.headers = lines.map(str::to_lowercase).collect();
        client
    }

    /// The value of a header, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// What was received behind the head and was not yet read as blocks.
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// Whether bytes came; false at the end of the connection.
    async fn receive(&mut self) -> bool {
        within("bytes of a stream", self.socket.read_buf(&mut self.received)).await.is_ok_and(|count| count > 0)
    }

    /// The next block, comments included; `None` at the end of the body. Cancel safe.
    pub async fn block(&mut self) -> Option<Block> {
        loop {
            if let Some(block) = Block::take(&mut self.received) {
                return Some(block);
            }
            if !self.receive().await {
                return None;
            }
        }
    }

    /// The next block that is no comment.
    pub async fn message(&mut self) -> Block {
        loop {
            let block = self.block().await.expect("the stream goes on");
            if block.data.is_some() {
                return block;
            }
        }
    }

    /// As [`SseClient::message`], as JSON.
    pub async fn frame(&mut self) -> Value {
        self.message().await.json()
    }

    /// The next frame past any `gap`, which must be an event: its data.
    pub async fn event(&mut self) -> Value {
        self.event_frame().await["data"].take()
    }

    /// As [`SseClient::event`], of a stored event, with its id.
    pub async fn stored_event(&mut self) -> (String, Value) {
        let mut frame = self.event_frame().await;
        (text(&frame["id"]).to_owned(), frame["data"].take())
    }

    async fn event_frame(&mut self) -> Value {
        loop {
            let block = self.message().await;
            let frame = block.json();
            if frame["type"] == "gap" {
                continue;
            }
            assert_eq!(frame["type"], "event", "{frame}");
            assert_eq!(block.id.as_ref().map(|id| json!(id)).unwrap_or_default(), frame["id"], "{block:?}");
            return frame;
        }
    }

    /// Reads to the end of the body: the code of the error in the last block, 1006 where it is no error or incomplete.
    pub async fn last_code(&mut self) -> u64 {
        let mut last = None;
        while let Some(block) = self.block().await {
            last = Some(block);
        }
        let is_whole = self.received.is_empty();
        let frame = last.filter(|block| is_whole && block.data.is_some()).map(|block| block.json());
        frame.filter(|frame| frame["type"] == "error").map_or(1006, |frame| {
            secrets::check("an error block", &frame.to_string());
            frame["code"].as_u64().expect("a code")
        })
    }

    /// Everything up to the end of the connection, for a response that is no stream.
    pub async fn rest(&mut self) -> String {
        while self.receive().await {}
        String::from_utf8(std::mem::take(&mut self.received)).unwrap()
    }

    /// Writes to the socket.
    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        within("bytes are written", self.socket.write_all(bytes)).await
    }

    /// The socket itself, for a client that misbehaves.
    pub fn tcp(&self) -> &TcpStream {
        match &self.socket {
            Either::Left(tcp) => tcp,
            Either::Right(_) => panic!("this client speaks TLS"),
        }
    }
}
