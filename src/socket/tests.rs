//! The crossing by itself, and I/O threads with real sockets.

use std::future::poll_fn;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::thread;
use std::time::Duration;

use tokio::io::ReadBuf;
use tokio::runtime::{Builder, Runtime};
use tokio::time::timeout;

use super::crossing::{Carrier, INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, Receiver, Sender, open};
use super::threads::{Bells, Call, Calls, TOGETHER_MAX, Threads};
use super::{Incoming, Outgoing, place};
use crate::outside::Stream;

/// Longer than anything here takes, however busy the machine.
const BOUND: Duration = Duration::from_secs(60);

/// A connection without a thread, to be carried step by step.
fn crossing() -> (Receiver, Sender, Carrier, Arc<Calls>) {
    let calls = Calls::new();
    let (receiver, sender, carrier) = open(&calls, 7);
    (receiver, sender, carrier, calls)
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// So many I/O threads, and the runtime of a dispatch thread that rings for them.
fn threads(count: usize) -> (Threads, Runtime) {
    let bells = Bells::new(count);
    let threads = Threads::start(&bells).unwrap();
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(move || bells.ring()).build().unwrap();
    (threads, runtime)
}

/// The byte at a place of an endless stream that repeats itself only after a prime number of bytes.
fn byte_at(place: usize) -> u8 {
    ((place % 251) ^ (place / 251 % 241)) as u8
}

fn bytes(from: usize, count: usize) -> Vec<u8> {
    (from..from + count).map(byte_at).collect()
}

fn read(receiver: &Receiver, most: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; most];
    receiver.try_read(&mut buffer).map(|count| buffer[..count].to_vec())
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn input_keeps_its_order_and_the_carrier_stops_at_the_bound() {
    let (receiver, _sender, carrier, calls) = crossing();
    assert_eq!(kind(read(&receiver, 10)), io::ErrorKind::WouldBlock);
    carrier.received(&bytes(0, 1000));
    assert_eq!(read(&receiver, 600).unwrap(), bytes(0, 600));
    carrier.received(&bytes(1000, INPUT_BYTES_MAX - 401));
    assert!(carrier.wish().reads);
    carrier.received(&bytes(INPUT_BYTES_MAX + 599, 1));
    assert!(!carrier.wish().reads, "a full input");
    assert_eq!(calls.waiting(), 0, "nobody has called the carrier");
    assert_eq!(read(&receiver, INPUT_BYTES_MAX).unwrap(), bytes(600, INPUT_BYTES_MAX));
    assert_eq!(calls.waiting(), 1, "the carrier is told that there is room");
    assert!(carrier.wish().reads);
}

#[test]
fn output_keeps_its_order_and_the_writer_waits_at_the_bound() {
    let (_receiver, sender, carrier, _calls) = crossing();
    let all = bytes(0, OUTPUT_BYTES_MAX + 100);
    assert_eq!(sender.try_write(&all).unwrap(), OUTPUT_BYTES_MAX);
    assert_eq!(kind(sender.try_write(&all)), io::ErrorKind::WouldBlock);
    let mut taken = Vec::new();
    carrier.take_output(&mut taken);
    assert_eq!(taken, all[..OUTPUT_BYTES_MAX]);
    // What the carrier has taken and not written still counts.
    assert_eq!(sender.unsent(), OUTPUT_BYTES_MAX);
    assert_eq!(kind(sender.try_write(&all)), io::ErrorKind::WouldBlock);

    let mut context = Context::from_waker(Waker::noop());
    let mut writable = pin!(sender.writable());
    let mut sent = pin!(sender.sent());
    assert!(writable.as_mut().poll(&mut context).is_pending());
    carrier.sent(OUTPUT_BYTES_MAX / 2);
    assert!(writable.as_mut().poll(&mut context).is_ready());
    assert!(sent.as_mut().poll(&mut context).is_pending());
    carrier.sent(OUTPUT_BYTES_MAX / 2);
    assert!(sent.as_mut().poll(&mut context).is_ready());
    assert_eq!(sender.unsent(), 0);
}

#[test]
fn at_most_one_call_of_a_connection_waits() {
    let (receiver, sender, _carrier, calls) = crossing();
    for _ in 0..100 {
        sender.try_write(b"+OK\r\n").unwrap();
    }
    drop(receiver);
    assert_eq!(calls.waiting(), 1);
}

#[test]
fn an_end_comes_behind_the_bytes_and_leaves_the_output_open() {
    let (receiver, sender, carrier, _calls) = crossing();
    carrier.received(b"abc");
    carrier.closed();
    assert!(!carrier.wish().reads);
    assert_eq!(read(&receiver, 10).unwrap(), b"abc");
    assert_eq!(read(&receiver, 10).unwrap(), b"");
    assert_eq!(sender.try_write(b"answer").unwrap(), 6);
}

#[test]
fn a_carrier_that_goes_breaks_both_ends_and_wakes_them() {
    let (receiver, sender, carrier, calls) = crossing();
    sender.try_write(&bytes(0, OUTPUT_BYTES_MAX)).unwrap();
    let waiting = runtime();
    thread::scope(|scope| {
        scope.spawn(|| {
            drop(carrier);
            calls.wake();
        });
        waiting.block_on(async {
            let mut buffer = [0; 8];
            let read =
                poll_fn(|context| receiver.poll_read(context, &mut ReadBuf::new(&mut buffer)));
            assert!(timeout(BOUND, read).await.expect("a wake-up").is_err());
            assert!(timeout(BOUND, sender.writable()).await.expect("a wake-up").is_err());
        });
    });
    assert_eq!(kind(sender.try_write(b"x")), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_receiver_that_goes_ends_the_carrier() {
    let (receiver, sender, carrier, calls) = crossing();
    sender.try_write(b"last words").unwrap();
    assert!(!carrier.wish().ends);
    drop(receiver);
    assert!(carrier.wish().ends);
    assert_eq!(calls.waiting(), 1);
    let mut taken = Vec::new();
    carrier.take_output(&mut taken);
    assert_eq!(taken, b"last words");
}

/// A turn of the dispatch thread lasts for as long as there is something to run.
#[test]
fn a_long_turn_rings_for_its_next_few_calls() {
    let calls = Calls::new();
    let mut taken = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    let mut take = pin!(calls.take(&mut taken));
    assert!(take.as_mut().poll(&mut context).is_pending());
    for _ in 0..TOGETHER_MAX - 1 {
        calls.push(Call::End);
        assert!(take.as_mut().poll(&mut context).is_pending(), "nobody has rung");
    }
    calls.push(Call::End);
    assert!(take.as_mut().poll(&mut context).is_ready());
}

#[test]
fn calls_that_nobody_takes_any_more_are_refused() {
    let (receiver, sender, _carrier, calls) = crossing();
    calls.close();
    sender.try_write(b"x").unwrap();
    drop(receiver);
    assert!(!calls.push(Call::End));
}

/// Two threads pass bytes both ways through one crossing, in pieces and with pauses that a seed
/// draws. A wake-up that is lost leaves one of them waiting.
#[test]
fn no_wake_up_is_lost_on_any_schedule() {
    for seed in 1..=40 {
        let (receiver, sender, carrier, calls) = crossing();
        let (turn, bell) = (Arc::clone(&calls), Arc::clone(&calls));
        let at_end = |end: Box<dyn Fn() + Send + Sync>| {
            Builder::new_current_thread().enable_all().on_thread_park(end).build().unwrap()
        };
        let carriers = at_end(Box::new(move || turn.wake()));
        let dispatch = at_end(Box::new(move || bell.ring()));
        let total = 400_000;
        let carrying = thread::spawn(move || {
            let carried = async { timeout(BOUND, carry(carrier, &calls, seed, total)).await };
            let carried = carriers.block_on(carried);
            calls.wake();
            carried.unwrap_or_else(|_| panic!("seed {seed}: the carrier waits for ever"))
        });
        let echoed = async { timeout(BOUND, echo(receiver, sender, seed, total)).await };
        let echoed = dispatch.block_on(echoed);
        assert!(echoed.is_ok(), "seed {seed}: the dispatch thread waits for ever");
        assert!(carrying.join().unwrap() == bytes(0, total), "seed {seed}: other bytes came back");
    }
}

/// The I/O thread of the test: a socket in memory that has `total` bytes to say and keeps what it
/// hears.
async fn carry(carrier: Carrier, calls: &Arc<Calls>, seed: u64, total: usize) -> Vec<u8> {
    let mut random = Random(seed * 7919);
    let (mut said, mut heard) = (0, Vec::new());
    let (mut list, mut taken) = (Vec::new(), Vec::new());
    loop {
        let wish = carrier.wish();
        let mut idle = true;
        if wish.reads && said < total {
            let piece = (random.below(3000) + 1).min(total - said);
            carrier.received(&bytes(said, piece));
            said += piece;
            idle = false;
        }
        carrier.take_output(&mut taken);
        if !taken.is_empty() {
            heard.extend_from_slice(&taken);
            carrier.sent(taken.len());
            taken.clear();
            idle = false;
        }
        if heard.len() == total {
            carrier.closed();
            return heard;
        }
        if idle {
            calls.take(&mut list).await;
            list.drain(..).for_each(|call| match call {
                Call::Turn(crossing) => crossing.answer(),
                Call::New(..) | Call::End => panic!("nobody has called for that"),
            });
            carrier.turn().await;
        } else if random.below(3) == 0 {
            thread::yield_now();
        }
    }
}

/// The dispatch thread of the test: sends back what it gets, as a connection does.
async fn echo(receiver: Receiver, sender: Sender, seed: u64, total: usize) {
    let mut random = Random(seed * 104_729);
    let mut passed = 0;
    let mut buffer = vec![0; 20_000];
    while passed < total {
        let most = random.below(20_000) + 1;
        let mut part = ReadBuf::new(&mut buffer[..most]);
        poll_fn(|context| receiver.poll_read(context, &mut part)).await.expect("input");
        let mut rest = part.filled();
        passed += rest.len();
        while !rest.is_empty() {
            match sender.try_write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sender.writable().await.expect("output");
                }
                Err(error) => panic!("{error}"),
            }
        }
        if random.below(4) == 0 {
            thread::yield_now();
        }
    }
    sender.sent().await.expect("output");
}

/// A client's socket and the proxy's halves of it, carried by one of the threads.
async fn connect(threads: &Threads) -> (StdStream, Incoming, Outgoing) {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let client = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_read_timeout(Some(BOUND)).unwrap();
    let (socket, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let stream = Stream::Tcp(tokio::net::TcpStream::from_std(socket).unwrap());
    let (incoming, outgoing) = place(stream, Some(threads)).unwrap();
    assert!(outgoing.descriptor() > 2);
    (client, incoming, outgoing)
}

async fn receive(incoming: &mut Incoming) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; 32 << 10];
    let mut part = ReadBuf::new(&mut buffer);
    poll_fn(|context| incoming.poll_read(context, &mut part)).await?;
    Ok(part.filled().to_vec())
}

#[test]
fn threads_carry_many_sockets_at_once_and_lose_nothing() {
    const TOTAL: usize = 600_000;
    let (threads, runtime) = threads(2);
    runtime.block_on(async {
        for round in 0..3 {
            let mut clients = Vec::new();
            let mut served = Vec::new();
            for number in 0..8 {
                let (client, mut incoming, outgoing) = connect(&threads).await;
                clients.push(thread::spawn(move || converse(client, number + 10 * round, TOTAL)));
                served.push(async move {
                    loop {
                        let input = receive(&mut incoming).await.unwrap();
                        if input.is_empty() {
                            outgoing.sent().await.unwrap();
                            return;
                        }
                        let mut rest = &input[..];
                        while !rest.is_empty() {
                            match outgoing.try_write(rest) {
                                Ok(count) => rest = &rest[count..],
                                Err(_) => outgoing.writable().await.unwrap(),
                            }
                        }
                    }
                });
            }
            let mut tasks = tokio::task::JoinSet::new();
            served.into_iter().for_each(|one| drop(tasks.spawn(one)));
            while let Some(done) = timeout(BOUND, tasks.join_next()).await.expect("no wake-up lost")
            {
                done.unwrap();
            }
            for client in clients {
                // Ends are told when this thread would sleep, so it must not wait otherwise.
                let heard = tokio::task::spawn_blocking(move || client.join().unwrap()).await;
                assert!(heard.unwrap() == bytes(0, TOTAL), "other bytes came back");
            }
        }
    });
    threads.end();
}

/// A client that sends, ends its side, and returns what it was sent; it reads and writes at once.
fn converse(client: StdStream, seed: usize, total: usize) -> Vec<u8> {
    let mut sending = client.try_clone().unwrap();
    let sender = thread::spawn(move || {
        let mut random = Random(seed as u64 + 1);
        let mut sent = 0;
        while sent < total {
            let piece = (random.below(90_000) + 1).min(total - sent);
            sending.write_all(&bytes(sent, piece)).unwrap();
            sent += piece;
        }
        sending.shutdown(Shutdown::Write).unwrap();
    });
    let mut heard = Vec::new();
    (&client).read_to_end(&mut heard).unwrap();
    sender.join().unwrap();
    heard
}

#[test]
fn gathering_brings_all_that_was_sent_before_also_past_the_bound() {
    const SENT: usize = 3 * INPUT_BYTES_MAX;
    let (threads, runtime) = threads(1);
    runtime.block_on(async {
        let (mut client, incoming, _outgoing) = connect(&threads).await;
        // The system's buffers take it; nobody reads here before all of it is sent.
        client.write_all(&bytes(0, SENT)).unwrap();
        timeout(BOUND, incoming.gather()).await.expect("no wake-up lost");
        let mut gathered = Vec::new();
        let mut buffer = vec![0; 10_000];
        while let Ok(count) = incoming.try_read(&mut buffer) {
            gathered.extend_from_slice(&buffer[..count]);
        }
        assert!(gathered == bytes(0, SENT), "{} bytes of {SENT}", gathered.len());
    });
    threads.end();
}

#[test]
fn last_words_reach_the_client_before_the_end() {
    let (threads, runtime) = threads(1);
    let mut client = runtime.block_on(async {
        let (client, incoming, outgoing) = connect(&threads).await;
        outgoing.try_write(b"+BYE\r\n").unwrap();
        drop((incoming, outgoing));
        client
    });
    // The end of the thread waits for it.
    threads.end();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"+BYE\r\n");
}

#[test]
fn a_client_that_leaves_is_noticed_while_its_output_waits() {
    let (threads, runtime) = threads(1);
    runtime.block_on(async {
        let (client, mut incoming, outgoing) = connect(&threads).await;
        // More than the system takes for a client that does not read.
        let mut written = 0;
        while written < 64 << 20 {
            match outgoing.try_write(&[0; 64 << 10]) {
                Ok(count) => written += count,
                Err(_)
                    if timeout(Duration::from_millis(500), outgoing.writable()).await.is_err() =>
                {
                    break;
                }
                Err(_) => {}
            }
        }
        assert!(outgoing.unsent() > 0);
        drop(client);
        assert!(timeout(BOUND, outgoing.sent()).await.expect("a wake-up").is_err());
        assert!(timeout(BOUND, receive(&mut incoming)).await.expect("a wake-up").is_err());
    });
    threads.end();
}
