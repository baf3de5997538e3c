//! A socket.io client that polls, without a library: plain HTTP/1.1 on connections that it keeps.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::http::Answer;
use super::{Client, Gateway, handshake, secrets, token, within};

pub const POLLING: &str = "/socket.io/?EIO=4&transport=polling";

/// TCP or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// One HTTP connection.
pub struct Kept {
    stream: Box<dyn Stream>,
    received: Vec<u8>,
}

impl Kept {
    pub async fn open(address: SocketAddr) -> Self {
        let tcp = within("a TCP connection", TcpStream::connect(address)).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        Self::over(tcp)
    }

    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), received: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("room for a request", self.stream.write_all(bytes.as_ref())).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Ends the stream of requests; responses can still come.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub async fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) {
        secrets::keep_headers(headers);
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = if method == "POST" { format!("Content-Length: {}\r\n", body.len()) } else { String::new() };
        self.send(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}{length}\r\n{body}")).await;
    }

    pub async fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        self.request(method, path, headers, body).await;
        self.answer().await
    }

    /// The next response, which need not be the last.
    pub async fn answer(&mut self) -> Answer {
        within("a response", self.answer_if_any()).await.unwrap_or_else(|| panic!("the connection ended"))
    }

    /// The next response, or the end of the connection.
    pub async fn answer_if_any(&mut self) -> Option<Answer> {
        loop {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut head = httparse::Response::new(&mut headers);
            if let httparse::Status::Complete(end) = head.parse(&self.received).unwrap() {
                let pair = |header: &httparse::Header<'_>| {
                    (
                        HeaderName::from_bytes(header.name.as_bytes()).unwrap(),
                        HeaderValue::from_bytes(header.value).unwrap(),
                    )
                };
                let headers: HeaderMap = head.headers.iter().map(pair).collect();
                let length =
                    headers.get("content-length").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
                if self.received.len() >= end + length {
                    let status = head.code.unwrap();
                    let body = String::from_utf8(self.received[end..end + length].to_vec()).unwrap();
                    self.received.drain(..end + length);
                    return Some(Answer { status, headers, body });
                }
            }
            // A reset is an end, too.
            if !matches!(self.stream.read_buf(&mut self.received).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// No response comes for a moment: there is no event that would show it.
    pub async fn silent(&mut self) {
        let answer = timeout(Duration::from_millis(500), self.answer_if_any()).await;
        assert!(answer.is_err(), "held, not {answer:?}");
    }

    /// Whether the server ends the connection without another response.
    pub async fn ended(&mut self) {
        let answer = within("the end of the connection", self.answer_if_any()).await;
        assert!(answer.is_none(), "{answer:?}");
    }
}

/// A session that polls.
pub struct Polling {
    pub address: SocketAddr,
    /// The content of the open packet.
    pub open: Value,
    pub path: String,
    /// For requests that are held, and for what it sends.
    pub get: Kept,
    pub post: Kept,
    held: bool,
    packets: VecDeque<String>,
}

impl Polling {
    /// Opens a session; its CONNECT has yet to be sent.
    pub async fn open(gateway: &Gateway) -> Self {
        Self::open_with(gateway.public, "", &[]).await
    }

    /// As [`Polling::open`], with more of a query and headers.
    pub async fn open_with(address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        let (get, post) = (Kept::open(address).await, Kept::open(address).await);
        Self::open_over(address, get, post, query, headers).await
    }

    pub async fn open_over(
        address: SocketAddr,
        mut get: Kept,
        post: Kept,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        let answer = get.ask("GET", &format!("{POLLING}{query}"), headers, "").await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; charset=UTF-8"), "{answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store");
        let open: Value = serde_json::from_str(answer.body.strip_prefix('0').expect("an open packet")).unwrap();
        let path = format!("{POLLING}&sid={}", open["sid"].as_str().unwrap());
        Self { address, open, path, get, post, held: false, packets: VecDeque::new() }
    }

    /// Connects a user; gives the answer to its CONNECT too.
    pub async fn connect(gateway: &Gateway, user: &str) -> (Self, Value) {
        Self::connect_with(gateway, user, json!({})).await
    }

    /// As [`Polling::connect`], with more fields in its `auth`.
    pub async fn connect_with(gateway: &Gateway, user: &str, mut auth: Value) -> (Self, Value) {
        let mut client = Self::open(gateway).await;
        auth["token"] = token(user).into();
        let answer = client.join(&auth).await;
        (client, answer)
    }

    /// Sends a CONNECT that must be accepted: the content of the answer.
    pub async fn join(&mut self, auth: &Value) -> Value {
        self.say(&format!("40{auth}")).await;
        let answer = self.packet().await;
        serde_json::from_str(answer.strip_prefix("40").unwrap_or_else(|| panic!("accepted: {answer}"))).unwrap()
    }

    /// Sends a request for packets; its response is [`Polling::body`].
    pub async fn poll(&mut self) {
        let path = self.path.clone();
        self.get.request("GET", &path, &[], "").await;
        self.held = true;
    }

    /// The response to the request that is held.
    pub async fn held(&mut self) -> Answer {
        self.held = false;
        self.get.answer().await
    }

    /// The body of the response to the request that is held.
    pub async fn body(&mut self) -> String {
        let answer = self.held().await;
        assert_eq!((answer.status, answer.header("content-type")), (200, "text/plain; charset=UTF-8"), "{answer:?}");
        answer.body
    }

    pub async fn post(&mut self, packets: &str) -> Answer {
        let path = self.path.clone();
        self.post.ask("POST", &path, &[], packets).await
    }

    /// Posts packets, which must be accepted.
    pub async fn say(&mut self, packets: &str) {
        let answer = self.post(packets).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{answer:?}");
    }

    /// The next packet, pings included.
    pub async fn any_packet(&mut self) -> String {
        while self.packets.is_empty() {
            if !self.held {
                self.poll().await;
            }
            let body = self.body().await;
            self.packets.extend(body.split('\u{1e}').map(str::to_owned));
        }
        self.packets.pop_front().unwrap()
    }

    /// The next packet; pings are answered, and packets that say nothing are skipped.
    pub async fn packet(&mut self) -> String {
        loop {
            match self.any_packet().await.as_str() {
                "2" => self.say("3").await,
                "6" => {}
                packet => return packet.to_owned(),
            }
        }
    }

    /// The next packet, which must be an event: its elements.
    pub async fn event(&mut self) -> Vec<Value> {
        let packet = self.packet().await;
        let array = packet.strip_prefix("42").unwrap_or_else(|| panic!("an event was expected, not {packet}"));
        serde_json::from_str(array).unwrap()
    }

    /// The status and the code of Engine.IO for another request of the session; zeros if it is not refused.
    pub async fn refused(&self, method: &str) -> (u16, u64) {
        let mut kept = Kept::open(self.address).await;
        kept.request(method, &self.path, &[], "2").await;
        let answer = within("a response", kept.answer_if_any()).await;
        let refused = answer.filter(|answer| answer.status >= 400);
        refused.map_or((0, 0), |answer| (answer.status, answer.json()["code"].as_u64().unwrap()))
    }

    /// The session is gone.
    pub async fn is_over(&self) {
        super::eventually("the session is gone", async || self.refused("GET").await == (400, 1)).await;
    }
}

/// The path of a WebSocket that continues a session.
pub fn websocket_path(path: &str) -> String {
    path.replace("transport=polling", "transport=websocket")
}

impl Polling {
    /// A WebSocket that may continue the session.
    pub async fn websocket(&self) -> Client {
        handshake(self.address, &websocket_path(&self.path), &[]).await.expect("admitted")
    }

    /// The status of a handshake of another WebSocket, which is closed at once.
    pub async fn websocket_status(&self) -> u16 {
        let upgrade = [
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        Kept::open(self.address).await.ask("GET", &websocket_path(&self.path), &upgrade, "").await.status
    }

    /// Probes a WebSocket and upgrades to it, as clients do: it waits for the response to its request in between. Returns
    /// the packets that came meanwhile, too.
    pub async fn upgrade(mut self) -> (Client, Vec<String>) {
        let mut websocket = self.websocket().await;
        websocket.send("2probe").await;
        assert_eq!(websocket.text().await, "3probe");
        if self.held {
            let body = self.body().await;
            self.packets.extend(body.split('\u{1e}').map(str::to_owned));
        }
        websocket.send("5").await;
        let packets = self.packets.into_iter().filter(|packet| packet != "6").collect();
        (websocket, packets)
    }
}
