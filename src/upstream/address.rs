//! Where the upstream Redis is, and who the proxy is there.

use std::fmt;

/// The address of a Redis, with the proxy's own credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisAddress {
    /// Host name or IP address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// The ACL user; `None` means `default`.
    pub username: Option<String>,
    /// The password, if Redis asks for one.
    pub password: Option<String>,
    /// The number of the database in which the profiles are.
    pub database: u32,
}

impl fmt::Display for RedisAddress {
    /// Writes the address without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "redis://{}:{}/{}", self.host, self.port, self.database)
    }
}

impl fmt::Debug for RedisAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
