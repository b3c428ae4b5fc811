//! The profiles about which a client waits for replies of the lane.

/// Some profiles, by seven bits of the hash of each; it may seem to have others as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::dispatch) struct Profiles(u128);

impl Profiles {
    /// Every profile.
    pub(in crate::dispatch) const ALL: Self = Self(u128::MAX);

    /// The one with this hash.
    #[inline]
    pub(in crate::dispatch) fn one(hash: u64) -> Self {
        Self(1 << (hash >> 57))
    }

    #[inline]
    pub(in crate::dispatch) fn add(&mut self, other: Self) {
        self.0 |= other.0;
    }

    #[inline]
    pub(in crate::dispatch) fn has_any(self, of: Self) -> bool {
        self.0 & of.0 != 0
    }
}

/// The profiles about which a client waits for replies of the lane. What it reads about one of them
/// meanwhile must not be older than those replies, so it goes over the lane, too.
///
/// ```text
///    former: all of it was asked before `turn`      latest: asked since the last turn
///  ───────────────┬───────────────────────────────┬────────────────────────► replies, counted
///              received, so far                  turn: from here on `former` is of no use
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OnLane {
    pub(super) former: Profiles,
    pub(super) latest: Profiles,
    pub(super) turn: u64,
}

impl OnLane {
    /// The same once so many replies have come in all and so many are owed: without the part in which
    /// everything has been answered.
    pub(super) fn at(mut self, received: u64, in_flight: u32) -> Self {
        if in_flight == 0 {
            return Self { turn: received, ..Self::default() };
        }
        if received >= self.turn {
            self.former = std::mem::take(&mut self.latest);
            self.turn = received + u64::from(in_flight);
        }
        self
    }
}
