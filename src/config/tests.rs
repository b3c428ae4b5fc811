//! Sources and their precedence, the shipped file, and faults with their exact places.

#[path = "limits_tests.rs"]
mod limits;

use std::collections::HashMap;

use tempfile::TempDir;

use super::*;
use crate::schema::{Ack, FieldConfig, FieldType, FieldsConfig, Mode, Number, UnknownFields};
use crate::{cache, hydrate, journal, sinks};

/// Loads in an empty working directory unless a file's text is given.
fn load_with(
    file: Option<&str>,
    overrides: &Overrides,
    variables: &[(&str, &str)],
) -> Result<Config, Faults> {
    let directory = TempDir::new().unwrap();
    if let Some(text) = file {
        std::fs::create_dir(directory.path().join("config")).unwrap();
        std::fs::write(directory.path().join(DEFAULT_FILE), text).unwrap();
    }
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    let environment = |name: &str| variables.get(name).map(OsString::from);
    load_in(directory.path(), overrides, &environment)
}

fn file(text: &str) -> Result<Config, Faults> {
    load_with(Some(text), &Overrides::default(), &[])
}

/// The faults of a file, one per line, without the file's name.
fn faults(text: &str) -> Vec<String> {
    let shown = file(text).unwrap_err().to_string();
    let prefix = format!("{DEFAULT_FILE}:");
    shown.lines().map(|line| line.strip_prefix(&prefix).unwrap_or(line).to_owned()).collect()
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let shipped = file(BUILT_IN_TEXT).unwrap();
    let default = Config::default();
    let field = |field_type| FieldConfig { field_type: Some(field_type), ..Default::default() };
    let text = |min_length, max_length| FieldConfig {
        min_length,
        max_length: Some(max_length),
        ..field(FieldType::String)
    };
    let counter = FieldConfig { min: Some(Number::Integer(0)), ..field(FieldType::Integer) };
    let states = ["active", "inactive", "suspended"].map(String::from).to_vec();
    let status = FieldConfig { values: Some(states), ..field(FieldType::Enum) };
    let fields = [
        ("employee_id", text(None, 64)),
        ("username", text(Some(1), 64)),
        ("password", text(None, 256)),
        ("department", text(None, 64)),
        ("role", text(None, 64)),
        ("questions_asked", counter.clone()),
        ("login_count", counter),
        ("last_login", field(FieldType::Timestamp)),
        ("created_at", field(FieldType::Timestamp)),
        ("status", status),
    ];
    let user = KindConfig {
        name: "user".into(),
        key: "user:{employee_id}".into(),
        mode: Mode::Enforce,
        ttl: Some(Duration::from_secs(365 * 86_400)),
        cache_ttl: None,
        ack: Ack::Journal,
        unknown_fields: UnknownFields::Allow,
        fields: FieldsConfig(fields.map(|(name, field)| (name.to_owned(), field)).into()),
    };
    let source = Source::File(DEFAULT_FILE.into());
    assert_eq!(shipped, Config { source, profile: vec![user], ..default });
}

#[test]
fn the_shipped_file_names_every_setting() {
    // `Config` is destructured so that a new setting does not compile until it is looked for here.
    let Config {
        source: _,
        listen: _,
        admin: _,
        upstream: _,
        database: _,
        data_dir: _,
        shutdown_timeout: _,
        upstream_timeout: _,
        ack_timeout: _,
        log: _,
        workers: _,
        scripts: _,
        allow_debug: _,
        limits:
            Limits {
                maxclients: _,
                timeout: _,
                tcp_keepalive: _,
                tcp_backlog: _,
                client_query_buffer_limit: _,
                proto_max_bulk_len: _,
                client_output_buffer_limit: _,
                inflight_max: _,
                inflight_bytes_max: _,
                arguments_max: _,
            },
        journal:
            journal::Config { sync: _, segment_bytes_max: _, bytes_max: _, slow_from_percent: _ },
        sink:
            sinks::Config {
                batch_records_max: _,
                batch_bytes_max: _,
                linger: _,
                give_way_max: _,
                connections: _,
                timeout: _,
                retry_delay_max: _,
                flush_within: _,
            },
        hydrate: hydrate::Config { on_difference: _, warm_keys_per_second_max: _ },
        cache: cache::Config { enabled: _, memory: _ },
        user: _,
        profile: _,
    } = Config::default();
    let settings = "listen admin upstream database data_dir shutdown_timeout upstream_timeout \
         ack_timeout log workers scripts allow_debug maxclients timeout tcp-keepalive \
         tcp-backlog client-query-buffer-limit proto-max-bulk-len client-output-buffer-limit inflight_max \
         inflight_bytes_max arguments_max sync segment_bytes_max bytes_max batch_records_max batch_bytes_max \
         linger connections timeout retry_delay_max flush_within on_difference \
         warm_keys_per_second_max enabled memory";
    for setting in settings.split_whitespace() {
        let line = format!("\n{setting} = ");
        assert!(BUILT_IN_TEXT.contains(&line), "{setting}");
    }
}

#[test]
fn the_file_of_the_working_directory_is_read_if_it_is_there() {
    let built_in = load_with(None, &Overrides::default(), &[]).unwrap();
    assert_eq!(built_in.source, Source::BuiltIn);
    assert_eq!(built_in.profile.len(), 1);
    let own = file("listen = \"127.0.0.1:1\"").unwrap();
    assert_eq!(own.source, Source::File(DEFAULT_FILE.into()));
    let changed = Config { listen: own.listen, source: own.source.clone(), ..Config::default() };
    assert_eq!((own.listen.port(), &own), (1, &changed));
}

#[test]
fn flags_win_over_variables_over_the_file_over_defaults() {
    let text = "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:2\"\nupstream = \"redis://file\"\n\
                database = \"sqlite://file.db\"\ndata_dir = \"file\"";
    let variables = [
        ("PROFILE_PROXY_LISTEN", "127.0.0.1:11"),
        ("PROFILE_PROXY_ADMIN", "127.0.0.1:12"),
        ("PROFILE_PROXY_UPSTREAM", "redis://variable"),
        ("PROFILE_PROXY_DATABASE", "sqlite://variable.db"),
        ("PROFILE_PROXY_DATA_DIR", "variable"),
    ];
    let flags = Overrides {
        config: None,
        listen: Some("127.0.0.1:21".into()),
        admin: Some("127.0.0.1:22".into()),
        upstream: Some("redis://flag".into()),
        database: Some("sqlite://flag.db".into()),
        data_dir: Some("flag".into()),
    };
    let shown = |config: Config| {
        let Config { listen, admin, upstream, database, data_dir, .. } = config;
        format!("{listen} {admin} {upstream} {database} {}", data_dir.display())
    };
    let none = Overrides::default();
    let (a, h) = ("127.0.0.1", "6379");
    let table = [
        (
            load_with(None, &none, &[]),
            format!("{a}:6380 {a}:9180 embedded sqlite://data/profiles.db data"),
        ),
        (
            load_with(Some(text), &none, &[]),
            format!("{a}:1 {a}:2 redis://file:{h} sqlite://file.db file"),
        ),
        (
            load_with(Some(text), &none, &variables),
            format!("{a}:11 {a}:12 redis://variable:{h} sqlite://variable.db variable"),
        ),
        (
            load_with(Some(text), &flags, &variables),
            format!("{a}:21 {a}:22 redis://flag:{h} sqlite://flag.db flag"),
        ),
        (
            load_with(Some(text), &none, &variables.map(|(name, _)| (name, ""))),
            format!("{a}:1 {a}:2 redis://file:{h} sqlite://file.db file"),
        ),
    ];
    for (loaded, expected) in table {
        assert_eq!(shown(loaded.unwrap()), expected);
    }
}

#[test]
fn the_named_file_is_read_and_a_flag_names_it_first() {
    let directory = TempDir::new().unwrap();
    let write = |name: &str, port: u16| {
        let path = directory.path().join(name);
        std::fs::write(&path, format!("listen = \"127.0.0.1:{port}\"")).unwrap();
        path
    };
    let (by_flag, by_variable) = (write("flag.toml", 1), write("variable.toml", 2));
    let environment =
        |name: &str| (name == "PROFILE_PROXY_CONFIG").then(|| by_variable.clone().into_os_string());
    let config = load(&Overrides::default(), environment).unwrap();
    assert_eq!((config.listen.port(), config.source), (2, Source::File(by_variable.clone())));
    let flag = Overrides { config: Some(by_flag.clone()), ..Overrides::default() };
    let config = load(&flag, environment).unwrap();
    assert_eq!((config.listen.port(), config.source), (1, Source::File(by_flag)));
}

#[test]
fn the_default_database_follows_the_data_directory() {
    let in_x = Overrides { data_dir: Some("x".into()), ..Overrides::default() };
    let database =
        |file, overrides: &Overrides| load_with(file, overrides, &[]).unwrap().database.to_string();
    assert_eq!(database(None, &in_x), "sqlite://x/profiles.db");
    assert_eq!(database(Some("data_dir = \"y\""), &Overrides::default()), "sqlite://y/profiles.db");
    assert_eq!(database(Some("database = \"sqlite://z.db\""), &in_x), "sqlite://z.db");
    let asked = Overrides { database: Some("sqlite://data/profiles.db".into()), ..in_x };
    assert_eq!(database(None, &asked), "sqlite://data/profiles.db");
}

#[test]
fn all_faults_of_a_file_are_found_at_once_with_their_places() {
    let text = r#"listen = "localhost"
lisen = "127.0.0.1:1"
upstream = "redis://app:hunter2@h:x"
database = 7
shutdown_timeout = "soon"
upstream_timeout = "0s"
log = "loud"

[limits]
maxclients = 0
proto-max-bulk-len = "huge"
client-query-buffer-limit = "1MiB"
surprise = 1

[[user]]
name = "app"
password = "hunter2"
password_hash = "hunter2"

[[profile]]
name = "user"
key = "user:id"
mode = "strict"
ack = "disk"
[profile.fields]
"é" = { type = "integer", min = 0.5, max = "9" }
b = { type = "text", min = 1 }
"bad\n" = { type = "string" }
c = { min = 1 }

[[profile]]
key = "user:{id}"
name = 7
ttl = "ever"
[profile.fields.status]
type = "enum"
"#;
    let expected = [
        "1:10: expected IP:PORT such as 127.0.0.1:6380, or [::1]:6380 for IPv6",
        "2:1: there is no setting `lisen` here; known are `listen`, `admin`, `upstream`, \
         `database`, `data_dir`, `shutdown_timeout`, `upstream_timeout`, `ack_timeout`, `log`, \
         `workers`, `scripts`, `allow_debug`, `limits`, `journal`, `sink`, `hydrate`, `cache`, `user`, `profile`",
        "3:12: expected 'embedded' or redis://[user[:password]@]host[:port][/db]; \
         invalid port number",
        "4:12: expected a text in quotes",
        "5:20: expected a duration such as \"10s\"",
        "6:20: upstream_timeout must be longer than 0s and at most 1h",
        "7:7: expected off, error, warn, info, debug or trace, or directives such as \
         \"info,profile_proxy::journal=debug\"",
        "10:14: maxclients must be at least 1",
        "11:22: expected a size such as \"512MiB\" or a number of bytes",
        "12:29: client-query-buffer-limit must be at least proto-max-bulk-len",
        "13:1: there is no setting `surprise` here; known are `maxclients`, `timeout`, \
         `tcp-keepalive`, `tcp-backlog`, `client-query-buffer-limit`, `proto-max-bulk-len`, \
         `client-output-buffer-limit`, `inflight_max`, `inflight_bytes_max`, \
         `arguments_max`",
        "17:1: there is no setting `password` here; known are `name` or `password_hash`",
        "18:17: expected a hash that begins with '$argon2id$' or 'sha256:', never the password \
         itself",
        "22:7: a key pattern needs at least one placeholder such as '{id}'",
        "23:8: expected one of `enforce`, `warn`, `off`",
        "24:7: expected `journal` or `database`",
        "26:33: 'min' of an integer field must be an integer",
        "26:44: expected a number",
        "27:14: expected one of `string`, `integer`, `float`, `boolean`, `enum`, `timestamp`",
        "28:1: this field cannot be declared: it holds a control character, which would break \
         the reply",
        "29:5: a field needs a type: string, integer, float, boolean, enum or timestamp",
        "33:8: expected a text in quotes",
        "34:7: expected a duration such as \"365d\"",
        "35:1: an enum field needs values = [\"...\", \"...\"]",
    ];
    assert_eq!(faults(text), expected);
}

#[test]
fn a_setting_of_the_wrong_shape_or_a_missing_one_is_reported_once() {
    let text = "limits = 5\nuser = \"app\"\nprofile = [1, { name = \"a\" }]\nlog = []\n";
    let expected = [
        "1:10: expected a table",
        "2:8: expected a list",
        "3:12: expected a table",
        "4:7: expected a text in quotes",
    ];
    assert_eq!(faults(text), expected);
    let absent = "[[profile]]\n\n[[profile]]\nname = \"a\"\n";
    let missing_name = "1:1: a profile needs a name: a lowercase letter, then lowercase letters, \
                        digits and '_', at most 48";
    let missing_key = "a key pattern cannot be empty; write one such as 'user:{id}'";
    let expected =
        [format!("1:1: {missing_key}"), missing_name.into(), format!("3:1: {missing_key}")];
    assert_eq!(faults(absent), expected);
}

#[test]
fn faults_of_syntax_do_not_hide_the_others() {
    let text = r#"listen = 127.0.0.1:1
admin = "nowhere"
upstream = redis://app:hunter2@h
log = info
log = 5
[[user]]
name = "app
password_hash = "hunter2"
[[profile]]
key = "user:{id}"
[limits
maxclients = 0
"#;
    let expected = [
        "1:15: this is not TOML: invalid float, expected nothing; texts need quotes",
        "2:9: expected IP:PORT such as 127.0.0.1:6380, or [::1]:6380 for IPv6",
        "3:12: this is not TOML: string values must be quoted, expected literal string",
        "4:7: this is not TOML: invalid float, expected `inf`; texts need quotes",
        "5:1: this is not TOML: duplicate key",
        "7:12: this is not TOML: invalid basic string, expected `\"`",
        "8:17: expected a hash that begins with '$argon2id$' or 'sha256:', never the password \
         itself",
        "9:1: a profile needs a name: a lowercase letter, then lowercase letters, digits and \
         '_', at most 48",
        // Nothing is said of the line below this header: it is unknown whose setting it is.
        "11:8: this is not TOML: unclosed table, expected `]`",
    ];
    assert_eq!(faults(text), expected);
    assert_eq!(faults("\u{feff}log = 5\r\n"), ["1:7: expected a text in quotes"]);
}

#[test]
fn faults_of_flags_and_variables_name_them() {
    let flags = Overrides {
        listen: Some("6380".into()),
        upstream: Some("rediss://app:hunter2@h".into()),
        data_dir: Some(String::new()),
        ..Overrides::default()
    };
    let variables = [
        ("PROFILE_PROXY_ADMIN", "::1"),
        ("PROFILE_PROXY_DATABASE", "mysql://app:hunter2@h/d"),
        ("PROFILE_PROXY_LISTEN", "nowhere"),
        ("PROFILE_PROXY_PORT", "tcp://10.0.0.1:6380"),
    ];
    let shown = load_with(Some("log = 1"), &flags, &variables).unwrap_err().to_string();
    let address = "expected IP:PORT such as 127.0.0.1:6380, or [::1]:6380 for IPv6";
    let expected = [
        "--data-dir: expected the path of a directory".into(),
        format!("--listen: {address}"),
        "--upstream: TLS to the upstream is not supported yet; use redis:// over a network that \
         you trust"
            .into(),
        format!("PROFILE_PROXY_ADMIN: {address}"),
        "PROFILE_PROXY_DATABASE: expected sqlite://PATH or \
         postgres://user[:password]@host[:port]/db"
            .into(),
        format!("PROFILE_PROXY_LISTEN: {address}"),
        "config/profile-proxy.toml:1:7: expected a text in quotes".into(),
    ];
    assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn one_address_for_both_listeners_is_a_fault_of_the_second() {
    let same = "listen = \"127.0.0.1:1\"\nadmin = \"127.0.0.1:1\"";
    let text = "admin and listen have one address; give admin another port";
    assert_eq!(faults(same), [format!("2:9: {text}")]);
    let flag = Overrides { admin: Some("127.0.0.1:6380".into()), ..Overrides::default() };
    let shown = load_with(None, &flag, &[]).unwrap_err().to_string();
    assert_eq!(shown, format!("--admin: {text}"));
    assert!(file("listen = \"127.0.0.1:0\"\nadmin = \"127.0.0.1:0\"").is_ok());
}

#[test]
fn a_file_that_cannot_be_read_does_not_hide_faults_of_flags() {
    let flags = Overrides {
        config: Some("missing.toml".into()),
        listen: Some("x".into()),
        ..Overrides::default()
    };
    let faults = load_with(None, &flags, &[]).unwrap_err();
    let origins: Vec<_> = faults.iter().map(|fault| fault.origin.to_string()).collect();
    assert_eq!(origins, ["--listen", "missing.toml"]);
    assert!(faults.to_string().contains("named by --config, cannot be read"), "{faults}");
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("latin1.toml");
    std::fs::write(&path, b"log = \"info\"\n# caf\xe9\n").unwrap();
    let flags = Overrides { config: Some(path.clone()), ..Overrides::default() };
    let shown = load(&flags, |_| None).unwrap_err().to_string();
    let text = "this is not UTF-8; save the file as UTF-8";
    assert_eq!(shown, format!("{}:2:6: {text}", path.display()));
}

#[test]
fn a_variable_that_is_not_text_is_a_fault() {
    use std::os::unix::ffi::OsStringExt;
    let environment =
        |name: &str| (name == "PROFILE_PROXY_LISTEN").then(|| OsString::from_vec(vec![0xff, 0xfe]));
    let directory = TempDir::new().unwrap();
    let faults = load_in(directory.path(), &Overrides::default(), &environment).unwrap_err();
    assert_eq!(faults.to_string(), "PROFILE_PROXY_LISTEN: the value is not UTF-8");
}

#[test]
fn timeouts_are_more_than_nothing_and_at_most_an_hour() {
    for setting in ["shutdown_timeout", "upstream_timeout", "ack_timeout"] {
        for text in ["1ms", "1h", "1m 30s"] {
            assert!(file(&format!("{setting} = \"{text}\"")).is_ok(), "{setting} {text}");
        }
        for text in ["0s", "3601s"] {
            let column = setting.len() + 4;
            let expected = format!("1:{column}: {setting} must be longer than 0s and at most 1h");
            assert_eq!(faults(&format!("{setting} = \"{text}\"")), [expected]);
        }
    }
}

#[test]
fn workers_are_one_or_more_and_not_very_many() {
    for count in [1, 2, 64] {
        assert_eq!(file(&format!("workers = {count}")).unwrap().workers, count);
    }
    for count in [0, 65] {
        let expected = "1:11: workers must be at least 1 and at most 64";
        assert_eq!(faults(&format!("workers = {count}")), [expected]);
    }
    let expected = "1:11: expected a whole number that is not negative";
    assert_eq!(faults("workers = -1"), [expected]);
}

#[test]
fn log_directives_are_checked() {
    for text in ["off", "trace", "info,profile_proxy::journal=debug", "profile_proxy=trace"] {
        assert_eq!(file(&format!("log = \"{text}\"")).unwrap().log, text);
    }
    for text in ["", "verbose", "Info ", "profile_proxy=loud", "info,,=="] {
        assert_eq!(faults(&format!("log = \"{text}\"")).len(), 1, "{text}");
    }
}

#[test]
fn a_file_of_nothing_but_faults_is_given_up_in_time() {
    let text: String = (0..1000).map(|at| format!("setting_{at} = {at}\n")).collect();
    assert_eq!(faults(&text).len(), 100);
}

#[test]
fn the_summary_says_what_the_configuration_amounts_to() {
    let config = load_with(None, &Overrides::default(), &[]).unwrap();
    assert_eq!(
        config.summary(),
        "built-in config/profile-proxy.toml: ok, 1 profile kind, 10 declared fields, 0 users, \
         upstream embedded, database sqlite://data/profiles.db"
    );
    let flags = Overrides {
        upstream: Some("redis://app:hunter2@h".into()),
        database: Some("postgres://app:hunter2@h/d".into()),
        ..Overrides::default()
    };
    let config = load_with(Some(""), &flags, &[]).unwrap();
    assert_eq!(
        config.summary(),
        "config/profile-proxy.toml: ok, 0 profile kinds, 0 declared fields, 0 users, \
         upstream redis://app:***@h:6379, database postgres://app:***@h/d"
    );
    assert!(!format!("{config:?}").contains("hunter2"));
}
