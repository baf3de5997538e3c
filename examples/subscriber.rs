//! A client in Rust: prints events, acknowledges durable ones, and reconnects from where it was interrupted.
//!
//! Beside `cargo run -- serve --dev --redis-url redis://127.0.0.1:6379`, as user 42:
//!
//! ```sh
//! TOKEN=$(curl -s -d '{"user":"42"}' http://127.0.0.1:8080/demo/token | cut -d '"' -f 4) \
//!   cargo run --example subscriber -- ws://127.0.0.1:8080/ws
//! ```
//!
//! A second argument is the cursor to resume from. For `wss://`, replace `client_async` by `connect_async` and enable one
//! of the TLS features of tokio-tungstenite.

#![allow(clippy::print_stdout, reason = "prints what arrives")]

use std::error::Error;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri, header};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BASE_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(30);
/// The delay before the first retry where the gateway asked for one at once (42xx).
const PROMPT_DELAY: Duration = Duration::from_secs(1);
/// A connection that lasted this long resets the backoff.
const STABLE: Duration = Duration::from_secs(5);
/// The gateway limits how many frames a client may send: one ack for all events of this interval.
const ACK_INTERVAL: Duration = Duration::from_millis(100);

/// Why a connection ended, and so what to do next.
enum Ended {
    /// 40xx, or a 4xx response: the same attempt would fail again.
    Refused(String),
    /// 42xx: another instance takes the client now.
    Moved(String),
    /// 41xx, a 5xx response, or a network failure.
    Failed(String),
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let url: Uri = args.next().unwrap_or_else(|| "ws://127.0.0.1:8080/ws".into()).parse()?;
    let token = std::env::var("TOKEN").map_err(|_| "set TOKEN to a token of the user")?;
    let mut subscriber = Subscriber { url, token, cursor: args.next(), unacked: None, reconnect_at: None };

    let mut attempt = 0;
    loop {
        let started = Instant::now();
        let Err(ended) = subscriber.run().await;
        if started.elapsed() > STABLE {
            attempt = 0;
        }
        let (reason, prompt) = match ended {
            // A program that can fetch another token would do so after 4010, and try again.
            Ended::Refused(reason) => return Err(reason.into()),
            Ended::Moved(reason) => (reason, attempt == 0),
            Ended::Failed(reason) => (reason, false),
        };
        // Full jitter: clients that lost the same instance must not return in the same moment.
        let ceiling = if prompt { PROMPT_DELAY } else { MAX_DELAY.min(BASE_DELAY * 2_u32.pow(attempt.min(10))) };
        let delay = match subscriber.reconnect_at.take() {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => ceiling.mul_f64(fastrand::f64()),
        };
        println!("disconnected: {reason}; reconnecting in {} ms", delay.as_millis());
        attempt += 1;
        sleep(delay).await;
    }
}

struct Subscriber {
    url: Uri,
    token: String,
    /// The position in the user's history up to which events were printed.
    cursor: Option<String>,
    /// The last durable event that was printed and not yet acknowledged.
    unacked: Option<String>,
    /// When a stopping instance asked this client to reconnect.
    reconnect_at: Option<Instant>,
}

impl Subscriber {
    /// One connection, until it ends.
    async fn run(&mut self) -> Result<std::convert::Infallible, Ended> {
        let connecting = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let mut socket = connecting.map_err(|_| Ended::Failed("connect timeout".into()))?.map_err(after_error)?;
        // The `welcome` says how often a frame is to be expected. A connection that is silent for longer is dead.
        let mut silence = CONNECT_TIMEOUT;
        let mut ack = tokio::time::interval(ACK_INTERVAL);
        loop {
            let received = tokio::select! {
                received = timeout(silence, socket.next()) => received,
                _ = ack.tick(), if self.unacked.is_some() => {
                    let frame = json!({"type": "ack", "id": self.unacked.take()});
                    socket.send(Message::text(frame.to_string())).await.map_err(after_error)?;
                    continue;
                }
            };
            let message = received.map_err(|_| Ended::Failed("no frame in time".into()))?;
            match message.ok_or_else(|| Ended::Failed("connection lost".into()))?.map_err(after_error)? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(&text).map_err(|error| Ended::Failed(error.to_string()))?;
                    if let Some(heartbeat) = frame.get("heartbeat_ms").and_then(Value::as_u64) {
                        silence = Duration::from_millis(heartbeat * 2);
                    }
                    if let Some(reply) = self.handle(&frame) {
                        socket.send(Message::text(reply.to_string())).await.map_err(after_error)?;
                    }
                }
                Message::Close(frame) => return Err(after_close(frame.as_ref())),
                // The library answers WebSocket pings.
                _ => {}
            }
        }
    }

    async fn connect(&self) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let url = match &self.cursor {
            // The characters of a cursor need no escaping.
            Some(cursor) => format!("{}?resume={cursor}", self.url),
            None => self.url.to_string(),
        };
        let mut request = url.into_client_request()?;
        // `tidings.v1` selects JSON pings, which this program sees. A browser cannot set Authorization: it offers the
        // token as a second subprotocol, `bearer.TOKEN`.
        let headers = request.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("tidings.v1"));
        headers.insert(header::AUTHORIZATION, format!("Bearer {}", self.token).parse()?);
        let (host, port) = (self.url.host().unwrap_or("127.0.0.1"), self.url.port_u16().unwrap_or(80));
        let stream = TcpStream::connect((host, port)).await?;
        Ok(client_async(request, stream).await?.0)
    }

    /// Handles one frame; returns the reply to it.
    fn handle(&mut self, frame: &Value) -> Option<Value> {
        match frame["type"].as_str()? {
            "ping" => return Some(json!({"type": "pong"})),
            "welcome" => {
                let recovered = frame["recovered"] == true;
                println!("connected as {}, recovered: {recovered}, cursor {}", frame["user"], frame["cursor"]);
                // With `recovered`, the missed events follow, and the position is still the one asked for.
                if !recovered {
                    if self.cursor.is_some() {
                        println!("gap: some events are no longer stored; fetch the state from the backend");
                    }
                    self.cursor = frame["cursor"].as_str().map(str::to_owned);
                }
            }
            // Durable events follow by themselves.
            "gap" => println!("gap: some ephemeral events may be missing; fetch the state from the backend"),
            "event" => {
                println!("event {}: {}", frame["event"], frame["data"]);
                // Only a durable event has an id.
                if let Some(id) = frame["id"].as_str() {
                    self.cursor = Some(id.to_owned());
                    self.unacked = Some(id.to_owned());
                }
            }
            "reconnect" => {
                let after = Duration::from_millis(frame["after_ms"].as_u64().unwrap_or_default());
                self.reconnect_at = Some(Instant::now() + after);
            }
            "error" => println!("error {}: {}", frame["code"], frame["message"]),
            // A later version may have more types.
            _ => {}
        }
        None
    }
}

fn after_close(frame: Option<&CloseFrame>) -> Ended {
    let (code, reason) = frame.map_or((1005, ""), |frame| (frame.code.into(), frame.reason.as_str()));
    let reason = format!("closed with {code} {reason}");
    match code / 100 {
        40 => Ended::Refused(reason),
        42 => Ended::Moved(reason),
        _ => Ended::Failed(reason),
    }
}

fn after_error(error: tungstenite::Error) -> Ended {
    match error {
        // 429 asks for patience, like a 5xx.
        tungstenite::Error::Http(response) if response.status().is_client_error() && response.status() != 429 => {
            Ended::Refused(format!("refused with {}", response.status()))
        }
        other => Ended::Failed(other.to_string()),
    }
}
