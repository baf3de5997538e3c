//! The flags of `tidings load`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, ValueEnum, value_parser};

/// The settings of a run
#[derive(Debug, Clone, Args)]
pub struct Plan {
    /// The address of the server's public listener; of several, separated by commas, the connections are divided among them
    /// [default: the configured server.listen]
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',', num_args = 1)]
    pub(crate) target: Vec<SocketAddr>,
    /// The path and query of the first request [default: the gateway's path for the protocol of the clients]
    #[arg(long)]
    path: Option<String>,
    /// Number of connections
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..))]
    pub(crate) connections: u32,
    /// Number of users that the connections are divided among [default: one user for each connection]
    #[arg(long, value_parser = value_parser!(u32).range(1..))]
    pub(crate) users: Option<u32>,
    /// Maximum number of new connections per second
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u32).range(1..))]
    pub(crate) connect_rate: u32,
    /// Number of loopback source addresses; each provides about 28,000 ports, and one with few free ports connects slowly
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u8).range(1..))]
    pub(crate) sources: u8,
    /// How long connections stay idle before the server's memory is measured
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub(crate) settle: Duration,
    #[command(flatten)]
    pub(crate) phase: Phase,
    /// Run another phase on the same connections, given by its flags, such as "--mode miss --flat-out"
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true, value_parser = phase, long_help = THEN)]
    pub(crate) then: Vec<Phase>,
    /// The protocol of the clients
    #[arg(long, value_enum, default_value_t = ClientProtocol::WebSocket)]
    pub(crate) client: ClientProtocol,
    /// Measure CPU time and memory of the server with this process id; of several, separated by commas, the sum
    #[arg(long, value_name = "PID", value_delimiter = ',', num_args = 1, value_parser = value_parser!(u32).range(1..))]
    pub(crate) server_pid: Vec<u32>,
    /// Seed for the random choice of users
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
}

/// One phase of a run
#[derive(Debug, Clone, Args)]
pub struct Phase {
    /// Which users receive messages, or which failure the clients recover from
    #[arg(long, value_enum, default_value_t = Mode::Unicast)]
    pub(crate) mode: Mode,
    /// How messages are published; HTTP requests go to the admin listener [default: pubsub, or the input of the server
    /// that --client names]
    #[arg(long, value_enum)]
    publish: Option<PublishVia>,
    /// With --mode resume or refill: number of notifications to store, distributed over the users in turn
    #[arg(long, default_value_t = 0)]
    pub(crate) stored: u32,
    /// Messages per second, regardless of the rate of deliveries
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..), conflicts_with = "flat_out")]
    rate: u32,
    /// Publish as fast as messages are delivered
    #[arg(long)]
    pub(crate) flat_out: bool,
    /// With --flat-out: maximum number of outstanding messages; one is outstanding until its last copy is delivered
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u64).range(1..))]
    window: u64,
    /// Messages published together: to the same user, or with --mode turn to this many users
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    pub(crate) burst: u32,
    /// How long to measure
    #[arg(long, default_value = "10s", value_parser = some_duration)]
    pub(crate) duration: Duration,
    /// How long to publish before measuring
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub(crate) warm_up: Duration,
    /// How long connections stay idle after the phase before the server's memory is measured again
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub(crate) linger: Duration,
    /// Size of each message in bytes
    #[arg(long, default_value_t = 128)]
    pub(crate) payload: usize,
}

const THEN: &str = "Run another phase on the same connections; may be repeated. The value is a quoted list of the flags of a \
    phase: --mode, --publish, --stored, --rate, --flat-out, --window, --burst, --duration, --warm-up, --payload, --linger; \
    an omitted flag has its default. Each phase has its own report";

/// The flags of one phase, as `--then` accepts them.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Then {
    #[command(flatten)]
    phase: Phase,
}

/// Which users receive messages, or which failure the clients recover from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Publish to random users
    Unicast,
    /// Publish to each user in turn
    Turn,
    /// Publish to one user, who has all connections
    Fanout,
    /// Publish broadcasts, which all connections receive
    Broadcast,
    /// Publish to users without a connection; occasional messages to connected users measure the progress
    Miss,
    /// Drop all connections and, after --settle, reconnect without resuming; publish nothing
    Reconnect,
    /// Drop all connections, store notifications, and after --settle resume from each user's last notification
    Resume,
    /// Kill all Redis subscriptions and store notifications at the same time; the clients stay connected
    Refill,
}

impl Mode {
    /// Whether all connections receive every message.
    pub(crate) fn reaches_all(self) -> bool {
        matches!(self, Self::Fanout | Self::Broadcast)
    }
}

/// How messages reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PublishVia {
    /// PUBLISH, pipelined; not stored
    Pubsub,
    /// XADD to the outbox, pipelined; stored
    Outbox,
    /// Batches of POST /v1/notifications, one request at a time; stored
    Http,
    /// Requests to publishers of Nchan at the address of the admin listener, pipelined
    #[value(skip)]
    Nchan,
    /// `PUB` to NATS at the address of the admin listener, pipelined
    #[value(skip)]
    Nats,
}

/// The protocol of the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClientProtocol {
    /// WebSocket, with a token in the handshake
    #[value(name = "websocket")]
    WebSocket,
    /// Server-Sent Events, with a token in the request
    Sse,
    /// socket.io v4 over WebSocket
    SocketIo,
    /// socket.io v4 over long-polling; each client uses one connection, for one request at a time
    Polling,
    /// Nchan over WebSocket, without a token; messages are POSTed to /pub/USER at the address of the admin listener
    Nchan,
    /// NATS over WebSocket, without a token; messages are published over TCP at the address of the admin listener
    Nats,
}

impl ClientProtocol {
    pub(crate) fn is_socket_io(self) -> bool {
        matches!(self, Self::SocketIo | Self::Polling)
    }

    fn default_path(self) -> &'static str {
        match self {
            Self::WebSocket => "/ws",
            Self::Sse => "/events",
            Self::SocketIo => "/socket.io/?EIO=4&transport=websocket",
            Self::Polling => "/socket.io/?EIO=4&transport=polling",
            Self::Nchan => "/sub/",
            Self::Nats => "/",
        }
    }

    /// The own input of a server that is no gateway.
    fn own_input(self) -> Option<PublishVia> {
        match self {
            Self::Nchan => Some(PublishVia::Nchan),
            Self::Nats => Some(PublishVia::Nats),
            Self::WebSocket | Self::Sse | Self::SocketIo | Self::Polling => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// This many messages per second, regardless of the rate of deliveries.
    OpenLoop(u32),
    /// As fast as messages are delivered, with at most this many outstanding: published, but not yet delivered to all
    /// their connections. Every user must have a connection.
    FlatOut(u64),
}

impl Phase {
    pub(crate) fn pace(&self) -> Pace {
        if self.flat_out { Pace::FlatOut(self.window) } else { Pace::OpenLoop(self.rate) }
    }
}

/// A combination of flags that is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// Only some of the phases are fan-out, or broadcasts.
    #[error(
        "--then: --mode fanout, and broadcast, are accepted only for all phases or for none: all connections receive the same messages"
    )]
    MixedFanout,
    /// A server that is no gateway has one input, and nothing of the gateway's store.
    #[error("--client nchan, nats: accepted only without --publish, and not with --mode broadcast, resume or refill")]
    OwnInput,
    /// Only `PUBLISH` reaches the channel of broadcasts.
    #[error("--mode broadcast: accepted only with --publish pubsub")]
    Broadcast,
    /// A phase that stores nothing has `--stored`.
    #[error("--stored: accepted only with --mode resume or refill")]
    Stored,
    /// Flat out, a user without a connection would leave messages outstanding forever.
    #[error("--users {0}: with --flat-out, expected at most one user for each of --connections {1}")]
    Users(u32, u32),
}

impl Plan {
    /// Whether `--target` was given.
    #[must_use]
    pub fn has_target(&self) -> bool {
        !self.target.is_empty()
    }

    /// Connects all clients to this address.
    pub fn set_target(&mut self, address: SocketAddr) {
        self.target = vec![address];
    }

    pub(crate) fn path(&self) -> &str {
        self.path.as_deref().unwrap_or(self.client.default_path())
    }

    pub(crate) fn publish_via(&self, phase: &Phase) -> PublishVia {
        self.client.own_input().or(phase.publish).unwrap_or(PublishVia::Pubsub)
    }

    /// Checks the flags that depend on each other.
    ///
    /// # Errors
    /// [`ArgsError`] for the first combination that is not accepted.
    pub fn validate(&self) -> Result<(), ArgsError> {
        let to_all = |phase: &Phase| Some(phase.mode).filter(|mode| mode.reaches_all());
        if self.then.iter().any(|phase| to_all(phase) != to_all(&self.phase)) {
            return Err(ArgsError::MixedFanout);
        }
        let of_gateway = |phase: &Phase| {
            phase.publish.is_some() || matches!(phase.mode, Mode::Broadcast | Mode::Resume | Mode::Refill)
        };
        if self.client.own_input().is_some() && self.phases().any(of_gateway) {
            return Err(ArgsError::OwnInput);
        }
        let via_pubsub = |phase: &Phase| self.publish_via(phase) == PublishVia::Pubsub;
        if self.phases().any(|phase| phase.mode == Mode::Broadcast && !via_pubsub(phase)) {
            return Err(ArgsError::Broadcast);
        }
        if self.phases().any(|phase| phase.stored > 0 && !matches!(phase.mode, Mode::Resume | Mode::Refill)) {
            return Err(ArgsError::Stored);
        }
        if self.users() > self.connections && self.phases().any(|phase| phase.flat_out) {
            return Err(ArgsError::Users(self.users(), self.connections));
        }
        Ok(())
    }
}

/// Parses a duration as the gateway's configuration writes it.
fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    /// Ten years.
    const MAX: Duration = Duration::from_secs(10 * 365 * 86_400);
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_ms = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| ms);
    let ms = number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit_ms)| number.checked_mul(*unit_ms));
    let accepted = ms.map(Duration::from_millis).filter(|duration| *duration <= MAX);
    accepted.ok_or_else(|| "expected a duration such as 500ms, 10s or 1m".to_owned())
}

/// As [`duration`], of a measurement.
fn some_duration(text: &str) -> Result<Duration, String> {
    let some = |duration: Duration| (!duration.is_zero()).then_some(duration);
    duration(text).and_then(|duration| some(duration).ok_or_else(|| "expected at least 1ms".to_owned()))
}

fn phase(flags: &str) -> Result<Phase, String> {
    let parsed = Then::try_parse_from(flags.split_whitespace()).map_err(|error| error.to_string());
    // The lines after the first one describe the usage of a whole command.
    let first = |error: String| error.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
    parsed.map(|then| then.phase).map_err(first)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    #[command(no_binary_name = true)]
    struct Flags {
        #[command(flatten)]
        plan: Plan,
    }

    pub(crate) fn plan(flags: &[&str]) -> Plan {
        Flags::try_parse_from(flags).unwrap().plan
    }

    #[test]
    fn a_duration_has_a_number_and_a_known_unit() {
        let parsed = ["500ms", "12s", "5m", "1h", "7d"].map(|text| duration(text).unwrap().as_millis());
        assert_eq!(parsed, [500, 12_000, 300_000, 3_600_000, 604_800_000]);
        for wrong in ["", "s", "5", "5 s", "-5s", "5y", "99999d", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_further_phase_has_its_own_flags_and_defaults() {
        let plan = plan(&["--rate", "5", "--then", "--flat-out --window 9 --publish http"]);
        let [first, then] = plan.phases().collect::<Vec<_>>()[..] else { panic!("{plan:?}") };
        assert_eq!((first.pace(), plan.publish_via(first)), (Pace::OpenLoop(5), PublishVia::Pubsub));
        assert_eq!((then.pace(), plan.publish_via(then)), (Pace::FlatOut(9), PublishVia::Http));
        assert_eq!(phase("--rate many").unwrap_err().lines().count(), 1);
    }

    #[test]
    fn flags_that_contradict_each_other_are_rejected() {
        let check = |flags: &[&str]| plan(flags).validate().unwrap_err();
        assert_eq!(check(&["--then", "--mode fanout"]), ArgsError::MixedFanout);
        assert_eq!(check(&["--then", "--stored 1"]), ArgsError::Stored);
        assert_eq!(check(&["--mode", "fanout", "--then", "--mode broadcast"]), ArgsError::MixedFanout);
        assert_eq!(check(&["--mode", "broadcast", "--publish", "http"]), ArgsError::Broadcast);
        let flags = ["--users", "3", "--connections", "2", "--then", "--flat-out"];
        assert_eq!(check(&flags), ArgsError::Users(3, 2));
        plan(&["--mode", "fanout", "--flat-out", "--then", "--mode fanout"]).validate().unwrap();
    }

    #[test]
    fn a_server_that_is_no_gateway_has_one_input() {
        for (client, input) in [("nchan", PublishVia::Nchan), ("nats", PublishVia::Nats)] {
            let accepted = plan(&["--client", client, "--then", "--mode miss", "--then", "--mode reconnect"]);
            accepted.validate().unwrap();
            assert!(accepted.phases().all(|phase| accepted.publish_via(phase) == input));
            for refused in ["--publish pubsub", "--mode broadcast", "--mode resume", "--mode refill"] {
                let refused = phase(refused).unwrap();
                let plan = Plan { phase: refused, ..plan(&["--client", client]) };
                assert_eq!(plan.validate(), Err(ArgsError::OwnInput), "{plan:?}");
            }
        }
        Flags::try_parse_from(["--publish", "nats"]).unwrap_err();
    }
}
