//! Where the upstream and the database are, read from their URLs.
//!
//! A URL may hold a password. It is kept in a `Secret` or a `PostgresUrl`, whose `Debug` and
//! `Display` mask it, and no error quotes the URL it complains about.

use std::fmt;
use std::path::PathBuf;

use url::{Host, Url};

/// The port of a Redis server unless the URL says otherwise.
const REDIS_PORT: u16 = 6379;

/// Stands where a password would.
const MASK: &str = "***";

/// Holds a text that must not be shown.
#[derive(Clone, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// Returns the text itself; it goes to the other side of a connection and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(MASK)
    }
}

/// Says which Redis stands behind the proxy. Displays as a URL with the password masked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UpstreamAddress {
    /// None: the store in this process.
    Embedded,
    /// A Redis server over plain TCP.
    Redis {
        /// A host name or an IP address, without brackets.
        host: String,
        /// The TCP port, never 0.
        port: u16,
        /// The user to log in as; `None` with a password is Redis's default user.
        username: Option<String>,
        /// The password to log in with.
        password: Option<Secret>,
        /// The number of the database to select.
        database: u32,
    },
}

impl UpstreamAddress {
    /// Reads `embedded` or `redis://[user[:password]@]host[:port][/db]`.
    ///
    /// # Errors
    /// Returns a sentence that does not quote the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "expected 'embedded' or redis://[user[:password]@]host[:port][/db]";
        if text == "embedded" {
            return Ok(Self::Embedded);
        }
        let url = Url::parse(text).map_err(|error| format!("{FORM}; {error}"))?;
        match url.scheme() {
            "redis" => {}
            "rediss" => {
                return Err("TLS to the upstream is not supported yet; use redis:// over a \
                            network that you trust"
                    .into());
            }
            _ => return Err(FORM.into()),
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!(
                "{FORM}, nothing behind it; write '?' and '#' in a password as \
                                %3F and %23"
            ));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) if !name.is_empty() => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            _ => return Err(format!("{FORM}; the host is missing")),
        };
        let port = url.port().unwrap_or(REDIS_PORT);
        if port == 0 {
            return Err(format!("{FORM}; port 0 cannot be connected to"));
        }
        let database = match url.path().trim_start_matches('/') {
            "" => 0,
            digits => digits.parse().map_err(|_| format!("{FORM}; db must be a number"))?,
        };
        let bad_escape = || format!("{FORM}; '%' must be followed by two hexadecimal digits");
        let username = unescape(url.username()).ok_or_else(bad_escape)?;
        let password = url.password().map(|text| unescape(text).ok_or_else(bad_escape));
        Ok(Self::Redis {
            host,
            port,
            username: Some(username).filter(|name| !name.is_empty()),
            password: password.transpose()?.map(Secret),
            database,
        })
    }
}

impl fmt::Display for UpstreamAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Redis { host, port, username, password, database } = self else {
            return formatter.write_str("embedded");
        };
        formatter.write_str("redis://")?;
        formatter.write_str(&login(username.as_deref(), password.is_some()))?;
        if host.contains(':') {
            write!(formatter, "[{host}]")?
        } else {
            formatter.write_str(host)?
        }
        write!(formatter, ":{port}")?;
        if *database == 0 { Ok(()) } else { write!(formatter, "/{database}") }
    }
}

/// Says where profiles are stored as rows. Displays as a URL with the password masked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DatabaseAddress {
    /// A SQLite file; a relative path starts at the working directory.
    Sqlite(PathBuf),
    /// A PostgreSQL database.
    Postgres(PostgresUrl),
}

impl DatabaseAddress {
    /// Reads `sqlite://PATH` or `postgres://[user[:password]@]host[:port]/db`.
    ///
    /// # Errors
    /// Returns a sentence that does not quote the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str = "expected sqlite://PATH or postgres://user[:password]@host[:port]/db";
        if let Some(rest) = text.strip_prefix("sqlite:") {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() || path.starts_with(':') || path.contains(['?', '#']) {
                return Err("expected sqlite://PATH with the path of a file and nothing behind \
                            it; a database in memory would forget the profiles"
                    .into());
            }
            return Ok(Self::Sqlite(path.into()));
        }
        let url = Url::parse(text).map_err(|error| format!("{FORM}; {error}"))?;
        match url.scheme() {
            "postgres" | "postgresql" => Ok(Self::Postgres(PostgresUrl(text.to_owned()))),
            _ => Err(FORM.into()),
        }
    }
}

impl fmt::Display for DatabaseAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(formatter, "sqlite://{}", path.display()),
            Self::Postgres(url) => url.fmt(formatter),
        }
    }
}

/// Holds a PostgreSQL URL. Displays with the password masked and without parameters, which can
/// hold a password too.
#[derive(Clone, Eq, PartialEq)]
pub struct PostgresUrl(String);

impl PostgresUrl {
    /// Returns the whole URL with its password, for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(url) = Url::parse(&self.0) else { return formatter.write_str(MASK) };
        let username = Some(url.username()).filter(|name| !name.is_empty());
        let login = login(username, url.password().is_some());
        write!(formatter, "{}://{login}{}", url.scheme(), url.host_str().unwrap_or_default())?;
        if let Some(port) = url.port() {
            write!(formatter, ":{port}")?;
        }
        formatter.write_str(url.path())
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Masks the password of every URL in a text, such as a command line that could not be read.
pub fn mask_passwords(text: &str) -> String {
    let mut masked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, authority) = rest.split_at(at + 3);
        masked.push_str(before);
        // Up to the last '@', because a password may hold one that was not escaped.
        let end = authority.find([' ', '\t', '\n', '\'', '"']).unwrap_or(authority.len());
        rest = authority;
        if let Some(login) = authority[..end].rfind('@') {
            if let Some(colon) = authority[..login].find(':') {
                masked.push_str(&authority[..=colon]);
                masked.push_str(MASK);
            } else {
                masked.push_str(&authority[..login]);
            }
            rest = &authority[login..];
        }
    }
    masked.push_str(rest);
    masked
}

fn login(username: Option<&str>, has_password: bool) -> String {
    let name = username.unwrap_or_default();
    match has_password {
        true => format!("{name}:{MASK}@"),
        false if name.is_empty() => String::new(),
        false => format!("{name}@"),
    }
}

/// Replaces `%41` by `A`; nothing if an escape is broken or the result is not UTF-8.
fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        rest = match rest {
            [] => return String::from_utf8(bytes).ok(),
            [b'%', high, low, rest @ ..] => {
                let digit = |digit: &u8| char::from(*digit).to_digit(16);
                bytes.push(u8::try_from((digit(high)? << 4) | digit(low)?).ok()?);
                rest
            }
            [b'%', ..] => return None,
            [byte, rest @ ..] => {
                bytes.push(*byte);
                rest
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis(
        host: &str,
        port: u16,
        login: (Option<&str>, Option<&str>),
        database: u32,
    ) -> UpstreamAddress {
        UpstreamAddress::Redis {
            host: host.into(),
            port,
            username: login.0.map(String::from),
            password: login.1.map(|text| Secret(text.into())),
            database,
        }
    }

    #[test]
    fn upstream_urls_are_read_in_all_their_forms() {
        let table = [
            ("embedded", UpstreamAddress::Embedded, "embedded"),
            ("redis://h", redis("h", 6379, (None, None), 0), "redis://h:6379"),
            (
                "redis://127.0.0.1:7000/",
                redis("127.0.0.1", 7000, (None, None), 0),
                "redis://127.0.0.1:7000",
            ),
            ("redis://[::1]:7000/3", redis("::1", 7000, (None, None), 3), "redis://[::1]:7000/3"),
            ("redis://:pw@h", redis("h", 6379, (None, Some("pw")), 0), "redis://:***@h:6379"),
            ("redis://app@h", redis("h", 6379, (Some("app"), None), 0), "redis://app@h:6379"),
            (
                "redis://app:p%40s%3Fs%C3%A9@redis.internal:1/15",
                redis("redis.internal", 1, (Some("app"), Some("p@s?sé")), 15),
                "redis://app:***@redis.internal:1/15",
            ),
            (
                "redis://app:a:b@c@h",
                redis("h", 6379, (Some("app"), Some("a:b@c")), 0),
                "redis://app:***@h:6379",
            ),
        ];
        for (text, address, shown) in table {
            assert_eq!(UpstreamAddress::parse(text).as_ref(), Ok(&address), "{text}");
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn bad_upstreams_are_refused_without_being_quoted() {
        let table = [
            ("", "expected 'embedded'"),
            ("Embedded", "expected 'embedded'"),
            ("hunter2", "expected 'embedded'"),
            ("localhost:6379", "expected 'embedded'"),
            ("http://app:hunter2@h", "expected 'embedded'"),
            ("rediss://app:hunter2@h", "TLS to the upstream is not supported yet"),
            ("redis://", "expected"),
            ("redis:///3", "the host is missing"),
            ("redis://app:hunter2@", "expected"),
            ("redis://app:hunter2@h:0", "port 0"),
            ("redis://app:hunter2@h:70000", "invalid port"),
            ("redis://app:hunter2@h/hunter2", "db must be a number"),
            ("redis://app:hunter2@h/-1", "db must be a number"),
            ("redis://app:hunter2@h/1/2", "db must be a number"),
            ("redis://app:hunter2@h?protocol=3", "nothing behind it"),
            ("redis://app:hunter2%@h", "two hexadecimal digits"),
            ("redis://app:hunter2%ff@h", "two hexadecimal digits"),
            ("redis://app:hunter2/@h", "invalid port"),
        ];
        for (text, why) in table {
            let error = UpstreamAddress::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn database_urls_are_read_and_shown_without_their_secrets() {
        let table = [
            ("sqlite://data/profiles.db", "sqlite://data/profiles.db"),
            ("sqlite:data/profiles.db", "sqlite://data/profiles.db"),
            ("sqlite:///var/lib/p.db", "sqlite:///var/lib/p.db"),
            ("postgres://app:hunter2@h/db", "postgres://app:***@h/db"),
            ("postgresql://h:5433/db", "postgresql://h:5433/db"),
            ("postgres://app@h/db?password=hunter2", "postgres://app@h/db"),
            ("postgres:///db?host=/run/postgresql", "postgres:///db"),
        ];
        for (text, shown) in table {
            let address = DatabaseAddress::parse(text).unwrap();
            assert_eq!(address.to_string(), shown, "{text}");
            assert!(!format!("{address:?}").contains("hunter2"));
            if let DatabaseAddress::Postgres(url) = address {
                assert_eq!(url.expose(), text);
            }
        }
        let path = DatabaseAddress::Sqlite("/var/lib/p.db".into());
        assert_eq!(DatabaseAddress::parse("sqlite:///var/lib/p.db"), Ok(path));
    }

    #[test]
    fn bad_databases_are_refused_without_being_quoted() {
        let table = [
            "",
            "hunter2",
            "mysql://app:hunter2@h/db",
            "sqlite://",
            "sqlite:",
            "sqlite::memory:",
            "sqlite://hunter2?mode=memory",
            "postgres://app:hunter2@h:x/db",
            "data/hunter2.db",
        ];
        for text in table {
            let error = DatabaseAddress::parse(text).unwrap_err();
            assert!(error.starts_with("expected sqlite://PATH"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn passwords_are_masked_wherever_a_url_stands() {
        let table = [
            ("no url: here @ all", "no url: here @ all"),
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("'redis://app:hunter2@h' is odd", "'redis://app:***@h' is odd"),
            ("redis://:hunter2@h", "redis://:***@h"),
            (
                "redis://a:hun@ter2@h and postgres://b:hunter2@h/d",
                "redis://a:***@h and postgres://b:***@h/d",
            ),
            ("redis://app@h", "redis://app@h"),
            ("://", "://"),
        ];
        for (text, masked) in table {
            assert_eq!(mask_passwords(text), masked);
        }
    }

    #[test]
    fn a_secret_is_never_shown() {
        let address = UpstreamAddress::parse("redis://app:hunter2@h").unwrap();
        assert!(!format!("{address:?}").contains("hunter2"), "{address:?}");
        let UpstreamAddress::Redis { password: Some(password), .. } = address else { panic!() };
        assert_eq!(password.expose(), "hunter2");
    }
}
