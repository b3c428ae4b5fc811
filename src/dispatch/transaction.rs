//! MULTI and EXEC: commands are checked and queued here, and go upstream in one piece.
//!
//! On the lane the piece is `MULTI`, the commands with what their capture needs, `EXEC`. Nobody
//! else's commands come in between, so a transaction without WATCH costs one block on the shared
//! link and no connection of its own. The client's reply is put together from the elements of
//! EXEC's reply, without those that only the proxy has asked for.
//!
//! What is wrong with a command is said when it is queued, and `EXECABORT` follows, as in Redis.

use std::rc::Rc;

use super::{Client, CommandError, Proxy, Slot, Step, Upstream, slot::Part, write::has_pairs};
use crate::{
    command::{self, Local, Route, Spec, Transaction},
    resp::{Limits, Request, Scanner},
    upstream::{Lane, LinkState},
};

/// Bytes that one transaction may queue.
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// The commands between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Queue {
    /// The requests as canonical RESP, one behind the other.
    bytes: Vec<u8>,
    count: usize,
    /// A command was refused, so EXEC will be.
    aborted: bool,
}

impl Proxy {
    /// Runs MULTI, EXEC, DISCARD and their kin.
    pub(super) fn transaction(
        &self,
        client: &Rc<Client>,
        command: Transaction,
        spec: &'static Spec,
    ) -> Result<Step, CommandError> {
        let queue = client.session.borrow_mut().queue.take();
        match (command, queue) {
            (Transaction::Multi, None) => {
                client.session.borrow_mut().queue = Some(Queue::default());
                self.reply(client, |reply| reply.ok());
            }
            (Transaction::Multi, queue @ Some(_)) => {
                client.session.borrow_mut().queue = queue;
                return Err(CommandError::NestedMulti);
            }
            (Transaction::Discard, Some(_)) => self.reply(client, |reply| reply.ok()),
            (Transaction::Exec, Some(queue)) if queue.aborted => return Err(CommandError::Aborted),
            (Transaction::Exec, Some(queue)) => self.exec(client, &queue)?,
            (Transaction::Exec | Transaction::Discard, None) => {
                return Err(CommandError::WithoutMulti(spec.name));
            }
            (Transaction::Watch, queue @ Some(_)) => {
                client.session.borrow_mut().queue = queue;
                return Err(CommandError::WatchInMulti);
            }
            (Transaction::Watch, None) => return Err(CommandError::NeedsConnection(spec.name)),
            // Nothing is ever watched on the lane.
            (Transaction::Unwatch, queue) => {
                client.session.borrow_mut().queue = queue;
                self.reply(client, |reply| reply.ok());
            }
        }
        Ok(Step::Next)
    }

    /// Tells whether a command is queued now instead of being run.
    pub(super) fn queues(client: &Client, route: Route) -> bool {
        let at_once = match route {
            Route::Transaction(command) => command != Transaction::Unwatch,
            Route::Local(command) => matches!(command, Local::Quit | Local::Reset),
            _ => false,
        };
        !at_once && client.session.borrow().queue.is_some()
    }

    /// Queues a command, or refuses it and with it the transaction.
    pub(super) fn queue(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let verdict = self.check_queued(spec, request);
        let mut session = client.session.borrow_mut();
        let Some(queue) = &mut session.queue else { return Ok(Step::Next) };
        if queue.bytes.len() + request.bytes().len() > QUEUED_BYTES_MAX {
            queue.aborted = true;
            return Err(CommandError::TransactionTooLarge);
        }
        if let Err(error) = verdict {
            queue.aborted = true;
            return Err(error);
        }
        queue.bytes.extend_from_slice(request.bytes());
        queue.count += 1;
        drop(session);
        self.reply(client, |reply| reply.simple("QUEUED"));
        Ok(Step::Next)
    }

    /// A refusal outside of the queue's own checks: unknown command, arity, access.
    pub(super) fn abort(client: &Client) {
        if let Some(queue) = &mut client.session.borrow_mut().queue {
            queue.aborted = true;
        }
    }

    fn check_queued(&self, spec: &'static Spec, request: &Request<'_>) -> Result<(), CommandError> {
        match spec.route {
            Route::Local(Local::Ping | Local::Echo) | Route::Transaction(Transaction::Unwatch) => {
                Ok(())
            }
            Route::Local(_) | Route::Transaction(_) => Err(CommandError::NotInTransaction),
            Route::Profile(write) => match self.profile_of(spec, request) {
                Some(kind) if has_pairs(write, request) => {
                    self.check(kind, write, request)?;
                    self.ledger.borrow().room().map_err(CommandError::Journal)
                }
                // Redis finds the missing half of a pair when it runs the command.
                Some(_) => Ok(()),
                None => self.check_forward(spec, request),
            },
            // A blocking command does not block inside a transaction.
            Route::Private(_) if spec.access == command::Access::Neither => {
                Err(CommandError::NotInTransaction)
            }
            Route::Forward | Route::Private(_) => self.check_forward(spec, request),
            Route::Refused(reason) => Err(CommandError::refused(reason, spec.name)),
        }
    }

    fn exec(&self, client: &Rc<Client>, queue: &Queue) -> Result<(), CommandError> {
        match &self.upstream {
            Upstream::Redis(lane) => self.exec_lane(lane, client, queue),
            Upstream::Embedded(_) => {
                self.exec_embedded(client, queue);
                Ok(())
            }
        }
    }

    fn exec_lane(
        &self,
        lane: &Lane<Slot>,
        client: &Rc<Client>,
        queue: &Queue,
    ) -> Result<(), CommandError> {
        if lane.state() != LinkState::Up {
            return Err(CommandError::UpstreamDown);
        }
        self.ledger.borrow().room().map_err(CommandError::Journal)?;
        lane.submit(client.protocol.get(), |batch| {
            let notes_from = batch.notes.len();
            let mut parts = Vec::with_capacity(queue.count);
            batch.bytes.extend_from_slice(b"*1\r\n$5\r\nMULTI\r\n");
            queue.for_each(|spec, request| {
                let plan = match spec.route {
                    Route::Profile(write) if has_pairs(write, request) => self
                        .profile_of(spec, request)
                        .map(|kind| self.plan(spec, write, request, kind)),
                    _ => None,
                };
                parts.push(match plan {
                    Some(Ok(plan)) => Part::Write(self.encode(client, &plan, batch)),
                    // It was allowed when it was queued; whatever has changed since, a write to a
                    // profile never goes out unless it is captured.
                    Some(Err(error)) => Part::Refused(error),
                    None => {
                        batch.bytes.extend_from_slice(request.bytes());
                        Part::Forward
                    }
                });
            });
            batch.bytes.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n");
            let replies = 2 + parts.iter().map(Part::replies).sum::<u32>();
            client.expect(replies);
            let notes = (batch.notes.len() - notes_from) as u32;
            let client = Rc::clone(client);
            batch.slots.push(Slot::Transaction { client, parts, replies, notes });
        });
        Ok(())
    }

    /// On the embedded store nothing can come in between anyway: the commands run one by one, and
    /// their replies become the elements of one.
    fn exec_embedded(&self, client: &Rc<Client>, queue: &Queue) {
        self.outcome.borrow_mut().begin_array(client, queue.count);
        queue.for_each(|spec, request| {
            if let Err(error) = self.carry(client, spec, request) {
                self.refuse(client, &error);
            }
        });
        client.join_replies(queue.count);
    }
}

impl Queue {
    /// Goes through the commands again; they were whole and known when they were queued.
    pub(super) fn for_each(&self, mut run: impl FnMut(&'static Spec, &Request<'_>)) {
        let mut scanner = Scanner::new(Limits::default());
        let mut rest = self.bytes.as_slice();
        while let Ok(Some(length)) = scanner.scan(rest) {
            let (bytes, after) = rest.split_at_checked(length).unwrap_or_default();
            let request = scanner.request(bytes);
            if let Some(spec) = command::find(request.argument(0)) {
                run(spec, &request);
            }
            rest = after;
        }
    }
}
