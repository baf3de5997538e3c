//! Servers that are no longer among the nodes with slots: when the connections to them end.

use std::sync::Arc;

use redis::cmd;
use tracing::info;

use super::super::call::{Asking, Call};
use super::super::slot_map::SlotMap;
use super::super::topology::{Lane, Server};
use super::{ASK_DEADLINE, Cluster};
use crate::config::NodeAddress;
use crate::protocol::millis;

impl Cluster {
    /// Ends the connections to servers that left the cluster: nothing that they still say is believed. The second time that
    /// one is absent, since nodes may disagree for a moment.
    pub(super) fn leave_absent(&self, slots: &SlotMap) {
        let mut absent = self.absent.lock();
        let before = std::mem::take(&mut *absent);
        self.servers.lock().retain(|address, server| {
            let is_present = slots.masters.contains(address) || slots.replicas.contains(address);
            let stays = is_present || !before.contains(address);
            if !stays {
                leave(address, server);
            } else if !is_present {
                absent.insert(address.clone());
            }
            stays
        });
    }

    /// Ends the connections to a master that is absent at once if it does not reply: it failed. One that has handed over its
    /// slots is absent until the others know it as a replica, and keeps its subscribers.
    pub(super) async fn leave_failed(&self, master: &NodeAddress) {
        let server = self.servers.lock().get(master).map(Arc::clone);
        let Some(server) = server else { return };
        let ping = cmd("PING");
        let asked = server.run_within(ASK_DEADLINE, Lane::Commands, &[Call::Command(&ping)], Asking::Owner).await;
        if asked.is_err() {
            self.servers.lock().remove(master);
            leave(master, &server);
        }
    }
}

fn leave(address: &NodeAddress, server: &Server) {
    server.node.generations.end();
    if let Some(lasted) = server.node.outage.end() {
        let lasted_ms = millis(lasted);
        info!(%address, lasted_ms, "the redis server that did not reply has been replaced, or has left");
    }
}
