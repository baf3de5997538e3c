//! Clients that connect, disconnect in any way, and resume on another instance from their last id.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;
use tidings::internals::Cursor;
use tokio::time::{sleep, timeout};

use super::record::{Entry, Notification, Seen};
use super::world::World;
use crate::support::{Light, Received, Resume};

/// The event that is published last.
pub const MARKER: &str = r#""the end""#;

/// One that is stopped takes connections, but does not answer.
const GREETED: Duration = Duration::from_secs(3);

#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    instance: Option<&'a str>,
    #[serde(default, deserialize_with = "cursor")]
    cursor: Option<Cursor>,
    recovered: Option<bool>,
    #[serde(default, deserialize_with = "cursor")]
    id: Option<Cursor>,
    ts: Option<u64>,
    event: Option<String>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

fn cursor<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Cursor>, D::Error> {
    let text = Option::<&str>::deserialize(text)?;
    text.map(str::parse).transpose().map_err(D::Error::custom)
}

/// How long clients stay and are away, in milliseconds, at most.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    pub stay: u64,
    pub away: u64,
    /// Stays on its instance until it is closed.
    pub steady: bool,
}

struct Wanderer {
    world: Arc<World>,
    user: String,
    rng: Rng,
    log: Vec<Entry>,
    /// What it resumes from.
    held: Option<Cursor>,
    /// What it resumed from last.
    before: Option<Cursor>,
}

/// The answer to a CONNECT of a socket.io client.
#[derive(Deserialize)]
struct Connected {
    #[serde(default, deserialize_with = "owned_cursor")]
    pid: Option<Cursor>,
}

fn owned_cursor<'de, D: Deserializer<'de>>(text: D) -> Result<Option<Cursor>, D::Error> {
    String::deserialize(text)?.parse().map(Some).map_err(D::Error::custom)
}

/// The start of a connection.
struct Greeting {
    instance: String,
    recovered: bool,
    cursor: Option<Cursor>,
}

/// Comes and goes until everything is healed, then stays, or comes once more, for the end; gives all that it saw.
pub async fn wander(world: Arc<World>, user: String, habits: Habits, rng: Rng) -> Vec<Entry> {
    let mut wanderer = Wanderer { world, user, rng, log: Vec::new(), held: None, before: None };
    let healed = wanderer.world.healed.clone();
    while !healed.is_cancelled() {
        if let Some(mut light) = wanderer.connect().await {
            let stay = match habits.steady {
                true => Duration::from_secs(3_600),
                false => Duration::from_millis(wanderer.rng.u64(0..=habits.stay)),
            };
            let stayed = healed.run_until_cancelled(timeout(stay, wanderer.live(&mut light))).await;
            if stayed.is_none() && (habits.steady || wanderer.rng.bool()) {
                // It has caught up by now, though its instance may have been unsubscribed.
                wanderer.live(&mut light).await;
                break;
            }
            match wanderer.rng.bool() {
                true => light.close().await,
                false => light.vanish(),
            }
            wanderer.write(Seen::End(None));
        }
        // Most are back at once, some after long.
        let most = if wanderer.rng.u8(0..4) == 0 { habits.away } else { 200 };
        let away = Duration::from_millis(wanderer.rng.u64(0..=most));
        healed.run_until_cancelled(sleep(away)).await;
    }
    while !wanderer.has_heard_the_end() {
        match wanderer.connect().await {
            Some(mut light) => wanderer.live(&mut light).await,
            None => sleep(Duration::from_millis(50)).await,
        }
    }
    wanderer.log
}

impl Wanderer {
    fn write(&mut self, seen: Seen) {
        self.log.push(Entry { at: self.world.now(), seen });
    }

    async fn connect(&mut self) -> Option<Light> {
        let (place, begun) = (self.world.anywhere(&mut self.rng)?, self.world.now());
        // Now and then from further back: what comes twice has its id.
        let asked = if self.rng.u8(0..8) == 0 { self.before.or(self.held) } else { self.held };
        let text = asked.map(|cursor| cursor.to_string());
        let way = self.rng.u8(0..8);
        // Of a socket.io client, the pid may be older than the offset, which is that of the last event.
        let older = self.before.filter(|_| asked == self.held && self.rng.bool());
        let pid = older.or(asked).filter(|_| way > 5);
        let connecting = async {
            let resume = match &text {
                // Of any transport, from the position that it had in another.
                text if way < 2 => return Light::stream(place.public, &self.user, text.as_deref()).await,
                text if way > 5 => {
                    let pid = pid.map(|pid| pid.to_string());
                    let auth = json!({"pid": pid, "offset": text});
                    return Light::socketio_with(place.public, &self.user, auth).await;
                }
                None => Resume::No,
                Some(text) if way == 2 => Resume::InHello(text),
                Some(text) => Resume::InUrl(text),
            };
            Light::resume(place.public, &self.user, resume).await
        };
        let (light, first) = timeout(GREETED, connecting).await.ok()?.ok()?;
        let text = match first {
            Received::Text(text) => text,
            Received::Close(code) => {
                self.write(Seen::End(Some(code)));
                return None;
            }
        };
        let Greeting { instance, recovered, cursor } = greeting(&text, pid, asked);
        self.write(Seen::Welcome { instance, begun, asked, recovered, cursor });
        {
            let mut tally = self.world.tally.lock();
            tally.recovered += usize::from(recovered);
            tally.told += usize::from(asked.is_some() && !recovered);
        }
        self.before = self.held;
        // A client that recovers may go on from either.
        if !recovered || self.rng.bool() {
            self.held = cursor.or(self.held);
        }
        Some(light)
    }

    fn has_heard_the_end(&self) -> bool {
        matches!(self.log.last(), Some(Entry { seen: Seen::Marker, .. }))
    }

    /// Receives until the connection or the run ends.
    async fn live(&mut self, light: &mut Light) {
        while !self.has_heard_the_end() {
            match light.heard().await {
                Ok(Received::Text(text)) => self.hear(&text),
                Ok(Received::Close(code)) => return self.write(Seen::End(Some(code))),
                Err(_) => return self.write(Seen::End(Some(1006))),
            }
        }
    }

    fn hear(&mut self, text: &str) {
        if let Some(event) = text.strip_prefix("42") {
            return self.hear_socketio(event);
        }
        let frame: Frame<'_> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
        if frame.kind != "event" {
            assert!(["reconnect", "gap", "retracted"].contains(&frame.kind), "{text}");
            return;
        }
        let data = frame.data.expect(text).get().to_owned();
        match (frame.id, frame.ts, frame.event) {
            (Some(id), Some(ts), Some(event)) => {
                self.held = Some(id);
                self.write(Seen::Event(Notification { id, ts, event, data }));
            }
            (None, None, Some(_)) if data == MARKER => self.write(Seen::Marker),
            _ => panic!("neither stored nor the marker: {text}"),
        }
    }

    fn hear_socketio(&mut self, event: &str) {
        let elements: Vec<&RawValue> = serde_json::from_str(event).unwrap_or_else(|error| panic!("{error}: {event}"));
        let string = |raw: &RawValue| serde_json::from_str::<String>(raw.get()).ok();
        match elements.as_slice() {
            [_, data, none] if data.get() == MARKER && none.get() == "null" => self.write(Seen::Marker),
            [event, data, id] => {
                let id: Cursor = string(id).and_then(|id| id.parse().ok()).expect("a cursor");
                let (event, data) = (string(event).expect("a name"), data.get().to_owned());
                self.held = Some(id);
                self.write(Seen::Event(Notification { id, ts: id.ms, event, data }));
            }
            _ => panic!("neither stored nor the marker: {event}"),
        }
    }
}

/// The `welcome`, or the answer to a CONNECT that was sent with this pid.
fn greeting(text: &str, pid: Option<Cursor>, asked: Option<Cursor>) -> Greeting {
    if let Some(answer) = text.strip_prefix("40") {
        let Connected { pid: answered } =
            serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {text}"));
        let recovered = pid.is_some() && pid == answered;
        let cursor = if recovered { asked } else { answered };
        return Greeting { instance: "of a socket.io client".to_owned(), recovered, cursor };
    }
    let frame: Frame<'_> = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let instance = frame.instance.unwrap().to_owned();
    Greeting { instance, recovered: frame.recovered.unwrap(), cursor: frame.cursor }
}
