//! The embedded store: answers instead of a Redis when the upstream is `embedded`.
//!
//! It holds profiles (hashes) in memory, belongs to one thread, and answers each command that it
//! has byte for byte as Redis 7.0 does; any other command of the table gets an error that names
//! `--upstream`. It keeps nothing on disk: the profiles are put in place by `load` at start-up.
//!
//! Where Redis promises no order or is random, so is this, in its own way: `KEYS`, `SCAN`,
//! `HRANDFIELD` with a count, and hashes beyond Redis's listpack limits (those keep the order in
//! which fields came up to 128 fields, and mostly beyond). `HRANDFIELD` refuses a negative count
//! whose reply would exceed 64 MiB, where Redis would run on into its memory limit.

mod arguments;
mod command_info;
mod expire;
mod glob;
mod hash;
mod hash_random;
mod hash_reads;
mod hash_writes;
mod keyspace;
mod long_double;
mod random;
mod scan;
mod server;
mod slab;
mod store;
mod subcommands;
mod watch;
mod wide;

#[cfg(test)]
mod tests;

use crate::command::{self, Spec, TABLE};
use crate::resp::{ReplyWriter, Request};

use arguments::c_string;
use random::Random;
use store::Store;

/// Bytes of a command name that an error quotes, and bytes of quoted arguments.
const QUOTED_BYTES_MAX: usize = 128;

/// What a handler did: it wrote its reply, or wrote nothing and says with which error to answer.
type Answer = Result<(), &'static str>;
type Handler = fn(&mut Engine, &Call<'_>, &mut ReplyWriter<'_>) -> Answer;

/// One command on its way through a handler.
struct Call<'a> {
    now_ms: u64,
    spec: &'static Spec,
    request: Request<'a>,
}

impl<'a> Call<'a> {
    fn len(&self) -> usize {
        self.request.len()
    }

    fn argument(&self, index: usize) -> &'a [u8] {
        self.request.argument(index)
    }

    /// Returns argument 1, which is the key of every command that has just one.
    fn key(&self) -> &'a [u8] {
        self.request.argument(1)
    }
}

/// The store of one thread: profiles by key, and the commands on them.
pub struct Engine {
    store: Store,
    random: Random,
    /// By the index of the command table.
    handlers: Vec<Option<Handler>>,
    /// Slots that a command collects before it can say how many there are; empty between commands.
    found: Vec<usize>,
    about: server::About,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl Engine {
    /// Makes a store without profiles.
    #[must_use]
    pub fn new() -> Self {
        let mut random = Random::new();
        let handlers = TABLE.iter().map(|spec| handler(spec.name)).collect();
        let about = server::About::new(&mut random);
        Self { store: Store::new(), random, handlers, found: Vec::new(), about }
    }

    /// Executes one command that has passed the proxy's checks; writes exactly one reply.
    pub fn execute(&mut self, now_ms: u64, request: &Request<'_>, reply: &mut ReplyWriter<'_>) {
        self.about.commands_total += 1;
        let Some(spec) = command::find(request.argument(0)) else {
            return unknown_command(request, reply);
        };
        if !spec.takes(request.len()) {
            return wrong_arguments(spec.name, reply);
        }
        let Some(handler) = self.handlers.get(row(spec)).copied().flatten() else {
            return not_here(spec.name, reply);
        };
        let call = Call { now_ms, spec, request: *request };
        if let Err(text) = handler(self, &call, reply) {
            reply.error(text);
        }
    }

    /// Puts a profile in place at start-up, instead of one that is there; one without fields is
    /// none. `expires_ms` is Unix time in milliseconds.
    pub fn load<'a>(
        &mut self,
        key: &[u8],
        fields: impl Iterator<Item = (&'a [u8], &'a [u8])>,
        expires_ms: Option<u64>,
    ) {
        if let Some(slot) = self.store.find(0, key) {
            self.store.remove(slot);
        }
        let capacity = fields.size_hint().0;
        self.store.change(self.about.started_ms, key, capacity, |profile| {
            for (name, value) in fields {
                profile.set(name, value);
            }
        });
        if let Some(slot) = self.store.find(0, key) {
            self.store.set_expiry(slot, expires_ms);
        }
    }

    /// Returns the value of a field, for rules that depend on what is stored.
    pub fn field(&mut self, now_ms: u64, key: &[u8], field: &[u8]) -> Option<&[u8]> {
        self.store.peek(now_ms, key)?.fields.value(field)
    }

    /// Returns when a profile expires (Unix milliseconds): `None` when there is no such profile,
    /// `Some(None)` when it does not expire.
    pub fn expires_ms(&mut self, now_ms: u64, key: &[u8]) -> Option<Option<u64>> {
        Some(self.store.peek(now_ms, key)?.expires_ms())
    }

    /// Lets a profile expire at this time (Unix milliseconds); nothing when there is none.
    pub fn expire_at(&mut self, now_ms: u64, key: &[u8], expires_ms: u64) {
        if let Some(slot) = self.store.find(now_ms, key) {
            self.store.set_expiry(slot, Some(expires_ms));
        }
    }

    /// Lets a client watch a key until [`Self::unwatch`].
    pub fn watch(&mut self, now_ms: u64, client: u64, key: &[u8]) {
        // One that has expired is gone before it is watched, so its end is no change.
        self.store.find(now_ms, key);
        self.store.watches.watch(client, key);
    }

    /// Lets go what a client watches; tells whether any of it was changed meanwhile, or has expired.
    pub fn unwatch(&mut self, now_ms: u64, client: u64) -> bool {
        for key in self.store.watches.keys_of(client) {
            self.store.find(now_ms, &key);
        }
        self.store.watches.unwatch(client)
    }

    /// Removes expired profiles that nobody asks for: looks at no more than `keys_max` keys, goes
    /// on where the last call stopped, and returns how many it removed.
    pub fn sweep(&mut self, now_ms: u64, keys_max: usize) -> usize {
        self.store.sweep(now_ms, keys_max)
    }

    /// Tells how many clients there are, for `INFO clients`.
    pub fn set_connected_clients(&mut self, clients: usize) {
        self.about.clients = clients;
    }

    /// Returns how many profiles there are, expired ones included until they are taken away.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Tells whether there are no profiles.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Estimates the memory that the profiles take, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }
}

/// Returns where in the table a row stands, by its address: a search by name costs more than most
/// commands do.
fn row(spec: &'static Spec) -> usize {
    let offset = std::ptr::from_ref(spec).addr().wrapping_sub(TABLE.as_ptr().addr());
    offset / size_of::<Spec>()
}

/// Returns who answers a command of the table.
fn handler(name: &str) -> Option<Handler> {
    Some(match name {
        "command" => Engine::command,
        "config" => Engine::config,
        "dbsize" => Engine::dbsize,
        "del" | "unlink" => Engine::del,
        "exists" => Engine::exists,
        "expire" => Engine::expire,
        "expireat" => Engine::expireat,
        "expiretime" => Engine::expiretime,
        "flushall" | "flushdb" => Engine::flush,
        "hdel" => Engine::hdel,
        "hexists" => Engine::hexists,
        "hget" => Engine::hget,
        "hgetall" => Engine::hgetall,
        "hincrby" => Engine::hincrby,
        "hincrbyfloat" => Engine::hincrbyfloat,
        "hkeys" => Engine::hkeys,
        "hlen" => Engine::hlen,
        "hmget" => Engine::hmget,
        "hmset" => Engine::hmset,
        "hrandfield" => Engine::hrandfield,
        "hscan" => Engine::hscan,
        "hset" => Engine::hset,
        "hsetnx" => Engine::hsetnx,
        "hstrlen" => Engine::hstrlen,
        "hvals" => Engine::hvals,
        "info" => Engine::info,
        "keys" => Engine::keys,
        "memory" => Engine::memory,
        "object" => Engine::object,
        "persist" => Engine::persist,
        "pexpire" => Engine::pexpire,
        "pexpireat" => Engine::pexpireat,
        "pexpiretime" => Engine::pexpiretime,
        "pttl" => Engine::pttl,
        "randomkey" => Engine::randomkey,
        "scan" => Engine::scan,
        "time" => Engine::time,
        "touch" => Engine::touch,
        "ttl" => Engine::ttl,
        "type" => Engine::key_type,
        _ => return None,
    })
}

/// Answers a command of Redis that this store does not have; `name` is from our own tables.
fn not_here(name: &str, reply: &mut ReplyWriter<'_>) {
    let hint = "start with --upstream redis://host:port to use every command of Redis";
    reply.error(&format!("ERR the embedded store has no '{name}': {hint}"));
}

fn wrong_arguments(name: &str, reply: &mut ReplyWriter<'_>) {
    reply.error(&format!("ERR wrong number of arguments for '{name}' command"));
}

/// Answers a name that no table has, as `commandCheckExistence` of Redis 7.0 does.
fn unknown_command(request: &Request<'_>, reply: &mut ReplyWriter<'_>) {
    let mut text = b"ERR unknown command '".to_vec();
    push_quoted(&mut text, request.argument(0), QUOTED_BYTES_MAX);
    text.extend_from_slice(b"', with args beginning with: ");
    let arguments_start = text.len();
    for argument in request.arguments(1) {
        let quoted = text.len() - arguments_start;
        if quoted >= QUOTED_BYTES_MAX {
            break;
        }
        text.push(b'\'');
        push_quoted(&mut text, argument, QUOTED_BYTES_MAX - quoted);
        text.extend_from_slice(b"' ");
    }
    reply.error_bytes(&text);
}

fn push_quoted(text: &mut Vec<u8>, argument: &[u8], bytes_max: usize) {
    let argument = c_string(argument);
    text.extend_from_slice(argument.get(..bytes_max).unwrap_or(argument));
}
