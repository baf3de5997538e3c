//! Which user has which connections, and how many deliveries follow from it.

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

    /// The number of connections that receive each message.
    pub(crate) fn copies(&self) -> u32 {
        if self.is_fanout() { self.connections } else { 1 }
    }

    pub(crate) fn user_of(&self, connection: u32) -> u32 {
        if self.is_fanout() { 0 } else { connection % self.users() }
    }

    /// The number of connections of each user.
    pub(crate) fn connections_per_user(&self) -> impl Iterator<Item = u64> {
        let (connections, users) = (u64::from(self.connections), u64::from(self.users()));
        let is_fanout = self.is_fanout();
        (0..users).map(move |user| match user {
            0 if is_fanout => connections,
            _ if is_fanout => 0,
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
    fn connections_are_divided_among_users_unless_one_user_has_all() {
        let unicast = plan(&["--connections", "5", "--users", "3"]);
        assert_eq!(unicast.connections_per_user().collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!((unicast.user_of(4), unicast.copies(), unicast.expected(&vec![1, 2, 3])), (1, 1, 9));
        let fanout = plan(&["--connections", "5", "--users", "3", "--mode", "fanout"]);
        assert_eq!(fanout.connections_per_user().collect::<Vec<_>>(), [5, 0, 0]);
        assert_eq!((fanout.user_of(4), fanout.copies(), fanout.expected(&vec![2, 0, 0])), (0, 5, 10));
    }
}
