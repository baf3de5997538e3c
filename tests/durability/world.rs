//! The state that all parts of a run share.

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fastrand::Rng;
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, FromRedisValue, Script, ScriptInvocation};
use tidings::internals::{Cursor, Envelope, Stored};
use tokio::sync::RwLock;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::record::{Notification, Publication};
use crate::support::{Follower, Gateway, Subscription};

pub const SLOTS: usize = 3;

/// What is used up to its end, and no longer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Where an instance listens.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

impl From<&Gateway> for Place {
    fn from(gateway: &Gateway) -> Self {
        Self { public: gateway.public, admin: gateway.admin }
    }
}

/// What has happened so far, to see whether a run without a fault means something.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Publishers that have published nothing yet.
    pub idle: usize,
    /// What was confirmed, for each user that it was for.
    pub published: usize,
    /// Resumes that recovered everything, and those that reported a gap.
    pub recovered: usize,
    pub told: usize,
    /// What was taken back.
    pub taken: usize,
}

/// See the module.
pub struct World {
    begun: Instant,
    /// Where the instances are, while they can be hoped to answer.
    pub slots: Mutex<[Option<Place>; SLOTS]>,
    /// No more is published.
    pub silent: CancellationToken,
    /// Nothing fails any more: clients connect for the last time.
    pub healed: CancellationToken,
    /// Held by each publisher until its notification is confirmed.
    pub publishing: RwLock<()>,
    pub http: reqwest::Client,
    redis: redis::Client,
    /// Of a cluster, in place of `redis`.
    pub cluster: OnceLock<Follower>,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// What was ever stored.
    pub reader: tokio::sync::Mutex<Reader>,
    pub tally: Mutex<Tally>,
    /// When everything stored was evicted, and how many notifications of each user those were.
    pub evictions: Mutex<Vec<(u64, Vec<usize>)>>,
    /// What was published where another server took over, to each user: in milliseconds since 1970, the time of the last
    /// such change, and the publications.
    pub forked: Mutex<(u64, Vec<Publication>)>,
    /// What was done to the instances and Redis, and when.
    tale: Mutex<Vec<(u64, String)>>,
}

impl World {
    pub fn new(redis_url: &str, users: &[String]) -> Self {
        Self {
            begun: Instant::now(),
            slots: Mutex::default(),
            silent: CancellationToken::new(),
            healed: CancellationToken::new(),
            publishing: RwLock::new(()),
            http: reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().unwrap(),
            redis: redis::Client::open(redis_url).unwrap(),
            cluster: OnceLock::new(),
            connection: Mutex::new(None),
            reader: tokio::sync::Mutex::new(Reader::new(users)),
            tally: Mutex::default(),
            evictions: Mutex::default(),
            forked: Mutex::default(),
            tale: Mutex::default(),
        }
    }

    /// Milliseconds since the run began.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap()
    }

    pub fn tell(&self, what: impl Into<String>) {
        self.tale.lock().push((self.now(), what.into()));
    }

    pub fn tale(&self) -> Vec<(u64, String)> {
        self.tale.lock().clone()
    }

    /// An instance that a load balancer would choose.
    pub fn anywhere(&self, rng: &mut Rng) -> Option<Place> {
        self.slots.lock()[rng.usize(0..SLOTS)]
    }

    /// Asks Redis until it answers: it may have done what it was asked more than once.
    pub async fn redis<T: FromRedisValue>(&self, command: &Cmd) -> T {
        loop {
            let mut connection = self.connection().await;
            match command.query_async(&mut connection).await {
                Ok(answer) => return answer,
                Err(error) => self.forget(&error).await,
            }
        }
    }

    /// As [`World::redis`], with a script.
    pub async fn script<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> T {
        loop {
            let mut connection = self.connection().await;
            match script.invoke_async(&mut connection).await {
                Ok(answer) => return answer,
                Err(error) => self.forget(&error).await,
            }
        }
    }

    async fn forget(&self, error: &redis::RedisError) {
        let expected = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
        assert!(expected || error.code() == Some("LOADING"), "{error}");
        *self.connection.lock() = None;
        sleep(Duration::from_millis(20)).await;
    }

    async fn connection(&self) -> MultiplexedConnection {
        loop {
            if let Some(connection) = self.connection.lock().clone() {
                return connection;
            }
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(PATIENCE))
                .set_response_timeout(Some(PATIENCE));
            match self.redis.get_multiplexed_async_connection_with_config(&config).await {
                Ok(connection) => *self.connection.lock() = Some(connection),
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// Reads, past every gateway, what is stored: new entries of each user, with the epoch that their ids have now.
pub struct Reader {
    script: Script,
    pub users: Vec<String>,
    /// Everything that each user ever had.
    pub stored: Vec<Vec<Notification>>,
}

/// What Redis loses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    None,
    /// Everything.
    Flush,
    /// All stored notifications.
    Evict,
}

/// An entry of XRANGE.
pub type Raw = (String, Vec<String>);

impl Reader {
    pub fn new(users: &[String]) -> Self {
        let script = Script::new(
            r"local epoch = redis.call('HGET', 'tidings:history', 'epoch')
              local answer = {}
              for i = 2, #ARGV, 2 do
                local of = epoch and string.sub(redis.sha1hex(epoch .. ':' .. ARGV[i]), 1, 16) or ''
                answer[#answer + 1] = { of, redis.call('XRANGE', 'tidings:history:{' .. ARGV[i] .. '}', ARGV[i + 1], '+') }
              end
              if ARGV[1] == 'flush' then
                redis.call('FLUSHALL')
              end
              for i = 2, #ARGV, 2 do
                -- Expired or evicted: gone in the same way.
                if ARGV[1] == 'evict' and i % 4 == 0 then
                  redis.call('PEXPIRE', 'tidings:history:{' .. ARGV[i] .. '}', 0)
                elseif ARGV[1] == 'evict' then
                  redis.call('DEL', 'tidings:history:{' .. ARGV[i] .. '}')
                end
              end
              return answer",
        );
        Self { script, users: users.to_vec(), stored: vec![Vec::new(); users.len()] }
    }

    /// Reads what came since, and then loses it in the same step, if so.
    pub async fn read(&mut self, world: &World, loss: Loss) {
        let mut call = self.script.arg(match loss {
            Loss::None => "",
            Loss::Flush => "flush",
            Loss::Evict => "evict",
        });
        for (user, stored) in self.users.iter().zip(&self.stored) {
            // An epoch later, times are later too.
            let after = stored.last().map_or_else(|| "-".into(), |last| format!("({}-{}", last.id.ms, last.id.number));
            call.arg(user).arg(after);
        }
        let answer: Vec<(String, Vec<Raw>)> = world.script(&call).await;
        for (stored, (epoch, fresh)) in self.stored.iter_mut().zip(answer) {
            stored.extend(fresh.iter().map(|entry| notification(&epoch, entry)));
        }
    }
}

/// Receives what is stored before it is trimmed, over a link that is never broken; the count shows that no message was
/// missed.
pub async fn listen(world: Arc<World>, mut subscription: Subscription) {
    let mut heard = 0;
    loop {
        let message = subscription.next_message().await;
        let text: String = message.get_payload().unwrap();
        let Some(Envelope { stored: Some(Stored { count, cursor: id, .. }), event, data, .. }) = Envelope::parse(&text)
        else {
            continue;
        };
        heard += 1;
        assert_eq!(count, heard, "{text}");
        let user = message.get_channel_name().strip_prefix("user:").unwrap();
        let mut reader = world.reader.lock().await;
        let index = reader.users.iter().position(|name| name == user).unwrap();
        reader.stored[index].push(Notification { id, ts: id.ms, event, data: data.to_owned() });
    }
}

pub fn notification(epoch: &str, (place, fields): &Raw) -> Notification {
    let epoch = u64::from_str_radix(epoch, 16).ok().and_then(NonZeroU64::new).expect("an epoch");
    let (ms, number) = place.split_once('-').unwrap();
    let field = |name: &str| fields.chunks(2).find(|pair| pair[0] == name).unwrap()[1].clone();
    let ms = ms.parse().unwrap();
    Notification {
        id: Cursor { epoch, ms, number: number.parse().unwrap() },
        ts: ms,
        event: serde_json::from_str(&field("event")).unwrap(),
        data: field("data"),
    }
}
