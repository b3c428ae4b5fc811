//! CLIENT acts on the proxy's own clients: whom it lists, kills and unblocks, and that nobody else
//! and no connection to Redis is touched.

use std::process::Command;
use std::time::Duration;

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::{Setup, on_both_setups};
use crate::support::{program, wait_until};

const BOUND: Duration = Duration::from_secs(10);

fn words(line: &str) -> Vec<u8> {
    encode(&line.split_whitespace().collect::<Vec<_>>())
}

fn setup() -> Setup {
    setup_with(Proxy::options())
}

fn setup_with(options: ProxyOptions) -> Setup {
    let redis = Redis::start();
    let proxy = options.upstream(redis.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.wait_for_tables();
    setup
}

fn id(client: &mut Client) -> i64 {
    client.command(&["CLIENT", "ID"]).integer()
}

/// A field of a client's own line.
fn own(client: &mut Client, name: &str) -> String {
    let line = client.command(&["CLIENT", "INFO"]);
    let line = String::from_utf8_lossy(line.bytes()).into_owned();
    let mut fields = line.split([' ', '\n']);
    let found = fields.find_map(|field| field.strip_prefix(&format!("{name}=")));
    found.unwrap_or_else(|| panic!("no {name} in {line}")).to_owned()
}

#[track_caller]
fn assert_dead(client: &mut Client) {
    assert_eq!(client.read_to_close(), b"", "a killed client heard something");
}

on_both_setups!(
    killed_by_id,
    killed_by_address,
    killed_by_local_address,
    killed_by_type,
    killed_by_user,
    killed_by_age,
    killed_itself,
);

/// Two clients: one that kills and one that others must leave alone.
fn two(setup: &Setup) -> (Client, Client) {
    let (mut killer, mut victim) = (setup.proxy.client(), setup.proxy.client());
    killer.assert_reply("PING", "+PONG\r\n");
    victim.assert_reply("PING", "+PONG\r\n");
    (killer, victim)
}

pub(crate) fn killed_by_id(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    let mut other = setup.proxy.client();
    let (own_id, victims) = (id(&mut killer), id(&mut victim));
    killer.assert_reply(&format!("CLIENT KILL ID {own_id}"), ":0\r\n");
    killer.assert_reply(&format!("client kill id {victims}"), ":1\r\n");
    let list = killer.command(&["CLIENT", "LIST"]);
    let list = String::from_utf8_lossy(list.bytes()).into_owned();
    assert!(!list.contains(&format!("id={victims} ")), "{list}");
    assert_dead(&mut victim);
    killer.assert_reply(&format!("CLIENT KILL ID {victims}"), ":0\r\n");
    other.assert_reply("PING", "+PONG\r\n");
}

fn killed_by_address(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    let mut second = setup.proxy.client();
    let (first_address, second_address) = (own(&mut victim, "addr"), own(&mut second, "addr"));
    killer.assert_reply(&format!("CLIENT KILL ADDR {first_address}"), ":1\r\n");
    assert_dead(&mut victim);
    killer.assert_reply(&format!("CLIENT KILL {second_address}"), "+OK\r\n");
    assert_dead(&mut second);
    let line = format!("CLIENT KILL {second_address}");
    killer.assert_reply(&line, "-ERR No such client\r\n");
}

fn killed_by_local_address(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    let local = own(&mut killer, "laddr");
    assert_eq!(local, setup.proxy.address());
    killer.assert_reply("CLIENT KILL LADDR 127.0.0.1:1", ":0\r\n");
    killer.assert_reply(&format!("CLIENT KILL LADDR {local}"), ":1\r\n");
    assert_dead(&mut victim);
    killer.assert_reply(&format!("CLIENT KILL LADDR {local} SKIPME no"), ":1\r\n");
    assert_dead(&mut killer);
}

pub(crate) fn killed_by_type(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    if setup.redis.is_some() {
        let mut subscriber = setup.proxy.client();
        subscriber.assert_reply_starts("SUBSCRIBE news", "*3\r\n");
        killer.assert_reply("CLIENT KILL TYPE pubsub", ":1\r\n");
        assert_dead(&mut subscriber);
        killer.assert_reply("PUBLISH news x", ":0\r\n");
    }
    killer.assert_reply("CLIENT KILL TYPE replica", ":0\r\n");
    killer.assert_reply("CLIENT KILL TYPE normal SKIPME yes", ":1\r\n");
    assert_dead(&mut victim);
}

fn killed_by_user(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    killer.assert_reply("CLIENT KILL USER app", "-ERR No such user 'app'\r\n");
    killer.assert_reply("CLIENT KILL USER default", ":1\r\n");
    assert_dead(&mut victim);
}

fn killed_by_age(setup: Setup) {
    let (mut killer, mut victim) = two(&setup);
    killer.assert_reply("CLIENT KILL MAXAGE 100", ":0\r\n");
    killer.assert_reply("CLIENT KILL MAXAGE 0", "-ERR maxage should be greater than 0\r\n");
    std::thread::sleep(Duration::from_millis(1100));
    let mut young = setup.proxy.client();
    killer.assert_reply("CLIENT KILL MAXAGE 1", ":1\r\n");
    assert_dead(&mut victim);
    young.assert_reply("PING", "+PONG\r\n");
}

/// The reply comes before the end, and nothing behind it is run.
pub(crate) fn killed_itself(setup: Setup) {
    let mut client = setup.proxy.client();
    let address = own(&mut client, "addr");
    client.send([words(&format!("CLIENT KILL {address}")), words("HSET user:1 a b")].concat());
    assert_bytes("CLIENT KILL", &client.read_to_close(), b"+OK\r\n");
    let mut client = setup.proxy.client();
    client.send([words("CLIENT KILL TYPE normal SKIPME no"), words("HSET user:1 a b")].concat());
    assert_bytes("CLIENT KILL", &client.read_to_close(), b":1\r\n");
    setup.proxy.client().assert_reply("EXISTS user:1", ":0\r\n");
}

#[test]
fn users_are_killed_by_the_name_under_which_they_are_logged_in() {
    // The hash is that of "secret".
    let hash = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    let user = |name| format!("[[user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\n");
    let kind = "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n".to_owned();
    let config = [user("app"), user("ops"), kind].concat();
    let setup = setup_with(Proxy::options().config(&config));
    let clients = ["ops", "app", "app"].map(|name| {
        let mut client = setup.proxy.client();
        client.assert_reply(&format!("AUTH {name} secret"), "+OK\r\n");
        client
    });
    let [mut ops, mut one, mut other] = clients;
    one.assert_reply("CLIENT KILL USER app", ":1\r\n");
    assert_dead(&mut other);
    ops.assert_reply("CLIENT KILL USER app TYPE pubsub", ":0\r\n");
    ops.assert_reply("CLIENT KILL USER app TYPE normal", ":1\r\n");
    assert_dead(&mut one);
    ops.assert_reply("CLIENT KILL USER root", "-ERR No such user 'root'\r\n");
    setup
        .proxy
        .client()
        .assert_reply("CLIENT KILL USER app", "-NOAUTH Authentication required.\r\n");
}

#[test]
fn no_connection_of_the_proxy_to_redis_is_killed_through_it() {
    let setup = setup();
    let mut killer = setup.proxy.client();
    let mut blocked = setup.proxy.client();
    blocked.send(words("BLPOP list 0"));
    wait_for_blocked(&setup, 1);
    let at_redis = setup.store_client().command(&["CLIENT", "LIST"]);
    let at_redis = String::from_utf8_lossy(at_redis.bytes()).into_owned();
    let lane = at_redis.lines().find(|line| line.contains("name=profile-proxy:")).expect("a lane");
    let address = lane.split(' ').find_map(|field| field.strip_prefix("addr=")).expect("addr");
    killer.assert_reply(&format!("CLIENT KILL {address}"), "-ERR No such client\r\n");
    killer.assert_reply(&format!("CLIENT KILL ADDR {address}"), ":0\r\n");
    let redis = setup.redis.as_ref().expect("a Redis").address();
    killer.assert_reply(&format!("CLIENT KILL LADDR {redis} SKIPME no"), ":0\r\n");
    killer.assert_reply("SET k v", "+OK\r\n");
    let links = setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[]);
    assert!((links - 1.0).abs() < 0.5, "{links} links were made");
    wait_for_blocked(&setup, 1);
}

fn wait_for_blocked(setup: &Setup, count: usize) {
    let mut direct = setup.store_client();
    wait_until("blocked clients", BOUND, || {
        let text = direct.command(&["INFO", "clients"]);
        let wanted = format!("blocked_clients:{count}\r\n");
        String::from_utf8_lossy(text.bytes()).contains(&wanted).then_some(())
    });
}

#[test]
fn a_killed_client_takes_nothing_and_hears_nothing_of_others() {
    let setup = setup();
    let (mut killer, mut blocked) = two(&setup);
    let mut subscriber = setup.proxy.client();
    blocked.send(words("BLPOP list 0"));
    subscriber.assert_reply_starts("SUBSCRIBE news", "*3");
    wait_for_blocked(&setup, 1);
    killer.assert_reply("CLIENT KILL TYPE normal", ":1\r\n");
    wait_for_blocked(&setup, 0);
    killer.assert_reply("RPUSH list x", ":1\r\n");
    killer.assert_reply("LLEN list", ":1\r\n");
    killer.assert_reply("CLIENT KILL TYPE pubsub", ":1\r\n");
    // Its link is given back to Redis a moment later.
    wait_until("nobody to listen", BOUND, || {
        (killer.command(&["PUBLISH", "news", "x"]) == Reply::Integer(0)).then_some(())
    });
    assert_dead(&mut blocked);
    assert_dead(&mut subscriber);
    // A new client may get the private links of the dead.
    let mut heir = setup.proxy.client();
    heir.assert_reply("BLPOP list 0", "*2\r\n$4\r\nlist\r\n$1\r\nx\r\n");
}

#[test]
fn what_a_killed_client_had_sent_is_not_run() {
    let mut setup = setup();
    let (mut killer, mut victim) = two(&setup);
    let victims = id(&mut victim);
    setup.proxy.signal("STOP");
    killer.send(words(&format!("CLIENT KILL ID {victims}")));
    std::thread::sleep(Duration::from_millis(50));
    victim.send(words("SET k v"));
    setup.proxy.signal("CONT");
    assert_eq!(killer.reply(), Reply::Integer(1));
    victim.read_to_close();
    killer.assert_reply("EXISTS k", ":0\r\n");
}

#[test]
fn redis_cli_kills_and_lists() {
    let setup = setup();
    let mut victim = setup.proxy.client();
    victim.assert_reply("CLIENT SETNAME victim", "+OK\r\n");
    let run = |arguments: &[&str]| {
        let port = setup.proxy.port().to_string();
        let mut command = Command::new(program("redis-cli", "redis-tools", &[]));
        let output = command.args(["-p", &port]).args(arguments).output().expect("redis-cli runs");
        String::from_utf8(output.stdout).expect("text")
    };
    assert!(run(&["CLIENT", "LIST"]).contains(" name=victim "));
    assert_eq!(run(&["CLIENT", "KILL", "TYPE", "normal"]), "1\n");
    assert_dead(&mut victim);
    assert!(!run(&["CLIENT", "LIST"]).contains(" name=victim "));
}

#[test]
fn blocked_clients_are_unblocked_as_by_redis() {
    let (alone, setup) = (Redis::start(), setup());
    let talk = |address: String, store: &mut Client| -> Vec<Vec<u8>> {
        let (mut asker, mut blocked) = (Client::connect(&address), Client::connect(&address));
        let blocked_id = id(&mut blocked);
        let mut heard = Vec::new();
        for (command, reason) in [
            ("BLPOP list 0", ""),
            ("BLPOP list 0", "TIMEOUT"),
            ("BLMOVE list other LEFT RIGHT 0", "error"),
            ("BZPOPMIN zset 0", "ERROR"),
            ("XREAD BLOCK 0 STREAMS stream $", "timeout"),
        ] {
            let unblock = words(&format!("CLIENT UNBLOCK {blocked_id} {reason}"));
            asker.send(&unblock);
            heard.push(asker.reply_bytes());
            blocked.send(words(command));
            wait_until("a blocked client", BOUND, || {
                let text = store.command(&["INFO", "clients"]);
                let text = String::from_utf8_lossy(text.bytes()).into_owned();
                text.contains("blocked_clients:1\r\n").then_some(())
            });
            asker.send([words("PING"), unblock].concat());
            heard.extend([asker.reply_bytes(), asker.reply_bytes()]);
            heard.push(blocked.reply_bytes());
            blocked.send(words("PING"));
            heard.push(blocked.reply_bytes());
        }
        heard
    };
    let expected = talk(alone.address(), &mut alone.client());
    let got = talk(setup.proxy.address(), &mut setup.store_client());
    assert_eq!(got.len(), expected.len());
    for (at, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_bytes(&format!("reply {at}"), got, expected);
    }
}

/// The lines of CLIENT LIST in states that a client can be in, with what depends on the server or
/// the moment made equal.
fn lines(address: &str) -> Vec<String> {
    let mut clients: Vec<Client> = (0..6).map(|_| Client::connect(address)).collect();
    let setups = [
        "CLIENT SETNAME web",
        "HELLO 3",
        "SUBSCRIBE a b",
        "MULTI",
        "CLIENT NO-EVICT ON",
        "SELECT 3",
    ];
    for (client, line) in clients.iter_mut().zip(setups) {
        client.send(words(line));
        client.reply();
    }
    clients[2].reply();
    clients[3].command(&["GET", "k"]);
    let list = clients[0].command(&["CLIENT", "LIST"]);
    let text = String::from_utf8_lossy(list.bytes()).into_owned();
    let ids: Vec<String> = clients[..1].iter_mut().map(|client| id(client).to_string()).collect();
    let by_id = clients[0].command(&["CLIENT", "LIST", "ID", &ids[0], "123456"]);
    let pubsub = clients[0].command(&["CLIENT", "LIST", "TYPE", "PUBSUB"]);
    let own = clients[1].command(&["CLIENT", "INFO"]);
    let all = [by_id, pubsub, own].map(|reply| String::from_utf8_lossy(reply.bytes()).into_owned());
    let all = [vec![text], all.to_vec()].concat().join("--\n");
    all.lines().map(comparable).collect()
}

fn comparable(line: &str) -> String {
    let differs = [
        "id",
        "addr",
        "laddr",
        "fd",
        "qbuf-free",
        "argv-mem",
        "multi-mem",
        "rbs",
        "rbp",
        "tot-mem",
        "age",
        "idle",
    ];
    let fields = line.split(' ').map(|field| match field.split_once('=') {
        Some((name, _)) if differs.contains(&name) => format!("{name}=?"),
        _ => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_lines_of_client_list_are_those_of_redis() {
    let (alone, setup) = (Redis::start(), setup());
    let (expected, got) = (lines(&alone.address()), lines(&setup.proxy.address()));
    let states = |lines: Vec<String>| -> Vec<String> {
        // The test's own connection that waited for the server is in one of the lists perhaps.
        lines.into_iter().filter(|line| !line.contains(" cmd=ping ")).collect()
    };
    assert_eq!(states(got), states(expected));
}
