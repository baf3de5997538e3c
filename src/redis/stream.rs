//! A connection to Redis over TCP, TLS or a Unix socket, authenticated, for pushed messages and blocking reads.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{ConnectionAddr, ConnectionInfo};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::Error;
use super::resp::{self, Reply};

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
    /// Bytes to discard: the rest of the last reply or of an oversize part, some of which may not have arrived.
    skip: usize,
    /// Parts or replies to discard after it.
    unwanted: usize,
    max_part: usize,
}

impl Stream {
    /// Connects, authenticates and sets the connection's name. Parts over `max_part` bytes are never buffered.
    pub(super) async fn connect(
        info: &ConnectionInfo,
        ca_file: Option<&Path>,
        name: &str,
        max_part: usize,
    ) -> Result<Self, Error> {
        let socket: Box<dyn Socket> = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Box::new(tcp(host, *port).await?),
            ConnectionAddr::TcpTls { host, port, .. } => {
                let server = ServerName::try_from(host.clone())
                    .map_err(|_| Error::Config(format!("redis.url: {host:?} is not a host name")))?;
                let connector = TlsConnector::from(Arc::new(tls_config(ca_file)?));
                Box::new(connector.connect(server, tcp(host, *port).await?).await?)
            }
            ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
            _ => return Err(Error::Config("redis.url: unsupported address type".into())),
        };
        let mut stream = Self { socket, buffer: BytesMut::new(), skip: 0, unwanted: 0, max_part };
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
        stream.confirmed(&[b"CLIENT", b"SETNAME", name.as_bytes()]).await?;
        Ok(stream)
    }

    pub async fn send(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.socket.write_all(&resp::write(command)).await?;
        Ok(self.socket.flush().await?)
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

    /// Reads more bytes. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * READ_BYTES {
            // It grew for one large message: free that memory.
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(Error::Ended),
            _ => Ok(()),
        }
    }

    /// Sends a command whose reply [`Stream::pass_over`] discards.
    pub async fn send_unwanted(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.unwanted += 1;
        self.send(command).await
    }

    /// Reads and discards one whole reply of any shape and size. Fails on an error reply. Cancel safe.
    pub async fn pass_over(&mut self) -> Result<(), Error> {
        loop {
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
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
            let skipped = self.skip.min(self.buffer.len());
            self.buffer.advance(skipped);
            self.skip -= skipped;
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

fn tls_config(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            let fail = |error: &dyn std::fmt::Display| Error::Config(format!("redis.ca_file = {path:?}: {error}"));
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| fail(&error))? {
                roots.add(certificate.map_err(|error| fail(&error))?).map_err(|error| fail(&error))?;
            }
            if roots.is_empty() {
                return Err(fail(&"no certificate in it"));
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}
