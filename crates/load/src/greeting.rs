//! The start of a client in each protocol, from its request to the server's greeting.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::{ClientProtocol, Plan};
use crate::connect::connect_tcp;
use crate::nats;
use crate::wire::{BINARY, Response, TEXT, client_frame, parse_block, parse_frame, parse_response};

/// A client after its greeting.
pub(crate) struct Greeted {
    pub(crate) socket: TcpStream,
    /// Bytes that are read but not yet processed.
    pub(crate) buffer: Vec<u8>,
    pub(crate) polling: Option<Polling>,
}

/// The requests of a polling session.
pub(crate) struct Polling {
    /// Fetches the next packets.
    pub(crate) get: Vec<u8>,
    /// Answers a ping.
    pub(crate) pong: Vec<u8>,
}

/// What a client presents to the server.
pub(crate) struct Introduction {
    pub(crate) number: u32,
    pub(crate) token: String,
    pub(crate) cursor: Option<String>,
}

impl Introduction {
    /// The path of the first request. A socket.io client gives its position in its CONNECT instead.
    fn path(&self, plan: &Plan) -> String {
        let path = plan.path();
        match &self.cursor {
            _ if plan.client == ClientProtocol::Nchan => format!("{path}{}", plan.user_of(self.number)),
            Some(cursor) if !plan.client.is_socket_io() => {
                let separator = if path.contains('?') { '&' } else { '?' };
                format!("{path}{separator}resume={cursor}")
            }
            _ => path.to_owned(),
        }
    }

    /// The CONNECT packet of a socket.io client.
    fn connect_packet(&self) -> String {
        let resume = self.cursor.as_ref().map(|cursor| format!(r#","resume":"{cursor}""#)).unwrap_or_default();
        format!(r#"40{{"token":"{}"{resume}}}"#, self.token)
    }
}

impl Greeted {
    pub(crate) async fn open(plan: &Plan, introduction: &Introduction) -> Result<Self, String> {
        let socket = connect_tcp(plan, introduction.number).await.map_err(|error| error.to_string())?;
        let mut client = Self { socket, buffer: Vec::with_capacity(2_048), polling: None };
        let path = introduction.path(plan);
        let start = |method: &str, path: &str| {
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n", plan.target_of(introduction.number))
        };
        let get = start("GET", &path);
        match plan.client {
            ClientProtocol::WebSocket => {
                let token = &introduction.token;
                client.upgrade(&format!("{get}Sec-WebSocket-Protocol: tidings.v1, bearer.{token}\r\n")).await?;
                client.expect_frame(b"").await?;
            }
            ClientProtocol::SocketIo => {
                client.upgrade(&get).await?;
                // Engine.IO opens the session (`0`), then Socket.IO accepts (`40`) or refuses (`44`) the client.
                client.expect_frame(b"0").await?;
                client.send(&client_frame(TEXT, introduction.connect_packet().as_bytes())).await?;
                client.expect_frame(b"40").await?;
            }
            // Nchan answers once the client is subscribed.
            ClientProtocol::Nchan => client.upgrade(&get).await?,
            ClientProtocol::Nats => {
                client.upgrade(&get).await?;
                client.expect_frame(b"INFO").await?;
                let subscribe = nats::subscription(plan.user_of(introduction.number));
                client.send(&client_frame(BINARY, subscribe.as_bytes())).await?;
                client.expect_frame(nats::PONG).await?;
            }
            ClientProtocol::Sse => {
                let token = &introduction.token;
                client.stream(&format!("{get}Authorization: Bearer {token}\r\nAccept: text/event-stream\r\n")).await?;
            }
            ClientProtocol::Polling => client.poll(introduction, (&path, &get), start).await?,
        }
        Ok(client)
    }

    async fn upgrade(&mut self, request: &str) -> Result<(), String> {
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        self.send(format!("{request}{upgrade}").as_bytes()).await?;
        self.expect_head("101").await
    }

    /// Requests a stream of events, and consumes its welcome.
    async fn stream(&mut self, request: &str) -> Result<(), String> {
        self.send(format!("{request}\r\n").as_bytes()).await?;
        self.expect_head("200").await?;
        loop {
            if let Some((block, end)) = parse_block(&self.buffer) {
                if !block.windows(9).any(|text| text == br#""welcome""#) {
                    return Err(format!("refused: {}", String::from_utf8_lossy(block)));
                }
                self.buffer.drain(..end);
                return Ok(());
            }
            self.read().await?;
        }
    }

    /// Opens a polling session. The response with the `40` stays in the buffer: messages may follow it there.
    async fn poll(
        &mut self,
        introduction: &Introduction,
        (path, get): (&str, &str),
        start: impl Fn(&str, &str) -> String,
    ) -> Result<(), String> {
        self.send(format!("{get}\r\n").as_bytes()).await?;
        let (open, end) = self.expect_body("0").await?;
        let sid = open.split_once(r#""sid":""#).and_then(|(_, rest)| rest.split('"').next());
        let path = format!("{path}&sid={}", sid.ok_or_else(|| format!("no session: {open}"))?);
        self.buffer.drain(..end);
        let post = |packet: &str| {
            let start = start("POST", &path);
            format!("{start}Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{packet}", packet.len()).into_bytes()
        };
        let get = format!("{}\r\n", start("GET", &path)).into_bytes();
        self.send(&post(&introduction.connect_packet())).await?;
        let (_, end) = self.expect_body("ok").await?;
        self.buffer.drain(..end);
        self.send(&get).await?;
        self.expect_body("40").await?;
        self.polling = Some(Polling { get, pong: post("3") });
        Ok(())
    }

    /// Consumes the head of a response, which must have this status.
    async fn expect_head(&mut self, status: &str) -> Result<(), String> {
        let end = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read().await?;
        };
        let head = String::from_utf8_lossy(self.buffer.get(..end).unwrap_or_default()).into_owned();
        if head.split(' ').nth(1) != Some(status) {
            return Err(head.lines().next().unwrap_or_default().to_owned());
        }
        self.buffer.drain(..end);
        Ok(())
    }

    /// Waits for a whole response, whose body must start with `prefix`. Returns the body and the length of the response.
    async fn expect_body(&mut self, prefix: &str) -> Result<(String, usize), String> {
        loop {
            if let Some(Response { status, body, len }) = parse_response(&self.buffer)? {
                let body = String::from_utf8_lossy(body);
                if status != 200 || !body.starts_with(prefix) {
                    return Err(format!("refused: {status} {body}"));
                }
                return Ok((body.into_owned(), len));
            }
            self.read().await?;
        }
    }

    /// Consumes the first frame, whose payload must start with `prefix`. The server greets a client after registering it.
    async fn expect_frame(&mut self, prefix: &[u8]) -> Result<(), String> {
        loop {
            if let Some((opcode, payload, end)) = parse_frame(&self.buffer) {
                if !matches!(opcode, TEXT | BINARY) || !payload.starts_with(prefix) {
                    return Err(format!("refused: {}", String::from_utf8_lossy(payload)));
                }
                self.buffer.drain(..end);
                return Ok(());
            }
            self.read().await?;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.socket.write_all(bytes).await.map_err(|error| error.to_string())
    }

    async fn read(&mut self) -> Result<(), String> {
        match self.socket.read_buf(&mut self.buffer).await.map_err(|error| error.to_string())? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }
}
