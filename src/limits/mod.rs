//! Limits on the number and the rate of connections.
//!
//! The limits of one instance are counted in memory. Those of the fleet are counted in Redis, and by this instance alone
//! while Redis is away: an outage refuses no client. A limit that is not configured costs nothing.

mod fleet;
mod inbound;
mod local;
mod rate;
mod redis;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::backplane::Backplane;
use crate::config::Config;
use crate::log::LogRate;
use crate::metrics::Metrics;
use crate::protocol::{InstanceId, UserId};
use crate::shutdown::Shutdown;
use fleet::{FleetPermit, FleetPermits};
pub use inbound::{InboundLimiter, InboundViolation};
use local::{LocalPermit, LocalPermits};
use rate::RateCounter;
pub use redis::{Claim, RedisLimits};

/// A limit, named after its key under `limits.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Connections,
    /// Across the fleet.
    ConnectionsPerUser,
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
            Self::ConnectionsPerUser => "max_connections_per_user",
            Self::ConnectionsPerIp => "max_connections_per_ip",
            Self::RatePerIp => "connects_per_second_per_ip",
            Self::RatePerUser => "connects_per_second_per_user",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UserLimit {
    Connections,
    Rate,
}

impl From<UserLimit> for Limit {
    fn from(limit: UserLimit) -> Self {
        match limit {
            UserLimit::Connections => Self::ConnectionsPerUser,
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

    /// Returns the user's permit, and keeps those of the instance.
    pub fn release_user(&mut self) {
        if let Some(held) = &mut self.held {
            held.user = None;
        }
    }
}

#[derive(Debug)]
pub struct Limiter {
    connections: Option<Arc<LocalPermits<()>>>,
    addresses: Option<Arc<LocalPermits<IpAddr>>>,
    permits: Option<Arc<FleetPermits>>,
    rate: RateCounter,
    rate_per_ip: Option<u32>,
    rate_per_user: Option<u32>,
    common: Arc<Common>,
}

struct Common {
    /// `None` for the in-process backplane.
    fleet: Option<Arc<RedisLimits>>,
    metrics: Arc<Metrics>,
    unshared: LogRate,
    refused: LogRate,
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
    pub fn new(config: &Config, backplane: &Backplane, metrics: &Arc<Metrics>) -> Self {
        let fleet = backplane
            .redis()
            .map(|redis| RedisLimits::new(Arc::clone(redis), &config.redis.prefix, config.presence.lease).into());
        let config = &config.limits;
        let common =
            Arc::new(Common { fleet, metrics: Arc::clone(metrics), unshared: LogRate::new(), refused: LogRate::new() });
        Self {
            connections: config.max_connections.map(LocalPermits::new),
            addresses: config.max_connections_per_ip.map(LocalPermits::new),
            permits: config.max_connections_per_user.map(|most| FleetPermits::new(most, Arc::clone(&common))),
            rate: RateCounter::default(),
            rate_per_ip: config.connects_per_second_per_ip,
            rate_per_user: config.connects_per_second_per_user,
            common,
        }
    }

    /// Starts the task that writes this instance's permits to Redis, if connections per user are limited.
    pub fn start(&self, instance: &InstanceId, lease: Duration, shutdown: &Shutdown) {
        if let (Some(permits), Some(fleet)) = (&self.permits, &self.common.fleet) {
            let lease = permits.lease(Arc::clone(fleet), instance, lease);
            shutdown.spawn_service(lease.run(shutdown.stopping().clone()));
            info!(limit = Limit::ConnectionsPerUser.name(), "limit shared with the fleet");
        }
    }

    /// Admits a connection, or returns the limit that is reached; so do the methods below.
    pub fn admit_connection(&self, permits: &mut AdmissionPermits) -> Result<(), Limit> {
        if let Some(limit) = &self.connections {
            let permit = limit.take(()).ok_or_else(|| self.refuse(Limit::Connections))?;
            permits.held().connection = Some(permit);
        }
        Ok(())
    }

    pub async fn admit_address(&self, address: IpAddr, permits: &mut AdmissionPermits) -> Result<(), Limit> {
        let network = network(address);
        if let Some(limit) = &self.addresses {
            let permit = limit.take(network).ok_or_else(|| self.refuse(Limit::ConnectionsPerIp))?;
            permits.held().address = Some(permit);
        }
        let Some(most) = self.rate_per_ip else { return Ok(()) };
        self.admit_rate(Limit::RatePerIp, &format!("ip:{network}"), most, permits).await
    }

    pub async fn admit_user(&self, user: &UserId, permits: &mut AdmissionPermits) -> Result<(), UserLimit> {
        if let Some(most) = self.rate_per_user {
            self.admit_rate(UserLimit::Rate, &format!("user:{user}"), most, permits).await?;
        }
        if let Some(limit) = &self.permits {
            let permit = limit.take(user).await.ok_or_else(|| self.refuse(UserLimit::Connections))?;
            permits.held().user = Some(permit);
        }
        Ok(())
    }

    async fn admit_rate<L>(&self, limit: L, key: &str, most: u32, permits: &mut AdmissionPermits) -> Result<(), L>
    where
        L: Into<Limit> + Copy,
    {
        let count = self.rate.count(&self.common, limit.into(), key, most).await;
        let remaining = most.saturating_sub(count);
        permits.remaining = Some(permits.remaining.map_or(remaining, |other| other.min(remaining)));
        if count > most { Err(self.refuse(limit)) } else { Ok(()) }
    }

    fn refuse<L: Into<Limit> + Copy>(&self, limit: L) -> L {
        let name = limit.into().name();
        self.common.metrics.limited.with_label_values(&[name]).inc();
        if let Some(held_back) = self.common.refused.admit() {
            info!(limit = name, held_back, "connection refused");
        }
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
