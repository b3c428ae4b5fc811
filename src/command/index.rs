//! Finding the row of the command table that a name means.
//!
//! It knows names and nothing of what the rows say.

use std::sync::OnceLock;

use super::{Spec, TABLE};

/// The longest command name that is looked up; longer ones are unknown.
const NAME_BYTES_MAX: usize = 24;

/// Finds the row of a command; upper and lower case are the same.
#[must_use]
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    static INDEX: OnceLock<Index> = OnceLock::new();
    INDEX.get_or_init(Index::build).find(name)
}

/// A small open-addressing table over the names, so that a look-up is one hash and one compare.
struct Index {
    slots: Vec<Option<([u8; NAME_BYTES_MAX], &'static Spec)>>,
}

impl Index {
    const SLOTS: usize = 1024;

    fn build() -> Self {
        let mut slots = vec![None; Self::SLOTS];
        for spec in TABLE {
            let Some(name) = fold(spec.name.as_bytes()) else { continue };
            let free = probes(&name).find(|slot| slots.get(*slot).is_some_and(Option::is_none));
            if let Some(slot) = free.and_then(|slot| slots.get_mut(slot)) {
                *slot = Some((name, spec));
            }
        }
        Self { slots }
    }

    fn find(&self, name: &[u8]) -> Option<&'static Spec> {
        let name = fold(name)?;
        for slot in probes(&name) {
            match self.slots.get(slot) {
                Some(Some((found, spec))) if *found == name => return Some(spec),
                Some(Some(_)) => {}
                _ => return None,
            }
        }
        None
    }
}

/// Pads a name to a fixed width in lower case, with its length at the end.
fn fold(name: &[u8]) -> Option<[u8; NAME_BYTES_MAX]> {
    let mut folded = [0; NAME_BYTES_MAX];
    folded.get_mut(..name.len())?.copy_from_slice(name);
    folded.make_ascii_lowercase();
    // The length keeps a name apart from the same name with NUL behind it.
    match folded.last_mut() {
        Some(last) if name.len() < NAME_BYTES_MAX => *last = name.len() as u8,
        _ => return None,
    }
    Some(folded)
}

/// The slots in which a name may be, nearest first.
fn probes(name: &[u8; NAME_BYTES_MAX]) -> impl Iterator<Item = usize> {
    let mut hash: u64 = 0;
    for word in name.as_chunks::<8>().0 {
        let mixed =
            (hash.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95);
        hash = mixed;
    }
    let start = (hash >> 40) as usize;
    (0..Index::SLOTS).map(move |step| (start + step) % Index::SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_name_in_any_case() {
        for (index, spec) in TABLE.iter().enumerate() {
            assert!(spec.name.len() <= NAME_BYTES_MAX);
            assert_eq!(find(spec.name.as_bytes()).unwrap().name, spec.name);
            assert_eq!(find(spec.name.to_uppercase().as_bytes()).unwrap().name, spec.name);
            assert_eq!(spec.index(), index, "the table is in the order of its names");
        }
        assert!(find(b"nosuch").is_none());
        assert!(find(b"hset\0").is_none());
        assert!(find(&[b'x'; 100]).is_none());
        assert!(find(b"").is_none());
    }
}
