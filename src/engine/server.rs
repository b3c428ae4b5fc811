//! What the store tells about itself: INFO, CONFIG GET, TIME, OBJECT and MEMORY.
//!
//! It tells only what it knows. `INFO keyspace` counts all keys of the store as database 0, expired
//! ones included until they are taken away.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::resp::ReplyWriter;

use super::arguments::{SYNTAX, integer, is_word};
use super::random::Random;
use super::subcommands::Subcommand;
use super::{Answer, Call, Engine, glob};

/// The Redis whose answers these are; clients choose what they dare to send by it.
const REDIS_VERSION: &str = "7.0.15";

/// Settings that clients and tools ask for, with the values that describe this store.
const SETTINGS: &[(&str, &str)] = &[
    ("appendonly", "no"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
];

/// Names and values of one section.
type Lines<'a> = &'a [(&'a str, &'a dyn std::fmt::Display)];
/// Writes one section of INFO; the number is the time in Unix milliseconds.
type Section = fn(&Engine, u64, &mut String);

const SECTIONS: &[(&str, Section)] = &[
    ("server", Engine::info_server),
    ("clients", Engine::info_clients),
    ("memory", Engine::info_memory),
    ("persistence", Engine::info_persistence),
    ("stats", Engine::info_stats),
    ("replication", Engine::info_replication),
    ("keyspace", Engine::info_keyspace),
];

const CONFIG: &[Subcommand] = &[
    Subcommand { name: "config|get", arity: -3, handler: Some(Engine::config_get) },
    Subcommand { name: "config|help", arity: 2, handler: None },
    Subcommand { name: "config|resetstat", arity: 2, handler: None },
    Subcommand { name: "config|rewrite", arity: 2, handler: None },
    Subcommand { name: "config|set", arity: -4, handler: None },
];

const MEMORY: &[Subcommand] = &[
    Subcommand { name: "memory|doctor", arity: 2, handler: None },
    Subcommand { name: "memory|help", arity: 2, handler: None },
    Subcommand { name: "memory|malloc-stats", arity: 2, handler: None },
    Subcommand { name: "memory|purge", arity: 2, handler: None },
    Subcommand { name: "memory|stats", arity: 2, handler: None },
    Subcommand { name: "memory|usage", arity: -3, handler: Some(Engine::memory_usage) },
];

const OBJECT: &[Subcommand] = &[
    Subcommand { name: "object|encoding", arity: 3, handler: Some(Engine::object_encoding) },
    Subcommand { name: "object|freq", arity: 3, handler: Some(Engine::object_freq) },
    Subcommand { name: "object|help", arity: 2, handler: Some(Engine::object_help) },
    Subcommand { name: "object|idletime", arity: 3, handler: Some(Engine::object_idletime) },
    Subcommand { name: "object|refcount", arity: 3, handler: Some(Engine::object_refcount) },
];

const OBJECT_HELP: &[&str] = &[
    "OBJECT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
    "ENCODING <key>",
    "    Return the kind of internal representation used in order to store the value",
    "    associated with a <key>.",
    "FREQ <key>",
    "    Return the access frequency index of the <key>. The returned integer is",
    "    proportional to the logarithm of the recent access frequency of the key.",
    "IDLETIME <key>",
    "    Return the idle time of the <key>, that is the approximated number of",
    "    seconds elapsed since the last access to the key.",
    "REFCOUNT <key>",
    "    Return the number of references of the value associated with the specified",
    "    <key>.",
    "HELP",
    "    Prints this help.",
];

/// What does not come from the profiles.
pub(super) struct About {
    pub(super) started_ms: u64,
    /// 40 hexadecimal digits, different in each process.
    run_id: String,
    pub(super) clients: usize,
    pub(super) commands_total: u64,
}

impl About {
    pub(super) fn new(random: &mut Random) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut run_id = String::new();
        while run_id.len() < 40 {
            let _ = write!(run_id, "{:08x}", random.number() as u32);
        }
        Self { started_ms: since.as_millis() as u64, run_id, clients: 0, commands_total: 0 }
    }
}

impl Engine {
    /// INFO [section ...]
    pub(super) fn info(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut text = String::new();
        for (name, write) in SECTIONS {
            let mut wanted = call.request.arguments(1);
            let is_wanted = |section| {
                ["all", "everything", "default", name].iter().any(|word| is_word(section, word))
            };
            if call.len() == 1 || wanted.any(is_wanted) {
                if !text.is_empty() {
                    text.push_str("\r\n");
                }
                write(self, call.now_ms, &mut text);
            }
        }
        reply.verbatim(text.as_bytes());
        Ok(())
    }

    fn info_server(&self, now_ms: u64, text: &mut String) {
        let uptime_s = now_ms.saturating_sub(self.about.started_ms) / 1000;
        let lines: Lines<'_> = &[
            ("redis_version", &REDIS_VERSION),
            ("redis_mode", &"standalone"),
            ("os", &std::env::consts::OS),
            ("arch_bits", &usize::BITS),
            ("process_id", &std::process::id()),
            ("run_id", &self.about.run_id),
            ("server_time_usec", &now_ms.saturating_mul(1000)),
            ("uptime_in_seconds", &uptime_s),
            ("uptime_in_days", &(uptime_s / 86_400)),
        ];
        section(text, "Server", lines);
    }

    fn info_clients(&self, _now_ms: u64, text: &mut String) {
        let lines: Lines<'_> = &[
            ("connected_clients", &self.about.clients),
            ("blocked_clients", &0),
            ("tracking_clients", &0),
        ];
        section(text, "Clients", lines);
    }

    fn info_memory(&self, _now_ms: u64, text: &mut String) {
        let lines: Lines<'_> = &[
            ("used_memory", &self.bytes()),
            ("used_memory_human", &human(self.bytes())),
            ("used_memory_dataset", &self.bytes()),
            ("maxmemory", &0),
            ("maxmemory_human", &"0B"),
            ("maxmemory_policy", &"noeviction"),
        ];
        section(text, "Memory", lines);
    }

    fn info_persistence(&self, _now_ms: u64, text: &mut String) {
        let lines: Lines<'_> = &[
            ("loading", &0),
            ("async_loading", &0),
            ("rdb_bgsave_in_progress", &0),
            ("rdb_last_bgsave_status", &"ok"),
            ("aof_enabled", &0),
            ("aof_rewrite_in_progress", &0),
        ];
        section(text, "Persistence", lines);
    }

    fn info_stats(&self, _now_ms: u64, text: &mut String) {
        let lines: Lines<'_> = &[
            ("total_commands_processed", &self.about.commands_total),
            ("expired_keys", &self.store.counts.expired),
            ("evicted_keys", &0),
            ("keyspace_hits", &self.store.counts.hits),
            ("keyspace_misses", &self.store.counts.misses),
        ];
        section(text, "Stats", lines);
    }

    fn info_replication(&self, _now_ms: u64, text: &mut String) {
        let lines: Lines<'_> = &[
            ("role", &"master"),
            ("connected_slaves", &0),
            ("master_replid", &self.about.run_id),
            ("master_repl_offset", &0),
        ];
        section(text, "Replication", lines);
    }

    fn info_keyspace(&self, _now_ms: u64, text: &mut String) {
        section(text, "Keyspace", &[]);
        if !self.is_empty() {
            let (keys, expires) = (self.len(), self.store.expiring());
            let _ = write!(text, "db0:keys={keys},expires={expires},avg_ttl=0\r\n");
        }
    }

    /// TIME; the engine's clock has milliseconds, so the last three digits are zero.
    pub(super) fn time(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut digits = itoa::Buffer::new();
        reply.array(2);
        reply.bulk(digits.format(call.now_ms / 1000).as_bytes());
        reply.bulk(digits.format(call.now_ms % 1000 * 1000).as_bytes());
        Ok(())
    }

    pub(super) fn config(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.subcommand(CONFIG, call, reply)
    }

    fn config_get(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let asked_for = |name: &str| {
            let mut patterns = call.request.arguments(2);
            patterns.any(|pattern| glob::matches_any_case(pattern, name.as_bytes()))
        };
        reply.map(SETTINGS.iter().filter(|(name, _)| asked_for(name)).count());
        for (name, value) in SETTINGS.iter().filter(|(name, _)| asked_for(name)) {
            reply.bulk(name.as_bytes());
            reply.bulk(value.as_bytes());
        }
        Ok(())
    }

    pub(super) fn memory(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.subcommand(MEMORY, call, reply)
    }

    /// MEMORY USAGE key [SAMPLES count]; it counts everything, whatever the samples.
    fn memory_usage(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        let mut options = call.request.arguments(3);
        while let Some(option) = options.next() {
            let samples = options.next().filter(|_| is_word(option, "samples")).ok_or(SYNTAX)?;
            if integer(samples)? < 0 {
                return Err(SYNTAX);
            }
        }
        match self.store.peek(call.now_ms, call.argument(2)) {
            Some(profile) => reply.integer(profile.bytes() as i64),
            None => reply.null(),
        }
        Ok(())
    }

    pub(super) fn object(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        self.subcommand(OBJECT, call, reply)
    }

    fn object_encoding(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.peek(call.now_ms, call.argument(2)) {
            Some(profile) if profile.fields.is_listpack() => reply.bulk(b"listpack"),
            Some(_) => reply.bulk(b"hashtable"),
            None => reply.null(),
        }
        Ok(())
    }

    fn object_freq(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        if self.store.peek(call.now_ms, call.argument(2)).is_some() {
            return Err("ERR An LFU maxmemory policy is not selected, access frequency not \
                        tracked. Please note that when switching between policies at runtime LRU \
                        and LFU data will take some time to adjust.");
        }
        reply.null();
        Ok(())
    }

    fn object_help(&mut self, _call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        reply.array(OBJECT_HELP.len());
        OBJECT_HELP.iter().for_each(|line| reply.simple(line));
        Ok(())
    }

    fn object_idletime(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.peek(call.now_ms, call.argument(2)) {
            Some(profile) => {
                reply.integer((call.now_ms.saturating_sub(profile.touched_ms()) / 1000) as i64);
            }
            None => reply.null(),
        }
        Ok(())
    }

    fn object_refcount(&mut self, call: &Call<'_>, reply: &mut ReplyWriter<'_>) -> Answer {
        match self.store.peek(call.now_ms, call.argument(2)) {
            Some(_) => reply.integer(1),
            None => reply.null(),
        }
        Ok(())
    }
}

fn section(text: &mut String, title: &str, lines: Lines<'_>) {
    let _ = write!(text, "# {title}\r\n");
    for (name, value) in lines {
        let _ = write!(text, "{name}:{value}\r\n");
    }
}

/// Writes bytes with a unit, as Redis's `bytesToHuman` does.
fn human(bytes: usize) -> String {
    let (unit, name) = match bytes {
        0..1024 => return format!("{bytes}B"),
        1024..1_048_576 => (1024.0, 'K'),
        1_048_576..1_073_741_824 => (1_048_576.0, 'M'),
        _ => (1_073_741_824.0, 'G'),
    };
    format!("{:.2}{name}", bytes as f64 / unit)
}
