//! A cheap client, for tests with thousands of them: no library, one small buffer.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::sse::Block;
use super::token;

/// A connected and greeted user.
pub struct Light {
    socket: TcpStream,
    heard: Vec<u8>,
    /// Receives Server-Sent Events, and sends nothing.
    is_stream: bool,
    /// Its id, from the `welcome`.
    pub connection: String,
}

/// Where a client sends the cursor that it resumes from.
#[derive(Debug, Clone, Copy)]
pub enum Resume<'a> {
    No,
    InUrl(&'a str),
    /// With its token, which is not in the handshake then.
    InHello(&'a str),
}

/// The frames that a client receives.
#[derive(Debug)]
pub enum Received {
    Text(String),
    /// 1005 where it has no code. Of a stream: the error in its last block.
    Close(u16),
}

enum Frame {
    Text(Vec<u8>),
    Ping(Vec<u8>),
    Other,
    Close(u16),
}

const PING: &[u8] = br#"{"type":"ping"}"#;
const PONG: &[u8] = br#"{"type":"pong"}"#;
const ERROR: &str = r#"{"type":"error","code":"#;

/// The same in the packets of socket.io.
const SOCKETIO_PING: &[u8] = b"2";
const SOCKETIO_PONG: &[u8] = b"3";

impl Light {
    /// Connects and reads the `welcome`.
    pub async fn connect(address: SocketAddr, user: &str) -> Result<Self> {
        match Self::resume(address, user, Resume::No).await? {
            (light, Received::Text(_)) => Ok(light),
            _ => Err(Error::other("no welcome")),
        }
    }

    /// As [`Light::connect`], as a stream of Server-Sent Events.
    pub async fn connect_stream(address: SocketAddr, user: &str) -> Result<Self> {
        match Self::stream(address, user, None).await? {
            (light, Received::Text(_)) => Ok(light),
            _ => Err(Error::other("no welcome")),
        }
    }

    /// Opens a stream and reads the `welcome`, or the error in its place.
    pub async fn stream(address: SocketAddr, user: &str, last_id: Option<&str>) -> Result<(Self, Received)> {
        let resume = last_id.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let request = format!(
            "GET /events HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{resume}\
             Authorization: Bearer {}\r\n\r\n",
            token(user)
        );
        let mut light = Self::open(address, &request, true).await?;
        let first = light.greeted().await?;
        Ok((light, first))
    }

    /// Connects and reads the `welcome`, or a close in its place.
    pub async fn resume(address: SocketAddr, user: &str, resume: Resume<'_>) -> Result<(Self, Received)> {
        let token = token(user);
        let (query, bearer) = match resume {
            Resume::No => (String::new(), format!(", bearer.{token}")),
            Resume::InUrl(cursor) => (format!("?resume={cursor}"), format!(", bearer.{token}")),
            Resume::InHello(_) => (String::new(), String::new()),
        };
        let request = format!(
            "GET /ws{query} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: tidings.v1{bearer}\r\n\r\n"
        );
        let mut light = Self::open(address, &request, false).await?;
        if let Resume::InHello(cursor) = resume {
            let hello = json!({"type": "hello", "token": token, "resume": cursor});
            light.say(0x1, hello.to_string().as_bytes()).await?;
        }
        let first = light.greeted().await?;
        Ok((light, first))
    }

    /// Sends a request and reads the head of the response.
    async fn open(address: SocketAddr, request: &str, is_stream: bool) -> Result<Self> {
        let mut socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        socket.write_all(request.as_bytes()).await?;
        let mut light = Self { socket, heard: Vec::with_capacity(512), is_stream, connection: String::new() };
        light.take_head(if is_stream { b"HTTP/1.1 200 " } else { b"HTTP/1.1 101 " }).await?;
        Ok(light)
    }

    async fn greeted(&mut self) -> Result<Received> {
        let first = self.heard().await?;
        if let Received::Text(text) = &first {
            let welcome: Value = serde_json::from_str(text)?;
            if welcome["type"] != "welcome" {
                return Err(Error::other(format!("no welcome: {text}")));
            }
            welcome["connection"].as_str().unwrap_or_default().clone_into(&mut self.connection);
        }
        Ok(first)
    }

    /// Connects as a socket.io client, and reads the answer to its CONNECT.
    pub async fn socketio(address: SocketAddr, user: &str) -> Result<Self> {
        match Self::socketio_with(address, user, json!({})).await? {
            (light, Received::Text(_)) => Ok(light),
            (_, Received::Close(code)) => Err(Error::other(format!("closed with {code}"))),
        }
    }

    /// As [`Light::socketio`], with more fields in its `auth`; gives the answer to its CONNECT, or a close in its place.
    pub async fn socketio_with(address: SocketAddr, user: &str, mut auth: Value) -> Result<(Self, Received)> {
        let request = format!(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n\
             Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        let mut light = Self::open(address, &request, false).await?;
        auth["token"] = token(user).into();
        light.say(0x1, format!("40{auth}").as_bytes()).await?;
        loop {
            match light.heard().await? {
                Received::Text(text) if text.starts_with('0') => {}
                Received::Text(text) if !text.starts_with("40") => {
                    return Err(Error::other(format!("refused: {text}")));
                }
                first => return Ok((light, first)),
            }
        }
    }

    /// The next text frame, or the close; pings are answered. Cancel safe.
    pub async fn heard(&mut self) -> Result<Received> {
        loop {
            match self.frame().await? {
                Frame::Text(text) if text == PING => self.say(0x1, PONG).await?,
                Frame::Text(text) if text == SOCKETIO_PING => self.say(0x1, SOCKETIO_PONG).await?,
                Frame::Text(text) => return String::from_utf8(text).map(Received::Text).map_err(Error::other),
                Frame::Ping(payload) => self.say(0xa, &payload).await?,
                Frame::Other => {}
                Frame::Close(code) => return Ok(Received::Close(code)),
            }
        }
    }

    async fn take_head(&mut self, expected: &[u8]) -> Result<()> {
        loop {
            if let Some(end) = self.heard.windows(4).position(|four| four == b"\r\n\r\n") {
                if !self.heard.starts_with(expected) {
                    return Err(Error::other("refused"));
                }
                self.heard.drain(..end + 4);
                return Ok(());
            }
            self.hear().await?;
        }
    }

    async fn hear(&mut self) -> Result<()> {
        match self.socket.read_buf(&mut self.heard).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Waits for a `reconnect` frame; returns its delay.
    pub async fn asked_away(&mut self) -> Result<Duration> {
        loop {
            if let Frame::Text(text) = self.frame().await?
                && text.starts_with(br#"{"type":"reconnect""#)
            {
                let frame: Value = serde_json::from_slice(&text)?;
                let after_ms = frame["after_ms"].as_u64().ok_or_else(|| Error::other("no after_ms"))?;
                return Ok(Duration::from_millis(after_ms));
            }
        }
    }

    /// The data of the next event.
    pub async fn event(&mut self) -> Result<Value> {
        loop {
            if let Frame::Text(text) = self.frame().await?
                && text.starts_with(br#"{"type":"event""#)
            {
                return Ok(serde_json::from_slice::<Value>(&text)?["data"].take());
            }
        }
    }

    /// Answers pings until the connection ends. Cancel safe.
    pub async fn live(&mut self) {
        while let Ok(frame) = self.frame().await {
            let answered = match frame {
                Frame::Text(text) if text == PING => self.say(0x1, PONG).await,
                Frame::Text(text) if text == SOCKETIO_PING => self.say(0x1, SOCKETIO_PONG).await,
                Frame::Ping(payload) => self.say(0xa, &payload).await,
                Frame::Text(_) | Frame::Other => Ok(()),
                Frame::Close(_) => return,
            };
            if answered.is_err() {
                return;
            }
        }
    }

    async fn frame(&mut self) -> Result<Frame> {
        loop {
            if self.is_stream {
                if let Some(block) = Block::take(&mut self.heard) {
                    return block_frame(block);
                }
            } else if let Some((head, len)) = frame_size(&self.heard) {
                let payload = self.heard[head..head + len].to_vec();
                let opcode = self.heard[0] & 0xf;
                self.heard.drain(..head + len);
                return Ok(match opcode {
                    0x1 => Frame::Text(payload),
                    0x8 => Frame::Close(payload.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code))),
                    0x9 => Frame::Ping(payload),
                    _ => Frame::Other,
                });
            }
            self.hear().await?;
        }
    }

    /// A frame, masked with zeros.
    async fn say(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let len = u16::try_from(payload.len()).map_err(Error::other)?;
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(len).ok().filter(|len| *len < 126) {
            Some(len) => frame.push(0x80 | len),
            None => frame.extend([0x80 | 126, len.to_be_bytes()[0], len.to_be_bytes()[1]]),
        }
        frame.extend([0; 4]);
        frame.extend_from_slice(payload);
        self.socket.write_all(&frame).await
    }

    /// Closes the connection, with a close frame if it is a WebSocket.
    pub async fn close(mut self) {
        if self.is_stream {
            return;
        }
        self.say(0x8, &1000_u16.to_be_bytes()).await.ok();
    }

    /// Disconnects with a reset, without a close frame.
    pub fn vanish(self) {
        self.socket.set_zero_linger().ok();
    }
}

/// A block as the frame that it carries.
fn block_frame(block: Block) -> Result<Frame> {
    let Some(data) = block.data else { return Ok(Frame::Other) };
    if let Some(code) = data.strip_prefix(ERROR) {
        let code = code.split(',').next().unwrap_or_default().parse().map_err(Error::other)?;
        return Ok(Frame::Close(code));
    }
    if let Some(id) = block.id {
        let named = [format!("\"id\":\"{id}\""), format!("\"cursor\":\"{id}\"")];
        assert!(named.iter().any(|name| data.contains(name)), "another position than {id}: {data}");
    }
    Ok(Frame::Text(data.into_bytes()))
}

/// The sizes of a frame's head and payload, once it is complete.
fn frame_size(heard: &[u8]) -> Option<(usize, usize)> {
    let (head, len) = match *heard {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, len, ..] if len < 126 => (2, usize::from(len)),
        _ => return None,
    };
    (heard.len() >= head + len).then_some((head, len))
}
