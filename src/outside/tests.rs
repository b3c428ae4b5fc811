//! A simulated world: connections in memory that can be held, cut and broken, a clock and chance that
//! a simulation sets, and the life of a proxy, which ends at a step that the seed has drawn.
//!
//! A thread has at most one such world. Without one every name here is the real thing.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, ToSocketAddrs};
use tokio::sync::{Notify, mpsc};

/// Bytes that a connection takes before its writer has to wait.
const PIPE_BYTES_MAX: usize = 64 << 10;
const NOBODY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 6379);

/// What a simulation decides.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now_ms: Rc<dyn Fn() -> u64>,
    pub(crate) chance: Rc<dyn Fn() -> u64>,
    /// A connection to Redis.
    pub(crate) connect: Rc<dyn Fn() -> io::Result<Stream>>,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn world() -> Option<World> {
    WORLD.with_borrow(Clone::clone)
}

/// Puts a simulated world in the place of the real one, for this thread.
pub(crate) fn simulate(world: Option<World>) {
    WORLD.set(world);
}

pub(crate) fn is_simulated() -> bool {
    WORLD.with_borrow(Option::is_some)
}

pub(crate) fn now_ms() -> Option<u64> {
    world().map(|world| (world.now_ms)())
}

/// A number that the seed decides.
pub(crate) fn chance() -> Option<u64> {
    world().map(|world| (world.chance)())
}

/// One life of a proxy: so many steps that somebody outside can see, then no more.
pub(crate) struct Life {
    steps_left: AtomicU64,
    last: AtomicBool,
    over: AtomicBool,
    at_end: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub(crate) ended: Notify,
}

/// What becomes of one step.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Goes,
    /// The life ends in the middle of it: whoever asks does a part of it, then calls `end_if_last`.
    Last,
    /// The life was over before.
    Never,
}

impl Life {
    /// Begins a life; `at_end` runs in the very moment of its end.
    pub(crate) fn begin(steps: u64, at_end: impl FnOnce() + Send + 'static) -> Arc<Life> {
        Arc::new(Life {
            steps_left: AtomicU64::new(steps),
            last: AtomicBool::new(false),
            over: AtomicBool::new(false),
            at_end: Mutex::new(Some(Box::new(at_end))),
            ended: Notify::new(),
        })
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Has the life end after so many more steps.
    pub(crate) fn limit(&self, steps: u64) {
        self.steps_left.store(steps, Ordering::SeqCst);
    }

    pub(crate) fn step(&self) -> Fate {
        if self.is_over() {
            return Fate::Never;
        }
        let left = self.steps_left.load(Ordering::SeqCst);
        self.steps_left.store(left.saturating_sub(1), Ordering::SeqCst);
        self.last.store(left == 0, Ordering::SeqCst);
        if left == 0 { Fate::Last } else { Fate::Goes }
    }

    /// Ends the life if its last step was just made.
    pub(crate) fn end_if_last(&self) {
        if self.last.load(Ordering::SeqCst) {
            self.end();
        }
    }

    pub(crate) fn end(&self) {
        if !self.over.swap(true, Ordering::SeqCst) {
            if let Some(at_end) = lock(&self.at_end).take() {
                at_end();
            }
            self.ended.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One direction of a connection in memory.
#[derive(Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// The writer is gone; the reader gets what is left.
    ended: bool,
    /// The connection is cut: nothing more arrives, in either direction.
    broken: bool,
    /// Nothing arrives for the time being.
    held: bool,
    cut_after: Option<usize>,
    back: Weak<Mutex<Pipe>>,
    wakers: Vec<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        self.wakers.drain(..).for_each(Waker::wake);
    }

    fn break_off(&mut self) {
        self.broken = true;
        self.bytes.clear();
        self.wake();
    }
}

/// Both directions of a connection, to disturb it.
#[derive(Clone)]
pub(crate) struct Wire([Arc<Mutex<Pipe>>; 2]);

impl Wire {
    /// Cuts the connection; what is on its way is lost.
    pub(crate) fn cut(&self) {
        self.0.iter().for_each(|pipe| lock(pipe).break_off());
    }

    /// Holds one direction back (0 is up, to Redis), or lets it go.
    pub(crate) fn hold(&self, direction: usize, on: bool) {
        let mut pipe = lock(&self.0[direction]);
        pipe.held = on;
        pipe.wake();
    }

    /// Takes back a cut that has yet to come.
    pub(crate) fn mend(&self) {
        self.0.iter().for_each(|pipe| lock(pipe).cut_after = None);
    }

    /// Cuts the connection when so many more bytes have gone in a direction.
    pub(crate) fn cut_after(&self, direction: usize, bytes: usize) {
        lock(&self.0[direction]).cut_after = Some(bytes);
    }
}

/// The reading end in memory.
pub struct Receiving(Arc<Mutex<Pipe>>);

/// The writing end in memory; each write of a proxy is a step of its life.
pub struct Sending {
    pipe: Arc<Mutex<Pipe>>,
    life: Option<Arc<Life>>,
}

/// Makes a connection: the proxy's end, the other end, and the means to disturb it. The first
/// direction is the one away from the proxy.
pub(crate) fn connection(life: &Arc<Life>) -> (Stream, Stream, Wire) {
    let pipes = [Arc::<Mutex<Pipe>>::default(), Arc::default()];
    lock(&pipes[0]).back = Arc::downgrade(&pipes[1]);
    lock(&pipes[1]).back = Arc::downgrade(&pipes[0]);
    let [away, back] = &pipes;
    let send = |pipe: &Arc<Mutex<Pipe>>, life| Sending { pipe: Arc::clone(pipe), life };
    let receive = |pipe: &Arc<Mutex<Pipe>>| Receiving(Arc::clone(pipe));
    let ours = Stream::Memory(receive(back), send(away, Some(Arc::clone(life))));
    let theirs = Stream::Memory(receive(away), send(back, None));
    (ours, theirs, Wire(pipes))
}

impl Receiving {
    fn poll(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.0);
        if pipe.broken {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if pipe.held || pipe.bytes.is_empty() && !pipe.ended {
            pipe.wakers.push(context.waker().clone());
            return Poll::Pending;
        }
        let count = pipe.bytes.len().min(buffer.remaining());
        let bytes: Vec<u8> = pipe.bytes.drain(..count).collect();
        buffer.put_slice(&bytes);
        pipe.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        // Whoever writes to it from now on is told; what was sent before may have been of use.
        let mut pipe = lock(&self.0);
        pipe.broken = true;
        pipe.wake();
    }
}

impl Sending {
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let fate = self.life.as_ref().map_or(Fate::Goes, |life| life.step());
        match fate {
            Fate::Never => return Ok(bytes.len()),
            Fate::Goes => {}
            Fate::Last => {
                let part = chance().unwrap_or(0) as usize % (bytes.len() + 1);
                let _ = self.put(&bytes[..part]);
                self.life.as_ref().into_iter().for_each(|life| life.end());
                return Ok(bytes.len());
            }
        }
        self.put(bytes)
    }

    fn put(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = lock(&self.pipe);
        if pipe.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if pipe.ended {
            // It is cut, and the writer has not seen it yet.
            return Ok(bytes.len());
        }
        let room = PIPE_BYTES_MAX.saturating_sub(pipe.bytes.len());
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = bytes.len().min(room);
        if let Some(left) = pipe.cut_after {
            if left <= count {
                // What comes before the cut still arrives.
                pipe.bytes.extend(&bytes[..left]);
                pipe.ended = true;
                pipe.wake();
                let back = pipe.back.upgrade();
                drop(pipe);
                back.into_iter().for_each(|back| lock(&back).break_off());
                return Ok(count);
            }
            pipe.cut_after = Some(left - count);
        }
        pipe.bytes.extend(&bytes[..count]);
        pipe.wake();
        Ok(count)
    }

    fn poll_room(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = lock(&self.pipe);
        if pipe.broken || pipe.bytes.len() < PIPE_BYTES_MAX {
            return Poll::Ready(Ok(()));
        }
        pipe.wakers.push(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut pipe = lock(&self.pipe);
        pipe.ended = true;
        pipe.wake();
    }
}

/// A connection of either world.
pub enum Stream {
    /// Of the system.
    Tcp(TcpStream),
    /// Of a simulation.
    Memory(Receiving, Sending),
}

/// The reading half of a connection of either world.
pub enum ReadHalf {
    /// Of the system.
    Tcp(OwnedReadHalf),
    /// Of a simulation.
    Memory(Receiving),
}

/// The writing half of a connection of either world.
pub enum WriteHalf {
    /// Of the system.
    Tcp(OwnedWriteHalf),
    /// Of a simulation.
    Memory(Sending),
}

impl Stream {
    pub(crate) async fn connect(address: impl ToSocketAddrs) -> io::Result<Stream> {
        match world() {
            Some(world) => (world.connect)(),
            None => TcpStream::connect(address).await.map(Stream::Tcp),
        }
    }

    pub(crate) fn tcp(&self) -> Option<&TcpStream> {
        if let Stream::Tcp(stream) = self { Some(stream) } else { None }
    }

    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Stream::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Stream::Memory(read, write) => (ReadHalf::Memory(read), WriteHalf::Memory(write)),
        }
    }

    pub(crate) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.tcp().map_or(Ok(()), |stream| stream.set_nodelay(on))
    }

    pub(crate) fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().map_or(Ok(NOBODY), TcpStream::peer_addr)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().map_or(Ok(NOBODY), TcpStream::local_addr)
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.try_write(bytes),
            Stream::Memory(_, write) => write.try_write(bytes),
        }
    }
}

impl ReadHalf {
    pub(crate) fn try_read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            ReadHalf::Tcp(half) => half.try_read(bytes),
            ReadHalf::Memory(half) => {
                let mut buffer = ReadBuf::new(bytes);
                match half.poll(&mut Context::from_waker(Waker::noop()), &mut buffer) {
                    Poll::Ready(read) => read.map(|()| buffer.filled().len()),
                    Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
                }
            }
        }
    }
}

impl WriteHalf {
    pub(crate) fn tcp(&self) -> Option<&OwnedWriteHalf> {
        if let WriteHalf::Tcp(half) = self { Some(half) } else { None }
    }

    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            WriteHalf::Tcp(half) => half.try_write(bytes),
            WriteHalf::Memory(half) => half.try_write(bytes),
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            WriteHalf::Tcp(half) => half.writable().await,
            WriteHalf::Memory(half) => {
                std::future::poll_fn(|context| half.poll_room(context)).await
            }
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ReadHalf::Tcp(half) => Pin::new(half).poll_read(context, buffer),
            ReadHalf::Memory(half) => half.poll(context, buffer),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Memory(read, _) => read.poll(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Memory(_, write) => match write.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    write.poll_room(context).map(|_| Ok(0))
                }
                written => Poll::Ready(written),
            },
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Stream::Memory(..) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Memory(..) => Poll::Ready(Ok(())),
        }
    }
}

/// A port of either world.
pub enum Listener {
    /// Of the system.
    Tcp(TcpListener),
    /// Of a simulation.
    Memory(tokio::sync::Mutex<mpsc::Receiver<Stream>>),
}

impl Listener {
    pub(crate) fn from_std(listener: StdListener) -> io::Result<Listener> {
        TcpListener::from_std(listener).map(Listener::Tcp)
    }

    pub(crate) async fn bind(address: impl ToSocketAddrs) -> io::Result<Listener> {
        TcpListener::bind(address).await.map(Listener::Tcp)
    }

    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr(),
            Listener::Memory(_) => Ok(NOBODY),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Ok((Stream::Tcp(stream), peer))
            }
            Listener::Memory(streams) => match streams.lock().await.recv().await {
                Some(stream) => Ok((stream, NOBODY)),
                None => std::future::pending().await,
            },
        }
    }
}
