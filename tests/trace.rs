//! A `traceparent` that is given with a publication: in the log lines of its delivery, and in the event.

use crate::support::{Client, Gateway, Options, RedisServer, eventually};

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

const NOTIFY: &str = "/v1/users/42/notifications";

/// The lines with this message and the trace.
fn traced(gateway: &Gateway, message: &str) -> usize {
    gateway.log().lines().filter(|line| line.contains(message) && line.contains(TRACE)).count()
}

#[tokio::test]
async fn a_traceparent_travels_to_the_event_and_to_the_log_lines_of_its_delivery() {
    let redis = RedisServer::start().await;
    for options in [Options::redis(&redis), Options::dev()] {
        let gateway = options.set("log.level", "debug").start().await;
        let (mut client, welcome) = Client::connect_with_welcome(&gateway, "42").await;
        let publish = async |trace: &str, body: &str| {
            let answer = gateway.ask_admin("POST", NOTIFY, &[("traceparent", trace)], body).await;
            assert_eq!(answer.status, 202, "{answer:?}");
        };
        publish(TRACE, r#"{"data":1,"event":"paid","durable":true,"collapse":"k"}"#).await;
        let event = client.frame().await;
        assert_eq!(
            (&event["traceparent"], &event["event"], &event["data"]),
            (&TRACE.into(), &"paid".into(), &1.into())
        );
        publish(TRACE, r#"{"data":2}"#).await;
        let expected = format!(r#"{{"type":"event","event":"notification","traceparent":"{TRACE}","data":2}}"#);
        assert_eq!(client.text().await, expected, "an ephemeral one");
        eventually("both are in the log", async || traced(&gateway, "notification routed") == 2).await;
        for bad in ["", "00-0-0-0", "a, b", &TRACE.to_uppercase()] {
            publish(bad, r#"{"data":3,"durable":true}"#).await;
            assert_eq!(client.frame().await.get("traceparent"), None, "{bad}");
        }
        // Read from the history.
        let cursor = welcome["cursor"].as_str().unwrap();
        let (mut resumed, _) = Client::resume(&gateway, "42", cursor).await;
        let event = resumed.frame().await;
        assert_eq!(
            (&event["traceparent"], &event["replayed"], &event["collapse"]),
            (&TRACE.into(), &true.into(), &"k".into())
        );
        assert_eq!(traced(&gateway, "notification read for a connection"), 1);
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("notification read for a connection")).unwrap();
        assert!(line.contains("user=\"42\" cursor="), "{line}");
        let page = gateway.ask_admin("GET", NOTIFY, &[], "").await.json();
        assert_eq!(page["notifications"][0]["event"], "paid");
    }
}

#[tokio::test]
async fn an_outbox_entry_has_a_traceparent_and_a_bad_one_does_not_reject_it() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    let mut client = Client::connect(&gateway, "42").await;
    for (trace, expected) in [(TRACE, Some(TRACE)), ("no trace", None)] {
        let entry = ["XADD", "tidings:outbox", "*", "user", "42", "data", "1", "traceparent", trace, "escalate", "1"];
        redis.command::<String>(&entry).await;
        let event = client.frame().await;
        assert_eq!(event.get("traceparent").and_then(|trace| trace.as_str()), expected);
    }
    // What is handed over has the event's name alone.
    let unread = async || redis.command::<Vec<(String, Vec<String>)>>(&["XRANGE", "tidings:unread", "-", "+"]).await;
    eventually("both escalate", async || unread().await.len() == 2).await;
    for (_, fields) in unread().await {
        let event = fields.iter().position(|name| name == "event").map(|index| fields[index + 1].as_str());
        assert_eq!(event, Some("notification"), "{fields:?}");
    }
}
