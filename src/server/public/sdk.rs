//! The files of the browser SDK, for pages of any origin: they hold no secret.

use std::future::ready;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::server::App;

const FILES: [(&str, &str); 5] = [
    ("/tidings.js", include_str!("../../../sdk/js/tidings.js")),
    ("/tidings-inbox.js", include_str!("../../../sdk/js/tidings-inbox.js")),
    ("/tidings-history.js", include_str!("../../../sdk/js/tidings-history.js")),
    ("/tidings-storage.js", include_str!("../../../sdk/js/tidings-storage.js")),
    ("/tidings-sse.js", include_str!("../../../sdk/js/tidings-sse.js")),
];

pub(super) fn router() -> axum::Router<Arc<App>> {
    FILES.into_iter().fold(axum::Router::new(), |router, (path, text)| {
        let tag = tag(text);
        router.route(path, get(move |headers: HeaderMap| ready(file(&headers, text, &tag))))
    })
}

/// The same for every instance of one build.
fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

fn file(request: &HeaderMap, text: &'static str, tag: &str) -> Response {
    let headers = [
        (header::ETAG, tag),
        // Asked for again at each use, so that the files of a page are of one version.
        (header::CACHE_CONTROL, "no-cache"),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "cross-origin"),
    ];
    if is_known(request, tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let kind = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, kind, text).into_response()
}

/// Whether the client has the file. A proxy that compresses makes the tag a weak one.
fn is_known(request: &HeaderMap, tag: &str) -> bool {
    let given = request.get_all(header::IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|tags| tags.split(',')).map(str::trim).any(|each| each.strip_prefix("W/").unwrap_or(each) == tag)
}
