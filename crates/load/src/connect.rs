//! Opens the client connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::args::Plan;
use crate::greeting::{Greeted, Introduction};
use crate::plan::SentCounts;
use crate::receiver::Receiver;
use crate::{Gateway, LoadError, Progress};

/// For the whole of connecting, up to the greeting.
const DEADLINE: Duration = Duration::from_secs(30);

/// Maximum number of concurrent handshakes.
const CONCURRENCY: usize = 128;

/// Opens all connections at the plan's rate, and passes each to the receiver after its greeting. If there are cursors,
/// each client resumes from its user's; `received` has the number of messages that each user has received.
pub(crate) async fn connect(
    plan: &Arc<Plan>,
    receiver: &Receiver,
    gateway: &impl Gateway,
    (received, cursors): (&SentCounts, &[String]),
    progress: &impl Fn(Progress),
) -> Result<(), LoadError> {
    let (start, interval) = (Instant::now(), Duration::from_secs(1) / plan.connect_rate.max(1));
    let mut handshakes = JoinSet::new();
    let add = |(number, opened): Opened| -> Result<(), LoadError> {
        let client = opened.map_err(|reason| LoadError::Connect(number, plan.target_of(number), reason))?;
        let received = received.get(plan.user_of(number) as usize).copied().unwrap_or_default();
        receiver.add(client, received)
    };
    for number in 0..plan.connections {
        sleep_until(start + interval.saturating_mul(number)).await;
        while handshakes.len() >= CONCURRENCY {
            if let Some(Ok(opened)) = handshakes.join_next().await {
                add(opened)?;
            }
        }
        if number % 100 == 0 {
            progress(Progress::of("connecting", number.into(), plan.connections.into()));
        }
        let user = plan.user_of(number);
        let (token, cursor) = (gateway.token(&user.to_string()), cursors.get(user as usize).cloned());
        let introduction = Introduction { number, token, cursor };
        let plan = Arc::clone(plan);
        handshakes.spawn(async move {
            let opened = timeout(DEADLINE, Greeted::open(&plan, &introduction)).await;
            (number, opened.unwrap_or_else(|_| Err("no answer in time".to_owned())))
        });
    }
    progress(Progress::of("connecting", plan.connections.into(), plan.connections.into()));
    while let Some(opened) = handshakes.join_next().await {
        if let Ok(opened) = opened {
            add(opened)?;
        }
    }
    Ok(())
}

/// The number of a connection, and its client or the reason why it could not connect.
type Opened = (u32, Result<Greeted, String>);

pub(crate) async fn connect_tcp(plan: &Plan, number: u32) -> std::io::Result<TcpStream> {
    let target = plan.target_of(number);
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Only the loopback addresses of IPv4 are many.
    if plan.sources > 1 && target.is_ipv4() && target.ip().is_loopback() {
        let last = u8::try_from(number % u32::from(plan.sources)).unwrap_or_default() + 1;
        // With SO_REUSEADDR the port is chosen for each destination, so that every source address has all ports.
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)))?;
    }
    let socket = socket.connect(target).await?;
    socket.set_nodelay(true)?;
    Ok(socket)
}
