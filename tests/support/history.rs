//! Stored notifications: publishing them, and what is stored.

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

    /// All that is stored of a user, oldest first, in pages of so many.
    pub async fn listed(&self, user: &str, page: usize) -> Vec<Listed> {
        #[derive(Deserialize)]
        struct Page {
            notifications: Vec<Listed>,
            next: Option<String>,
        }
        let (mut listed, mut after) = (Vec::new(), String::new());
        loop {
            let path = format!("/v1/users/{user}/notifications?limit={page}{after}");
            let (status, body) = self.get(self.admin, &path).await;
            assert_eq!(status, 200, "{body}");
            let page: Page = serde_json::from_str(&body).unwrap();
            listed.extend(page.notifications);
            match page.next {
                Some(next) => after = format!("&after={next}"),
                None => return listed,
            }
        }
    }
}

impl RedisServer {
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
