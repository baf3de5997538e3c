//! Code that only Linux supports is gated, so that the library and the binary type-check on other systems.

use std::fs;
use std::path::Path;

use crate::architecture::sources;

/// Names that the standard library or a dependency has on Linux only, and what only its file system has.
const LINUX_ONLY: [&str; 6] =
    ["std::os::linux", "tcp_user_timeout", "set_user_timeout", "\"/proc", "SocketAddrExt", "from_abstract_name"];

/// What an attribute must say, without white space, to keep an item from other systems.
const GATES: [&str; 3] = [
    "cfg(target_os=\"linux\")",
    "cfg(all(test,target_os=\"linux\"))",
    "cfg(any(target_os=\"linux\",target_os=\"android\"))",
];

/// Whether a line is an attribute that gates: `open` is `#[` for the item behind it, `#![` for the whole file.
fn is_gate(line: &str, open: &str) -> bool {
    let attribute: String = line.chars().filter(|c| !c.is_whitespace()).collect();
    let inner = attribute.strip_prefix(open).and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| GATES.contains(&inner))
}

/// How many lines the item or statement takes whose attributes begin these lines. The code is formatted: it ends with
/// the first line, indented no further than its attribute, that ends with a bracket, a comma or a semicolon.
fn item_lines(lines: &[&str]) -> usize {
    let indent = |line: &str| line.len() - line.trim_start().len();
    let ends = |line: &&str| {
        let code = line.trim();
        indent(line) <= indent(lines[0])
            && !code.is_empty()
            && !code.starts_with("#[")
            && !code.starts_with("//")
            && code.ends_with(['}', ';', ','])
    };
    lines.iter().position(ends).map_or(lines.len(), |last| last + 1)
}

/// Lines that name what only Linux has: those outside of a gate, with their numbers, and how many are inside of one.
fn linux_only(text: &str) -> (Vec<(usize, &str)>, usize) {
    let lines: Vec<&str> = text.lines().collect();
    let whole_file = lines.iter().any(|line| is_gate(line, "#!["));
    let (mut outside, mut inside, mut gated_until) = (Vec::new(), 0, 0);
    for (at, line) in lines.iter().enumerate() {
        if is_gate(line, "#[") {
            gated_until = gated_until.max(at + item_lines(&lines[at..]));
        }
        let is_comment = line.trim_start().starts_with("//");
        if is_comment || !LINUX_ONLY.iter().any(|name| line.contains(name)) {
            continue;
        }
        if whole_file || at < gated_until {
            inside += 1;
        } else {
            outside.push((at + 1, *line));
        }
    }
    (outside, inside)
}

#[test]
fn what_only_linux_has_is_gated() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut gated = 0;
    for folder in ["src", "crates/load/src"].map(|folder| root.join(folder)).iter().filter(|folder| folder.is_dir()) {
        for path in sources(folder) {
            let text = fs::read_to_string(&path).unwrap();
            let (outside, inside) = linux_only(&text);
            assert!(outside.is_empty(), "{}: not behind cfg(target_os = \"linux\"): {outside:?}", path.display());
            gated += inside;
        }
    }
    assert!(gated >= 5, "only {gated} found: the test does not see them any more");
}

#[test]
fn the_parser_of_this_test_tells_what_is_gated() {
    let gated = r#"
        #[cfg(target_os = "linux")]
        #[derive(Debug)]
        fn read() {
            open("/proc/self/stat");
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        socket.set_tcp_user_timeout(None)?;
        #[cfg(target_os = "linux")]
        let tcp = tcp
            .set_user_timeout(LIMIT);
        // from_abstract_name
    "#;
    assert_eq!(linux_only(gated), (Vec::new(), 3));
    assert_eq!(linux_only("#![cfg(target_os = \"linux\")]\nuse std::os::linux::net::SocketAddrExt;"), (Vec::new(), 1));

    let planted = r#"
        #[cfg(target_os = "linux")]
        fn gated() {
            one();
        }
        fn behind_it() {
            open("/proc/self/stat");
        }
        #[cfg(target_os = "linux")]
        one();
        socket.set_tcp_user_timeout(None)?;
        #[cfg(not(target_os = "linux"))]
        use std::os::linux::net::SocketAddrExt;
    "#;
    let (outside, inside) = linux_only(planted);
    assert_eq!((outside.iter().map(|(line, _)| *line).collect::<Vec<_>>(), inside), (vec![7, 11, 13], 0));
}
