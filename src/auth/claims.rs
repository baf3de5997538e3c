//! The claims of a token (RFC 7519, section 4), parsed in one pass without copying.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The claims that are checked, as raw JSON. A duplicate is refused, because two parsers could pick different values.
#[derive(Debug, Default)]
pub(super) struct Claims<'a> {
    /// The claim that `auth.user_claim` names.
    pub(super) user: Option<&'a RawValue>,
    pub(super) exp: Option<&'a RawValue>,
    pub(super) nbf: Option<&'a RawValue>,
    pub(super) iss: Option<&'a RawValue>,
    pub(super) aud: Option<&'a RawValue>,
    pub(super) jti: Option<&'a RawValue>,
}

impl<'a> Claims<'a> {
    /// Returns `None` if the bytes are not a JSON object, or repeat a claim.
    pub(super) fn parse(bytes: &'a [u8], user_claim: &str) -> Option<Self> {
        let mut json = serde_json::Deserializer::from_str(std::str::from_utf8(bytes).ok()?);
        let claims = Object { user_claim }.deserialize(&mut json).ok()?;
        json.end().ok()?;
        Some(claims)
    }
}

#[derive(Debug, Clone, Copy)]
enum Name {
    User,
    Exp,
    Nbf,
    Iss,
    Aud,
    Jti,
    Other,
}

#[derive(Clone, Copy)]
struct Object<'n> {
    user_claim: &'n str,
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Claims<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Claims<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut claims = Claims::default();
        while let Some(name) = map.next_key_seed(ClaimName(self))? {
            let slot = match name {
                Name::User => &mut claims.user,
                Name::Exp => &mut claims.exp,
                Name::Nbf => &mut claims.nbf,
                Name::Iss => &mut claims.iss,
                Name::Aud => &mut claims.aud,
                Name::Jti => &mut claims.jti,
                Name::Other => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if slot.replace(map.next_value()?).is_some() {
                return Err(A::Error::custom("duplicate claim"));
            }
        }
        Ok(claims)
    }
}

struct ClaimName<'n>(Object<'n>);

impl<'de> DeserializeSeed<'de> for ClaimName<'_> {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for ClaimName<'_> {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a claim")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(match name {
            name if name == self.0.user_claim => Name::User,
            "exp" => Name::Exp,
            "nbf" => Name::Nbf,
            "iss" => Name::Iss,
            "aud" => Name::Aud,
            "jti" => Name::Jti,
            _ => Name::Other,
        })
    }
}

pub(super) fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    serde_json::from_str(raw.get()).ok().map(|Text(text)| text)
}

/// A string, or an integer of any size as its digits.
pub(super) fn text_or_integer(raw: &RawValue) -> Option<Cow<'_, str>> {
    let digits = raw.get().strip_prefix('-').unwrap_or(raw.get());
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(raw.get().into());
    }
    text(raw)
}

/// A list of strings, or a single string as a list of one.
pub(super) fn texts(raw: &RawValue) -> Option<Vec<String>> {
    text(raw).map(|one| vec![one.into_owned()]).or_else(|| serde_json::from_str(raw.get()).ok())
}

/// Seconds since 1970, truncated; `None` for a negative number or one that does not fit.
pub(super) fn seconds(raw: &RawValue) -> Option<u64> {
    const END: f64 = 18_446_744_073_709_551_616.0;
    let fraction = || {
        let number = raw.get().parse::<f64>().ok().filter(|number| (0.0..END).contains(number))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is in range")]
        Some(number as u64)
    };
    raw.get().parse().ok().or_else(fraction)
}
