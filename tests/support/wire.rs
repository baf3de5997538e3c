//! RFC 6455 without a library: an upgrade, a client's frames, and a decoder that does not trust the server.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::within;

/// Opcodes (section 5.2).
pub const CONTINUATION: u8 = 0x0;
pub const TEXT: u8 = 0x1;
pub const BINARY: u8 = 0x2;
pub const CLOSE: u8 = 0x8;
pub const PING: u8 = 0x9;
pub const PONG: u8 = 0xa;

/// What makes a first byte that of a message's last frame.
pub const FIN: u8 = 0x80;

/// Upgrades with these lines in the request's head: the socket, and what came behind the 101.
pub async fn upgrade(socket: TcpSocket, address: SocketAddr, lines: &[String]) -> (TcpStream, Vec<u8>) {
    let mut socket = within("a TCP connection", socket.connect(address)).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n",
    );
    within("the request is sent", socket.write_all(request.as_bytes())).await.unwrap();
    let mut heard = Vec::new();
    loop {
        if let Some(end) = heard.windows(4).position(|four| four == b"\r\n\r\n") {
            assert!(heard.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&heard));
            let early = heard.split_off(end + 4);
            return (socket, early);
        }
        let count = within("an answer to the handshake", socket.read_buf(&mut heard)).await.unwrap();
        assert!(count > 0, "the server closed the connection: {}", String::from_utf8_lossy(&heard));
    }
}

/// A frame as a client masks it, with the first byte (FIN, RSV, opcode) as given.
pub fn client_frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | u8::try_from(len).unwrap()),
        len @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(len).unwrap().to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// A whole frame of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub opcode: u8,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A text's text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }

    /// A close's code; none where it has no payload (section 5.5.1).
    pub fn close_code(&self) -> Option<u16> {
        assert_eq!(self.opcode, CLOSE, "{self:?}");
        self.payload.first_chunk().map(|code| u16::from_be_bytes(*code))
    }
}

/// Reads what a server sends, and panics at the first byte that a server without extensions must not send.
#[derive(Debug, Default)]
pub struct Decoder {
    heard: Vec<u8>,
    /// How much of it is decoded.
    done: usize,
    closed: bool,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) {
        self.heard.extend_from_slice(bytes);
    }

    /// The next frame, once it is complete.
    pub fn next(&mut self) -> Option<Frame> {
        let rest = &self.heard[self.done..];
        if self.closed {
            assert!(rest.is_empty(), "{} bytes behind a close frame, at {}", rest.len(), self.done);
        }
        let &[first, second, ref after @ ..] = rest else { return None };
        let opcode = self.check_head(first, second);
        let (len, head) = match second {
            126 => (u64::from(u16::from_be_bytes(*after.first_chunk()?)), 4),
            127 => (u64::from_be_bytes(*after.first_chunk()?), 10),
            len => (u64::from(len), 2),
        };
        let least = if len < 126 {
            2
        } else if len < 65_536 {
            4
        } else {
            10
        };
        assert_eq!(head, least, "a length of {len} in a head of {head} bytes, at {}", self.done);
        let payload = rest.get(head..head + usize::try_from(len).unwrap())?.to_vec();
        self.done += head + payload.len();
        self.check_payload(opcode, &payload);
        Some(Frame { opcode, payload })
    }

    fn check_head(&self, first: u8, second: u8) -> u8 {
        let (at, opcode) = (self.done, first & 0x0f);
        let near = String::from_utf8_lossy(&self.heard[at.saturating_sub(40)..self.heard.len().min(at + 40)]);
        assert_eq!(first & 0x70, 0, "a reserved bit, at {at}: {near:?}");
        assert_eq!(first & FIN, FIN, "a fragment, at {at}: {near:?}");
        assert!([TEXT, BINARY, CLOSE, PING, PONG].contains(&opcode), "opcode {opcode}, at {at}: {near:?}");
        assert_eq!(second & 0x80, 0, "a masked frame, at {at}: {near:?}");
        assert!(opcode < CLOSE || second < 126, "a control frame over 125 bytes, at {at}: {near:?}");
        opcode
    }

    fn check_payload(&mut self, opcode: u8, payload: &[u8]) {
        match opcode {
            TEXT => assert!(std::str::from_utf8(payload).is_ok(), "a text that is no UTF-8, before {}", self.done),
            CLOSE => {
                assert_ne!(payload.len(), 1, "a close with half a code");
                assert!(std::str::from_utf8(payload.get(2..).unwrap_or_default()).is_ok(), "a reason that is no UTF-8");
                self.closed = true;
            }
            _ => {}
        }
    }

    /// At the end of the stream: how many bytes of a frame that never became whole.
    pub fn rest(&self) -> usize {
        self.heard.len() - self.done
    }
}

#[test]
#[allow(clippy::indexing_slicing, reason = "a test")]
fn the_decoder_takes_what_is_right_and_refuses_the_rest() {
    let refused = |bytes: &[u8]| {
        let bytes = bytes.to_vec();
        std::panic::catch_unwind(move || {
            let mut decoder = Decoder::default();
            decoder.feed(&bytes);
            while decoder.next().is_some() {}
        })
        .is_err()
    };
    let long = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[b'x'; 65_536]].concat();
    for good in [&b"\x81\x02hi\x8a\x00\x88\x02\x03\xe8"[..], b"\x81\x7e\x00", b"", &long] {
        assert!(!refused(good), "{good:?}");
    }
    for bad in [
        &b"\x01\x02hi"[..],
        b"\xc1\x02hi",
        b"\x83\x00",
        b"\x81\x82....hi",
        b"\x81\x7e\x00\x02hi",
        b"\x81\x7f\0\0\0\0\0\0\0\x02hi",
        b"\x89\x7e\x00\x7e",
        b"\x81\x01\xff",
        b"\x88\x01x",
        b"\x88\x00\x81\x02hi",
    ] {
        assert!(refused(bad), "{bad:?}");
    }
}
