//! Sends messages to the server through any of the backends' interfaces.

use std::time::Duration;

use redis::{Connection, ConnectionLike, cmd};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::runtime::Handle;

use crate::args::{Mode, Phase, Plan, PublishVia};
use crate::own_input::{Nats, Nchan};
use crate::{Backend, LoadError};

/// For one HTTP request.
const DEADLINE: Duration = Duration::from_secs(30);

/// One message to one user.
pub(crate) struct Message {
    pub(crate) user: String,
    /// The position among the user's messages, from 1.
    pub(crate) number: u64,
    pub(crate) due: Duration,
}

impl Message {
    /// `{"n":NUMBER,"t":DUE_NS,"p":"…"}`, padded to the requested size.
    pub(crate) fn text(&self, size: usize) -> String {
        let head = format!(r#"{{"n":{},"t":{},"p":""#, self.number, self.due.as_nanos());
        let padding = size.saturating_sub(head.len() + 2);
        format!("{head}{}\"}}", "x".repeat(padding))
    }
}

pub(crate) enum Sender {
    Redis { connection: Connection, to: Target },
    Http { client: reqwest::Client, backend: Backend, runtime: Handle },
    Nchan(Nchan),
    Nats(Nats),
}

/// Where messages are published in Redis.
pub(crate) enum Target {
    UserChannels,
    Outbox(String),
    BroadcastChannel(String),
}

impl Sender {
    pub(crate) fn new(plan: &Plan, phase: &Phase, backend: &Backend) -> Result<Self, LoadError> {
        let to = match plan.publish_via(phase) {
            PublishVia::Http => {
                let client = reqwest::Client::builder().timeout(DEADLINE).no_proxy().build();
                let client = client.map_err(|error| LoadError::Http(error.to_string()))?;
                return Ok(Self::Http { client, backend: backend.clone(), runtime: Handle::current() });
            }
            PublishVia::Nchan => return Nchan::connect(backend.admin).map(Self::Nchan).map_err(LoadError::OwnInput),
            PublishVia::Nats => return Nats::connect(backend.admin).map(Self::Nats).map_err(LoadError::OwnInput),
            PublishVia::Outbox => Target::Outbox(format!("{}outbox", backend.redis_prefix)),
            PublishVia::Pubsub if phase.mode == Mode::Broadcast => {
                Target::BroadcastChannel(format!("{}broadcast", backend.redis_prefix))
            }
            PublishVia::Pubsub => Target::UserChannels,
        };
        Ok(Self::Redis { connection: backend.redis()?.get_connection()?, to })
    }

    /// Sends the messages and waits for the replies. Over HTTP, consecutive messages with the same number share one
    /// request, and carry the due time of the first.
    pub(crate) fn send(&mut self, messages: &[Message], size: usize) -> Result<(), LoadError> {
        match self {
            Self::Redis { connection, to } => {
                let mut packed = Vec::new();
                for message in messages {
                    let user = &message.user;
                    let mut command = match to {
                        Target::Outbox(stream) => {
                            cmd("XADD").arg(&*stream).arg("*").arg("user").arg(user).arg("data").to_owned()
                        }
                        Target::BroadcastChannel(channel) => cmd("PUBLISH").arg(&*channel).to_owned(),
                        Target::UserChannels => cmd("PUBLISH").arg(format!("user:{user}")).to_owned(),
                    };
                    command.arg(message.text(size)).write_packed_command(&mut packed);
                }
                for reply in connection.req_packed_commands(&packed, 0, messages.len())? {
                    reply.extract_error()?;
                }
                Ok(())
            }
            Self::Http { client, backend, runtime } => {
                let mut batches = messages.chunk_by(|one, next| one.number == next.number);
                batches.try_for_each(|batch| runtime.block_on(post(client, backend, batch, size)))
            }
            Self::Nchan(nchan) => nchan.send(messages, size).map_err(LoadError::OwnInput),
            Self::Nats(nats) => nats.send(messages, size).map_err(LoadError::OwnInput),
        }
    }
}

#[derive(Serialize)]
struct Body<'a> {
    users: Vec<&'a str>,
    /// Raw text, because it must be delivered byte for byte.
    data: &'a RawValue,
    durable: bool,
}

/// Publishes one durable notification to the users of a batch.
async fn post(client: &reqwest::Client, backend: &Backend, batch: &[Message], size: usize) -> Result<(), LoadError> {
    let Some(first) = batch.first() else { return Ok(()) };
    let users = batch.iter().map(|message| message.user.as_str()).collect();
    let data = RawValue::from_string(first.text(size)).map_err(|error| LoadError::Http(error.to_string()))?;
    let body = Body { users, data: &data, durable: true };
    let mut request = client.post(format!("http://{}/v1/notifications", backend.admin)).json(&body);
    if let Some(key) = &backend.admin_key {
        request = request.bearer_auth(key.expose_secret());
    }
    let failed = |error: reqwest::Error| LoadError::Http(error.without_url().to_string());
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let reply: Value = response.json().await.map_err(failed)?;
    if reply.get("accepted").and_then(Value::as_u64) == Some(batch.len() as u64) {
        return Ok(());
    }
    Err(LoadError::Http(format!("answered {status}: {reply}").chars().take(300).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::message_header;

    #[test]
    fn a_message_has_the_requested_size_and_a_header() {
        let message = Message { user: "1".into(), number: 7, due: Duration::from_nanos(12) };
        let text = message.text(128);
        assert_eq!((text.len(), message_header(text.as_bytes())), (128, Some((7, 12))));
    }
}
