//! A connection to Redis of our own: TCP, TLS or a Unix socket, past AUTH, SELECT and its name.

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
use super::link::CONNECT_DEADLINE;
use super::resp::{self, Reply};

/// A quiet connection is checked this often by the system, and given up after two of them.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);

/// Room for one read: many messages of ordinary size.
const READ_BYTES: usize = 64 * 1024;

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

/// A connection and what has been read from it.
pub struct Stream {
    socket: Box<dyn Socket>,
    buffer: BytesMut,
    /// Bytes of an oversize part that are still to come, and to be thrown away.
    skip: usize,
    /// Parts or replies behind it, to be thrown away too.
    unwanted: usize,
    max_part: usize,
}

impl Stream {
    /// Connects and says who we are. Parts of replies over `max_part` bytes are not held in memory.
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
                    .map_err(|_| Error::Config(format!("redis.url: {host:?} is no host name")))?;
                let connector = TlsConnector::from(Arc::new(tls_config(ca_file)?));
                Box::new(connector.connect(server, tcp(host, *port).await?).await?)
            }
            ConnectionAddr::Unix(path) => Box::new(UnixStream::connect(path).await?),
            _ => return Err(Error::Config("redis.url: an address of an unknown kind".into())),
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

    /// Sends a command that Redis answers with a status.
    async fn confirmed(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.send(command).await?;
        let mut answered = false;
        while !answered {
            self.fill().await?;
            self.each(|_| answered = true)?;
        }
        Ok(())
    }

    /// Waits for more bytes. Cancelling it loses none.
    pub(super) async fn fill(&mut self) -> Result<(), Error> {
        if self.buffer.is_empty() && self.buffer.capacity() > 4 * READ_BYTES {
            // Grown for one large message: that room is not kept.
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(READ_BYTES);
        match self.socket.read_buf(&mut self.buffer).await? {
            0 => Err(Error::Ended),
            _ => Ok(()),
        }
    }

    /// Sends a command whose reply only [`Stream::pass_over`] reads.
    pub async fn send_unwanted(&mut self, command: &[&[u8]]) -> Result<(), Error> {
        self.unwanted += 1;
        self.send(command).await
    }

    /// Waits for all of an unwanted reply, of whatever shape and size, and keeps nothing of it. An error of Redis ends
    /// it. Cancelling it loses nothing.
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

    /// Hands on every reply that is there whole. An error of Redis ends it.
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

/// The system's checks of a quiet connection.
pub(super) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE)
}

async fn tcp(host: &str, port: u16) -> Result<TcpStream, Error> {
    let mut failed = None;
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    // One that does not answer must leave time for the next.
    let share = CONNECT_DEADLINE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    for address in addresses {
        match timeout(share, TcpStream::connect(address)).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
            Ok(socket) => {
                socket.set_nodelay(true)?;
                let options = SockRef::from(&socket);
                options.set_tcp_keepalive(&keepalive())?;
                // Keepalive pauses while data waits to be acknowledged. Elsewhere the limits of retransmission hold then,
                // and the probe finds a dead subscription.
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
