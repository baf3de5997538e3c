//! The connections of a user across the fleet. They are kept nowhere: the instances are asked when a backend asks.
//!
//! A question goes to every instance on the control channel. Each answers on a channel that only the instance that asked
//! subscribes to, in parts that every instance accepts, whatever its `limits.max_payload_bytes`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::RandomState;
use futures::StreamExt;
use futures::stream::poll_fn;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::debug;

use crate::backplane::{Backplane, BackplaneError};
use crate::delivery::{ConnectionHandle, Registry};
use crate::metrics::Metrics;
use crate::protocol::{DEFAULT_DEVICE, InstanceId, OpenConnection, RosterAnswer, RosterQuestion, UserId};

/// How long the other instances have to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Maximum number of connections listed.
const MAX_LISTED: usize = 1_000;

/// Connections in one part of an answer: at most 2 KiB.
const PART: usize = 5;

/// Maximum number of requests that wait for answers here.
const MAX_WAITING: usize = 64;

/// Parts of answers that one request has yet to read; further ones are dropped.
const MAX_UNREAD: usize = 4_096;

/// Questions of other instances that wait; further ones are dropped.
const MAX_QUESTIONS: usize = 1_024;

/// Answers that are published at a time.
const CONCURRENT_ANSWERS: usize = 16;

/// Longer than any id of an instance.
const MAX_INSTANCE_BYTES: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    #[error("{MAX_WAITING} such requests are waiting for the instances already")]
    Busy,
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

/// The connections of a user, the oldest first.
#[derive(Debug, Default, Serialize)]
pub struct UserConnections {
    /// At most [`MAX_LISTED`].
    connections: Vec<OpenConnection>,
    /// The number of connections, including those that are not listed.
    total: u64,
    /// The live instances that did not answer in time, whose connections are missing.
    unanswered: BTreeSet<String>,
}

#[derive(Debug)]
struct Noted {
    at: Instant,
    question: RosterQuestion,
}

#[derive(Debug)]
pub struct Roster {
    backplane: Backplane,
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    instance: InstanceId,
    /// The requests that wait for answers, by their question.
    waiting: Mutex<HashMap<String, mpsc::Sender<RosterAnswer>, RandomState>>,
    questions: mpsc::Sender<Noted>,
    /// Until the task takes it.
    questions_rx: Mutex<Option<mpsc::Receiver<Noted>>>,
}

impl Roster {
    pub fn new(backplane: &Backplane, registry: Arc<Registry>, metrics: Arc<Metrics>, instance: InstanceId) -> Self {
        let (questions, questions_rx) = mpsc::channel(MAX_QUESTIONS);
        let (backplane, questions_rx) = (backplane.clone(), Mutex::new(Some(questions_rx)));
        Self { backplane, registry, metrics, instance, waiting: Mutex::default(), questions, questions_rx }
    }

    /// The user's connections on this instance and these others, at most [`PATIENCE`] old.
    pub async fn connections(&self, user: &UserId, others: BTreeSet<String>) -> Result<UserConnections, RosterError> {
        let mut found = UserConnections::default();
        if !others.is_empty() {
            self.ask(user, others, &mut found).await?;
        }
        let (total, connections) = self.own(user.as_str());
        found.add(total, connections);
        found.trim();
        Ok(found)
    }

    async fn ask(
        &self,
        user: &UserId,
        others: BTreeSet<String>,
        found: &mut UserConnections,
    ) -> Result<(), RosterError> {
        let deadline = Instant::now() + PATIENCE;
        let (question, mut answers) = Waits::begin(self)?;
        let text = question.text.clone();
        let message = RosterQuestion { user: user.to_string(), question: text, instance: self.instance.to_string() };
        let message = message.encode();
        timeout_at(deadline, self.backplane.publish_command(&message))
            .await
            .map_err(|_| BackplaneError::Timeout(PATIENCE))??;
        found.unanswered = others;
        let mut received: HashMap<String, usize> = HashMap::new();
        while !found.unanswered.is_empty()
            && let Ok(Some(answer)) = timeout_at(deadline, answers.recv()).await
        {
            let parts = received.entry(answer.instance.clone()).or_default();
            *parts += 1;
            if *parts >= answer.parts {
                found.unanswered.remove(&answer.instance);
            }
            let is_first = *parts == 1;
            found.add(if is_first { answer.total } else { 0 }, answer.connections);
        }
        Ok(())
    }

    /// The number of the user's connections here, and the oldest of them.
    fn own(&self, user: &str) -> (u64, Vec<OpenConnection>) {
        let oldest = self.registry.with(user, |handles| {
            let listed: Vec<_> = handles.iter().take(MAX_LISTED).cloned().collect();
            (handles.len() as u64, listed)
        });
        let (total, listed) = oldest.unwrap_or_default();
        (total, listed.iter().map(|handle| self.describe(handle)).collect())
    }

    fn describe(&self, handle: &ConnectionHandle) -> OpenConnection {
        OpenConnection {
            connected_at: handle.opened(),
            id: handle.id.to_string(),
            instance: self.instance.to_string(),
            device: self.registry.device(handle.id).map_or_else(|| DEFAULT_DEVICE.to_owned(), String::from),
            address: handle.address(),
            dialect: handle.dialect.name(),
        }
    }

    /// Notes a question of an instance, possibly this one, to answer it soon. Never blocks.
    pub fn note(&self, question: RosterQuestion) {
        if question.instance == self.instance.as_str() || question.instance.len() > MAX_INSTANCE_BYTES {
            return;
        }
        if self.questions.try_send(Noted { at: Instant::now(), question }).is_err() {
            self.count("dropped");
        }
    }

    /// Receives a part of an answer. Never blocks.
    pub fn receive(&self, payload: &[u8]) {
        match serde_json::from_slice::<RosterAnswer>(payload) {
            Ok(answer) => {
                // An answer that comes too late has no reader. One that finds no room is missing, and the response says so.
                if let Some(reader) = self.waiting.lock().get(&answer.question) {
                    reader.try_send(answer).ok();
                }
            }
            Err(error) => debug!(%error, bytes = payload.len(), "malformed answer of an instance dropped"),
        }
    }

    /// Answers the questions. Runs until dropped.
    pub async fn run(&self) {
        let Some(mut questions) = self.questions_rx.lock().take() else { return };
        let questions = poll_fn(|cx| questions.poll_recv(cx));
        questions.for_each_concurrent(CONCURRENT_ANSWERS, |noted| self.answer(noted)).await;
    }

    async fn answer(&self, Noted { at, question }: Noted) {
        if at.elapsed() >= PATIENCE {
            return self.count("dropped");
        }
        let parts = self.parts(&question);
        match timeout(PATIENCE, self.backplane.answer(&question.instance, &parts)).await {
            Ok(Ok(())) => self.count("answered"),
            // The error is counted and logged by its kind, too.
            _ => self.count("failed"),
        }
    }

    fn parts(&self, question: &RosterQuestion) -> Vec<String> {
        let (total, connections) = self.own(&question.user);
        let (parts, mut some) = (connections.len().div_ceil(PART).max(1), connections.chunks(PART));
        let part = |_| {
            let (question, instance) = (question.question.clone(), self.instance.to_string());
            let connections = some.next().unwrap_or_default().to_vec();
            RosterAnswer { question, instance, parts, total, connections }.encode()
        };
        (0..parts).map(part).collect()
    }

    fn count(&self, result: &str) {
        self.metrics.connection_questions.with_label_values(&[result]).inc();
    }
}

impl UserConnections {
    fn add(&mut self, total: u64, connections: Vec<OpenConnection>) {
        self.total = self.total.saturating_add(total);
        self.connections.extend(connections);
        if self.connections.len() > 2 * MAX_LISTED {
            self.trim();
        }
    }

    /// Keeps the oldest.
    fn trim(&mut self) {
        self.connections.sort_unstable_by(|a, b| (a.connected_at, &a.id).cmp(&(b.connected_at, &b.id)));
        self.connections.truncate(MAX_LISTED);
    }
}

/// A request that waits for answers, until it is dropped.
struct Waits<'a> {
    roster: &'a Roster,
    /// The text of its question.
    text: String,
}

impl<'a> Waits<'a> {
    fn begin(roster: &'a Roster) -> Result<(Self, mpsc::Receiver<RosterAnswer>), RosterError> {
        let mut waiting = roster.waiting.lock();
        if waiting.len() >= MAX_WAITING {
            return Err(RosterError::Busy);
        }
        let text = format!("{:032x}", fastrand::u128(..));
        let (answers, answers_rx) = mpsc::channel(MAX_UNREAD);
        waiting.insert(text.clone(), answers);
        Ok((Self { roster, text }, answers_rx))
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.roster.waiting.lock().remove(&self.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Dialect, MAX_ENVELOPE_BYTES};

    #[test]
    fn a_part_of_an_answer_is_accepted_however_small_payloads_are() {
        let longest = OpenConnection {
            id: "f".repeat(16),
            instance: "f".repeat(12),
            // Each of these is escaped.
            device: "\"".repeat(64),
            address: [0xffff; 8].into(),
            connected_at: u64::MAX,
            dialect: Dialect::TidingsV1.name(),
        };
        let answer = RosterAnswer {
            question: "f".repeat(32),
            instance: "f".repeat(12),
            parts: MAX_LISTED,
            total: u64::MAX,
            connections: vec![longest; PART],
        };
        let encoded = answer.encode();
        assert!(encoded.len() <= MAX_ENVELOPE_BYTES, "{} bytes", encoded.len());
        assert_eq!(serde_json::from_str::<RosterAnswer>(&encoded).unwrap(), answer);
    }
}
