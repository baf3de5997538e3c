use std::future::poll_fn;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::*;
use crate::delivery::{Responded, Socket};
use crate::protocol::text_frame;

const MOST: usize = 1_000;

const HEAD: &str = "HTTP/1.1 200 OK\r\n";

async fn connection() -> (Arc<HttpSocket>, TcpStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(4_096).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, far) = tokio::join!(socket.connect(listener.local_addr().unwrap()), listener.accept());
    let near = near.unwrap();
    near.writable().await.unwrap();
    (HttpSocket::new(Socket::Plain(near)), far.unwrap().0)
}

fn request(connection: &Arc<HttpSocket>) -> HeldRequest {
    HeldRequest::new(Arc::clone(connection), Bytes::from_static(HEAD.as_bytes()))
}

fn write(socket: &PollingSocket, frames: &[Bytes]) -> io::Result<usize> {
    socket.try_write_first(frames.iter().map(AsRef::as_ref))
}

fn would_block<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    result.unwrap_err().kind() == ErrorKind::WouldBlock
}

async fn responded(connection: &HttpSocket) -> Responded {
    poll_fn(|cx| connection.poll_responded(cx)).await
}

/// The body of the response that the client receives.
async fn body(client: &mut TcpStream, length: usize) -> String {
    let head = format!("{HEAD}content-length: {length}\r\n\r\n");
    let mut got = vec![0; head.len() + length];
    client.read_exact(&mut got).await.unwrap();
    let text = String::from_utf8(got).unwrap();
    text.strip_prefix(&head).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[tokio::test]
async fn frames_are_accepted_while_a_request_is_held_and_are_one_body() {
    let (socket, (connection, mut client)) = (PollingSocket::new(MOST), connection().await);
    let long = "x".repeat(300);
    let frames = [text_frame(&[b"2"]), Bytes::new(), text_frame(&[long.as_bytes()])];
    assert!(would_block(write(&socket, &frames)));
    socket.hold(request(&connection)).unwrap();
    assert_eq!(socket.idle_since(), None);
    assert_eq!(write(&socket, &[Bytes::new()]).unwrap(), 0, "it only moves the position");
    assert_eq!(write(&socket, &frames).unwrap(), 3 + 304);
    assert_eq!(responded(&connection).await, Responded::Complete);
    assert_eq!(body(&mut client, 302).await, format!("2\u{1e}{long}"));
    assert!(would_block(write(&socket, &frames)), "one response for each request");
    assert!(socket.idle_since().is_some());
}

#[tokio::test]
async fn a_body_has_whole_packets_up_to_its_maximum_or_one_that_is_larger() {
    let most = PollingSocket::new(7);
    let (connection, mut client) = connection().await;
    let frames = [text_frame(&[b"123"]), text_frame(&[b"456"]), text_frame(&[b"7"]), text_frame(&[b"12345678"])];
    most.hold(request(&connection)).unwrap();
    assert_eq!(write(&most, &frames).unwrap(), 5 + 5);
    assert_eq!(body(&mut client, 7).await, "123\u{1e}456");
    most.hold(request(&connection)).unwrap();
    assert_eq!(write(&most, &frames[2..]).unwrap(), 3);
    assert_eq!(body(&mut client, 1).await, "7");
    most.hold(request(&connection)).unwrap();
    assert_eq!(write(&most, &frames[3..]).unwrap(), 10);
    assert_eq!(body(&mut client, 8).await, "12345678");
}

#[tokio::test]
async fn the_rest_of_a_response_is_counted_and_sent_before_the_next() {
    let size = 8 << 20;
    let socket = PollingSocket::new(size);
    let (connection, mut client) = connection().await;
    let frame = text_frame(&[&vec![b'x'; size]]);
    socket.hold(request(&connection)).unwrap();
    assert_eq!(write(&socket, std::slice::from_ref(&frame)).unwrap(), frame.len());
    let unsent = socket.unsent();
    assert!(unsent > 0 && unsent <= size + 100, "{unsent}");
    assert!(would_block(socket.try_flush()));
    assert!(would_block(write(&socket, &[text_frame(&[b"2"])])));
    assert_eq!(socket.hold(request(&connection)), Err(NotHeld), "the first response is not complete");
    let flushed = async {
        while socket.try_flush().is_err() {
            poll_fn(|cx| socket.poll_write_ready(cx)).await.unwrap();
        }
    };
    let (text, ()) = tokio::join!(body(&mut client, size), flushed);
    assert!(text.bytes().all(|byte| byte == b'x'));
    assert_eq!(socket.unsent(), 0);
}

#[tokio::test]
async fn a_session_that_ends_keeps_no_request() {
    let (first, _client) = connection().await;
    let socket = PollingSocket::new(MOST);
    socket.hold(request(&first)).unwrap();
    socket.abandon();
    assert_eq!(responded(&first).await, Responded::Refused);
    assert_eq!(socket.hold(request(&first)), Err(NotHeld));
    let (second, _client) = connection().await;
    let socket = PollingSocket::new(8 << 20);
    socket.hold(request(&second)).unwrap();
    write(&socket, &[text_frame(&[&vec![b'x'; 8 << 20]])]).unwrap();
    socket.abandon();
    assert_eq!(responded(&second).await, Responded::Torn, "half a response");
    assert_eq!(socket.unsent(), 0);
}

#[tokio::test]
async fn the_writer_that_waits_for_a_request_is_woken_by_it() {
    let (connection, _client) = connection().await;
    let socket = PollingSocket::new(MOST);
    let mut waiting = Box::pin(poll_fn(|cx| socket.poll_write_ready(cx)));
    // The second branch runs only once the first waits.
    let (ready, ()) = tokio::join!(biased; &mut waiting, async { socket.hold(request(&connection)).unwrap() });
    ready.unwrap();
}

#[tokio::test]
async fn requests_during_a_probe_are_answered_at_once_a_bounded_number_of_times() {
    let (connection, mut client) = connection().await;
    let socket = PollingSocket::new(MOST);
    socket.set_probed(true);
    for _ in 0..MAX_NOOPS {
        socket.hold(request(&connection)).unwrap();
        socket.release_probed();
        assert_eq!(body(&mut client, 1).await, "6");
    }
    socket.hold(request(&connection)).unwrap();
    socket.release_probed();
    assert_eq!(socket.idle_since(), None, "held as before");
    socket.set_probed(false);
    socket.release();
    assert_eq!(body(&mut client, 1).await, "6");
}

#[tokio::test]
async fn after_the_upgrade_whole_frames_go_to_the_websocket() {
    let (connection, mut client) = connection().await;
    let (websocket, mut upgraded) = self::connection().await;
    let socket = PollingSocket::new(MOST);
    socket.hold(request(&connection)).unwrap();
    socket.upgrade(websocket).unwrap();
    assert_eq!(body(&mut client, 1).await, "6");
    let frame = text_frame(&[b"42[]"]);
    assert_eq!(write(&socket, &[frame.clone(), frame.clone()]).unwrap(), 12);
    let mut got = [0; 12];
    upgraded.read_exact(&mut got).await.unwrap();
    assert_eq!(got[..6], frame);
    assert_eq!(socket.hold(request(&connection)), Err(NotHeld));
    assert_eq!(socket.idle_since(), None);
}
