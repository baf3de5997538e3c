//! `docs/openapi.json` describes the admin listener. `support/openapi.rs` checks every response of the suite against it.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::architecture::sources;
use crate::support::openapi::{DOCUMENT, paths};
use crate::support::{Gateway, Options};

/// All that a path may do, as its item names it and as a request does.
const METHODS: [&str; 7] = ["get", "put", "post", "delete", "patch", "options", "trace"];

#[tokio::test]
async fn every_path_has_the_methods_that_the_document_says_and_no_other() {
    let gateway = Gateway::dev().await;
    for (path, item) in paths() {
        let described: BTreeSet<&str> = METHODS.into_iter().filter(|method| item.contains_key(*method)).collect();
        let mut allowed = described.clone();
        let target = path.replace("{id}", "42");
        for method in METHODS {
            // A response that refuses the body, or that confirms the request, means that the route exists.
            let answer = gateway.ask_admin(&method.to_uppercase(), &target, &[], "").await;
            assert_eq!(answer.status != 405, described.contains(method), "{method} {path}: {answer:?}");
            if answer.status == 405 {
                let names = answer.header("allow").split(',').map(|name| name.trim().to_ascii_lowercase());
                allowed = names.filter_map(|name| METHODS.into_iter().find(|method| *method == name)).collect();
            }
        }
        assert_eq!(allowed, described, "{path}");
    }
}

#[tokio::test]
async fn the_document_is_served_to_whoever_has_a_key() {
    let gateway = Options::dev().set("admin.api_key", "the-admin-key").start().await;
    assert_eq!(gateway.ask_admin("GET", "/v1/openapi.json", &[], "").await.error().0, 401);
    let headers = [("Authorization", "Bearer the-admin-key")];
    let served = gateway.ask_admin("GET", "/v1/openapi.json", &headers, "").await;
    assert_eq!(served.json(), *DOCUMENT);
    assert_eq!(DOCUMENT["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn what_asks_for_a_key_is_told_from_what_does_not() {
    let gateway = Options::dev().set("admin.api_key", "the-admin-key").start().await;
    for (path, item) in paths() {
        for method in METHODS {
            let Some(operation) = item.get(method) else { continue };
            let open = operation["security"].as_array().is_some_and(Vec::is_empty);
            let answer = gateway.ask_admin(&method.to_uppercase(), &path.replace("{id}", "42"), &[], "").await;
            assert_eq!(answer.status != 401, open, "{method} {path}: {answer:?}");
        }
    }
}

/// Every reference in a value.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

/// Some client generators skip, with a warning only, a call whose schema refers to a part of another component.
#[test]
fn every_reference_of_the_document_is_to_a_whole_component() {
    let mut found = Vec::new();
    references(&DOCUMENT, &mut found);
    assert!(found.len() > 50, "{found:?}");
    for reference in found {
        let path: Vec<&str> = reference.strip_prefix("#/components/").expect(reference).split('/').collect();
        assert!(path.len() == 2, "{reference}");
        assert!(DOCUMENT.pointer(&reference[1..]).is_some(), "{reference} does not exist");
    }
}

/// Every code in a schema of the document.
fn codes(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            let code = object.get("code");
            let listed = code.and_then(|code| code["enum"].as_array()).into_iter().flatten();
            let named = listed.chain(code.and_then(|code| code.get("const")));
            found.extend(named.filter_map(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| codes(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| codes(value, found)),
        _ => {}
    }
}

#[test]
fn every_code_of_the_document_is_one_of_the_server_s_and_in_the_operators_page() {
    let mut found = BTreeSet::new();
    codes(&DOCUMENT, &mut found);
    assert!(found.len() > 8, "{found:?}");
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    let source: String = sources(&server).iter().map(|file| std::fs::read_to_string(file).unwrap()).collect();
    for code in found {
        assert!(source.contains(&format!("\"{code}\"")), "no response has {code}");
        assert!(include_str!("../docs/operations.md").contains(&format!("`{code}`")), "{code} is not explained");
    }
}
