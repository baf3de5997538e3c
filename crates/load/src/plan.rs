//! Which user has which connections, and how many deliveries follow from it.

use std::net::SocketAddr;

use crate::args::{Mode, Phase, Plan};

/// The number of messages published to each user.
pub(crate) type SentCounts = Vec<u64>;

impl Plan {
    pub(crate) fn phases(&self) -> impl Iterator<Item = &Phase> {
        std::iter::once(&self.phase).chain(&self.then)
    }

    pub(crate) fn users(&self) -> u32 {
        self.users.unwrap_or(self.connections).max(1)
    }

    fn is_fanout(&self) -> bool {
        self.phases().any(|phase| phase.mode == Mode::Fanout)
    }

    fn reaches_all(&self) -> bool {
        self.phases().any(|phase| phase.mode.reaches_all())
    }

    /// The number of connections that receive each message.
    pub(crate) fn copies(&self) -> u32 {
        if self.reaches_all() { self.connections } else { 1 }
    }

    pub(crate) fn user_of(&self, connection: u32) -> u32 {
        if self.is_fanout() { 0 } else { connection % self.users() }
    }

    /// The server of a connection.
    pub(crate) fn target_of(&self, connection: u32) -> SocketAddr {
        let index = connection as usize % self.target.len().max(1);
        self.target.get(index).copied().unwrap_or(([127, 0, 0, 1], 8080).into())
    }

    /// The number of connections that receive a message to each user. One to all counts as one to the first user.
    pub(crate) fn connections_per_user(&self) -> impl Iterator<Item = u64> {
        let (connections, users) = (u64::from(self.connections), u64::from(self.users()));
        let reaches_all = self.reaches_all();
        (0..users).map(move |user| match user {
            0 if reaches_all => connections,
            _ if reaches_all => 0,
            _ => connections / users + u64::from(user < connections % users),
        })
    }

    /// The number of deliveries that these messages require.
    pub(crate) fn expected(&self, sent: &SentCounts) -> u64 {
        self.connections_per_user().zip(sent).map(|(connections, sent)| sent * connections).sum()
    }
}

#[cfg(test)]
mod tests {
    use crate::args::tests::plan;

    #[test]
    fn connections_are_divided_among_the_servers() {
        let plan = plan(&["--target", "127.0.0.1:1,127.0.0.1:2"]);
        let ports: Vec<_> = (0..4).map(|connection| plan.target_of(connection).port()).collect();
        assert_eq!(ports, [1, 2, 1, 2]);
    }

    #[test]
    fn connections_are_divided_among_users_unless_one_user_has_all() {
        let unicast = plan(&["--connections", "5", "--users", "3"]);
        assert_eq!(unicast.connections_per_user().collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!((unicast.user_of(4), unicast.copies(), unicast.expected(&vec![1, 2, 3])), (1, 1, 9));
        let fanout = plan(&["--connections", "5", "--users", "3", "--mode", "fanout"]);
        assert_eq!(fanout.connections_per_user().collect::<Vec<_>>(), [5, 0, 0]);
        assert_eq!((fanout.user_of(4), fanout.copies(), fanout.expected(&vec![2, 0, 0])), (0, 5, 10));
        let broadcast = plan(&["--connections", "5", "--users", "3", "--mode", "broadcast"]);
        assert_eq!((broadcast.user_of(4), broadcast.copies(), broadcast.expected(&vec![2, 0, 0])), (1, 5, 10));
    }
}
