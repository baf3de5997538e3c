//! A connection to Redis over TCP, TLS or a Unix socket, authenticated, for pushed messages and blocking reads.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::Error;
use super::generation::Generation;
use super::paced::{PacedSocket, Pacing};
use super::resp::{self, Reply};
use super::server_info::ServerInfo;
use super::tls::Tls;

/// For a whole connection attempt, including authentication.
pub(super) const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// Interval of TCP keepalive; the kernel closes a connection that does not respond for two of them (on Linux).
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);

/// Free space in the buffer before each read: many messages of ordinary size.
const READ_BYTES: usize = 64 * 1024;

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

pub struct Stream {
    socket: Box<dyn Socket>,
    buffer: BytesMut,
    /// Commands to write while reading.
    queued: BytesMut,
    is_flushed: bool,
    /// Bytes to discard: the rest of the last reply or of an oversize part, some of which may not have arrived.
    skip: usize,
    /// Parts or replies to discard after it.
    unwanted: usize,
    max_part: usize,
    pub(super) server: ServerInfo,
    generation: Generation,
    pacing: Pacing,
}

impl Stream {
    /// Connects, authenticates, sets the connection's name and asks for the server. Parts over `max_part` bytes are never
    /// buffered. Fails once `generation` has ended.
    pub(super) async fn connect(
        info: &ConnectionInfo,
        tls: &Tls,
        name: &str,
        max_part: usize,
        generation: Generation,
    ) -> Result<Self, Error> {
        let pacing = Pacing::default();
        let paced = async |host, port| Ok::<_, Error>(PacedSocket::new(tcp(host, port).await?, pacing.clone()));
        let socket: Box<dyn Socket> = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Box::new(paced(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let server = ServerName::try_from(host.clone())
                    .map_err(|_| Error::Config(format!("redis.url: {host:?} is not a host name")))?;
                let connector = TlsConnector::from(tls.connector()?);
                Box::new(connector.connect(server, paced(host, *port).await?).await?)
            }
            ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
            _ => return Err(Error::Config("redis.url: unsupported address type".into())),
        };
        let server = ServerInfo::unknown();
        let mut stream = Self {
            socket,
            buffer: BytesMut::new(),
            queued: BytesMut::new(),
            is_flushed: true,
            skip: 0,
            unwanted: 0,
            max_part,
            server,
            generation,
            pacing,
        };
        let settings = info.redis_settings();
        if let Some(password) = settings.password() {
            match settings.username() {
                Some(user) => stream.confirmed(&[b"AUTH", user.as_bytes(), password.as_bytes()]).await?,
                None => stream.confirmed(&[b"AUTH", password.as_bytes()]).await?,
            }
        }
        if settings.db() != 0 {
            stream.confirmed(&[b"SELECT", settings.db().to_string().as_bytes()]).await?;
        }
        match stream.confirmed(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await {
            // The name is a convenience: Redis may refuse it.
            Ok(()) | Err(Error::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        stream.server = stream.read_info().await?;
        Ok(stream)
    }

    /// The server as it was when the connection was made.
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// From the next message on.
    pub(super) fn set_max_part(&mut self, max_part: usize) {
        self.max_part = max_part;
    }

    async fn read_info(&mut self) -> Result<ServerInfo, Error> {
        self.send(&[b"INFO"]).await?;
        loop {
            self.skip_over();
            if let Some((reply, consumed)) = resp::read_bulk(&self.buffer)? {
                let info = reply.map_err(|error| Error::refused(&String::from_utf8_lossy(error)));
                let info = ServerInfo::of_reply(info);
                self.skip = consumed;
                return info;
            }
            self.fill().await?;
        }
    }

    /// Discards the bytes to skip that have arrived.
    fn skip_over(&mut self) {
        let skipped = self.skip.min(self.buffer.len());
        self.buffer.advance(skipped);
        self.skip -= skipped;
    }

    /// Whether to read at intervals, and not whenever data arrives: fewer, fuller reads. A Unix socket is never paced.
    pub(super) fn pacing(&self) -> &Pacing {
        &self.pacing
    }

    pub async fn send(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.socket.write_all(&resp::write(command)).await?;
        Ok(self.socket.flush().await?)
    }

    /// Changes to RESP3, in which a subscribed connection may send any command.
    pub(super) async fn speak_resp3(&mut self) -> Result<(), Error> {
        self.send_unwanted(&[b"HELLO", b"3"]).await?;
        self.pass_over().await
    }

    /// Queues a command, which [`Stream::fill`] writes: the server may have to be read from before it accepts more.
    pub(super) fn queue(&mut self, command: &[&[u8]]) {
        self.queue_encoded(&resp::write(command));
    }

    /// As [`Stream::queue`], for encoded commands.
    pub(super) fn queue_encoded(&mut self, commands: &[u8]) {
        self.queued.extend_from_slice(commands);
        self.is_flushed = false;
    }

    /// Takes the bytes of the next reply of any shape, if it has arrived completely.
    pub(super) fn whole_reply(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.skip_over();
        let len = if self.skip == 0 { resp::whole_reply(&self.buffer)? } else { None };
        // Copied: otherwise a small reply would keep the whole buffer.
        Ok(len.map(|len| self.buffer.split_to(len).to_vec()))
    }

    /// Sends a command and waits for its status reply.
    async fn confirmed(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.send(command).await?;
        let mut replied = false;
        while !replied {
            self.fill().await?;
            self.each(|_| replied = true)?;
        }
        Ok(())
    }

    /// Reads more bytes, and writes the queued commands meanwhile. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        for buffer in [&mut self.buffer, &mut self.queued] {
            if buffer.is_empty() && buffer.capacity() > 4 * READ_BYTES {
                // It grew for one large message: free that memory.
                *buffer = BytesMut::new();
            }
        }
        self.buffer.reserve(READ_BYTES);
        let Self { socket, buffer, queued, is_flushed, .. } = self;
        let reading = async {
            if *is_flushed {
                return Ok(socket.read_buf(buffer).await?);
            }
            let both = poll_fn(|cx| {
                *is_flushed = *is_flushed || poll_write_all(socket, queued, cx)?.is_ready();
                pin!(socket.read_buf(buffer)).poll(cx)
            });
            Ok(both.await?)
        };
        match self.generation.run(reading).await? {
            0 => Err(Error::Ended),
            _ => Ok(()),
        }
    }

    /// Whether a reply has arrived in part.
    pub(super) fn is_within_reply(&self) -> bool {
        !self.buffer.is_empty() || self.skip > 0 || self.unwanted > 0
    }

    /// Sends a command whose reply [`Stream::pass_over`] discards.
    pub async fn send_unwanted(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.unwanted += 1;
        self.send(command).await
    }

    /// Reads and discards one whole reply of any shape and size. Fails on an error reply. Cancel safe.
    pub async fn pass_over(&mut self) -> Result<(), Error> {
        loop {
            self.skip_over();
            if self.skip == 0 {
                if self.unwanted == 0 {
                    return Ok(());
                }
                if self.buffer.starts_with(b"-") {
                    if let Some((Reply::Error(message), _)) = resp::read(&self.buffer, self.max_part)? {
                        return Err(Error::refused(&String::from_utf8_lossy(message)));
                    }
                } else if let Some((bytes, parts)) = resp::read_unwanted_reply(&self.buffer)? {
                    self.skip = bytes;
                    self.unwanted += parts;
                    self.unwanted -= 1;
                    continue;
                }
            }
            self.fill().await?;
        }
    }

    /// Passes on every reply that has arrived completely. Fails on an error reply.
    pub(super) fn each(&mut self, mut take: impl FnMut(Reply<'_>)) -> Result<(), Error> {
        loop {
            self.skip_over();
            if self.skip == 0 && self.unwanted > 0 {
                let Some(bytes) = resp::read_unwanted(&self.buffer)? else { return Ok(()) };
                self.skip = bytes;
                self.unwanted -= 1;
                continue;
            }
            let Some((reply, consumed)) = resp::read(&self.buffer, self.max_part)? else { return Ok(()) };
            self.skip = consumed;
            match reply {
                Reply::Error(message) => return Err(Error::refused(&String::from_utf8_lossy(message))),
                Reply::Oversize(_, more) => self.unwanted = more,
                Reply::Status(_) | Reply::Push(_) => {}
            }
            take(reply);
        }
    }
}

fn poll_write_all(
    socket: &mut Box<dyn Socket>,
    queued: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<()>> {
    while !queued.is_empty() {
        match ready!(Pin::new(&mut *socket).poll_write(cx, queued))? {
            0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
            written => queued.advance(written),
        }
    }
    Pin::new(socket).poll_flush(cx)
}

pub(super) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, Error> {
    let mut failed = None;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    // An unresponsive address must leave time for the next.
    let share = CONNECT_DEADLINE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                let options = SockRef::from(&socket);
                options.set_tcp_keepalive(&keepalive())?;
                // Keepalive pauses while data is unacknowledged. Other systems apply their retransmission limit, and
                // the probe detects a dead subscription.
                #[cfg(target_os = "linux")]
                options.set_tcp_user_timeout(Some(KEEPALIVE * 2))?;
                return Ok(socket);
            }
            Err(error) => failed = Some(error),
        }
    }
    let none = || std::io::Error::new(ErrorKind::NotFound, "the host has no address");
    Err(failed.unwrap_or_else(none).into())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::super::generation::Generations;
    use super::*;

    #[tokio::test]
    async fn queued_commands_are_written_while_a_server_that_reads_nothing_is_read_from() {
        const PUSHES: usize = 1_000;
        let (socket, mut server) = duplex(64);
        let generations = Generations::default();
        let mut stream = Stream {
            socket: Box::new(socket),
            buffer: BytesMut::new(),
            queued: BytesMut::new(),
            is_flushed: true,
            skip: 0,
            unwanted: 0,
            max_part: 1_024,
            server: ServerInfo::unknown(),
            generation: generations.current(),
            pacing: Pacing::default(),
        };
        let command: Vec<&[u8]> = vec![b"SUBSCRIBE"; 1_000];
        stream.queue(&command);
        let serving = async {
            // It accepts commands only once its own output is taken.
            server.write_all(&b"*1\r\n$4\r\npush\r\n".repeat(PUSHES)).await.unwrap();
            let mut received = vec![0; resp::write(&command).len()];
            server.read_exact(&mut received).await.unwrap();
            assert_eq!(received, resp::write(&command));
            server.write_all(b"+last\r\n").await.unwrap();
        };
        let reading = async {
            let (mut pushes, mut is_over) = (0, false);
            while !is_over {
                stream.fill().await.unwrap();
                stream
                    .each(|reply| if matches!(reply, Reply::Push(_)) { pushes += 1 } else { is_over = true })
                    .unwrap();
            }
            assert_eq!(pushes, PUSHES);
        };
        timeout(Duration::from_secs(10), async { tokio::join!(serving, reading) }).await.expect("no deadlock");
    }
}
