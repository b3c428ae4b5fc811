//! The `[[user]]` sections of the configuration file.
//!
//! A password is stored as a hash in one of two forms:
//!
//! ```text
//! $argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>   for passwords that people choose
//! sha256:<64 hexadecimal digits>                 for long random secrets of programs
//! ```

use std::fmt;

use argon2::Params;
use argon2::password_hash::{PasswordHash, PasswordHashString};
use serde::Deserialize;

use super::check::Digest;

/// Longest user name in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Most memory that one check may take, in KiB; a typing error must not exhaust the machine.
const ARGON2_MEMORY_KIB_MAX: u32 = 1024 * 1024;

/// Most passes over the memory that one check may take.
const ARGON2_PASSES_MAX: u32 = 100;

/// Describes one user (`[[user]]`).
#[derive(Clone, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, expecting = "a table")]
pub struct UserConfig {
    /// The name that AUTH gives; `default` is the user of AUTH with one argument.
    pub name: String,
    /// The hash of the password, argon2id or SHA-256.
    pub password_hash: String,
}

impl fmt::Debug for UserConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("UserConfig").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A password hash that has been read.
pub(super) enum StoredPassword {
    Sha256(Digest),
    Argon2(PasswordHashString),
}

impl UserConfig {
    pub(super) fn check_name(&self) -> Result<(), String> {
        let printable = self.name.chars().all(|each| !each.is_control() && !each.is_whitespace());
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || !printable {
            return Err(format!(
                "a user needs a name of 1 to {NAME_BYTES_MAX} bytes without spaces; \
                 'default' is the user of AUTH with one argument"
            ));
        }
        Ok(())
    }

    pub(super) fn stored_password(&self) -> Result<StoredPassword, String> {
        if let Some(digits) = self.password_hash.strip_prefix("sha256:") {
            let digest = hexadecimal(digits.as_bytes());
            return digest.map(StoredPassword::Sha256).ok_or_else(|| {
                "expected 64 hexadecimal digits behind 'sha256:', as sha256sum prints them".into()
            });
        }
        if self.password_hash.starts_with("$argon2id$") {
            return argon2id(&self.password_hash).map(StoredPassword::Argon2);
        }
        Err("expected a hash that begins with '$argon2id$' or 'sha256:', \
             never the password itself"
            .into())
    }
}

fn argon2id(text: &str) -> Result<PasswordHashString, String> {
    let hash = PasswordHash::new(text)
        .map_err(|error| format!("this is not a whole argon2id hash: {error}"))?;
    if hash.salt.is_none() || hash.hash.is_none() {
        return Err("this argon2id hash has no salt or no hash at its end".into());
    }
    let version_known =
        hash.version.is_none_or(|version| argon2::Version::try_from(version).is_ok());
    let params = Params::try_from(&hash).ok().filter(|_| version_known).ok_or_else(|| {
        String::from("this argon2id hash has parameters that cannot be used; create it again")
    })?;
    if params.m_cost() > ARGON2_MEMORY_KIB_MAX || params.t_cost() > ARGON2_PASSES_MAX {
        return Err(format!(
            "this argon2id hash is too expensive to check; use m up to {ARGON2_MEMORY_KIB_MAX} \
             and t up to {ARGON2_PASSES_MAX}"
        ));
    }
    Ok(PasswordHashString::from(hash))
}

fn hexadecimal(digits: &[u8]) -> Option<Digest> {
    let mut digest = [0; 32];
    if digits.len() != 2 * digest.len() {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(nibble(*high)? << 4 | nibble(*low)?).ok()?;
    }
    Some(digest)
}
