//! What both benchmarks measure in: a registry of many users, and one connection whose client reads.

use std::error::Error;
use std::future::poll_fn;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tidings::internals::{
    Backlog, ConnectionHandle, ConnectionId, CredentialSlot, Dialect, Driven, Metrics, Registration, Registry, Router,
    SendQueue, SendQueueConfig as Bound, Shutdown, SlowClient, Socket, UserId,
};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

pub(crate) const USERS: u32 = 10_000;

/// Never reached: a client that is paused by the machine is not what is measured.
pub(crate) const BOUND: Bound = Bound {
    max_messages: usize::MAX,
    max_bytes: usize::MAX,
    max_total_bytes: usize::MAX,
    slow_client: SlowClient::Disconnect,
    write_timeout: Duration::from_secs(10),
};

/// See the module.
#[derive(Debug)]
pub(crate) struct House {
    pub(crate) handle: Arc<ConnectionHandle>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) router: Router,
    _places: Vec<Registration>,
    _runtime: Runtime,
}

impl House {
    /// Every user has the one connection: whose it is makes no difference to a look-up.
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let handle = handle(&runtime)?;
        // What the socket does not take at once is written by a task, as in the gateway.
        runtime.spawn(drive(Arc::clone(&handle)));
        let registry = Arc::new(Registry::default());
        let places = (0..USERS).map(|user| Ok(registry.register(UserId::new(&user.to_string())?, Arc::clone(&handle))));
        let places = places.collect::<Result<_, Box<dyn Error>>>()?;
        let router = Router::new(Arc::clone(&registry), Arc::new(Metrics::new()), BOUND, 1 << 20, Shutdown::default());
        Ok(Self { handle, registry, router, _places: places, _runtime: runtime })
    }
}

pub(crate) fn payload() -> String {
    format!(r#"{{"n":1,"t":123456789,"p":"{}"}}"#, "x".repeat(100))
}

/// What Redis sends of so many messages.
pub(crate) fn pushes(count: u32) -> Vec<u8> {
    let payload = payload();
    let push = |user: u32| {
        let channel = format!("user:{user}");
        let parts = ["pmessage", "user:*", &channel, &payload].map(|part| format!("${}\r\n{part}\r\n", part.len()));
        format!("*4\r\n{}", parts.concat())
    };
    (1_000..1_000 + count).map(push).collect::<String>().into_bytes()
}

/// A connection whose client reads as fast as it can.
fn handle(runtime: &Runtime) -> std::io::Result<Arc<ConnectionHandle>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let socket = runtime.block_on(TcpStream::connect(listener.local_addr()?))?;
    socket.set_nodelay(true)?;
    let (mut client, _) = listener.accept()?;
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while matches!(client.read(&mut bytes), Ok(1..)) {}
    });
    runtime.block_on(socket.writable())?;
    let backlog = Backlog::new(&Metrics::new(), usize::MAX);
    let (id, credential) = (ConnectionId::random(), CredentialSlot::default());
    let queue = SendQueue::new(Socket::Plain(socket), backlog);
    Ok(Arc::new(ConnectionHandle { id, dialect: Dialect::TidingsV1, credential, queue }))
}

async fn drive(handle: Arc<ConnectionHandle>) {
    let mut armed = None;
    while let Driven::Stalled(since) = poll_fn(|cx| handle.queue.poll_drive(cx, armed)).await {
        armed = since;
    }
}
