//! The admin listener of an instance, as the commands call it.

use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Client, Method, Url};
use secrecy::{ExposeSecret, SecretString};

use super::{Usage, configured_url};
use crate::config::{Config, check_host, harmless_parts};
use crate::protocol::UserId;

const DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct AdminListener {
    url: Url,
    /// Without user and password.
    pub(super) shown: String,
    key: Option<SecretString>,
    client: Client,
}

/// A request without a body, unless it is given one.
#[derive(Debug, Default)]
pub(super) struct Call<'a> {
    pub(super) path: &'a [&'a str],
    pub(super) query: &'a str,
    pub(super) body: Option<Vec<u8>>,
    pub(super) idempotency_key: Option<&'a str>,
}

impl AdminListener {
    /// At this URL, otherwise at `server.admin_listen`.
    pub(super) fn new(given: Option<&str>, config: &Config) -> anyhow::Result<Self> {
        let configured =
            || configured_url(config, "http", "server.admin_listen", config.server.admin_listen, "--admin");
        let url = given.map_or_else(configured, |url| Ok(url.to_owned()))?;
        let url = Url::parse(&url)
            .ok()
            .filter(|url| ["http", "https"].contains(&url.scheme()) && check_host(url).is_ok())
            .ok_or_else(|| Usage("--admin ***: expected a URL such as http://127.0.0.1:9090".into()))?;
        let client = Client::builder().timeout(DEADLINE).no_proxy().build()?;
        let key = config.admin_keys.first().map(|(_, key)| key.clone());
        Ok(Self { shown: harmless_parts(&url), url, key, client })
    }

    /// Returns the body of the response; fails unless its status is one of success.
    pub(super) async fn call(&self, method: Method, call: Call<'_>) -> anyhow::Result<String> {
        let (mut url, shown) = (self.url.clone(), &self.shown);
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(call.path);
        }
        url.set_query(Some(call.query).filter(|query| !query.is_empty()));
        let mut request = self.client.request(method, url).body(call.body.unwrap_or_default());
        if let Some(key) = &self.key {
            request = request.bearer_auth(key.expose_secret());
        }
        if let Some(key) = call.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        let response = request.send().await.map_err(reqwest::Error::without_url);
        let response = response.with_context(|| format!("no response from the admin listener at {shown}"))?;
        let status = response.status();
        let body = response.text().await.map_err(reqwest::Error::without_url);
        let body = body.with_context(|| format!("no whole response from the admin listener at {shown}"))?;
        if !status.is_success() {
            bail!("the admin listener at {shown} returned {status}: {body}");
        }
        Ok(body)
    }
}

/// The user in a path, which cannot contain every user id.
pub(super) fn in_path(user: &UserId) -> Result<&str, Usage> {
    match user.as_str() {
        "." | ".." => Err(Usage(format!("no path of the admin listener can contain {user:?}"))),
        user => Ok(user),
    }
}
