//! Pages that are embedded in the binary.

use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};

use super::reply::not_found;

pub(super) const HTML: &str = "text/html; charset=utf-8";
pub(super) const CSS: &str = "text/css; charset=utf-8";
pub(super) const SCRIPT: &str = "text/javascript; charset=utf-8";
pub(super) const SVG: &str = "image/svg+xml";

pub(super) struct Page {
    /// Name, content type, content.
    pub(super) files: &'static [(&'static str, &'static str, &'static str)],
    /// The Content-Security-Policy.
    pub(super) policy: &'static str,
}

impl Page {
    pub(super) fn file(&self, wanted: &str) -> Response {
        let Some((_, kind, text)) = self.files.iter().find(|(name, ..)| *name == wanted) else {
            return not_found().into_response();
        };
        let headers: [(HeaderName, &str); 5] = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, self.policy),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            // A new binary may serve a new page.
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, *text).into_response()
    }
}

/// Fails for a file of a folder that a browser would ask for and the page does not have.
#[cfg(test)]
pub(super) fn assert_embeds(page: &Page, folder: &str) {
    for entry in std::fs::read_dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let served = [".html", ".css", ".js", ".svg"].iter().any(|ending| name.ends_with(ending));
        assert!(!served || page.files.iter().any(|(file, ..)| *file == name), "{folder}/{name}");
    }
}
