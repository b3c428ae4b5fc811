//! One journal record as one line of JSON.
//!
//! ```text
//! {"sequence":7,"type":"change","ticket":3,"at":"...","kind":"user","command":"hset",
//!  "actor":"app","key":"user:1","cleared":false,"deleted":false,"expires":null,
//!  "removed":["a"],"set":{"b":"1"}}            expires: null untouched, false none, or a time
//! {"sequence":6,"type":"intent","ticket":3,"keys":["user:1"]}
//! {"sequence":5,"type":"flush","ticket":2,"at":"...","command":"flushall","actor":"app"}
//! {"sequence":8,"type":"void","tickets":[4]}
//! {"sequence":9,"type":"unknown","bytes":12}
//! ```
//!
//! Names and values that are not text are tagged base64, as in the database.

use crate::{
    profile::{Change, Entry, Expiry, Flush},
    sinks::{fields_json, name_text, names_json},
};

use super::shown_time;

/// Tells the type of a record.
pub(super) fn type_of(payload: &[u8]) -> &'static str {
    match Entry::decode(payload) {
        Ok(Entry::Change(_)) => "change",
        Ok(Entry::Intent { .. }) => "intent",
        Ok(Entry::Flush(_)) => "flush",
        Ok(Entry::Void(_)) => "void",
        Err(_) => "unknown",
    }
}

/// Tells whether a record speaks of the key.
pub(super) fn concerns(payload: &[u8], key: &[u8]) -> bool {
    match Entry::decode(payload) {
        Ok(Entry::Change(change)) => change.key == key,
        Ok(Entry::Intent { keys, .. }) => keys.contains(&key),
        Ok(Entry::Flush(_)) => true,
        Ok(Entry::Void(_)) | Err(_) => false,
    }
}

/// Writes a record as JSON, without a line end.
pub(super) fn json(sequence: u64, payload: &[u8]) -> String {
    match Entry::decode(payload) {
        Ok(Entry::Change(change)) => change_json(sequence, &change),
        Ok(Entry::Intent { ticket, keys }) => {
            let keys = names_json(keys.into_iter());
            let head = format!("\"sequence\":{sequence},\"type\":\"intent\"");
            format!("{{{head},\"ticket\":{ticket},\"keys\":{keys}}}")
        }
        Ok(Entry::Flush(flush)) => flush_json(sequence, &flush),
        Ok(Entry::Void(tickets)) => {
            format!("{{\"sequence\":{sequence},\"type\":\"void\",\"tickets\":{tickets:?}}}")
        }
        Err(_) => {
            let bytes = payload.len();
            format!("{{\"sequence\":{sequence},\"type\":\"unknown\",\"bytes\":{bytes}}}")
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn flush_json(sequence: u64, flush: &Flush<'_>) -> String {
    format!(
        "{{\"sequence\":{sequence},\"type\":\"flush\",\"ticket\":{},\"at\":{},\
         \"command\":{},\"actor\":{}}}",
        flush.ticket,
        quoted(&shown_time(flush.at_ms)),
        quoted(flush.command),
        quoted(flush.actor),
    )
}

fn change_json(sequence: u64, change: &Change<'_>) -> String {
    format!(
        "{{\"sequence\":{sequence},\"type\":\"change\",\"ticket\":{},\"at\":{},\"kind\":{},\
         \"command\":{},\"actor\":{},\"key\":{},{}}}",
        change.ticket,
        quoted(&shown_time(change.at_ms)),
        quoted(change.kind),
        quoted(change.command),
        quoted(change.actor),
        quoted(&name_text(change.key)),
        effect_json(change),
    )
}

/// What a change does to its profile, as members of an object.
pub(super) fn effect_json(change: &Change<'_>) -> String {
    let expires = match change.expiry {
        Expiry::Unchanged => "null".to_owned(),
        Expiry::Never => "false".to_owned(),
        Expiry::At(at_ms) => quoted(&shown_time(at_ms)),
    };
    let removed = names_json(change.removed.iter().copied());
    let set = fields_json(change.set.iter().copied());
    format!(
        "\"cleared\":{},\"deleted\":{},\"expires\":{expires},\"removed\":{removed},\"set\":{set}",
        change.cleared, change.deleted,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{ChangeBuilder, IntentBuilder};

    #[test]
    fn every_record_is_one_line_of_json() {
        let mut change = Vec::new();
        let mut builder =
            ChangeBuilder::begin(&mut change, 3, 1000, "user", "hset", "a\"b", b"user:\xff");
        builder.removed(b"old\n").expiry(Expiry::At(2000));
        builder.fields().set(b"n", b"\x00");
        let line = json(7, &change);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(value["key"], "$base64:dXNlcjr/");
        assert_eq!(value["set"]["n"]["$base64"], "AA==");
        assert_eq!(value["removed"][0], "old\n");
        assert_eq!(value["expires"], "1970-01-01T00:00:02.000Z");
        let mut intent = Vec::new();
        IntentBuilder::begin(&mut intent, 3);
        IntentBuilder::key(&mut intent, b"user:1");
        let value: serde_json::Value = serde_json::from_str(&json(6, &intent)).unwrap();
        assert_eq!((&value["type"], &value["keys"][0]), (&"intent".into(), &"user:1".into()));
        assert!(concerns(&intent, b"user:1") && !concerns(&intent, b"user:2"));
        let value: serde_json::Value = serde_json::from_str(&json(9, &[99, 1])).unwrap();
        assert_eq!((&value["type"], &value["bytes"]), (&"unknown".into(), &2.into()));
    }
}
