//! What clients are told while Redis is busy with a script: what Redis itself would tell them.
//!
//! The lane finds out (`upstream/probe.rs`); here is which commands are refused then. Those that
//! Redis allows (its flag `allow_busy`) are run, among them the ones that end the script: they go
//! over a private link. A client that still has replies to come waits behind them, as the client
//! that has sent the script does on Redis.

use std::rc::Rc;

use super::{Client, CommandError, Proxy, Step, Upstream};
use crate::{
    command::{Route, Spec, Transaction},
    resp::Request,
};

impl Proxy {
    /// Refuses a command that Redis would refuse now; `None` if it may be run.
    pub(super) fn refuse_busy(
        &self,
        client: &Rc<Client>,
        spec: Option<&'static Spec>,
        request: &Request<'_>,
    ) -> Result<Option<Step>, CommandError> {
        let Upstream::Redis(lane) = &self.upstream else { return Ok(None) };
        let Some(text) = lane.busy() else { return Ok(None) };
        // A fresh link that watches has to be known by its id, which Redis does not tell now.
        let linkless = !client.hold.get().linked;
        let passes =
            |spec: &Spec| spec.passes_scripts(request) && !(spec.name == "watch" && linkless);
        if client.owed() > 0 || spec.is_some_and(passes) {
            return Ok(None);
        }
        if spec.is_none_or(|spec| spec.route != Route::Transaction(Transaction::Exec)) {
            return Err(CommandError::Busy(text));
        }
        client.session.borrow_mut().queue = None;
        self.refuse(client, &CommandError::AbortedBusy(text));
        Ok(Some(self.unwatch(client)))
    }

    /// Has Redis asked whether it is busy, because it does not answer on a private link.
    pub fn suspect(&self) {
        if let Upstream::Redis(lane) = &self.upstream {
            lane.suspect();
        }
    }

    /// Takes the news that Redis has answered on a private link on which it was silent.
    pub fn relieve(&self) {
        if let Upstream::Redis(lane) = &self.upstream {
            lane.relieve();
        }
    }
}
