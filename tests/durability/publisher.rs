//! Backends: each publishes numbers in its own way, one after the other, and repeats each until it is confirmed, with an
//! idempotency key.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tidings::internals::Cursor;
use tokio::time::sleep;

use super::escalated::ESCALATE_S;
use super::record::{Notification, Publication, Way};
use super::taking_back::{Changes, TakingBack};
use super::world::World;

/// What was confirmed to a publisher.
#[derive(Debug, Default)]
pub struct Confirmed {
    pub published: Vec<Publication>,
    pub changes: Changes,
}

/// Publishes until the world is silent, `pause` apart on average. If it takes back, some escalate, and of one way, which
/// tells where they are, some are retracted, replaced, and read.
pub async fn publish(
    world: Arc<World>,
    way: Way,
    users: Vec<String>,
    pause: Duration,
    takes_back: bool,
    mut rng: Rng,
) -> Confirmed {
    let to = users.join(",");
    let mut published = Vec::new();
    let mut taking_back = TakingBack::of(&users[0]);
    for number in 0.. {
        let wait = pause.mul_f64(2.0 * rng.f64());
        if world.silent.run_until_cancelled(sleep(wait)).await.is_none() {
            break;
        }
        let _open = world.publishing.read().await;
        // White space, to see that it stays.
        let data = format!(r#"{{ "to":"{to}","way":"{}","n":{number} }}"#, way.name());
        let key = format!("{}:{number}:{to}", way.name());
        let escalates = takes_back && rng.u8(0..3) == 0;
        let collapses = takes_back && way == Way::One && rng.u8(0..4) == 0;
        let notification = Numbered { number, key, data, escalates, collapses };
        let asked = world.now();
        let id = match way {
            Way::Outbox => notification.add(&world, &users[0]).await,
            Way::One | Way::Batch | Way::Fork => notification.post(&world, way, &users, &mut rng).await,
        };
        published.push(Publication { way, number, id, escalates });
        {
            let mut tally = world.tally.lock();
            tally.idle -= usize::from(number == 0);
            tally.published += users.len();
        }
        if let (true, Way::One, Some(id)) = (takes_back, way, id) {
            taking_back.published(&world, notification.stored(id), collapses, asked);
            taking_back.change(&world, &mut rng).await;
        }
    }
    Confirmed { published, changes: taking_back.changes }
}

struct Numbered {
    number: u64,
    key: String,
    data: String,
    escalates: bool,
    /// Replaces the earlier one of this publisher that does, too.
    collapses: bool,
}

impl Numbered {
    fn event(&self) -> Option<&'static str> {
        (self.number % 4 == 1).then_some("order \"paid\"")
    }

    fn stored(&self, id: Cursor) -> Notification {
        let event = self.event().unwrap_or("notification").to_owned();
        Notification { id, ts: id.ms, event, data: self.data.clone() }
    }

    fn ttl(&self) -> Option<u64> {
        (self.number % 5 == 1).then_some(86_400)
    }

    fn escalate(&self) -> Option<u64> {
        self.escalates.then_some(ESCALATE_S)
    }

    async fn add(&self, world: &World, user: &str) -> Option<Cursor> {
        let seconds = |of: Option<u64>| of.map(|seconds| seconds.to_string());
        let (event, ttl, escalate) = (self.event(), seconds(self.ttl()), seconds(self.escalate()));
        let mut words = vec!["XADD", "tidings:outbox", "*", "user", user, "data", &self.data, "key", &self.key];
        words.extend(event.iter().flat_map(|event| ["event", event]));
        words.extend(ttl.iter().flat_map(|ttl| ["ttl", ttl.as_str()]));
        words.extend(escalate.iter().flat_map(|escalate| ["escalate", escalate.as_str()]));
        let _: String = match world.cluster.get() {
            Some(cluster) => cluster.command(&words).await,
            None => {
                let mut add = redis::Cmd::new();
                for word in &words {
                    add.arg(*word);
                }
                world.redis(&add).await
            }
        };
        None
    }

    async fn post(&self, world: &World, way: Way, users: &[String], rng: &mut Rng) -> Option<Cursor> {
        let data: Box<serde_json::value::RawValue> = serde_json::from_str(&self.data).unwrap();
        let mut body = format!(r#"{{"data":{data},"durable":true"#);
        for (name, value) in [
            ("event", self.event().map(Value::from)),
            ("ttl_s", self.ttl().map(Value::from)),
            ("escalate_s", self.escalate().map(Value::from)),
            ("collapse", self.collapses.then(|| "the newest".into())),
        ] {
            if let Some(value) = value {
                body += &format!(",\"{name}\":{value}");
            }
        }
        let path = match way {
            Way::Batch => {
                body += &format!(",\"users\":{}", json!(users));
                "/v1/notifications".to_owned()
            }
            _ => format!("/v1/users/{}/notifications", users[0]),
        };
        body.push('}');
        loop {
            if let Some(place) = world.anywhere(rng) {
                let request = world.http.post(format!("http://{}{path}", place.admin)).body(body.clone());
                let request = request.header("content-type", "application/json").header("idempotency-key", &self.key);
                if let Some(answer) = answer(request).await {
                    let id = answer["id"].as_str().map(|id| id.parse().unwrap());
                    if id.is_some() || answer["accepted"] == users.len() {
                        return id;
                    }
                }
            }
            sleep(Duration::from_millis(rng.u64(20..200))).await;
        }
    }
}

/// The answer to an accepted request; `None` if it is unknown whether the request was accepted.
async fn answer(request: reqwest::RequestBuilder) -> Option<Value> {
    let answer = request.send().await.ok()?;
    let status = answer.status();
    let text = answer.text().await.ok()?;
    assert!(status == 202 || status == 503, "{status}: {text}");
    (status == 202).then(|| serde_json::from_str(&text).unwrap())
}
