//! Server-Sent Events, as a browser's `EventSource` reads them.

use serde_json::Value;

use super::{Gateway, http, within};

/// An open stream.
pub struct EventStream {
    response: reqwest::Response,
    received: Vec<u8>,
}

impl EventStream {
    /// Opens a stream of the public listener.
    pub async fn open(gateway: &Gateway, path: &str) -> Self {
        let response = within(path, http().get(format!("http://{}{path}", gateway.public)).send()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, received: Vec::new() }
    }

    /// The next event: its name and its data, past any comment.
    pub async fn next(&mut self) -> (String, Value) {
        loop {
            while let Some(end) = self.received.windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8(self.received.drain(..end + 2).collect()).unwrap();
                let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
                if let (Some(event), Some(data)) = (field("event:"), field("data:")) {
                    return (event.to_owned(), serde_json::from_str(data).unwrap());
                }
            }
            let chunk = within("an event of the stream", self.response.chunk()).await.unwrap();
            self.received.extend_from_slice(&chunk.expect("the stream goes on"));
        }
    }
}
