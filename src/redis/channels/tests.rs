//! Random runs against a model of Redis, which replies to the commands in order.

use std::collections::HashSet;

use super::*;

const USERS: usize = 4;

/// The server's end of one connection.
#[derive(Default)]
struct Server {
    subscribed: HashSet<String>,
    /// The confirmations on their way, of one command each; `None`: it was refused.
    replies: VecDeque<Option<(String, bool)>>,
}

impl Server {
    fn execute(&mut self, ChannelCommand { verb, names }: ChannelCommand, refuses: bool) {
        let is_subscribed = verb == "SUBSCRIBE";
        if refuses && is_subscribed {
            self.replies.push_back(None);
            return;
        }
        for name in names {
            if is_subscribed {
                self.subscribed.insert(name.clone());
            } else {
                self.subscribed.remove(&name);
            }
            self.replies.push_back(Some((name, is_subscribed)));
        }
    }
}

struct World {
    channels: Arc<UserChannels>,
    server: Server,
    connections: Vec<Vec<UserChannel>>,
}

impl World {
    fn new() -> Self {
        let channels = Arc::new(UserChannels::new("user:", Duration::ZERO, Arc::default()));
        Self { channels, server: Server::default(), connections: (0..USERS).map(|_| Vec::new()).collect() }
    }

    fn step(&mut self) {
        let user = fastrand::usize(..USERS);
        match fastrand::u8(..12) {
            0..=2 => self.connections[user].push(self.channels.want(&UserId::new(&user.to_string()).unwrap())),
            3..=5 => drop(self.connections[user].pop()),
            6 if self.channels.missing() == 0 => self.channels.expire(),
            7 => self.send(self.channels.missing() == 0 && fastrand::u8(..4) == 0),
            8..=10 => self.reply(),
            _ if fastrand::u8(..4) == 0 => {
                self.channels.end();
                self.server = Server::default();
                if fastrand::bool() {
                    self.channels.begin();
                }
            }
            _ => {}
        }
        self.check();
    }

    fn send(&mut self, refuses: bool) {
        for command in self.channels.next_commands() {
            self.server.execute(command, refuses);
        }
    }

    fn reply(&mut self) {
        match self.server.replies.pop_front() {
            Some(Some((name, is_subscribed))) => drop(self.channels.confirm(name.as_bytes(), is_subscribed)),
            Some(None) => assert!(self.channels.refuse(&Error::Ended)),
            None => {}
        }
    }

    /// A channel that counts as subscribed to is, and no command is on its way that ends it.
    fn check(&self) {
        let state = self.channels.state.lock();
        for (user, channel) in &state.channels {
            let name = format!("user:{user}");
            if channel.status == Status::Subscribed {
                assert!(self.server.subscribed.contains(&name), "{state:?}");
            }
        }
        let subscribed = state.channels.values().filter(|channel| channel.status == Status::Subscribed).count();
        let unsubscribing = state.channels.values().filter(|channel| channel.status == Status::Unsubscribing).count();
        let counted = usize::try_from(self.channels.metrics.subscribed_channels.get()).unwrap();
        assert_eq!(counted, subscribed + unsubscribing, "{state:?}");
    }

    /// Until nothing changes any more.
    fn settle(&mut self) {
        if !self.channels.state.lock().connected {
            self.channels.begin();
        }
        for _ in 0..20 {
            if self.channels.missing() == 0 {
                self.channels.expire();
            }
            self.send(false);
            while !self.server.replies.is_empty() {
                self.reply();
            }
        }
    }
}

#[test]
fn whatever_happens_the_wanted_channels_and_no_others_are_subscribed_to_in_the_end() {
    for _ in 0..500 {
        let mut world = World::new();
        world.channels.begin();
        for _ in 0..60 {
            world.step();
        }
        world.settle();
        world.check();
        let with_connections = world.connections.iter().enumerate().filter(|(_, connections)| !connections.is_empty());
        let wanted: HashSet<_> = with_connections.map(|(user, _)| format!("user:{user}")).collect();
        assert_eq!(world.server.subscribed, wanted, "{:?}", world.channels);
        let state = world.channels.state.lock();
        assert_eq!((state.channels.len(), state.missing, state.sent.len()), (wanted.len(), 0, 0), "{state:?}");
    }
}

fn user(text: &str) -> UserId {
    UserId::new(text).unwrap()
}

fn command(channels: &UserChannels) -> (&'static str, Vec<String>) {
    let [ChannelCommand { verb, names }] = channels.next_commands().try_into().unwrap();
    (verb, names)
}

#[tokio::test]
async fn a_user_who_returns_while_the_channel_is_being_left_waits_until_it_is_subscribed_to_again() {
    let channels = Arc::new(UserChannels::new("user:", Duration::ZERO, Arc::default()));
    channels.begin();
    let first = channels.want(&user("42"));
    assert_eq!(command(&channels), ("SUBSCRIBE", vec!["user:42".to_owned()]));
    channels.confirm(b"user:42", true);
    assert!(first.subscribed().await);
    drop(first);
    channels.expire();
    assert_eq!(command(&channels).0, "UNSUBSCRIBE");
    let returned = channels.want(&user("42"));
    let mut waiting = polling(returned.subscribed());
    assert!(waiting().is_none(), "the channel is being left");
    channels.confirm(b"user:42", false);
    assert!(waiting().is_none(), "it is left");
    assert_eq!(command(&channels).0, "SUBSCRIBE");
    channels.confirm(b"user:42", true);
    assert_eq!(waiting(), Some(true));
}

/// Polls a future once for each call.
fn polling<T>(future: impl Future<Output = T>) -> impl FnMut() -> Option<T> {
    let mut future = Box::pin(future);
    move || futures::FutureExt::now_or_never(&mut future)
}

#[tokio::test]
async fn nobody_waits_for_a_connection_that_is_lost_and_those_who_left_are_forgotten() {
    let channels = Arc::new(UserChannels::new("user:", Duration::from_secs(3_600), Arc::default()));
    let before = channels.want(&user("1"));
    assert!(!before.subscribed().await, "there is no connection yet");
    drop(before);
    assert!(channels.state.lock().channels.is_empty());
    channels.begin();
    let present = channels.want(&user("2"));
    let mut waiting = polling(present.subscribed());
    assert!(waiting().is_none());
    channels.end();
    assert_eq!(waiting(), Some(false));
    channels.begin();
    assert_eq!(channels.missing(), 1);
    assert_eq!(command(&channels).1, ["user:2"]);
    channels.confirm(b"user:2", true);
    assert_eq!(channels.missing(), 0);
}

#[test]
fn many_channels_share_few_commands_and_few_commands_are_in_flight() {
    let channels = Arc::new(UserChannels::new("user:", Duration::ZERO, Arc::default()));
    let all: Vec<_> = (0..10_500).map(|number| channels.want(&user(&number.to_string()))).collect();
    channels.begin();
    let commands = channels.next_commands();
    assert_eq!(commands.iter().map(|command| command.names.len()).collect::<Vec<_>>(), [CHUNK; MAX_IN_FLIGHT]);
    assert!(channels.next_commands().is_empty());
    commands[0].names.iter().for_each(|name| drop(channels.confirm(name.as_bytes(), true)));
    assert_eq!(channels.next_commands().len(), 1);
    assert_eq!(channels.missing(), all.len() - CHUNK);
}

#[test]
fn no_command_for_sharded_channels_has_two_slots() {
    let channels = Arc::new(UserChannels::of_shard("user:", Arc::default()));
    let all = ["1", "a{tag}", "2", "b{tag}c"];
    let _wanted: Vec<_> = all.into_iter().map(|name| channels.want(&user(name))).collect();
    channels.begin();
    let commands = channels.next_commands();
    assert_eq!(commands.len(), 3);
    for ChannelCommand { verb, names } in commands {
        assert_eq!(verb, "SSUBSCRIBE");
        assert!(names.iter().all(|name| slot(name.as_bytes()) == slot(names[0].as_bytes())), "{names:?}");
    }
}

#[test]
fn a_subscription_that_redis_ends_unasked_is_reported_and_made_again() {
    let channels = Arc::new(UserChannels::of_shard("user:", Arc::default()));
    let wanted = channels.want(&user("42"));
    channels.begin();
    assert_eq!(command(&channels).0, "SSUBSCRIBE");
    assert_eq!(channels.confirm(b"user:42", true), Some(Confirmed::Subscribed(user("42"))));
    assert_eq!(channels.confirm(b"user:42", false), Some(Confirmed::Lost(user("42"))));
    assert!(!channels.is_subscribed(&user("42")));
    for _ in 0..3 {
        channels.expire();
        assert_eq!(command(&channels).0, "SSUBSCRIBE");
        assert!(channels.refuse(&Error::refused("MOVED 1 127.0.0.1:1")));
        assert_eq!(channels.refusal(), None, "nothing is refused: the slot is elsewhere");
    }
    drop(wanted);
    channels.expire();
    assert!(channels.next_commands().is_empty() && channels.state.lock().channels.is_empty());
}
