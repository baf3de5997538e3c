//! The names of the keys that hold the users' histories.
//!
//! Every key of a script must be in one slot of a cluster. There, users are spread over buckets: a bucket's hash tag is in
//! the name of every key of its users, and of a hash of its own with its epoch and count. One shard may lose data alone,
//! which no other bucket's count would show.

use std::ops::BitOrAssign;

use crate::protocol::UserId;
use crate::redis::{Redis, crc16};

/// The number of a bucket.
pub type Bucket = u8;

/// Which keys hold the histories of which users. Never changed: another number of buckets would be another layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// All users in one bucket, on a single Redis.
    One,
    /// 256 buckets, by the lower byte of the CRC16 of the user id.
    Buckets,
}

impl Layout {
    pub fn of(redis: &Redis) -> Self {
        if redis.is_cluster() { Self::Buckets } else { Self::One }
    }

    pub(super) fn bucket(self, user: &str) -> Bucket {
        match self {
            Self::One => 0,
            Self::Buckets => crc16(user.as_bytes()).to_be_bytes()[1],
        }
    }

    /// The bucket after this one, in a circle.
    pub(super) fn after(self, bucket: Bucket) -> Bucket {
        match self {
            Self::One => 0,
            Self::Buckets => bucket.wrapping_add(1),
        }
    }

    pub(super) fn all(self) -> BucketSet {
        self.buckets().collect()
    }

    pub fn buckets(self) -> impl Iterator<Item = Bucket> + Clone {
        match self {
            Self::One => 0..=0,
            Self::Buckets => 0..=Bucket::MAX,
        }
    }
}

/// A set of buckets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BucketSet([u64; 4]);

impl BucketSet {
    pub fn contains(&self, bucket: Bucket) -> bool {
        let (word, bit) = place(bucket);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn insert(&mut self, bucket: Bucket) {
        let (word, bit) = place(bucket);
        if let Some(word) = self.0.get_mut(word) {
            *word |= bit;
        }
    }
}

impl FromIterator<Bucket> for BucketSet {
    fn from_iter<T: IntoIterator<Item = Bucket>>(buckets: T) -> Self {
        let mut set = Self::default();
        buckets.into_iter().for_each(|bucket| set.insert(bucket));
        set
    }
}

impl BitOrAssign for BucketSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }
}

fn place(bucket: Bucket) -> (usize, u64) {
    (usize::from(bucket / 64), 1 << (bucket % 64))
}

/// The keys under one prefix, which contains no braces.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    prefix: String,
    pub(super) layout: Layout,
}

impl Keys {
    pub(super) fn new(prefix: &str, layout: Layout) -> Self {
        Self { prefix: prefix.to_owned(), layout }
    }

    /// The hash of a bucket: its epoch and count, and its users' places.
    pub(super) fn bucket(&self, bucket: Bucket) -> String {
        match self.layout {
            Layout::One => format!("{}history", self.prefix),
            Layout::Buckets => format!("{}{{b{bucket}}}:history", self.prefix),
        }
    }

    /// The hash of the user's bucket.
    pub(super) fn bucket_of(&self, user: &UserId) -> String {
        self.bucket(self.layout.bucket(user.as_str()))
    }

    /// The stream of a user's stored notifications.
    pub(super) fn stream(&self, user: &UserId) -> String {
        self.of(user, "history", ":")
    }

    /// The hash of a user's read positions, by device.
    pub(super) fn positions(&self, user: &UserId) -> String {
        self.of(user, "read", ":")
    }

    /// The runs of a user's retracted numbers.
    pub(super) fn retracted(&self, user: &UserId) -> String {
        self.of(user, "retracted", ":")
    }

    /// When a user's notifications with a ttl of their own end.
    pub(super) fn expiring(&self, user: &UserId) -> String {
        self.of(user, "expiring", ":")
    }

    /// The position of a user's newest notification of each collapse key.
    pub(super) fn collapse(&self, user: &UserId) -> String {
        self.of(user, "collapse", ":")
    }

    /// When a user's notifications escalate.
    pub(super) fn escalations(&self, user: &UserId) -> String {
        self.of(user, "escalations", ":")
    }

    /// When the next notification of each user of a bucket escalates.
    pub(super) fn bucket_escalations(&self, bucket: Bucket) -> String {
        match self.layout {
            Layout::One => format!("{}escalations", self.prefix),
            Layout::Buckets => format!("{}{{b{bucket}}}:escalations", self.prefix),
        }
    }

    /// The idempotency keys of a user, and when each ends.
    pub(super) fn keys(&self, user: &UserId) -> String {
        self.of(user, "keys", ":")
    }

    /// The record of an idempotency key. User and key may contain any character, so the length of the user is included.
    pub(super) fn once(&self, user: &UserId, key: &str) -> String {
        format!("{}:{key}", self.of(user, "key", &format!(":{}:", user.as_str().len())))
    }

    fn of(&self, user: &UserId, kind: &str, separator: &str) -> String {
        let user = user.as_str();
        match self.layout {
            // Several for each connection and each stored notification: formatting costs eight times as much.
            Layout::One => [&self.prefix, kind, separator, "{", user, "}"].concat(),
            Layout::Buckets => {
                let bucket = self.layout.bucket(user).to_string();
                [&self.prefix, "{b", &bucket, "}:", kind, separator, user].concat()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(id: &str) -> UserId {
        UserId::new(id).unwrap()
    }

    /// The part of a key that Redis Cluster hashes.
    fn tag(key: &str) -> &str {
        let Some((_, rest)) = key.split_once('{') else { return key };
        rest.split_once('}').map(|(tag, _)| tag).filter(|tag| !tag.is_empty()).unwrap_or(key)
    }

    #[test]
    fn a_single_redis_has_the_names_of_every_earlier_version() {
        let (keys, user) = (Keys::new("tidings:", Layout::One), user("42"));
        assert_eq!(keys.bucket_of(&user), "tidings:history");
        assert_eq!(keys.stream(&user), "tidings:history:{42}");
        assert_eq!(keys.positions(&user), "tidings:read:{42}");
        assert_eq!(keys.once(&user, "k"), "tidings:key:2:{42}:k");
        assert_eq!(keys.keys(&user), "tidings:keys:{42}");
        assert_eq!(keys.retracted(&user), "tidings:retracted:{42}");
        assert_eq!(keys.bucket_escalations(0), "tidings:escalations");
    }

    #[test]
    fn the_bucket_of_a_user_never_changes() {
        let keys = Keys::new("tidings:", Layout::Buckets);
        // crc16("42") is 0xdf40.
        assert_eq!(keys.bucket_of(&user("42")), "tidings:{b64}:history");
        assert_eq!(keys.stream(&user("42")), "tidings:{b64}:history:42");
        assert_eq!(keys.positions(&user("42")), "tidings:{b64}:read:42");
        assert_eq!(keys.once(&user("42"), "k"), "tidings:{b64}:key:2:42:k");
        assert_eq!(keys.retracted(&user("42")), "tidings:{b64}:retracted:42");
        assert_eq!(keys.bucket_escalations(64), "tidings:{b64}:escalations");
    }

    #[test]
    fn every_key_of_a_user_has_the_tag_of_its_bucket_whatever_braces_the_id_has() {
        let keys = Keys::new("tidings:", Layout::Buckets);
        for id in ["42", "}x", "{a}b", "{}", "{", "a}:b", "{b1}", "☂"] {
            let user = user(id);
            let expected = format!("b{}", Layout::Buckets.bucket(id));
            let of_user = [keys.stream(&user), keys.positions(&user), keys.once(&user, "{k}"), keys.keys(&user)];
            let of_both = [keys.bucket_of(&user), keys.bucket_escalations(Layout::Buckets.bucket(id))];
            for key in of_user.into_iter().chain(of_both) {
                assert_eq!(tag(&key), expected, "{key}");
            }
        }
    }

    #[test]
    fn keys_of_different_users_never_collide() {
        for layout in [Layout::One, Layout::Buckets] {
            let keys = Keys::new("tidings:", layout);
            let once = |id: &str, key: &str| keys.once(&user(id), key);
            assert_ne!(once("a}:b", "k"), once("a", "b}:k"));
            assert_ne!(once("a}:1", "y}:6:k"), once("a", "1}:y}:6:k"));
            assert_ne!(once("a:b", "k"), once("a", "b:k"));
        }
    }

    #[test]
    fn a_set_of_buckets_has_each_that_was_added_and_no_other() {
        let (mut set, mut other) = (BucketSet::default(), BucketSet::default());
        assert!(set.is_empty());
        [0, 63, 64, 255].into_iter().for_each(|bucket| set.insert(bucket));
        other.insert(7);
        set |= other;
        let members: Vec<_> = Layout::Buckets.buckets().filter(|bucket| set.contains(*bucket)).collect();
        assert_eq!(members, [0, 7, 63, 64, 255]);
    }
}
