//! PROFILE.*: what a client may ask about the way of profiles to the database.
//!
//! ```text
//! PROFILE.WAIT timeout-ms        how many changes of this connection the database has yet to get
//! PROFILE.HISTORY key [COUNT n]  the newest changes of a profile, delivered or not
//! PROFILE.STATUS                 how far everything is
//! PROFILE.HELP                   this list
//! ```
//!
//! The proxy answers all of them, also while Redis is down. None blocks anybody but its client.

use std::{rc::Rc, time::Duration};

use tokio::{
    sync::{Notify, oneshot},
    time::{sleep, timeout},
};

use super::late::{Late, encode};
use crate::dispatch::{Client, CommandError, Proxy, Step, Upstream, client::arrival::Arrivals};
use crate::{
    hydrate::{HistoryEntry, HistoryError, HistoryQuestion},
    resp::{ReplyWriter, Request, parse_integer},
    upstream::LinkState,
};

const HISTORY_ENTRIES: usize = 10;
const HISTORY_ENTRIES_MAX: usize = 1000;
/// How long PROFILE.HISTORY waits for the database.
const HISTORY_PATIENCE: Duration = Duration::from_secs(5);

const HELP: [&str; 17] = [
    "PROFILE.<command> [<arg> ...]. Commands are:",
    "CHECK <key> [REPAIR REDIS|DATABASE [MISSING]]",
    "    Compare what Redis and the database hold of a profile. Return the class of drift, what",
    "    was done, and the names of the fields that differ. REPAIR mends that side; MISSING only",
    "    what it lacks altogether.",
    "HELP",
    "    Print this help.",
    "HISTORY <key> [COUNT <count>]",
    "    Return the newest changes of a profile, newest first; 10 unless COUNT says otherwise.",
    "    Changes that are on their way to the database are among them.",
    "STATUS",
    "    Return how far the journal and the database are.",
    "WAIT <timeout>",
    "    Wait until the database has all changes of this connection, or for <timeout>",
    "    milliseconds; 0 waits until it has. Return how many it has yet to get: 0 means that",
    "    all are there.",
    "The commands are answered by the proxy and are not allowed inside a transaction.",
];

impl Proxy {
    pub(super) fn profile_help(&self, client: &Rc<Client>) {
        self.reply(client, |reply| {
            reply.array(HELP.len());
            HELP.iter().for_each(|line| reply.simple(line));
        });
    }

    /// PROFILE.WAIT: the changes are those whose replies are out, so it takes its place behind them.
    pub(super) fn profile_wait(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let limit = match parse_integer(request.argument(1)).map(u64::try_from) {
            Some(Ok(0)) => None,
            Some(Ok(millis)) => Some(Duration::from_millis(millis)),
            Some(Err(_)) => return Err(CommandError::TimeoutNegative),
            None => return Err(CommandError::TimeoutNotAnInteger),
        };
        let Some(arrivals) = &self.arrivals else { return Err(CommandError::NoHistory) };
        if client.owed() > 0 {
            return Ok(Step::Drain);
        }
        if client.behind(arrivals) == 0 {
            let set_aside = client.take_set_aside();
            let all = |reply: &mut ReplyWriter<'_>| reply.integer(0);
            return match set_aside {
                true => Err(CommandError::SomeSetAside),
                false => {
                    self.reply(client, all);
                    Ok(Step::Next)
                }
            };
        }
        client.set_late(true);
        let hurry = Rc::<Notify>::default();
        let (ledger, client) = (Rc::clone(&self.ledger), Rc::clone(client));
        let (arrivals, told) = (Rc::clone(arrivals), Rc::clone(&hurry));
        Ok(Step::Late(Late::new(hurry, async move {
            ledger.borrow().sync_soon();
            let expired = async {
                match limit {
                    Some(limit) => sleep(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = arrived(&client, &arrivals) => {}
                () = told.notified() => {}
                () = expired => {}
            }
            let behind = client.behind(&arrivals);
            if behind == 0 && client.take_set_aside() {
                return Err(CommandError::SomeSetAside);
            }
            let behind = i64::try_from(behind).unwrap_or(i64::MAX);
            Ok(encode(&client, |reply| reply.integer(behind)))
        })))
    }

    /// PROFILE.HISTORY: from the database, and what is journaled on top of it.
    pub(super) fn profile_history(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let entries_max = match request.len() {
            2 => HISTORY_ENTRIES,
            4 if request.argument(2).eq_ignore_ascii_case(b"COUNT") => {
                let count = parse_integer(request.argument(3));
                let count = count.and_then(|count| usize::try_from(count).ok());
                count
                    .filter(|count| (1..=HISTORY_ENTRIES_MAX).contains(count))
                    .ok_or(CommandError::HistoryCount)?
            }
            _ => return Err(CommandError::Syntax),
        };
        let key = request.argument(1).to_vec();
        if client.hold.get().database.is_some() || self.schema.kind_of(&key).is_none() {
            return Err(CommandError::NotAProfile);
        }
        let Some(arrivals) = &self.arrivals else { return Err(CommandError::NoHistory) };
        if client.owed() > 0 {
            return Ok(Step::Drain);
        }
        client.set_late(true);
        let (client, arrivals) = (Rc::clone(client), Rc::clone(arrivals));
        Ok(Step::Late(Late::new(Rc::default(), async move {
            let (answer, answered) = oneshot::channel();
            let appended = arrivals.journal.appended().0;
            let question = HistoryQuestion { key, entries_max, appended, answer };
            let asking = async {
                arrivals.questions.send(question).await.ok()?;
                answered.await.ok()
            };
            match timeout(HISTORY_PATIENCE, asking).await {
                Ok(Some(Ok(entries))) => {
                    Ok(encode(&client, |reply| write_history(&entries, reply)))
                }
                Ok(Some(Err(HistoryError::Behind))) => Err(CommandError::HistoryBehind),
                _ => Err(CommandError::NoHistory),
            }
        })))
    }

    /// PROFILE.STATUS: the numbers of the metrics and of /readyz in one reply.
    pub(super) fn profile_status(&self, client: &Rc<Client>) {
        let (upstream, link) = match &self.upstream {
            Upstream::Embedded(_) => ("embedded", "up"),
            Upstream::Redis(lane) => match lane.state() {
                LinkState::Up => ("redis", "up"),
                LinkState::Starting => ("redis", "starting"),
                LinkState::Down => ("redis", "down"),
            },
        };
        let role = match &self.hydration {
            None => "master".to_owned(),
            Some(hydration) => hydration.role().unwrap_or_else(|| "unknown".to_owned()),
        };
        let settled = self.hydration.as_ref().is_none_or(|hydration| hydration.is_trusted());
        let in_doubt = self.ledger.borrow().in_doubt().len() as u64;
        let Some(about) = &self.about else { return self.refuse(client, &CommandError::NoHistory) };
        let standing = (about.standing)();
        let texts = [("upstream", upstream), ("upstream_link", link), ("upstream_role", &role)];
        let numbers = [
            ("epoch_settled", u64::from(settled)),
            ("in_doubt", in_doubt),
            ("journal_written", about.journal.appended().0),
            ("journal_durable", about.journal.durable().0),
            ("database_up", u64::from(standing.up)),
            ("undelivered", standing.undelivered),
            ("undelivered_bytes", standing.undelivered_bytes),
            ("oldest_undelivered_ms", standing.oldest_undelivered_ms),
            ("dead_letters", standing.dead_letters),
            ("quarantined_keys", standing.quarantined_keys),
        ];
        self.reply(client, |reply| {
            reply.map(texts.len() + numbers.len() + 1);
            for (name, text) in texts {
                reply.bulk(name.as_bytes());
                reply.bulk(text.as_bytes());
            }
            for (name, number) in numbers {
                reply.bulk(name.as_bytes());
                write_number(number, reply);
            }
            reply.bulk(b"delivered");
            reply.map(1);
            reply.bulk(standing.sink.as_bytes());
            write_number(standing.delivered, reply);
        });
    }
}

/// Waits until the database has all changes of a client.
async fn arrived(client: &Client, arrivals: &Arrivals) {
    let mut delivered = arrivals.delivered.clone();
    while client.behind(arrivals) > 0 {
        if delivered.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

fn write_number(number: u64, reply: &mut ReplyWriter<'_>) {
    reply.integer(i64::try_from(number).unwrap_or(i64::MAX));
}

fn write_history(entries: &[HistoryEntry], reply: &mut ReplyWriter<'_>) {
    reply.array(entries.len());
    for entry in entries {
        reply.map(7);
        reply.bulk(b"sequence");
        write_number(entry.sequence, reply);
        reply.bulk(b"at");
        write_number(entry.at_ms, reply);
        reply.bulk(b"actor");
        reply.bulk(entry.actor.as_bytes());
        reply.bulk(b"command");
        reply.bulk(entry.command.as_bytes());
        reply.bulk(b"changed");
        reply.map(entry.changed.len());
        for (field, value) in &entry.changed {
            reply.bulk(field);
            reply.bulk(value);
        }
        reply.bulk(b"removed");
        reply.array(entry.removed.len());
        entry.removed.iter().for_each(|field| reply.bulk(field));
        reply.bulk(b"deleted");
        reply.integer(i64::from(entry.deleted));
    }
}
