//! How often Redis was flushed, by its own count.

/// Commands that remove or replace many keys at once.
const FLUSHES: [&str; 3] = ["flushall", "flushdb", EXCHANGE];
/// The one that Redis tells nobody of.
const EXCHANGE: &str = "swapdb";
/// What has the counts begin again, and is the first thing that is counted then.
const RESET: &str = "config|resetstat";

/// What Redis has counted since it was started, or since its statistics were reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flushes {
    /// Flushes of one database or all, and exchanges of two.
    pub count: u64,
    /// Commands of any kind.
    pub commands: u64,
    /// The statistics were reset.
    pub reset: bool,
}

impl Flushes {
    /// Reads the reply to `INFO commandstats` in either protocol; nothing where Redis does not tell. What
    /// has failed has flushed nothing.
    #[must_use]
    pub fn read(info: &str) -> Option<Self> {
        let mut flushes = Self::default();
        for (name, calls, happened) in counts(info)? {
            flushes.commands = flushes.commands.saturating_add(calls);
            if FLUSHES.contains(&name) {
                flushes.count = flushes.count.saturating_add(happened);
            }
            flushes.reset |= name == RESET;
        }
        Some(flushes)
    }

    /// Reads from the same reply how often two databases were exchanged.
    #[must_use]
    pub fn exchanges(info: &str) -> Option<u64> {
        let exchanges = counts(info)?.filter(|(name, ..)| *name == EXCHANGE);
        Some(exchanges.map(|(.., happened)| happened).sum())
    }

    /// Returns how many there were since `before`; nothing when the statistics were reset meanwhile.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<u64> {
        let was_reset = self.commands < before.commands || self.reset && !before.reset;
        self.count.checked_sub(before.count).filter(|_| !was_reset)
    }

    /// Reads what [`Self::text`] has written.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let flushes = Self {
            count: words.next()?.parse().ok()?,
            commands: words.next()?.parse().ok()?,
            reset: words.next()?.parse().ok()?,
        };
        words.next().is_none().then_some(flushes)
    }

    pub(super) fn text(&self) -> String {
        let Self { count, commands, reset } = self;
        format!("{count} {commands} {reset}")
    }
}

/// Reads `INFO commandstats`: of each command the name, and how often it was run and has not failed.
fn counts(info: &str) -> Option<impl Iterator<Item = (&str, u64, u64)>> {
    let mut lines = info.lines().skip_while(|line| !line.ends_with("# Commandstats"));
    lines.next()?;
    Some(lines.filter_map(|line| {
        let (name, figures) = line.strip_prefix("cmdstat_")?.split_once(':')?;
        let figure = |name| {
            let figure = figures.split(',').find_map(|figure| figure.trim().strip_prefix(name));
            figure.and_then(|figure| figure.parse::<u64>().ok()).unwrap_or(0)
        };
        let calls = figure("calls=");
        Some((name, calls, calls.saturating_sub(figure("failed_calls="))))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushes_of_every_kind_are_counted_that_have_happened() {
        assert_eq!(Flushes::read("# Server\r\ncmdstat_flushall:calls=1\r\n"), None);
        let none = Flushes { count: 0, commands: 7, reset: false };
        assert_eq!(Flushes::read("# Commandstats\r\ncmdstat_get:calls=7,usec=9\r\n"), Some(none));
        let info = "=999\r\ntxt:# Commandstats\r\ncmdstat_flushall:calls=5,usec=90,usec_per_call=45.00,\
                    rejected_calls=7,failed_calls=3\r\ncmdstat_swapdb:calls=1,usec=2\r\n\
                    cmdstat_config|resetstat:calls=1,usec=2\r\ncmdstat_flushdb:calls=30,usec=2\r\n";
        let all = Flushes { count: 33, commands: 37, reset: true };
        assert_eq!(Flushes::read(info), Some(all));
        assert_eq!(Flushes::exchanges(info), Some(1));
        assert_eq!(Flushes::parse(&all.text()), Some(all));
    }

    #[test]
    fn nothing_is_known_of_the_time_in_which_the_statistics_were_reset() {
        let flushes = |count, commands, reset| Flushes { count, commands, reset };
        let before = flushes(1, 20, false);
        assert_eq!(flushes(3, 25, false).since(&before), Some(2));
        assert_eq!(flushes(1, 25, true).since(&before), None, "for the first time");
        assert_eq!(flushes(0, 25, false).since(&before), None);
        let before = flushes(0, 20, true);
        assert_eq!(flushes(1, 25, true).since(&before), Some(1));
        assert_eq!(flushes(0, 8, true).since(&before), None, "once more");
    }
}
