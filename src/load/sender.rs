//! Sends messages the ways that a backend has.

use std::time::Duration;

use redis::{Connection, ConnectionLike, cmd};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use super::{LoadError, Plan, Way};

/// For one answer over HTTP.
const DEADLINE: Duration = Duration::from_secs(30);

/// One message for one user.
pub(super) struct Message {
    pub(super) user: String,
    /// Among the user's own.
    pub(super) number: u64,
    pub(super) due: Duration,
}

impl Message {
    /// `{"n":NUMBER,"t":DUE_NS,"p":"…"}`, filled up to the wanted size.
    pub(super) fn text(&self, size: usize) -> String {
        let head = format!(r#"{{"n":{},"t":{},"p":""#, self.number, self.due.as_nanos());
        let fill = size.saturating_sub(head.len() + 2);
        format!("{head}{}\"}}", "x".repeat(fill))
    }
}

/// The admin listener of an instance.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Such as `http://127.0.0.1:9090`.
    pub url: String,
    /// Where one is needed.
    pub key: Option<SecretString>,
}

pub(super) enum Sender {
    Pubsub(Connection),
    Outbox { redis: Connection, stream: String },
    Http { client: reqwest::Client, admin: Admin, runtime: Handle },
}

impl Sender {
    pub(super) fn new(plan: &Plan, way: Way) -> Result<Self, LoadError> {
        let redis = || redis::Client::open(plan.redis_url.as_str())?.get_connection();
        Ok(match way {
            Way::Pubsub => Self::Pubsub(redis()?),
            Way::Outbox => Self::Outbox { redis: redis()?, stream: format!("{}outbox", plan.redis_prefix) },
            Way::Http => {
                let client = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build();
                let client = client.map_err(|error| LoadError::Http(error.to_string()))?;
                Self::Http { client, admin: plan.admin.clone(), runtime: Handle::current() }
            }
        })
    }

    /// Sends all of them, and waits until they are taken. Over HTTP, those that follow each other with the same number
    /// are one request, and have the due time of the first.
    pub(super) fn send(&mut self, messages: &[Message], size: usize) -> Result<(), LoadError> {
        let mut packed = Vec::new();
        match self {
            Self::Pubsub(redis) => {
                for message in messages {
                    let channel = format!("user:{}", message.user);
                    cmd("PUBLISH").arg(channel).arg(message.text(size)).write_packed_command(&mut packed);
                }
                answered(redis, &packed, messages.len())
            }
            Self::Outbox { redis, stream } => {
                for message in messages {
                    let mut add = cmd("XADD");
                    add.arg(&*stream).arg("*").arg("user").arg(&message.user).arg("data").arg(message.text(size));
                    add.write_packed_command(&mut packed);
                }
                answered(redis, &packed, messages.len())
            }
            Self::Http { client, admin, runtime } => {
                let same = messages.chunk_by(|one, next| one.number == next.number);
                same.into_iter().try_for_each(|same| runtime.block_on(post(client, admin, same, size)))
            }
        }
    }
}

fn answered(redis: &mut Connection, packed: &[u8], count: usize) -> Result<(), LoadError> {
    for answer in redis.req_packed_commands(packed, 0, count)? {
        answer.extract_error()?;
    }
    Ok(())
}

/// The data is kept as text: it must arrive byte for byte.
#[derive(Serialize)]
struct Body<'a> {
    users: Vec<&'a str>,
    data: &'a RawValue,
    durable: bool,
}

/// One notification to many users, to be stored.
async fn post(client: &reqwest::Client, admin: &Admin, same: &[Message], size: usize) -> Result<(), LoadError> {
    let Some(first) = same.first() else { return Ok(()) };
    let users = same.iter().map(|message| message.user.as_str()).collect();
    let data = RawValue::from_string(first.text(size)).map_err(|error| LoadError::Http(error.to_string()))?;
    let body = Body { users, data: &data, durable: true };
    let mut request = client.post(format!("{}/v1/notifications", admin.url)).json(&body);
    if let Some(key) = &admin.key {
        request = request.bearer_auth(key.expose_secret());
    }
    let failed = |error: reqwest::Error| LoadError::Http(error.without_url().to_string());
    let answer = request.send().await.map_err(failed)?;
    let status = answer.status();
    let told: Value = answer.json().await.map_err(failed)?;
    if told.get("accepted").and_then(Value::as_u64) == Some(same.len() as u64) {
        return Ok(());
    }
    Err(LoadError::Http(format!("answered {status}: {told}").chars().take(300).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::wire::numbers;

    #[test]
    fn a_message_has_the_wanted_size_and_its_numbers() {
        let message = Message { user: "1".into(), number: 7, due: Duration::from_nanos(12) };
        let text = message.text(128);
        assert_eq!((text.len(), numbers(text.as_bytes())), (128, Some((7, 12))));
    }
}
