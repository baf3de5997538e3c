//! Keys that verify signatures (RFC 7518). Each verifies one algorithm; a token selects among the configured keys only.
//!
//! jsonwebtoken verifies signatures, but accepts any bytes as a key, lacks ES512, and derives the state of an HMAC key again
//! for each token. Therefore aws-lc-rs, on which it builds, validates keys when they are loaded, and verifies those two.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, EcdsaVerificationAlgorithm,
    ParsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::{AlgorithmFamily, DecodingKey, crypto};
use serde::Deserialize;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::{PemObject, SectionKind};
use tokio_rustls::rustls::server::ParsedCertificate;

/// Maximum keys of one file or one key set; it bounds the signature checks for one token.
pub(super) const MAX_KEYS: usize = 32;

/// 2048 bits. The library refuses signatures of smaller keys; here the keys themselves are refused.
const LEAST_RSA_BYTES: usize = 256;

/// The PEM label of PKCS#1 keys.
const RSA_LABEL: &str = "RSA PUBLIC KEY";

/// The label of the PEM section that this line begins.
fn label(line: &str) -> Option<&str> {
    line.strip_prefix("-----BEGIN ")?.trim_end().strip_suffix("-----")
}

/// A signature algorithm, parsed from its JOSE name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(super) enum Algorithm {
    Library(jsonwebtoken::Algorithm),
    Es512,
    /// Any other name, including `none`.
    Other,
}

impl From<String> for Algorithm {
    fn from(name: String) -> Self {
        match name.as_str() {
            "ES512" => Self::Es512,
            // RFC 9864's name for EdDSA on the only supported curve.
            "Ed25519" => Self::Library(jsonwebtoken::Algorithm::EdDSA),
            name => name.parse().map_or(Self::Other, Self::Library),
        }
    }
}

impl Algorithm {
    /// Whether the verification key is public, as in a key set.
    pub(super) fn is_asymmetric(self) -> bool {
        match self {
            Self::Library(algorithm) => algorithm.family() != AlgorithmFamily::Hmac,
            Self::Es512 => true,
            Self::Other => false,
        }
    }
}

const HMACS: [(Algorithm, hmac::Algorithm); 3] = [
    (Algorithm::Library(jsonwebtoken::Algorithm::HS256), hmac::HMAC_SHA256),
    (Algorithm::Library(jsonwebtoken::Algorithm::HS384), hmac::HMAC_SHA384),
    (Algorithm::Library(jsonwebtoken::Algorithm::HS512), hmac::HMAC_SHA512),
];

/// A key parses on at most one of these curves.
const EC_CURVES: [(Algorithm, &EcdsaVerificationAlgorithm); 3] = [
    (Algorithm::Library(jsonwebtoken::Algorithm::ES256), &ECDSA_P256_SHA256_FIXED),
    (Algorithm::Library(jsonwebtoken::Algorithm::ES384), &ECDSA_P384_SHA384_FIXED),
    (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED),
];

/// Why a verification key is refused. The message never quotes the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("it contains a private key: only public keys belong here")]
    Private,
    #[error("its RSA key is shorter than 2048 bits")]
    Weak,
    #[error("it has no key of a supported type")]
    Unknown,
    #[error("it is not valid PEM")]
    NotPem,
    #[error("it contains several certificates, or a certificate and other keys")]
    Chain,
    #[error("it contains more than {MAX_KEYS} keys")]
    TooMany,
    #[error("it is empty")]
    Empty,
}

/// A key for one algorithm.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    /// Its `kid`; a key without one is tried for every token of its algorithm.
    pub(super) id: Option<String>,
    material: Material,
}

#[derive(Debug, Clone)]
enum Material {
    /// Boxed, because it is much larger.
    Shared(Box<hmac::Key>),
    Public(DecodingKey),
}

impl Key {
    /// A shared secret, once per HMAC algorithm.
    pub(super) fn shared(secret: &[u8]) -> Result<Vec<Self>, KeyError> {
        if secret.is_empty() {
            return Err(KeyError::Empty);
        }
        let key = |hash| Material::Shared(Box::new(hmac::Key::new(hash, secret)));
        Ok(HMACS.map(|(algorithm, hash)| Self { algorithm, id: None, material: key(hash) }).into())
    }

    /// A public key in DER, SPKI (RFC 5280) or PKCS#1 (RFC 8017), once per algorithm of its type.
    pub(super) fn public(der: &[u8]) -> Result<Vec<Self>, KeyError> {
        for (algorithm, curve) in EC_CURVES {
            if ParsedPublicKey::new(curve, der).is_ok() {
                let material = Material::Public(DecodingKey::from_ec_der(der));
                return Ok(vec![Self { algorithm, id: None, material }]);
            }
        }
        if ParsedPublicKey::new(&ED25519, der).is_ok() {
            return Ok(Self::each(&DecodingKey::from_ed_der(der)));
        }
        let rsa = RsaPublicKey::from_der(der).map_err(|_| KeyError::Unknown)?;
        if rsa.modulus_len() < LEAST_RSA_BYTES {
            return Err(KeyError::Weak);
        }
        Ok(Self::each(&DecodingKey::from_rsa_der(der)))
    }

    /// The public keys of a PEM file (RFC 7468): any number of keys, or one certificate.
    pub(super) fn from_pem(text: &[u8]) -> Result<Vec<Self>, KeyError> {
        // The parser accepts a section only at the start of a line; editors add a byte order mark, YAML an indentation.
        let text = String::from_utf8_lossy(text);
        let text = text.trim_start_matches('\u{feff}').lines().map(str::trim).collect::<Vec<_>>().join("\n");
        // The parser skips sections with an unknown label, so the labels are checked first.
        let labels: Vec<&str> = text.lines().filter_map(label).collect();
        if labels.is_empty() {
            return Err(KeyError::NotPem);
        }
        if labels.len() > MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        for label in &labels {
            match *label {
                label if label.ends_with("PRIVATE KEY") => return Err(KeyError::Private),
                // The other keys of a chain sign certificates, not tokens.
                "CERTIFICATE" if labels.len() > 1 => return Err(KeyError::Chain),
                "PUBLIC KEY" | RSA_LABEL | "CERTIFICATE" => {}
                _ => return Err(KeyError::Unknown),
            }
        }
        // The parser does not know this label. The key's bytes show whether it is SPKI or PKCS#1.
        let text = text.replace(RSA_LABEL, "PUBLIC KEY");
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>();
        let sections = sections.map_err(|_| KeyError::NotPem)?;
        if sections.len() != labels.len() {
            return Err(KeyError::NotPem);
        }
        let mut keys = Vec::new();
        for (kind, der) in sections {
            keys.extend(if kind == SectionKind::Certificate {
                let certificate = CertificateDer::from(der);
                let certificate = ParsedCertificate::try_from(&certificate).map_err(|_| KeyError::Unknown)?;
                Self::public(&certificate.subject_public_key_info())?
            } else {
                Self::public(&der)?
            });
        }
        Ok(keys)
    }

    /// A public key, once per algorithm of its family.
    fn each(key: &DecodingKey) -> Vec<Self> {
        let family = key.family();
        let material = || Material::Public(key.clone());
        let serve = |algorithm: &_| Self { algorithm: Algorithm::Library(*algorithm), id: None, material: material() };
        family.algorithms().iter().map(serve).collect()
    }

    /// Whether a token with this algorithm and `kid` may be signed with this key.
    pub(super) fn serves(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm && self.id.as_deref().is_none_or(|own| id.is_none_or(|id| id == own))
    }

    /// Verifies a signature in base64url.
    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        match (&self.material, self.algorithm) {
            (Material::Shared(key), _) => BASE64_URL_SAFE_NO_PAD
                .decode(signature)
                .is_ok_and(|signature| hmac::verify(key, message, &signature).is_ok()),
            (Material::Public(key), Algorithm::Library(algorithm)) => {
                crypto::verify(signature, message, key, algorithm) == Ok(true)
            }
            (Material::Public(key), Algorithm::Es512) => verifies_es512(key, message, signature).is_some(),
            (Material::Public(_), Algorithm::Other) => false,
        }
    }
}

fn verifies_es512(key: &DecodingKey, message: &[u8], signature: &str) -> Option<()> {
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
    ECDSA_P521_SHA512_FIXED.verify_sig(key.try_get_as_bytes().ok()?, message, &signature).ok()
}
