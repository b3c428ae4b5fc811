//! A change as owned data, and the plainest possible account of what changes do to profiles.
//!
//! The model applies one change at a time to maps; it knows of no batches, no SQL and no fold.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::profile::{ChangeBuilder, Expiry, Flush, mark_alive};
use crate::sinks::encoding::{Fields, fields_json, name_text};
use crate::sinks::fold::Row;

#[derive(Debug, Clone)]
pub(super) struct Write {
    pub(super) key: Vec<u8>,
    pub(super) at_ms: u64,
    pub(super) cleared: bool,
    pub(super) deleted: bool,
    pub(super) alive: bool,
    pub(super) expiry: Expiry,
    pub(super) removed: Vec<Vec<u8>>,
    pub(super) set: Fields,
    /// Every profile was removed; only the time counts.
    pub(super) flush: bool,
}

impl Write {
    /// Sets one field.
    pub(super) fn set(key: &str, at_ms: u64, field: &str, value: &str) -> Write {
        Write {
            key: key.into(),
            at_ms,
            cleared: false,
            deleted: false,
            alive: false,
            expiry: Expiry::Unchanged,
            removed: Vec::new(),
            set: Fields::from([(field.into(), value.into())]),
            flush: false,
        }
    }

    pub(super) fn flush(at_ms: u64) -> Write {
        Write { flush: true, ..Write::delete("*", at_ms) }
    }

    pub(super) fn delete(key: &str, at_ms: u64) -> Write {
        Write { deleted: true, set: Fields::new(), ..Write::set(key, at_ms, "", "") }
    }

    pub(super) fn expiring(self, at_ms: u64) -> Write {
        Write { expiry: Expiry::At(at_ms), ..self }
    }

    pub(super) fn record(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if self.flush {
            let (ticket, at_ms) = (1, self.at_ms);
            Flush { ticket, at_ms, command: "hset", actor: "app" }.encode(&mut out);
            return out;
        }
        let mut builder =
            ChangeBuilder::begin(&mut out, 1, self.at_ms, "user", "hset", "app", &self.key);
        builder.expiry(self.expiry);
        if self.cleared {
            builder.cleared();
        }
        if self.deleted {
            builder.deleted();
        }
        for name in &self.removed {
            builder.removed(name);
        }
        let mut fields = builder.fields();
        for (name, value) in &self.set {
            fields.set(name, value);
        }
        if self.alive {
            mark_alive(&mut out);
        }
        out
    }
}

#[derive(Debug, Clone, Default)]
struct Profile {
    row: Row,
    updated_ms: u64,
    deleted_ms: Option<u64>,
    sequence: u64,
}

/// What the databases must hold after some changes.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    profiles: BTreeMap<Vec<u8>, Profile>,
    history: Vec<Value>,
}

impl Model {
    pub(super) fn with_row(key: &[u8], row: Row) -> Model {
        let profile = Profile { row, ..Profile::default() };
        Model { profiles: BTreeMap::from([(key.to_vec(), profile)]), history: Vec::new() }
    }

    pub(super) fn row(&self, key: &[u8]) -> Option<Row> {
        self.profiles.get(key).map(|profile| profile.row.clone())
    }

    fn flush(&mut self, sequence: u64, at_ms: u64) {
        for profile in self.profiles.values_mut().filter(|profile| !profile.row.deleted) {
            profile.row = Row { deleted: true, ..Row::default() };
            (profile.updated_ms, profile.sequence) = (at_ms, sequence);
            profile.deleted_ms = Some(at_ms);
        }
    }

    pub(super) fn apply(&mut self, sequence: u64, write: &Write) {
        if write.flush {
            self.flush(sequence, write.at_ms);
            return self.history.push(history_row(sequence, write, &Fields::new()));
        }
        let profile = self.profiles.entry(write.key.clone()).or_default();
        let expired = profile.row.expires_ms.is_some_and(|at| at < write.at_ms);
        if profile.row.deleted || expired && !write.alive {
            profile.row = Row::default();
        }
        let before = profile.row.fields.clone();
        if write.cleared || write.deleted {
            profile.row = Row::default();
        }
        profile.row.deleted = write.deleted;
        profile.deleted_ms = write.deleted.then_some(write.at_ms);
        (profile.updated_ms, profile.sequence) = (write.at_ms, sequence);
        if !write.deleted {
            for name in &write.removed {
                profile.row.fields.remove(name);
            }
            profile.row.fields.extend(write.set.clone());
            match write.expiry {
                Expiry::At(at) => profile.row.expires_ms = Some(at),
                Expiry::Never => profile.row.expires_ms = None,
                Expiry::Unchanged => {}
            }
        }
        self.history.push(history_row(sequence, write, &before));
    }

    /// As `Target::state` gives it.
    pub(super) fn state(&self) -> Vec<Value> {
        let mut rows: Vec<_> = (self.profiles.iter())
            .map(|(key, profile)| {
                let fields = object(&profile.row.fields);
                let Profile { row, updated_ms, deleted_ms, sequence } = profile;
                json!([name_text(key), fields, row.expires_ms, updated_ms, deleted_ms, sequence])
            })
            .collect();
        rows.sort_by_key(|row| row[0].as_str().unwrap().to_owned());
        rows
    }

    /// As `Target::history` gives it.
    pub(super) fn history(&self) -> &[Value] {
        &self.history
    }
}

fn history_row(sequence: u64, write: &Write, before: &Fields) -> Value {
    let (mut changed, mut removed) = (write.set.clone(), write.removed.clone());
    if write.deleted {
        (changed, removed) = (Fields::new(), Vec::new());
    } else if write.cleared {
        changed.retain(|name, value| before.get(name) != Some(value));
        removed = before.keys().filter(|name| !write.set.contains_key(*name)).cloned().collect();
    }
    let mut removed: Vec<_> = removed.iter().map(|name| name_text(name)).collect();
    removed.sort_unstable();
    let expires_ms = match write.expiry {
        Expiry::At(at) if !write.deleted => Some(at),
        _ => None,
    };
    let no_expiry =
        write.expiry == Expiry::Never || (write.cleared && write.expiry == Expiry::Unchanged);
    json!([
        sequence,
        name_text(&write.key),
        write.at_ms,
        "hset",
        object(&changed),
        removed,
        write.deleted,
        write.cleared,
        expires_ms,
        no_expiry && !write.deleted
    ])
}

fn object(fields: &Fields) -> Value {
    let json = fields_json(fields.iter().map(|(name, value)| (&name[..], &value[..])));
    serde_json::from_str(&json).unwrap()
}

/// Few keys, few fields and few moments, so that everything meets everything.
pub(super) fn writes(base_ms: u64, length_max: usize) -> impl Strategy<Value = Vec<Write>> {
    vec(write(base_ms), 1..length_max)
}

pub(super) fn write(base_ms: u64) -> impl Strategy<Value = Write> {
    let key = prop_oneof![
        4 => Just(b"user:1".to_vec()),
        2 => Just(b"user:2".to_vec()),
        1 => Just(b"user:\0\xff".to_vec()),
        1 => Just(b"$base64:user".to_vec()),
    ];
    let name = || {
        prop_oneof![
            Just(b"a".to_vec()),
            Just(b"b".to_vec()),
            Just("é \"'\\".as_bytes().to_vec()),
            Just(b"\0".to_vec()),
            Just(b"$base64:AA==".to_vec()),
        ]
    };
    let value = prop_oneof![
        "[a-c]{0,2}".prop_map(String::into_bytes),
        Just(b"{\"$base64\": \"AA==\"}".to_vec()),
        Just(b"\xff\0".to_vec()),
    ];
    let moment = (0..12_u64).prop_map(move |step| base_ms + step * 10);
    let expiry = prop_oneof![
        5 => Just(Expiry::Unchanged),
        1 => Just(Expiry::Never),
        3 => moment.clone().prop_map(Expiry::At),
    ];
    let fields = btree_map(name(), value, 0..4);
    let removed = vec(name(), 0..3);
    (key, moment, 0..16_u8, expiry, removed, fields).prop_map(
        |(key, at_ms, sort, expiry, removed, set)| match sort {
            0 => Write::flush(at_ms),
            _ => {
                let (cleared, deleted, alive) = (sort < 3, sort == 3 || sort == 4, sort > 11);
                Write { key, at_ms, cleared, deleted, alive, expiry, removed, set, flush: false }
            }
        },
    )
}
