//! The admin page, embedded in the binary. Its files need no key: all data comes from the paths that require one.

use std::future::ready;
use std::sync::Arc;

use axum::extract::Path;
use axum::response::Redirect;
use axum::routing::get;

use crate::server::App;
use crate::server::page::{CSS, HTML, Page, SCRIPT, SVG};

/// `form-action`: forms are handled by the scripts, and an injected one can send nothing.
const PAGE: Page = Page {
    policy: "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    files: &[
        ("index.html", HTML, include_str!("../../../admin-ui/index.html")),
        ("style.css", CSS, include_str!("../../../admin-ui/style.css")),
        ("logo.svg", SVG, include_str!("../../../client-demo/logo.svg")),
        ("api.js", SCRIPT, include_str!("../../../admin-ui/api.js")),
        ("app.js", SCRIPT, include_str!("../../../admin-ui/app.js")),
        ("confirm.js", SCRIPT, include_str!("../../../admin-ui/confirm.js")),
        ("dom.js", SCRIPT, include_str!("../../../client-demo/dom.js")),
        ("instances.js", SCRIPT, include_str!("../../../admin-ui/instances.js")),
        ("metrics.js", SCRIPT, include_str!("../../../admin-ui/metrics.js")),
        ("numbers.js", SCRIPT, include_str!("../../../admin-ui/numbers.js")),
        ("online.js", SCRIPT, include_str!("../../../admin-ui/online.js")),
        ("publish.js", SCRIPT, include_str!("../../../admin-ui/publish.js")),
        ("refusals.js", SCRIPT, include_str!("../../../admin-ui/refusals.js")),
        ("text.js", SCRIPT, include_str!("../../../admin-ui/text.js")),
        ("user.js", SCRIPT, include_str!("../../../admin-ui/user.js")),
    ],
};

pub(super) fn router() -> axum::Router<Arc<App>> {
    axum::Router::new()
        // Relative, for a proxy that adds a prefix.
        .route("/ui", get(|| ready(Redirect::permanent("ui/"))))
        .route("/ui/", get(|| ready(PAGE.file("index.html"))))
        .route("/ui/{file}", get(|Path(name): Path<String>| ready(PAGE.file(&name))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::page::assert_embeds;

    #[test]
    fn every_file_of_the_admin_page_is_embedded() {
        assert_embeds(&PAGE, "admin-ui");
    }
}
