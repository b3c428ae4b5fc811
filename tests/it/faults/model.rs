//! What one command makes of one profile, as Redis would: the model that histories are replayed on.
//!
//! Time enters only through expiries, and as a span: a command ran at some moment between its
//! sending and its reply. Where an expiry falls into that span both outcomes are possible.

use super::story::{Action, Answer, Profile, Row, State};

/// Clocks are read at different moments and rounded to milliseconds.
const SLACK_MS: u64 = 3;

/// How long a kind keeps a profile that nobody writes (`ttl`). Expiries that the proxy sets for it bear
/// a mark, and are moved by a tick at least.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retention {
    pub(super) ttl_ms: u64,
    /// Redis may lack the profiles, so that it is only the database that knows of it.
    pub(super) cached: bool,
}

impl Retention {
    fn tick_ms(self) -> u64 {
        (self.ttl_ms / 64).clamp(2, 3_600_000)
    }

    fn unit_ms(self) -> u64 {
        self.tick_ms().min(10_000)
    }

    /// Whether it may be one that the proxy has set.
    pub(super) fn is_marked(self, expires_ms: u64) -> bool {
        expires_ms % self.unit_ms() == 1
    }

    /// Gives a profile the expiry that it has behind a write of fields which ran during a span of
    /// milliseconds; says whether the row has what the proxy had to set.
    pub(super) fn applies(
        self,
        profile: &mut Profile,
        row: &Row,
        (from_ms, to_ms): (u64, u64),
    ) -> bool {
        let old = profile.expires_ms;
        let (tick_ms, unit_ms) = (self.tick_ms(), self.unit_ms());
        let Some(at) = row.expires_ms else {
            // A client's own expiry, or one that was moved in the same tick or the one before.
            let late_ms = 2 * tick_ms + unit_ms + SLACK_MS;
            return old
                .is_some_and(|old| !self.is_marked(old) || old + late_ms >= from_ms + self.ttl_ms);
        };
        profile.expires_ms = Some(at);
        let moves = |old| self.is_marked(old) && old + tick_ms <= at;
        self.is_marked(at)
            && at + unit_ms + SLACK_MS >= from_ms + self.ttl_ms
            && at <= to_ms + self.ttl_ms + SLACK_MS
            && (self.cached || old.is_none_or(moves))
    }
}

/// The states that a profile can be seen in during a span of milliseconds: itself, gone, or both.
pub(super) fn seen_during(state: &State, (from_ms, to_ms): (u64, u64)) -> Vec<State> {
    let Some(expires_ms) = state.as_ref().and_then(|profile| profile.expires_ms) else {
        return vec![state.clone()];
    };
    let mut seen = Vec::new();
    if from_ms <= expires_ms + SLACK_MS {
        seen.push(state.clone());
    }
    if to_ms.saturating_add(SLACK_MS) > expires_ms {
        seen.push(None);
    }
    seen
}

/// What a command makes of a state, and what it answers.
pub(super) fn run(action: &Action, before: &State) -> (State, Answer) {
    let mut profile = before.clone().unwrap_or_default();
    let count = match action {
        Action::Set(fields) => {
            let new = fields.keys().filter(|name| !profile.fields.contains_key(*name)).count();
            profile.fields.extend(fields.clone());
            new as i64
        }
        Action::Add { field, by } => {
            let value = profile.fields.get(field).map_or(0, |value| number(value)) + by;
            profile.fields.insert(field.clone(), value.to_string());
            value
        }
        Action::Remove(names) => {
            names.iter().filter(|name| profile.fields.remove(*name).is_some()).count() as i64
        }
        Action::Delete => {
            profile.fields.clear();
            i64::from(before.is_some())
        }
        Action::Expire { at_ms } => {
            profile.expires_ms = Some(*at_ms);
            i64::from(before.is_some())
        }
        Action::Persist => {
            let expires = before.as_ref().is_some_and(|profile| profile.expires_ms.is_some());
            profile.expires_ms = None;
            i64::from(expires)
        }
        Action::Flush(_) => return (None, Answer::Done),
        Action::Read => return (before.clone(), Answer::Fields(profile.fields)),
        Action::ReadField(name) => {
            return (before.clone(), Answer::Value(profile.fields.get(name).cloned()));
        }
    };
    let after = (!profile.fields.is_empty()).then_some(profile);
    (after, Answer::Number(count))
}

/// A row of a profile's history applied to the state before it, as the database does it.
pub(super) fn apply_row(row: &Row, before: &State) -> State {
    if row.deleted {
        return None;
    }
    let mut profile = before.clone().unwrap_or_default();
    row.removed.iter().for_each(|name| {
        profile.fields.remove(name);
    });
    profile.fields.extend(row.changed.clone());
    if row.persisted {
        profile.expires_ms = None;
    }
    if row.expires_ms.is_some() {
        profile.expires_ms = row.expires_ms;
    }
    (!profile.fields.is_empty()).then_some(profile)
}

/// A profile as of a time: an expired one is none.
pub(super) fn as_of(profile: &Profile, now_ms: u64) -> State {
    let over = profile.expires_ms.is_some_and(|at| at < now_ms);
    (!over).then(|| profile.clone())
}

fn number(value: &str) -> i64 {
    value.parse().unwrap_or_else(|_| panic!("a counter holds {value:?}"))
}
