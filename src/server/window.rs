//! The bytes of a client's requests that are under way, in two halves.
//!
//! Nobody notes how long each request was. Requests gather in the latest part until it is half of the
//! bound and becomes the former one; that counts until all of it is answered. So the count is never
//! too low, and a client that is at its bound goes on while half of it is still under way.
//!
//! ```text
//!   answered          former: half of the bound     latest: what came since
//!  ─────────────┬──────────────────────────────┬─────────────────────────────► replies, counted
//!            so far                          turn
//! ```

/// The requests of one client for which Redis owes a reply.
pub(super) struct Window {
    bytes_max: usize,
    former: usize,
    latest: usize,
    /// Replies that were ever asked for.
    asked: u64,
    /// So many replies, and the former part is answered.
    turn: u64,
}

impl Window {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { bytes_max, former: 0, latest: 0, asked: 0, turn: 0 }
    }

    /// Returns how many bytes of requests may still be run while replies are to come.
    pub(super) fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.former + self.latest)
    }

    /// Counts requests of so many bytes that have been run, by which so many `replies` more are to
    /// come, `owed` in all.
    pub(super) fn add(&mut self, bytes: usize, replies: u32, owed: u32) {
        self.latest += bytes;
        self.asked += u64::from(replies);
        self.answer(owed);
    }

    /// Takes the news of how many replies are still to come.
    pub(super) fn answer(&mut self, owed: u32) {
        if owed == 0 {
            (self.former, self.latest, self.turn) = (0, 0, self.asked);
        } else if self.asked.saturating_sub(u64::from(owed)) >= self.turn {
            self.former = 0;
            if self.latest >= self.bytes_max / 2 {
                (self.former, self.latest, self.turn) = (self.latest, 0, self.asked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_again_when_the_former_half_is_answered() {
        let mut window = Window::new(100);
        for owed in 1..=10 {
            assert!(window.room() > 0, "{owed} are under way");
            window.add(10, 1, owed);
        }
        assert_eq!(window.room(), 0);
        for owed in (6..10).rev() {
            window.answer(owed);
            assert_eq!(window.room(), 0, "{owed} are under way");
        }
        window.answer(5);
        assert_eq!(window.room(), 50);
        window.add(50, 5, 10);
        assert_eq!(window.room(), 0);
        window.answer(5);
        assert_eq!(window.room(), 50);
        window.answer(0);
        assert_eq!(window.room(), 100);
    }

    #[test]
    fn one_request_of_any_size_leaves_no_room_until_it_is_answered() {
        let mut window = Window::new(100);
        window.add(1000, 1, 1);
        window.add(1000, 1, 2);
        assert_eq!(window.room(), 0);
        window.answer(1);
        assert_eq!(window.room(), 0);
        window.answer(0);
        assert_eq!(window.room(), 100);
    }

    #[test]
    fn what_nobody_answers_later_takes_no_room() {
        let mut window = Window::new(100);
        window.add(1000, 0, 0);
        assert_eq!(window.room(), 100);
    }

    /// However requests and replies alternate, no request that is under way is forgotten, and what is
    /// counted too much ends at the latest with the next half.
    #[test]
    fn the_count_is_never_below_what_is_under_way() {
        let mut window = Window::new(100);
        let mut under_way = std::collections::VecDeque::new();
        let mut seed = 7_u32;
        for _ in 0..10_000 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = (seed >> 24) as usize % 40 + 1;
            if (seed >> 16) & 1 == 1 && window.room() > 0 {
                under_way.push_back(bytes);
                window.add(bytes, 1, under_way.len() as u32);
            } else {
                under_way.pop_front();
                window.answer(under_way.len() as u32);
            }
            let sum = under_way.iter().sum::<usize>();
            assert!(window.former + window.latest >= sum, "{sum} bytes are under way");
            assert!(sum < 140, "{sum} bytes are under way");
            assert!(!under_way.is_empty() || window.room() == 100);
        }
    }
}
