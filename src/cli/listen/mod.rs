//! `tidings listen`: prints a user's events as they arrive, as a client of the public listener.

mod connection;
mod frame;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use clap::{Args, value_parser};
use reqwest::Url;
use secrecy::SecretString;
use tokio::time::sleep;

use super::{ConfigArgs, Usage, block_on, configured_url, note, say, user_id};
use crate::auth::mint;
use crate::backoff::Backoff;
use crate::config::{Config, ConfigError, check_host, shown_path};
use crate::protocol::UserId;
use crate::shutdown::Stops;
use connection::{Connection, Failure};
use frame::Frame;

/// The lifetime of a token that is signed here; another one follows it.
const TOKEN_TTL: Duration = Duration::from_secs(86_400);

/// Bounds of the delay before a reconnect.
const RETRY: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(10)];

#[derive(Debug, Args)]
pub(super) struct Listen {
    /// The user whose events are printed. They are online meanwhile, like a user with an open page
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// End after so many events [default: on Ctrl-C]
    #[arg(long, value_name = "N", value_parser = value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print only the data of each event
    #[arg(long)]
    raw: bool,
    /// The public listener: ws://, wss://, http:// or https:// [default: server.listen]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// A token of the user [default: one signed with auth.hmac_secret]
    #[arg(long, value_name = "JWT", conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with a token of the user, read at each connect
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

enum Token {
    Given(String),
    InFile(PathBuf),
    /// Signed for each connect.
    Signed(SecretString),
}

struct Listener {
    user: UserId,
    count: Option<u64>,
    raw: bool,
    url: Url,
    token: Token,
    config: Config,
    printed: u64,
    /// From which a reconnect resumes: that of the last stored event, or of the welcome.
    position: Option<String>,
    connection: Option<Connection>,
}

impl Listen {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = user_id(&self.user)?;
        let config = self.config.load(false)?;
        let token = match (self.token, self.token_file) {
            (Some(token), _) => Token::Given(token),
            (None, Some(path)) => Token::InFile(path),
            (None, None) => Token::Signed(signing_secret(&config)?),
        };
        let url = public_url(self.url.as_deref(), &config)?;
        let (count, raw) = (self.count, self.raw);
        let mut listener =
            Listener { user, count, raw, url, token, config, printed: 0, position: None, connection: None };
        listener.token()?;
        block_on(async {
            // SIGHUP ends the process, as a terminal that is closed expects.
            let mut stops = Stops::install().context("cannot listen for signals")?;
            let ended = tokio::select! {
                ended = listener.run() => ended,
                () = stops.next() => Ok(()),
            };
            if let Some(connection) = &mut listener.connection {
                connection.close().await;
            }
            ended
        })
    }
}

fn signing_secret(config: &Config) -> Result<SecretString, ConfigError> {
    let given = |error| ConfigError::new(format!("{error}, or give a token with --token or --token-file"));
    config.require_signing_secret().cloned().map_err(given)
}

/// The URL of the WebSocket endpoint.
fn public_url(given: Option<&str>, config: &Config) -> Result<Url, Usage> {
    let configured = || configured_url(config, "ws", "server.listen", config.server.listen, "--url");
    let text = given.map_or_else(configured, |url| Ok(url.to_owned()))?;
    let url = Url::parse(&text).ok().filter(|url| check_host(url).is_ok());
    let scheme = url.as_ref().and_then(|url| match url.scheme() {
        "ws" | "http" => Some("ws"),
        "wss" | "https" => Some("wss"),
        _ => None,
    });
    let (Some(mut url), Some(scheme)) = (url, scheme) else {
        // A token may be anywhere in it.
        return Err(Usage("--url ***: expected a URL such as wss://app.example.com/ws".into()));
    };
    url.set_scheme(scheme).ok();
    url.set_fragment(None);
    if url.path() == "/" {
        url.set_path("/ws");
    }
    Ok(url)
}

impl Listener {
    /// Until so many events are printed. Only a client that was connected reconnects.
    async fn run(&mut self) -> anyhow::Result<()> {
        let [base, cap] = RETRY;
        let mut backoff = Backoff::new(base, cap);
        let mut was_connected = false;
        while self.is_incomplete() {
            let (failure, lasted) = match self.connect(was_connected).await? {
                Ok(connection) => {
                    was_connected = true;
                    self.connection = Some(connection);
                    let Some(failure) = self.print_events().await? else { return Ok(()) };
                    let ended = self.connection.take();
                    (failure, ended.map_or(Duration::ZERO, |connection| connection.age()))
                }
                Err(failure) => (failure, Duration::ZERO),
            };
            if failure.is_final(was_connected, matches!(self.token, Token::Given(_))) {
                bail!("{failure}");
            }
            backoff.reset_if_lasting(lasted);
            let pause = backoff.next_delay();
            note(&format!("{failure}: connecting again in {:.1} s", pause.as_secs_f64()));
            sleep(pause).await;
        }
        Ok(())
    }

    fn is_incomplete(&self) -> bool {
        self.count.is_none_or(|count| self.printed < count)
    }

    fn token(&self) -> anyhow::Result<String> {
        match &self.token {
            Token::Given(token) => Ok(token.clone()),
            Token::InFile(path) => read_token(path),
            Token::Signed(secret) => Ok(mint(&self.config.auth, secret, &self.user, TOKEN_TTL)?),
        }
    }

    /// Connects, resuming after the position, and reports it.
    async fn connect(&mut self, again: bool) -> anyhow::Result<Result<Connection, Failure>> {
        let (mut url, token) = (self.url.clone(), self.token()?);
        if let Some(position) = &self.position {
            url.query_pairs_mut().append_pair("resume", position);
        }
        let (connection, welcome) = match Connection::open(&url, &token).await {
            Ok(opened) => opened,
            Err(failure) => return Ok(Err(failure)),
        };
        if welcome.user != self.user.as_str() {
            return Err(anyhow!(Usage(format!("the token is one of user {:?}, not of {:?}", welcome.user, self.user))));
        }
        let resumed = match (again, welcome.recovered) {
            (false, _) => "",
            (true, true) => ": stored events that were missed follow, others may be missing",
            (true, false) => ": events may be missing, stored ones too",
        };
        let connection_id = &welcome.connection;
        let unread = welcome.unread;
        note(&format!(
            "connected to {} as user {}, connection {connection_id} of instance {}, {unread} unread{resumed}",
            connection.shown, self.user, welcome.instance
        ));
        if !welcome.recovered {
            self.position = welcome.cursor;
        }
        Ok(Ok(connection))
    }

    /// Prints events until the connection ends, which is returned, or until so many are printed: `None`.
    async fn print_events(&mut self) -> anyhow::Result<Option<Failure>> {
        while let Some(connection) = &mut self.connection {
            let text = match connection.next().await {
                Ok(text) => text,
                Err(failure) => return Ok(Some(failure)),
            };
            match Frame::parse(&text) {
                Some(Frame::Event { id, data }) => {
                    // White space of JSON: within a string, both are escaped.
                    say(&if self.raw { data.get() } else { &text }.replace(['\n', '\r'], " "))?;
                    self.position = id.map(Into::into).or_else(|| self.position.take());
                    self.printed += 1;
                    if !self.is_incomplete() {
                        return Ok(None);
                    }
                }
                Some(Frame::Ping) => {
                    if let Err(failure) = connection.pong().await {
                        return Ok(Some(failure));
                    }
                }
                Some(frame) => frame.report(),
                None => note("a frame was not understood"),
            }
        }
        Ok(None)
    }
}

/// The contents of a file, which are a secret.
fn read_token(path: &Path) -> anyhow::Result<String> {
    let refuse = |why: String| anyhow!(Usage(format!("--token-file {:?}: {why}", shown_path(path))));
    let text = std::fs::read_to_string(path).map_err(|error| refuse(error.to_string()))?;
    match text.trim() {
        "" => Err(refuse("expected a file with a token".into())),
        token => Ok(token.to_owned()),
    }
}
