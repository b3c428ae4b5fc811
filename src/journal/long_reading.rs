//! When a reading of the journal that takes long is to be told of. Says nothing itself.

use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_secs(2);

/// One reading of the journal.
#[derive(Debug)]
pub struct LongReading {
    told: Instant,
}

impl LongReading {
    /// Begins; a reading that is over within two seconds is not told of.
    #[must_use]
    pub fn begin() -> Self {
        Self { told: Instant::now() }
    }

    /// Whether it is time to tell how far the reading is.
    pub fn is_due(&mut self) -> bool {
        let due = self.told.elapsed() >= PAUSE;
        if due {
            self.told = Instant::now();
        }
        due
    }
}
