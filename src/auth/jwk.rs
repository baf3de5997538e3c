//! Key sets as issuers publish them (RFC 7517, RFC 7518 section 6, RFC 8037).

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::RsaPublicKeyComponents;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::key::{Algorithm, Key, MAX_KEYS};

#[derive(Debug, Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// What is looked at in one key; `x5c`, `x5u` and the rest are not.
#[derive(Debug, Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<Algorithm>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of a set that verify tokens, and how many others it has: for encryption, of unknown kinds, shared secrets
/// (which have no business in public), beyond the bound. `None` where the text is no key set.
pub(super) fn parse_set(text: &[u8]) -> Option<(Vec<Key>, usize)> {
    let document: Document<'_> = serde_json::from_slice(text).ok()?;
    let usable = document.keys.iter().filter_map(|raw| keys(&serde_json::from_str(raw.get()).ok()?));
    let usable: Vec<Vec<Key>> = usable.take(MAX_KEYS).collect();
    let skipped = document.keys.len() - usable.len();
    Some((usable.into_iter().flatten().collect(), skipped))
}

/// One key as it serves each of its algorithms; its own `alg` and `use` narrow them.
fn keys(jwk: &Jwk) -> Option<Vec<Key>> {
    let for_signatures = jwk.purpose.as_deref().is_none_or(|purpose| purpose == "sig")
        && jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if !for_signatures {
        return None;
    }
    let bytes = |text: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
    let (x, y) = (bytes(&jwk.x), bytes(&jwk.y));
    let mut keys = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", None) => {
            // Some issuers write a leading zero, as for a signed number.
            let number = |text| bytes(text).map(|bytes| bytes.into_iter().skip_while(|byte| *byte == 0).collect());
            let components: RsaPublicKeyComponents<Vec<u8>> =
                RsaPublicKeyComponents { n: number(&jwk.n)?, e: number(&jwk.e)? };
            Key::public(components.as_der().ok()?.as_ref()).ok()?
        }
        ("EC", Some("P-256")) => Key::public(&point(&x?, &y?, 32)?).ok()?,
        ("EC", Some("P-384")) => Key::public(&point(&x?, &y?, 48)?).ok()?,
        ("EC", Some("P-521")) => Key::public(&point(&x?, &y?, 66)?).ok()?,
        ("OKP", Some("Ed25519")) => Key::public(&x.filter(|x| x.len() == 32)?).ok()?,
        _ => return None,
    };
    keys.retain(|key| jwk.alg.is_none_or(|alg| alg == key.algorithm));
    for key in &mut keys {
        key.id.clone_from(&jwk.kid);
    }
    (!keys.is_empty()).then_some(keys)
}

/// The uncompressed point (SEC 1, section 2.3.3).
fn point(x: &[u8], y: &[u8], size: usize) -> Option<Vec<u8>> {
    (x.len() == size && y.len() == size).then(|| [&[4], x, y].concat())
}
