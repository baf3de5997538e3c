//! Publishes one ephemeral and one durable notification, with only a Redis client:
//! `cargo run --example publisher -- redis://127.0.0.1:6379 42`.
//!
//! Run it beside `cargo run -- serve --dev --redis-url redis://127.0.0.1:6379`. The arguments are the URL and the user.

#![allow(clippy::print_stdout, reason = "prints what Redis replied")]

use std::error::Error;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "redis://127.0.0.1:6379".into());
    let user = args.next().unwrap_or_else(|| "42".into());
    let mut redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;

    // Ephemeral: delivered to the connections that are open now. The reply counts instances, not users.
    let data = json!({"text": "a message came"}).to_string();
    let channel = format!("user:{user}");
    let instances: u64 = redis::cmd("PUBLISH").arg(channel).arg(data).query_async(&mut redis).await?;
    println!("published to {instances} subscribers");

    // Durable: stored first, then delivered, and replayed to a client that resumes. The key is the id of the business
    // event: an entry that is sent again with the same key, after a timeout, is stored once.
    let key = format!("payment-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros());
    let data = json!({"text": "a payment went through", "payment": key}).to_string();
    let fields = [("user", &user), ("event", &"payment".into()), ("data", &data), ("key", &key)];
    let entry: String = redis::cmd("XADD").arg("tidings:outbox").arg("*").arg(&fields).query_async(&mut redis).await?;
    println!("added {entry} to the outbox");
    Ok(())
}
