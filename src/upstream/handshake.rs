//! The start of a link: who we are, what Redis is, and no older lane of ours left behind.
//!
//! The lane and the private links log in alike. The lane takes a name and ends older connections of
//! that name. A private link takes it too before it may write to profiles, and so is ended when a
//! new lane is about to read what was written; `RESET` takes the name away again.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Config, RedisAddress, UpstreamError};
use crate::resp::{Framer, ReplyKind, push_command};

/// A link that is ready for use, in RESP2 and with the right database selected.
pub(super) struct Greeting {
    pub(super) stream: TcpStream,
    /// `redis_version` as Redis states it.
    pub(super) version: String,
    /// Redis knows `HELLO`.
    pub(super) resp3: bool,
}

/// Connects and introduces the proxy under `name`; ends any older connection of that name, whose
/// last requests could otherwise still run after the new link has read a profile.
pub(super) async fn connect(
    address: &RedisAddress,
    config: &Config,
    name: &str,
) -> Result<Greeting, UpstreamError> {
    tokio::time::timeout(config.connect_timeout, introduce(address, name))
        .await
        .map_err(|_| UpstreamError::Timeout)?
}

/// Connects and logs in for a private link, which speaks RESP2 in the profiles' database; returns
/// its id at Redis with it, 0 where an ACL withholds it.
pub(super) async fn connect_private(
    address: &RedisAddress,
    config: &Config,
) -> Result<(TcpStream, u64), UpstreamError> {
    let introduce = async {
        let mut talk = Talk::begin(address).await?;
        talk.log_in(address).await?;
        talk.select(address).await?;
        let id = text(&talk.ask(&["CLIENT", "ID"]).await?);
        Ok((talk.stream, id.trim().trim_start_matches(':').parse().unwrap_or(0)))
    };
    tokio::time::timeout(config.connect_timeout, introduce)
        .await
        .map_err(|_| UpstreamError::Timeout)?
}

/// Appends what a connection says after `RESET` to be what it was after its handshake; returns the
/// number of replies.
pub(super) fn push_log_in(address: &RedisAddress, out: &mut Vec<u8>) -> u32 {
    let mut replies = 0;
    let mut push = |arguments: &[&str]| {
        push_command(out, arguments, |_, _| {});
        replies += 1;
    };
    match (&address.password, &address.username) {
        (Some(password), Some(username)) => push(&["AUTH", username, password]),
        (Some(password), None) => push(&["AUTH", password]),
        (None, _) => {}
    }
    if address.database != 0 {
        push(&["SELECT", &address.database.to_string()]);
    }
    replies
}

async fn introduce(address: &RedisAddress, name: &str) -> Result<Greeting, UpstreamError> {
    let mut talk = Talk::begin(address).await?;
    talk.log_in(address).await?;
    let resp3 = ReplyKind::of(&talk.ask(&["HELLO", "2"]).await?) != ReplyKind::Error;
    talk.select(address).await?;
    let info = text(&talk.must(&["INFO", "server"]).await?);
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let version = version.unwrap_or("unknown").trim().to_owned();
    if !knows_expiry_times(&version) {
        let text = format!("Redis 7.0 or later is needed (for PEXPIRETIME); this is {version}");
        return Err(UpstreamError::Refused(text));
    }
    talk.must(&["PING"]).await?;
    // The names of connections are for the fence below. An ACL may withhold the command; then an
    // older link ends when its socket does.
    let named = talk.ask(&["CLIENT", "SETNAME", name]).await?;
    if ReplyKind::of(&named) != ReplyKind::Error {
        talk.fence(name).await?;
    }
    Ok(Greeting { stream: talk.stream, version, resp3 })
}

/// Redis 7.0 brought `PEXPIRETIME`, without which an expiry cannot be recorded exactly. A version
/// that cannot be read is taken for a new one.
fn knows_expiry_times(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major >= 7)
}

/// One question and one answer at a time.
struct Talk {
    stream: TcpStream,
    input: Vec<u8>,
}

impl Talk {
    async fn begin(address: &RedisAddress) -> Result<Self, UpstreamError> {
        let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, input: Vec::new() })
    }

    async fn log_in(&mut self, address: &RedisAddress) -> Result<(), UpstreamError> {
        if let Some(password) = &address.password {
            match &address.username {
                Some(username) => self.must(&["AUTH", username, password]).await?,
                None => self.must(&["AUTH", password]).await?,
            };
        }
        Ok(())
    }

    async fn select(&mut self, address: &RedisAddress) -> Result<(), UpstreamError> {
        if address.database != 0 {
            self.must(&["SELECT", &address.database.to_string()]).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, arguments: &[&str]) -> Result<Vec<u8>, UpstreamError> {
        let mut request = Vec::new();
        push_command(&mut request, arguments, |_, _| {});
        self.stream.write_all(&request).await?;
        let mut framer = Framer::default();
        loop {
            if let Some(length) = framer.frame(&self.input)? {
                let rest = self.input.split_off(length);
                return Ok(std::mem::replace(&mut self.input, rest));
            }
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err(UpstreamError::Closed);
            }
        }
    }

    /// Asks, and takes an error for an end; so a Redis that still loads its data is asked later.
    async fn must(&mut self, arguments: &[&str]) -> Result<Vec<u8>, UpstreamError> {
        let reply = self.ask(arguments).await?;
        if ReplyKind::of(&reply) == ReplyKind::Error {
            return Err(UpstreamError::Refused(text(&reply).trim().to_owned()));
        }
        Ok(reply)
    }

    /// Ends the other connections of our name.
    async fn fence(&mut self, name: &str) -> Result<(), UpstreamError> {
        let own = text(&self.ask(&["CLIENT", "ID"]).await?);
        let own = own.trim().trim_start_matches(':').to_owned();
        let list = text(&self.ask(&["CLIENT", "LIST"]).await?);
        let named = format!(" name={name} ");
        let older: Vec<String> = list
            .lines()
            .filter(|line| line.contains(&named))
            .filter_map(|line| line.split_whitespace().find_map(|part| part.strip_prefix("id=")))
            .filter(|id| *id != own)
            .map(str::to_owned)
            .collect();
        for id in older {
            self.ask(&["CLIENT", "KILL", "ID", &id]).await?;
        }
        Ok(())
    }
}

fn text(reply: &[u8]) -> String {
    String::from_utf8_lossy(reply).into_owned()
}
