//! Which clients `CLIENT KILL` and `CLIENT LIST` are about: the filters, and how they are written.
//!
//! Texts and order of checks are those of Redis 7.0's `clientCommand`; `MAXAGE` is that of 7.4.

use std::net::SocketAddr;

use crate::dispatch::Client;
use crate::resp::{Request, parse_integer};

const SYNTAX: &str = "ERR syntax error";

/// What Redis takes a client for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dispatch) enum ClientType {
    /// Not one of the others; a monitor as well.
    Normal,
    /// It is subscribed.
    PubSub,
    /// A replica or a master, of which the proxy has none.
    Replication,
}

impl ClientType {
    /// Reads a type's name.
    pub(in crate::dispatch) fn parse(name: &[u8]) -> Result<Self, String> {
        match name.to_ascii_lowercase().as_slice() {
            b"normal" => Ok(Self::Normal),
            b"pubsub" => Ok(Self::PubSub),
            b"slave" | b"replica" | b"master" => Ok(Self::Replication),
            _ => Err(format!("ERR Unknown client type '{}'", String::from_utf8_lossy(name))),
        }
    }

    pub(in crate::dispatch) fn of(client: &Client) -> Self {
        if client.hold.get().subscribes() { Self::PubSub } else { Self::Normal }
    }
}

/// What a client must be to be killed; what is `None` does not matter.
#[derive(Debug, Default)]
pub(in crate::dispatch) struct Filter {
    /// The client that asks is left out.
    pub(super) skips_asking: bool,
    id: Option<u64>,
    address: Option<Vec<u8>>,
    local_address: Option<Vec<u8>>,
    client_type: Option<ClientType>,
    user: Option<Vec<u8>>,
    age_seconds_min: Option<u64>,
}

impl Filter {
    /// Reads the arguments of CLIENT KILL: an address alone, or filters with their values.
    ///
    /// # Errors
    /// The text of the reply, as Redis words it.
    pub(in crate::dispatch) fn parse(
        request: &Request<'_>,
        knows_user: impl Fn(&[u8]) -> bool,
    ) -> Result<Self, String> {
        if request.len() == 3 {
            let address = Some(request.argument(2).to_vec());
            return Ok(Self { address, ..Self::default() });
        }
        let mut filter = Self { skips_asking: true, ..Self::default() };
        let mut at = 2;
        while at < request.len() {
            if at + 1 == request.len() {
                return Err(SYNTAX.into());
            }
            filter.read(request.argument(at), request.argument(at + 1), &knows_user)?;
            at += 2;
        }
        Ok(filter)
    }

    fn read(
        &mut self,
        option: &[u8],
        value: &[u8],
        knows_user: impl Fn(&[u8]) -> bool,
    ) -> Result<(), String> {
        match option.to_ascii_lowercase().as_slice() {
            b"id" => match parse_integer(value) {
                Some(id) if id > 0 => self.id = Some(id.unsigned_abs()),
                _ => return Err("ERR client-id should be greater than 0".into()),
            },
            b"type" => self.client_type = Some(ClientType::parse(value)?),
            b"addr" => self.address = Some(value.to_vec()),
            b"laddr" => self.local_address = Some(value.to_vec()),
            b"user" if knows_user(value) => self.user = Some(value.to_vec()),
            b"user" => {
                return Err(format!("ERR No such user '{}'", String::from_utf8_lossy(value)));
            }
            b"skipme" if value.eq_ignore_ascii_case(b"yes") => self.skips_asking = true,
            b"skipme" if value.eq_ignore_ascii_case(b"no") => self.skips_asking = false,
            b"maxage" => match parse_integer(value) {
                Some(age) if age > 0 => self.age_seconds_min = Some(age.unsigned_abs()),
                Some(_) => return Err("ERR maxage should be greater than 0".into()),
                None => return Err("ERR maxage is not an integer or out of range".into()),
            },
            _ => return Err(SYNTAX.into()),
        }
        Ok(())
    }

    /// Tells whether a client is meant.
    pub(super) fn fits(&self, client: &Client) -> bool {
        let is_user = |name: &Vec<u8>| {
            let session = client.session.borrow();
            let user = session.user();
            user.as_bytes() == name
        };
        self.id.is_none_or(|id| id == client.id)
            && self.client_type.is_none_or(|wanted| wanted == ClientType::of(client))
            && self.address.as_ref().is_none_or(|address| is(address, client.peer))
            && self.local_address.as_ref().is_none_or(|address| is(address, client.local))
            && self.user.as_ref().is_none_or(is_user)
            && self.age_seconds_min.is_none_or(|age| client.since.elapsed().as_secs() >= age)
    }
}

/// Redis compares the texts, so `localhost` is no address here either.
fn is(text: &[u8], address: SocketAddr) -> bool {
    text == address.to_string().as_bytes()
}
