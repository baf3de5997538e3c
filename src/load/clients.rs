//! How the clients connect: a hand-made WebSocket each, up to its greeting.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::publisher::Sent;
use super::receiver::Receiver;
use super::wire::{frame, from_client};
use super::{LoadError, Plan, Progress, Token, Tongue};
use crate::protocol::Cursor;

/// From connect to the answered handshake.
const DEADLINE: Duration = Duration::from_secs(30);

/// Handshakes under way at once.
const PARALLEL: usize = 128;

/// What the users come with.
pub(super) struct Users<'a> {
    /// How many messages each has.
    pub(super) received: &'a Sent,
    /// Of each user's last message; empty where nobody resumes.
    pub(super) cursors: &'a [Cursor],
    pub(super) token: &'a Token,
}

impl Users<'_> {
    /// The path of a user's handshake.
    fn path(&self, plan: &Plan, user: u32) -> String {
        let Some(cursor) = self.cursors.get(user as usize) else { return plan.path.clone() };
        let separator = if plan.path.contains('?') { '&' } else { '?' };
        format!("{}{separator}resume={cursor}", plan.path)
    }
}

/// Opens every connection of a plan, at its rate, and hands each to the receiver as it is greeted.
pub(super) async fn connect(
    plan: &Arc<Plan>,
    receiver: &Receiver,
    users: &Users<'_>,
    progress: &Progress,
) -> Result<(), LoadError> {
    let (begun, step) = (Instant::now(), Duration::from_secs(1) / plan.connect_rate.max(1));
    let mut opening = JoinSet::new();
    let keep = |(number, opened): Opened| -> Result<(), LoadError> {
        let (socket, rest) = opened.map_err(|why| LoadError::Connect { number, why })?;
        let received = users.received.get(plan.user_of(number) as usize).copied().unwrap_or_default();
        receiver.take(number, socket, rest, received)
    };
    for number in 0..plan.connections {
        sleep_until(begun + step.saturating_mul(number)).await;
        while opening.len() >= PARALLEL {
            if let Some(Ok(opened)) = opening.join_next().await {
                keep(opened)?;
            }
        }
        if number % 100 == 0 {
            progress("connecting", f64::from(number) / f64::from(plan.connections));
        }
        let user = plan.user_of(number);
        let (path, token) = (users.path(plan, user), (users.token)(&user.to_string()));
        let plan = Arc::clone(plan);
        opening.spawn(async move { (number, Client::open(&plan, number, &path, &token).await) });
    }
    while let Some(opened) = opening.join_next().await {
        if let Ok(opened) = opened {
            keep(opened)?;
        }
    }
    Ok(())
}

/// A connection's number, and its socket with what came behind the greeting, or why there is none.
type Opened = (u32, Result<(TcpStream, Vec<u8>), String>);

struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(plan: &Plan, number: u32, path: &str, token: &str) -> Result<(TcpStream, Vec<u8>), String> {
        let handshake = timeout(DEADLINE, Self::handshake(plan, number, path, token));
        let Self { socket, buffer } = handshake.await.map_err(|_| "no answer in time".to_owned())??;
        Ok((socket, buffer))
    }

    async fn handshake(plan: &Plan, number: u32, path: &str, token: &str) -> Result<Self, String> {
        let socket = TcpSocket::new_v4().map_err(text)?;
        let last = u8::try_from(number % u32::from(plan.sources.max(1))).unwrap_or_default() + 1;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0));
        if plan.sources > 1 && plan.target.ip().is_loopback() {
            // The port is chosen with the destination, so that each source address has all of them.
            socket.set_reuseaddr(true).map_err(text)?;
            socket.bind(source).map_err(text)?;
        }
        let mut socket = socket.connect(plan.target).await.map_err(text)?;
        socket.set_nodelay(true).map_err(text)?;
        let target = plan.target;
        let credential = match plan.tongue {
            Tongue::WebSocket => format!("Sec-WebSocket-Protocol: tidings.v1, bearer.{token}\r\n"),
            Tongue::SocketIo => String::new(),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{credential}\r\n"
        );
        socket.write_all(request.as_bytes()).await.map_err(text)?;
        let mut buffer = Vec::with_capacity(2_048);
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut buffer).await.map_err(text)? == 0 {
                return Err("the server closed the connection".into());
            }
        };
        let answer = String::from_utf8_lossy(buffer.get(..head).unwrap_or_default()).into_owned();
        if !answer.starts_with("HTTP/1.1 101") {
            return Err(answer.lines().next().unwrap_or_default().to_owned());
        }
        buffer.drain(..head);
        let mut client = Self { socket, buffer };
        if plan.tongue == Tongue::SocketIo {
            // Engine.IO opens (`0`), then Socket.IO connects the client to the namespace (`40`) or refuses it (`44`).
            client.greeting(b"0").await?;
            let connect = from_client(format!("40{{\"token\":\"{token}\"}}").as_bytes());
            client.socket.write_all(&connect).await.map_err(text)?;
            client.greeting(b"40").await?;
        } else {
            client.greeting(b"").await?;
        }
        Ok(client)
    }

    /// Takes the first frame, which must begin like this. Whoever has its greeting is registered.
    async fn greeting(&mut self, like: &[u8]) -> Result<(), String> {
        loop {
            if let Some((opcode, payload, end)) = frame(&self.buffer) {
                if opcode != 1 || !payload.starts_with(like) {
                    return Err(format!("refused: {}", String::from_utf8_lossy(payload)));
                }
                self.buffer.drain(..end);
                return Ok(());
            }
            if self.socket.read_buf(&mut self.buffer).await.map_err(text)? == 0 {
                return Err("the server closed the connection".into());
            }
        }
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn text(error: std::io::Error) -> String {
    error.to_string()
}
