//! The instructions of the steps of one delivery, counted by Valgrind: the same on a noisy machine as on a quiet one.
//!
//! `make bench-instructions` writes them to docs/benchmarks. Each benchmark repeats its step [`TIMES`] times. The kernel's
//! instructions are not counted.

#![allow(missing_docs, reason = "the macros below make undocumented items")]
#![allow(clippy::expect_used, reason = "no benchmark runs without its fixture")]

mod fixture;

use std::hint::black_box;

use fixture::{BOUND, Fixture, payload, pushes};
use gungraun::prelude::*;
use tidings::internals::{BackplaneEvent, Dialect, Encoded, Event, Router, count_replies, is_json};
use tokio::time::Instant;

/// Averages out the random cost of a hash or an allocation.
const TIMES: u32 = 100;

struct Setting {
    fixture: Fixture,
    /// Of users with a connection here.
    channels: Vec<String>,
    /// Of users without a connection here.
    other_channels: Vec<String>,
    data: String,
}

fn setting() -> Setting {
    let fixture = Fixture::new().expect("the fixture");
    let channels: Vec<String> = (0..TIMES).map(|number| format!("user:{}", number * 97)).collect();
    let other_channels = channels.iter().map(|channel| format!("{channel}-elsewhere")).collect();
    let setting = Setting { fixture, channels, other_channels, data: payload() };
    // From here on, one message in 32 is measured, as in an instance.
    setting.fixture.router.take(BackplaneEvent::Read { at: Instant::now() });
    // State that is created at first use exists before the measurement.
    route(&setting.fixture.router, "user:0", &setting.data);
    setting.fixture.router.take(BackplaneEvent::Pause);
    setting
}

fn route(router: &Router, channel: &str, data: &str) {
    router
        .take(BackplaneEvent::Message { channel: black_box(channel.as_bytes()), payload: black_box(data.as_bytes()) });
}

#[library_benchmark]
#[bench::a_push(pushes(TIMES))]
fn parse(read: Vec<u8>) -> Vec<u8> {
    assert_eq!(count_replies(black_box(&read)), TIMES as usize);
    read
}

#[library_benchmark]
#[bench::hit(setting())]
fn lookup_hit(setting: Setting) -> Setting {
    for channel in &setting.channels {
        setting.fixture.registry.with(black_box(&channel["user:".len()..]), |handles| black_box(handles).len());
    }
    setting
}

#[library_benchmark]
#[bench::miss(setting())]
fn lookup_miss(setting: Setting) -> Setting {
    for channel in &setting.other_channels {
        setting.fixture.registry.with(black_box(&channel["user:".len()..]), |handles| black_box(handles).len());
    }
    setting
}

#[library_benchmark]
#[bench::json(payload())]
fn check(data: String) -> String {
    for _ in 0..TIMES {
        assert!(is_json(black_box(&data)));
    }
    data
}

#[library_benchmark]
#[bench::a_frame(payload())]
fn encode(data: String) -> String {
    for _ in 0..TIMES {
        black_box(Encoded::new(Event::ephemeral("notification", black_box(&data))).frame(Dialect::TidingsV1));
    }
    data
}

#[library_benchmark]
#[bench::and_flush(setting())]
fn push(setting: Setting) -> Setting {
    let queue = &setting.fixture.handle.queue;
    let frame = Encoded::new(Event::ephemeral("notification", &setting.data)).frame(Dialect::TidingsV1);
    for _ in 0..TIMES {
        black_box(queue.push(frame.clone(), None, &BOUND));
        queue.flush();
    }
    setting
}

#[library_benchmark]
#[bench::hit(setting())]
fn route_hit(setting: Setting) -> Setting {
    for channel in &setting.channels {
        route(&setting.fixture.router, channel, &setting.data);
        setting.fixture.router.take(BackplaneEvent::Pause);
    }
    setting
}

#[library_benchmark]
#[bench::miss(setting())]
fn route_miss(setting: Setting) -> Setting {
    for channel in &setting.other_channels {
        route(&setting.fixture.router, channel, &setting.data);
    }
    setting.fixture.router.take(BackplaneEvent::Pause);
    setting
}

library_benchmark_group!(
    name = hot_path,
    benchmarks = [parse, lookup_hit, lookup_miss, check, encode, push, route_hit, route_miss]
);
main!(library_benchmark_groups = hot_path);
