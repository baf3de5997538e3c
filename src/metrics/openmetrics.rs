//! The OpenMetrics text format, which the library does not write: derived from the Prometheus text format. It has no
//! exemplars, because the library keeps none.

use std::fmt::Write;

pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const TYPE: &str = "application/openmetrics-text";

/// Whether an `Accept` header prefers OpenMetrics to the Prometheus text format.
pub(super) fn is_preferred(accept: &str) -> bool {
    let weight = |name: &str| {
        let ranges = accept.split(',').filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let is_named = parts.next().is_some_and(|given| given.eq_ignore_ascii_case(name));
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            is_named.then(|| weight.map_or(Some(1.0), |weight| weight.parse::<f32>().ok()).unwrap_or_default())
        });
        ranges.fold(0.0, f32::max)
    };
    let given = weight(TYPE);
    given > 0.0 && given >= weight("text/plain")
}

/// In OpenMetrics, the family of a counter is named without `_total`, quotes are escaped in help texts, the bounds of buckets
/// are written as floats, and the end is marked.
pub(super) fn from_text(text: &str) -> String {
    let mut result = String::with_capacity(text.len() + text.len() / 16);
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        // Infallible: the target is a String.
        let _ = match line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            Some((name, help)) => {
                let is_counter = lines.get(index + 1).is_some_and(|next| next.ends_with(" counter"));
                writeln!(result, "# HELP {} {}", family(name, is_counter), help.replace('"', "\\\""))
            }
            None => match line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
                Some((name, kind)) => writeln!(result, "# TYPE {} {kind}", family(name, kind == "counter")),
                None => writeln!(result, "{}", with_float_bound(line)),
            },
        };
    }
    result.push_str("# EOF\n");
    result
}

fn family(name: &str, is_counter: bool) -> &str {
    name.strip_suffix("_total").filter(|_| is_counter).unwrap_or(name)
}

fn with_float_bound(line: &str) -> String {
    let bound = line.split_once("le=\"").and_then(|(before, rest)| {
        let (bound, after) = rest.split_once('"')?;
        bound.bytes().all(|byte| byte.is_ascii_digit()).then(|| format!("{before}le=\"{bound}.0\"{after}"))
    });
    bound.unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_scraper_prefers_is_served() {
        for (accept, expected) in [
            ("", false),
            ("*/*", false),
            ("text/plain", false),
            ("application/openmetrics-text", true),
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1", true),
            ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.4", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=x", false),
        ] {
            assert_eq!(is_preferred(accept), expected, "{accept}");
        }
    }

    #[test]
    fn names_help_and_bounds_are_those_of_openmetrics() {
        let text = "# HELP a_total Says \"a\".\n# TYPE a_total counter\na_total{b=\"c\"} 1\n# HELP d D.\n# TYPE d histogram\n\
                    d_bucket{le=\"1\"} 1\nd_bucket{le=\"2.5\"} 1\nd_bucket{le=\"+Inf\"} 1\n";
        let expected = "# HELP a Says \\\"a\\\".\n# TYPE a counter\na_total{b=\"c\"} 1\n# HELP d D.\n# TYPE d histogram\n\
                        d_bucket{le=\"1.0\"} 1\nd_bucket{le=\"2.5\"} 1\nd_bucket{le=\"+Inf\"} 1\n# EOF\n";
        assert_eq!(from_text(text), expected);
    }
}
