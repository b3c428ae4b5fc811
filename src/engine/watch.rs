//! Which clients watch which keys, and whose keys were touched since (`WATCH`).
//!
//! The rules are those of Redis: whatever changes a key touches it, expiry and removal included, and
//! a client that was touched watches nothing more until it starts anew. Who watches a key that has
//! expired already watches an absent key. While nobody watches, a write costs one test.

use std::collections::HashMap;

#[derive(Default)]
pub(super) struct Watches {
    /// Who watches each key.
    watchers: HashMap<Box<[u8]>, Vec<u64>>,
    /// What each client watches; nothing once one of its keys was touched.
    clients: HashMap<u64, Option<Vec<Box<[u8]>>>>,
}

impl Watches {
    /// Lets a client watch a key, unless it was touched already.
    pub(super) fn watch(&mut self, client: u64, key: &[u8]) {
        let Some(keys) = self.clients.entry(client).or_insert_with(|| Some(Vec::new())) else {
            return;
        };
        let watchers = self.watchers.entry(key.into()).or_default();
        if !watchers.contains(&client) {
            watchers.push(client);
            keys.push(key.into());
        }
    }

    /// Lets go what a client watches; tells whether any of it was touched.
    pub(super) fn unwatch(&mut self, client: u64) -> bool {
        match self.clients.remove(&client) {
            Some(Some(keys)) => {
                self.let_go(client, &keys);
                false
            }
            Some(None) => true,
            None => false,
        }
    }

    /// Returns the keys that a client watches.
    pub(super) fn keys_of(&self, client: u64) -> Vec<Box<[u8]>> {
        self.clients.get(&client).cloned().flatten().unwrap_or_default()
    }

    /// Notes that a key was changed.
    pub(super) fn touch(&mut self, key: &[u8]) {
        if self.watchers.is_empty() {
            return;
        }
        for client in self.watchers.remove(key).unwrap_or_default() {
            if let Some(keys) = self.clients.insert(client, None).flatten() {
                self.let_go(client, &keys);
            }
        }
    }

    /// Notes that every key for which this holds was changed.
    pub(super) fn touch_all(&mut self, changed: impl Fn(&[u8]) -> bool) {
        let keys: Vec<Box<[u8]>> =
            self.watchers.keys().filter(|key| changed(key)).cloned().collect();
        keys.iter().for_each(|key| self.touch(key));
    }

    fn let_go(&mut self, client: u64, keys: &[Box<[u8]>]) {
        for key in keys {
            if let Some(watchers) = self.watchers.get_mut(key) {
                watchers.retain(|watcher| *watcher != client);
                if watchers.is_empty() {
                    self.watchers.remove(key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_of_clients_that_have_let_go() {
        let mut watches = Watches::default();
        for client in 0..3 {
            for key in [b"a", b"b", b"a"] {
                watches.watch(client, key);
            }
        }
        watches.touch(b"c");
        assert!(!watches.unwatch(0));
        watches.touch(b"a");
        watches.watch(1, b"d");
        assert!(watches.unwatch(1) && watches.unwatch(2) && !watches.unwatch(2));
        assert!(watches.watchers.is_empty() && watches.clients.is_empty());
    }
}
