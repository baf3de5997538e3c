//! What one delivery passes through, step by step: `cargo bench --bench hot_path`.

#![allow(missing_docs, reason = "the macros below make undocumented items")]

use std::error::Error;
use std::future::poll_fn;
use std::hint::black_box;
use std::io::Read as _;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput};
use tidings::backplane::Heard;
use tidings::config::{Outbox as Bound, SlowClient};
use tidings::metrics::Metrics;
use tidings::protocol::{ConnectionId, Dialect, Encoded, Event, UserId, is_json};
use tidings::registry::{CredentialSlot, Driven, Member, Outbox, Pushed, Registration, Registry};
use tidings::router::Router;
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

const USERS: u32 = 10_000;
/// Never reached: a client that is paused by the machine is not what is measured.
const BOUND: Bound = Bound {
    max_messages: usize::MAX,
    max_bytes: usize::MAX,
    slow_client: SlowClient::Disconnect,
    write_timeout: Duration::from_secs(10),
};

fn payload() -> String {
    format!(r#"{{"n":1,"t":123456789,"p":"{}"}}"#, "x".repeat(100))
}

/// A connection whose client reads as fast as it can.
fn member(runtime: &Runtime) -> std::io::Result<Arc<Member>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let socket = runtime.block_on(TcpStream::connect(listener.local_addr()?))?;
    socket.set_nodelay(true)?;
    let (mut client, _) = listener.accept()?;
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 20];
        while matches!(client.read(&mut bytes), Ok(1..)) {}
    });
    runtime.block_on(socket.writable())?;
    let (id, credential) = (ConnectionId::random(), CredentialSlot::default());
    Ok(Arc::new(Member { id, dialect: Dialect::TidingsV1, credential, outbox: Outbox::new(socket) }))
}

async fn drive(member: Arc<Member>) {
    let mut armed = None;
    while let Driven::Stalled(since) = poll_fn(|cx| member.outbox.poll_drive(cx, armed)).await {
        armed = since;
    }
}

/// Every user has the one connection: whose it is makes no difference to a look-up.
fn registry(member: &Arc<Member>) -> Result<(Arc<Registry>, Vec<Registration>), Box<dyn Error>> {
    let registry = Arc::new(Registry::default());
    let places = (0..USERS).map(|user| Ok(registry.register(UserId::new(&user.to_string())?, Arc::clone(member))));
    let places = places.collect::<Result<_, Box<dyn Error>>>()?;
    Ok((registry, places))
}

fn frames(criterion: &mut Criterion) {
    let data = payload();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("is_json", |bencher| bencher.iter(|| is_json(black_box(&data))));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| Encoded::new(Event { name: "notification", data: black_box(&data) }).frame(Dialect::TidingsV1));
    });
    group.finish();
}

fn lookups(criterion: &mut Criterion, registry: &Registry) {
    let mut group = criterion.benchmark_group("registry");
    group.bench_function("hit", |bencher| {
        bencher.iter(|| registry.each_of(black_box("4711"), |member| _ = black_box(member)));
    });
    group.bench_function("miss", |bencher| bencher.iter(|| registry.connections_of(black_box("elsewhere-4711"))));
    group.finish();
}

fn outbox(criterion: &mut Criterion, member: &Member) {
    let data = payload();
    let frame = Encoded::new(Event { name: "notification", data: &data }).frame(Dialect::TidingsV1);
    criterion.bench_function("outbox/push and write", |bencher| {
        bencher.iter(|| {
            assert_ne!(member.outbox.push(frame.clone(), &BOUND), Pushed::Closed);
            member.outbox.flush();
        });
    });
}

fn routes(criterion: &mut Criterion, registry: Arc<Registry>) {
    let router = Router::new(registry, Arc::new(Metrics::new()), BOUND, 1 << 20);
    let data = payload();
    let take = |channel: &[u8]| router.take(Heard::Message { channel, payload: black_box(data.as_bytes()) });
    let mut group = criterion.benchmark_group("router");
    group.bench_function("miss", |bencher| bencher.iter(|| take(black_box(b"user:elsewhere-4711"))));
    group.bench_function("one message, one write", |bencher| {
        bencher.iter(|| {
            take(black_box(b"user:4711"));
            router.take(Heard::Pause);
        });
    });
    group.bench_function("eight messages, one write", |bencher| {
        bencher.iter(|| {
            (0..8).for_each(|_| take(black_box(b"user:4711")));
            router.take(Heard::Pause);
        });
    });
    group.finish();
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // What the socket does not take at once is written by a task, as in the gateway.
    let member = member(&runtime)?;
    runtime.spawn(drive(Arc::clone(&member)));
    let (registry, _places) = registry(&member)?;

    let mut criterion = Criterion::default().configure_from_args();
    frames(&mut criterion);
    lookups(&mut criterion, &registry);
    outbox(&mut criterion, &member);
    routes(&mut criterion, registry);
    criterion.final_summary();
    Ok(())
}
