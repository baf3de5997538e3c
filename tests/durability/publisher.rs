//! Backends: each publishes numbers in its own way, one after the other, and repeats each until it is confirmed, with an
//! idempotency key.

use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::record::{Publication, Way};
use super::world::World;

/// Publishes until the world is silent, `pause` apart on average; gives what was confirmed.
pub async fn publish(
    world: Arc<World>,
    way: Way,
    users: Vec<String>,
    pause: Duration,
    mut rng: Rng,
) -> Vec<Publication> {
    let to = users.join(",");
    let mut published = Vec::new();
    for number in 0.. {
        let wait = pause.mul_f64(2.0 * rng.f64());
        if world.silent.run_until_cancelled(sleep(wait)).await.is_none() {
            break;
        }
        let _open = world.publishing.read().await;
        // White space, to see that it stays.
        let data = format!(r#"{{ "to":"{to}","way":"{}","n":{number} }}"#, way.name());
        let notification = Numbered { number, key: format!("{}:{number}:{to}", way.name()), data };
        let id = match way {
            Way::Outbox => notification.add(&world, &users[0]).await,
            Way::One | Way::Batch => notification.post(&world, way, &users, &mut rng).await,
        };
        published.push(Publication { way, number, id });
        let mut tally = world.tally.lock();
        tally.idle -= usize::from(number == 0);
        tally.published += users.len();
    }
    published
}

struct Numbered {
    number: u64,
    key: String,
    data: String,
}

impl Numbered {
    fn event(&self) -> Option<&'static str> {
        (self.number % 4 == 1).then_some("order \"paid\"")
    }

    fn ttl(&self) -> Option<u64> {
        (self.number % 5 == 1).then_some(86_400)
    }

    async fn add(&self, world: &World, user: &str) -> Option<tidings::internals::Cursor> {
        let mut add = redis::cmd("XADD");
        add.arg("tidings:outbox").arg("*").arg("user").arg(user).arg("data").arg(&self.data).arg("key").arg(&self.key);
        if let Some(event) = self.event() {
            add.arg("event").arg(event);
        }
        if let Some(ttl) = self.ttl() {
            add.arg("ttl").arg(ttl);
        }
        let _: String = world.redis(&add).await;
        None
    }

    async fn post(
        &self,
        world: &World,
        way: Way,
        users: &[String],
        rng: &mut Rng,
    ) -> Option<tidings::internals::Cursor> {
        let data: Box<serde_json::value::RawValue> = serde_json::from_str(&self.data).unwrap();
        let mut body = format!(r#"{{"data":{data},"durable":true"#);
        for (name, value) in [("event", self.event().map(Value::from)), ("ttl_s", self.ttl().map(Value::from))] {
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
