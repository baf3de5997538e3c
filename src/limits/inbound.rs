//! Limits on one client's input: frames and bytes in a second, and fragments of one message.
//!
//! The limiter parses frame headers in the bytes from the socket, because the WebSocket library does not report all
//! frames: above all fragments, of which empty ones never exceed the size limit of a message.

use std::time::Duration;

use crate::config;

/// The burst of frames, in seconds of the rate: frames cost little, and a busy page sends many.
const FRAMES_BURST: u32 = 100;

/// The burst of bytes, in seconds of the rate.
const BYTES_BURST: u32 = 10;

/// Fragments that every message may have.
const FEW_FRAGMENTS: usize = 64;

/// The smallest average fragment of a message of the maximum size.
const SMALL_FRAGMENT: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InboundViolation {
    /// Frames of any kind.
    Frames,
    Bytes,
    Fragments,
}

impl InboundViolation {
    /// The label in metrics: the key under `limits.` that set the limit.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frames => "inbound_frames_per_second",
            Self::Bytes => "inbound_bytes_per_second",
            Self::Fragments => "inbound_fragments",
        }
    }
}

#[derive(Debug)]
pub struct InboundLimiter {
    frames: Bucket,
    bytes: Bucket,
    most_fragments: u32,
    /// Of the incomplete message.
    fragments: u32,
    part: Part,
}

/// The next part of a frame (RFC 6455, section 5.2).
#[derive(Debug, Clone, Copy)]
enum Part {
    /// The byte with FIN and the opcode.
    First,
    /// The byte with MASK and the first part of the length.
    Length,
    /// The rest of the length: the number of bytes left, and the length so far.
    Extended { left: u8, length: u64, masked: bool },
    /// The mask and the payload: the number of bytes left.
    Payload(u64),
}

impl InboundLimiter {
    pub fn new(limits: &config::Limits) -> Self {
        let frames = Bucket::new(limits.inbound_frames_per_second, FRAMES_BURST, 0);
        // Two messages of the maximum size may arrive at once, regardless of the rate.
        let least = limits.max_inbound_bytes.saturating_mul(2);
        let bytes = Bucket::new(limits.inbound_bytes_per_second, BYTES_BURST, least);
        let most_fragments = (limits.max_inbound_bytes / SMALL_FRAGMENT).max(FEW_FRAGMENTS);
        let most_fragments = u32::try_from(most_fragments).unwrap_or(u32::MAX);
        Self { frames, bytes, most_fragments, fragments: 0, part: Part::First }
    }

    /// Counts the bytes of one read, `elapsed` after the previous read.
    pub fn take(&mut self, bytes: &[u8], elapsed: Duration) -> Result<(), InboundViolation> {
        self.bytes.refill(elapsed);
        self.frames.refill(elapsed);
        self.bytes.take(bytes.len()).ok_or(InboundViolation::Bytes)?;
        let mut rest = bytes;
        while let Some((byte, after)) = rest.split_first() {
            if let Part::Payload(left) = self.part {
                let here = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
                rest = rest.get(here..).unwrap_or_default();
                self.part = next(left - here as u64);
                continue;
            }
            rest = after;
            self.part = match self.part {
                Part::First => {
                    self.count_frame(*byte)?;
                    Part::Length
                }
                Part::Length => {
                    let masked = byte & 0x80 != 0;
                    match byte & 0x7f {
                        126 => Part::Extended { left: 2, length: 0, masked },
                        127 => Part::Extended { left: 8, length: 0, masked },
                        length => payload(length.into(), masked),
                    }
                }
                Part::Extended { left, length, masked } => match (left - 1, length << 8 | u64::from(*byte)) {
                    (0, length) => payload(length, masked),
                    (left, length) => Part::Extended { left, length, masked },
                },
                Part::Payload(left) => next(left),
            };
        }
        Ok(())
    }

    /// Whether every message has ended, as far as the bytes go that were counted.
    pub fn is_between_messages(&self) -> bool {
        matches!(self.part, Part::First) && self.fragments == 0
    }

    /// Counts the packets of one POST, which has these bytes, `elapsed` after the previous one; each counts as a frame.
    pub fn take_packets(&mut self, packets: usize, bytes: usize, elapsed: Duration) -> Result<(), InboundViolation> {
        self.bytes.refill(elapsed);
        self.frames.refill(elapsed);
        self.bytes.take(bytes).ok_or(InboundViolation::Bytes)?;
        self.frames.take(packets).ok_or(InboundViolation::Frames)
    }

    fn count_frame(&mut self, first: u8) -> Result<(), InboundViolation> {
        let (last, opcode) = (first & 0x80 != 0, first & 0x0f);
        self.frames.take(1).ok_or(InboundViolation::Frames)?;
        // Control frames may be sent between the fragments of a message; they are not fragments.
        if opcode < 8 {
            self.fragments = if last { 0 } else { self.fragments + 1 };
        }
        if self.fragments > self.most_fragments { Err(InboundViolation::Fragments) } else { Ok(()) }
    }
}

fn payload(length: u64, masked: bool) -> Part {
    next(length.saturating_add(if masked { 4 } else { 0 }))
}

fn next(left: u64) -> Part {
    if left == 0 { Part::First } else { Part::Payload(left) }
}

/// A token bucket (RFC 2697), in thousandths of a token, so that short intervals count.
#[derive(Debug)]
struct Bucket {
    rate: u32,
    most: u64,
    left: u64,
}

impl Bucket {
    fn new(rate: u32, seconds: u32, at_least: usize) -> Self {
        let most = (u64::from(rate) * u64::from(seconds)).max(at_least as u64).saturating_mul(1_000);
        Self { rate, most, left: most }
    }

    fn refill(&mut self, elapsed: Duration) {
        let thousandths = elapsed.as_micros() * u128::from(self.rate) / 1_000;
        self.left = self.left.saturating_add(u64::try_from(thousandths).unwrap_or(u64::MAX)).min(self.most);
    }

    fn take(&mut self, count: usize) -> Option<()> {
        self.left = self.left.checked_sub((count as u64).checked_mul(1_000)?)?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
    use tokio_tungstenite::tungstenite::protocol::frame::{CloseFrame, Frame};

    use super::*;

    const NOW: Duration = Duration::ZERO;

    fn limits(frames: u32, bytes: u32, message: usize) -> config::Limits {
        let mut limits = config::Limits::clone(&config::Config::load(config::Layers::default()).unwrap().limits.get());
        limits.inbound_frames_per_second = frames;
        limits.inbound_bytes_per_second = bytes;
        limits.max_inbound_bytes = message;
        limits
    }

    fn encoded(mut frame: Frame) -> Vec<u8> {
        frame.header_mut().mask = Some([1, 2, 3, 4]);
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    fn fragment(opcode: Data, last: bool) -> Vec<u8> {
        encoded(Frame::message(Vec::new(), OpCode::Data(opcode), last))
    }

    #[test]
    fn pings_are_let_through_up_to_the_burst_and_then_at_the_rate() {
        let mut limiter = InboundLimiter::new(&limits(2, 1_000_000, 100));
        let ping = encoded(Frame::ping(vec![0; 125]));
        for _ in 0..200 {
            limiter.take(&ping, NOW).unwrap();
        }
        assert_eq!(limiter.take(&ping, NOW), Err(InboundViolation::Frames));
        assert_eq!(limiter.take(&[], Duration::from_millis(499)), Ok(()));
        limiter.part = Part::First;
        assert_eq!(limiter.take(&ping, NOW), Err(InboundViolation::Frames));
        limiter.part = Part::First;
        limiter.take(&ping, Duration::from_millis(1)).unwrap();
        assert_eq!(limiter.take(&ping, NOW), Err(InboundViolation::Frames));
    }

    #[test]
    fn each_packet_of_a_post_counts_as_a_frame() {
        let mut limiter = InboundLimiter::new(&limits(2, 1_000, 100));
        limiter.take_packets(200, 10, NOW).unwrap();
        assert_eq!(limiter.take_packets(1, 1, NOW), Err(InboundViolation::Frames));
        limiter.take_packets(2, 1, Duration::from_secs(1)).unwrap();
        assert_eq!(limiter.take_packets(1, 10_000, NOW), Err(InboundViolation::Bytes));
    }

    #[test]
    fn bytes_are_counted_in_any_frame() {
        let mut limiter = InboundLimiter::new(&limits(100, 10, 1_000));
        assert_eq!(limiter.take(&[0x81; 2_000], NOW), Ok(()), "two messages of the largest size");
        assert_eq!(limiter.take(&[0x81], NOW), Err(InboundViolation::Bytes));
    }

    #[test]
    fn a_message_of_empty_fragments_that_never_ends_is_found() {
        let mut limiter = InboundLimiter::new(&limits(10_000, 1_000_000, 16_384));
        limiter.take(&fragment(Data::Text, false), NOW).unwrap();
        for _ in 1..1_024 {
            limiter.take(&fragment(Data::Continue, false), NOW).unwrap();
            limiter.take(&encoded(Frame::ping(Vec::new())), NOW).unwrap();
        }
        assert_eq!(limiter.take(&fragment(Data::Continue, false), NOW), Err(InboundViolation::Fragments));
    }

    #[test]
    fn each_message_has_its_own_fragments() {
        let mut limiter = InboundLimiter::new(&limits(10_000, 1_000_000, 100));
        for _ in 0..10 {
            for _ in 0..64 {
                limiter.take(&fragment(Data::Text, false), NOW).unwrap();
            }
            limiter.take(&fragment(Data::Continue, true), NOW).unwrap();
        }
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let payload = prop_oneof![0..10_usize, 120..132_usize, 65_530..65_540_usize].prop_map(|len| vec![0xff; len]);
        (payload, 0..4_u8).prop_map(|(payload, kind)| match kind {
            0 => Frame::ping(payload.into_iter().take(125).collect::<Vec<u8>>()),
            1 => Frame::close(Some(CloseFrame { code: CloseCode::Normal, reason: "bye".into() })),
            2 => Frame::message(payload, OpCode::Data(Data::Binary), true),
            _ => Frame::pong(payload.into_iter().take(125).collect::<Vec<u8>>()),
        })
    }

    proptest! {
        /// Against the library's own writer: however the bytes are cut, each frame is counted once.
        #[test]
        fn each_frame_is_counted_once(frames in prop::collection::vec(any_frame(), 0..8), cut in 1..5_000_usize) {
            let mut limiter = InboundLimiter::new(&limits(1_000, u32::MAX, 1_000_000));
            let before = limiter.frames.left;
            let count = frames.len() as u64;
            let bytes: Vec<u8> = frames.into_iter().flat_map(encoded).collect();
            for piece in bytes.chunks(cut) {
                limiter.take(piece, NOW).unwrap();
            }
            prop_assert_eq!(before - limiter.frames.left, count * 1_000);
            prop_assert!(matches!(limiter.part, Part::First));
        }
    }
}
