//! A WebSocket client that exposes everything the server sends.

use std::net::{IpAddr, SocketAddr};

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_util::either::Either;

use super::{Gateway, secrets, text, token, within};

/// A refused handshake.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    /// The `error.code` of the body.
    pub code: String,
    /// Its `error.message`.
    pub message: String,
    pub headers: tokio_tungstenite::tungstenite::http::HeaderMap,
}

const PING: &str = r#"{"type":"ping"}"#;
const PONG: &str = r#"{"type":"pong"}"#;

/// Plain TCP, or TLS.
type Stream = Either<TcpStream, Box<TlsStream<TcpStream>>>;

/// An open WebSocket.
pub struct Client {
    socket: WebSocketStream<Stream>,
    /// The headers of the 101.
    pub response: Response,
}

/// A handshake with any path, query and headers.
pub async fn handshake(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
    handshake_on(TcpSocket::new_v4().unwrap(), address, path, headers).await
}

/// The same from this address of the machine.
pub async fn handshake_from(
    source: IpAddr,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Client, Refused> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    handshake_on(socket, address, path, headers).await
}

pub(super) async fn handshake_on(
    socket: TcpSocket,
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
) -> Result<Client, Refused> {
    let tcp = within("a TCP connection", socket.connect(address)).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    upgrade(Either::Left(tcp), address, path, headers).await
}

async fn upgrade(stream: Stream, address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
    secrets::keep_headers(headers);
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        let name: tokio_tungstenite::tungstenite::http::HeaderName = name.parse().unwrap();
        request.headers_mut().append(name, value.parse().unwrap());
    }
    let config = WebSocketConfig::default().read_buffer_size(4_096);
    let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    match within("an answer to the handshake", upgrade).await {
        Ok((socket, response)) => Ok(Client { socket, response }),
        Err(Error::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            secrets::check("a refusal", &String::from_utf8_lossy(&body));
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
            let message = body["error"]["message"].as_str().expect("a refusal has a reason").to_owned();
            Err(Refused { status: response.status().as_u16(), code, message, headers: response.headers().clone() })
        }
        Err(error) => panic!("the handshake failed: {error}"),
    }
}

/// A handshake that must be refused.
pub async fn refused(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Refused {
    handshake(address, path, headers).await.err().expect("refused")
}

/// A short frame as a client masks it, with the first byte (FIN, RSV, opcode) as given.
pub fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let len = u8::try_from(payload.len()).ok().filter(|len| *len < 126).expect("a short payload");
    [&[first, 0x80 | len, 0, 0, 0, 0], payload].concat()
}

/// A client that reads and answers pings by itself; dropping it ends the connection.
pub struct Answering {
    frames: mpsc::Receiver<Message>,
    /// Ends when it is dropped.
    _task: JoinSet<()>,
}

impl Answering {
    /// The next message of any kind, pings included; `None` at the end of the connection.
    pub async fn message(&mut self) -> Option<Message> {
        within("a message", self.frames.recv()).await
    }

    /// The data of the next event.
    pub async fn event(&mut self) -> Value {
        loop {
            let message = self.message().await.expect("the connection is open");
            let mut frame: Value =
                message.to_text().ok().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            if frame["type"] == "event" {
                return frame["data"].take();
            }
        }
    }

    /// Reads up to the close frame: its code.
    pub async fn close_frame(&mut self) -> u16 {
        loop {
            match self.message().await {
                Some(Message::Close(Some(frame))) => return frame.code.into(),
                Some(_) => {}
                None => panic!("the connection ended without a close frame"),
            }
        }
    }

    /// The pings received so far.
    pub fn pings(&mut self) -> usize {
        let received = std::iter::from_fn(|| self.frames.try_recv().ok());
        received.filter(|message| message.is_ping() || *message == Message::text(PING)).count()
    }
}

impl Client {
    /// Connects a user as a browser does, and reads the `welcome`.
    pub async fn connect(gateway: &Gateway, user: &str) -> Self {
        Self::connect_with_welcome(gateway, user).await.0
    }

    /// As [`Client::connect`], with the `welcome`.
    pub async fn connect_with_welcome(gateway: &Gateway, user: &str) -> (Self, Value) {
        Self::connect_with_token(gateway, &token(user)).await
    }

    /// As [`Client::connect_with_welcome`], with this token.
    pub async fn connect_with_token(gateway: &Gateway, token: &str) -> (Self, Value) {
        Self::greeted(TcpSocket::new_v4().unwrap(), gateway.public, token).await
    }

    /// As [`Client::connect_with_welcome`], at any address, such as a proxy's.
    pub async fn connect_at(address: SocketAddr, user: &str) -> (Self, Value) {
        Self::connect_at_with_token(address, &token(user)).await
    }

    /// As [`Client::connect_at`], with this token.
    pub async fn connect_at_with_token(address: SocketAddr, token: &str) -> (Self, Value) {
        Self::greeted(TcpSocket::new_v4().unwrap(), address, token).await
    }

    /// As [`Client::connect_with_welcome`], resuming from a cursor.
    pub async fn resume(gateway: &Gateway, user: &str, cursor: &str) -> (Self, Value) {
        Self::with_query(gateway, user, &format!("?resume={cursor}")).await
    }

    /// As [`Client::connect_with_welcome`], with a query.
    pub async fn with_query(gateway: &Gateway, user: &str, query: &str) -> (Self, Value) {
        let mut client = Self::ungreeted(TcpSocket::new_v4().unwrap(), gateway, user, query).await;
        let welcome = client.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (client, welcome)
    }

    /// As [`Client::with_query`], for a client that may be closed rather than greeted.
    pub async fn unsure(gateway: &Gateway, user: &str, query: &str) -> Self {
        Self::ungreeted(TcpSocket::new_v4().unwrap(), gateway, user, query).await
    }

    /// As [`Client::resume`], with as little room as [`Client::connect_narrow`].
    pub async fn resume_narrow(gateway: &Gateway, user: &str, cursor: &str) -> (Self, Value) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut client = Self::ungreeted(socket, gateway, user, &format!("?resume={cursor}")).await;
        let welcome = client.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (client, welcome)
    }

    async fn ungreeted(socket: TcpSocket, gateway: &Gateway, user: &str, query: &str) -> Self {
        let protocols = format!("tidings.v1, bearer.{}", token(user));
        let headers = [("Sec-WebSocket-Protocol", protocols.as_str())];
        handshake_on(socket, gateway.public, &format!("/ws{query}"), &headers).await.expect("admitted")
    }

    /// As [`Client::connect`], with so little room for what it does not read that the server soon notices.
    pub async fn connect_narrow(gateway: &Gateway, user: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        Self::greeted(socket, gateway.public, &token(user)).await.0
    }

    async fn greeted(socket: TcpSocket, address: SocketAddr, token: &str) -> (Self, Value) {
        let protocols = format!("tidings.v1, bearer.{token}");
        let headers = [("Sec-WebSocket-Protocol", protocols.as_str())];
        let mut client = handshake_on(socket, address, "/ws", &headers).await.expect("admitted");
        let welcome = client.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (client, welcome)
    }

    /// As [`Client::connect`], over a given TLS connection.
    pub async fn connect_over(tls: TlsStream<TcpStream>, user: &str) -> (Self, Value) {
        let address = tls.get_ref().0.peer_addr().unwrap();
        let protocols = format!("tidings.v1, bearer.{}", token(user));
        let headers = [("Sec-WebSocket-Protocol", protocols.as_str())];
        let mut client = upgrade(Either::Right(Box::new(tls)), address, "/ws", &headers).await.expect("admitted");
        let welcome = client.frame().await;
        assert_eq!(welcome["type"], "welcome", "{welcome}");
        (client, welcome)
    }

    /// Connects with `?format=raw`, and waits for nothing: see [`Gateway::connections`].
    pub async fn raw(gateway: &Gateway, user: &str) -> Self {
        let bearer = format!("Bearer {}", token(user));
        handshake(gateway.public, "/ws?format=raw", &[("Authorization", &bearer)]).await.expect("admitted")
    }

    /// Opens a WebSocket that is not authenticated.
    pub async fn anonymous(gateway: &Gateway) -> Self {
        let headers = [("Sec-WebSocket-Protocol", "tidings.v1")];
        handshake(gateway.public, "/ws", &headers).await.expect("admitted")
    }

    pub async fn send(&mut self, text: &str) {
        self.send_message(Message::text(text)).await;
    }

    pub async fn send_message(&mut self, message: Message) {
        within("a message is sent", self.socket.send(message)).await.unwrap();
    }

    /// As [`Client::send`], to a server that may have closed the connection.
    pub async fn try_send(&mut self, text: &str) {
        within("a message is sent", self.socket.send(Message::text(text))).await.ok();
    }

    /// Writes raw bytes to the socket.
    pub async fn write(&mut self, bytes: &[u8]) {
        within("bytes are written", self.tcp().write_all(bytes)).await.unwrap();
    }

    /// The next `N` bytes of the socket, past the WebSocket library.
    pub async fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within("bytes", self.tcp().read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// The next message of any kind; `None` at the end of the connection.
    pub async fn message(&mut self) -> Option<Message> {
        match within("a message", self.socket.next()).await {
            Some(Ok(message)) => {
                if message.is_close() {
                    // The library has queued the answer, which a browser sends at once.
                    self.socket.flush().await.ok();
                }
                Some(message)
            }
            Some(Err(_)) | None => None,
        }
    }

    /// The next text.
    pub async fn text(&mut self) -> String {
        loop {
            match self.message().await {
                Some(Message::Text(text)) => return text.to_string(),
                Some(Message::Ping(_) | Message::Pong(_)) => {}
                other => panic!("a text was expected, not {other:?}"),
            }
        }
    }

    /// The next text, as JSON.
    pub async fn frame(&mut self) -> Value {
        let text = self.text().await;
        if text.starts_with(r#"{"type":"error""#) {
            secrets::check("an error frame", &text);
        }
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The next text past any `gap`, as JSON: for a test of what arrives after a lost subscription.
    async fn frame_past_gaps(&mut self) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] != "gap" {
                return frame;
            }
        }
    }

    /// The next text past any `gap`, which must be an event: its data.
    pub async fn event(&mut self) -> Value {
        let mut frame = self.frame_past_gaps().await;
        assert_eq!(frame["type"], "event", "{frame}");
        frame["data"].take()
    }

    /// The next text past any `gap`, which must be a stored notification: its id and its data.
    pub async fn stored_event(&mut self) -> (String, Value) {
        let mut frame = self.frame_past_gaps().await;
        assert_eq!((&frame["type"], &frame["event"]), (&json!("event"), &json!("notification")), "{frame}");
        assert!(frame["ts"].as_u64().is_some_and(|ms| ms > 1_700_000_000_000), "{frame}");
        (text(&frame["id"]).to_owned(), frame["data"].take())
    }

    /// The next text, which must be a notification: its data, byte for byte.
    pub async fn event_text(&mut self) -> String {
        const AROUND: [&str; 2] = [r#"{"type":"event","event":"notification","data":"#, "}"];
        let text = self.text().await;
        let data = text.strip_prefix(AROUND[0]).and_then(|rest| rest.strip_suffix(AROUND[1]));
        data.unwrap_or_else(|| panic!("no notification: {text}")).to_owned()
    }

    /// Reads up to the close frame, past anything else: its code.
    pub async fn close_frame(&mut self) -> u16 {
        loop {
            match self.message().await {
                Some(Message::Close(Some(frame))) => return frame.code.into(),
                Some(_) => {}
                None => panic!("the connection ended without a close frame"),
            }
        }
    }

    /// Reads to the end, past anything else; the close code, 1006 where there was none.
    pub async fn close_code(&mut self) -> u16 {
        let mut code = 1006;
        while let Some(message) = self.message().await {
            if let Message::Close(Some(frame)) = message {
                code = frame.code.into();
            }
        }
        code
    }

    /// Reads on in the background and answers pings, as a page does, until it is dropped.
    pub fn answering(self) -> Answering {
        let (frames, frames_rx) = mpsc::channel(1_024);
        let mut task = JoinSet::new();
        task.spawn(self.answer(frames));
        Answering { frames: frames_rx, _task: task }
    }

    async fn answer(mut self, frames: mpsc::Sender<Message>) {
        while let Some(Ok(message)) = self.socket.next().await {
            if message == Message::text(PING) && self.socket.send(Message::text(PONG)).await.is_err() {
                return;
            }
            // A test that does not look at so many does not need them.
            frames.try_send(message).ok();
        }
    }

    /// Closes the connection with a close frame.
    pub async fn close(mut self) {
        within("the connection closes", self.socket.close(None)).await.ok();
    }

    /// The socket itself, for a client that misbehaves.
    pub fn tcp(&mut self) -> &mut TcpStream {
        match self.socket.get_mut() {
            Either::Left(tcp) => tcp,
            Either::Right(_) => panic!("this client speaks TLS"),
        }
    }

    /// The TLS connection itself.
    pub fn tls(&mut self) -> &mut TlsStream<TcpStream> {
        match self.socket.get_mut() {
            Either::Left(_) => panic!("this client speaks no TLS"),
            Either::Right(tls) => tls,
        }
    }
}
