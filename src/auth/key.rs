//! Keys that verify signatures (RFC 7518). Each serves one algorithm; a token can only pick among those that are there.

use aws_lc_rs::hmac;
use aws_lc_rs::rsa::PublicKey as RsaPublicKey;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ECDSA_P521_SHA512_FIXED, ED25519, ParsedPublicKey,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, VerificationAlgorithm,
};
use serde::Deserialize;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::ParsedCertificate;

/// Most keys of one file or one key set, so that a token has only so many to be tried with.
pub(super) const MAX_KEYS: usize = 32;

/// 2048 bits; the library refuses signatures of smaller keys, and we the keys themselves.
const LEAST_RSA_BYTES: usize = 256;

/// A signature algorithm by its name in JOSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Algorithm {
    Hs256,
    Hs384,
    Hs512,
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    /// Ed25519, which is the only curve; RFC 9864 calls it so.
    #[serde(rename = "EdDSA", alias = "Ed25519")]
    EdDsa,
    /// Anything else, `none` among it.
    #[serde(other)]
    Other,
}

impl Algorithm {
    /// Whether the verifying key is public, as those of a key set are.
    pub(super) fn is_asymmetric(self) -> bool {
        !matches!(self, Self::Hs256 | Self::Hs384 | Self::Hs512 | Self::Other)
    }
}

const RSA: [(Algorithm, &RsaParameters); 6] = [
    (Algorithm::Rs256, &RSA_PKCS1_2048_8192_SHA256),
    (Algorithm::Rs384, &RSA_PKCS1_2048_8192_SHA384),
    (Algorithm::Rs512, &RSA_PKCS1_2048_8192_SHA512),
    (Algorithm::Ps256, &RSA_PSS_2048_8192_SHA256),
    (Algorithm::Ps384, &RSA_PSS_2048_8192_SHA384),
    (Algorithm::Ps512, &RSA_PSS_2048_8192_SHA512),
];

/// Kinds of key that serve one algorithm each; a key parses as one of them, or as none.
const CURVES: [(Algorithm, &dyn VerificationAlgorithm); 4] = [
    (Algorithm::Es256, &ECDSA_P256_SHA256_FIXED),
    (Algorithm::Es384, &ECDSA_P384_SHA384_FIXED),
    (Algorithm::Es512, &ECDSA_P521_SHA512_FIXED),
    (Algorithm::EdDsa, &ED25519),
];

/// Why something is no key to verify with. Nothing of its content is in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("it holds a private key, which has no business here")]
    Private,
    #[error("its RSA key is shorter than 2048 bits")]
    Weak,
    #[error("it holds no key of a kind that is known here")]
    Unknown,
    #[error("it is not PEM, or a damaged one")]
    NotPem,
    #[error("it holds more than one certificate, or one beside other keys")]
    Chain,
    #[error("it holds more than {MAX_KEYS} keys")]
    TooMany,
}

/// A key as it serves one algorithm.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) algorithm: Algorithm,
    /// The `kid` that it goes by; without one it is tried for every token of its algorithm.
    pub(super) id: Option<String>,
    secret: Secret,
}

#[derive(Debug, Clone)]
enum Secret {
    Shared(Box<hmac::Key>),
    /// Not secret at all, but what the other end has is.
    Public(ParsedPublicKey),
}

impl Key {
    /// A shared secret, as it serves each HMAC algorithm.
    pub(super) fn shared(secret: &[u8]) -> [Self; 3] {
        [
            (Algorithm::Hs256, hmac::HMAC_SHA256),
            (Algorithm::Hs384, hmac::HMAC_SHA384),
            (Algorithm::Hs512, hmac::HMAC_SHA512),
        ]
        .map(|(algorithm, hash)| Self {
            algorithm,
            id: None,
            secret: Secret::Shared(Box::new(hmac::Key::new(hash, secret))),
        })
    }

    /// A public key in DER, SPKI (RFC 5280) or PKCS#1 (RFC 8017), as it serves each algorithm of its kind.
    pub(super) fn public(der: &[u8]) -> Result<Vec<Self>, KeyError> {
        for (algorithm, curve) in CURVES {
            if let Ok(key) = ParsedPublicKey::new(curve, der) {
                return Ok(vec![Self::parsed(algorithm, key)]);
            }
        }
        let weak = RsaPublicKey::from_der(der).map_err(|_| KeyError::Unknown)?.modulus_len() < LEAST_RSA_BYTES;
        if weak {
            return Err(KeyError::Weak);
        }
        let parse = |(algorithm, parameters): (Algorithm, &'static RsaParameters)| {
            let key = ParsedPublicKey::new(parameters, der).map_err(|_| KeyError::Unknown)?;
            Ok(Self::parsed(algorithm, key))
        };
        RSA.into_iter().map(parse).collect()
    }

    /// The public keys of a PEM file (RFC 7468): any number of keys, or one certificate.
    pub(super) fn from_pem(text: &[u8]) -> Result<Vec<Self>, KeyError> {
        let blocks = pem::parse_many(text).map_err(|_| KeyError::NotPem)?;
        if blocks.is_empty() {
            return Err(KeyError::NotPem);
        }
        if blocks.len() > MAX_KEYS {
            return Err(KeyError::TooMany);
        }
        let mut keys = Vec::new();
        for block in &blocks {
            keys.extend(match block.tag() {
                tag if tag.ends_with("PRIVATE KEY") => return Err(KeyError::Private),
                "PUBLIC KEY" | "RSA PUBLIC KEY" => Self::public(block.contents())?,
                // The keys of a chain's authorities sign certificates, not tokens.
                "CERTIFICATE" if blocks.len() > 1 => return Err(KeyError::Chain),
                "CERTIFICATE" => {
                    let certificate = CertificateDer::from(block.contents());
                    let certificate = ParsedCertificate::try_from(&certificate).map_err(|_| KeyError::Unknown)?;
                    Self::public(&certificate.subject_public_key_info())?
                }
                _ => return Err(KeyError::Unknown),
            });
        }
        Ok(keys)
    }

    fn parsed(algorithm: Algorithm, key: ParsedPublicKey) -> Self {
        Self { algorithm, id: None, secret: Secret::Public(key) }
    }

    /// Whether a token under this algorithm and `kid` may have been signed with this key.
    pub(super) fn serves(&self, algorithm: Algorithm, id: Option<&str>) -> bool {
        self.algorithm == algorithm && self.id.as_deref().is_none_or(|own| id.is_none_or(|id| id == own))
    }

    /// Whether this is the key's signature of the message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.secret {
            Secret::Shared(key) => hmac::verify(key, message, signature).is_ok(),
            Secret::Public(key) => key.verify_sig(message, signature).is_ok(),
        }
    }
}
