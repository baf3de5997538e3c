//! The features that Redis refuses this instance, for example because its ACL withholds a right. An outage is recorded here
//! only in a cluster, where it may concern one node; otherwise the subscription reports it.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tracing::{info, warn};

use super::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    Presence,
    History,
    Sessions,
    Outbox,
    Escalation,
}

impl Feature {
    pub fn name(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::History => "history",
            Self::Sessions => "sessions",
            Self::Outbox => "outbox",
            Self::Escalation => "escalation",
        }
    }

    /// Whether a new connection is served wrongly without it.
    fn is_condition(self) -> bool {
        !matches!(self, Self::Outbox | Self::Escalation)
    }
}

/// What an operation shows about its feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// It needed every node that the feature needs.
    Whole,
    /// It needed some node: in a cluster, others may be away, or this one may concern few users.
    Part,
}

#[derive(Debug)]
enum State {
    /// Redis has not replied yet.
    Unknown,
    Works,
    Refused(String),
    /// The node that it needs does not reply.
    Away(String),
}

#[derive(Debug)]
pub struct Health {
    states: Mutex<BTreeMap<Feature, State>>,
    records_outages: bool,
}

impl Health {
    pub(super) fn new(records_outages: bool) -> Self {
        Self { states: Mutex::default(), records_outages }
    }

    /// From now on, a condition: not met before the first reply to [`Health::observe`].
    pub fn require(&self, feature: Feature) {
        self.states.lock().insert(feature, State::Unknown);
    }

    /// Of an operation on `scope`.
    pub(super) fn observe<T>(&self, feature: Feature, scope: Scope, result: &Result<T, Error>) {
        let mut states = self.states.lock();
        let state = states.entry(feature).or_insert(State::Unknown);
        let tells_outages = self.records_outages && scope == Scope::Whole;
        match result {
            Err(error) if error.is_lasting_refusal() => {
                if !matches!(state, State::Refused(_)) {
                    warn!(feature = feature.name(), %error, kind = error.kind(), "redis refuses a feature");
                }
                *state = State::Refused(error.to_string());
            }
            // Another node may be the one that is away.
            Ok(_) | Err(_) if matches!(state, State::Away(_)) && !tells_outages => {}
            Ok(_) => {
                if matches!(state, State::Refused(_)) {
                    info!(feature = feature.name(), "redis no longer refuses the feature");
                }
                *state = State::Works;
            }
            // A passing refusal, such as OOM, is not one of a right.
            Err(error) if error.is_refusal() => {
                if matches!(state, State::Unknown | State::Away(_)) {
                    *state = State::Works;
                }
            }
            Err(error) if tells_outages && !matches!(state, State::Refused(_)) => {
                *state = State::Away(error.to_string());
            }
            Err(_) => {}
        }
    }

    /// The connection of the subscription ended: in a cluster, its node may be one that a feature needs.
    pub(super) fn doubt(&self) {
        if !self.records_outages {
            return;
        }
        for feature in [Feature::Presence, Feature::History] {
            if let Some(state @ State::Works) = self.states.lock().get_mut(&feature) {
                *state = State::Away("not checked since the subscription was lost".into());
            }
        }
    }

    pub fn works(&self, feature: Feature) -> bool {
        matches!(self.states.lock().get(&feature), Some(State::Works))
    }

    /// The refused features with the errors.
    pub fn refused(&self) -> BTreeMap<&'static str, String> {
        let states = self.states.lock();
        let refused = states.iter().filter_map(|(feature, state)| match state {
            State::Refused(why) => Some((feature.name(), why.clone())),
            State::Unknown | State::Works | State::Away(_) => None,
        });
        refused.collect()
    }

    /// Why a new connection would be served wrongly; `None` if it would not.
    pub fn not_ready(&self) -> Option<String> {
        let states = self.states.lock();
        let mut conditions = states.iter().filter(|(feature, _)| feature.is_condition());
        conditions.find_map(|(feature, state)| match state {
            State::Works => None,
            State::Unknown => Some(format!("{}: redis has not replied yet", feature.name())),
            State::Refused(why) | State::Away(why) => Some(format!("{} does not work: {why}", feature.name())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_refusal_makes_unready_until_a_success_and_a_passing_one_or_an_outage_does_not() {
        let health = Health::new(false);
        let refused = |line| Err::<(), _>(Error::refused(line));
        health.require(Feature::Presence);
        assert!(health.not_ready().unwrap().starts_with("presence"));
        health.observe(Feature::Presence, Scope::Whole, &Err::<(), _>(Error::Ended));
        assert!(health.not_ready().is_some(), "an outage is no reply");
        health.observe(Feature::Presence, Scope::Whole, &refused("OOM command not allowed"));
        assert_eq!(health.not_ready(), None);
        for line in ["NOPERM no permissions", "ERR unknown command 'EVAL', with args beginning with: "] {
            health.observe(Feature::Presence, Scope::Whole, &refused(line));
            health.observe(Feature::Presence, Scope::Whole, &Err::<(), _>(Error::Ended));
            assert!(health.not_ready().unwrap().starts_with("presence does not work"), "{line}");
            health.observe(Feature::Presence, Scope::Whole, &Ok(()));
            assert_eq!(health.not_ready(), None);
        }
        health.observe(Feature::Outbox, Scope::Whole, &refused("NOPERM no permissions"));
        assert_eq!((health.not_ready(), health.refused().len()), (None, 1), "named, but no condition");
    }

    #[test]
    fn in_a_cluster_an_outage_of_what_a_feature_needs_makes_unready_until_a_reply() {
        let health = Health::new(true);
        health.require(Feature::Presence);
        for reply in [Ok(()), Err(Error::refused("OOM command not allowed"))] {
            health.observe(Feature::Presence, Scope::Whole, &Err::<(), _>(Error::Ended));
            assert!(health.not_ready().unwrap().starts_with("presence does not work"));
            health.observe(Feature::Presence, Scope::Whole, &reply);
            assert_eq!(health.not_ready(), None);
        }
    }
    #[test]
    fn in_a_cluster_one_users_read_neither_hides_nor_shows_an_outage_but_shows_a_missing_right() {
        let health = Health::new(true);
        health.require(Feature::History);
        health.observe(Feature::History, Scope::Whole, &Ok(()));
        health.observe(Feature::History, Scope::Part, &Err::<(), _>(Error::Ended));
        assert_eq!(health.not_ready(), None);
        health.observe(Feature::History, Scope::Whole, &Err::<(), _>(Error::Ended));
        for reply in [Ok(()), Err(Error::refused("OOM command not allowed"))] {
            health.observe(Feature::History, Scope::Part, &reply);
            assert!(health.not_ready().is_some(), "another node is away");
        }
        health.observe(Feature::History, Scope::Part, &Err::<(), _>(Error::refused("NOPERM no permissions")));
        assert_eq!(health.refused().len(), 1);
        health.observe(Feature::History, Scope::Whole, &Ok(()));
        assert_eq!(health.not_ready(), None);
    }

    #[test]
    fn a_lost_subscription_puts_what_one_node_has_in_doubt_in_a_cluster_until_it_is_checked() {
        for (records_outages, ready) in [(true, false), (false, true)] {
            let health = Health::new(records_outages);
            health.require(Feature::History);
            health.observe(Feature::History, Scope::Whole, &Ok(()));
            health.doubt();
            assert_eq!(health.not_ready().is_none(), ready);
            health.observe(Feature::History, Scope::Part, &Ok(()));
            assert_eq!(health.not_ready().is_none(), ready);
            health.observe(Feature::History, Scope::Whole, &Ok(()));
            assert_eq!(health.not_ready(), None);
        }
    }
}
