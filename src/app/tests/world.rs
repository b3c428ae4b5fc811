//! What a seed decides besides the schedule: chance, and what the clocks show.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::random::Random;

/// Milliseconds since 1970 at the beginning of every run.
const BEGIN_MS: u64 = 1_900_000_000_000;

/// Chance and time of one run; time goes on only while everybody waits.
pub(super) struct World {
    random: RefCell<Random>,
    begun: Instant,
    /// The last time that was told, and how often.
    told: Cell<(u64, u64)>,
}

impl World {
    pub(super) fn new(seed: u64) -> Rc<World> {
        let random = RefCell::new(Random::seeded(seed ^ 0x51C0_FFEE));
        Rc::new(World { random, begun: Instant::now(), told: Cell::default() })
    }

    pub(super) fn below(&self, bound: u64) -> u64 {
        self.random.borrow_mut().below(bound)
    }

    pub(super) fn now_ms(&self) -> u64 {
        BEGIN_MS + self.begun.elapsed().as_millis() as u64
    }

    /// Microseconds since 1970, never the same twice within a millisecond: everything is on one
    /// thread, so what was asked later has happened later.
    pub(super) fn now_us(&self) -> u64 {
        let now_ms = self.now_ms();
        let (last_ms, count) = self.told.get();
        let count = if last_ms == now_ms { (count + 1).min(999) } else { 0 };
        self.told.set((now_ms, count));
        now_ms * 1000 + count
    }

    /// Waits for a moment, or not.
    pub(super) async fn pause(&self, ms_max: u64) {
        let ms = self.below(2 * ms_max + 1).saturating_sub(ms_max);
        if ms > 0 {
            sleep(Duration::from_millis(ms)).await;
        }
    }
}
