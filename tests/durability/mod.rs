//! Durable notifications to many users, published in every way, on three instances and one Redis, all of which fail. Then
//! each client has received exactly what is stored after its first cursor: none lost, none twice, in order.
//!
//! In one of the runs, backends also retract some of what they have published, replace some, mark some as read, and let some
//! escalate. Nothing that was taken back may be in a later resume, list or count, and what escalates is handed over once,
//! unless it was read or taken back before its time.
//!
//! The run is recorded (`record`), and a pure function checks the record afterwards (`check`). `DURABILITY_SEED` repeats a
//! run (as far as a real network allows), `DURABILITY_SECONDS` sets its length; from 60 s on, Redis is restarted, too. On
//! a busy machine a run continues until enough events have happened to be meaningful.

mod check;
mod client;
mod escalated;
mod fleet;
mod nemesis;
mod publisher;
mod record;
mod taking_back;
mod world;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::check::{Fault, faults};
use self::client::{Habits, MARKER, wander};
use self::escalated::not_handed_over_once;
use self::nemesis::{Nemesis, Trouble};
use self::publisher::{Confirmed, publish};
use self::record::{Entry, Notification, Seen, User, Way};
use self::world::{Loss, Reader, Tally, World, listen};
use crate::support::{Gateway, Listed, Proxy, RedisServer, within};

/// Until a client has caught up with what its instance missed: 2 s from its new subscription.
const LEVEL: Duration = Duration::from_secs(2);

/// A run, but for its seed.
struct Plan {
    users: usize,
    /// Beside one of each user.
    more_clients: usize,
    /// Of users whose batches go together.
    group: usize,
    /// Publications to all users in a second, by all ways together.
    rate: f64,
    max_len: usize,
    /// Whether backends take back what they have published, and escalate and read it.
    takes_back: bool,
    /// How long clients stay and are away, in milliseconds, at most.
    stay: u64,
    away: u64,
    troubles: Vec<Trouble>,
    length: Duration,
}

impl Plan {
    /// Whether what is stored goes before the end, though Redis loses nothing.
    fn trims(&self) -> bool {
        self.max_len < 1_000
    }

    /// Whether so much happened that a run without a fault means something.
    fn is_enough(&self, tally: &Tally) -> bool {
        let losses = [Trouble::Flush, Trouble::Evict, Trouble::Fork];
        let gaps = self.trims() || losses.iter().any(|loss| self.troubles.contains(loss));
        tally.idle == 0
            && tally.published as f64 > self.rate * self.length.as_secs_f64() / 3.0
            && tally.recovered > 2 * self.users
            && (tally.taken > self.users / 4 || !self.takes_back)
            && (tally.told > 0 || !gaps)
    }
}

/// What all of a run came to.
struct Outcome {
    users: Vec<User>,
    tale: Vec<(u64, String)>,
    done: BTreeMap<Trouble, usize>,
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

fn seconds() -> u64 {
    number("DURABILITY_SECONDS").unwrap_or(8)
}

#[allow(clippy::print_stdout, reason = "what repeats a run, and what came of it")]
async fn run(plan: Plan) {
    let seed = number("DURABILITY_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("DURABILITY_SEED={seed} DURABILITY_SECONDS={}", seconds());
    let outcome = happen(&plan, Rng::with_seed(seed)).await;
    let mut stories = String::new();
    let mut found = 0;
    for user in &outcome.users {
        for fault in faults(user, plan.max_len).into_iter().chain(not_handed_over_once(user)) {
            found += 1;
            if found <= 3 {
                stories += &story(user, &fault, &outcome.tale);
            }
        }
    }
    assert!(found == 0, "{found} faults with DURABILITY_SEED={seed}, the first of them:\n{stories}");
    println!("{}", summary(&outcome));
}

/// Everybody plays until the end, and then everything is written down.
async fn happen(plan: &Plan, mut rng: Rng) -> Outcome {
    let persistent = ["--appendonly", "yes", "--appendfsync", "always"];
    let restarts = plan.troubles.contains(&Trouble::RestartRedis);
    let redis = RedisServer::start_with(if restarts { &persistent } else { &[] }).await;
    let names: Vec<_> = (0..plan.users).map(|user| format!("u{user}")).collect();
    let front = Proxy::start(redis.port());
    let world = Arc::new(World::new(&front.url(), &names));
    let mut nemesis = Nemesis::start(Arc::clone(&world), redis, front, plan.max_len, rng.fork()).await;
    let mut listening = JoinSet::new();
    if plan.trims() {
        let subscription = nemesis.redis.subscribe_all().await;
        listening.spawn(listen(Arc::clone(&world), subscription));
    }
    let mut publishers = publishers(&world, plan, &Way::BACKENDS, &names, &mut rng);
    let mut clients = clients(&world, plan, &names, &mut rng);
    let enough = || plan.is_enough(&world.tally.lock());
    nemesis.reign(&plan.troubles, Instant::now() + plan.length, enough).await;
    assert!(enough(), "too little happened: {:?}", world.tally.lock());

    // One instance does not receive the last of it.
    let unsubscribed = nemesis.cut_off().await;
    world.silent.cancel();
    let begun_ms = unix_ms() - world.now();
    let mut users: Vec<_> = names.iter().map(|name| User { name: name.clone(), begun_ms, ..User::default() }).collect();
    for (to, confirmed) in within("everything published is confirmed", all(&mut publishers)).await {
        note(&mut users, &to, confirmed);
    }
    nemesis.relayed().await;
    nemesis.heal(unsubscribed).await;
    sleep(LEVEL).await;
    world.healed.cancel();
    let heard = async {
        tokio::select! {
            heard = all(&mut clients) => heard,
            never = mark(&nemesis.redis, &names) => match never {},
        }
    };
    for (user, log) in within("every client receives the end", heard).await {
        users[user].clients.push(log);
    }
    let (mut reader, mut last) = (world.reader.lock().await, Reader::new(&names));
    reader.read(&world, Loss::None).await;
    last.read(&world, Loss::None).await;
    let (forked_at, forked) = std::mem::take(&mut *world.forked.lock());
    for (index, user) in users.iter_mut().enumerate() {
        (user.stored, user.kept) = (reader.stored[index].clone(), last.stored[index].clone());
        user.listed = listed(nemesis.anyone(), &user.name).await;
        // What was stored before is of an earlier epoch, in which it was read.
        user.kept.retain(|stored| stored.ts >= forked_at);
        user.listed.retain(|stored| stored.ts >= forked_at);
        user.published.extend(forked.iter().cloned());
        user.evicted = world.evictions.lock().iter().map(|(at, counts)| (*at, counts[index])).collect();
        if plan.takes_back {
            user.stored.extend(user.changes.taken.iter().map(|taken| taken.what.clone()));
            user.stored.sort_by_key(|stored| (stored.id.ms, stored.id.number));
            user.unread = Some(unread(nemesis.anyone(), &user.name).await);
        }
    }
    for (name, id) in nemesis.handed_over().await {
        users.iter_mut().filter(|user| user.name == name).for_each(|user| user.handed_over.push(id));
    }
    Outcome { users, tale: world.tale(), done: nemesis.done }
}

/// Everybody who publishes: who, with the places of the users.
fn publishers(
    world: &Arc<World>,
    plan: &Plan,
    ways: &[Way],
    names: &[String],
    rng: &mut Rng,
) -> JoinSet<(Vec<usize>, Confirmed)> {
    let mut publishers = JoinSet::new();
    let pause = Duration::from_secs(3).mul_f64(names.len() as f64 / plan.rate);
    for way in ways.iter().copied() {
        let together = if way == Way::Batch { plan.group } else { 1 };
        for first in (0..names.len()).step_by(together) {
            let to: Vec<_> = (first..names.len().min(first + together)).collect();
            let users = to.iter().map(|user| names[*user].clone()).collect();
            let publishing = publish(Arc::clone(world), way, users, pause, plan.takes_back, rng.fork());
            world.tally.lock().idle += 1;
            publishers.spawn(async move { (to, publishing.await) });
        }
    }
    publishers
}

fn clients(world: &Arc<World>, plan: &Plan, names: &[String], rng: &mut Rng) -> JoinSet<(usize, Vec<Entry>)> {
    let mut clients = JoinSet::new();
    for number in 0..plan.users + plan.more_clients {
        let user = number % plan.users;
        let habits = Habits { stay: plan.stay, away: plan.away, steady: number % 5 == 0 };
        let wandering = wander(Arc::clone(world), names[user].clone(), habits, rng.fork());
        clients.spawn(async move { (user, wandering.await) });
    }
    clients
}

async fn all<T: 'static>(tasks: &mut JoinSet<T>) -> Vec<T> {
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        done.push(ended.unwrap());
    }
    done
}

/// Publishes the marker to all users, repeatedly: a client that is not connected yet receives the next.
async fn mark(redis: &RedisServer, names: &[String]) -> Infallible {
    loop {
        for name in names {
            redis.publish(name, MARKER).await;
        }
        sleep(Duration::from_millis(300)).await;
    }
}

/// Notes what was confirmed to a publisher to these users.
fn note(users: &mut [User], to: &[usize], confirmed: Confirmed) {
    for user in to {
        users[*user].published.extend(confirmed.published.iter().cloned());
    }
    // Only what was published to one user is changed.
    if let [user] = to {
        users[*user].changes.taken.extend(confirmed.changes.taken);
        users[*user].changes.read.extend(confirmed.changes.read);
    }
}

/// What HTTP lists, in small pages.
async fn listed(gateway: &Gateway, user: &str) -> Vec<Notification> {
    let listed = gateway.listed(user, 7).await.into_iter();
    let listed = listed.map(|Listed { id, ts, event, data }| Notification { id: id.parse().unwrap(), ts, event, data });
    listed.collect()
}

/// What HTTP counts as unread, for a device that has read nothing.
async fn unread(gateway: &Gateway, user: &str) -> u64 {
    let (status, answer) = gateway.get(gateway.admin, &format!("/v1/users/{user}/read-position?device=new")).await;
    assert_eq!(status, 200, "{answer}");
    serde_json::from_str::<Value>(&answer).unwrap()["unread"].as_u64().unwrap()
}

fn unix_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// What happened.
fn summary(outcome: &Outcome) -> String {
    let logs = || outcome.users.iter().flat_map(|user| &user.clients).flatten();
    let count = |is: fn(&Seen) -> bool| logs().filter(|entry| is(&entry.seen)).count();
    let received = count(|seen| matches!(seen, Seen::Event(_)));
    let recovered = count(|seen| matches!(seen, Seen::Welcome { recovered: true, .. }));
    let told = count(|seen| matches!(seen, Seen::Welcome { asked: Some(_), recovered: false, .. }));
    let ended: BTreeMap<_, usize> = logs().fold(BTreeMap::new(), |mut ended, entry| {
        if let Seen::End(Some(code)) = entry.seen {
            *ended.entry(code).or_default() += 1;
        }
        ended
    });
    let sum = |of: fn(&User) -> usize| outcome.users.iter().map(of).sum::<usize>();
    let (stored, taken) = (sum(|user| user.stored.len()), sum(|user| user.changes.taken.len()));
    let (read, handed_over) = (sum(|user| user.changes.read.len()), sum(|user| user.handed_over.len()));
    format!(
        "{stored} stored, {taken} taken back, {read} marked as read, {handed_over} handed over, {received} received, \
         {recovered} resumes, {told} gaps told; ended {ended:?}; {:?}",
        outcome.done
    )
}

/// What the client saw on the connection where the fault is, and what was done to the fleet meanwhile.
fn story(user: &User, fault: &Fault, tale: &[(u64, String)]) -> String {
    let mut story = format!("\n{}: {:?}\n", user.name, fault.breach);
    let Some((client, place)) = fault.client else { return story };
    let log = &user.clients[client];
    let is_welcome = |entry: &Entry| matches!(entry.seen, Seen::Welcome { .. });
    let first = log[..place].iter().rposition(is_welcome).unwrap_or(0);
    // What came before the welcome that is wrong, too.
    let first = if is_welcome(&log[place]) { first } else { first.saturating_sub(2) };
    let (from, to) = (log[first].at.saturating_sub(2_000), log[place].at);
    let mut lines: Vec<_> = tale.iter().filter(|(at, _)| (from..=to).contains(at)).cloned().collect();
    let seen = log[first..=place].iter().enumerate();
    let shown = seen.filter(|(index, entry)| {
        let near_end = first + index + 4 > place;
        near_end || *index < 4 || !matches!(entry.seen, Seen::Event(_))
    });
    lines.extend(shown.map(|(_, entry)| (entry.at, format!("client {client}: {}", entry.seen))));
    lines.sort_by_key(|(at, _)| *at);
    for (at, line) in lines {
        let _ = writeln!(story, "{at:>8} ms  {line}");
    }
    story
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stored_is_lost_nor_twice_nor_out_of_order_whatever_fails() {
    use Trouble::{Cut, CutAll, Drain, FreezeRedis, Kill, Pause, RestartRedis};
    let mut troubles = vec![Cut, CutAll, Drain, FreezeRedis, Kill, Pause];
    if seconds() >= 60 {
        troubles.push(RestartRedis);
    }
    let plan = Plan {
        users: 200,
        more_clients: 60,
        group: 10,
        rate: 300.0,
        max_len: 1_000_000,
        takes_back: true,
        stay: 6_000,
        away: 4_000,
        troubles,
        length: Duration::from_secs(seconds()),
    };
    run(plan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_missed_what_was_trimmed_is_told_and_nobody_else() {
    let plan = Plan {
        users: 8,
        more_clients: 40,
        group: 4,
        rate: 400.0,
        max_len: 20,
        takes_back: false,
        stay: 1_500,
        away: 7_000,
        troubles: vec![Trouble::Cut, Trouble::Drain, Trouble::Kill],
        length: Duration::from_secs(seconds() * 2 / 3),
    };
    run(plan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_had_something_that_redis_lost_is_told() {
    let plan = Plan {
        users: 40,
        more_clients: 20,
        group: 10,
        rate: 150.0,
        max_len: 1_000_000,
        takes_back: false,
        stay: 3_000,
        away: 3_000,
        troubles: vec![Trouble::Cut, Trouble::Drain, Trouble::Flush],
        length: Duration::from_secs(seconds() * 2 / 3),
    };
    run(plan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_missed_what_was_evicted_or_has_expired_is_told_and_nobody_else() {
    let plan = Plan {
        users: 20,
        more_clients: 30,
        group: 5,
        rate: 60.0,
        max_len: 1_000_000,
        takes_back: false,
        stay: 1_500,
        away: 3_000,
        troubles: vec![Trouble::Cut, Trouble::Drain, Trouble::Evict],
        length: Duration::from_secs(seconds() * 2 / 3),
    };
    run(plan).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_had_something_that_the_server_that_took_over_never_had_is_told() {
    let plan = Plan {
        users: 20,
        more_clients: 20,
        group: 10,
        rate: 100.0,
        max_len: 1_000_000,
        takes_back: false,
        stay: 3_000,
        away: 3_000,
        troubles: vec![Trouble::Cut, Trouble::Drain, Trouble::Fork],
        length: Duration::from_secs(seconds() * 2 / 3),
    };
    run(plan).await;
}
