//! JSON Web Key Sets (RFC 7517, RFC 7518 section 6, RFC 8037).

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::signature::RsaPublicKeyComponents;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::key::{Algorithm, Key, MAX_KEYS};

#[derive(Debug, Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// One key. `alg` is parsed here because the library does not know ES512.
#[derive(Debug, Deserialize)]
struct Entry {
    alg: Option<Algorithm>,
    #[serde(flatten)]
    jwk: Jwk,
}

/// The keys of a set that verify tokens, and the number of skipped ones: for encryption, of unknown types, shared
/// secrets (which must not be public), or beyond [`MAX_KEYS`]. `None` if the text is not a key set.
pub(super) fn parse_set(text: &[u8]) -> Option<(Vec<Key>, usize)> {
    let document: Document<'_> = serde_json::from_slice(text).ok()?;
    let usable = document.keys.iter().filter_map(|raw| keys(&serde_json::from_str(raw.get()).ok()?));
    let usable: Vec<Vec<Key>> = usable.take(MAX_KEYS).collect();
    let skipped = document.keys.len() - usable.len();
    Some((usable.into_iter().flatten().collect(), skipped))
}

/// The `kid`, or the place, of each published key that contains its private part or is a shared secret, in either of which
/// case anyone can sign with it.
pub(super) fn published_secrets(text: &[u8]) -> Vec<String> {
    #[derive(Deserialize)]
    struct Secret {
        kid: Option<String>,
        d: Option<IgnoredAny>,
        k: Option<IgnoredAny>,
    }
    let document = serde_json::from_slice::<Document<'_>>(text);
    let keys = document.into_iter().flat_map(|document| document.keys).enumerate();
    let published = keys.filter_map(|(place, raw)| {
        let key: Secret = serde_json::from_str(raw.get()).ok()?;
        (key.d.is_some() || key.k.is_some()).then(|| key.kid.unwrap_or_else(|| format!("key {}", place + 1)))
    });
    published.take(MAX_KEYS).collect()
}

/// One key per algorithm that it supports; its `alg` and `use` restrict them.
fn keys(Entry { alg, jwk }: &Entry) -> Option<Vec<Key>> {
    let for_signatures = jwk.common.public_key_use.as_ref().is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
        && jwk.common.key_operations.as_ref().is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !for_signatures {
        return None;
    }
    let bytes = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).ok();
    // The library's own conversion checks neither the size of coordinates nor that of a modulus.
    let mut keys = match &jwk.algorithm {
        AlgorithmParameters::RSA(rsa) => {
            // Some issuers write a leading zero, as in a signed number.
            let number = |text| bytes(text).map(|bytes| bytes.into_iter().skip_while(|byte| *byte == 0).collect());
            let components: RsaPublicKeyComponents<Vec<u8>> =
                RsaPublicKeyComponents { n: number(&rsa.n)?, e: number(&rsa.e)? };
            Key::public(components.as_der().ok()?.as_ref()).ok()?
        }
        AlgorithmParameters::EllipticCurve(ec) => {
            let size = match ec.curve {
                EllipticCurve::P256 => 32,
                EllipticCurve::P384 => 48,
                EllipticCurve::P521 => 66,
                _ => return None,
            };
            Key::public(&point(&bytes(&ec.x)?, &bytes(&ec.y)?, size)?).ok()?
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Key::public(&bytes(&okp.x).filter(|x| x.len() == 32)?).ok()?
        }
        _ => return None,
    };
    keys.retain(|key| alg.is_none_or(|alg| alg == key.algorithm));
    for key in &mut keys {
        key.id.clone_from(&jwk.common.key_id);
    }
    (!keys.is_empty()).then_some(keys)
}

/// The uncompressed point (SEC 1, section 2.3.3).
fn point(x: &[u8], y: &[u8], size: usize) -> Option<Vec<u8>> {
    (x.len() == size && y.len() == size).then(|| [&[4], x, y].concat())
}

#[cfg(test)]
mod tests {
    use super::{parse_set, published_secrets};

    #[test]
    fn a_published_private_key_is_named_by_its_kid_or_its_place() {
        let set = br#"{"keys":[{"kid":"a","x":"1"},{"kid":"b","d":"1"},{"d":"1"},{"k":"1","kid":"c"},{"d":null},1]}"#;
        assert_eq!(published_secrets(set), ["b", "key 3", "c"]);
        assert!(published_secrets(b"no set").is_empty());
    }

    /// The number of usable keys in a set of one key with these members.
    fn served(members: &str) -> usize {
        parse_set(format!("{{\"keys\":[{{{members}}}]}}").as_bytes()).unwrap().0.len()
    }

    #[test]
    fn a_key_with_a_member_twice_or_of_the_wrong_type_is_skipped() {
        const KEY: &str = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
        assert_eq!(served(KEY), 1);
        assert_eq!(served(&format!(r#"{KEY},"alg":"EdDSA","kid":"a","use":"sig","more":1,"more":2"#)), 1);
        let x = r#""x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
        for spoiler in [
            x,
            r#""kty":"OKP""#,
            r#""crv":"Ed25519""#,
            r#""alg":"EdDSA","alg":"EdDSA""#,
            r#""kid":"a","kid":"b""#,
            r#""use":"enc","use":"sig""#,
            r#""key_ops":["sign"],"key_ops":["verify"]"#,
            r#""alg":1"#,
            r#""kid":1"#,
            r#""use":["sig"]"#,
            r#""key_ops":"verify""#,
        ] {
            assert_eq!(served(&format!("{KEY},{spoiler}")), 0, "{spoiler}");
        }
    }
}
