//! What may come over the link to Redis and must harm nobody: late, early, stray, cut and refused
//! replies. The upstream is scripted, so that each of them comes exactly when the test says.
//!
//! The names begin with the number under which the bug is known in proxies of this kind.

use std::time::{Duration, Instant};

use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream, handshake_reply};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::setup::{Fields, Setup};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(10);
const UNKNOWN: &str = "ERR the connection to the upstream was lost, outcome unknown";
const NOT_SENT: &str = "MASTERDOWN the upstream Redis is down; nothing was sent";

/// An open kind without a `ttl`, and an upstream that is given up after a second of silence.
const CONFIG: &str = r#"
upstream_timeout = "1s"
[[profile]]
name = "user"
key = "user:{id}"
unknown_fields = "allow"
"#;

fn start(options: ProxyOptions) -> (FakeUpstream, FakeLink, Proxy) {
    let upstream = FakeUpstream::start();
    let (proxy, link) = upstream.start_proxy(options.config(CONFIG));
    (upstream, link, proxy)
}

/// A start after which the link is expected to be lost.
fn start_lossy() -> (FakeUpstream, FakeLink, Proxy) {
    start(Proxy::options().expects_log("lost the upstream"))
}

fn send(client: &mut Client, line: &str) {
    client.send(encode(&line.split(' ').collect::<Vec<_>>()));
}

fn error(text: &str) -> Reply {
    Reply::Error(text.to_owned())
}

/// Sends commands until one is carried again, answers it, and checks that it gets its own reply.
#[track_caller]
fn assert_serves(proxy: &Proxy, link: &mut FakeLink) {
    let mut client = proxy.client();
    wait_until("the link to be used", BOUND, || {
        (proxy.metrics().sum("profile_proxy_upstream_up", &[]) > 0.5).then_some(())
    });
    send(&mut client, "GET fresh");
    link.expect("GET fresh");
    link.reply("$5\r\nfresh\r\n");
    assert_eq!(client.reply(), Reply::text("fresh"));
}

#[track_caller]
fn wait_for_doubts(proxy: &Proxy, count: f64) {
    wait_until("the number of writes in doubt", BOUND, || {
        let doubts = proxy.metrics().sum("profile_proxy_in_doubt_changes", &[]);
        ((doubts - count).abs() < 0.5).then_some(())
    });
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs
        .iter()
        .map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()))
        .collect()
}

/// Waits until the database holds exactly these fields for `key`; `None` is a deleted profile.
#[track_caller]
fn wait_for_row(setup: &Setup, key: &str, expected: Option<&Fields>) {
    setup.wait_for_tables();
    wait_until("the row in the database", BOUND, || {
        (setup.database_profiles().get(key) == expected).then_some(())
    });
}

#[test]
fn b1_a_reply_that_comes_after_its_client_left_goes_to_nobody() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    for round in 0..20 {
        let mut leaver = proxy.client();
        send(&mut leaver, &format!("GET leaver{round}"));
        link.expect(&format!("GET leaver{round}"));
        drop(leaver);
        let mut stayer = proxy.client();
        send(&mut stayer, &format!("GET stayer{round}"));
        link.expect(&format!("GET stayer{round}"));
        link.reply("$10\r\nfor-leaver\r\n$10\r\nfor-stayer\r\n");
        assert_eq!(stayer.reply(), Reply::text("for-stayer"));
    }
}

#[test]
fn b1_half_a_reply_before_the_end_of_the_link_goes_to_nobody() {
    let (upstream, mut link, proxy) = start_lossy();
    let mut client = proxy.client();
    client.send([encode(&["GET", "a"]), encode(&["GET", "b"]), encode(&["GET", "c"])].concat());
    for name in ["a", "b", "c"] {
        link.expect(&format!("GET {name}"));
    }
    link.reply("$1\r\nA\r\n$100\r\nhalf of B");
    link.close();
    assert_eq!(client.reply(), Reply::text("A"));
    assert_eq!(client.reply(), error(UNKNOWN));
    assert_eq!(client.reply(), error(UNKNOWN));
    assert_serves(&proxy, &mut upstream.accept());
}

#[test]
fn b1_a_reply_that_comes_after_the_time_limit_goes_to_nobody() {
    let (upstream, mut link, proxy) = start_lossy();
    let mut client = proxy.client();
    send(&mut client, "GET late");
    link.expect("GET late");
    assert_eq!(client.reply(), error(UNKNOWN));
    link.reply_if_there("$4\r\nlate\r\n");
    let mut fresh = upstream.accept();
    link.reply_if_there("$4\r\nlate\r\n");
    assert_serves(&proxy, &mut fresh);
    send(&mut client, "GET next");
    fresh.expect("GET next");
    fresh.reply("$4\r\nnext\r\n");
    assert_eq!(client.reply(), Reply::text("next"));
}

#[test]
fn b2_a_stray_reply_ends_the_link() {
    let (upstream, mut link, proxy) = start_lossy();
    assert_serves(&proxy, &mut link);
    link.reply("+STRAY\r\n");
    assert_eq!(link.read_to_close(), b"");
    assert_serves(&proxy, &mut upstream.accept());
}

#[test]
fn b2_a_second_reply_to_one_request_ends_the_link() {
    let (upstream, mut link, proxy) = start_lossy();
    let mut client = proxy.client();
    send(&mut client, "GET once");
    link.expect("GET once");
    link.reply("$4\r\nonce\r\n$5\r\ntwice\r\n");
    assert_eq!(client.reply(), Reply::text("once"));
    assert_eq!(link.read_to_close(), b"");
    let mut fresh = upstream.accept();
    assert_serves(&proxy, &mut fresh);
    send(&mut client, "GET next");
    fresh.expect("GET next");
    fresh.reply("$4\r\nnext\r\n");
    assert_eq!(client.reply(), Reply::text("next"));
}

#[test]
fn b2_a_stray_reply_that_comes_with_a_request_does_not_answer_it() {
    let (upstream, mut link, mut proxy) = start_lossy();
    for _ in 0..5 {
        assert_serves(&proxy, &mut link);
        let mut client = proxy.client();
        assert_eq!(client.command(&["PING"]), Reply::Simple("PONG".into()));
        proxy.signal("STOP");
        send(&mut client, "GET mine");
        link.reply("$5\r\nstray\r\n");
        proxy.signal("CONT");
        let reply = client.reply();
        assert!([error(UNKNOWN), error(NOT_SENT)].contains(&reply), "{reply:?}");
        link = upstream.accept();
    }
}

/// The upstream takes nothing and answers everything: a reply to bytes that never left the proxy
/// cannot be meant for them.
#[test]
fn b2_a_reply_to_a_request_that_was_not_sent_ends_the_link() {
    const CLIENTS: usize = 40;
    let (_upstream, mut link, proxy) = start_lossy();
    let value = "v".repeat(512 << 10);
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(encode(&["SET", "key", &value]));
        // Each goes into a batch of its own: a batch is the unit that is known to have left.
        std::thread::sleep(Duration::from_millis(10));
    }
    link.reply_if_there("+OK\r\n".repeat(CLIENTS));
    let replies: Vec<Reply> = clients.iter_mut().map(Client::reply).collect();
    let told_ok = replies.iter().filter(|reply| **reply == Reply::Simple("OK".into())).count();
    let arrived = link.read_to_close();
    let begun = count_of(&arrived, b"*3\r\n$3\r\nSET\r\n");
    assert!(begun < CLIENTS, "everything was sent, so nothing is shown");
    assert!(told_ok <= begun, "{told_ok} were told OK and {begun} had been sent");
}

fn count_of(bytes: &[u8], text: &[u8]) -> usize {
    bytes.windows(text.len()).filter(|window| *window == text).count()
}

#[test]
fn b2_pushes_between_replies_go_to_nobody() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    let push = ">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nx\r\n";
    let mut client = proxy.client();
    link.reply(push);
    client.send([encode(&["GET", "a"]), encode(&["GET", "b"]), encode(&["GET", "c"])].concat());
    for name in ["a", "b", "c"] {
        link.expect(&format!("GET {name}"));
    }
    link.reply(format!("{push}$1\r\nA\r\n{push}{push}$1\r\nB\r\n"));
    link.reply(&push[..7]);
    assert_eq!(client.reply(), Reply::text("A"));
    assert_eq!(client.reply(), Reply::text("B"));
    link.reply(format!("{}$1\r\nC\r\n{push}", &push[7..]));
    assert_eq!(client.reply(), Reply::text("C"));
    // Also between replies that belong together, which come in pieces.
    send(&mut client, "HDEL user:1 f");
    link.expect("HDEL user:1 f");
    link.expect("EXISTS user:1");
    for piece in [":1\r\n", push, &push[..9], &push[9..], ":", "1\r\n"] {
        link.reply(piece);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(client.reply(), Reply::Integer(1));
    assert_serves(&proxy, &mut link);
}

#[test]
fn b2_bytes_that_are_no_resp_end_the_link() {
    for garbage in
        ["HTTP/1.1 400 Bad Request\r\n\r\n", "$3\r\nabcd\r\n", "$x\r\n", "\r\n", "*-2\r\n"]
    {
        let (upstream, mut link, proxy) = start_lossy();
        let mut client = proxy.client();
        send(&mut client, "GET a");
        link.expect("GET a");
        link.reply(garbage);
        std::thread::sleep(Duration::from_millis(20));
        link.reply_if_there("$5\r\nwrong\r\n");
        assert_eq!(client.reply(), error(UNKNOWN), "{garbage:?}");
        link.read_to_close();
        assert_serves(&proxy, &mut upstream.accept());
    }
}

#[test]
fn b3_an_oom_error_fails_that_command_only() {
    const CLIENTS: usize = 100;
    let (_upstream, mut link, proxy) = start(Proxy::options());
    let errors = [
        "OOM command not allowed when used memory > 'maxmemory'.",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
    ];
    let mut clients: Vec<Client> = (0..CLIENTS).map(|_| proxy.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        send(client, &format!("APPEND k{number} x"));
    }
    for _ in 0..CLIENTS {
        let line = link.request_line();
        let number: usize = line["APPEND k".len()..line.len() - 2].parse().unwrap();
        match errors.get(number) {
            Some(text) => link.reply(format!("-{text}\r\n")),
            None => link.reply(format!(":{number}\r\n")),
        }
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let expected = match errors.get(number) {
            Some(text) => error(text),
            None => Reply::Integer(i64::try_from(number).unwrap()),
        };
        assert_eq!(client.reply(), expected);
    }
    let links = proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    assert!((links - 1.0).abs() < 0.5, "{links} links were made");
    assert_serves(&proxy, &mut link);
}

#[test]
fn b3_a_profile_write_that_redis_refuses_is_no_change() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    let setup = Setup { proxy, redis: None, postgres: None };
    let mut client = setup.proxy.client();
    client.send(
        [encode(&["HSET", "user:1", "f", "lost"]), encode(&["HSET", "user:2", "f", "kept"])]
            .concat(),
    );
    link.expect("HSET user:1 f lost");
    link.expect("HSET user:2 f kept");
    link.reply("-OOM command not allowed when used memory > 'maxmemory'.\r\n:1\r\n");
    assert_eq!(client.reply(), error("OOM command not allowed when used memory > 'maxmemory'."));
    assert_eq!(client.reply(), Reply::Integer(1));
    wait_for_row(&setup, "user:2", Some(&fields(&[("f", "kept")])));
    assert_eq!(setup.history_count(), 1);
    assert!(!setup.database_profiles().contains_key("user:1"));
    wait_for_doubts(&setup.proxy, 0.0);
}

/// What Redis refuses to tell about a profile says nothing about it: the proxy asks again instead
/// of taking it for deleted, and only that profile waits.
#[test]
fn b3_a_refused_look_behind_a_write_is_asked_again() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    let setup = Setup { proxy, redis: None, postgres: None };
    let mut client = setup.proxy.client();
    for (key, command, probe) in [
        ("user:1", "EXPIRE user:1 1000", "PEXPIRETIME user:1"),
        ("user:2", "HDEL user:2 f", "EXISTS user:2"),
    ] {
        send(&mut client, &format!("HSET {key} f 1 g 2"));
        link.expect(&format!("HSET {key} f 1 g 2"));
        link.reply(":2\r\n");
        assert_eq!(client.reply(), Reply::Integer(2));
        send(&mut client, command);
        link.expect(command);
        link.expect(probe);
        link.reply(":1\r\n-BUSY Redis is busy running a script.\r\n");
        assert_eq!(client.reply(), Reply::Integer(1), "{command}");
        link.expect(&format!("HGETALL {key}"));
        link.expect(&format!("PEXPIRETIME {key}"));
        link.reply("*2\r\n$1\r\ng\r\n$1\r\n2\r\n:-1\r\n");
        wait_for_row(&setup, key, Some(&fields(&[("g", "2")])));
        wait_for_doubts(&setup.proxy, 0.0);
    }
    // EXISTS goes in front of a DEL of several keys; the DEL may have happened all the same.
    send(&mut client, "DEL user:1 user:2");
    link.expect("EXISTS user:1");
    link.expect("EXISTS user:2");
    link.expect("DEL user:1 user:2");
    link.reply("-BUSY Redis is busy running a script.\r\n:1\r\n:2\r\n");
    assert_eq!(client.reply(), Reply::Integer(2));
    link.expect("HGETALL user:1");
    link.expect("PEXPIRETIME user:1");
    link.reply("*0\r\n:-2\r\n");
    wait_for_row(&setup, "user:1", None);
    wait_for_row(&setup, "user:2", None);
    wait_for_doubts(&setup.proxy, 0.0);
    assert_serves(&setup.proxy, &mut link);
}

#[test]
fn b3_a_profile_that_cannot_be_read_back_is_not_taken_for_deleted() {
    let (upstream, mut link, proxy) = start_lossy();
    let setup = Setup { proxy, redis: None, postgres: None };
    setup.wait_for_tables();
    let mut client = setup.proxy.client();
    send(&mut client, "HSET user:1 f 1");
    link.expect("HSET user:1 f 1");
    link.reply(":1\r\n");
    assert_eq!(client.reply(), Reply::Integer(1));
    setup.wait_for_history(1);
    send(&mut client, "HSET user:1 f 2");
    link.expect("HSET user:1 f 2");
    link.close();
    assert_eq!(client.reply(), error(UNKNOWN));
    let mut fresh = upstream.accept();
    for refusals in ["-BUSY x\r\n-BUSY x\r\n", "*2\r\n$1\r\nf\r\n$1\r\n2\r\n-BUSY x\r\n"] {
        fresh.expect("HGETALL user:1");
        fresh.expect("PEXPIRETIME user:1");
        wait_for_doubts(&setup.proxy, 1.0);
        fresh.reply(refusals);
    }
    fresh.expect("HGETALL user:1");
    fresh.expect("PEXPIRETIME user:1");
    assert_eq!(setup.history_count(), 1, "nothing is known yet");
    fresh.reply("*2\r\n$1\r\nf\r\n$1\r\n2\r\n:-1\r\n");
    wait_for_doubts(&setup.proxy, 0.0);
    wait_for_row(&setup, "user:1", Some(&fields(&[("f", "2")])));
    setup.wait_for_history(2);
    assert!(setup.history().iter().all(|row| !row.deleted));
}

#[test]
fn b7_a_lost_hincrby_is_never_sent_again() {
    let (upstream, mut link, proxy) = start_lossy();
    let setup = Setup { proxy, redis: None, postgres: None };
    let mut client = setup.proxy.client();
    send(&mut client, "HINCRBY user:1 visits 1");
    link.expect("HINCRBY user:1 visits 1");
    link.close();
    assert_eq!(client.reply(), error(UNKNOWN));
    wait_for_doubts(&setup.proxy, 1.0);
    let mut fresh = upstream.accept();
    fresh.expect("HGETALL user:1");
    fresh.expect("PEXPIRETIME user:1");
    fresh.assert_quiet(Duration::from_millis(100));
    fresh.reply("*2\r\n$6\r\nvisits\r\n$1\r\n1\r\n:-1\r\n");
    wait_for_doubts(&setup.proxy, 0.0);
    wait_for_row(&setup, "user:1", Some(&fields(&[("visits", "1")])));
    send(&mut client, "HINCRBY user:1 visits 1");
    fresh.expect("HINCRBY user:1 visits 1");
    fresh.reply(":2\r\n");
    assert_eq!(client.reply(), Reply::Integer(2));
    wait_for_row(&setup, "user:1", Some(&fields(&[("visits", "2")])));
    let commands: Vec<String> = setup.history().into_iter().map(|row| row.command).collect();
    assert_eq!(commands, ["RECOVER", "HINCRBY"]);
}

#[test]
fn b7_what_was_not_sent_says_so_and_is_not_in_doubt() {
    let (upstream, link, proxy) = start_lossy();
    let mut client = proxy.client();
    link.close();
    wait_until("the loss of the link", BOUND, || {
        (proxy.metrics().sum("profile_proxy_upstream_up", &[]) < 0.5).then_some(())
    });
    for command in ["HINCRBY user:1 visits 1", "GET a", "FROBNICATE"] {
        send(&mut client, command);
        assert_eq!(client.reply(), error(NOT_SENT), "{command}");
    }
    assert_eq!(client.command(&["PING"]), Reply::Simple("PONG".into()));
    wait_for_doubts(&proxy, 0.0);
    let mut fresh = upstream.accept();
    fresh.assert_quiet(Duration::from_millis(100));
    assert_serves(&proxy, &mut fresh);
}

/// What is queued is answered with what Redis says of it, in one write, and also when Redis says
/// nothing any more.
#[test]
fn replies_of_the_proxy_leave_together_with_those_that_the_lane_owes() {
    let (upstream, mut link, proxy) = start_lossy();
    let mut client = proxy.client();
    let block = ["MULTI", "HSET user:1 f v", "EXEC"].map(|line| format!("{line}\r\n")).concat();
    client.send(&block);
    for line in ["MULTI", "HSET user:1 f v", "EXEC"] {
        link.expect(line);
    }
    assert!(client.is_silent_for(Duration::from_millis(100)), "a write of its own");
    link.reply("+OK\r\n+QUEUED\r\n*1\r\n:1\r\n");
    let answer = "+OK\r\n+QUEUED\r\n*1\r\n:1\r\n";
    assert_eq!(client.read_exact_bytes(answer.len()), answer.as_bytes());
    client.send(&block);
    link.expect("MULTI");
    link.close();
    assert_eq!(client.reply(), Reply::Simple("OK".into()));
    assert_eq!(client.reply(), Reply::Simple("QUEUED".into()));
    assert_eq!(client.reply(), error(UNKNOWN));
    let mut fresh = upstream.accept();
    fresh.expect("HGETALL user:1");
    fresh.expect("PEXPIRETIME user:1");
    fresh.reply("*0\r\n:-2\r\n");
    assert_serves(&proxy, &mut fresh);
}

#[test]
fn b9_clients_that_leave_while_replies_are_late_take_nothing_with_them() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    for round in 0..10 {
        let mut clients: Vec<Client> = (0..30).map(|_| proxy.client()).collect();
        for (number, client) in clients.iter_mut().enumerate() {
            send(client, &format!("GET {number}"));
        }
        let lines: Vec<String> = (0..30).map(|_| link.request_line()).collect();
        let mut stayers: Vec<(usize, Client)> =
            clients.into_iter().enumerate().filter(|(number, _)| number % 3 == round % 3).collect();
        for line in lines {
            link.reply(format!("+{}\r\n", &line["GET ".len()..]));
        }
        for (number, client) in &mut stayers {
            assert_eq!(client.reply(), Reply::Simple(number.to_string()));
        }
    }
    assert_serves(&proxy, &mut link);
}

#[test]
fn b10_a_flapping_upstream_is_tried_at_a_bounded_rate_and_taken_back() {
    let (upstream, link, proxy) =
        start(Proxy::options().expects_log("lost the upstream").allows_log("cannot be reached"));
    link.close();
    let start = Instant::now();
    let mut links = 0;
    while start.elapsed() < Duration::from_millis(1500) {
        match upstream.accept_now() {
            Some(link) => {
                links += 1;
                link.close();
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    assert!((3..=20).contains(&links), "{links} attempts in 1.5 s");
    // It comes back and loads its data first.
    let mut loading = upstream.accept_silently();
    loop {
        let request = loading.request();
        if request[0] == b"PING" {
            loading.reply("-LOADING Redis is loading the dataset in memory\r\n");
            break;
        }
        loading.reply(handshake_reply(&request));
    }
    assert_eq!(loading.read_to_close(), b"");
    let mut client = proxy.client();
    assert_eq!(client.command(&["GET", "a"]), error(NOT_SENT));
    let mut fresh = upstream.accept();
    assert!(start.elapsed() < Duration::from_secs(6), "back only after {:?}", start.elapsed());
    assert_serves(&proxy, &mut fresh);
}

/// A black hole: connections are made and nothing is ever heard, not even their end.
#[test]
fn b10_an_upstream_that_swallows_everything_is_given_up_in_time_and_taken_back() {
    let options = Proxy::options().expects_log("lost the upstream");
    let (upstream, mut link, proxy) = start(options.expects_log("cannot be reached"));
    let mut client = proxy.client();
    let start = Instant::now();
    send(&mut client, "GET swallowed");
    link.expect("GET swallowed");
    assert_eq!(client.reply(), error(UNKNOWN));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let mut swallowed = Vec::new();
    while start.elapsed() < Duration::from_secs(8) {
        swallowed.extend(upstream.accept_now());
        let asked = Instant::now();
        assert_eq!(client.command(&["GET", "a"]), error(NOT_SENT));
        assert!(asked.elapsed() < Duration::from_secs(1), "nobody may wait for the black hole");
        std::thread::sleep(Duration::from_millis(5));
    }
    // One attempt lasts five seconds; the others ask whether the silent link is busy.
    assert!((2..=16).contains(&swallowed.len()), "{} connections in 8 s", swallowed.len());
    let healed = Instant::now();
    let mut fresh = upstream.accept();
    assert!(healed.elapsed() < Duration::from_secs(9), "back only after {:?}", healed.elapsed());
    assert_serves(&proxy, &mut fresh);
    // What comes out of the hole now is about links that are none any more.
    for mut late in swallowed.into_iter().chain([link]) {
        late.reply_if_there("$4\r\nlate\r\n");
        late.close();
    }
    assert_serves(&proxy, &mut fresh);
    let links = proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    assert!((links - 2.0).abs() < 0.5, "{links} links were made");
}

#[test]
fn b11_a_reply_in_pieces_of_one_byte_arrives_whole() {
    let (_upstream, mut link, proxy) = start(Proxy::options());
    let mut client = proxy.client();
    client.send(
        [encode(&["GET", "a"]), encode(&["HSET", "user:1", "f", "v"]), encode(&["EVAL", "x", "0"])]
            .concat(),
    );
    link.expect("GET a");
    link.expect("HSET user:1 f v");
    link.expect("EVAL x 0");
    let nested = "*3\r\n*1\r\n*2\r\n$0\r\n\r\n$-1\r\n*-1\r\n:12\r\n";
    for byte in format!("$4\r\na\r\nb\r\n:1\r\n{nested}").bytes() {
        link.reply([byte]);
        std::thread::sleep(Duration::from_micros(300));
    }
    assert_eq!(client.reply(), Reply::text("a\r\nb"));
    assert_eq!(client.reply(), Reply::Integer(1));
    assert_eq!(client.reply_bytes(), nested.as_bytes());
}
