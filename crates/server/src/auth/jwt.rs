//! Signed tokens (JWT): the subject is the user. Nothing is shared between servers but the key that checks them.
//!
//! The algorithm follows from the key that the operator gave, never from the token: EdDSA for a public key in PEM, HS256 for
//! anything else. A token must have a subject and an end, both of the right type. Its rights are those of its claim
//! `bitdelta_rights`, chat alone where it has none; the operator's right is never given by a token.
use super::{Grant, Right};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use std::{
    fmt,
    path::{Path, PathBuf},
};

/// Fewest bytes of a shared secret: as many as HS256's hash has.
const MIN_SECRET_BYTES: usize = 32;

/// Why tokens cannot be checked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JwtError {
    /// The key cannot be read.
    #[error("reading the key for tokens {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It is no Ed25519 public key in PEM.
    #[error("{} holds no Ed25519 public key in PEM: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A secret that could be guessed.
    #[error("{} holds a secret of {bytes} bytes; HS256 wants {MIN_SECRET_BYTES} at least", path.display())]
    ShortSecret {
        /// The file.
        path: PathBuf,
        /// Its length without white space at its end.
        bytes: usize,
    },
}

/// Checks tokens.
pub struct Jwt {
    key: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Jwt {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Jwt").field("validation", &self.validation).finish_non_exhaustive()
    }
}

/// What a token must say; a claim of another type fails it.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    #[serde(rename = "exp")]
    _exp: u64,
    #[serde(default, rename = "nbf")]
    _nbf: Option<u64>,
    #[serde(default)]
    bitdelta_rights: Option<Vec<String>>,
}

impl Jwt {
    /// The key in a file, and the issuer and audience that tokens must name if they are given.
    ///
    /// # Errors
    /// [`JwtError`].
    pub fn open(path: &Path, issuer: Option<&str>, audience: Option<&str>) -> Result<Self, JwtError> {
        let bytes = std::fs::read(path).map_err(|source| JwtError::Io { path: path.to_owned(), source })?;
        let (key, algorithm) = if bytes.trim_ascii_start().starts_with(b"-----BEGIN") {
            let pem = |error: jsonwebtoken::errors::Error| error.to_string();
            let key = DecodingKey::from_ed_pem(&bytes).map_err(pem);
            (key.map_err(|reason| JwtError::Pem { path: path.to_owned(), reason })?, Algorithm::EdDSA)
        } else {
            let secret = bytes.trim_ascii_end();
            if secret.len() < MIN_SECRET_BYTES {
                return Err(JwtError::ShortSecret { path: path.to_owned(), bytes: secret.len() });
            }
            (DecodingKey::from_secret(secret), Algorithm::HS256)
        };
        let mut validation = Validation::new(algorithm);
        validation.validate_nbf = true;
        validation.validate_aud = audience.is_some();
        validation.required_spec_claims.insert("sub".to_owned());
        if let Some(issuer) = issuer {
            validation.set_issuer(&[issuer]);
            validation.required_spec_claims.insert("iss".to_owned());
        }
        if let Some(audience) = audience {
            validation.set_audience(&[audience]);
            validation.required_spec_claims.insert("aud".to_owned());
        }
        Ok(Self { key, validation })
    }

    /// What the token allows, if it is good now.
    pub(super) fn verify(&self, token: &str) -> Option<Grant> {
        let claims = match decode::<Claims>(token, &self.key, &self.validation) {
            Ok(token) => token.claims,
            Err(error) => {
                tracing::debug!(%error, "a token was refused");
                return None;
            }
        };
        // No request could name such a user, and the empty one means nobody.
        bitdelta_engine::user::check_user(&claims.sub).ok()?;
        let rights = match claims.bitdelta_rights {
            None => [Right::Chat].into(),
            Some(names) => {
                let rights = names.iter().filter_map(|name| name.parse().ok());
                rights.filter(|right| *right != Right::Admin).collect()
            }
        };
        Some(Grant::of_subject(&claims.sub, rights))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
    use serde_json::{Value, json};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    /// What `openssl pkey -pubout` makes of [`ed_private`].
    const ED_PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA6kpsY+KcUgq+9VB7Ey7F+ZVHdq6+vnuSQh7qaRRG0iw=\n-----END PUBLIC KEY-----\n";

    /// An Ed25519 key whose seed is 32 sevens, in PKCS #8.
    fn ed_private() -> EncodingKey {
        let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        der.extend([7; 32]);
        EncodingKey::from_ed_der(&der)
    }

    fn opened(key: &str, issuer: Option<&str>, audience: Option<&str>) -> Result<Jwt, JwtError> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), key).expect("written");
        Jwt::open(file.path(), issuer, audience)
    }

    fn token(more: Value) -> String {
        let mut claims = json!({"sub": "ann", "exp": get_current_timestamp() + 600});
        for (name, value) in more.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET.as_bytes())).expect("a token")
    }

    #[test]
    fn the_subject_is_the_only_user_and_chat_the_only_right_unless_said() {
        let jwt = opened(&format!("{SECRET}\n"), None, None).expect("a secret");
        let grant = jwt.verify(&token(json!({}))).expect("good");
        assert!(grant.covers("ann") && !grant.covers("bob"));
        assert!(grant.allows(Right::Chat) && !grant.allows(Right::Publish));
        let grant = jwt.verify(&token(json!({"bitdelta_rights": ["publish", "admin", "fly"]}))).expect("good");
        assert!(grant.allows(Right::Publish) && !grant.allows(Right::Chat) && !grant.allows(Right::Admin));
    }

    #[test]
    fn what_is_not_wholly_right_is_refused() {
        let jwt = opened(SECRET, Some("us"), Some("bitdelta")).expect("a secret");
        let good = json!({"iss": "us", "aud": "bitdelta"});
        assert!(jwt.verify(&token(good.clone())).is_some());
        for (name, value) in [
            ("iss", json!("them")),
            ("aud", json!("other")),
            ("iss", json!(null)),
            ("exp", json!(1_000_000)),
            ("exp", json!("4102444800")),
            ("exp", json!(null)),
            ("nbf", json!(4_102_444_800u64)),
            ("nbf", json!("soon")),
            ("sub", json!("")),
            ("sub", json!("../ann")),
            ("sub", json!(7)),
        ] {
            let mut claims = good.clone();
            claims[name] = value.clone();
            assert!(jwt.verify(&token(claims)).is_none(), "{name} = {value}");
        }
        let mut other = token(good);
        other.truncate(other.len() - 4);
        assert!(jwt.verify(&other).is_none(), "a signature cut short");
        assert!(jwt.verify("").is_none() && jwt.verify("a.b.c").is_none());
    }

    #[test]
    fn the_key_decides_the_algorithm() {
        let claims = json!({"sub": "ann", "exp": get_current_timestamp() + 600});
        let signed = encode(&Header::new(Algorithm::EdDSA), &claims, &ed_private()).expect("a token");
        let jwt = opened(ED_PUBLIC, None, None).expect("a public key");
        assert!(jwt.verify(&signed).is_some_and(|grant| grant.covers("ann")));
        // The public key taken for a shared secret: the classic confusion.
        let confused = encode(&Header::default(), &claims, &EncodingKey::from_secret(ED_PUBLIC.as_bytes()));
        assert!(jwt.verify(&confused.expect("a token")).is_none());
        assert!(jwt.verify(&token(json!({}))).is_none());
        assert!(opened(SECRET, None, None).expect("a secret").verify(&signed).is_none());
    }

    #[test]
    fn a_key_that_protects_nothing_is_refused() {
        assert!(matches!(opened("short\n", None, None), Err(JwtError::ShortSecret { bytes: 5, .. })));
        let rsa = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert!(matches!(opened(rsa, None, None), Err(JwtError::Pem { .. })));
    }
}
