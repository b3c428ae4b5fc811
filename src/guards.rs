//! The guards that keep acknowledged writes, and the switch with which a test turns one off.
//!
//! A test of a guard that cannot fail proves nothing. So a build for tests (`debug_assertions`)
//! reads `PROFILE_PROXY_TEST_WITHOUT=overlay,fence` once, and the guards that are named there do
//! nothing. In a build for use every question here is answered at compile time, and the variable is
//! not read.

/// One guard of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Intents are journaled before Redis is touched.
    Intents,
    /// What is journaled and not delivered counts when a profile is looked up.
    Overlay,
    /// Another Redis than before is noticed.
    Epochs,
    /// An older connection of ours is ended before a new one is used.
    Fence,
    /// A deleted profile is remembered as deleted.
    Tombstones,
    /// Every transaction takes the rows of a batch in the order of their keys.
    Sorting,
    /// Nobody takes what a write has begun that found no profile for the profile, and nobody else has
    /// the profile while it is brought.
    Claims,
    /// What a write in doubt has left of a profile that Redis may lack is removed.
    Removal,
    /// A database that was replaced gets nothing before that is remembered.
    Replaced,
    /// What is about to be written is forgotten in memory.
    Memory,
}

impl Guard {
    /// Every guard.
    pub const ALL: [Self; 10] = [
        Self::Intents,
        Self::Overlay,
        Self::Epochs,
        Self::Fence,
        Self::Tombstones,
        Self::Sorting,
        Self::Claims,
        Self::Removal,
        Self::Replaced,
        Self::Memory,
    ];

    /// The name in the variable.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Intents => "intents",
            Self::Overlay => "overlay",
            Self::Epochs => "epochs",
            Self::Fence => "fence",
            Self::Tombstones => "tombstones",
            Self::Sorting => "sorting",
            Self::Claims => "claims",
            Self::Removal => "removal",
            Self::Replaced => "replaced",
            Self::Memory => "memory",
        }
    }

    /// Tells whether the guard is up; in a build for use it always is.
    #[must_use]
    pub fn is_up(self) -> bool {
        !is_named(self.name())
    }
}

/// Switches guards off for the rest of this thread, where a simulation runs.
#[cfg(test)]
pub(crate) fn switch_off(guards: &[Guard]) {
    SWITCHED_OFF.set(guards.to_vec());
}

#[cfg(test)]
thread_local! {
    static SWITCHED_OFF: std::cell::RefCell<Vec<Guard>> = const {
        std::cell::RefCell::new(Vec::new())
    };
}

#[cfg(debug_assertions)]
fn is_named(name: &str) -> bool {
    #[cfg(test)]
    if SWITCHED_OFF.with_borrow(|guards| guards.iter().any(|guard| guard.name() == name)) {
        return true;
    }
    static NAMED: std::sync::OnceLock<Vec<String>> = std::sync::OnceLock::new();
    let named = NAMED.get_or_init(|| {
        let text = std::env::var("PROFILE_PROXY_TEST_WITHOUT").unwrap_or_default();
        text.split(',').map(|name| name.trim().to_owned()).collect()
    });
    named.iter().any(|one| one == name)
}

#[cfg(not(debug_assertions))]
fn is_named(_name: &str) -> bool {
    false
}
