//! Reads the profiles of a visit: from Redis what it holds, from the database what it lacks.
//!
//! Nobody else writes the profiles meanwhile, and everything that was written before is in the
//! journal: whoever had claimed them was answered.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::{Stage, Visit, Visited};
use crate::dispatch::{
    CommandError, Hydration, JournalTrouble, Slot, now_ms, outcome::recovery::push_removal,
};
use crate::{
    hydrate::{Held, Known, Profile, Question},
    resp::{Protocol, framed, push_command},
    upstream::LinkState,
};

/// One profile of a visit, as it is before the command.
pub(super) enum Brought {
    /// There is none.
    Absent,
    /// Redis holds something under the key that is no profile.
    Other,
    /// It is this, until it expires.
    Whole(Profile),
}

impl Hydration {
    /// Reads the profiles of a visit, and goes on with it.
    pub(super) async fn bring(self: Rc<Self>, visit: Rc<Visit>) {
        let brought = self.read_visited(&visit).await;
        self.metrics.load(match &brought {
            Err(_) => "failed",
            Ok(brought) if brought.iter().any(|one| matches!(one, Brought::Whole(_))) => "filled",
            Ok(_) => "absent",
        });
        visit.come_to(Stage::Brought(brought));
    }

    async fn read_visited(&self, visit: &Visit) -> Result<Vec<Brought>, CommandError> {
        visit.alone().await;
        let _place = self.places.acquire().await.ok();
        let held = self.look_at_visited(visit).await?;
        // What the journal has failed to write may be there at the next start.
        if self.journal.is_poisoned() {
            return Err(CommandError::Journal(JournalTrouble::Uncheckable));
        }
        let appended = self.journal.appended().0;
        let mut answers = Vec::with_capacity(held.len());
        for (visited, held) in visit.keys.iter().zip(&held) {
            if *held != Held::Nothing {
                answers.push(None);
                continue;
            }
            let (answer, answered) = oneshot::channel();
            let question = Question::Profile { appended, key: visited.key.clone(), answer };
            let asked = self.questions.send(question).await;
            asked.map_err(|_| CommandError::Unloaded)?;
            answers.push(Some(answered));
        }
        let mut brought = Vec::with_capacity(held.len());
        for (held, answered) in held.into_iter().zip(answers) {
            brought.push(match (held, answered) {
                (Held::OtherType, _) => Brought::Other,
                (Held::Hash(profile), _) => Brought::Whole(profile),
                (Held::Nothing, Some(answered)) => match answered.await {
                    Ok(Ok(known)) => Brought::of(known),
                    _ => return Err(CommandError::Unloaded),
                },
                (Held::Nothing, None) => return Err(CommandError::Unloaded),
            });
        }
        Ok(brought)
    }

    /// Removes what writes have left of profiles that were not there, and reads what Redis holds.
    /// Those writes are in doubt until then: the one of this visit, and whatever it has spoiled.
    async fn look_at_visited(&self, visit: &Visit) -> Result<Vec<Held>, CommandError> {
        if self.lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        let doubts = |visited: &Visited| {
            let ledger = self.ledger.borrow();
            let in_doubt = ledger.in_doubt().iter().filter(|(_, key)| **key == visited.key);
            in_doubt.map(|(ticket, _)| *ticket).collect::<Vec<u64>>()
        };
        let missed: Vec<Vec<u64>> = visit.keys.iter().map(doubts).collect();
        let (answer, answered) = oneshot::channel();
        let count = visit.keys.len();
        self.lane.submit(Protocol::Resp2, |batch| {
            for (visited, tickets) in visit.keys.iter().zip(&missed) {
                for ticket in tickets {
                    push_removal(batch, &visited.key, Slot::Removed { ticket: *ticket });
                }
            }
            for visited in &visit.keys {
                push_command(&mut batch.bytes, &[b"HGETALL", &*visited.key], |_, _| {});
                push_command(&mut batch.bytes, &[b"PEXPIRETIME", &*visited.key], |_, _| {});
            }
            batch.slots.push(Slot::Own { replies: 2 * count as u32, answer: Some(answer).into() });
        });
        self.lane.wake();
        let replies = answered.await.map_err(|_| CommandError::UpstreamDown)?;
        let ledger = self.ledger.borrow();
        if missed.iter().flatten().any(|ticket| ledger.in_doubt().contains_key(ticket)) {
            return Err(CommandError::Unloaded);
        }
        let mut rest = replies.as_slice();
        let mut held = Vec::with_capacity(count);
        for _ in 0..count {
            let (both, after) = rest.split_at_checked(framed(rest, 2)).unwrap_or_default();
            held.push(Self::held_by(both).ok_or(CommandError::Unloaded)?);
            rest = after;
        }
        Ok(held)
    }
}

impl Brought {
    fn of(known: Known) -> Self {
        match known {
            Known::Live(profile)
                if !profile.fields.is_empty()
                    && profile.expires_ms.is_none_or(|at| at >= now_ms()) =>
            {
                Self::Whole(profile)
            }
            _ => Self::Absent,
        }
    }
}
