//! TLS session tickets (RFC 8446, section 4.6.1; RFC 5077): the state of a session, encrypted, which its client keeps and
//! presents when it returns.
//!
//! The keys follow from one secret and the time: instances with the same secret accept each other's tickets, and no key has
//! to be distributed. A key encrypts for one period, and decrypts for one more.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Prk, Salt};
use aws_lc_rs::rand;
use parking_lot::Mutex;
use secrecy::SecretString;
use tokio_rustls::rustls::server::ProducesTickets;

use crate::config::secret_bytes;

/// Also the lifetime of a ticket.
const PERIOD: Duration = Duration::from_secs(6 * 3_600);

const KEY_BYTES: usize = 32;

pub(super) struct Tickets {
    secret: Prk,
    keys: Mutex<Option<Keys>>,
}

/// Those of a period, the one before and the one after, because the clocks of two instances may differ.
struct Keys {
    period: u64,
    around: [RandomizedNonceKey; 3],
}

impl Tickets {
    /// Without a secret, tickets are accepted by this process only. Fails only without randomness from the system.
    pub(super) fn new(secret: Option<&SecretString>) -> Result<Self, Unspecified> {
        let salt = Salt::new(HKDF_SHA256, b"tidings session tickets");
        let secret = match secret {
            Some(secret) => salt.extract(secret_bytes(secret)),
            None => {
                let mut random = [0; KEY_BYTES];
                rand::fill(&mut random)?;
                salt.extract(&random)
            }
        };
        Ok(Self { secret, keys: Mutex::new(None) })
    }

    fn key(&self, period: u64) -> Result<RandomizedNonceKey, Unspecified> {
        let mut key = [0; KEY_BYTES];
        self.secret.expand(&[&period.to_be_bytes()], HKDF_SHA256)?.fill(&mut key)?;
        RandomizedNonceKey::new(&AES_256_GCM, &key)
    }

    /// Calls `read` with the keys around this period, the first of which is the one before.
    fn with_keys<T>(&self, now: u64, read: impl FnOnce(&[RandomizedNonceKey; 3]) -> T) -> Option<T> {
        let mut keys = self.keys.lock();
        if keys.as_ref().is_none_or(|keys| keys.period != now) {
            let key = |period| self.key(period).ok();
            *keys = Some(Keys { period: now, around: [key(now.checked_sub(1)?)?, key(now)?, key(now + 1)?] });
        }
        keys.as_ref().map(|keys| read(&keys.around))
    }

    /// A ticket: the number of its period, a nonce, and the encrypted state with its tag.
    fn seal(&self, state: &[u8], now: u64) -> Option<Vec<u8>> {
        let (period, mut sealed) = (now.to_be_bytes(), state.to_vec());
        let seal = |[_, key, _]: &[RandomizedNonceKey; 3]| key.seal_in_place_append_tag(Aad::from(period), &mut sealed);
        let nonce = self.with_keys(now, seal)?.ok()?;
        Some([&period[..], nonce.as_ref(), &sealed].concat())
    }

    fn open(&self, ticket: &[u8], now: u64) -> Option<Vec<u8>> {
        let (period, rest) = ticket.split_first_chunk()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let place = usize::try_from(u64::from_be_bytes(*period).checked_sub(now.checked_sub(1)?)?).ok()?;
        let mut sealed = sealed.to_vec();
        let open = |around: &[RandomizedNonceKey; 3]| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            around.get(place)?.open_in_place(nonce, Aad::from(*period), &mut sealed).ok().map(|state| state.to_vec())
        };
        self.with_keys(now, open)?
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD.as_secs()).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, period())
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, period())
    }
}

/// The number of the current period.
fn period() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / PERIOD.as_secs()
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATE: &[u8] = b"the state of a session";

    fn tickets(secret: Option<&str>) -> Tickets {
        Tickets::new(secret.map(SecretString::from).as_ref()).unwrap()
    }

    #[test]
    fn a_ticket_is_accepted_in_its_period_and_the_next_and_by_a_clock_that_is_behind() {
        let tickets = tickets(None);
        let ticket = tickets.seal(STATE, 1_000).unwrap();
        assert!(!ticket.windows(5).any(|five| five == b"state"));
        let accepted = [998, 999, 1_000, 1_001, 1_002].map(|now| tickets.open(&ticket, now).as_deref() == Some(STATE));
        assert_eq!(accepted, [false, true, true, true, false]);
    }

    #[test]
    fn instances_accept_the_tickets_of_others_with_the_same_secret_only() {
        let [one, same, other] = [Some("a"), Some("a"), Some("b")].map(tickets);
        let ticket = one.seal(STATE, 1_000).unwrap();
        assert_eq!(same.open(&ticket, 1_000).as_deref(), Some(STATE));
        assert_eq!(other.open(&ticket, 1_000), None);
        let [one, other] = [None, None].map(tickets);
        assert_eq!(other.open(&one.seal(STATE, 1_000).unwrap(), 1_000), None);
    }

    #[test]
    fn a_ticket_that_was_changed_or_cut_is_refused() {
        let tickets = tickets(None);
        let ticket = tickets.seal(STATE, 1_000).unwrap();
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.open(&changed, 1_000), None, "byte {at}");
            assert_eq!(tickets.open(&ticket[..at], 1_000), None, "{at} bytes");
        }
    }
}
