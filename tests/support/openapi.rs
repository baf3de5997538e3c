//! `docs/openapi.json`, against which every response of the admin listener is checked.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Answer;

/// The document.
pub static DOCUMENT: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../docs/openapi.json")).unwrap());

/// The paths of the document, with what each method of theirs does.
pub fn paths() -> impl Iterator<Item = (&'static str, &'static Map<String, Value>)> {
    DOCUMENT["paths"].as_object().unwrap().iter().map(|(path, item)| (path.as_str(), item.as_object().unwrap()))
}

/// Whether a path is one of a template's.
fn matches(template: &str, path: &str) -> bool {
    let [template, path] = [template, path].map(|text| text.split('/').collect::<Vec<_>>());
    template.len() == path.len() && template.iter().zip(path).all(|(part, own)| *part == own || part.starts_with('{'))
}

/// What a reference stands for, where it is one.
fn resolve(object: &'static Value) -> &'static Value {
    let target = object["$ref"].as_str().map(|target| DOCUMENT.pointer(target.trim_start_matches('#')).unwrap());
    target.unwrap_or(object)
}

/// What holds a value to a schema of the document, made once for each.
fn validator(schema: &'static Value) -> Arc<Validator> {
    static MADE: LazyLock<Mutex<HashMap<usize, Arc<Validator>>>> = LazyLock::new(Mutex::default);
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let make = || {
        // Its references lead into the document.
        let whole = json!({"components": DOCUMENT["components"], "allOf": [schema]});
        Arc::new(jsonschema::draft202012::new(&whole).unwrap())
    };
    Arc::clone(made.entry(std::ptr::from_ref(schema).addr()).or_insert_with(make))
}

/// Fails where a call was answered otherwise than the document says, or did what the document says is no request.
pub fn check(method: &str, target: &str, sent: &str, answer: &Answer) {
    let path = target.split('?').next().unwrap_or_default();
    let Some((template, item)) = paths().find(|(template, _)| matches(template, path)) else {
        assert!(answer.error().0 == 404, "{method} {path} is not in docs/openapi.json: {answer:?}");
        return;
    };
    let operation = &item.get(&method.to_ascii_lowercase());
    let Some(operation) = operation else {
        assert!(answer.error().0 == 405, "{method} {template} is not in docs/openapi.json: {answer:?}");
        return;
    };
    let what = format!("{method} {template}, {}", answer.status);
    let documented = operation["responses"].get(answer.status.to_string());
    let documented = resolve(documented.unwrap_or_else(|| panic!("{what} is not in docs/openapi.json: {answer:?}")));
    for name in documented["headers"].as_object().into_iter().flat_map(Map::keys) {
        assert!(!answer.header(name).is_empty(), "{what}: no {name}: {answer:?}");
    }
    assert_eq!(answer.header("cache-control"), "no-store", "{what}: {answer:?}");
    match documented["content"].as_object() {
        Some(contents) => {
            let found = contents.iter().find(|(kind, _)| answer.header("content-type").starts_with(*kind));
            let (kind, content) = found.unwrap_or_else(|| panic!("{what}: {answer:?}"));
            if kind == "application/json" {
                hold(&format!("the answer to {what}"), &content["schema"], &answer.body);
            }
        }
        None => assert!(answer.body.is_empty(), "{what}: {answer:?}"),
    }
    if let (200..300, Some(body)) = (answer.status, operation.get("requestBody")) {
        hold(&format!("the body of {what}"), &body["content"]["application/json"]["schema"], sent);
    }
}

fn hold(what: &str, schema: &'static Value, text: &str) {
    let Ok(value) = serde_json::from_str(text) else {
        // A number that is too large for a float; then there is nothing to compare with.
        serde_json::from_str::<&RawValue>(text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        return;
    };
    let errors: Vec<String> = validator(schema).iter_errors(&value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{what} is not what docs/openapi.json says: {errors:?}: {text}");
}
