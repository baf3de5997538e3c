//! `tidings publish`: publishes one notification as a backend does.

use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use reqwest::{Client, StatusCode, Url};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{ConfigArgs, Usage, block_on, say, stores};
use crate::backplane::{Backplane, USER_CHANNEL};
use crate::config::{Config, mask_url};
use crate::history::Publication;
use crate::protocol::{DEFAULT_EVENT, UserId, is_json};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The user to notify
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// The notification, as JSON text
    #[arg(allow_negative_numbers = true)]
    json: String,
    /// Publish over the admin listener of an instance, even if Redis is configured [default without Redis:
    /// server.admin_listen]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Store the notification, so that a disconnected user receives it later, and print its id
    #[arg(long)]
    durable: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Publish {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = UserId::new(&self.user).map_err(|error| Usage(format!("USER {:?}: {error}", self.user)))?;
        if !is_json(&self.json) {
            let hint = "expected one JSON value, such as '{\"hello\":\"world\"}' or '\"hello\"'";
            return Err(Usage(format!("JSON: {hint}")).into());
        }
        let config = self.config.load(false)?;
        let most = config.limits.max_payload_bytes;
        if self.json.len() > most {
            let given = self.json.len();
            return Err(
                Usage(format!("JSON: {given} bytes: expected at most {most} (limits.max_payload_bytes)")).into()
            );
        }
        let done = match (&self.admin, &config.redis.url) {
            (None, Some(_)) => block_on(over_redis(&config, &user, &self.json, self.durable))?,
            (admin, _) => {
                let scheme = if config.server.tls.is_some() { "https" } else { "http" };
                let configured = format!("{scheme}://{}", config.server.admin_listen);
                let admin = admin.as_deref().unwrap_or(&configured);
                block_on(over_http(admin, &config, &user, &self.json, self.durable))?
            }
        };
        Ok(say(&done)?)
    }
}

async fn over_redis(config: &Config, user: &UserId, json: &str, durable: bool) -> anyhow::Result<String> {
    let (backplane, history) = stores(config)?;
    if durable {
        let publication = Publication { event: DEFAULT_EVENT, data: json.trim(), durable, ttl: None, key: None };
        let published = history.publish(std::slice::from_ref(user), &publication).await;
        return match published.first() {
            Some(Ok(Some(cursor))) => Ok(stored(user, &cursor.to_string())),
            Some(Err(kind)) => bail!("Redis did not store the notification ({kind})"),
            _ => bail!("Redis did not return the id of the stored notification"),
        };
    }
    let Backplane::Redis(redis) = backplane else { bail!("no Redis is configured") };
    let received = redis.publish(&format!("{USER_CHANNEL}{user}"), json).await.context("no reply from Redis")?;
    let instances = if received == 1 { "instance" } else { "instances" };
    Ok(format!("published to user {user}: received by {received} {instances}"))
}

fn stored(user: &UserId, id: &str) -> String {
    format!("published to user {user}: stored as {id}")
}

/// The data is raw JSON text, because it must arrive byte for byte.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    users: Option<[&'a str; 1]>,
    data: &'a RawValue,
    durable: bool,
}

#[derive(Deserialize)]
struct Stored {
    id: String,
}

/// The path for a single user returns an id, but cannot contain every user id; the path for many can.
fn path(user: &UserId, durable: bool) -> Result<Vec<&str>, Usage> {
    match user.as_str() {
        "." | ".." if durable => Err(Usage(format!("--durable: no path of the admin listener can contain {user:?}"))),
        user if durable => Ok(vec!["v1", "users", user, "notifications"]),
        _ => Ok(vec!["v1", "notifications"]),
    }
}

async fn over_http(admin: &str, config: &Config, user: &UserId, json: &str, durable: bool) -> anyhow::Result<String> {
    let shown = mask_url(admin);
    let mut url = Url::parse(admin)
        .ok()
        .filter(|url| ["http", "https"].contains(&url.scheme()))
        .ok_or_else(|| Usage(format!("--admin {shown:?}: expected a URL such as http://127.0.0.1:9090")))?;
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().extend(self::path(user, durable)?);
    }
    let data = RawValue::from_string(json.to_owned()).context("JSON")?;
    let body = serde_json::to_vec(&Body { users: (!durable).then_some([user.as_str()]), data: &data, durable })?;
    let client = Client::builder().timeout(DEADLINE).no_proxy().build()?;
    let mut request = client.post(url).body(body);
    if let Some((_, key)) = config.admin_keys.first() {
        request = request.bearer_auth(key.expose_secret());
    }
    let response = request.send().await.map_err(reqwest::Error::without_url);
    let response = response.with_context(|| format!("no response from the admin listener at {shown}"))?;
    let status = response.status();
    let body = response.text().await.unwrap_or_default();
    if status != StatusCode::ACCEPTED {
        bail!("the admin listener at {shown} returned {status}: {body}");
    }
    if !durable {
        return Ok(format!("published to user {user} over {shown}"));
    }
    let Stored { id } = serde_json::from_str(&body).with_context(|| format!("{shown} returned {body}"))?;
    Ok(stored(user, &id))
}
