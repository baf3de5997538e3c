//! Opens the client connections: TCP, the WebSocket handshake, and the server's greeting.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::args::{ClientProtocol, Plan};
use crate::plan::SentCounts;
use crate::receiver::Receiver;
use crate::wire::{client_frame, parse_frame};
use crate::{Gateway, LoadError};

/// For the whole of connecting, up to the greeting.
const DEADLINE: Duration = Duration::from_secs(30);

/// Maximum number of concurrent handshakes.
const CONCURRENCY: usize = 128;

/// Opens all connections at the plan's rate, and passes each to the receiver after its greeting. If there are cursors,
/// each client resumes from its user's; `received` has the number of messages that each user has received.
pub(crate) async fn connect(
    plan: &Arc<Plan>,
    receiver: &Receiver,
    gateway: &impl Gateway,
    (received, cursors): (&SentCounts, &[String]),
    progress: &impl Fn(&str, f64),
) -> Result<(), LoadError> {
    let (start, interval) = (Instant::now(), Duration::from_secs(1) / plan.connect_rate.max(1));
    let mut handshakes = JoinSet::new();
    let add = |(number, opened): Opened| -> Result<(), LoadError> {
        let client = opened.map_err(|reason| LoadError::Connect(number, reason))?;
        let received = received.get(plan.user_of(number) as usize).copied().unwrap_or_default();
        receiver.add(number, client, received)
    };
    for number in 0..plan.connections {
        sleep_until(start + interval.saturating_mul(number)).await;
        while handshakes.len() >= CONCURRENCY {
            if let Some(Ok(opened)) = handshakes.join_next().await {
                add(opened)?;
            }
        }
        if number % 100 == 0 {
            progress("connecting", f64::from(number) / f64::from(plan.connections));
        }
        let user = plan.user_of(number);
        let (path, token) = (path(plan, cursors.get(user as usize)), gateway.token(&user.to_string()));
        let plan = Arc::clone(plan);
        handshakes.spawn(async move {
            let opened = timeout(DEADLINE, Greeted::open(&plan, number, &path, &token)).await;
            (number, opened.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        });
    }
    while let Some(opened) = handshakes.join_next().await {
        if let Ok(opened) = opened {
            add(opened)?;
        }
    }
    Ok(())
}

fn path(plan: &Plan, cursor: Option<&String>) -> String {
    let Some(cursor) = cursor else { return plan.path.clone() };
    let separator = if plan.path.contains('?') { '&' } else { '?' };
    format!("{}{separator}resume={cursor}", plan.path)
}

/// The number of a connection, and its client or the reason why it could not connect.
type Opened = (u32, Result<Greeted, String>);

/// A client after its greeting.
pub(crate) struct Greeted {
    pub(crate) socket: TcpStream,
    /// Bytes that are read but not yet processed.
    pub(crate) buffer: Vec<u8>,
}

impl Greeted {
    async fn open(plan: &Plan, number: u32, path: &str, token: &str) -> Result<Self, String> {
        let socket = connect_tcp(plan, number).await.map_err(|error| error.to_string())?;
        let mut client = Self { socket, buffer: Vec::with_capacity(2_048) };
        client.upgrade(plan, path, token).await?;
        match plan.client {
            ClientProtocol::WebSocket => client.expect_greeting(b"").await?,
            ClientProtocol::SocketIo => {
                // Engine.IO opens the session (`0`), then Socket.IO accepts (`40`) or refuses (`44`) the client.
                client.expect_greeting(b"0").await?;
                let connect = client_frame(format!("40{{\"token\":\"{token}\"}}").as_bytes());
                client.socket.write_all(&connect).await.map_err(|error| error.to_string())?;
                client.expect_greeting(b"40").await?;
            }
        }
        Ok(client)
    }

    async fn upgrade(&mut self, plan: &Plan, path: &str, token: &str) -> Result<(), String> {
        let target = plan.target;
        let credential = match plan.client {
            ClientProtocol::WebSocket => format!("Sec-WebSocket-Protocol: tidings.v1, bearer.{token}\r\n"),
            ClientProtocol::SocketIo => String::new(),
        };
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{credential}\r\n"
        );
        self.socket.write_all(request.as_bytes()).await.map_err(|error| error.to_string())?;
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            self.read().await?;
        };
        let response = String::from_utf8_lossy(self.buffer.get(..head).unwrap_or_default()).into_owned();
        if !response.starts_with("HTTP/1.1 101") {
            return Err(response.lines().next().unwrap_or_default().to_owned());
        }
        self.buffer.drain(..head);
        Ok(())
    }

    /// Consumes the first frame, whose payload must start with `prefix`. The server greets a client after registering it.
    async fn expect_greeting(&mut self, prefix: &[u8]) -> Result<(), String> {
        loop {
            if let Some((opcode, payload, end)) = parse_frame(&self.buffer) {
                if opcode != 1 || !payload.starts_with(prefix) {
                    return Err(format!("refused: {}", String::from_utf8_lossy(payload)));
                }
                self.buffer.drain(..end);
                return Ok(());
            }
            self.read().await?;
        }
    }

    async fn read(&mut self) -> Result<(), String> {
        match self.socket.read_buf(&mut self.buffer).await.map_err(|error| error.to_string())? {
            0 => Err("the server closed the connection".into()),
            _ => Ok(()),
        }
    }
}

async fn connect_tcp(plan: &Plan, number: u32) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    if plan.sources > 1 && plan.target.ip().is_loopback() {
        let last = u8::try_from(number % u32::from(plan.sources)).unwrap_or_default() + 1;
        // With SO_REUSEADDR the port is chosen for each destination, so that every source address has all ports.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
    }
    let socket = socket.connect(plan.target).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
