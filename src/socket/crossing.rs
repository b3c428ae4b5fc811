//! One client's bytes between the I/O thread that carries its socket and the dispatch thread.
//!
//! ```text
//!   I/O thread              crossing               dispatch thread
//!   socket ──recv──► [ input, bounded  ] ──────►  Receiver
//!   socket ◄──send── [ output, bounded ] ◄──────  Sender
//!   Carrier ◄───── a call, through the thread's list of calls
//! ```
//!
//! Each direction is a buffer behind a mutex that is held for a copy and never for a system call.
//! The dispatch thread is woken by the waker it left, and only if it left one; the I/O thread by a
//! call, of which at most one waits per connection. Wakers are left and looked for under the mutex, so
//! none is lost. When the receiver goes, the connection ends: what the output holds is written as far
//! as the socket takes it, and the socket is closed. When the carrier goes, however it goes, both ends
//! here find the connection broken.

use std::{
    future::poll_fn,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{io::ReadBuf, sync::Notify, task::coop::poll_proceed};

use super::threads::{Call, Calls};

/// Input that may wait for the dispatch thread; one read more than this is kept at most.
pub(super) const INPUT_BYTES_MAX: usize = 64 << 10;
/// Output that may wait for the socket; whatever is more waits in the client's outbox.
pub(super) const OUTPUT_BYTES_MAX: usize = 256 << 10;
/// So much less makes it worth to go on.
const OUTPUT_BYTES_LOW: usize = OUTPUT_BYTES_MAX / 2;
/// Memory that an empty buffer keeps.
const KEPT_BYTES_MAX: usize = 16 << 10;

/// What both threads hold of one connection.
pub(super) struct Crossing {
    input: Mutex<Input>,
    output: Mutex<Output>,
    /// A call waits in the list of the thread.
    called: AtomicBool,
    /// Lets the carrier take its turn.
    turn: Notify,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Input {
    bytes: Vec<u8>,
    /// What comes behind the bytes, when nothing more is read.
    end: Option<End>,
    reader: Option<Waker>,
    /// The carrier reads no more until it is called.
    paused: bool,
    gathering: Gathering,
    /// The receiver is gone.
    released: bool,
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    /// Those, and what the carrier has taken and not written yet.
    unsent: usize,
    broken: bool,
    /// Who waits, and for how little unsent.
    writer: Option<(Waker, usize)>,
}

#[derive(Clone, Copy)]
enum End {
    Closed,
    Broken(io::ErrorKind),
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Gathering {
    #[default]
    No,
    Wanted,
    Done,
}

/// Makes the ends of a connection: two for the dispatch thread, one for the thread that has `calls`.
pub(super) fn open(calls: &Arc<Calls>, descriptor: i32) -> (Receiver, Sender, Carrier) {
    let crossing = Arc::new(Crossing {
        input: Mutex::default(),
        output: Mutex::default(),
        called: AtomicBool::new(false),
        turn: Notify::new(),
        calls: Arc::clone(calls),
    });
    let receiver = Receiver(Arc::clone(&crossing));
    let sender = Sender { crossing: Arc::clone(&crossing), descriptor };
    (receiver, sender, Carrier(crossing))
}

impl Crossing {
    /// Has the I/O thread give the carrier a turn.
    fn call(self: &Arc<Self>) {
        if !self.called.swap(true, Ordering::AcqRel) {
            self.calls.push(Call::Turn(Arc::clone(self)));
        }
    }

    /// Gives the carrier its turn, on the I/O thread. What was asked for before the mark is taken off
    /// is seen in this turn, what is asked for later makes a call of its own.
    pub(super) fn answer(&self) {
        self.called.swap(false, Ordering::AcqRel);
        self.turn.notify_one();
    }
}

/// The input's end at the dispatch thread. The connection lasts as long as this.
pub struct Receiver(Arc<Crossing>);

impl Receiver {
    /// Reads what has come, or leaves word for the carrier to wake this.
    pub(super) fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // A client that sends as fast as it is read lets others have their turn.
        let Poll::Ready(budget) = poll_proceed(context) else { return Poll::Pending };
        let mut input = lock(&self.0.input);
        let Some(taken) = self.take(&mut input, buffer) else {
            remember(&mut input.reader, context);
            return Poll::Pending;
        };
        drop(input);
        budget.made_progress();
        self.go_on(taken).into()
    }

    /// Reads what has come.
    pub(super) fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        let taken = self.take(&mut lock(&self.0.input), &mut buffer);
        self.go_on(taken.ok_or(io::ErrorKind::WouldBlock)?)?;
        Ok(buffer.filled().len())
    }

    /// Takes from the input; says whether the carrier has to be called, or nothing when nothing is
    /// there.
    fn take(&self, input: &mut Input, buffer: &mut ReadBuf<'_>) -> Option<io::Result<bool>> {
        if input.bytes.is_empty() {
            return match input.end? {
                End::Closed => Some(Ok(false)),
                End::Broken(kind) => Some(Err(kind.into())),
            };
        }
        let count = input.bytes.len().min(buffer.remaining());
        buffer.put_slice(input.bytes.get(..count).unwrap_or_default());
        input.bytes.drain(..count);
        if input.bytes.is_empty() {
            input.bytes.shrink_to(KEPT_BYTES_MAX);
        }
        Some(Ok(std::mem::take(&mut input.paused)))
    }

    fn go_on(&self, taken: io::Result<bool>) -> io::Result<()> {
        if taken? {
            self.0.call();
        }
        Ok(())
    }

    /// Waits until everything that the client has sent before is in the input.
    pub(super) async fn gather(&self) {
        lock(&self.0.input).gathering = Gathering::Wanted;
        self.0.call();
        poll_fn(|context| {
            let mut input = lock(&self.0.input);
            if input.gathering == Gathering::Done || input.end.is_some() {
                return Poll::Ready(());
            }
            remember(&mut input.reader, context);
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        lock(&self.0.input).released = true;
        self.0.call();
    }
}

/// The output's end at the dispatch thread.
pub struct Sender {
    crossing: Arc<Crossing>,
    descriptor: i32,
}

impl Sender {
    /// Appends as much as there is room for.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = lock(&self.crossing.output);
        if output.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(OUTPUT_BYTES_MAX.saturating_sub(output.unsent));
        if count == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        output.bytes.extend_from_slice(bytes.get(..count).unwrap_or_default());
        output.unsent += count;
        drop(output);
        self.crossing.call();
        Ok(count)
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_unsent(context, OUTPUT_BYTES_LOW)).await
    }

    pub(super) async fn sent(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_unsent(context, 0)).await
    }

    /// Waits until no more than so much is unsent.
    fn poll_unsent(&self, context: &mut Context<'_>, most: usize) -> Poll<io::Result<()>> {
        let mut output = lock(&self.crossing.output);
        if output.unsent <= most {
            return Poll::Ready(Ok(()));
        }
        if output.broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        output.writer = Some((context.waker().clone(), most));
        Poll::Pending
    }

    /// Returns how much the socket has yet to take.
    pub(super) fn unsent(&self) -> usize {
        lock(&self.crossing.output).unsent
    }

    pub(super) fn descriptor(&self) -> i32 {
        self.descriptor
    }
}

/// Both directions' end at the I/O thread.
pub(super) struct Carrier(Arc<Crossing>);

/// What the dispatch thread wants of a carrier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    /// Read only if there is room.
    pub(super) reads: bool,
    /// Say when all that is there has been read.
    pub(super) gathers: bool,
    /// Write what can be written and end.
    pub(super) ends: bool,
}

impl Carrier {
    /// Waits for a call.
    pub(super) async fn turn(&self) {
        self.0.turn.notified().await;
    }

    /// Returns what is wanted now.
    pub(super) fn wish(&self) -> Wish {
        let mut input = lock(&self.0.input);
        let reads = input.end.is_none() && input.bytes.len() < INPUT_BYTES_MAX;
        input.paused = !reads;
        let gathers = input.gathering == Gathering::Wanted;
        Wish { reads, gathers, ends: input.released }
    }

    /// Hands on what was read.
    pub(super) fn received(&self, bytes: &[u8]) {
        let mut input = lock(&self.0.input);
        input.bytes.extend_from_slice(bytes);
        self.wake(input);
    }

    /// Says that the client sends no more.
    pub(super) fn closed(&self) {
        let mut input = lock(&self.0.input);
        input.end.get_or_insert(End::Closed);
        self.wake(input);
    }

    /// Says that all that was there has been read.
    pub(super) fn gathered(&self) {
        let mut input = lock(&self.0.input);
        input.gathering = Gathering::Done;
        self.wake(input);
    }

    /// Takes the output in exchange for an empty buffer.
    pub(super) fn take_output(&self, empty: &mut Vec<u8>) {
        std::mem::swap(&mut lock(&self.0.output).bytes, empty);
    }

    /// Counts what the socket has taken.
    pub(super) fn sent(&self, count: usize) {
        let mut output = lock(&self.0.output);
        output.unsent -= count;
        let unsent = output.unsent;
        let writer = output.writer.take_if(|(_, most)| unsent <= *most);
        drop(output);
        if let Some((writer, _)) = writer {
            self.0.calls.wake_later(writer);
        }
    }

    /// Lets the buffer go, and has who waits for it woken.
    fn wake(&self, mut input: MutexGuard<'_, Input>) {
        let reader = input.reader.take();
        drop(input);
        if let Some(reader) = reader {
            self.0.calls.wake_later(reader);
        }
    }

    /// Says that the connection is lost.
    pub(super) fn broken(&self, kind: io::ErrorKind) {
        let mut output = lock(&self.0.output);
        output.broken = true;
        let writer = output.writer.take();
        drop(output);
        if let Some((writer, _)) = writer {
            self.0.calls.wake_later(writer);
        }
        let mut input = lock(&self.0.input);
        input.end = match input.end {
            Some(End::Broken(first)) => Some(End::Broken(first)),
            _ => Some(End::Broken(kind)),
        };
        self.wake(input);
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.broken(io::ErrorKind::ConnectionAborted);
    }
}

fn remember(reader: &mut Option<Waker>, context: &Context<'_>) {
    if !reader.as_ref().is_some_and(|reader| reader.will_wake(context.waker())) {
        *reader = Some(context.waker().clone());
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
