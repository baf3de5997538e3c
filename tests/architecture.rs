//! The structure of the code: layers of modules, and stores whose implementations are private to their domain.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Bottom up; a module may import from earlier rows only.
const LAYERS: [&[&str]; 9] = [
    &["protocol", "config", "metrics", "shutdown", "backoff", "lease_watch"],
    &["log"],
    &["redis", "auth", "delivery"],
    &["backplane"],
    &["history", "presence", "limits", "revocation", "roster", "sessions"],
    &["outbox", "escalation"],
    &["router", "connection"],
    &["server"],
    // The root of the crate: the public interface, and the one for tests.
    &["gateway", "cli", "lib", "main", "internals"],
];

/// The two implementations of a domain's store: only the domain itself imports them.
const KEEPERS: [&str; 2] = ["redis", "memory"];

fn layer(module: &str) -> usize {
    LAYERS.iter().position(|row| row.contains(&module)).unwrap_or_else(|| {
        panic!("src/{module} has no layer: give it one in tests/architecture.rs and ARCHITECTURE.md")
    })
}

/// Every Rust file below a folder.
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

/// Every path after a `crate::` in a text, by its segments in lower case, which are modules.
fn imports(text: &str) -> BTreeSet<Vec<String>> {
    let path = |rest: &str| {
        let path: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
        path.split("::").filter(|name| name.starts_with(char::is_lowercase)).map(str::to_owned).collect::<Vec<_>>()
    };
    text.split("crate::").skip(1).map(path).filter(|path| !path.is_empty()).collect()
}

/// Calls `check` with each file of the library, its module, and a path that it imports from another module.
fn each_import(mut check: impl FnMut(&Path, &str, &[String])) -> usize {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut count = 0;
    for path in sources(&src) {
        let place = path.strip_prefix(&src).unwrap();
        let module = place.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        for import in imports(&fs::read_to_string(&path).unwrap()) {
            if import[0] != module {
                check(place, module, &import);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn each_module_imports_only_from_the_layers_below_it() {
    let count = each_import(|file, module, import| {
        assert!(layer(&import[0]) < layer(module), "src/{} imports crate::{}", file.display(), import.join("::"));
    });
    assert!(count > 100, "only {count} imports found: the test no longer sees them");
}

#[test]
fn no_domain_sees_the_redis_or_memory_implementation_of_another() {
    each_import(|file, _, import| {
        let keeper = import.iter().skip(1).any(|name| KEEPERS.contains(&name.as_str()));
        assert!(!keeper, "src/{} imports crate::{}", file.display(), import.join("::"));
    });
    // A module that is not `pub` cannot be imported in another way either.
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for domain in ["history", "presence", "limits"] {
        let text = fs::read_to_string(src.join(domain).join("mod.rs")).unwrap();
        assert!(text.contains("mod redis;") && !text.contains("pub mod redis;"), "src/{domain}/mod.rs");
    }
}

#[test]
fn the_parser_of_this_test_sees_an_import() {
    let found =
        imports("use crate::delivery::{Registry, SendQueue};\nlet x = crate::log::init;\ncrate::history::redis::X");
    let found: Vec<_> = found.into_iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["delivery", "history::redis", "log::init"]);
}

/// Every path below `src/` that a page names outside fenced code.
fn named_paths(page: &str) -> BTreeSet<&str> {
    let prose = page.split("```").step_by(2);
    let words = prose.flat_map(|text| text.split(|c: char| !(c.is_alphanumeric() || "_/.-".contains(c))));
    let paths = words.map(|word| word.trim_start_matches("../"));
    paths.filter(|path| path.starts_with("src/")).map(|path| path.trim_end_matches(['.', '/'])).collect()
}

#[test]
fn every_source_path_that_a_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let (mut count, top) = (0, ["ARCHITECTURE.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    for page in pages.chain(top) {
        for path in named_paths(&fs::read_to_string(&page).unwrap()) {
            assert!(root.join(path).exists(), "{} names {path}, which does not exist", page.display());
            count += 1;
        }
    }
    assert!(count > 30, "only {count} paths found: the test no longer sees them");
}

/// The names in a table's column of tests; a name has at least four words, which tells it from other code.
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
            assert!(tests.contains(&format!("fn {name}(")), "{page} names {name}, which is not a test");
        }
    }
}
