//! `tidings who`: shows who is online, or one user's presence and connections.

use anyhow::Context as _;
use clap::{Args, value_parser};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::admin::{AdminListener, Call, in_path};
use super::{ConfigArgs, block_on, note, say, user_id};
use crate::protocol::UserId;

/// Users of one request, so that its body is smaller than the admin listener's limit.
const USERS_AT_A_TIME: usize = 100;

#[derive(Debug, Args)]
pub(super) struct Who {
    /// Show this user's presence, and connections on every instance, instead of all online users
    #[arg(allow_negative_numbers = true)]
    user: Option<String>,
    /// The admin listener of an instance [default: server.admin_listen]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// Show this many online users at most
    #[arg(long, default_value = "100", value_parser = value_parser!(u16).range(1..=1_000), conflicts_with = "user")]
    limit: u16,
    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(Debug, Deserialize)]
struct Count {
    online: u64,
}

#[derive(Debug, Deserialize)]
struct Page {
    users: Vec<String>,
    next: Option<String>,
}

/// Their presence, as the admin listener shows it.
#[derive(Debug, Deserialize)]
struct Answer {
    users: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Presence {
    user: String,
    online: bool,
    connections: u64,
    last_seen: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Connections {
    connections: Vec<Connection>,
    total: u64,
    unanswered: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Connection {
    id: String,
    instance: String,
    device: String,
    address: String,
    connected_at: u64,
    dialect: String,
}

impl Who {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = self.user.as_deref().map(user_id).transpose()?;
        let admin = AdminListener::new(self.admin.as_deref(), &self.config.load(false)?)?;
        let shown = block_on(async {
            match &user {
                Some(user) => one(&admin, user, self.json).await,
                None => all(&admin, self.limit, self.json).await,
            }
        })?;
        Ok(say(&shown)?)
    }
}

async fn one(admin: &AdminListener, user: &UserId, as_json: bool) -> anyhow::Result<String> {
    let path = in_path(user)?;
    let [presence, connections] = ["presence", "connections"].map(|about| ["v1", "users", path, about]);
    let presence = get(admin, &presence, "").await?;
    let connections = get(admin, &connections, "").await?;
    if as_json {
        let mut shown: Map<String, Value> = parse(connections)?;
        shown.insert("presence".into(), presence);
        return Ok(Value::from(shown).to_string());
    }
    let Connections { connections, total, unanswered } = parse(connections)?;
    for instance in unanswered {
        note(&format!("the instance {instance} did not answer: its connections of the user are missing"));
    }
    let Presence { user, online, last_seen, .. } = parse(presence)?;
    let state = match (online, last_seen) {
        (true, _) => "online".to_owned(),
        (false, Some(seen)) => format!("offline, last seen {}", utc(seen)),
        (false, None) => "offline".to_owned(),
    };
    let mut rows = vec![["CONNECTION", "INSTANCE", "DEVICE", "DIALECT", "ADDRESS", "SINCE"].map(str::to_owned)];
    let row = |one: Connection| [one.id, one.instance, one.device, one.dialect, one.address, utc(one.connected_at)];
    rows.extend(connections.into_iter().map(row));
    let table = if total == 0 { String::new() } else { format!("\n{}", table(&rows)) };
    let listed = u64::try_from(rows.len() - 1).unwrap_or(u64::MAX);
    let more = if total > listed { format!("\n{} more are not listed", total - listed) } else { String::new() };
    Ok(format!("user {user} is {state}; connections: {total}{table}{more}"))
}

async fn all(admin: &AdminListener, limit: u16, as_json: bool) -> anyhow::Result<String> {
    let Count { online } = parse(get(admin, &["v1", "presence", "count"], "").await?)?;
    let page = get(admin, &["v1", "presence"], &format!("limit={limit}")).await?;
    let Page { mut users, next } = parse(page)?;
    users.sort_unstable();
    let mut found = Vec::new();
    for some in users.chunks(USERS_AT_A_TIME) {
        let body = serde_json::to_vec(&json!({"users": some}))?;
        let call = Call { path: &["v1", "presence"], body: Some(body), ..Call::default() };
        let Answer { users } = parse(parse_text(&admin.call(Method::POST, call).await?)?)?;
        found.extend(users);
    }
    if as_json {
        return Ok(json!({"online": online, "users": found}).to_string());
    }
    let mut rows = vec![["USER", "CONNECTIONS"].map(str::to_owned)];
    for presence in found {
        let Presence { user, connections, .. } = parse(presence)?;
        rows.push([user, connections.to_string()]);
    }
    let more = if next.is_none() { "" } else { "\nmore users are online: --limit" };
    let table = if rows.len() == 1 { String::new() } else { format!("\n{}", table(&rows)) };
    Ok(format!("users online: {online}{table}{more}"))
}

async fn get(admin: &AdminListener, path: &[&str], query: &str) -> anyhow::Result<Value> {
    parse_text(&admin.call(Method::GET, Call { path, query, ..Call::default() }).await?)
}

fn parse_text(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("the admin listener's response is not JSON")
}

fn parse<T: for<'a> Deserialize<'a>>(value: Value) -> anyhow::Result<T> {
    serde_json::from_value(value).context("unexpected response of the admin listener")
}

/// In columns.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Milliseconds since 1970 as a date and time.
fn utc(ms: u64) -> String {
    let time = i64::try_from(ms / 1_000).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.map_or_else(
        || ms.to_string(),
        |time| {
            let (date, (hour, minute, second)) = (time.date(), time.to_hms());
            let (year, month, day) = date.to_calendar_date();
            format!("{year}-{:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z", u8::from(month))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["USER", "CONNECTIONS"], ["Zoë ☂", "1"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "USER   CONNECTIONS\nZoë ☂  1");
        assert_eq!(utc(1_764_424_985_999), "2025-11-29 14:03:05Z");
    }
}
