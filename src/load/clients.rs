//! The clients: a hand-made WebSocket each, cheap enough for one machine to hold tens of thousands beside the server.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::publisher::Sent;
use super::tally::{Sequence, Tally};
use super::{LoadError, Mode, Plan, Progress, Tongue};

/// From connect to the answered handshake.
const DEADLINE: Duration = Duration::from_secs(30);

/// Handshakes under way at once.
const PARALLEL: usize = 128;

/// The connected clients; dropping it ends them.
pub(super) struct Fleet {
    _readers: JoinSet<()>,
}

impl Fleet {
    pub(super) async fn connect(
        plan: &Arc<Plan>,
        tally: &Arc<Tally>,
        token: impl Fn(&str) -> String,
        progress: &Progress,
    ) -> Result<Self, LoadError> {
        let (begun, step) = (Instant::now(), Duration::from_secs(1) / plan.connect_rate.max(1));
        let (mut readers, mut opening) = (JoinSet::new(), JoinSet::new());
        let mut keep = |opened: Opened| -> Result<(), LoadError> {
            let (number, client) = opened;
            let (plan, tally) = (Arc::clone(plan), Arc::clone(tally));
            let client = client.map_err(|why| LoadError::Connect { number, why })?;
            readers.spawn(async move { client.read(number, &plan, &tally).await });
            Ok(())
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
            let user = if plan.mode == Mode::Fanout { 0 } else { number % plan.users.max(1) };
            let (plan, token) = (Arc::clone(plan), token(&user.to_string()));
            opening.spawn(async move { (number, Client::open(&plan, number, &token).await) });
        }
        while let Some(opened) = opening.join_next().await {
            if let Ok(opened) = opened {
                keep(opened)?;
            }
        }
        Ok(Self { _readers: readers })
    }

    /// How many deliveries these messages should make.
    #[allow(clippy::unused_self, reason = "the fleet must still be there when it is asked")]
    pub(super) fn expected(&self, plan: &Plan, sent: &Sent) -> u64 {
        let connections = u64::from(plan.connections);
        let users = u64::from(plan.users.max(1));
        match plan.mode {
            Mode::Miss => 0,
            Mode::Fanout => sent.first().map_or(0, |sent| sent * connections),
            Mode::Unicast => (0..)
                .zip(sent)
                .map(|(user, sent)| sent * (connections / users + u64::from(user < connections % users)))
                .sum(),
        }
    }
}

type Opened = (u32, Result<Client, String>);

struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(plan: &Plan, number: u32, token: &str) -> Result<Self, String> {
        timeout(DEADLINE, Self::handshake(plan, number, token)).await.map_err(|_| "no answer in time".to_owned())?
    }

    async fn handshake(plan: &Plan, number: u32, token: &str) -> Result<Self, String> {
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
        let (path, target) = (&plan.path, plan.target);
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
            client.send(format!("40{{\"token\":\"{token}\"}}").as_bytes()).await.map_err(text)?;
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

    async fn read(mut self, number: u32, plan: &Plan, tally: &Tally) {
        let mut sequence = Sequence::default();
        loop {
            let mut done = 0;
            let mut answers: Vec<&[u8]> = Vec::new();
            while let Some((opcode, payload, end)) = frame(self.buffer.get(done..).unwrap_or_default()) {
                match (opcode, plan.tongue) {
                    (8, _) => return tally.note_closed(),
                    (9, _) => answers.push(PONG),
                    _ => match (numbers(payload), payload) {
                        (Some((message, due)), _) => sequence.take(tally, number, message, due),
                        (None, br#"{"type":"ping"}"#) => answers.push(br#"{"type":"pong"}"#),
                        (None, b"2") => answers.push(b"3"),
                        (None, _) => {}
                    },
                }
                done += end;
            }
            self.buffer.drain(..done);
            for answer in answers {
                if self.send(answer).await.is_err() {
                    return tally.note_closed();
                }
            }
            match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return tally.note_closed(),
                Ok(_) => {}
            }
        }
    }

    /// A masked text frame, or a pong where it is empty (RFC 6455, section 5.2; a mask of zeros changes nothing).
    async fn send(&mut self, text: &[u8]) -> std::io::Result<()> {
        let opcode = if text.is_empty() { 0x8a } else { 0x81 };
        let mut frame = vec![opcode];
        match u8::try_from(text.len()) {
            Ok(short) if short < 126 => frame.push(0x80 | short),
            _ => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(text);
        self.socket.write_all(&frame).await
    }
}

const PONG: &[u8] = b"";

#[allow(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
fn text(error: std::io::Error) -> String {
    error.to_string()
}

/// The first whole frame of a server: its opcode, its payload, and where it ends.
fn frame(buffer: &[u8]) -> Option<(u8, &[u8], usize)> {
    let [first, second, rest @ ..] = buffer else { return None };
    let (len, start) = match second & 0x7f {
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?, 10),
        short => (usize::from(short), 2),
    };
    let end = start + len;
    Some((first & 0x0f, buffer.get(start..end)?, end))
}

/// The number and the due time of one of our messages, whatever it is wrapped in.
fn numbers(payload: &[u8]) -> Option<(u64, u64)> {
    const MARK: &[u8] = br#"{"n":"#;
    let at = payload.windows(MARK.len()).position(|window| window == MARK)?;
    let text = str::from_utf8(payload.get(at + MARK.len()..)?).ok()?;
    let (number, rest) = text.split_once(",\"t\":")?;
    let (due, _) = rest.split_once(',')?;
    Some((number.parse().ok()?, due.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::text_frame;

    #[test]
    fn a_message_is_found_in_whatever_it_is_wrapped_in() {
        for wrapped in [
            r#"{"n":7,"t":12,"p":"x"}"#,
            r#"{"type":"event","event":"notification","data":{"n":7,"t":12,"p":"x"}}"#,
            r#"42["notification",{"n":7,"t":12,"p":"x"}]"#,
        ] {
            let bytes = text_frame(&[wrapped.as_bytes()]);
            let (opcode, payload, end) = frame(&bytes).unwrap();
            assert_eq!((opcode, end, numbers(payload)), (1, bytes.len(), Some((7, 12))));
        }
        assert_eq!(numbers(br#"{"type":"welcome"}"#), None);
    }
}
