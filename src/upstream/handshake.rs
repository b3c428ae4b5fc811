//! The start of a link: who we are, what Redis is, and no older lane of ours left behind.
//!
//! The lane and the private links log in alike. The lane takes a name and ends older connections of
//! that name. A private link takes it too before it may write to profiles, and so is ended when a
//! new lane is about to read what was written; `RESET` takes the name away again.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Config, RedisAddress, UpstreamError};
use crate::{
    guards::Guard,
    outside::{Stream, keep_alive},
    resp::{Framer, ReplyKind, integer, push_command},
};

/// When the system asks a silent Redis whether its machine is still there: after the first time,
/// then at each pause; after so many questions the link is lost.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// A link that is ready for use, in RESP2 and with the right database selected.
pub(super) struct Greeting {
    pub(super) stream: Stream,
    /// `redis_version` as Redis states it.
    pub(super) version: String,
    /// Which life of which Redis it is.
    pub(super) server: Server,
    /// Redis knows `HELLO`.
    pub(super) resp3: bool,
}

/// What Redis says of itself when a link is made. What an ACL withholds is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server {
    /// Random, and new with every start of the process.
    pub run_id: String,
    /// New with every history of the data.
    pub replication_id: String,
    /// `master` or `slave`.
    pub role: String,
    /// What is removed when the memory is full: `maxmemory-policy`, or `noeviction` where there is
    /// no limit.
    pub eviction: Option<String>,
    /// The number of the profiles' database.
    pub database: u32,
    /// How many keys the profiles' database holds.
    pub keys: Option<u64>,
    /// What it says to `INFO commandstats`.
    pub command_stats: String,
}

impl Server {
    /// Reads the answers to `INFO server` and further sections, one behind the other.
    #[must_use]
    pub fn parse(info: &str, keys: Option<u64>) -> Self {
        let find = |name: &str| {
            let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        };
        let bounded = find("maxmemory").is_none_or(|bytes| bytes != "0");
        Self {
            run_id: find("run_id").unwrap_or_default(),
            replication_id: find("master_replid").unwrap_or_default(),
            role: find("role").unwrap_or_default(),
            eviction: find("maxmemory_policy")
                .map(|policy| if bounded { policy } else { "noeviction".to_owned() }),
            database: 0,
            keys,
            command_stats: String::new(),
        }
    }
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

/// A private link that is logged in, in RESP2 and in the profiles' database.
pub(super) struct PrivateGreeting {
    pub(super) stream: Stream,
    /// Its id at Redis; 0 where an ACL withholds it.
    pub(super) id: u64,
    /// Which Redis it is; nothing while that is busy with a script.
    pub(super) run_id: Option<String>,
}

/// Connects and logs in for a private link.
pub(super) async fn connect_private(
    address: &RedisAddress,
    config: &Config,
    selects: bool,
) -> Result<PrivateGreeting, UpstreamError> {
    let introduce = async {
        let mut talk = Talk::introduced(address).await?;
        if selects {
            talk.select(address).await?;
        }
        let id = text(&talk.ask(&["CLIENT", "ID"]).await?);
        let id = id.trim().trim_start_matches(':').parse().unwrap_or(0);
        let info = talk.ask(&["INFO", "server"]).await?;
        let known = ReplyKind::of(&info) != ReplyKind::Error;
        let run_id = known.then(|| Server::parse(&text(&info), None).run_id);
        Ok(PrivateGreeting { stream: talk.stream, id, run_id })
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
    let mut info = text(&talk.must(&["INFO", "server"]).await?);
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    let version = version.unwrap_or("unknown").trim().to_owned();
    if !knows_expiry_times(&version) {
        let text = format!("Redis 7.0 or later is needed (for PEXPIRETIME); this is {version}");
        return Err(UpstreamError::Refused(text));
    }
    for section in ["replication", "memory"] {
        info.push_str(&text(&talk.ask(&["INFO", section]).await?));
    }
    talk.must(&["PING"]).await?;
    // Without the right to them transactions would fall into pieces, also those that bring a profile
    // back. The refusal names the command.
    talk.must(&["MULTI"]).await?;
    talk.must(&["EXEC"]).await?;
    // The names of connections are for the fence below. An ACL may withhold the command; then an
    // older link ends when its socket does.
    let named = talk.ask(&["CLIENT", "SETNAME", name]).await?;
    if ReplyKind::of(&named) != ReplyKind::Error && Guard::Fence.is_up() {
        talk.fence(name).await?;
    }
    // Behind the fence, since an older connection of ours may change either.
    let command_stats = text(&talk.ask(&["INFO", "commandstats"]).await?);
    let keys = integer(&talk.ask(&["DBSIZE"]).await?);
    let keys = keys.and_then(|keys| u64::try_from(keys).ok());
    let told = Server::parse(&info, keys);
    let server = Server { database: address.database, command_stats, ..told };
    Ok(Greeting { stream: talk.stream, version, server, resp3 })
}

/// Redis 7.0 brought `PEXPIRETIME`, without which an expiry cannot be recorded exactly. A version
/// that cannot be read is taken for a new one.
fn knows_expiry_times(version: &str) -> bool {
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major >= 7)
}

/// One question and one answer at a time.
pub(super) struct Talk {
    stream: Stream,
    input: Vec<u8>,
}

impl Talk {
    /// Connects and logs in, in database 0: a Redis that is busy with a script allows no more.
    pub(super) async fn introduced(address: &RedisAddress) -> Result<Self, UpstreamError> {
        let mut talk = Self::begin(address).await?;
        talk.log_in(address).await?;
        Ok(talk)
    }

    async fn begin(address: &RedisAddress) -> Result<Self, UpstreamError> {
        let stream = Stream::connect((address.host.as_str(), address.port)).await?;
        stream.set_nodelay(true)?;
        // A private link may wait for ever for a machine that is gone without a word.
        keep_alive(&stream, KEEPALIVE_IDLE, KEEPALIVE_PAUSE, KEEPALIVE_PROBES)?;
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

    pub(super) async fn ask(&mut self, arguments: &[&str]) -> Result<Vec<u8>, UpstreamError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_memory_makes_the_policy_count() {
        let info = |limit| {
            format!(
                "# Server\r\nrun_id:7d4c\r\n# Replication\r\nrole:master\r\nmaster_replid:91aa\r\n\
                 master_replid2:0000\r\nmaxmemory:{limit}\r\nmaxmemory_policy:allkeys-lru\r\n"
            )
        };
        let server = Server::parse(&info(0), Some(3));
        assert_eq!((server.run_id.as_str(), server.replication_id.as_str()), ("7d4c", "91aa"));
        assert_eq!((server.role.as_str(), server.keys), ("master", Some(3)));
        assert_eq!(server.eviction.as_deref(), Some("noeviction"));
        assert_eq!(Server::parse(&info(1), None).eviction.as_deref(), Some("allkeys-lru"));
        assert_eq!(Server::parse("-NOPERM\r\n", None), Server::default());
    }
}
