//! Users' channels begin with `redis.user_channel`.

use futures::StreamExt;

use crate::support::{Client, Gateway, Options, RedisServer, within};

async fn start(redis: &RedisServer, channel: &str) -> Gateway {
    Options::redis(redis).set("redis.user_channel", channel).start().await
}

#[tokio::test]
async fn every_kind_of_notification_is_published_on_the_configured_channel_and_on_no_other() {
    let redis = RedisServer::start().await;
    let gateway = start(&redis, "notify/").await;
    let mut client = Client::connect(&gateway, "42").await;
    let mut pubsub = redis::Client::open(redis.url()).unwrap().get_async_pubsub().await.unwrap();
    pubsub.psubscribe("user:*").await.unwrap();
    pubsub.psubscribe("notify/*").await.unwrap();
    let mut all = pubsub.into_on_message();

    let _: u64 = redis.command(&["PUBLISH", "user:42", "0"]).await;
    let _: u64 = redis.command(&["PUBLISH", "notify/42", "1"]).await;
    assert_eq!(client.event().await, 1);
    let path = "/v1/users/42/notifications";
    for (body, headers) in [
        (r#"{"data":2}"#, &[][..]),
        (r#"{"data":3,"durable":true}"#, &[]),
        (r#"{"data":4}"#, &[("idempotency-key", "k")]),
    ] {
        let answer = gateway.ask_admin("POST", path, headers, body).await;
        assert_eq!(answer.status, 202, "{}", answer.body);
    }
    for number in 2..=4 {
        assert_eq!(client.event().await, number);
    }
    let _: String = redis.command(&["XADD", "tidings:outbox", "*", "user", "42", "data", "5"]).await;
    assert_eq!(client.event().await, 5);
    let mut channels = Vec::new();
    while channels.len() < 6 {
        channels.push(within("a message", all.next()).await.unwrap().get_channel_name().to_owned());
    }
    assert_eq!(channels, ["user:42", "notify/42", "notify/42", "notify/42", "notify/42", "notify/42"]);
}
