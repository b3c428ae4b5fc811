//! Comparing passwords with what is stored: SHA-256, argon2id, and the memory of successes.
//!
//! A user has one password, so one remembered digest per user is the whole cache. It is a SHA-256
//! over a key that is random per process, so it is worth nothing outside of the process, and it
//! keeps a storm of reconnects from running argon2id thousands of times.

use std::fmt;
use std::sync::{Arc, OnceLock};

use argon2::password_hash::{PasswordHashString, PasswordVerifier};
use argon2::{Argon2, Params};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::Identity;

/// A SHA-256 digest.
pub(super) type Digest = [u8; 32];

pub(super) fn sha256(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// Digests a login attempt under the process key. The name's length keeps name and password apart.
pub(super) fn keyed_digest(key: &[u8; 32], name: &[u8], password: &[u8]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(key);
    hasher.update((name.len() as u64).to_le_bytes());
    hasher.update(name);
    hasher.update(password);
    hasher.finalize().into()
}

/// Compares in a time that does not depend on where the digests differ.
pub(super) fn digests_equal(left: &Digest, right: &Digest) -> bool {
    left.ct_eq(right).into()
}

/// An argon2id hash and the digest of the password that was once accepted for it.
pub(super) struct Argon2Secret {
    hash: PasswordHashString,
    remembered: OnceLock<Digest>,
}

impl Argon2Secret {
    pub(super) fn new(hash: PasswordHashString) -> Self {
        Self { hash, remembered: OnceLock::new() }
    }

    /// Estimates the work of one check: memory times passes.
    pub(super) fn cost(&self) -> u64 {
        let params = Params::try_from(&self.hash.password_hash());
        params.map_or(0, |params| u64::from(params.m_cost()) * u64::from(params.t_cost()))
    }

    pub(super) fn remembers(&self, keyed: &Digest) -> bool {
        self.remembered.get().is_some_and(|known| digests_equal(known, keyed))
    }
}

/// Checks one login attempt against an argon2id hash.
///
/// The caller bounds how many run at once: each takes the memory that the hash asks for, 19 MiB
/// by today's usual parameters.
#[must_use = "the attempt is undecided until the check has run"]
pub struct CostlyCheck {
    secret: Arc<Argon2Secret>,
    /// Who logs in if the password is right; `None` is a refusal that only takes its time.
    identity: Option<Identity>,
    password: Box<[u8]>,
    keyed: Digest,
}

impl CostlyCheck {
    pub(super) fn new(
        secret: Arc<Argon2Secret>,
        identity: Option<Identity>,
        password: &[u8],
        keyed: Digest,
    ) -> Self {
        Self { secret, identity, password: password.into(), keyed }
    }

    /// Runs the check; blocks for tens of milliseconds. Returns who is logged in, if anyone.
    pub fn run(self) -> Option<Identity> {
        let hash = self.secret.hash.password_hash();
        let right = Argon2::default().verify_password(&self.password, &hash).is_ok();
        let identity = self.identity.filter(|_| right)?;
        // A second success of the same password finds the same digest there already.
        let _ = self.secret.remembered.set(self.keyed);
        Some(identity)
    }
}

impl fmt::Debug for CostlyCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CostlyCheck").finish_non_exhaustive()
    }
}
