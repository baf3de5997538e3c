//! RFC 6455, case by case, against `examples/echo.rs`: the read and write path of every connection.
//!
//! The sections are those of Autobahn's suite; docs/conformance.md lists those that are covered here.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use futures::{StreamExt, stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};

use crate::support::wire::{BINARY, CLOSE, CONTINUATION, Decoder, FIN, Frame, PING, PONG, TEXT, client_frame, upgrade};
use crate::support::within;

/// What is sent, and what must come back: these frames, then this end, then nothing.
struct Case {
    section: u8,
    name: String,
    /// Written one after the other.
    sent: Vec<Vec<u8>>,
    answers: Vec<Frame>,
    end: End,
}

/// How the connection ends.
#[derive(Clone, Copy)]
enum End {
    /// With a goodbye of the client's, which is returned.
    Goodbye,
    /// With the server's close frame: this code, or none.
    Closed(Option<u16>),
}

const BROKEN: End = End::Closed(Some(1002));
const NO_UTF8: End = End::Closed(Some(1007));

fn whole(opcode: u8, payload: &[u8]) -> Vec<u8> {
    client_frame(FIN | opcode, payload)
}

fn answer(opcode: u8, payload: &[u8]) -> Frame {
    Frame { opcode, payload: payload.to_vec() }
}

/// Written in pieces of so many bytes.
fn chopped(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    bytes.chunks(size).map(<[u8]>::to_vec).collect()
}

/// A message in fragments of so many bytes.
fn fragments(opcode: u8, payload: &[u8], size: usize) -> Vec<Vec<u8>> {
    let count = payload.len().div_ceil(size);
    let first = |index: usize| {
        let opcode = if index == 0 { opcode } else { CONTINUATION };
        if index + 1 == count { FIN | opcode } else { opcode }
    };
    payload.chunks(size).enumerate().map(|(index, part)| client_frame(first(index), part)).collect()
}

struct Cases(Vec<Case>);

impl Cases {
    fn add(&mut self, section: u8, name: impl Into<String>, sent: Vec<Vec<u8>>, answers: Vec<Frame>, end: End) {
        self.0.push(Case { section, name: name.into(), sent, answers, end });
    }

    /// A message that comes back.
    fn echoed(&mut self, section: u8, name: impl Into<String>, sent: Vec<Vec<u8>>, opcode: u8, payload: &[u8]) {
        self.add(section, name, sent, vec![answer(opcode, payload)], End::Goodbye);
    }

    fn framing(&mut self) {
        for opcode in [TEXT, BINARY] {
            for size in [0, 1, 125, 126, 127, 128, 65_535, 65_536] {
                let payload = vec![if opcode == TEXT { b'*' } else { 0xfe }; size];
                self.echoed(1, format!("{size} of {opcode}"), vec![whole(opcode, &payload)], opcode, &payload);
                let chops = chopped(&whole(opcode, &payload), 997);
                self.echoed(1, format!("{size} of {opcode}, chopped"), chops, opcode, &payload);
            }
        }
    }

    fn pings(&mut self) {
        let binary = [0xff, 0xfe, 0xfd, 0x00];
        for payload in [&b""[..], b"Hello", &binary, &[0xfe; 125]] {
            self.echoed(2, format!("ping {payload:?}"), vec![whole(PING, payload)], PONG, payload);
            let chops = chopped(&whole(PING, payload), 1);
            self.echoed(2, format!("ping {payload:?}, byte by byte"), chops, PONG, payload);
        }
        self.add(2, "ping of 126", vec![whole(PING, &[0xfe; 126])], vec![], BROKEN);
        for payload in [&b""[..], b"unasked"] {
            self.add(2, format!("pong {payload:?}"), vec![whole(PONG, payload)], vec![], End::Goodbye);
        }
        self.echoed(2, "pong, then ping", vec![whole(PONG, b"unasked"), whole(PING, b"ping")], PONG, b"ping");
        let ten = || (0..10_u8).map(|number| vec![b'p', number]);
        let pings: Vec<u8> = ten().flat_map(|payload| whole(PING, &payload)).collect();
        let pongs = || ten().map(|payload| answer(PONG, &payload)).collect();
        self.add(2, "ten pings", vec![pings.clone()], pongs(), End::Goodbye);
        self.add(2, "ten pings, byte by byte", chopped(&pings, 1), pongs(), End::Goodbye);
    }

    fn reserved(&mut self) {
        let hello = || (whole(TEXT, b"Hello"), answer(TEXT, b"Hello"));
        for bits in 1..8 {
            for opcode in [TEXT, BINARY, CLOSE, PING, PONG] {
                let wrong = client_frame(FIN | bits << 4 | opcode, b"");
                let (sent, echoed) = hello();
                let both = vec![[sent, wrong, whole(PING, b"")].concat()];
                self.add(3, format!("reserved bits {bits:03b} of {opcode}"), both, vec![echoed], BROKEN);
            }
        }
        for opcode in (0x3..=0x7).chain(0xb..=0xf) {
            for payload in [&b""[..], b"reserved opcode payload"] {
                let (sent, echoed) = hello();
                let both = vec![sent, whole(opcode, payload), whole(PING, b"")];
                self.add(4, format!("opcode {opcode:x} {payload:?}"), both, vec![echoed], BROKEN);
            }
        }
    }

    fn fragmentation(&mut self) {
        let parts = |size| fragments(TEXT, b"fragment1fragment2", size);
        for size in [9, 5, 1] {
            self.echoed(5, format!("fragments of {size}"), parts(size), TEXT, b"fragment1fragment2");
            let chops = chopped(&parts(size).concat(), 1);
            self.echoed(5, format!("fragments of {size}, byte by byte"), chops, TEXT, b"fragment1fragment2");
        }
        let mut between = parts(9);
        between.insert(1, whole(PING, b"ping"));
        let answers = || vec![answer(PONG, b"ping"), answer(TEXT, b"fragment1fragment2")];
        self.add(5, "a ping between", between.clone(), answers(), End::Goodbye);
        self.add(5, "a ping between, at once", vec![between.concat()], answers(), End::Goodbye);
        let empty = vec![client_frame(TEXT, b""), client_frame(CONTINUATION, b""), whole(CONTINUATION, b"")];
        self.echoed(5, "three empty fragments", empty, TEXT, b"");
        let middle = vec![client_frame(TEXT, b""), client_frame(CONTINUATION, b"x"), whole(CONTINUATION, b"")];
        self.echoed(5, "a fragment between empty ones", middle, TEXT, b"x");
        for opcode in [PING, PONG, CLOSE] {
            let two = vec![client_frame(opcode, b""), whole(CONTINUATION, b"")];
            self.add(5, format!("fragments of {opcode}"), two, vec![], BROKEN);
        }
        for first in [FIN | CONTINUATION, CONTINUATION] {
            let hello = vec![client_frame(first, b"nothing to continue"), whole(TEXT, b"Hello")];
            self.add(5, format!("a continuation of nothing, {first:x}"), hello, vec![], BROKEN);
            let mut after = parts(9);
            after.push(client_frame(first, b"nothing to continue"));
            let echoed = vec![answer(TEXT, b"fragment1fragment2")];
            self.add(5, format!("a continuation of what is whole, {first:x}"), after, echoed, BROKEN);
        }
        for opcode in [TEXT, BINARY] {
            let two = vec![client_frame(TEXT, b"one"), whole(opcode, b"two")];
            self.add(5, format!("{opcode} within a text"), two, vec![], BROKEN);
        }
    }

    fn utf8(&mut self) {
        let valid = [
            "",
            "\0",
            "\x7f",
            "\u{80}",
            "\u{7ff}",
            "\u{800}",
            "\u{d7ff}",
            "\u{e000}",
            "\u{fffd}",
            "\u{fffe}",
            "\u{ffff}",
            "\u{10000}",
            "\u{1fffe}",
            "\u{10fffe}",
            "\u{10ffff}",
            "Hello-µ@ßöäüàá-UTF-8!!",
            "κόσμε",
            "日本語",
            "👩‍👩‍👧",
        ];
        for text in valid {
            let bytes = text.as_bytes();
            self.echoed(6, format!("{text:?}"), vec![whole(TEXT, bytes)], TEXT, bytes);
            if !bytes.is_empty() {
                // Fragments may end within a character.
                self.echoed(6, format!("{text:?}, byte by byte"), fragments(TEXT, bytes, 1), TEXT, bytes);
            }
        }
        let invalid: [&[u8]; 24] = [
            b"\x80",
            b"\xbf",
            b"\x80\xbf\x80",
            b"\xc0",
            b"\xc3",
            b"\xe1\x80",
            b"\xf0\x9d\x84",
            b"\xfe",
            b"\xff",
            b"\xfe\xfe\xff\xff",
            b"\xc0\xaf",
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xf8\x80\x80\x80\xaf",
            b"\xfc\x80\x80\x80\x80\xaf",
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xf0\x8f\xbf\xbf",
            b"\xed\xa0\x80",
            b"\xed\xbf\xbf",
            b"\xed\xa0\x80\xed\xb0\x80",
            b"\xf4\x90\x80\x80",
            b"\xf5\x80\x80\x80",
            "κόσμε\u{10ffff}".as_bytes().split_last().unwrap().1,
        ];
        for bytes in invalid {
            self.add(6, format!("{bytes:02x?}"), vec![whole(TEXT, bytes)], vec![], NO_UTF8);
            self.add(6, format!("{bytes:02x?}, byte by byte"), fragments(TEXT, bytes, 1), vec![], NO_UTF8);
            let amid = [b"before ", bytes, b" after"].concat();
            self.add(6, format!("{bytes:02x?}, in fragments of 5"), fragments(TEXT, &amid, 5), vec![], NO_UTF8);
            self.echoed(6, format!("{bytes:02x?} as binary"), vec![whole(BINARY, bytes)], BINARY, bytes);
        }
    }

    fn closing(&mut self) {
        let code = |code: u16, reason: &[u8]| whole(CLOSE, &[&code.to_be_bytes()[..], reason].concat());
        let normal = End::Closed(Some(1000));
        self.add(
            7,
            "text, then close",
            vec![whole(TEXT, b"Hello"), code(1000, b"")],
            vec![answer(TEXT, b"Hello")],
            normal,
        );
        self.add(7, "close twice", vec![[code(1000, b""), code(1000, b"")].concat()], vec![], normal);
        for after in [whole(PING, b"late"), whole(TEXT, b"late"), client_frame(TEXT, b"late")] {
            self.add(7, format!("close, then {:x}", after[0]), vec![[code(1000, b""), after].concat()], vec![], normal);
        }
        let unfinished = [client_frame(TEXT, b"one"), code(1000, b""), whole(CONTINUATION, b"two")];
        self.add(7, "close within a text", vec![unfinished.concat()], vec![], normal);
        self.add(7, "close without a code", vec![whole(CLOSE, b"")], vec![], End::Closed(None));
        self.add(7, "close with half a code", vec![whole(CLOSE, b"a")], vec![], BROKEN);
        self.add(7, "close with a reason", vec![code(1000, b"Hello World!")], vec![], normal);
        self.add(7, "close with the longest reason", vec![code(1000, &[b'*'; 123])], vec![], normal);
        self.add(7, "close with too long a reason", vec![code(1000, &[b'*'; 124])], vec![], BROKEN);
        self.add(7, "close with a reason that is no UTF-8", vec![code(1000, b"\xce\xba\xed\xa0\x80")], vec![], NO_UTF8);
        for good in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999] {
            self.add(7, format!("close with {good}"), vec![code(good, b"")], vec![], End::Closed(Some(good)));
        }
        for bad in [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999] {
            self.add(7, format!("close with {bad}"), vec![code(bad, b"")], vec![], BROKEN);
        }
    }

    fn limits(&mut self) {
        for opcode in [TEXT, BINARY] {
            for size in [64 << 10, 256 << 10, 1 << 20] {
                let payload = vec![b'*'; size];
                self.echoed(9, format!("{size} of {opcode}"), vec![whole(opcode, &payload)], opcode, &payload);
                for part in [256, 4 << 10, 64 << 10] {
                    let sent = vec![fragments(opcode, &payload, part).concat()];
                    self.echoed(9, format!("{size} of {opcode} in fragments of {part}"), sent, opcode, &payload);
                }
            }
            let payload = vec![b'*'; 64 << 10];
            for chop in [64, 1 << 10] {
                let sent = chopped(&whole(opcode, &payload), chop);
                self.echoed(9, format!("65536 of {opcode} in chops of {chop}"), sent, opcode, &payload);
            }
            for size in [0, 16, 64, 256] {
                let payload = vec![b'*'; size];
                let answers = (0..200).map(|_| answer(opcode, &payload)).collect();
                self.add(
                    9,
                    format!("200 × {size} of {opcode}"),
                    vec![whole(opcode, &payload); 200],
                    answers,
                    End::Goodbye,
                );
            }
        }
        let payload = vec![b'*'; 65_536];
        self.echoed(10, "fragments of 1300", fragments(TEXT, &payload, 1_300), TEXT, &payload);
    }
}

impl Case {
    async fn run(self, address: SocketAddr) -> u8 {
        let Self { section, name, sent, answers, end } = self;
        let (mut socket, early) = upgrade(TcpSocket::new_v4().unwrap(), address, &[]).await;
        let (mut read, mut write) = socket.split();
        let talk = async {
            for bytes in sent {
                // After the server's close, the socket may be gone.
                write.write_all(&bytes).await.ok();
            }
            if matches!(end, End::Goodbye) {
                write.write_all(&whole(CLOSE, &1000_u16.to_be_bytes())).await.ok();
            }
        };
        let listen = async {
            let mut decoder = Decoder::default();
            decoder.feed(&early);
            let (mut frames, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
            loop {
                frames.extend(std::iter::from_fn(|| decoder.next()));
                match read.read(&mut buffer).await.unwrap_or(0) {
                    0 => return (frames, decoder.rest()),
                    count => decoder.feed(&buffer[..count]),
                }
            }
        };
        let ((), (mut frames, rest)) = within(&name, async { tokio::join!(talk, listen) }).await;
        let code = match end {
            End::Goodbye => Some(1000),
            End::Closed(code) => code,
        };
        let close = frames.pop().unwrap_or_else(|| panic!("{section}, {name}: no close"));
        assert_eq!(close.close_code(), code, "{section}, {name}");
        assert_eq!(rest, 0, "{section}, {name}: half a frame");
        assert_eq!(frames.len(), answers.len(), "{section}, {name}");
        assert!(frames == answers, "{section}, {name}: another answer than was due");
        section
    }
}

#[tokio::test]
async fn every_case_is_answered_exactly() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut cases = Cases(Vec::new());
    cases.framing();
    cases.pings();
    cases.reserved();
    cases.fragmentation();
    cases.utf8();
    cases.closing();
    cases.limits();
    let all = stream::iter(cases.0).map(|case| case.run(address)).buffer_unordered(8).collect::<Vec<u8>>();
    let sections = tokio::select! {
        sections = all => sections,
        ended = crate::echo::run(listener) => panic!("the echo ended: {ended:?}"),
    };
    let mut counts = BTreeMap::new();
    for section in sections {
        *counts.entry(section).or_insert(0) += 1;
    }
    let documented = [(1, 32), (2, 14), (3, 35), (4, 20), (5, 19), (6, 133), (7, 34), (9, 36), (10, 1)];
    assert_eq!(counts, BTreeMap::from(documented), "docs/conformance.md says how many");
}
