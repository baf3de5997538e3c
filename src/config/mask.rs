//! Values that may have a secret in them, as errors show them.

use std::fmt::Debug;
use std::path::Path;

/// Replaces a secret wherever a configuration is shown.
pub(crate) const MASK: &str = "***";

/// The text as given, or [`MASK`] if it may have a secret in it.
pub(crate) fn shown(text: &str) -> &str {
    if may_have_secret(text) { MASK } else { text }
}

/// The path of a file; a file's contents, or a URL, may have been given instead.
pub(crate) fn shown_path(path: &Path) -> impl Debug + use<'_> {
    if may_have_secret(&path.to_string_lossy()) { Path::new(MASK) } else { path }
}

/// Whether the text looks like a URL with a user, options such as `password=…`, a token, or the contents of a file.
pub(crate) fn may_have_secret(text: &str) -> bool {
    let mut words = text.split([',', '"', '\'', ' ']);
    // A token begins with `{"` in base64.
    let is_token = text.starts_with("eyJ");
    text.contains(['\n', '\r', '@', '=']) || is_token || text.contains("-----BEGIN") || words.any(has_user)
}

/// Whether there is a `:` between `://` and the path, unless a port follows it, or the `*` of a pattern of origins.
fn has_user(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    let (_, port) = authority.rsplit_once(':').unwrap_or_default();
    !authority.ends_with(']') && port != "*" && !port.bytes().all(|byte| byte.is_ascii_digit())
}
