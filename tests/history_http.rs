//! A user's stored notifications over HTTP.

use futures::future::select;
use serde_json::{Value, json};

use crate::support::{Answer, Gateway, Options, RedisServer, eventually};

const PATH: &str = "/v1/users/42/notifications";

/// Publishes some notifications, all at once; each has its own data.
async fn publish(gateway: &Gateway, user: &str, all: impl IntoIterator<Item = String>) {
    for data in all {
        let body = format!(r#"{{"users":[{}],"data":{data},"durable":true}}"#, json!(user));
        let answer = gateway.ask_admin("POST", "/v1/notifications", &[], &body).await;
        assert_eq!((answer.status, answer.json()["accepted"].as_u64()), (202, Some(1)), "{answer:?}");
    }
}

/// The same notification so many times.
async fn publish_copies(gateway: &Gateway, user: &str, copies: usize) {
    let body = json!({"users": vec![user; copies], "data": "copy", "durable": true});
    assert_eq!(gateway.ask_admin("POST", "/v1/notifications", &[], &body.to_string()).await.json()["accepted"], copies);
}

async fn ask(gateway: &Gateway, query: &str) -> Answer {
    gateway.ask_admin("GET", &format!("{PATH}?{query}"), &[], "").await
}

/// One of each backplane, with these settings.
async fn each(redis: &RedisServer, settings: &[(&str, &str)]) -> [Gateway; 2] {
    let start =
        |options: Options| settings.iter().fold(options, |options, (key, value)| options.set(key, value)).start();
    tokio::join!(start(Options::dev()), start(Options::redis(redis))).into()
}

#[tokio::test]
async fn what_is_stored_is_listed_oldest_first_byte_for_byte() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        assert_eq!(ask(&gateway, "").await.json(), json!({"notifications": [], "next": null}));
        let all =
            [r#"{ "n" : 12345678901234567890123,	"é":"\u00e9\/" }"#, r#"{"b":1,"a":2,"b":3}"#, "[ ]", "null", "1e400"];
        publish(&gateway, "42", all.map(str::to_owned)).await;
        publish(&gateway, "43", ["\"another user's\"".to_owned()]).await;
        let answer = ask(&gateway, "").await;
        let mut rest = answer.body.strip_prefix(r#"{"notifications":["#).unwrap();
        for data in all {
            let (before, after) = rest.split_once(&format!(r#","event":"notification","data":{data},"ts":"#)).unwrap();
            let id = before.trim_start_matches(',').strip_prefix(r#"{"id":""#).unwrap().trim_end_matches('"');
            let ts = after.split('}').next().unwrap();
            assert_eq!(id.split('-').nth(1), Some(ts), "when it was stored");
            rest = &after[ts.len() + 1..];
        }
        assert_eq!(rest, r#"],"next":null}"#);
    }
}

#[tokio::test]
async fn pages_of_any_length_are_all_that_is_stored() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        publish(&gateway, "42", (0..25).map(|number| number.to_string())).await;
        let expected: Vec<_> = (0..25).map(|number| number.to_string()).collect();
        let (mut all, next) = gateway.page("42", "limit=1000").await;
        assert_eq!(next, None);
        for limit in [1, 2, 24, 25, 26, 100] {
            let paged = gateway.listed("42", limit).await;
            assert_eq!(paged.iter().map(|one| one.data.clone()).collect::<Vec<_>>(), expected, "limit={limit}");
            assert_eq!(paged, all);
        }
        let (from_the_middle, _) = gateway.page("42", &format!("after={}", all[9].id)).await;
        assert_eq!(from_the_middle, all.split_off(10));
        let newest = &from_the_middle.last().unwrap().id;
        assert_eq!(gateway.page("42", &format!("after={newest}")).await, (Vec::new(), None));
        publish(&gateway, "42", ["\"later\"".to_owned()]).await;
        let (later, _) = gateway.page("42", &format!("after={newest}")).await;
        assert_eq!((later.len(), later[0].data.as_str()), (1, "\"later\""), "the last id is a cursor to continue from");
    }
}

#[tokio::test]
async fn paging_reaches_its_end_and_loses_nothing_while_publishing_goes_on() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[("history.max_len", "100000")]).await {
        publish(&gateway, "42", (0..50).map(|number| number.to_string())).await;
        let publishing = publish(&gateway, "42", (50..100_000).map(|number| number.to_string()));
        let paging = async {
            for limit in [7, 13, 100] {
                let all = gateway.listed("42", limit).await;
                assert!(all.len() >= 50);
                for (number, notification) in all.iter().enumerate() {
                    assert_eq!(notification.data, number.to_string(), "limit={limit}");
                }
            }
        };
        select(std::pin::pin!(paging), std::pin::pin!(publishing)).await;
    }
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_too() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        let data: Vec<String> = (0..10).map(|number| json!(number.to_string().repeat(900_000)).to_string()).collect();
        publish(&gateway, "42", data.clone()).await;
        let (first, next) = gateway.page("42", "limit=1000").await;
        assert!((1..10).contains(&first.len()) && next.is_some(), "{} of 10", first.len());
        let all = gateway.listed("42", 1_000).await;
        assert_eq!(all.into_iter().map(|one| one.data).collect::<Vec<_>>(), data);
    }
}

#[tokio::test]
async fn a_place_that_is_gone_is_410_and_says_to_start_over() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[("history.max_len", "10")]).await {
        publish(&gateway, "42", ["1", "2"].map(str::to_owned)).await;
        publish(&gateway, "43", ["1".to_owned()]).await;
        let (all, _) = gateway.page("42", "").await;
        let [first, second] = [&all[0].id, &all[1].id];
        let gone = async |after: &str| {
            let answer = ask(&gateway, &format!("after={after}")).await;
            assert_eq!(answer.error(), (410, "cursor_gone".to_owned()), "{after}");
            assert!(answer.json()["error"]["message"].as_str().unwrap().contains("without ?after="), "{answer:?}");
        };
        assert_eq!(gateway.page("42", &format!("after={first}")).await.0.len(), 1);
        gone(&gateway.listed("43", 100).await[0].id).await;
        let (epoch, place) = second.split_once('-').unwrap();
        let ahead = place.replace("-2", "-3");
        gone(&format!("{epoch}-{ahead}")).await;
        // Trimmed: far more than are kept.
        publish_copies(&gateway, "42", 400).await;
        gone(first).await;
        let kept = gateway.listed("42", 100).await;
        assert!((10..=210).contains(&kept.len()), "{}", kept.len());
        let newest = &kept.last().unwrap().id;
        assert_eq!(gateway.page("42", &format!("after={newest}")).await.0.len(), 0);
    }
}

#[tokio::test]
async fn after_redis_lost_everything_an_earlier_place_is_gone() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    publish(&gateway, "42", ["1".to_owned()]).await;
    let (all, _) = gateway.page("42", "").await;
    let () = redis.command(&["FLUSHALL"]).await;
    assert_eq!(ask(&gateway, &format!("after={}", all[0].id)).await.error(), (410, "cursor_gone".to_owned()));
    assert_eq!(gateway.page("42", "").await, (Vec::new(), None));
}

#[tokio::test]
async fn what_is_older_than_history_ttl_is_gone() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[("history.ttl", "3s")]).await {
        publish(&gateway, "42", ["1", "2"].map(str::to_owned)).await;
        let (all, _) = gateway.page("42", "").await;
        let first = &all[0].id;
        eventually("it has ended", async || gateway.page("42", "").await.0.is_empty()).await;
        assert_eq!(ask(&gateway, &format!("after={first}")).await.error(), (410, "cursor_gone".to_owned()));
    }
}

#[tokio::test]
async fn what_is_no_cursor_or_no_limit_is_400() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for after in ["", "x", "0", "acked", "0000000000000abc-1", "0000000000000ABC-1-1", "0000000000000abc-1-1-1", "%FF"]
    {
        let answer = ask(&gateway, &format!("after={after}")).await;
        assert_eq!(answer.error(), (400, "bad_cursor".to_owned()), "{after}");
    }
    for query in ["limit=0", "limit=1001", "limit=-1", "limit=x", "limit=", "limit=1&limit=2"] {
        assert_eq!(ask(&gateway, query).await.error(), (400, "bad_request".to_owned()), "{query}");
    }
    for path in ["/v1/users//notifications", "/v1/users/a%0Ab/notifications", "/v1/users/%FF/notifications"] {
        assert_eq!(gateway.ask_admin("GET", path, &[], "").await.error(), (400, "bad_user".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn while_redis_is_away_nothing_is_listed_and_no_position_is_known() {
    let mut redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    redis.kill().await;
    let cursor = "0000000000000abc-1795000000123-1";
    for answer in [
        ask(&gateway, "").await,
        gateway.ask_admin("GET", &position("phone"), &[], "").await,
        put_position(&gateway, &position("phone"), cursor).await,
    ] {
        assert_eq!(answer.error(), (503, "backplane_down".to_owned()));
    }
}

fn position(device: &str) -> String {
    format!("/v1/users/42/read-position?device={device}")
}

async fn get_position(gateway: &Gateway, path: &str) -> Value {
    let answer = gateway.ask_admin("GET", path, &[], "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn put_position(gateway: &Gateway, path: &str, id: &str) -> Answer {
    gateway.ask_admin("PUT", path, &[], &json!({"id": id}).to_string()).await
}

#[tokio::test]
async fn each_device_has_a_read_position_and_an_unread_count() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        let plain = "/v1/users/42/read-position";
        assert_eq!(get_position(&gateway, plain).await, json!({"device": "default", "id": null, "unread": 0}));
        publish(&gateway, "42", (0..5).map(|number| number.to_string())).await;
        let (all, _) = gateway.page("42", "").await;
        // Forward, back, and to where it is.
        for (index, unread) in [(1, 3), (4, 0), (2, 2), (2, 2)] {
            let id = &all[index].id;
            let answer = put_position(&gateway, &position("phone"), id).await;
            let expected = json!({"device": "phone", "id": id, "unread": unread});
            assert_eq!((answer.status, answer.json()), (200, expected.clone()));
            assert_eq!(get_position(&gateway, &position("phone")).await, expected);
        }
        let unread = json!({"device": "default", "id": null, "unread": 5});
        assert_eq!(get_position(&gateway, plain).await, unread);
        assert_eq!(get_position(&gateway, &position("default")).await, unread);
        let named = get_position(&gateway, &position("Zo%C3%AB%20%E2%98%82")).await;
        assert_eq!(named, json!({"device": "Zoë ☂", "id": null, "unread": 5}));
        publish(&gateway, "42", ["\"new\"".to_owned()]).await;
        assert_eq!(get_position(&gateway, &position("phone")).await["unread"], 3);
    }
}

#[tokio::test]
async fn a_cursor_of_another_user_or_of_the_future_is_no_read_position() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        publish(&gateway, "42", ["1".to_owned()]).await;
        publish(&gateway, "43", ["1".to_owned()]).await;
        let (own, _) = gateway.page("42", "").await;
        let other = &gateway.listed("43", 100).await[0].id;
        let (start, _) = own[0].id.rsplit_once('-').unwrap();
        for foreign in [other, &format!("{start}-2"), "0000000000000abc-1795000000123-1"] {
            let answer = put_position(&gateway, &position("phone"), foreign).await;
            assert_eq!(answer.error(), (409, "foreign_cursor".to_owned()), "{foreign}");
        }
        assert_eq!(get_position(&gateway, &position("phone")).await["id"], Value::Null);
    }
}

#[tokio::test]
async fn a_user_has_read_positions_of_sixteen_devices_and_no_more() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        publish(&gateway, "42", ["1".to_owned()]).await;
        let (all, _) = gateway.page("42", "").await;
        for device in 0..16 {
            assert_eq!(put_position(&gateway, &position(&device.to_string()), &all[0].id).await.status, 200);
        }
        let answer = put_position(&gateway, &position("another"), &all[0].id).await;
        assert_eq!(answer.error(), (409, "too_many_devices".to_owned()));
        assert_eq!(put_position(&gateway, &position("7"), &all[0].id).await.status, 200, "an existing position moves");
    }
}

#[tokio::test]
async fn what_is_no_device_or_no_read_position_is_400() {
    let redis = RedisServer::start().await;
    for gateway in each(&redis, &[]).await {
        let long = "x".repeat(65);
        for device in ["", "a%0Ab", "%C2%85", &long, "a&device=b"] {
            let asked = gateway.ask_admin("GET", &position(device), &[], "").await;
            for answer in [asked, put_position(&gateway, &position(device), "x").await] {
                assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{device}");
            }
        }
        for body in ["", "{}", "[]", r#"{"id":null}"#, r#"{"id":1}"#, r#"{"id":"x","more":1}"#] {
            let answer = gateway.ask_admin("PUT", &position("phone"), &[], body).await;
            assert_eq!(answer.error(), (400, "bad_request".to_owned()), "{body}");
        }
        for id in ["", "x", "acked"] {
            let answer = put_position(&gateway, &position("phone"), id).await;
            assert_eq!(answer.error(), (400, "bad_cursor".to_owned()), "{id}");
        }
    }
}

#[tokio::test]
async fn a_full_redis_keeps_the_read_positions_that_it_has() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    publish(&gateway, "42", ["1", "2"].map(str::to_owned)).await;
    let (all, _) = gateway.page("42", "").await;
    put_position(&gateway, &position("phone"), &all[0].id).await;
    redis.config_set("maxmemory", "1").await;
    let answer = put_position(&gateway, &position("phone"), &all[1].id).await;
    assert_eq!(answer.error(), (503, "backplane_full".to_owned()));
    let kept = get_position(&gateway, &position("phone")).await;
    assert_eq!(kept, json!({"device": "phone", "id": all[0].id, "unread": 1}));
}
