//! The I/O threads: each reads and writes the sockets that it was given, and nothing else.
//!
//! A thread has a runtime of its own, one task for each of its sockets, and one list of *calls*: new
//! sockets, and connections on which the dispatch thread has left something to do. Waking a thread is
//! what costs, so each side does it once per turn, at its end: the dispatch thread rings for the calls
//! it has listed before it would sleep, and an I/O thread wakes those who wait for what it has read.

use std::{
    future::poll_fn,
    io,
    net::TcpStream as StdStream,
    os::fd::AsRawFd as _,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncRead as _, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::{Builder, Runtime},
    sync::Notify,
    task::{JoinSet, yield_now},
};
use tracing::error;

use super::crossing::{Carrier, Crossing, Receiver, Sender, lock, open};
use crate::outside::{Stream, detach};

/// Bytes that one read takes from a socket; shared by the sockets of a thread.
const READ_BYTES: usize = 64 << 10;
/// Memory that an idle connection keeps for output.
const KEPT_BYTES_MAX: usize = 16 << 10;
/// So many calls or wakes wait for the end of a turn. A turn lasts for as long as there is something
/// to do, and the other side should not stand idle meanwhile.
pub(super) const TOGETHER_MAX: usize = 16;
/// How long the end of a thread waits for its connections, which have ended by then.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// What a thread is called for.
pub(super) enum Call {
    New(StdStream, Carrier),
    Turn(Arc<Crossing>),
    End,
}

/// What a thread has yet to do for the dispatch thread, and to tell it.
pub(super) struct Calls {
    /// None are taken any more when the thread has ended.
    waiting: Mutex<Option<Vec<Call>>>,
    bell: Notify,
    /// Calls were listed for which the bell has not rung.
    unrung: AtomicBool,
    /// Those on the dispatch thread who wait for what this turn has brought.
    wakes: Mutex<Vec<Waker>>,
    /// Connections that the thread carries.
    carried: AtomicUsize,
}

impl Calls {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            waiting: Mutex::new(Some(Vec::new())),
            bell: Notify::new(),
            unrung: AtomicBool::new(false),
            wakes: Mutex::default(),
            carried: AtomicUsize::new(0),
        })
    }

    /// Adds a call, for which [`Self::ring`] will ring, or the next few calls of a long turn; says
    /// whether anybody will answer it.
    pub(super) fn push(&self, call: Call) -> bool {
        let mut waiting = lock(&self.waiting);
        let Some(calls) = waiting.as_mut() else { return false };
        calls.push(call);
        let many = calls.len() >= TOGETHER_MAX;
        drop(waiting);
        self.unrung.store(true, Ordering::Release);
        if many {
            self.ring();
        }
        true
    }

    /// Has the thread take its calls, if there are new ones.
    pub(super) fn ring(&self) {
        if self.unrung.load(Ordering::Relaxed) && self.unrung.swap(false, Ordering::AcqRel) {
            self.bell.notify_one();
        }
    }

    /// Wakes somebody on the dispatch thread at the end of this turn, or with the next few of a long
    /// one, so that the dispatch thread goes on meanwhile.
    pub(super) fn wake_later(&self, waker: Waker) {
        let mut wakes = lock(&self.wakes);
        wakes.push(waker);
        if wakes.len() >= TOGETHER_MAX {
            wakes.drain(..).for_each(Waker::wake);
        }
    }

    /// Ends a turn.
    pub(super) fn wake(&self) {
        lock(&self.wakes).drain(..).for_each(Waker::wake);
    }

    /// Waits for calls and takes them all.
    pub(super) async fn take(&self, calls: &mut Vec<Call>) {
        loop {
            if let Some(waiting) = lock(&self.waiting).as_mut() {
                std::mem::swap(waiting, calls);
            }
            if !calls.is_empty() {
                return;
            }
            self.bell.notified().await;
        }
    }

    fn are_taken(&self) -> bool {
        lock(&self.waiting).is_some()
    }

    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        lock(&self.waiting).as_ref().map_or(0, Vec::len)
    }

    pub(super) fn close(&self) {
        // What is left is dropped outside the lock: it holds connections, and their ends make calls.
        let left = lock(&self.waiting).take();
        drop(left);
    }
}

/// Rings for the calls of all threads; the dispatch thread does so whenever it would sleep.
#[derive(Clone)]
pub struct Bells(Vec<Arc<Calls>>);

impl Bells {
    /// Makes the bells of so many threads.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Calls::new()).collect())
    }

    /// Rings where calls have been listed.
    pub fn ring(&self) {
        self.0.iter().for_each(|calls| calls.ring());
    }
}

/// The I/O threads; they end when this says so.
pub struct Threads(Vec<(Arc<Calls>, JoinHandle<()>)>);

impl Threads {
    /// Starts one thread for each of the bells.
    ///
    /// # Errors
    /// When the system has no more.
    pub fn start(bells: &Bells) -> io::Result<Self> {
        let mut threads = Self(Vec::new());
        for (number, calls) in bells.0.iter().enumerate() {
            let (turn, own) = (Arc::clone(calls), Arc::clone(calls));
            let mut runtime = Builder::new_current_thread();
            let runtime = runtime.enable_all().on_thread_park(move || turn.wake()).build()?;
            let named = thread::Builder::new().name(format!("io-{}", number + 1));
            threads.0.push((Arc::clone(calls), named.spawn(move || run(runtime, &own))?));
        }
        Ok(threads)
    }

    /// Gives a socket to the thread that has the fewest.
    pub(super) fn adopt(&self, stream: Stream) -> io::Result<(Receiver, Sender)> {
        let stream = detach(stream)?;
        let load = |calls: &&Arc<Calls>| calls.carried.load(Ordering::Relaxed);
        let open_ones = self.0.iter().map(|(calls, _)| calls).filter(|calls| calls.are_taken());
        let calls = open_ones.min_by_key(load);
        let calls = calls.ok_or(io::ErrorKind::NotConnected)?;
        let (receiver, sender, carrier) = open(calls, stream.as_raw_fd());
        calls.carried.fetch_add(1, Ordering::Relaxed);
        match calls.push(Call::New(stream, carrier)) {
            true => Ok((receiver, sender)),
            false => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Ends the threads. Every connection has ended before; what it has left is written as far as its
    /// socket takes it.
    pub fn end(self) {
        for (calls, _) in &self.0 {
            calls.push(Call::End);
            calls.ring();
        }
        for (_, thread) in self.0 {
            if thread.join().is_err() {
                error!("an I/O thread has panicked");
            }
        }
    }
}

/// Takes no more calls when the thread ends, however it does, and wakes whoever waits for it.
struct Closing<'a>(&'a Calls);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
        self.0.wake();
    }
}

fn run(runtime: Runtime, calls: &Arc<Calls>) {
    let _closing = Closing(calls);
    // Ends before that, and with it what it carries.
    let runtime = runtime;
    runtime.block_on(async {
        let mut sockets = JoinSet::new();
        serve(calls, &mut sockets).await;
        let ended = async { while sockets.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(END_PATIENCE, ended).await;
    });
}

/// Answers calls until the end is called for.
async fn serve(calls: &Arc<Calls>, sockets: &mut JoinSet<()>) {
    let scratch = Arc::new(Mutex::new(vec![0; READ_BYTES].into_boxed_slice()));
    let mut taken = Vec::new();
    let mut ends = false;
    while !ends {
        tokio::select! {
            biased;
            () = calls.take(&mut taken) => {}
            Some(ended) = sockets.join_next() => {
                calls.carried.fetch_sub(1, Ordering::Relaxed);
                if ended.is_err_and(|error| error.is_panic()) {
                    error!("the task of a socket has panicked");
                }
            }
        }
        for call in taken.drain(..) {
            match call {
                Call::New(stream, carrier) => {
                    let scratch = Arc::clone(&scratch);
                    sockets.spawn(async move {
                        if let Err(error) = carry(stream, &carrier, &scratch).await {
                            carrier.broken(error.kind());
                        }
                    });
                }
                Call::Turn(crossing) => crossing.answer(),
                Call::End => ends = true,
            }
        }
    }
}

/// Carries one socket until the dispatch thread lets it go or it breaks.
async fn carry(stream: StdStream, carrier: &Carrier, scratch: &Mutex<Box<[u8]>>) -> io::Result<()> {
    let (mut read, write) = TcpStream::from_std(stream)?.into_split();
    let mut output = Output::default();
    loop {
        let wish = carrier.wish();
        let blocked = output.write(carrier, &write)?;
        if wish.ends {
            if blocked {
                // The system may take it by now, or has never been asked yet.
                yield_now().await;
                output.write(carrier, &write)?;
            }
            return Ok(());
        }
        if wish.gathers {
            // The system is asked what has come before this reads to the end of it.
            yield_now().await;
            read_all(&read, carrier, scratch)?;
            carrier.gathered();
            continue;
        }
        tokio::select! {
            biased;
            () = carrier.turn() => {}
            ready = write.writable(), if blocked => ready?,
            received = receive(&mut read, carrier, scratch), if wish.reads => received?,
        }
    }
}

/// Reads once; an end is passed on as well.
async fn receive(
    read: &mut OwnedReadHalf,
    carrier: &Carrier,
    scratch: &Mutex<Box<[u8]>>,
) -> io::Result<()> {
    poll_fn(|context| {
        let mut scratch = lock(scratch);
        let mut buffer = ReadBuf::new(&mut scratch);
        let Poll::Ready(result) = Pin::new(&mut *read).poll_read(context, &mut buffer) else {
            return Poll::Pending;
        };
        Poll::Ready(result.map(|()| match buffer.filled() {
            [] => carrier.closed(),
            bytes => carrier.received(bytes),
        }))
    })
    .await
}

/// Reads all that is there, whatever its size: nothing is read behind it.
fn read_all(read: &OwnedReadHalf, carrier: &Carrier, scratch: &Mutex<Box<[u8]>>) -> io::Result<()> {
    let mut scratch = lock(scratch);
    loop {
        match read.try_read(&mut scratch) {
            Ok(0) => {
                carrier.closed();
                return Ok(());
            }
            Ok(count) => carrier.received(scratch.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// What was taken from the crossing and waits for the socket.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    written: usize,
}

impl Output {
    /// Writes what is left and then what the crossing holds; says whether the socket is full. What
    /// comes to the crossing meanwhile has a turn of its own, so that other sockets have theirs.
    fn write(&mut self, carrier: &Carrier, socket: &OwnedWriteHalf) -> io::Result<bool> {
        if !self.put(carrier, socket)? {
            return Ok(true);
        }
        carrier.take_output(&mut self.bytes);
        Ok(!self.put(carrier, socket)?)
    }

    /// Writes as much as the socket takes; says whether that was all.
    fn put(&mut self, carrier: &Carrier, socket: &OwnedWriteHalf) -> io::Result<bool> {
        while self.written < self.bytes.len() {
            match socket.try_write(self.bytes.get(self.written..).unwrap_or_default()) {
                Ok(count) => {
                    self.written += count;
                    carrier.sent(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES_MAX);
        self.written = 0;
        Ok(true)
    }
}
