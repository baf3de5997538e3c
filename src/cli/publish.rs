//! `tidings publish`: one notification, the way a backend would send it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Client, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{ConfigArgs, Usage, block_on, say};
use crate::backplane::Redis;
use crate::config::{Config, mask_url};
use crate::protocol::{InstanceId, UserId, is_json};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// Whom it is for
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// The notification, as JSON text
    #[arg(allow_negative_numbers = true)]
    json: String,
    /// Publish over an instance's admin listener, whatever Redis is configured [default without Redis:
    /// server.admin_listen]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Not available yet
    #[arg(long, hide = true)]
    durable: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Publish {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = UserId::new(&self.user).map_err(|error| Usage(format!("USER {:?}: {error}", self.user)))?;
        if !is_json(&self.json) {
            let hint = "accepted is one JSON value, such as '{\"hello\":\"world\"}' or '\"hello\"'";
            return Err(Usage(format!("JSON: this is no JSON: {hint}")).into());
        }
        if self.durable {
            return Err(Usage("--durable: this version stores nothing; publish without it".into()).into());
        }
        let config = self.config.load(false)?;
        let done = match (&self.admin, &config.redis.url) {
            (None, Some(url)) => block_on(over_redis(&config, url, &user, &self.json))?,
            (admin, _) => {
                let scheme = if config.server.tls.is_some() { "https" } else { "http" };
                let configured = format!("{scheme}://{}", config.server.admin_listen);
                let admin = admin.as_deref().unwrap_or(&configured);
                block_on(over_http(admin, &config, &user, &self.json))?
            }
        };
        Ok(say(&done)?)
    }
}

async fn over_redis(config: &Config, url: &SecretString, user: &UserId, json: &str) -> anyhow::Result<String> {
    let redis = Redis::new(config, url, &InstanceId::random(), Arc::default())?;
    let heard = redis.publish(user, json).await.context("no answer from Redis")?;
    let instances = if heard == 1 { "instance" } else { "instances" };
    Ok(format!("published to user {user}: heard by {heard} {instances}"))
}

/// The data is kept as text: it must arrive byte for byte.
#[derive(Serialize)]
struct Body<'a> {
    users: [&'a str; 1],
    data: &'a RawValue,
}

async fn over_http(admin: &str, config: &Config, user: &UserId, json: &str) -> anyhow::Result<String> {
    let shown = mask_url(admin);
    let mut url = Url::parse(admin)
        .ok()
        .filter(|url| ["http", "https"].contains(&url.scheme()))
        .ok_or_else(|| Usage(format!("--admin {shown:?}: accepted is a URL such as http://127.0.0.1:9090")))?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(["v1", "notifications"]);
    }
    let data = RawValue::from_string(json.to_owned()).context("JSON")?;
    let body = serde_json::to_vec(&Body { users: [user.as_str()], data: &data })?;
    let client = Client::builder().timeout(DEADLINE).no_proxy().build()?;
    let mut request = client.post(url).body(body);
    if let Some((_, key)) = config.admin_keys.first() {
        request = request.bearer_auth(key.expose_secret());
    }
    let answer = request.send().await.map_err(reqwest::Error::without_url);
    let answer = answer.with_context(|| format!("no answer from the admin listener at {shown}"))?;
    let status = answer.status();
    let body = answer.text().await.unwrap_or_default();
    if status != StatusCode::ACCEPTED {
        bail!("the admin listener at {shown} answered {status}: {body}");
    }
    Ok(format!("published to user {user} over {shown}"))
}
