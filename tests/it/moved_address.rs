//! The address of Redis leads to another Redis, as a virtual address that moves, while the former one
//! lives on and answers whoever is still connected to it. Nothing that it says then is acknowledged.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::support::client::{Client, Reply};
use crate::support::process::free_port;
use crate::support::proxy::Proxy;
use crate::support::redis::Redis;
use crate::support::setup::{OPEN_KIND, Setup};
use crate::support::wait_until;

const BOUND: Duration = Duration::from_secs(20);
const DOWN: &str = "-MASTERDOWN the upstream Redis is down; nothing was sent\r\n";

/// A port that stands for one server and later for another; the connections that there are stay with
/// the former one.
struct Address {
    port: u16,
    target: Arc<Mutex<String>>,
    /// The client's side of each connection, in the order in which they were made.
    made: Arc<Mutex<Vec<TcpStream>>>,
}

impl Address {
    fn of(redis: &Redis) -> Address {
        let bound = (0..8).find_map(|_| {
            let port = free_port();
            Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?))
        });
        let (port, listener) = bound.expect("a free port");
        let target = Arc::new(Mutex::new(redis.address()));
        let made: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (to, all) = (Arc::clone(&target), Arc::clone(&made));
        // It ends with the tests: there is no better time, and it costs nothing.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let target = to.lock().expect("the target").clone();
                let Ok(server) = TcpStream::connect(target) else { continue };
                all.lock().expect("the list").push(client.try_clone().expect("a handle"));
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    thread::spawn(move || pump(from, to));
                }
            }
        });
        Address { port, target, made }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    fn move_to(&self, redis: &Redis) {
        *self.target.lock().expect("the target") = redis.address();
    }

    /// Ends the first connection, which is the lane's.
    fn cut_the_lane(&self) {
        let made = self.made.lock().expect("the list");
        made[0].shutdown(Shutdown::Both).expect("an open connection");
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// The former Redis, the proxy before the address, and the Redis that it will lead to.
fn scene() -> (Redis, Address, Setup) {
    let (former, next) = (Redis::start(), Redis::start());
    let address = Address::of(&former);
    let options = Proxy::options().config(OPEN_KIND).upstream(address.url());
    let proxy = options.expects_log("lost the upstream").start();
    proxy.wait_until_checked();
    let setup = Setup { proxy, redis: Some(next), postgres: None };
    setup.wait_for_tables();
    (former, address, setup)
}

fn move_to_next(address: &Address, setup: &Setup) {
    address.move_to(setup.redis.as_ref().expect("the next Redis"));
}

fn links(setup: &Setup) -> f64 {
    setup.proxy.metrics().sum("profile_proxy_upstream_links_total", &[])
}

#[track_caller]
fn wait_for_link(setup: &Setup, before: f64) {
    wait_until("a new link", BOUND, || (links(setup) > before).then_some(()));
}

/// The next Redis has what was acknowledged, and so has the database.
fn assert_one_count(setup: &Setup, count: &str) {
    let mut client = setup.proxy.client();
    assert_eq!(client.command(&["HGET", "user:1", "n"]), Reply::text(count));
    setup.proxy.wait_until_checked();
    setup.wait_for_equality();
    assert_eq!(setup.database_profiles()["user:1"][b"n".as_slice()], count.as_bytes());
}

#[test]
fn a_watched_transaction_is_not_executed_by_the_redis_that_the_lane_has_left() {
    let (former, address, setup) = scene();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 n 1", ":1\r\n");
    client.assert_reply("WATCH user:1", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HINCRBY user:1 n 1", "+QUEUED\r\n");
    let mut subscriber = setup.proxy.client();
    subscriber.send("SUBSCRIBE news\r\n");
    subscriber.reply();
    let mut blocked = setup.proxy.client();
    blocked.send("BLPOP list 0\r\n");
    wait_until("the blocked client", BOUND, || {
        let clients = former.client().command(&["INFO", "clients"]);
        let text = String::from_utf8_lossy(clients.bytes()).into_owned();
        text.contains("blocked_clients:1").then_some(())
    });
    let before = links(&setup);
    move_to_next(&address, &setup);
    address.cut_the_lane();
    wait_for_link(&setup, before);
    // As when Redis itself is lost: what was watched is forgotten.
    let _ = client.try_send("EXEC\r\n");
    assert_eq!(client.read_to_close(), b"");
    assert_eq!(subscriber.read_to_close(), b"");
    let Reply::Error(text) = blocked.reply() else { panic!("nobody can push to that list") };
    assert!(text.ends_with("outcome unknown"), "{text}");
    assert_eq!(former.client().command(&["HGET", "user:1", "n"]), Reply::text("1"));
    assert_one_count(&setup, "1");
}

#[test]
fn no_private_link_goes_to_another_redis_than_the_lanes_and_the_lane_follows() {
    let (former, address, setup) = scene();
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 n 1", ":1\r\n");
    let before = links(&setup);
    move_to_next(&address, &setup);
    // The lane is still at the former one, where this is read and written.
    client.assert_reply("HINCRBY user:1 n 1", ":2\r\n");
    client.assert_reply("WATCH user:1", DOWN);
    client.assert_reply("BLPOP list 1", DOWN);
    wait_for_link(&setup, before);
    assert_one_count(&setup, "2");
    let mut client: Client = setup.proxy.client();
    client.assert_reply("WATCH user:1", "+OK\r\n");
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("HINCRBY user:1 n 1", "+QUEUED\r\n");
    client.assert_reply("EXEC", "*1\r\n:3\r\n");
    assert_one_count(&setup, "3");
    assert_eq!(former.client().command(&["HGET", "user:1", "n"]), Reply::text("2"));
}
