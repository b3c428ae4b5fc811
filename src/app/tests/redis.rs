//! A Redis: the embedded store behind connections, with transactions, the names of connections, and
//! what a restart leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::connections::Connections;
use super::schedule::Persistence;
use super::story::{Fields, Profile};
use super::tracking::Tracking;
use super::world::World;
use crate::engine::Engine;
use crate::outside::tests::{Life, Stream, Wire, connection};
use crate::resp::{
    Elements, Limits, Protocol, ReplyWriter, Request, Scanner, integer, parse_integer, push_command,
};

/// One Redis, and the machine that it runs on.
#[derive(Clone)]
pub(super) struct Redis(Rc<RefCell<Server>>);

struct Server {
    world: Rc<World>,
    engine: Engine,
    /// It removes a profile now and then, between two commands that are not in a transaction.
    evicts: bool,
    /// The number of the process.
    start: u64,
    /// When it was flushed past a proxy that cannot know before its next link.
    lapse_us: Option<u64>,
    /// Such times, each with the moment in which the proxy was told.
    lapses: Vec<(u64, u64)>,
    /// How often each of the commands was run that its statistics are asked for.
    calls: BTreeMap<String, u64>,
    away: bool,
    connections: Connections,
    tracking: Tracking,
    dump: Vec<(String, Profile)>,
    accepted: mpsc::Sender<(u64, Stream)>,
}

/// What a connection remembers.
struct Talk {
    redis: Redis,
    id: u64,
    protocol: Protocol,
    queue: Option<Vec<Vec<u8>>>,
}

impl Redis {
    pub(super) fn new(world: &Rc<World>, evicts: bool) -> Redis {
        let (accepted, mut streams) = mpsc::channel(64);
        let redis = Redis(Rc::new(RefCell::new(Server {
            world: Rc::clone(world),
            engine: Engine::new(),
            evicts,
            start: 1,
            lapse_us: None,
            lapses: Vec::new(),
            calls: BTreeMap::new(),
            away: false,
            connections: Connections::default(),
            tracking: Tracking::default(),
            dump: Vec::new(),
            accepted,
        })));
        let server = redis.clone();
        spawn_local(async move {
            while let Some((id, stream)) = streams.recv().await {
                spawn_local(server.clone().serve(id, stream));
            }
        });
        redis
    }

    pub(super) fn connect(&self, life: &Arc<Life>) -> io::Result<Stream> {
        let mut server = self.0.borrow_mut();
        if server.away {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs, wire) = connection(life);
        let id = server.connections.open(wire);
        let _ = server.accepted.try_send((id, theirs));
        Ok(ours)
    }

    /// The connections that are open.
    pub(super) fn wires(&self) -> Vec<Wire> {
        self.0.borrow().connections.wires()
    }

    pub(super) fn wires_of_news(&self) -> Vec<Wire> {
        self.0.borrow().connections.wires_of_news()
    }

    /// Ends the process; what it has not been sent yet is lost.
    pub(super) fn kill(&self) {
        let mut server = self.0.borrow_mut();
        server.away = true;
        server.connections.kill_all();
        let Server { tracking, engine, .. } = &mut *server;
        tracking.end_all(engine);
    }

    /// Starts a new process.
    pub(super) fn start(&self, persistence: Persistence) {
        let mut server = self.0.borrow_mut();
        if !server.away {
            return;
        }
        server.away = false;
        server.start += 1;
        server.calls.clear();
        server.end_lapse();
        if persistence == Persistence::Kept {
            return;
        }
        let mut engine = Engine::new();
        if persistence == Persistence::Stale {
            for (key, profile) in &server.dump {
                let pairs = profile.fields.iter();
                let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
                engine.load(key.as_bytes(), pairs, profile.expires_ms);
            }
        }
        server.engine = engine;
    }

    /// Keeps what it holds for a later start.
    pub(super) fn save(&self, keys: &[String]) {
        let dump = keys.iter().filter_map(|key| Some((key.clone(), self.held(key)?))).collect();
        self.0.borrow_mut().dump = dump;
    }

    /// Flushes it past the proxy. `cuts` ends all connections in the same moment.
    pub(super) fn flush(&self, cuts: bool) {
        let mut server = self.0.borrow_mut();
        if server.away {
            return;
        }
        let now_ms = server.world.now_ms();
        server.run(now_ms, &["FLUSHALL"]);
        if cuts {
            server.connections.cut_all();
        }
        // What Redis may lack is asked for anyway.
        if !cuts && !server.evicts && server.lapse_us.is_none() {
            server.lapse_us = Some(server.world.now_us());
        }
    }

    /// Ends what the proxy cannot know, by ending its links.
    pub(super) fn end_lapse(&self) {
        let server = self.0.borrow();
        if server.lapse_us.is_some() {
            server.connections.cut_all();
        }
    }

    /// The spans of time in which it had lost everything while the proxy could not know.
    pub(super) fn lapses(&self) -> Vec<(u64, u64)> {
        self.0.borrow().lapses.clone()
    }

    /// What it holds under a key, asked past the proxy.
    pub(super) fn held(&self, key: &str) -> Option<Profile> {
        let mut server = self.0.borrow_mut();
        let now_ms = server.world.now_ms();
        let reply = server.run(now_ms, &["HGETALL", key]);
        let expires_ms = server.engine.expires_ms(now_ms, key.as_bytes())?;
        Some(Profile { fields: pairs(&reply), expires_ms })
    }

    async fn serve(self, id: u64, mut stream: Stream) {
        let world = Rc::clone(&self.0.borrow().world);
        let mut talk = Talk { redis: self.clone(), id, protocol: Protocol::Resp2, queue: None };
        let mut scanner = Scanner::new(Limits::default());
        scanner.authenticated(true);
        let mut input = Vec::new();
        let Some(outbox) = self.0.borrow().connections.outbox(id) else { return };
        loop {
            tokio::select! {
                biased;
                read = stream.read_buf(&mut input) => {
                    let Ok(1..) = read else { break };
                }
                () = outbox.filled.notified() => {
                    if outbox.is_empty() {
                        continue;
                    }
                }
            }
            while let Ok(Some(length)) = scanner.scan(&input) {
                let mut output = Vec::new();
                talk.take(&scanner.request(&input[..length]), &mut output);
                outbox.reply(&output);
                input.drain(..length);
            }
            world.pause(2).await;
            let output = outbox.take();
            if stream.write_all(&output).await.is_err() {
                break;
            }
            world.pause(1).await;
        }
        let mut server = self.0.borrow_mut();
        server.connections.close(id);
        server.tracking.end(id);
        server.unwatch(id);
    }
}

impl Server {
    /// Does what the script for `ttl` does, the one that is sent here: it moves the expiry of a profile
    /// that has none, or one that bears the mark.
    fn retain(&mut self, now_ms: u64, request: &Request<'_>) -> i64 {
        let number = |at| parse_integer(request.argument(at)).expect("a number") as u64;
        let (key, at, unit, mark, tick) =
            (request.argument(3).to_vec(), number(4), number(5), number(6), number(7));
        let moves = match self.engine.expires_ms(now_ms, &key) {
            None => false,
            Some(None) => true,
            Some(Some(old)) => old + tick <= at && old % unit == mark,
        };
        if !moves {
            return -1;
        }
        self.engine.expire_at(now_ms, &key, at);
        at as i64
    }

    /// Does what the script does that looks whether a flush has left any profile.
    fn has_profile(&mut self, now_ms: u64, request: &Request<'_>) -> i64 {
        let ignored: Vec<&[u8]> = request.arguments(5).collect();
        let found = self.run(now_ms, &["KEYS", "user:*"]);
        let is_profile = |key: &[u8]| key.iter().filter(|byte| **byte == b':').count() == 1;
        let mut keys = Elements::of(&found);
        i64::from(keys.any(|key| is_profile(key) && !ignored.contains(&key)))
    }

    /// Does what the script of the clients does (`watched::SCRIPT`).
    fn add_one(&mut self, now_ms: u64, key: &str, field: &str) -> i64 {
        let count = self.run(now_ms, &["HINCRBY", key, "count", "1"]);
        self.run(now_ms, &["HSET", key, field, "1"]);
        integer(&count).expect("a number")
    }

    /// Ends what a connection watches; tells whether any of it was changed.
    fn unwatch(&mut self, id: u64) -> bool {
        let now_ms = self.world.now_ms();
        self.engine.unwatch(now_ms, id)
    }

    /// Counts the calls of what removes many keys at once, and tells of it.
    fn count(&mut self, name: &str) {
        if ["flushall", "flushdb"].contains(&name) {
            *self.calls.entry(name.to_owned()).or_default() += 1;
            self.tracking.tell_of_flush(&mut self.engine, &self.connections);
        }
    }

    fn tell_of_changes(&mut self) {
        let now_ms = self.world.now_ms();
        self.tracking.tell_of_changes(now_ms, &mut self.engine, &self.connections);
    }

    /// Whether the proxy uses a connection already, so that it acts on an answer only a moment later.
    fn is_used(&self, id: u64) -> bool {
        self.tracking.is_tracker(id) || self.connections.hears_news(id)
    }

    fn end_lapse(&mut self) {
        let now_us = self.world.now_us();
        self.lapses.extend(self.lapse_us.take().map(|from_us| (from_us, now_us)));
    }

    /// What INFO tells of these sections; without any, of those that Redis thinks of by itself.
    fn info(&self, named: &[String]) -> String {
        let every = named.iter().any(|name| ["all", "everything"].contains(&name.as_str()));
        let told = |name: &&&str| match named.is_empty() {
            true => **name != "commandstats",
            false => every || named.iter().any(|one| one == **name),
        };
        let sections = ["server", "memory", "replication", "commandstats"];
        sections.iter().filter(told).map(|name| self.section(name)).collect()
    }

    fn section(&self, name: &str) -> String {
        let run = self.start;
        match name {
            "server" => format!("# Server\r\nredis_version:7.0.15\r\nrun_id:{run:040}\r\n"),
            "memory" => "# Memory\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n".to_owned(),
            "replication" => {
                format!("# Replication\r\nrole:master\r\nmaster_replid:{run:040}\r\n")
            }
            _ => {
                let calls = self.calls.iter();
                let lines = calls.map(|(name, calls)| {
                    format!("cmdstat_{name}:calls={calls},usec=9,usec_per_call=1.00\r\n")
                });
                format!("# Commandstats\r\n{}", lines.collect::<String>())
            }
        }
    }

    /// Runs a command past all connections.
    fn run(&mut self, now_ms: u64, words: &[&str]) -> Vec<u8> {
        let (mut request, mut reply) = (Vec::new(), Vec::new());
        push_command(&mut request, words, |_, _| {});
        self.count(&words[0].to_ascii_lowercase());
        with_request(&request, |request| {
            let mut writer = ReplyWriter::new(&mut reply, Protocol::Resp2);
            self.engine.execute(now_ms, &request, &mut writer);
        });
        reply
    }

    /// Removes one of the profiles that all clients use, by chance.
    fn evict(&mut self) {
        let chance = if self.evicts { self.world.below(12) } else { 0 };
        if (1..=3).contains(&chance) {
            self.run(self.world.now_ms(), &["UNLINK", &format!("user:{chance}")]);
            self.tell_of_changes();
        }
    }
}

impl Talk {
    /// Takes a request: at once, or for EXEC.
    fn take(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        if self.queue.is_none() {
            self.redis.0.borrow_mut().evict();
        }
        let name = request.argument(0).to_ascii_lowercase();
        let mut reply = ReplyWriter::new(output, self.protocol);
        match (name.as_slice(), &mut self.queue) {
            (b"multi", None) => {
                self.queue = Some(Vec::new());
                reply.ok();
            }
            (b"reset", _) => {
                self.queue = None;
                self.protocol = Protocol::Resp2;
                let mut server = self.redis.0.borrow_mut();
                server.unwatch(self.id);
                server.tracking.end(self.id);
                server.connections.rename(self.id, "");
                reply.simple("RESET");
            }
            (b"discard", queue @ Some(_)) => {
                *queue = None;
                self.redis.0.borrow_mut().unwatch(self.id);
                reply.ok();
            }
            (b"exec", queue @ Some(_)) => {
                let queue = queue.take().unwrap_or_default();
                if self.redis.0.borrow_mut().unwatch(self.id) {
                    return reply.null_array();
                }
                reply.array(queue.len());
                for bytes in queue {
                    with_request(&bytes, |request| self.run(&request, output));
                }
            }
            (_, Some(queue)) => {
                queue.push(request.bytes().to_vec());
                reply.simple("QUEUED");
            }
            _ => self.run(request, output),
        }
        if self.queue.is_none() && name != b"client" {
            self.redis.0.borrow_mut().tracking.ends_caching(self.id);
        }
    }

    fn run(&mut self, request: &Request<'_>, output: &mut Vec<u8>) {
        let mut server = self.redis.0.borrow_mut();
        let now_ms = server.world.now_ms();
        let words: Vec<String> = (0..2)
            .map(|at| String::from_utf8_lossy(request.argument(at)).to_ascii_lowercase())
            .collect();
        server.count(&words[0]);
        if words[0] == "hello" {
            let version = request.argument(1);
            self.protocol = if version == b"3" { Protocol::Resp3 } else { Protocol::Resp2 };
            server.tracking.speaks(self.id, self.protocol);
        }
        let mut reply = ReplyWriter::new(output, self.protocol);
        let text = |at: usize| String::from_utf8_lossy(request.argument(at)).into_owned();
        match (words[0].as_str(), words[1].as_str()) {
            ("hello", _) => {
                reply.map(1);
                reply.bulk(b"proto");
                reply.integer(if self.protocol == Protocol::Resp3 { 3 } else { 2 });
            }
            ("ping", _) => reply.simple("PONG"),
            ("echo", _) => reply.bulk(request.argument(1)),
            ("info", _) => {
                let named: Vec<String> =
                    (1..request.len()).map(|at| text(at).to_ascii_lowercase()).collect();
                reply.verbatim(server.info(&named).as_bytes());
                if named == ["commandstats"] && !server.is_used(self.id) {
                    server.end_lapse();
                }
            }
            ("client", "id") => reply.integer(self.id as i64),
            ("client", "setname") => {
                server.connections.rename(self.id, &text(2));
                reply.ok();
            }
            ("client", "tracking" | "caching") => {
                let Server { tracking, connections, .. } = &mut *server;
                tracking.switch((self.id, self.protocol), request, connections, &mut reply);
            }
            ("client", "list") => reply.verbatim(server.connections.list().as_bytes()),
            ("client", "kill") => {
                let killed = text(3).parse().is_ok_and(|id| server.connections.kill(id));
                reply.integer(i64::from(killed));
            }
            ("watch", _) => {
                request.arguments(1).for_each(|key| server.engine.watch(now_ms, self.id, key));
                reply.ok();
            }
            ("unwatch", _) => {
                server.unwatch(self.id);
                reply.ok();
            }
            ("eval", script) if script.contains("hincrby") => {
                reply.integer(server.add_one(now_ms, &text(3), &text(4)));
            }
            ("eval", script) if script.contains("scan") => {
                reply.integer(server.has_profile(now_ms, request));
            }
            ("eval", _) => reply.integer(server.retain(now_ms, request)),
            _ => server.engine.execute(now_ms, request, &mut reply),
        }
        // What it has changed itself is told before what it has fetched is remembered.
        server.tell_of_changes();
        let Server { tracking, engine, .. } = &mut *server;
        tracking.remember(now_ms, self.id, request, engine);
    }
}

/// Reads whole request bytes.
fn with_request(bytes: &[u8], act: impl FnOnce(Request<'_>)) {
    let mut scanner = Scanner::new(Limits::default());
    scanner.authenticated(true);
    let length = scanner.scan(bytes).expect("a request").expect("a whole request");
    act(scanner.request(&bytes[..length]));
}

/// The pairs of a reply to HGETALL.
pub(super) fn pairs(reply: &[u8]) -> Fields {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut elements = Elements::of(reply);
    let mut pairs = Fields::new();
    while let (Some(name), Some(value)) = (elements.next(), elements.next()) {
        pairs.insert(text(name), text(value));
    }
    pairs
}
