//! Corners of the embedded store that random commands seldom reach, beside a real Redis: sums of
//! floats to the last digit, patterns, and whole iterations of scans.

use profile_proxy::resp::Protocol;

use crate::engine::{Arguments, Pair, base_seed, sorted, split, words};
use crate::support::client::shown;
use crate::support::random::Random;
use crate::support::redis::Redis;

/// A random number as text: digits before and behind the point, perhaps an exponent.
fn number(random: &mut Random) -> String {
    let mut digits = |bound: u64| -> String {
        (0..random.below(bound)).map(|_| char::from(b'0' + random.below(10) as u8)).collect()
    };
    let (whole, fraction) = (digits(24), digits(24));
    let sign = ["", "-"][random.below(2) as usize];
    let (bound, middle) = [(1, 0), (10, 5), (60, 30), (9900, 4960)][random.below(4) as usize];
    let exponent = random.below(bound) as i64 - middle;
    match random.below(8) {
        0 => format!("{sign}0x{whole}.{fraction}p{exponent}"),
        1 => format!("{sign}{}", 1_u128 << random.below(127)),
        2 => format!("{sign}{}.5e{exponent}", (1_u64 << 63) + random.below(1 << 62)),
        _ => format!("{sign}{whole}.{fraction}e{exponent}"),
    }
}

/// A number and an increment whose sum, or who by themselves, are half way between two numbers that
/// there are, or next to it.
fn halves(random: &mut Random) -> (String, String) {
    let exponent = 70 + random.below(30);
    let odd = (1_u128 << 64) + u128::from(random.below(1 << 60)) * 2 + 1;
    let tail = ["", ".0", ".000000000000000000000000000000000000000000001"];
    let tail = tail[random.below(3) as usize];
    let below = exponent - 62 - random.below(5);
    let last = ["0", "2", "4", "6"][random.below(4) as usize];
    let sign = ["", "-"][random.below(2) as usize];
    match random.below(2) {
        0 => (format!("{odd}{tail}"), "0".to_owned()),
        _ => (format!("0x1p{exponent}"), format!("{sign}0x1.000000000000000{last}p{below}")),
    }
}

#[test]
fn sums_of_floats_are_those_of_redis_to_the_last_digit() {
    let redis = Redis::start();
    let mut pair = Pair::new(&redis, Protocol::Resp2);
    let mut random = Random::seeded(base_seed());
    let mut sums = 0;
    for _ in 0..30 {
        let mut commands = Vec::new();
        for _ in 0..500 {
            let (value, increment) = match random.below(8) {
                0 => halves(&mut random),
                1 => {
                    let value = number(&mut random);
                    let negative = format!("-{value}");
                    (value, negative)
                }
                _ => (number(&mut random), number(&mut random)),
            };
            commands.push(words(&format!("HSET k f {value}")));
            commands.push(words(&format!("HINCRBYFLOAT k f {increment}")));
            commands.push(words("HINCRBYFLOAT k f 0.1"));
        }
        let replies = pair.run(&commands);
        for (at, (redis, own)) in replies.iter().enumerate() {
            let command = |at: usize| shown(&commands[at].join(&b' '));
            let context = format!("{} after {}", command(at), command(at.saturating_sub(1)));
            assert_eq!(shown(redis), shown(own), "seed {}, {context}", base_seed());
            sums += u32::from(redis.starts_with(b"$"));
        }
    }
    assert!(sums > 10_000, "only {sums} sums were sums");
}

#[test]
fn patterns_find_the_keys_that_redis_finds() {
    let redis = Redis::start();
    let mut pair = Pair::new(&redis, Protocol::Resp2);
    let mut random = Random::seeded(base_seed());
    let mut text = |length: u64, alphabet: &[u8]| -> Vec<u8> {
        let length = random.below(length + 1);
        (0..length).map(|_| alphabet[random.below(alphabet.len() as u64) as usize]).collect()
    };
    let keys: Vec<Vec<u8>> = (0..300).map(|_| text(5, b"abc-]^\\\x80\xff")).collect();
    let fill = |key: &Vec<u8>| vec![b"HSET".to_vec(), key.clone(), b"f".to_vec(), b"v".to_vec()];
    pair.run(&keys.iter().map(fill).collect::<Vec<_>>());
    let patterns =
        (0..4000).map(|_| vec![b"KEYS".to_vec(), text(9, b"abc***??[[]]^^--\\\\\x80\xff")]);
    let patterns: Vec<Arguments> = patterns.collect();
    let mut found = 0;
    for (pattern, (redis, own)) in patterns.iter().zip(pair.run(&patterns)) {
        assert_eq!(sorted(&redis, 1), sorted(&own, 1), "KEYS {}", shown(&pattern[1]));
        found += split(&redis).1.len();
    }
    assert!(found > 10_000, "the patterns found {found} keys");
}

/// All elements of an iteration, on one side.
fn iterate(mut step: impl FnMut(&str) -> Vec<u8>) -> Vec<Vec<u8>> {
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let parts = split(&step(&cursor)).1;
        let line = String::from_utf8(parts[0].clone()).unwrap();
        found.extend(split(&parts[1]).1);
        cursor = line.lines().nth(1).unwrap().to_owned();
        if cursor == "0" {
            return found;
        }
    }
}

#[test]
fn whole_iterations_find_what_those_of_redis_find() {
    let redis = Redis::start();
    let mut pair = Pair::new(&redis, Protocol::Resp2);
    let mut fill: Vec<Arguments> = Vec::new();
    for number in 0..1500 {
        fill.push(words(&format!("HSET user:{number} f v")));
        fill.push(words(&format!("HSET big field:{number} {number}")));
    }
    fill.extend((0..500).map(|number| words(&format!("DEL user:{}", number * 3))));
    fill.extend((0..500).map(|number| words(&format!("HDEL big field:{}", number * 3))));
    pair.run(&fill);
    for line in [
        "SCAN @",
        "SCAN @ COUNT 1",
        "SCAN @ COUNT 9223372036854775807",
        "SCAN @ MATCH user:1* COUNT 50",
        "SCAN @ TYPE hash COUNT 100",
        "SCAN @ TYPE list COUNT 100",
        "HSCAN big @",
        "HSCAN big @ COUNT 7 MATCH *5",
        "HSCAN user:1 @ COUNT 1",
    ] {
        let mut sides = [Vec::new(), Vec::new()];
        for (side, found) in sides.iter_mut().enumerate() {
            *found = iterate(|cursor| {
                let replies = pair.run_line(&line.replace('@', cursor));
                if side == 0 { replies.0 } else { replies.1 }
            });
        }
        let [mut redis, mut own] = sides;
        redis.sort();
        own.sort();
        assert_eq!(redis, own, "{line}");
    }
}
