//! `PROFILE.CHECK key [REPAIR REDIS|DATABASE [MISSING]]`: compares the two sides of one profile,
//! and mends what differs.
//!
//! ```text
//! look      row and Redis as they are            the same, as nearly always: done
//! hold      who names the profile waits; what is in flight for it is answered and journaled
//! look      row with what is pending, and Redis  the same: a write was on its way
//! mend      as a check does after a restart, by who is right
//! answer    class, what was done, names of the fields that differ
//! ```
//!
//! A profile is held for some milliseconds and only when a first look found a difference, so
//! profiles in use can be compared. `REPAIR REDIS` says that the database is right, `DATABASE` that
//! Redis is; `MISSING` brings what a side lacks and changes nothing that is there. While profiles
//! are checked after a change of Redis, that check is all that is done: the answer is `checked`.

use std::{cell::RefCell, rc::Rc, time::Duration};

use tokio::{
    task::spawn_local,
    time::{Instant, timeout_at},
};

use crate::dispatch::{
    Client, CommandError, Gate, Hydration, Proxy, Step, write::retention::Retention,
};
use crate::{
    hydrate::{Drift, Held, Known, Repair, Truth, Verdict, compare, remedy},
    resp::{Protocol, Request},
};

/// The longest that a profile is held before anything is mended.
const HELD_MAX: Duration = Duration::from_secs(2);
/// Records that may wait for the database when a profile is held: they are all read then.
const PENDING_MAX: u64 = 100_000;

/// One comparison, from the command that asks for it to its answer.
pub struct Examination {
    key: Vec<u8>,
    repair: Option<Repair>,
    retention: Rc<RefCell<Retention>>,
    gate: Rc<Gate>,
    found: RefCell<Option<Result<Found, CommandError>>>,
}

/// What came of it.
struct Found {
    drift: Option<Drift>,
    /// `Leave` where nothing was done.
    done: Verdict,
}

/// Both sides of a profile and the clock of Redis.
type Sides = (Known, Held, u64);

impl Proxy {
    /// Begins a comparison, or answers with what came of it.
    pub(in crate::dispatch) fn check_profile(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let Some(hydration) = &self.hydration else {
            return Err(CommandError::NeedsUpstream("profile.check"));
        };
        if let Some(examination) = client.examined.take() {
            // Nothing is there yet if the wait has ended before the comparison.
            let found = examination.found.take().unwrap_or(Err(CommandError::Incomparable))?;
            self.tell(client, &found);
            return Ok(Step::Next);
        }
        let key = request.argument(1);
        if client.hold.get().database.is_some() || self.schema.kind_of(key).is_none() {
            return Err(CommandError::NoProfile);
        }
        let repair = repair(request)?;
        if !hydration.is_trusted() {
            self.reply(client, |reply| {
                reply.array(2);
                reply.bulk(b"checked");
                reply.bulk(b"nothing");
            });
            return Ok(Step::Next);
        }
        let gate = Rc::new(Gate::default());
        gate.left.set(1);
        gate.compares.set(true);
        let examination = Rc::new(Examination {
            key: key.to_vec(),
            repair,
            retention: Rc::clone(&self.retention),
            gate: Rc::clone(&gate),
            found: RefCell::default(),
        });
        client.examined.replace(Some(Rc::clone(&examination)));
        spawn_local(Rc::clone(hydration).examine(examination));
        Ok(Step::Load(gate))
    }

    fn tell(&self, client: &Rc<Client>, found: &Found) {
        let class = found.drift.as_ref().map_or("same", |drift| drift.class.label());
        let fields = found.drift.as_ref().map_or(&[][..], |drift| &drift.fields);
        let done = if found.done == Verdict::Leave { "nothing" } else { found.done.label() };
        self.reply(client, |reply| {
            reply.array(2 + fields.len());
            reply.bulk(class.as_bytes());
            reply.bulk(done.as_bytes());
            fields.iter().for_each(|field| reply.bulk(field));
        });
    }
}

/// Reads what is to be done about drift.
fn repair(request: &Request<'_>) -> Result<Option<Repair>, CommandError> {
    let is = |at: usize, word: &[u8]| request.argument(at).eq_ignore_ascii_case(word);
    let truth = match request.len() {
        2 => return Ok(None),
        4 | 5 if !is(2, b"repair") => return Err(CommandError::Syntax),
        5 if !is(4, b"missing") => return Err(CommandError::Syntax),
        4 | 5 if is(3, b"redis") => Truth::Database,
        4 | 5 if is(3, b"database") => Truth::Redis,
        _ => return Err(CommandError::Syntax),
    };
    Ok(Some(Repair { truth, only_missing: request.len() == 5 }))
}

impl Hydration {
    /// Compares a profile and tells whoever has asked.
    async fn examine(self: Rc<Self>, examination: Rc<Examination>) {
        let found = self.compare(&examination).await;
        if let Ok(found) = &found {
            self.metrics.examined.add(1);
            // What an adoption or a warm-up goes out to bring is no drift.
            let counts = !examination.repair.is_some_and(|repair| repair.only_missing);
            if let Some(drift) = found.drift.as_ref().filter(|_| counts) {
                self.metrics.drift(drift.class.label());
            }
        }
        let found = found.map_err(|error| match error {
            CommandError::Unloaded => CommandError::Incomparable,
            error => error,
        });
        examination.found.replace(Some(found));
        examination.gate.pass();
    }

    async fn compare(&self, examination: &Examination) -> Result<Found, CommandError> {
        let deadline = Instant::now() + self.wait_max * 3 / 4;
        let late = |_| CommandError::Incomparable;
        let _place = timeout_at(deadline, self.held.places.acquire()).await.map_err(late)?;
        let generation = self.generation();
        // Redis was changed since the command was let in: what it holds now is yet to be checked, and
        // may be trusted again before both sides are here.
        if !self.is_trusted() {
            return Err(CommandError::Incomparable);
        }
        let key = examination.key.as_slice();
        let look = timeout_at(deadline, self.sides(key)).await;
        let (known, held, at_ms) = look.map_err(late)??;
        let held = self.comparable(key, &known, held);
        let same = Found { drift: None, done: Verdict::Leave };
        // Where Redis need not have it there is nothing to compare.
        if held == Held::Nothing && self.schema.is_cached(key) {
            return Ok(same);
        }
        if compare(&known, &held, at_ms).is_none() {
            return Ok(same);
        }
        let hold = timeout_at(deadline, self.held.hold(key)).await.map_err(late)?;
        let deadline = deadline.min(Instant::now() + HELD_MAX);
        let look = timeout_at(deadline, self.settled_sides(key)).await;
        let (known, held, at_ms) = look.map_err(late)??;
        let held = self.comparable(key, &known, held);
        if held == Held::Nothing && self.schema.is_cached(key) {
            return Ok(same);
        }
        let sides @ (known, held, at_ms) = &(known, held, at_ms);
        // A flush has gone ahead, or Redis was changed: what was seen may be of the past.
        if !hold.stands() || self.generation() != generation || !self.is_trusted() {
            return Err(CommandError::Incomparable);
        }
        let Some(drift) = compare(known, held, *at_ms) else { return Ok(same) };
        let done = match examination.repair {
            Some(repair) => {
                hold.mend();
                let mended = self.mend(key, &drift, sides, repair).await;
                // Whatever expiry it has now is not the one that the policy has set.
                examination.retention.borrow_mut().forget(key);
                self.forget_in_memory(key);
                mended?
            }
            None => Verdict::Leave,
        };
        Ok(Found { drift: Some(drift), done })
    }

    /// Both sides as they are, which may be at different moments.
    async fn sides(&self, key: &[u8]) -> Result<Sides, CommandError> {
        let mut delivered = self.delivered.clone();
        let far =
            |delivered: u64| self.journal.appended().0.saturating_sub(delivered) > PENDING_MAX;
        while far(delivered.borrow_and_update().0) {
            self.ledger.borrow().sync_soon();
            delivered.changed().await.map_err(|_| CommandError::Incomparable)?;
        }
        let row = self.ask_database_up_to(key, 0);
        let (known, (held, at_ms)) = tokio::try_join!(row, self.look(key, None))?;
        Ok((known, held, at_ms))
    }

    /// Both sides of a profile that is held, with everything that was on its way for it.
    async fn settled_sides(&self, key: &[u8]) -> Result<Sides, CommandError> {
        // A transaction on a private link is known when the lane has looked at what it has done.
        self.blocks.emptied().await;
        // What waits on the lane in another protocol could be sent behind a look.
        let other = async {
            match self.lane.speaks_resp3() {
                true => self.pass(Protocol::Resp3).await,
                false => Ok(()),
            }
        };
        tokio::try_join!(self.pass(Protocol::Resp2), other)?;
        // What the journal has failed to write may be there at the next start.
        if self.is_in_doubt(key) || self.journal.is_poisoned() {
            return Err(CommandError::Incomparable);
        }
        let (held, at_ms) = self.look(key, None).await?;
        let known = self.ask_database_up_to(key, self.journal.appended().0).await?;
        match self.is_in_doubt(key) {
            true => Err(CommandError::Incomparable),
            false => Ok((known, held, at_ms)),
        }
    }

    pub(in crate::dispatch) fn is_in_doubt(&self, key: &[u8]) -> bool {
        let ledger = self.ledger.borrow();
        let mut keys = ledger.in_doubt().values();
        keys.any(|doubted| doubted.is_empty() || doubted == key)
    }

    async fn mend(
        &self,
        key: &[u8],
        drift: &Drift,
        (known, held, at_ms): &Sides,
        repair: Repair,
    ) -> Result<Verdict, CommandError> {
        let verdict = remedy(drift, known, held, *at_ms, repair);
        match (verdict, known, held) {
            // It is brought in again when somebody names it.
            (Verdict::Overwrite, ..) if self.schema.is_cached(key) => {
                self.replace(key, None).await?
            }
            (Verdict::Fill | Verdict::Overwrite, Known::Live(profile), _) => {
                self.replace(key, Some(profile)).await?;
            }
            (Verdict::Delete, ..) => self.replace(key, None).await?,
            (Verdict::Adopt, known, Held::Hash(profile)) => {
                let command = if *known == Known::Nothing { "adopt" } else { "repair" };
                return self.adopt(key, profile, command);
            }
            _ => return Ok(Verdict::Leave),
        }
        Ok(verdict)
    }
}
