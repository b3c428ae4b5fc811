//! Laying out changes: all of a change that is known when its command is sent, and what is added once
//! the reply is here. The layout is drawn in `entry.rs`.

use super::entry::{
    ALIVE, CHANGE, CLEARED, Cursor, DELETED, EXPIRES, EXPIRES_OFFSET, Expiry, FLAGS_OFFSET,
    PERSISTED, push_bytes,
};

/// The beginning of a change, up to its key. It is laid out once for all changes of one kind that one
/// actor makes by one command.
#[derive(Debug, Default)]
pub struct ChangeHead(Vec<u8>);

impl ChangeHead {
    /// Lays out another one in its place.
    pub fn replace(&mut self, kind: &str, command: &str, actor: &str) {
        self.0.clear();
        push_head(&mut self.0, kind, command, actor);
    }

    /// Begins a change at the end of `out`; [`mark_time`] must complete it.
    #[inline]
    pub fn begin<'a>(&self, out: &'a mut Vec<u8>, ticket: u64, key: &[u8]) -> ChangeBuilder<'a> {
        let start = out.len();
        out.extend_from_slice(&self.0);
        ChangeBuilder::go_on(out, start, ticket, key)
    }
}

/// Lays out everything in front of the key, with zeros where each change has its own numbers.
fn push_head(out: &mut Vec<u8>, kind: &str, command: &str, actor: &str) {
    let mut numbers = [0; EXPIRES_OFFSET + 8];
    numbers[0] = CHANGE;
    out.extend_from_slice(&numbers);
    for name in [kind, command, actor] {
        push_bytes(out, name.as_bytes());
    }
}

/// Lays out one change at the end of a buffer, without allocating.
///
/// The fields that went come first, then the fields that are set, so that a value which only the
/// reply of Redis tells can be appended last.
pub struct ChangeBuilder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count_at: usize,
    count: u32,
}

impl<'a> ChangeBuilder<'a> {
    /// Begins a change at the end of `out`.
    pub fn begin(
        out: &'a mut Vec<u8>,
        ticket: u64,
        at_ms: u64,
        kind: &str,
        command: &str,
        actor: &str,
        key: &[u8],
    ) -> Self {
        let start = out.len();
        push_head(out, kind, command, actor);
        let mut builder = Self::go_on(out, start, ticket, key);
        mark_time(builder.change(), at_ms);
        builder
    }

    /// Goes on behind a head, in which the ticket is missing.
    #[inline]
    fn go_on(out: &'a mut Vec<u8>, start: usize, ticket: u64, key: &[u8]) -> Self {
        if let Some(place) = out.get_mut(start + 1..start + 9) {
            place.copy_from_slice(&ticket.to_le_bytes());
        }
        push_bytes(out, key);
        let count_at = out.len();
        out.extend_from_slice(&0_u32.to_le_bytes());
        Self { out, start, count_at, count: 0 }
    }

    /// What is laid out so far.
    fn change(&mut self) -> &mut [u8] {
        self.out.get_mut(self.start..).unwrap_or_default()
    }

    /// Says that the profile is gone.
    pub fn deleted(&mut self) -> &mut Self {
        mark_deleted(self.change());
        self
    }

    /// Says that the profile starts from nothing (a snapshot of the whole profile follows).
    pub fn cleared(&mut self) -> &mut Self {
        if let Some(flags) = self.out.get_mut(self.start + FLAGS_OFFSET) {
            *flags |= CLEARED;
        }
        self
    }

    /// Says what the expiry is after the change.
    pub fn expiry(&mut self, expiry: Expiry) -> &mut Self {
        mark_expiry(self.out.get_mut(self.start..).unwrap_or_default(), expiry);
        self
    }

    /// Adds a field that is gone. Only before [`Self::fields`].
    pub fn removed(&mut self, field: &[u8]) -> &mut Self {
        push_bytes(self.out, field);
        self.bump();
        self
    }

    /// Ends the removed fields and begins the ones that are set.
    #[must_use]
    #[inline]
    pub fn fields(self) -> FieldsBuilder<'a> {
        let count_at = self.out.len();
        self.out.extend_from_slice(&0_u32.to_le_bytes());
        FieldsBuilder { inner: Self { count_at, count: 0, ..self } }
    }

    #[inline]
    fn bump(&mut self) {
        self.count += 1;
        let count = self.count.to_le_bytes();
        if let Some(slot) = self.out.get_mut(self.count_at..self.count_at + 4) {
            slot.copy_from_slice(&count);
        }
    }
}

/// The second half of a [`ChangeBuilder`]: the fields that are set.
pub struct FieldsBuilder<'a> {
    inner: ChangeBuilder<'a>,
}

impl FieldsBuilder<'_> {
    /// Adds a field with its resulting value.
    #[inline]
    pub fn set(&mut self, field: &[u8], value: &[u8]) -> &mut Self {
        push_bytes(self.inner.out, field);
        push_bytes(self.inner.out, value);
        self.inner.bump();
        self
    }

    /// Adds a field whose value is not known yet; [`append_value`] must complete the change.
    pub fn set_later(&mut self, field: &[u8]) -> &mut Self {
        push_bytes(self.inner.out, field);
        self.inner.bump();
        self
    }
}

/// Completes a change that ended with [`FieldsBuilder::set_later`].
pub fn append_value(change: &mut Vec<u8>, value: &[u8]) {
    push_bytes(change, value);
}

/// Takes the fields out of an encoded change, so that only its expiry is left to be said.
pub fn drop_fields(change: &mut Vec<u8>) {
    let mut cursor = Cursor { rest: change.get(EXPIRES_OFFSET + 8..).unwrap_or_default() };
    // Kind, command, actor and key stay.
    if (0..4).any(|_| cursor.bytes().is_err()) {
        return;
    }
    let kept = change.len() - cursor.rest.len();
    change.truncate(kept);
    change.extend_from_slice(&[0; 8]);
}

/// Marks an encoded change as a deletion of the profile.
pub fn mark_deleted(change: &mut [u8]) {
    let Some(flags) = change.get_mut(FLAGS_OFFSET) else { return };
    *flags |= DELETED;
}

/// Tells whether an encoded change is a deletion of the profile.
#[must_use]
pub fn is_deletion(change: &[u8]) -> bool {
    change.get(FLAGS_OFFSET).is_some_and(|flags| flags & DELETED != 0)
}

/// Marks an encoded change as one to a profile that was there.
pub fn mark_alive(change: &mut [u8]) {
    let Some(flags) = change.get_mut(FLAGS_OFFSET) else { return };
    *flags |= ALIVE;
}

/// Writes the time of an encoded change or flush, which is known only when its reply is here.
pub fn mark_time(change: &mut [u8], at_ms: u64) {
    if let Some(slot) = change.get_mut(9..17) {
        slot.copy_from_slice(&at_ms.to_le_bytes());
    }
}

/// Writes the expiry of an encoded change.
pub fn mark_expiry(change: &mut [u8], expiry: Expiry) {
    let (flag, expires_ms) = match expiry {
        Expiry::Unchanged => (0, 0),
        Expiry::Never => (PERSISTED, 0),
        Expiry::At(at) => (EXPIRES, at),
    };
    if let Some(flags) = change.get_mut(FLAGS_OFFSET) {
        *flags = *flags & !(EXPIRES | PERSISTED) | flag;
    }
    if let Some(slot) = change.get_mut(EXPIRES_OFFSET..EXPIRES_OFFSET + 8) {
        slot.copy_from_slice(&expires_ms.to_le_bytes());
    }
}
