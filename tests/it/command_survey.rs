//! Every command of the real Redis, held against the proxy's table: arity, access and keys agree,
//! and no command that writes reaches a profile unseen, wherever its keys are.

use profile_proxy::command::{Access, Keys, Route, Spec, find};
use profile_proxy::resp::{Limits, Scanner};

use crate::support::client::{Client, Reply, encode, shown};
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::Setup;

const OPEN: &str =
    "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\nunknown_fields = \"allow\"\n";

/// Commands whose keys no first, last and step tell; `K` is a key and `''` an empty argument.
const SAMPLES: [&str; 44] = [
    "BLMPOP 1 2 K K LEFT",
    "BZMPOP 1 2 K K MIN",
    "EVAL return(1) 2 K K other",
    "EVALSHA e0e1f9fabfc9d4800c877a703b823ac0578ff8db 2 K K other",
    "EVAL_RO return(1) 2 K K other",
    "EVALSHA_RO e0e1f9fabfc9d4800c877a703b823ac0578ff8db 1 K other",
    "FCALL nosuch 2 K K other",
    "FCALL_RO nosuch 1 K other",
    "GEORADIUS K 1 1 1 m",
    "GEORADIUS K 1 1 1 m STORE K",
    "GEORADIUS K 1 1 1 m COUNT 1 storedist K",
    "GEORADIUSBYMEMBER K m 1 m STORE K",
    "LMPOP 2 K K LEFT",
    "MEMORY USAGE K",
    "MIGRATE 127.0.0.1 1 K 0 10",
    "MIGRATE 127.0.0.1 1 '' 0 10 COPY KEYS K K",
    "OBJECT ENCODING K",
    "OBJECT FREQ K",
    "OBJECT IDLETIME K",
    "OBJECT REFCOUNT K",
    "SINTERCARD 2 K K LIMIT 1",
    "SORT K BY other:* GET other:*->a",
    "SORT K LIMIT 0 1 GET # STORE K",
    "SORT_RO K BY other:*",
    "XGROUP CREATE K g 0 MKSTREAM",
    "XGROUP CREATECONSUMER K g c",
    "XGROUP DELCONSUMER K g c",
    "XGROUP DESTROY K g",
    "XGROUP SETID K g 0",
    "XINFO STREAM K",
    "XINFO GROUPS K",
    "XINFO CONSUMERS K g",
    "XREAD COUNT 1 STREAMS K K 0 0",
    "XREADGROUP GROUP g c COUNT 1 NOACK STREAMS K K > >",
    "XREADGROUP GROUP g c BLOCK 1 STREAMS K >",
    "ZDIFF 2 K K WITHSCORES",
    "ZDIFFSTORE K 2 K K",
    "ZINTER 2 K K WEIGHTS 1 1",
    "ZINTERCARD 2 K K LIMIT 1",
    "ZINTERSTORE K 2 K K AGGREGATE MAX",
    "ZMPOP 2 K K MIN",
    "ZUNION 2 K K",
    "ZUNIONSTORE K 2 K K WEIGHTS 1 1",
    "DUMP K",
];

/// Commands with subcommands: the keys are those of the subcommand.
const CONTAINERS: [&str; 4] = ["memory", "object", "xgroup", "xinfo"];

/// What newer versions have (7.4 and 8), and cannot be tried here: refused until it is captured.
const NEWER: [&str; 10] = [
    "HEXPIRE user:1 9 FIELDS 1 a",
    "HPEXPIRE user:1 9 FIELDS 1 a",
    "HEXPIREAT user:1 9 FIELDS 1 a",
    "HPEXPIREAT user:1 9 FIELDS 1 a",
    "HPERSIST user:1 FIELDS 1 a",
    "HGETEX user:1 EX 9 FIELDS 1 a",
    "HSETEX user:1 EX 9 FIELDS 1 a 1",
    "HGETDEL user:1 FIELDS 1 a",
    "HIMPORT PREPARE user:1 a b",
    "HIMPORT SET user:1 a b",
];

/// Their kin that only read.
const NEWER_READERS: [&str; 4] = [
    "HTTL user:1 FIELDS 1 a",
    "HPTTL user:1 FIELDS 1 a",
    "HEXPIRETIME user:1 FIELDS 1 a",
    "HPEXPIRETIME user:1 FIELDS 1 a",
];

/// One entry of COMMAND.
struct Entry {
    name: String,
    arity: i64,
    flags: Vec<String>,
    range: [i64; 3],
}

impl Entry {
    fn all(client: &mut Client) -> Vec<Entry> {
        let reply = client.command(&["COMMAND"]);
        let text = |reply: &Reply| String::from_utf8_lossy(reply.bytes()).into_owned();
        let entry = |entry: &Reply| {
            let parts = entry.items();
            Entry {
                name: text(&parts[0]),
                arity: parts[1].integer(),
                flags: parts[2].items().iter().map(text).collect(),
                range: [3, 4, 5].map(|at: usize| parts[at].integer()),
            }
        };
        let entries: Vec<Entry> = reply.items().iter().map(entry).collect();
        assert!(entries.len() > 200, "only {} commands", entries.len());
        entries
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|one| one == flag)
    }

    fn needs_sample(&self) -> bool {
        self.has("movablekeys") || CONTAINERS.contains(&self.name.as_str())
    }

    /// Requests with `K` for each key: the samples, or one that is made from the positions.
    fn requests(&self) -> Vec<Vec<String>> {
        if self.needs_sample() {
            let own = |line: &&&str| line.split(' ').next() == Some(&*self.name.to_uppercase());
            let lines: Vec<&&str> = SAMPLES.iter().filter(own).collect();
            assert!(!lines.is_empty(), "{} needs a sample", self.name);
            let words = |line: &str| line.split(' ').map(|word| word.replace("''", "")).collect();
            return lines.into_iter().map(|line| words(line)).collect();
        }
        let [first, last, step] = self.range;
        let count = self.arity.abs().max(if last < 0 { first + 2 * step } else { 0 });
        let last = if last < 0 { count + last } else { last };
        let is_key =
            |at: &i64| first > 0 && (first..=last).contains(at) && (at - first) % step == 0;
        // A profile that expires at once is gone in Redis and only expired in the database.
        let value = if self.name.contains("expire") { "9999999999999" } else { "1" };
        let word = |at: i64| if is_key(&at) { "K" } else { value }.to_owned();
        vec![[self.name.clone()].into_iter().chain((1..count).map(word)).collect()]
    }
}

/// The keys that the table finds.
fn keys_by_table(spec: &Spec, words: &[String]) -> Vec<String> {
    let bytes = encode(words);
    let mut scanner = Scanner::new(Limits::default());
    let length = scanner.scan(&bytes).unwrap().unwrap();
    let request = scanner.request(&bytes[..length]);
    spec.keys(&request).map(|key| String::from_utf8_lossy(key).into_owned()).collect()
}

/// The keys that Redis finds.
fn keys_by_redis(client: &mut Client, words: &[String]) -> Vec<String> {
    let question = ["COMMAND".to_owned(), "GETKEYS".to_owned()];
    match client.command(&[&question, words].concat()) {
        Reply::Error(_) => Vec::new(),
        keys => {
            let text = |key: &Reply| String::from_utf8_lossy(key.bytes()).into_owned();
            keys.items().iter().map(text).collect()
        }
    }
}

/// Gives each `K` a name of its own; the one at place `profile` is a profile.
fn named(words: &[String], profile: Option<usize>) -> Vec<String> {
    let name = |(at, word): (usize, &String)| match word.as_str() {
        "K" if Some(at) == profile => "user:1".to_owned(),
        "K" => format!("other{at}"),
        _ => word.clone(),
    };
    words.iter().enumerate().map(name).collect()
}

#[test]
fn the_table_agrees_with_the_real_redis_on_every_command() {
    let redis = Redis::start();
    let mut client = redis.client();
    for entry in Entry::all(&mut client) {
        let name = &entry.name;
        let Some(spec) = find(name.as_bytes()) else { panic!("{name} is not in the table") };
        assert_eq!(i64::from(spec.arity), entry.arity, "arity of {name}");
        let scripts = ["eval", "evalsha", "fcall"].contains(&name.as_str());
        if entry.has("write") || scripts {
            assert_eq!(spec.access, Access::Write, "{name}");
        } else if name != "xgroup" && name != "debug" {
            assert_ne!(spec.access, Access::Write, "{name}");
        }
        if entry.has("readonly") {
            assert_eq!(spec.access, Access::Read, "{name}");
        }
        let [first, last, step] = entry.range.map(|number| number as i16);
        if !entry.needs_sample() && name != "debug" {
            let keys = if first == 0 { Keys::None } else { Keys::Range(first, last, step) };
            assert_eq!(spec.keys, keys, "{name}");
        }
        for request in entry.requests() {
            // To Redis a sharded channel has the place of a key and is none.
            if entry.has("pubsub") {
                continue;
            }
            let words = named(&request, None);
            let (ours, theirs) = (keys_by_table(spec, &words), keys_by_redis(&mut client, &words));
            match spec.keys {
                Keys::Any => assert!(theirs.iter().all(|key| ours.contains(key)), "{words:?}"),
                _ => assert_eq!(ours, theirs, "{words:?}"),
            }
            if request.iter().any(|word| word == "K") {
                assert!(!theirs.is_empty(), "{words:?} is no sample: Redis finds no key");
            }
        }
    }
}

/// How often Redis has seen a command, by any of its subcommands, run or refused.
fn seen(direct: &mut Client, name: &str) -> Vec<String> {
    let info = direct.command(&["INFO", "commandstats"]);
    let info = String::from_utf8_lossy(info.bytes()).into_owned();
    let own = |line: &&str| {
        let line = line.strip_prefix("cmdstat_").and_then(|line| line.strip_prefix(name));
        line.is_some_and(|rest| rest.starts_with([':', '|']))
    };
    info.lines().filter(own).map(str::to_owned).collect()
}

#[test]
fn no_command_that_writes_reaches_a_profile_unseen() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    let (mut refused, mut captured) = (0, 0);
    for entry in Entry::all(&mut setup.store_client()) {
        let spec = find(entry.name.as_bytes()).expect("in the table");
        if spec.access != Access::Write || entry.name == "debug" {
            continue;
        }
        for request in entry.requests() {
            for place in (0..request.len()).filter(|at| request[*at] == "K") {
                client.command(&["HSET", "user:1", "a", "1"]);
                let before = seen(&mut direct, &entry.name);
                let words = named(&request, Some(place));
                let reply = client.command(&words);
                if seen(&mut direct, &entry.name) == before {
                    assert!(matches!(reply, Reply::Error(_)), "{words:?}: {reply:?}");
                    refused += 1;
                    continue;
                }
                // Redis only reads these, and says that a hash is nothing that it can sort.
                if spec.keys == Keys::Storing {
                    let wrong_type =
                        matches!(&reply, Reply::Error(text) if text.contains("WRONGTYPE"));
                    assert!(wrong_type && request.len() <= 6, "{words:?}: {reply:?}");
                    continue;
                }
                let is_captured = matches!(spec.route, Route::Profile(_) | Route::Flush);
                assert!(is_captured, "{words:?} went to Redis: {reply:?}");
                setup.wait_for_equality();
                captured += 1;
            }
        }
    }
    assert!(refused > 110 && captured > 25, "{refused} refused, {captured} captured");
}

#[test]
fn the_newer_commands_on_fields_are_refused_on_profiles_and_pass_on_other_keys() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let (mut client, mut bare) = (setup.proxy.client(), setup.store_client());
    client.assert_reply("HSET user:1 a 1", ":1\r\n");
    // This Redis knows none of them, and says so with their arguments when it gets them.
    let mut pass = |client: &mut Client, line: &str| {
        let request = encode(&line.split(' ').collect::<Vec<_>>());
        client.send(&request);
        bare.send(&request);
        let expected = bare.reply_bytes();
        assert!(expected.starts_with(b"-ERR unknown command"), "{line} is known here");
        assert_eq!(shown(&client.reply_bytes()), shown(&expected), "{line}");
    };
    for line in NEWER {
        let name = line.split(' ').next().unwrap_or_default().to_lowercase();
        let kind = if name == "himport" { "through the proxy" } else { "on a profile key" };
        let refused = format!("-ERR command '{name}' is not allowed {kind}\r\n");
        client.assert_reply(line, &refused);
        client.assert_reply("MULTI", "+OK\r\n");
        client.assert_reply(line, &refused);
        client.assert_reply_starts("EXEC", "-EXECABORT");
        let other = line.replace("user:1", "other:1");
        match name.as_str() {
            // It prepares a connection for what follows, and the lane is everybody's.
            "himport" => client.assert_reply(&other, &refused),
            _ => pass(&mut client, &other),
        }
    }
    for line in NEWER_READERS {
        pass(&mut client, line);
        pass(&mut client, &line.replace("user:1", "other:1"));
    }
    setup.wait_for_equality();
    assert_eq!(setup.history_count(), 1);
}

#[test]
fn a_sort_may_read_profiles_and_not_store_into_them() {
    let setup = Setup::servers_with(Proxy::options().config(OPEN));
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 age 30 name a", ":2\r\n");
    client.assert_reply("HSET user:2 age 20 name b", ":2\r\n");
    client.assert_reply("RPUSH list 1 2", ":2\r\n");
    let sorted = "*2\r\n$1\r\nb\r\n$1\r\na\r\n";
    client.assert_reply("SORT list BY user:*->age GET user:*->name", sorted);
    client.assert_reply("SORT list BY user:*->age GET user:*->name STORE sorted", ":2\r\n");
    client.assert_reply("LRANGE sorted 0 -1", sorted);
    let refused = "-ERR command 'sort' is not allowed on a profile key\r\n";
    client.assert_reply("SORT list STORE user:1", refused);
    client.assert_reply(
        "GEORADIUS places 1 1 1 m STORE user:1",
        refused.replace("sort", "georadius"),
    );
    client.assert_reply(
        "XREADGROUP GROUP user:1 user:2 STREAMS nosuch >",
        "-NOGROUP No such key \
        'nosuch' or consumer group 'user:1' in XREADGROUP with GROUP option\r\n",
    );
}
