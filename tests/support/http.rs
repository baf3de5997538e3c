//! Plain HTTP, with any method and headers.

use std::net::SocketAddr;

use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{http, secrets, within};

/// The answer to a request.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The status and the `error.code` of an error, which is JSON and says why.
    pub fn error(&self) -> (u16, String) {
        let body = self.json();
        let text = |name: &str| body["error"][name].as_str().filter(|text| !text.is_empty());
        assert!(self.header("content-type").starts_with("application/json"), "{self:?}");
        text("message").unwrap_or_else(|| panic!("an error has a reason: {self:?}"));
        (self.status, text("code").unwrap_or_else(|| panic!("an error has a code: {self:?}")).to_owned())
    }
}

/// One request on its own connection. The answer to an accepted upgrade contains only its headers.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<reqwest::Body>,
) -> Answer {
    secrets::keep_headers(headers);
    let mut request = http().request(method.parse().unwrap(), format!("http://{address}{path}")).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = within(path, request.send()).await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = if status == 101 { String::new() } else { within(path, answer.text()).await.unwrap() };
    if status >= 400 {
        secrets::check(&format!("the {status} of {method} {path}"), &body);
    }
    Answer { status, headers, body }
}
