//! What clients ask about the way of profiles to the database (PROFILE.WAIT, PROFILE.HISTORY,
//! PROFILE.CHECK, and answers that wait for it), and whether they were told the truth.

use std::collections::HashMap;

use super::power::records;
use super::random::Random;
use super::rig::Rig;
use super::story::{EVERY, Evidence, Operation, Outcome, Row};
use super::watched::KEY;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) enum Asked {
    Wait { limit_ms: u64 },
    History { key: String, entries_max: usize },
    Check { key: String, repair: &'static str },
}

/// A question and its answer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) asked: Asked,
    pub(super) actor: String,
    /// The last command of the connection before it.
    pub(super) behind: u64,
    /// The database was never set back before it was answered.
    pub(super) is_whole: bool,
    /// What its client had tried before with the profile that is watched.
    pub(super) attempts: u64,
    pub(super) invoked_us: u64,
    pub(super) replied_us: u64,
    pub(super) answer: Reply,
}

/// The database has everything that a connection has written up to a command.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    pub(super) actor: String,
    pub(super) behind: u64,
    /// The last change that it had when the client was told; nothing where it was set back.
    pub(super) delivered: Option<u64>,
}

/// A reply, read through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    Text(String),
    Number(i64),
    List(Vec<Reply>),
}

impl Asked {
    /// Draws one about a profile.
    pub(super) fn draw(random: &mut Random, key: &str, rig: &Rig) -> Asked {
        let key = key.to_owned();
        let of = |random: &mut Random, count: usize| random.below(count as u64) as usize;
        match random.below(10) {
            // A transaction with a flush may take half a minute before it is given up.
            0..3 => Asked::Wait {
                limit_ms: [if rig.flushes.is_some() { 5 } else { 0 }, 30, 300][of(random, 3)],
            },
            3..6 => Asked::History { key, entries_max: [1, 3, 10][of(random, 3)] },
            _ => {
                let repairs = [
                    "",
                    "REPAIR REDIS",
                    "REPAIR DATABASE",
                    "REPAIR REDIS MISSING",
                    "REPAIR DATABASE MISSING",
                ];
                let is_other = rig.watches && random.below(3) == 0;
                let key = if is_other { KEY.to_owned() } else { key };
                Asked::Check { key, repair: repairs[of(random, repairs.len())] }
            }
        }
    }

    pub(super) fn words(&self) -> Vec<String> {
        let text = match self {
            Asked::Wait { limit_ms } => format!("PROFILE.WAIT {limit_ms}"),
            Asked::History { key, entries_max } => {
                format!("PROFILE.HISTORY {key} COUNT {entries_max}")
            }
            Asked::Check { key, repair } => format!("PROFILE.CHECK {key} {repair}"),
        };
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Whether an error says that there is no answer now.
    pub(super) fn may_be_refused(&self, text: &str) -> bool {
        match self {
            Asked::Wait { .. } => false,
            Asked::History { .. } => text.contains("the history cannot be read"),
            Asked::Check { .. } => text.contains("cannot be compared now"),
        }
    }
}

impl Reply {
    /// Reads one reply from the front of bytes that are whole.
    pub(super) fn read(bytes: &mut &[u8]) -> Reply {
        let end = bytes.windows(2).position(|pair| pair == b"\r\n").expect("a whole reply");
        let line = String::from_utf8_lossy(&bytes[1..end]).into_owned();
        let kind = bytes[0];
        *bytes = &bytes[end + 2..];
        let number = line.parse::<i64>().unwrap_or(-1);
        match kind {
            b':' => Reply::Number(number),
            b'$' => {
                let length = number as usize;
                let text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                *bytes = &bytes[length + 2..];
                Reply::Text(text)
            }
            b'*' | b'%' | b'~' => {
                let count = if kind == b'%' { 2 * number } else { number };
                Reply::List((0..count).map(|_| Reply::read(bytes)).collect())
            }
            _ => Reply::Text(line),
        }
    }

    /// Whether a comparison has found both sides the same, or has left it to the checks of all.
    pub(super) fn finds_no_drift(&self) -> bool {
        ["same", "checked"].contains(&self.class())
    }

    fn class(&self) -> &str {
        self.list().first().map_or("", Reply::text)
    }

    fn list(&self) -> &[Reply] {
        if let Reply::List(list) = self { list } else { &[] }
    }

    fn text(&self) -> &str {
        if let Reply::Text(text) = self { text } else { "" }
    }

    fn number(&self) -> i64 {
        if let Reply::Number(number) = self { *number } else { -1 }
    }
}

/// What the commands of a run have come to in the history.
struct Known<'a> {
    evidence: &'a Evidence,
    /// By the number of the command; where rows look alike, the first.
    sequences: HashMap<u64, u64>,
}

/// Judges all answers; returns what was not true.
pub(super) fn judge(
    questions: &[Question],
    arrivals: &[Arrival],
    evidence: &Evidence,
    failures_us: &[u64],
) -> Vec<String> {
    let mut by_actor: HashMap<&str, Vec<&Row>> = HashMap::new();
    evidence.rows.iter().for_each(|row| by_actor.entry(&row.actor).or_default().push(row));
    let row_of = |operation: &Operation| {
        let rows = by_actor.get(operation.actor.as_str())?;
        rows.iter().find(|row| records(operation, row)).map(|row| row.sequence)
    };
    let written = evidence.operations.iter().filter(|operation| operation.must_be_recorded());
    let sequences = written.filter_map(|o| Some((o.number, row_of(o)?))).collect();
    let known = Known { evidence, sequences };
    let told = questions.iter().filter_map(|question| {
        let what = match &question.asked {
            Asked::Wait { .. } => known.waited(question),
            Asked::History { key, entries_max } => {
                // What it shows may be lost with the power afterwards.
                let at_risk = |at_us: &u64| {
                    question.invoked_us <= *at_us && question.replied_us + 1_020_000 >= *at_us
                };
                let is_sure = question.is_whole && !failures_us.iter().any(at_risk);
                is_sure.then(|| known.recounted(question, key, *entries_max)).flatten()
            }
            Asked::Check { .. } => known.compared(question),
        };
        what.map(|what| format!("{what}: {question:?}"))
    });
    told.chain(arrivals.iter().filter_map(|arrival| known.arrived(arrival))).collect()
}

impl Known<'_> {
    /// PROFILE.WAIT never counts more than what was written.
    fn waited(&self, question: &Question) -> Option<String> {
        let own = self.evidence.operations.iter().filter(|operation| {
            operation.actor == question.actor
                && operation.number <= question.behind
                && (operation.must_be_recorded() || operation.is_unknown())
        });
        let count = own.count() as i64 + question.attempts as i64;
        (!(0..=count).contains(&question.answer.number()))
            .then(|| format!("there were {count} changes to wait for"))
    }

    /// What a client was told to be in the database was there.
    fn arrived(&self, arrival: &Arrival) -> Option<String> {
        let delivered = arrival.delivered?;
        let mut own = self.evidence.operations.iter().filter(|operation| {
            operation.actor == arrival.actor
                && operation.number <= arrival.behind
                && operation.must_be_recorded()
        });
        let missing = |operation: &&Operation| {
            self.sequences.get(&operation.number).is_none_or(|sequence| *sequence > delivered)
        };
        let missing = own.find(missing)?;
        Some(format!("the database had {delivered} records, and not {missing}: {arrival:?}"))
    }

    /// PROFILE.HISTORY shows the newest rows of the profile as of some moment since it was asked.
    fn recounted(&self, question: &Question, key: &str, entries_max: usize) -> Option<String> {
        let entries: Vec<Row> = question.answer.list().iter().map(row_of_entry).collect();
        let newest = entries.first().map_or(0, |entry| entry.sequence);
        let is_missing = |operation: &&Operation| {
            operation.key == key
                && operation.must_be_recorded()
                && operation.replied_us < question.invoked_us
                && self.sequences.get(&operation.number).is_some_and(|sequence| *sequence > newest)
        };
        if let Some(missing) = self.evidence.operations.iter().find(is_missing) {
            return Some(format!("the history lacks {missing}"));
        }
        let rows = self.evidence.rows.iter().filter(|row| row.names(key) && row.sequence <= newest);
        let rows: Vec<&Row> = rows.collect();
        // A flush counts where there was something of the profile before it.
        let first = rows.iter().position(|row| row.key != EVERY).unwrap_or(rows.len());
        let expected = rows[first..].iter().rev().take(entries_max);
        let mut found = entries.iter();
        for row in expected {
            match found.next() {
                Some(entry) if is_same(entry, row) => {}
                Some(entry) => return Some(format!("the history has {entry} instead of {row}")),
                None => return Some(format!("the history lacks {row}")),
            }
        }
        found.next().map(|entry| format!("the history has {entry} too much"))
    }

    /// PROFILE.CHECK finds no drift where nobody has brought about any.
    fn compared(&self, question: &Question) -> Option<String> {
        let (from_us, to_us) = (question.invoked_us, question.replied_us);
        let touched = self.evidence.lapses.iter().any(|(a, b)| from_us <= *b && to_us >= *a);
        let class = question.answer.class();
        let is_true = !class.is_empty() && touched || question.answer.finds_no_drift();
        (!is_true).then(|| format!("there was no drift, but {class}"))
    }
}

fn is_same(entry: &Row, row: &Row) -> bool {
    let told = Row {
        key: String::new(),
        command: row.command.to_ascii_lowercase(),
        cleared: false,
        expires_ms: None,
        persisted: false,
        ..row.clone()
    };
    *entry == told
}

/// The numbers of the entries of a history, as they are shown.
pub(super) fn sequences(history: &Reply) -> Vec<u64> {
    history.list().iter().map(|entry| row_of_entry(entry).sequence).collect()
}

fn row_of_entry(entry: &Reply) -> Row {
    let parts = entry.list();
    let part = |name: &str| {
        let at = parts.iter().step_by(2).position(|part| part.text() == name);
        &parts[2 * at.unwrap_or_else(|| panic!("no {name} in {entry:?}")) + 1]
    };
    let pairs = part("changed").list().chunks(2);
    Row {
        sequence: part("sequence").number() as u64,
        at_ms: part("at").number() as u64,
        actor: part("actor").text().to_owned(),
        command: part("command").text().to_owned(),
        changed: pairs.map(|p| (p[0].text().to_owned(), p[1].text().to_owned())).collect(),
        removed: part("removed").list().iter().map(|name| name.text().to_owned()).collect(),
        deleted: part("deleted").number() == 1,
        ..Row::default()
    }
}

/// Whether a client was told that the database has what it has written.
pub(super) fn tells_of_arrival(question: &Question) -> bool {
    matches!(question.asked, Asked::Wait { .. }) && question.answer == Reply::Number(0)
}

/// Whether the database had a command when its client was told.
pub(super) fn has_arrived(operation: &Operation, arrivals: &[Arrival]) -> bool {
    matches!(operation.outcome, Outcome::Acknowledged(_))
        && arrivals
            .iter()
            .any(|arrival| arrival.actor == operation.actor && operation.number <= arrival.behind)
}
