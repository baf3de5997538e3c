//! The floor: a minimal gateway, the baseline for the other servers on the same machine.
//!
//! One thread, one epoll. It accepts, reads `user:*` from Redis, and makes one write per delivery, without token
//! verification, presence, checks, counters or limits. `cargo run --release --example floor -- LISTEN REDIS`

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "the least code that does it; every index was made here, every length was just checked"
)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const LISTENER: Token = Token(0);
const REDIS: Token = Token(1);
const FIRST: usize = 2;

struct Client {
    socket: TcpStream,
    /// The incomplete request, later the bytes that could not be written.
    buffer: Vec<u8>,
    greeted: bool,
    user: String,
}

struct Floor {
    poll: Poll,
    clients: Vec<Option<Client>>,
    free: Vec<usize>,
    users: HashMap<String, Vec<usize>>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let listen: SocketAddr = args.next().ok_or("LISTEN is missing")?.parse()?;
    let redis: SocketAddr = args.next().ok_or("REDIS is missing")?.parse()?;
    let mut listener = TcpListener::bind(listen)?;
    let mut redis = std::net::TcpStream::connect(redis)?;
    redis.write_all(b"*2\r\n$10\r\nPSUBSCRIBE\r\n$6\r\nuser:*\r\n")?;
    redis.set_nonblocking(true)?;
    let mut redis = TcpStream::from_std(redis);
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    poll.registry().register(&mut redis, REDIS, Interest::READABLE)?;
    let mut floor = Floor { poll, clients: Vec::new(), free: Vec::new(), users: HashMap::new() };
    let (mut events, mut heard) = (Events::with_capacity(1_024), Vec::new());
    loop {
        floor.poll.poll(&mut events, None)?;
        for event in &events {
            match event.token() {
                LISTENER => floor.accept(&listener)?,
                REDIS => floor.hear(&mut redis, &mut heard)?,
                Token(token) => floor.client(token - FIRST),
            }
        }
    }
}

impl Floor {
    fn accept(&mut self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let mut socket = match listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            socket.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.clients.push(None);
                self.clients.len() - 1
            });
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, Token(FIRST + index), interest)?;
            self.clients[index] = Some(Client { socket, buffer: Vec::new(), greeted: false, user: String::new() });
        }
    }

    fn client(&mut self, index: usize) {
        if self.serve(index).is_err()
            && let Some(client) = self.clients[index].take()
        {
            self.free.push(index);
            if let Entry::Occupied(mut user) = self.users.entry(client.user) {
                user.get_mut().retain(|other| *other != index);
                if user.get().is_empty() {
                    user.remove();
                }
            }
        }
    }

    /// Reads the request, later discards client data; writes pending bytes.
    fn serve(&mut self, index: usize) -> io::Result<()> {
        let Some(client) = &mut self.clients[index] else { return Ok(()) };
        if client.greeted && !client.buffer.is_empty() {
            let left = std::mem::take(&mut client.buffer);
            client.write(&left)?;
        }
        let mut bytes = [0; 2_048];
        loop {
            match client.socket.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) if !client.greeted => client.buffer.extend_from_slice(&bytes[..count]),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !client.greeted && client.buffer.ends_with(b"\r\n\r\n") {
            let request = String::from_utf8_lossy(&std::mem::take(&mut client.buffer)).into_owned();
            client.user = client.greet(&request)?;
            self.users.entry(client.user.clone()).or_default().push(index);
        }
        Ok(())
    }

    fn hear(&mut self, redis: &mut TcpStream, heard: &mut Vec<u8>) -> io::Result<()> {
        let mut bytes = [0; 65_536];
        loop {
            match redis.read(&mut bytes) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(count) => heard.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            let mut done = 0;
            while let Some((channel, payload, end)) = message(&heard[done..]) {
                self.deliver(&heard[done..][channel], &heard[done..][payload]);
                done += end;
            }
            heard.drain(..done);
        }
    }

    fn deliver(&mut self, channel: &[u8], payload: &[u8]) {
        let user = std::str::from_utf8(channel).ok().and_then(|channel| channel.strip_prefix("user:"));
        let Some(indices) = user.and_then(|user| self.users.get(user)) else { return };
        let mut frame = Vec::with_capacity(payload.len() + 10);
        frame.push(0x81);
        match payload.len() {
            short @ 0..126 => frame.push(short as u8),
            medium @ 126..65_536 => {
                frame.push(126);
                frame.extend_from_slice(&(medium as u16).to_be_bytes());
            }
            long => {
                frame.push(127);
                frame.extend_from_slice(&(long as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(payload);
        for index in indices {
            if let Some(client) = &mut self.clients[*index] {
                // Reading the socket detects the end of the connection.
                client.write(&frame).ok();
            }
        }
    }
}

impl Client {
    fn greet(&mut self, request: &str) -> io::Result<String> {
        let header = |name: &str| {
            let mut lines = request.lines().filter_map(|line| line.split_once(": "));
            lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value)
        };
        let accept = derive_accept_key(header("sec-websocket-key").as_bytes());
        let token = header("sec-websocket-protocol").rsplit("bearer.").next().unwrap_or_default();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap_or_default()).unwrap_or_default();
        let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap_or_default();
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: tidings.v1\r\n\r\n"
        )
        .into_bytes();
        // A welcome, so that the client knows that it is registered: an empty text frame.
        answer.extend_from_slice(&[0x81, 0]);
        self.greeted = true;
        self.write(&answer)?;
        Ok(claims["sub"].as_str().unwrap_or_default().to_owned())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.buffer.extend_from_slice(bytes);
            return Ok(());
        }
        match self.socket.write(bytes) {
            Ok(count) => self.buffer.extend_from_slice(&bytes[count..]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => self.buffer.extend_from_slice(bytes),
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

type Range = std::ops::Range<usize>;

/// The channel and payload of the first complete push, and its end. A confirmation counts as a message to no user.
fn message(bytes: &[u8]) -> Option<(Range, Range, usize)> {
    let line = |from: usize| {
        let end = from + bytes.get(from..)?.windows(2).position(|two| two == b"\r\n")?;
        Some((&bytes[from + 1..end], end + 2))
    };
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<usize>().ok();
    let (count, mut at) = line(0)?;
    let mut parts = [0..0, 0..0, 0..0, 0..0];
    for part in parts.iter_mut().take(number(count)?) {
        let kind = *bytes.get(at)?;
        let (text, next) = line(at)?;
        at = next;
        if kind == b'$' {
            let end = at + number(text)?;
            bytes.get(at..end + 2)?;
            *part = at..end;
            at = end + 2;
        }
    }
    let [_, _, channel, payload] = parts;
    Some((channel, payload, at))
}
