//! A socket.io client without a library, over a WebSocket: it shows each packet of the server.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;

use super::client::handshake_on;
use super::http::{Answer, request};
use super::{Client, Gateway, secrets, token};

/// The headers of a WebSocket handshake.
pub const UPGRADE: [(&str, &str); 4] = [
    ("Connection", "Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

pub const WEBSOCKET: &str = "/socket.io/?EIO=4&transport=websocket";

/// An open session.
pub struct SocketIo {
    client: Client,
    /// The content of the open packet.
    pub open: Value,
}

impl SocketIo {
    /// Opens a session; its CONNECT has yet to be sent.
    pub async fn open(gateway: &Gateway) -> Self {
        Self::open_with(gateway.public, "", &[]).await
    }

    /// As [`SocketIo::open`], with more of a query and headers.
    pub async fn open_with(address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        Self::open_on(TcpSocket::new_v4().unwrap(), address, query, headers).await
    }

    async fn open_on(socket: TcpSocket, address: SocketAddr, query: &str, headers: &[(&str, &str)]) -> Self {
        let path = format!("{WEBSOCKET}{query}");
        let mut client = handshake_on(socket, address, &path, headers).await.expect("admitted");
        let open = client.text().await;
        let open = serde_json::from_str(open.strip_prefix('0').expect("an open packet")).unwrap();
        Self { client, open }
    }

    /// Connects a user; gives the answer to its CONNECT too.
    pub async fn connect(gateway: &Gateway, user: &str) -> (Self, Value) {
        Self::connect_with(gateway, user, json!({})).await
    }

    /// As [`SocketIo::connect`], with more fields in its `auth`.
    pub async fn connect_with(gateway: &Gateway, user: &str, mut auth: Value) -> (Self, Value) {
        let mut client = Self::open(gateway).await;
        auth["token"] = token(user).into();
        let answer = client.join(&auth).await;
        (client, answer)
    }

    /// As [`SocketIo::connect`], with so little room for what it does not read that the server soon notices.
    pub async fn connect_narrow(gateway: &Gateway, user: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        let mut client = Self::open_on(socket, gateway.public, "", &[]).await;
        client.join(&json!({"token": token(user)})).await;
        client
    }

    /// Sends a CONNECT that must be accepted: the content of the answer.
    pub async fn join(&mut self, auth: &Value) -> Value {
        self.send(&format!("40{auth}")).await;
        let answer = self.packet().await;
        serde_json::from_str(answer.strip_prefix("40").unwrap_or_else(|| panic!("accepted: {answer}"))).unwrap()
    }

    /// Sends a CONNECT that must be refused: the code, after which the session stays open.
    pub async fn refused(&mut self, auth: &str) -> u64 {
        self.send(&format!("40{auth}")).await;
        let answer = self.packet().await;
        secrets::check("a refusal", &answer);
        let error: Value = serde_json::from_str(answer.strip_prefix("44").expect(&answer)).unwrap();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error["data"]["code"].as_u64().unwrap()
    }

    pub async fn send(&mut self, packet: &str) {
        self.client.send(packet).await;
    }

    /// As [`SocketIo::send`], to a server that may have closed the connection.
    pub async fn try_send(&mut self, packet: &str) {
        self.client.try_send(packet).await;
    }

    pub async fn send_binary(&mut self, bytes: &[u8]) {
        self.client.send_message(Message::binary(bytes.to_vec())).await;
    }

    /// The next packet, pings included.
    pub async fn any_packet(&mut self) -> String {
        self.client.text().await
    }

    /// The next packet; pings are answered.
    pub async fn packet(&mut self) -> String {
        loop {
            let packet = self.any_packet().await;
            if packet != "2" {
                return packet;
            }
            self.send("3").await;
        }
    }

    /// The next packet, which must be an event: its elements.
    pub async fn event(&mut self) -> Vec<Value> {
        let packet = self.packet().await;
        let array = packet.strip_prefix("42").unwrap_or_else(|| panic!("an event was expected, not {packet}"));
        serde_json::from_str(array).unwrap()
    }

    /// The next events, which must be stored numbers: each number and its cursor.
    pub async fn stored(&mut self, count: usize) -> Vec<(u64, String)> {
        let mut events = Vec::new();
        while events.len() < count {
            let event = self.event().await;
            let [name, number, cursor] = event.as_slice() else { panic!("a stored event was expected: {event:?}") };
            assert_eq!(name, "notification");
            events.push((number.as_u64().unwrap(), cursor.as_str().unwrap().to_owned()));
        }
        events
    }

    /// The last packets before the close, and its code; 1006 without a close frame.
    pub async fn end(&mut self) -> (Vec<String>, u16) {
        let mut packets = Vec::new();
        loop {
            match self.client.message().await {
                Some(Message::Text(text)) => packets.push(text.to_string()),
                Some(Message::Close(frame)) => return (packets, frame.map_or(1005, |frame| frame.code.into())),
                Some(_) => {}
                None => return (packets, 1006),
            }
        }
    }

    /// The code of the close, before which nothing comes but pings.
    pub async fn closed(&mut self) -> u16 {
        let (packets, code) = self.end().await;
        assert!(packets.iter().all(|packet| packet == "2"), "{packets:?}");
        code
    }

    /// The next packet, or the code of the close.
    pub async fn packet_or_close(&mut self) -> Result<String, u16> {
        match self.client.message().await {
            Some(Message::Text(text)) => Ok(text.to_string()),
            Some(Message::Close(Some(frame))) => Err(frame.code.into()),
            other => panic!("a packet or a close was expected, not {other:?}"),
        }
    }

    /// The WebSocket itself.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Closes the WebSocket.
    pub async fn leave(self) {
        self.client.close().await;
    }
}

/// A handshake over any transport that must be refused: the status, and the code of Engine.IO.
pub async fn engine_refusal(gateway: &Gateway, method: &str, path: &str, headers: &[(&str, &str)]) -> (Answer, u64) {
    let answer = request(gateway.public, method, path, headers, "").await;
    let body = answer.json();
    assert!(body["message"].as_str().is_some_and(|message| !message.is_empty()), "{answer:?}");
    let code = body["code"].as_u64().unwrap_or_else(|| panic!("a code: {answer:?}"));
    (answer, code)
}
