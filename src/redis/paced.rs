//! A TCP socket that can be read at intervals instead of whenever data arrives. Where a fleet has frequent messages for the
//! users of other instances, waking up costs each instance far more than the messages do.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

/// Tokio's timer rounds this up to its next millisecond, and the system rounds up the wait for that: reads are 1 to 2 ms
/// apart.
const INTERVAL: Duration = Duration::from_micros(500);

/// The most that one paced read takes. After such a read, more is likely to wait: the next read is at once.
const READ_BYTES: usize = 16 * 1024;

/// Whether a socket is read at intervals; shared with the owner of the socket.
#[derive(Debug, Default, Clone)]
pub(super) struct Pacing(Arc<AtomicBool>);

impl Pacing {
    /// Returns whether this changed anything.
    pub(super) fn set(&self, is_paced: bool) -> bool {
        self.0.swap(is_paced, Ordering::Relaxed) != is_paced
    }
}

pub(super) struct PacedSocket {
    source: Source,
    pacing: Pacing,
}

enum Source {
    /// The operating system reports when data arrives.
    Notified(TcpStream),
    /// A timer reports when to look, and nothing when data arrives.
    Timed(std::net::TcpStream, Pin<Box<Sleep>>),
    /// It could not be changed from one to the other.
    Failed,
}

impl Source {
    fn paced(self) -> io::Result<Self> {
        match self {
            Self::Notified(socket) => Ok(Self::Timed(socket.into_std()?, Box::pin(sleep(INTERVAL)))),
            other => Ok(other),
        }
    }

    fn notified(self) -> io::Result<Self> {
        match self {
            Self::Timed(socket, _) => Ok(Self::Notified(TcpStream::from_std(socket)?)),
            other => Ok(other),
        }
    }
}

impl PacedSocket {
    pub(super) fn new(socket: TcpStream, pacing: Pacing) -> Self {
        Self { source: Source::Notified(socket), pacing }
    }

    fn follow_pacing(&mut self) -> io::Result<()> {
        let is_paced = self.pacing.0.load(Ordering::Relaxed);
        if is_paced != matches!(self.source, Source::Timed(..)) {
            let source = std::mem::replace(&mut self.source, Source::Failed);
            self.source = if is_paced { source.paced()? } else { source.notified()? };
        }
        Ok(())
    }
}

/// Runs an operation that does not block, now and at each interval until it succeeds or fails.
fn poll_timed<T>(
    timer: &mut Pin<Box<Sleep>>,
    cx: &mut Context<'_>,
    mut operation: impl FnMut() -> io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        match operation() {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                timer.as_mut().reset(Instant::now() + INTERVAL);
                ready!(timer.as_mut().poll(cx));
            }
            result => return Poll::Ready(result),
        }
    }
}

impl AsyncRead for PacedSocket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.follow_pacing()?;
        match &mut this.source {
            Source::Notified(socket) => Pin::new(socket).poll_read(cx, buf),
            Source::Timed(socket, timer) => {
                // Whatever arrives until then is one read.
                ready!(timer.as_mut().poll(cx));
                let most = buf.remaining().min(READ_BYTES);
                let count = ready!(poll_timed(timer, cx, || socket.read(buf.initialize_unfilled_to(most))))?;
                // A TLS session asks for less than a whole read, and more is as likely to wait.
                if count < most {
                    timer.as_mut().reset(Instant::now() + INTERVAL);
                }
                buf.advance(count);
                Poll::Ready(Ok(()))
            }
            Source::Failed => Poll::Ready(Err(ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncWrite for PacedSocket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().source {
            Source::Notified(socket) => Pin::new(socket).poll_write(cx, bytes),
            Source::Timed(socket, timer) => poll_timed(timer, cx, || socket.write(bytes)),
            Source::Failed => Poll::Ready(Err(ErrorKind::NotConnected.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A TCP socket has no buffer of its own.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().source {
            Source::Notified(socket) => Pin::new(socket).poll_shutdown(cx),
            Source::Timed(socket, _) => Poll::Ready(socket.shutdown(Shutdown::Write)),
            Source::Failed => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (PacedSocket, Pacing, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let pacing = Pacing::default();
        (PacedSocket::new(near, pacing.clone()), pacing, listener.accept().await.unwrap().0)
    }

    async fn read(socket: &mut PacedSocket) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 * READ_BYTES);
        socket.read_buf(&mut bytes).await.unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_paced_socket_takes_in_one_read_all_that_arrives_within_an_interval() {
        let (mut socket, pacing, mut peer) = pair().await;
        peer.write_all(b"1").await.unwrap();
        assert_eq!(read(&mut socket).await, b"1");
        assert!(pacing.set(true) && !pacing.set(true));
        for _ in 0..3 {
            assert!(read(&mut socket).now_or_never().is_none(), "not before the interval is over");
            peer.write_all(b"2").await.unwrap();
            peer.write_all(b"3").await.unwrap();
            assert_eq!(read(&mut socket).await, b"23");
        }
        pacing.set(false);
        peer.write_all(b"4").await.unwrap();
        assert_eq!(read(&mut socket).await, b"4");
    }

    #[tokio::test]
    async fn a_paced_socket_does_not_wait_while_more_than_one_read_has_arrived() {
        let (mut socket, pacing, mut peer) = pair().await;
        pacing.set(true);
        peer.write_all(&vec![7; READ_BYTES + 1]).await.unwrap();
        assert_eq!(read(&mut socket).await.len(), READ_BYTES);
        assert_eq!(read(&mut socket).now_or_never().map(|bytes| bytes.len()), Some(1));
    }

    #[tokio::test]
    async fn a_paced_socket_does_not_wait_while_its_reads_are_smaller_than_what_has_arrived() {
        let (mut socket, pacing, mut peer) = pair().await;
        pacing.set(true);
        peer.write_all(&[7; 300]).await.unwrap();
        let mut some = [0; 100];
        assert_eq!(socket.read(&mut some).await.unwrap(), 100);
        for _ in 0..2 {
            assert_eq!(socket.read(&mut some).now_or_never().map(Result::unwrap), Some(100));
        }
        assert!(socket.read(&mut some).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_paced_socket_writes_and_ends() {
        let (mut socket, pacing, mut peer) = pair().await;
        pacing.set(true);
        assert!(read(&mut socket).now_or_never().is_none());
        // More than the kernel accepts at once.
        let sent = vec![7; 8 * 1024 * 1024];
        let receiving = async {
            let mut received = vec![0; sent.len()];
            peer.read_exact(&mut received).await.unwrap();
            peer
        };
        let (written, peer) = tokio::join!(socket.write_all(&sent), receiving);
        written.unwrap();
        drop(peer);
        assert_eq!(read(&mut socket).await, b"");
    }
}
