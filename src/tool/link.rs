//! A tool's connection to a running proxy: plain requests, one at a time, whole replies.
//!
//! The proxy holds the journal, so what a tool wants done to profiles it asks the proxy to do.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::ToolError;
use crate::{
    config::{Config, UpstreamAddress},
    resp::{Elements, Framer, ReplyKind, elements_of, framed, push_command, value},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The proxy bounds what it does itself; this is for one that has gone without a word.
const REPLY_TIMEOUT: Duration = Duration::from_secs(60);
const READ_BYTES: usize = 16 << 10;

/// One connection.
#[derive(Debug)]
pub(super) struct ProxyLink {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// Finds out where the proxy is: what was asked for, else where this configuration listens.
pub(super) fn proxy_address(
    config: &Config,
    url: Option<&str>,
) -> Result<UpstreamAddress, ToolError> {
    if let Some(url) = url {
        return match UpstreamAddress::parse(url) {
            Ok(UpstreamAddress::Embedded) => Err(ToolError::ProxyUrl("it names no host".into())),
            Ok(address) => Ok(address),
            Err(text) => Err(ToolError::ProxyUrl(text)),
        };
    }
    // A proxy that listens everywhere is here as well.
    let host = match config.listen {
        SocketAddr::V4(address) if address.ip().is_unspecified() => "127.0.0.1".to_owned(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => "::1".to_owned(),
        address => address.ip().to_string(),
    };
    let port = config.listen.port();
    Ok(UpstreamAddress::Redis { host, port, username: None, password: None, database: 0 })
}

impl ProxyLink {
    /// Connects and logs in.
    pub(super) async fn connect(address: &UpstreamAddress) -> Result<Self, ToolError> {
        let UpstreamAddress::Redis { host, port, username, password, .. } = address else {
            return Err(ToolError::ProxyUrl("it names no host".into()));
        };
        let absent = |source| ToolError::NoProxy { address: address.to_string(), source };
        let connecting = timeout(CONNECT_TIMEOUT, TcpStream::connect((host.as_str(), *port))).await;
        let stream = connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(absent)?;
        stream.set_nodelay(true).map_err(absent)?;
        let mut link = Self { stream, buffer: Vec::new() };
        if let Some(password) = password {
            let name = username.as_deref().unwrap_or("default");
            link.expect(&[b"AUTH", name.as_bytes(), password.expose().as_bytes()]).await?;
        }
        Ok(link)
    }

    /// Sends one request and returns its reply as it came.
    pub(super) async fn ask(&mut self, arguments: &[&[u8]]) -> Result<Vec<u8>, ToolError> {
        let asking = async {
            let mut request = Vec::new();
            push_command(&mut request, arguments, |_, _| {});
            self.stream.write_all(&request).await?;
            self.read_reply().await
        };
        let asked = timeout(REPLY_TIMEOUT, asking).await;
        asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(ToolError::ProxyLost)
    }

    /// Sends one request whose failure ends the tool.
    pub(super) async fn expect(&mut self, arguments: &[&[u8]]) -> Result<Vec<u8>, ToolError> {
        let reply = self.ask(arguments).await?;
        match ReplyKind::of(&reply) {
            ReplyKind::Error => Err(refusal(&reply)),
            _ => Ok(reply),
        }
    }

    async fn read_reply(&mut self) -> io::Result<Vec<u8>> {
        let mut framer = Framer::default();
        loop {
            match framer.frame(&self.buffer) {
                Ok(Some(length)) => {
                    let rest = self.buffer.split_off(length);
                    return Ok(std::mem::replace(&mut self.buffer, rest));
                }
                Ok(None) => {}
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Takes the next step of a walk over the hashes in Redis of one pattern; returns the cursor
    /// for the one behind it.
    pub(super) async fn scan(
        &mut self,
        cursor: &[u8],
        glob: &[u8],
    ) -> Result<(Vec<u8>, Vec<Vec<u8>>), ToolError> {
        let scan: [&[u8]; 8] =
            [b"SCAN", cursor, b"MATCH", glob, b"COUNT", b"512", b"TYPE", b"hash"];
        let reply = self.expect(&scan).await?;
        let body = elements_of(&reply, 2).ok_or(ToolError::NotThisProxy)?;
        let (_, keys) = body.split_at_checked(framed(body, 1)).unwrap_or_default();
        let cursor = Elements::of(&reply).next().ok_or(ToolError::NotThisProxy)?.to_vec();
        Ok((cursor, Elements::of(keys).map(<[u8]>::to_vec).collect()))
    }

    /// Returns how many keys Redis has, profiles or not.
    pub(super) async fn key_count(&mut self) -> Result<u64, ToolError> {
        let reply = self.expect(&[b"DBSIZE"]).await?;
        let count = crate::resp::integer(&reply).and_then(|count| u64::try_from(count).ok());
        count.ok_or(ToolError::NotThisProxy)
    }

    /// Returns one line of a section of INFO.
    pub(super) async fn info(
        &mut self,
        section: &str,
        name: &str,
    ) -> Result<Option<String>, ToolError> {
        let reply = self.expect(&[b"INFO", section.as_bytes()]).await?;
        let text = String::from_utf8_lossy(value(&reply).unwrap_or_default()).into_owned();
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        Ok(found.map(str::to_owned))
    }
}

/// What an error reply means to a person with a tool. Errors of the proxy quote no keys.
pub(super) fn refusal(reply: &[u8]) -> ToolError {
    let text = String::from_utf8_lossy(reply.get(1..).unwrap_or_default()).trim().to_owned();
    match text.split(' ').next() {
        Some("NOAUTH" | "WRONGPASS" | "DENIED" | "NOPERM") => ToolError::LogIn(text),
        Some("ERR") if text.starts_with("ERR unknown command") => ToolError::NotThisProxy,
        _ => ToolError::Refused(text),
    }
}
