//! Numbers for the commands that promise randomness (splitmix64); of no use for secrets.

use std::hash::BuildHasher;

pub(super) struct Random {
    state: u64,
}

impl Random {
    /// Starts where nobody can tell.
    pub(super) fn new() -> Self {
        Self::seeded(foldhash::quality::RandomState::default().hash_one(std::process::id()))
    }

    pub(super) fn seeded(state: u64) -> Self {
        Self { state }
    }

    pub(super) fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `bound`, or 0 when there is none.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        // The high half of the product is spread as evenly as the number itself.
        ((u128::from(self.number()) * bound as u128) >> 64) as usize
    }
}
