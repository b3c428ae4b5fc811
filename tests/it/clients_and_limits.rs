//! Clients that leave, that do not read, and that send as much as is allowed: the proxy stays
//! correct for everybody else, and small.

use std::thread;
use std::time::{Duration, Instant};

use crate::hydrate::restart_redis;
use crate::support::client::{Client, Reply, assert_bytes, encode, shown};
use crate::support::held::Held;
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::random::Random;
use crate::support::redis::Redis;
use crate::support::setup::Setup;
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

pub(crate) const OPEN_SCHEMA: &str = r#"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

fn redis_setup(config: &str) -> Setup {
    redis_setup_with(Proxy::options().config(config))
}

pub(crate) fn redis_setup_with(options: ProxyOptions) -> Setup {
    let redis = Redis::start();
    let proxy = options.upstream(redis.url()).start();
    Setup { proxy, redis: Some(redis), postgres: None }
}

#[test]
fn b9_a_thousand_clients_that_leave_in_the_middle_take_nothing_with_them() {
    a_thousand_leave(&redis_setup(OPEN_SCHEMA));
}

pub(crate) fn a_thousand_leave(setup: &Setup) {
    const THREADS: u64 = 4;
    const DISCONNECTS: u64 = 250;
    setup.proxy.client().assert_reply("PING", b"+PONG\r\n");
    // The database is read then, over a connection that stays.
    setup.proxy.wait_until_checked();
    let before = setup.proxy.open_descriptors();
    let address = setup.proxy.address();
    let stayer = {
        let address = address.clone();
        thread::spawn(move || stay(&address))
    };
    let leavers: Vec<_> = (0..THREADS)
        .map(|number| {
            let address = address.clone();
            thread::spawn(move || leave_often(&address, number, DISCONNECTS))
        })
        .collect();
    leavers.into_iter().for_each(|leaver| leaver.join().expect("no wrong reply"));
    assert!(stayer.join().expect("only its own replies") > 500);
    wait_until("the connections to be closed", BOUND, || {
        (setup.metric("connections_open") < 0.5).then_some(())
    });
    wait_until("the descriptors to be closed", BOUND, || {
        (setup.proxy.open_descriptors() <= before + 4).then_some(())
    });
    assert!(setup.metric("in_doubt_changes") < 0.5);
    setup.wait_for_equality();
    // Every counter has its whole history: as many changes as it says.
    let history = setup.history();
    for (key, fields) in setup.store_profiles() {
        let Some(count) = fields.get(b"n".as_slice()) else { continue };
        let changes = history.iter().filter(|row| row.key == key && row.command == "HINCRBY");
        assert_eq!(count, changes.count().to_string().as_bytes(), "{key}");
    }
}

/// Sends commands and leaves: at once, after some replies, or in the middle of a request.
fn leave_often(address: &str, number: u64, times: u64) {
    let mut random = Random::seeded(number);
    for round in 0..times {
        let mut client = Client::connect(address);
        if random.below(2) == 1 {
            client.command(&["HELLO", "3"]);
        }
        let key = format!("user:leaver{number}-{}", random.below(5));
        let tag = format!("{number}-{round}");
        let mut commands = Vec::new();
        for _ in 0..=random.below(20) {
            commands.push(encode(&["HINCRBY", &key, "n", "1"]));
            commands.push(encode(&["ECHO", &tag]));
            commands.push(encode(&["HGETALL", &key]));
            commands.push(encode(&["SET", &tag, &tag]));
        }
        let bytes = commands.concat();
        let cut = match random.below(3) {
            0 => bytes.len() - 1 - random.below(20) as usize,
            _ => bytes.len(),
        };
        let _ = client.try_send(&bytes[..cut]);
        for index in 0..random.below(4) {
            let reply = client.reply();
            if index == 1 {
                assert_eq!(reply, Reply::text(&tag));
            }
        }
    }
}

/// Stays connected meanwhile and checks that each reply is its own.
fn stay(address: &str) -> u64 {
    let mut client = Client::connect(address);
    let start = Instant::now();
    let mut count = 0_i64;
    while start.elapsed() < Duration::from_secs(2) {
        count += 1;
        let tag = format!("stayer-{count}");
        let replies = client.pipeline(&[
            encode(&["HINCRBY", "user:stayer", "n", "1"]),
            encode(&["SET", "stayer", &tag]),
            encode(&["ECHO", &tag]),
            encode(&["GET", "stayer"]),
        ]);
        let ok = Reply::Simple("OK".into());
        assert_eq!(replies, [Reply::Integer(count), ok, Reply::text(&tag), Reply::text(&tag)]);
    }
    count.unsigned_abs()
}

#[test]
fn b5_a_client_that_never_reads_is_cut_and_costs_bounded_memory() {
    one_never_reads(&redis_setup(&narrow()));
}

/// A configuration in which 4 MiB of replies are too many.
pub(crate) fn narrow() -> String {
    format!("[limits]\nclient-output-buffer-limit = \"normal 4MiB 0 0\"\n{OPEN_SCHEMA}")
}

pub(crate) fn one_never_reads(setup: &Setup) {
    let value = "v".repeat(400);
    let mut hset = vec!["HSET".to_owned(), "user:big".to_owned()];
    (0..10).for_each(|number| hset.extend([format!("field{number}"), value.clone()]));
    setup.proxy.client().command(&hset);
    let before = setup.proxy.resident_bytes();
    let mut greedy = setup.proxy.client();
    let some = encode(&["HGETALL", "user:big"]).repeat(1000);
    let mut peak = 0;
    let mut sent = 0;
    while greedy.try_send(&some).is_ok() {
        peak = peak.max(setup.proxy.resident_bytes());
        sent += 1000;
        assert!(sent < 5_000_000, "the client is never cut");
    }
    assert!(setup.metric("connections_cut_total") > 0.5);
    assert!(peak < before + 64 * MIB, "grew from {before} to {peak} bytes");
    setup.proxy.client().assert_reply("HLEN user:big", b":10\r\n");
}

/// The task of its connection waits for the profile meanwhile, as long as the database takes.
#[test]
fn a_client_that_never_reads_is_cut_also_while_it_waits_for_a_profile_to_be_checked() {
    let config = narrow().replace("[limits]", "upstream_timeout = \"2m\"\n[limits]");
    let options = Proxy::options().config(&config).allows_log("lost the upstream");
    let options = options.allows_log("profiles cannot be looked up").allows_log("database lost");
    let mut setup = Setup::servers_with(options.allows_log("the upstream cannot be reached"));
    let mut other = setup.proxy.client();
    other.command(&["HSET", "user:1", "a", "1"]);
    setup.wait_for_history(1);
    let held = Held::hold_rows(&setup);
    restart_redis(&mut setup);
    other.command(&["SET", "big", &"v".repeat(1 << 20)]);
    let mut greedy = setup.proxy.client();
    greedy.send([encode(&["GET", "big"]).repeat(32), encode(&["HGET", "user:1", "a"])].concat());
    wait_until("it to be cut", BOUND, || {
        (setup.metric("connections_cut_total") > 0.5).then_some(())
    });
    other.assert_reply("PING", b"+PONG\r\n");
    held.release();
    other.assert_reply("HGET user:1 a", b"$1\r\n1\r\n");
    assert!(greedy.read_to_close().len() < 32 << 20);
    assert!((setup.metric("connections_cut_total") - 1.0).abs() < 0.5, "it was counted once");
}

/// Redis reads on while its client does not, and so must the proxy: a client that writes all before
/// it reads would otherwise wait for the proxy, and the proxy for the client.
#[test]
fn b5_a_client_that_writes_200_000_commands_before_it_reads_gets_every_reply() {
    one_writes_all_first(&redis_setup(OPEN_SCHEMA));
}

pub(crate) fn one_writes_all_first(setup: &Setup) {
    const COMMANDS: usize = 200_000;
    let mut client = setup.proxy.client();
    let value = "w".repeat(100);
    client.command(&["HSET", "user:1", "f", &value]);
    client.send(encode(&["HGET", "user:1", "f"]).repeat(COMMANDS));
    let expected = encode(&[&value])[4..].to_vec();
    for _ in 0..COMMANDS / 1000 {
        let got = client.read_exact_bytes(expected.len() * 1000);
        assert!(got == expected.repeat(1000), "a reply is not what was asked for");
    }
    client.assert_reply("PING", b"+PONG\r\n");
    // What the replies needed is given back.
    wait_until("the memory to be given back", BOUND, || {
        (setup.proxy.resident_bytes() < 96 * MIB).then_some(())
    });
}

/// A client that reads, but is always behind: what it has read must not be kept.
#[test]
fn b5_a_client_that_is_always_a_little_behind_costs_bounded_memory() {
    const AHEAD: usize = 120;
    const ROUNDS: usize = 1500;
    let setup = redis_setup(OPEN_SCHEMA);
    let mut client = setup.proxy.client();
    let value = "x".repeat(200_000);
    client.command(&["SET", "big", &value]);
    let request = encode(&["GET", "big"]);
    let reply_bytes = value.len() + "$200000\r\n\r\n".len();
    let before = setup.proxy.resident_bytes();
    client.send(request.repeat(AHEAD));
    // From here on the proxy holds what the client is behind, not Redis.
    wait_until("the proxy to hold replies", BOUND, || {
        (setup.proxy.resident_bytes() > before + 8 * MIB).then_some(())
    });
    let mut peak = 0;
    for round in 0..ROUNDS {
        client.send(&request);
        client.read_exact_bytes(reply_bytes);
        if round % 50 == 0 {
            peak = peak.max(setup.proxy.resident_bytes());
        }
    }
    assert!(peak < before + 96 * MIB, "grew from {before} to {peak} bytes");
}

#[test]
fn b6_commands_of_one_client_run_in_their_order() {
    let setup = redis_setup(OPEN_SCHEMA);
    let address = setup.proxy.address();
    let workers: Vec<_> = (0..4)
        .map(|number| {
            let address = address.clone();
            thread::spawn(move || {
                let mut client = Client::connect(&address);
                if number % 2 == 1 {
                    client.command(&["HELLO", "3"]);
                }
                let key = format!("user:order{number}");
                for round in 1..=1000 {
                    let text = round.to_string();
                    let replies = client.pipeline(&[
                        encode(&["HSET", &key, "f", &text]),
                        encode(&["HGET", &key, "f"]),
                        encode(&["PING", &text]),
                        encode(&["HINCRBY", &key, "n", "1"]),
                        encode(&["HDEL", &key, "f", "n"]),
                        encode(&["EXISTS", &key]),
                    ]);
                    let number = Reply::Integer;
                    let text = Reply::text(&text);
                    let expected = [number(1), text.clone(), text, number(1), number(2), number(0)];
                    assert_eq!(replies, expected, "round {round}");
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("the replies in order"));
}

#[test]
fn b3_words_on_which_redis_hangs_up_cost_nobody_else_the_link() {
    let setup = redis_setup(OPEN_SCHEMA);
    let mut other = setup.proxy.client();
    for line in ["POST / HTTP/1.1\r\n", "host: 127.0.0.1:6379\r\n", "*1\r\n$4\r\npost\r\n"] {
        let mut client = setup.proxy.client();
        client.send(format!("PING\r\n{line}PING\r\n"));
        let end = client.read_to_close_of(line);
        assert_bytes(line, &end, b"+PONG\r\n");
        other.assert_reply("SET k v", b"+OK\r\n");
    }
    let links = setup.metric("upstream_links_total");
    assert!((links - 1.0).abs() < 0.5, "{links} links were made");
}

#[test]
fn b11_requests_in_pieces_of_one_byte_are_read_whole() {
    let setup = redis_setup(OPEN_SCHEMA);
    let mut client = setup.proxy.client();
    let pipeline = [
        encode(&["HSET", "user:1", "f", "a\r\nb"]),
        b"\r\nping\r\n*0\r\n".to_vec(),
        encode(&["HGETALL", "user:1"]),
        encode(&["ECHO", ""]),
    ];
    for byte in pipeline.concat() {
        client.send([byte]);
        thread::sleep(Duration::from_micros(200));
    }
    let expected = b":1\r\n+PONG\r\n*2\r\n$1\r\nf\r\n$4\r\na\r\nb\r\n$0\r\n\r\n";
    assert_bytes("one byte at a time", &client.read_exact_bytes(expected.len()), expected);
}

#[test]
fn ten_thousand_arguments_and_a_value_of_16_mib_arrive_whole() {
    much_arrives_whole(&redis_setup(OPEN_SCHEMA));
}

pub(crate) fn much_arrives_whole(setup: &Setup) {
    const PAIRS: usize = 5_000;
    let mut client = setup.proxy.client();
    let mut hset = vec!["HSET".to_owned(), "user:many".to_owned()];
    (0..PAIRS).for_each(|number| hset.extend([format!("field{number}"), format!("v{number}")]));
    assert_eq!(client.command(&hset), Reply::Integer(5_000));
    assert_eq!(client.command(&["HLEN", "user:many"]), Reply::Integer(5_000));
    let value: Vec<u8> = (0..16 * MIB).map(|number| (number % 251) as u8).collect();
    for (set, get) in [
        (["SET", "big"].as_slice(), ["GET", "big"].as_slice()),
        (&["HSET", "user:big", "blob"], &["HGET", "user:big", "blob"]),
    ] {
        let mut arguments: Vec<&[u8]> = set.iter().map(|word| word.as_bytes()).collect();
        arguments.push(&value);
        client.command(&arguments);
        assert!(client.command(get) == Reply::Bulk(value.clone()), "{get:?} differs");
    }
    setup.wait_for_equality();
}

#[test]
fn b14_a_protocol_error_comes_behind_the_replies_before_it_and_then_the_close() {
    let setup = redis_setup(OPEN_SCHEMA);
    setup.proxy.client().assert_reply("SET k 1", b"+OK\r\n");
    for (broken, text) in [
        ("*1\r\n:1\r\n", "-ERR Protocol error: expected '$', got ':'\r\n"),
        ("*x\r\n", "-ERR Protocol error: invalid multibulk length\r\n"),
        ("QUIT\r\nPING\r\n", "+OK\r\n"),
    ] {
        let mut client = setup.proxy.client();
        let commands = encode(&["INCR", "k"]).repeat(500);
        client.send([commands.as_slice(), broken.as_bytes()].concat());
        let got = client.read_to_close_of(&shown(broken.as_bytes()));
        let lines: Vec<&[u8]> = got.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 501, "{broken:?}");
        assert!(lines[..500].iter().all(|line| line.starts_with(b":")), "{broken:?}");
        assert_bytes(broken, lines[500], text.as_bytes());
    }
}

/// The words of a line, as one command.
fn words(line: &str) -> Vec<u8> {
    encode(&line.split_whitespace().collect::<Vec<_>>())
}

#[test]
fn more_than_maxclients_are_turned_away_in_the_words_of_redis() {
    let bare = Redis::with_options(&["--maxclients", "2"]);
    let setup = redis_setup(&format!("[limits]\nmaxclients = 2\n{OPEN_SCHEMA}"));
    let refusal = |address: &str| {
        let mut two = [Client::connect(address), Client::connect(address)];
        two.iter_mut().for_each(|client| client.assert_reply("PING", b"+PONG\r\n"));
        Client::connect(address).read_to_close()
    };
    let wait_until_left = || {
        wait_until("earlier connections to be gone", BOUND, || {
            (setup.metric("connections_open") < 0.5).then_some(())
        });
    };
    wait_until_left();
    assert_bytes("refusal", &refusal(&setup.proxy.address()), &refusal(&bare.address()));
    wait_until_left();
    setup.proxy.client().assert_reply("PING", b"+PONG\r\n");
}

#[test]
fn idle_clients_are_cut_but_for_those_that_wait_for_others() {
    let setup = redis_setup(&format!("[limits]\ntimeout = 1\n{OPEN_SCHEMA}"));
    let mut idle = setup.proxy.client();
    let mut waiting: Vec<Client> =
        ["SUBSCRIBE a", "MONITOR", "BLPOP list 0"].map(|line| connected(&setup, line)).into();
    let mut active = setup.proxy.client();
    idle.assert_reply("PING", b"+PONG\r\n");
    let start = Instant::now();
    let mut cut_after = None;
    while start.elapsed() < Duration::from_secs(5) {
        active.assert_reply("PING", b"+PONG\r\n");
        if cut_after.is_none() && setup.metric("connections_idle_total") > 0.5 {
            cut_after = Some(start.elapsed());
        }
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(idle.read_to_close(), b"");
    let cut_after = cut_after.expect("an idle client is counted");
    assert!(cut_after > Duration::from_secs(1), "cut after {cut_after:?}");
    assert!(setup.metric("connections_idle_total") < 1.5, "only one was idle");
    active.assert_reply("RPUSH list x", b":1\r\n");
    active.assert_reply("PUBLISH a x", b":1\r\n");
    let heard: Vec<Vec<u8>> = waiting.iter_mut().map(Client::reply_bytes).collect();
    assert_bytes("message", &heard[0], b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n");
    assert_bytes("popped", &heard[2], b"*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
}

/// A client that has said one thing and got its answer, if it gets one at once.
fn connected(setup: &Setup, line: &str) -> Client {
    let mut client = setup.proxy.client();
    client.send(words(line));
    if !line.starts_with("BLPOP") {
        client.reply();
    }
    client
}

#[test]
fn a_subscriber_above_the_soft_limit_is_cut_after_its_time_and_not_before() {
    let limit = "client-output-buffer-limit = \"pubsub 0 64KiB 1\"";
    let setup = redis_setup(&format!("[limits]\n{limit}\n{OPEN_SCHEMA}"));
    let mut subscriber = connected(&setup, "SUBSCRIBE news");
    let mut publisher = setup.proxy.client();
    let message = "x".repeat(1 << 20);
    let output = |client: &mut Client| {
        let list = client.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        let list = String::from_utf8_lossy(list.bytes()).into_owned();
        let omem = list.split(' ').find_map(|field| field.strip_prefix("omem="));
        omem.map(|bytes| bytes.parse::<usize>().expect("a number"))
    };
    let start = Instant::now();
    while output(&mut publisher).expect("a subscriber") < 1 << 20 {
        publisher.command(&["PUBLISH", "news", &message]);
        assert!(start.elapsed() < BOUND, "the system takes everything");
    }
    let above = Instant::now();
    wait_until("the subscriber to be cut", BOUND, || {
        output(&mut publisher).is_none().then_some(())
    });
    assert!(above.elapsed() > Duration::from_millis(900), "cut after {:?}", above.elapsed());
    assert!(setup.metric("connections_cut_total") > 0.5);
    assert!(subscriber.read_to_close().len() > 64 << 10);
}

#[test]
fn arguments_above_proto_max_bulk_len_are_refused_as_by_redis() {
    let bare = Redis::with_options(&["--proto-max-bulk-len", "1mb"]);
    let setup = redis_setup(&format!("[limits]\nproto-max-bulk-len = \"1MiB\"\n{OPEN_SCHEMA}"));
    for header in ["*2\r\n$4\r\nECHO\r\n$1048577\r\n", "*1\r\n$99999999999\r\n"] {
        let replies = [bare.client(), setup.proxy.client()].map(|mut client| {
            client.send(header);
            client.read_to_close()
        });
        assert_bytes(header, &replies[1], &replies[0]);
        assert!(!replies[0].is_empty());
    }
    let most = "v".repeat(1 << 20);
    assert_eq!(setup.proxy.client().command(&["ECHO", &most]), Reply::text(&most));
}

#[test]
fn the_system_probes_silent_clients() {
    for (config, expected) in [("", "02"), ("[limits]\ntcp-keepalive = 0\n", "00")] {
        let setup = redis_setup(&format!("{config}{OPEN_SCHEMA}"));
        let mut client = setup.proxy.client();
        client.assert_reply("PING", b"+PONG\r\n");
        // The proxy's end of the connection: its port, state established, and which timer runs.
        let port = format!(":{:04X}", setup.proxy.port());
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let timers: Vec<&str> = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|row| row.len() > 5 && row[1].ends_with(&port) && row[3] == "01")
            .map(|row| if row[5].starts_with("02") { "02" } else { "00" })
            .collect();
        assert_eq!(timers, [expected], "{config:?}");
    }
}
