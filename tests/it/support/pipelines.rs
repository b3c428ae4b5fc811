//! Random pipelines for one client: valid, invalid and unknown commands in every form that Redis
//! reads, on keys that no other client has.

use super::client::encode;
use super::random::Random;

/// How the two replies to a command are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Byte for byte.
    Exact,
    /// Equal but for the order of members, which depends on the hash seed of the server.
    Unordered,
    /// An integer that is relative to the time of the call.
    Time,
    /// A random choice: equal in form and count.
    Random,
    /// Equal but for the connection's id.
    Hello,
    /// EXEC: each element as the reply to its command would be compared.
    Exec,
    /// Nothing comes back (an empty request).
    None,
}

/// One command as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) bytes: Vec<u8>,
    pub(crate) answer: Answer,
}

/// What the places in a template stand for: `P` a profile key, `H` `S` `L` `T` `Z` a hash, string,
/// list, set or sorted set, `K` any key, `f` a field or member, `v` a value, `i` an integer, `d` a
/// float, `n` a small count, `a` a time far ahead in seconds, `A` in milliseconds, `x` one of the
/// options of EXPIRE. Other words stand for themselves.
const EXACT: &[&str] = &[
    "HSET P f v",
    "HSET P f v f v f v",
    "HSET P f i",
    "HMSET P f v f v",
    "HSETNX P f v",
    "HDEL P f",
    "HDEL P f f f",
    "HINCRBY P f i",
    "HINCRBYFLOAT P f d",
    "HGET P f",
    "HMGET P f f f",
    "HLEN P",
    "HEXISTS P f",
    "HSTRLEN P f",
    "EXPIREAT P a",
    "PEXPIREAT P A",
    "EXPIREAT P a x",
    "PEXPIREAT P A x",
    "EXPIRE P 100000",
    "PEXPIRE P 100000000 NX",
    "EXPIRE P -250",
    "PERSIST P",
    "DEL P",
    "DEL P P K P",
    "UNLINK P K",
    "EXISTS P P K",
    "TYPE P",
    "TOUCH P K",
    "OBJECT REFCOUNT P",
    "HSET H f v",
    "HSET H f v f i",
    "HMSET H f v",
    "HSETNX H f v",
    "HDEL H f f",
    "HINCRBY H f i",
    "HINCRBYFLOAT H f d",
    "HGET H f",
    "HMGET H f f",
    "HLEN H",
    "HEXISTS H f",
    "HSTRLEN H f",
    "SET S v",
    "SET S v NX",
    "SET S v XX GET",
    "SET S i EX 100000",
    "SET S v KEEPTTL",
    "GET S",
    "GETSET S v",
    "GETDEL S",
    "GETEX S PERSIST",
    "APPEND S v",
    "STRLEN S",
    "INCR S",
    "INCRBY S i",
    "DECR S",
    "INCRBYFLOAT S d",
    "SETRANGE S n v",
    "GETRANGE S n i",
    "SETNX S v",
    "MSET S v S v",
    "MGET S S K",
    "SETBIT S n 1",
    "BITCOUNT S",
    "SETEX S 100000 v",
    "RPUSH L v v",
    "LPUSH L v",
    "LPOP L",
    "RPOP L n",
    "LRANGE L 0 -1",
    "LLEN L",
    "LINDEX L i",
    "LSET L n v",
    "LREM L 0 v",
    "LINSERT L BEFORE v v",
    "LTRIM L 0 20",
    "RPOPLPUSH L L",
    "LPOS L v",
    "LMOVE L L LEFT RIGHT",
    "SADD T f f",
    "SREM T f",
    "SISMEMBER T f",
    "SMISMEMBER T f f",
    "SCARD T",
    "SMOVE T T f",
    "SINTERSTORE T T T",
    "SUNIONSTORE T T T",
    "ZADD Z d f",
    "ZADD Z d f d f",
    "ZADD Z GT CH d f",
    "ZADD Z INCR d f",
    "ZINCRBY Z d f",
    "ZSCORE Z f",
    "ZMSCORE Z f f",
    "ZRANGE Z 0 -1",
    "ZRANGE Z 0 -1 WITHSCORES",
    "ZREVRANGE Z 0 -1 WITHSCORES",
    "ZRANGEBYSCORE Z -inf +inf WITHSCORES",
    "ZRANK Z f",
    "ZCARD Z",
    "ZCOUNT Z -inf 5",
    "ZPOPMIN Z",
    "ZPOPMAX Z n",
    "ZREM Z f",
    "ZRANGESTORE Z Z 0 n",
    "RENAME S S",
    "RENAMENX T T",
    "COPY L L REPLACE",
    "TYPE K",
    "EXPIREAT K a x",
    "PERSIST K",
    "DEL K K",
    "EXISTS K K K",
    "SORT L ALPHA",
    "SORT L LIMIT 0 n ALPHA",
    "PING",
    "PING v",
    "ECHO v",
    "SELECT 0",
    "SELECT abc",
    "PING v v",
    "ECHO",
    "COMMAND GETKEYS GET f",
    "PUBLISH f v",
    "EVAL return{1,KEYS[1],{'x',false}} 1 S",
    "EVAL return{err='MY_error'} 0",
    "EVAL return{double=3.5} 0",
    "SCRIPT EXISTS f",
    "OBJECT HELP v",
    "CONFIG GET maxclients",
    "XADD cN:stream 1-1 f v",
    "WRONGCOMMAND",
    "FOO v f",
    "foo",
    "HGETT H f",
    "CONFIG FOO",
    "OBJECT BAR S",
    "HSET H f",
    "HSET P f v f",
    "HMSET P f",
    "HGET P",
    "GET",
    "SET S v WRONG",
    "EXPIRE P abc",
    "EXPIRE P 100000 ZZ",
    "EXPIRE P 100000 NX XX",
    "HINCRBY P f abc",
    "HINCRBYFLOAT P f nan",
    "HINCRBY P f 9223372036854775807",
    "HINCRBYFLOAT P f 1e400",
    "EXPIREAT P 9223372036854775807",
    "ZADD Z abc f",
    "LSET L abc v",
    "AUTH v",
    "AUTH default v",
    "AUTH nobody v",
    "AUTH",
    "HSCAN P abc",
    "PEXPIREAT P -5",
    "EXPIREAT P 0 XX",
    "SCAN abc",
    "SINTERCARD 0 T",
];

const UNORDERED: &[&str] = &[
    "HGETALL P",
    "HKEYS P",
    "HVALS P",
    "HSCAN P 0 COUNT 100000",
    "HSCAN P 0 MATCH f* COUNT 100000",
    "HGETALL H",
    "HKEYS H",
    "HVALS H",
    "HSCAN H 0 COUNT 100000",
    "SMEMBERS T",
    "SINTER T T",
    "SUNION T T",
    "SDIFF T T",
    "SSCAN T 0 COUNT 100000",
    "ZSCAN Z 0 COUNT 100000",
    "HGETALL K",
    "HRANDFIELD P 100000",
    "HRANDFIELD P 100000 WITHVALUES",
    "KEYS user:cN*",
    "KEYS cN:*",
];

const TIMES: &[&str] =
    &["TTL P", "PTTL P", "EXPIRETIME P", "PEXPIRETIME P", "TTL K", "PTTL K", "PEXPIRETIME K"];

const RANDOM: &[&str] = &["HRANDFIELD P", "HRANDFIELD P -3", "HRANDFIELD H 2", "SRANDMEMBER T 2"];

const HELLO: &[&str] = &["HELLO", "HELLO 2", "HELLO 3", "HELLO 4", "HELLO abc", "HELLO 3 FOO"];

/// MULTI and its kin; which of them come when is left to chance, but for an EXEC sooner or later.
const TRANSACTIONS: &[&str] = &[
    "MULTI",
    "MULTI",
    "MULTI",
    "EXEC",
    "DISCARD",
    "WATCH P K",
    "WATCH P P",
    "WATCH K",
    "UNWATCH",
    "EXEC v",
    "WATCH",
    "MULTI v",
];

/// What the proxy refuses inside a transaction and Redis does not (README, "Commands").
const REFUSED_INSIDE: &[&[u8]] = &[b"AUTH", b"SELECT", b"HELLO"];

/// What ends a connection: bytes that are no request, in the form in which they come.
const BROKEN: &[&[u8]] = &[
    b"*abc\r\n",
    b"*1\r\n+PING\r\n",
    b"*1\r\n*1\r\n$4\r\nPING\r\n",
    b"*2\r\n$4\r\nECHO\r\n:12\r\n",
    b"*1\r\n$abc\r\n",
    b"*1\r\n$-5\r\n",
    b"*1\r\n$\r\n",
    b"*1\r\n$99999999999999999999\r\n",
    b"*2\r\n$4\r\nECHO\r\n$536870913\r\n",
    b"*1\r\n\r\n",
    b"PING \"unbalanced\r\n",
    b"SET a 'b'c\r\n",
    b"*1\r\n$ 4\r\nPING\r\n",
    b"*+1\r\n$4\r\nPING\r\n",
];

/// The generator of one client.
pub(crate) struct Pipelines {
    random: Random,
    number: u64,
    now: u64,
    /// MULTI was sent, and neither EXEC nor DISCARD.
    open: bool,
}

impl Pipelines {
    /// Pipelines on the keys of client `number`.
    pub(crate) fn new(seed: u64, number: u64) -> Pipelines {
        let random = Random::seeded(seed.wrapping_mul(31).wrapping_add(number));
        let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
        Pipelines { random, number, now, open: false }
    }

    /// Between 1 and 40 commands.
    pub(crate) fn next_pipeline(&mut self) -> Vec<Command> {
        let count = 1 + self.random.below(40);
        (0..count).map(|_| self.next_command()).collect()
    }

    /// Now and then, bytes with which a connection ends.
    pub(crate) fn maybe_broken(&mut self) -> Option<&'static [u8]> {
        let broken = (self.random.below(8) == 0).then(|| self.pick(BROKEN));
        self.open &= broken.is_none();
        broken
    }

    fn next_command(&mut self) -> Command {
        let (template, answer) = match self.random.below(108) {
            _ if self.open && self.random.below(6) == 0 => ("EXEC", Answer::Exec),
            100.. => (self.pick(TRANSACTIONS), Answer::Exact),
            0..76 => (self.pick(EXACT), Answer::Exact),
            76..87 => (self.pick(UNORDERED), Answer::Unordered),
            87..94 => (self.pick(TIMES), Answer::Time),
            94..96 => (self.pick(RANDOM), Answer::Random),
            96 => (self.pick(HELLO), Answer::Hello),
            _ => return self.empty(),
        };
        let answer = if template == "EXEC" { Answer::Exec } else { answer };
        let mut words: Vec<Vec<u8>> = template.split(' ').map(|word| self.word(word)).collect();
        if self.open && REFUSED_INSIDE.contains(&words[0].as_slice()) {
            return self.empty();
        }
        match template {
            "MULTI" => self.open = true,
            // One with an argument ends the transaction as well.
            "EXEC" | "EXEC v" | "DISCARD" => self.open = false,
            _ => {}
        }
        // Now and then one word too few; one too many could be a key of another type.
        if self.random.below(40) == 0 && answer == Answer::Exact && words.len() > 2 {
            words.pop();
        }
        match self.random.below(3) {
            0 => words[0].make_ascii_lowercase(),
            1 if self.random.below(3) == 0 => words[0][0].make_ascii_lowercase(),
            _ => {}
        }
        Command { bytes: self.written(&words), answer }
    }

    fn empty(&mut self) -> Command {
        let forms: [&[u8]; 5] = [b"\r\n", b"*0\r\n", b"*-1\r\n", b"   \r\n", b"\n"];
        let form = self.random.below(5) as usize;
        Command { bytes: forms[form].to_vec(), answer: Answer::None }
    }

    /// As an array of bulk strings, with odd line ends, or as a line of words.
    fn written(&mut self, words: &[Vec<u8>]) -> Vec<u8> {
        match self.random.below(12) {
            0 => {
                let text = words.iter().map(|word| quoted(word)).collect::<Vec<_>>();
                let blank = ["  ", " ", "\t "][self.random.below(3) as usize];
                let end = ["\r\n", "\n", " \r\n"][self.random.below(3) as usize];
                format!("{}{end}", text.join(blank)).into_bytes()
            }
            1 => {
                // Redis skips the two bytes behind an argument without a look.
                let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
                for word in words {
                    bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
                    bytes.extend_from_slice(word);
                    bytes.extend_from_slice(if self.random.below(2) == 0 {
                        b"\r\n"
                    } else {
                        b"??"
                    });
                }
                bytes
            }
            _ => encode(words),
        }
    }

    fn word(&mut self, place: &str) -> Vec<u8> {
        let number = self.number;
        match place {
            "P" => format!("user:c{number}p{}", self.random.below(8)).into_bytes(),
            "H" | "S" | "L" | "T" | "Z" => {
                format!("c{number}:{place}{}", self.random.below(3)).into_bytes()
            }
            "K" => {
                let kind = ["H", "S", "L", "T", "Z"][self.random.below(5) as usize];
                self.word(kind)
            }
            "f" if self.random.below(25) == 0 => b"f\0\xff\r\n".to_vec(),
            "f" => format!("f{}", self.random.below(12)).into_bytes(),
            "v" => self.value(),
            "i" => {
                let numbers = ["1", "-1", "0", "17", "-250", "1000000", "007", "1.5", ""];
                self.pick(&numbers).as_bytes().to_vec()
            }
            "d" => {
                let numbers = ["1", "-1.5", "0.1", "3e2", "1e-7", "2.25", "-0", "100000", "x"];
                self.pick(&numbers).as_bytes().to_vec()
            }
            "n" => self.random.below(5).to_string().into_bytes(),
            "a" => (self.now + 10_000 + self.random.below(5) * 1000).to_string().into_bytes(),
            "A" => ((self.now + 20_000) * 1000 + self.random.below(5000)).to_string().into_bytes(),
            "x" => self.pick(&["NX", "XX", "GT", "LT", "gt"]).as_bytes().to_vec(),
            "user:cN*" | "cN:*" | "cN:stream" => {
                place.replace('N', &number.to_string()).into_bytes()
            }
            word => word.as_bytes().to_vec(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        match self.random.below(12) {
            0 => Vec::new(),
            1 => b"\x00\xff\r\n$5\r\n".to_vec(),
            2 => vec![b'L'; 70 + self.random.below(3000) as usize],
            3 => self.random.below(1000).to_string().into_bytes(),
            4 => "naïve – text".as_bytes().to_vec(),
            _ => format!("v{}", self.random.below(30)).into_bytes(),
        }
    }

    fn pick<T: ?Sized>(&mut self, from: &[&'static T]) -> &'static T {
        from[self.random.below(from.len() as u64) as usize]
    }
}

/// A word of an inline request; quoted where it has to be.
fn quoted(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b":*-._".contains(byte);
    if !word.is_empty() && word.iter().all(plain) {
        return String::from_utf8_lossy(word).into_owned();
    }
    let mut text = String::from("\"");
    for byte in word {
        match byte {
            b'"' | b'\\' => text.push_str(&format!("\\{}", *byte as char)),
            b' '..=b'~' => text.push(*byte as char),
            b'\n' => text.push_str("\\n"),
            byte => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text.push('"');
    text
}
