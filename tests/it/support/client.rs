//! A RESP client of raw bytes: sends what it is told, and keeps the bytes of what comes back.
//!
//! It speaks RESP2 and RESP3 and checks the form of every reply. Reads and writes have a time limit,
//! so that a reply that never comes fails the test instead of stopping it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

/// How long one read or write may take.
pub(crate) const IO_BOUND: Duration = Duration::from_secs(20);

/// A decoded reply. The three forms of nothing are one value here; the raw bytes tell them apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    /// `+text`
    Simple(String),
    /// `-text` or RESP3 `!`
    Error(String),
    /// `:number`
    Integer(i64),
    /// `$`
    Bulk(Vec<u8>),
    /// `$-1`, `*-1` or RESP3 `_`
    Nothing,
    /// `*`
    Array(Vec<Reply>),
    /// RESP3 `%`
    Map(Vec<(Reply, Reply)>),
    /// RESP3 `~`
    Set(Vec<Reply>),
    /// RESP3 `>`
    Push(Vec<Reply>),
    /// RESP3 `,`, as written
    Double(String),
    /// RESP3 `#`
    Boolean(bool),
    /// RESP3 `(`, as written
    BigNumber(String),
    /// RESP3 `=`, with its three-letter format
    Verbatim(String, Vec<u8>),
}

impl Reply {
    /// A bulk string of text.
    pub(crate) fn text(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    /// The bytes of a bulk, verbatim or simple string.
    #[track_caller]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Reply::Bulk(bytes) | Reply::Verbatim(_, bytes) => bytes,
            Reply::Simple(text) => text.as_bytes(),
            other => panic!("expected a string, got {other:?}"),
        }
    }

    /// The number of an integer reply.
    #[track_caller]
    pub(crate) fn integer(&self) -> i64 {
        match self {
            Reply::Integer(number) => *number,
            other => panic!("expected an integer, got {other:?}"),
        }
    }

    /// The members of an array or set.
    #[track_caller]
    pub(crate) fn items(&self) -> &[Reply] {
        match self {
            Reply::Array(items) | Reply::Set(items) => items,
            other => panic!("expected an array, got {other:?}"),
        }
    }

    /// The pairs of a RESP3 map or of a flat RESP2 array.
    #[track_caller]
    pub(crate) fn pairs(&self) -> Vec<(Vec<u8>, Reply)> {
        match self {
            Reply::Map(pairs) => {
                pairs.iter().map(|(name, value)| (name.bytes().to_vec(), value.clone())).collect()
            }
            Reply::Array(items) => {
                assert!(items.len().is_multiple_of(2), "an odd number of items: {items:?}");
                let pairs = items.chunks_exact(2);
                pairs.map(|pair| (pair[0].bytes().to_vec(), pair[1].clone())).collect()
            }
            other => panic!("expected a map, got {other:?}"),
        }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    /// Received and not yet consumed; `start` is where the next reply begins.
    buffer: Vec<u8>,
    start: usize,
}

impl Client {
    /// Connects to `address`.
    #[track_caller]
    pub(crate) fn connect(address: &str) -> Client {
        match Client::try_connect(address) {
            Ok(client) => client,
            Err(error) => panic!("no connection to {address}: {error}"),
        }
    }

    /// Connects to `address`.
    ///
    /// # Errors
    /// Nothing listens there, or the connection was refused.
    pub(crate) fn try_connect(address: &str) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(IO_BOUND))?;
        stream.set_write_timeout(Some(IO_BOUND))?;
        Ok(Client { stream, buffer: Vec::new(), start: 0 })
    }

    /// Tells whether nothing comes for so long; what comes is kept.
    pub(crate) fn is_silent_for(&mut self, bound: Duration) -> bool {
        self.stream.set_read_timeout(Some(bound)).expect("a connection that is open");
        let heard = self.start < self.buffer.len() || self.fill().is_ok();
        self.stream.set_read_timeout(Some(IO_BOUND)).expect("a connection that is open");
        !heard
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.try_send(bytes).expect("the connection takes bytes");
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is closed, or takes nothing within the time limit.
    pub(crate) fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends one command as an array of bulk strings and returns its reply.
    #[track_caller]
    pub(crate) fn command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> Reply {
        match self.try_command(arguments) {
            Ok(reply) => reply,
            Err(error) => panic!("no reply to {}: {error}", shown(&encode(arguments))),
        }
    }

    /// Sends one command and returns its reply.
    ///
    /// # Errors
    /// The connection ended or answered nothing within the time limit.
    pub(crate) fn try_command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<Reply> {
        self.try_send(encode(arguments))?;
        self.try_reply()
    }

    /// Sends the encoded commands in one write and returns one reply for each.
    #[track_caller]
    pub(crate) fn pipeline(&mut self, commands: &[Vec<u8>]) -> Vec<Reply> {
        self.send(commands.concat());
        commands.iter().map(|_| self.reply()).collect()
    }

    /// The next reply.
    #[track_caller]
    pub(crate) fn reply(&mut self) -> Reply {
        self.try_reply().expect("a reply")
    }

    /// The next reply.
    ///
    /// # Errors
    /// The connection ended or answered nothing within the time limit.
    pub(crate) fn try_reply(&mut self) -> io::Result<Reply> {
        self.try_reply_and_bytes().map(|(reply, _)| reply)
    }

    /// The bytes of the next reply, whole and as they came.
    #[track_caller]
    pub(crate) fn reply_bytes(&mut self) -> Vec<u8> {
        self.try_reply_and_bytes().expect("a reply").1
    }

    /// The next reply, decoded and as it came.
    ///
    /// # Errors
    /// The connection ended or answered nothing within the time limit.
    pub(crate) fn try_reply_and_bytes(&mut self) -> io::Result<(Reply, Vec<u8>)> {
        loop {
            let unread = &self.buffer[self.start..];
            if let Some((reply, length)) = decode(unread) {
                let bytes = unread[..length].to_vec();
                self.consume(length);
                return Ok((reply, bytes));
            }
            if self.fill()? == 0 {
                let rest = shown(&self.buffer[self.start..]);
                let text = format!("the connection was closed, after {rest:?}");
                return Err(io::Error::new(ErrorKind::UnexpectedEof, text));
            }
        }
    }

    /// Exactly `count` bytes, whatever they mean.
    #[track_caller]
    pub(crate) fn read_exact_bytes(&mut self, count: usize) -> Vec<u8> {
        while self.buffer.len() - self.start < count {
            let got = self.fill().expect("bytes within the time limit");
            assert!(got > 0, "closed after {:?}", shown(&self.buffer[self.start..]));
        }
        let bytes = self.buffer[self.start..self.start + count].to_vec();
        self.consume(count);
        bytes
    }

    /// Everything up to the close of the connection.
    #[track_caller]
    pub(crate) fn read_to_close(&mut self) -> Vec<u8> {
        self.read_to_close_of("the connection")
    }

    /// As [`Self::read_to_close`]; a failure says `what` was not closed.
    #[track_caller]
    pub(crate) fn read_to_close_of(&mut self, what: &str) -> Vec<u8> {
        loop {
            match self.fill() {
                Ok(0) => break,
                Ok(_) => {}
                // A peer that closes with unread input of ours resets the connection.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
                Err(error) => panic!("{what} was not closed: {error}"),
            }
        }
        self.buffer.split_off(std::mem::take(&mut self.start))
    }

    /// Ends the sending direction, as a client that goes away in an orderly manner.
    pub(crate) fn shutdown_write(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Sends `command`, split at spaces, and compares the bytes of the reply.
    #[track_caller]
    pub(crate) fn assert_reply(&mut self, command: &str, expected: impl AsRef<[u8]>) {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        self.send(encode(&arguments));
        let got = self.reply_bytes();
        assert_bytes(command, &got, expected.as_ref());
    }

    /// Sends `command`, split at spaces, and checks that the reply begins with `expected`.
    #[track_caller]
    pub(crate) fn assert_reply_starts(&mut self, command: &str, expected: impl AsRef<[u8]>) {
        let arguments: Vec<&str> = command.split_whitespace().collect();
        self.send(encode(&arguments));
        let got = self.reply_bytes();
        let (got, expected) = (shown(&got), shown(expected.as_ref()));
        assert!(got.starts_with(&expected), "{command}: got {got:?}, expected {expected:?}...");
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    fn fill(&mut self) -> io::Result<usize> {
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

/// Compares reply bytes, readable in the failure from a little before the first difference on.
#[track_caller]
pub(crate) fn assert_bytes(what: &str, got: &[u8], expected: &[u8]) {
    let same = got.iter().zip(expected).take_while(|(one, other)| one == other).count();
    let from = same.saturating_sub(100);
    let (left, right) = (shown(&got[from..]), shown(&expected[from..]));
    assert!(got == expected, "{what}: behind {from} bytes got {left:?}, expected {right:?}");
}

/// Sends a command, split at spaces, and returns the reply.
#[track_caller]
pub(crate) fn command(client: &mut Client, line: &str) -> Reply {
    client.command(&line.split(' ').collect::<Vec<_>>())
}

/// One command as an array of bulk strings.
pub(crate) fn encode<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        let argument = argument.as_ref();
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// Bytes as readable text of at most 600 characters.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut text = bytes.escape_ascii().to_string();
    if text.len() > 600 {
        text.truncate(600);
        text.push_str("...");
    }
    text
}

/// Decodes one whole reply and its length in bytes; `None` when more bytes are needed.
///
/// Panics on bytes that are no RESP, which is what a test wants to hear.
fn decode(bytes: &[u8]) -> Option<(Reply, usize)> {
    let line_end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let line = String::from_utf8_lossy(&bytes[1..line_end]).into_owned();
    let head = line_end + 2;
    let length =
        || -> i64 { line.parse().unwrap_or_else(|_| panic!("not a length in {:?}", shown(bytes))) };
    Some(match bytes[0] {
        b'+' => (Reply::Simple(line), head),
        b'-' => (Reply::Error(line), head),
        b':' => (Reply::Integer(length()), head),
        b',' => (Reply::Double(line), head),
        b'(' => (Reply::BigNumber(line), head),
        b'#' => (Reply::Boolean(line == "t"), head),
        b'_' => (Reply::Nothing, head),
        b'$' | b'*' if length() == -1 => (Reply::Nothing, head),
        kind @ (b'$' | b'!' | b'=') => {
            let count = usize::try_from(length()).expect("a length");
            let body = bytes.get(head..head + count)?;
            let tail = bytes.get(head + count..head + count + 2)?;
            assert_eq!(tail, b"\r\n", "a string does not end where it says: {:?}", shown(bytes));
            let reply = match kind {
                b'$' => Reply::Bulk(body.to_vec()),
                b'!' => Reply::Error(String::from_utf8_lossy(body).into_owned()),
                _ => {
                    let format = String::from_utf8_lossy(&body[..3]).into_owned();
                    Reply::Verbatim(format, body[4..].to_vec())
                }
            };
            (reply, head + count + 2)
        }
        b'*' => decode_items(bytes, head, length()).map(|(v, end)| (Reply::Array(v), end))?,
        b'~' => decode_items(bytes, head, length()).map(|(v, end)| (Reply::Set(v), end))?,
        b'>' => decode_items(bytes, head, length()).map(|(v, end)| (Reply::Push(v), end))?,
        b'%' => {
            let (items, end) = decode_items(bytes, head, length() * 2)?;
            let mut items = items.into_iter();
            let mut pairs = Vec::new();
            while let (Some(name), Some(value)) = (items.next(), items.next()) {
                pairs.push((name, value));
            }
            (Reply::Map(pairs), end)
        }
        _ => panic!("not a reply: {:?}", shown(bytes)),
    })
}

fn decode_items(bytes: &[u8], mut at: usize, count: i64) -> Option<(Vec<Reply>, usize)> {
    let mut items = Vec::new();
    for _ in 0..count {
        let (item, length) = decode(bytes.get(at..)?)?;
        items.push(item);
        at += length;
    }
    Some((items, at))
}
