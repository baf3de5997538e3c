//! Which node of a cluster has which slots, as one of its nodes reports it.

use redis::{FromRedisValue, Value};

use super::Error;
use super::slot::SLOTS;
use crate::config::NodeAddress;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct SlotMap {
    /// Of each slot, the index of its master; none if no node has it.
    owners: Vec<Option<u16>>,
    pub(super) masters: Vec<NodeAddress>,
    /// Those that have not failed.
    pub(super) replicas: Vec<NodeAddress>,
}

impl SlotMap {
    pub(super) fn owner(&self, slot: u16) -> Option<&NodeAddress> {
        let owner = (*self.owners.get(usize::from(slot))?)?;
        self.masters.get(usize::from(owner))
    }

    /// Whether each slot has the same owner.
    pub(super) fn agrees(&self, other: &Self) -> bool {
        self == other || (0..SLOTS).all(|slot| self.owner(slot) == other.owner(slot))
    }

    /// Masters and replicas, in this order.
    pub(super) fn nodes(&self) -> Vec<NodeAddress> {
        [self.masters.as_slice(), self.replicas.as_slice()].concat()
    }

    /// Parses the reply to `CLUSTER SLOTS`: for each range its ends and its nodes, the master first. A node that does not
    /// know its own host gives an empty one: that of the connection it was asked through, `asked`.
    pub(super) fn parse(reply: &Value, asked: &str) -> Result<Self, Error> {
        let mut map = Self { owners: vec![None; usize::from(SLOTS)], ..Self::default() };
        let unexpected = || Error::unexpected(format!("CLUSTER SLOTS: {reply:?}"));
        let Value::Array(ranges) = reply else { return Err(unexpected()) };
        for range in ranges {
            let Value::Array(parts) = range else { return Err(unexpected()) };
            let [Value::Int(first), Value::Int(last), master, replicas @ ..] = parts.as_slice() else {
                return Err(unexpected());
            };
            let first = usize::try_from(*first).map_err(|_| unexpected())?;
            let last = usize::try_from(*last).map_err(|_| unexpected())?;
            let master = add(&mut map.masters, address(master, asked).ok_or_else(unexpected)?);
            map.owners.get_mut(first..=last).ok_or_else(unexpected)?.fill(u16::try_from(master).ok());
            for replica in replicas {
                add(&mut map.replicas, address(replica, asked).ok_or_else(unexpected)?);
            }
        }
        Ok(map)
    }
}

/// Returns the index of the address.
fn add(addresses: &mut Vec<NodeAddress>, address: NodeAddress) -> usize {
    addresses.iter().position(|known| *known == address).unwrap_or_else(|| {
        addresses.push(address);
        addresses.len() - 1
    })
}

fn address(node: &Value, asked: &str) -> Option<NodeAddress> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), ..] = parts.as_slice() else { return None };
    let host = Option::<String>::from_redis_value_ref(host).ok()?.filter(|host| !host.is_empty() && host != "?");
    Some(NodeAddress { host: host.unwrap_or_else(|| asked.to_owned()), port: u16::try_from(*port).ok()? })
}

/// The address in the error `MOVED SLOT HOST:PORT`, or the same of `ASK`.
pub(super) fn redirection(detail: &str, asked: &str) -> Option<NodeAddress> {
    let (host, port) = detail.split(' ').nth(1)?.rsplit_once(':')?;
    Some(NodeAddress { host: host_of(host, asked), port: port.parse().ok()? })
}

/// Without a host it is the one that was asked.
pub(super) fn host_of(host: &str, asked: &str) -> String {
    if host.is_empty() { asked } else { host }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(host: &str, port: i64) -> Value {
        Value::Array(vec![Value::BulkString(host.into()), Value::Int(port), Value::BulkString("id".into())])
    }

    fn at(host: &str, port: u16) -> NodeAddress {
        NodeAddress { host: host.into(), port }
    }

    fn range(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    #[test]
    fn slots_have_the_owner_that_the_node_reports() {
        let ranges = vec![
            range(0, 9, vec![node("a", 1), node("b", 2)]),
            range(11, 16_383, vec![node("", 3), node("?", 4)]),
            range(10, 10, vec![node("a", 1), node("b", 2)]),
        ];
        let map = SlotMap::parse(&Value::Array(ranges), "here").unwrap();
        assert_eq!((map.owner(0), map.owner(10)), (Some(&at("a", 1)), Some(&at("a", 1))));
        assert_eq!(map.owner(11), Some(&at("here", 3)));
        assert_eq!(map.masters, [at("a", 1), at("here", 3)]);
        assert_eq!(map.replicas, [at("b", 2), at("here", 4)]);
        let other = SlotMap::parse(&Value::Array(vec![range(0, 16_383, vec![node("a", 1)])]), "here").unwrap();
        assert!(map.agrees(&map.clone()) && !map.agrees(&other));
    }

    #[test]
    fn a_slot_that_no_node_has_has_no_owner_and_nonsense_is_refused() {
        let map = SlotMap::parse(&Value::Array(vec![range(5, 5, vec![node("a", 1)])]), "here").unwrap();
        assert_eq!(map.owner(4), None);
        for nonsense in
            [Value::Nil, Value::Array(vec![Value::Nil]), Value::Array(vec![range(0, 16_384, vec![node("a", 1)])])]
        {
            assert_eq!(SlotMap::parse(&nonsense, "here").unwrap_err().kind(), "malformed");
        }
    }

    #[test]
    fn a_redirection_names_a_node() {
        assert_eq!(redirection("3999 127.0.0.1:6381", "x"), Some(at("127.0.0.1", 6381)));
        assert_eq!(redirection("3999 ::1:6381", "x"), Some(at("::1", 6381)));
        assert_eq!(redirection("3999 :6381", "x"), Some(at("x", 6381)));
        assert_eq!(redirection("3999", "x"), None);
    }
}
