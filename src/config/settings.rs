//! The three layers (file, environment, flags), merged into one flat map of `section.key`.
//!
//! Reading a key records that it exists and its effective value: `check-config` prints the values, and a key that was
//! never read is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use secrecy::SecretString;
use toml::{Table, Value};

use super::ConfigError;
use super::fingerprints::Fingerprints;
use super::mask::{MASK, shown, shown_path};
use super::nearest::nearest;

/// Starts the name of each variable that is read.
pub(crate) const ENV_PREFIX: &str = "TIDINGS_";

/// Names the configuration file if no flag does: the only variable that is not one of a key.
pub(crate) const FILE_VARIABLE: &str = "TIDINGS_CONFIG";

/// Renamed sections: old and new prefix. Keys under the old one are refused, because a configuration with both would be
/// ambiguous.
const RENAMED: [(&str, &str); 1] = [("outbox.", "send_queue.")];

#[derive(Debug, Clone)]
enum Source {
    File(PathBuf),
    Env(String),
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "in {}", path.display()),
            Self::Env(name) => write!(f, "in the environment variable {}", shown(name)),
            Self::Flag(name) => write!(f, "in the flag {name}"),
        }
    }
}

impl Source {
    /// A setting of a later layer overrides one of an earlier layer.
    fn layer(&self) -> u8 {
        match self {
            Self::File(_) => 0,
            Self::Env(_) => 1,
            Self::Flag(_) => 2,
        }
    }
}

struct Setting {
    value: Value,
    source: Source,
}

/// The merged layers, and the problems found so far.
#[derive(Default)]
pub(super) struct Settings {
    given: BTreeMap<String, Setting>,
    known: Vec<String>,
    effective: BTreeMap<String, Value>,
    fingerprints: Fingerprints,
    problems: Vec<String>,
}

impl Settings {
    pub(super) fn add_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let fail =
            |why: String| ConfigError(vec![format!("--config (or TIDINGS_CONFIG) {:?}: {why}", shown_path(path))]);
        let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            // Only the message and the line: an excerpt could contain a secret.
            let line = error.span().map_or(1, |span| text[..span.start].lines().count().max(1));
            fail(format!("line {line}: {}", error.message()))
        })?;
        self.flatten("", table, &Source::File(path.to_path_buf()));
        Ok(())
    }

    fn flatten(&mut self, prefix: &str, table: Table, source: &Source) {
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            match value {
                Value::Table(inner) => self.flatten(&format!("{key}."), inner, source),
                value => self.insert(key, value, source.clone()),
            }
        }
    }

    pub(super) fn add_env(&mut self, vars: impl IntoIterator<Item = (String, String)>) {
        for (name, value) in vars {
            if let Some(key) = name.strip_prefix(ENV_PREFIX) {
                let key = key.to_lowercase().replace("__", ".");
                self.insert(key, Value::String(value), Source::Env(name));
            }
        }
    }

    pub(super) fn add_flag(&mut self, flag: &str, key: &str, value: &str) {
        self.insert(key.into(), Value::String(value.into()), Source::Flag(flag.into()));
    }

    fn insert(&mut self, key: String, value: Value, source: Source) {
        self.given.insert(key, Setting { value, source });
    }

    pub(super) fn gives(&self, key: &str) -> bool {
        self.given.contains_key(key)
    }

    pub(super) fn problem(&mut self, problem: String) {
        self.problems.push(problem);
    }

    /// Notes what a key stands for and its shown value does not tell: a secret, or the contents of a file.
    pub(super) fn note_hidden(&mut self, key: &str, value: impl Hash) {
        self.fingerprints.add(key, value);
    }

    /// Reads a key with `parse`; a refused value becomes a problem that describes the `accepted` ones.
    pub(super) fn read<T>(
        &mut self,
        key: &str,
        accepted: &str,
        parse: impl FnOnce(&Value) -> Option<T>,
        render: impl FnOnce(&T) -> Value,
    ) -> Option<T> {
        self.known.push(key.to_owned());
        let Setting { value, source } = self.given.remove(key)?;
        if let Some(parsed) = parse(&value) {
            self.effective.insert(key.to_owned(), render(&parsed));
            Some(parsed)
        } else {
            // A URL, a private key or a connection string may have been given for another key.
            let given = value.to_string();
            self.problem(format!("{key} = {} ({source}): expected {accepted}", shown(&given)));
            None
        }
    }

    /// Like [`Settings::read`], for a URL whose `Debug` shows only its harmless parts. `parse` returns why it refuses one,
    /// and what is accepted.
    pub(super) fn read_url<T: fmt::Debug>(
        &mut self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key.to_owned());
        let Setting { value, source } = self.given.remove(key)?;
        // An empty text says what is expected instead, too.
        let given = text(&value).unwrap_or_default();
        match parse(&given) {
            Ok(url) => {
                self.note_hidden(key, &given);
                self.effective.insert(key.to_owned(), format!("{url:?}").into());
                Some(url)
            }
            Err(why) => {
                // In a URL that cannot be used, a password may be anywhere.
                let shown = if value.as_str() == Some("") { "\"\"" } else { MASK };
                self.problem(format!("{key} = {shown} ({source}): {why}"));
                None
            }
        }
    }

    /// Like [`Settings::read`], with a default, which `check-config` shows.
    pub(super) fn read_or<T>(
        &mut self,
        key: &str,
        accepted: &str,
        default: T,
        parse: impl FnOnce(&Value) -> Option<T>,
        render: impl Fn(&T) -> Value,
    ) -> T {
        if let Some(value) = self.read(key, accepted, parse, &render) {
            return value;
        }
        self.effective.insert(key.to_owned(), render(&default));
        default
    }

    /// Reads a secret from `key`, or from the file that `key_file` names.
    pub(super) fn secret(&mut self, key: &str) -> Option<SecretString> {
        self.take_from_file(key);
        self.secret_value(key)
    }

    /// If `key_file` is set, and `key` is not set in a later layer, reads that file as the value of `key`.
    pub(super) fn take_from_file(&mut self, key: &str) {
        let file_key = format!("{key}_file");
        self.override_earlier(key, &file_key);
        let source = self.given.get(&file_key).map(|setting| setting.source.to_string()).unwrap_or_default();
        let Some(path) = self.read(&file_key, "the path of a file", text, |path| path.clone().into()) else { return };
        if self.gives(key) {
            self.problem(format!("{key} and {file_key} are both set: expected one of them"));
            return;
        }
        match std::fs::read_to_string(&path) {
            Ok(value) if !value.trim().is_empty() => {
                self.insert(key.into(), Value::String(value.trim().into()), Source::File(path.into()));
            }
            Ok(_) => self.problem(format!("{file_key} = {path:?}: expected a non-empty file")),
            // The secret itself may have been given instead of the path.
            Err(error) => self.problem(format!("{file_key} = {MASK} ({source}): {error}: expected a readable file")),
        }
    }

    /// If two keys that exclude each other are set in different layers, removes the one in the earlier layer.
    fn override_earlier(&mut self, one: &str, other: &str) {
        let layer = |key: &str| self.given.get(key).map(|setting| setting.source.layer());
        let (Some(of_one), Some(of_other)) = (layer(one), layer(other)) else { return };
        if of_one != of_other {
            self.given.remove(if of_one < of_other { one } else { other });
        }
    }

    fn secret_value(&mut self, key: &str) -> Option<SecretString> {
        self.known.push(key.to_owned());
        let Setting { value, source } = self.given.remove(key)?;
        match text(&value) {
            Some(secret) => {
                self.note_hidden(key, &secret);
                self.effective.insert(key.to_owned(), MASK.into());
                Some(secret.into())
            }
            None => {
                self.problem(format!("{key} = {MASK} ({source}): expected a non-empty string"));
                None
            }
        }
    }

    /// Reads one or more secrets: a list in the configuration file, separated by commas elsewhere, or the lines of the
    /// file that `key_file` names.
    pub(super) fn secrets(&mut self, key: &str) -> Vec<SecretString> {
        self.take_from_file(key);
        self.known.push(key.to_owned());
        let Some(Setting { value, source }) = self.given.remove(key) else { return Vec::new() };
        let separator = if matches!(source, Source::File(_)) { '\n' } else { ',' };
        let secrets: Option<Vec<String>> = match &value {
            Value::String(text) => Some(text.split(separator).map(|secret| secret.trim().to_owned()).collect()),
            Value::Array(several) => several.iter().map(text).collect(),
            _ => None,
        };
        let secrets = secrets.filter(|secrets| !secrets.is_empty() && secrets.iter().all(|secret| !secret.is_empty()));
        if secrets.is_none() {
            self.problem(format!("{key} = {MASK} ({source}): expected a non-empty string, or a list of them"));
        }
        let secrets = secrets.unwrap_or_default();
        if !secrets.is_empty() {
            self.note_hidden(key, &secrets);
            self.effective.insert(key.to_owned(), Value::Array(vec![MASK.into(); secrets.len()]));
        }
        secrets.into_iter().map(SecretString::from).collect()
    }

    /// Reads every `prefix.NAME` as a secret.
    pub(super) fn secrets_under(&mut self, prefix: &str) -> Vec<(String, SecretString)> {
        self.known.push(format!("{prefix}.NAME"));
        let dotted = format!("{prefix}.");
        let given = self.given.keys().filter(|key| key.starts_with(&dotted));
        let keys: BTreeSet<String> = given.map(|key| key.strip_suffix("_file").unwrap_or(key).to_owned()).collect();
        let name = |key: &str| key.strip_prefix(&dotted).unwrap_or(key).to_owned();
        keys.into_iter().filter_map(|key| self.secret(&key).map(|secret| (name(&key), secret))).collect()
    }

    /// Reports the keys that were never read as unknown; returns the effective configuration as TOML, and its fingerprints.
    pub(super) fn finish(mut self) -> Result<(String, Fingerprints), ConfigError> {
        for (key, Setting { source, .. }) in std::mem::take(&mut self.given) {
            let problem = self.unknown(&key, &source);
            self.problem(problem);
        }
        if !self.problems.is_empty() {
            return Err(ConfigError(self.problems));
        }
        for (key, value) in &self.effective {
            self.fingerprints.add(key, value.to_string());
        }
        Ok((render(self.effective), self.fingerprints))
    }

    /// Describes an unknown key, with the one that was probably meant, or else those of its section.
    fn unknown(&self, key: &str, source: &Source) -> String {
        // A URL may have been given instead of a key.
        let unknown = format!("unknown key {} ({source})", shown(key));
        let current = current_name(key);
        let meant = nearest(&current, &self.known);
        if let (None, Source::Env(name)) = (meant, source)
            && nearest(name, &[FILE_VARIABLE.to_owned()]).is_some()
        {
            return format!("{unknown}: did you mean {FILE_VARIABLE}");
        }
        if let Some(meant) = meant {
            let variable = |_| format!(" ({ENV_PREFIX}{})", meant.replace('.', "__").to_uppercase());
            let variable = Some(source).filter(|source| matches!(source, Source::Env(_))).map(variable);
            return format!("{unknown}: did you mean {meant}{}", variable.unwrap_or_default());
        }
        let section = |key: &str| key.rsplit_once('.').map(|(section, _)| section.to_owned());
        let of_section = |known: &&String| section(known) == section(&current);
        let mut near: Vec<&str> = self.known.iter().filter(of_section).map(String::as_str).collect();
        if near.is_empty() {
            near = self.known.iter().map(String::as_str).collect();
        }
        near.sort_unstable();
        format!("{unknown}: known keys are {}", near.join(", "))
    }
}

fn current_name(key: &str) -> String {
    let renamed = RENAMED.iter().find_map(|(old, new)| Some(format!("{new}{}", key.strip_prefix(old)?)));
    renamed.unwrap_or_else(|| key.to_owned())
}

fn render(effective: BTreeMap<String, Value>) -> String {
    let mut root = Table::new();
    for (key, value) in effective {
        let mut table = &mut root;
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            if parts.peek().is_none() {
                table.insert(part.into(), value);
                break;
            }
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = inner else { break };
            table = inner;
        }
    }
    root.to_string()
}

/// A non-empty string.
pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}
