//! One command's wait for the profiles that it names, and which commands have to wait at all.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use tokio::sync::Notify;

use crate::dispatch::{Client, CommandError, Hydration, Proxy};
use crate::{
    command::{self, Access, Route, Spec},
    resp::Request,
};

impl Proxy {
    /// Finds out whether a command has to wait for profiles that it names; `None` is one that the
    /// table does not know. One test while everything is trusted.
    #[inline]
    pub(in crate::dispatch) fn touch(
        &self,
        client: &Client,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        match &self.hydration {
            Some(hydration) if !hydration.is_open() => {
                self.touch_checking(hydration, client, spec, request)
            }
            _ => Ok(None),
        }
    }

    fn touch_checking(
        &self,
        hydration: &Rc<Hydration>,
        client: &Client,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        let generation = hydration.generation();
        if let Some((at, error)) = client.unloaded.take()
            && at == generation
        {
            if spec.is_some_and(|spec| spec.name == "exec") {
                client.session.borrow_mut().queue = None;
            }
            return Err(error);
        }
        // One that the table does not know may have its keys anywhere.
        let Some(spec) = spec else { return hydration.touch(request.arguments(1)) };
        let elsewhere = client.hold.get().database.is_some();
        // A profile that is being brought back could arrive behind the flush.
        if spec.route == Route::Flush && !(elsewhere && spec.name == "flushdb") {
            return hydration.clear_for_flush(spec.name);
        }
        if elsewhere {
            return Ok(None);
        }
        if spec.name == "exec" {
            let touched = self.touch_queued(hydration, client);
            // Whatever EXEC is told, the transaction ends with it.
            if touched.is_err() {
                client.session.borrow_mut().queue = None;
            }
            return touched;
        }
        match names_profiles(spec) {
            true => hydration.touch(spec.keys(request)),
            false => Ok(None),
        }
    }

    /// What was checked when it was queued may be another epoch's.
    fn touch_queued(
        &self,
        hydration: &Rc<Hydration>,
        client: &Client,
    ) -> Result<Option<Rc<Gate>>, CommandError> {
        let session = client.session.borrow();
        let Some(queue) = &session.queue else { return Ok(None) };
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let mut flush = None;
        queue.for_each(|spec, request, _| match spec {
            Some(spec) if names_profiles(spec) => {
                keys.extend(spec.keys(request).map(<[u8]>::to_vec));
            }
            Some(spec) if spec.route == Route::Flush => flush = Some(spec.name),
            Some(_) => {}
            None => keys.extend(request.arguments(1).map(<[u8]>::to_vec)),
        });
        if let Some(name) = flush
            && let Some(gate) = hydration.clear_for_flush(name)?
        {
            return Ok(Some(gate));
        }
        hydration.touch(keys.iter().map(Vec::as_slice))
    }

    /// Takes the news that the profiles of a client's next command cannot be checked; the command
    /// is then run again and refused.
    pub fn unloaded(&self, client: &Client, error: CommandError) {
        // Where nothing has to wait any more the command runs, and must leave no refusal behind.
        if let Some(hydration) = self.hydration.as_ref().filter(|hydration| !hydration.is_open()) {
            client.unloaded.set(Some((hydration.generation(), error)));
        }
    }
}

/// Tells whether a command may reach profiles by its keys. Writes that are not captured are refused
/// on profiles, so they have nothing to wait for.
fn names_profiles(spec: &Spec) -> bool {
    match spec.route {
        Route::Profile(_) => true,
        Route::Transaction(command) => command == command::Transaction::Watch,
        Route::Forward | Route::Private(_) => spec.access != Access::Write,
        Route::Local(command) => command == command::Local::ProfileCheck,
        Route::Refused(_) | Route::Flush => false,
    }
}

/// One command's wait for its profiles.
#[derive(Default)]
pub struct Gate {
    pub(super) left: Cell<usize>,
    /// The command asks for nothing but a comparison, so its wait holds nobody up.
    pub(super) compares: Cell<bool>,
    failure: RefCell<Option<CommandError>>,
    news: Notify,
}

impl Gate {
    /// Counts one profile as checked.
    pub(super) fn pass(&self) {
        self.left.set(self.left.get().saturating_sub(1));
        if self.left.get() == 0 {
            self.news.notify_one();
        }
    }

    /// Ends the wait: a profile cannot be checked.
    pub(super) fn fail(&self, error: CommandError) {
        self.failure.replace(Some(error));
        self.news.notify_one();
    }

    /// Waits until all is well, or something is not.
    pub(super) async fn opened(&self) -> Result<(), CommandError> {
        loop {
            if let Some(error) = self.failure.borrow_mut().take() {
                return Err(error);
            }
            if self.left.get() == 0 {
                return Ok(());
            }
            self.news.notified().await;
        }
    }
}
