//! The key set of an issuer, fetched from `auth.jwks_url` and refreshed in the background.
//!
//! One task fetches, so at most one fetch is in progress; verification reads the last set.

use std::error::Error;
use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, header};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::jwk::{parse_set, published_secrets};
use super::key::Key;
use crate::backoff::Backoff;
use crate::config::{ConfigError, KeySetUrl};
use crate::log::LogRate;
use crate::metrics::Metrics;

/// For a whole fetch, and thus for a token that waits for it.
const FETCH_DEADLINE: Duration = Duration::from_secs(2);

/// Far larger than a set of [`super::key::MAX_KEYS`] keys.
const MAX_BODY: usize = 64 * 1024;

/// Maximum age of a set, shortened at random by up to a fifth, so that instances do not fetch in step.
const TTL: Duration = Duration::from_secs(10 * 60);

/// Between two fetches that tokens with an unknown `kid` cause, because such tokens are easy to forge. Until the next
/// fetch, an unknown `kid` is refused.
const MIN_REQUEST_INTERVAL: Duration = Duration::from_secs(30);

/// Bounds of the delay after a failed fetch.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(30)];

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no response: {0}")]
    Unreachable(String),
    #[error("no response within {FETCH_DEADLINE:?}")]
    Timeout,
    #[error("the response status is {0}, not 200; redirects are not followed")]
    Status(reqwest::StatusCode),
    #[error("the response is larger than {MAX_BODY} bytes")]
    TooLarge,
    #[error("the response is not a key set")]
    Malformed,
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        // The URL may have a secret in its query; the innermost cause is the most specific one.
        let error = error.without_url();
        let mut cause: &dyn Error = &error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        Self::Unreachable(with_advice(&cause.to_string()))
    }
}

/// Appends the configuration key that corrects a TLS failure.
fn with_advice(message: &str) -> String {
    let advice = [
        ("UnknownIssuer", "set auth.jwks_ca_file to the authority that signed the server's certificate"),
        ("not valid for name", "auth.jwks_url must have a name in the server's certificate"),
    ];
    let found = advice.iter().find(|(part, _)| message.contains(part));
    found.map_or_else(|| message.to_owned(), |(_, advice)| format!("{message} ({advice})"))
}

impl FetchError {
    fn label(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "unreachable",
            Self::Timeout => "timeout",
            Self::Status(_) => "status",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
        }
    }
}

#[derive(Debug)]
struct State {
    /// The last set; none before the first successful fetch.
    keys: Option<Arc<[Key]>>,
    /// A fetch is in progress or requested.
    fetching: bool,
    /// When an unknown `kid` last requested a fetch.
    requested_at: Option<Instant>,
}

/// The last fetched key set.
#[derive(Debug)]
pub struct Jwks {
    client: Client,
    url: KeySetUrl,
    state: watch::Sender<State>,
}

impl Jwks {
    /// Fetches nothing yet; a token that needs a key waits for the first fetch.
    pub(super) fn new(url: &KeySetUrl, ca_file: Option<&Path>) -> Result<Arc<Self>, ConfigError> {
        let mut client = Client::builder().no_proxy().redirect(Policy::none()).pool_max_idle_per_host(0);
        if let Some(path) = ca_file {
            let fail = |why: &dyn Display| ConfigError::new(format!("auth.jwks_ca_file = {path:?}: {why}"));
            let pem = std::fs::read(path).map_err(|error| fail(&error))?;
            client = client.tls_certs_merge(Certificate::from_pem_bundle(&pem).map_err(|error| fail(&error))?);
        }
        let client = client.build();
        let client = client.map_err(|error| ConfigError::new(format!("auth.jwks_url: no HTTP client: {error}")))?;
        let state = watch::Sender::new(State { keys: None, fetching: true, requested_at: None });
        Ok(Arc::new(Self { client, url: url.clone(), state }))
    }

    pub(super) fn keys(&self) -> Option<Arc<[Key]>> {
        self.state.borrow().keys.clone()
    }

    /// Requests a fetch for a token whose key is not in the set, at most once per interval; returns whether
    /// [`Jwks::fetched`] may bring the key. The refresh task alone decides when to retry a failed fetch.
    pub(super) fn request_fetch(&self) -> bool {
        let mut may_come = false;
        self.state.send_if_modified(|state| {
            let due = state.requested_at.is_none_or(|at| at.elapsed() >= MIN_REQUEST_INTERVAL);
            let request = !state.fetching && state.keys.is_some() && due;
            if request {
                state.requested_at = Some(Instant::now());
                state.fetching = true;
            }
            may_come = state.fetching;
            request
        });
        may_come
    }

    /// Waits until the fetch in progress or requested has ended.
    pub(super) async fn fetched(&self) {
        let mut state = self.state.subscribe();
        // After a timeout the caller uses the set that is there.
        timeout(FETCH_DEADLINE, state.wait_for(|state| !state.fetching)).await.ok();
    }

    /// Fetches the set at once, then whenever it is stale or a fetch is requested. Never returns.
    pub async fn run_refresh(self: Arc<Self>, metrics: Arc<Metrics>) {
        let [base, cap] = RETRY;
        let (mut backoff, failed) = (Backoff::new(base, cap), LogRate::new());
        let mut state = self.state.subscribe();
        loop {
            let fetch = timeout(FETCH_DEADLINE, self.fetch()).await.unwrap_or(Err(FetchError::Timeout));
            let (result, pause) = match &fetch {
                Ok(_) => {
                    backoff.reset();
                    ("ok", TTL.mul_f64(1.0 - 0.2 * fastrand::f64()))
                }
                Err(error) => (error.label(), backoff.next_delay()),
            };
            metrics.jwks_refreshes.with_label_values(&[result]).inc();
            if let Err(error) = &fetch
                && let Some(held_back) = failed.admit()
            {
                let kept = self.keys().is_some();
                warn!(%error, kept, held_back, "cannot fetch the key set of auth.jwks_url");
            }
            self.state.send_modify(|state| {
                state.fetching = false;
                state.keys = fetch.ok().or_else(|| state.keys.take());
            });
            tokio::select! {
                () = sleep(pause) => {}
                _ = state.wait_for(|state| state.fetching) => {}
            }
            self.state.send_modify(|state| state.fetching = true);
        }
    }

    /// Fetches the set once, for the operator; returns how many of its keys verify tokens, or why it cannot be fetched.
    pub async fn check(&self) -> Result<usize, String> {
        let fetch = timeout(FETCH_DEADLINE, self.fetch()).await.unwrap_or(Err(FetchError::Timeout));
        fetch.map(|keys| keys.len()).map_err(|error| error.to_string())
    }

    async fn fetch(&self) -> Result<Arc<[Key]>, FetchError> {
        let request = self.client.get(self.url.expose().clone()).header(header::ACCEPT, "application/json");
        let mut response = request.send().await?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await? {
            if body.len() + part.len() > MAX_BODY {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&part);
        }
        let published = published_secrets(&body);
        if !published.is_empty() {
            warn!(keys = ?published, "auth.jwks_url publishes a private key or a secret: anyone can sign tokens with it");
        }
        // The issuer decides: a set without a usable key replaces the last one, and every token is refused.
        let (keys, skipped) = parse_set(&body).ok_or(FetchError::Malformed)?;
        if keys.is_empty() {
            warn!(skipped, "the key set has no key that verifies tokens");
        } else {
            info!(served = keys.len(), skipped, "key set fetched");
        }
        Ok(keys.into())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::time::{advance, pause, resume};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn jwks(url: &str) -> Arc<Jwks> {
        Jwks::new(&KeySetUrl::new(url.parse().unwrap()), None).unwrap()
    }

    fn fetched(jwks: &Jwks, keys: Option<Arc<[Key]>>) {
        jwks.state.send_modify(|state| {
            state.fetching = false;
            state.keys = keys.or_else(|| state.keys.take());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_kids_request_one_fetch_in_thirty_seconds_and_none_before_the_first_set() {
        let jwks = jwks("https://issuer.example/");
        assert!(jwks.request_fetch(), "the first fetch is in progress");
        fetched(&jwks, None);
        assert!(!jwks.request_fetch(), "the task retries the failed fetch");
        fetched(&jwks, Some(Arc::new([])));

        assert!(jwks.request_fetch() && jwks.state.borrow().fetching);
        assert!(jwks.request_fetch(), "the requested fetch may bring the key");
        fetched(&jwks, None);
        assert!(!jwks.request_fetch());
        advance(MIN_REQUEST_INTERVAL - SECOND).await;
        assert!(!jwks.request_fetch() && !jwks.state.borrow().fetching);
        advance(SECOND).await;
        assert!(jwks.request_fetch() && jwks.state.borrow().fetching);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_waits_no_longer_than_a_fetch_may_take() {
        let begun = Instant::now();
        jwks("https://issuer.example/").fetched().await;
        assert_eq!(begun.elapsed(), FETCH_DEADLINE);
    }

    /// Advances the clock of timers; sockets use real time.
    async fn skip(time: Duration) {
        pause();
        advance(time).await;
        resume();
    }

    #[tokio::test]
    async fn the_set_is_fetched_again_before_it_is_older_than_its_ttl() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let jwks = jwks(&format!("http://{}/", listener.local_addr().unwrap()));
        let requests = AtomicUsize::new(0);
        let serve = async {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                assert_ne!(socket.read(&mut [0; 4_096]).await.unwrap(), 0);
                requests.fetch_add(1, Ordering::SeqCst);
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 11\r\nConnection: close\r\n\r\n{\"keys\":[]}";
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let check = async {
            jwks.fetched().await;
            assert_eq!(requests.load(Ordering::SeqCst), 1);
            skip(TTL.mul_f64(0.79)).await;
            assert!(timeout(SECOND / 5, jwks.state.subscribe().wait_for(|state| state.fetching)).await.is_err());
            skip(TTL.mul_f64(0.21)).await;
            let second = async {
                while requests.load(Ordering::SeqCst) < 2 {
                    sleep(SECOND / 100).await;
                }
            };
            timeout(SECOND * 20, second).await.unwrap();
        };
        tokio::select! {
            () = Arc::clone(&jwks).run_refresh(Arc::default()) => {}
            () = serve => {}
            () = check => {}
        }
    }
}
