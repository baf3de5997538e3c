//! The slots that are on their way from one node to another, as the node that gives them away reports them.

use std::collections::HashMap;

use super::slot_map::host_of;
use crate::config::NodeAddress;

/// The slots that the node which replied is giving away, and to whom: `[SLOT->-ID]` in its own line of `CLUSTER NODES`.
pub(super) fn parse(nodes: &str, asked: &str) -> Vec<(u16, NodeAddress)> {
    let lines = || nodes.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let addresses: HashMap<_, _> =
        lines().filter_map(|fields| Some((*fields.first()?, address(fields.get(1)?, asked)?))).collect();
    let own = lines().find(|fields| fields.get(2).is_some_and(|flags| flags.split(',').any(|flag| flag == "myself")));
    let migrating = |field: &&str| {
        let (slot, target) = field.strip_prefix('[')?.strip_suffix(']')?.split_once("->-")?;
        Some((slot.parse().ok()?, addresses.get(target)?.clone()))
    };
    own.iter().flat_map(|fields| fields.iter().skip(8)).filter_map(migrating).collect()
}

/// Of `HOST:PORT@BUS,NAME`.
fn address(field: &str, asked: &str) -> Option<NodeAddress> {
    let (host, port) = field.split(['@', ',']).next()?.rsplit_once(':')?;
    Some(NodeAddress { host: host_of(host, asked), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slots_on_their_way_and_their_targets_are_those_of_the_nodes_own_line() {
        let nodes = "aa 10.0.0.1:6379@16379,one master - 0 0 1 connected 0-5460 [7->-bb]\n\
                     bb :6380@16380 myself,master - 0 0 2 connected 5461-10922 [5500->-cc] [6->-zz] [9-<-aa]\n\
                     cc ::1:6381@16381 master - 0 0 3 connected 10923-16383\n";
        assert_eq!(parse(nodes, "here"), [(5500, NodeAddress { host: "::1".into(), port: 6381 })]);
        assert_eq!(parse("nonsense", "here"), []);
    }
}
