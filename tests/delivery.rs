//! What is published for a user reaches that user's connections, all of them and nobody else's.

use crate::support::{Client, Gateway, RedisServer};

#[tokio::test]
async fn every_device_of_the_user_and_nobody_else_gets_it() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut phone = Client::connect(&gateway, "42").await;
    let mut laptop = Client::connect(&gateway, "42").await;
    let mut other = Client::connect(&gateway, "43").await;

    assert_eq!(redis.publish("42", r#"{"for":"42"}"#).await, 1);
    redis.publish("43", r#"{"for":"43"}"#).await;
    assert_eq!(phone.event().await["for"], "42");
    assert_eq!(laptop.event().await["for"], "42");
    assert_eq!(other.event().await["for"], "43");
}
