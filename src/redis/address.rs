//! The address in `redis.url` may come to lead to another server while the connections stay with the old one, which may
//! go on confirming for many seconds after an orderly failover. A fresh connection each second finds out.

use std::convert::Infallible;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::topology::Server;
use super::{Error, Redis};

const CHECK_EVERY: Duration = Duration::from_secs(1);

/// A check that began before the address moved must leave time for the next: a move is found within 3 s.
const CHECK_DEADLINE: Duration = Duration::from_millis(1500);

impl Redis {
    /// Checks each second which server the address leads to, and moves there. Runs until dropped.
    pub(super) async fn follow_address(&self, server: &Server) -> Infallible {
        let mut ticks = interval(CHECK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (mut failing, mut is_told) = (false, false);
        loop {
            ticks.tick().await;
            let checked = check_address(server).await;
            let failed = checked.is_err();
            match checked {
                // One line each time it begins: the links may go on working, or they report the outage themselves.
                Err(error) => {
                    self.count_error(error.kind());
                    if !failing && !server.node.outage.is_reported() {
                        is_told = true;
                        warn!(address = %server.node.address(), %error, kind = error.kind(), "cannot check which server the address of redis leads to");
                    }
                }
                Ok(()) if std::mem::take(&mut is_told) => {
                    info!(address = %server.node.address(), "the address of redis leads to a server again");
                }
                Ok(()) => {}
            }
            failing = failed;
        }
    }
}

async fn check_address(server: &Server) -> Result<(), Error> {
    let looking_up = server.node.server_at_address();
    let found = timeout(CHECK_DEADLINE, looking_up).await.map_err(|_| Error::Timeout(CHECK_DEADLINE))??;
    if server.node.generations.must_end(&found) {
        let identity = &*found.identity;
        warn!(address = %server.node.address(), server = identity, "the address of redis leads to another server: replacing all connections");
        server.node.generations.end();
    }
    Ok(())
}
