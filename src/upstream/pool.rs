//! The pool of private links: taken for a while, given back, reset and used again.
//!
//! At most [`LINKS_MAX`] links are open and [`IDLE_MAX`] of them wait idle, each for [`IDLE_TIME`].
//! A link is offered again only when Redis has answered its reset cleanly. Links are only made to the
//! Redis that the lane is at (`home.rs`), and end when the lane finds another one.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use tokio::{task::spawn_local, time::Instant};

use super::{
    Config, Home, PrivateLink, RedisAddress, UpstreamError, handshake, home::Standing,
    private::Place,
};

/// Links that are open at a time, below Redis's own default of 10000 clients.
const LINKS_MAX: usize = 8192;
/// Links that wait for their next use.
const IDLE_MAX: usize = 16;
/// How long a link waits for its next use before it is closed.
const IDLE_TIME: Duration = Duration::from_secs(60);

/// The handle to the private links of one worker.
#[derive(Clone)]
pub struct Pool {
    shared: Rc<Shared>,
}

struct Shared {
    address: RedisAddress,
    config: Config,
    name: String,
    home: Home,
    /// The longest idle first.
    idle: RefCell<Vec<(Instant, PrivateLink)>>,
    taken: Rc<Cell<usize>>,
    sweeping: Cell<bool>,
}

impl Pool {
    /// Makes a pool without links, beside the lane of this name.
    #[must_use]
    pub fn new(address: RedisAddress, config: Config, name: String, home: Home) -> Self {
        Self {
            shared: Rc::new(Shared {
                address,
                config,
                name,
                home,
                idle: RefCell::default(),
                taken: Rc::default(),
                sweeping: Cell::new(false),
            }),
        }
    }

    /// Returns the number of the database that a link has selected when it is taken: the one with
    /// the profiles.
    #[must_use]
    pub fn database(&self) -> u32 {
        self.shared.address.database
    }

    /// Returns the name of the lane: a link that takes it is ended by the next lane.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Returns how long Redis may owe a reply to what does not wait for others.
    #[must_use]
    pub fn reply_timeout(&self) -> Duration {
        self.shared.config.reply_timeout
    }

    /// Takes an idle link, or makes one. It speaks RESP2. One that is only `to_kill` a script has no
    /// database selected, because a Redis that is busy allows none to be.
    ///
    /// # Errors
    /// When Redis cannot be reached or refuses, the address leads to another Redis than the lane's,
    /// or too many links are open; nothing was sent.
    pub async fn take(&self, to_kill: bool) -> Result<PrivateLink, UpstreamError> {
        let shared = &self.shared;
        while let Some((_, link)) = shared.idle.borrow_mut().pop() {
            if link.is_quiet() {
                return Ok(link);
            }
        }
        let place = Place::take(&shared.taken, LINKS_MAX).ok_or(UpstreamError::TooMany)?;
        loop {
            let stay = shared.home.stay();
            let greeting =
                handshake::connect_private(&shared.address, &shared.config, !to_kill).await?;
            if stay.is_cancelled() {
                continue;
            }
            match shared.home.compare(greeting.run_id.as_deref()) {
                Standing::Other => {
                    shared.home.suspect();
                    return Err(UpstreamError::Elsewhere);
                }
                standing => {
                    let proved = standing == Standing::Same;
                    return Ok(PrivateLink::new(greeting, stay, proved, place));
                }
            }
        }
    }

    /// Takes a link back that no client needs any more, with no request in flight on it.
    pub fn give_back(&self, mut link: PrivateLink) {
        let shared = Rc::clone(&self.shared);
        if shared.idle.borrow().len() >= IDLE_MAX || !link.is_proved() {
            return;
        }
        spawn_local(async move {
            let reset = link.reset(&shared.address);
            let reset = tokio::time::timeout(shared.config.connect_timeout, reset).await;
            if matches!(reset, Ok(Ok(()))) && shared.idle.borrow().len() < IDLE_MAX {
                shared.idle.borrow_mut().push((Instant::now(), link));
                if !shared.sweeping.replace(true) {
                    shared.sweep().await;
                }
            }
        });
    }
}

impl Shared {
    /// Closes what has been idle for too long or is left behind, until nothing is idle.
    async fn sweep(&self) {
        loop {
            let oldest = self.idle.borrow().first().map(|(since, _)| *since);
            let Some(oldest) = oldest else { break };
            let stay = self.home.stay();
            let left = stay.run_until_cancelled(tokio::time::sleep_until(oldest + IDLE_TIME));
            left.await;
            self.idle
                .borrow_mut()
                .retain(|(since, link)| since.elapsed() < IDLE_TIME && !link.is_left_behind());
        }
        self.sweeping.set(false);
    }
}
