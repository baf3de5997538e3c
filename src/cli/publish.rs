//! `tidings publish`: publishes one notification as a backend does.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, value_parser};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::admin::{AdminListener, Call, in_path};
use super::{ConfigArgs, Usage, block_on, say, stores, user_id};
use crate::backplane::Backplane;
use crate::config::Config;
use crate::history::{MAX_COLLAPSE_BYTES, MAX_KEY_BYTES, Publication};
use crate::protocol::{DEFAULT_EVENT, UserId, check_event_name, is_json};

/// In place of the notification: it is read from standard input.
const STDIN: &str = "-";

/// White space around the JSON of standard input that is read, such as a line break.
const MAX_AROUND: usize = 4_096;

#[derive(Debug, Args)]
pub(super) struct Publish {
    /// The user to notify
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// The notification, as JSON text; - reads it from standard input
    #[arg(allow_negative_numbers = true)]
    json: String,
    /// Publish over the admin listener of an instance, even if Redis is configured [default without Redis:
    /// server.admin_listen]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Store the notification, so that a disconnected user receives it later, and print its id
    #[arg(long)]
    durable: bool,
    /// The name of the event
    #[arg(long, value_name = "NAME", default_value = DEFAULT_EVENT, value_parser = event_name)]
    event: String,
    /// Store it for this time at most
    #[arg(long, value_name = "SECONDS", requires = "durable", value_parser = value_parser!(u32).range(1..=315_360_000))]
    ttl: Option<u32>,
    /// Publish only if nothing was published to the user with the same key in the last 24 hours
    #[arg(long, value_name = "KEY", value_parser = idempotency_key)]
    key: Option<String>,
    /// Replace the user's stored notification that was published with the same key
    #[arg(long, value_name = "KEY", requires = "durable", value_parser = collapse_key)]
    collapse: Option<String>,
    /// Add it to the stream of unread notifications if no device has read it this many seconds after it was stored;
    /// requires --durable, and Redis
    #[arg(long, value_name = "SECONDS", requires = "durable", value_parser = value_parser!(u32).range(1..=2_592_000))]
    escalate: Option<u32>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Publish {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = user_id(&self.user)?;
        let config = self.config.load(false)?;
        let most = config.limits.max_payload_bytes();
        let json = if self.json == STDIN { from_stdin(most)? } else { self.json };
        if !is_json(&json) {
            let hint = "expected one JSON value, such as '{\"hello\":\"world\"}' or '\"hello\"'";
            return Err(Usage(format!("JSON: {hint}")).into());
        }
        if json.trim().len() > most {
            return Err(too_large(most).into());
        }
        let seconds = |given: Option<u32>| given.map(|seconds| Duration::from_secs(seconds.into()));
        let publication = Publication {
            event: &self.event,
            data: json.trim(),
            durable: self.durable,
            ttl: seconds(self.ttl),
            key: self.key.as_deref(),
            collapse: self.collapse.as_deref(),
            escalate: seconds(self.escalate),
            trace: None,
        };
        let done = match (&self.admin, &config.redis.url) {
            (None, Some(_)) => block_on(over_redis(&config, &user, &publication))?,
            (admin, _) => block_on(over_http(&AdminListener::new(admin.as_deref(), &config)?, &user, &publication))?,
        };
        Ok(say(&done)?)
    }
}

/// Reads no more than shows that it is too large; white space around it does not count.
fn from_stdin(most: usize) -> anyhow::Result<String> {
    let limit = most.saturating_add(MAX_AROUND);
    let mut bytes = Vec::new();
    let mut input = std::io::stdin().lock().take(u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1));
    input.read_to_end(&mut bytes).context("standard input")?;
    if bytes.len() > limit {
        return Err(too_large(most).into());
    }
    Ok(String::from_utf8(bytes).map_err(|_| Usage("JSON: standard input is not UTF-8".into()))?)
}

fn too_large(most: usize) -> Usage {
    Usage(format!("JSON: expected at most {most} bytes (limits.max_payload_bytes)"))
}

fn event_name(name: &str) -> Result<String, String> {
    check_event_name(name).map(|()| name.to_owned()).map_err(|error| error.to_string())
}

/// As over HTTP, in a header.
fn idempotency_key(key: &str) -> Result<String, String> {
    let is_valid = (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid { Ok(key.to_owned()) } else { Err(format!("expected 1 to {MAX_KEY_BYTES} visible ASCII characters")) }
}

fn collapse_key(text: &str) -> Result<String, String> {
    let is_valid = (1..=MAX_COLLAPSE_BYTES).contains(&text.len());
    if is_valid { Ok(text.to_owned()) } else { Err(format!("expected 1 to {MAX_COLLAPSE_BYTES} bytes")) }
}

async fn over_redis(config: &Config, user: &UserId, publication: &Publication<'_>) -> anyhow::Result<String> {
    let url = config.redis.url.as_ref().map(ToString::to_string).unwrap_or_default();
    let (backplane, history) = stores(config)?;
    let is_plain = publication.event == DEFAULT_EVENT && publication.key.is_none();
    if publication.durable || !is_plain {
        let published = history.publish(std::slice::from_ref(user), publication).await;
        return match published.first() {
            Some(Ok(Some(cursor))) => Ok(stored(user, &cursor.to_string())),
            Some(Ok(None)) if !publication.durable => Ok(format!("published to user {user}")),
            Some(Err("not_replicated")) => {
                bail!("the notification is stored, but too few replicas have it (redis.wait_replicas)")
            }
            Some(Err(kind)) => bail!("the notification was not published to {url} ({kind})"),
            _ => bail!("{url} did not return the id of the stored notification"),
        };
    }
    let channel = format!("{}{user}", config.redis.user_channel);
    let Backplane::Redis(redis) = backplane else { bail!("no Redis is configured") };
    let received = redis.publish(&channel, publication.data).await;
    let received = received.with_context(|| format!("the notification was not published to {url}"))?;
    let receivers = match (redis.redis().is_cluster(), received) {
        // The other nodes do not say how many instances they pass it on to.
        (true, _) => "of the instances that are subscribed at the same node",
        (false, 1) => "instance",
        (false, _) => "instances",
    };
    Ok(format!("published to user {user}: received by {received} {receivers}"))
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
    event: &'a str,
    durable: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_s: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    collapse: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    escalate_s: Option<u64>,
}

#[derive(Deserialize)]
struct Stored {
    id: String,
}

#[derive(Deserialize)]
struct Sent {
    accepted: u64,
}

/// The path for a single user returns an id, but cannot contain every user id; the path for many can.
async fn over_http(admin: &AdminListener, user: &UserId, publication: &Publication<'_>) -> anyhow::Result<String> {
    let Publication { data, event, durable, ttl, key, collapse, escalate, .. } = *publication;
    let path = if durable { vec!["v1", "users", in_path(user)?, "notifications"] } else { vec!["v1", "notifications"] };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs());
    let data = RawValue::from_string(data.to_owned()).context("JSON")?;
    let (users, data) = ((!durable).then_some([user.as_str()]), &*data);
    let body = Body { users, data, event, durable, ttl_s: seconds(ttl), collapse, escalate_s: seconds(escalate) };
    let body = Some(serde_json::to_vec(&body)?);
    let answer = admin.call(Method::POST, Call { path: &path, query: "", body, idempotency_key: key }).await?;
    let unexpected = || format!("{} returned {answer}", admin.shown);
    if durable {
        let Stored { id } = serde_json::from_str(&answer).with_context(unexpected)?;
        return Ok(stored(user, &id));
    }
    match serde_json::from_str(&answer).with_context(unexpected)? {
        Sent { accepted: 1 } => Ok(format!("published to user {user} over {}", admin.shown)),
        Sent { .. } => bail!("{}", unexpected()),
    }
}
