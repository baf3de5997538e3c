//! Limits on the number and the rate of connections.
//!
//! The limits of one instance are counted in memory. Those of the fleet are counted in Redis, and by this instance alone
//! while Redis is away: an outage refuses no client. A limit that is not configured costs nothing.

mod fleet;
mod inbound;
mod local;
mod rate;
mod redis;
mod room;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::{info, warn};

use crate::backplane::Backplane;
use crate::config::{self, Config, LiveLimits};
use crate::delivery::Registry;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, UserId};
use crate::shutdown::Shutdown;
use fleet::{FleetPermit, FleetPermits};
pub use inbound::{InboundLimiter, InboundViolation};
use local::{LocalPermit, LocalPermits};
use rate::RateCounter;
pub use redis::{Claim, RedisLimits};
pub use room::Room;

/// A limit, named after its key under `limits.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Connections,
    /// Across the fleet.
    ConnectionsPerUser,
    /// As `ConnectionsPerUser`, unless an instance that holds some of them is dead.
    ConnectionsPerUserOrDead,
    /// On this instance.
    ConnectionsPerIp,
    /// Across the fleet.
    RatePerIp,
    /// Across the fleet.
    RatePerUser,
}

impl Limit {
    /// The key under `limits.`, the label in metrics, and the code in errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "max_connections",
            Self::ConnectionsPerUser | Self::ConnectionsPerUserOrDead => "max_connections_per_user",
            Self::ConnectionsPerIp => "max_connections_per_ip",
            Self::RatePerIp => "connects_per_second_per_ip",
            Self::RatePerUser => "connects_per_second_per_user",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserLimit {
    Connections,
    /// As `Connections`, unless an instance that holds some of them is dead.
    ConnectionsOrDead,
    Rate,
}

impl From<UserLimit> for Limit {
    fn from(limit: UserLimit) -> Self {
        match limit {
            UserLimit::Connections => Self::ConnectionsPerUser,
            UserLimit::ConnectionsOrDead => Self::ConnectionsPerUserOrDead,
            UserLimit::Rate => Self::RatePerUser,
        }
    }
}

/// The permits of one connection; dropping them returns them.
#[derive(Debug, Default)]
pub struct AdmissionPermits {
    /// Connects that the strictest rate still allows in this second; `None` without a rate limit.
    pub remaining: Option<u32>,
    /// Boxed: without limits, it costs a connection one pointer.
    held: Option<Box<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    connection: Option<LocalPermit<()>>,
    address: Option<LocalPermit<IpAddr>>,
    user: Option<FleetPermit>,
}

impl AdmissionPermits {
    fn held(&mut self) -> &mut Held {
        self.held.get_or_insert_default()
    }

    fn has_address(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.address.is_some())
    }

    /// Returns the user's permit, and keeps those of the instance.
    pub fn release_user(&mut self) {
        if let Some(held) = &mut self.held {
            held.user = None;
        }
    }
}

/// Sockets of addresses at their limit whose request is still read: few, so that they cannot use up the descriptors.
const MAX_OVER_LIMIT: u32 = 64;

/// The permits of an accepted socket that has sent no request yet.
#[derive(Debug, Default)]
pub struct SocketPermits {
    /// Those that its connection keeps.
    pub connection: AdmissionPermits,
    /// Its address is at its limit: the request is read only to be answered.
    over_limit: Option<LocalPermit<()>>,
}

impl SocketPermits {
    pub fn is_over_limit(&self) -> bool {
        self.over_limit.is_some()
    }
}

#[derive(Debug)]
pub struct Limiter {
    connections: Arc<LocalPermits<()>>,
    addresses: Arc<LocalPermits<IpAddr>>,
    over_limit: Arc<LocalPermits<()>>,
    permits: Arc<FleetPermits>,
    room: Arc<Room>,
    rate: RateCounter,
    common: Arc<Common>,
    sharing: OnceLock<Sharing>,
}

/// What the task needs that writes permits to Redis, which starts once connections per user are limited.
#[derive(Debug)]
struct Sharing {
    instance: InstanceId,
    lease: Duration,
    shutdown: Shutdown,
}

struct Common {
    /// `None` for the in-process backplane.
    fleet: Option<Arc<RedisLimits>>,
    limits: LiveLimits,
    metrics: Arc<Metrics>,
    unshared: LogRate,
}

impl std::fmt::Debug for Common {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Common").field("fleet", &self.fleet.is_some()).finish_non_exhaustive()
    }
}

impl Common {
    /// Counts a decision made without the fleet's count.
    fn count_unshared(&self, limit: Limit) {
        self.metrics.limits_unshared.with_label_values(&[limit.name()]).inc();
        if let Some(held_back) = self.unshared.admit() {
            warn!(limit = limit.name(), held_back, "redis did not reply: limit counted by this instance alone");
        }
    }
}

impl Limiter {
    pub fn new(config: &Config, backplane: &Backplane, registry: &Arc<Registry>, metrics: &Arc<Metrics>) -> Self {
        let room = Room::new(config, backplane, Arc::clone(registry));
        let fleet = backplane.redis().map(|redis| RedisLimits::new(Arc::clone(redis), &config.redis.prefix).into());
        let (limits, metrics) = (config.limits.clone(), Arc::clone(metrics));
        let common = Arc::new(Common { fleet, limits, metrics, unshared: LogRate::new() });
        Self {
            connections: Arc::default(),
            addresses: Arc::default(),
            over_limit: Arc::default(),
            permits: FleetPermits::new(Arc::clone(&common)),
            room,
            rate: RateCounter::default(),
            common,
            sharing: OnceLock::new(),
        }
    }

    /// Handles the messages of other instances about users at the limit.
    pub fn room(&self) -> &Arc<Room> {
        &self.room
    }

    /// Starts the task that makes room, and [`Limiter::share`].
    pub fn start(&self, instance: &InstanceId, lease: Duration, shutdown: &Shutdown) {
        let room = Arc::clone(&self.room);
        shutdown.spawn_until_stop(async move { room.run().await });
        self.sharing.get_or_init(|| Sharing { instance: instance.clone(), lease, shutdown: shutdown.clone() });
        self.share();
    }

    /// Starts the task that writes this instance's permits to Redis, unless it runs: if connections per user are limited,
    /// which a reload may change.
    pub fn share(&self) {
        let Some(Sharing { instance, lease, shutdown }) = self.sharing.get() else { return };
        if let (Some(_), Some(fleet)) = (self.limits().max_connections_per_user, &self.common.fleet)
            && let Some(lease) = self.permits.lease(Arc::clone(fleet), instance, *lease)
        {
            shutdown.spawn_service(lease.run(shutdown.stopping().clone()));
            info!(limit = Limit::ConnectionsPerUser.name(), "limit shared with the fleet");
        }
    }

    fn limits(&self) -> Arc<config::Limits> {
        self.common.limits.get()
    }

    /// Admits a connection, or returns the limit that is reached; so do the methods below.
    pub fn admit_connection(&self, permits: &mut AdmissionPermits) -> Result<(), Limit> {
        if let Some(most) = self.limits().max_connections {
            let permit = self.connections.take((), most).ok_or_else(|| self.refuse(Limit::Connections))?;
            permits.held().connection = Some(permit);
        }
        Ok(())
    }

    /// Counts a socket for its address before it has sent a request. Beyond the limit, the requests of a few are still read,
    /// so that they are answered; `Err`: not this one's.
    pub fn admit_socket(&self, address: IpAddr) -> Result<SocketPermits, Limit> {
        let mut permits = SocketPermits::default();
        let Some(most) = self.limits().max_connections_per_ip else { return Ok(permits) };
        match self.addresses.take(network(address), most) {
            Some(permit) => permits.connection.held().address = Some(permit),
            None => {
                let permit =
                    self.over_limit.take((), MAX_OVER_LIMIT).ok_or_else(|| self.refuse(Limit::ConnectionsPerIp))?;
                permits.over_limit = Some(permit);
            }
        }
        Ok(permits)
    }

    /// The address may be counted since [`Limiter::admit_socket`].
    pub async fn admit_address(&self, address: IpAddr, permits: &mut AdmissionPermits) -> Result<(), Limit> {
        let network = network(address);
        let (most, rate) = {
            let limits = self.limits();
            (limits.max_connections_per_ip, limits.connects_per_second_per_ip)
        };
        if let Some(most) = most
            && !permits.has_address()
        {
            let permit = self.addresses.take(network, most).ok_or_else(|| self.refuse(Limit::ConnectionsPerIp))?;
            permits.held().address = Some(permit);
        }
        let Some(most) = rate else { return Ok(()) };
        self.admit_rate(Limit::RatePerIp, &format!("ip:{network}"), most, permits).await
    }

    pub async fn admit_user(&self, user: &UserId, permits: &mut AdmissionPermits) -> Result<(), UserLimit> {
        let (is_limited, rate) = {
            let limits = self.limits();
            (limits.max_connections_per_user.is_some(), limits.connects_per_second_per_user)
        };
        if let Some(most) = rate {
            self.admit_rate(UserLimit::Rate, &format!("user:{user}"), most, permits).await?;
        }
        if is_limited {
            // Boxed: few connections need it.
            let mut permit = Box::pin(self.permits.take(user)).await;
            if permit.is_none() {
                permit = Box::pin(self.room.make(user, &self.permits)).await;
            }
            let full = || if self.permits.is_unsure() { UserLimit::ConnectionsOrDead } else { UserLimit::Connections };
            permits.held().user = Some(permit.ok_or_else(|| self.refuse(full()))?);
        }
        Ok(())
    }

    async fn admit_rate<L>(&self, limit: L, key: &str, most: u32, permits: &mut AdmissionPermits) -> Result<(), L>
    where
        L: Into<Limit> + Copy,
    {
        let count = Box::pin(self.rate.count(&self.common, limit.into(), key, most)).await;
        let remaining = most.saturating_sub(count);
        permits.remaining = Some(permits.remaining.map_or(remaining, |other| other.min(remaining)));
        if count > most { Err(self.refuse(limit)) } else { Ok(()) }
    }

    fn refuse<L: Into<Limit> + Copy>(&self, limit: L) -> L {
        self.common.metrics.limited.with_label_values(&[limit.into().name()]).inc();
        limit
    }
}

/// The unit that is counted as one client address: an IPv4 address, or the /64 of an IPv6 subscriber.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_itself_or_its_64() {
        for (address, counted) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2::", "2001:db8:1:2::"),
            ("2001:db8:1:3::1", "2001:db8:1:3::"),
        ] {
            assert_eq!(network(address.parse().unwrap()).to_string(), counted, "{address}");
        }
    }
}
