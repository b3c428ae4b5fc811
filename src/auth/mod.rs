//! Who is connecting: the users of the configuration and the check of their passwords.
//!
//! `Auth` is compiled once and then only read. A password whose stored form is SHA-256, or which
//! has been accepted before, is decided at once. Argon2id takes tens of milliseconds and megabytes
//! by design, so such a check is handed back as a `CostlyCheck` for a thread that may block.
//!
//! Passwords and hashes never appear in a `Debug` text or an error. What an identity may do is
//! not decided here, and no reply is written here.

mod check;
mod config;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use argon2::password_hash::rand_core::{OsRng, RngCore};
use foldhash::HashMap;
use thiserror::Error;

pub use check::CostlyCheck;
pub use config::UserConfig;

use check::{Argon2Secret, Digest, digests_equal, keyed_digest, sha256};
use config::StoredPassword;

/// The user that AUTH with one argument logs in as, as in Redis.
pub const DEFAULT_NAME: &str = "default";

/// Longest password in bytes, Redis's limit for an argument before login (16 KiB).
pub const PASSWORD_BYTES_MAX: usize = 16 * 1024;

/// Says what is wrong with a `[[user]]` section and where.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[error("{text}")]
pub struct AuthFault {
    /// Which `[[user]]` section, counted from 0.
    pub user: usize,
    /// The setting.
    pub setting: &'static str,
    /// What is wrong and what to do; never the hash itself.
    pub text: String,
}

/// Names who is logged in. Cheap to clone.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Identity {
    name: Arc<str>,
}

impl Identity {
    /// Returns the name as it is configured.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Answers a login attempt.
#[derive(Debug)]
pub enum Verdict {
    /// The password is right.
    Accepted(Identity),
    /// The name or the password is wrong; which of them is not told.
    Refused,
    /// The answer takes long; run the check where blocking is allowed.
    Costly(CostlyCheck),
}

/// Knows the users and decides about passwords.
pub struct Auth {
    users: HashMap<Box<[u8]>, User>,
    /// What a failed attempt is measured against, so that it takes as long as a real one.
    decoy: Option<Arc<Argon2Secret>>,
    /// Random per process; makes remembered passwords useless outside of it.
    key: [u8; 32],
}

struct User {
    identity: Identity,
    secret: Secret,
}

enum Secret {
    Sha256(Digest),
    Argon2(Arc<Argon2Secret>),
}

impl Auth {
    /// Checks and prepares the users.
    ///
    /// # Errors
    /// Returns every fault of every user, in the order of the configuration.
    pub fn compile(configs: &[UserConfig]) -> Result<Self, Vec<AuthFault>> {
        let mut faults = Vec::new();
        let mut users = HashMap::default();
        let mut decoy: Option<Arc<Argon2Secret>> = None;
        for (at, config) in configs.iter().enumerate() {
            let mut fault = |setting, text| faults.push(AuthFault { user: at, setting, text });
            if let Err(text) = config.check_name() {
                fault("name", text);
            } else if configs[..at].iter().any(|earlier| earlier.name == config.name) {
                let text = "an earlier user has this name; give each user its own";
                fault("name", text.into());
            }
            let secret = match config.stored_password() {
                Ok(StoredPassword::Sha256(digest)) => Secret::Sha256(digest),
                Ok(StoredPassword::Argon2(hash)) => {
                    let secret = Arc::new(Argon2Secret::new(hash));
                    decoy = match decoy {
                        Some(known) if known.cost() >= secret.cost() => Some(known),
                        _ => Some(secret.clone()),
                    };
                    Secret::Argon2(secret)
                }
                Err(text) => {
                    fault("password_hash", text);
                    continue;
                }
            };
            let identity = Identity { name: config.name.as_str().into() };
            users.insert(config.name.as_bytes().into(), User { identity, secret });
        }
        let mut key = [0; 32];
        OsRng.fill_bytes(&mut key);
        if faults.is_empty() { Ok(Self { users, decoy, key }) } else { Err(faults) }
    }

    /// Tells whether clients must log in: true as soon as one user is configured.
    pub fn required(&self) -> bool {
        !self.users.is_empty()
    }

    /// Tells whether somebody could be logged in under a name; without users all are `default`.
    pub fn knows(&self, name: &[u8]) -> bool {
        name == DEFAULT_NAME.as_bytes() || self.users.contains_key(name)
    }

    /// Decides about a name and a password.
    ///
    /// Where any user has an argon2id hash, every refusal costs one argon2id check of the most
    /// expensive parameters in use: unknown names, wrong passwords of SHA-256 users and wrong
    /// passwords of argon2id users cannot be told apart by time.
    pub fn verify(&self, name: &[u8], password: &[u8]) -> Verdict {
        if password.len() > PASSWORD_BYTES_MAX {
            return Verdict::Refused;
        }
        // Both digests are made for every attempt, known name or not.
        let digest = sha256(password);
        let keyed = keyed_digest(&self.key, name, password);
        let Some(user) = self.users.get(name) else { return self.refuse(password) };
        match &user.secret {
            Secret::Sha256(expected) if digests_equal(expected, &digest) => {
                Verdict::Accepted(user.identity.clone())
            }
            Secret::Sha256(_) => self.refuse(password),
            Secret::Argon2(secret) if secret.remembers(&keyed) => {
                Verdict::Accepted(user.identity.clone())
            }
            Secret::Argon2(secret) => {
                let identity = Some(user.identity.clone());
                Verdict::Costly(CostlyCheck::new(secret.clone(), identity, password, keyed))
            }
        }
    }

    fn refuse(&self, password: &[u8]) -> Verdict {
        match &self.decoy {
            None => Verdict::Refused,
            Some(decoy) => {
                Verdict::Costly(CostlyCheck::new(decoy.clone(), None, password, [0; 32]))
            }
        }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Auth").field("users", &self.users.len()).finish_non_exhaustive()
    }
}
