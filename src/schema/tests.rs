//! The rules of fields, the texts of refusals and the faults of configurations, as tables.

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct File {
    profile: Vec<KindConfig>,
}

fn configs(text: &str) -> Vec<KindConfig> {
    toml::from_str::<File>(text).unwrap().profile
}

/// A schema of one kind whose `[profile.fields]` are the given lines.
fn schema(fields: &str) -> Schema {
    let head = "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n[profile.fields]\n";
    Schema::compile(&configs(&format!("{head}{fields}"))).unwrap()
}

const SHIPPED: &str = r#"
    [[profile]]
    name = "user"
    key = "user:{employee_id}"
    mode = "enforce"
    ttl = "365d"
    unknown_fields = "allow"
    [profile.fields]
    username = { type = "string", min_length = 1, max_length = 64 }
    department = { type = "string", max_length = 64 }
    questions_asked = { type = "integer", min = 0 }
    last_login = { type = "timestamp" }
    status = { type = "enum", values = ["active", "inactive", "suspended"] }
    admin = { type = "boolean" }
"#;

/// The field's line, the values it takes, and those it refuses with the rule they break.
type Case<'a> = (&'a str, Values<'a>, &'a [(Rule, Values<'a>)]);
type Values<'a> = &'a [&'a [u8]];

#[test]
fn values_are_checked_by_the_type_and_rules_of_their_field() {
    let table: &[Case] = &[
        (r#"x = { type = "string" }"#, &[b"", b"a", b"\0\xff\r\n", &[b'x'; 70_000]], &[]),
        (
            r#"x = { type = "string", min_length = 1, max_length = 4 }"#,
            &[b"a", b"abcd", "äöüß".as_bytes(), "𝄞𝄞𝄞𝄞".as_bytes(), b"\xff\0"],
            &[(
                Rule::Length,
                &[b"", b"abcde", "äöüßa".as_bytes(), b"\xff\xff\xff\xff\xff", &[0; 17]],
            )],
        ),
        (
            r#"x = { type = "string", max_length = 4 }"#,
            &[b"", b"\xff\xff\xff\xff"],
            &[(Rule::Length, &[b"\xff\xff\xff\xff\xff", b"abcde"])],
        ),
        (
            r#"x = { type = "string", min_length = 3 }"#,
            &[b"abc", "äöü".as_bytes(), &[b'x'; 70_000]],
            &[(Rule::Length, &[b"", b"ab", "äö".as_bytes(), "𝄞𝄞".as_bytes()])],
        ),
        (
            r#"x = { type = "string", max_length = 5, pattern = "[a-z]+|7" }"#,
            &[b"abc", b"7"],
            &[
                (Rule::Pattern, &[b"", b"abc7", b"7abc", b"abc\n", b"\nabc", b"ABC", b"a\0"]),
                (Rule::Length, &[b"abcdef", b"777777"]),
            ],
        ),
        (r#"x = { type = "string", pattern = "(?s-u:.{2})" }"#, &[b"\xff\0"], &[]),
        (
            r#"x = { type = "integer" }"#,
            &[b"0", b"-1", b"9223372036854775807", b"-9223372036854775808"],
            &[(Rule::Type, &[b"", b"+1", b"01", b"1.0", b"9223372036854775808", b"1\0", b"x"])],
        ),
        (
            r#"x = { type = "integer", min = 0 }"#,
            &[b"0", b"9223372036854775807"],
            &[(Rule::Range, &[b"-1", b"-9223372036854775808"]), (Rule::Type, &[b"", b"-0"])],
        ),
        (
            r#"x = { type = "integer", min = -5, max = 5 }"#,
            &[b"-5", b"0", b"5"],
            &[(Rule::Range, &[b"-6", b"6"])],
        ),
        (
            r#"x = { type = "float", min = 0, max = 1.5 }"#,
            &[b"0", b"-0", b"1.5", b"1e-3", b".5"],
            &[
                (Rule::Range, &[b"-0.1", b"1.6", b"1e3"]),
                (Rule::Type, &[b"", b"inf", b"nan", b"1,5", b"0x1"]),
            ],
        ),
        (
            r#"x = { type = "boolean" }"#,
            &[b"0", b"1", b"true", b"false"],
            &[(Rule::Type, &[b"", b"2", b"True", b"yes", b"true "])],
        ),
        (
            r#"x = { type = "enum", values = ["active", "", "ä"] }"#,
            &[b"active", b"", "ä".as_bytes()],
            &[(Rule::Values, &[b"Active", b"active ", b"activ", b"\xe4", b"\0"])],
        ),
        (
            r#"x = { type = "timestamp" }"#,
            &[b"0", b"1700000000", b"253402300799"],
            &[
                (Rule::Range, &[b"-1", b"253402300800", b"1700000000000"]),
                (Rule::Type, &[b"", b"1700000000.5", b"2024-01-01"]),
            ],
        ),
    ];
    for (fields, accepted, refused) in table {
        let schema = schema(fields);
        let kind = schema.kind_of(b"user:7").unwrap();
        for value in *accepted {
            assert_eq!(kind.check_set(b"x", value), Ok(()), "{fields} {value:?}");
        }
        for (rule, values) in *refused {
            for value in *values {
                let violation = kind.check_set(b"x", value).unwrap_err();
                assert_eq!(violation.rule(), *rule, "{fields} {value:?}");
            }
        }
    }
}

#[test]
fn undeclared_fields_are_free_or_refused() {
    let open = Schema::compile(&configs(SHIPPED)).unwrap();
    let closed = SHIPPED.replace("\"allow\"", "\"reject\"");
    let closed = Schema::compile(&configs(&closed)).unwrap();
    let (open, closed) = (&open.kinds()[0], &closed.kinds()[0]);
    for field in [&b"cover:url"[..], b"", b"\xff\0", b"Username", b"username "] {
        assert_eq!(open.check_set(field, b"\0\xff"), Ok(()));
        assert_eq!(open.check_increment(field, i64::MIN), Ok(Bounds::Free));
        assert_eq!(open.check_increment_float(field, -1.5), Ok(FloatBounds::Free));
        let refused = [
            closed.check_set(field, b"x").unwrap_err(),
            closed.check_increment(field, 1).unwrap_err(),
            closed.check_increment_float(field, 1.0).unwrap_err(),
        ];
        for violation in refused {
            assert_eq!(violation.rule(), Rule::UnknownField);
            assert_eq!(
                violation.to_string(),
                "SCHEMA undeclared field: 'user' profiles take declared fields only"
            );
        }
    }
    assert_eq!(closed.check_set(b"username", b"ada"), Ok(()));
}

#[test]
fn refusals_say_what_would_be_right_and_nothing_of_the_value() {
    let table = [
        (r#"x = { type = "string", max_length = 1 }"#, "secret", "expected at most 1 character"),
        (r#"x = { type = "string", min_length = 9 }"#, "secret", "expected at least 9 characters"),
        (
            r#"x = { type = "string", min_length = 1, max_length = 3 }"#,
            "secret",
            "expected 1 to 3 characters",
        ),
        (
            r#"x = { type = "string", pattern = "[0-9]*" }"#,
            "secret",
            "expected text that matches the pattern of this field",
        ),
        (r#"x = { type = "integer" }"#, "secret", "expected an integer"),
        (r#"x = { type = "integer", min = 0 }"#, "secret", "expected an integer of at least 0"),
        (r#"x = { type = "integer", max = 9 }"#, "77", "expected an integer of at most 9"),
        (
            r#"x = { type = "integer", min = 0, max = 150 }"#,
            "151",
            "expected an integer from 0 to 150",
        ),
        (r#"x = { type = "float" }"#, "secret", "expected a number"),
        (r#"x = { type = "float", min = 0.5 }"#, "0.25", "expected a number of at least 0.5"),
        (r#"x = { type = "boolean" }"#, "secret", "expected 0, 1, true or false"),
        (r#"x = { type = "enum", values = ["a", "b"] }"#, "secret", "expected one of a, b"),
        (
            r#"x = { type = "enum", values = ["a", "READONLY"] }"#,
            "secret",
            "expected one of the 2 values declared for this field",
        ),
        (
            r#"x = { type = "enum", values = ["a", "b\r\nc"] }"#,
            "secret",
            "expected one of the 2 values declared for this field",
        ),
        (r#"x = { type = "timestamp" }"#, "secret", "expected unix seconds from 0 to 253402300799"),
    ];
    for (fields, value, text) in table {
        let violation = schema(fields).kinds()[0].check_set(b"x", value.as_bytes()).unwrap_err();
        assert_eq!(violation.to_string(), format!("SCHEMA field 'x': {text}"));
        assert_eq!(violation.text(), violation.to_string());
    }
}

#[test]
fn increments_follow_the_type_of_the_field() {
    let schema = schema(
        r#"
        text = { type = "string" }
        flag = { type = "boolean" }
        state = { type = "enum", values = ["1", "2"] }
        count = { type = "integer", min = 0 }
        level = { type = "integer", min = 0, max = 10 }
        price = { type = "float", min = 0.5, max = 9.5 }
        weight = { type = "float" }
        seen = { type = "timestamp" }
        "#,
    );
    let kind = &schema.kinds()[0];
    for (field, article) in [("text", "a string"), ("flag", "a boolean"), ("state", "an enum")] {
        let text = format!("SCHEMA field '{field}': {article} field cannot be incremented");
        for violation in [
            kind.check_increment(field.as_bytes(), 1).unwrap_err(),
            kind.check_increment_float(field.as_bytes(), 1.0).unwrap_err(),
        ] {
            assert_eq!((violation.rule(), violation.text()), (Rule::Type, &*text));
        }
    }
    for field in [&b"count"[..], b"level", b"seen"] {
        let violation = kind.check_increment_float(field, 1.0).unwrap_err();
        assert_eq!(violation.rule(), Rule::Type);
    }
    let current =
        |low: i64, high: i64| Ok(Bounds::Current { at_least: Some(low), at_most: Some(high) });
    assert_eq!(kind.check_increment(b"count", 1), Ok(Bounds::Free));
    assert_eq!(
        kind.check_increment(b"count", -3),
        Ok(Bounds::Current { at_least: Some(3), at_most: None })
    );
    assert_eq!(kind.check_increment(b"level", 1), current(-1, 9));
    assert_eq!(kind.check_increment(b"seen", 60), current(-60, 253_402_300_739));
    assert_eq!(kind.check_increment(b"price", 1), current(0, 8));
    assert_eq!(kind.check_increment(b"weight", i64::MIN), Ok(Bounds::Free));
    assert_eq!(kind.check_increment_float(b"weight", -0.5), Ok(FloatBounds::Free));
    let sum = FloatBounds::Sum { by: 1.0, at_least: Some(0.5), at_most: Some(9.5) };
    assert_eq!(kind.check_increment_float(b"price", 1.0), Ok(sum));
    assert!(sum.allow(8.5) && !sum.allow(8.75) && !sum.allow(-0.75));
    let hopeless = kind.check_increment(b"count", i64::MIN).unwrap_err();
    assert_eq!(hopeless.rule(), Rule::Range);
    assert_eq!(hopeless, kind.out_of_range(b"count"));
    assert_eq!(hopeless.text(), "SCHEMA field 'count': expected an integer of at least 0");
    assert_eq!(kind.out_of_range(b"nothing").rule(), Rule::Range);
}

#[test]
fn a_kind_tells_what_was_declared_in_the_written_order() {
    let schema = Schema::compile(&configs(SHIPPED)).unwrap();
    let kind = schema.kind_of(b"user:EMP001").unwrap();
    assert_eq!((kind.name(), kind.mode()), ("user", Mode::Enforce));
    assert_eq!(kind.ttl(), Some(Duration::from_secs(365 * 86_400)));
    assert_eq!(kind.pattern().as_str(), "user:{employee_id}");
    let fields: Vec<_> =
        kind.fields().iter().map(|each| (each.name(), each.field_type())).collect();
    let declared = [
        ("username", FieldType::String),
        ("department", FieldType::String),
        ("questions_asked", FieldType::Integer),
        ("last_login", FieldType::Timestamp),
        ("status", FieldType::Enum),
        ("admin", FieldType::Boolean),
    ];
    assert_eq!(fields, declared);
    assert!(schema.kind_of(b"user:").is_none() && schema.kind_of(b"user:7:rooms").is_none());
}

#[test]
fn each_key_belongs_to_the_kind_whose_pattern_it_matches() {
    let text = r#"
        [[profile]]
        name = "user"
        key = "user:{id}"
        [[profile]]
        name = "settings"
        key = "user:{id}:settings"
        mode = "warn"
    "#;
    let schema = Schema::compile(&configs(text)).unwrap();
    let kind = |key: &[u8]| schema.kind_of(key).map(Kind::name);
    assert_eq!(kind(b"user:7"), Some("user"));
    assert_eq!(kind(b"user:7:settings"), Some("settings"));
    assert_eq!(kind(b"user:7:rooms"), None);
    assert_eq!(Schema::default().kinds().len(), 0);
}

#[test]
fn all_faults_are_reported_with_their_place() {
    let text = r#"
        [[profile]]
        name = "user"
        key = "user:{id}"
        ttl = "0s"
        [profile.fields]
        a = { min = 1 }
        b = { type = "string", min = 1, values = ["x"] }
        c = { type = "string", min_length = 2, max_length = 1, pattern = "a)|(b" }
        d = { type = "integer", min = 0.5, max_length = 1 }
        e = { type = "integer", min = 2, max = 1 }
        f = { type = "float", max = inf, pattern = "x" }
        g = { type = "enum" }
        h = { type = "enum", values = ["x", "y", "x"] }
        i = { type = "timestamp", min = 0 }
        j = { type = "boolean", values = ["0"] }
        "k\n" = { type = "string" }
        UNKNOWN = { type = "string" }
        "" = { type = "string" }
        l = { type = "string", pattern = "(\\w{100}){100}" }
        [[profile]]
        name = "user"
        key = "user:{name}"
        [[profile]]
        name = "User"
        [[profile]]
    "#;
    let faults = Schema::compile(&configs(text)).unwrap_err();
    let places: Vec<_> =
        faults.iter().map(|each| (each.kind, each.field.as_deref(), each.setting)).collect();
    let expected = [
        (0, None, Some("ttl")),
        (0, Some("a"), Some("type")),
        (0, Some("b"), Some("min")),
        (0, Some("b"), Some("values")),
        (0, Some("c"), Some("min_length")),
        (0, Some("c"), Some("pattern")),
        (0, Some("d"), Some("max_length")),
        (0, Some("d"), Some("min")),
        (0, Some("e"), Some("min")),
        (0, Some("f"), Some("pattern")),
        (0, Some("f"), Some("max")),
        (0, Some("g"), Some("values")),
        (0, Some("h"), Some("values")),
        (0, Some("i"), Some("min")),
        (0, Some("j"), Some("values")),
        (0, Some("k\n"), None),
        (0, Some("UNKNOWN"), None),
        (0, Some(""), None),
        (0, Some("l"), Some("pattern")),
        (1, None, Some("name")),
        (1, None, Some("key")),
        (2, None, Some("key")),
        (2, None, Some("name")),
        (3, None, Some("key")),
        (3, None, Some("name")),
    ];
    assert_eq!(places, expected);
    for fault in &faults {
        assert!(!fault.text.contains('\n'), "{fault}");
    }
}

#[test]
fn no_reply_holds_a_word_that_clients_act_on() {
    for word in ["READONLY", "NOREPLICAS", "UNBLOCKED", "NOPERM", "NOAUTH", "UNKNOWN"] {
        let text = format!("is_{word}_now = {{ type = \"string\" }}");
        let head = "[[profile]]\nname = \"user\"\nkey = \"user:{id}\"\n[profile.fields]\n";
        let faults = Schema::compile(&configs(&format!("{head}{text}"))).unwrap_err();
        assert!(faults[0].text.contains(word), "{faults:?}");
    }
    let named = "[[profile]]\nname = \"unauthenticated\"\nkey = \"user:{id}\"\n";
    assert_eq!(Schema::compile(&configs(named)).unwrap_err().len(), 1);
    schema("unknown_count = { type = \"integer\" }");
}

#[test]
fn unknown_settings_and_wrong_types_are_not_read() {
    let refused = [
        "[[profile]]\nnmae = \"user\"",
        "[[profile]]\nmode = \"strict\"",
        "[[profile]]\nttl = \"a while\"",
        "[[profile]]\nttl = 5",
        "[[profile]]\nunknown_fields = true",
        "[[profile]]\nfields = 5",
        "[[profile]]\nfields.x = \"string\"",
        "[[profile]]\nfields.x = { type = \"text\" }",
        "[[profile]]\nfields.x = { type = \"string\", required = true }",
        "[[profile]]\nfields.x = { type = \"integer\", min = \"0\" }",
        "[[profile]]\nfields.x = { type = \"string\", max_length = -1 }",
    ];
    for text in refused {
        assert!(toml::from_str::<File>(text).is_err(), "{text}");
    }
}
