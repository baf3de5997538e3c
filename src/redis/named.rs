//! What the sentinels answered last, and which master follows from it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Error;
use crate::config::NodeAddress;

/// An older epoch than the current master's is believed only after this long, in which no sentinel named that master:
/// most of them may learn of a failover later than the one that carried it out.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5);

/// A master, and how many failovers led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) address: NodeAddress,
    pub(super) epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has not been asked yet.
    Awaited,
    Failed {
        kind: &'static str,
        is_refusal: bool,
        why: String,
    },
    /// It does not watch a master of this name.
    Unknown(String),
    Named(Named),
}

#[derive(Debug)]
pub(super) struct State {
    /// One for each sentinel that `redis.url` names, and for each other one that has answered.
    answers: BTreeMap<NodeAddress, Answer>,
    current: Option<Named>,
    /// When a sentinel last named the current one.
    confirmed: Instant,
    /// Why the one that they name is not used.
    refused: Option<String>,
}

impl Answer {
    pub(super) fn failed(sentinel: &NodeAddress, error: &Error) -> Self {
        let advice = match error.kind() {
            "NOAUTH" | "WRONGPASS" | "NOPERM" => " (redis.sentinel_username, redis.sentinel_password)",
            "unknown_command" => " (it is no sentinel)",
            _ => "",
        };
        let why = format!("the sentinel {sentinel} does not answer: {error}{advice}");
        Self::Failed { kind: error.kind(), is_refusal: error.is_refusal(), why }
    }

    fn named(&self) -> Option<&Named> {
        if let Self::Named(named) = self { Some(named) } else { None }
    }
}

impl State {
    /// With the sentinels that `redis.url` names.
    pub(super) fn new(sentinels: &[NodeAddress]) -> Self {
        let answers = sentinels.iter().map(|sentinel| (sentinel.clone(), Answer::Awaited)).collect();
        Self { answers, current: None, confirmed: Instant::now(), refused: None }
    }

    pub(super) fn current(&self) -> Option<&Named> {
        self.current.as_ref()
    }

    pub(super) fn take(&mut self, sentinel: &NodeAddress, answer: Answer) {
        if let (Some(named), Some(current)) = (answer.named(), &mut self.current)
            && named.address == current.address
            && named.epoch >= current.epoch
        {
            current.epoch = named.epoch;
            self.confirmed = Instant::now();
        }
        self.answers.insert(sentinel.clone(), answer);
        if self.candidate().is_none() {
            self.refused = None;
        }
    }

    /// The sentinel is no longer asked.
    pub(super) fn forget(&mut self, sentinel: &NodeAddress) {
        self.answers.remove(sentinel);
    }

    /// The master to move to. Of different ones the highest epoch is the latest; otherwise, more than half of the sentinels
    /// must name it.
    pub(super) fn candidate(&self) -> Option<Named> {
        let named = || self.answers.values().filter_map(Answer::named);
        let votes = |other: &Named| named().filter(|named| named.address == other.address).count();
        let latest = named().max_by_key(|named| (named.epoch, votes(named)))?;
        let by_most = named().find(|named| votes(named) * 2 > self.answers.len());
        let believed = match &self.current {
            // The first that answers may have been away.
            None if self.answers.values().any(|answer| *answer == Answer::Awaited) => by_most.and(Some(latest)),
            None => Some(latest),
            Some(current) if latest.epoch > current.epoch => Some(latest),
            Some(current) => by_most.filter(|named| named.epoch == current.epoch || self.is_forgotten()),
        };
        let current = self.current.as_ref().map(|current| &current.address);
        believed.filter(|believed| Some(&believed.address) != current).cloned()
    }

    fn is_forgotten(&self) -> bool {
        self.confirmed.elapsed() > FORGOTTEN_AFTER
    }

    pub(super) fn follow(&mut self, named: Named) {
        (self.current, self.confirmed, self.refused) = (Some(named), Instant::now(), None);
    }

    pub(super) fn refuse(&mut self, named: &Named, error: &Error) {
        self.refused = Some(format!("the sentinels name {}, which cannot be used: {error}", named.address));
    }

    /// What is wrong; `None` if a sentinel names a master that can be used.
    pub(super) fn problem(&self) -> Option<String> {
        if self.refused.is_some() {
            return self.refused.clone();
        }
        if self.answers.values().any(|answer| answer.named().is_some()) {
            return None;
        }
        let reason = |answer: &&Answer| match answer {
            Answer::Unknown(_) => 3,
            Answer::Failed { is_refusal: true, .. } => 2,
            Answer::Failed { .. } => 1,
            Answer::Awaited | Answer::Named(_) => 0,
        };
        Some(match self.answers.values().max_by_key(reason) {
            Some(Answer::Unknown(why)) => format!("no sentinel names a master: {why}"),
            Some(Answer::Failed { why, .. }) => format!("no sentinel names a master: {why}"),
            _ => "no sentinel has answered yet".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(port: u16, epoch: u64) -> Answer {
        Answer::Named(Named { address: NodeAddress { host: "h".into(), port }, epoch })
    }

    fn sentinel(port: u16) -> NodeAddress {
        NodeAddress { host: "s".into(), port }
    }

    fn sentinels() -> State {
        State::new(&[1, 2, 3].map(sentinel))
    }

    fn away() -> Answer {
        Answer::failed(&sentinel(1), &Error::Ended)
    }

    /// The port of the master to move to, after these answers.
    fn after(state: &mut State, answers: [Answer; 3]) -> Option<u16> {
        for (port, answer) in (1..).zip(answers) {
            state.take(&sentinel(port), answer);
        }
        let candidate = state.candidate()?;
        state.follow(candidate.clone());
        Some(candidate.address.port)
    }

    #[tokio::test(start_paused = true)]
    async fn a_master_is_believed_by_its_epoch_or_when_most_sentinels_name_it() {
        let mut state = sentinels();
        assert_eq!(after(&mut state, [named(1, 0), Answer::Awaited, away()]), None, "it may have been away");
        assert_eq!(after(&mut state, [named(1, 0), away(), away()]), Some(1));
        assert_eq!(after(&mut state, [named(2, 0), away(), named(1, 0)]), None, "one of three");
        assert_eq!(after(&mut state, [named(2, 1), away(), named(1, 0)]), Some(2), "a later failover");
        assert_eq!(after(&mut state, [named(2, 1), away(), named(1, 0)]), None);
        assert_eq!(after(&mut state, [away(), away(), named(1, 0)]), None, "it was away");
        assert_eq!(after(&mut state, [away(), named(1, 0), named(1, 0)]), None, "they may not have learned of it yet");
        assert_eq!(after(&mut state, [away(), away(), away()]), None);
        tokio::time::advance(FORGOTTEN_AFTER * 2).await;
        assert_eq!(after(&mut state, [away(), away(), named(1, 0)]), None);
        assert_eq!(after(&mut state, [away(), named(1, 0), named(1, 0)]), Some(1), "they were set up again");
        assert_eq!(after(&mut state, [named(3, 0), named(3, 0), named(1, 0)]), Some(3), "most name it");
    }

    #[test]
    fn most_are_counted_of_the_sentinels_that_are_still_asked() {
        let mut state = sentinels();
        assert_eq!(after(&mut state, [named(1, 0), named(1, 0), away()]), Some(1));
        state.take(&sentinel(4), away());
        assert_eq!(after(&mut state, [named(2, 0), named(2, 0), away()]), None, "two of four");
        state.forget(&sentinel(4));
        assert_eq!(after(&mut state, [named(2, 0), named(2, 0), away()]), Some(2));
    }

    #[test]
    fn what_is_wrong_is_named_by_the_most_telling_answer() {
        let mut state = sentinels();
        assert_eq!(state.problem().unwrap(), "no sentinel has answered yet");
        let address = sentinel(2);
        state.take(&sentinel(1), away());
        assert!(state.problem().unwrap().contains("s:1 does not answer: redis: connection closed"));
        state.take(&address, Answer::failed(&address, &Error::refused("WRONGPASS invalid username-password pair")));
        state.take(&sentinel(3), away());
        let problem = state.problem().unwrap();
        assert!(problem.contains("s:2") && problem.contains("redis.sentinel_password"), "{problem}");
        state.take(&sentinel(1), named(1, 0));
        assert_eq!(state.problem(), None);
        state.refuse(&state.candidate().unwrap(), &Error::Replica);
        assert!(
            state
                .problem()
                .unwrap()
                .starts_with("the sentinels name h:1, which cannot be used: redis: the server is a")
        );
    }
}
