//! The steps of one delivery, one by one: `cargo bench --bench hot_path`.

mod fixture;

use std::error::Error;
use std::hint::black_box;

use criterion::{Criterion, Throughput};
use fixture::{BOUND, Fixture, payload, pushes};
use tidings::internals::{
    BackplaneEvent, ConnectionHandle, Dialect, Encoded, Event, Pushed, Registry, Router, count_replies, is_json,
};

fn replies(criterion: &mut Criterion) {
    let read = pushes(100);
    let mut group = criterion.benchmark_group("redis");
    group.throughput(Throughput::Elements(100));
    group.bench_function("parse 100 pushes", |bencher| bencher.iter(|| count_replies(black_box(&read))));
    group.finish();
}

fn frames(criterion: &mut Criterion) {
    let data = payload();
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.bench_function("is_json", |bencher| bencher.iter(|| is_json(black_box(&data))));
    group.bench_function("encode", |bencher| {
        bencher.iter(|| Encoded::new(Event::ephemeral("notification", black_box(&data))).frame(Dialect::TidingsV1));
    });
    group.finish();
}

fn lookups(criterion: &mut Criterion, registry: &Registry) {
    let mut group = criterion.benchmark_group("registry");
    group.bench_function("hit", |bencher| {
        bencher.iter(|| registry.with(black_box("4711"), |handles| black_box(handles).len()));
    });
    group.bench_function("miss", |bencher| bencher.iter(|| registry.connections_of(black_box("elsewhere-4711"))));
    group.finish();
}

fn send_queue(criterion: &mut Criterion, handle: &ConnectionHandle) {
    let data = payload();
    let frame = Encoded::new(Event::ephemeral("notification", &data)).frame(Dialect::TidingsV1);
    criterion.bench_function("send queue/push and write", |bencher| {
        bencher.iter(|| {
            assert_ne!(handle.queue.push(frame.clone(), None, &BOUND), Pushed::Closed);
            handle.queue.flush();
        });
    });
}

fn routes(criterion: &mut Criterion, router: &Router) {
    let data = payload();
    let take = |channel: &[u8]| router.take(BackplaneEvent::Message { channel, payload: black_box(data.as_bytes()) });
    let mut group = criterion.benchmark_group("router");
    group.bench_function("miss", |bencher| bencher.iter(|| take(black_box(b"user:elsewhere-4711"))));
    group.bench_function("one message, one write", |bencher| {
        bencher.iter(|| {
            take(black_box(b"user:4711"));
            router.take(BackplaneEvent::Pause);
        });
    });
    group.bench_function("eight messages, one write", |bencher| {
        bencher.iter(|| {
            (0..8).for_each(|_| take(black_box(b"user:4711")));
            router.take(BackplaneEvent::Pause);
        });
    });
    group.finish();
}

fn main() -> Result<(), Box<dyn Error>> {
    let fixture = Fixture::new()?;
    let mut criterion = Criterion::default().configure_from_args();
    replies(&mut criterion);
    frames(&mut criterion);
    lookups(&mut criterion, &fixture.registry);
    send_queue(&mut criterion, &fixture.handle);
    routes(&mut criterion, &fixture.router);
    criterion.final_summary();
    Ok(())
}
