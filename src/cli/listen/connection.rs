//! One connection of a listener: its handshake, its frames, and why it was refused or ended.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderValue, SEC_WEBSOCKET_PROTOCOL};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::Response;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::frame::Welcome;
use crate::config::harmless_parts;

/// From the first packet to the welcome, and for every write.
const DEADLINE: Duration = Duration::from_secs(10);

/// The instance sends a ping to a client that was silent for a heartbeat: so long after it, the connection is dead.
const SILENCE: Duration = Duration::from_secs(10);

trait Socket: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Socket for S {}

pub(super) struct Connection {
    socket: WebSocketStream<Box<dyn Socket>>,
    /// Its URL, without what may be secret.
    pub(super) shown: String,
    heartbeat: Duration,
    opened: Instant,
}

/// Why a connection was refused or ended.
#[derive(Debug)]
pub(super) enum Failure {
    Refused { status: u16, why: String },
    Closed { code: u16, reason: String },
    Lost(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { status, why } => write!(f, "refused with {status}: {why}"),
            Self::Closed { code, reason } => write!(f, "closed with {code}: {reason}"),
            Self::Lost(why) => f.write_str(why),
        }
    }
}

impl Failure {
    /// Whether another attempt would fail, too. A client that was never connected makes none; one with another token each
    /// time makes one after its token has ended.
    pub(super) fn is_final(&self, was_connected: bool, has_one_token: bool) -> bool {
        let is_final = match self {
            Self::Refused { status, .. } => !matches!(status, 429 | 500..),
            Self::Closed { code: 4010, .. } => has_one_token,
            // 41xx and 42xx: try again. Those below are errors of the protocol, except for the end of an instance or a proxy.
            Self::Closed { code, .. } => !matches!(code, 1000 | 1001 | 1005 | 1006 | 1012..=1014 | 4100..),
            Self::Lost(_) => false,
        };
        is_final || !was_connected
    }
}

impl Connection {
    pub(super) async fn open(url: &Url, token: &str) -> Result<(Self, Welcome), Failure> {
        let shown = harmless_parts(url);
        let opening = timeout(DEADLINE, Self::greeted(url, token, shown.clone()));
        let opened = opening.await.unwrap_or_else(|_| Err(Failure::Lost(format!("no answer within {DEADLINE:?}"))));
        opened.map_err(|failure| match failure {
            Failure::Lost(why) => Failure::Lost(format!("{shown}: {why}")),
            Failure::Refused { status, why } => Failure::Refused { status, why: format!("{why} ({shown})") },
            failure @ Failure::Closed { .. } => failure,
        })
    }

    async fn greeted(url: &Url, token: &str, shown: String) -> Result<(Self, Welcome), Failure> {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}"));
        let bearer = bearer.map_err(|_| Failure::Lost("the token has characters that no token has".into()))?;
        let mut request = url.as_str().into_client_request().map_err(lost)?;
        request.headers_mut().insert(AUTHORIZATION, bearer);
        request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("tidings.v1"));
        let (socket, _) = client_async(request, connect(url).await?).await.map_err(refused)?;
        let mut connection = Self { socket, shown, heartbeat: DEADLINE, opened: Instant::now() };
        let welcome: Welcome = serde_json::from_str(&connection.next().await?)
            .map_err(|_| Failure::Lost("its first frame is no welcome of tidings.v1".into()))?;
        connection.heartbeat = Duration::from_millis(welcome.heartbeat_ms);
        Ok((connection, welcome))
    }

    pub(super) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The next text frame.
    pub(super) async fn next(&mut self) -> Result<String, Failure> {
        loop {
            let silence = self.heartbeat.saturating_add(SILENCE);
            let received = timeout(silence, self.socket.next()).await;
            match received.map_err(|_| Failure::Lost(format!("the connection is silent for {silence:?}")))? {
                Some(Ok(Message::Text(text))) => return Ok(text.as_str().to_owned()),
                Some(Ok(Message::Close(frame))) => return Err(closed(frame)),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(lost(error)),
                None => return Err(Failure::Lost("the connection was lost".into())),
            }
        }
    }

    pub(super) async fn pong(&mut self) -> Result<(), Failure> {
        let sending = timeout(DEADLINE, self.socket.send(Message::text(r#"{"type":"pong"}"#)));
        sending.await.unwrap_or(Ok(())).map_err(lost)
    }

    /// Says goodbye, so that presence does not wait for it.
    pub(super) async fn close(&mut self) {
        timeout(DEADLINE, self.socket.close(None)).await.ok();
    }
}

async fn connect(url: &Url) -> Result<Box<dyn Socket>, Failure> {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let port = url.port_or_known_default().unwrap_or_default();
    let failed = |error: std::io::Error| Failure::Lost(error.to_string());
    let tcp = TcpStream::connect((host, port)).await.map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    if url.scheme() == "ws" {
        return Ok(Box::new(tcp));
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Failure::Lost(error.to_string()))?;
    Ok(Box::new(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(failed)?))
}

#[derive(Deserialize)]
struct Refusal {
    error: Reason,
}

#[derive(Deserialize)]
struct Reason {
    code: String,
    message: String,
}

fn refused(error: tungstenite::Error) -> Failure {
    let tungstenite::Error::Http(response) = error else { return lost(error) };
    let status = response.status().as_u16();
    let why = said(&response).unwrap_or_else(|| "it gives no reason that tidings would".into());
    Failure::Refused { status, why }
}

/// What an instance says in the body of a refusal.
fn said(response: &Response<Option<Vec<u8>>>) -> Option<String> {
    let Refusal { error: Reason { code, message } } = serde_json::from_slice(response.body().as_ref()?).ok()?;
    Some(format!("{code}: {message}"))
}

fn closed(frame: Option<CloseFrame>) -> Failure {
    frame.map_or_else(
        || Failure::Closed { code: 1005, reason: "no reason given".into() },
        |frame| Failure::Closed { code: frame.code.into(), reason: frame.reason.as_str().to_owned() },
    )
}

fn lost(error: tungstenite::Error) -> Failure {
    Failure::Lost(match error {
        tungstenite::Error::Io(error) => error.to_string(),
        error => error.to_string(),
    })
}
