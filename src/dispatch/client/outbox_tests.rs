//! Which replies of one client may be written, whatever else waits.

use super::super::arrival::tests::{arrivals, run};
use super::*;
use std::time::Duration;

#[test]
fn held_replies_wait_for_their_record_and_keep_their_order() {
    let mut outbox = Outbox::default();
    outbox.push(b"+A\r\n", 1);
    outbox.mark();
    outbox.push(b"+B\r\n", 1);
    outbox.hold(Sequence(5));
    outbox.mark();
    outbox.push(b"+C\r\n", 1);
    outbox.hold(Sequence(7));
    assert_eq!(outbox.front(), b"+A\r\n");
    outbox.unhold(Sequence(6));
    assert_eq!(outbox.front(), b"+A\r\n", "the later record is what counts");
    outbox.written(4);
    assert_eq!(outbox.writable(), 0);
    outbox.unhold(Sequence(7));
    assert_eq!(outbox.front(), b"+B\r\n+C\r\n");
    outbox.written(8);
    assert_eq!(outbox.len(), 0);
}

#[test]
fn a_hold_from_the_end_on_outlives_what_was_written_before_it() {
    let mut outbox = Outbox::default();
    outbox.push(b"+LONGER\r\n", 1);
    // A client that hears no replies has written.
    outbox.mark();
    outbox.hold(Sequence(5));
    outbox.written(9);
    outbox.push(b"+B\r\n", 1);
    assert_eq!(outbox.writable(), 0);
    outbox.unhold(Sequence(5));
    assert_eq!(outbox.front(), b"+B\r\n");
}

#[test]
fn what_is_written_is_let_go_while_more_is_to_be_written() {
    let mut outbox = Outbox::default();
    let reply = vec![b'x'; WRITTEN_BYTES_MAX];
    outbox.push(&reply, 1);
    outbox.push(b"+B\r\n", 1);
    outbox.mark();
    outbox.push(b"+C\r\n", 1);
    outbox.hold(Sequence(5));
    outbox.written(reply.len());
    assert!(outbox.bytes.len() < 16, "{} bytes are kept", outbox.bytes.len());
    assert_eq!(outbox.front(), b"+B\r\n", "what is held stays held");
    outbox.rewind(Protocol::Resp2, "MISCONF x");
    outbox.unhold(Sequence(5));
    assert_eq!(outbox.front(), b"+B\r\n-MISCONF x\r\n");
}

#[test]
fn an_empty_outbox_gives_its_memory_back_and_one_with_replies_keeps_them() {
    let mut outbox = Outbox::default();
    outbox.push(&[b'x'; 1000], 1);
    outbox.written(996);
    outbox.shed();
    assert_eq!(outbox.front(), b"xxxx");
    outbox.written(4);
    assert!(outbox.bytes.capacity() >= 1000, "what comes next has room");
    outbox.hold(Sequence(5));
    outbox.shed();
    assert_eq!(outbox.bytes.capacity(), 0);
    outbox.push(b"+B\r\n", 1);
    assert_eq!(outbox.writable(), 0, "what is held stays held");
}

#[test]
fn a_batch_that_could_not_be_journaled_is_answered_with_errors() {
    let mut outbox = Outbox::default();
    outbox.push(b":1\r\n", 1);
    outbox.mark();
    outbox.push(b":2\r\n:3\r\n", 2);
    outbox.rewind(Protocol::Resp2, "MISCONF x");
    assert_eq!(outbox.front(), b":1\r\n-MISCONF x\r\n-MISCONF x\r\n");
}

#[test]
fn a_reply_that_waits_for_the_database_holds_up_those_behind_it_and_none_before() {
    let (arrivals, cursor, _folder) = arrivals(None);
    let later = Instant::now() + Duration::from_secs(60);
    let mut outbox = Outbox::default();
    outbox.push(b"+A\r\n", 1);
    outbox.push_awaited(b":1\r\n", run(3, 4), later);
    outbox.push(b"+B\r\n", 1);
    outbox.push_awaited(b":2\r\n", run(7, 7), later);
    let now = Instant::now();
    let mut front_at = |delivered| {
        cursor.send_replace(Sequence(delivered));
        outbox.arrive(&arrivals, now, b"-X\r\n", b"-Y\r\n");
        (String::from_utf8(outbox.front().to_vec()).unwrap(), outbox.awaited())
    };
    assert_eq!(front_at(3), ("+A\r\n".to_owned(), 2), "a part of a write is not the write");
    assert_eq!(front_at(4), ("+A\r\n:1\r\n+B\r\n".to_owned(), 1));
    assert_eq!(front_at(7), ("+A\r\n:1\r\n+B\r\n:2\r\n".to_owned(), 0));
}

#[test]
fn a_reply_that_is_late_or_refused_becomes_an_error_in_its_place() {
    let (arrivals, cursor, _folder) = arrivals(Some(5));
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let mut outbox = Outbox::default();
    outbox.push(b"+A\r\n", 1);
    outbox.written(4);
    outbox.push_awaited(b":1000\r\n", run(5, 5), now + second);
    outbox.push(b"+B\r\n", 1);
    outbox.push_awaited(b":2\r\n", run(6, 6), now + second * 2);
    outbox.mark();
    outbox.push_awaited(b":3\r\n", run(7, 7), now + second * 3);
    outbox.hold(Sequence(9));
    cursor.send_replace(Sequence(5));
    outbox.arrive(&arrivals, now, b"-X\r\n", b"-late\r\n");
    assert_eq!(outbox.front(), b"-X\r\n+B\r\n");
    outbox.arrive(&arrivals, now + second * 2, b"-X\r\n", b"-late\r\n");
    assert_eq!(outbox.front(), b"-X\r\n+B\r\n-late\r\n");
    assert_eq!((outbox.awaited(), outbox.deadline()), (1, Some(now + second * 3)));
    outbox.written(4);
    cursor.send_replace(Sequence(7));
    outbox.arrive(&arrivals, now, b"-X\r\n", b"-late\r\n");
    assert_eq!(outbox.front(), b"+B\r\n-late\r\n", "the journal still holds the last one");
    outbox.unhold(Sequence(9));
    assert_eq!(outbox.front(), b"+B\r\n-late\r\n:3\r\n");
}

#[test]
fn what_is_wound_back_waits_for_nothing_any_more() {
    let mut outbox = Outbox::default();
    let later = Instant::now() + Duration::from_secs(60);
    outbox.push_awaited(b":1\r\n", run(1, 1), later);
    outbox.mark();
    outbox.push_awaited(b":2\r\n", run(2, 2), later);
    outbox.rewind(Protocol::Resp2, "MISCONF x");
    assert_eq!((outbox.awaited(), outbox.front()), (1, &b""[..]));
    let (arrivals, cursor, _folder) = arrivals(None);
    cursor.send_replace(Sequence(1));
    outbox.arrive(&arrivals, Instant::now(), b"", b"");
    assert_eq!(outbox.front(), b":1\r\n-MISCONF x\r\n");
}
