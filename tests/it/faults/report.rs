//! What is printed of a schedule: one line, and for each violation the story of its profile.

use std::fmt::Write as _;

use super::checker::{Violation, check};
use super::story::{Evidence, Operation, Outcome};

/// Lines of a profile's story before and behind what is wrong.
const STORY_LINES: usize = 30;
const LOG_LINES: usize = 40;
const VIOLATIONS_SHOWN: usize = 4;

/// The result of one schedule.
pub(super) struct Report {
    seed: u64,
    evidence: Evidence,
    violations: Vec<Violation>,
    /// What went wrong besides the contract of the profiles.
    faults: Vec<String>,
    log: Vec<String>,
}

impl Report {
    pub(super) fn of(
        seed: u64,
        evidence: Evidence,
        mut faults: Vec<String>,
        log: Vec<String>,
    ) -> Report {
        let panics = log.iter().filter(|line| line.contains("panicked at"));
        faults.extend(panics.map(|line| format!("the proxy: {line}")));
        let violations = check(&evidence);
        Report { seed, evidence, violations, faults, log }
    }

    pub(super) fn is_good(&self) -> bool {
        self.violations.is_empty() && self.faults.is_empty()
    }

    /// Counts, in one line.
    pub(super) fn line(&self) -> String {
        let operations = &self.evidence.operations;
        let count = |is: fn(&&Operation) -> bool| operations.iter().filter(is).count();
        format!(
            "seed {}: {} acknowledged, {} refused, {} unknown, {} rows of which {} read back: {}",
            self.seed,
            count(|o| matches!(o.outcome, Outcome::Acknowledged(_))),
            count(|o| matches!(o.outcome, Outcome::Refused(_))),
            count(|o| o.is_unknown()),
            self.evidence.rows.len(),
            self.evidence.rows.iter().filter(|row| row.actor.is_empty()).count(),
            if self.is_good() { "ok" } else { "VIOLATION" }
        )
    }

    /// All that is wrong, with its story.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for fault in self.faults.iter().take(VIOLATIONS_SHOWN * 2) {
            let _ = writeln!(text, "  FAULT {fault}");
        }
        for violation in self.violations.iter().take(VIOLATIONS_SHOWN) {
            let Violation { key, what, .. } = violation;
            let _ = writeln!(text, "  VIOLATION {key}: {what}");
            text.push_str(&self.story(violation));
        }
        let rest = self.violations.len().saturating_sub(VIOLATIONS_SHOWN);
        let _ = writeln!(text, "  {rest} more violations; the end of the proxy's log:");
        for line in self.log.iter().skip(self.log.len().saturating_sub(LOG_LINES)) {
            let _ = writeln!(text, "    {line}");
        }
        text
    }

    /// What happened to the profile around the violation, in the order of time.
    fn story(&self, violation: &Violation) -> String {
        let first_us = self.evidence.operations.iter().map(|o| o.invoked_us).min().unwrap_or(0);
        let ms = |at_us: u64| at_us.saturating_sub(first_us) as f64 / 1000.0;
        let mut lines: Vec<(u64, String)> = Vec::new();
        for operation in self.evidence.operations.iter().filter(|o| o.names(&violation.key)) {
            let from = ms(operation.invoked_us);
            let to = match operation.replied_us {
                u64::MAX => "?".to_owned(),
                replied_us => format!("{:.1}", ms(replied_us)),
            };
            lines.push((operation.invoked_us, format!("{from:>9.1} - {to:<8} {operation}")));
        }
        for row in self.evidence.rows.iter().filter(|row| row.names(&violation.key)) {
            let at_us = row.at_ms * 1000 + 999;
            lines.push((at_us, format!("{:>9.1}            -> {row}", ms(row.at_ms * 1000))));
        }
        lines.sort();
        let near = lines.partition_point(|(at_us, _)| *at_us < violation.at_us);
        let from = near.saturating_sub(STORY_LINES);
        let shown = lines.iter().skip(from).take(STORY_LINES * 2);
        shown.fold(String::new(), |text, (_, line)| text + "    " + line + "\n")
    }
}
