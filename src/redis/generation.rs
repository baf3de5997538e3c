//! All connections to a server end together: once it is no longer the one to use, its late replies are not believed.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Error, ServerInfo};

/// The generation of the connections in use, which all end together, and the servers that they lead to.
#[derive(Debug, Default)]
pub(super) struct Generations {
    number: watch::Sender<u64>,
    /// Each is alive as long as its connection.
    servers: Mutex<Vec<Weak<str>>>,
}

/// The generation of one connection.
#[derive(Debug, Clone)]
pub(super) struct Generation {
    own: u64,
    number: watch::Receiver<u64>,
}

impl Generations {
    /// Of a connection that is made from now on.
    pub(super) fn current(&self) -> Generation {
        let number = self.number.subscribe();
        let own = *number.borrow();
        Generation { own, number }
    }

    /// Adds a connection to this server, until `server.identity` is dropped.
    pub(super) fn add(&self, server: &ServerInfo) {
        let mut servers = self.servers.lock();
        servers.retain(|server| server.strong_count() > 0);
        servers.push(Arc::downgrade(&server.identity));
    }

    /// Whether a connection leads to another server than this one, which is usable.
    pub(super) fn must_end(&self, found: &ServerInfo) -> bool {
        let is_usable = found.is_identified() && !found.is_replica && !found.is_cluster && !found.is_loading;
        is_usable && self.servers.lock().iter().filter_map(Weak::upgrade).any(|server| server != found.identity)
    }

    pub(super) fn end(&self) {
        self.number.send_modify(|number| *number += 1);
    }

    /// As [`Generations::end`], if there is a connection: an attempt at one fails by itself.
    pub(super) fn end_if_used(&self) {
        if self.servers.lock().iter().any(|server| server.strong_count() > 0) {
            self.end();
        }
    }
}

impl Generation {
    /// Fails once the generation has ended: a reply that arrives later is not believed. Large work should be boxed.
    pub(super) async fn run<T>(&mut self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        tokio::select! {
            biased;
            () = self.ended() => Err(Error::Moved),
            result = work => result,
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.number.borrow() != self.own
    }

    async fn ended(&mut self) {
        let own = self.own;
        self.number.wait_for(|number| *number != own).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_master_ends_the_connections_and_nothing_else_does() {
        let generations = Generations::default();
        let must_end = |info: &str| generations.must_end(&ServerInfo::parse(info));
        assert!(!must_end("run_id:b\r\nrole:master\r\n"), "there are no connections");
        let connected = ServerInfo::parse("run_id:a\r\nrole:master\r\n");
        generations.add(&connected);
        let nothing = [
            "run_id:a\r\n",
            "run_id:a\r\nrole:slave\r\n",
            "run_id:b\r\nrole:slave\r\n",
            "role:master\r\n",
            "run_id:b\r\nloading:1\r\n",
        ];
        assert_eq!(nothing.map(must_end), [false; 5]);
        assert!(!must_end("run_id:b\r\nredis_mode:cluster\r\n"));
        assert!(must_end("run_id:b\r\nrole:master\r\n"));
        drop(connected);
        assert!(!must_end("run_id:b\r\nrole:master\r\n"), "they are closed");
    }

    #[tokio::test]
    async fn a_reply_of_an_ended_generation_is_not_believed() {
        let generations = Generations::default();
        let (mut old, reply) = (generations.current(), async || Ok(()));
        assert!(old.run(reply()).await.is_ok());
        generations.end();
        for _ in 0..2 {
            assert!(matches!(old.run(reply()).await, Err(Error::Moved)));
        }
        assert!(generations.current().run(reply()).await.is_ok());
    }
}
