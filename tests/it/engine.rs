//! The embedded store beside a real Redis: the same commands, the same bytes.
//!
//! Where Redis promises no order, is random or goes by the clock, replies are compared in the sense
//! that holds: as sets, as members, within two seconds. Every failure names the seed of its
//! sequence; `ENGINE_SEED=n` starts all sequences from another one. Sums of floats, patterns and
//! scans in steps are in `engine_corners`.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use profile_proxy::engine::Engine;
use profile_proxy::resp::{Framer, Limits, Protocol, ReplyWriter, Scanner};

use crate::support::client::{Client, encode, shown};
use crate::support::random::Random;
use crate::support::redis::Redis;

const SEQUENCES: u64 = 3000;
const COMMANDS_MAX: u64 = 40;
const KEYS: [&[u8]; 4] = [b"k", b"user:1", b"", b"\x00\xff\r\n"];
const FIELDS: [&[u8]; 9] = [b"f", b"g", b"h", b"", b"12", b"-5", b"a:b", b"\x00\xfe", b"\r\n*1"];
const NUMBERS: &str = "0 1 -1 5 100 9223372036854775807 9223372036854775806 -9223372036854775808 \
    9223372036854775808 01 +1 -0 1.5 abc";
const FLOATS: &str = "0 -0 1 -1.5 3.14159 .5 5. +2 1e3 1E-3 -1e400 1e-400 1e4932 9e4931 1e-4950 \
    1e5000 1e-5000 inf -Infinity nan 0x10 0x1.8p-3 0x 1e 1e+ -.e1 0.1 0.2 17179869184.000001 \
    123456789012345678901234567890 0.00000000000000001 0.000000000000000005 -0.3 1_0 2.5\t";
const PATTERNS: &str = "* ** f* ?* k [a-k] [^k] u*:? \\* user:[0-9] [ *[ k\\";

pub(crate) type Arguments = Vec<Vec<u8>>;

/// An engine and a connection to a Redis, both empty, in one protocol.
pub(crate) struct Pair {
    engine: Engine,
    client: Client,
    protocol: Protocol,
}

impl Pair {
    pub(crate) fn new(redis: &Redis, protocol: Protocol) -> Pair {
        let mut client = redis.client();
        if protocol == Protocol::Resp3 {
            client.command(&["HELLO", "3"]);
        }
        Pair { engine: Engine::new(), client, protocol }
    }

    fn clear(&mut self) {
        self.client.command(&["FLUSHALL"]);
        self.engine = Engine::new();
    }

    /// Runs commands on both sides; returns the bytes of Redis's reply and the engine's for each.
    pub(crate) fn run(&mut self, commands: &[Arguments]) -> Vec<(Vec<u8>, Vec<u8>)> {
        let bytes: Vec<Vec<u8>> = commands.iter().map(|command| encode(command)).collect();
        self.client.send(bytes.concat());
        let mut scanner = Scanner::new(Limits::default());
        let mut replies = Vec::new();
        for bytes in &bytes {
            let length = scanner.scan(bytes).unwrap().unwrap();
            assert_eq!(length, bytes.len());
            let (request, mut own) = (scanner.request(bytes), Vec::new());
            self.engine.execute(now_ms(), &request, &mut ReplyWriter::new(&mut own, self.protocol));
            replies.push((self.client.reply_bytes(), own));
        }
        replies
    }

    #[track_caller]
    pub(crate) fn run_line(&mut self, line: &str) -> (Vec<u8>, Vec<u8>) {
        self.run(&[words(line)]).remove(0)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

pub(crate) fn words(line: &str) -> Arguments {
    line.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

/// Splits an aggregate reply into its first line and the bytes of its elements.
pub(crate) fn split(reply: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let head = reply.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    let mut elements = Vec::new();
    let mut at = head;
    while at < reply.len() {
        let length = Framer::default().frame(&reply[at..]).unwrap().unwrap();
        elements.push(reply[at..at + length].to_vec());
        at += length;
    }
    (reply[..head].to_vec(), elements)
}

/// Sorts the elements of an aggregate reply, in groups that belong together.
pub(crate) fn sorted(reply: &[u8], group: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (head, elements) = split(reply);
    let mut groups: Vec<Vec<u8>> = elements.chunks(group).map(<[Vec<u8>]>::concat).collect();
    groups.sort();
    (head, groups)
}

fn integer(reply: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(reply.strip_prefix(b":")?.strip_suffix(b"\r\n")?).unwrap();
    Some(text.parse().unwrap())
}

fn pick<'a>(random: &mut Random, words: &[&'a [u8]]) -> &'a [u8] {
    words[random.below(words.len() as u64) as usize]
}

fn pick_word(random: &mut Random, line: &str) -> Vec<u8> {
    let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
    pick(random, &words).to_vec()
}

fn any_bytes(random: &mut Random, length_max: u64) -> Vec<u8> {
    (0..random.below(length_max + 1)).map(|_| random.below(256) as u8).collect()
}

/// Makes one command from a template, in which a capital after `$` stands for an argument.
fn command(random: &mut Random, template: &str) -> Arguments {
    let mut arguments = Vec::new();
    for word in template.split(' ') {
        let argument = match word {
            "$K" => pick(random, &KEYS).to_vec(),
            "$F" => pick(random, &FIELDS).to_vec(),
            "$N" => pick_word(random, NUMBERS),
            "$D" => pick_word(random, FLOATS),
            "$P" => pick_word(random, PATTERNS),
            // Far apart, so that which is the greater does not hang on a millisecond.
            "$S" => (1000 + 10 * random.below(1_000_000)).to_string().into_bytes(),
            "$M" => (1000 * (1000 + 10 * random.below(1_000_000))).to_string().into_bytes(),
            "$A" => (2_100_000_000 + random.below(3)).to_string().into_bytes(),
            "$B" => (2_100_000_000_123 + 500 * random.below(3)).to_string().into_bytes(),
            // Nothing that would pass while the commands run.
            "$T" => pick_word(random, "0 -1 -0 01 1.5 abc 9223372036854775807"),
            "$C" => pick_word(random, "0 1 2 3 8 9 -1 -3 -9 -9223372036854775808 x"),
            "$V" => match random.below(8) {
                0 => vec![b'v'; random.below(70) as usize],
                1 => any_bytes(random, 66),
                2..5 => pick_word(random, NUMBERS),
                _ => pick_word(random, FLOATS),
            },
            "$X" => any_bytes(random, 200),
            word => word.as_bytes().to_vec(),
        };
        arguments.push(argument);
    }
    match random.below(40) {
        0 if arguments.len() > 1 => drop(arguments.pop()),
        1 => arguments.push(b"extra".to_vec()),
        2 => arguments[0].make_ascii_lowercase(),
        3 if arguments.len() > 1 && !arguments[0].ends_with(b"EXPIRE") => {
            let at = 1 + random.below(arguments.len() as u64 - 1) as usize;
            arguments[at] = any_bytes(random, 8);
        }
        _ => {}
    }
    if arguments[0].is_empty() { words("HLEN k") } else { arguments }
}

const TEMPLATES: &str = "HSET $K $F $V|HSET $K $F $V $F $V $F $V|HSET $K f $V f $V|HSET $K $F|\
    HMSET $K $F $V $F $V|HMSET $K $F $V $F|HSETNX $K $F $V|HGET $K $F|HMGET $K $F $F $F|\
    HGETALL $K|HKEYS $K|HVALS $K|HLEN $K|HEXISTS $K $F|HSTRLEN $K $F|HDEL $K $F|HDEL $K $F $F $F|\
    HINCRBY $K $F $N|HINCRBY $K f $N|HSET $K f 9223372036854775807 g -9223372036854775808|\
    HINCRBY $K f $N|HINCRBY $K g $N|HINCRBYFLOAT $K $F $D|HINCRBYFLOAT $K $F $D|\
    HSCAN $K 0|HSCAN $K $N MATCH $P|HSCAN $K 0 COUNT $N|HSCAN $K 0 match f* COUNT 100|\
    HSCAN $K 0 NOVALUES|HSCAN $K 0 COUNT|HSCAN $K $X|HRANDFIELD $K|HRANDFIELD $K $C|\
    HRANDFIELD $K $C WITHVALUES|HRANDFIELD $K $C VALUES|HRANDFIELD $K $C WITHVALUES x|\
    DEL $K|DEL $K $K|UNLINK $K|EXISTS $K $K $K|TOUCH $K $K|TYPE $K|DBSIZE|RANDOMKEY|\
    EXPIRE $K $S|PEXPIRE $K $M|EXPIREAT $K $A|PEXPIREAT $K $B|EXPIRE $K -1|PEXPIREAT $K 1|\
    EXPIRE $K $S NX|EXPIRE $K $S XX|EXPIRE $K $S GT|PEXPIREAT $K $B LT|EXPIREAT $K $A GT XX|\
    PEXPIRE $K $M NX GT|PEXPIREAT $K $B|PEXPIREAT $K $B GT|PEXPIREAT $K $B LT|\
    EXPIRE $K $S GT LT|EXPIRE $K $S $X|EXPIRE $K $T|PEXPIRE $K $T|EXPIREAT $K $N|\
    EXPIRE $K 9223372036854775|EXPIREAT $K 9223372036854776|PEXPIREAT $K 9223372036854775807|\
    EXPIRE $K $S nx\0junk|PEXPIRE $K -99999999999999999 LT|PEXPIRE $K 9223372036854775800|\
    TTL $K|PTTL $K|EXPIRETIME $K|PEXPIRETIME $K|PERSIST $K|KEYS $P|KEYS *|SCAN 0 COUNT 100|\
    SCAN 0 MATCH $P COUNT 100|SCAN 0 TYPE hash COUNT 50|SCAN 0 TYPE string COUNT 50|SCAN $X|\
    SCAN 0 COUNT $N|SCAN 0 COUNT 0|SCAN 0 MATCH|SCAN 0 FOO bar|OBJECT ENCODING $K|\
    OBJECT REFCOUNT $K|OBJECT FREQ $K|OBJECT IDLETIME $K|OBJECT HELP|OBJECT $X|OBJECT nosuch $K|\
    MEMORY USAGE $K|MEMORY USAGE $K SAMPLES $N|MEMORY nosuch|CONFIG GET save appendonly|\
    CONFIG GET maxmemory|CONFIG GET nosuch|CONFIG nosuch|COMMAND GETKEYS HSET $K f v|\
    COMMAND GETKEYS DEL $K $K|COMMAND GETKEYS PING|COMMAND GETKEYS nosuch|COMMAND GETKEYS HGET|\
    COMMAND nosuch|COMMAND LIST FILTERBY nosuch x|COMMAND LIST x|$X|nosuch $X $X $X|nosuch|\
    nosuch $X $X $X $X $X $X $X";

/// Compares the replies to one command; `rest` holds the replies to OBJECT ENCODING and HGETALL of
/// its key and to KEYS, which follow each command.
fn compare(command: &[Vec<u8>], redis: &[u8], own: &[u8], rest: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let name = String::from_utf8_lossy(&command[0]).to_uppercase();
    let unordered = rest[0].0 == b"$9\r\nhashtable\r\n";
    let near = |tolerance| match (integer(redis), integer(own)) {
        (Some(redis), Some(own)) => redis.abs_diff(own) <= tolerance && redis.min(own) >= 0,
        _ => false,
    };
    if redis == own {
        return true;
    }
    if redis.first() == Some(&b'-') || own.first() == Some(&b'-') {
        return false;
    }
    match name.as_str() {
        "HGETALL" => unordered && sorted_fields(redis) == sorted_fields(own),
        "HKEYS" | "HVALS" => unordered && sorted(redis, 1) == sorted(own, 1),
        "KEYS" => sorted(redis, 1) == sorted(own, 1),
        "SCAN" => command[1] != b"0" || is_same_scan(redis, own, 1),
        "HSCAN" => unordered && (command[2] != b"0" || is_same_scan(redis, own, 2)),
        "CONFIG" => {
            // The template asks for settings that agree; others may be hit by a random pattern.
            let (redis, own) = (sorted_fields(redis), sorted_fields(own));
            redis == own || command.concat().iter().any(|byte| b"*?[".contains(byte))
        }
        "HRANDFIELD" => {
            let all = sorted_fields(&rest[1].0);
            is_choice(command, redis, own, &all) && (unordered || !returns_all(command, all.len()))
        }
        "RANDOMKEY" => split(&rest[2].0).1.contains(&own.to_vec()) && redis.starts_with(b"$"),
        "TTL" | "OBJECT" => near(2),
        "PTTL" => near(2000),
        "EXPIRETIME" => near(2) && integer(redis).unwrap() < 2_000_000_000,
        "PEXPIRETIME" => near(2000) && integer(redis).unwrap() < 2_000_000_000_000,
        // A template that lost its end; what COMMAND tells has a test of its own.
        "COMMAND" if command.len() < 3 => redis[0] == own[0],
        "MEMORY" => integer(redis).is_some() && integer(own).is_some(),
        _ => false,
    }
}

/// Compares two scans from cursor 0: the steps of an iteration differ and have a test of their own,
/// but where one step was all there is, it was so on both sides.
fn is_same_scan(redis: &[u8], own: &[u8], group: usize) -> bool {
    let ((_, redis), (_, own)) = (split(redis), split(own));
    let ended = redis[0] == b"$1\r\n0\r\n" && redis[0] == own[0];
    !ended || sorted(&redis[1], group) == sorted(&own[1], group)
}

/// The fields of an HGETALL reply in either protocol: sorted, each name before its value.
fn sorted_fields(reply: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let elements = split(reply).1;
    let mut fields: Vec<_> =
        elements.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect();
    fields.sort();
    fields
}

fn random_count(command: &[Vec<u8>]) -> Option<i64> {
    command.get(2).map(|count| String::from_utf8_lossy(count).parse().unwrap())
}

/// Tells whether HRANDFIELD has no choice but to return the whole hash, which it does in order.
fn returns_all(command: &[Vec<u8>], fields: usize) -> bool {
    random_count(command).is_some_and(|count| count > 1 && count as usize >= fields)
}

/// Tells whether both replies to HRANDFIELD are possible ones, and of one form.
fn is_choice(command: &[Vec<u8>], redis: &[u8], own: &[u8], all: &[(Vec<u8>, Vec<u8>)]) -> bool {
    let Some(count) = random_count(command) else {
        return [redis, own].iter().all(|name| all.iter().any(|field| field.0 == **name));
    };
    let possible = |reply: &[u8]| {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let elements = split(reply).1;
        let flat = elements.iter().flat_map(|element| match element.first() {
            Some(b'*') => split(element).1,
            _ => vec![element.clone()],
        });
        let flat: Vec<Vec<u8>> = flat.collect();
        for field in flat.chunks(command.len() - 2) {
            let known = |known: &&(Vec<u8>, Vec<u8>)| {
                known.0 == field[0] && field.get(1).is_none_or(|value| *value == known.1)
            };
            if all.iter().find(known).is_none() {
                return false;
            }
            names.push(field[0].clone());
        }
        let distinct: BTreeSet<&Vec<u8>> = names.iter().collect();
        count < 0 || distinct.len() == names.len()
    };
    split(redis).0 == split(own).0 && possible(redis) && possible(own)
}

pub(crate) fn base_seed() -> u64 {
    std::env::var("ENGINE_SEED").map_or(1, |seed| seed.parse().unwrap())
}

#[test]
fn random_commands_get_the_replies_of_redis() {
    let redis = Redis::start();
    let mut pairs = [Protocol::Resp2, Protocol::Resp3].map(|protocol| Pair::new(&redis, protocol));
    let templates: Vec<&str> = TEMPLATES.split('|').collect();
    for seed in base_seed()..base_seed() + SEQUENCES {
        let mut random = Random::seeded(seed);
        let pair = &mut pairs[(seed % 2) as usize];
        pair.clear();
        let mut commands = Vec::new();
        for _ in 0..1 + random.below(COMMANDS_MAX) {
            // Half of the commands are among those that fill the store.
            let bound = if random.below(2) == 0 { 8 } else { templates.len() as u64 };
            let template = templates[random.below(bound) as usize];
            commands.push(command(&mut random, template));
            let key = commands.last().unwrap().get(1).cloned().unwrap_or_default();
            commands.push(vec![b"OBJECT".to_vec(), b"ENCODING".to_vec(), key.clone()]);
            commands.push(vec![b"HGETALL".to_vec(), key]);
            commands.push(words("KEYS *"));
        }
        let replies = pair.run(&commands);
        for (at, (command, (redis, own))) in commands.iter().zip(&replies).enumerate() {
            let first = at / 4 * 4 + 1;
            if !compare(command, redis, own, &replies[first..first + 3]) {
                let history: Vec<String> = commands[..=at]
                    .chunks(4)
                    .map(|chunk| chunk[0].iter().map(|word| shown(word) + " ").collect())
                    .collect();
                panic!(
                    "seed {seed}, {:?}: {}\nredis:  {}\nengine: {}\nafter:\n{}",
                    pair.protocol,
                    command.iter().map(|word| shown(word) + " ").collect::<String>(),
                    shown(redis),
                    shown(own),
                    history.join("\n")
                );
            }
        }
    }
}

#[test]
fn profiles_expire_when_those_of_redis_do() {
    let redis = Redis::start();
    let mut pair = Pair::new(&redis, Protocol::Resp3);
    let count = 200;
    for number in 0..count {
        let expiry = now_ms() + if number % 2 == 0 { 150 } else { 60_000 };
        pair.run_line(&format!("HSET k{number} f v"));
        let set = pair.run_line(&format!("PEXPIREAT k{number} {expiry}"));
        assert_eq!(set, (b":1\r\n".to_vec(), b":1\r\n".to_vec()));
    }
    std::thread::sleep(Duration::from_millis(200));
    for number in 0..count {
        for command in ["HGETALL", "TYPE", "EXISTS", "PEXPIRETIME", "HLEN"] {
            let (redis, own) = pair.run_line(&format!("{command} k{number}"));
            assert_eq!(shown(&redis), shown(&own), "{command} k{number}");
        }
    }
    let (redis, own) = pair.run_line("KEYS *");
    assert_eq!(sorted(&redis, 1), sorted(&own, 1));
    assert_eq!(split(&own).1.len(), count as usize / 2);
    assert_eq!(pair.engine.sweep(now_ms() + 120_000, 1000), count as usize / 2);
}

#[test]
fn what_is_told_about_commands_is_what_redis_tells() {
    let redis = Redis::start();
    let mut pair = Pair::new(&redis, Protocol::Resp3);
    let (_, listed) = pair.run_line("COMMAND LIST");
    let names = split(&listed).1;
    assert!(names.len() > 40);
    for name in names {
        let name = String::from_utf8(name).unwrap().lines().nth(1).unwrap().to_owned();
        let (redis, own) = pair.run_line(&format!("COMMAND INFO {name}"));
        // The proxy's own.
        if name.starts_with("profile.") {
            continue;
        }
        let parts = |reply: &[u8]| split(&split(reply).1[0]).1;
        let (redis, own) = (parts(&redis), parts(&own));
        assert_eq!((redis.len(), own.len()), (10, 10), "{name}");
        assert_eq!(redis[..2], own[..2], "{name}");
        // What a family of commands does, Redis tells of its members.
        if ["client", "memory", "object"].contains(&name.as_str()) {
            continue;
        }
        assert_eq!(redis[3..6], own[3..6], "{name}");
        for set in [2, 6] {
            let (redis, own) = (split(&redis[set]).1, split(&own[set]).1);
            let strange = own.iter().find(|flag| !redis.contains(flag));
            assert_eq!(strange.map(|flag| shown(flag)), None, "{name}");
        }
    }
    let (redis, own) = pair.run_line("COMMAND INFO nosuch");
    assert_eq!(redis, own);
}

#[test]
fn info_has_the_form_of_redis_and_no_line_of_its_own() {
    let redis = Redis::start();
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let mut pair = Pair::new(&redis, protocol);
        pair.run_line("HSET k f v");
        for line in ["INFO", "INFO all", "INFO server Clients", "INFO keyspace", "INFO nosuch"] {
            let (redis, own) = pair.run_line(line);
            assert_eq!(redis[0], own[0], "{line}");
            let (redis, own) = (String::from_utf8(redis).unwrap(), String::from_utf8(own).unwrap());
            let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
            let known: BTreeSet<String> = redis.lines().skip(1).map(name).collect();
            for line in own.lines().skip(1) {
                assert!(known.contains(&name(line)), "{line:?}");
            }
        }
        let (redis, own) = pair.run_line("TIME");
        let seconds = |reply: &[u8]| {
            String::from_utf8(split(reply).1[0].clone()).unwrap().lines().nth(1).unwrap().to_owned()
        };
        let difference =
            seconds(&redis).parse::<i64>().unwrap() - seconds(&own).parse::<i64>().unwrap();
        assert!(difference.abs() <= 2);
    }
}
