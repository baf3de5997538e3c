//! Durable notifications: publishes and lists them.

use redis::Pipeline;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Gateway, RedisServer, eventually, within};

/// A stored notification, as HTTP lists it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Listed {
    pub id: String,
    pub event: String,
    pub ts: u64,
    /// Byte for byte.
    #[serde(deserialize_with = "text")]
    pub data: String,
}

fn text<'de, D: serde::Deserializer<'de>>(data: D) -> Result<String, D::Error> {
    Box::<RawValue>::deserialize(data).map(|data| data.get().to_owned())
}

impl Gateway {
    /// Stores and publishes one over HTTP; gives its id.
    pub async fn store(&self, user: &str, data: impl Into<Value>) -> String {
        self.store_as(user, json!({ "data": data.into() })).await
    }

    /// As [`Gateway::store`], with any fields.
    pub async fn store_as(&self, user: &str, mut notification: Value) -> String {
        notification["durable"] = true.into();
        let path = format!("/v1/users/{user}/notifications");
        let (status, body) = self.post(self.admin, &path, &notification.to_string()).await;
        assert_eq!(status, 202, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        answer["id"].as_str().unwrap_or_else(|| panic!("an id: {body}")).to_owned()
    }

    /// One page of a user's stored notifications, oldest first, and the start of the next page.
    pub async fn page(&self, user: &str, query: &str) -> (Vec<Listed>, Option<String>) {
        #[derive(Deserialize)]
        struct Page {
            notifications: Vec<Listed>,
            next: Option<String>,
        }
        let (status, body) = self.get(self.admin, &format!("/v1/users/{user}/notifications?{query}")).await;
        assert_eq!(status, 200, "{query}: {body}");
        let page: Page = serde_json::from_str(&body).unwrap();
        (page.notifications, page.next)
    }

    /// All that is stored of a user, oldest first, in pages of at most so many.
    pub async fn listed(&self, user: &str, limit: usize) -> Vec<Listed> {
        let (mut listed, mut query) = (Vec::new(), format!("limit={limit}"));
        loop {
            let (some, next) = self.page(user, &query).await;
            assert!(some.len() <= limit, "{} of {limit}", some.len());
            listed.extend(some);
            let Some(next) = next else { return listed };
            query = format!("limit={limit}&after={next}");
        }
    }
}

impl RedisServer {
    /// Stores a number for user 42 as the script would, but publishes nothing.
    pub async fn store_unheard(&self, data: u32) {
        let last: Vec<(String, Vec<String>)> =
            self.command(&["XREVRANGE", "tidings:history:{42}", "+", "-", "COUNT", "1"]).await;
        let (ms, number) = last.first().map_or(("1", "0"), |(id, _)| id.split_once('-').unwrap());
        let now: (u64, u64) = self.command(&["TIME"]).await;
        let ms = ms.parse::<u64>().unwrap().max(now.0 * 1_000 + now.1 / 1_000);
        let (id, data) = (format!("{ms}-{}", number.parse::<u64>().unwrap() + 1), data.to_string());
        let entry = ["XADD", "tidings:history:{42}", &id, "event", "\"notification\"", "data", &data];
        self.command::<String>(&entry).await;
        self.command::<u64>(&["HSET", "tidings:history", ":42", &id]).await;
        self.command::<u64>(&["HINCRBY", "tidings:history", "count", "1"]).await;
    }

    /// Stores and publishes through the outbox, in this order, and waits until all of it is.
    pub async fn store_all(&self, user: &str, payloads: impl IntoIterator<Item = String>) {
        let mut pipeline = Pipeline::new();
        for payload in payloads {
            let add = pipeline.cmd("XADD").arg("tidings:outbox").arg("*");
            add.arg("user").arg(user).arg("data").arg(payload).ignore();
        }
        let mut connection = self.connection().await;
        let _: () = within("an answer of redis", pipeline.query_async(&mut connection)).await.unwrap();
        eventually("the outbox is empty", async || self.command::<u64>(&["XLEN", "tidings:outbox"]).await == 0).await;
    }
}
