//! The PROXY protocol, version 2: the header that a TCP proxy sends first on a connection.

use std::net::SocketAddr;

use ppp::v2::{Addresses, Command, Header, PROTOCOL_PREFIX};
use tokio::io::{AsyncRead, AsyncReadExt};

/// The size of the fixed part, which ends with the length of the rest.
const FIXED: usize = 16;

/// Maximum size of the rest: addresses, and extensions of proxies.
const MAX_REST: usize = 2_048;

#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// As of a probe.
    #[error("the connection ended without a byte")]
    Empty,
    #[error("the connection failed within the header: {0}")]
    Io(#[from] std::io::Error),
    /// Also version 1.
    #[error("no PROXY protocol header of version 2")]
    Absent,
    #[error("a PROXY header of {0} bytes is too long")]
    TooLong(usize),
    #[error("a malformed PROXY header: {0}")]
    Malformed(#[from] ppp::v2::ParseError),
}

/// Reads the header and no byte after it. Returns the client's address; `None` if the connection is the proxy's own, such
/// as a health check, or the header has no address.
pub async fn read_header(socket: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, HeaderError> {
    let mut header = vec![0; FIXED];
    // Not byte by byte; a client that sends less than this runs into the handshake deadline.
    let first = socket.read(&mut header).await?;
    if first == 0 {
        return Err(HeaderError::Empty);
    }
    let looks_right = |got: usize| header.iter().zip(PROTOCOL_PREFIX).take(got).all(|(byte, wanted)| byte == wanted);
    if !looks_right(first) {
        return Err(HeaderError::Absent);
    }
    socket.read_exact(header.get_mut(first..).unwrap_or_default()).await?;
    let [.., high, low] = header.as_slice() else { return Err(HeaderError::Absent) };
    let rest = usize::from(u16::from_be_bytes([*high, *low]));
    if !header.starts_with(PROTOCOL_PREFIX) {
        return Err(HeaderError::Absent);
    }
    if rest > MAX_REST {
        return Err(HeaderError::TooLong(rest));
    }
    header.resize(FIXED + rest, 0);
    socket.read_exact(header.get_mut(FIXED..).unwrap_or_default()).await?;
    let header = Header::try_from(header.as_slice())?;
    Ok(match (header.command, header.addresses) {
        (Command::Proxy, Addresses::IPv4(ip)) => Some((ip.source_address, ip.source_port).into()),
        (Command::Proxy, Addresses::IPv6(ip)) => Some((ip.source_address, ip.source_port).into()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [PROTOCOL_PREFIX, &[command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x12, 0x34, 0, 80];

    async fn read(bytes: &[u8]) -> (Result<Option<SocketAddr>, HeaderError>, Vec<u8>) {
        let mut socket = bytes;
        let result = read_header(&mut socket).await;
        (result, socket.to_vec())
    }

    #[tokio::test]
    async fn the_address_is_taken_and_what_follows_is_left() {
        let bytes = [header(0x21, 0x11, &V4), b"GET /".to_vec()].concat();
        let (address, rest) = read(&bytes).await;
        assert_eq!(address.unwrap(), Some("192.0.2.7:4660".parse().unwrap()));
        assert_eq!(rest, b"GET /");

        let source: std::net::Ipv6Addr = "2001:db8::7".parse().unwrap();
        let v6 = [&source.octets()[..], &[0; 16], &[0, 7, 0, 80], b"\x04\x00\x01x"].concat();
        let (address, rest) = read(&header(0x21, 0x21, &v6)).await;
        assert_eq!(address.unwrap(), Some("[2001:db8::7]:7".parse().unwrap()));
        assert!(rest.is_empty(), "extensions belong to the header");
    }

    #[tokio::test]
    async fn a_connection_of_the_proxy_itself_has_no_address() {
        for bytes in [
            header(0x20, 0x00, &[]),
            header(0x20, 0x11, &V4),
            header(0x21, 0x00, b"what"),
            header(0x21, 0x31, &[0; 216]),
        ] {
            assert_eq!(read(&bytes).await.0.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn anything_else_is_refused() {
        let good = header(0x21, 0x11, &V4);
        let broken: [(&str, Vec<u8>); 9] = [
            ("nothing", Vec::new()),
            ("version 1", b"PROXY TCP4 192.0.2.7 10.0.0.1 4660 80\r\n".to_vec()),
            ("plain HTTP", b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
            ("a header cut short", good[..20].to_vec()),
            ("a signature cut short", good[..5].to_vec()),
            ("another version", header(0x11, 0x11, &V4)),
            ("an unknown command", header(0x2f, 0x11, &V4)),
            ("addresses cut short", header(0x21, 0x11, &V4[..8])),
            ("a header without end", header(0x21, 0x11, &[0; MAX_REST + 1])),
        ];
        for (what, bytes) in broken {
            assert!(read(&bytes).await.0.is_err(), "{what}");
        }
    }
}
