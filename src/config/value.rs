//! Parsers of single values: durations, booleans, integers and lists.

use std::time::Duration;

use toml::Value;

/// The syntax of a duration, for error messages.
pub(super) const DURATION: &str = "a duration such as 500ms, 12s, 5m, 1h or 7d";

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Ten years: longer than any setting needs, and short enough that adding it to a clock cannot overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Parses `500ms`, `12s`, `5m`, `1h` or `7d`.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let duration = Duration::from_millis(number.parse::<u64>().ok()?.checked_mul(*millis)?);
    (duration <= LONGEST).then_some(duration)
}

/// Formats a duration in the largest unit that represents it exactly.
pub(super) fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let (unit, size) = UNITS
        .iter()
        .rev()
        .find(|(_, size)| millis > 0 && millis.is_multiple_of(u128::from(*size)))
        .unwrap_or(&("s", 1_000));
    format!("{}{unit}", millis / u128::from(*size))
}

pub(super) fn boolean(value: &Value) -> Option<bool> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok())
}

pub(super) fn integer(value: &Value) -> Option<u64> {
    match value {
        Value::Integer(number) => u64::try_from(*number).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

/// A list, or a string separated by commas, as a variable or a flag has it.
pub(super) fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(items) => items.iter().map(|item| item.as_str().map(str::to_owned)).collect(),
        Value::String(text) => {
            Some(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip() {
        for text in ["500ms", "12s", "90s", "5m", "1h", "7d", "0s"] {
            let duration = parse_duration(text).unwrap();
            assert_eq!(parse_duration(&format_duration(duration)), Some(duration), "{text}");
        }
        assert_eq!(parse_duration("12s"), Some(Duration::from_secs(12)));
        assert_eq!(format_duration(Duration::from_millis(1_500)), "1500ms");
    }

    #[test]
    fn a_malformed_duration_is_refused() {
        for text in ["", "12", "s", "1.5s", "-1s", "1 s", "1w", "99999999999999999999s", "400000d"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
