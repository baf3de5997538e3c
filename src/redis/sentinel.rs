//! The master that sentinels name, and the move to another one as soon as they name it.
//!
//! After an orderly failover the old master keeps its connections and confirms writes for about ten seconds, so no error
//! of it is awaited. Hand-written: redis-rs' sentinel client tells an existing connection nothing.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use redis::{ConnectionInfo, RedisConnectionInfo};
use secrecy::ExposeSecret;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::named::{Answer, Named, State};
use super::node::{Access, Node, NodeMode};
use super::resp::Reply;
use super::sentinel_node::{Listed, Sentinel};
use super::stream::CONNECT_DEADLINE;
use super::topology::Server;
use super::{Error, Redis};
use crate::config::{self, NodeAddress};

const ASK_EVERY: Duration = Duration::from_secs(1);

/// From then on, a sentinel counts as silent.
const ASK_DEADLINE: Duration = Duration::from_secs(1);

/// Before a master that could not be used is tried again, or sentinels that named none are asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Larger announcements are not buffered.
const MAX_PART: usize = 4096;

/// More are not asked, however many the others list.
const MAX_SENTINELS: usize = 100;

#[derive(Debug)]
pub(super) struct Sentinels {
    /// Those that `redis.url` names, and those that they list.
    all: watch::Sender<Vec<Arc<Sentinel>>>,
    /// The name under which they watch the master.
    name: String,
    /// To the servers that they watch.
    access: Access,
    to_sentinels: Access,
    state: watch::Sender<State>,
    /// Counts announcements: all sentinels are asked at each.
    announced: watch::Sender<u64>,
    /// When they were last asked for a first master. Locked meanwhile.
    first: Mutex<Option<Instant>>,
}

impl Sentinels {
    pub(super) fn new(
        config: &config::Redis,
        access: Access,
        addresses: &[NodeAddress],
        name: &str,
    ) -> Result<Self, Error> {
        let mut login = RedisConnectionInfo::default();
        if let Some(user) = &config.sentinel_username {
            login = login.set_username(user);
        }
        if let Some(password) = &config.sentinel_password {
            login = login.set_password(password.expose_secret());
        }
        let to_sentinels = Access { login, ..access.clone() };
        let all: Vec<_> = addresses
            .iter()
            .map(|address| Sentinel::new(address, &to_sentinels).map(Arc::new))
            .collect::<Result<_, Error>>()?;
        let (state, announced) = (watch::Sender::new(State::new(addresses)), watch::Sender::default());
        let (all, name) = (watch::Sender::new(all), name.to_owned());
        Ok(Self { all, name, access, to_sentinels, state, announced, first: Mutex::default() })
    }

    /// What is wrong with the sentinels or with the master that they name; `None` if nothing is.
    pub(super) fn problem(&self) -> Option<String> {
        self.state.borrow().problem()
    }

    /// Those that `redis.url` names, and those that they list.
    pub(super) fn all(&self) -> Vec<Arc<Sentinel>> {
        self.all.borrow().clone()
    }

    /// The name under which they watch the master.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// To the servers that they watch.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// Asks for a master if none has been found yet: before [`Redis::follow`] has, or without it.
    pub(super) async fn find(&self, server: &Server) -> Result<(), Error> {
        let is_known = || self.state.borrow().current().is_some();
        if is_known() {
            return Ok(());
        }
        let finding = async {
            let mut asked = self.first.lock().await;
            if !is_known() && asked.is_none_or(|asked| asked.elapsed() > RETRY_PAUSE) {
                if let Some(named) = self.ask_all().await {
                    self.try_master(server, &named).await.ok();
                }
                *asked = Some(Instant::now());
            }
        };
        timeout(CONNECT_DEADLINE, finding).await.ok();
        if is_known() {
            return Ok(());
        }
        let why = self.problem().unwrap_or_else(|| "the master that the sentinels name does not reply".into());
        Err(Error::Unreachable { kind: "sentinel", why: format!("redis: {why}") })
    }

    /// Asks until a master is named, or all sentinels have replied or are silent.
    async fn ask_all(&self) -> Option<Named> {
        let mut states = self.state.subscribe();
        let all = self.all.borrow().clone();
        let asking = join_all(all.iter().map(|sentinel| self.ask(sentinel)));
        tokio::select! {
            _ = asking => {}
            _ = states.wait_for(|state| state.candidate().is_some()) => {}
            // One that is silent is asked longer than that, for its sake.
            () = sleep(ASK_DEADLINE + RETRY_PAUSE) => {}
        }
        self.state.borrow().candidate()
    }

    /// Asks one sentinel, and keeps its answer.
    async fn ask(&self, sentinel: &Sentinel) -> Answer {
        let mut asking = pin!(sentinel.ask(&self.name));
        let (answer, listed) = match timeout(ASK_DEADLINE, &mut asking).await {
            Ok(answer) => answer,
            Err(_) => {
                let silent = Answer::failed(&sentinel.address, &Error::Timeout(ASK_DEADLINE));
                self.state.send_modify(|state| state.take(&sentinel.address, silent));
                // The link has a deadline of its own, after which it connects again.
                asking.await
            }
        };
        self.state.send_modify(|state| state.take(&sentinel.address, answer.clone()));
        let current = self.state.borrow().current().map(|current| current.address.clone());
        // One that names another master may watch other servers, with others.
        if matches!(&answer, Answer::Named(named) if Some(&named.address) == current.as_ref()) {
            self.add(&listed);
        }
        answer
    }

    /// Those that are not known yet are asked from now on, too.
    fn add(&self, listed: &[Listed]) {
        let is_unknown = |all: &[Arc<Sentinel>], one: &Listed| !all.iter().any(|known| known.is(one));
        self.all.send_if_modified(|all| {
            let before = all.len();
            for one in listed {
                if all.len() < MAX_SENTINELS
                    && is_unknown(all, one)
                    && let Ok(sentinel) = Sentinel::listed(one, &self.to_sentinels)
                {
                    info!(sentinel = %one.address, "a sentinel is known through another one");
                    all.push(Arc::new(sentinel));
                }
            }
            all.len() > before
        });
    }

    fn forget(&self, sentinel: &Sentinel) {
        info!(sentinel = %sentinel.address, "no sentinel lists this one any more: it is not asked again");
        self.all.send_modify(|all| all.retain(|other| other.address != sentinel.address));
        self.state.send_modify(|state| state.forget(&sentinel.address));
    }

    /// Moves to this master if it is one.
    async fn try_master(&self, server: &Server, named: &Named) -> Result<(), Error> {
        let checked = timeout(ASK_DEADLINE, self.check(&named.address)).await;
        let info = checked.unwrap_or(Err(Error::Timeout(ASK_DEADLINE))).inspect_err(|error| {
            self.state.send_modify(|state| state.refuse(named, error));
        })?;
        self.state.send_if_modified(|state| {
            // Meanwhile, they may have named another.
            let moves = state.candidate().as_ref() == Some(named);
            if moves {
                report_move(state.current(), named);
                state.follow(named.clone());
                server.node.lead_to(info);
            }
            moves
        });
        Ok(())
    }

    /// Sentinels name a master up to a second before it is one, and for a while after it has become a replica.
    async fn check(&self, address: &NodeAddress) -> Result<ConnectionInfo, Error> {
        let info = self.access.info(&address.host, address.port)?;
        let node = Node::new(Some(info.clone()), &self.access, NodeMode::Standalone);
        node.stream("role", 0).await?;
        Ok(info)
    }

    /// Asks it every second, and at each announcement, until it is to be forgotten.
    async fn watch(&self, redis: &Redis, sentinel: &Sentinel) {
        let mut announced = self.announced.subscribe();
        let mut ticks = interval(ASK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = announced.changed() => {}
            }
            let answer = self.ask(sentinel).await;
            let failed = match &answer {
                Answer::Failed { kind, why, .. } => Some((*kind, why)),
                Answer::Unknown(why) => Some(("sentinel", why)),
                Answer::Awaited | Answer::Named(_) => None,
            };
            if let Some((kind, why)) = failed {
                redis.count_error(kind);
                if !failing {
                    warn!(sentinel = %sentinel.address, kind, why, "a sentinel does not name the master");
                }
            } else if failing {
                info!(sentinel = %sentinel.address, "the sentinel names a master again");
            }
            failing = failed.is_some();
            if failing && sentinel.is_forgotten() {
                return self.forget(sentinel);
            }
        }
    }

    async fn move_where_named(&self, redis: &Redis, server: &Server) -> Infallible {
        let mut states = self.state.subscribe();
        loop {
            let named = states.wait_for(|state| state.candidate().is_some()).await;
            let Some(named) = named.ok().and_then(|state| state.candidate()) else { continue };
            let trying = async {
                if let Err(error) = self.try_master(server, &named).await {
                    redis.count_error(error.kind());
                    sleep(RETRY_PAUSE).await;
                }
            };
            tokio::select! {
                () = trying => {}
                _ = states.wait_for(|state| state.candidate().as_ref() != Some(&named)) => {}
            }
        }
    }

    /// Has all sentinels asked whenever this one announces a failover.
    async fn listen(&self, sentinel: &Sentinel) -> Infallible {
        let mut refused = false;
        loop {
            let Err(error) = self.receive(sentinel).await;
            // Other errors also fail the next question.
            if error.is_refusal() && !refused {
                refused = true;
                warn!(sentinel = %sentinel.address, %error, "no subscription at a sentinel: a failover is found within 1 s");
            }
            sleep(ASK_EVERY).await;
        }
    }

    async fn receive(&self, sentinel: &Sentinel) -> Result<Infallible, Error> {
        let connecting = timeout(CONNECT_DEADLINE, sentinel.node.stream("sentinel", MAX_PART)).await;
        let mut stream = connecting.map_err(|_| Error::Timeout(CONNECT_DEADLINE))??;
        stream.send(&[b"SUBSCRIBE", b"+switch-master"]).await?;
        loop {
            stream.fill().await?;
            let mut announced = false;
            stream.each(|reply| {
                announced |= matches!(reply, Reply::Push(parts) if matches!(parts.as_slice(), [b"message", ..]));
            })?;
            if announced {
                self.announced.send_modify(|count| *count += 1);
            }
        }
    }
}

impl Redis {
    /// Keeps the connections at the master that the sentinels name. Runs until dropped.
    pub(super) async fn follow_sentinels(&self, server: &Server, sentinels: &Sentinels) -> Infallible {
        let moving = sentinels.move_where_named(self, server);
        tokio::select! {
            never = moving => never,
            never = self.attend_all(sentinels) => never,
        }
    }

    /// Attends each sentinel, from the time it is known.
    async fn attend_all(&self, sentinels: &Sentinels) -> Infallible {
        let mut all = sentinels.all.subscribe();
        let (mut attended, mut attending) = (Vec::<NodeAddress>::new(), FuturesUnordered::new());
        loop {
            let known = all.borrow_and_update().clone();
            attended.retain(|address| known.iter().any(|sentinel| sentinel.address == *address));
            for sentinel in known {
                if !attended.contains(&sentinel.address) {
                    attended.push(sentinel.address.clone());
                    attending.push(self.attend(sentinels, sentinel));
                }
            }
            tokio::select! {
                Ok(()) = all.changed() => {}
                Some(()) = attending.next() => {}
            }
        }
    }

    async fn attend(&self, sentinels: &Sentinels, sentinel: Arc<Sentinel>) {
        tokio::select! {
            () = sentinels.watch(self, &sentinel) => {}
            never = sentinels.listen(&sentinel) => match never {},
        }
    }
}

fn report_move(from: Option<&Named>, to: &Named) {
    let Named { address, epoch } = to;
    match from {
        None => info!(master = %address, epoch, "the sentinels name a master"),
        Some(Named { address: from, .. }) => {
            warn!(%from, to = %address, epoch, "the sentinels name another master: replacing all connections");
        }
    }
}
