//! What `[limits]` takes and what it refuses. It reads files through the helpers of its parent and
//! starts nothing.

use super::*;

#[test]
fn sizes_are_read_with_units_and_without() {
    let table = [
        ("\"1MiB\"", 1 << 20),
        ("\"2 MB\"", 2_000_000),
        ("1048576", 1 << 20),
        ("\"1048576\"", 1 << 20),
        ("\"1.5GiB\"", 3 << 29),
    ];
    for (text, bytes) in table {
        let room = "client-query-buffer-limit = \"2GiB\"";
        let config = file(&format!("[limits]\nproto-max-bulk-len = {text}\n{room}")).unwrap();
        assert_eq!(config.limits.proto_max_bulk_len, bytes, "{text}");
    }
    for text in ["-1", "\"\"", "\"MiB\"", "\"-1MiB\"", "\"1XB\"", "true", "1.5"] {
        let expected = "2:22: expected a size such as \"512MiB\" or a number of bytes";
        let text = format!("[limits]\nproto-max-bulk-len = {text}");
        assert_eq!(faults(&text), [expected], "{text}");
    }
    for (text, expected) in [
        ("0", "must be at least 1"),
        ("\"0MiB\"", "must be at least 1"),
        ("-1", "expected a size such as \"512MiB\" or a number of bytes"),
        ("\"many\"", "expected a size such as \"512MiB\" or a number of bytes"),
    ] {
        let fault = faults(&format!("[limits]\ninflight_bytes_max = {text}"));
        let name = if expected.starts_with("must") { "inflight_bytes_max " } else { "" };
        assert_eq!(fault, [format!("2:22: {name}{expected}")], "{text}");
    }
    let config = file("[limits]\ninflight_bytes_max = \"64KiB\"").unwrap();
    assert_eq!(config.limits.inflight_bytes_max, 64 << 10);
    let expected = "2:22: proto-max-bulk-len must be at least \"1MiB\"";
    assert_eq!(faults("[limits]\nproto-max-bulk-len = 1048575"), [expected]);
}

#[test]
fn output_limits_are_written_as_redis_writes_them() {
    let limits = |text: &str| {
        let config = file(&format!("[limits]\nclient-output-buffer-limit = \"{text}\""));
        config.map(|config| config.limits.client_output_buffer_limit)
    };
    let default = OutputLimits::default();
    let shipped = limits("normal 256MiB 0 0 pubsub 32MiB 8MiB 60").unwrap();
    assert_eq!(shipped, default);
    let pubsub = limits("PubSub 1MiB 512KiB 5").unwrap();
    assert_eq!(pubsub.normal, default.normal);
    let read = (pubsub.pubsub.hard_bytes, pubsub.pubsub.soft_bytes, pubsub.pubsub.soft_seconds);
    assert_eq!(read, (1 << 20, 1 << 19, 5));
    for text in ["", "normal", "normal 1 2", "replica 0 0 0", "normal 0 0 x", "normal x 0 0"] {
        assert!(limits(text).is_err(), "{text:?} was taken");
    }
    for (text, expected) in [
        ("tcp-backlog = 0", "2:15: tcp-backlog must be at least 1"),
        ("tcp-backlog = 65536", "2:15: tcp-backlog must be at most 65535"),
        (
            "client-query-buffer-limit = \"2049MiB\"",
            "2:29: client-query-buffer-limit must be at most \"2GiB\"",
        ),
        ("tcp-keepalive = 32768", "2:17: tcp-keepalive must be at most 32767"),
    ] {
        assert_eq!(faults(&format!("[limits]\n{text}")), [expected]);
    }
}
