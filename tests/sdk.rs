//! The files of the browser SDK, as every instance serves them.

use crate::support::{Gateway, RedisServer};

const FILES: [&str; 5] =
    ["/tidings.js", "/tidings-inbox.js", "/tidings-history.js", "/tidings-storage.js", "/tidings-sse.js"];

#[tokio::test]
async fn every_instance_serves_the_sdk_to_pages_of_any_origin() {
    let redis = RedisServer::start().await;
    let gateway = Gateway::redis(&redis).await;
    for path in FILES {
        let answer = gateway.ask_public("GET", path, &[("Origin", "https://app.example")], "").await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, "*"), "{path}");
        assert_eq!(answer.header("content-type"), "text/javascript; charset=utf-8", "{path}");
        assert_eq!(answer.header("cache-control"), "no-cache", "{path}");
    }
    assert_eq!(gateway.ask_public("GET", "/tidings.d.ts", &[], "").await.status, 404);
}

#[tokio::test]
async fn a_page_that_has_a_file_of_the_sdk_does_not_get_it_again() {
    let gateway = Gateway::dev().await;
    for path in FILES {
        let first = gateway.ask_public("GET", path, &[], "").await;
        let tag = first.header("etag").to_owned();
        let weak = format!("\"other\", W/{tag}");
        for known in [tag.as_str(), weak.as_str()] {
            let again = gateway.ask_public("GET", path, &[("If-None-Match", known)], "").await;
            assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, tag.as_str()), "{path}");
            // Without it, a page of another origin could not use what its browser has.
            assert_eq!(again.header("access-control-allow-origin"), "*", "{path}");
        }
        let other = gateway.ask_public("GET", path, &[("If-None-Match", "\"0000000000000000\"")], "").await;
        assert_eq!(other.status, 200, "{path}");
    }
}
