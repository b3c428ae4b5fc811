//! MULTI and EXEC: commands are checked and queued here, and go upstream in one piece.
//!
//! On the lane the piece is `MULTI`, the commands with what their capture needs, `EXEC`. Nobody
//! else's commands come in between, so a transaction without WATCH costs one block on the shared
//! link and no connection of its own. The client's reply is put together from the elements of
//! EXEC's reply, without those that only the proxy has asked for. A client that watches keys, or has
//! selected another database, has a private link, and the piece goes over that (`block.rs`).
//!
//! What is wrong with a command is said when it is queued, and `EXECABORT` follows, as in Redis.

use std::rc::Rc;

use super::{
    Client, CommandError, Effect, Errand, Proxy, Slot, Step, Upstream, answer::client_command,
    client::Profiles, now_ms, private::is_taken_up, slot::Part, write::check::Guard,
    write::has_pairs,
};
use crate::{
    command::{self, Local, ProfileWrite, Refusal, Route, Spec, Transaction},
    resp::{Limits, Request, Scanner},
    schema::Kind,
    upstream::{Batch, Lane, LinkState},
};

/// Bytes that one transaction may queue.
const QUEUED_BYTES_MAX: usize = 256 << 20;

/// The commands between MULTI and EXEC.
#[derive(Debug, Default)]
pub struct Queue {
    /// The requests as canonical RESP, one behind the other.
    bytes: Vec<u8>,
    /// What the check of each has left to be decided. It is not checked again: what `warn` mode lets
    /// pass is counted once.
    guards: Vec<Guard>,
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
        request: &Request<'_>,
    ) -> Result<Step, CommandError> {
        let hold = client.hold.get();
        let apart = hold.watching || hold.database.is_some();
        if apart && command == Transaction::Exec && client.in_flight() > 0 {
            return Ok(Step::Drain);
        }
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
            (Transaction::Discard, Some(_)) => {
                self.reply(client, |reply| reply.ok());
                return Ok(self.unwatch(client));
            }
            (Transaction::Exec, Some(queue)) if queue.aborted => {
                self.refuse(client, &CommandError::Aborted);
                return Ok(self.unwatch(client));
            }
            (Transaction::Exec, Some(queue)) if apart => match self.block(client, &queue) {
                Ok(errand) => return Ok(Step::Private(errand)),
                Err(error) => {
                    self.refuse(client, &error);
                    return Ok(self.unwatch(client));
                }
            },
            (Transaction::Exec, Some(queue)) => self.exec(client, &queue)?,
            (Transaction::Exec | Transaction::Discard, None) => {
                return Err(CommandError::WithoutMulti(spec.name));
            }
            (Transaction::Watch, queue @ Some(_)) => {
                client.session.borrow_mut().queue = queue;
                return Err(CommandError::WatchInMulti);
            }
            (Transaction::Watch, None) => self.watch_embedded(client, spec, request)?,
            (Transaction::Unwatch, queue) => {
                client.session.borrow_mut().queue = queue;
                self.reply(client, |reply| reply.ok());
                return Ok(self.unwatch(client));
            }
        }
        Ok(Step::Next)
    }

    /// A wrong number of arguments. That of EXEC discards the transaction, as in Redis.
    pub(super) fn misfit(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
    ) -> Result<Step, CommandError> {
        if spec.route != Route::Transaction(Transaction::Exec) {
            return Err(CommandError::WrongArity(spec.name));
        }
        // Redis answers with the same words, and lets go what is watched.
        if is_taken_up(client) {
            return self.run_errand(client, spec.name, Errand::default());
        }
        client.session.borrow_mut().queue = None;
        self.refuse(client, &CommandError::ExecArity);
        Ok(self.unwatch(client))
    }

    /// WATCH on the embedded store; where there is a Redis, it went over the private link.
    fn watch_embedded(
        &self,
        client: &Rc<Client>,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let Upstream::Embedded(engine) = &self.upstream else {
            return Err(CommandError::NeedsUpstream(spec.name));
        };
        self.check_forward(spec, request)?;
        let now_ms = now_ms();
        for key in spec.keys(request) {
            engine.borrow_mut().watch(now_ms, client.id, key);
        }
        self.reply(client, |reply| reply.ok());
        Ok(())
    }

    /// Lets go what is watched on the embedded store; tells whether any of it was changed.
    pub(super) fn unwatch_embedded(&self, client: &Client) -> bool {
        let Upstream::Embedded(engine) = &self.upstream else { return false };
        engine.borrow_mut().unwatch(now_ms(), client.id)
    }

    /// Forgets a client that has left.
    pub fn leave(&self, client: &Client) {
        self.unwatch_embedded(client);
        client.end_visit();
        self.clients.leave(client);
    }

    /// Lets go what is watched, if anything is; the client has its answer already.
    pub(super) fn unwatch(&self, client: &Client) -> Step {
        self.unwatch_embedded(client);
        // A link that is taken up by subscriptions takes no UNWATCH.
        if !client.hold.get().watching || is_taken_up(client) {
            return Step::Next;
        }
        client.note(|hold| hold.watching = false);
        let rewritten = Some(b"*1\r\n$7\r\nUNWATCH\r\n".to_vec());
        Step::Private(Errand { effect: Effect::Unwatches, rewritten, block: None })
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
        if let Some(step) = self.check_subcommand(client, spec, request)? {
            return Ok(step);
        }
        let verdict = match self.captured(client, spec, request) {
            Some((write, kind)) => self.check_write(spec, kind, write, request, false),
            None => self.check_queued(client, spec, request).map(|()| Guard::None),
        };
        self.enqueue(client, request, verdict)
    }

    /// Returns what a queued command writes to a profile, if it is a write that is recorded.
    fn captured(
        &self,
        client: &Client,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Option<(ProfileWrite, &Kind)> {
        let elsewhere = client.hold.get().database.is_some();
        match spec.route {
            Route::Profile(write) if !elsewhere && has_pairs(write, request) => {
                self.profile_of(spec, request).map(|kind| (write, kind))
            }
            _ => None,
        }
    }

    /// Tells whether a command that the table does not know is queued for the private link.
    pub(super) fn queues_unknown(&self, client: &Client) -> bool {
        client.session.borrow().queue.is_some() && self.goes_apart(client)
    }

    /// Queues a request unless there is something wrong with it.
    pub(super) fn enqueue(
        &self,
        client: &Rc<Client>,
        request: &Request<'_>,
        verdict: Result<Guard, CommandError>,
    ) -> Result<Step, CommandError> {
        let mut session = client.session.borrow_mut();
        let Some(queue) = &mut session.queue else { return Ok(Step::Next) };
        if queue.bytes.len() + request.bytes().len() > QUEUED_BYTES_MAX {
            queue.aborted = true;
            return Err(CommandError::TransactionTooLarge);
        }
        match verdict {
            Ok(guard) => queue.guards.push(guard),
            Err(error) => {
                queue.aborted = true;
                return Err(error);
            }
        }
        queue.bytes.extend_from_slice(request.bytes());
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

    fn check_queued(
        &self,
        client: &Client,
        spec: &'static Spec,
        request: &Request<'_>,
    ) -> Result<(), CommandError> {
        let elsewhere = client.hold.get().database.is_some();
        match spec.route {
            // Redis's flag `no_multi`.
            _ if matches!(spec.name, "save" | "shutdown" | "sync" | "psync") => {
                Err(CommandError::NotInTransaction)
            }
            Route::Local(Local::Ping | Local::Echo) | Route::Transaction(Transaction::Unwatch) => {
                Ok(())
            }
            Route::Local(Local::Client) => client_command::check_queued(request),
            Route::Local(Local::Info) => Ok(()),
            Route::Local(Local::Acl) => self.check_acl(request),
            Route::Local(_) | Route::Transaction(_) => Err(CommandError::NotInTransaction),
            Route::Profile(_) | Route::Forward if elsewhere => self.check_elsewhere(spec, request),
            // Redis finds the missing half of a pair when it runs the command.
            Route::Profile(_) if self.profile_of(spec, request).is_some() => Ok(()),
            // Nothing blocks inside a transaction.
            Route::Private(command::Private::Wait) => Ok(()),
            Route::Private(_) if spec.access == command::Access::Neither => {
                Err(CommandError::NotInTransaction)
            }
            Route::Private(_) if elsewhere => Ok(()),
            Route::Profile(_) | Route::Forward | Route::Private(_) => {
                self.check_forward(spec, request)
            }
            Route::Flush if elsewhere && spec.name == "flushdb" => Ok(()),
            Route::Flush if elsewhere || client.hold.get().watching => {
                Err(CommandError::NotInTransaction)
            }
            Route::Flush => self.room(),
            Route::Refused(Refusal::ProfilesDatabase) if self.lets_exchange(request) => {
                self.check_forward(spec, request)
            }
            Route::Refused(reason) => Err(CommandError::refused(reason, spec.name)),
        }
    }

    fn exec(&self, client: &Rc<Client>, queue: &Queue) -> Result<(), CommandError> {
        match &self.upstream {
            Upstream::Redis(lane) => self.exec_lane(lane, client, queue),
            Upstream::Embedded(_) => self.exec_embedded(client, queue),
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
        self.room()?;
        client.note_on_lane(Profiles::ALL);
        lane.submit(client.protocol.get(), |batch| {
            let notes_from = batch.notes.len();
            let parts = self.encode_queue(client, queue, batch, false);
            let replies = 2 + parts.iter().map(Part::replies).sum::<u32>();
            client.expect(replies);
            let notes = (batch.notes.len() - notes_from) as u32;
            let client = Rc::clone(client);
            batch.slots.push(Slot::Transaction { client, parts, replies, notes });
        });
        Ok(())
    }

    /// Adds MULTI, the commands with what their capture needs, and EXEC to a batch.
    pub(super) fn encode_queue(
        &self,
        client: &Rc<Client>,
        queue: &Queue,
        batch: &mut Batch<Slot>,
        apart: bool,
    ) -> Vec<Part> {
        let mut parts = Vec::with_capacity(queue.len());
        batch.bytes.extend_from_slice(b"*1\r\n$5\r\nMULTI\r\n");
        queue.for_each(|spec, request, guard| {
            parts.push(self.encode_queued(client, spec, request, guard, batch, apart));
        });
        batch.bytes.extend_from_slice(b"*1\r\n$4\r\nEXEC\r\n");
        parts
    }

    /// Adds one command of a transaction to a batch.
    pub(super) fn encode_queued(
        &self,
        client: &Rc<Client>,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
        guard: Guard,
        batch: &mut Batch<Slot>,
        apart: bool,
    ) -> Part {
        let elsewhere = client.hold.get().database.is_some();
        let captured = match spec.map(|spec| (spec, spec.route)) {
            // A flush is captured on the lane only, so none is queued for a private link.
            Some((_, Route::Flush)) if apart && !elsewhere => {
                return Part::Refused(CommandError::NotInTransaction);
            }
            Some((spec, Route::Flush)) if !elsewhere => {
                return Part::Write(self.encode_flush(client, spec, request, batch));
            }
            Some((_, Route::Local(local))) => {
                let part = self.local_part(client, local, request);
                if part.replies() > 0 {
                    batch.bytes.extend_from_slice(request.bytes());
                }
                return part;
            }
            Some((spec, _)) => self.captured(client, spec, request).map(|write| (spec, write)),
            None => None,
        };
        let Some((spec, (write, kind))) = captured else {
            batch.bytes.extend_from_slice(request.bytes());
            return Part::Forward;
        };
        let plan = self.plan(spec, write, request, kind, guard);
        Part::Write(self.encode(client, &if apart { plan.apart() } else { plan }, batch))
    }

    /// What of a transaction the proxy answers itself, in part or whole.
    fn local_part(&self, client: &Rc<Client>, local: Local, request: &Request<'_>) -> Part {
        match local {
            Local::Client => self.client_part(client, request),
            Local::Acl => self.acl_part(client, request),
            Local::Info => self.info_part(client.protocol.get(), request),
            _ => Part::Forward,
        }
    }

    /// CLIENT is answered when the transaction is sent; its reply keeps its place among the others.
    fn client_part(&self, client: &Rc<Client>, request: &Request<'_>) -> Part {
        self.diverted.replace(Some(Vec::new()));
        let result = self.client(client, request);
        let reply = self.diverted.take().unwrap_or_default();
        match result {
            Ok(_) => Part::Answered(reply),
            Err(error) => Part::Refused(error),
        }
    }

    /// On the embedded store nothing can come in between anyway: the commands run one by one, and
    /// their replies become the elements of one.
    fn exec_embedded(&self, client: &Rc<Client>, queue: &Queue) -> Result<(), CommandError> {
        if self.unwatch_embedded(client) {
            self.reply(client, |reply| reply.null_array());
            return Ok(());
        }
        self.room()?;
        self.outcome.borrow_mut().begin_array(client, queue.len());
        queue.for_each(|spec, request, guard| {
            // What the store does not know is never queued.
            let Some(spec) = spec else { return };
            let carried = match self.captured(client, spec, request) {
                Some((write, kind)) => {
                    self.write_checked(client, spec, write, request, kind, guard)
                }
                None => self.carry(client, spec, request).map(drop),
            };
            if let Err(error) = carried {
                self.refuse(client, &error);
            }
        });
        client.join_replies(queue.len());
        Ok(())
    }
}

impl Queue {
    /// Tells whether a command was refused, so that EXEC will be.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted
    }

    /// Returns the number of commands.
    pub(super) fn len(&self) -> usize {
        self.guards.len()
    }

    /// Returns the bytes of their requests.
    pub(super) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Goes through the commands again; they were whole when they were queued. One that the table
    /// does not know was found to be harmless.
    pub(super) fn for_each(&self, mut run: impl FnMut(Option<&'static Spec>, &Request<'_>, Guard)) {
        let mut scanner = Scanner::new(Limits::default());
        let mut rest = self.bytes.as_slice();
        let mut guards = self.guards.iter().copied();
        while let Ok(Some(length)) = scanner.scan(rest) {
            let (bytes, after) = rest.split_at_checked(length).unwrap_or_default();
            let request = scanner.request(bytes);
            let guard = guards.next().unwrap_or_default();
            run(command::find(request.argument(0)), &request, guard);
            rest = after;
        }
    }
}
