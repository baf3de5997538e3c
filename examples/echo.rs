//! Sends every message back, over the read and write path of a real connection: `cargo run --example echo -- 127.0.0.1:9001`.
//!
//! For conformance suites and fuzzers, which send large messages: the limits are raised, the rest is unchanged.

#![allow(clippy::print_stdout, reason = "says where it listens")]

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use tidings::internals::{AdmissionPermits, Connection, Context, Dialect, Socket};
use tidings::{Config, Gateway, Layers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Conformance suites go up to 16 MiB in one message.
const RAISED: [(&str, &str); 7] = [
    ("limits.max_inbound_bytes", "67108864"),
    ("limits.inbound_bytes_per_second", "4294967295"),
    ("limits.inbound_frames_per_second", "4294967295"),
    ("send_queue.max_bytes", "268435456"),
    ("send_queue.max_messages", "100000"),
    ("server.listen", "127.0.0.1:0"),
    ("server.admin_listen", "127.0.0.1:0"),
];

const MAX_HEAD_BYTES: usize = 16 * 1024;

#[tokio::main]
#[allow(dead_code, reason = "the conformance test has this file as a module")]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:9001".into());
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    run(listener).await
}

/// Echoes the messages of every connection, until the process ends.
pub(crate) async fn run(listener: TcpListener) -> Result<(), Box<dyn Error>> {
    let flags = RAISED.map(|(key, value)| ("--set".into(), key.into(), value.into())).to_vec();
    let gateway = Gateway::start(Config::load(Layers { dev: true, flags, ..Layers::default() })?)?;
    loop {
        let (socket, client) = listener.accept().await?;
        let context = Arc::clone(tidings::internals::context(&gateway));
        context.shutdown.clone().spawn_connection(serve(context, socket, client.ip()));
    }
}

async fn serve(context: Arc<Context>, mut socket: TcpStream, address: IpAddr) {
    // A test suite may disconnect during the handshake on purpose.
    if let Ok(early) = upgrade(&mut socket).await {
        let (socket, permits) = (Socket::Plain(socket), AdmissionPermits::default());
        Connection::open(context, socket, early, Dialect::Plain, address, permits).echo().await;
    }
}

/// A minimal handshake (RFC 6455, section 4.2). Returns the bytes that the client sent directly after it.
async fn upgrade(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    socket.set_nodelay(true)?;
    let mut head = Vec::new();
    let end = loop {
        if let Some(at) = head.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if head.len() > MAX_HEAD_BYTES || socket.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    };
    let early = head.split_off(end);
    let head = String::from_utf8_lossy(&head);
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    let mut keys = headers.filter(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key"));
    let (_, key) = keys.next().ok_or(io::ErrorKind::InvalidData)?;
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {}\r\n\r\n",
        derive_accept_key(key.trim().as_bytes())
    );
    socket.write_all(answer.as_bytes()).await?;
    Ok(early)
}
