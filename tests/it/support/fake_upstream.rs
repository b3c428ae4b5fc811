//! A Redis that does what a test tells it: it answers the proxy's handshake by itself, and from then
//! on the test reads each request and decides what comes back, when, and whether at all. It is far
//! away, so that the proxy sends each request at once and never has it wait for the reply before.
//!
//! Reads and writes have a time limit, so that a request that never comes fails the test.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::client::{IO_BOUND, shown};
use super::process::free_port;
use super::proxy::{Proxy, ProxyOptions};

/// The proxy takes a Redis for near that answers within half of it.
const FAR: Duration = Duration::from_micros(200);

/// A listening port that the proxy takes for Redis 7.0.15.
pub(crate) struct FakeUpstream {
    listener: TcpListener,
}

/// One connection of the proxy, past its handshake.
pub(crate) struct FakeLink {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl FakeUpstream {
    /// Listens on a free port.
    pub(crate) fn start() -> FakeUpstream {
        let listener = (0..8).find_map(|_| TcpListener::bind(("127.0.0.1", free_port())).ok());
        let listener = listener.expect("a free port for the scripted upstream");
        listener.set_nonblocking(true).expect("a listener that can be polled");
        FakeUpstream { listener }
    }

    /// `redis://127.0.0.1:port`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.listener.local_addr().expect("a bound port"))
    }

    /// Starts a proxy before this upstream, and takes its first link.
    #[track_caller]
    pub(crate) fn start_proxy(&self, options: ProxyOptions) -> (Proxy, FakeLink) {
        // Nothing but what the test has asked for, and no connection besides the lane.
        let options = options.upstream(self.url()).without_memory();
        thread::scope(|scope| {
            let link = scope.spawn(|| self.accept());
            let proxy = options.start();
            // Until then the proxy asks about profiles on its own account.
            proxy.wait_until_checked();
            (proxy, link.join().expect("the proxy connects"))
        })
    }

    /// Waits for the next connection of the proxy and answers its handshake.
    #[track_caller]
    pub(crate) fn accept(&self) -> FakeLink {
        self.accept_as(IDENTITY)
    }

    /// The same for another Redis, or another life of one: these are lines of its INFO.
    #[track_caller]
    pub(crate) fn accept_as(&self, identity: &str) -> FakeLink {
        let (mut link, mut request) = self.accept_with_request();
        loop {
            let last = is_last_of_handshake(&request);
            link.reply(handshake_reply_as(&request, identity));
            if last {
                return link;
            }
            request = link.request();
        }
    }

    /// Waits for the next private connection and answers its handshake: it has this id.
    #[track_caller]
    pub(crate) fn accept_private(&self, id: u64) -> FakeLink {
        let (mut link, request) = self.accept_with_request();
        assert_eq!(request, [b"CLIENT".as_slice(), b"ID"], "what the proxy has sent");
        link.reply(format!(":{id}\r\n"));
        let request = link.request();
        link.reply(handshake_reply(&request));
        link
    }

    /// Waits for the next connection of the proxy and what it says first. One that begins with PING
    /// is not meant: it only asks whether a silent upstream is busy, and gets no answer. The proxy
    /// may have hung up on it before it has said anything.
    #[track_caller]
    fn accept_with_request(&self) -> (FakeLink, Vec<Vec<u8>>) {
        loop {
            let mut link = self.accept_silently();
            match link.next_request() {
                Some(request) if request != [b"PING"] => return (link, request),
                _ => {}
            }
        }
    }

    /// Waits for the next connection of the proxy and answers nothing.
    #[track_caller]
    pub(crate) fn accept_silently(&self) -> FakeLink {
        let start = Instant::now();
        loop {
            if let Some(link) = self.accept_now() {
                return link;
            }
            assert!(start.elapsed() < IO_BOUND, "the proxy does not connect");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes a connection that is there already.
    pub(crate) fn accept_now(&self) -> Option<FakeLink> {
        let (stream, _) = self.listener.accept().ok()?;
        stream.set_nonblocking(false).expect("a stream that waits");
        stream.set_nodelay(true).expect("a stream without delay");
        stream.set_read_timeout(Some(IO_BOUND)).expect("a time limit");
        stream.set_write_timeout(Some(IO_BOUND)).expect("a time limit");
        Some(FakeLink { stream, buffer: Vec::new() })
    }
}

impl FakeLink {
    /// The next request, as its arguments.
    #[track_caller]
    pub(crate) fn request(&mut self) -> Vec<Vec<u8>> {
        loop {
            if let Some((arguments, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return arguments;
            }
            let count = self.fill().expect("a request within the time limit");
            assert!(count > 0, "the proxy has closed the link, after {}", shown(&self.buffer));
        }
    }

    /// The next request, unless the proxy has closed the link.
    pub(crate) fn next_request(&mut self) -> Option<Vec<Vec<u8>>> {
        loop {
            if let Some((arguments, length)) = parse(&self.buffer) {
                self.buffer.drain(..length);
                return Some(arguments);
            }
            if self.fill().ok()? == 0 {
                return None;
            }
        }
    }

    /// Another handle to the same connection, for sending.
    pub(crate) fn sender(&self) -> FakeLink {
        let stream = self.stream.try_clone().expect("a second handle");
        FakeLink { stream, buffer: Vec::new() }
    }

    /// The next request as words in one line, which is how tests compare it.
    #[track_caller]
    pub(crate) fn request_line(&mut self) -> String {
        let words: Vec<String> =
            self.request().iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        words.join(" ")
    }

    /// Reads the next request and compares it.
    #[track_caller]
    pub(crate) fn expect(&mut self, line: &str) {
        assert_eq!(self.request_line(), line, "what the proxy has sent");
    }

    /// Sends bytes, whether they are a reply or not.
    #[track_caller]
    pub(crate) fn reply(&mut self, bytes: impl AsRef<[u8]>) {
        thread::sleep(FAR);
        self.reply_at_once(bytes);
    }

    /// The same as from a Redis on the same machine.
    #[track_caller]
    pub(crate) fn reply_at_once(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the proxy reads");
    }

    /// Sends bytes over a link that the proxy may have left.
    pub(crate) fn reply_if_there(&mut self, bytes: impl AsRef<[u8]>) {
        thread::sleep(FAR);
        let _ = self.stream.write_all(bytes.as_ref());
    }

    /// Waits until the proxy closes the link, and returns what it sent before.
    #[track_caller]
    pub(crate) fn read_to_close(&mut self) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("the proxy has not closed the link: {error}"),
            }
        }
        std::mem::take(&mut self.buffer)
    }

    /// Fails when the proxy sends anything, or closes the link, within `pause`.
    #[track_caller]
    pub(crate) fn assert_quiet(&mut self, pause: Duration) {
        assert!(self.is_quiet(pause), "not quiet: {}", shown(&self.buffer));
    }

    /// Tells whether the proxy neither sends anything nor closes the link within `pause`.
    pub(crate) fn is_quiet(&mut self, pause: Duration) -> bool {
        if !self.buffer.is_empty() {
            return false;
        }
        self.stream.set_read_timeout(Some(pause)).expect("a time limit");
        let read = self.fill();
        self.stream.set_read_timeout(Some(IO_BOUND)).expect("a time limit");
        read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    /// Closes the link.
    pub(crate) fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.buffer.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The lines of INFO that tell one Redis from another.
pub(crate) const IDENTITY: &str = "run_id:0123456789012345678901234567890123456789";

/// What Redis 7.0.15 says to the requests with which the proxy introduces itself.
pub(crate) fn handshake_reply(request: &[Vec<u8>]) -> Vec<u8> {
    handshake_reply_as(request, IDENTITY)
}

fn handshake_reply_as(request: &[Vec<u8>], identity: &str) -> Vec<u8> {
    let word = |index: usize| request.get(index).map_or(vec![], |word| word.to_ascii_uppercase());
    let info = format!("redis_version:7.0.15\r\n{identity}\r\n");
    match (word(0).as_slice(), word(1).as_slice()) {
        (b"AUTH" | b"SELECT", _) | (b"CLIENT", b"SETNAME") => b"+OK\r\n".to_vec(),
        (b"HELLO", _) => b"*2\r\n$5\r\nproto\r\n:2\r\n".to_vec(),
        (b"INFO", _) => format!("${}\r\n{info}\r\n", info.len()).into_bytes(),
        (b"DBSIZE", _) => b":0\r\n".to_vec(),
        (b"PING", _) => b"+PONG\r\n".to_vec(),
        (b"MULTI", _) => b"+OK\r\n".to_vec(),
        (b"EXEC", _) => b"*0\r\n".to_vec(),
        (b"CLIENT", b"ID") => b":7\r\n".to_vec(),
        (b"CLIENT", b"LIST") => b"$0\r\n\r\n".to_vec(),
        _ => panic!("not a request of the handshake: {}", shown(&request.concat())),
    }
}

fn is_last_of_handshake(request: &[Vec<u8>]) -> bool {
    request[0] == b"DBSIZE"
}

/// Reads one canonical request; `None` while it is not complete.
fn parse(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let (count, mut at) = header(bytes, 0, b'*')?;
    let mut arguments = Vec::new();
    for _ in 0..count {
        let (length, start) = header(bytes, at, b'$')?;
        arguments.push(bytes.get(start..start + length)?.to_vec());
        at = start + length + 2;
        bytes.get(at - 1)?;
    }
    Some((arguments, at))
}

fn header(bytes: &[u8], at: usize, kind: u8) -> Option<(usize, usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
    assert_eq!(rest[0], kind, "not canonical: {}", shown(rest));
    let digits = String::from_utf8_lossy(&rest[1..end]).into_owned();
    Some((digits.parse().expect("a length"), at + end + 2))
}
