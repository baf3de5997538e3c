//! A TCP proxy between an instance and Redis that fails as networks do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::redis::free_port;

/// The direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Both,
    ToRedis,
    FromRedis,
}

/// The connections that are silenced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// All, also later ones.
    All,
    /// The present ones.
    Existing,
    /// Later ones.
    New,
    /// Connections that name themselves subscribers, also later ones.
    Subscribers,
    /// All others, also later ones.
    Commands,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    whose: Whose,
    way: Way,
    /// The number of the first new connection.
    first_new: u64,
}

#[derive(Debug, Clone, Default)]
struct Faults {
    refuses: bool,
    /// Connections numbered below this are closed.
    cut_below: u64,
    /// New connections lead to this port of loopback.
    port: u16,
    silence: Option<Silence>,
    delay: Duration,
}

/// See the module. Everything ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    accepted: Arc<AtomicU64>,
    _accepting: JoinSet<()>,
}

impl Proxy {
    /// Forwards to this port of loopback.
    pub fn start(port: u16) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let (faults, seen) = watch::channel(Faults { port, ..Faults::default() });
        let accepted = Arc::new(AtomicU64::new(0));
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(address, seen, Arc::clone(&accepted)));
        Self { address, faults, accepted, _accepting: accepting }
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Closes every connection; new ones are accepted.
    pub fn cut(&self) {
        let next = self.accepted.load(Ordering::SeqCst);
        self.faults.send_modify(|faults| faults.cut_below = next);
    }

    /// Closes every connection, and refuses new ones.
    pub fn refuse(&self) {
        self.faults.send_modify(|faults| faults.refuses = true);
        self.cut();
    }

    /// Keeps connections, accepts more, and forwards nothing until it is healed; then it forwards what it held.
    pub fn blackhole(&self, whose: Whose, way: Way) {
        let first_new = self.accepted.load(Ordering::SeqCst);
        self.faults.send_modify(|faults| faults.silence = Some(Silence { whose, way, first_new }));
    }

    /// Delays every byte by this long, in each direction.
    pub fn delay(&self, delay: Duration) {
        self.faults.send_modify(|faults| faults.delay = delay);
    }

    /// New connections lead to this port of loopback; the present ones stay.
    pub fn lead_to(&self, port: u16) {
        self.faults.send_modify(|faults| faults.port = port);
    }

    /// Forwards normally again.
    pub fn heal(&self) {
        self.faults.send_modify(|faults| {
            *faults = Faults { cut_below: faults.cut_below, port: faults.port, ..Faults::default() };
        });
    }
}

async fn accept(address: SocketAddr, mut faults: watch::Receiver<Faults>, accepted: Arc<AtomicU64>) {
    let mut links = JoinSet::new();
    loop {
        let listener = TcpListener::bind(address).await.expect("no other program takes this port");
        loop {
            let client = tokio::select! {
                accepted = listener.accept() => accepted.unwrap().0,
                _ = faults.wait_for(|faults| faults.refuses) => break,
            };
            let number = accepted.fetch_add(1, Ordering::SeqCst);
            let port = faults.borrow().port;
            links.spawn(forward(Link { number, subscriber: Arc::default(), faults: faults.clone() }, client, port));
            while links.try_join_next().is_some() {}
        }
        drop(listener);
        if faults.wait_for(|faults| !faults.refuses).await.is_err() {
            return;
        }
    }
}

/// One connection, seen from one of its directions.
#[derive(Clone)]
struct Link {
    number: u64,
    /// Whether it has named itself one.
    subscriber: Arc<AtomicBool>,
    faults: watch::Receiver<Faults>,
}

impl Link {
    fn is_silent(&self, faults: &Faults, way: Way) -> bool {
        let Some(silence) = faults.silence.filter(|silence| silence.way == Way::Both || silence.way == way) else {
            return false;
        };
        match silence.whose {
            Whose::All => true,
            Whose::Existing => self.number < silence.first_new,
            Whose::New => self.number >= silence.first_new,
            Whose::Subscribers => self.subscriber.load(Ordering::SeqCst),
            Whose::Commands => !self.subscriber.load(Ordering::SeqCst),
        }
    }

    async fn until(&mut self, holds: impl Fn(&Self, &Faults) -> bool) {
        let this = self.clone();
        if self.faults.wait_for(|faults| holds(&this, faults)).await.is_err() {
            // The proxy is gone, and this task with it.
            std::future::pending::<()>().await;
        }
    }
}

async fn forward(link: Link, client: TcpStream, port: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let both = async {
        tokio::join!(
            pump(link.clone(), Way::ToRedis, from_client, to_server),
            pump(link.clone(), Way::FromRedis, from_server, to_client),
        )
    };
    let mut own = link.clone();
    tokio::select! {
        _ = both => {}
        () = own.until(|own, faults| own.number < faults.cut_below) => {}
    }
}

/// Forwards one direction: bytes are held for the delay, while more are read.
async fn pump(link: Link, way: Way, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let (sender, mut on_the_way) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let mut arriving = link.clone();
    let arrivals = async move {
        while let Some((due, bytes)) = on_the_way.recv().await {
            sleep_until(due).await;
            arriving.until(|link, faults| !link.is_silent(faults, way)).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        arriving.until(|link, faults| !link.is_silent(faults, way)).await;
        to.shutdown().await.ok();
    };
    let departures = async move {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            let bytes = buffer[..count].to_vec();
            if way == Way::ToRedis && bytes.windows(b"-subscriber".len()).any(|part| part == b"-subscriber") {
                link.subscriber.store(true, Ordering::SeqCst);
            }
            let due = Instant::now() + link.faults.borrow().delay;
            if count == 0 || sender.send((due, bytes)).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(arrivals, departures);
}
