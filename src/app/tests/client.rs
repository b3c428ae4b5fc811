//! The clients of a run: each reads and writes a few profiles through the proxy, whatever happens,
//! and remembers what it asked and was told.
//!
//! Each connection logs in as a user of its own, so that the history says which connection made
//! which change.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::questions::{Arrival, Asked, Question, Reply, tells_of_arrival};
use super::random::Random;
use super::redis::pairs;
use super::rig::Rig;
use super::story::{Action, Answer, EVERY, Fields, Operation, Outcome, REFUSALS};
use super::watched::{self, Attempt};
use crate::outside::Stream;
use crate::resp::{Framer, elements_of, framed, integer, push_command, value};

/// Users for each client; a connection more than these stands at the end.
pub(super) const CONNECTIONS_MAX: u64 = 40;
pub(super) const PASSWORD: &str = "fortestsonly";
/// Profiles that all clients use.
const PROFILES: [&str; 3] = ["user:1", "user:2", "user:3"];
const SHORT: &str = "user:short";
/// No answer takes longer.
const ANSWER_BOUND: Duration = Duration::from_secs(20);

/// The profile that expires soon, of one life of the proxy.
fn short(start: u64) -> String {
    format!("{SHORT}{start}")
}

/// Every profile, after so many starts of the proxy.
pub(super) fn profiles(starts: u64) -> Vec<String> {
    let lasting = PROFILES.iter().map(|key| (*key).to_owned());
    let watched = [watched::KEY.to_owned()];
    lasting.chain((0..=starts).map(short)).chain(watched).collect()
}

/// What all clients of a run share.
pub(super) struct Shared {
    pub(super) rig: Rc<Rig>,
    pub(super) stop: Cell<bool>,
    pub(super) next_number: Cell<u64>,
    /// Acknowledged commands, by client.
    acknowledged: RefCell<BTreeMap<u64, u64>>,
    /// The latest near end that a client has asked for, of each lasting profile, and in which life of
    /// the proxy.
    ends: RefCell<BTreeMap<String, (u64, u64)>>,
}

impl Shared {
    pub(super) fn new(rig: Rc<Rig>) -> Shared {
        let (stop, next_number) = (Cell::new(false), Cell::new(1));
        let (acknowledged, ends) = (RefCell::default(), RefCell::default());
        Shared { rig, stop, next_number, acknowledged, ends }
    }

    /// Whether a profile may be about to expire by what a former life of the proxy knew. It says that a
    /// write in the very moment may be recorded wrongly then, so nobody writes.
    fn is_about_to_end(&self, key: &str) -> bool {
        let ends = self.ends.borrow();
        let end = ends.get(key).filter(|(start, _)| *start < self.rig.starts());
        end.is_some_and(|(_, at_ms)| self.rig.world.now_ms() < at_ms + 20)
    }

    /// A near end that the policy cannot take for one of its own.
    fn near_ms(&self, after_ms: u64) -> u64 {
        let at_ms = self.rig.world.now_ms() + after_ms;
        at_ms + u64::from(self.rig.retention.is_some_and(|retention| retention.is_marked(at_ms)))
    }

    /// A near end of a lasting profile.
    fn end(&self, key: &str, after_ms: u64) -> Action {
        let at_ms = self.near_ms(after_ms);
        let mut ends = self.ends.borrow_mut();
        let end = ends.entry(key.to_owned()).or_default();
        *end = (self.rig.starts(), end.1.max(at_ms));
        Action::Expire { at_ms }
    }

    /// Waits until each client has had answers from now on.
    pub(super) async fn everybody_is_served(&self) {
        let before = self.acknowledged.borrow().clone();
        let served =
            |(client, count): (&u64, &u64)| *count > before.get(client).copied().unwrap_or(0) + 3;
        loop {
            let now = self.acknowledged.borrow().clone();
            if now.len() as u64 == super::CLIENTS && now.iter().all(served) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Every user.
    pub(super) fn users() -> impl Iterator<Item = String> {
        let name = |client| (0..CONNECTIONS_MAX).map(move |number| format!("c{client}-{number}"));
        (0..=super::CLIENTS).flat_map(name)
    }
}

/// What one client brings home.
#[derive(Default)]
pub(super) struct Diary {
    pub(super) operations: Vec<Operation>,
    /// Replies that no command can have.
    pub(super) faults: Vec<String>,
    pub(super) questions: Vec<Question>,
    pub(super) arrivals: Vec<Arrival>,
    pub(super) attempts: Vec<Attempt>,
}

/// One client.
pub(super) struct Client {
    pub(super) shared: Rc<Shared>,
    name: u64,
    pub(super) random: Random,
    connections: u64,
    pub(super) actor: String,
    pub(super) diary: Diary,
}

/// A connection to the proxy.
pub(super) struct Talk {
    stream: Stream,
    input: Vec<u8>,
    /// What was sent last.
    last: String,
}

impl Talk {
    pub(super) fn over(stream: Stream) -> Talk {
        Talk { stream, input: Vec::new(), last: String::new() }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Option<()> {
        self.last = String::from_utf8_lossy(bytes).replace("\r\n", " ");
        self.stream.write_all(bytes).await.ok()
    }

    /// The bytes of the next reply; nothing when the connection is gone.
    pub(super) async fn reply(&mut self) -> Option<Vec<u8>> {
        let mut framer = Framer::default();
        loop {
            if let Some(length) = framer.frame(&self.input).expect("a proxy that speaks RESP") {
                return Some(self.input.drain(..length).collect());
            }
            match timeout(ANSWER_BOUND, self.stream.read_buf(&mut self.input)).await {
                Ok(Ok(1..)) => {}
                Ok(_) => return None,
                Err(_) => panic!("no answer came within {ANSWER_BOUND:?} to {:?}", self.last),
            }
        }
    }

    pub(super) async fn ask(&mut self, words: &[&str]) -> Option<Vec<u8>> {
        self.send(&encode(words)).await?;
        self.reply().await
    }
}

impl Client {
    pub(super) fn new(shared: &Rc<Shared>, name: u64, seed: u64) -> Client {
        let random = Random::seeded(seed ^ (name + 1).wrapping_mul(0x9E37_79B9));
        let (shared, diary) = (Rc::clone(shared), Diary::default());
        Client { shared, name, random, connections: 0, actor: String::new(), diary }
    }

    pub(super) async fn run(mut self) -> Diary {
        while !self.is_over() {
            let Some(mut talk) = self.connect().await else {
                sleep(Duration::from_millis(5)).await;
                continue;
            };
            while !self.is_over() && self.turn(&mut talk).await.is_some() {
                sleep(Duration::from_millis(1 + self.random.below(40))).await;
            }
        }
        self.diary
    }

    fn is_over(&self) -> bool {
        self.shared.stop.get() || self.connections >= CONNECTIONS_MAX
    }

    /// Logs in as the next user; every second connection speaks RESP3.
    async fn connect(&mut self) -> Option<Talk> {
        let mut talk = Talk::over(self.shared.rig.connect()?);
        self.actor = format!("c{}-{}", self.name, self.connections);
        let reply = match self.connections % 2 {
            0 => talk.ask(&["AUTH", &self.actor, PASSWORD]).await?,
            _ => talk.ask(&["HELLO", "3", "AUTH", &self.actor, PASSWORD]).await?,
        };
        if reply.starts_with(b"-") {
            let reply = String::from_utf8_lossy(&reply);
            self.diary.faults.push(format!("the log-in was answered {reply}"));
            return None;
        }
        self.connections += 1;
        Some(talk)
    }

    /// One command, a pipeline or a transaction; `None` when the connection is gone.
    async fn turn(&mut self, talk: &mut Talk) -> Option<()> {
        if self.shared.rig.watches && self.random.below(4) == 0 {
            return self.attempt(talk).await;
        }
        let (count, together) = match self.random.below(10) {
            0..5 => (1, false),
            5..8 => (2 + self.random.below(4), false),
            _ => (1 + self.random.below(3), true),
        };
        let mut operations = self.begin(count, together);
        let kept = self.converse(talk, &mut operations, together).await;
        let told = |operation: &&Operation| matches!(operation.outcome, Outcome::Acknowledged(_));
        let acknowledged = operations.iter().filter(told).count() as u64;
        *self.shared.acknowledged.borrow_mut().entry(self.name).or_default() += acknowledged;
        self.diary.operations.extend(operations);
        kept
    }

    /// Sends the commands, and behind them one whose reply only this client can get.
    async fn converse(
        &mut self,
        talk: &mut Talk,
        operations: &mut [Operation],
        together: bool,
    ) -> Option<()> {
        let mut bytes = if together { encode(&["MULTI"]) } else { Vec::new() };
        operations.iter().for_each(|operation| bytes.extend(encode(&operation.words())));
        if together {
            bytes.extend(encode(&["EXEC"]));
        }
        let question = (self.random.below(8) == 0).then(|| self.ask(operations));
        question.iter().for_each(|question| bytes.extend(encode(&question.asked.words())));
        let echo = format!("{} {}", self.actor, operations[0].number);
        bytes.extend(encode(&["ECHO", &echo]));
        talk.send(&bytes).await?;
        let mut in_doubt = false;
        match together {
            true => in_doubt = self.executed(talk, operations).await?,
            false => {
                for operation in operations {
                    let reply = talk.reply().await?;
                    self.told(operation, &reply);
                    in_doubt |= is_unknown(&reply);
                }
            }
        }
        if let Some(question) = question {
            let reply = talk.reply().await?;
            self.answered(question, &reply);
        }
        let reply = talk.reply().await?;
        if value(&reply) != Some(echo.as_bytes()) && !is_refusal(&reply) && !is_unknown(&reply) {
            self.fault(&echo, &reply);
        }
        // Under a new name no later write is taken for one that nobody knows of.
        (!in_doubt).then_some(())
    }

    /// Reads the replies from that to MULTI to that to EXEC; says whether the outcome is unknown.
    async fn executed(&mut self, talk: &mut Talk, operations: &mut [Operation]) -> Option<bool> {
        for _ in 0..=operations.len() {
            let reply = talk.reply().await?;
            if reply != b"+OK\r\n" && reply != b"+QUEUED\r\n" && !is_refusal(&reply) {
                self.fault("MULTI", &reply);
            }
        }
        let reply = talk.reply().await?;
        let Some(mut rest) = elements_of(&reply, operations.len() as u32) else {
            operations.iter_mut().for_each(|operation| self.told(operation, &reply));
            return Some(is_unknown(&reply));
        };
        for operation in operations {
            let (one, others) = rest.split_at(framed(rest, 1));
            self.told(operation, one);
            rest = others;
        }
        Some(false)
    }

    /// Makes a question behind these commands.
    fn ask(&mut self, operations: &[Operation]) -> Question {
        let (rig, last) = (&self.shared.rig, operations.last().expect("a command"));
        let key = match last.key.as_str() {
            EVERY => PROFILES[0],
            key => key,
        };
        Question {
            asked: Asked::draw(&mut self.random, key, rig),
            actor: self.actor.clone(),
            behind: last.number,
            is_whole: true,
            attempts: self.diary.attempts.len() as u64,
            invoked_us: rig.world.now_us(),
            replied_us: u64::MAX,
            answer: Reply::Number(0),
        }
    }

    /// Notes the answer to a question.
    fn answered(&mut self, mut question: Question, reply: &[u8]) {
        question.replied_us = self.shared.rig.world.now_us();
        if reply.starts_with(b"-") {
            let may_be = question.asked.may_be_refused(&String::from_utf8_lossy(reply));
            if !may_be && !is_refusal(reply) && !is_unknown(reply) {
                self.fault(&question.asked.words().join(" "), reply);
            }
            return;
        }
        let mut rest = reply;
        question.answer = Reply::read(&mut rest);
        question.is_whole = self.shared.rig.delivered().is_some();
        if tells_of_arrival(&question) {
            self.arrived(question.behind);
        }
        self.diary.questions.push(question);
    }

    /// Notes that the database has what this connection has written up to a command.
    fn arrived(&mut self, behind: u64) {
        let delivered = self.shared.rig.delivered();
        self.diary.arrivals.push(Arrival { actor: self.actor.clone(), behind, delivered });
    }

    pub(super) fn fault(&mut self, what: &str, reply: &[u8]) {
        let reply = String::from_utf8_lossy(reply);
        self.diary.faults.push(format!("{}: {what} was answered {reply}", self.actor));
    }

    fn begin(&mut self, count: u64, together: bool) -> Vec<Operation> {
        let first = self.shared.next_number.get();
        self.shared.next_number.set(first + count);
        let mut operations = Vec::new();
        for number in first..first + count {
            let (key, action) = self.draw(number);
            operations.push(Operation {
                number,
                actor: self.actor.clone(),
                action,
                key,
                transaction: together.then_some(first),
                invoked_us: self.shared.rig.world.now_us(),
                replied_us: u64::MAX,
                outcome: Outcome::Unknown,
            });
        }
        operations
    }

    fn draw(&mut self, number: u64) -> (String, Action) {
        if self.shared.rig.flushes.is_some_and(|of| self.random.below(of) == 0) {
            let name = if self.random.below(2) == 0 { "FLUSHALL" } else { "FLUSHDB" };
            return (EVERY.to_owned(), Action::Flush(name));
        }
        // A proxy does not know of expiries that were set before its start, and says so.
        let key = match self.random.below(6) {
            0 => short(self.shared.rig.starts()),
            other => PROFILES[self.lasting(other as usize)].to_owned(),
        };
        let key = match self.shared.is_about_to_end(&key) {
            true => short(self.shared.rig.starts()),
            false => key,
        };
        let action = self.action(&key, number);
        (key, action)
    }

    /// One of the profiles that all clients use. With `ttl` one of them is left alone for so long that
    /// it expires, then the next.
    fn lasting(&self, drawn: usize) -> usize {
        let rig = &self.shared.rig;
        match rig.retention {
            None => drawn % PROFILES.len(),
            Some(retention) => {
                let phase = rig.world.now_ms() / (retention.ttl_ms + 300);
                (phase as usize + drawn % (PROFILES.len() - 1)) % PROFILES.len()
            }
        }
    }

    fn action(&mut self, key: &str, number: u64) -> Action {
        let field = |random: &mut Random| ["a", "b", "c"][random.below(3) as usize].to_owned();
        let random = &mut self.random;
        let short = key.starts_with(SHORT);
        // `ttl` never moves what a client has chosen.
        let chosen = self.shared.rig.retention.is_none() || number.is_multiple_of(8);
        let reads = random.below(10) < self.shared.rig.reads;
        match if reads { 63 + random.below(37) } else { random.below(100) } {
            0..26 => {
                let names = 1 + random.below(2);
                let named = (0..names).map(|n| (field(random), format!("v{number}-{n}")));
                Action::Set(named.collect())
            }
            26..46 => Action::Add { field: "count".to_owned(), by: number as i64 },
            46..54 => Action::Remove(vec![field(random), format!("x{number}")]),
            54..58 => Action::Delete,
            // Where Redis may lack profiles these two are refused.
            58..60 if !short && chosen => Action::Expire { at_ms: 4_000_000_000_000 + number },
            58..68 if short => {
                Action::Expire { at_ms: self.shared.near_ms(20 + random.below(300)) }
            }
            // The schema knows two values of this field.
            60..63 => Action::Set(Fields::from([("status".to_owned(), format!("s{number}"))])),
            63..85 => Action::Read,
            85..88 if !short => Action::Persist,
            88..90 if !short => self.shared.end(key, 20 + random.below(300)),
            _ => Action::ReadField(field(random)),
        }
    }

    /// Notes what the client was told about one command.
    fn told(&mut self, operation: &mut Operation, reply: &[u8]) {
        if is_unknown(reply) || is_late(reply) {
            return;
        }
        let known = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let outcome = match (&operation.action, reply.first()) {
            _ if is_refusal(reply) => Some(Outcome::Refused(known(reply).trim().to_owned())),
            (_, Some(b'-')) => None,
            (Action::Set(fields), _) if fields.contains_key("status") => None,
            (Action::Read, Some(b'*' | b'%')) => {
                Some(Outcome::Acknowledged(Answer::Fields(pairs(reply))))
            }
            (Action::ReadField(_), Some(b'$' | b'_')) => {
                Some(Outcome::Acknowledged(Answer::Value(value(reply).map(known))))
            }
            (Action::Flush(_), _) if reply == b"+OK\r\n" => {
                Some(Outcome::Acknowledged(Answer::Done))
            }
            (action, Some(b':')) if action.is_write() => {
                integer(reply).map(|number| Outcome::Acknowledged(Answer::Number(number)))
            }
            _ => None,
        };
        match outcome {
            Some(outcome) => {
                let before = operation.clone();
                operation.replied_us = self.shared.rig.world.now_us();
                operation.outcome = outcome;
                // When the journal cannot be written any more, what writes in doubt have done can
                // be seen, and nobody can say whether it will last.
                if operation.only_observes() && self.shared.rig.is_poisoned() {
                    *operation = before;
                }
                // Flushes are no writes of a kind.
                let waits = operation.must_be_recorded() && operation.key != EVERY;
                if waits && self.shared.rig.acks {
                    self.arrived(operation.number);
                }
            }
            None => self.fault(&operation.to_string(), reply),
        }
    }
}

pub(super) fn is_refusal(reply: &[u8]) -> bool {
    let text = String::from_utf8_lossy(reply.strip_prefix(b"-").unwrap_or_default());
    REFUSALS.iter().any(|word| text.starts_with(word)) || text.contains("cache_ttl")
}

pub(super) fn is_unknown(reply: &[u8]) -> bool {
    reply.starts_with(b"-") && String::from_utf8_lossy(reply).contains("outcome unknown")
}

/// Whether it is journaled, and the database was too late.
pub(super) fn is_late(reply: &[u8]) -> bool {
    String::from_utf8_lossy(reply).starts_with("-ERR the write is applied and journaled, but")
}

pub(super) fn encode(words: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    push_command(&mut bytes, words, |_, _| {});
    bytes
}
