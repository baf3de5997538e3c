//! The probe of an upgrade: on its new WebSocket, a client sends `2probe`, waits for `3probe` and for the responses to its
//! requests, and sends `5`. Until then, the session polls, and a probe that fails changes nothing.

use std::io::Cursor;
use std::time::Duration;

use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use super::http::{Http, RequestError};
use crate::connection::Probe;
use crate::protocol::socketio::{ClientPacket, PROBED};
use crate::protocol::text_frame;

/// From the 101 to the upgrade packet.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// The packets of a probe are a few bytes.
const MAX_PACKET: u64 = 125;

/// Runs a probe after the 101. Returns whether the client has upgraded; what it sent after that remains in `http`.
pub(super) async fn run(http: &mut Http, probe: &Probe) -> bool {
    let probing = async {
        expect(http, &ClientPacket::Probe).await?;
        http.socket.write(&text_frame(&[PROBED.as_bytes()])).await?;
        probe.answered();
        expect(http, &ClientPacket::Upgrade).await
    };
    matches!(timeout(PROBE_DEADLINE, probing).await, Ok(Ok(())))
}

async fn expect(http: &mut Http, expected: &ClientPacket<'_>) -> Result<(), RequestError> {
    loop {
        if let Some(text) = take_text(&mut http.read)? {
            return if ClientPacket::parse(&text).as_ref() == Ok(expected) {
                Ok(())
            } else {
                Err(RequestError::Malformed)
            };
        }
        http.read_some().await?;
    }
}

/// Takes the first frame, which must be a short text; `None` while it is incomplete.
fn take_text(read: &mut Vec<u8>) -> Result<Option<String>, RequestError> {
    let mut cursor = Cursor::new(&*read);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| RequestError::Malformed)?;
    let Some((header, length)) = parsed else { return Ok(None) };
    let is_reserved = header.rsv1 || header.rsv2 || header.rsv3;
    let is_text = header.is_final && !is_reserved && header.opcode == OpCode::Data(Data::Text) && length <= MAX_PACKET;
    let mask = header.mask.filter(|_| is_text).ok_or(RequestError::Malformed)?;
    let start = usize::try_from(cursor.position()).unwrap_or(usize::MAX);
    let end = start.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
    let Some(masked) = read.get(start..end) else { return Ok(None) };
    let text = masked.iter().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    read.drain(..end);
    String::from_utf8(text).map(Some).map_err(|_| RequestError::Malformed)
}

#[cfg(test)]
mod tests {
    use tokio_tungstenite::tungstenite::protocol::frame::Frame;

    use super::*;

    fn encoded(mut frame: Frame) -> Vec<u8> {
        frame.header_mut().mask = Some([1, 2, 3, 4]);
        let mut bytes = Vec::new();
        frame.format(&mut bytes).unwrap();
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        encoded(Frame::message(text.as_bytes().to_vec(), OpCode::Data(Data::Text), true))
    }

    #[test]
    fn a_packet_is_taken_once_it_is_complete_and_what_follows_stays() {
        let whole = text("2probe");
        for cut in 0..whole.len() {
            let mut read = whole[..cut].to_vec();
            assert!(matches!(take_text(&mut read), Ok(None)), "{cut}");
            assert_eq!(read.len(), cut);
        }
        let mut read = [whole, text("5")].concat();
        assert_eq!(take_text(&mut read).unwrap().as_deref(), Some("2probe"));
        assert_eq!(read, text("5"));
    }

    #[test]
    fn any_other_frame_is_refused() {
        let unmasked = text_frame(&[b"2probe"]).to_vec();
        let binary = encoded(Frame::message(b"2probe".to_vec(), OpCode::Data(Data::Binary), true));
        let part = encoded(Frame::message(b"2".to_vec(), OpCode::Data(Data::Text), false));
        let mut reserved = text("2probe");
        reserved[0] |= 0x40;
        for mut read in [unmasked, binary, part, reserved, text(&"x".repeat(126)), encoded(Frame::ping(Vec::new()))] {
            assert!(matches!(take_text(&mut read), Err(RequestError::Malformed)), "{read:?}");
        }
    }
}
