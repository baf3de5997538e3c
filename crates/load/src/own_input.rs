//! Publishes to servers that have their own input instead of Redis. Like `PUBLISH`, messages are pipelined, and all of a
//! batch are answered before the next one.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::nats::{self, Operation};
use crate::sender::Message;
use crate::wire::parse_response;

/// For connecting, and for each read and write.
const DEADLINE: Duration = Duration::from_secs(30);

const READ_BYTES: usize = 64 * 1024;

/// Nchan serves the requests of a connection one after the other: with Redis, each waits for a reply of Redis.
const NCHAN_CONNECTIONS: usize = 16;

struct Link {
    socket: TcpStream,
    /// Bytes that are read but not yet processed.
    buffer: Vec<u8>,
}

impl Link {
    fn connect(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect_timeout(&address, DEADLINE)?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.set_write_timeout(Some(DEADLINE))?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: Vec::with_capacity(READ_BYTES) })
    }

    fn read(&mut self) -> Result<()> {
        let len = self.buffer.len();
        self.buffer.resize(len + READ_BYTES, 0);
        let count = self.socket.read(self.buffer.get_mut(len..).unwrap_or_default())?;
        self.buffer.truncate(len + count);
        if count == 0 { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}

/// Requests on several connections that are kept alive.
pub(crate) struct Nchan {
    address: SocketAddr,
    links: Vec<Link>,
}

impl Nchan {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let links = (0..NCHAN_CONNECTIONS).map(|_| Link::connect(address)).collect::<Result<_>>()?;
        Ok(Self { address, links })
    }

    pub(crate) fn send(&mut self, messages: &[Message], size: usize) -> Result<()> {
        let mut requests = vec![(Vec::<u8>::new(), 0_usize); NCHAN_CONNECTIONS];
        for message in messages {
            let (user, host, text) = (&message.user, self.address, message.text(size));
            if let Some((bytes, count)) = requests.get_mut(place(user)) {
                let len = text.len();
                write!(bytes, "POST /pub/{user} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\n\r\n{text}")?;
                *count += 1;
            }
        }
        for (link, (bytes, _)) in self.links.iter_mut().zip(&requests).filter(|(_, (_, count))| *count > 0) {
            link.socket.write_all(bytes)?;
        }
        self.links.iter_mut().zip(requests).try_for_each(|(link, (_, count))| expect_accepted(link, count))
    }
}

/// The messages of a user take one connection, so that they keep their order.
fn place(user: &str) -> usize {
    user.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into())) % NCHAN_CONNECTIONS
}

/// Waits for this number of responses.
fn expect_accepted(link: &mut Link, count: usize) -> Result<()> {
    let (mut done, mut accepted) = (0, 0);
    while accepted < count {
        match parse_response(link.buffer.get(done..).unwrap_or_default()).map_err(Error::other)? {
            Some(response) if matches!(response.status, 201 | 202) => {
                done += response.len;
                accepted += 1;
            }
            Some(response) => return Err(Error::other(format!("answered {}", response.status))),
            None => {
                link.buffer.drain(..done);
                done = 0;
                link.read()?;
            }
        }
    }
    link.buffer.drain(..done);
    Ok(())
}

pub(crate) struct Nats(Link);

impl Nats {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let mut link = Link::connect(address)?;
        link.socket.write_all(&[nats::CONNECT.as_bytes(), nats::PING].concat())?;
        expect_pong(&mut link)?;
        Ok(Self(link))
    }

    pub(crate) fn send(&mut self, messages: &[Message], size: usize) -> Result<()> {
        let mut bytes = Vec::new();
        for message in messages {
            let text = message.text(size);
            write!(bytes, "PUB user.{} {}\r\n{text}\r\n", message.user, text.len())?;
        }
        bytes.extend_from_slice(nats::PING);
        self.0.socket.write_all(&bytes)?;
        expect_pong(&mut self.0)
    }
}

/// Waits until the server has processed everything before the latest `PING`, and answers its own.
fn expect_pong(link: &mut Link) -> Result<()> {
    loop {
        let Some((operation, len)) = nats::parse(&link.buffer)? else {
            link.read()?;
            continue;
        };
        match operation {
            Operation::Pong => {
                link.buffer.drain(..len);
                return Ok(());
            }
            Operation::Ping => link.socket.write_all(nats::PONG)?,
            Operation::Message(_) | Operation::Other => {}
        }
        link.buffer.drain(..len);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn messages() -> Vec<Message> {
        let message = |(user, number): (&str, u64)| Message { user: user.into(), number, due: Duration::ZERO };
        [("7", 1), ("7", 2), ("8", 1)].map(message).into()
    }

    /// Accepts this many connections, and answers on each once it has read all of the text that is expected there.
    fn server(connections: usize, answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for _ in 0..connections {
                let (mut socket, _) = listener.accept().unwrap();
                let answer = Arc::clone(&answer);
                thread::spawn(move || {
                    let (mut text, mut bytes) = (String::new(), [0; 1_024]);
                    while let Ok(count @ 1..) = socket.read(&mut bytes) {
                        text.push_str(str::from_utf8(&bytes[..count]).unwrap());
                        if let Some(answer) = answer(&text) {
                            text.clear();
                            socket.write_all(answer.as_bytes()).unwrap();
                        }
                    }
                });
            }
        });
        address
    }

    #[test]
    fn nchan_receives_the_messages_of_a_user_in_order_on_one_connection() {
        let whole = |text: &str| text.matches(r#""}"#).count() == text.matches("POST ").count();
        let respond = |status: &str, count| format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").repeat(count);
        let address = server(NCHAN_CONNECTIONS, move |text| {
            let (first, second) = (text.find(r#"{"n":1"#), text.find(r#"{"n":2"#));
            let ordered = first.zip(second).is_some_and(|(first, second)| first < second);
            let status = if text.contains("/pub/7 ") && !ordered { "500 Disorder" } else { "201 Created" };
            whole(text).then(|| respond(status, text.matches("POST ").count()))
        });
        let mut nchan = Nchan::connect(address).unwrap();
        nchan.send(&messages(), 64).unwrap();
        nchan.send(&messages(), 64).unwrap();
        let error = nchan.send(&messages()[1..], 64).unwrap_err();
        assert_eq!(error.to_string(), "answered 500");
    }

    #[test]
    fn nats_receives_messages_before_a_ping_and_has_its_own_answered() {
        let expected =
            messages().into_iter().map(|message| format!("PUB user.{} 64\r\n{}\r\n", message.user, message.text(64)));
        let expected = format!("{}PING\r\n", expected.collect::<String>());
        let address = server(1, move |text| match text {
            "CONNECT {\"verbose\":false}\r\nPING\r\n" => Some("INFO {}\r\nPONG\r\n".into()),
            "PONG\r\n" => Some("PONG\r\n".into()),
            published if published == expected => Some("PING\r\n".into()),
            _ => None,
        });
        let mut nats = Nats::connect(address).unwrap();
        nats.send(&messages(), 64).unwrap();
        nats.send(&messages(), 64).unwrap();
    }
}
