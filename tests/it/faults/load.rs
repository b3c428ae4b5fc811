//! The clients of a schedule: several threads that read and write a small set of profiles through
//! the proxy, whatever happens, and remember what they asked and were told.
//!
//! Each connection logs in as a user of its own, so that the history says which connection made
//! which change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::story::{Action, Answer, Fields, Operation, Outcome, REFUSALS};
use crate::support::client::{Client, Reply, encode};
use crate::support::random::Random;

/// Users for each client; a connection more than these stands at the end.
pub(super) const CONNECTIONS_MAX: u64 = 400;
/// The password of all users.
pub(super) const PASSWORD: &str = "fortestsonly";

const HOT_PROFILES: u64 = 6;
const EXPIRING_PROFILES: u64 = 2;
const FILLER_BYTES: usize = 24 << 10;

/// One of the profiles that all clients use.
pub(super) fn random_key(random: &mut Random) -> String {
    match random.below(10) {
        0 => format!("user:short{}", random.below(EXPIRING_PROFILES)),
        _ => format!("user:{}", random.below(HOT_PROFILES)),
    }
}

/// What all clients of a schedule share.
pub(super) struct Shared {
    pub(super) address: String,
    pub(super) stop: AtomicBool,
    /// Clients write large values to profiles of their own.
    pub(super) filling: AtomicBool,
    next_number: AtomicU64,
    started: Instant,
    started_us: u64,
}

impl Shared {
    pub(super) fn new(address: String) -> Shared {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
        Shared {
            address,
            stop: AtomicBool::new(false),
            filling: AtomicBool::new(false),
            next_number: AtomicU64::new(1),
            started: Instant::now(),
            started_us: since.as_micros() as u64,
        }
    }

    /// Microseconds since 1970, never set back.
    pub(super) fn now_us(&self) -> u64 {
        self.started_us + self.started.elapsed().as_micros() as u64
    }
}

/// What one client brings home.
pub(super) struct Diary {
    pub(super) operations: Vec<Operation>,
    /// Replies that no command can have.
    pub(super) faults: Vec<String>,
}

/// One client.
pub(super) struct LoadClient {
    shared: Arc<Shared>,
    name: u64,
    random: Random,
    connections: u64,
    actor: String,
    diary: Diary,
    /// Acknowledged commands so far, for others to see.
    acknowledged: Arc<AtomicU64>,
}

/// A client at work.
pub(super) struct Running {
    thread: JoinHandle<Diary>,
    acknowledged: Arc<AtomicU64>,
}

impl Running {
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits for its end.
    pub(super) fn join(self) -> Diary {
        self.thread.join().unwrap_or_else(|_| Diary {
            operations: Vec::new(),
            faults: vec!["a client was sent something that is no reply".to_owned()],
        })
    }
}

impl LoadClient {
    /// Starts client number `name`.
    pub(super) fn spawn(shared: Arc<Shared>, name: u64, seed: u64) -> Running {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let diary = Diary { operations: Vec::new(), faults: Vec::new() };
        let random = Random::seeded(seed ^ name.wrapping_mul(0x9E37));
        let actor = String::new();
        let of_client = Arc::clone(&acknowledged);
        let client =
            LoadClient { shared, name, random, connections: 0, actor, diary, acknowledged };
        Running { thread: thread::spawn(move || client.run()), acknowledged: of_client }
    }

    fn run(mut self) -> Diary {
        while !self.is_over() {
            let Some(mut client) = self.connect() else {
                thread::sleep(Duration::from_millis(5));
                continue;
            };
            while !self.is_over() && self.turn(&mut client).is_some() {
                thread::sleep(Duration::from_micros(100 + self.random.below(1500)));
            }
        }
        self.diary
    }

    fn is_over(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.connections >= CONNECTIONS_MAX
    }

    /// Logs in as the next user; every second connection speaks RESP3.
    fn connect(&mut self) -> Option<Client> {
        let mut client = Client::try_connect(&self.shared.address).ok()?;
        self.actor = format!("c{}-{}", self.name, self.connections);
        let reply = match self.connections % 2 {
            0 => client.try_command(&["AUTH", &self.actor, PASSWORD]).ok()?,
            _ => client.try_command(&["HELLO", "3", "AUTH", &self.actor, PASSWORD]).ok()?,
        };
        if matches!(reply, Reply::Error(_)) {
            self.diary.faults.push(format!("the log-in was answered {reply:?}"));
            return None;
        }
        self.connections += 1;
        Some(client)
    }

    /// One command, a pipeline or a transaction; `None` when the connection is gone.
    fn turn(&mut self, client: &mut Client) -> Option<()> {
        if self.shared.filling.load(Ordering::Relaxed) && self.random.below(3) == 0 {
            let key = format!("user:big{}", self.name);
            return self.pipeline(client, vec![key]);
        }
        let count = match self.random.below(10) {
            0..5 => 1,
            5..8 => 2 + self.random.below(8),
            _ => {
                let keys =
                    (0..1 + self.random.below(4)).map(|_| random_key(&mut self.random)).collect();
                return self.transaction(client, keys);
            }
        };
        let keys = (0..count).map(|_| random_key(&mut self.random)).collect();
        self.pipeline(client, keys)
    }

    fn pipeline(&mut self, client: &mut Client, keys: Vec<String>) -> Option<()> {
        let mut operations = self.begin(keys, false);
        let bytes: Vec<Vec<u8>> =
            operations.iter().map(|operation| encode(&operation.words())).collect();
        let echo = self.echo(client, bytes.concat(), &operations);
        let mut lost = echo.is_none();
        for operation in &mut operations {
            let reply = if lost { None } else { self.reply(client) };
            match reply {
                Some(reply) => self.told(operation, &reply),
                None => lost = true,
            }
        }
        if let (false, Some(echo)) = (lost, echo) {
            match self.reply(client) {
                Some(Reply::Bulk(text)) if text == echo.as_bytes() => {}
                Some(other) => {
                    self.diary.faults.push(format!("{}: ECHO was answered {other:?}", self.actor));
                }
                None => lost = true,
            }
        }
        self.finish(operations);
        (!lost).then_some(())
    }

    /// Sends the commands and behind them one whose reply only this client can get.
    fn echo(&self, client: &mut Client, mut bytes: Vec<u8>, of: &[Operation]) -> Option<String> {
        let echo = format!("{} {}", self.actor, of[0].number);
        bytes.extend(encode(&["ECHO", &echo]));
        client.try_send(bytes).ok().map(|()| echo)
    }

    fn transaction(&mut self, client: &mut Client, keys: Vec<String>) -> Option<()> {
        let mut operations = self.begin(keys, true);
        let mut bytes = encode(&["MULTI"]);
        operations.iter().for_each(|operation| bytes.extend(encode(&operation.words())));
        bytes.extend(encode(&["EXEC"]));
        let echo = self.echo(client, bytes, &operations);
        let kept = echo.is_some().then(|| self.executed(client, &mut operations)).flatten();
        let kept = kept.and_then(|()| self.reply(client)).map(|reply| {
            if reply != Reply::Bulk(echo.unwrap_or_default().into_bytes()) {
                self.diary.faults.push(format!("{}: ECHO was answered {reply:?}", self.actor));
            }
        });
        self.finish(operations);
        kept
    }

    /// Reads the replies from that to MULTI to that to EXEC.
    fn executed(&mut self, client: &mut Client, operations: &mut [Operation]) -> Option<()> {
        for _ in 0..=operations.len() {
            let reply = self.reply(client)?;
            let text = match &reply {
                Reply::Simple(text) | Reply::Error(text) => text.as_str(),
                _ => "",
            };
            let queued = text == "OK" || text == "QUEUED";
            if !queued && !is_refusal(text) {
                self.diary.faults.push(format!("{}: MULTI was answered {reply:?}", self.actor));
            }
        }
        match self.reply(client)? {
            Reply::Array(replies) if replies.len() == operations.len() => {
                for (operation, reply) in operations.iter_mut().zip(&replies) {
                    self.told(operation, reply);
                }
            }
            reply => operations.iter_mut().for_each(|operation| self.told(operation, &reply)),
        }
        Some(())
    }

    fn begin(&mut self, keys: Vec<String>, together: bool) -> Vec<Operation> {
        let count = keys.len() as u64;
        let first = self.shared.next_number.fetch_add(count, Ordering::Relaxed);
        let mut operations = Vec::new();
        for (number, key) in (first..).zip(keys) {
            let action = self.action(&key, number);
            operations.push(Operation {
                number,
                actor: self.actor.clone(),
                key,
                action,
                transaction: together.then_some(first),
                invoked_us: 0,
                replied_us: u64::MAX,
                outcome: Outcome::Unknown,
            });
        }
        // As late as possible: nothing of it has left before.
        let now_us = self.shared.now_us();
        operations.iter_mut().for_each(|operation| operation.invoked_us = now_us);
        operations
    }

    fn action(&mut self, key: &str, number: u64) -> Action {
        let field = |random: &mut Random| ["a", "b", "c", "d"][random.below(4) as usize].to_owned();
        let random = &mut self.random;
        if key.starts_with("user:big") {
            let value = format!("v{number}-{}", "x".repeat(FILLER_BYTES));
            return Action::Set(Fields::from([(field(random), value)]));
        }
        let short = key.starts_with("user:short");
        match random.below(100) {
            0..26 => {
                let names = 1 + random.below(2);
                let named = (0..names).map(|n| (field(random), format!("v{number}-{n}")));
                Action::Set(named.collect())
            }
            26..46 => {
                let field = if random.below(2) == 0 { "count" } else { "bounded" };
                Action::Add { field: field.to_owned(), by: number as i64 }
            }
            46..54 => Action::Remove(vec![field(random), format!("x{number}")]),
            54..57 => Action::Delete,
            57..60 if !short => Action::Expire { at_ms: 4_000_000_000_000 + number },
            57..68 if short => {
                let at_ms = self.shared.now_us() / 1000 + 20 + random.below(300);
                Action::Expire { at_ms }
            }
            // The schema knows two values of this field.
            60..63 => Action::Set(Fields::from([("status".to_owned(), format!("s{number}"))])),
            63..85 => Action::Read,
            _ => Action::ReadField(field(random)),
        }
    }

    fn reply(&mut self, client: &mut Client) -> Option<Reply> {
        match client.try_reply() {
            Ok(reply) => Some(reply),
            Err(error) => {
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) {
                    self.diary.faults.push(format!("{}: no answer came: {error}", self.actor));
                }
                None
            }
        }
    }

    /// Notes what the client was told about one command.
    fn told(&mut self, operation: &mut Operation, reply: &Reply) {
        let outcome = match (reply, &operation.action) {
            (Reply::Error(text), _) if text.ends_with("outcome unknown") => return,
            (Reply::Error(text), _) if text.contains("outcome unknown;") => return,
            (Reply::Error(text), _) if is_refusal(text) => Some(Outcome::Refused(text.clone())),
            (Reply::Error(_), _) => None,
            (_, Action::Set(fields)) if fields.contains_key("status") => None,
            (Reply::Integer(number), action) if action.is_write() => {
                Some(Outcome::Acknowledged(Answer::Number(*number)))
            }
            (Reply::Array(_) | Reply::Map(_), Action::Read) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let pairs = reply.pairs().into_iter();
                let fields = pairs.map(|(name, value)| (text(&name), text(value.bytes())));
                Some(Outcome::Acknowledged(Answer::Fields(fields.collect())))
            }
            (Reply::Bulk(value), Action::ReadField(_)) => {
                let value = String::from_utf8_lossy(value).into_owned();
                Some(Outcome::Acknowledged(Answer::Value(Some(value))))
            }
            (Reply::Nothing, Action::ReadField(_)) => {
                Some(Outcome::Acknowledged(Answer::Value(None)))
            }
            _ => None,
        };
        match outcome {
            Some(outcome) => {
                operation.replied_us = self.shared.now_us();
                operation.outcome = outcome;
            }
            None => self.diary.faults.push(format!("{operation}: was answered {reply:?}")),
        }
    }

    fn finish(&mut self, operations: Vec<Operation>) {
        let known = |o: &&Operation| matches!(o.outcome, Outcome::Acknowledged(_));
        let acknowledged = operations.iter().filter(known).count() as u64;
        self.acknowledged.fetch_add(acknowledged, Ordering::Relaxed);
        self.diary.operations.extend(operations);
    }
}

/// Tells whether an error says that nothing was done; EXPIRE has no place where Redis may lack profiles.
fn is_refusal(text: &str) -> bool {
    REFUSALS.iter().any(|word| text.starts_with(word)) || text.contains("cache_ttl")
}
