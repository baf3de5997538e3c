//! The layers of the house: each module imports only from those below it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bottom up; a module may use those of earlier rows.
const LAYERS: [&[&str]; 7] = [
    &["protocol", "config", "metrics", "shutdown", "backoff"],
    &["log"],
    &["auth", "registry", "backplane"],
    &["limits", "history"],
    &["router", "presence", "control", "sessions", "connection"],
    &["server"],
    &["gateway", "cli", "lib", "main"],
];

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|row| row.contains(&module)).unwrap_or_else(|| {
        panic!("src/{module} has no layer: give it one in tests/architecture.rs and ARCHITECTURE.md")
    })
}

pub fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Every module named after a `crate::` in a text.
fn imports(text: &str) -> BTreeSet<String> {
    let after = text.split("crate::").skip(1);
    after.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn each_module_imports_only_from_the_layers_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = 0;
    for path in sources(&src) {
        let place = path.strip_prefix(&src).unwrap();
        let module = place.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        // Re-exports at the crate's root, such as `Gateway`, are types, not modules.
        let text = fs::read_to_string(&path).unwrap();
        for import in imports(&text).into_iter().filter(|import| import.starts_with(char::is_lowercase)) {
            if import == module {
                continue;
            }
            assert!(layer(&import) < layer(module), "src/{} imports crate::{import}", place.display());
            arrows += 1;
        }
    }
    assert!(arrows > 20, "only {arrows} imports found: the test does not see them any more");
}

#[test]
fn the_parser_of_this_test_sees_an_import() {
    let found = imports("use crate::registry::{Member, Outbox};\nlet x = crate::log::init;");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["log", "registry"]);
}

/// The names in a table's column of tests: of many words, so that nothing else is one.
fn named_tests(page: &str) -> BTreeSet<&str> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let columns = rows.filter_map(|row| row.split(" | ").nth(2));
    let quoted = columns.flat_map(|column| column.split('`').skip(1).step_by(2));
    quoted.filter(|name| name.matches('_').count() > 2).collect()
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: String = ["src", "tests"]
        .iter()
        .flat_map(|folder| sources(&root.join(folder)))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    for (page, text, least) in [
        ("docs/security.md", include_str!("../docs/security.md"), 40),
        ("docs/delivery.md", include_str!("../docs/delivery.md"), 30),
    ] {
        let named = named_tests(text);
        assert!(named.len() > least, "{page}: only {named:?}");
        for name in named {
            assert!(tests.contains(&format!("fn {name}(")), "{page} names {name}, which is no test");
        }
    }
}
