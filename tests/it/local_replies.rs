//! What the proxy answers itself about connections, clients and servers: INFO, ACL, DEBUG, COMMAND,
//! and the errors of CLIENT, byte for byte as a Redis alone where nothing in them is the proxy's.

use crate::support::client::{Client, Reply, assert_bytes, encode};
use crate::support::proxy::{Proxy, ProxyOptions};
use crate::support::redis::Redis;
use crate::support::setup::{Setup, on_both_setups};

/// The names and values of INFO.
type Lines = Vec<(String, String)>;

fn words(line: &str) -> Vec<u8> {
    encode(&line.split_whitespace().collect::<Vec<_>>())
}

fn in_front_of(redis: Redis, options: ProxyOptions) -> Setup {
    let proxy = options.upstream(redis.url()).start();
    let setup = Setup { proxy, redis: Some(redis), postgres: None };
    setup.wait_for_tables();
    setup
}

const SAME_AS_REDIS: &str = "
    CLIENT | CLIENT FOO | CLIENT HELP | client help | CLIENT HELP x | CLIENT ID x | CLIENT INFO x
    CLIENT KILL | CLIENT KILL foo | CLIENT KILL 127.0.0.1:1 | CLIENT KILL ID | CLIENT KILL ID 0
    CLIENT KILL ID x | CLIENT KILL ID -1 SKIPME no | CLIENT KILL ID 99999999999999999999
    CLIENT KILL TYPE foo SKIPME no | CLIENT KILL TYPE master SKIPME no
    CLIENT KILL TYPE replica SKIPME no | CLIENT KILL type SLAVE skipme NO
    CLIENT KILL USER nobody SKIPME yes | CLIENT KILL ID 1000000 SKIPME maybe
    CLIENT KILL ID 1000000 SKIPME | CLIENT KILL FOO bar baz | CLIENT KILL FOO bar baz qux
    CLIENT KILL ADDR 127.0.0.1:1 | CLIENT KILL ADDR 127.0.0.1:1 LADDR 127.0.0.1:2
    CLIENT KILL USER default ID 1000000 | CLIENT KILL ID 1000000 TYPE normal
    CLIENT UNBLOCK | CLIENT UNBLOCK x | CLIENT UNBLOCK 1 FOO | CLIENT UNBLOCK 1 TIMEOUT x
    CLIENT UNBLOCK x FOO | CLIENT UNBLOCK 99999 | CLIENT UNBLOCK -1 | CLIENT UNBLOCK 99999 ERROR
    CLIENT LIST FOO | CLIENT LIST ID | CLIENT LIST ID x | CLIENT LIST ID 99999 | CLIENT LIST TYPE
    CLIENT LIST ID 99999 99998 x | CLIENT LIST TYPE foo | CLIENT LIST TYPE replica
    CLIENT LIST TYPE master | CLIENT LIST TYPE pubsub | CLIENT LIST TYPE normal x
    CLIENT NO-EVICT | CLIENT NO-EVICT on | CLIENT NO-EVICT OFF | CLIENT NO-EVICT maybe
    CLIENT GETNAME | CLIENT GETNAME x | CLIENT SETNAME | CLIENT SETNAME web | CLIENT GETNAME
    CLIENT GETREDIR | CLIENT GETREDIR x | CLIENT REPLY | CLIENT REPLY maybe | CLIENT REPLY ON
    CLIENT PAUSE | CLIENT UNPAUSE x | CLIENT MAINT_NOTIFICATIONS ON
    ACL | ACL FOO | ACL WHOAMI | acl whoami | ACL WHOAMI x | ACL CAT hash | ACL CAT nosuch
    ACL USERS | ACL GETUSER nobody | ACL HELP | ACL GENPASS x
    COMMAND COUNT | COMMAND INFO get hset nosuch | COMMAND GETKEYS MSET a 1 b 2
    COMMAND GETKEYSANDFLAGS SET a 1 | COMMAND DOCS get | COMMAND HELP | COMMAND FOO
    CONFIG GET maxmemory-policy | CONFIG GET nosuch | CONFIG SET maxmemory-samples 6
    CONFIG GET maxmemory-samples | CONFIG SET nosuch 1 | CONFIG RESETSTAT | CONFIG REWRITE
    INFO nosuch | INFO keyspace | HELLO x | HELLO 4 | HELLO 1 | HELLO 2 FOO | HELLO 2 SETNAME
    HELLO 2 AUTH default | LATENCY LATEST | SLOWLOG LEN | MEMORY DOCTOR | ROLE | LASTSAVE x
";

#[test]
fn replies_about_the_connection_are_those_of_redis_byte_for_byte() {
    // The Redis behind the proxy is the one to compare with: some replies have the order of its
    // own tables.
    let setup = in_front_of(Redis::start(), Proxy::options());
    for hello in ["HELLO 2", "HELLO 3"] {
        let (mut direct, mut proxied) = (setup.store_client(), setup.proxy.client());
        for client in [&mut direct, &mut proxied] {
            client.send(words(hello));
            client.reply();
        }
        for line in SAME_AS_REDIS.split(['|', '\n']).map(str::trim).filter(|line| !line.is_empty())
        {
            direct.send(words(line));
            proxied.send(words(line));
            let what = format!("{hello}, {line}");
            assert_bytes(&what, &proxied.reply_bytes(), &direct.reply_bytes());
        }
    }
}

#[test]
fn commands_that_lead_around_the_proxy_are_refused_by_it() {
    let setup = in_front_of(Redis::start(), Proxy::options());
    let mut client = setup.proxy.client();
    for line in [
        "SENTINEL masters",
        "SENTINEL get-master-addr-by-name mymaster",
        "CLUSTER SLOTS",
        "REPLICAOF NO ONE",
        "SLAVEOF 127.0.0.1 1",
        "FAILOVER",
        "SHUTDOWN NOSAVE",
        "DEBUG SLEEP 0",
        "DEBUG OBJECT k",
        "CLIENT PAUSE 1000",
        "CLIENT PAUSE 1000 WRITE",
        "CLIENT UNPAUSE",
        "PSYNC ? -1",
    ] {
        client.send(words(line));
        let Reply::Error(text) = client.reply() else { panic!("{line} was not refused") };
        assert!(text.ends_with("is not allowed through the proxy"), "{line}: {text}");
    }
    let role = setup.store_client().command(&["ROLE"]);
    assert_eq!(role.items()[0], Reply::text("master"));
}

#[test]
fn debug_passes_in_part_where_the_configuration_allows_it() {
    let redis = Redis::with_options(&["--enable-debug-command", "yes"]);
    let config = "allow_debug = true\n[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n";
    let setup = in_front_of(redis, Proxy::options().config(config));
    let (mut client, mut direct) = (setup.proxy.client(), setup.store_client());
    client.assert_reply("SET k v", "+OK\r\n");
    client.assert_reply("HSET user:1 a b", ":1\r\n");
    for line in ["DEBUG SLEEP 0", "debug digest-value k user:1", "DEBUG STRUCTSIZE", "DEBUG HELP"] {
        direct.send(words(line));
        client.assert_reply(line, direct.reply_bytes());
    }
    client.assert_reply_starts("DEBUG OBJECT user:1", "+Value at:");
    for line in [
        "DEBUG RELOAD",
        "DEBUG LOADAOF",
        "DEBUG FLUSHALL",
        "DEBUG POPULATE 10 user",
        "DEBUG SEGFAULT",
        "DEBUG RESTART",
        "DEBUG CHANGE-REPL-ID",
        "DEBUG PROTOCOL push",
        "DEBUG NOSUCH",
    ] {
        client.assert_reply_starts(line, "-ERR command 'debug' is not allowed through the proxy");
    }
    client.assert_reply("DBSIZE", ":2\r\n");
}

/// The hash is that of "secret".
const USERS: &str = r#"
[[user]]
name = "app"
password_hash = "sha256:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"
[[profile]]
name = "user"
key = "user:{id}"
"#;

#[test]
fn acl_is_about_who_is_logged_in_here_and_shows_no_users_of_redis() {
    let setup = in_front_of(Redis::start(), Proxy::options().config(USERS));
    let before = setup.store_client().command(&["ACL", "LIST"]);
    let mut client = setup.proxy.client();
    client.assert_reply("ACL WHOAMI", "-NOAUTH Authentication required.\r\n");
    client.assert_reply("AUTH app secret", "+OK\r\n");
    client.assert_reply("ACL WHOAMI", "$3\r\napp\r\n");
    client.assert_reply_starts("ACL CAT", "*");
    for line in ["LIST", "USERS", "GETUSER default", "LOG", "DRYRUN default GET k"] {
        let text = "it would show the users of the Redis behind the proxy";
        assert_refused(&mut client, &format!("ACL {line}"), text);
    }
    for line in ["SETUSER x on", "setuser default nopass", "DELUSER default", "LOAD", "SAVE"] {
        let text = "it would change the users of the Redis behind the proxy";
        assert_refused(&mut client, &format!("ACL {line}"), text);
    }
    client.assert_reply("MULTI", "+OK\r\n");
    client.assert_reply("ACL WHOAMI", "+QUEUED\r\n");
    client.assert_reply("ECHO x", "+QUEUED\r\n");
    client.assert_reply("EXEC", "*2\r\n$3\r\napp\r\n$1\r\nx\r\n");
    assert_eq!(setup.store_client().command(&["ACL", "LIST"]), before);
}

#[track_caller]
fn assert_refused(client: &mut Client, line: &str, why: &str) {
    client.send(words(line));
    let Reply::Error(text) = client.reply() else { panic!("{line} was not refused") };
    assert!(text.starts_with("ERR command 'acl|") && text.ends_with(why), "{line}: {text}");
}

on_both_setups!(
    info_ends_with_a_section_of_the_proxy,
    info_of_the_proxy_alone_and_of_redis_alone,
    info_in_a_transaction_is_the_same,
);

fn info(client: &mut Client, line: &str) -> String {
    client.send(words(line));
    String::from_utf8(client.reply().bytes().to_vec()).expect("text")
}

/// The lines of INFO that have a name, each name once.
fn parse(text: &str) -> Lines {
    assert!(text.replace("\r\n", "").find(['\r', '\n']).is_none(), "a line ends otherwise");
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    let pairs: Lines = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for (at, (name, _)) in pairs.iter().enumerate() {
        assert!(!pairs[..at].iter().any(|(earlier, _)| earlier == name), "{name} comes twice");
    }
    pairs
}

fn value_of<'a>(lines: &'a Lines, name: &str) -> &'a str {
    let found = lines.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str()).unwrap_or_else(|| panic!("{name} is missing"))
}

fn info_ends_with_a_section_of_the_proxy(setup: Setup) {
    let mut client = setup.proxy.client();
    client.assert_reply("HSET user:1 login_count 1", ":1\r\n");
    let _other = setup.proxy.client();
    setup.wait_for_history(1);
    for line in ["INFO", "INFO all", "info EVERYTHING", "INFO default", "INFO server profile_proxy"]
    {
        let text = info(&mut client, line);
        assert!(text.starts_with("# Server\r\nredis_version:7."), "{line}: {text}");
        let (redis, proxy) = text.split_once("\r\n\r\n# Profile_Proxy\r\n").expect("the section");
        assert!(!redis.contains("profile_proxy_"), "{line}");
        assert!(proxy.lines().all(|line| line.starts_with("profile_proxy_")), "{line}: {proxy}");
        let lines = parse(&text);
        assert_eq!(value_of(&lines, "profile_proxy_version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(value_of(&lines, "profile_proxy_listen"), setup.proxy.address());
        assert_eq!(value_of(&lines, "profile_proxy_connected_clients"), "2");
        assert_eq!(value_of(&lines, "profile_proxy_in_doubt"), "0");
        assert_eq!(value_of(&lines, "profile_proxy_database"), "up");
        assert_eq!(value_of(&lines, "profile_proxy_dead_letters"), "0");
        let upstream = if setup.redis.is_some() { "up" } else { "embedded" };
        assert_eq!(value_of(&lines, "profile_proxy_upstream"), upstream);
        let number = |name| value_of(&lines, name).parse::<u64>().expect("a number");
        assert!(number("profile_proxy_journal_written") > 0);
        assert!(number("profile_proxy_journal_durable") <= number("profile_proxy_journal_written"));
        assert!(number("profile_proxy_uptime_in_seconds") < 600);
    }
    let lines = parse(&info(&mut client, "INFO"));
    for (name, expected) in [("role", "master"), ("loading", "0"), ("redis_mode", "standalone")] {
        assert_eq!(value_of(&lines, name), expected);
    }
    client.send([words("HELLO 3"), words("INFO")].concat());
    client.reply();
    let Reply::Verbatim(format, text) = client.reply() else { panic!("INFO is verbatim text") };
    assert_eq!(format, "txt");
    assert!(text.starts_with(b"# Server\r\n"));
}

fn info_of_the_proxy_alone_and_of_redis_alone(setup: Setup) {
    let mut client = setup.proxy.client();
    assert!(info(&mut client, "INFO profile_proxy").starts_with("# Profile_Proxy\r\n"));
    assert!(
        info(&mut client, "INFO Profile_Proxy PROFILE_PROXY").starts_with("# Profile_Proxy\r\n")
    );
    assert!(info(&mut client, "INFO server").starts_with("# Server\r\n"));
    for line in ["INFO server", "INFO nosuch", "INFO clients memory"] {
        assert!(!info(&mut client, line).contains("rofile_"), "{line}");
    }
    // Its place among other replies is its own.
    client.send([words("HGET user:1 a"), words("INFO profile_proxy"), words("ECHO x")].concat());
    assert_eq!(client.reply(), Reply::Nothing);
    assert!(client.reply().bytes().starts_with(b"# Profile_Proxy"));
    assert_eq!(client.reply(), Reply::text("x"));
}

fn info_in_a_transaction_is_the_same(setup: Setup) {
    let mut client = setup.proxy.client();
    for line in ["INFO", "INFO profile_proxy", "INFO server", "PING"] {
        client.assert_reply("MULTI", "+OK\r\n");
        client.assert_reply(line, "+QUEUED\r\n");
        let reply = client.command(&["EXEC"]);
        let text = String::from_utf8_lossy(reply.items()[0].bytes()).into_owned();
        assert_eq!(text.contains("# Server\r\n"), matches!(line, "INFO" | "INFO server"), "{line}");
        let ours = matches!(line, "INFO" | "INFO profile_proxy");
        assert_eq!(text.contains("# Profile_Proxy\r\n"), ours, "{line}");
    }
}

#[test]
fn info_of_the_proxy_is_told_while_redis_is_down() {
    let options = Proxy::options().expects_log("upstream");
    let mut setup = in_front_of(Redis::start(), options);
    let mut client = setup.proxy.client();
    client.assert_reply("PING", "+PONG\r\n");
    setup.redis.as_mut().expect("a Redis").kill();
    let mut state = String::new();
    crate::support::wait_until("the loss to be seen", std::time::Duration::from_secs(10), || {
        state =
            value_of(&parse(&info(&mut client, "INFO profile_proxy")), "profile_proxy_upstream")
                .to_owned();
        (state == "down").then_some(())
    });
    client.assert_reply_starts("INFO", "-MASTERDOWN ");
}
