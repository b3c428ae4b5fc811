//! A TCP relay that can be disturbed: cut at once or at a byte, stalled in one direction, closed.
//!
//! What a stall holds back is delivered when it ends, also when the sender has given up meanwhile:
//! that is what a network does, and what a fence must stand.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::process::free_port;

const POLL: Duration = Duration::from_millis(20);
const NO_LIMIT: i64 = i64::MAX;

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the server.
    Up,
    /// To the client.
    Down,
}

/// A port that stands for another one; its threads end when it is dropped.
pub(crate) struct Relay {
    port: u16,
    control: Arc<Control>,
}

struct Control {
    target: String,
    /// Connections of an older epoch are cut.
    epoch: AtomicU64,
    stalled: [AtomicBool; 2],
    /// Connections so far.
    opened: AtomicU64,
    /// What the first so many connections send is held back.
    held: AtomicU64,
    bytes_left: [AtomicI64; 2],
    ended: AtomicBool,
}

impl Relay {
    /// Listens on a free port and passes on to `target`.
    pub(crate) fn start(target: &str) -> Relay {
        let bound = (0..8).find_map(|_| {
            let port = free_port();
            Some((port, TcpListener::bind(("127.0.0.1", port)).ok()?))
        });
        let (port, listener) = bound.expect("a free port for the relay");
        listener.set_nonblocking(true).expect("a listener that can be polled");
        let control = Arc::new(Control {
            target: target.to_owned(),
            epoch: AtomicU64::new(0),
            stalled: Default::default(),
            opened: AtomicU64::new(0),
            held: AtomicU64::new(0),
            bytes_left: [AtomicI64::new(NO_LIMIT), AtomicI64::new(NO_LIMIT)],
            ended: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&control);
        thread::spawn(move || accept(&listener, &of_thread));
        Relay { port, control }
    }

    /// `127.0.0.1:port`.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends all connections; what was on its way is lost.
    pub(crate) fn cut(&self) {
        self.control.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends all connections when so many more bytes have gone in a direction.
    pub(crate) fn cut_after(&self, direction: Direction, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(NO_LIMIT);
        self.control.bytes_left[direction as usize].store(bytes, Ordering::SeqCst);
    }

    /// Holds bytes back, or lets them go.
    pub(crate) fn stall(&self, direction: Direction, on: bool) {
        self.control.stalled[direction as usize].store(on, Ordering::SeqCst);
    }

    /// Holds back what the connections of now send, and nothing of those to come.
    pub(crate) fn hold_present(&self) {
        self.control.held.store(self.control.opened.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Takes all disturbances back.
    pub(crate) fn heal(&self) {
        self.control.held.store(0, Ordering::SeqCst);
        for direction in [Direction::Up, Direction::Down] {
            self.stall(direction, false);
            self.control.bytes_left[direction as usize].store(NO_LIMIT, Ordering::SeqCst);
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.control.ended.store(true, Ordering::SeqCst);
        self.cut();
    }
}

fn accept(listener: &TcpListener, control: &Arc<Control>) {
    while !control.ended.load(Ordering::SeqCst) {
        let Ok((client, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(1));
            continue;
        };
        let epoch = control.epoch.load(Ordering::SeqCst);
        // A server that is away looks like one that hangs up.
        let Ok(server) = TcpStream::connect(&control.target) else { continue };
        let number = control.opened.fetch_add(1, Ordering::SeqCst);
        for (from, to, direction) in
            [(&client, &server, Direction::Up), (&server, &client, Direction::Down)]
        {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let control = Arc::clone(control);
            let pump = Pump { from, to, direction, number, epoch, control };
            thread::spawn(move || pump.run());
        }
    }
}

/// One direction of one connection.
struct Pump {
    from: TcpStream,
    to: TcpStream,
    direction: Direction,
    number: u64,
    epoch: u64,
    control: Arc<Control>,
}

impl Pump {
    fn run(mut self) {
        let _ = self.from.set_nonblocking(false);
        let _ = self.from.set_read_timeout(Some(POLL));
        let _ = self.to.set_nodelay(true);
        let mut chunk = [0; 16 * 1024];
        loop {
            let count = match self.from.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    0
                }
                Err(_) => break,
            };
            while self.is_stalled() && !self.is_cut() {
                thread::sleep(Duration::from_millis(1));
            }
            if self.is_cut() {
                return self.hang_up();
            }
            if count > 0 && !self.pass_on(&chunk[..count]) {
                return;
            }
        }
        // The other direction may still have something to deliver.
        let _ = self.to.shutdown(Shutdown::Write);
    }

    /// False when the connection ends here.
    fn pass_on(&mut self, bytes: &[u8]) -> bool {
        let left = &self.control.bytes_left[self.direction as usize];
        let count = bytes.len() as i64;
        let limit = left.load(Ordering::SeqCst);
        if limit <= count {
            let _ = self.to.write_all(&bytes[..limit.max(0) as usize]);
            left.store(NO_LIMIT, Ordering::SeqCst);
            self.control.epoch.fetch_add(1, Ordering::SeqCst);
            self.hang_up();
            return false;
        }
        if limit != NO_LIMIT {
            left.store(limit - count, Ordering::SeqCst);
        }
        self.to.write_all(bytes).is_ok()
    }

    fn is_stalled(&self) -> bool {
        let held = self.number < self.control.held.load(Ordering::SeqCst);
        held && self.direction == Direction::Up
            || self.control.stalled[self.direction as usize].load(Ordering::SeqCst)
    }

    fn is_cut(&self) -> bool {
        self.control.epoch.load(Ordering::SeqCst) != self.epoch
    }

    fn hang_up(&self) {
        let _ = self.from.shutdown(Shutdown::Both);
        let _ = self.to.shutdown(Shutdown::Both);
    }
}
