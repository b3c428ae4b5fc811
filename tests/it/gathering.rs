//! A small batch waits while Redis works at the one before, if Redis is near: what comes meanwhile
//! leaves together. A large one does not wait, nor does anything wait for a Redis far away.

use std::time::Duration;

use crate::support::client::{Client, Reply, encode};
use crate::support::fake_upstream::{FakeLink, FakeUpstream};
use crate::support::proxy::Proxy;

/// Shorter than the silence after which nothing is sent in any case.
const QUIET: Duration = Duration::from_millis(30);
/// On a busy machine even a near Redis rarely answers within the 100 microseconds asked for.
const TRIES: usize = 300;
const ATTEMPTS: usize = 100;

type Answer = fn(&mut FakeLink, &str);

/// The proxy learns how far away Redis is.
fn learn(proxy: &Proxy, link: &mut FakeLink, reply: Answer) {
    let mut client = proxy.client();
    for _ in 0..TRIES {
        client.send(encode(&["GET", "near"]));
        link.expect("GET near");
        reply(link, "$4\r\nnear\r\n");
        assert_eq!(client.reply(), Reply::text("near"));
    }
}

/// One client's request is under way; tells whether that of another has waited for its reply.
fn gathers(proxy: &Proxy, link: &mut FakeLink, reply: Answer) -> bool {
    learn(proxy, link, reply);
    let [mut first, mut second, mut third] = std::array::from_fn(|_| proxy.client());
    first.send(encode(&["GET", "first"]));
    link.expect("GET first");
    second.send(encode(&["GET", "second"]));
    let has_waited = link.is_quiet(QUIET);
    third.send(encode(&["SET", "large", &"x".repeat(10_000)]));
    let expected = [b"GET".as_slice(), b"second"];
    assert_eq!(link.request(), expected, "the large one takes along what waits before it");
    assert_eq!(link.request()[..2], [b"SET".as_slice(), b"large"]);
    reply(link, "$1\r\n1\r\n$1\r\n2\r\n+OK\r\n");
    assert_eq!(first.reply(), Reply::text("1"));
    assert_eq!(second.reply(), Reply::text("2"));
    assert_eq!(third.reply(), Reply::Simple("OK".to_owned()));
    has_waited
}

#[test]
fn a_small_batch_waits_for_a_near_redis_only() {
    let upstream = FakeUpstream::start();
    let (proxy, mut link) = upstream.start_proxy(Proxy::options());
    let (far, near): (Answer, Answer) =
        (|link, bytes| link.reply(bytes), |link, bytes| link.reply_at_once(bytes));
    let waited = gathers(&proxy, &mut link, far);
    assert!(!waited, "a request waits although Redis is far away");
    let waited = (0..ATTEMPTS).any(|_| gathers(&proxy, &mut link, near));
    assert!(waited, "no request ever waits for the reply to the one before");
    // What has waited leaves when the reply is here.
    let mut clients: [Client; 3] = std::array::from_fn(|_| proxy.client());
    clients[0].send(encode(&["GET", "first"]));
    link.expect("GET first");
    clients[1].send(encode(&["GET", "second"]));
    clients[2].send(encode(&["GET", "third"]));
    assert!(link.is_quiet(QUIET));
    link.reply_at_once("$1\r\n1\r\n");
    assert_eq!(clients[0].reply(), Reply::text("1"));
    link.expect("GET second");
    link.expect("GET third");
    link.reply_at_once("$1\r\n2\r\n$1\r\n3\r\n");
    assert_eq!(clients[1].reply(), Reply::text("2"));
    assert_eq!(clients[2].reply(), Reply::text("3"));
    drop(proxy);
}
